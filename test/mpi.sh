#!/bin/sh
# mpi.sh - the same bits over MPI as over threads and processes; ranks that die, and wrong use.
#
#   sh test/mpi.sh [NAME ...]    in a tree with train_gpt and data/play, for every mpicc.NAME and
#                                mpirun.NAME that is installed; without names: openmpi mpich
#
# A rank is one worker. Models are compared by their tensors. Last line: N passed, N failed.  MIT.

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # harmless elsewhere
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_base_warn_component_unused=0
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
small="--data $tmp/text --quiet --layers 1 --heads 2 --width 32 --context 16 --batch 4 --steps 4 \
--threads 1 --eval-every 0"
constant="$small --method signmuon --zeros abstain --schedule constant --warmup 0"

check() { # check CLAIM COMMAND...
    claim=$1 && shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) && echo "FAIL $claim"
    fi
}

tensors() { tail -c +$((9 + $(od -An -t u8 -N 8 "$1"))) "$1"; } # they lie behind the metadata

same() { # same FOLDER FOLDER
    tensors "$1/last/model.safetensors" >"$tmp/a" && tensors "$2/last/model.safetensors" >"$tmp/b" &&
        [ -s "$tmp/a" ] && cmp -s "$tmp/a" "$tmp/b"
}

launch() { # launch NAME RANKS PROGRAM ARGUMENTS...: a run that hangs counts as one that fails
    name=$1 ranks=$2 && shift 2
    timeout -k 1 60 mpirun.$name -n "$ranks" "$@" >"$tmp/$name.stdout" 2>"$tmp/$name.stderr" </dev/null
}

over() { # over NAME FLAGS...: four ranks
    name=$1 && shift
    launch "$name" 4 "./train_gpt_$name" "$@"
}

told() { # told NAME STATUS WANTED SENTENCE: that status, and that sentence once
    [ "$2" = "$3" ] && [ "$(grep -c '^\(train_gpt\|mpi\): ' "$tmp/$1.stderr")" = 1 ] &&
        grep -q "^$4" "$tmp/$1.stderr"
}

says() { # says NAME STATUS SENTENCE FLAGS...
    name=$1 wanted=$2 sentence=$3 && shift 3
    over "$name" "$@"
    told "$name" $? "$wanted" "train_gpt: $sentence"
}

ranks_of() { # the processes that run ./train_gpt_NAME in this folder
    for p in /proc/[0-9]*; do [ "$p/exe" -ef "train_gpt_$1" ] && echo "${p#/proc/}"; done 2>/dev/null
}

gone() { # gone NAME: no rank is left; mpirun may return a moment before the last it has killed
    for _ in $(seq 20); do [ -z "$(ranks_of "$1")" ] && return || sleep 0.1; done
    return 1
}

wait_for() { for _ in $(seq 300); do [ -e "$1" ] && return || sleep 0.1; done; return 1; } # wait_for FILE

rows() { # every method, and what changes a message
    ./train_gpt --list methods | sed -n '/^[a-z]/s/ .*//p' | sed 's/^/--method /'
    echo "--method signmuon --aux sign --zeros abstain --ties abstain"
    echo "--method signmuon --aux sign --polar-after-vote"
    echo "--method signmuon --aux sign --adversaries 1 --attack flip --dtype bf16"
    echo "--method muonsign --aux sign --server-map spectral --shards contiguous"
    echo "--method scion --aux lmo"
    echo "--method ef21-muon --up rankk:0.2+natural --down natural"
    echo "--method demuon --topology one-peer"
}

equal_bits() { # equal_bits FLAGS: four threads, processes, ranks
    ./train_gpt $small $1 --workers 4 --overwrite --out "$tmp/threads" >/dev/null &&
        ./train_gpt $small $1 --workers 4 --backend processes --overwrite --out "$tmp/other" >/dev/null &&
        same "$tmp/threads" "$tmp/other" || return
    for name in $names; do
        over "$name" $small $1 --overwrite --out "$tmp/other" && same "$tmp/threads" "$tmp/other" ||
            { echo "$name differs from threads, or fails" && return 1; }
    done
}

clients() { # clients NAME FLAGS...: examples/federated.c as four ranks, threads and processes
    name=$1 && shift
    bits() { sed -n 's/seconds [0-9.]*//p' "$tmp/$name.stdout"; }
    flags="--clients 4 --quiet --rounds 3 --eval-every 2 --batch 16 --width 2 --validation 200 $*"
    launch "$name" 4 "examples/federated_$name" $flags && ranks=$(bits) &&
        examples/federated $flags >"$tmp/$name.stdout" && threads=$(bits) &&
        examples/federated $flags --backend processes >"$tmp/$name.stdout" && [ "$ranks" ] &&
        [ "$ranks" = "$threads" ] && [ "$ranks" = "$(bits)" ]
}

resumes() { # resumes NAME: 4 steps by threads, 4 by ranks, 4 by processes, 4 by ranks
    rm -rf "$tmp/r" "$tmp/whole"
    ./train_gpt $constant --workers 4 --steps 16 --out "$tmp/whole" >/dev/null &&
        ./train_gpt $constant --workers 4 --out "$tmp/r" >/dev/null &&
        over "$1" --quiet --resume --steps 8 --out "$tmp/r" &&
        ./train_gpt --quiet --resume --steps 12 --backend processes --out "$tmp/r" >/dev/null &&
        over "$1" --quiet --resume --steps 16 --out "$tmp/r" &&
        same "$tmp/whole" "$tmp/r"
}

start_long() { # start_long NAME FLAGS...: four ranks that train until they are stopped
    rm -rf "$tmp/r"
    name=$1 && shift
    { over "$name" $constant --steps 1000000 --out "$tmp/r" "$@"; echo $? >"$tmp/status"; } &
    job=$!
}

killed() { # killed NAME: one rank dies; the others are gone soon, and the save goes on
    start_long "$1" --save-every 5
    wait_for "$tmp/r/last/model.safetensors" || return
    kill -KILL "$(ranks_of "$1" | sed -n 3p)"
    before=$(date +%s) && wait $job
    [ $(($(date +%s) - before)) -le 5 ] && [ "$(cat "$tmp/status")" != 0 ] && gone "$1" ||
        return
    step=$(grep -ao '"checkpoint_step":"[0-9]*"' "$tmp/r/last/model.safetensors" | tr -dc 0-9)
    rm -rf "$tmp/r2" && cp -r "$tmp/r" "$tmp/r2" &&
        over "$1" --quiet --resume --steps $((step + 7)) --out "$tmp/r" &&
        ./train_gpt --quiet --resume --steps $((step + 7)) --out "$tmp/r2" >/dev/null &&
        same "$tmp/r" "$tmp/r2"
}

interrupted() { # interrupted NAME: SIGTERM to mpirun saves, and is told once
    start_long "$1" --log-every 1
    wait_for "$tmp/r/log.csv" && sleep 1
    kill -TERM "$(ps -o pid= --ppid "$(pgrep -P $job timeout)")"
    wait $job
    [ "$(grep -c 'stopped by signal' "$tmp/$1.stderr")" = 1 ] && gone "$1" &&
        [ -e "$tmp/r/last/worker-3.safetensors" ] || return
    # on a busy machine MPICH's mpirun may return 0 although the run was stopped and saved
    [ "$1" = mpich ] || [ "$(cat "$tmp/status")" != 0 ]
}

alone() { # alone NAME: what only one rank finds, it says, and names itself
    launch "$1" 3 "./train_gpt_$1" $small --out "$tmp/y" : -n 1 "./train_gpt_$1" $small --data nowhere --out "$tmp/y"
    told "$1" $? 1 "train_gpt: rank 3: nowhere" && [ ! -e "$tmp/y/last" ] && gone "$1"
}

strangers() { # strangers NAME: copies that do not know each other are refused, once
    launch "$1" 2 ./train_gpt $small --out "$tmp/x"
    told "$1" $? 2 "train_gpt: .*make mpi"
}

leaves() { # leaves NAME HOW STATUS SENTENCE: a launch of test/mpi.c that ends out of order
    launch "$1" 3 "$tmp/mpi.$1" "$2"
    told "$1" $? "$3" "$4"
}

names=
for name in ${*:-openmpi mpich}; do
    command -v mpicc.$name mpirun.$name >/dev/null && names="$names $name" || echo "$name is not here: left out"
done
[ "$names" ] || exit 1
./data/play "$tmp/text" 30000 >/dev/null || exit 1
for name in $names; do
    make -s -B mpi MPICC=mpicc.$name OPT="${OPT:--O1}" EXTRA=-Werror && mv train_gpt_mpi train_gpt_$name && mv examples/federated_mpi examples/federated_$name &&
        mpicc.$name -std=c11 -D_GNU_SOURCE -O1 -pthread -I. -DCOMM_MPI -DCOMM_MPI_PIECE=5000 \
            -o "$tmp/mpi.$name" test/mpi.c || exit 1
done
./train_gpt $small --batch 6 --workers 6 --out "$tmp/six" >/dev/null || exit 1
rows >"$tmp/rows"
while read -r flags; do check "the same bits: $flags" equal_bits "$flags"; done <"$tmp/rows"
for name in $names; do
    for n in 2 3 5; do check "$name: every byte among $n ranks" launch "$name" $n "$tmp/mpi.$name"; done
    check "$name: all leave before the run" leaves "$name" usage 2 "mpi: status 2"
    check "$name: one leaves before the run" leaves "$name" odd 2 "mpi: rank 1: status 2"
    check "$name: one leaves in the run" leaves "$name" die 3 "mpi: rank 1: status 3"
    check "$name: save moves between back ends" resumes "$name"
    for m in signmuon ef21-muonsign demuon; do check "$name: clients, $m" clients "$name" --method $m; done
    check "$name: a rank is killed" killed "$name"
    check "$name: SIGTERM" interrupted "$name"
    check "$name: one rank in trouble" alone "$name"
    check "$name: built without MPI" strangers "$name"
    check "$name: wrong flag" says "$name" 2 "'--lrr' is not a flag" --lrr 3
    check "$name: no data" says "$name" 1 "nowhere: " --data nowhere --out "$tmp/x"
    check "$name: wrong backend" says "$name" 2 "--backend threads: mpirun has started 4" --backend threads
    check "$name: wrong workers" says "$name" 2 "--workers 6: mpirun has started 4" $small --workers 6
    check "$name: save of six workers" says "$name" 2 "--workers 4: the save was left by 6" --resume --out "$tmp/six"
    check "$name: divergence" says "$name" 3 "rank 0: training diverged" $small --method adamw \
        --aux adamw --lr 1e5 --weight-decay 100 --steps 100 --out "$tmp/x" --overwrite
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
