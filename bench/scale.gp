# The figure of docs/SCALE.md from docs/scale.csv, as SVG. Called by `make scale`, in the root: gnuplot bench/scale.gp
set datafile separator ','
set grid lc rgb '#dddddd'
set logscale xy
set mxtics 1
set mytics 1
set format xy '10^{%L}'
models = '124M 7B'
links = 'datacentre office home'
name(i) = word('adamw muon ef21-muon muonsign signmuon', i)
colour(i) = word('#333333 #1461b3 #1b9e77 #e7298a #d95f02', i)
of(m, l, r) = strcol(1) eq m && strcol(2) eq l && strcol(4) eq r ? column(9) : NaN
set terminal svg size 980,860 font 'sans,12' background 'white'
set output 'docs/scale.svg'
set xrange [6:150000]
set key left top samplen 2 noenhanced font ',10'
set multiplot layout 3,2 margins 0.075,0.985,0.07,0.96 spacing 0.055,0.045
do for [l=1:3] {
    do for [m=1:2] {
        unset title; set xlabel; set ylabel
        if (l == 1) { set title word(models, m).', every worker one CPU' offset 0,-0.7 }
        if (l == 3) { set xlabel 'workers' }
        if (m == 1) { set ylabel word(links, l).': seconds of a step' }
        plot for [i=1:5] 'docs/scale.csv' using 3:(of(word(models, m), word(links, l), name(i))) with lines \
             lw 1.8 lc rgb colour(i) title l == 1 && m == 2 ? name(i) : ''
    }
}
unset multiplot
