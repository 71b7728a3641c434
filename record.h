/* record.h - what a run of train_gpt keeps and shows: saves, log.csv, samples, progress. MIT.

     as_stored                       a tensor as a file holds it
     check_shapes, check_all_used    refuse a file that is not this model's
     save, load_model, load_state    parameters, optimizer and counters to OUT and back
     gather_statistics               payload and agreement of all workers
     log_row, show_progress          a row of log.csv; the progress line
     cut_samples, keep_sample        OUT/samples.txt

   Whatever cannot be written or read ends the program here, and the save before it stands. */
#ifndef RECORD_H
#define RECORD_H

#include "lib/safetensors.h"
#include "run.h"

/* ------------------------------------------------------------------------------------------------
 * tensors in files */

/* A tensor as a file holds it: vectors have one dimension. */
static inline StTensor as_stored(const SmTensor *t, const char *name, const float *params) {
    size_t rows = t->blocks * t->rows;
    StTensor s = {.name = name, .dtype = "F32", .rank = rows == 1 ? 1 : 2};
    s.shape[0] = rows == 1 ? t->cols : rows;
    s.shape[1] = rows == 1 ? 0 : t->cols;
    s.data = params ? params + t->offset : NULL;
    return s;
}

static inline void read_array(const StFile *f, const char *name, float *to, size_t count) {
    char error[BASE_PATH + 512];
    must(st_read_f32(f, name, to, count, error, sizeof error), error);
}

/* Refuse a file whose model is not that of the flags. */
static inline void check_shapes(const StFile *f, const SmTensor *tensor, size_t tensors) {
    for (size_t i = 0; i < tensors; i++) {
        StTensor want = as_stored(&tensor[i], tensor[i].name, NULL);
        const StEntry *have = st_find(f, want.name);
        if (!have) die(FAILED, "%s: there is no tensor '%s'", f->path, want.name);
        if (have->rank != want.rank || have->shape[0] != want.shape[0] ||
            have->shape[1] != want.shape[1])
            die(FAILED, "%s: '%s' is %zu x %zu, and the flags and the text ask for %zu x %zu",
                f->path, want.name, have->shape[0], have->rank < 2 ? 1 : have->shape[1],
                want.shape[0], want.rank < 2 ? 1 : want.shape[1]);
    }
}

/* Refuse weights to begin with of which the model would leave some out. nanoGPT's attn.bias is no
 * weight but the causal mask. */
static inline void check_all_used(const StFile *f, const SmTensor *tensor, size_t tensors) {
    for (const StEntry *e = f->entries; e < f->entries + f->n; e++) {
        const char *end = strrchr(e->name, '.');
        int known = strncmp(e->name, "transformer.", 12) != 0 || end - e->name < 5 ||
                    strcmp(end - 5, ".attn.bias") == 0;
        for (size_t i = 0; i < tensors && !known; i++) known = strcmp(e->name, tensor[i].name) == 0;
        if (!known)
            die(FAILED, "%s: '%s' has no place in a model of these layers and biases", f->path,
                e->name);
    }
}

/* ------------------------------------------------------------------------------------------------
 * saves: model.safetensors with nanoGPT's names, and worker-R.safetensors with what worker R alone
 * holds: momenta, error feedback, a node's own model, counters */

/* Text pairs of a part; texts live as long as the list. */
typedef struct Pairs {
    StPair pair[FLAGS + 16];
    char text[FLAGS + 16][64];
    size_t n;
} Pairs;

static inline void add_text(Pairs *p, const char *key, const char *value) {
    assert(p->n < FLAGS + 16);
    p->pair[p->n++] = (StPair){key, value};
}
static inline void add_number(Pairs *p, const char *key, double value) {
    snprintf(p->text[p->n], 64, "%.17g", value);
    add_text(p, key, p->text[p->n]);
}

/* The number that a file's metadata hold under a key. */
static inline double stored_number(const StFile *f, const char *key) {
    const char *text = st_meta(f, key);
    char *end = NULL;
    double value = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end)
        die(FAILED, "%s: its metadata hold no number for '%s': it was written by another program",
            f->path, key);
    return value;
}

/* An array of a worker's part. */
typedef struct Kept {
    char name[112];
    SmState state;
    int is_node; /* a tensor of a gossip node's own model; else state of the optimizer */
} Kept;

/* All arrays of a worker's part, for writing and for reading; the caller frees the list. */
static inline Kept *list_state(const Worker *w, size_t *count) {
    size_t states = 0;
    const SmTensor *tensor = w->tensor;
    SmState s;
    while (sm_state(w->optimizer, states, &s)) states++;
    *count = states + (gossips(w) ? w->tensors : 0);
    Kept *list = allocate((*count + 1) * sizeof *list);
    for (size_t i = 0; i < *count; i++) {
        if (!sm_state(w->optimizer, i, &s)) {
            const SmTensor *t = &tensor[i - states];
            s = (SmState){.kind = "node", .tensor = i - states, .block = -1};
            s.rows = t->blocks * t->rows, s.cols = t->cols, s.data = w->params + t->offset;
        }
        list[i].state = s;
        list[i].is_node = i >= states;
        int n = snprintf(list[i].name, 112, "%s.%s", s.kind, tensor[s.tensor].name);
        if (s.block >= 0) snprintf(list[i].name + n, 112 - (size_t)n, ".%d", s.block);
    }
    return list;
}

/* This worker's payload since the run began. */
static inline void count_traffic(const Worker *w, double *out) {
    const Comm *c = w->c;
    memcpy(out, w->earlier, sizeof w->earlier);
    for (int k = COMM_MATRICES; k <= COMM_CONTROL; k++) {
        out[SENT] += (double)c->sent[k];
        out[RECEIVED] += (double)c->received[k];
        out[MESSAGES] += (double)c->messages[k];
        out[UP] += k == COMM_CONTROL ? 0 : (double)c->up[k];
        out[DOWN] += k == COMM_CONTROL ? 0 : (double)c->down[k];
    }
}

/* Write a part of a save. With params: "model", which also holds every flag and the vocabulary.
 * With NULL: what this worker alone holds; worker 0 adds what all share. */
static inline int write_part(const Worker *w, const float *params, const char *name,
                             const CheckpointStamp *stamp, char *error, size_t size) {
    const Run *run = w->run;
    size_t n = 0, arrays, count = w->tensors;
    const SmTensor *tensor = w->tensor;
    char part[32] = "model";
    double traffic[TRAFFIC];
    Kept *list = list_state(w, &arrays);
    StTensor *t = allocate((count + arrays + 1) * sizeof *t);
    Pairs *p = allocate(sizeof *p);
    if (params) {
        for (; n < count; n++) t[n] = as_stored(&tensor[n], tensor[n].name, params);
        t[n++] = as_stored(&tensor[0], "lm_head.weight", params); /* tied to the embedding */
        for (size_t i = 0; i < FLAGS; i++)
            if ((flags[i].keep & KEEPING) != PER_CALL)
                add_text(p, flags[i].name, flags_text(&flags[i], &run->o, p->text[p->n], 64));
        add_text(p, "format", "train_gpt " SM_VERSION);
        add_text(p, "vocabulary", run->vocab_text);
        snprintf(p->text[p->n], 64, "%016" PRIx64, data_fingerprint(&run->data));
        add_text(p, "data_fingerprint", p->text[p->n]);
        add_number(p, "train_loss", w->train);
        add_number(p, "grad_norm", w->norm);
        add_number(p, "agreement", w->agreement);
        add_number(p, "val_loss", w->val);
        add_number(p, "best_val_loss", w->best);
        add_number(p, "evaluated", w->evaluated);
    } else {
        snprintf(part, sizeof part, "worker-%d", w->c->rank);
        for (size_t i = 0; i < arrays; i++) {
            const SmState *s = &list[i].state;
            if (s->replicated && w->c->rank) continue;
            t[n++] = list[i].is_node
                         ? as_stored(&tensor[s->tensor], list[i].name, w->params)
                         : (StTensor){list[i].name, "F32", {s->rows, s->cols}, 2, s->data};
        }
        add_number(p, "seconds", elapsed(w));
        count_traffic(w, traffic);
        for (int i = 0; i < TRAFFIC; i++) add_number(p, traffic_name[i], traffic[i]);
    }
    int failed = checkpoint_write(run->o.out, name, part, stamp, t, n, p->pair, p->n, error, size);
    free(list), free(t), free(p);
    return failed;
}

/* End the program where the optimizer's device has failed. */
static inline void device_must(const Worker *w, int failed) {
    must(failed, sm_device_error(w->optimizer));
}

/* All workers together: save the model under OUT/name. When that fails the program ends, and the
 * save before it still stands. */
static inline void save(Worker *w, const float *model, const char *name, int with_state) {
    const char *out = w->run->o.out;
    char error[BASE_PATH + 512] = "";
    CheckpointStamp stamp = {
        .run = w->identity, .step = (uint64_t)w->step, .parts = with_state ? w->c->size + 1 : 1};
    if (with_state && w->on_device) device_must(w, sm_from_device(w->optimizer));
    int failed = w->c->rank == 0 && checkpoint_begin(out, name, error, sizeof error);
    if (!first_nonzero(w, failed)) {
        if (w->c->rank == 0) failed = write_part(w, model, name, &stamp, error, sizeof error);
        if (!failed && with_state) failed = write_part(w, NULL, name, &stamp, error, sizeof error);
        if (!first_nonzero(w, failed) && w->c->rank == 0)
            failed = checkpoint_commit(out, name, with_state, error, sizeof error);
    }
    if (!first_nonzero(w, failed)) return;
    if (*error) die(FAILED, "%s; the save before it is untouched: mend this, then --resume", error);
    comm_wait_for_end();
}

/* The parameters that the run begins with, from a file. One that is not a save of ours may hold an
 * output layer apart from the embedding. */
static inline void load_model(const Worker *w, const StFile *f) {
    for (size_t i = 0; i < w->tensors; i++) {
        const SmTensor *t = &w->tensor[i];
        size_t size = t->blocks * t->rows * t->cols;
        read_array(f, t->name, w->params + t->offset, size);
        if (!sm_finite(w->params + t->offset, size))
            die(FAILED, "%s: '%s' holds NaN or infinity", f->path, t->name);
    }
    const StEntry *wte = st_find(f, w->tensor[0].name), *head = st_find(f, "lm_head.weight");
    size_t bytes = wte->end - wte->begin;
    if (head &&
        (head->end - head->begin != bytes || memcmp(st_data(f, wte), st_data(f, head), bytes)))
        die(FAILED, "%s: lm_head.weight is not wte.weight: this model has them tied", f->path);
}

/* This worker's training state. Another number of workers than saved it goes on by
 * --resume-workers: each with its own momenta (new ones with the mean), all with the mean, or with
 * zero. */
static inline void load_state(Worker *w) {
    Run *run = w->run;
    const StFile *model = &run->checkpoint.model;
    const char *policy = run->o.resume_workers;
    char error[BASE_PATH + 512], name[32];
    int saved = run->saved_workers, resized = saved != w->c->size || run->origin;
    int rank = run->origin ? run->origin[w->c->rank] : w->c->rank; /* in the save */
    int own = !resized || (strcmp(policy, "keep") == 0 && rank < saved);
    size_t count;
    Kept *list = list_state(w, &count);
    float weight = own ? 1 : strcmp(policy, "zero") == 0 ? 0 : 1 / (float)saved;
    float *scratch = allocate(w->parameters * sizeof *scratch);
    for (int r = 0; r < saved; r++) {
        StFile part;
        int is_source = own ? r == rank : weight > 0;
        if (r > 0 && r != rank && !is_source) continue;
        snprintf(name, sizeof name, "worker-%d", r);
        must(checkpoint_open_part(&run->checkpoint, name, &part, error, sizeof error), error);
        for (size_t i = 0; i < count; i++) {
            const SmState *s = &list[i].state;
            size_t n = s->rows * s->cols;
            int moved = s->block >= 0 && resized; /* blocks change owners */
            if (s->replicated ? r == 0 : list[i].is_node && is_source && weight == 1) {
                read_array(&part, list[i].name, s->data, n);
            } else if (is_source && !moved && !s->replicated && !list[i].is_node) {
                read_array(&part, list[i].name, scratch, n);
                for (size_t k = 0; k < n; k++) s->data[k] += weight * scratch[k];
            }
        }
        if (r == 0) w->seconds = stored_number(&part, "seconds");
        for (int i = 0; i < TRAFFIC && r == rank; i++)
            w->earlier[i] = stored_number(&part, traffic_name[i]);
        st_close(&part);
    }
    free(list), free(scratch);
    if (resized) sm_regroup(w->optimizer, w->params);
    w->step = (long)run->checkpoint.stamp.step;
    w->train = stored_number(model, "train_loss");
    w->norm = stored_number(model, "grad_norm");
    w->agreement = stored_number(model, "agreement");
    if (run->other_data) return; /* its losses cannot be compared */
    w->evaluated = stored_number(model, "evaluated");
    w->val = stored_number(model, "val_loss");
    w->best = stored_number(model, "best_val_loss");
    if (stored_number(model, "eval-tokens") != (double)run->o.eval_tokens && w->step < run->o.steps)
        w->best = NAN; /* of other tokens */
}

/* ------------------------------------------------------------------------------------------------
 * what a run tells */

/* Payload and agreement, from all workers; on a graph their distance from the mean model. */
static inline void gather_statistics(Worker *w) {
    struct Statistics {
        double traffic[TRAFFIC];
        SmAgreement agreement;
    } mine = {.agreement = sm_agreement(w->optimizer)};
    double length, sum = 0;
    count_traffic(w, mine.traffic);
    const struct Statistics *all = gather(w, &mine, sizeof mine, COMM_OTHER);
    memset(w->most, 0, sizeof w->most);
    double signs = 0, confirmed = 0;
    for (int j = 0; j < w->c->size; j++) {
        for (int i = 0; i < TRAFFIC; i++) w->most[i] = fmax(w->most[i], all[j].traffic[i]);
        signs += all[j].agreement.signs, confirmed += all[j].agreement.confirmed;
    }
    if (signs > 0) w->agreement = confirmed / signs; /* else as it was saved */
    if (!gossips(w)) return;
    double apart = square_distance(w, w->params, deployed_model(w), &length);
    const double *parts = gather(w, &apart, sizeof apart, COMM_OTHER);
    for (int j = 0; j < w->c->size; j++) sum += parts[j];
    w->consensus = sqrt(sum);
}

/* The columns of log.csv: name, format, value in log_row. */
#define COLUMNS(COLUMN)                                                                            \
    COLUMN("step", "%.0f", (double)w->step)                                                        \
    COLUMN("tokens", "%.0f", (double)(w->step * o->batch * o->context))                            \
    COLUMN("seconds", "%.3f", elapsed(w))                                                          \
    COLUMN("train_loss", "%.6f", w->train)                                                         \
    COLUMN("val_loss", "%.6f", w->val + if_validated)                                              \
    COLUMN("lr", "%.6g", o->rule.lr *rate)                                                         \
    COLUMN("aux_lr", "%.6g", o->rule.aux_lr *rate)                                                 \
    COLUMN("grad_norm", "%.6g", w->norm)                                                           \
    COLUMN("bytes_sent", "%.0f", w->most[SENT])                                                    \
    COLUMN("bytes_received", "%.0f", w->most[RECEIVED])                                            \
    COLUMN("agreement", "%.5f", w->agreement)                                                      \
    COLUMN("wire_seconds", "%.4f", wire)                                                           \
    COLUMN("uplink_bytes", "%.0f", w->most[UP])                                                    \
    COLUMN("downlink_bytes", "%.0f", w->most[DOWN])                                                \
    COLUMN("server_val_loss", "%.6f", w->server_val + if_validated)                                \
    COLUMN("model_gap", "%.6g", w->gap + if_validated)                                             \
    COLUMN("consensus", "%.6g", w->consensus)                                                      \
    COLUMN("node_val_min", "%.6f", w->node_val[0] + if_validated)                                  \
    COLUMN("node_val_mean", "%.6f", w->node_val[1] + if_validated)                                 \
    COLUMN("node_val_max", "%.6f", w->node_val[2] + if_validated)                                  \
    COLUMN("workers", "%.0f", (double)w->c->size)
#define COLUMN_HEAD(title, number, value) {.name = title, .format = number},
#define COLUMN_VALUE(title, number, value) value,

static const ReportColumn columns[] = {COLUMNS(COLUMN_HEAD)};

/* A row of log.csv; NaN is a value that was not measured at this step. */
static inline void log_row(Worker *w, int validated) {
    const Options *o = &w->run->o;
    char error[BASE_PATH + 256];
    double rate = w->step > 0 ? schedule(o, w->step - 1) : NAN, if_validated = validated ? 0 : NAN;
    double per_byte, per_message, wire = NAN;
    if (*o->link && options_link(o->link, &per_byte, &per_message))
        wire = w->most[SENT] * per_byte + w->most[MESSAGES] * per_message;
    double values[] = {COLUMNS(COLUMN_VALUE)};
    must(report_row(&w->log, values, error, sizeof error), error);
}

/* Open OUT/samples.txt, or end the program; -1 when there is none and none is to be made. */
static inline int open_samples(const Worker *w, int mode, char *path, size_t size) {
    snprintf(path, size, "%s/samples.txt", w->run->o.out);
    int fd = base_open(path, mode);
    if (fd < 0 && (errno != ENOENT || mode & O_CREAT))
        die(FAILED, "%s: cannot be written: %s", path,
            errno == ENODEV || errno == ENXIO ? "it is not a regular file" : strerror(errno));
    return fd;
}

/* Drop the samples of this step, which is sampled again, and of later ones. */
static inline void cut_samples(const Worker *w) {
    char path[2 * BASE_PATH], *line = NULL;
    int fd = open_samples(w, O_RDWR, path, sizeof path), later = 0;
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    size_t room = 0;
    off_t at = 0;
    long step;
    for (ssize_t n; f && !later && (n = getline(&line, &room, f)) > 0; at += later ? 0 : n)
        later = sscanf(line, "--- step %ld", &step) == 1 && step >= w->step;
    if (later && ftruncate(fd, at)) die(FAILED, "%s: cannot be cut: %s", path, strerror(errno));
    if (f) fclose(f);
    free(line);
}

/* Add a sample, and show it. */
static inline void keep_sample(const Worker *w, const char *text, size_t size) {
    char path[2 * BASE_PATH], head[64];
    int n = snprintf(head, sizeof head, "--- step %ld\n", w->step);
    int fd = open_samples(w, O_WRONLY | O_CREAT | O_APPEND, path, sizeof path);
    if (base_write(fd, head, (size_t)n) || base_write(fd, text, size) || close(fd))
        die(FAILED, "%s: cannot be written: %s", path, strerror(errno));
    if (w->run->o.quiet) return;
    report_note(stderr, "--- step %ld", w->step);
    report_text_put(&(ReportText){.terminal = isatty(2)}, stderr, text, size, 1);
}

/* The progress line; on a narrow terminal it loses its least important fields. */
static inline void show_progress(Worker *w, int ends) {
    const Options *o = &w->run->o;
    ReportField f[8];
    size_t n = 0;
    char time[32];
    w->shown = base_now();
    if (o->quiet || w->c->rank) return;
    double spent = w->shown - w->started;
    double rate = spent > 0 ? (double)(w->step - w->initial_step) / spent : 0;
#define FIELD(weight, ...) (f[n].importance = weight, snprintf(f[n++].text, 64, __VA_ARGS__))
    FIELD(9, "step %ld/%ld", w->step, o->steps);
    if (!isnan(w->train)) FIELD(8, "loss %.4f", w->train);
    if (!isnan(w->val)) FIELD(7, "val %.4f", w->val);
    if (w->run->data.floor > 0) FIELD(3, "(entropy %.4f)", w->run->data.floor);
    if (rate > 0) {
        FIELD(4, "%.0f tokens/s", rate * (double)(o->batch * o->context));
        if (w->c->size > 1 && w->step > 0)
            FIELD(2, "%.3f bits/parameter",
                  8 * w->most[SENT] / (double)w->step / (double)w->parameters);
        report_duration(time, sizeof time, (double)(o->steps - w->step) / rate);
        FIELD(6, "ETA %s", time);
    }
#undef FIELD
    report_progress(stderr, f, n, ends);
}

#endif
