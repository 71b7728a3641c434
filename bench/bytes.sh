#!/bin/sh
# Bytes that one worker needs to reach a validation loss, with and without compression by error feedback.
#   sh bench/bytes.sh TEXT [STEPS]     prints docs/BYTES.md; RUNS=DIR keeps the logs, and finished runs
#                                      are not repeated (about 90 seconds each on two quiet cores)
# 3 workers, nanoGPT's CPU recipe, two learning rates for every method, whole-split validation
# every 200 steps; between two of them bytes are interpolated linearly in the loss.
set -eu
text=$1 steps=${2:-2000} runs=${RUNS:-$(mktemp -d)} train=${TRAIN:-./train_gpt}
mkdir -p "$runs"

# name | flags | rates
methods='Muon|--method muon|5e-3 8e-3
AdamW|--method adamw|4e-3 6e-3
SignMuon|--method signmuon|1e-3 1.5e-3
EF21-Muon Top 15 % + Natural|--method ef21-muon --up topk:0.15+natural|4e-3 6e-3
EF21-Muon Rank 15 % + Natural|--method ef21-muon --up rankk:0.15+natural|4e-3 6e-3
EF21-Muon Natural|--method ef21-muon --up natural|4e-3 6e-3
EF21-Muon Top 20 %|--method ef21-muon --up topk:0.2|4e-3 6e-3
EF21-Muon Top 10 %|--method ef21-muon --up topk:0.1|4e-3 6e-3
EF21-Muon Top 5 %|--method ef21-muon --up topk:0.05|4e-3 6e-3
EF21-Muon Top 2 %|--method ef21-muon --up topk:0.02|4e-3 6e-3'

# run NAME FLAGS RATE: the folder of a finished run
run() {
    out=$runs/$(printf '%s %s' "$1" "$3" | tr -c 'A-Za-z0-9.\n-' '_')
    if ! grep -q '^val_loss' "$out/said" 2>/dev/null; then
        mkdir -p "$out"
        # shellcheck disable=SC2086
        "$train" --data "$text" --workers 3 --threads 2 --steps "$steps" --eval-every 200 --log-every 200 \
            --save-every 0 --quiet --overwrite --out "$out" $2 --lr "$3" >"$out/said" 2>"$out/err" || cat "$out/err" >&2
    fi
    echo "$out"
}

# reach LOSS COLUMN LOG: megabytes of a column, or steps, when the loss was first reached
reach() {
    awk -F, -v target="$1" -v column="$2" 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
        $at["val_loss"] != "" { v = $at["val_loss"]
            b = column == "steps" ? 1e6 * $1 : column == "round" ? $at["uplink_bytes"] + $at["downlink_bytes"] : $at[column]
            if (v <= target) { print seen ? (b0 + (b - b0) * (v0 - target) / (v0 - v)) / 1e6 : b / 1e6; exit }
            v0 = v; b0 = b; seen = 1 }' "$3"
}

echo "# Bytes to a validation loss"
echo
echo "Written by \`make bytes\` (\`sh bench/bytes.sh TEXT $steps\`): 3 workers, nanoGPT's CPU recipe, $steps steps, seed 1337,"
echo "whole-split validation loss in nats per character. Each method runs at two learning rates; the better final loss counts."
echo "Megabytes are one worker's: sent up to the owners of shards (of which it is one), received from them, and both. Between"
echo "two validations, 200 steps apart, they are interpolated linearly in the loss. Embeddings travel as fp32 under AdamW in"
echo "every row and are counted. The last column is what Muon sends up until 1.75 and until 1.65, over what the method sends"
echo "up; in brackets as arXiv 2510.00643 would count the method's messages, with indices of 26 bits and Natural of 16."
echo
echo "| method | rates tried: final loss | best | to 1.75: up | down | round trip | to 1.65: up | down | round trip | Muon's uplink over it |"
echo "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
echo "$methods" | while IFS='|' read -r name flags rates; do
    best= tried=
    for rate in $rates; do
        out=$(run "$name" "$flags" "$rate")
        loss=$(awk '/^val_loss/ { print $2 }' "$out/said")
        [ -n "$loss" ] || loss=diverged
        tried="$tried${tried:+, }$rate: $loss"
        if [ "$loss" != diverged ] && { [ -z "$best" ] || awk -v a="$loss" -v b="$best" 'BEGIN { exit !(a < b) }'; }; then
            best=$loss chosen=$out
        fi
    done
    row="| $name | $tried | ${best:-none} |"
    for target in 1.75 1.65; do
        for column in uplink_bytes downlink_bytes round; do
            mb=$([ -n "$best" ] && reach $target $column "$chosen/log.csv" || :)
            row="$row $([ -n "$mb" ] && awk -v x="$mb" 'BEGIN { printf "%.4g", x }' || echo never) |"
            [ $column = uplink_bytes ] && eval "up_$(echo $target | tr -d .)=\"$mb\""
        done
    done
    s175=$(reach 1.75 steps "$chosen/log.csv") s165=$(reach 1.65 steps "$chosen/log.csv")
    if [ "$name" = Muon ]; then echo "$up_175 $up_165 $s175 $s165" >"$runs/muon"; fi
    if [ -f "$runs/muon" ]; then
        read -r m175 m165 ms175 ms165 <"$runs/muon"
        # shellcheck disable=SC2086
        paper=$("$train" --data "$text" --workers 3 --dry-run $flags | sed -n 's/.*2510.00643 counts, //p')
        row="$row $(awk -v a="$up_175" -v b="$up_165" -v m="$m175" -v n="$m165" -v s="$s175" -v t="$s165" -v ms="$ms175" \
            -v mt="$ms165" -v paper="$paper" 'BEGIN { printf "%s, %s", a ? sprintf("%.1fx", m / a) : "-", b ? sprintf("%.1fx", n / b) : "-"
                if (paper && b) printf " (%.1fx, %.1fx)", ms / s / paper, mt / t / paper }') |"
    else
        row="$row |"
    fi
    echo "$row"
done
