#!/bin/sh
# mpi.sh - the same bits over MPI as over threads and processes; ranks that die, and wrong use.
#
#   sh test/mpi.sh [NAME ...]    in a built tree, for mpicc.NAME and mpirun.NAME: openmpi, mpich
#
# Models are compared by their tensors alone. The last line is `N passed, N failed`.  MIT licence.

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # harmless elsewhere
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_base_warn_component_unused=0
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
small="--data $tmp/text --quiet --layers 1 --heads 2 --width 32 --context 16 --batch 4 --steps 6 \
--threads 1 --eval-every 0"

check() { # check SENTENCE COMMAND...
    claim=$1 && shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) && echo "FAIL $claim"
    fi
}

tensors() { # the data of a model, without its header
    tail -c +$((9 + $(od -An -t u8 -N 8 "$1"))) "$1"
}

same() { # same FOLDER FOLDER
    tensors "$1/last/model.safetensors" >"$tmp/a" && tensors "$2/last/model.safetensors" >"$tmp/b" &&
        [ -s "$tmp/a" ] && cmp -s "$tmp/a" "$tmp/b"
}

over() { # over NAME RANKS FLAGS...: a run that hangs counts as one that fails
    name=$1 ranks=$2 && shift 2
    timeout -k 1 60 mpirun.$name -n "$ranks" ./train_gpt_$name "$@" \
        >"$tmp/$name.stdout" 2>"$tmp/$name.stderr" </dev/null
}

says() { # says NAME STATUS SENTENCE FLAGS...: that status, and that sentence once
    name=$1 status=$2 sentence=$3 && shift 3
    over "$name" 4 "$@"
    [ $? = "$status" ] && [ "$(grep -c '^train_gpt: ' "$tmp/$name.stderr")" = 1 ] &&
        grep -q "^train_gpt: $sentence" "$tmp/$name.stderr"
}

ranks_of() { # the processes that run ./train_gpt_NAME in this folder
    for p in /proc/[0-9]*; do
        [ "$(readlink "$p/exe")" = "$PWD/train_gpt_$1" ] && echo "${p#/proc/}"
    done 2>/dev/null
}

wait_for() { # wait_for FILE
    for _ in $(seq 300); do
        [ -e "$1" ] && return
        sleep 0.1
    done
    return 1
}

rows() { # every method, and what changes a vote
    ./train_gpt --list methods | sed -n '2,$s/ .*//p' | sed 's/^/--method /'
    echo "--method signmuon --aux sign"
    echo "--method signmuon --aux sign --zeros abstain --ties abstain"
    echo "--method signmuon --aux sign --wire int8"
    echo "--method signmuon --aux sign --polar-after-vote"
    echo "--method muonsign --aux sign --server-map spectral"
    echo "--method scion --aux lmo"
    echo "--method demuon --topology one-peer"
}

equal_bits() { # equal_bits FLAGS: threads, processes, ranks, and ranks of two workers
    ./train_gpt $small $1 --workers 4 --overwrite --out "$tmp/threads" >/dev/null || return
    ./train_gpt $small $1 --workers 4 --backend processes --overwrite \
        --out "$tmp/processes" >/dev/null || return
    for name in $names; do
        over "$name" 4 $small $1 --overwrite --out "$tmp/$name.4" || return
        over "$name" 2 $small $1 --workers 2 --overwrite --out "$tmp/$name.2" || return
    done
    for other in processes $(for n in $names; do echo "$n.4 $n.2"; done); do
        same "$tmp/threads" "$tmp/$other" || { echo "$other differs from threads" && return 1; }
    done
}

constant="$small --method signmuon --zeros abstain --schedule constant --warmup 0"

resumes() { # resumes NAME: 4 steps by threads, 4 by two ranks, 4 by four, 4 by processes
    rm -rf "$tmp/r" "$tmp/whole"
    ./train_gpt $constant --workers 4 --steps 16 --out "$tmp/whole" >/dev/null &&
        ./train_gpt $constant --workers 4 --steps 4 --out "$tmp/r" >/dev/null &&
        over "$1" 2 --quiet --resume --steps 8 --out "$tmp/r" &&
        over "$1" 4 --quiet --resume --steps 12 --out "$tmp/r" &&
        ./train_gpt --quiet --resume --steps 16 --backend processes --out "$tmp/r" >/dev/null &&
        same "$tmp/whole" "$tmp/r"
}

start_long() { # start_long NAME FLAGS...: four ranks that train until they are stopped
    rm -rf "$tmp/r"
    name=$1 && shift
    { over "$name" 4 $constant --steps 1000000 --out "$tmp/r" "$@"; echo $? >"$tmp/status"; } &
    job=$!
}

killed() { # killed NAME: one rank dies; the others are gone soon, and what was saved goes on
    start_long "$1" --save-every 5
    wait_for "$tmp/r/last/model.safetensors" || return
    kill -KILL "$(ranks_of "$1" | sed -n 3p)"
    before=$(date +%s) && wait $job
    [ $(($(date +%s) - before)) -le 5 ] && [ "$(cat "$tmp/status")" != 0 ] &&
        [ -z "$(ranks_of "$1")" ] && cp -r "$tmp/r" "$tmp/r2" || return
    step=$(grep -ao '"step":"[0-9]*"' "$tmp/r/last/model.safetensors" | tr -dc 0-9)
    over "$1" 4 --quiet --resume --steps $((step + 3)) --out "$tmp/r" &&
        ./train_gpt --quiet --resume --steps $((step + 3)) --out "$tmp/r2" >/dev/null &&
        same "$tmp/r" "$tmp/r2"
    good=$?
    rm -rf "$tmp/r2"
    return $good
}

interrupted() { # interrupted NAME: SIGTERM to mpirun saves, and is told once
    start_long "$1" --log-every 1
    wait_for "$tmp/r/log.csv" && sleep 1
    kill -TERM "$(ps -o pid= --ppid "$(pgrep -P $job timeout)")"
    wait $job
    grep -q 'stopped by signal' "$tmp/$1.stderr" && [ -z "$(ranks_of "$1")" ] &&
        [ "$(cat "$tmp/status")" != 0 ] && [ -e "$tmp/r/last/worker-3.safetensors" ]
}

alone() { # alone NAME: what only one rank finds, it says, and names itself
    timeout -k 1 60 mpirun.$1 -n 3 ./train_gpt_$1 $small --out "$tmp/y" \
        : -n 1 ./train_gpt_$1 $small --data nowhere --out "$tmp/y" 2>"$tmp/$1.stderr" >/dev/null
    [ $? = 1 ] && grep -q '^train_gpt: rank 3: nowhere' "$tmp/$1.stderr" && [ ! -e "$tmp/y/last" ] &&
        [ -z "$(ranks_of "$1")" ]
}

strangers() { # strangers NAME: copies that do not know each other are refused, once
    mpirun.$1 -n 2 ./train_gpt $small --out "$tmp/x" >"$tmp/x.stdout" 2>"$tmp/x.stderr"
    [ $? = 2 ] && [ "$(grep -c '^train_gpt: .*make mpi' "$tmp/x.stderr")" = 1 ]
}

names=
for name in ${*:-openmpi mpich}; do
    command -v mpicc.$name mpirun.$name >"$tmp/which" && names="$names $name" && continue
    echo "mpicc.$name or mpirun.$name is not here: left out"
done
[ "$names" ] || exit 1
./data/play "$tmp/text" 30000 >/dev/null || exit 1
flags="-std=c11 -D_GNU_SOURCE -O1 -pthread -Wall -Wextra -Wpedantic -Wshadow -Wconversion -I."
for name in $names; do
    make -s -B mpi MPICC=mpicc.$name OPT="${OPT:--O1}" EXTRA=-Werror &&
        mv train_gpt_mpi train_gpt_$name || exit 1
    mpicc.$name $flags -DCOMM_MPI -DCOMM_MPI_PIECE=5000 -o "$tmp/mpi.$name" test/mpi.c || exit 1
done

./train_gpt $small --batch 6 --workers 6 --out "$tmp/six" >/dev/null || exit 1
rows >"$tmp/rows"
while read -r flags; do
    check "the same bits: $flags" equal_bits "$flags"
done <"$tmp/rows"
for name in $names; do
    for layout in 1:3 5:1 2:2 3:2; do
        check "$name: every byte, ranks:workers $layout" \
            timeout 60 mpirun.$name -n ${layout%:*} "$tmp/mpi.$name" ${layout#*:} >/dev/null 2>&1
    done
    check "$name: stop and go on, on threads, ranks and processes" resumes "$name"
    check "$name: without overlap" over "$name" 4 $small --overlap off --out "$tmp/off"
    ./train_gpt $small --workers 4 --overwrite --out "$tmp/threads" >/dev/null
    check "$name: the same bits without overlap" same "$tmp/threads" "$tmp/off"
    rm -rf "$tmp/off"
    check "$name: a rank is killed" killed "$name"
    check "$name: SIGTERM" interrupted "$name"
    check "$name: one rank in trouble" alone "$name"
    check "$name: built without MPI" strangers "$name"
    check "$name: wrong flag" says "$name" 2 "there is no flag --lrr" --lrr 3
    check "$name: no data" says "$name" 1 "nowhere: " --data nowhere --out "$tmp/x"
    check "$name: wrong backend" says "$name" 2 "--backend threads: 4 ranks" --backend threads
    check "$name: ranks that do not divide" says "$name" 2 "6 workers cannot be spread" \
        --resume --out "$tmp/six"
    check "$name: divergence" says "$name" 3 "rank 0: training diverged" $small --method adamw \
        --aux adamw --lr 1e5 --weight-decay 100 --steps 100 --out "$tmp/x" --overwrite
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
