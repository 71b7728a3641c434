#!/bin/sh
# Ten minutes on two cores: how low does the loss of the whole validation split come? And how soon does it come below 1.88?
#   sh bench/speedrun.sh TEXT [NAME [SEED]]     trains a recipe below, by default the best, and puts its row into
#                                               docs/results/speedrun.csv; then, as without TEXT, makes docs/SPEEDRUN.md
# A recipe's steps are fixed, so that its loss can be had again; they fill its time on the machine that SPEEDRUN.md names. Seconds
# are those of the whole command: reading the text, training, and one validation at the end, the only one. Rows named try are of
# what was given up on the way to sprint.
set -eu
csv=docs/results/speedrun.csv best=6x128

recipes() { # name, flags beyond those that all share
    cat <<'END'
4x256 --method muon --layers 4 --width 256 --context 256 --batch 8 --steps 2400 --dropout 0.1
6x192 --method muon --layers 6 --heads 3 --width 192 --context 256 --batch 8 --steps 3400 --dropout 0.1
6x128 --method muon --layers 6 --context 256 --batch 8 --steps 5200 --dropout 0.05 --weight-decay 0.1
4x128 --method muon --context 256 --batch 8 --steps 7200 --dropout 0.05 --weight-decay 0.1
signs --method signmuon --aux sign --workers 3 --threads 2 --layers 6 --context 256 --batch 9 --steps 5200 --dropout 0.05 --weight-decay 0.1
sprint --method muon --layers 2 --steps 560 --lr 1e-2 --aux-lr 1e-2
END
}

train() { # NAME SEED FLAGS
    name=$1 seed=$2
    shift 2
    closing=$(./train_gpt --data "$text" --out out/speedrun --overwrite --eval-every 0 --save-every 0 --dtype bf16 \
        --ns polar-express3 --ns-dtype bf16 --seed "$seed" "$@")
    machine="$(nproc) cores of: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)"
    [ -s $csv ] || echo "recipe,seed,loss,steps,seconds,flags,machine" >$csv
    sed -i.old "/^$name,$seed,/d" $csv && rm $csv.old
    echo "$closing" | awk -v row="$name,$seed" -v tail="$*,$machine" '{ printf "%s,%s,%s,%s,%s\n", row, $2, $6, $8, tail }' >>$csv
    tail -n 1 $csv
}

# lines of the table for the recipes that match a pattern
rows() {
    awk -F, -v pattern="$1" 'NR > 1 && $1 ~ pattern {
        printf "| %s | `%s` | %s | %s | %s | %s |\n", $1, $6, $2, $4, $5, $3 }' $csv
}
head='| recipe | flags | seed | steps | seconds | loss |
| --- | --- | ---: | ---: | ---: | ---: |'

if [ $# -gt 0 ]; then
    text=$1 name=${2:-$best}
    flags=$(recipes | sed -n "s/^$name //p")
    [ -r "$text" ] && [ "$flags" ] || {
        echo "usage: sh bench/speedrun.sh [TEXT [NAME [SEED]]], NAME one of: $(recipes | cut -d ' ' -f 1 | xargs)" >&2
        exit 2
    }
    mkdir -p out
    train "$name" "${3:-1337}" $flags
fi

cat >docs/SPEEDRUN.md <<END
# Speedrun

Written by \`sh bench/speedrun.sh\` from [results/speedrun.csv](results/speedrun.csv), on $(sed -n '2s/.*,//p' $csv). Ten minutes
on two cores: how low does the loss of the whole validation split of TinyShakespeare come, when the architecture is nanoGPT's,
training reads the first 90 % of the text, and all else is free? nanoGPT publishes 1.4697, for three minutes on an A100. And in
how many seconds does it come below 1.88, which nanoGPT publishes for its CPU recipe?

\`make speedrun\` trains the best recipe again, $best. All share \`--dtype bf16 --ns polar-express3 --ns-dtype bf16\`, and what is not
named is the default (4 layers, width 128, 12 sequences of 64 tokens a step). Seconds are those of the whole command, with its
one validation at the end. Other programs share this machine: equal steps differ in their seconds.

Seed 1337 chose among the four recipes for ten minutes, and among the tries below 1.88; the other seeds took no part. 6x192 took
longer than ten minutes. Rates, dropout and weight decay were not searched for ten minutes; schedules of batch or context, and
averages of weights, were not tried. The loss here is that of all windows of the split, nanoGPT's of 200 random batches.

## Ten minutes

$head
$(rows '^[46]x')

## The same with one bit per weight

Three workers, which share the two cores and 9 sequences a step, send signs of the whole model. The rates are the defaults of
their method. This takes more than ten minutes.

$head
$(rows '^signs')

## Below 1.88

$head
$(rows '^(try|sprint)$')
END
