/* vote.c - sign bits and their majority vote against a byte per sign. */
#include "../signmuon.h"
#include "test.h"

#include <sys/wait.h>
#include <unistd.h>

static int bit(const uint64_t *bits, size_t i) { return bits[i / 64] >> i % 64 & 1; }

static void fill_random(uint64_t *bits, size_t words, uint64_t key) {
    for (size_t w = 0; w < words; w++) bits[w] = test_hash(key, w);
}

/* the coin of entry i, by the header's promise: splitmix64's output for word i / 64 */
static int coin(uint64_t key, size_t i) {
    uint64_t x = key + 0x9e3779b97f4a7c15u * (i / 64 + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return bit(&x, i % 64);
}

/* ------------------------------------------------------------------------------------------------
 * bits */

TEST(packed_signs_unpack_at_every_length) {
    static const size_t sizes[] = {1, 2, 63, 64, 65, 127, 128, 129, 200, 640, 641};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s], words = (n + 63) / 64, last = n % 64; /* malloc: exact for ASan */
        float *x = malloc(n * sizeof *x), *back = malloc(n * sizeof *back);
        uint64_t *bits = malloc(words * 8), *present = malloc(words * 8);
        CHECK(sm_words(n) == words);
        for (int rule = SM_COIN; rule <= SM_ABSTAIN; rule++) {
            test_fill_normal(x, n, s + 1);
            for (size_t i = 0; i < n; i += 5)
                if (rule == SM_ABSTAIN) x[i] = i & 1 ? -0.0f : 0.0f;
            memset(bits, 0xff, words * 8), memset(present, 0xff, words * 8);
            sm_pack(bits, x, n, (SmZero)rule, 3);
            sm_present(present, x, n);
            sm_unpack(back, bits, rule == SM_ABSTAIN ? present : NULL, n);
            for (size_t i = 0; i < n; i++) CHECK(back[i] == (float)((x[i] > 0) - (x[i] < 0)));
            if (last) CHECK(present[words - 1] >> last == 0);
            memset(x, 0, n * sizeof *x); /* fills do not reach behind the end */
            sm_pack(bits, x, n, (SmZero)rule, 3);
            if (last) CHECK(bits[words - 1] >> last == 0);
        }
        free(x), free(back), free(bits), free(present);
    }
    CHECK(sm_words(0) == 0);
}

TEST(packing_reads_the_sign_of_every_float) {
    float x[10] = {1e-45f, -1e-45f, 3e38f, -3e38f, 0.0f, -0.0f, INFINITY, -INFINITY, 1, -1};
    uint64_t bits, present;
    sm_pack(&bits, x, 10, SM_ABSTAIN, 0);
    sm_present(&present, x, 10);
    CHECK(bits == 0x145 && present == 0x3cf, "%#jx %#jx", (uintmax_t)bits, (uintmax_t)present);
    sm_pack(&bits, x, 10, SM_PLUS, 0);
    CHECK(bits == 0x175, "%#jx", (uintmax_t)bits);
}

/* ------------------------------------------------------------------------------------------------
 * coins */

TEST(zero_is_a_fair_coin_keyed_by_rank) {
    enum { N = 64 * 800 + 13, WORDS = 801 };
    static float x[N];
    static uint64_t bits[4][WORDS], again[WORDS];
    const uint64_t key[4] = {sm_key(1, 1, 5), sm_key(1, 2, 5), sm_key(1, 1, 6), sm_key(2, 1, 5)};
    for (size_t i = 1; i < N; i += 3) x[i] = i & 1 ? 1.0f : -1.0f;
    for (size_t i = 2; i < N; i += 6) x[i] = -0.0f;
    for (int k = 0; k < 4; k++) { /* another rank, another step, another seed */
        double plus = 0, zeros = 0, as_first = 0;
        sm_pack(bits[k], x, N, SM_COIN, key[k]);
        for (size_t i = 0; i < N; i++) {
            int sign = bit(bits[k], i);
            CHECK(sign == (x[i] == 0 ? coin(key[k], i) : x[i] > 0));
            if (x[i] == 0) zeros++, plus += sign, as_first += sign == bit(bits[0], i);
        }
        CHECK_NEAR(plus / zeros, 0.5, 2 / sqrt(zeros)); /* four standard errors */
        if (k) CHECK_NEAR(as_first / zeros, 0.5, 2 / sqrt(zeros));
    }
    sm_pack(again, x, N, SM_COIN, key[0]);
    CHECK(memcmp(bits[0], again, sizeof again) == 0);
}

/* ------------------------------------------------------------------------------------------------
 * the vote */

enum { MOST = 1100, MOST_WORDS = 19 };
static signed char sign[MOST][MOST_WORDS * 64]; /* +1, -1, or 0 for one who abstains */
static uint64_t bits[MOST][MOST_WORDS], present[MOST][MOST_WORDS];

/* Random signs of all workers. Many entries are tied: in odd words, odd workers say the opposite of
 * the worker before them. Word 0 is unanimous. */
static void draw_signs(size_t workers, size_t words, int abstain, uint64_t key) {
    for (size_t v = 0; v < workers; v++)
        for (size_t w = 0; w < words; w++) {
            uint64_t plus = test_hash(key, v * 64 + w), zero = 0;
            if (abstain) zero = test_hash(key + 1, v * 64 + w) & test_hash(key + 2, v * 64 + w);
            if (v % 2 && w % 2) plus = ~bits[v - 1][w], zero = ~present[v - 1][w];
            if (w == 0) plus = key & 1 ? ~(uint64_t)0 : 0, zero = 0;
            bits[v][w] = plus & ~zero, present[v][w] = ~zero;
            for (size_t i = 0; i < 64; i++) {
                int here = bit(&present[v][w], i), positive = bit(&bits[v][w], i);
                sign[v][w * 64 + i] = (signed char)(!here ? 0 : positive ? 1 : -1);
            }
        }
}

/* sm_vote against the sum of the signs, for every rule; returns how many entries were tied. The
 * words may be a shard of a vote, which begins at word `first` of the whole. */
static size_t check_vote(size_t workers, size_t words, int abstain, uint64_t key, size_t first) {
    const uint64_t *signs[MOST], *presents[MOST];
    size_t tied = 0;
    for (size_t v = 0; v < workers; v++) signs[v] = bits[v], presents[v] = present[v];
    for (int ties = SM_COIN; ties <= SM_ABSTAIN; ties++) {
        uint64_t vote[MOST_WORDS + 1], decided[MOST_WORDS + 1];
        size_t wrong = 0;
        vote[words] = decided[words] = 42; /* canaries */
        sm_vote(vote, decided, signs, abstain ? presents : NULL, workers, words, (SmZero)ties, key,
                first);
        CHECK(vote[words] == 42 && decided[words] == 42);
        for (size_t i = 0; i < words * 64; i++) {
            int sum = 0, expected;
            for (size_t v = 0; v < workers; v++) sum += sign[v][i];
            expected = sum > 0;
            if (sum == 0 && ties == SM_PLUS) expected = 1;
            if (sum == 0 && ties == SM_COIN) expected = coin(key, i + first * 64);
            tied += sum == 0;
            wrong += bit(vote, i) != expected || bit(decided, i) != (sum || ties != SM_ABSTAIN);
        }
        CHECK(wrong == 0, "%zu workers, %zu words, abstain %d, ties %d", workers, words, abstain,
              ties);
    }
    return tied;
}

TEST(vote_equals_byte_count_for_any_workers) {
    static const size_t many[] = {127, 128, 200, 255, 256, 1023, 1100};
    for (size_t round = 0; round < 77; round++)
        for (int abstain = 0; abstain < 2; abstain++) {
            size_t workers = round < 70 ? round + 1 : many[round - 70];
            size_t words = workers > 255 ? 9 : 1 + test_hash(1, round) % MOST_WORDS;
            draw_signs(workers, words, abstain, 3 * round);
            size_t tied = check_vote(workers, words, abstain, test_hash(2, round), round % 3 * 11);
            if (words > 1 && (workers % 2 == 0 || (abstain && workers < 70))) CHECK(tied > 0);
        }
    for (size_t words = 1; words <= MOST_WORDS; words++)
        for (size_t workers = 2; workers <= 18; workers += 4) { /* below and above 15 */
            draw_signs(workers, words, 1, words);
            check_vote(workers, words, 1, words, words);
        }
}

TEST(vote_of_65535_workers_counts_all) {
    static const uint64_t *signs[65535], yes[1] = {0xff}, no[1] = {0};
    static const uint64_t *presents[65535], here[1] = {~(uint64_t)0};
    for (size_t v = 0; v < 65535; v++) {
        signs[v] = v < 32768 ? yes : no;
        presents[v] = here;
    }
    for (int abstain = 0; abstain < 2; abstain++) {
        uint64_t vote;
        sm_vote(&vote, NULL, signs, abstain ? presents : NULL, 65535, 1, SM_PLUS, 0, 0);
        CHECK(vote == 0xff);
        signs[0] = no; /* one less than half */
        sm_vote(&vote, NULL, signs, abstain ? presents : NULL, 65535, 1, SM_PLUS, 0, 0);
        CHECK(vote == 0);
        signs[0] = yes;
    }
}

/* ------------------------------------------------------------------------------------------------
 * the vote through shared memory */

enum { VOTES = 30, SHARED_WORDS = 131 };

typedef struct Voter {
    SmVoters *voters;
    size_t rank, workers, words;
    int *wrong; /* votes that were not sm_vote's */
} Voter;

/* One worker: VOTES votes, each compared with sm_vote of everybody's signs. Workers come late in
 * turns. */
static void *vote_often(void *arg) {
    const Voter *me = arg;
    uint64_t all[7][SHARED_WORDS], own[SHARED_WORDS + 1], expected[SHARED_WORDS];
    const uint64_t *signs[7];
    for (uint64_t vote = 0; vote < VOTES; vote++) {
        SmZero ties = vote % 2 ? SM_PLUS : SM_COIN;
        for (size_t j = 0; j < me->workers; j++) {
            fill_random(all[j], me->words, vote * 8 + j);
            signs[j] = all[j];
        }
        memcpy(own, all[me->rank], me->words * sizeof *own);
        own[me->words] = 42;
        if (test_hash(vote, me->rank) % 4 == 0) usleep(100);
        sm_majority(me->voters, me->rank, own, ties, sm_key(1, 0, vote));
        sm_vote(expected, NULL, signs, NULL, me->workers, me->words, ties, sm_key(1, 0, vote), 0);
        if (memcmp(own, expected, me->words * sizeof *own) || own[me->words] != 42)
            __atomic_add_fetch(me->wrong, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Wrong votes among so many workers, threads or processes; -1: something else failed. */
static int count_wrong(size_t workers, size_t words, int processes) {
    size_t bytes = sm_voters_bytes(workers, words), all = bytes + 64;
    char *memory = test_shared(all);
    Voter voter[7];
    pthread_t thread[7];
    memset(memory, 0xee, all); /* init takes whatever is there */
    int *wrong = (int *)(void *)(memory + bytes), status, failed = 0;
    *wrong = 0;
    SmVoters *voters = sm_voters_init(memory, workers, words);
    for (size_t j = 0; j < workers; j++) {
        voter[j] = (Voter){voters, j, workers, words, wrong};
        if (!processes)
            failed |= pthread_create(&thread[j], NULL, vote_often, &voter[j]);
        else if (fork() == 0)
            vote_often(&voter[j]), _exit(0);
    }
    for (size_t j = 0; j < workers; j++)
        if (!processes)
            failed |= pthread_join(thread[j], NULL);
        else
            failed |= wait(&status) < 0 || status;
    for (size_t i = bytes + sizeof *wrong; i < all; i++) failed |= memory[i] != (char)0xee;
    return failed ? -1 : *wrong;
}

TEST(shared_memory_vote_equals_sm_vote) {
    static const size_t sizes[] = {1, 2, 7, 8, 9, 13, 64, 131};
    for (int processes = 0; processes < 2; processes++)
        for (size_t workers = 1; workers <= 7; workers++)
            for (size_t s = workers % 2; s < sizeof sizes / sizeof *sizes; s += 2) {
                int wrong = count_wrong(workers, sizes[s], processes);
                CHECK(wrong == 0, "%zu %s, %zu words: %d", workers,
                      processes ? "processes" : "threads", sizes[s], wrong);
            }
}
