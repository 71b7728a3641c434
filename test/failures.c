/* failures.c - proofs of failing and going on: signals, kills, forged saves, full disks. */
#include "../lib/safetensors.h"
#include "program.h"

/* Start a run in a folder `a` that is not there yet. */
#define begin(...) (run("rm -rf a"), start("exec " __VA_ARGS__))

TEST(failure_unusable_data_or_out_exits_1) {
    // clang-format off
    static const char *const lines[] = { /* the sentence names the last word */
        "--data missing.txt", "--dry-run --data missing.txt", "--data folder", "--data empty.txt",
        "--data one.txt", "--context 500 --data short.txt", "--vocab chars --data latin.txt",
        "--data nothing-*.bin", "--data text.txt/x", "--val-data missing.txt", "--data pipe",
        "--val-data pipe", "--data /dev/zero", "--out text.txt", "--resume --out none",
        "--eval --out none", "--sample 5 --out none"};
    // clang-format on
    setup();
    OK("mkdir folder; mkfifo pipe; : >empty.txt; printf a >one.txt; printf 'caf\\351' >latin.txt");
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(lines); i++)
        REFUSED(1, strrchr(lines[i], ' ') + 1, "train_gpt --data text.txt %s", lines[i]);
    REFUSED(1, "text.txt", MODEL "--out text.txt/a/b");
    REFUSED(1, "GB", MODEL "--layers 1000 --width 65536");
    REFUSED(1, "GB", MODEL "--layers 1000 --width 512 --context 1024 --batch 1000000");
    run(MODEL "--method demuon --workers 3 --topology file:pipe"); /* no pipe is waited for */
    CHECK(ended.status && strstr(ended.err, "pipe"), "%s", ended.err);
    CHECK(before == snapshot());
}

TEST(failure_full_disk_keeps_save_before) {
    static const char *const lines[] = {
        "--sample 20 --out a", "--eval --out a", "--dry-run --data text.txt", "--help",
        "--list methods",      "--version"};
    setup();
    OK(SMALL "--out good --steps 4 --workers 3");
    OK("cp -R good a");
    for (int k = 0; k < 2; k++) { /* room for log.csv and the trial of saving, not for the model */
        REFUSED(1, "File too large",
                "ulimit -f 80; exec train_gpt --resume --out a --steps 8 --quiet --backend %s",
                backend[k]);
        check_same("a", "good", 3);
    }
    OK("train_gpt --resume --out a --steps 8 --quiet");
    for (size_t i = 0; i < COUNT(lines) && access("/dev/full", W_OK) == 0; i++)
        REFUSED(1, "cannot", "train_gpt %s >/dev/full", lines[i]);
}

TEST(failure_cut_data_ends_with_sentence) {
    static int32_t header[256] = {20240520, 1, 60000};
    static uint16_t shard[512 + 60000]; /* a token file, which is mapped */
    setup();
    memcpy(shard, header, sizeof header);
    for (size_t i = 512; i < sizeof shard / sizeof *shard; i++) shard[i] = (uint16_t)(i * i % 97);
    for (int k = 0; k < 2; k++) {
        test_write(test_path("long.bin"), shard, sizeof shard);
        pid_t pid = begin(ENDLESS "--data long.bin --workers 2 --out a --backend %s", backend[k]);
        await(pid, "a/log.csv", "\n5,");
        CHECK(truncate(test_path("long.bin"), 1100) == 0);
        finish(pid);
        check_ended(1, strstr(ended.err, "long.bin") ? "long.bin" : "cut short");
    }
}

TEST(failure_diverging_exits_3_and_keeps_save) {
    const char *wild = SMALL "--method adamw --lr 1e6 --weight-decay 1e3 --schedule constant "
                             "--warmup 0";
    setup();
    OK(SMALL "--out good --steps 8 --workers 3 --method sgd");
    OK("cp -R good a");
    for (int k = 0; k < 2; k++) {
        REFUSED(3, "transformer.", SMALL "--out a --workers 3 --method sgd --lr 1e6 --backend %s",
                backend[k]);
        check_same("a", "good", 3);
    }
    REFUSED(3, "transformer.", "%s --out b --steps 20 --save-every 1 --eval-every 1", wild);
    OK("if test -e b/last; then train_gpt --eval --out b; fi"); /* what stands there is finite */
    for (int steps = 1; steps < 5; steps++) {                   /* at the last step, too */
        if (run("%s --out c --steps %d", wild, steps)) check_ended(3, "transformer.");
        if (!ended.status) CHECK(isfinite(closing_loss()));
    }
}

TEST(failure_nan_sender_is_named_flippers_are_outvoted) {
    static const char *const lines[] = {"--method sgd",
                                        "--aux adamw --backend processes",
                                        "--method ef21-muon",
                                        "--method demuon",
                                        "--method ef21-muonsign --aux same --backend processes",
                                        "--method dsgd --topology star --backend processes"};
    setup();
    for (size_t i = 0; i < COUNT(lines); i++) {
        REFUSED(3, "worker 4 sent NaN in ",
                SMALL "--out a --steps %d --save-every 1 --eval-every 1 --workers 6 --adversaries "
                      "2 --attack nan %s",
                i % 2 ? 1 : 5, lines[i]);
        CHECK(strstr(ended.err, " at step 1: ") && access(test_path("a/last"), F_OK));
    }
    OK(SMALL "--out a --steps 120 --workers 6 --batch 12 --aux sign");
    double honest = closing_loss();
    OK(SMALL "--out a --steps 120 --workers 6 --batch 12 --aux sign --adversaries 2");
    CHECK(honest < closing_loss() && closing_loss() < log(23) - 0.05, "%g", closing_loss());
}

TEST(failure_signal_saves_and_resume_gives_same_bits) {
    static const struct {
        int signal, times, group, backend;
        const char *line;
    } rows[] = {
        {SIGTERM, 1, 0, 0, "--workers 3 --aux sign --dropout 0.1"},
        {SIGINT, 1, 1, 1, "--workers 2 --method muon"},
        {SIGHUP, 1, 0, 1, "--workers 3 --method ef21-muonsign"},
        {SIGINT, 2, 1, 1, "--workers 3 --method demuon"}, /* as terminals do: one wish */
        {SIGTERM, 2, 1, 0, "--workers 2 --method adamw"}, /* as timeout does */
    };
    setup();
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *where = backend[rows[i].backend];
        pid_t pid = begin(ENDLESS "--save-every 0 --out a --backend %s %s", where, rows[i].line);
        await(pid, "a/log.csv", "\n5,");
        for (int k = 0; k < rows[i].times; k++) kill(rows[i].group ? -pid : pid, rows[i].signal);
        CHECK(finish(pid) == 128 + rows[i].signal && !ended.size, "%d", ended.status);
        CHECK(strstr(ended.err, "a/last holds it, --resume goes on\n"), "%s", ended.err);
        long step = step_of("a");
        OK("train_gpt --resume --quiet --out a --steps %ld", step + 3);
        OK(ENDLESS "--out b --steps %ld %s", step + 3, rows[i].line);
        check_same("a", "b", 2);
    }
}

/* child <- what runs in the process group of `pid` beside it, by age; returns how many. */
static int group(pid_t pid, pid_t child[8]) {
    char command[300];
    int n = 0; /* numbers below the group's own are later ones: they began anew */
    snprintf(command, sizeof command,
             "cat /proc/[0-9]*/stat 2>/dev/null | "
             "sed -n '/^%d /d; s/^\\([0-9]*\\) (.*) [^ZX] [0-9]* %d .*/\\1/p' | "
             "awk '{ print ($1 < %d), $1 }' | sort -k 1,1n -k 2,2n | cut -d ' ' -f 2",
             pid, pid, pid);
    FILE *list = popen(command, "r");
    while (list && n < 8 && fscanf(list, "%d", &child[n]) == 1) n++;
    if (list) pclose(list);
    return n;
}

/* Signal the worker of this rank; child <- all `count` workers. Else nothing is sent. */
static void signal_worker(pid_t pid, int rank, int number, pid_t child[8], int count) {
    int n = group(pid, child);
    CHECK(n == count, "%d workers, not %d: %s", n, count, ended.line);
    if (n == count) kill(child[rank], number);
}

/* Within a second all workers of an ended run must be gone. */
static void check_gone(pid_t pid) {
    pid_t child[8];
    for (int k = 0; group(pid, child) && k < 50; k++) rest(0.02);
    CHECK(group(pid, child) == 0, "process %d lives: %s", child[0], ended.line);
}

#define TRIO ENDLESS "--backend processes --workers 3 --save-every 3 --out a "

TEST(failure_signal_in_evaluation_is_no_end) {
    const char *line = SMALL "--val-data long.txt --steps 3 --eval-every 1 --log-every 1 "
                             "--workers 3 --aux sign";
    setup();
    write_text("long.txt", 60000);
    OK("%s --out whole", line);
    double whole = closing_loss();
    for (int k = 0; k < 2; k++) {
        int hit = 0;
        for (int tries = 0; tries < 20 && !hit; tries++) { /* it may fall between evaluations */
            pid_t pid = begin("%s --out a --backend %s", line, backend[k]);
            await(pid, "a/log.csv", "\n1,");
            rest(0.004);
            kill(pid, k ? SIGINT : SIGTERM);
            finish(pid);
            hit = meta("a/last/model", "evaluated") < (double)step_of("a");
        }
        CHECK(hit && ended.status == (k ? 130 : 143) && !ended.size, "%d", ended.status);
        OK("train_gpt --resume --out a --quiet");
        CHECK_NEAR(closing_loss(), whole, 0);
        check_same("a", "whole", 3);
        OK("for out in a whole; do cut -d , -f 1,2,4- $out/log.csv >$out.log; done; cmp a.log "
           "whole.log"); /* all but the seconds: no hole, and no empty value */
    }
}

TEST(failure_lost_readers_end_no_run) {
    static const char *const lines[] = {"2>&1 >/dev/null | true", "2>&1 >/dev/null | head -n 1",
                                        "2>&- >/dev/null"};
    setup();
    for (size_t i = 0; i < COUNT(lines); i++) {
        OK("rm -rf a; (" MODEL "--steps 40 --log-every 1 --eval-every 1 --workers 3 --out a;"
           "echo $? >status) %s; until test -s status; do sleep 0.01; done; exit $(cat status)",
           lines[i]);
        CHECK(step_of("a") == 40 && unlink(test_path("status")) == 0);
    }
    run(SMALL "--steps 3 --log-every 1 --sample-every 1 --out closed <&- >&- 2>&-");
    CHECK(ended.status == 1 && log_value("closed", 3, "tokens") == 3 * 6 * 16);
    OK("! grep -q val_loss closed/lock && sed 1d closed/log.csv | grep -c '^[0-9]*,' | grep -qx 3");
}

TEST(failure_survivors_take_saves_of_their_run_only) {
    char row[32];
    pid_t child[8], pid;
    setup();
    OK(SMALL "--steps 30 --method sgd --out a"); /* an older run */
    pid = start("exec " ENDLESS "--workers 3 --out a --backend processes --on-death continue "
                "--save-every 0 --eval-every 4");
    await(pid, "a/log.csv", "\n12,"); /* best is there, but no save to go on from */
    signal_worker(pid, 2, SIGKILL, child, 3);
    await(pid, "a/log.csv", ",2\n");
    kill(pid, SIGTERM);
    CHECK(finish(pid) == 143 && strstr(ended.err, "2 workers go on from the start"), "%s",
          ended.err);
    snprintf(row, sizeof row, "\n%ld,", step_of("a") + 12);
    pid = start("exec train_gpt --resume --out a --quiet --threads 1 --link 100mbit,5ms");
    await(pid, "a/log.csv", row);
    signal_worker(pid, 1, SIGKILL, child, 2);
    await(pid, "a/log.csv", ",1\n");
    kill(pid, SIGTERM);
    CHECK(finish(pid) == 143 && strstr(ended.err, "1 workers go on from a/last"), "%s", ended.err);
    OK("train_gpt --eval --out a");
    OK("grep -q '\"data\":\"text.txt\".*\"link\":\"100mbit,5ms\"' a/last/model.safetensors");
}

TEST(failure_killed_worker_stops_the_others) {
    static const int how[] = {SIGKILL, SIGALRM, SIGKILL}; /* no sanitizer catches these */
    char word[64];
    setup();
    for (int victim = 0; victim < 4; victim++) { /* 3 is the parent */
        pid_t child[8], pid = begin(TRIO);
        await(pid, "a/log.csv", "\n5,");
        signal_worker(pid, victim % 3, victim < 3 ? how[victim] : 0, child, 3);
        if (victim == 3) kill(pid, SIGKILL);
        finish(pid);
        check_gone(pid);
        snprintf(word, sizeof word, "worker %d (process %ld) was killed by signal %d", victim,
                 (long)child[victim % 3], how[victim % 3]);
        if (victim < 3) check_ended(1, word);
        OK("train_gpt --resume --out a --quiet --steps %ld", step_of("a") + 2);
    }
}

TEST(failure_killed_worker_leaves_others_going_on) {
    static const struct {
        int signal, saves;
        const char *line, *told;
    } rows[] = {
        {SIGKILL, 10, "--method muon --dropout 0.1", "worker 2 (process "},
        {SIGKILL, 10, "--method ef21-muon --up rankk:0.2 --down topk:0.1", "killed by signal 9"},
        {SIGKILL, 10, "--method demuon --topology exponential", "2 workers go on from a/last"},
        {SIGSTOP, 7, "--aux sign --shards contiguous", "kept the others waiting for 1 s and was"},
        {SIGKILL, 0, "--method muonusign", "2 workers go on from the start"},
    };
    setup();
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *line = ENDLESS "--workers 3 --check-every 1", *two = "--workers 2 --batch 4";
        pid_t child[8], pid = begin("%s --out a --backend processes --on-death continue "
                                    "--timeout 1 --save-every %d %s",
                                    line, rows[i].saves, rows[i].line);
        await(pid, "a/log.csv", "\n12,");
        signal_worker(pid, 2, rows[i].signal, child, 3);
        await(pid, "a/log.csv", ",2\n");
        signal_worker(pid, 0, 0, child, 2); /* as many are left */
        kill(pid, SIGTERM);
        CHECK(finish(pid) == 143 && strstr(ended.err, rows[i].told), "%s", ended.err);
        OK("train_gpt --resume --out a --quiet --steps %ld", step_of("a") + 2);
        long steps = (long)number_after(ended.out, " steps ");
        /* the rows that three workers have written end with the save that two have gone on from */
        OK("test $(wc -l <a/log.csv) = %ld; grep -c ',3$' a/log.csv || true", steps + 1);
        long from = strtol(ended.out, NULL, 10), every = rows[i].saves ? rows[i].saves : 1;
        CHECK((from > 0) == (rows[i].saves > 0) && from / every * every == from, "%ld", from);
        if (!from) OK("%s --out b --steps %ld %s %s", line, steps, rows[i].line, two);
        if (from) OK("%s --out b --steps %ld %s", line, from, rows[i].line);
        OK("train_gpt --resume --quiet --out b %s --resume-workers keep --steps %ld", two, steps);
        check_same("a", "b", 2);
    }
}

/* The whole program, 20 times, or as often as KILLS says. */
TEST(failure_kill_while_saving_loses_nothing) {
    static const char *const methods[] = {"signmuon --aux sign", "adamw", "ef21-muonsign",
                                          "demuon"};
    const char *line = SMALL "--steps 30 --workers 2 --log-every 1 --save-every 1 --method";
    const char *kills = getenv("KILLS");
    char whole[16];
    setup();
    for (size_t m = 0; m < COUNT(methods); m++) OK("%s %s --out whole%zu", line, methods[m], m);
    for (size_t k = 0; k < (kills ? strtoul(kills, NULL, 10) : 20); k++) {
        size_t m = k / 2 % COUNT(methods);
        pid_t pid = begin("%s %s --out a --backend %s", line, methods[m], backend[k % 2]);
        await(pid, "a/last/worker-1.safetensors", "");
        rest(0.02 * test_uniform(5, k));
        kill(pid, SIGKILL);
        finish(pid);
        OK("train_gpt --resume --out a --quiet --save-every 0 && test $(wc -l <a/log.csv) = 31");
        snprintf(whole, sizeof whole, "whole%zu", m);
        check_same(whole, "a", 2);
    }
}

TEST(failure_second_program_in_out_is_refused) {
    char word[64];
    setup();
    pid_t pid = begin(ENDLESS "--workers 2 --save-every 1 --out a");
    await(pid, "a/log.csv", "\n40,");
    snprintf(word, sizeof word, "a: is in use by process %ld on ", (long)pid);
    REFUSED(1, word, SMALL "--out a --steps 3");
    CHECK(run("train_gpt --resume --out a --steps 3") == 1 && strstr(ended.err, word));
    OK("train_gpt --sample 5 --out a");                      /* reading is free */
    OK("test $(ls /proc/%ld/fd | wc -l) -le 16", (long)pid); /* 40 saves left no file open */
    kill(pid, SIGKILL);
    finish(pid);
    OK("train_gpt --resume --out a --quiet --steps 40"); /* nor a lock, wherever it was killed */
}

TEST(failure_damaged_save_goes_on_from_previous) {
    const char *used = "a/previous, the save of step 6, is used instead\n";
    setup();
    OK(SMALL "--out whole --steps 12 --save-every 6 --workers 3");
    OK("cp -RL whole a; truncate -s -9 a/last/worker-2.safetensors; train_gpt --eval --out a");
    CHECK(!*ended.err, "%s", ended.err); /* an evaluation needs no worker's part */
    OK("train_gpt --resume --out a --quiet && test -e a/previous/worker-2.safetensors");
    CHECK(strstr(ended.err, "worker-2") && strstr(ended.err, used), "%s", ended.err);
    check_same("a", "whole", 3);
    OK("rm -rf a/last && train_gpt --eval --out a");
    CHECK(strstr(ended.err, used) != NULL, "%s", ended.err);
    REFUSED(1, "holds a run", "train_gpt --data text.txt --out a --quiet");
    OK("cp -RL a/previous a/last; rm a/*/worker-1.safetensors");
    REFUSED(1, "3 of the 4 parts", "train_gpt --resume --out a --quiet");
    OK(SMALL "--out a --steps 1"); /* --overwrite */
    CHECK(step_of("a") == 1 && access(test_path("a/previous"), F_OK));
}

/* b <- a with another value for one key of the model's metadata, and a checksum that fits. */
static void forge(const char *key, const char *value) {
    char error[512] = "";
    StFile f;
    StTensor t[32];
    StPair pair[128];
    size_t n = 0;
    OK("rm -rf b; cp -R a b");
    int failed = st_open(&f, test_path("a/last/model.safetensors"), error, sizeof error);
    for (size_t i = 0; i < f.n; i++) {
        const StEntry *e = &f.entries[i];
        t[i] = (StTensor){.name = e->name, .dtype = "F32", .rank = e->rank, .data = st_data(&f, e)};
        memcpy(t[i].shape, e->shape, sizeof e->shape);
    }
    for (size_t i = 0; i < f.n_meta; i++) {
        if (strncmp(f.meta[i].key, "checksum", 8) == 0) continue; /* the format writes its own */
        pair[n] = f.meta[i];
        if (strcmp(pair[n].key, key) == 0) pair[n].value = value;
        n++;
    }
    failed |= st_write(test_path("b/last/model.safetensors"), t, f.n, pair, n, error, 512);
    CHECK(!failed, "%s", error);
    st_close(&f);
}

TEST(failure_forged_save_is_refused_before_allocation) {
    static const struct {
        const char *key, *value, *word, *call;
    } rows[] = {
        {"layers", "1000", "h.1.", "--eval"},
        {"layers", "1e9", "--layers", "--eval"},
        {"width", "65536", "ask for", "--sample 5"},
        {"context", "1048576", "ask for", "--sample 5"},
        {"heads", "999", "--heads", "--eval"},
        {"batch", "999999999", "GB", "--resume"},
        {"workers", "99999", "--workers", "--resume"},
        {"vocabulary", "gpt2:65536", "ask for", "--sample 5"},
        {"vocabulary", "chars:0-10fffff", "vocabulary", "--sample 5"},
        {"evaluated", "soon", "evaluated", "--resume"},
        {"checkpoint_step", "-3", "not a part", "--resume"},
        {"checkpoint_parts", "3", "of the 3 parts", "--resume"},
        {"lr", "1e999", "--lr", "--resume"},
        {"method", "\x1b[31mred\xc2\x9b", "--method", "--resume"},
    };
    setup();
    OK(SMALL "--out a --steps 2 --workers 3");
    OK("train_gpt --eval --out a");
    double honest = ended.peak;
    for (size_t i = 0; i < COUNT(rows); i++) {
        forge(rows[i].key, rows[i].value);
        run("train_gpt %s --out b --quiet", rows[i].call);
        check_ended(ended.status == 2 ? 2 : 1, rows[i].word);
        CHECK(!strchr(ended.err, 0x1b) && !strstr(ended.err, "\x9b"), "%s", ended.line);
        CHECK(ended.peak < honest + 64, "%g MB: %s", ended.peak, ended.line);
    }
}
