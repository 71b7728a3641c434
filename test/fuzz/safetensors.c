/* safetensors.c - any bytes as a .safetensors file. What opens lies inside the file, is read back
   by name, and is written anew to a file that says the same. */
#include "fuzz.h"
#include "safetensors.h"

static void check_entry(const StFile *f, const StEntry *e, size_t data_size) {
    static unsigned char out[1 << 16];
    char error[512];
    size_t bytes = e->end - e->begin, count = 1;
    for (int d = 0; d < e->rank; d++)
        FUZZ_CHECK(!__builtin_mul_overflow(count, e->shape[d], &count));
    FUZZ_CHECK(e->rank >= 0 && e->rank <= ST_RANK && count == e->count);
    FUZZ_CHECK(e->begin <= e->end && e->end <= data_size && (!count) == (!bytes));
    FUZZ_CHECK(st_find(f, e->name) == e && st_is_utf8(e->name));
    FUZZ_CHECK(st_read(f, e->name, "none", out, count, error, sizeof error) == -1);
    FUZZ_CHECK(fuzz_is_sentence(error, ""));
    if (bytes > sizeof out) return;
    FUZZ_CHECK(st_read(f, e->name, e->dtype, out, count, error, sizeof error) == 0);
    FUZZ_CHECK(!bytes || !memcmp(out, st_data(f, e), bytes));
}

/* What the writer makes of a file has the header of that file, and opens. */
static void check_written(const StFile *f) {
    StTensor tensor[64];
    StPair meta[64];
    StPart part[65];
    StFile again = {0};
    size_t n_meta = 0;
    char error[512];
    StError e = {"again", error, sizeof error};
    if (f->n > 64 || f->n_meta > 64) return;
    for (size_t i = 0; i < f->n; i++) {
        const StEntry *x = &f->entries[i];
        tensor[i] = (StTensor){x->name, x->dtype, {0}, x->rank, st_data(f, x)};
        memcpy(tensor[i].shape, x->shape, sizeof x->shape);
    }
    for (size_t i = 0; i < f->n_meta; i++)
        if (strncmp(f->meta[i].key, "checksum", 8)) meta[n_meta++] = f->meta[i];
    FUZZ_CHECK(st__compose(part, tensor, f->n, meta, n_meta, &e) == 0);
    size_t size = part[0].bytes, end = 0;
    for (size_t i = 0; i < f->n; i++) end += part[i + 1].bytes;
    FUZZ_CHECK(st__parse(&again, (const char *)part[0].data + 8, size - 8, end, &e) == 0);
    FUZZ_CHECK(again.n == f->n && again.n_meta == n_meta + 2);
    for (size_t i = 0; i < f->n; i++) {
        const StEntry *x = st_find(&again, f->entries[i].name);
        FUZZ_CHECK(x && x->rank == f->entries[i].rank && x->count == f->entries[i].count);
    }
    for (size_t i = 0; i < n_meta; i++) {
        const char *value = st_meta(&again, meta[i].key);
        FUZZ_CHECK(value && !strcmp(value, meta[i].value));
    }
    st_close(&again);
    free((void *)(uintptr_t)part[0].data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    StFile f;
    char error[512];
    if (st_open(&f, fuzz_file(data, size), error, sizeof error)) {
        FUZZ_CHECK(fuzz_is_sentence(error, "") && !f.entries && !f.map);
        return 0;
    }
    size_t data_size = f.size - (size_t)(f.data - f.map), sum = 0;
    FUZZ_CHECK(f.size == size);
    for (size_t i = 0; i < f.n; i++) {
        check_entry(&f, &f.entries[i], data_size);
        sum += f.entries[i].end - f.entries[i].begin;
    }
    FUZZ_CHECK(sum == data_size);
    for (size_t i = 0; i < f.n_meta; i++) {
        FUZZ_CHECK(st_meta(&f, f.meta[i].key) == f.meta[i].value);
        FUZZ_CHECK(st_is_utf8(f.meta[i].value));
    }
    check_written(&f);
    st_close(&f);
    return 0;
}
