#!/bin/sh
# Bytes that one worker needs to reach a validation loss, with and without compression by error feedback; about 90
# seconds a run on two cores. 3 workers, nanoGPT's CPU recipe, two learning rates for every method.
#   sh bench/bytes.sh TEXT [STEPS]    prints docs/BYTES.md; RUNS=DIR: see study.sh
# shellcheck disable=SC1091,SC2034,SC2086,SC2154
default=2000
. "$(dirname "$0")/study.sh"

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

cat <<END
# Bytes to a validation loss

Written by \`make bytes\` (\`sh bench/bytes.sh TEXT $steps\`): 3 workers, nanoGPT's CPU recipe, $steps steps, seed 1337,
whole-split validation loss in nats per character. Each method runs at two learning rates; the better final loss counts.
Megabytes are one worker's: sent up to the owners of shards (of which it is one), received from them, and both. Between
two validations, 200 steps apart, they are interpolated linearly in the loss. Embeddings travel as fp32 under AdamW in
every row and are counted. The last column is what Muon sends up until 1.75 and until 1.65, over what the method sends
up; in brackets as arXiv 2510.00643 would count the method's messages, with indices of 26 bits and Natural of 16.

| method | rates tried: final loss | best | to 1.75: up | down | round trip | to 1.65: up | down | round trip | Muon's uplink over it |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
END
echo "$methods" | while IFS='|' read -r method flags rates; do
    best "$method" "$rates" --workers 3 --threads 2 --eval-every 200 --log-every 200 $flags
    row="| $method | $tried | ${best:-none} |" reached=''
    for target in 1.75 1.65; do
        for column in uplink_bytes downlink_bytes round; do
            bytes=$(cross val_loss $target $column)
            row="$row $(echo "$bytes" | awk 'NF { printf "%.4g", $1 / 1e6 } !NF { print "never" }') |"
            [ $column != uplink_bytes ] || up=${bytes:-0} after=$(cross val_loss $target step)
        done
        reached="$reached $up ${after:-0}"
    done
    [ "$method" != Muon ] || muon=$reached
    paper=$("$train" --data "$text" --workers 3 --dry-run $flags | sed -n 's/.*2510.00643 counts, //p')
    echo "$row $(echo "$muon $reached" | awk -v paper="$paper" '{
        printf "%s, %s", $5 ? sprintf("%.1fx", $1 / $5) : "-", $7 ? sprintf("%.1fx", $3 / $7) : "-"
        if (paper && $7) printf " (%.1fx, %.1fx)", $2 / $6 / paper, $4 / $8 / paper }') |"
done
