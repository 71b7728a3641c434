# make            the program and its library          make help   every target
#   CC=clang      another compiler                     NATIVE=0    code for any CPU of this family
#   TRAIN='...'   flags after those of make train

CC = gcc
NATIVE = 1
OPT = -O3
WARN = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
CFLAGS = -std=c11 -D_GNU_SOURCE $(OPT) $(if $(filter 1,$(NATIVE)),-march=native) -fopenmp-simd -ffp-contract=off -pthread $(WARN) $(EXTRA)
LDLIBS = -lm
HEADERS = signmuon.h comm.h gemm.h dataloader.h safetensors.h
PREFIX = /usr/local

all: train_gpt libsignmuon.a libsignmuon.so ## the program, and the optimizer as a library

train_gpt: train_gpt.c signmuon.c $(HEADERS)
	$(CC) $(CFLAGS) -o $@ train_gpt.c signmuon.c $(LDLIBS)

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
	text=$(TEXT) && ./train_gpt --data "$$text" --method signmuon --aux sign --workers 3 --backend threads --out out --overwrite $(TRAIN)
	@echo "nanoGPT publishes val_loss 1.88 for this model, batch and number of steps (20 random batches, AdamW)"
	@./train_gpt --sample 300 --out out

sample: train_gpt ## 300 characters from the last training run
	@./train_gpt --sample 300 --out out

test_signmuon: test_signmuon.c train_gpt.c signmuon.c data/play.c $(HEADERS)
	$(CC) $(CFLAGS) -o $@ test_signmuon.c signmuon.c $(LDLIBS)

test: test_signmuon train_gpt ## every test (under a minute; needs nothing but the compiler)
	./test_signmuon

clean: ## remove what was built
	rm -rf train_gpt test_signmuon data/play build *.o *.a *.so

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

.PHONY: all train sample test clean help
