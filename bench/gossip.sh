#!/bin/sh
# DeMuon beside its baselines: 8 nodes on three graphs, iid and contiguous shards.
#   sh bench/gossip.sh TEXT [STEPS]    prints docs/GOSSIP.md; RUNS=DIR keeps the logs, and finished runs
#                                      are not repeated (about twenty seconds each on two cores)
# Rates are tuned on the exponential graph with iid shards, the same number of trials for every method,
# and kept for the other graphs and shards.
set -eu
text=$1 steps=${2:-500} runs=${RUNS:-$(mktemp -d)} train=${TRAIN:-./train_gpt}
mkdir -p "$runs"

# name | flags | rates
methods='demuon|--method demuon|5e-3 1e-2 2e-2
demuon-notrack|--method demuon-notrack|5e-3 1e-2 2e-2
gt-nsgdm|--method gt-nsgdm|0.1 0.2 0.4
gt-dsgd|--method gt-dsgd|0.25 0.5 1
dsgd|--method dsgd|0.25 0.5 1
dsgd-clip|--method dsgd-clip|0.5 1 2'

# run NAME FLAGS RATE GRAPH SHARDS: the folder of a finished run
run() {
    out=$runs/$1_$3_$4_$5
    if ! [ -s "$out/said" ]; then
        mkdir -p "$out"
        # shellcheck disable=SC2086
        "$train" --data "$text" --layers 2 --width 96 --workers 8 --threads 1 --batch 16 --steps "$steps" \
            --eval-every 100 --log-every 100 --save-every 0 --quiet --overwrite --out "$out" \
            $2 --lr "$3" --topology "$4" --shards "$5" \
            >"$out/said" 2>"$out/err" || echo diverged >"$out/said"
    fi
    echo "$out"
}

# final FOLDER COLUMN: the last value of a column of its log
final() {
    awk -F, -v column="$2" 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
        $at[column] != "" { v = $at[column] } END { print v }' "$1/log.csv"
}
loss() { awk '/^val_loss/ { v = $2 } END { print v == "" ? "diverged" : v }' "$1/said"; }

# at_bytes FOLDER BYTES: the loss when a node had sent so much
at_bytes() {
    awk -F, -v bytes="$2" 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
        $at["val_loss"] != "" { v = $at["val_loss"]; b = $at["bytes_sent"]
            if (b >= bytes) { printf "%.4f", seen ? v0 + (v - v0) * (bytes - b0) / (b - b0) : v; exit }
            v0 = v; b0 = b; seen = 1 }' "$1/log.csv"
}

echo "# DeMuon and its baselines"
echo
echo "Written by \`make gossip\` (\`sh bench/gossip.sh TEXT $steps\`): 8 nodes, 2 sequences of 64 characters each per step, 2"
echo "layers of width 96, $steps steps, linear decay to zero, seed 1337; loss of the mean model on the whole validation split, nats"
echo "per character. Rates are tuned on the exponential graph with iid shards. At equal bytes: the loss when a node has sent as"
echo "many bytes as dsgd sends in half of the steps. Spread is the greatest less the least loss over the nodes. Distance is"
echo "sqrt(sum |X_i - mean|^2) at the last validation before the end, when the rate is $(awk -v s="$steps" 'BEGIN { printf "%.3g", 100 / s }') of its peak."
echo
echo "| method | rates tried: final loss |"
echo "| --- | --- |"
: >"$runs/best"
echo "$methods" | while IFS='|' read -r name flags rates; do
    best= tried=
    for rate in $rates; do
        value=$(loss "$(run "$name" "$flags" "$rate" exponential iid)")
        tried="$tried${tried:+, }$rate: $value"
        if [ "$value" != diverged ] && { [ -z "$best" ] || awk -v a="$value" -v b="$best" 'BEGIN { exit !(a < b) }'; }; then
            best=$value chosen=$rate
        fi
    done
    echo "| $name | $tried |"
    echo "$name|$flags|$chosen" >>"$runs/best"
done
for shards in iid contiguous; do
    for graph in complete exponential ring; do
        echo
        echo "$graph, $shards shards:"
        echo
        echo "| method | rate | loss | at equal bytes | spread over nodes | distance | MB sent per node |"
        echo "| --- | --- | --- | --- | --- | --- | --- |"
        while IFS='|' read -r name flags rate; do
            out=$(run "$name" "$flags" "$rate" $graph $shards)
            dsgd=$(run dsgd '--method dsgd' "$(sed -n 's/^dsgd|.*|//p' "$runs/best")" $graph $shards)
            half=$(awk -v b="$(final "$dsgd" bytes_sent)" 'BEGIN { print b / 2 }')
            last=$(awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
                $at["val_loss"] != "" { d = e; e = $at["consensus"] } END { printf "%.3g", d }' "$out/log.csv")
            echo "| $name | $rate | $(loss "$out") | $(at_bytes "$out" "$half") | $(awk -v a="$(final "$out" node_val_min)" \
                -v b="$(final "$out" node_val_max)" 'BEGIN { printf "%.4f", b - a }') | $last | $(awk -v b="$(final "$out" bytes_sent)" \
                'BEGIN { printf "%.0f", b / 1e6 }') |"
        done <"$runs/best"
    done
done
