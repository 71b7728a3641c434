#   make             the program and its library      make help    every target, and these variables
#   CC=clang         another compiler                 NATIVE=0     code for any CPU of this family
#   METHOD=muon      train with another method        TRAIN='...'  further flags of make train
#   MPICC=mpicc.mpich   another MPI                   EXTRA='...'  further flags of the compiler
#   NVCC=/path/nvcc  another CUDA toolkit             GPU='...'    its targets, as nvcc's -gencode
#   PREFIX=/usr      install there                    DESTDIR=DIR  as if DIR were the root
# What was built with other values stays: make clean first.

MPICC = mpicc
NVCC = nvcc
GPU = -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
NATIVE = 1
OPT = -O3
FIX = $(if $(findstring clang,$(shell $(CC) --version)),,-fno-ipa-ra) # else gcc 12 forgets a vzeroupper, and on a Xeon log() takes 110 ns instead of 3
WARN = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
BASE = -std=c11 -D_GNU_SOURCE -I. $(OPT) -fopenmp-simd -ffp-contract=off -fno-math-errno -fno-trapping-math $(FIX) -pthread $(WARN) $(EXTRA)
CFLAGS = $(BASE) $(if $(filter 1,$(NATIVE)),-march=native)
LDLIBS = -lm
VERSION = $(shell sed -n 's/^.define SM_VERSION "\(.*\)"/\1/p' optimizer.h)
SONAME = libsignmuon.so.$(firstword $(subst ., ,$(VERSION)))
PREFIX = /usr/local
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
TESTS = $(patsubst test/%.c,build/test/%.o,$(filter-out test/mpi.c test/faults.c test/cuda.c,$(wildcard test/*.c)))
OPTIMIZER = build/signmuon.o build/optimizer.o build/methods.o
CLAIMS = $(patsubst %.c,build/%.o,$(wildcard bench/claims/*.c))

all: train_gpt libsignmuon.a libsignmuon.so ## the program, and the optimizer as a library

build/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
build/test%.o: OPT = -O1 # compiling takes longer than testing
build/lib/%.o: %.c # of the library: it runs on any CPU of the family
	@mkdir -p $(@D)
	$(CC) $(BASE) -fPIC -fno-semantic-interposition -MMD -MP -c -o $@ $<
-include $(wildcard build/*.d build/*/*.d build/*/*/*.d)

train_gpt: build/train_gpt.o $(OPTIMIZER)
test_signmuon: build/test_signmuon.o $(OPTIMIZER) $(TESTS)
data/play: build/data/play.o
bench/claims/claims: $(CLAIMS) $(OPTIMIZER)
bench/bench bench/scale examples/federated: %: build/%.o $(OPTIMIZER)
train_gpt test_signmuon data/play bench/claims/claims bench/bench bench/scale examples/federated:
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

libsignmuon.a: $(OPTIMIZER:build/%=build/lib/%)
	$(AR) rcs $@ $^
libsignmuon.so: $(OPTIMIZER:build/%=build/lib/%)
	$(CC) $(BASE) -shared -Wl,-soname,$(SONAME) -o $@ $^ $(LDLIBS)
mpi: train_gpt_mpi examples/federated_mpi ## the programs over MPI: mpirun -n 4 train_gpt_mpi (libopenmpi-dev or libmpich-dev)
train_gpt_mpi examples/federated_mpi: %_mpi: %.c $(OPTIMIZER:build/%.o=%.c) $(wildcard *.h lib/*.h)
	OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(CFLAGS) -DCOMM_MPI -o $@ $(filter %.c,$^) $(LDLIBS)

cuda: train_gpt_cuda ## the program for NVIDIA GPUs (the CUDA toolkit, 12 or newer)
build/cuda/%.o: lib/%.cu $(wildcard lib/*cuda*)
	@mkdir -p $(@D) && command -v $(NVCC) >/dev/null || { echo "no $(NVCC) here: make cuda takes NVIDIA's CUDA toolkit; NVCC=/path/nvcc names one" >&2; exit 1; }
	$(NVCC) -O3 -std=c++17 $(GPU) -I. -c -o $@ $<
CUDA = build/cuda/gpt_cuda.o build/cuda/signmuon_cuda.o $(OPTIMIZER)
train_gpt_cuda: build/train_gpt.o $(CUDA)
test_cuda: build/test/cuda.o build/test/test.o $(CUDA)
train_gpt_cuda test_cuda:
	$(NVCC) -Wno-deprecated-gpu-targets -o $@ $^ -lcublasLt $(LDLIBS) -Xcompiler -pthread

# The text to train on: TinyShakespeare, or without it the offline corpus.
TEXT = $$(sh data/tinyshakespeare.sh || { MAKEFLAGS= $(MAKE) -s data/play >&2 && data/play data/offline.txt >&2 && echo data/offline.txt; })
METHOD = signmuon --aux sign --ns polar-express3
NANOGPT = echo 'nanoGPT publishes val_loss 1.88 for this model, batch and number of steps on TinyShakespeare (20 random batches, AdamW)'

train: train_gpt ## train on TinyShakespeare by majority vote, with samples
	text=$(TEXT) && ./train_gpt --data "$$text" --method $(METHOD) --workers 3 --threads 2 --out out --overwrite --sample-every 1000 $(TRAIN) && \
	if [ "$$text" != data/offline.txt ]; then $(if $(TRAIN),:,$(NANOGPT)); else echo 'no model can come below the exact entropy of this text'; fi
	@echo "compare: make train METHOD=muon TRAIN='--out out/muon', then make plots LOGS='out/log.csv out/muon/log.csv'"
federated: examples/federated ## eleven clients train an image classifier by majority vote (Fashion-MNIST, or drawn digits)
	data=$$(sh data/fashion.sh) ; examples/federated $${data:+--data $$data} $(TRAIN)
test: train_gpt test_signmuon examples/federated data/play libsignmuon.a libsignmuon.so ## every test (under a minute; needs nothing but the compiler)
	CC="$(CC)" EXTRA="$(EXTRA)" ./test_signmuon

CHECKS = gcc clang musl mpi cuda isa neon asan tsan valgrind faults tidy
check: ## all tests again: gcc, clang, musl, both MPIs, every instruction set, sanitizers, valgrind, failing calls
	+@for c in $(CHECKS); do sh test/check.sh $$c || exit 1; done
check-%: ## one of them
	+@sh test/check.sh $*
fuzz: ## libFuzzer on every reader of foreign bytes, SECONDS=60 each (clang)
	+@sh test/check.sh fuzz $(or $(SECONDS),60)
torture: train_gpt test_signmuon ## workers and programs killed at random, every call to the outside world failing once (an hour)
	+bash test/torture.sh && sh test/check.sh faults all

bench: bench/bench train_gpt ## kernels and steps in percent of this machine's limits: docs/BENCH.md (two minutes)
	./bench/bench
scale: bench/scale train_gpt ## steps on 8 to 100,000 workers, predicted from rates measured here: docs/SCALE.md (gnuplot)
	./bench/scale && gnuplot bench/scale.gp
claims: bench/claims/claims ## what the papers claim, recomputed: docs/CLAIMS.md (ten minutes; gnuplot)
	./bench/claims/claims && gnuplot bench/claims/claims.gp
speedrun: train_gpt ## the lowest loss in ten minutes on two cores: docs/SPEEDRUN.md
	text=$(TEXT) && sh bench/speedrun.sh "$$text"
bytes gossip byzantine network: %: train_gpt ## studies: bytes to a loss; graphs; attacks; slow wires (half an hour each)
	text=$(TEXT) && sh bench/$@.sh "$$text" >build/$@.md && mv build/$@.md docs/$(shell echo $@ | tr a-z A-Z).md

LOGS = $(wildcard out/log.csv)
plots: ## LOGS='a/log.csv b/log.csv' as SVG in plots/: loss against step, bytes sent, wire time (gnuplot)
	@mkdir -p plots && gnuplot -e "logs='$(LOGS)'; to='plots'" bench/plot.gp

TO = $(DESTDIR)$(PREFIX)
HEADERS = optimizer.h signmuon.h ef21muon.h demuon.h
install: all ## into $(DESTDIR)$(PREFIX), with a file for pkg-config
	install -d "$(TO)/bin" "$(TO)/lib/pkgconfig" "$(TO)/include"
	install train_gpt "$(TO)/bin"
	install -m 644 libsignmuon.a "$(TO)/lib"
	install libsignmuon.so "$(TO)/lib/libsignmuon.so.$(VERSION)"
	cd "$(TO)/lib" && ln -sf libsignmuon.so.$(VERSION) $(SONAME) && ln -sf $(SONAME) libsignmuon.so
	install -m 644 $(HEADERS) "$(TO)/include"
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: signmuon' 'Description: distributed Muon on one bit per weight' 'Version: $(VERSION)' 'Cflags: -I"$${prefix}/include"' 'Libs: -L"$${prefix}/lib" -lsignmuon -lm -pthread' | install -m 644 /dev/stdin "$(TO)/lib/pkgconfig/signmuon.pc"
uninstall: ## what install has put there
	rm -f "$(TO)/bin/train_gpt" "$(TO)/lib/libsignmuon."* "$(TO)/lib/pkgconfig/signmuon.pc" $(HEADERS:%="$(TO)/include/%")

clean: ## remove what was built
	rm -rf train_gpt train_gpt_mpi train_gpt_cuda test_cuda test_signmuon examples/federated examples/federated_mpi data/play bench/bench bench/scale bench/claims/claims build *.a *.so
help: ## this list
	@sed -n '/^$$/q; s/^# *//p' Makefile
	@echo
	@sed -n 's/^\([a-z][a-z %-]*\):.*## /\1\t/p' Makefile | expand -t 16

.PHONY: all mpi cuda train federated test check fuzz torture bench scale claims speedrun bytes gossip byzantine network plots install uninstall clean help
