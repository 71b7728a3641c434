# The roofline of docs/BENCH.md from docs/bench.csv, as SVG. Called by bench/bench, in the root: gnuplot bench/roofline.gp
# The slopes are memcpy's rates on one thread, the points are kernels on one thread.
set terminal svg size 860,600 font 'sans,12' background 'white'
set output 'docs/roofline.svg'
csv = 'docs/bench.csv'
set grid lc rgb '#dddddd'
set logscale xy
set xrange [0.05:1600]
set xlabel 'flop per byte'
set ylabel 'GFLOP/s'
set key bottom right
field(row, k) = system("awk -F, 'NR == ".row." { print $".k." }' ".csv)
limits(name, threads) = system("awk -F, '$1 == \"".name."\" && $3 == ".threads." { print NR }' ".csv)
rate(row) = real(field(row, 4))
one = rate(limits('FMA fp32', 1))
dot = words(limits('bf16 dot', 1)) ? rate(limits('bf16 dot', 1)) : NaN
set yrange [1 : 3 * (dot > 3 * one ? dot : 3 * one)]
copies = limits('memcpy', 1)
# of each kernel the row with most flop per byte, in that order: neighbours' names go up and down in turn, those of bf16 up. These
# are shown where there is a bf16 dot: else they are fp32's kernels, at the same points.
kernels = system("awk -F, '$1 == \"bf16 dot\" { dot = 1 } NR > 1 && (dot || $1 !~ /bf16/) && $3 == 1 && $9 > most[$1] && $9 < 1e9 { most[$1] = $9; row[$1] = NR } END { for (k in most) print most[k], row[k] }' ".csv." | sort -n | cut -d ' ' -f 2")
do for [i=1:words(kernels)] {
    row = word(kernels, i)
    up = i % 2 || strstrt(field(row, 1), 'bf16')
    set label field(row, 1) at real(field(row, 9)), real(field(row, 10)) point pt 7 ps 0.5 lc rgb '#1461b3' \
        rotate by (up ? 60 : -60) offset 0.3,(up ? 0.6 : -0.6) font ',11' noenhanced
}
array slope[3] = [rate(word(copies, 1)), rate(word(copies, 2)), rate(word(copies, 3))]
plot for [i=1:3] x * slope[i] < one ? x * slope[i] : NaN lw 1.5 lc rgb word('#1b9e77 #d95f02 #7a3db8', i) \
         title sprintf('memcpy %s: %.0f GB/s', field(word(copies, i), 2), slope[i]), \
     one lw 2 lc rgb '#333333' title sprintf('FMA fp32: %.0f GFLOP/s', one), \
     dot lw 2 dt 2 lc rgb '#777777' title (dot > 0 ? sprintf('bf16 dot: %.0f GFLOP/s', dot) : '')
