# The figures of docs/CLAIMS.md from docs/claims_*.csv, as SVG. Called by `make claims`, in the root:
#   gnuplot bench/claims/claims.gp
set datafile separator ','
set datafile missing 'nan'
set grid lc rgb '#dddddd'
set key noenhanced
colours = '#1461b3 #d95f02 #1b9e77 #7a3db8 #e7298a #b5500b #5e8c1f #333333'
csv(name) = 'docs/claims_'.name.'.csv'
of(name, k) = strcol(1) eq name ? column(k) : NaN # a column, in the rows that begin with the name

# every method, in four panels with muon in each
set terminal svg size 980,760 font 'sans,13' background 'white'
set output 'docs/claims_convergence.svg'
set multiplot layout 2,2 margins 0.08,0.985,0.075,0.95 spacing 0.09,0.16
set logscale y
set format y '10^{%L}'
set yrange [3e-3:20]
set xlabel 'step'
set ylabel 'F (mean model)'
set key at graph 0.985,0.985 top right vertical samplen 2 font ',11'
array title_of[4] = ['fp32 up, fp32 down', 'one bit up, majority vote', 'error feedback', 'gossip on a ring of 5']
array rows_of[4] = ['muon sgd adamw scion scion-constrained gluon muon-avgpolar', \
    'muon signsgd signum lion signmuon muonusign muonsign', \
    'muon ef21-muon ef21-signmuon ef21-muonusign ef21-muonsign', \
    'muon demuon demuon-notrack dsgd dsgd-clip gt-dsgd gt-nsgdm']
do for [k=1:4] {
    set title title_of[k] offset 0,-0.6
    plot for [i=1:words(rows_of[k])] csv('convergence') every 2 using (of(word(rows_of[k], i), 2)):3 with lines \
        lw i==1?3:1.7 lc rgb i==1 ? '#999999' : word(colours, i - 1) dt i==1?2:1 title word(rows_of[k], i)
}
unset multiplot
unset title

set terminal svg size 760,480 font 'sans,13' background 'white'
set output 'docs/claims_floors.svg'
set logscale xy
set format xy '10^{%L}'
set key default
set key left top samplen 3 font ',12' noenhanced
set xrange [0.02:1.5]
set yrange [4e-3:0.6]
set xlabel 'Frobenius norm of a step'
set ylabel 'floor: mean Frobenius norm of the gradient'
floors = 'signsgd ef21-muonsign ef21-signmuon muonsign ef21-muonusign signmuon muonusign muon'
plot for [i=1:words(floors)] csv('floors') using (of(word(floors, i), 3)):4 with linespoints pt i ps 0.8 lw 1.5 \
    lc rgb word(colours, i) title word(floors, i)

set output 'docs/claims_votes.svg'
unset logscale
set format xy '%g'
set logscale x 2
set xrange [1:32]
set yrange [0:0.52]
set key right top font ',12'
set xlabel 'workers that vote'
set ylabel "size of g times Pr(wrong sign), in units of the noise's deviation"
noises = '"Gaussian noise" "Laplace noise" "skewed noise"'
plot for [i=1:3] csv('votes') using 1:1+i with linespoints pt 7 ps 0.6 lw 2 lc rgb word(colours, i) title word(noises, i), \
     '' using 1:5 with lines lw 2 dt 2 lc rgb '#333333' title 'bound 1/sqrt(P)'

set output 'docs/claims_consensus.svg'
set logscale xy
set format y '%g'
set xrange [0.015:1]
set yrange [0.1:150]
set xlabel 'spectral gap 1 - rho'
set ylabel 'consensus distance / (lr sqrt(N min(m,n)))'
graphs = 'ring ring-lazy directed-ring exponential exponential-lazy hypercube star'
plot csv('consensus') using 4:6 smooth unique with lines lw 2 dt 2 lc rgb '#333333' title 'bound', \
     for [i=1:words(graphs)] csv('consensus') using (of(word(graphs, i), 4)):5 with points pt i ps 1.1 lw 2 \
     lc rgb word(colours, i) title word(graphs, i)

set output 'docs/claims_feedback.svg'
unset logscale
set logscale y
set format x '%g'
set format y '10^{%L}'
set xrange [0:600]
set yrange [1e-8:1e4]
set key right top maxrows 4 font ',12'
set xlabel 'step'
set ylabel 'F'
links = 'topk:5% sign rankk:5% identity'
fed(name, feedback) = strcol(1) eq name && column(2) == feedback ? column(3) : NaN
plot for [f=0:1] for [i=1:4-f] csv('feedback') every 2 using (fed(word(links, i), 1 - f)):4 with lines lw 2 \
    dt f?2:1 lc rgb word(colours, i) title word(links, i).(f ? ', without' : ', with feedback')

set output 'docs/claims_downlink.svg'
set xrange [0:1000]
set yrange [1e-4:1e3]
set key right top maxrows 3
set xlabel 'step'
set ylabel 'F, and relative distance'
plot csv('downlink') using 2:3 with lines lw 2 lc rgb '#1461b3' title 'F(W), the model that workers have', \
     '' using 2:7 with lines lw 2 lc rgb '#d95f02' title "F(X), the server's model", \
     '' using 2:8 with lines lw 1.5 dt 2 lc rgb '#333333' title 'norm of X - W over norm of X'
