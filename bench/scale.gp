# The figure of docs/SCALE.md from docs/scale.csv, as SVG. Called by `make scale`, in the root: gnuplot bench/scale.gp
set datafile separator ','
set terminal svg size 760,480 font 'sans,13' background 'white'
set output 'docs/scale.svg'
set grid lc rgb '#dddddd'
set logscale xy
set format y '10^{%L}'
set xtics ('10' 10, '100' 100, '1,000' 1e3, '10,000' 1e4, '100,000' 1e5)
set xrange [7:1e5]
set rmargin 12
unset key
set xlabel 'workers'
set ylabel 'seconds of a step'
set title '124M parameters, every worker one CPU, on an office network' offset 0,-0.6
methods = 'adamw muon ef21-muon muonsign signmuon'
colours = '#333333 #1461b3 #1b9e77 #e7298a #d95f02'
of(name) = strcol(1) eq '124M' && strcol(2) eq 'office' && strcol(4) eq name ? column(9) : NaN
last(name) = real(system("awk -F, '$1 == \"124M\" && $2 == \"office\" && $4 == \"".name."\" { y = $9 } END { print y }' docs/scale.csv"))
do for [i=1:5] { set label word(methods, i) at 1.15e5, last(word(methods, i)) tc rgb word(colours, i) offset 0,i == 1 ? -0.35 : 0.2 noenhanced }
plot for [i=1:5] 'docs/scale.csv' using 3:(of(word(methods, i))) with lines lw 2 dt 1 + (i == 5) lc rgb word(colours, i)
