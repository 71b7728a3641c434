#!/usr/bin/env bash
# torture.sh [RUNS [KILLS [SEED]]]: the long campaigns of `make torture`.
#   RUNS (200) runs of 3 to 6 processes in which random workers are killed or stopped at random instants,
#   under --on-death stop and continue. Each must end within 5 s of the last death or of SIGTERM, leave
#   no process, say which worker died and that the others go on, and leave a save that loads and goes
#   on; after every step the workers' parameters are compared (--check-every 1).
#   KILLS (500) times the whole program is killed while it saves: test/failures.c.
# Last line: RUNS runs, KILLS kills, B bad endings.
set -u
cd "$(dirname "$0")/.." || exit 1
runs=${1:-200} kills=${2:-500} RANDOM=${3:-1} bad=0 pid=
dir=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/torture.XXXXXX")
trap 'end_group; rm -rf "$dir"' EXIT
gpt=$PWD/train_gpt
[ -x "$gpt" ] && [ -x test_signmuon ] || { echo "torture.sh: there is no train_gpt or test_signmuon: make first" >&2; exit 1; }
yes 'The quick brown fox, jumps; over a lazy dog? No!' | head -n 400 >"$dir/text"
model="--data $dir/text --layers 1 --heads 2 --width 32 --context 16 --threads 1 --eval-every 0 --quiet"

wrong() { # wrong WHAT: the run in $line ended badly
    bad=$((bad + 1))
    echo "bad: $1: $line"
    sed 's/^/      /' "$dir/err" | tail -n 4
}
doze() { sleep "$(printf '0.%03d' $((RANDOM % $1)))"; }
end_group() { [ -z "$pid" ] || kill -KILL -- "-$pid" 2>/dev/null; }
start() { # start OUT: the command in $line, as a group of its own
    # shellcheck disable=SC2086
    setsid "$gpt" $line --out "$1" >/dev/null 2>"$dir/err" &
    pid=$!
}
ends() { # ends TENTHS: does it, within so many tenths of a second?
    local i
    for ((i = 0; i < $1; i++)); do kill -0 $pid 2>/dev/null || return 0; sleep 0.1; done
    ! kill -0 $pid 2>/dev/null
}

methods=("signmuon --aux sign" "signmuon --polar-after-vote" "muon" "adamw" "scion" "ef21-muon --up topk:0.2 --down natural"
    "ef21-muonsign" "demuon --topology ring" "demuon --topology exponential" "dsgd --topology complete")
went_on=0 stopped=0 out=$dir/run
for ((i = 0; i < runs; i++)); do
    workers=$((RANDOM % 4 + 3)) signal=$([ $((RANDOM % 4)) = 0 ] && echo STOP || echo KILL)
    policy=$([ $((RANDOM % 3)) = 0 ] && echo stop || echo continue)
    line="$model --method ${methods[RANDOM % ${#methods[@]}]} --workers $workers --batch $((workers * 2)) --backend processes
        --steps 1000000 --log-every 5 --save-every 7 --check-every 1 --timeout 1 --on-death $policy"
    rm -rf "$out"
    start "$out"
    until [ "$(pgrep -c -P $pid)" -ge $workers ] || ! kill -0 $pid 2>/dev/null; do sleep 0.01; done
    doze 900
    hit=0 deaths=$([ $policy = continue ] && echo $((RANDOM % 2 + 1)) || echo 1)
    for ((k = 0; k < deaths; k++)); do # the second one perhaps while the others start anew
        mapfile -t child < <(pgrep -P $pid)
        [ ${#child[@]} -gt 0 ] && kill -$signal "${child[RANDOM % ${#child[@]}]}" 2>/dev/null && hit=1
        doze 400
    done
    if [ $policy = continue ]; then
        sleep $([ $signal = STOP ] && echo 2.5 || echo 0.3)
        kill -TERM $pid 2>/dev/null
    fi
    if ! ends 50; then wrong "hangs" && end_group; fi
    wait $pid
    status=$?
    if pgrep -g $pid >/dev/null; then wrong "a process is left" && end_group; fi
    case $policy-$status in
    stop-1) stopped=$((stopped + 1)); grep -Eq '^train_gpt: worker [0-9]+ \(process' "$dir/err" || wrong "names no worker" ;;
    continue-143)
        went_on=$((went_on + 1))
        [ $hit = 0 ] || grep -q 'workers go on from' "$dir/err" || wrong "does not say that it goes on" ;;
    *) wrong "status $status" ;;
    esac
    [ -e "$out/last/model.safetensors" ] || continue
    line="--resume --out $out --backend threads --on-death stop --warmup 0 --steps $(($(tail -n 1 "$out/log.csv" | cut -d, -f1) + 12))"
    # shellcheck disable=SC2086
    "$gpt" --eval --out "$out" >/dev/null 2>"$dir/err" && "$gpt" $line --quiet >/dev/null 2>"$dir/err" || wrong "the save is of no use"
done
echo "$runs runs lost workers: $went_on went on, $stopped stopped"

KILLS=$kills ./test_signmuon failure_kill_while_saving || bad=$((bad + 1))
echo "$runs runs, $kills kills, $bad bad endings"
[ $bad = 0 ]
