#!/bin/sh
# Seconds per step over real TCP at several rates: four network namespaces on this machine, joined by a bridge, stand for
# four hosts with one MPI rank each. tc shapes each end of each cable.
#   sudo sh bench/network.sh TEXT [REPEATS]    prints docs/NETWORK.md, writes docs/network.csv
# Takes about fifteen minutes for 3 repeats. Needs root, iproute2, util-linux, Open MPI and ./train_gpt_mpi (make mpi). The
# namespaces, the bridge too, are deleted when the script ends. No interface of the machine is touched.
set -eu
text=${1:-} repeats=${2:-3} train=${TRAIN:-./train_gpt_mpi} rates=${RATES:-10gbit 1gbit 100mbit 20mbit}
say() { echo "network.sh: $*" >&2; }
[ -r "$text" ] || { say "usage: sh bench/network.sh TEXT [REPEATS]"; exit 2; }
[ "$(id -u)" = 0 ] || { say "network namespaces need root: run it under sudo"; exit 1; }
for tool in ip tc unshare mpirun; do
    command -v $tool >/dev/null || { say "no $tool here (Debian: iproute2, util-linux, openmpi-bin)"; exit 1; }
done
mpirun --version 2>/dev/null | grep -q 'Open MPI' || { say "mpirun is not Open MPI's, whose daemons this script places"; exit 1; }
[ -x "$train" ] || { say "no $train: make mpi first"; exit 1; }
case $train in /*) ;; *) train=$PWD/$train ;; esac

tag=net$$ tmp=$(mktemp -d) hosts='0 1 2 3'
# shellcheck disable=SC2086,SC2064
clean() {
    for i in $hosts switch; do
        pids=$(ip netns pids $tag-"$i" 2>/dev/null) && [ -n "$pids" ] && kill $pids 2>/dev/null
        ip netns del $tag-"$i" 2>/dev/null
    done
    rm -rf "$tmp"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Four hosts, a cable from each to the switch.
ip netns add $tag-switch
ip -n $tag-switch link add br0 type bridge
ip -n $tag-switch link set br0 up
for i in $hosts; do
    ip netns add $tag-"$i"
    ip -n $tag-"$i" link set lo up
    ip -n $tag-"$i" link add eth0 type veth peer name port"$i" netns $tag-switch
    ip -n $tag-"$i" addr add 10.77.0.$((i + 1))/24 dev eth0
    ip -n $tag-"$i" link set eth0 up
    ip -n $tag-switch link set port"$i" master br0 up
done
in_host() { i=$1; shift; ip netns exec $tag-"$i" "$@"; }

control=$(in_host 0 cat /proc/sys/net/ipv4/tcp_congestion_control) # the kernel's choice

# bits RATE: as a number
bits() { echo "$1" | awk '{ print $1 * (/gbit/ ? 1e9 : /mbit/ ? 1e6 : 1e3) }'; }

# Where the kernel has netem, every packet out of a host is delayed by DELAY.
delay=${DELAY:-}
if in_host 0 tc qdisc add dev eth0 root netem delay 1ms 2>/dev/null; then
    in_host 0 tc qdisc del dev eth0 root
    netem=yes delay=${delay:-1ms}
else
    netem=no delay=
fi

# shape RATE|unlimited: out of every host, and out of the switch into it. The bucket holds 2 ms, because timers are late
# on a busy machine; the queue is long enough to drop nothing.
shape() {
    for i in $hosts; do
        in_host "$i" tc qdisc del dev eth0 root 2>/dev/null || :
        ip netns exec $tag-switch tc qdisc del dev port"$i" root 2>/dev/null || :
        [ "$1" = unlimited ] && continue
        bucket=$(bits "$1" | awk '{ b = $1 / 8 * 0.002; printf "%d", b < 5000 ? 5000 : b }')
        in_host "$i" tc qdisc add dev eth0 root handle 1: tbf rate "$1" burst "$bucket" limit 8m
        ip netns exec $tag-switch tc qdisc add dev port"$i" root tbf rate "$1" burst "$bucket" limit 8m
        [ $netem = no ] || in_host "$i" tc qdisc add dev eth0 parent 1:1 netem delay "$delay" limit 100000
    done
}

# Stands in for ssh under mpirun: enters the namespace of that address under a host name of its own, so that each
# host has an Open MPI daemon on its own loopback.
cat >"$tmp/enter" <<END
#!/bin/sh
i=\$((\${1##*.} - 1)); shift
exec ip netns exec $tag-\$i unshare --uts sh -c "hostname net\$i; \$*"
END
chmod +x "$tmp/enter"
head -c 60000 "$text" >"$tmp/text" # a short validation at the end

# Open MPI announces a message longer than its eager limit (64 KB) and waits for an answer. On a slow link the answer
# queues behind data, and a step takes up to twice as long.
eager="--mca btl_tcp_eager_limit 4194304 --mca btl_tcp_rndv_eager_limit 4194304 --mca btl_tcp_max_send_size 4194304"

# train NAME STEPS LINK FLAGS: one run on the four hosts; adds its seconds per step, interval by interval, to NAME.s
# and prints its bytes sent and --link's seconds, per step
train() (
    name=$1 steps=$2 link=$3 flags=$4
    "$tmp/enter" 10.77.0.1 "exec env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 600 \
        mpirun -n 4 --host 10.77.0.1,10.77.0.2,10.77.0.3,10.77.0.4 --bind-to none --mca plm_rsh_agent $tmp/enter \
        --mca pml ob1 --mca btl self,tcp --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
        --mca mpi_yield_when_idle 1 $eager $train --data $tmp/text --threads 1 --steps $steps --log-every 2 --eval-every 0 \
        --save-every 0 --check-every 0 --link $link --quiet --overwrite --out $tmp/out $flags" \
        >"$tmp/said" 2>&1 || { say "this run failed: $flags"; cat "$tmp/said" >&2; exit 1; }
    awk -F, 'NR > 2 && seen && $5 == "" { print ($3 - seconds) / ($1 - step) }
             NR > 1 { seen = 1; step = $1; seconds = $3 }' "$tmp/out/log.csv" >>"$tmp/$name.s"
    awk -F, 'NR == 2 { s = $1; b = $9; w = $12 } END { print ($9 - b) / ($1 - s), ($12 - w) / ($1 - s) }' "$tmp/out/log.csv"
)
# quantile NAME Q: of its intervals
quantile() { sort -n "$tmp/$1.s" | awk -v q="$2" '{ v[NR] = $1 } END { print v[1 + int(q * (NR - 1) + 0.5)] }'; }
steps_of() { case $1 in *gbit | unlimited) echo 24 ;; 100mbit) echo 16 ;; *) echo 12 ;; esac; }

# name | flags
methods='adamw|--method adamw
muon|--method muon
ef21-muon|--method ef21-muon --up topk:0.15+natural --down natural
signmuon|--method signmuon --aux sign'

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
cat <<END
# Steps over a slow network

Written by \`make network\` (\`sh bench/network.sh TEXT $repeats\`). Four MPI ranks over TCP, each in a network namespace that
stands for a host with one cable to a common switch. \`tc\` shapes both ends of every cable to the rate (tbf,
a bucket of 2 ms, no drops). $(if [ $netem = yes ]; then echo "netem delays every packet by $delay."; else
    echo "This kernel has no netem, so nothing is delayed on purpose: rates only."; fi)
nanoGPT's CPU recipe (4 layers, width 128, context 64, 12 sequences per step), one compute thread per rank; the four share
$(nproc) cores of: ${cpu:-unknown}; TCP with $control. Computing takes longer here than on four machines, sending does not.

Open MPI sends messages of up to 4 MB eagerly here (\`btl_tcp_eager_limit\`). With its default of 64 KB a longer message is
announced, and on a slow link the answer queues behind data: a step takes up to twice as long.

- Measured: the median over the intervals of $repeats runs, in brackets the quartiles.
- Estimated: the median without shaping, plus what \`--link RATE,${delay:-0ms}\` of the program says of the wire.

END

echo 'method,rate_bits,seconds,lower,upper,estimate,base_seconds,bytes' >"$tmp/network.csv"
echo "$methods" | while IFS='|' read -r method flags; do
    base=
    for rate in unlimited $rates; do
        shape "$rate"
        limit=$(bits "$rate") link=$rate,${delay:-0ms}
        [ "$rate" != unlimited ] || limit=inf link=10gbit,0ms
        for _ in $(seq "$repeats"); do said=$(train "$method-$rate" "$(steps_of "$rate")" "$link" "$flags" </dev/null); done
        middle=$(quantile "$method-$rate" 0.5) base=${base:-$middle}
        wire=${said#* }
        [ "$rate" != unlimited ] || wire=0
        estimate=$(awk -v a="$base" -v b="$wire" 'BEGIN { print a + b }')
        echo "$method,$limit,$middle,$(quantile "$method-$rate" 0.25),$(quantile "$method-$rate" 0.75),$estimate,$base,${said% *}"
    done
done >>"$tmp/network.csv"
awk -F, -v rates="$rates" 'function ms(s) { return sprintf("%.*f", s < 0.1 ? 1 : 0, 1000 * s) }
    BEGIN { n = split(rates, rate, " "); head = "| method | bytes per step | unlimited |"; rule = "| --- | ---: | ---: |"
        for (i = 1; i <= n; i++) {
            head = head " " rate[i] ": measured | estimated | ratio |"; rule = rule " ---: | ---: | ---: |" }
        printf "Milliseconds per step:\n\n%s\n%s", head, rule }
    NR > 1 && $2 == "inf" { printf "\n| %s | %.0f |", $1, $8; base[$1] = $7; bytes[$1] = $8 }
    NR > 1 { printf " %s (%s, %s) |", ms($3), ms($4), ms($5) }
    NR > 1 && $2 != "inf" { printf " %s | %.2f |", ms($6), $3 / $6 }
    END { print "\n\n![seconds per step against the rate](network.svg)\n\n## Where one bit starts to pay\n"
        split("adamw muon ef21-muon", other, " ")
        for (i = 1; i <= 3; i++) {
            o = other[i]; more = base["signmuon"] - base[o]
            if (more > 0) printf "- Below %.0f Mbit/s a step of signmuon is shorter than one of %s (%.1f ms more to compute, %.2f MB less to send).\n",
                8e-6 * (bytes[o] - bytes["signmuon"]) / more, o, 1000 * more, 1e-6 * (bytes[o] - bytes["signmuon"])
            else printf "- A step of signmuon is shorter than one of %s at any rate.\n", o } }' "$tmp/network.csv"
cat <<END

Computed from the medians without shaping and the bytes. Steps are compared here, not losses. The ratio of measured to
estimated differs from 1 for three reasons. 66 of every 1,514 bytes are headers, which --link does not count (5 %). The
kernel's TCP takes processor time that the runs without shaping already contain, so that low rates count it twice. At
10gbit two cores move all bytes of four hosts through two shapers each.
END
mkdir -p docs && cp "$tmp/network.csv" docs/network.csv
! command -v gnuplot >/dev/null || gnuplot bench/network.gp >&2
