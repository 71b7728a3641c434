#!/bin/sh
# Trains every method at its defaults on one recipe and prints docs/TABLE.md; about ninety seconds a row on two cores.
#   sh bench/table.sh TEXT [WORKERS [STEPS [PATTERN]]]    PATTERN (of grep -E) chooses among the rows' names
# Milliseconds come from a second run of 100 steps: the median over the intervals between log rows without a validation.
text=$1 workers=${2:-3} steps=${3:-2000} pattern=${4:-.} out=${TMPDIR:-/tmp}/signmuon-table.$$
[ -r "$text" ] || { echo "usage: sh bench/table.sh TEXT [WORKERS [STEPS [PATTERN]]]" >&2; exit 2; }
trap 'rm -rf "$out"' EXIT

# name, then the flags
runs() {
    ./train_gpt --list methods | awk '/^[a-z]/ { print $1, "--method", $1 }'
    echo "signmuon+sign --method signmuon --aux sign"
    echo "signmuon+polar --method signmuon --polar-after-vote"
    echo "adamw-nanogpt --method adamw --lr 1e-3 --schedule cosine --final-lr 0.1 --warmup 100 --beta2 0.99 --weight-decay 0.1 --clip 1"
}

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
cat <<END
# Every method at its defaults

Written by \`make table\`. $workers workers share a batch of 12 sequences: nanoGPT's CPU recipe (4 layers, width 128,
context 64), $steps steps, one seed. The loss is that of the whole validation split in nats per token; differences of 0.01
mean little. Bits: what the largest sender sent, everything that a training step sends included. Milliseconds: the
workers, of two compute threads each, share $(nproc) cores of: ${cpu:-unknown}.

| method | flags | validation loss | bits sent per parameter and step | ms per step |
| --- | --- | --- | --- | --- |
END
parameters=$(./train_gpt --data "$text" --dry-run | sed -n 's/.*: \([0-9]*\) parameters/\1/p')
runs | grep -E "^($pattern)" | while read -r name flags; do
    run="./train_gpt --data $text --out $out/$name --workers $workers --threads 2 --quiet --overwrite --save-every 0 $flags"
    last=$($run --steps "$steps") && $run --steps 100 >/dev/null || exit 1
    ms=$(awk -F, 'NR > 2 && $4 != "" && seen && !evaluated { print 1000 * ($3 - seconds) / ($1 - step) }
                  NR > 1 { seen = 1; step = $1; seconds = $3; evaluated = $5 != "" }' "$out/$name/log.csv" |
         sort -n | awk '{ v[NR] = $1 } END { printf "%.1f", v[int((NR + 1) / 2)] }')
    echo "$last" | awk -v name="$name" -v flags="$flags" -v ms="$ms" -v p="$parameters" \
        '{ printf "| %s | `%s` | %.4f | %.3f | %s |\n", name, flags, $2, 8 * $10 / $6 / p, ms }'
done
