# Loss curves from log.csv files, as SVG. Called by `make plots`:
#   gnuplot -e "logs='out/log.csv out2/log.csv'; to='plots'" bench/plot.gp
set terminal svg size 760,480 font 'sans,13' background 'white'
set datafile separator ','
set key top right noenhanced
set grid lc rgb '#dddddd'
set ylabel 'loss, nats per token'
title(f) = system("dirname '".f."'")

set output to.'/loss_step.svg'
set xlabel 'step'
plot for [i=1:words(logs)] word(logs, i) using 'step':'train_loss' with lines lc i lw 0.5 notitle, \
     for [i=1:words(logs)] word(logs, i) using 'step':'val_loss' with linespoints lc i lw 2 pt 7 ps 0.5 title title(word(logs, i))

set output to.'/loss_bytes.svg'
set xlabel 'bytes sent by one worker'
set logscale x
set format x '10^{%L}'
plot for [i=1:words(logs)] word(logs, i) using (column('bytes_sent') > 0 ? column('bytes_sent') : NaN):'val_loss' \
     with linespoints lc i lw 2 pt 7 ps 0.5 title title(word(logs, i))

set output to.'/loss_wire.svg'
set xlabel 'estimated wire time of one worker, seconds (runs with --link)'
plot for [i=1:words(logs)] word(logs, i) using (column('wire_seconds') > 0 ? column('wire_seconds') : NaN):'val_loss' \
     with linespoints lc i lw 2 pt 7 ps 0.5 title title(word(logs, i))
