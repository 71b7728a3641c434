#!/bin/sh
# gpu.sh [TEXT] - everything that needs a GPU, in less than ten minutes: the kernels against the CPU's model,
# compute-sanitizer, a training beside the CPU's, and the speed of GPT-2 124M. Writes docs/GPU.md.
#   LLMC=DIR     also measures llm.c, from its sources in DIR, which it builds there without cuDNN
#   PEAK=989     bf16 TFLOP/s of the GPU without sparsity, for MFU; known for A100, H100, H200
# Takes train_gpt_cuda and test_cuda as they are, or makes them.
set -eu
cd "$(dirname "$0")/.."
text=${1:-$(sh data/tinyshakespeare.sh)}
[ -x train_gpt_cuda ] && [ -x test_cuda ] || make -s cuda test_cuda
work=$(mktemp -d "${TMPDIR:-/dev/shm}/gpu.XXXXXX")
trap 'rm -rf "$work"' EXIT
doc=$work/GPU.md
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
case $gpu in *H100* | *H200*) PEAK=${PEAK:-989} ;; *A100*) PEAK=${PEAK:-312} ;; esac
say() { printf '%s\n' "$@" >>"$doc"; }
progress() { printf '%4d s  %s\n' $(($(date +%s) - begin)) "$*" >&2; }
begin=$(date +%s)

say "# On a GPU" ""
say "\`test/gpu.sh\` wrote this page on one $gpu (driver $driver), with $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1) beside it."
say "" "## The kernels against the CPU's model" ""
say "Distance |GPU - CPU| / |CPU| of each kind of gradient, the largest over the layers; the CPU computes in fp32."
say "The model has 1 or 2 layers, sequences of 61 to 80 tokens, and heads of 11 to 64." ""
progress "kernels against the CPU"
status=0
./test_cuda >"$work/tests" 2>&1 || status=$?
awk '/^    (fp32|bf16)/ {
        type = $1; sub(/,/, "", type)
        for (i = 2; i < NF; i++) if ($(i + 1) ~ /^[0-9.]+e[-+][0-9]+$/ && $i !~ /^[0-9]/) {
            if (!($i in seen)) { seen[$i] = 1; name[++n] = $i }
            if ($(i + 1) + 0 > most[type, $i] + 0) most[type, $i] = $(i + 1)
        }
    } END {
        print "| | fp32 | bf16 |\n| --- | --- | --- |"
        for (k = 1; k <= n; k++) printf "| %s | %s | %s |\n", name[k], most["fp32", name[k]], most["bf16", name[k]]
    }' "$work/tests" >>"$doc"
say "" "\`./test_cuda\`: $(tail -n 1 "$work/tests")."
grep -q '^ok.*cuda_steps_have_the_bits' "$work/tests" && say "Parameters after steps of sgd, signsgd, signum and adamw have the CPU's bits."
[ $status = 0 ] || grep -A9 FAIL "$work/tests" >&2 || tail -n 3 "$work/tests" >&2

progress "compute-sanitizer"
for tool in memcheck racecheck; do
    command -v compute-sanitizer >/dev/null || { say "compute-sanitizer is not installed: not run."; break; }
    found=$(timeout 40 compute-sanitizer --tool $tool ./test_cuda cuda_gradients_near cuda_losses 2>&1 |
        grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' | sed 's/^=* *//') || true
    say "compute-sanitizer, $tool: ${found:-not finished in 40 s}."
done

progress "200 steps on TinyShakespeare"
say "" "## 200 steps beside the CPU's" ""
say "The model of \`make train\` (0.8M parameters), validation loss in nats per character." ""
say "| flags | CPU, fp32 | GPU, fp32 | GPU, bf16 |" "| --- | --- | --- | --- |"
for method in "adamw" "muon" "signmuon --aux sign --workers 3"; do
    row="| \`$method\` |"
    for where in "cpu --dtype fp32" "gpu --dtype fp32 --ns-dtype fp32" "gpu --dtype bf16"; do
        # shellcheck disable=SC2086
        ./train_gpt_cuda --data "$text" --quiet --steps 200 --eval-every 0 --save-every 0 --overwrite --out "$work/out" \
            --method $method --device $where >"$work/line"
        row="$row $(awk '{ print $2 }' "$work/line") |"
    done
    say "$row"
done

# 2 million tokens with the frequencies of a Zipf law: only speed is measured on them
LC_ALL=C awk 'BEGIN {
    srand(1); n = 2000000
    split("20240520 1 " n, head, " ")
    for (i = 1; i <= 256; i++) for (k = 0; k < 4; k++) printf "%c", int(head[i] / 256 ^ k) % 256
    for (i = 0; i < n; i++) { t = int(50257 ^ rand()); printf "%c%c", t % 256, int(t / 256) }
}' >"$work/tokens.bin"
model="--data $work/tokens.bin --layers 12 --heads 12 --width 768 --bias --lr 6e-4 --aux-lr 6e-4 --log-every 1"
once="--eval-every 0 --save-every 0 --check-every 0 --overwrite --out $work/out"

# measure STEPS FLAGS: milliseconds of a step, the mean of all but the first five and the last
measure() {
    steps=$1
    shift
    # shellcheck disable=SC2086
    ./train_gpt_cuda $model $once --steps "$steps" "$@" 2>"$work/notes" >/dev/null || { tail -n 2 "$work/notes" >&2; return 1; }
    awk -F, -v n="$steps" '$1 == 5 { from = $3 } $1 == n - 1 { printf "%.2f\n", 1000 * ($3 - from) / (n - 6) }' "$work/out/log.csv"
}
# parameters of GPT-2 124M with biases at a context of T; the rest of MFU is llm.c's formula
mfu() { awk -v T="$1" -v rate="$2" -v peak="${PEAK:-0}" 'BEGIN { if (peak > 0) printf "%.1f %%", 100 * rate * (6 * (123689472 + 768 * T) + 72 * 768 * T) / (peak * 1e12); else printf "-" }'; }

progress "GPT-2 124M, T = 1024"
say "" "## GPT-2 124M" ""
say "12 layers, 12 heads of 64, width 768, biases, 50,257 tokens, bf16, T = 1024, 32 sequences a pass: 32,768 tokens a step."
say "Whole steps, with data, gradient norm, log and optimizer; means of 24 steps after five. MFU is (6N + 6LCT) x tokens/s over ${PEAK:-an unknown peak of} TFLOP/s." ""
say "| | ms a step | tokens/s | MFU | optimizer at 65,536 tokens a step |" "| --- | --- | --- | --- | --- |"
table() { # NAME FLAGS: one pass a step, then two; the optimizer is what two passes do not explain
    name=$1
    shift
    one=$(measure 30 --context 1024 --batch 32 "$@") two=$(measure 30 --context 1024 --batch 64 --accumulate 2 "$@")
    rate=$(awk -v t="$one" 'BEGIN { printf "%.0f", 32768 / t * 1000 }')
    say "| $name | $one | $rate | $(mfu 1024 "$rate") | $(awk -v a="$one" -v b="$two" 'BEGIN { printf "%.1f ms, %.1f %% of %.1f", 2 * a - b, 100 * (2 * a - b) / b, b }') |"
}
table "adamw" --method adamw
table "muon" --method muon
table "signmuon --aux sign" --method signmuon --aux sign
table "signmuon --aux sign, Newton-Schulz in fp32" --method signmuon --aux sign --ns-dtype fp32
if [ -n "${LLMC:-}" ]; then
    progress "llm.c"
    [ -x "$LLMC/train_gpt2cu" ] || (
        cd "$LLMC" # CUDA 13 wants another last argument; NVML is not linked
        sed -i 's/SetPreferredLocation, cudaCpuDeviceId)/SetPreferredLocation, cudaMemLocation{cudaMemLocationTypeHost, 0})/' llmc/cuda_utils.cuh
        sed -i 's/__has_include(<nvml.h>)/0/' llmc/mfu.h
        nvcc -O3 -t=0 --use_fast_math -std=c++17 -DENABLE_BF16 -arch=native train_gpt2.cu -lcublas -lcublasLt -o train_gpt2cu
    )
    for recompute in 0 1; do
        "$LLMC/train_gpt2cu" -i "$work/tokens.bin" -j "$work/tokens.bin" -e d12 -b 32 -t 1024 -d 32768 -x 30 -v 1000 -m 1 -s 0 -h 0 \
            -r $recompute >"$work/llmc" 2>&1 || true
        ms=$(awk '/^step +[0-9]+\/30/ { n++; for (i = 1; i < NF; i++) if (n > 5 && n < 30 && $(i + 1) == "ms") { s += $i; k++ } } END { if (k) printf "%.2f", s / k }' "$work/llmc")
        [ -n "$ms" ] || { tail -n 3 "$work/llmc" >&2; continue; }
        rate=$(awk -v t="$ms" 'BEGIN { printf "%.0f", 32768 / t * 1000 }')
        say "| llm.c, adamw, without cuDNN, -r $recompute | $ms | $rate | $(mfu 1024 "$rate") | |"
    done
fi

progress "memory against T"
say "" "Memory and speed against the context, adamw, 16,384 tokens a step:" ""
say "| T | sequences | GB of the model's arrays | tokens/s | MFU |" "| --- | --- | --- | --- | --- |"
for T in 1024 2048 4096 8192 16384; do
    ms=$(measure 16 --method adamw --context $T --batch $((16384 / T)))
    rate=$(awk -v t="$ms" 'BEGIN { printf "%.0f", 16384 / t * 1000 }')
    say "| $T | $((16384 / T)) | $(sed -n 's/.*: \([0-9.]*\) GB of the model.*/\1/p' "$work/notes") | $rate | $(mfu $T "$rate") |"
done
cp "$doc" docs/GPU.md
progress "docs/GPU.md"
exit $status
