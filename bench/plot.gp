# Loss curves from log.csv files, as SVG. Called by `make plots`:
#   gnuplot -e "logs='out/log.csv out2/log.csv'; to='plots'" bench/plot.gp
missing = system("for f in ".logs."; do [ \"$(sed 2q $f 2>/dev/null | wc -l)\" = 2 ] || printf ' %s' $f; done")
if (words(logs) == 0) { missing = " out/log.csv" }
if (words(missing)) {
    print 'there are no rows in'.missing.": train first, or name logs: make plots LOGS='a/log.csv b/log.csv'"
    exit status 1
}

set terminal svg size 760,480 font 'sans,13' background 'white'
set datafile separator ','
set key top right noenhanced
set grid lc rgb '#dddddd'
set ylabel 'loss, nats'
file(i) = word(logs, i)
colour(i) = '#'.word('0072b2 d55e00 009e73 cc79a7 e69f00 56b4e9 000000', (i - 1) % 7 + 1)
pale(i) = '#99'.colour(i)[2:]
measured(i, column) = int(system("cut -d, -f".column." ".file(i)." | grep -c '[1-9]'")) # rows with a value
title(i, column) = measured(i, column) ? system("dirname '".file(i)."'") : ''
any(column) = int(system("cat ".logs." | cut -d, -f".column." | grep -c '[1-9]'"))
positive(name) = column(name) > 0 ? column(name) : NaN

set output to.'/loss_step.svg'
set xlabel 'step'
plot for [i=1:words(logs)] file(i) using 'step':'train_loss' with lines lw 1 lc rgb pale(i) notitle, \
     for [i=1:words(logs)] file(i) using 'step':'val_loss' \
         with linespoints lw 2 pt 7 ps 0.5 lc rgb colour(i) title title(i, 1), \
     NaN with lines lw 1 lc rgb '#999999' title 'thin: training'

set logscale x
set format x '10^{%L}'
if (any(9)) {
    set output to.'/loss_bytes.svg'
    set xlabel 'bytes sent by one worker'
    plot for [i=1:words(logs)] file(i) using (positive('bytes_sent')):'val_loss' \
         with linespoints lw 2 pt 7 ps 0.5 lc rgb colour(i) title title(i, 9)
}
if (any(12)) {
    set output to.'/loss_wire.svg'
    set xlabel 'estimated wire time of one worker, seconds (runs with --link)'
    plot for [i=1:words(logs)] file(i) using (positive('wire_seconds')):'val_loss' \
         with linespoints lw 2 pt 7 ps 0.5 lc rgb colour(i) title title(i, 12)
}
