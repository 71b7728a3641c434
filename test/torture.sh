#!/usr/bin/env bash
# torture.sh [RUNS [KILLS [SEED]]]: the long campaigns of `make torture`.
#   RUNS (200) runs of 3 to 6 processes in which a random worker is killed or stopped at a random instant, under
#   --on-death stop and continue: each must end within 5 s, leave no process, leave checkpoints that load; survivors are
#   compared by hash after every step (--check-every 1), and a second death may follow the first.
#   KILLS (500) times the whole program is killed while it saves after every step: what is left must load, and resumed to
#   the last step it must hold the bits of a run that nobody disturbed.
# Last line: RUNS runs, KILLS kills, B bad endings; exit status 1 when B is not 0.
set -u
cd "$(dirname "$0")/.." || exit 1
runs=${1:-200} kills=${2:-500} RANDOM=${3:-1} bad=0
dir=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/torture.XXXXXX")
trap 'pkill -KILL -f "$dir" ; rm -rf "$dir"' EXIT
gpt=$PWD/train_gpt
[ -x "$gpt" ] || { echo "torture.sh: there is no train_gpt: make first" >&2; exit 1; }
yes 'The quick brown fox, jumps; over a lazy dog? No!' | head -n 400 >"$dir/text"
model="--data $dir/text --layers 1 --heads 2 --width 32 --context 16 --threads 1 --eval-every 0 --quiet"

wrong() { # wrong WHAT: the run in $line ended badly
    bad=$((bad + 1))
    echo "bad: $1: $line"
    sed 's/^/      /' "$dir/err" | tail -n 4
}
tensors() { # the hash of a file's tensors, which lie behind its metadata
    tail -c +$(($(od -An -tu8 -N8 "$1") + 9)) "$1" | sha256sum
}
now() { date +%s%3N; }
doze() { sleep "$(printf '0.%03d' $((RANDOM % $1)))"; }
# gone PID MS: wait for its end, at most so long
gone() {
    local end=$(($(now) + $2))
    while kill -0 "$1" 2>/dev/null; do
        [ "$(now)" -gt $end ] && return 1
        sleep 0.02
    done
}

methods=("signmuon --aux sign" "signmuon --polar-after-vote" "muon" "adamw" "scion" "ef21-muon --up topk:0.2 --down natural"
    "ef21-muonsign" "demuon --topology ring" "demuon --topology exponential" "dsgd --topology complete")
hangs=0 orphans=0 unusable=0 apart=0 went_on=0 stopped=0
for ((i = 0; i < runs; i++)); do
    workers=$((RANDOM % 4 + 3)) out=$dir/run signal=$([ $((RANDOM % 4)) = 0 ] && echo STOP || echo KILL)
    policy=$([ $((RANDOM % 2)) = 0 ] && echo stop || echo continue)
    line="$model --method ${methods[$((RANDOM % ${#methods[@]}))]} --workers $workers --batch $((workers * 2)) --backend processes
        --steps 1000000 --log-every 5 --save-every 7 --check-every 1 --timeout 1 --on-death $policy --min-workers 2 --out $out"
    rm -rf "$out"
    # shellcheck disable=SC2086
    "$gpt" $line >"$dir/out" 2>"$dir/err" &
    pid=$! limit=5000
    until [ "$(pgrep -c -P $pid)" -ge $workers ] || ! kill -0 $pid 2>/dev/null; do sleep 0.01; done
    doze 900
    hit=0 deaths=$([ $policy = continue ] && echo $((RANDOM % 2 + 1)) || echo 1)
    for ((k = 0; k < deaths; k++)); do
        mapfile -t child < <(pgrep -P $pid)
        [ ${#child[@]} -gt 0 ] && kill -$signal "${child[$((RANDOM % ${#child[@]}))]}" 2>/dev/null && hit=1
        doze 400
    done
    if [ $policy = continue ] && [ -e "$out/log.csv" ] && kill -0 $pid 2>/dev/null; then
        [ $signal = STOP ] && sleep 2.5
        sleep 0.3
        kill -TERM $pid 2>/dev/null # the survivors save and end; or the run had to stop
    fi
    [ $signal = STOP ] && limit=7000
    if ! gone $pid $limit; then
        hangs=$((hangs + 1))
        wrong "hangs"
        kill -KILL $pid
    fi
    wait $pid
    status=$?
    sleep 0.05
    if pgrep -f -- "--out $out" >/dev/null; then orphans=$((orphans + 1)); wrong "a process is left"; fi
    pkill -KILL -f -- "--out $out"
    case $policy-$status in
    *-1) stopped=$((stopped + 1)); grep -Eq 'worker [0-9]+ \(process' "$dir/err" || wrong "names no worker" ;;
    continue-143)
        went_on=$((went_on + 1))
        [ $hit = 0 ] || grep -q 'go on from its start' "$dir/err" || wrong "does not say that it goes on"
        ;;
    *) wrong "status $status" ;;
    esac
    if grep -q 'differ from the others' "$dir/err"; then apart=$((apart + 1)); wrong "survivors differ"; fi
    if [ -e "$out/last/model.safetensors" ]; then
        if ! "$gpt" --eval --out "$out" >/dev/null 2>"$dir/err" ||
            ! "$gpt" --resume --out "$out" --quiet --backend threads --on-death stop --warmup 0 \
                --steps $(($(tail -n 1 "$out/log.csv" | cut -d, -f1) + 5)) >/dev/null 2>"$dir/err"; then
            unusable=$((unusable + 1))
            wrong "the checkpoint is of no use"
        fi
    fi
done
echo "$runs runs lost a worker: $went_on went on, $stopped stopped; $hangs hangs, $orphans orphans, $unusable unusable" \
    "checkpoints, $apart times survivors differed"

steps=30 older=0
for ((i = 0; i < kills; i++)); do
    backend=$([ $((i % 2)) = 0 ] && echo threads || echo processes) out=$dir/save method=${methods[$((i / 2 % ${#methods[@]}))]}
    line="$model --method $method --workers 3 --batch 6 --backend $backend --steps $steps --save-every 1 --log-every 1"
    whole=$dir/whole$((i / 2 % ${#methods[@]}))
    # shellcheck disable=SC2086
    [ -d "$whole" ] || "$gpt" $line --out "$whole" >/dev/null || wrong "undisturbed run fails"
    rm -rf "$out"
    # shellcheck disable=SC2086
    setsid "$gpt" $line --out "$out" >/dev/null 2>"$dir/err" &
    pid=$!
    while [ ! -e "$out/last/model.safetensors" ] && kill -0 $pid 2>/dev/null; do sleep 0.002; done
    doze 150
    kill -KILL -- -$pid 2>/dev/null
    wait $pid 2>/dev/null
    gone_from=$(tail -n 1 "$out/log.csv" | cut -d, -f1)
    if ! "$gpt" --resume --out "$out" --quiet >/dev/null 2>"$dir/err"; then
        [ -e "$out/last/model.safetensors" ] && wrong "killed at step $gone_from, cannot be resumed"
        continue
    fi
    grep -q 'goes on from' "$dir/err" && older=$((older + 1))
    for f in model worker-0 worker-1 worker-2; do
        [ "$(tensors "$out/last/$f.safetensors")" = "$(tensors "$whole/last/$f.safetensors")" ] || { wrong "$f differs after a kill at step $gone_from"; break; }
    done
done
echo "$kills kills while saving, $older times the generation before was taken"
echo "$runs runs, $kills kills, $bad bad endings"
[ $bad = 0 ]
