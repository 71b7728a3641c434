/* images.h - labelled images: IDX and CIFAR-10's files, or drawn digits. C11 + POSIX, MIT.

     MNIST, Fashion-MNIST, EMNIST   ...train-images-idx3-ubyte, ...train-labels-idx1-ubyte,
                                    ...t10k-images-idx3-ubyte, ...t10k-labels-idx1-ubyte
                                    (EMNIST says test for t10k, some copies idx3. for -idx3)
     CIFAR-10, binary version       data_batch_1.bin .. data_batch_5.bin, test_batch.bin
     drawn digits                   strokes, turned, stretched and shifted at random, with noise

     images_open      the training and the test set of a folder
     images_draw      a set of 28 x 28 digits
     images_input     one image as a network reads it, perhaps shifted and mirrored
     images_free

   An IDX file is big-endian: a magic number (0x803 images, 0x801 labels), one 32-bit size per
   dimension, then bytes. A record of CIFAR-10 is a label and 3 x 32 x 32 bytes, without a header.
   Sizes are checked against the file before memory is taken.

   MEMORY   one byte per pixel; images_free returns it, also after a failure
   THREADS  any thread may read an ImageSet
   ERRORS   0, or -1 and a sentence that names the file, what is wrong and what to do */
#ifndef IMAGES_H
#define IMAGES_H

#include <glob.h>

#include "base.h"

enum { IMAGES_SIDE = 1024, IMAGES_CLASSES = 256 };

typedef struct ImageSet {
    size_t count, channels, height, width;
    size_t classes;       /* greatest label + 1 */
    unsigned char *pixel; /* (count, channels, height, width) */
    unsigned char *label; /* (count) */
} ImageSet;

static inline size_t images_pixels(const ImageSet *s) { return s->channels * s->height * s->width; }

static inline void images_free(ImageSet *s) {
    free(s->pixel), free(s->label);
    *s = (ImageSet){0};
}

/* ------------------------------------------------------------------------------------------------
 * files */

/* Open a file; *bytes <- its size. Returns the descriptor, or -1. */
static inline int images__file(const char *path, size_t *bytes, char *error, size_t size) {
    struct stat s;
    int fd = base_open(path, O_RDONLY);
    if (fd >= 0 && fstat(fd, &s) == 0) return *bytes = (size_t)s.st_size, fd;
    base_fail(error, size, -1, "%s: cannot be read: %s", path,
              errno == ENODEV ? "it is not a regular file" : strerror(errno));
    if (fd >= 0) close(fd);
    return -1;
}

/* out <- n bytes from `at` on */
static inline int images__read(int fd, const char *path, void *out, size_t n, size_t at,
                               char *error, size_t size) {
    char *to = out;
    while (n) {
        ssize_t got = pread(fd, to, n < 1 << 30 ? n : 1 << 30, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return base_fail(error, size, -1, "%s: cannot be read: %s", path,
                             got < 0 ? strerror(errno) : "it became shorter meanwhile");
        to += got, at += (size_t)got, n -= (size_t)got;
    }
    return 0;
}

/* *out <- the bytes of an IDX file of 1 dimension (labels) or 3, shape <- its dimensions */
static inline int images__idx(const char *path, int dimensions, unsigned char **out,
                              size_t shape[3], char *error, size_t size) {
    unsigned char head[16] = {0};
    size_t bytes, begin = 4 + 4 * (size_t)dimensions, n = 1;
    int fd = images__file(path, &bytes, error, size), failed;
    if (fd < 0) return -1;
    failed = images__read(fd, path, head, bytes < begin ? bytes : begin, 0, error, size);
    if (!failed && head[0] == 0x1f && head[1] == 0x8b)
        failed = base_fail(error, size, -1, "%s: is gzipped: gunzip it first", path);
    else if (!failed && bytes >= begin && !head[0] && !head[1] && head[2] == 8 &&
             head[3] == 4 - dimensions)
        failed = base_fail(error, size, -1, "%s: holds %s: are two files swapped?", path,
                           dimensions == 3 ? "labels, and its name says images"
                                           : "images, and its name says labels");
    else if (!failed &&
             (bytes < begin || head[0] || head[1] || head[2] != 8 || head[3] != dimensions))
        failed = base_fail(error, size, -1, "%s: is not an IDX file of %s", path,
                           dimensions == 3 ? "images" : "labels");
    for (int i = 0; i < dimensions && !failed; i++) {
        const unsigned char *p = head + 4 + 4 * i;
        shape[i] = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        if (shape[i] == 0 || (i > 0 && shape[i] > IMAGES_SIDE))
            failed = base_fail(error, size, -1, "%s: its header says %zu %s; there must be 1 to %s",
                               path, shape[i], i ? "rows or columns" : "entries",
                               i ? "1024" : "2^32 - 1");
        n *= shape[i];
    }
    if (!failed && bytes != begin + n)
        failed = base_fail(error, size, -1,
                           "%s: has %zu bytes, and its header asks for %zu: it %s; fetch it again",
                           path, bytes, begin + n, bytes < begin + n ? "was cut short" : "goes on");
    if (!failed && !(*out = malloc(n ? n : 1)))
        failed = base_fail(error, size, -1, "%s: no memory for its %zu bytes", path, n);
    if (!failed) failed = images__read(fd, path, *out, n, begin, error, size);
    close(fd);
    return failed ? -1 : 0;
}

/* Append the records of a file of CIFAR-10. */
static inline int images__cifar(ImageSet *s, const char *path, char *error, size_t size) {
    enum { PIXELS = 3 * 32 * 32, RECORD = 1 + PIXELS };
    size_t bytes, n;
    int fd = images__file(path, &bytes, error, size), failed = 0;
    if (fd < 0) return -1;
    n = bytes / RECORD;
    failed = n == 0 || bytes % RECORD;
    if (failed)
        base_fail(error, size, -1,
                  "%s: has %zu bytes, which are no whole number of CIFAR-10's records of 3073; "
                  "fetch its binary version again",
                  path, bytes);
    unsigned char *pixel = failed ? NULL : realloc(s->pixel, (s->count + n) * PIXELS);
    if (pixel) s->pixel = pixel;
    unsigned char *label = pixel ? realloc(s->label, s->count + n) : NULL;
    if (label) s->label = label;
    if (!failed && !label) base_fail(error, size, -1, "%s: no memory for its images", path);
    failed = !label;
    s->channels = 3, s->height = s->width = 32;
    for (size_t i = 0; i < n && !failed; i++, s->count++) {
        unsigned char record[RECORD];
        failed = images__read(fd, path, record, RECORD, i * RECORD, error, size);
        if (!failed && record[0] > 9)
            failed = base_fail(error, size, -1,
                               "%s: image %zu has the label %d, and CIFAR-10's go up to 9", path, i,
                               record[0]);
        if (failed) break;
        s->label[s->count] = record[0];
        memcpy(s->pixel + s->count * PIXELS, record + 1, PIXELS);
    }
    close(fd);
    return failed ? -1 : 0;
}

/* path <- the first file of a folder whose name ends like this; returns how many there are */
static inline size_t images__find(char *path, size_t size, const char *folder, const char *end) {
    glob_t found = {0};
    char pattern[BASE_PATH];
    snprintf(pattern, sizeof pattern, "%s/*%s", folder, end);
    size_t count = glob(pattern, 0, NULL, &found) == 0 ? found.gl_pathc : 0;
    if (count) snprintf(path, size, "%s", found.gl_pathv[0]);
    globfree(&found);
    return count;
}

/* A set of two IDX files, which `part` begins: "train" or "t10k". */
static inline int images__pair(ImageSet *s, const char *folder, const char *part, char *error,
                               size_t size) {
    char path[2][BASE_PATH];
    size_t shape[3] = {0}, labels[3] = {0};
    for (int k = 0; k < 2; k++) {
        char end[64];
        snprintf(end, sizeof end, "%s-%s[-.]idx%d-ubyte", part, k ? "labels" : "images", k ? 1 : 3);
        size_t count = images__find(path[k], sizeof path[k], folder, end);
        if (count > 1)
            return base_fail(error, size, -1, "%s: there are %zu files like %s: take one set alone",
                             folder, count, path[k]);
        if (count == 0)
            return base_fail(error, size, -1, "%s: there is no %s-%s-idx%d-ubyte", folder, part,
                             k ? "labels" : "images", k ? 1 : 3);
    }
    if (images__idx(path[0], 3, &s->pixel, shape, error, size) ||
        images__idx(path[1], 1, &s->label, labels, error, size))
        return -1;
    if (shape[0] != labels[0])
        return base_fail(error, size, -1, "%s has %zu images, and %s %zu labels: they are no pair",
                         path[0], shape[0], path[1], labels[0]);
    s->count = shape[0], s->channels = 1, s->height = shape[1], s->width = shape[2];
    return 0;
}

/* The training and the test set of a folder. */
static inline int images_open(ImageSet *train, ImageSet *test, const char *folder, char *error,
                              size_t size) {
    char path[BASE_PATH];
    int failed = 0;
    *train = *test = (ImageSet){0};
    if (images__find(path, sizeof path, folder, "train-images[-.]idx3-ubyte")) {
        int emnist = images__find(path, sizeof path, folder, "test-images[-.]idx3-ubyte") > 0;
        failed = images__pair(train, folder, "train", error, size) ||
                 images__pair(test, folder, emnist ? "test" : "t10k", error, size);
    } else if (images__find(path, sizeof path, folder, "data_batch_1.bin")) {
        for (int k = 1; k <= 5 && !failed; k++) {
            snprintf(path, sizeof path, "%s/data_batch_%d.bin", folder, k);
            failed = images__cifar(train, path, error, size);
        }
        snprintf(path, sizeof path, "%s/test_batch.bin", folder);
        failed = failed || images__cifar(test, path, error, size);
    } else
        failed = base_fail(error, size, -1,
                           "%s: there is neither a train-images-idx3-ubyte (MNIST, Fashion-MNIST, "
                           "EMNIST; not gzipped) nor a data_batch_1.bin (CIFAR-10)",
                           folder);
    if (!failed && (train->height != test->height || train->width != test->width))
        failed =
            base_fail(error, size, -1, "%s: images for training and test differ in size", folder);
    for (size_t i = 0; i < train->count && !failed; i++)
        if (train->label[i] >= train->classes) train->classes = (size_t)train->label[i] + 1;
    for (size_t i = 0; i < test->count && !failed; i++)
        if (test->label[i] >= train->classes)
            failed = base_fail(error, size, -1,
                               "%s: the label %d of the test set is in no image of "
                               "the training set",
                               folder, test->label[i]);
    test->classes = train->classes;
    if (failed) images_free(train), images_free(test);
    return failed ? -1 : 0;
}

/* ------------------------------------------------------------------------------------------------
 * drawn digits */

/* Pen strokes on a grid of 10 x 10: column and row of each point; '/' lifts the pen. */
static const char *const images__stroke[10] = {
    "50 72 75 77 59 37 35 32 50",   "32 50 59",         "22 40 60 72 73 29 79",
    "21 50 71 73 45 76 78 59 28",   "60 26 86 / 63 69", "70 30 24 54 76 78 59 28",
    "70 42 25 28 59 78 76 54 36",   "20 80 49",         "54 32 40 60 72 54 27 39 69 77 54",
    "74 54 32 40 60 72 74 68 49 29"};

static inline double images__clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

/* Squared distance of (x, y) from the segment a b. */
static inline double images__square(double x, double y, const double a[2], const double b[2]) {
    double dx = b[0] - a[0], dy = b[1] - a[1], length = dx * dx + dy * dy;
    double t = length > 0 ? ((x - a[0]) * dx + (y - a[1]) * dy) / length : 0;
    t = images__clamp(t, 0, 1);
    x -= a[0] + t * dx, y -= a[1] + t * dy;
    return x * x + y * y;
}

/* A set of `count` digits, 28 x 28; the same key draws the same set. */
static inline int images_draw(ImageSet *s, size_t count, uint64_t key, char *error, size_t size) {
    enum { SIDE = 28, POINTS = 16 };
    *s = (ImageSet){.count = count, .channels = 1, .height = SIDE, .width = SIDE, .classes = 10};
    s->pixel = malloc(count * SIDE * SIDE);
    s->label = malloc(count);
    if (!s->pixel || !s->label) {
        images_free(s);
        return base_fail(error, size, -1, "no memory for %zu digits", count);
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t k = base_hash(key, i);
        double point[POINTS][2], random[8];
        size_t points = 0, digit = base_hash(k, 99) % 10;
        int lifted[POINTS] = {0};
        for (int r = 0; r < 8; r++) random[r] = 2 * base_uniform(k, (uint64_t)r) - 1;
        double turn = 0.3 * random[0], lean = 0.25 * random[1];
        double wide = 2 + 0.35 * random[2], high = 2.1 + 0.3 * random[3];
        double thick = 1.1 + 0.5 * random[6], ink = 215 + 40 * random[7];
        for (const char *p = images__stroke[digit]; *p; p++) {
            if (*p == ' ') continue;
            if (*p == '/') {
                lifted[points] = 1;
                continue;
            }
            double x = p[0] - '0' - 4.8 + 0.25 * base_normal(k, 100 + 2 * points);
            double y = p[1] - '0' - 4.5 + 0.25 * base_normal(k, 101 + 2 * points);
            x = (x - lean * y) * wide, y *= high;
            point[points][0] = 13.5 + 2.5 * random[4] + cos(turn) * x - sin(turn) * y;
            point[points][1] = 13.5 + 2.5 * random[5] + sin(turn) * x + cos(turn) * y;
            points++, p++;
        }
        s->label[i] = (unsigned char)digit;
        for (size_t at = 0; at < SIDE * SIDE; at++) {
            size_t row = at / SIDE, col = at % SIDE;
            double near = 1e4; /* squared distance of the nearest stroke */
            for (size_t j = 1; j < points; j++) {
                double d = images__square((double)col, (double)row, point[j - 1], point[j]);
                if (!lifted[j] && d < near) near = d;
            }
            double grey = ink * images__clamp(thick + 0.5 - sqrt(near), 0, 1) +
                          30 * base_uniform(k, 1000 + at) - 15;
            s->pixel[i * SIDE * SIDE + at] = (unsigned char)images__clamp(grey, 0, 255);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------
 * what a network reads */

/* Image i, (channels, height, width), one number every `stride` floats: 0 .. 255 becomes -1 .. 1.
 * vary  0: as it is; else a key for a shift by up to four pixels, filled with black, and a mirror
 *       image in half of the cases */
static inline void images_input(float *out, size_t stride, const ImageSet *s, size_t i,
                                uint64_t vary) {
    const int h = (int)s->height, w = (int)s->width;
    const unsigned char *in = s->pixel + i * images_pixels(s);
    int down = vary ? (int)(base_hash(vary, 0) % 9) - 4 : 0;
    int right = vary ? (int)(base_hash(vary, 1) % 9) - 4 : 0;
    int mirror = vary ? (int)(base_hash(vary, 2) % 2) : 0;
    for (size_t c = 0; c < s->channels; c++, in += h * w)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++, out += stride) {
                int from = (mirror ? w - 1 - x : x) + right, row = y + down;
                int inside = from >= 0 && from < w && row >= 0 && row < h;
                *out = (float)(inside ? in[row * w + from] : 0) / 127.5f - 1;
            }
}

#endif
