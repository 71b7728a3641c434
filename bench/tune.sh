#!/bin/sh
# Tunes every method alike: one row per run in docs/results/tune.csv. Stopped, it goes on where it was.
#   nice sh bench/tune.sh TEXT [STEPS [NAME...]]       about six hours on two cores; with NAMEs only these methods, so that
#                                                      several can run beside each other, each on cores of its own (taskset)
# Each method takes four learning rates of the hidden matrices on the lattice 1, 2, 5, 10, ..., from one below the default on, and
# one more while the best is at an edge; then three further seeds at the best, and at the second best too where they do worse at
# the best than the first seed did there. All else is left to the method's row. 3 workers, nanoGPT's CPU recipe. Steps and bytes to
# a validation loss are interpolated between validations, 100 steps apart.
text=$1 steps=${2:-2000} csv=docs/results/tune.csv out=${TMPDIR:-/tmp}/signmuon-tune.$$
[ $# -gt 2 ] && shift 2 && names=" $* "
[ -r "$text" ] || { echo "usage: sh bench/tune.sh TEXT [STEPS [NAME...]]" >&2; exit 2; }
trap 'rm -rf "$out"' EXIT
. bench/lattice.sh
mkdir -p docs/results
[ -s $csv ] || echo "name,lr,seed,steps,loss,steps_1.75,steps_1.65,up_bits,down_bits,bytes_1.65,seconds,flags" >$csv

methods() { # name, default rate, flags
    cat <<END
signmuon+sign 1e-3 --method signmuon --aux sign
signmuon+sign+express3 1e-3 --method signmuon --aux sign --ns polar-express3
signmuon+sign+bf16 1e-3 --method signmuon --aux sign --ns polar-express3 --ns-dtype bf16
muon 5e-3 --method muon
adamw 4e-3 --method adamw
signmuon 1e-3 --method signmuon
signum 5e-4 --method signum
lion 6e-4 --method lion
scion 5e-3 --method scion
muonusign 5e-3 --method muonusign
muonsign 1e-3 --method muonsign
ef21-muonsign 5e-3 --method ef21-muonsign
ef21-muon+natural 5e-3 --method ef21-muon --up natural --down natural
ef21-muon+top 5e-3 --method ef21-muon --up topk:0.15+natural
signmuon+sign+every2 1e-3 --method signmuon --aux sign --polar-every 2
signmuon+sign+every5 1e-3 --method signmuon --aux sign --polar-every 5
signmuon+sign+every20 1e-3 --method signmuon --aux sign --polar-every 20
signmuon+sign+after 5e-3 --method signmuon --aux sign --polar-after-vote
END
}

# train once, unless there is a row: run NAME RATE SEED FLAGS
run() {
    name=$1 lr=$2 seed=$3
    shift 3
    grep -q "^$name,$lr,$seed,$steps," $csv && return
    closing=$(./train_gpt --data "$text" --out "$out" --overwrite --quiet --save-every 0 --workers 3 --threads "$(nproc)" --steps "$steps" \
        --eval-every 100 --seed "$seed" --lr "$lr" "$@") || closing="val_loss diverged x x x $steps x 0 x 0"
    [ -n "$parameters" ] || parameters=$(./train_gpt --data "$text" --dry-run | sed -n 's/.*: \([0-9]*\) parameters/\1/p')
    echo "$closing" | awk -F '[ ,]' -v row="$name,$lr,$seed,$steps" -v flags="$*" -v p="$parameters" -v log_csv="$out/log.csv" '
        # where the loss first falls below a bound: column c between the validations around it
        function at(bound, c,   k, t) {
            for (k = 2; k <= n; k++)
                if (loss[k] <= bound) {
                    t = (loss[k - 1] - bound) / (loss[k - 1] - loss[k])
                    return sprintf("%.0f", value[c, k - 1] + t * (value[c, k] - value[c, k - 1]))
                }
            return "never"
        }
        {
            while ((getline line <log_csv) > 0) {
                split(line, f, ",")
                if (f[5] + 0 > 0) { loss[++n] = f[5]; value["step", n] = f[1]; value["bytes", n] = f[9]; up = f[13]; down = f[14] }
            }
            bits = 8 / p / $6
            printf "%s,%s,%s,%s,%.3f,%.3f,%s,%s,%s\n", row, $2, at(1.75, "step"), at(1.65, "step"), up * bits, down * bits,
                at(1.65, "bytes"), $8, flags
        }' >>$csv
}

# the best rate so far, by the first seed, apart from rate $2; one that diverged is worst
best() { awk -F, -v name="$1" -v but="$2" -v steps="$steps" '$1 == name && $2 != but && $3 == 1337 && $4 == steps && $5 + 0 > 0 &&
    (!low || $5 < low) { low = $5; lr = $2 } END { print lr }' $csv; }
# do further seeds at rate $2 do worse than the first at rate $3?
worse() { awk -F, -v name="$1" -v a="$2" -v b="$3" -v steps="$steps" '$1 == name && $4 == steps {
    if ($2 == a && $3 != 1337) sum += $5 + 0 > 0 ? $5 / 3 : 99; if ($2 == b && $3 == 1337) other = $5 } END { exit !(sum > other) }' $csv; }

methods | while read -r method default flags; do
    case ${names:- $method } in *" $method "*) ;; *) continue ;; esac
    try() { run "$1" "$2" 1337 $flags; }
    search "$method" "$default"
    lr=$(best "$method") second=$(best "$method" "$lr")
    for seed in 1 2 3; do run "$method" "$lr" $seed $flags; done
    worse "$method" "$lr" "$second" || continue
    for seed in 1 2 3; do run "$method" "$second" $seed $flags; done
done
