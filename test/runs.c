/* runs.c - proofs of what runs compute: the same bits however they run, bytes, logs, resuming. */
#include "../lib/safetensors.h"
#include "program.h"

/* 6 steps on threads, and 3 on processes that are resumed on threads (or the other way round), give
 * the same bits, whatever the compute threads and the steps between validations, rows and saves. */
static void check_bits(size_t i, int workers, const char *line) {
    const char *same = SMALL "--val-data short.txt --schedule constant --warmup 2";
    OK("%s --steps 6 --out a --workers %d %s", same, workers, line);
    OK("%s --steps 3 --out b --workers %d %s --threads 2 --backend %s --eval-every 2 --log-every 1 "
       "--save-every 2 --check-every 1",
       same, workers, line, backend[i % 2]);
    OK("train_gpt --resume --out b --steps 6 --quiet --threads %zu --backend %s", 1 + i % 2,
       backend[(i + 1) % 2]);
    check_same("a", "b", workers);
}

TEST(run_bits_are_same_for_every_method) {
    char methods[4096], line[128];
    size_t i = 0;
    setup();
    OK("train_gpt --list methods | grep -v '^ ' | cut -d ' ' -f 1");
    memcpy(methods, ended.out, sizeof methods);
    for (char *end, *name = methods; (end = strchr(name, '\n')) != NULL; name = end + 1, i++) {
        snprintf(line, sizeof line, "--method %.*s", (int)(end - name), name);
        check_bits(i, 2 + i % 3 % 2, line);
    }
    CHECK(i >= 20, "%zu methods", i);
}

TEST(run_bits_are_same_for_every_flag) {
    static const struct {
        int workers;
        const char *line;
    } rows[] = {
        {3, "--aux sign --dropout 0.1 --nesterov off"},
        {2, "--aux sign --bias --zeros abstain --ties abstain"},
        {2, "--polar-after-vote --aux same --layers 2"},
        {3, "--polar-every 2 --aux lmo"},
        {6, "--method lion --aux same --ties plus --clip 0.3"},
        {1, "--aux sign --worker-map row --dropout 0.1"},
        {3, "--aux sign --dtype bf16 --shards contiguous"},
        {3, "--method sgd --aux sign --server-map frobenius --momentum 0.9"},
        {2, "--method muon --ns polar-express5 --ns-dtype bf16 --dropout 0.2 --bias"},
        {3, "--method adamw --weight-decay 0.1 --seed 3"},
        {3, "--method ef21-muon --up rankk:0.2+natural --down topk:0.3 --dropout 0.1"},
        {6, "--method ef21-muon --up dropout:0.5 --down natural:stochastic --aux sign"},
        {3, "--method ef21-signmuon --up coltopk:0.2+natural --norm nuclear --aux lmo"},
        {2, "--method demuon --topology one-peer"},
        {6, "--method gt-nsgdm --topology directed-ring"},
        {6, "--aux sign --adversaries 2 --attack random"},
        {3, "--method ef21-muon --aux same --adversaries 1 --attack scale:-2"},
        {3, "--method demuon --adversaries 1 --attack flip"},
    };
    setup();
    for (size_t i = 0; i < COUNT(rows); i++) check_bits(i, rows[i].workers, rows[i].line);
}

TEST(run_with_another_seed_or_dtype_gives_another_model) {
    setup();
    OK(SMALL "--steps 2 --aux sign --workers 3 --out a --seed 1");
    OK(SMALL "--steps 2 --aux sign --workers 3 --out b --seed 2");
    OK(SMALL "--steps 2 --aux sign --workers 3 --out c --seed 1 --ns-dtype bf16");
    CHECK(step_of("a") == 2 && step_of("b") == 2);
    CHECK(!equal_files("a/last/model", "b/last/model"));
    CHECK(!equal_files("a/last/model", "c/last/model"));
    CHECK(!equal_files("a/last/worker-1", "b/last/worker-1"));
    CHECK(!equal_files("a/last/worker-1", "a/last/worker-2"));
}

TEST(run_sends_bytes_that_dry_run_promises) {
    static const struct {
        double
            bits; /* sent per parameter by 4 workers, in closed form; 0: not one number for all */
        int even; /* all workers send the same */
        const char *line;
    } rows[] = {
        {1.5, 1, "--aux sign"},
        {1.5, 1, "--method signum --aux sign --backend processes"},
        {48, 1, "--method adamw"},
        {48, 0, "--method muon"}, /* few matrices, each with one owner: the largest sends more */
        {0, 1, "--method signmuon --aux adamw"},
        {0, 0, "--method muonusign --aux sign"},
        {0, 0, "--method ef21-muonsign --aux lmo"},
        {0, 0, "--method ef21-signmuon --up rankk:0.2+natural --down topk:0.3 --aux sign"},
        {128, 1, "--method demuon --aux lmo"}, /* two neighbours, two exchanges */
        {64, 1, "--method demuon --aux lmo --topology one-peer"},
        {48, 0, "--method dsgd --topology star"}, /* six messages for four nodes */
        {128, 1, "--method gt-nsgdm --topology exponential --backend processes"},
    };
    char file[32];
    setup();
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *line = SMALL "--layers 2 --width 64 --batch 4 --workers 4 --steps 4 --out a";
        double mean = 0, most = 0, up = 0;
        OK("%s %s --dry-run", line, rows[i].line);
        double parameters = number_after(ended.out, "context 16: ");
        double promised = number_after(ended.out, "per step, on average: ");
        double share = number_after(ended.out, "uplink: ");
        OK("%s %s", line, rows[i].line);
        double told = number_after(ended.out, "bytes_sent ") / 4;
        for (int r = 0; r < 4; r++) {
            snprintf(file, sizeof file, "a/last/worker-%d", r);
            up += meta(file, "up") / 4 / 4;
            mean += meta(file, "sent") / 4 / 4;
            most = fmax(most, meta(file, "sent") / 4);
        }
        CHECK(fabs(told - most) <= 0.02 * most, "%g, not %g: %s", told, most, rows[i].line);
        CHECK(fabs(mean / promised - 1) <= 0.02, "%g, not %g: %s", mean, promised, rows[i].line);
        CHECK(!rows[i].even || fabs(told / promised - 1) <= 0.02, "%s", rows[i].line);
        CHECK(isnan(share) || fabs(up / (share * parameters * 3) - 1) <= 0.01, "%s", rows[i].line);
        CHECK(isnan(share) == !strstr(rows[i].line, "ef21"));
        if (rows[i].bits > 0) CHECK_NEAR(8 * mean / parameters, rows[i].bits, 0.02);
    }
    OK(SMALL "--out a --steps 3 | grep 'bytes_sent 0$'");
}

TEST(run_resumed_takes_flags_from_its_save) {
    static const char *const fixed[] = {
        "--width 64",    "--heads 4",           "--layers 2",     "--context 8", "--workers 2",
        "--method muon", "--batch 12",          "--seed 5",       "--bias off",  "--vocab bytes",
        "--aux adamw",   "--shards contiguous", "--adversaries 1"};
    const char *flags = SMALL "--workers 3 --aux sign --dropout 0.1 --lr 2e-3 --bias --warmup 2 "
                              "--schedule constant";
    char word[32];
    setup();
    OK("%s --steps 12 --out whole", flags);
    OK("%s --steps 4 --out a", flags);
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(fixed); i++) {
        snprintf(word, sizeof word, "%.*s", (int)strcspn(fixed[i], " "), fixed[i]);
        REFUSED(2, word, "train_gpt --resume --out a %s", fixed[i]);
    }
    CHECK(before == snapshot());
    OK("train_gpt --resume --out a --quiet --steps 8 --width 32 --workers=3"); /* equal values */
    OK("train_gpt --resume --out a --quiet --steps 12");
    check_same("whole", "a", 3);
    OK("touch -d '1 hour ago' a/last/*; train_gpt --resume --out a");
    CHECK(strstr(ended.err, "a/last is at step 12 of 12: there is nothing to train\n"));
    CHECK(number_after(ended.out, " steps ") == 12);
    OK("test -z \"$(find a/last -mmin -30 -name '*.safetensors')\""); /* nothing was written anew */
    check_same("whole", "a", 3);
}

TEST(run_resumed_on_other_data_must_name_it) {
    setup();
    OK("sed 's/a/y/' text.txt >other.txt; cp text.txt kept.txt");
    OK(SMALL "--steps 4 --out a; mv other.txt text.txt");
    uint64_t before = snapshot();
    REFUSED(1, "name it with --data", "train_gpt --resume --out a --steps 6");
    CHECK(before == snapshot());
    OK("train_gpt --resume --out a --steps 6 --quiet --data ./text.txt");
    OK("train_gpt --resume --out a --steps 8 --quiet"); /* which is the save's data now */
    OK("cp kept.txt text.txt");
    REFUSED(1, "name it with --data", "train_gpt --resume --out a --steps 9");
    OK("train_gpt --resume --out a --steps 9 --quiet --data kept.txt");
}

/* to <- a tensor of a file of a save; returns its number of entries, 0 when it cannot be read. */
enum { MOST = 128 * 32 };
static size_t read_tensor(const char *file, const char *name, float to[MOST]) {
    char error[512] = "";
    StFile f;
    int failed = st_open(&f, test_path("%s.safetensors", file), error, sizeof error);
    const StEntry *e = failed ? NULL : st_find(&f, name);
    size_t n = e ? e->count : 0;
    if (n) failed = st_read_f32(&f, name, to, n, error, sizeof error);
    CHECK(n && !failed, "%s: %s: %s", file, name, error);
    st_close(&f);
    return failed ? 0 : n;
}
#define MOMENTUM "momentum.transformer.h.0.mlp.c_fc.weight"

static double square(double x) { return x * x; }

TEST(run_learning_rates_follow_their_schedules) {
    static const struct {
        const char *line;
        double rate[3]; /* of the peak, in steps 2, 5 and 10 of 10 */
    } rows[] = {
        {"--warmup 2", {2. / 3, 0.75, 0.125}}, /* 0 would come in step 11 */
        {"--warmup 2 --final-lr 0.1", {2. / 3, 0.1 + 0.9 * 5 / 7, 0.1}},
        {"--warmup 2 --final-lr 0.1 --schedule cosine", {2. / 3, 0.8305704, 0.1}},
        {"--warmup 2 --final-lr 0.1 --schedule wsd --cooldown 0.5", {2. / 3, 1, 0.1}},
        {"--schedule wsd --cooldown 0.7", {1, 6. / 7, 1. / 7}},
        {"--warmup 1 --schedule constant", {1, 1, 1}},
        {"--schedule gluon", {0.5946036, 0.2990698, 0.1778279}},
    };
    setup();
    for (size_t i = 0; i < COUNT(rows); i++) {
        OK(SMALL "--steps 10 --log-every 1 --lr 0.5 --aux-lr 0.01 --out a %s", rows[i].line);
        for (int k = 0; k < 3; k++) {
            double lr = log_value("a", (long[]){2, 5, 10}[k], "lr");
            CHECK_NEAR(lr, 0.5 * rows[i].rate[k], 1e-6);
        }
    }
}

TEST(run_resumed_by_as_many_workers_changes_nothing) {
    const char *line = SMALL "--workers 3 --method ef21-muonsign --down topk:0.05 "
                             "--schedule constant --steps 12";
    setup();
    OK("%s --out a", line);
    OK("%s --out b --steps 6", line);
    OK("train_gpt --resume --out b --quiet --steps 12 --workers 3 --resume-workers keep");
    check_same("a", "b", 3);
}

TEST(run_resized_keeps_averages_or_zeros_momenta) {
    static const char *const policy[] = {"keep", "mean", "zero"};
    static float before[3][MOST], mean[MOST], after[MOST];
    char file[32];
    setup();
    OK(SMALL "--workers 3 --steps 5 --out saved");
    REFUSED(2, "--resume-workers", "train_gpt --resume --out saved --workers 2");
    for (int r = 0; r < 3; r++) {
        snprintf(file, sizeof file, "saved/last/worker-%d", r);
        read_tensor(file, MOMENTUM, before[r]);
        for (int i = 0; i < MOST; i++) mean[i] += before[r][i] / 3;
    }
    for (int k = 0; k < 6; k++) {
        int workers = k % 2 ? 6 : 2;
        OK("rm -rf a; cp -R saved a; train_gpt --resume --out a --quiet --workers %d --steps 6 "
           "--resume-workers %s --momentum 0.99999",
           workers, policy[k / 2]);
        CHECK((int)meta("a/last/model", "workers") == workers);
        for (int r = 0; r < workers; r++) { /* one step adds 1e-5 of a gradient */
            double apart = 0, length = 0;
            snprintf(file, sizeof file, "a/last/worker-%d", r);
            read_tensor(file, MOMENTUM, after);
            for (int i = 0; i < MOST; i++) {
                float expected = k / 2 == 2 ? 0 : k / 2 == 0 && r < 3 ? before[r][i] : mean[i];
                apart += square((double)after[i] - (double)expected);
                length += square((double)mean[i]);
            }
            CHECK(length > 0 && apart < 1e-6 * length, "%s, worker %d", policy[k / 2], r);
        }
    }
}

/* The steps of OUT/log.csv; every row has as many columns as the first. */
static void check_steps(const char *out, const char *steps) {
    OK("cd %s && test $(tr -dc ',\\n' <log.csv | sort -u | wc -l) = 1 && "
       "tail -n +2 log.csv | cut -d , -f 1 | tr '\\n' ' '",
       out);
    CHECK(strcmp(ended.out, steps) == 0, "%s: %s", out, ended.out);
}

TEST(run_log_has_one_row_per_step) {
    setup();
    OK(SMALL "--steps 20 --log-every 4 --eval-every 10 --out a --workers 3 --link 100mbit,5ms");
    check_steps("a", "0 4 8 10 12 16 20 ");
    CHECK(isnan(log_value("a", 4, "val_loss")) && isfinite(log_value("a", 10, "val_loss")));
    CHECK(log_value("a", 20, "tokens") == 20 * 6 * 16 && log_value("a", 20, "workers") == 3);
    double bytes = log_value("a", 20, "bytes_sent"), wire = log_value("a", 20, "wire_seconds");
    CHECK(bytes > 0 && log_value("a", 20, "bytes_received") > 0);
    CHECK(wire > bytes * 8 / 100e6 + 20 * 0.005 && log_value("a", 12, "wire_seconds") < wire);
    OK(SMALL "--steps 9 --log-every 1 --save-every 3 --out b --eval-every 4");
    /* rows behind the save, as a killed run leaves them, and half a row */
    OK("rm -r b/last; mv b/previous b/last; printf 10,9 >>b/log.csv");
    OK("train_gpt --resume --out b --quiet --steps 12");
    check_steps("b", "0 1 2 3 4 5 6 7 8 9 10 11 12 ");
    CHECK(isnan(log_value("b", 12, "wire_seconds")));
    OK("train_gpt --resume --out b --quiet --steps 20 --eval-every 0 --log-every 0");
    check_steps("b", "0 1 2 3 4 5 6 7 8 9 10 11 12 20 ");
    OK(SMALL "--steps 3 --out b"); /* a new run has a new log */
    check_steps("b", "3 ");
    OK(SMALL "--steps 0 --eval-every 1 --out c");
    check_steps("c", "0 ");
}

TEST(run_logs_how_far_server_and_workers_part) {
    setup();
    OK(SMALL "--method ef21-muonsign --workers 3 --steps 10 --eval-every 5 --out a");
    CHECK(log_value("a", 10, "model_gap") > 1e-4 && isnan(log_value("a", 10, "consensus")));
    double server = log_value("a", 10, "server_val_loss"), val = log_value("a", 10, "val_loss");
    CHECK(server != val && fabs(server - val) < 0.05);
    OK(SMALL "--method ef21-muonusign --workers 3 --steps 3 --out a"); /* its downlink is exact */
    CHECK(isnan(log_value("a", 3, "model_gap")) && isnan(log_value("a", 3, "server_val_loss")));
    OK(SMALL "--method ef21-muon --down damping:0.01 --workers 3 --steps 8 --schedule constant "
             "--warmup 0 --lr 1 --aux same --out a");
    CHECK(strstr(ended.err, "warning: ") && strstr(ended.err, "--down damping:0.01"));
    server = log_value("a", 8, "server_val_loss"), val = log_value("a", 8, "val_loss");
    CHECK_NEAR(number_after(ended.err, "model has loss "), server, 6e-5);
    CHECK_NEAR(number_after(ended.err, "the workers' "), val, 6e-5);
}

TEST(run_gossip_saves_mean_of_nodes) {
    static const char *const lines[] = {"--method demuon --topology directed-ring",
                                        "--method dsgd --topology star",
                                        "--method demuon --topology complete"};
    static const char *const names[] = {"wte",
                                        "wpe",
                                        "h.0.ln_1",
                                        "h.0.attn.c_attn",
                                        "h.0.attn.c_proj",
                                        "h.0.ln_2",
                                        "h.0.mlp.c_fc",
                                        "h.0.mlp.c_proj",
                                        "ln_f"};
    static float m[MOST], p[3][MOST];
    char file[32], name[64];
    setup();
    for (size_t k = 0; k < COUNT(lines); k++) {
        double apart = 0, worst = 0;
        OK(SMALL "--workers 3 --steps 8 --eval-every 4 --log-every 2 --out a %s", lines[k]);
        for (size_t i = 0; i < COUNT(names); i++) {
            snprintf(name, sizeof name, "node.transformer.%s.weight", names[i]);
            size_t n = read_tensor("a/last/model", name + 5, m);
            for (int j = 0; j < 3; j++) {
                snprintf(file, sizeof file, "a/last/worker-%d", j);
                read_tensor(file, name, p[j]);
            }
            for (size_t at = 0; at < n; at++) {
                double mean = ((double)p[0][at] + (double)p[1][at] + (double)p[2][at]) / 3;
                for (int j = 0; j < 3; j++) apart += square((double)p[j][at] - mean);
                worst = fmax(worst, fabs(mean - (double)m[at]));
            }
        }
        CHECK(worst <= 1e-7, "%g", worst);
        CHECK_NEAR(log_value("a", 8, "consensus"), sqrt(apart), 1e-5 * sqrt(apart) + 1e-9);
        CHECK(isfinite(log_value("a", 2, "consensus")) && isnan(log_value("a", 4, "node_val_min")));
        double least = log_value("a", 8, "node_val_min"), mean = log_value("a", 8, "node_val_mean"),
               most = log_value("a", 8, "node_val_max"), val = log_value("a", 8, "val_loss");
        if (k < 2) CHECK(least < mean && mean < most && apart > 1e-6 && fabs(mean - val) < 0.1);
        if (k == 2) CHECK(apart < 1e-10 && least == most && fabs(mean - val) < 2e-6);
        OK("train_gpt --eval --out a");
        CHECK_NEAR(number_after(ended.out, "val_loss "), val, 0);
    }
}
