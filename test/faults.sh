#!/usr/bin/env bash
# Makes every call of train_gpt to the outside world fail, one per run, then takes room, files and
# memory away. After each failure: the run ended within 5 seconds, either well and with the result it
# has without the failure, or with status 1 and one sentence; no process is left; the checkpoint that
# was there still loads; the same command without the failure then ends as if nothing had been.
#
#   test/faults.sh PROGRAM all     every call; PROGRAM is train_gpt with test/faults.c linked in. Of
#                                  writes of text into a stream, 5 of every place and run
#   test/faults.sh PROGRAM sites   every place in the sources that calls, once
#
# Last line: S call sites, N failures injected, B bad endings.
set -u
program=$(realpath "$1") mode=${2:-all}
[ -d "${TMPDIR:=/dev/shm}" ] && [ -w "$TMPDIR" ] || TMPDIR=/tmp
folder=$(mktemp -d "$TMPDIR/faults.XXXXXX") && cd "$folder" || exit 1
trap 'umount "$folder/small" 2>/dev/null; rm -rf "$folder"' EXIT
injected=0 bad=0 which_saves=last
if [ "$mode" = all ]; then which_saves='last best'; fi
: >sites

# ------------------------------------------------------------------------------------------------
# data and runs

le() { local i x=$1; for ((i = 0; i < $2; i++)); do printf "\\x$(printf %02x $((x >> 8 * i & 255)))"; done; }
tokens() { le 20240520 4; le 1 4; le "$1" 4; head -c 1012 /dev/zero; local i; for ((i = 0; i < $1; i++)); do le $((i * i % 97)) 2; done; }
awk 'BEGIN { for (s = 7; n < 3000; n++) { s = (s * 1103 + 12345) % 65536; printf "%c", s % 7 ? 97 + s % 19 : s % 3 ? 32 : 10 } }' >text.txt
tokens 600 >part-0.bin && tokens 500 >part-1.bin && tokens 200 >val.bin
printf '# two workers\n0 0 500\n1 300 1100\n' >ranges
printf '0.5 0.25 0.25\n0.25 0.5 0.25\n0.25 0.25 0.5\n' >graph

model='--layers 1 --heads 2 --width 16 --context 8 --threads 2 --quiet --eval-every 0 --log-every 1'
train="--data text.txt $model --batch 4 --workers 2 --out out"
old="$train --save-every 1 --seed 5 --steps 2" # what lies in OUT beforehand

# NAME | what makes OUT | the run
rows=(
    "threads|$old|$train --steps 2 --overwrite"
    "processes|$old|$train --steps 2 --overwrite --backend processes"
    "resume|$old|--resume --steps 4 --save-every 0 --quiet --out out"
    "resume by processes|$old --backend processes --keep 3|--resume --steps 3 --quiet --out out"
    "fallback|$old; truncate -s 200 out/last/worker-1.safetensors|--resume --steps 3 --save-every 0 --quiet --out out"
    "error feedback|$old|$train --steps 1 --overwrite --method ef21-muon --up topk:0.2 --down rankk:0.3"
    "gossip|$old|--data text.txt $model --batch 6 --workers 3 --out out --steps 1 --overwrite --method demuon --topology file:graph --shards dirichlet:1"
    "token shards||--data part-*.bin --val-data val.bin --shards file:ranges $model --width 2 --heads 1 --batch 4 --workers 2 --out out --steps 1"
    "sample|$old|--sample 20 --prompt a --out out"
    "eval|$old|--eval --from best --out out"
    "dry run||--dry-run $train"
    "list||--list topologies"
    "help||--help"
)

without_counters() { sed 's/\(steps [0-9]*\).*/\1/' "$1"; }
without_time() { sed 's/seconds [0-9.]*//' "$1"; }
loss_of() { "$program" --eval --out out --from "$1" 2>&1 | sed '/; going on from .* the save of step/d'; }
# generations WHICH: the loss of every save that OUT/WHICH may point at
generations() {
    local save
    mkdir -p one
    for save in out/."$1".*; do
        ln -sfn "$folder/$save" one/"$1"
        "$program" --eval --out one --from "$1" 2>/dev/null
    done
}
site_name() { addr2line -s -e "$program" "$1" 2>/dev/null || echo "$1"; }

complain() {
    bad=$((bad + 1))
    read -r number call address <log || call='' address=0
    printf 'BAD: %s: %s\n     %s, %s %s at %s; status %s: %s\n' "$name" "$1" "$kind" "${number:-limit}" "$call" \
        "$(site_name "$address")" "$status" "$(head -c 600 stderr)"
}

# run COMMAND...: into status, stdout, stderr; a run that hangs is killed, and what it left as well
run() {
    bash -c 'echo $$ >group; exec timeout -s KILL 5 "$@"' - "$@" >stdout 2>stderr </dev/null
    status=$?
    local group
    read -r group <group # timeout leads a group of its own
    orphans=$(pgrep -g "$group" | wc -l)
    if [ "$orphans" != 0 ]; then kill -KILL -- "-$group" 2>/dev/null; fi
}

restore() { rm -rf out; if [ -d pristine ]; then cp -a pristine out; fi; }

# what every run must do, whatever failed
judge() {
    injected=$((injected + 1))
    if [ "$orphans" != 0 ]; then complain "$orphans processes are left"; fi
    case $status in
    0)  without_time stdout | cmp -s - reference.stdout || complain 'another result than without the failure'
        if [ "$kind" = error ] && grep -qE ' (write|fsync|rename|symlink) ' log; then complain 'what did not reach the disk is not told'; fi
        if [ -d reference/last ]; then cmp -s reference/last/model.safetensors out/last/model.safetensors || complain 'another model'; fi ;;
    1)  sed -i '/; going on from .* the save of step/d' stderr # that is told beforehand
        if [ "$(wc -l <stderr)" != 1 ] || ! grep -q '^train_gpt: .\{20,\}' stderr; then complain 'not one sentence'; fi ;;
    137) complain 'hangs' ;;
    *)  complain 'neither 0 nor 1' ;;
    esac
    if [ -d pristine ]; then
        for which in $which_saves; do
            local found
            found=$(loss_of $which)
            if ! grep -qxF "$found" losses.$which; then complain "afterwards OUT/$which is not what it was: $found"; fi
        done
    fi
    if [ "$status" = 1 ] && [ -n "$saves" ]; then # the next run mends what this one left
        run "$program" "${arguments[@]}" $([ -d pristine ] || echo --overwrite)
        if [ "$status" != 0 ] || ! cmp -s <(without_counters stdout) <(without_counters reference.stdout); then complain 'the next run does not go on'; fi
        if [ -n "$(find out -name '*.tmp' -o -name '.*.link')" ]; then complain "left behind: $(find out -name '*.tmp' -o -name '.*.link')"; fi
    fi
}

# prepare ROW: OUT as it is before, the result without failures, and the losses that may stand there
prepare() {
    local before
    IFS='|' read -r name before arguments <<<"$1"
    read -ra arguments <<<"${arguments//part-\*.bin/part-?.bin}"
    rm -rf pristine reference out
    if [ -n "$before" ]; then
        "$program" ${before%%;*} >stdout 2>stderr || { echo "cannot prepare: $(cat stderr)"; exit 1; }
        case $before in *\;*) eval "${before#*;}" ;; esac
        mv out pristine
    fi
    restore
    for which in last best; do : >losses.$which; if [ -d pristine ]; then generations $which >losses.$which; fi; done
    kind=none
    : >log
    run "$program" "${arguments[@]}"
    if [ "$status" != 0 ]; then complain 'fails without a failure'; return 1; fi
    without_time stdout >reference.stdout
    saves=$(if [ -d out ] && [ ! -d pristine -o "$(cat out/last/model.safetensors 2>/dev/null | cksum)" != "$(cat pristine/last/model.safetensors 2>/dev/null | cksum)" ]; then echo yes; fi)
    if [ -d pristine ]; then for which in last best; do generations $which >>losses.$which; done; fi
    if [ -d out ]; then mv out reference; fi
}

# ------------------------------------------------------------------------------------------------
# the n-th call

# the numbers of the calls to fail: all, or one of every site that no row before has had
turns() {
    restore
    rm -f trace
    FAULT_KIND=$kind FAULT_TRACE=$folder/trace run "$program" "${arguments[@]}"
    if [ "$mode" = all ]; then
        awk '$2 !~ /^(f?put|f?printf|fwrite|getc)/ || seen[$2 $3]++ < 5 { print $1 }' trace
    else
        awk -v kind="$kind" 'FILENAME == "sites" { seen[$0] = 1; next } { key = kind " " $2 " " $3 } !seen[key]++ { print $1 }' sites trace
    fi
}

# fail N: does the run make so many calls?
fail() {
    restore
    : >log
    FAULT_N=$1 FAULT_KIND=$kind FAULT_LOG=$folder/log run "$program" "${arguments[@]}"
    [ -s log ] || return 1
    awk -v kind="$kind" '{ print kind, $2, $3 }' log >>sites
    judge
}

touch trace
for row in "${rows[@]}"; do
    prepare "$row" || continue
    begin=$SECONDS first=$injected
    for kind in error eintr short; do
        for n in $(turns); do fail "$n" || break; done
    done
    printf '%-20s %4d failures, %3d s\n' "$name" $((injected - first)) $((SECONDS - begin))
done

# ------------------------------------------------------------------------------------------------
# no room, no files, no memory

# limit NAME COMMAND...: a run that may fail in one sentence
limit() {
    kind=$1
    shift
    : >log
    restore
    run "$@"
    judge
}

limited=("${rows[0]}")
if grep -q __asan_init "$program"; then limited=(); fi # the sanitizers want files and memory themselves
if [ "$mode" = all ] && [ ${#limited[@]} != 0 ]; then limited+=("${rows[1]}" "${rows[3]}"); fi
for row in "${limited[@]}"; do
    prepare "$row" || continue
    first=$injected
    for kilobytes in 1 2 4 8 16 32; do
        limit "files of $kilobytes KB" bash -c "ulimit -f $kilobytes; exec \"\$@\"" - "$program" "${arguments[@]}"
    done
    for ((files = 3; files < 20; files += 1 + (files > 8) * 3)); do
        bash -c "ulimit -n $files; exec \"\$@\"" - "$program" --version >/dev/null 2>&1 || continue
        limit "$files open files" bash -c "ulimit -n $files; exec \"\$@\"" - "$program" "${arguments[@]}"
    done
    for ((megabytes = 4, step = $([ "$mode" = all ] && echo 3 || echo 17); megabytes < 200; megabytes += step)); do
        bash -c "ulimit -v $((megabytes << 10)); exec \"\$@\"" - "$program" --version >/dev/null 2>&1 || continue
        limit "memory of $megabytes MB" bash -c "ulimit -v $((megabytes << 10)); exec \"\$@\"" - "$program" "${arguments[@]}"
    done
    for place in out/.last.0 out/.last.1 out/.last.link out/log.csv out/command.txt out/.log.csv.tmp; do
        kind="a folder in the way: $place"
        restore
        if [ -e "$place" ] && [ ! -f "$place" ]; then continue; fi
        rm -f "$place"
        mkdir "$place" && : >"$place/file"
        saves= # what a user put there is the user's to remove
        run "$program" "${arguments[@]}"
        judge
    done
    mkdir -p small
    if mount -t tmpfs -o size=300k tmpfs small 2>/dev/null; then
        for kilobytes in 300 250 200 150 100 50 0; do
            kind="a disk with $kilobytes KB left"
            restore
            cp -a out small/out 2>/dev/null && rm -rf out && ln -s small/out out
            head -c $((kilobytes < 300 ? 300 - kilobytes : 0))k /dev/zero >small/filler 2>/dev/null
            saves=
            run "$program" "${arguments[@]}"
            judge
            rm -rf small/*
        done
        umount small
    else
        echo 'note: no small disk here: mount is not permitted'
    fi
    printf '%-20s %4d limits\n' "$name" $((injected - first))
done

sites=$(awk '{ print $2, $3 }' sites | sort -u | wc -l)
printf '%d call sites, %d failures injected, %d bad endings\n' "$sites" "$injected" "$bad"
[ "$bad" = 0 ]
