/* votes.c - any words as ballots of any number of voters, at any place of a shard. The verdict is
   that of counting one sign after the other. */
#include "fuzz.h"
#include "signmuon.h"

enum { MOST = 70, WORDS = 40 };

static uint64_t word(FuzzInput *in) {
    uint64_t w = 0;
    for (int i = 0; i < 8; i++) w = w << 8 | fuzz_byte(in);
    return w;
}

/* the bit and, for ties that abstain, whether it is decided, counted one by one */
static int expected(const uint64_t *const *ballot, const uint64_t *const *present, size_t voters,
                    size_t at, SmZero ties, uint64_t coin, int *decided) {
    int sum = 0;
    for (size_t v = 0; v < voters; v++) {
        int here = !present || (present[v][at / 64] >> at % 64 & 1);
        sum += here ? (ballot[v][at / 64] >> at % 64 & 1 ? 1 : -1) : 0;
    }
    *decided = sum != 0 || ties != SM_ABSTAIN;
    if (sum) return sum > 0;
    return ties == SM_COIN ? (int)(coin >> at % 64 & 1) : ties == SM_PLUS;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint64_t *ballots[MOST], *presents[MOST];
    FuzzInput input = {data, size};
    size_t voters = 1 + fuzz_byte(&input) % MOST, words = 1 + fuzz_byte(&input) % WORDS;
    unsigned how = fuzz_byte(&input);
    size_t first = fuzz_byte(&input), planes = how & 4 ? 2 : 1;
    SmZero ties = (SmZero)(how % 4 % 3);
    uint64_t key = word(&input), *bits = malloc(planes * voters * words * 8);
    uint64_t *vote = malloc(words * 8), *decided = malloc(words * 8);
    float *x = malloc(words * 64 * sizeof *x);
    uint64_t *packed = malloc(words * 8);
    if (!bits || !vote || !decided || !x || !packed) abort();
    /* one block without room between the voters; after a short input, words repeat */
    for (size_t i = 0; i < planes * voters * words; i++)
        bits[i] = input.left >= 8 || !i ? word(&input) : bits[i - 1] * 0x9fb21c651e98df25u;
    for (size_t v = 0; v < voters; v++) {
        ballots[v] = bits + v * words;
        presents[v] = bits + (planes - 1) * voters * words + v * words;
        for (size_t w = 0; planes == 2 && w < words; w++) /* who abstains says 0 */
            bits[v * words + w] &= presents[v][w];
    }
    sm_vote(vote, decided, ballots, planes == 2 ? presents : NULL, voters, words, ties, key, first);
    for (size_t at = 0; at < 64 * words; at++) {
        int known, bit = expected(ballots, planes == 2 ? presents : NULL, voters, at, ties,
                                  sm_hash(key, first + at / 64), &known);
        FUZZ_CHECK((int)(decided[at / 64] >> at % 64 & 1) == known);
        if (known) FUZZ_CHECK((int)(vote[at / 64] >> at % 64 & 1) == bit);
    }
    size_t n = words * 64 - (how >> 3 & 31);
    sm_unpack(x, vote, decided, n);
    for (size_t i = 0; i < n; i++) FUZZ_CHECK(x[i] == 1 || x[i] == -1 || x[i] == 0);
    sm_present(packed, x, n);
    for (size_t i = 0; i < n; i++)
        FUZZ_CHECK((packed[i / 64] >> i % 64 & 1) == (decided[i / 64] >> i % 64 & 1));
    sm_pack(packed, x, n, SM_ABSTAIN, 0);
    for (size_t i = 0; i < n; i++)
        FUZZ_CHECK((packed[i / 64] >> i % 64 & 1) == (uint64_t)(x[i] > 0));
    free(bits), free(vote), free(decided), free(x), free(packed);
    return 0;
}
