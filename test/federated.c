/* federated.c - proofs of examples/federated.c and lib/images.h: the network against a naive one in
   double and its central differences, files that are wrong, the split, back ends bit for bit. */
#define main federated_main
#include "../examples/federated.c"
#undef main
#include "lib/safetensors.h"
#include "test.h"

/* ------------------------------------------------------------------------------------------------
 * the network in double, one image at a time, by its definition */

typedef struct Naive {
    double *params;
    double x[2][4096]; /* of two layers that follow each other */
} Naive;

static double naive_loss(Naive *v, const Net *net, const double *image, size_t label) {
    double *in = v->x[0], *out = v->x[1];
    memcpy(in, image, inputs(&net->layer[0]) * sizeof *in);
    for (size_t k = 0; k < net->layers; k++) {
        const Layer *l = &net->layer[k];
        size_t h = l->rows / l->pool, w = l->cols / l->pool;
        int last = k + 1 == net->layers;
        for (size_t c = 0; c < l->out; c++)
            for (size_t at = 0; at < h * w; at++) {
                double best = last ? -INFINITY : 0;
                for (size_t q = 0; q < l->pool * l->pool; q++) {
                    size_t row = at / w * l->pool + q / l->pool,
                           col = at % w * l->pool + q % l->pool;
                    double y = v->params[l->bias + c];
                    for (size_t f = 0; f < l->fan_in; f++) {
                        size_t from = f / (l->kernel_rows * l->kernel_cols);
                        size_t r = row + f / l->kernel_cols % l->kernel_rows;
                        size_t s = col + f % l->kernel_cols;
                        if (r < l->pad || s < l->pad || r - l->pad >= l->height ||
                            s - l->pad >= l->width)
                            continue;
                        y += v->params[l->weight + c * l->fan_in + f] *
                             in[(from * l->height + r - l->pad) * l->width + s - l->pad];
                    }
                    if (!last) y = v->params[l->scale + c] * y + v->params[l->shift + c];
                    best = fmax(best, y);
                }
                out[c * h * w + at] = best;
            }
        double *other = in;
        in = out, out = other;
    }
    double sum = 0;
    for (size_t c = 0; c < net->layer[net->layers - 1].out; c++) sum += exp(in[c] - in[label]);
    return log(sum);
}

TEST(network_agrees_with_central_differences_in_double) {
    enum { N = 5 };
    for (size_t kind = 0; kind < 2; kind++) {
        ImageSet images = {.channels = 3, .height = 20, .width = 16, .classes = 4};
        Net net;
        long right = 0;
        make_net(&net, model_name(kind), 2, &images);
        size_t pixels = inputs(&net.layer[0]), worst_at = 0;
        float *params = allocate(net.parameters * sizeof *params);
        float *grads = allocate(net.parameters * sizeof *grads);
        double *image = allocate(N * pixels * sizeof *image), loss = 0, worst = 0;
        Naive *v = allocate(sizeof *v);
        Pass p = new_pass(&net);
        static const unsigned char label[N] = {2, 0, 3, 1, 1};
        v->params = allocate(net.parameters * sizeof(double));
        initialise(&net, params, 5);
        for (size_t i = 0; i < net.parameters; i++) /* scales and shifts away from 1 and 0 too */
            v->params[i] = params[i] += 0.05f * (float)test_normal(6, i);
        /* image 0 has one grey: its windows have several greatest, which move alike */
        for (size_t i = 0; i < N * pixels; i++)
            image[i] = i < pixels ? 0.5 : (double)(float)test_normal(7, i);
        for (size_t i = 0; i < N; i++)
            for (size_t at = 0; at < pixels; at++)
                p.x[0][at * N + i] = (float)image[i * pixels + at];
        double got = run_net(gemm_default(GEMM_F32), &net, params, grads, &p, label, N, 1, &right);
        for (size_t i = 0; i < N; i++) loss += naive_loss(v, &net, image + i * pixels, label[i]);
        CHECK_NEAR(got, loss, 1e-5);
        for (size_t k = 0; k < net.tensors; k++)
            for (int draw = 0; draw < 12; draw++) {
                const SmTensor *t = &net.tensor[k];
                size_t i = t->offset + test_hash(k, (uint64_t)draw) % (t->rows * t->cols);
                double kept = v->params[i], step = 1e-6, side[2] = {0};
                for (int s = 0; s < 2; s++) {
                    v->params[i] = kept + (s ? step : -step);
                    for (size_t j = 0; j < N; j++)
                        side[s] += naive_loss(v, &net, image + j * pixels, label[j]);
                }
                v->params[i] = kept;
                double miss = fabs(grads[i] - (side[1] - side[0]) / (2 * step));
                if (miss > worst) worst = miss, worst_at = k;
            }
        CHECK(worst < 2e-5, "%s: %s is off by %g", model_name(kind), net.tensor[worst_at].name,
              worst);
        free_pass(&net, &p);
        free(params), free(grads), free(image), free(v->params), free(v);
    }
}

/* PyTorch's numbers: test/fixture.safetensors, which test/make_fixture.py writes. */
static void fixture_read(const StFile *f, const char *name, void *out, size_t bytes) {
    char full[64];
    snprintf(full, sizeof full, "cnn2.%s", name);
    const StEntry *e = st_find(f, full);
    if (e && e->end - e->begin == bytes)
        memcpy(out, st_data(f, e), bytes);
    else
        CHECK(0, "%s is not in the fixture", full);
}

TEST(network_agrees_with_pytorch) {
    enum { N = 5, PLACES = 18 * 20 };
    ImageSet images = {.channels = 3, .height = 18, .width = 20, .classes = 7};
    StFile file = {0};
    Net net;
    int32_t labels[N];
    unsigned char label[N];
    char error[512] = "";
    double loss = 0;
    long right = 0;
    CHECK(st_open(&file, "test/fixture.safetensors", error, sizeof error) == 0, "%s", error);
    make_net(&net, "cnn2", 2, &images);
    float *params = allocate(net.parameters * sizeof *params),
          *input = allocate(N * 3 * PLACES * 4);
    float *grads = allocate(net.parameters * sizeof *grads), *want = allocate(net.parameters * 4);
    Pass p = new_pass(&net);
    fixture_read(&file, "inputs", input, N * 3 * PLACES * sizeof *input);
    fixture_read(&file, "labels", labels, sizeof labels);
    fixture_read(&file, "loss", &loss, sizeof loss);
    for (size_t i = 0; i < N; i++) {
        label[i] = (unsigned char)labels[i];
        for (size_t at = 0; at < 3 * PLACES; at++) p.x[0][at * N + i] = input[i * 3 * PLACES + at];
    }
    for (const SmTensor *t = net.tensor; t < net.tensor + net.tensors; t++) {
        char name[32];
        snprintf(name, sizeof name, "grad.%s", t->name);
        fixture_read(&file, t->name, params + t->offset, t->rows * t->cols * sizeof *params);
        fixture_read(&file, name, want + t->offset, t->rows * t->cols * sizeof *want);
    }
    CHECK_NEAR(run_net(gemm_default(GEMM_F32), &net, params, grads, &p, label, N, 1, &right), loss,
               1e-5);
    for (size_t i = 0; i < net.parameters; i++) CHECK_NEAR(grads[i], want[i], 1e-4);
    free_pass(&net, &p);
    st_close(&file);
    free(params), free(input), free(grads), free(want);
}

/* A full pass takes the lines of a layer in several bands; one image takes them all at once. */
TEST(a_pass_is_the_sum_of_its_images) {
    ImageSet images = {.channels = 1, .height = 28, .width = 28, .classes = 10};
    Net net;
    long right = 0;
    double loss = 0;
    make_net(&net, "cnn2", 8, &images);
    CHECK(band(&net.layer[1], PASS) < net.layer[1].rows, "the second layer has one band");
    size_t pixels = inputs(&net.layer[0]);
    float *params = allocate(net.parameters * sizeof *params), *image = allocate(PASS * pixels * 4);
    float *grads = allocate(net.parameters * sizeof *grads), *sum = allocate(net.parameters * 4);
    unsigned char label[PASS];
    Pass p = new_pass(&net);
    initialise(&net, params, 5);
    for (size_t i = 0; i < PASS * pixels; i++) image[i] = p.x[0][i] = (float)test_normal(8, i);
    for (size_t i = 0; i < PASS; i++) label[i] = (unsigned char)(i % 10);
    double all = run_net(gemm_default(GEMM_F32), &net, params, grads, &p, label, PASS, 1, &right);
    for (size_t i = 0; i < PASS; i++) {
        for (size_t at = 0; at < pixels; at++) p.x[0][at] = image[at * PASS + i];
        loss += run_net(gemm_default(GEMM_F32), &net, params, sum, &p, label + i, 1, 1, &right);
    }
    CHECK_NEAR(all, loss, 1e-4);
    for (size_t i = 0; i < net.parameters; i++) CHECK_NEAR(grads[i], sum[i], 1e-4);
    free_pass(&net, &p);
    free(params), free(image), free(grads), free(sum);
}

TEST(a_convolution_has_the_parameters_that_are_published) {
    static const struct {
        size_t channels, side, matrices;
    } want[] = {{3, 32, 762560}, {1, 28, 590400}};
    for (size_t i = 0; i < COUNT(want); i++) {
        ImageSet images = {.channels = want[i].channels,
                           .height = want[i].side,
                           .width = want[i].side,
                           .classes = 10};
        size_t hidden = 0;
        Net net;
        make_net(&net, "cnn2", 64, &images);
        for (size_t k = 0; k < net.tensors; k++)
            if (net.tensor[k].role == SM_HIDDEN) hidden += net.tensor[k].rows * net.tensor[k].cols;
        CHECK(hidden == want[i].matrices && net.parameters == hidden + 2146, "%zu, %zu", hidden,
              net.parameters);
    }
}

/* ------------------------------------------------------------------------------------------------
 * files */

/* An IDX file of `kind` 3 (images) or 1 (labels): what its header says, and how many bytes follow. */
static void write_idx(const char *name, int kind, unsigned n, unsigned side, size_t bytes) {
    unsigned char *file = calloc(1, 16 + bytes);
    size_t head = kind == 3 ? 16 : 8;
    if (!file) exit(1);
    file[2] = 8, file[3] = (unsigned char)kind;
    unsigned shape[3] = {n, side, side};
    for (int i = 0; i < kind; i++)
        for (int b = 0; b < 4; b++) file[4 + 4 * i + b] = (unsigned char)(shape[i] >> (24 - 8 * b));
    for (size_t i = 0; i < bytes; i++)
        file[head + i] = (unsigned char)(kind == 3 ? i % 251 : i % 3);
    test_write(test_path("%s", name), file, head + bytes);
    free(file);
}

static void write_four(void) {
    write_idx("train-images-idx3-ubyte", 3, 30, 16, 30 * 256);
    write_idx("train-labels-idx1-ubyte", 1, 30, 0, 30);
    write_idx("t10k-images-idx3-ubyte", 3, 9, 16, 9 * 256);
    write_idx("t10k-labels-idx1-ubyte", 1, 9, 0, 9);
}

static const char *opened(void) {
    static char error[BASE_PATH];
    ImageSet train, test;
    *error = 0;
    if (images_open(&train, &test, test_path("."), error, sizeof error) == 0)
        snprintf(error, sizeof error, "%zu and %zu of %zu, label %d, pixel %d", train.count,
                 test.count, train.classes, train.label[4], train.pixel[260]);
    images_free(&train), images_free(&test);
    return error;
}

TEST(idx_and_cifar_files_are_read_or_refused) {
    write_four();
    CHECK(strcmp(opened(), "30 and 9 of 3, label 1, pixel 9") == 0, "%s", opened());
    write_idx("a-train-images-idx3-ubyte", 3, 30, 16, 30 * 256);
    CHECK(strstr(opened(), "2 files"), "%s", opened());
    unlink(test_path("a-train-images-idx3-ubyte"));
    write_idx("t10k-labels-idx1-ubyte", 1, 8, 0, 8);
    CHECK(strstr(opened(), "9 images") && strstr(opened(), "8 labels"), "%s", opened());
    write_idx("t10k-labels-idx1-ubyte", 3, 9, 16, 9 * 256);
    CHECK(strstr(opened(), "swapped"), "%s", opened());
    write_four();
    write_idx("train-images-idx3-ubyte", 3, 30, 16, 30 * 256 - 1);
    CHECK(strstr(opened(), "cut short"), "%s", opened());
    write_idx("train-images-idx3-ubyte", 3, 30, 16, 30 * 256 + 1);
    CHECK(strstr(opened(), "goes on"), "%s", opened());
    write_idx("train-images-idx3-ubyte", 3, 4000000000u, 1024, 30);
    CHECK(strstr(opened(), "cut short"), "%s", opened());
    write_idx("train-images-idx3-ubyte", 3, 30, 2000, 30);
    CHECK(strstr(opened(), "1 to 1024"), "%s", opened());
    test_write(test_path("train-images-idx3-ubyte"), "\x1f\x8b and so on", 13);
    CHECK(strstr(opened(), "gunzip"), "%s", opened());
    test_write(test_path("train-images-idx3-ubyte"), "", 0);
    CHECK(strstr(opened(), "not an IDX file"), "%s", opened());
    remove(test_path("train-images-idx3-ubyte"));
    CHECK(strstr(opened(), "neither"), "%s", opened());

    char *record = calloc(2, 3073);
    if (!record) exit(1);
    record[0] = 2, record[3073] = 1, record[3073 + 4] = 77;
    for (int k = 1; k <= 6; k++) {
        char name[32];
        snprintf(name, sizeof name, k < 6 ? "data_batch_%d.bin" : "test_batch.bin", k);
        test_write(test_path("%s", name), record, 2 * 3073);
    }
    CHECK(strncmp(opened(), "10 and 2 of 3, label 2", 22) == 0, "%s", opened());
    record[3073] = 10;
    test_write(test_path("data_batch_3.bin"), record, 2 * 3073);
    CHECK(strstr(opened(), "image 1 has the label 10"), "%s", opened());
    test_write(test_path("data_batch_3.bin"), record, 3072);
    CHECK(strstr(opened(), "3073"), "%s", opened());
    free(record);
}

TEST(images_are_shifted_and_mirrored_by_their_key_alone) {
    unsigned char pixel[16 * 16];
    float out[16 * 16];
    ImageSet s = {1, 1, 16, 16, 2, pixel, NULL};
    int mirrored = 0, seen[9][9] = {{0}};
    for (int i = 0; i < 256; i++) pixel[i] = (unsigned char)i;
    images_input(out, 1, &s, 0, 0);
    for (int i = 0; i < 256; i++) CHECK_NEAR(out[i], i / 127.5 - 1, 1e-6);
    for (uint64_t key = 1; key < 2000; key++) {
        images_input(out, 1, &s, 0, key);
        int middle = (int)lrintf(127.5f * (out[7 * 16 + 7] + 1)), next;
        next = (int)lrintf(127.5f * (out[7 * 16 + 8] + 1));
        mirrored += next < middle;
        seen[middle / 16 - 3][middle % 16 - (next < middle ? 4 : 3)]++;
    }
    CHECK(mirrored > 900 && mirrored < 1100, "%d", mirrored);
    for (int i = 0; i < 81; i++) CHECK(seen[i / 9][i % 9] > 0, "shift %d %d", i / 9, i % 9);
}

/* ------------------------------------------------------------------------------------------------
 * the split, and whole runs */

TEST(clients_share_all_images_skewed_by_beta) {
    enum { N = 4000, CLIENTS = 7 };
    unsigned char *label = allocate(N);
    uint32_t *list = allocate(N * sizeof *list), *owner = allocate(N * sizeof *owner);
    ImageSet s = {N, 1, 1, 1, 10, NULL, label};
    for (uint32_t i = 0; i < N; i++) label[i] = (unsigned char)(i % 10), list[i] = N - 1 - i;
    double spread[3];
    for (int k = 0; k < 3; k++) {
        const double beta[] = {0, 100, 0.1};
        size_t count[CLIENTS][10] = {{0}}, all[CLIENTS] = {0};
        CHECK(deal(&s, list, 500, CLIENTS, beta[k], 3, owner) == 0);
        for (size_t i = 500; i < N; i++) count[owner[i]][label[list[i]]]++, all[owner[i]]++;
        spread[k] = 0;
        for (int j = 0; j < CLIENTS; j++) {
            CHECK(all[j] >= LEAST && all[j] < 2 * N / CLIENTS, "%d: %zu", j, all[j]);
            for (int c = 0; c < 10; c++)
                spread[k] += pow((double)count[j][c] / (double)all[j] - 0.1, 2) / CLIENTS;
        }
    }
    CHECK(spread[0] < 0.004 && spread[1] < 0.01 && spread[2] > 0.2, "%g %g %g", spread[0],
          spread[1], spread[2]);
    CHECK(deal(&s, list, N - 8, 1, 0, 3, owner) < 0); /* too few images */
    free(label), free(list), free(owner);
}

TEST(a_client_sees_each_image_once_an_epoch) {
    enum { N = 50, EPOCHS = 3 };
    uint32_t mine[N], drawn[EPOCHS * N];
    Comm comm = {.rank = 2};
    Run run = {.o.seed = 9};
    Client k = {.run = &run, .c = &comm, .mine = mine, .count = N};
    for (uint32_t i = 0; i < N; i++) mine[i] = 100 + i;
    for (size_t i = 0; i < EPOCHS * N; i += 15)
        draw_images(&k, drawn + i, 15); /* across the ends */
    for (int e = 0; e < EPOCHS; e++) {
        int seen[N] = {0};
        for (int i = 0; i < N; i++) seen[drawn[e * N + i] - 100]++;
        for (int i = 0; i < N; i++) CHECK(seen[i] == 1, "epoch %d, image %d: %d", e, i, seen[i]);
    }
    CHECK(memcmp(drawn, drawn + N, sizeof mine) != 0);
}

/* IDX files of three classes: a bright bar at one of three heights, in noise. */
static void write_bars(const char *part, size_t n, uint64_t key) {
    enum { SIDE = 16, PIXELS = SIDE * SIDE };
    unsigned char *image = calloc(n, PIXELS), *label = calloc(n, 1);
    unsigned char head[2][16] = {{0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, SIDE, 0, 0, 0, SIDE},
                                 {0, 0, 8, 1}};
    char name[64], *file = malloc(16 + n * PIXELS);
    if (!image || !label || !file) exit(1);
    for (size_t i = 0; i < n; i++) {
        label[i] = (unsigned char)(test_hash(key, i) % 3);
        for (size_t at = 0; at < PIXELS; at++) {
            int bar = at / SIDE / 5 == label[i];
            image[i * PIXELS + at] =
                (unsigned char)(test_hash(key + 1, i * PIXELS + at) % 100 + (bar ? 100 : 0));
        }
    }
    for (int k = 0; k < 2; k++) {
        size_t begin = k ? 8 : 16, bytes = k ? n : n * PIXELS;
        head[k][6] = (unsigned char)(n >> 8), head[k][7] = (unsigned char)n;
        memcpy(file, head[k], begin);
        memcpy(file + begin, k ? label : image, bytes);
        snprintf(name, sizeof name, "%s-%s-idx%d-ubyte", part, k ? "labels" : "images", k ? 1 : 3);
        test_write(test_path("%s", name), file, begin + bytes);
    }
    free(image), free(label), free(file);
}

/* What a run prints last, without its seconds. */
static const char *closing(const char *arguments) {
    static char line[8][512];
    static int turn;
    char command[BASE_PATH], *out = line[turn++ % 8];
    snprintf(command, sizeof command,
             "examples/federated --data %s --quiet --validation 100 --rounds 6 --eval-every 2 "
             "--clients 3 --batch 20 --width 2 %s 2>&1 | sed 's/seconds [0-9.]*//'",
             test_path("."), arguments);
    FILE *f = popen(command, "r"); // NOLINT(cert-env33-c)
    if (!f || !fgets(out, 512, f)) *out = 0;
    if (f) pclose(f);
    return out;
}

TEST(clients_give_the_same_bits_as_threads_and_processes) {
    static const char *const method[] = {"signmuon", "ef21-muonsign", "muon-avgpolar", "adamw"};
    write_bars("train", 900, 1);
    write_bars("t10k", 300, 3);
    for (size_t i = 0; i < COUNT(method); i++) {
        char a[256], b[256], c[256];
        snprintf(a, sizeof a, "--method %s", method[i]);
        snprintf(b, sizeof b, "--method %s --backend processes", method[i]);
        snprintf(c, sizeof c, "--method %s --threads 3", method[i]);
        const char *one = closing(a), *two = closing(b), *three = closing(c);
        CHECK(strstr(one, "model ") && !strcmp(one, two) && !strcmp(one, three), "%s%s%s", one, two,
              three);
    }
    static const char *const gain[][2] = {
        {"signum", "unit-gain"}, {"muon", "unit-gain"}, {"scion", "none"}, {"adamw", "none"}};
    for (size_t i = 0; i < COUNT(gain); i++) { /* what --gain auto is */
        char a[256], b[256];
        snprintf(a, sizeof a, "--method %s", gain[i][0]);
        snprintf(b, sizeof b, "--method %s --gain %s", gain[i][0], gain[i][1]);
        const char *one = closing(a), *two = closing(b);
        CHECK(strstr(one, "model ") && strcmp(one, two) == 0, "%s%s", one, two);
    }
    const char *one = closing(""), *two = closing("--seed 2");
    CHECK(strstr(one, "model ") && strstr(two, "model ") && strcmp(one, two) != 0, "%s%s", one,
          two);
}

typedef struct Judged {
    Run run;
    int same;
} Judged;

/* Does an evaluation stay the same when the clients lose their hidden matrices? */
static int lose_params(Comm *c, void *arg) {
    Judged *j = arg;
    Client k;
    double train[2], before[2], after[2];
    open_client(&k, &j->run, c);
    for (; k.round < 3; k.round++) train_round(&k, 1, train);
    evaluate(&k, before);
    for (const SmTensor *t = k.run->net.tensor; t < k.run->net.tensor + k.run->net.tensors; t++)
        if (t->role == SM_HIDDEN)
            memset(k.params + t->offset, 0, t->rows * t->cols * sizeof *k.params);
    evaluate(&k, after);
    if (c->rank == 0) j->same = before[0] == after[0];
    close_client(&k);
    return 0;
}

TEST(feedback_is_judged_by_the_servers_exact_model) {
    static const char *const method[] = {"signmuon", "ef21-muonusign", "ef21-muonsign"};
    char folder[BASE_PATH], error[512] = "";
    write_bars("train", 900, 1);
    write_bars("t10k", 300, 3);
    snprintf(folder, sizeof folder, "%s", test_path("."));
    for (int i = 0; i < 3; i++) {
        Judged j = {.same = -1};
        CommOptions options = {.backend = "threads", .workers = 3, .threads = 1, .timeout = 60};
        flags_defaults(flags, FLAGS, &j.run.o);
        j.run.o.data = folder, j.run.o.method = method[i], j.run.o.width = 2;
        j.run.o.clients = 3, j.run.o.batch = 20, j.run.o.validation = 100;
        prepare(&j.run);
        CHECK(comm_run(&options, lose_params, &j, NULL, error, sizeof error) == 0, "%s", error);
        CHECK(j.same == (i == 2), "%s: %d", method[i],
              j.same); /* only its downlink is compressed */
        images_free(&j.run.train), images_free(&j.run.test);
        free(j.run.list), free(j.run.owner), free(j.run.tests);
    }
}

TEST(bars_are_learnt_and_wrong_words_refused) {
    write_bars("train", 900, 1);
    write_bars("t10k", 300, 3);
    for (size_t i = 0; i < 2; i++) {
        char flags_of[64];
        double accuracy = 0;
        snprintf(flags_of, sizeof flags_of, "--model %s --rounds 60 --test", model_name(i));
        const char *line = closing(flags_of), *at = strstr(line, "last ");
        CHECK(at && sscanf(at, "last %lf", &accuracy) == 1 && accuracy > 97, "%s", line);
    }
    CHECK(strstr(closing("--split dirichlet:x"), "--split takes"));
    CHECK(strstr(closing("--data nowhere"), "nowhere"));
    CHECK(strstr(closing("--validation 880"), "--validation"));
    CHECK(strstr(closing("--method muons"), "did you mean"));
}
