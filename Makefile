# make            the program and its library          make help   every target
#   MPICC=mpicc.mpich  another MPI
#   CC=clang      another compiler                     NATIVE=0    code for any CPU of this family
#   TRAIN='...'   flags after those of make train

CC = gcc
MPICC = mpicc
NATIVE = 1
OPT = -O3
WARN = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
CFLAGS = -std=c11 -D_GNU_SOURCE $(OPT) $(if $(filter 1,$(NATIVE)),-march=native) -fopenmp-simd -ffp-contract=off -fno-math-errno -fno-trapping-math -pthread $(WARN) $(EXTRA)
LDLIBS = -lm
HEADERS = signmuon.h ef21muon.h demuon.h comm.h gemm.h noise.h dataloader.h safetensors.h
PREFIX = /usr/local

all: train_gpt libsignmuon.a libsignmuon.so ## the program, and the optimizer as a library

train_gpt: train_gpt.c signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -o $@ train_gpt.c signmuon.c $(LDLIBS)

mpi: train_gpt_mpi ## the program over MPI: mpirun -n 4 train_gpt_mpi (libopenmpi-dev or libmpich-dev)

train_gpt_mpi: train_gpt.c signmuon.c $(HEADERS)
	OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(CFLAGS) -DCOMM_MPI -o $@ train_gpt.c signmuon.c $(LDLIBS)

signmuon.o: signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -fPIC -c -o $@ signmuon.c

libsignmuon.a: signmuon.o
	$(AR) rcs $@ signmuon.o

libsignmuon.so: signmuon.o
	$(CC) $(CFLAGS) -shared -o $@ signmuon.o $(LDLIBS)

data/play: data/play.c
	$(CC) $(CFLAGS) -o $@ data/play.c $(LDLIBS)

# The text to train on: TinyShakespeare, or without it the offline corpus.
TEXT = $$(sh data/tinyshakespeare.sh || { $(MAKE) -s data/play >&2 && data/play data/offline.txt >&2 && echo data/offline.txt; })

train: train_gpt ## train on TinyShakespeare by majority vote, then print a sample
	text=$(TEXT) && ./train_gpt --data "$$text" --method signmuon --aux sign --workers 3 --threads 2 --backend threads --out out --overwrite $(TRAIN)
	@echo "nanoGPT publishes val_loss 1.88 for this model, batch and number of steps (20 random batches, AdamW)"
	@./train_gpt --sample 300 --out out

sample: train_gpt ## 300 characters from the last training run
	@./train_gpt --sample 300 --out out

test_signmuon: test_signmuon.c train_gpt.c signmuon.c data/play.c $(HEADERS)
	$(CC) $(CFLAGS) -o $@ test_signmuon.c signmuon.c $(LDLIBS)

test: test_signmuon train_gpt ## every test (under a minute; needs nothing but the compiler)
	./test_signmuon

# train_gpt whose n-th call to the outside world fails, as test/faults.c says
WRAPPED = $(shell awk -F', ' '/^FAIL/ { print $$2 }' test/faults.c) $(shell grep -o '__wrap_[a-z][a-z_]*' test/faults.c | sort -u | sed s/__wrap_//)
test/train_gpt_faults: test/faults.c train_gpt.c signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -g -no-pie $(foreach name,$(WRAPPED),-Wl,--wrap=$(name)) -o $@ train_gpt.c signmuon.c test/faults.c $(LDLIBS)

torture: train_gpt test/train_gpt_faults ## the long campaigns: workers and programs killed at random, every call to the outside world failing once (an hour)
	test/torture.sh
	test/faults.sh test/train_gpt_faults all

# The same tests under other compilers and watchers. Each build lies in a folder of its own.
define variant
	@mkdir -p build && rm -rf build/$@ && mkdir build/$@
	@git ls-files -z | xargs -0 cp --parents -t build/$@
endef

check: check-gcc check-clang check-mpi check-isa check-neon check-asan check-tsan check-valgrind check-faults check-tidy ## all tests again: two compilers, both MPIs, every instruction set, ASan, UBSan, TSan, valgrind, failing calls, clang-tidy

check-gcc check-clang: ## -Werror
	$(variant)
	$(MAKE) -s -C build/$@ CC=$(subst check-,,$@) EXTRA=-Werror all bench/bench bench/scale bench/problem bench/claims test

check-mpi: ## trainings over Open MPI and MPICH, where they are installed (two minutes)
	$(variant)
	$(MAKE) -s -C build/$@ OPT=-O1 train_gpt data/play
	cd build/$@ && sh test/mpi.sh

check-isa: test_signmuon train_gpt ## the kernels of older CPUs
	for isa in avx2 portable; do echo "GEMM_ISA=$$isa"; GEMM_ISA=$$isa ./test_signmuon || exit 1; done

check-neon: ## NEON, cross-compiled, in an emulator (gcc-aarch64-linux-gnu, qemu-user)
	$(variant)
	$(MAKE) -s -C build/$@ CC=aarch64-linux-gnu-gcc NATIVE=0 EXTRA='-Werror -static' test_signmuon train_gpt
	cc -o build/$@/play data/play.c -lm && cd build/$@ && ./play text 30000 && for t in isa bf16 packed symmetric newton gradients vote; do \
	    qemu-aarch64 ./test_signmuon $$t || exit 1; done && GEMM_ISA=neon qemu-aarch64 ./train_gpt --data text --quiet --layers 1 --width 32 --context 16 --workers 3 --aux sign --steps 5 --out o

check-asan: ## AddressSanitizer and UndefinedBehaviorSanitizer
	$(variant)
	$(MAKE) -s -C build/$@ CC=gcc OPT=-O1 EXTRA='-g -fsanitize=address,undefined -fno-sanitize-recover=all' test

check-tsan: ## ThreadSanitizer, on trainings by threads and by processes
	$(variant)
	$(MAKE) -s -C build/$@ CC=clang OPT=-O1 EXTRA='-Werror -g -fsanitize=thread' train_gpt data/play
	cd build/$@ && data/play text 100000 && for b in threads processes; do \
	    for m in "signmuon --aux sign" ef21-muonsign "demuon --topology exponential"; do TSAN_OPTIONS=halt_on_error=1 ./train_gpt \
	    --data text --quiet --layers 1 --width 32 --context 16 --workers 3 --threads 2 --backend $$b --method $$m --steps 20 \
	    --eval-every 10 --out $$b --overwrite || exit 1; done; \
	    TSAN_OPTIONS=halt_on_error=1 ./train_gpt --data text --quiet --layers 1 --width 32 --context 16 --backend $$b --method signum --aux same \
	    --workers 7 --batch 14 --adversaries 3 --expel --expel-after 9 --steps 30 --out $$b --overwrite || exit 1; done

check-valgrind: ## valgrind on a small training and a sample
	$(variant)
	$(MAKE) -s -C build/$@ NATIVE=0 OPT=-O1 EXTRA=-g train_gpt data/play
	cd build/$@ && data/play text 30000 && for c in "--workers 2 --aux sign --steps 3" "--sample 20" \
	    "--workers 3 --method ef21-muon --up rankk:0.2+natural --down topk:0.1 --steps 3 --overwrite" \
	    "--workers 2 --method demuon --shards dirichlet:1 --gradient-noise student:2,1e-3 --steps 3 --overwrite"; do GEMM_ISA=avx2 \
	    valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite ./train_gpt --data text --quiet \
	    $$(case "$$c" in --w*) echo --layers 1 --width 32 --context 16;; esac) $$c --out o || exit 1; done

check-faults: ## every place that calls the outside world sees its call fail; leaks under ASan
	$(variant)
	$(MAKE) -s -C build/$@ OPT=-O1 EXTRA='-Werror -fsanitize=address,undefined -fno-sanitize-recover=all' test/train_gpt_faults
	cd build/$@ && test/faults.sh test/train_gpt_faults sites

check-tidy: ## clang-tidy with .clang-tidy
	clang-tidy --quiet train_gpt.c signmuon.c data/play.c bench/bench.c bench/scale.c bench/problem.c bench/claims.c bench/claims_gpt.c -- $(filter-out -W%,$(CFLAGS)) -I.

# libFuzzer comes with clang; Debian: apt-get install clang libclang-rt-dev
FUZZ_SECONDS = 60
FUZZ_TARGETS = $(patsubst test/fuzz/%.c,%,$(filter-out %/make_seeds.c,$(wildcard test/fuzz/*.c)))
FUZZ_BUILD = clang $(CFLAGS) -O2 -g -Wno-pass-failed -I. -fsanitize=fuzzer,address,undefined,float-cast-overflow -fno-sanitize-recover=all

build/fuzz/%: test/fuzz/%.c test/fuzz/fuzz.h test/fuzz/program.h train_gpt.c signmuon.c $(HEADERS)
	@mkdir -p $(@D)
	$(FUZZ_BUILD) -o $@ $< $(if $(filter checkpoint flags log,$*),signmuon.c) $(LDLIBS)

fuzz: ## libFuzzer on every reader of foreign bytes, FUZZ_SECONDS=60 each (clang)
	@mkdir -p build/fuzz && echo 'int LLVMFuzzerTestOneInput(const char *p, long n); int LLVMFuzzerTestOneInput(const char *p, long n) { return p && n < 0; }' \
	    | clang -x c -fsanitize=fuzzer,address,undefined -o build/fuzz/probe - >build/fuzz/probe.log 2>&1 || \
	    { echo 'make fuzz: clang with its fuzzer runtime is not here (see build/fuzz/probe.log); Debian has it in clang and libclang-rt-dev' >&2; exit 1; }
	@$(MAKE) -s $(FUZZ_TARGETS:%=build/fuzz/%)
	@sh test/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

fuzz-seeds: test/fuzz/make_seeds.c train_gpt.c signmuon.c $(HEADERS)
	@mkdir -p build
	$(CC) $(CFLAGS) -I. -o build/make_seeds $< signmuon.c $(LDLIBS)
	build/make_seeds

bench/bench: bench/bench.c bench/measure.h bench/roofline.h train_gpt.c signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -I. -o $@ bench/bench.c signmuon.c $(LDLIBS) -ldl

bench: bench/bench train_gpt ## kernels and steps in percent of this machine's limits, as docs/BENCH.md (two minutes)
	@mkdir -p docs
	./bench/bench

bench/scale: bench/scale.c bench/measure.h train_gpt.c signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -I. -o $@ bench/scale.c signmuon.c $(LDLIBS)

scale: bench/scale train_gpt ## steps on 8 to 100,000 workers, predicted from rates measured here, as docs/SCALE.md (two minutes; gnuplot)
	@mkdir -p docs
	./bench/scale
	gnuplot bench/scale.gp

bench/problem: bench/problem.c bench/problem.h signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -I. -o $@ bench/problem.c $(LDLIBS)

bench/claims: $(wildcard bench/claims*.[ch]) bench/problem.c bench/problem.h train_gpt.c signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -I. -o $@ bench/claims.c bench/claims_gpt.c $(LDLIBS)

claims: bench/claims bench/problem ## what the papers claim, recomputed, as docs/CLAIMS.md and figures (four minutes; gnuplot)
	@mkdir -p docs
	./bench/claims
	gnuplot bench/claims.gp

LOGS = $(wildcard out/log.csv)
plots: ## LOGS='a/log.csv b/log.csv' as SVG in plots/: loss against step, bytes sent, wire time (gnuplot)
	@mkdir -p plots
	gnuplot -e "logs='$(LOGS)'; to='plots'" bench/plot.gp
	@ls plots/*.svg

table: train_gpt ## every method on the recipe of make train, as docs/METHODS.md (half an hour on two cores)
	@mkdir -p docs
	text=$(TEXT) && sh bench/methods.sh "$$text" | tee docs/METHODS.md

bytes: train_gpt ## bytes to a validation loss, compressed and not, as docs/BYTES.md (an hour on two cores)
	@mkdir -p docs
	text=$(TEXT) && sh bench/bytes.sh "$$text" >bytes.tmp && mv bytes.tmp docs/BYTES.md

gossip: train_gpt ## DeMuon and its baselines on three graphs, as docs/GOSSIP.md (half an hour on two cores)
	@mkdir -p docs
	text=$(TEXT) && sh bench/gossip.sh "$$text" >gossip.tmp && mv gossip.tmp docs/GOSSIP.md

liars: train_gpt ## workers that lie, and what a vote and a mean make of it, as docs/LIARS.md (an hour on two cores)
	@mkdir -p docs
	text=$(TEXT) && sh bench/liars.sh "$$text" >liars.tmp && mv liars.tmp docs/LIARS.md

network: train_gpt_mpi ## steps over TCP at four rates between network namespaces, as docs/NETWORK.md (fifteen minutes; root, Open MPI, gnuplot)
	@mkdir -p docs
	text=$(TEXT) && sh bench/network.sh "$$text" >network.tmp && mv network.tmp docs/NETWORK.md
	gnuplot bench/network.gp

install: all ## into PREFIX (/usr/local)
	install -d $(PREFIX)/bin $(PREFIX)/lib $(PREFIX)/include
	install train_gpt $(PREFIX)/bin
	install -m 644 libsignmuon.a $(PREFIX)/lib
	install libsignmuon.so $(PREFIX)/lib
	install -m 644 signmuon.h ef21muon.h demuon.h comm.h gemm.h $(PREFIX)/include

clean: ## remove what was built
	rm -rf train_gpt train_gpt_mpi test_signmuon test/train_gpt_faults data/play bench/bench bench/scale bench/problem bench/claims build *.o *.a *.so

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

.PHONY: all mpi train sample test check check-gcc check-clang check-mpi check-isa check-neon check-asan check-tsan check-valgrind check-faults check-tidy torture fuzz fuzz-seeds bench claims bytes gossip liars scale network plots table install clean help
