#!/usr/bin/env bash
# Makes every call of train_gpt to the outside world fail, one per run (test/faults.c), then takes
# room, files and memory away. After each failure: the run has ended within 5 seconds, either well and
# with the result that it has without the failure, or with status 1 and one sentence; no process is
# left; the save that was there still loads; the same command without the failure then ends as if
# nothing had been.
#
#   test/faults.sh [sites]   every place in the sources that calls, once
#   test/faults.sh all       every call; of writes of text into a stream, 5 of every place and run
#
# Builds the program itself, with CC and CFLAGS from the environment, and with sanitizers.
# Last line: S call sites, N failures injected, B bad endings.
# shellcheck disable=SC2046,SC2086
set -u
cd "$(dirname "$0")/.." || exit 1
sources=$PWD mode=${1:-sites} injected=0 bad=0
[ -d "${TMPDIR:=/dev/shm}" ] && [ -w "$TMPDIR" ] || TMPDIR=/tmp
folder=$(mktemp -d "$TMPDIR/faults.XXXXXX") && cd "$folder" || exit 1
program=$folder/train_gpt counters='s/\(steps [0-9]*\).*/\1/'
trap 'umount "$folder/small" 2>/dev/null; rm -rf "$folder"' EXIT

build() { # build FLAG...: the program whose calls can fail
    ${CC:-gcc} ${CFLAGS:--std=c11 -D_GNU_SOURCE -O1 -fopenmp-simd -ffp-contract=off -pthread} -g -no-pie "$@" \
        -I"$sources" -o train_gpt "$sources"/{train_gpt,signmuon,optimizer,methods,test/faults}.c -lm $(sed -n \
        's/^[FW][A-Z_]*([^,]*, \([a-z_]*\), .*/-Wl,--wrap=\1/p; s/^int __wrap_\([a-z]*\)(.*/-Wl,--wrap=\1/p' \
        "$sources/test/faults.c") || exit 1
}

awk 'BEGIN { for (s = 7; n++ < 3000;) { s = (s * 1103 + 12345) % 65536; printf "%c", s % 7 ? 97 + s % 19 : s % 3 ? 32 : 10 } }' >text.txt
tokens() { printf "\210\330\064\001\001\0\0\0$1\0\0"; head -c $((1012 + 2 * $2)) /dev/zero; } # llm.c's, all 0
tokens '\130\002' 600 >part-0.bin && tokens '\364\001' 500 >part-1.bin && cp part-0.bin val.bin
printf '0.5 0.25 0.25\n0.25 0.5 0.25\n0.25 0.25 0.5\n' >graph
model='--layers 1 --heads 2 --width 16 --context 8 --threads 2 --quiet --eval-every 0 --log-every 1'
train="--data text.txt $model --batch 4 --workers 2 --out out"
old="$train --save-every 1 --seed 5 --steps 2"
more="--resume --save-every 0 --quiet --out out"
rows=( # NAME | what makes OUT beforehand | the run
    "threads|$old|$train --steps 2 --overwrite"
    "processes|$old|$train --steps 2 --overwrite --backend processes --on-death continue"
    "resume|$old|$more --steps 4 --sample-every 1"
    "init|$old; cp out/last/model.safetensors start.safetensors|$train --steps 1 --overwrite --init start.safetensors"
    "resume by processes|$old --backend processes|--resume --quiet --out out --steps 3"
    "previous|$old; truncate -s 200 out/last/worker-1.safetensors|$more --steps 3"
    "last.new|$old; mv out/last out/last.new|$more --steps 3"
    "other files|$old; mkdir out/last.new; touch out/last.new/mine out/previous/mine|$more --save-every 1 --steps 4"
    "fewer workers|$old|$more --steps 3 --workers 1 --batch 2 --resume-workers mean"
    "error feedback|$old|$train --steps 1 --overwrite --method ef21-muon --up topk:0.2 --down rankk:0.3"
    "gossip|$old|--data text.txt $model --batch 6 --workers 3 --out out --steps 1 --overwrite --method demuon --topology file:graph"
    "token shards||--data part-?.bin --val-data val.bin --shards contiguous $model --heads 1 --width 2 --batch 4 --workers 2 --out out --steps 1"
    "sample|$old|--sample 20 --prompt a --out out"
    "eval|$old|--eval --out out/best"
    "dry run||--dry-run $train --link 1gbit,1ms"
    "help||--help all"
)

# what every run must do

tensors() { tail -c +$(($(od -An -tu8 -N8 "$1") + 9)) "$1" | cksum; } # they lie behind the metadata
losses() { local save; for save in "$1" "$1"/last "$1"/last.new "$1"/previous; do "$program" --eval --out "$save" 2>/dev/null; done; }
restore() { : >log; rm -rf out; [ ! -d pristine ] || cp -a pristine out; }

complain() { # complain WHAT
    bad=$((bad + 1))
    read -r number call address <log || number='' call='' address=0
    printf 'BAD: %s: %s\n     %s %s %s at %s; status %s: %s\n' "$name" "$1" "$kind" "$number" "$call" \
        "$(addr2line -s -e "$program" "$address")" "$status" "$(head -c 600 stderr)"
}

run() { # run COMMAND...: into status, stdout, stderr; what hangs or is left behind is killed
    bash -c 'echo $$ >group; exec timeout -s KILL 5 "$@"' - "$@" >stdout 2>stderr </dev/null
    status=$?
    read -r group <group # timeout leads a group of its own
    # what is dead and waits for init is not left, nor LeakSanitizer's helper of a worker that was killed in its exit
    for _ in {1..20}; do orphans=$(pgrep -r D,R,S,T -g "$group" | wc -l) && [ "$orphans" != 0 ] || break; sleep .05; done
    [ "$orphans" = 0 ] || kill -KILL -- "-$group" 2>/dev/null
}

judge() {
    injected=$((injected + 1))
    [ "$orphans" = 0 ] || complain "$orphans processes are left"
    case $status in
    0)  sed 's/seconds [0-9.]*//' stdout | cmp -s - reference.stdout || complain 'another result than without the failure'
        if [ "$kind" = error ] && grep -qE ' (write|fsync|rename) ' log; then complain 'what did not reach the disk is not told'; fi
        [ ! -d reference/last ] || [ "$(tensors out/last/model.safetensors)" = "$(tensors reference/last/model.safetensors)" ] || complain 'another model' ;;
    1)  sed -i '/is complete and is used$\|is used instead$/d' stderr # that is told beforehand
        [ "$(wc -l <stderr)" = 1 ] && grep -q '^train_gpt: .\{20,\}' stderr || complain 'not one sentence' ;;
    137) complain 'hangs' ;;
    *)  complain 'neither 0 nor 1' ;;
    esac
    [ ! -d pristine ] || grep -qxF "$("$program" --eval --out out 2>&1 | tail -n 1)" losses || complain 'the save that was there is lost'
    if [ "$status" = 1 ] && [ -n "$saves" ]; then # the next run mends what this one left
        run "$program" "${arguments[@]}" $([ -d pristine ] || echo --overwrite)
        [ "$status" = 0 ] && cmp -s <(sed "$counters" stdout) <(sed "$counters" reference.stdout) || complain 'the next run does not go on'
        [ -z "$(find out -name '*.tmp' -o -name '.trial*')" ] || complain "left behind: $(find out -name '*.tmp' -o -name '.trial*')"
    fi
}

# prepare ROW: OUT as it is before, the result without a failure, and the losses that may stand there
prepare() {
    IFS='|' read -r name before arguments <<<"$1"
    read -ra arguments <<<"$arguments"
    rm -rf pristine reference out
    if [ -n "$before" ]; then
        "$program" ${before%%;*} >stdout 2>stderr || { echo "cannot prepare: $(cat stderr)"; exit 1; }
        case $before in *\;*) eval "${before#*;}" ;; esac
        mv out pristine
    fi
    kind=none saves='' first=$injected && restore
    run "$program" "${arguments[@]}"
    [ "$status" = 0 ] || { complain 'fails without a failure'; return 1; }
    sed 's/seconds [0-9.]*//' stdout >reference.stdout
    [ ! -d pristine ] || { losses pristine && losses out; } >losses
    [ ! -d out ] || { diff -rq pristine out >diff 2>&1 || saves=yes; mv out reference; }
}

# The numbers of the calls to fail: all, or one of every site that no row before has had.
turns() {
    restore
    FAULT_N=0 FAULT_KIND=$kind FAULT_LOG=$folder/log run "$program" "${arguments[@]}"
    case $mode in
    all) awk '$2 !~ /^(f?put|f?printf|fwrite|getc)/ || seen[$2 $3]++ < 5 { print $1 }' log ;;
    *)  awk -v kind="$kind" 'FILENAME == "sites" { seen[$0] = 1; next } !seen[kind " " $2 " " $3]++ { print $1 }' sites log ;;
    esac
}

: >sites
build -fsanitize=address,undefined -fno-sanitize-recover=all
for row in "${rows[@]}"; do
    prepare "$row" || continue
    for kind in error eintr short; do
        for n in $(turns); do
            restore
            FAULT_N=$n FAULT_KIND=$kind FAULT_LOG=$folder/log run "$program" "${arguments[@]}"
            [ -s log ] || break # this time there are not so many calls
            awk -v kind="$kind" '{ print kind, $2, $3 }' log >>sites
            judge
        done
    done
    printf '%-20s %4d failures\n' "$name" $((injected - first))
done

# no room, no files, no memory; sanitizers need these themselves

limit() { # limit WHAT ULIMIT_ARGUMENTS...: left out where not even --version runs
    kind=$1 && shift
    bash -c "ulimit $*; exec $program --version" >/dev/null 2>&1 || return
    restore
    run bash -c "ulimit $*; exec \"\$@\"" - "$program" "${arguments[@]}"
    judge
}

build
for row in "${rows[0]}" "${rows[1]}" "${rows[4]}"; do
    prepare "$row" || continue
    for n in 1 2 4 8 16 32; do limit "files of $n KB" -f $n; done
    for n in 3 4 5 6 7 8 9 12 15; do limit "$n open files" -n $n; done
    for ((n = 4; n < 200; n += ${#mode} == 3 ? 3 : 17)); do limit "$n MB of memory" -v $((n << 10)); done
    saves='' # what a user put there is the user's to remove
    for place in last.new .trial .trial.new best.new log.csv .log.csv.tmp lock; do
        for what in 'mkdir -p' touch; do
            kind="$what $place" && restore
            rm -rf "out/$place" && $what "out/$place" && { [ "$what" = touch ] || touch "out/$place/mine"; }
            run "$program" "${arguments[@]}"
            judge
        done
    done
    mkdir -p small && mount -t tmpfs -o size=400k tmpfs small 2>/dev/null || { echo 'no small disk: mount is not permitted' && continue; }
    for n in 400 300 250 200 150 100 50 0; do
        kind="a disk with $n KB left" && restore
        cp -a out small/out && rm -rf out && ln -s small/out out
        head -c $((n < 400 ? 400 - n : 0))k /dev/zero >small/filler 2>/dev/null
        run "$program" "${arguments[@]}"
        judge
        rm -rf small/*
    done
    umount small
    printf '%-20s %4d limits\n' "$name" $((injected - first))
    [ "$mode" = all ] || break
done
printf '%d call sites, %d failures injected, %d bad endings\n' "$(awk '{ print $2, $3 }' sites | sort -u | wc -l)" "$injected" "$bad"
[ "$bad" = 0 ]
