# The figures of docs/SCALE.md from docs/scale*.csv, as SVG. Called by `make scale`, in the root:
#   gnuplot bench/scale.gp
common = "set datafile separator ','; set datafile missing 'nan'; set grid lc rgb '#dddddd'; set logscale xy; set format y '10^{%L}'; set key noenhanced"
models = '124M 1.3B 7B'
links = 'datacentre office home'
name(i) = word('adamw "muon (all)" "muon (owners)" ef21-muon "muonsign (even)" signmuon "signmuon (2 levels)"', i)
colour(i) = word('#333333 #999999 #1461b3 #1b9e77 #e7298a #d95f02 #7a3db8', i)
dash(i) = i == 2 ? 2 : i == 7 ? 3 : 1
mark(i) = int(word('7 4 5 9 11 13 6', i))
# a legend of its own, as wide as the page
legend(high) = sprintf("set key center center horizontal samplen 3 noenhanced; unset tics; unset border; unset grid; unset logscale; set xrange [0:1]; set yrange [0:1]; unset xlabel; unset ylabel; unset title; set lmargin at screen 0.03; set rmargin at screen 0.99; set bmargin at screen 0; set tmargin at screen %g", high)

# step time against workers, with this CPU
of(m, l, r, k) = strcol(1) eq 'cpu' && strcol(2) eq m && strcol(3) eq l && strcol(5) eq r ? column(k) : NaN
eval common
set terminal svg size 980,900 font 'sans,12' background 'white'
set output 'docs/scale.svg'
set format x '10^{%L}'
set xrange [6:150000]
set multiplot layout 3,3 margins 0.075,0.985,0.13,0.96 spacing 0.055,0.045
do for [l=1:3] {
    do for [m=1:3] {
        unset title; unset key; set xlabel; set ylabel
        if (l == 1) { set title word(models, m).', every worker one CPU' offset 0,-0.7 }
        if (l == 3) { set xlabel 'workers' }
        if (m == 1) { set ylabel word(links, l).': seconds of a step' }
        plot for [i=1:7] 'docs/scale.csv' using 4:(of(word(models, m), word(links, l), name(i), 11)) \
             with linespoints pt mark(i) ps 0.5 lw 1.8 dt dash(i) lc rgb colour(i) notitle
    }
}
eval legend(0.06)
plot for [i=1:7] -1 with linespoints pt mark(i) ps 0.5 lw 1.8 dt dash(i) lc rgb colour(i) title name(i)
unset multiplot
reset

# step time of 64 workers against the rate of a link, with both workers
at(w, m, r) = strcol(1) eq w && strcol(2) eq m && strcol(3) eq r ? column(5) : NaN
eval common
set terminal svg size 980,640 font 'sans,12' background 'white'
set output 'docs/scale_rate.svg'
set xrange [1e6:1e12]
set xtics ('1M' 1e6, '10M' 1e7, '100M' 1e8, '1G' 1e9, '10G' 1e10, '100G' 1e11, '' 1e12)
set multiplot layout 2,3 margins 0.075,0.985,0.18,0.95 spacing 0.055,0.06
do for [w=1:2] {
    do for [m=1:3] {
        unset title; unset key; set xlabel; set ylabel
        if (w == 1) { set title word(models, m).', 64 workers' offset 0,-0.7 }
        if (w == 2) { set xlabel 'bit/s of a link' }
        if (m == 1) { set ylabel (w == 1 ? 'this CPU' : 'faster worker').': seconds of a step' }
        plot for [i=1:6] 'docs/scale_rate.csv' using 4:(at(word('cpu faster', w), word(models, m), name(i))) \
             with lines lw 1.8 dt dash(i) lc rgb colour(i) notitle
    }
}
eval legend(0.09)
plot for [i=1:6] -1 with lines lw 1.8 dt dash(i) lc rgb colour(i) title name(i)
unset multiplot
