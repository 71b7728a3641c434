/* federated.c - many clients train one image classifier, each on images of its own. The setting of
   arXiv 2607.29674: a round is a gradient of every client and one step of the optimizer.

     make federated                          SignMuon, 11 clients, Fashion-MNIST or drawn digits
     examples/federated --data DIR --method ef21-muonsign --split dirichlet:0.1
     examples/federated --help

   It stands on the library alone: optimizer.h steps, lib/comm.h carries what clients tell each
   other, lib/gemm.h multiplies, lib/images.h reads images and lib/flags.h options, lib/report.h
   writes logs. In this order: options; the network, forward and backward; the images of a client;
   a round; main. */
#include "lib/comm.h"
#include "lib/flags.h"
#include "lib/gemm.h"
#include "lib/images.h"
#include "lib/report.h"
#include "optimizer.h"
#include "signmuon.h"

#include <inttypes.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------------------------------------
 * options */

typedef struct Options {
    const char *data, *model, *split, *method, *gain, *up, *down, *topology, *backend, *out;
    long width, clients, threads, batch, micro, rounds, validation, eval_every, seed;
    double lr, aux_lr, momentum;
    int augment, test, quiet, help;
} Options;

static const char *model_name(size_t i) { return i == 0 ? "cnn2" : i == 1 ? "mlp" : NULL; }
static const char *method_name(size_t i) {
    const SmMethod *m = sm_method_row(i);
    return m ? m->name : NULL;
}
static const char *gain_name(size_t i) {
    const SmGain *g = sm_gain_row(i);
    return g ? g->name : NULL;
}
static const char *backend_name(size_t i) {
    const CommBackend *b = comm_backend_row(i);
    return b ? b->name : NULL;
}

// clang-format off
#define FIELD(f) .field = offsetof(Options, f)
static const Flag flags[] = {
    {"Images", "data", FLAG_TEXT, FIELD(data), "", .argument = "DIR",
     .help = "a folder with the files of MNIST, Fashion-MNIST, EMNIST or CIFAR-10; without one: drawn digits"},
    {"Images", "split", FLAG_TEXT, FIELD(split), "iid", .argument = "HOW",
     .help = "which images a client has: iid, or by label, dirichlet:BETA (the smaller BETA, the more unlike the clients)"},
    {"Images", "validation", FLAG_WHOLE, FIELD(validation), "5000", 1, 1e9, .argument = "N",
     .help = "images held out before the split, to choose rates by"},
    {"Images", "augment", FLAG_AUTO_SWITCH, FIELD(augment), "auto",
     .help = "shift and mirror at random; auto: where images have colours"},
    {"Network", "model", FLAG_CHOICE, FIELD(model), "cnn2", .choice = model_name, .argument = "NAME",
     .help = "cnn2: two convolutions of 5 x 5 and a dense layer of 120; mlp: two dense layers of 16 K; then the output layer"},
    {"Network", "width", FLAG_WHOLE, FIELD(width), "8", 1, 1024, .argument = "K",
     .help = "channels of the first convolution, K; the second has 2 K; 64 in the paper"},
    {"Optimizer", "method", FLAG_CHOICE, FIELD(method), "signmuon", .choice = method_name, .argument = "NAME",
     .help = "rule of the hidden matrices; biases, scales and the last layer take AdamW"},
    {"Optimizer", "lr", FLAG_REAL, FIELD(lr), "0.05", 1e-12, 1e6, .argument = "RATE",
     .help = "first learning rate of the hidden matrices; it falls along a cosine"},
    {"Optimizer", "aux-lr", FLAG_REAL, FIELD(aux_lr), "0.001", 1e-12, 1e6, .argument = "RATE",
     .help = "the same of all other tensors"},
    {"Optimizer", "momentum", FLAG_REAL, FIELD(momentum), "0.9", 0, 0.9999, .argument = "MU",
     .help = "weight of the old momentum"},
    {"Optimizer", "gain", FLAG_CHOICE, FIELD(gain), "auto", .choice = gain_name, .argument = "NAME",
     .help = "factor on the rate by the matrix's shape; auto: unit-gain where steps are signs or polar factors"},
    {"Optimizer", "up", FLAG_TEXT, FIELD(up), "auto", .argument = "COMPRESSOR", .help = "of EF21, from the clients"},
    {"Optimizer", "down", FLAG_TEXT, FIELD(down), "auto", .argument = "COMPRESSOR", .help = "of EF21, to the clients"},
    {"Optimizer", "topology", FLAG_TEXT, FIELD(topology), "auto", .argument = "GRAPH", .help = "of methods that gossip"},
    {"Clients", "clients", FLAG_WHOLE, FIELD(clients), "11", 1, COMM_MAX_WORKERS, .argument = "N", .help = "how many"},
    {"Clients", "batch", FLAG_WHOLE, FIELD(batch), "64", 1, 65536, .argument = "N", .help = "images of a batch"},
    {"Clients", "micro", FLAG_WHOLE, FIELD(micro), "3", 1, 1024, .argument = "N",
     .help = "batches whose mean gradient a client takes in a round"},
    {"Clients", "backend", FLAG_CHOICE, FIELD(backend), "threads", .choice = backend_name, .argument = "NAME",
     .help = "what a client is; results do not depend on it"},
    {"Clients", "threads", FLAG_WHOLE, FIELD(threads), "1", 1, 256, .argument = "N",
     .help = "compute threads of each; results do not depend on them"},
    {"Run", "rounds", FLAG_WHOLE, FIELD(rounds), "200", 1, 1e9, .argument = "N", .help = "how many"},
    {"Run", "eval-every", FLAG_WHOLE, FIELD(eval_every), "20", 1, 1e9, .argument = "N", .help = "rounds between evaluations"},
    {"Run", "test", FLAG_SWITCH, FIELD(test), "off",
     .help = "evaluate on the test set; without it on the validation images"},
    {"Run", "seed", FLAG_WHOLE, FIELD(seed), "1", 0, 1e15, .argument = "N", .help = "everything random follows from it"},
    {"Run", "out", FLAG_TEXT, FIELD(out), "", .argument = "DIR", .help = "folder for log.csv; make plots draws it"},
    {"Run", "quiet", FLAG_SWITCH, FIELD(quiet), "off", .help = "print only the last line"},
    {"Run", "help", FLAG_SWITCH, FIELD(help), "off", .help = "this list"},
};
// clang-format on
enum { FLAGS = sizeof flags / sizeof *flags };

__attribute__((format(printf, 2, 3))) __attribute__((noreturn)) static void
die(int status, const char *format, ...) {
    char text[BASE_PATH + 512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!comm_may_speak()) comm_wait_for_end();
    report_note(stderr, "federated: %s%s", comm_rank_prefix(), text);
    exit(status);
}

static void *allocate(size_t bytes) {
    void *p = base_allocate(bytes);
    if (!p) die(1, "no memory: take a smaller --width or --batch, or fewer clients");
    return p;
}

/* ------------------------------------------------------------------------------------------------
 * the network: a table of layers. A dense layer is a convolution whose kernel is its whole input.

     y = conv(x) + bias        x (channels, height, width, n), y (out, rows, columns, n)
     z = max(0, max over each pool x pool window of scale y + shift)       the next layer's x

   The last layer ends with y, the logits. scale and shift are the published runs' BatchNorm, whose
   statistics stay at 0 and 1. */

typedef struct Layer {
    size_t channels, height, width;       /* of x */
    size_t kernel_rows, kernel_cols, pad; /* of the window */
    size_t out, rows, cols, pool;         /* of y */
    size_t fan_in;                        /* channels * kernel_rows * kernel_cols */
    int dense;                            /* the window is the whole image */
    size_t weight, bias, scale, shift;    /* offsets in params; weight (out, fan_in) */
} Layer;

enum { LAYERS = 4, TENSORS = 4 * LAYERS - 2, HIDDEN = 120, PASS = 32 /* images of a pass */ };
enum { WINDOWS = 1 << 18 /* floats of windows, and at most a line of y more: 1 MB */ };

typedef struct Net {
    Layer layer[LAYERS];
    size_t layers, tensors, parameters;
    SmTensor tensor[TENSORS];
    char name[TENSORS][16];
} Net;

static void add_tensor(Net *net, const char *kind, size_t *offset, size_t rows, size_t cols,
                       SmRole role) {
    char *name = net->name[net->tensors];
    snprintf(name, sizeof net->name[0], "%zu.%s", net->layers, kind);
    *offset = net->parameters;
    net->tensor[net->tensors++] = (SmTensor){
        .name = name, .offset = *offset, .rows = rows, .cols = cols, .blocks = 1, .role = role};
    net->parameters += rows * cols;
}

/* Add a layer on top; kernel 0 is a dense one, pool 0 is the last layer. */
static void add_layer(Net *net, const ImageSet *images, size_t out, size_t kernel, size_t pad,
                      size_t pool) {
    Layer *l = &net->layer[net->layers], *below = l - 1;
    if (net->layers == 0)
        *l =
            (Layer){.channels = images->channels, .height = images->height, .width = images->width};
    else
        *l = (Layer){.channels = below->out,
                     .height = below->rows / below->pool,
                     .width = below->cols / below->pool};
    if (l->height + 2 * pad < kernel + 1 || l->width + 2 * pad < kernel + 1)
        die(1, "--model cnn2 needs images of 12 x 12 pixels or more, not %zu x %zu", images->height,
            images->width);
    l->dense = kernel == 0;
    l->kernel_rows = kernel ? kernel : l->height, l->kernel_cols = kernel ? kernel : l->width;
    l->pad = pad, l->out = out, l->pool = pool ? pool : 1;
    l->rows = l->height + 2 * pad - l->kernel_rows + 1;
    l->cols = l->width + 2 * pad - l->kernel_cols + 1;
    l->fan_in = l->channels * l->kernel_rows * l->kernel_cols;
    add_tensor(net, "weight", &l->weight, out, l->fan_in, pool ? SM_HIDDEN : SM_OUTPUT);
    add_tensor(net, "bias", &l->bias, 1, out, SM_VECTOR);
    if (pool) add_tensor(net, "scale", &l->scale, 1, out, SM_VECTOR);
    if (pool) add_tensor(net, "shift", &l->shift, 1, out, SM_VECTOR);
    net->layers++;
}

static void make_net(Net *net, const char *model, size_t width, const ImageSet *images) {
    *net = (Net){0};
    if (strcmp(model, "cnn2") == 0) {
        add_layer(net, images, width, 5, 2, 2);
        add_layer(net, images, 2 * width, 5, 0, 2);
        add_layer(net, images, HIDDEN, 0, 0, 1);
    } else {
        add_layer(net, images, 16 * width, 0, 0, 1);
        add_layer(net, images, 16 * width, 0, 0, 1);
    }
    add_layer(net, images, images->classes, 0, 0, 0);
}

/* PyTorch's: weights and biases uniform within fan_in^-1/2, scales 1, shifts 0. */
static void initialise(const Net *net, float *params, uint64_t seed) {
    for (const Layer *l = net->layer; l < net->layer + net->layers; l++) {
        double bound = 1 / sqrt((double)l->fan_in);
        size_t random = l->out * (l->fan_in + 1); /* the bias follows the weight */
        for (size_t i = l->weight; i < l->weight + random; i++)
            params[i] = (float)(bound * (2 * base_uniform(seed, i) - 1));
        for (size_t j = 0; l->scale && j < l->out; j++) params[l->scale + j] = 1;
    }
}

static size_t places(const Layer *l) { return l->rows * l->cols; }
static size_t inputs(const Layer *l) { return l->channels * l->height * l->width; }

/* Lines of y whose windows are multiplied at once, for n images. */
static size_t band(const Layer *l, size_t n) {
    size_t fit = WINDOWS / (l->fan_in * l->cols * n) + 1;
    return fit < l->rows ? fit : l->rows;
}

/* What one thread needs for a pass. */
typedef struct Pass {
    float *x[LAYERS + 1], *y[LAYERS]; /* of every layer; x[layers] is not used */
    float *dx, *dy;                   /* gradients of the layer at work */
    float *windows, *scratch;
} Pass;

static Pass new_pass(const Net *net) {
    Pass p = {0};
    size_t dx = 0, dy = 0, windows = 0;
    for (size_t k = 0; k < net->layers; k++) {
        const Layer *l = &net->layer[k];
        size_t in = PASS * inputs(l), out = PASS * l->out * places(l);
        size_t some = l->dense ? 0 : WINDOWS + l->fan_in * l->cols * PASS;
        p.x[k] = allocate(in * sizeof(float));
        p.y[k] = allocate(out * sizeof(float));
        dx = in > dx ? in : dx, dy = out > dy ? out : dy, windows = some > windows ? some : windows;
    }
    p.dx = allocate(dx * sizeof(float));
    p.dy = allocate(dy * sizeof(float));
    p.windows = allocate(windows * sizeof(float));
    p.scratch = allocate(gemm_scratch() * sizeof(float));
    return p;
}

static void free_pass(const Net *net, Pass *p) {
    for (size_t k = 0; k < net->layers; k++) free(p->x[k]), free(p->y[k]);
    free(p->dx), free(p->dy), free(p->windows), free(p->scratch);
}

/* Between x (channels, height, width, n) and the windows (fan_in, some * cols * n) of `some` lines
 * of y from `first` on: windows <- x with zeros around it, or, `back`, x += windows. */
static void unfold(const Layer *l, float *windows, float *x, size_t n, size_t first, size_t some,
                   int back) {
    for (size_t f = 0; f < l->fan_in; f++) {
        size_t c = f / (l->kernel_rows * l->kernel_cols);
        ptrdiff_t down = (ptrdiff_t)(f / l->kernel_cols % l->kernel_rows) - (ptrdiff_t)l->pad;
        ptrdiff_t right = (ptrdiff_t)(f % l->kernel_cols) - (ptrdiff_t)l->pad;
        ptrdiff_t width = (ptrdiff_t)l->width, cols = (ptrdiff_t)l->cols;
        ptrdiff_t from = right < 0 ? -right : 0; /* columns inside: from .. to */
        ptrdiff_t to = right + cols > width ? width - right : cols;
        size_t inside = (size_t)(to - from) * n;
        for (size_t r = first; r < first + some; r++, windows += l->cols * n) {
            ptrdiff_t row = (ptrdiff_t)r + down;
            int outside = row < 0 || row >= (ptrdiff_t)l->height;
            if (!back && (outside || to - from < cols))
                memset(windows, 0, l->cols * n * sizeof *windows);
            if (outside) continue;
            float *line =
                x + ((c * l->height + (size_t)row) * l->width + (size_t)(from + right)) * n;
            float *part = windows + (size_t)from * n;
            if (!back) memcpy(part, line, inside * sizeof *part);
            for (size_t i = 0; i < inside && back; i++) line[i] += part[i];
        }
    }
}

/* y <- conv(x) + bias */
static void convolve(const Gemm *g, const Layer *l, const float *params, const Pass *p, float *y,
                     float *x, size_t n) {
    size_t line = l->cols * n, all = l->rows * line, step = band(l, n);
    for (size_t c = 0; c < l->out; c++)
        for (size_t i = 0; i < all; i++) y[c * all + i] = params[l->bias + c];
    for (size_t r = 0; r < l->rows; r += step) {
        size_t some = l->rows - r < step ? l->rows - r : step, many = some * line;
        if (!l->dense) unfold(l, p->windows, x, n, r, some, 0);
        gemm_nn(g, y + r * line, all, params + l->weight, l->fan_in, l->dense ? x : p->windows,
                many, l->out, many, l->fan_in, 1, p->scratch, 0, 1);
    }
}

/* grads += the gradient of weight and bias; dx <- that of x, unless NULL */
static void convolve_backward(const Gemm *g, const Layer *l, const float *params, float *grads,
                              const Pass *p, float *dx, const float *dy, float *x, size_t n) {
    size_t line = l->cols * n, all = l->rows * line, step = band(l, n);
    for (size_t c = 0; c < l->out; c++) {
        float sum[PASS] = {0};
        for (size_t at = 0; at < places(l); at++)
            for (size_t i = 0; i < n; i++) sum[i] += dy[(c * places(l) + at) * n + i];
        for (size_t i = 0; i < n; i++) grads[l->bias + c] += sum[i];
    }
    if (dx && !l->dense) memset(dx, 0, n * inputs(l) * sizeof *dx);
    for (size_t r = 0; r < l->rows; r += step) {
        size_t some = l->rows - r < step ? l->rows - r : step, many = some * line;
        const float *here = dy + r * line;
        if (!l->dense) unfold(l, p->windows, x, n, r, some, 0);
        gemm_nt(g, grads + l->weight, l->fan_in, here, all, l->dense ? x : p->windows, many, l->out,
                l->fan_in, many, 1, p->scratch, 0, 1);
        if (!dx) continue;
        gemm_multiply(g, l->dense ? dx : p->windows, many,
                      gemm_f32(params + l->weight, 1, l->fan_in), gemm_f32(here, 1, all), l->fan_in,
                      many, l->out, 0, p->scratch, 0, 1);
        if (!l->dense) unfold(l, p->windows, dx, n, r, some, 1);
    }
}

/* z <- the greatest scale y + shift of each window, or 0 */
static void activate(const Layer *l, const float *params, const float *y, float *z, size_t n) {
    for (size_t c = 0; c < l->out; c++, y += places(l) * n)
        for (size_t row = 0; row + l->pool <= l->rows; row += l->pool)
            for (size_t col = 0; col + l->pool <= l->cols; col += l->pool, z += n) {
                memset(z, 0, n * sizeof *z);
                for (size_t k = 0; k < l->pool * l->pool; k++) {
                    const float *in = y + ((row + k / l->pool) * l->cols + col + k % l->pool) * n;
                    const float scale = params[l->scale + c], shift = params[l->shift + c];
                    for (size_t i = 0; i < n; i++) {
                        float value = scale * in[i] + shift;
                        z[i] = value > z[i] ? value : z[i];
                    }
                }
            }
}

/* dy <- the gradient of y, from z and dz, which goes to the first greatest of a window and is
 * spent: dz <- 0. grads += that of scale and shift. */
static void activate_backward(const Layer *l, const float *params, float *grads, const float *y,
                              float *dy, const float *z, float *dz, size_t n) {
    memset(dy, 0, l->out * places(l) * n * sizeof *dy);
    for (size_t c = 0; c < l->out; c++, y += places(l) * n, dy += places(l) * n) {
        float dscale[PASS] = {0}, dshift[PASS] = {0};
        for (size_t row = 0; row + l->pool <= l->rows; row += l->pool)
            for (size_t col = 0; col + l->pool <= l->cols; col += l->pool, z += n, dz += n)
                for (size_t k = 0; k < l->pool * l->pool; k++) {
                    size_t at = ((row + k / l->pool) * l->cols + col + k % l->pool) * n;
                    const float scale = params[l->scale + c], shift = params[l->shift + c];
                    for (size_t i = 0; i < n; i++) {
                        float value = scale * y[at + i] + shift;
                        float d = value > 0 && value == z[i] ? dz[i] : 0;
                        dz[i] -= d;
                        dy[at + i] = scale * d;
                        dscale[i] += y[at + i] * d, dshift[i] += d;
                    }
                }
        for (size_t i = 0; i < n; i++)
            grads[l->scale + c] += dscale[i], grads[l->shift + c] += dshift[i];
    }
}

/* Sum of the cross-entropies of n images, whose logits (classes, n) become their gradients times
 * `share`; *right += how many have the greatest logit at their label. */
static double cross_entropy(float *logits, const unsigned char *label, size_t classes, size_t n,
                            double share, long *right) {
    double loss = 0;
    for (size_t i = 0; i < n; i++) {
        float most = logits[i];
        size_t best = 0;
        double sum = 0;
        for (size_t c = 1; c < classes; c++)
            if (logits[c * n + i] > most) most = logits[c * n + i], best = c;
        *right += best == label[i];
        for (size_t c = 0; c < classes; c++) sum += exp((double)(logits[c * n + i] - most));
        loss += log(sum) - (double)(logits[label[i] * n + i] - most);
        for (size_t c = 0; c < classes; c++) {
            double chance = exp((double)(logits[c * n + i] - most)) / sum;
            logits[c * n + i] = (float)(share * (chance - (c == label[i])));
        }
    }
    return loss;
}

/* The summed loss of n <= PASS images in p->x[0]; grads += the gradient of share times it, unless
 * NULL. */
static double run_net(const Gemm *g, const Net *net, const float *params, float *grads, Pass *p,
                      const unsigned char *label, size_t n, double share, long *right) {
    const Layer *last = &net->layer[net->layers - 1], *l;
    assert(n > 0 && n <= PASS);
    for (size_t k = 0; k < net->layers; k++) {
        l = &net->layer[k];
        convolve(g, l, params, p, p->y[k], p->x[k], n);
        if (l != last) activate(l, params, p->y[k], p->x[k + 1], n);
    }
    float *dy = p->y[net->layers - 1];
    double loss = cross_entropy(dy, label, last->out, n, share, right);
    for (size_t k = net->layers; grads && k-- > 0;) {
        l = &net->layer[k];
        if (l != last)
            activate_backward(l, params, grads, p->y[k], dy = p->dy, p->x[k + 1], p->dx, n);
        convolve_backward(g, l, params, grads, p, k ? p->dx : NULL, dy, p->x[k], n);
    }
    return loss;
}

/* ------------------------------------------------------------------------------------------------
 * the images of a client */

/* A gamma(shape, 1) variate (Marsaglia and Tsang 2000); *key moves on. */
static double gamma_number(double shape, uint64_t *key) {
    double boost = 1;
    if (shape < 1) boost = pow(1 - base_uniform((*key)++, 0), 1 / shape), shape += 1;
    for (double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);;) {
        double x = base_normal((*key)++, 0), v = pow(1 + c * x, 3);
        double u = 1 - base_uniform((*key)++, 1);
        if (v > 0 && log(u) < x * x / 2 + d - d * v + d * log(v)) return boost * d * v;
    }
}

static void shuffle(uint32_t *list, size_t n, uint64_t key) {
    for (size_t i = n; i > 1; i--) {
        size_t j = base_hash(key, i) % i;
        uint32_t kept = list[i - 1];
        list[i - 1] = list[j], list[j] = kept;
    }
}

/* Deal out the images of list[from ..], whose labels are known: owner[i] <- a client. beta 0: equal
 * shares at random. Else each class is cut by a Dirichlet(beta) draw over the clients that have not
 * reached an equal share of all; drawn again until every client has LEAST images. */
enum { LEAST = 10, TRIES = 1000 };
static int deal(const ImageSet *s, const uint32_t *list, size_t from, size_t clients, double beta,
                uint64_t key, uint32_t *owner) {
    size_t n = s->count - from, *have = allocate(clients * sizeof *have), least = 0;
    double *share = allocate(clients * sizeof *share);
    for (int try = 0; try < TRIES && least < LEAST; try++) {
        memset(have, 0, clients * sizeof *have);
        for (size_t i = 0; i < n && beta == 0; i++)
            have[owner[from + i] = (uint32_t)(i % clients)]++;
        for (size_t label = 0; label < s->classes && beta > 0; label++) {
            size_t members = 0, dealt = 0;
            double sum = 0, upto = 0;
            for (size_t i = from; i < s->count; i++) members += s->label[list[i]] == label;
            for (size_t j = 0; j < clients; j++) {
                share[j] = gamma_number(beta, &key) * (have[j] * clients < n);
                sum += share[j];
            }
            size_t client = 0;
            for (size_t i = from; i < s->count; i++) {
                if (s->label[list[i]] != label) continue;
                while (client + 1 < clients &&
                       (double)dealt >= (upto + share[client]) / sum * (double)members)
                    upto += share[client++];
                owner[i] = (uint32_t)client;
                have[client]++, dealt++;
            }
        }
        least = n;
        for (size_t j = 0; j < clients; j++) least = have[j] < least ? have[j] : least;
    }
    free(have), free(share);
    return least < LEAST ? -1 : 0;
}

/* ------------------------------------------------------------------------------------------------
 * a run */

typedef struct Run {
    Options o;
    ImageSet train, test;
    Net net;
    uint32_t *list, *owner; /* (train.count) images in random order, and whose they are: the first
                               o.validation ones are held out */
    uint32_t *tests;        /* (test.count) images of the test set, in its order */
} Run;

enum { EVALUATED = 16 /* passes of a job when the network is judged */ };

typedef struct Client {
    const Run *run;
    Comm *c;
    SmOptimizer *optimizer;
    const Gemm *g;
    float *params, *grads;
    float *exact;           /* the server's model, where clients have a compressed copy of it */
    float *part;            /* gradients of the passes of a round */
    Pass *pass;             /* (threads) */
    double *loss;           /* (passes) */
    long *right;            /* (passes) */
    uint32_t *mine;         /* images of this client, in the order of this epoch */
    size_t count, drawn;    /* of mine; images drawn since the start */
    const ImageSet *images; /* of the job in hand: */
    const uint32_t *job;    /* (job_count) */
    const float *weights;
    size_t job_count, passes;
    int training;
    uint64_t round;         /* rounds done */
    uint32_t *round_images; /* of the round in hand */
    double started;
    ReportLog log; /* client 0's */
} Client;

/* The passes of a job, shared by the compute threads. Their sums are taken in order of the passes
 * later: no result depends on the threads. */
static void do_passes(void *context, int ith, int nth) {
    Client *k = context;
    const Net *net = &k->run->net;
    Pass *p = &k->pass[ith];
    int varied = k->training && k->run->o.augment > 0;
    for (size_t b = (size_t)ith; b < k->passes; b += (size_t)nth) {
        size_t from = b * PASS, n = k->job_count - from < PASS ? k->job_count - from : PASS;
        float *grads = k->training ? k->part + b * net->parameters : NULL;
        unsigned char label[PASS];
        for (size_t i = 0; i < n; i++) {
            size_t image = k->job[from + i];
            uint64_t key = base_hash(base_hash((uint64_t)k->run->o.seed, k->round), image) | 1;
            label[i] = k->images->label[image];
            images_input(p->x[0] + i, n, k->images, image, varied ? key : 0);
        }
        if (grads) memset(grads, 0, net->parameters * sizeof *grads);
        k->right[b] = 0;
        k->loss[b] = run_net(k->g, net, k->weights, grads, p, label, n, 1 / (double)k->job_count,
                             &k->right[b]);
    }
}

/* Run the network over images; out[0..1] <- summed loss, images classified correctly. */
static void do_job(Client *k, const float *weights, const ImageSet *images, const uint32_t *job,
                   size_t count, int training, double out[2]) {
    k->weights = weights, k->images = images, k->job = job, k->job_count = count;
    k->training = training, k->passes = (count + PASS - 1) / PASS;
    team_run(k->c->team, do_passes, k);
    out[0] = out[1] = 0;
    for (size_t b = 0; b < k->passes; b++) out[0] += k->loss[b], out[1] += (double)k->right[b];
    if (!training) return;
    memcpy(k->grads, k->part, k->run->net.parameters * sizeof *k->grads);
    for (size_t b = 1; b < k->passes; b++)
        for (size_t i = 0; i < k->run->net.parameters; i++)
            k->grads[i] += k->part[b * k->run->net.parameters + i];
}

/* job <- the next images of this client; its permutation is drawn anew when it has ended, in the
 * middle of a round too. */
static void draw_images(Client *k, uint32_t *job, size_t n) {
    uint64_t key = base_hash((uint64_t)k->run->o.seed + 1000003, (uint64_t)k->c->rank);
    assert(k->count > 0);
    for (size_t i = 0; i < n; i++, k->drawn++) {
        if (k->drawn % k->count == 0)
            shuffle(k->mine, k->count, base_hash(key, k->drawn / k->count));
        job[i] = k->mine[k->drawn % k->count];
    }
}

/* Loss and accuracy, in percent, of the server's exact model over the validation images or the test
 * set. Each client judges a share of them; where clients gossip, by its own model. */
static void evaluate(Client *k, double out[2]) {
    const Run *r = k->run;
    const ImageSet *set = r->o.test ? &r->test : &r->train;
    const uint32_t *job = r->o.test ? r->tests : r->list;
    int exact = sm_server_model(k->optimizer, k->exact, k->params, k->round);
    size_t all = r->o.test ? r->test.count : (size_t)r->o.validation;
    size_t from = all * (size_t)k->c->rank / (size_t)k->c->size;
    size_t to = all * ((size_t)k->c->rank + 1) / (size_t)k->c->size;
    double mine[2] = {0}, every[2 * COMM_MAX_WORKERS];
    for (size_t at = from; at < to; at += EVALUATED * PASS) {
        double some[2];
        size_t n = to - at < EVALUATED * PASS ? to - at : EVALUATED * PASS;
        do_job(k, exact ? k->exact : k->params, set, job + at, n, 0, some);
        mine[0] += some[0], mine[1] += some[1];
    }
    sm_gather(k->c, mine, sizeof mine, every);
    out[0] = out[1] = 0;
    for (int j = 0; j < k->c->size; j++)
        out[0] += every[2 * j] / (double)all, out[1] += 100 * every[2 * j + 1] / (double)all;
}

static const ReportColumn columns[] = {{"step", "%.0f"},         {"images", "%.0f"},
                                       {"seconds", "%.3f"},      {"train_loss", "%.6f"},
                                       {"val_loss", "%.6f"},     {"accuracy", "%.3f"},
                                       {"lr", "%.6g"},           {"train_accuracy", "%.3f"},
                                       {"bytes_sent", "%.0f"},   {"bytes_received", "%.0f"},
                                       {"agreement", "%.5f"},    {"wire_seconds", "%.4f"},
                                       {"uplink_bytes", "%.0f"}, {"downlink_bytes", "%.0f"}};
enum { COLUMNS = sizeof columns / sizeof *columns };

static SmConfig configuration(const Options *o) {
    const SmMethod *m = sm_method(o->method);
    SmConfig c = sm_config(o->method);
    const char *map = m->worker_map ? m->worker_map : m->server_map;
    int by_shape = map ? strcmp(map, "spectral") == 0 : m->combine == SM_VOTE;
    c.aux = "adamw", c.gain = o->gain ? o->gain : by_shape ? "unit-gain" : NULL;
    c.lr = o->lr, c.aux_lr = o->aux_lr, c.weight_decay = 0, c.nesterov = 0;
    if (m->clip_power == 0) c.clip = 0;
    c.beta1 = 0.9, c.beta2 = 0.999, c.seed = (uint64_t)o->seed;
    if (m->momentum > 0 && m->estimate == SM_MOMENTUM) c.momentum = o->momentum;
    c.up = o->up, c.down = o->down, c.topology = o->topology;
    return c;
}

static void open_client(Client *k, const Run *r, Comm *c) {
    const Options *o = &r->o;
    const size_t parameters = r->net.parameters, all = (size_t)(o->batch * o->micro);
    size_t passes = (all + PASS - 1) / PASS, most = passes > EVALUATED ? passes : EVALUATED;
    char error[512];
    SmConfig config = configuration(o);
    *k = (Client){.run = r, .c = c, .g = gemm_default(GEMM_F32), .started = base_now()};
    k->optimizer = sm_create(&config, r->net.tensor, r->net.tensors, c, error, sizeof error);
    if (!k->optimizer) die(2, "%s", error);
    k->params = allocate(parameters * sizeof(float));
    k->grads = allocate(parameters * sizeof(float));
    k->exact = allocate(parameters * sizeof(float));
    k->part = allocate(passes * parameters * sizeof(float));
    k->loss = allocate(most * sizeof(double)), k->right = allocate(most * sizeof(long));
    k->pass = allocate((size_t)c->team->threads * sizeof(Pass));
    for (int t = 0; t < c->team->threads; t++) k->pass[t] = new_pass(&r->net);
    k->round_images = allocate(all * sizeof *k->round_images);
    k->mine = allocate(r->train.count * sizeof *k->mine);
    for (size_t i = (size_t)o->validation; i < r->train.count; i++)
        if (r->owner[i] == (uint32_t)c->rank) k->mine[k->count++] = r->list[i];
    initialise(&r->net, k->params, base_hash((uint64_t)o->seed, 7));
    if (*o->out && c->rank == 0 &&
        report_open_log(&k->log, o->out, columns, COLUMNS, NAN, error, sizeof error))
        die(1, "%s", error);
}

static void close_client(Client *k) {
    char error[512];
    if (report_close_log(&k->log, error, sizeof error)) die(1, "%s", error);
    for (int t = 0; t < k->c->team->threads; t++) free_pass(&k->run->net, &k->pass[t]);
    sm_free(k->optimizer);
    free(k->params), free(k->grads), free(k->exact), free(k->part), free(k->loss), free(k->right),
        free(k->pass);
    free(k->round_images), free(k->mine);
}

/* A round: every client's gradient, and one step of the optimizer, at `fall` times the first rates.
 * train <- loss and accuracy over the images of all clients. Returns the signal that asked some
 * client to end, or 0. */
static int train_round(Client *k, double fall, double train[2]) {
    const Options *o = &k->run->o;
    const size_t n = (size_t)(o->batch * o->micro);
    double sum[2], every[3 * COMM_MAX_WORKERS], images = (double)n * k->c->size;
    int signal = 0;
    draw_images(k, k->round_images, n);
    do_job(k, k->params, &k->run->train, k->round_images, n, 1, sum);
    if (sm_step(k->optimizer, k->params, k->grads, k->round, o->lr * fall, o->aux_lr * fall))
        die(3, "round %" PRIu64 ": a client's message is not finite: take a smaller --lr",
            k->round);
    double mine[3] = {sum[0], sum[1], comm_stop_requested(k->c)};
    sm_gather(k->c, mine, sizeof mine, every);
    train[0] = train[1] = 0;
    for (int j = 0; j < k->c->size; j++) {
        train[0] += every[3 * j] / images, train[1] += 100 * every[3 * j + 1] / images;
        if (every[3 * j + 2] > signal) signal = (int)every[3 * j + 2];
    }
    if (!isfinite(train[0]))
        die(3, "round %" PRIu64 ": the loss is not finite: take a smaller --lr", k->round);
    return signal;
}

/* A row of log.csv, and a line of progress. */
static void report_round(Client *k, double rate, const double train[2], const double judged[2]) {
    const Options *o = &k->run->o;
    double step = (double)k->round, seconds = base_now() - k->started;
    char error[512];
    SmTraffic t = sm_traffic(k->c);
    SmAgreement a = sm_agreement(k->optimizer);
    double agreement = a.signs > 0 ? a.confirmed / a.signs : NAN;
    double images = step * (double)(o->batch * o->micro * k->c->size);
    double row[COLUMNS] = {step,      images, seconds,      train[0],       judged[0],
                           judged[1], rate,   train[1],     (double)t.sent, (double)t.received,
                           agreement, NAN,    (double)t.up, (double)t.down};
    if (report_row(&k->log, row, error, sizeof error)) die(1, "%s", error);
    if (k->c->rank > 0 || o->quiet) return;
    printf("round %.0f/%ld  loss %.4f  %s %.4f  accuracy %.2f %%  %.0f ms a round\n", step,
           o->rounds, train[0], o->test ? "test" : "validation", judged[0], judged[1],
           1000 * seconds / step);
    fflush(stdout);
}

/* The last line: mean accuracy of the last five evaluations, the last one, bytes sent by a client
 * (mean over them), and a hash of the model, by which runs are compared bit for bit. */
static void print_result(const Client *k, double accuracy, const double judged[2]) {
    const Options *o = &k->run->o;
    uint64_t hash = 0, mine = sm_traffic(k->c).sent, every[COMM_MAX_WORKERS], sent = 0;
    sm_gather(k->c, &mine, sizeof mine, every);
    if (k->c->rank > 0) return;
    for (int j = 0; j < k->c->size; j++) sent += every[j];
    for (size_t i = 0; i < k->run->net.parameters; i++) {
        uint32_t bits;
        memcpy(&bits, &k->params[i], sizeof bits);
        hash = base_hash(hash, bits);
    }
    printf("%s %s accuracy %.3f last %.3f loss %.4f rounds %" PRIu64
           " seconds %.1f bytes_sent %" PRIu64 " model %016" PRIx64 "\n",
           o->method, o->test ? "test" : "validation", accuracy, judged[1], judged[0], k->round,
           base_now() - k->started, sent / (uint64_t)k->c->size, hash);
    fflush(stdout);
}

static int client(Comm *c, void *arg) {
    enum { LAST = 5 };
    const Run *r = arg;
    const Options *o = &r->o;
    Client k;
    double train[2], judged[2] = {NAN, NAN}, accuracy[LAST] = {0}, sum = 0;
    long evaluations = 0, rounds = o->rounds;
    int signal = 0;
    open_client(&k, r, c);
    while (k.round < (uint64_t)rounds && !signal) {
        double fall = 0.5 * (1 + cos(M_PI * (double)k.round / (double)rounds));
        signal = train_round(&k, fall, train);
        k.round++;
        if (k.round % (uint64_t)o->eval_every && k.round < (uint64_t)rounds && !signal) continue;
        evaluate(&k, judged);
        accuracy[evaluations++ % LAST] = judged[1];
        report_round(&k, o->lr * fall, train, judged);
    }
    for (int i = 0; i < LAST; i++) sum += accuracy[i];
    print_result(&k, sum / (double)(evaluations < LAST ? evaluations : LAST), judged);
    close_client(&k);
    return signal ? 128 + signal : 0;
}

/* beta of a split: 0 for iid, -1 for a malformed one */
static double split_beta(const char *text) {
    char *end;
    if (strcmp(text, "iid") == 0) return 0;
    if (strncmp(text, "dirichlet:", 10) != 0) return -1;
    double beta = report_value(text + 10, &end);
    return end > text + 10 && !*end && beta >= 0.01 && beta <= 1e6 ? beta : -1;
}

static void prepare(Run *r) {
    enum { DRAWN = 12000, DRAWN_TEST = 2000 };
    Options *o = &r->o;
    char error[BASE_PATH + 512];
    SmConfig config = configuration(o);
    double beta = split_beta(o->split);
    if (beta < 0)
        die(2, "--split takes iid or dirichlet:BETA, BETA from 0.01 to 1e6, not '%.60s'", o->split);
    if (sm_resolve(&config, (int)o->clients, error, sizeof error)) die(2, "%s", error);
    if (!gemm_default(GEMM_F32)) die(2, "GEMM_ISA=%s does not run on this CPU", getenv("GEMM_ISA"));
    int failed = *o->data ? images_open(&r->train, &r->test, o->data, error, sizeof error)
                          : images_draw(&r->train, DRAWN, 1, error, sizeof error) ||
                                images_draw(&r->test, DRAWN_TEST, 2, error, sizeof error);
    if (failed) die(1, "%s", error);
    size_t n = r->train.count, held = (size_t)o->validation;
    if (o->augment < 0) o->augment = r->train.channels > 1;
    if (held + (size_t)o->clients * LEAST > n)
        die(2, "--validation %ld leaves %ld of %zu images to %ld clients, and each needs %d",
            o->validation, (long)n - o->validation, n, o->clients, LEAST);
    make_net(&r->net, o->model, (size_t)o->width, &r->train);
    r->list = allocate(n * sizeof *r->list), r->owner = allocate(n * sizeof *r->owner);
    r->tests = allocate(r->test.count * sizeof *r->tests);
    for (size_t i = 0; i < n; i++) r->list[i] = (uint32_t)i;
    for (size_t i = 0; i < r->test.count; i++) r->tests[i] = (uint32_t)i;
    shuffle(r->list, n, base_hash((uint64_t)o->seed, 1));
    if (deal(&r->train, r->list, held, (size_t)o->clients, beta, base_hash((uint64_t)o->seed, 2),
             r->owner))
        die(2,
            "--split %s leaves some client without %d images in %d draws: take a greater BETA or "
            "fewer clients",
            o->split, LEAST, TRIES);
    if (*o->out && mkdir(o->out, 0777) && errno != EEXIST)
        die(1, "%s: cannot be made: %s", o->out, strerror(errno));
}

int main(int argc, char **argv) {
    static Run run;
    Options *o = &run.o;
    unsigned char given[FLAGS];
    char error[1024] = "";
    int rank, ranks, sharing;
    comm_init(&argc, &argv, &rank, &ranks, &sharing);
    team_float_environment();
    flags_defaults(flags, FLAGS, o);
    if (flags_parse(flags, FLAGS, o, argc, argv, given, error, sizeof error)) die(2, "%s", error);
    if (o->help) return flags_help(stdout, flags, FLAGS, "all", report_columns(stdout)), 0;
    if (ranks > 1 && !given[flags_find(flags, FLAGS, "backend")]) o->backend = "mpi";
    if (ranks > 1 && !given[flags_find(flags, FLAGS, "clients")]) o->clients = ranks;
    if (rank > 0 && !comm_backend("mpi")) return sleep(1), 2; /* rank 0 refuses this launch */
    if (ranks > 1 && !comm_backend("mpi"))
        die(2, "mpirun has started %d processes, and this program knows no MPI: make mpi", ranks);
    if (ranks > 1 && (strcmp(o->backend, "mpi") != 0 || o->clients != ranks))
        die(2, "--backend %s --clients %ld: mpirun has started %d ranks, each of which is a client",
            o->backend, o->clients, ranks);
    prepare(&run);
    if (!o->quiet && rank == 0)
        printf("%s: %zu images of %zu x %zu x %zu, %zu for test; %ld clients, %s; %s of width %ld, "
               "%zu parameters\n",
               *o->data ? o->data : "no --data: drawn digits", run.train.count, run.train.channels,
               run.train.height, run.train.width, run.test.count, o->clients, o->split, o->model,
               o->width, run.net.parameters);
    CommOptions options = {.backend = o->backend,
                           .workers = (int)o->clients,
                           .threads = (int)o->threads,
                           .timeout = 300};
    int status = comm_run(&options, client, &run, NULL, error, sizeof error);
    if (status < 0) die(1, "%s", error);
    images_free(&run.train), images_free(&run.test);
    free(run.list), free(run.owner), free(run.tests);
    return status;
}
