# shellcheck shell=sh disable=SC2034
# study.sh - what bytes.sh, gossip.sh and byzantine.sh share; they set default, the number of steps, and source it.
#   sh bench/NAME.sh TEXT [STEPS]    prints docs/NAME.md; RUNS=DIR keeps the logs, and finished runs are not repeated
set -eu
[ -r "${1:-}" ] || { echo "usage: sh $0 TEXT [STEPS]" >&2; exit 2; }
text=$1 steps=${2:-$default} train=${TRAIN:-./train_gpt}
if [ -z "${RUNS:-}" ]; then RUNS=$(mktemp -d) && trap 'rm -rf "$RUNS"' EXIT; fi
mkdir -p "$RUNS"

# run NAME FLAGS...: trains, once; out <- its folder, with stdout, stderr and status
run() {
    out=$RUNS/$(echo "$1-$steps" | tr -c 'A-Za-z0-9.\n-' '_')
    shift
    [ -s "$out/status" ] && return
    mkdir -p "$out"
    status=0
    "$train" --data "$text" --steps "$steps" --save-every 0 --quiet --overwrite --out "$out" "$@" \
        </dev/null >"$out/said" 2>"$out/err" || status=$?
    echo "$status" >"$out/status"
}

# loss: of the last run, or how it ended
loss() { awk -v s="$(cat "$out/status")" '/^val_loss/ { v = $2 } END { print v == "" ? "ended, status " s : v }' "$out/said"; }

# best NAME RATES FLAGS...: runs with every rate; tried <- their losses; best, rate, out <- the least and its run
best() {
    name=$1 rates=$2 tried='' best='' rate='' chosen=''
    shift 2
    for r in $rates; do
        run "$name $r" --lr "$r" "$@"
        value=$(loss)
        tried="$tried${tried:+, }$r: $value"
        if echo "$value $best" | awk '{ exit !($1 + 0 > 0 && (NF == 1 || $1 < $2)) }'; then
            best=$value rate=$r chosen=$out
        fi
    done
    out=$chosen
}

# validations PROGRAM VARIABLE=VALUE...: awk over the rows of the log that have a validation; at["name"] is a column
validations() {
    program=$1
    shift
    [ -r "$out/log.csv" ] || return 0
    awk -F, "NR == 1 { for (i = 1; i <= NF; i++) at[\$i] = i; next } \$at[\"val_loss\"] == \"\" { next } $program" \
        "$@" "$out/log.csv"
}

# last COLUMN [BACK]: its value at the last validation, or at one so many before
last() { validations '{ v[++n] = $at[column] } END { print v[n - back] }' column="$1" back="${2:-0}"; }

# cross X TARGET Y: Y where X first reaches TARGET, linear in X between two validations. X: val_loss, falling, or bytes
cross() {
    validations '{ a = $at[x]; b = y == "round" ? $at["uplink_bytes"] + $at["downlink_bytes"] : $at[y]
        if (x == "val_loss" ? a <= target : a >= target) {
            printf "%.12g", seen ? b0 + (b - b0) * (target - a0) / (a - a0) : b; exit }
        a0 = a; b0 = b; seen = 1 }' x="$1" target="$2" y="$3"
}
