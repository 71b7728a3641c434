# Loss curves from log.csv files, as SVG. Called by `make plots`:
#   gnuplot -e "logs='out/log.csv out2/log.csv'; to='plots'" bench/plot.gp
set terminal svg size 760,480 font 'sans,13' background 'white'
set datafile separator ','
set key top right noenhanced
set grid lc rgb '#dddddd'
set ylabel 'loss, nats per token'
title(f) = system("dirname '".f."'")
measured(column) = int(system("cut -d, -f".column." ".logs." | grep -c '[1-9]'")) # rows with a value
positive(name) = column(name) > 0 ? column(name) : NaN

set output to.'/loss_step.svg'
set xlabel 'step'
plot for [i=1:words(logs)] word(logs, i) using 'step':'train_loss' with lines lc i lw 0.5 dt 3 notitle, \
     for [i=1:words(logs)] word(logs, i) using 'step':'val_loss' \
         with linespoints lc i lw 2 pt 7 ps 0.5 title title(word(logs, i))

set logscale x
set format x '10^{%L}'
if (measured(9)) {
    set output to.'/loss_bytes.svg'
    set xlabel 'bytes sent by one worker'
    plot for [i=1:words(logs)] word(logs, i) using (positive('bytes_sent')):'val_loss' \
         with linespoints lc i lw 2 pt 7 ps 0.5 title title(word(logs, i))
}
if (measured(12)) {
    set output to.'/loss_wire.svg'
    set xlabel 'estimated wire time of one worker, seconds (runs with --link)'
    plot for [i=1:words(logs)] word(logs, i) using (positive('wire_seconds')):'val_loss' \
         with linespoints lc i lw 2 pt 7 ps 0.5 title title(word(logs, i))
}
