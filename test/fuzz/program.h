/* program.h - train_gpt.c as part of a fuzz target: what would end the program ends the input, what
   it keeps for ever is freed behind the input, what it says is held for checking. */
#ifndef FUZZ_PROGRAM_H
#define FUZZ_PROGRAM_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <sys/stat.h>
#include "fuzz.h"

static struct FuzzProgram {
    jmp_buf end;
    int status; /* that it ended with, -1 while it has not */
    char said[8192];
    FILE *told;
    void *held[32];
    size_t holds;
} fuzz_program;

__attribute__((noreturn)) static void fuzz_exit(int status) {
    fuzz_program.status = status;
    longjmp(fuzz_program.end, 1);
}

static void *fuzz_allocate(size_t align, size_t bytes) {
    if (bytes > (size_t)1 << 27 || fuzz_program.holds == 32) return NULL;
    return fuzz_program.held[fuzz_program.holds++] = aligned_alloc(align, bytes);
}

#define exit fuzz_exit
#define aligned_alloc fuzz_allocate
#undef stderr
#define stderr fuzz_program.told
#define main train_gpt_main
#pragma clang diagnostic ignored "-Wunused-function"
#include "train_gpt.c"
#undef main

/* Run part of the program; it may end itself, with one sentence without control characters. */
static void fuzz_run(void (*part)(void *), void *context) {
    struct FuzzProgram *p = &fuzz_program;
    memset(p->said, 0, sizeof p->said);
    p->told = fmemopen(p->said, sizeof p->said, "w");
    p->status = -1;
    if (!p->told) abort();
    if (setjmp(p->end) == 0) part(context);
    fclose(p->told);
    size_t length = strlen(p->said);
    FUZZ_CHECK((p->status == -1) == !length);
    for (size_t i = 0; i + 1 < length; i++) FUZZ_CHECK((unsigned char)p->said[i] >= 32);
    FUZZ_CHECK(!length || p->said[length - 1] == '\n');
    while (p->holds) free(p->held[--p->holds]);
}

/* A folder of this process, in memory where run.sh says so; run.sh removes it. */
static const char *fuzz_folder(void) {
    static char folder[200];
    const char *where = getenv("TMPDIR");
    if (*folder) return folder;
    snprintf(folder, sizeof folder, "%.150s/fuzz_XXXXXX", where ? where : "/tmp");
    if (!mkdtemp(folder)) abort();
    setenv("GEMM_ISA", "portable", 1); /* another may be tried in a child process */
    return folder;
}

#endif
