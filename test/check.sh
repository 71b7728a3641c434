#!/bin/sh
# check.sh NAME [ARGUMENT] - the tests again under another compiler or watcher, in build/check-NAME.
#   gcc clang    -Werror, everything built, all tests      isa    the kernels of older CPUs
#   asan         AddressSanitizer and UBSan, all tests     neon   NEON, cross-compiled, in an emulator
#   tsan         ThreadSanitizer on trainings              tidy   clang-tidy with .clang-tidy
#   valgrind     small trainings                           mpi    both MPIs, where they are installed
#   faults       calls to the outside world fail: once for every place that calls, or "all"
#   musl         Alpine's libc, where musl-gcc is installed
#   cuda         the GPU's kernels on this CPU, with sanitizers too; and nvcc, where it is installed
#   fuzz         libFuzzer on every reader of foreign bytes, ARGUMENT seconds each
set -eu
cd "$(dirname "$0")/.."
name=$1 argument=${2:-}
dir=build/check-$name
small="--quiet --layers 1 --heads 2 --width 32 --context 16 --overwrite"

# A copy of the sources, without git and without what was built.
copy() {
    rm -rf "$dir" && mkdir -p "$dir"
    tar cf - --exclude='*.o' --exclude='__pycache__' Makefile README.md LICENSE ./*.c ./*.h lib test \
        data/*.c data/*.sh bench examples docs .clang-tidy | tar xf - -C "$dir"
    cd "$dir"
}
text() { make -s data/play && data/play text "$1" >/dev/null; }

case $name in
gcc | clang)
    copy
    make -s CC="$name" EXTRA=-Werror all bench/bench bench/scale bench/claims/claims
    make -s CC="$name" EXTRA=-Werror test
    ;;
isa)
    make -s test_signmuon train_gpt data/play all
    for isa in avx2 portable; do
        echo "GEMM_ISA=$isa"
        GEMM_ISA=$isa ./test_signmuon gemm gradient model_ method polar
    done
    ;;
neon)
    copy
    cc -std=c11 -D_GNU_SOURCE -I. -o play data/play.c -lm && ./play text 30000 >/dev/null
    make -s CC=aarch64-linux-gnu-gcc NATIVE=0 EXTRA='-Werror -static' test_signmuon train_gpt
    for t in gemm_ bf16 newton gradient vote_equals; do qemu-aarch64 ./test_signmuon $t; done
    # shellcheck disable=SC2086
    GEMM_ISA=neon qemu-aarch64 ./train_gpt --data text $small --workers 3 --aux sign --steps 5 --out o
    ;;
asan)
    copy
    make -s OPT=-O1 EXTRA='-g -fsanitize=address,undefined -fno-sanitize-recover=all' test
    ;;
tsan)
    copy
    text 100000
    make -s CC=clang OPT=-O1 EXTRA='-Werror -g -fsanitize=thread' train_gpt
    for backend in threads processes; do
        for method in "signmuon --aux sign" ef21-muonsign "demuon --topology exponential"; do
            # shellcheck disable=SC2086
            TSAN_OPTIONS=halt_on_error=1 ./train_gpt --data text $small --workers 3 --threads 2 \
                --backend $backend --method $method --steps 20 --eval-every 10 --out $backend
        done
    done
    ;;
valgrind)
    copy
    text 30000
    make -s NATIVE=0 OPT=-O1 EXTRA=-g train_gpt
    for flags in "--data text $small --workers 2 --aux sign --steps 3 --sample-every 2" "--sample 20" \
        "--data text $small --workers 3 --method ef21-muon --up rankk:0.2+natural --down topk:0.1 --steps 3" \
        "--data text $small --workers 2 --method demuon --shards contiguous --steps 3"; do
        # shellcheck disable=SC2086
        GEMM_ISA=avx2 valgrind -q --error-exitcode=9 --leak-check=full \
            --errors-for-leak-kinds=definite ./train_gpt --out o $flags
    done
    ;;
musl) # Alpine's libc
    command -v musl-gcc >/dev/null || { echo "no musl-gcc here: not checked"; exit 0; }
    copy
    make -s CC=musl-gcc OPT=-O1 EXTRA=-Werror test
    ;;
tidy)
    clang-tidy --quiet train_gpt.c signmuon.c optimizer.c methods.c data/play.c examples/*.c bench/*.c bench/claims/*.c -- \
        -std=c11 -D_GNU_SOURCE -I. -pthread
    ;;
cuda)
    copy
    mkdir -p build/emulated
    make -s build/signmuon.o build/optimizer.o build/methods.o build/test/test.o build/train_gpt.o \
        build/test/cuda.o data/play EXTRA=-Werror
    emulate() { # FLAGS: the kernels as C++ for this CPU, the tests' program, the trainer
        for source in gpt_cuda signmuon_cuda; do
            g++ -std=c++17 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off -I. -DCUDA_ON_CPU $1 -x c++ \
                -c "lib/$source.cu" -o "build/emulated/$source.o"
        done
        for program in "test_cuda build/test/cuda.o build/test/test.o" "train_gpt_cuda build/train_gpt.o"; do
            # shellcheck disable=SC2086
            g++ $1 -o $program build/emulated/*.o build/signmuon.o build/optimizer.o build/methods.o -lm -pthread
        done
    }
    emulate -O2
    ./test_cuda
    CUDA_ORDER=reverse ./test_cuda cuda_gradients cuda_steps
    text 30000
    # shellcheck disable=SC2086
    for method in "adamw --accumulate 2" "signmuon --aux sign --workers 3" "ef21-muon --workers 2"; do
        flags="--data text $small --batch 6 --steps 6 --eval-every 3 --method $method"
        ./train_gpt_cuda $flags --device gpu --dtype fp32 --ns-dtype fp32 --out gpu >gpu.txt
        ./train_gpt_cuda $flags --device cpu --out cpu >cpu.txt
        ./train_gpt_cuda --eval --data text --out gpu --device cpu
        ./train_gpt_cuda --resume --quiet --steps 8 --out cpu --device gpu # across devices, both ways
        ./train_gpt_cuda --resume --quiet --steps 8 --out gpu --device cpu
        ./train_gpt_cuda --sample 5 --out cpu --device gpu
        awk '{ v[NR] = $2 } END { print v[1], v[2]; d = v[1] - v[2]; exit !(d < 2e-3 && d > -2e-3) }' cpu.txt gpu.txt
    done
    emulate "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    ./test_cuda cuda_gradients_near cuda_losses cuda_accumulates cuda_steps
    if command -v nvcc >/dev/null; then make -s cuda; else echo "no nvcc here: not compiled for a GPU"; fi
    ;;
mpi)
    copy
    make -s OPT=-O1 train_gpt examples/federated data/play
    sh test/mpi.sh
    ;;
faults)
    bash test/faults.sh "${argument:-sites}"
    ;;
fuzz)
    sh test/fuzz/run.sh "${argument:-60}"
    ;;
*)
    echo "check.sh: '$name' is none of gcc clang musl isa neon cuda asan tsan valgrind tidy mpi faults fuzz" >&2
    exit 2
    ;;
esac
