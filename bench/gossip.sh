#!/bin/sh
# DeMuon beside its baselines: 8 nodes on three graphs, iid and contiguous shards; about twenty seconds a run on two
# cores. Rates are tuned on the exponential graph with iid shards, the same number of trials for every method.
#   sh bench/gossip.sh TEXT [STEPS]    prints docs/GOSSIP.md; RUNS=DIR: see study.sh
# shellcheck disable=SC1091,SC2034,SC2086,SC2154
default=500
. "$(dirname "$0")/study.sh"

# name | flags | rates
methods='demuon|--method demuon|5e-3 1e-2 2e-2
demuon-notrack|--method demuon-notrack|5e-3 1e-2 2e-2
gt-nsgdm|--method gt-nsgdm|0.1 0.2 0.4
gt-dsgd|--method gt-dsgd|0.25 0.5 1
dsgd|--method dsgd|0.25 0.5 1
dsgd-clip|--method dsgd-clip|0.5 1 2'

nodes='--layers 2 --width 96 --workers 8 --threads 1 --batch 16 --eval-every 100 --log-every 100'

cat <<END
# DeMuon and its baselines

Written by \`make gossip\` (\`sh bench/gossip.sh TEXT $steps\`): 8 nodes, 2 sequences of 64 characters each per step, 2
layers of width 96, $steps steps, linear decay to zero, seed 1337; loss of the mean model on the whole validation split, nats
per character. Rates are tuned on the exponential graph with iid shards. At equal bytes: the loss when a node has sent as
many bytes as dsgd sends in half of the steps. Spread is the greatest less the least loss over the nodes. Distance is
sqrt(sum |X_i - mean|^2) at the last validation before the end, when the rate is $(awk -v s="$steps" 'BEGIN { printf "%.3g", 100 / s }') of its peak.

| method | rates tried: final loss |
| --- | --- |
END
: >"$RUNS/best"
echo "$methods" | while IFS='|' read -r method flags rates; do
    best "$method exponential iid" "$rates" $nodes $flags --topology exponential --shards iid
    echo "| $method | $tried |"
    echo "$method|$flags|$rate" >>"$RUNS/best"
done
for shards in iid contiguous; do
    for graph in complete exponential ring; do
        printf '\n%s, %s shards:\n\n' $graph $shards
        echo "| method | rate | loss | at equal bytes | spread over nodes | distance | MB sent per node |"
        echo "| --- | --- | --- | --- | --- | --- | --- |"
        run "dsgd $graph $shards $(sed -n 's/^dsgd|.*|//p' "$RUNS/best")" $nodes --method dsgd \
            --lr "$(sed -n 's/^dsgd|.*|//p' "$RUNS/best")" --topology $graph --shards $shards
        half=$(last bytes_sent | awk '{ print $1 / 2 }')
        while IFS='|' read -r method flags rate; do
            run "$method $graph $shards $rate" $nodes $flags --lr "$rate" --topology $graph --shards $shards
            equal=$(cross bytes_sent "$half" val_loss | awk '{ printf "%.4f", $1 }')
            echo "$(last node_val_min) $(last node_val_max) $(last consensus 1) $(last bytes_sent)" |
                awk -v head="| $method | $rate | $(loss) | $equal" '{
                    printf "%s | %.4f | %.3g | %.0f |\n", head, $2 - $1, $3, $4 / 1e6 }'
        done <"$RUNS/best"
    done
done
