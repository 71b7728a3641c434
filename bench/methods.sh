#!/bin/sh
# Makes docs/METHODS.md, its figure docs/methods.svg and the table of README.md from docs/results/tune.csv (bench/tune.sh) and
# docs/results/times.csv. A method is shown once its three further seeds are there.
#   sh bench/methods.sh [TEXT]     with TEXT it first measures times.csv: 100 steps of each method, three times, in turns
set -eu
csv=docs/results/tune.csv times=docs/results/times.csv svg=docs/methods.svg out=${TMPDIR:-/tmp}/signmuon-methods.$$
trap 'rm -rf "$out"' EXIT
mkdir -p "$out"

# name, rate and flags of every method that is shown, in the order of the mean loss
chosen() {
    awk -F, 'NR > 1 && $3 != 1337 && $5 + 0 > 0 { k = $1 " " $2; n[k]++; sum[k] += $5; name[k] = $1; line[k] = k " " $12 }
             END { for (k in n) if (n[k] == 3 && (!low[name[k]] || sum[k] < low[name[k]])) { low[name[k]] = sum[k]; best[name[k]] = line[k] }
                   for (m in best) print low[m], best[m] }' $csv | sort -n | cut -d ' ' -f 2-
}

# milliseconds of a step: the median over the intervals between log rows of three runs
measure() {
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
    for turn in 1 2 3; do
        chosen | while read -r name rate flags; do
            ./train_gpt --data "$1" --out "$out/run" --overwrite --quiet --save-every 0 --eval-every 0 --log-every 5 --steps 100 \
                --workers 3 --threads 2 --lr "$rate" $flags >/dev/null
            awk -F, 'NR > 2 { print 1000 * ($3 - before) / 5 } { before = $3 }' "$out/run/log.csv" >>"$out/ms.$name"
        done
    done
    echo "name,ms,machine" >$times
    chosen | while read -r name rate flags; do
        sort -n "$out/ms.$name" | awk -v name="$name" -v cpu="$(nproc) cores of: ${cpu:-unknown}" \
            '{ v[NR] = $1 } END { printf "%s,%.1f,%s\n", name, v[int((NR + 1) / 2)], cpu }' >>$times
    done
}
[ $# = 0 ] || measure "$1"

# what: long, the table of METHODS.md; short, that of README.md; points of the figure, name, bytes sent and loss. The model has 804096 parameters.
table() {
    chosen | awk -F, -v what="$1" -v csv=$csv -v times=$times -v parameters=804096 '
        function add(m, k, value) { sum[m, k] = value + 0 > 0 && sum[m, k] != "never" ? sum[m, k] + value / 3 : "never" }
        function shown(x, form) { return x == "never" ? "never" : sprintf(form, x) }
        # seconds until 1.65 on a link of so many bit/s each way: steps at their measured time, and what a worker sends
        function until(m, rate) {
            return sum[m, 7] == "never" ? "never" : ms[m] == "" ? "" : sprintf("%.0f", sum[m, 7] * ms[m] / 1000 + 8 * sum[m, 10] / rate)
        }
        BEGIN {
            while ((getline line <times) > 0) { split(line, f, ","); time[f[1]] = f[2] }
            while ((getline line <csv) > 0) {
                split(line, f, ",")
                if (f[3] == 1337 || f[3] == "seed") continue
                m = f[1] " " f[2]; steps = f[4]; ms[m] = time[f[1]]; square[m] += f[5] * f[5] / 3
                for (k = 5; k <= 10; k++) add(m, k, f[k])
            }
        }
        {
            split($0, f, " "); m = f[1] " " f[2]; flags = substr($0, length(f[1]) + length(f[2]) + 3)
            sd = sqrt((square[m] - sum[m, 5] ^ 2) * 1.5)
            label = substr(flags, 10); sub(/--up natural --down /, "", label); sub(/--up /, "", label)
            if (what == "points" && flags !~ /--ns|--polar-after/) printf "%s,%.6g,%.4f\n", label, (sum[m, 8] + sum[m, 9]) / 8 * parameters * steps, sum[m, 5]
            if (what == "short") printf "| `%s` | %.3f ± %.3f | %.3f | %s | %s |\n", flags, sum[m, 5], sd, sum[m, 8] + sum[m, 9], ms[m],
                until(m, 1e8)
            if (what == "long") printf "| `%s` | %s | %.4f ± %.4f | %s | %s | %.3f | %.3f | %s | %s | %s | %s | %s |\n", flags, f[2],
                sum[m, 5], sd, shown(sum[m, 6], "%.0f"), shown(sum[m, 7], "%.0f"), sum[m, 8], sum[m, 9],
                shown(sum[m, 10] == "never" ? "never" : sum[m, 10] / 1e6, "%.0f"), ms[m], until(m, 1e9), until(m, 1e8), until(m, 2e7)
        }'
}

cat >"$out/methods.md" <<END
# Methods, tuned alike

Written by \`sh bench/methods.sh\` from [results/tune.csv](results/tune.csv), which holds every run of \`bench/tune.sh\`, and
[results/times.csv](results/times.csv). nanoGPT's CPU recipe (4 layers, width 128, context 64, 12 sequences a step, 2000 steps)
on TinyShakespeare, three workers. Each method had four learning rates of its hidden matrices on the lattice 1, 2, 5, 10, one
more wherever the best was at an edge, then three further seeds at the best, and at the second best too where they did worse at
the best than the first seed did there. Means and standard deviations are those of three further seeds, at the rate where
their mean is least. A method stands in the table once it has these seeds. All else is left to the method's row. Two methods
differ beyond the seeds' spread where their means are further apart than 2 sqrt((sd1^2 + sd2^2)/3); smaller differences are not
claimed.

- Loss: of the whole validation split, in nats per character. Steps to 1.75 and 1.65: interpolated between validations.
- Bits per parameter and step, and megabytes until 1.65: what a worker sends, up to whoever counts and down to the others.
- ms: of a step; the workers share $(sed -n '2s/^[^,]*,[^,]*,//p' $times).
- Seconds until 1.65: steps at that time, and the bytes on a link of that rate each way, without delay. Computed, not measured;
  [NETWORK.md](NETWORK.md) measures.

| flags | rate | validation loss | steps to 1.75 | to 1.65 | bits up | down | MB to 1.65 | ms | s: 1 Gbit/s | 100 Mbit/s | 20 Mbit/s |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
$(table long)

![loss against bytes sent; rows with --ns and --polar-after-vote send as much as the one without](methods.svg)

## Every rate that was tried

The loss with the first seed, by learning rate.

| method | rate: loss |
| --- | --- |
$(sort -t , -s -k 1,1 -k 2,2g $csv | awk -F, '$3 == 1337 { if (!($1 in text)) order[++n] = $1; text[$1] = text[$1] sprintf("%s%s: %s", text[$1] ? ", " : "", $2, $5) }
    END { for (i = 1; i <= n; i++) print "| " order[i] " | " text[order[i]] " |" }')
END
mv "$out/methods.md" docs/METHODS.md

table short >"$out/short"
awk -v new="$out/short" '
    /^<!-- the table of bench\/methods.sh/ { print; inside = 1
        print "| flags | validation loss | bits sent per parameter and step | ms per step | seconds to 1.65 at 100 Mbit/s |"
        print "| --- | --- | --- | --- | --- |"
        while ((getline line <new) > 0) print line }
    /^<!-- its end/ { inside = 0 }
    !inside' README.md >"$out/README.md"
cmp -s "$out/README.md" README.md || cp "$out/README.md" README.md

command -v gnuplot >/dev/null || exit 0
table points >"$out/points.csv"
gnuplot -e "points='$out/points.csv'; svg='$svg'" bench/methods.gp
