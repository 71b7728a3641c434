#!/bin/sh
# Trains with workers that lie and prints docs/LIARS.md; two to three minutes a row on two cores at 2000 steps. Call it
# from the root of the repository: sh bench/liars.sh TEXT [STEPS] > docs/LIARS.md
# RUNS=DIR keeps the logs, and finished runs are not repeated.
set -eu
[ -r "${1:-}" ] || { echo "usage: sh bench/liars.sh TEXT [STEPS]" >&2; exit 2; }
text=$1 steps=${2:-2000} train=${TRAIN:-./train_gpt}
if [ -z "${RUNS:-}" ]; then RUNS=$(mktemp -d) && trap 'rm -rf "$RUNS"' EXIT; fi
mkdir -p "$RUNS"

# run NAME FLAGS...: what a run said, on stdout and stderr, and its status, once
run() {
    out=$RUNS/$1-$steps
    shift
    [ -s "$out/status" ] && return
    mkdir -p "$out"
    status=0
    "$train" --data "$text" --threads 1 --quiet --save-every 0 --steps "$steps" --out "$out" --overwrite "$@" \
        >"$out/said" 2>"$out/err" || status=$?
    echo "$status" >"$out/status"
}

# loss: of the last run; "ended" with its status where it did not come to its end
loss() { awk -v s="$(cat "$out/status")" '/^val_loss/ { v = $2 } END { print v == "" ? "ended, status " s : v }' "$out/said"; }

# row NAME LABEL WORKERS LIARS ATTACK EXPECTATION METHOD...; no liars: ATTACK is "-"
row() {
    name=$1 label=$2 workers=$3 liars=$4 attack=$5 expected=$6 batch=14
    shift 6
    [ "$workers" = 8 ] && batch=16
    [ "$attack" = - ] || set -- "$@" --adversaries "$liars" --attack "$attack"
    run "$name" --workers "$workers" --batch "$batch" "$@"
    echo "| $label | $workers | $liars | $attack | $(loss) | $expected |"
}

cat <<END
# Workers that lie

The last F of N workers send something else than what they hold (\`--adversaries F --attack HOW\`; \`--list attacks\`), for
all tensors. nanoGPT's CPU recipe (4 layers, width 128, context 64), $steps steps, two sequences per worker and step, the
whole validation split in nats per token, one seed. Written by \`make liars\`.

What to expect. A majority of honest workers that agree outvotes any minority (Bernstein et al., arXiv 1810.05291): at
N = 7 up to 3 liars should still reach 2.0 at 2000 steps, and 4 should not. Workers that see other data do not agree
everywhere: if each is right with probability p, F flippers leave N - 2F votes of signal in noise of N, so that the step
turns towards noise before it turns round. With N = 8 and F = 4 the votes have no mean at all: whatever is not noise is a
tie, which a shared coin decides, so nothing should be learnt and nothing unlearnt on purpose. A mean has no such bound:
one worker that sends -10 times its direction outweighs six.

| rule | N | F | what is sent | validation loss | expected at 2000 steps |
| --- | --- | --- | --- | --- | --- |
END
sign="--method signmuon --aux sign"
row honest 'signmuon, `--aux sign`' 7 0 - 'at most 2.0' $sign
for f in 1 2 3; do row "flip$f" 'signmuon, `--aux sign`' 7 "$f" flip 'at most 2.0' $sign; done
row flip4 'signmuon, `--aux sign`' 7 4 flip 'above 2.0: the majority lies' $sign
row flip4of8 'signmuon, `--aux sign`' 8 4 flip 'above 2.0: ties' $sign
all=$steps steps=$((steps / 8))
cat <<END

In the committed run three flippers of seven cost more than was expected: with one vote of signal in seven, and gradients of
two sequences, 2000 steps at the default rate end above 2.0. Four make it diverge, which ends the run with status 3. Four of
eight undo what the first steps learnt.

Other lies, and a mean under them, for $steps steps; the first row of each rule has no liars:

| rule | N | F | what is sent | validation loss | expected |
| --- | --- | --- | --- | --- | --- |
END
row honest 'signmuon, `--aux sign`' 7 0 - '' $sign
for a in random zero replay; do row "$a" 'signmuon, `--aux sign`' 7 3 "$a" 'a little above that' $sign; done
row mean 'muon, mean' 7 0 - '' --method muon
for f in 1 3; do
    row "mean-flip$f" 'muon, mean' 7 "$f" flip 'above that: N - 2F is positive' --method muon
    row "mean-scale$f" 'muon, mean' 7 "$f" scale:-10 'learns nothing' --method muon
done

cat <<END

A vote sees signs only: to scale by a positive number is no lie, and \`scale:-10\` is a flip.

## NaN, and messages that are none

The receiver of a message checks it: the owner of a shard its parts, or the compressed messages of its blocks, or the
padding of its ballots; a node those of its neighbours. Bits cannot hold NaN, so where all tensors travel as bits it is the
sender's report of its gradient's norm. Nothing that a refused message went into is evaluated or saved. Exit status 3 for
NaN, 1 for what is malformed. Worker 6 of 7 lies:

| flags | status | what is said |
| --- | --- | --- |
END
for flags in "--method sgd --attack nan" "--method muon --attack nan" "--method signmuon --attack nan" \
    "--method signmuon --aux sign --attack nan" "--method ef21-muon --attack nan" "--method ef21-muonsign --aux same --attack nan" \
    "--method demuon --attack nan" "--method ef21-muon --attack garble" "--method signmuon --attack garble --width 100"; do
    run "$(echo "nan$flags" | tr ' ' _)" --workers 7 --batch 14 --adversaries 1 $flags
    echo "| \`$flags\` | $(cat "$out/status") | $(sed -n 's/^train_gpt: \([^:]*\):.*/\1/p' "$out/err") |"
done

cat <<END

## Putting liars out

\`--expel\`: the owners of the hidden matrices' shards count for every worker the entries on which it is against the
majority of the *others*, among those where they have one. Its own vote must not count: with noise alone, one of seven is
on the winning side of 66 % of all entries, because it is part of it, and a flipper of a weak signal still is on 55 to 60 %:
counted against the majority of all it would never be found. A worker *dissents* in a step when it is against the others on
more than half of the entries by four standard deviations of fair coins (2 sqrt(n) of n). Who dissents for K steps in a row
(\`--expel-after\`, 40) is put out; all workers know at the same step, from the same counts.

Suppose that at each step, whatever came before, an honest worker dissents with probability 1/2 at most. Then the chance
that it is put out within T steps is at most T 2^-K: a row of K must begin at one of T steps. That is 2e-9 for a worker
over 2000 steps and 1e-6 over a million, times N for any of N workers. The supposition holds where an honest worker's
directions are more often with the others' than against them; four deviations keep it true even where there is no signal
and momentum makes one step resemble the last, since a row of coincidences of that size would have to be renewed every
1 / (1 - mu) steps. It fails for a worker whose data contradict everybody else's. And a majority of liars puts the
honest out: F > N/2 below.

The others go back to the start of that step and go on without it. $((all / 10)) steps:

| N | F | attack | who was put out, in which step | workers at the end |
| --- | --- | --- | --- | --- |
END
steps=$((all / 10))
for of in "7 0 -" "7 1 flip" "7 2 flip" "7 3 flip" "7 4 flip" "7 3 random" "7 3 replay"; do
    set -- $of
    name=expel-$2-$3
    if [ "$3" = - ]; then set -- "$1" "$2" none; else set -- "$1" "$2" "$3" --adversaries "$2" --attack "$3"; fi
    n=$1 f=$2 attack=$3
    shift 3
    run "$name" --workers "$n" --batch 14 $sign --expel --quiet=off "$@"
    out_of=$(sed -n 's/^worker \([0-9]*\) was voted out in step \([0-9]*\);.*/\1 in \2/p' "$out/err" | sort | tr '\n' ',' | sed 's/,$//; s/,/, /g')
    echo "| $n | $f | $attack | ${out_of:-nobody; $(sed -n 's/^\(longest row[^;]*\);.*/\1/p' "$out/err")} | $(tail -n 1 "$out/log.csv" | sed 's/.*,//') |"
done
