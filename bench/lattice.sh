# Learning rates on the lattice 1, 2, 5, 10, ...: read by bench/tune.sh and bench/federated.sh.

# k-th rate of the lattice: rate 0 is 1, rate -1 is 0.5; and the place that is nearest to a rate
rate() { awk -v k="$1" 'BEGIN { d = int((k + 300) / 3) - 100; printf "%g", substr("125", k + 301 - 3 * int((k + 300) / 3), 1) * 10 ^ d }'; }
place() { awk -v r="$1" 'BEGIN { printf "%d", 300.5 + 3 * log(r) / log(10) }' | awk '{ print $1 - 300 }'; }

# search METHOD DEFAULT: run METHOD at four rates from one below the default on, and at one more, at most six times, while the
# best is at an edge. The caller has defined: try METHOD RATE, which runs it unless it has run; best METHOD, its best rate so far.
search() {
    first=$(($(place "$2") - 1)) last=$(($(place "$2") + 2)) k=$first
    while [ "$k" -le "$last" ]; do try "$1" "$(rate "$k")"; k=$((k + 1)); done
    for again in 1 2 3 4 5 6; do
        k=$(place "$(best "$1")")
        if [ "$k" -le "$first" ]; then first=$((first - 1)) && try "$1" "$(rate $first)"
        elif [ "$k" -ge "$last" ]; then last=$((last + 1)) && try "$1" "$(rate $last)"
        else break
        fi
    done
}
