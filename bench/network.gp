# The figure of docs/NETWORK.md from docs/network.csv, as SVG. Called by `make network`, in the root:
#   gnuplot bench/network.gp
set terminal svg size 760,480 font 'sans,13' background 'white'
set output 'docs/network.svg'
set datafile separator ','
set datafile missing 'nan'
csv = 'docs/network.csv'
set grid lc rgb '#dddddd'
unset key
set rmargin 11
set logscale xy
set xrange [1e7:2e10]
set yrange [0.02:*]
set xtics ('10M' 1e7, '20M' 2e7, '100M' 1e8, '1G' 1e9, '10G' 1e10)
set xlabel 'bit/s of every cable, each way'
set ylabel 'seconds per step'
set title 'points measured, lines estimated' offset 0,-0.6
methods = 'adamw muon ef21-muon signmuon'
colours = '#333333 #1461b3 #1b9e77 #d95f02'
of(name, k) = strcol(1) eq name && strcol(2) ne 'inf' ? column(k) : NaN
# step without shaping, bits sent in it
field(name, k) = real(system("awk -F, '$1 == \"".name."\" && $2 == \"inf\" { print $".k." }' ".csv))
array base[4]
array sent[4]
do for [i=1:4] { base[i] = field(word(methods, i), 7); sent[i] = 8 * field(word(methods, i), 8) }
do for [i=1:4] {
    set label word(methods, i) at 2.2e10, base[i] + sent[i] / 2e10 tc rgb word(colours, i) offset 0,i == 1 || i == 4 ? -0.25 : 0.2 noenhanced
}
plot for [i=1:4] base[i] + sent[i] / x with lines lw 1.8 dt 1 + (i == 2) lc rgb word(colours, i), \
     for [i=1:4] csv using (of(word(methods, i), 2)):3:4:5 with yerrorbars pt 7 ps 0.7 lw 1.2 lc rgb word(colours, i)
