#!/bin/sh
# The federated study: how well every method classifies, on clients whose labels are alike and on clients whose labels are not. One
# row per run in docs/results/federated.csv; stopped, it goes on where it was.
#   nice sh bench/federated.sh DIR [NAME...]     with NAMEs only these methods, as in bench/tune.sh; DIR: of Fashion-MNIST
# cnn2 of width 8, 11 clients, a batch of 64 images each. Every method on every split takes its rate by the validation accuracy of
# seed 1 (bench/lattice.sh), then five seeds at that rate on the test set, once. SignMuon also with 1, 3, 5 and 7 clients, at the
# rate that eleven chose. An accuracy is the mean of the last five of 20 evaluations. SignMuon and Signum take seven rates on IID data.
data=$1 rounds=${ROUNDS:-300} csv=docs/results/federated.csv
[ $# -gt 1 ] && shift && names=" $* "
[ -d "$data" ] || { echo "usage: sh bench/federated.sh DIR [NAME...], DIR with Fashion-MNIST's files: sh data/fashion.sh" >&2; exit 2; }
[ $((rounds % 20)) = 0 ] || { echo "ROUNDS=$rounds is no multiple of 20, the evaluations of a run" >&2; exit 2; }
. bench/lattice.sh
mkdir -p docs/results
[ -s $csv ] || echo "split,clients,method,lr,seed,on,rounds,accuracy,loss,bytes,seconds" >$csv

methods() { # name, default rate
    echo "sgd 1 adamw 2e-3 signsgd 0.01 signum 0.01 muon 0.05 muon-avgpolar 0.05 signmuon 0.05 muonusign 0.05 muonsign 0.02" \
        "ef21-signmuon 0.02 ef21-muonusign 0.02 ef21-muonsign 0.05" | xargs -n 2
}

# run once, unless there is a row: run SPLIT CLIENTS METHOD RATE SEED validation|test
run() {
    grep -q "^$1,$2,$3,$4,$5,$6,$rounds," $csv && return
    test=off && [ "$6" = test ] && test=on
    closing=$(examples/federated --data "$data" --quiet --split "$1" --clients "$2" --method "$3" --lr "$4" --seed "$5" --test $test \
        --micro 1 --rounds "$rounds" --eval-every $((rounds / 20)))
    case $? in
    0) ;;
    3) closing="x x x diverged x x x x x x x 0 x 0" ;;
    *) exit 1 ;; # what failed has said so
    esac
    echo "$closing" | awk -v row="$1,$2,$3,$4,$5,$6,$rounds" '{ print row "," $4 "," $8 "," $14 "," $12 }' >>$csv
}

methods | while read -r method default; do
    case ${names:- $method } in *" $method "*) ;; *) continue ;; esac
    for split in iid dirichlet:0.5 dirichlet:0.1; do
        try() { run $split 11 "$1" "$2" 1 validation; }
        best() {
            awk -F, -v s=$split -v m="$1" -v r="$rounds" '$1 == s && $2 == 11 && $3 == m && $6 == "validation" && $7 == r && $8 + 0 > top {
                top = $8; lr = $4 } END { print lr }' $csv
        }
        search "$method" "$default"
        case "$method $split" in # how many rates serve each of these two is a claim
        "signmuon iid" | "signum iid") for rate in 0.005 0.01 0.02 0.05 0.1 0.2 0.5; do try "$method" $rate; done ;;
        esac
        for seed in 1 2 3 4 5; do run $split 11 "$method" "$(best "$method")" $seed test; done
        [ "$method $split" = "signmuon iid" ] || continue
        for clients in 1 3 5 7; do
            for seed in 1 2 3 4 5; do run iid $clients signmuon "$(best signmuon)" $seed test; done
        done
    done
done
