# The figures of docs/CLAIMS.md from docs/claims_*.csv, as SVG. Called by `make claims`, in the root:
#   gnuplot bench/claims/claims.gp
# Curves are labelled where they end. A curve that another may hide is drawn dashed over it.
set datafile separator ','
set datafile missing NaN # a row that a curve leaves out does not break it
set grid lc rgb '#dddddd'
unset key
colours = '#999999 #1461b3 #d95f02 #1b9e77 #7a3db8 #e7298a #b5500b #5e8c1f #333333'
colour(i) = word(colours, i)
dash(i) = i > 2 ? 10 + i : 1
set dashtype 13 (12,3); set dashtype 14 (12,6); set dashtype 15 (12,9); set dashtype 16 (12,12); set dashtype 17 (12,15)
csv(name) = 'docs/claims_'.name.'.csv'
of(name, k) = strcol(1) eq name ? column(k) : NaN # a column, in the rows that begin with the name
tenth(step) = step / 10 == floor(step / 10)

# Labels of curves 1 .. n, name(i), at their last values end[i], moved up by next(y) where two would meet.
shade(i) = colour(i)
array end[9]
array placed[9]
label_ends = "do for [i=1:n] { placed[i] = 0 }; \
    do for [k=1:n] { \
        best = 0; \
        do for [i=1:n] { if (!placed[i] && (best ? end[i] < end[best] : 1)) { best = i } }; \
        placed[best] = 1; \
        at_y = k > 1 && end[best] < next(at_y) ? next(at_y) : end[best]; \
        set label name(best) at graph 1.015, first at_y textcolor rgb shade(best) font ',11' noenhanced \
    }"

# every method, in four panels with muon in each
set terminal svg size 980,760 font 'sans,13' background 'white'
set output 'docs/claims_convergence.svg'
set multiplot layout 2,2 margins 0.08,0.87,0.075,0.95 spacing 0.2,0.16
set logscale y
set format y '10^{%L}'
set xrange [0:300]
set yrange [3e-3:20]
set xlabel 'step'
set ylabel 'F (mean model)'
array title_of[4] = ['fp32 up, fp32 down', 'one bit up, majority vote', 'error feedback', 'gossip on a ring of 5']
array rows_of[4] = ['muon sgd adamw scion scion-constrained gluon muon-avgpolar', \
    'muon signsgd signum lion signmuon muonusign muonsign', \
    'muon ef21-muon ef21-signmuon ef21-muonusign ef21-muonsign', \
    'muon demuon demuon-notrack dsgd dsgd-clip gt-dsgd gt-nsgdm']
next(y) = y * 1.45
do for [panel=1:4] {
    unset label
    set title title_of[panel] offset 0,-0.6
    n = words(rows_of[panel])
    name(i) = word(rows_of[panel], i)
    do for [i=1:n] {
        stats csv('convergence') using (strcol(1) eq name(i) ? (end[i] = column(3)) : NaN) nooutput
    }
    eval label_ends
    plot for [i=1:n] csv('convergence') using (tenth(column(2)) ? of(name(i), 2) : NaN):3 with lines \
        lw i==1?4:1.7 lc rgb colour(i) dt dash(i)
}
unset multiplot
unset title
unset label

set terminal svg size 760,480 font 'sans,13' background 'white'
set output 'docs/claims_votes.svg'
set rmargin 18
unset logscale
set format xy '%g'
set logscale x 2
set xrange [1:32]
set yrange [0:0.52]
set xlabel 'workers that vote'
set ylabel "size of g times Pr(wrong sign), in units of the noise's deviation"
noises = '"bound 1/sqrt(P)" "Gaussian noise" "Laplace noise" "skewed noise"'
n = 4
name(i) = word(noises, i)
next(y) = y + 0.03
do for [i=1:n] { stats csv('votes') using (end[i] = column(i == 1 ? 5 : i)) every ::1 nooutput }
eval label_ends
plot for [i=2:4] csv('votes') using 1:i with linespoints pt 7 ps 0.6 lw 2 lc rgb colour(i), \
     '' using 1:5 with lines lw 2 dt 2 lc rgb colour(1)
unset label

set output 'docs/claims_consensus.svg'
set rmargin 2
set logscale xy
set format y '%g'
set xrange [0.01:1.3]
set yrange [0.1:150]
set xlabel 'spectral gap 1 - rho'
set ylabel 'consensus distance / (lr sqrt(N min(m,n)))'
graphs = 'directed-ring ring-lazy ring exponential-lazy exponential star hypercube'
graph_of(i) = word(graphs, i)
named(i) = column(2) == (i == 7 ? 4 : 16) ? of(graph_of(i), 4) : NaN
set label 'bound' at 0.1, 14
set label 'named at 16 nodes, the hypercube at 4' at graph 0.98, graph 0.95 right font ',11'
plot csv('consensus') using 4:6 smooth unique with lines lw 2 dt 2 lc rgb '#333333', \
     for [i=1:7] '' using (of(graph_of(i), 4)):5 with points pt 2*i-(i<3?i:2) ps 1.1 lw 2 lc rgb colour(i + 1), \
     for [i=1:5] '' using (named(i)):5:(graph_of(i)) with labels right offset -1,0 textcolor rgb colour(i + 1) font ',11', \
     for [i=6:7] '' using (named(i)):5:(graph_of(i)) with labels left offset 1,0 textcolor rgb colour(i + 1) font ',11'
unset label

set output 'docs/claims_feedback.svg'
set rmargin 20
unset logscale
set logscale y
set format x '%g'
set format y '10^{%L}'
set xrange [0:600]
set yrange [1e-8:1e2]
set xlabel 'step'
set ylabel 'F'
links = 'topk:5% sign rankk:5% identity topk:5% sign rankk:5%'
n = 7
name(i) = word(links, i).(i > 4 ? ', no feedback' : '')
next(y) = y * 2.6
fed(i) = strcol(1) eq word(links, i) && column(2) == (i > 4 ? 0 : 1) ? column(4) : NaN
shade(i) = colour(1 + (i > 4 ? i - 4 : i))
do for [i=1:n] { stats csv('feedback') using (v = fed(i), v == v ? (end[i] = v) : NaN) every ::1 nooutput }
eval label_ends
plot for [i=1:n] csv('feedback') using 3:(tenth(column(3)) ? fed(i) : NaN) with lines lw 2 \
    dt dash(i > 4 ? i - 2 : 1) lc rgb shade(i)
unset label

set output 'docs/claims_downlink.svg'
set xrange [0:1000]
set yrange [1e-4:1e2]
set ylabel 'F, and relative distance'
set label "F(W), the\nworkers' model" at 1015,3.5e-4 textcolor rgb colour(2) font ',11'
set label "F(X), the\nserver's model" at 1015,6e-3 textcolor rgb colour(3) font ',11'
set label "norm of X - W\nover norm of X" at 1015,0.6 textcolor rgb colour(9) font ',11'
plot csv('downlink') using 2:3 with lines lw 2 lc rgb colour(2), \
     '' using 2:7 with lines lw 2 dt (12,3) lc rgb colour(3), \
     '' using 2:8 with lines lw 1.5 dt 2 lc rgb colour(9)
