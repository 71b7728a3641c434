#!/bin/sh
# run.sh SECONDS [TARGET...] - builds test/fuzz/fuzz.c into build/fuzz and fuzzes every target, or
# those named, for so long each, from test/fuzz/seeds/TARGET. Needs clang and its libFuzzer (Debian:
# clang, libclang-rt-14-dev). Last line: N targets, E executions, C crashes; status 1 after a crash.
set -u
cd "$(dirname "$0")/../.." && mkdir -p build/fuzz || exit 1
seconds=$1 && shift
TMPDIR=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)/fuzz.XXXXXX") || exit 1
export TMPDIR GEMM_ISA=portable
trap 'rm -rf "$TMPDIR"' EXIT && trap 'exit 130' INT TERM
clang -std=c11 -D_GNU_SOURCE -I. -O1 -g -fopenmp-simd -ffp-contract=off -pthread -Wall -Wextra -Wno-unused-function \
    -Wno-pass-failed -fsanitize=fuzzer,address,undefined,float-cast-overflow -fno-sanitize-recover=all \
    -o build/fuzz/fuzz test/fuzz/fuzz.c signmuon.c optimizer.c methods.c -lm || exit 1
targets=0 executions=0 crashes=0
for target in ${*:-$(build/fuzz/fuzz)}; do
    log=build/fuzz/$target.log found=build/fuzz/found/$target
    mkdir -p "build/fuzz/corpus/$target" "$found"
    ln -sf fuzz "build/fuzz/$target"
    "build/fuzz/$target" -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 \
        -artifact_prefix="$found/" "build/fuzz/corpus/$target" "test/fuzz/seeds/$target" >"$log" 2>&1
    crashed=$(($? != 0))
    ran=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    features=$(sed -n 's/.* ft: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    printf '%-12s %9d executions %6d features  %d crashes\n' "$target" "${ran:-0}" "${features:-0}" $crashed
    if [ $crashed = 1 ]; then
        grep -E 'not so:|ERROR:|runtime error:|SUMMARY:' "$log" | sed 's/^/    /'
        echo "    again: TMPDIR=/tmp build/fuzz/$target $(ls -t "$found"/* | head -n 1); all of it: $log"
    fi
    targets=$((targets + 1)) executions=$((executions + ${ran:-0})) crashes=$((crashes + crashed))
done
echo "$targets targets, $executions executions, $crashes crashes"
[ $crashes = 0 ]
