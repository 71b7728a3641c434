#!/bin/sh
# run.sh SECONDS TARGET... - fuzzes each of build/fuzz/TARGET for so long, one after the other, from
# test/fuzz/seeds/TARGET. Last line: N targets, E executions, C crashes; status 1 when one crashed.
set -u
seconds=$1 && shift
TMPDIR=$(mktemp -d /dev/shm/fuzz.XXXXXX) || exit 1
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM
targets=0 executions=0 crashes=0
number() { sed -n "s/.*$1 *\([0-9]*\).*/\1/p" "$log" | tail -n 1; }
for target; do
    log=build/fuzz/$target.log found=build/fuzz/found/$target
    mkdir -p "build/fuzz/corpus/$target" "$found"
    before=$(ls "$found" | wc -l)
    "build/fuzz/$target" -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=1024 -verbosity=1 \
        -print_final_stats=1 -artifact_prefix="$found/" "build/fuzz/corpus/$target" "test/fuzz/seeds/$target" >"$log" 2>&1
    status=$?
    ran=$(number stat::number_of_executed_units:) features=$(number ft:)
    ran=${ran:-0} crashed=0
    [ $status = 0 ] || crashed=1
    printf '%-12s %9d executions %7d per second %6d features  %d crashes\n' "$target" "$ran" \
        $((ran / (seconds > 0 ? seconds : 1))) "${features:-0}" $crashed
    if [ $crashed = 1 ]; then
        grep -E 'not so:|ERROR:|runtime error:|SUMMARY:' "$log" | sed 's/^/    /'
        after=$(ls "$found" | wc -l)
        [ "$after" = "$before" ] || echo "    again: build/fuzz/$target $found/$(ls -t "$found" | head -n 1)"
        echo "    all of it: $log"
    fi
    targets=$((targets + 1)) executions=$((executions + ran)) crashes=$((crashes + crashed))
done
echo "$targets targets, $executions executions, $crashes crashes"
[ $crashes = 0 ]
