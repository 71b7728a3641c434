#!/bin/sh
# Trains with Byzantine workers and prints docs/BYZANTINE.md; two to three minutes a row on two cores at 2000 steps.
#   sh bench/byzantine.sh TEXT [STEPS]    RUNS=DIR: see study.sh
# shellcheck disable=SC1091,SC2034,SC2086,SC2154
default=2000
. "$(dirname "$0")/study.sh"

# row NAME LABEL WORKERS BYZANTINE ATTACK EXPECTATION METHOD...; no Byzantine worker: ATTACK is "-"
row() {
    name=$1 label=$2 workers=$3 byzantine=$4 attack=$5 expected=$6 batch=14
    shift 6
    [ "$workers" = 8 ] && batch=16
    [ "$attack" = - ] || set -- "$@" --adversaries "$byzantine" --attack "$attack"
    run "$name" --threads 1 --workers "$workers" --batch "$batch" "$@"
    echo "| $label | $workers | $byzantine | $attack | $(loss) | $expected |"
}

cat <<END
# Byzantine workers

Written by \`make byzantine\` (\`sh bench/byzantine.sh TEXT $steps\`). The last F of N workers replace every message of
theirs by what an attack makes of it (\`--adversaries F --attack HOW\`; \`--list attacks\`). nanoGPT's CPU recipe (4 layers,
width 128, context 64), $steps steps, two sequences per worker and step, one seed. The loss is that of the whole
validation split in nats per token.

Expected, set before the runs. Honest workers that agree outvote any minority (Bernstein et al., arXiv 1810.05291). So with
N = 7 up to 3 Byzantine workers should reach a loss of 2.0 at 2000 steps, and 4 should not. Workers with different data
agree on part of the signs only: F flippers leave a signal of N - 2F votes in the noise of N votes. With N = 8 and F = 4 the
expected vote is zero; ties are decided by a shared coin, and nothing should be learnt. A mean has no such bound: one
worker that sends -10 times its direction outweighs six others.

| method | N | F | attack | validation loss | expected at 2000 steps |
| --- | --- | --- | --- | --- | --- |
END
sign="--method signmuon --aux sign"
label='signmuon, `--aux sign`'
row honest "$label" 7 0 - 'at most 2.0' $sign
for f in 1 2 3; do row "flip$f" "$label" 7 "$f" flip 'at most 2.0' $sign; done
row flip4 "$label" 7 4 flip 'above 2.0: a Byzantine majority' $sign
row flip4of8 "$label" 8 4 flip 'above 2.0: ties' $sign
steps=$((steps / 8))
cat <<END

Other attacks, and a mean under attack, for $steps steps. The first row of each method has no Byzantine worker:

| method | N | F | attack | validation loss | expected |
| --- | --- | --- | --- | --- | --- |
END
row honest "$label" 7 0 - '' $sign
for a in random zero; do row "$a" "$label" 7 3 "$a" 'a little above the first row' $sign; done
row mean 'muon, mean' 7 0 - '' --method muon
for f in 1 3; do
    row "mean-flip$f" 'muon, mean' 7 "$f" flip 'above its first row: N - 2F > 0' --method muon
    row "mean-scale$f" 'muon, mean' 7 "$f" scale:-10 'learns nothing' --method muon
done

cat <<END

A vote sees signs only: \`scale:S\` with S > 0 changes nothing, and \`scale:-10\` is \`flip\`.

## NaN

The receiver checks every fp32 or compressed message. No result of a refused message is evaluated or saved, and the run
ends with status 3. Signs cannot hold NaN: where all tensors travel as signs, a NaN becomes a minus sign, which the honest
majority outvotes. Worker 6 of 7 sends NaN:

| flags | status | message |
| --- | --- | --- |
END
for flags in "--method sgd" "--method muon" "--method signmuon" "--method signmuon --aux sign" "--method ef21-muon" \
    "--method ef21-muonsign --aux same" "--method demuon"; do
    run "nan$flags" --threads 1 --workers 7 --batch 14 --adversaries 1 --attack nan $flags
    echo "| \`$flags --attack nan\` | $(cat "$out/status") | $(sed -n 's/^train_gpt: \([^:]*\):.*/\1/p' "$out/err") |"
done
