# The figure of docs/METHODS.md: loss against bytes sent. Called by bench/methods.sh with points and svg set.
set terminal svg size 760,600 font 'sans,13' background 'white'
set output svg
set datafile separator ','
set grid lc rgb '#dddddd'
set logscale x
set xlabel 'megabytes that a worker sent in 2000 steps'
set ylabel 'validation loss, mean of three seeds'
unset key
set offsets graph 0, 0, graph 0.04, graph 0.04
set xrange [2:2e5]
left(bytes) = bytes < 3e8 ? bytes / 1e6 : NaN # these names stand on the left, the others on the right
above(bytes) = bytes > 1e9 && bytes < 3e9 ? bytes / 1e6 : NaN # or on the left, a little higher
right(bytes) = bytes < 3e8 || (bytes > 1e9 && bytes < 3e9) ? NaN : bytes / 1e6
plot points using ($2/1e6):3 with points pt 7 ps 0.8 lc rgb '#1461b3', \
     points using (left($2)):3:1 with labels right offset -0.8,0 noenhanced, \
     points using (above($2)):3:1 with labels right offset -0.4,0.8 noenhanced, \
     points using (right($2)):3:1 with labels left offset 0.8,0 noenhanced
