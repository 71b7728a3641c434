/* command.c - proofs of the command line: wrong use, help, dry runs, samples, losses, data. */
#include "program.h"

/* Name of a flag and its argument, "" for a switch, from a line of --help; 0 for other lines. */
static int flag_of_help(const char *line, char *name, char *argument) {
    *argument = 0;
    if (strncmp(line, "  --", 4)) return 0;
    int fields = sscanf(line, "  --%63s %63s", name, argument);
    if (fields == 2 && line[5 + strlen(name)] == ' ') *argument = 0; /* the help text */
    return 1;
}

TEST(command_every_flag_refuses_malformed_values) {
    static const char *const nonsense[] = {"three", "3x", "-1",  "nan", "inf", "1e99",
                                           "0x10",  "",   "1,5", "1e",  "--",  "1 "};
    char help[1 << 14], name[64], argument[64], flag[80], any[80];
    size_t flags = 0, tried = 0;
    setup();
    OK("train_gpt --help all");
    memcpy(help, ended.out, sizeof help);
    uint64_t before = snapshot();
    for (char *line = strtok(help, "\n"); line; line = strtok(NULL, "\n")) {
        if (!flag_of_help(line, name, argument)) continue;
        snprintf(flag, sizeof flag, "--%s", name);
        flags++;
        if (*argument && strcmp(argument, "on|off")) REFUSED(2, flag, "train_gpt %s", flag);
        snprintf(any, sizeof any, "|%s|", argument);
        if (strstr("|PATH|DIR|TEXT|", any)) continue;
        for (size_t i = 0; i < 3; i++) { /* a quarter of them for each flag */
            const char *value = nonsense[tried++ % COUNT(nonsense)];
            if (!strcmp(name, "link") && !*value) value = "fast"; /* "" is no link */
            REFUSED(2, flag, MODEL "'%s=%s'", flag, value);
        }
    }
    CHECK(flags >= 50 && tried >= 150, "%zu flags, %zu values", flags, tried);
    CHECK(before == snapshot());
}

TEST(command_wrong_use_exits_2_naming_flag) {
    // clang-format off
    static const char *const lines[] = { /* the sentence names the first word */
        "--nonsense=4", "--backend mpi", "--workers 1025 --batch 1025", "--width 30 --heads 4",
        "--batch 10 --workers 3", "--link 100mbit", "--link 0mbit,5ms", "--link 100mbit,5ms,",
        "--link 1e308gbit,5ms", "stray --quiet", "--resume --sample 10 --out a",
        "--eval --resume --out a", "--overwrite --resume --out a", "--warmup 30 --steps 20",
        "--norm row --method sgd", "--polar-after-vote --method muon", "--up sign",
        "--up topk:1.5 --method ef21-muon", "--down= --method ef21-muon", "--topology ring",
        "--topology rign --method demuon", "--aux sign --method demuon", "--data=", "--out=",
        "--adversaries 3 --workers 3", "--attack flip --workers 3",
        "--attack flop --adversaries 1 --workers 3", "--on-death continue",
        "--resume-workers keep", "--prompt 'aXb' --sample 5 --out a",
        "--prompt '\xff' --sample-every 5", "--method $(printf %05000d 0 | tr 0 z)"};
    // clang-format on
    static const struct {
        const char *word, *line;
    } rows[] = {
        {"--method", "--metod sgd"},
        {"-3", "--steps 3 --steps -3"},
        {"power of two", "--method demuon --workers 3 --topology one-peer"},
        {"row 2", "--method demuon --workers 3 --topology file:row"},
        {"column 0", "--method demuon --workers 3 --topology file:column"},
        {"nowhere", "--method demuon --topology file:nowhere"},
        {"UTF-8", "--data \xff.txt"},
        {"--prompt has no effect in training", "--prompt ab"},
        {"--top-k has no effect in training", "--top-k 3"},
        {"--temperature has no effect in training", "--temperature 0.5"},
        {"--sample 0", "--sample 0"},
        {"--final-lr 0.1 has no effect", "--schedule constant --final-lr 0.1"},
        {"--final-lr 0.1 has no effect", "--method gluon --final-lr 0.1"},
        {"--cooldown goes with", "--cooldown 0.3"},
        {"--polar-every 2: method muon has no LMO before a vote", "--method muon --polar-every 2"},
        {"--data has no effect beside --sample", "--sample 5 --lr 1 --out a"},
        {"--batch has no effect beside --eval", "--eval --batch 3 --out a"},
        {"--prompt has no effect beside --eval", "--eval --prompt a --out a"},
        {"zzz", "--$(printf %05000d 0 | tr 0 z)"},
    };
    char word[32];
    setup();
    OK("printf '.5 .5 0  .5 .25 .25  0 .25 .7' >row; printf '.5 .5 0  .25 .25 .5  0 .5 .5' "
       ">column");
    OK(SMALL "--steps 1 --out a");
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(lines); i++) {
        snprintf(word, sizeof word, "%.*s", (int)strcspn(lines[i], " ="), lines[i]);
        REFUSED(2, word, "train_gpt %s %s", strstr(lines[i], "--sample 5") ? "" : "--data text.txt",
                lines[i]);
    }
    for (size_t i = 0; i < COUNT(rows); i++)
        REFUSED(2, rows[i].word, "train_gpt --data text.txt %s", rows[i].line);
    REFUSED(2, "GEMM_ISA", "GEMM_ISA=nonsense " MODEL);
    REFUSED(2, "without MPI", "OMPI_COMM_WORLD_SIZE=3 " MODEL);
    CHECK(before == snapshot());
}

TEST(command_help_and_lists_explain_every_name) {
    static const struct {
        const char *line, *names;
    } rows[] = {
        {"--help", "data layers heads width context method aux lr aux-lr workers backend threads "
                   "batch steps seed out resume overwrite dry-run eval sample prompt list"},
        {"--help all", "val-data vocab shards dropout bias dtype schedule warmup cooldown final-lr "
                       "momentum nesterov beta2 weight-decay clip ns gain norm worker-map "
                       "server-map polar-after-vote zeros ties up down topology link check-every "
                       "adversaries attack on-death timeout resume-workers eval-every log-every "
                       "save-every quiet temperature top-k version"},
        {"--help Optimizer", "method up topology"},
        {"--list methods", "sgd adamw signsgd signum lion muon muon-avgpolar scion gluon signmuon "
                           "scion-constrained muonusign muonsign ef21-muon ef21-signmuon "
                           "ef21-muonusign ef21-muonsign demuon dsgd dsgd-clip gt-dsgd gt-nsgdm"},
        {"--list norms", "spectral sign frobenius column row nuclear"},
        {"--list gains", "none fro unit-gain aspect rms"},
        {"--list newton-schulz", "jordan5 polar-express5 polar-express8"},
        {"--list compressors", "identity topk rankk natural sign dropout damping coltopk"},
        {"--list topologies", "ring exponential one-peer hypercube torus star complete file"},
        {"--list attacks", "flip random zero nan scale:"},
        {"--list backends", "threads processes"},
        {"--list schedules", "linear cosine constant wsd gluon"},
        {"--list shards", "iid contiguous"},
    };
    char names[512], all[sizeof ended.out + 1] = "\n", row[80];
    setup();
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(rows); i++) {
        OK("train_gpt %s", rows[i].line);
        CHECK(!*ended.err);
        snprintf(names, sizeof names, "%s", rows[i].names);
        memcpy(all + 1, ended.out, sizeof ended.out);
        for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) {
            snprintf(row, sizeof row, rows[i].line[2] == 'h' ? "\n  --%s " : "\n%s ", name);
            const char *at = strstr(all, row);
            CHECK(at && strcspn(at + 1, "\n") > 12, "%s: %s", rows[i].line, name);
        }
    }
    OK("train_gpt -h | grep 'Exit status: 0 done, 1 failed, 2 wrong use, 3 diverged, 128 + "
       "signal'");
    OK("train_gpt --version | grep '^train_gpt [0-9]'");
    CHECK(before == snapshot());
}

TEST(command_dry_run_tells_model_graph_and_uplink) {
    static const struct {
        const char *line, *must, *never;
    } rows[] = {
        {"", "1 layers, 2 heads, width 32, context 16: 13632 parameters", "graph"},
        {"", "23 different characters: 18000 to train on, 2000 to validate on", "uplink"},
        {"--workers 3 --aux sign", "1.333 bits per parameter (fp32 all-reduce: 42.667)", "attack"},
        {"--workers 3 --backend processes", "3 (processes) of 1 compute threads, 2 seq", "nan"},
        {"--method demuon --workers 6", "ring: spectral gap 0.333333, 18 rounds", "uplink"},
        {"--method demuon --workers 3 --topology star", "star: spectral gap 0.333333, 18", "nan"},
        {"--method demuon --workers 2 --topology one-peer", "spectral gap 1.000000, 1 ", "nan"},
        {"--method demuon", "spectral gap 1.000000, 0 rounds", "nan"},
        {"--method ef21-muon", "sent by a worker per step, on average: 0 bytes", "uplink"},
        {"--workers 6 --adversaries 2 --attack zero", "the last 2 send --attack zero\n", "graph"},
        {"--workers 6 --adversaries 1", "the last 1 send --attack flip\n", "graph"},
    };
    setup();
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(rows); i++) {
        OK(MODEL "--dry-run --out a %s", rows[i].line);
        CHECK(strstr(ended.out, rows[i].must), "no '%s': %s", rows[i].must, ended.out);
        CHECK(!strstr(ended.out, rows[i].never), "'%s' in %s", rows[i].never, ended.out);
        CHECK(strstr(ended.out, "attn.c_attn.weight") && !*ended.err);
    }
    /* an eighth of the entries, of 9 bits each, and a bitmap; in the paper 16 bits and an index of
     * 26; LayerNorms in fp32 */
    double vectors = 3 * 32 / 13632.0;
    OK(MODEL "--dry-run --workers 3 --method ef21-muon --aux lmo --up topk:12.5%%+natural");
    CHECK_NEAR(number_after(ended.out, "uplink: "), (0.125 * 9 + 1) / 32 * (1 - vectors) + vectors,
               6e-5);
    CHECK_NEAR(number_after(ended.out, "2510.00643 counts, "),
               0.125 * (16 + 26) / 32 * (1 - vectors) + vectors, 6e-5);
    CHECK(before == snapshot());
}

TEST(command_dry_run_tells_peak_memory_within_tenth) {
    static const char *const lines[] = {
        "--method adamw --context 256 --batch 8",
        "--workers 2 --method muon --context 256 --batch 4 --dtype bf16",
        "--workers 3 --method ef21-muonsign --batch 12 --context 64",
        "--workers 4 --method demuon --batch 12 --context 64"};
    char status[64];
    setup();
    for (size_t i = 0; i < COUNT(lines); i++) {
        const char *more = "--layers 3 --heads 4 --width 128";
        OK(SMALL "--dry-run %s %s", more, lines[i]);
        double told = number_after(ended.out, "memory in all, MB: ");
        run("rm -rf a");
        pid_t pid = start("exec " ENDLESS "--save-every 1 --out a %s %s", more, lines[i]);
        await(pid, "a/log.csv", "\n2,");
        snprintf(status, sizeof status, "/proc/%ld/status", (long)pid);
        char *text = test_read(status, NULL);
        double took = number_after(text, "VmHWM:") * 1024e-6;
        free(text);
        kill(pid, SIGKILL);
        finish(pid);
#ifndef __SANITIZE_ADDRESS__
        CHECK(fabs(took / told - 1) < 0.1, "told %.1f MB, took %.1f: %s", told, took, lines[i]);
#endif
    }
}

TEST(command_sample_is_prompt_and_characters_only) {
    static const struct {
        size_t n;
        const char *prompt, *line;
    } rows[] = {
        {1, "\n", ""},
        {300, "\n", "--temperature 1"}, /* past the context of 16 */
        {40, "ab cd", ""},
        {40, "ab cd ab cd ab cd ab cd ab cd ab cd ab c", ""},
        {16, "ab cd ab cd ab c", ""},
        {50, "\n", "--temperature 100 --top-k 0"},
        {50, "\n", "--temperature 1e-9 --top-k 1000000"},
    };
    static const char *const true_of_samples[] = {
        "\"$(s --seed 3)\" = \"$(s --seed 3 --quiet --out a/best)\"",
        "\"$(s --seed 3 | head -c 51)\" = \"$(s --seed 3 --sample 50)\"",
        "\"$(s --seed 3)\" != \"$(s --seed 4)\"",
        "\"$(s --temperature 0 --seed 3)\" = \"$(s --temperature 0 --seed 4)\"",
        "\"$(s --temperature 0)\" = \"$(s --top-k 1 --seed 5)\"",
        "\"$(s)\" = \"$(cd a/last && s --out .)\""};
    setup();
    OK(SMALL "--steps 30 --workers 3 --bias --out a");
    OK("rm text.txt"); /* a sample does not need the data */
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t prompt = strlen(rows[i].prompt);
        OK("train_gpt --out a --sample %zu --prompt '%s' %s", rows[i].n, rows[i].prompt,
           rows[i].line);
        CHECK(ended.size == prompt + rows[i].n && !*ended.err, "%zu: %s", ended.size, ended.line);
        CHECK(strncmp(ended.out, rows[i].prompt, prompt) == 0, "%s: %s", ended.line, ended.out);
    }
    for (size_t i = 0; i < COUNT(true_of_samples); i++)
        OK("s() { train_gpt --sample 100 --out a \"$@\"; }; test %s", true_of_samples[i]);
    CHECK(before == snapshot());
}

TEST(command_eval_prints_loss_of_closing_line) {
    static const char *const lines[] = {"", "--threads 2", "--workers 2 --backend processes",
                                        "--workers 5", "--data ./text.txt"};
    setup();
    OK(SMALL "--steps 30 --workers 3 --dropout 0.1 --eval-every 10 --lr 0.05 --out a");
    double val = closing_loss(), best = number_after(ended.out, " best ");
    CHECK(number_after(ended.out, " steps ") == 30 && best <= val);
    CHECK_NEAR(log_value("a", 30, "val_loss"), val, 6e-5);
    uint64_t before = snapshot();
    for (size_t i = 0; i < COUNT(lines); i++) {
        OK("train_gpt --eval --out a %s", lines[i]);
        CHECK_NEAR(number_after(ended.out, "val_loss "), log_value("a", 30, "val_loss"), 0);
    }
    OK("train_gpt --eval --out a/best");
    CHECK_NEAR(number_after(ended.out, "val_loss "), best, 6e-5);
    OK("train_gpt --eval --out a --data short.txt"); /* another text in the same characters */
    CHECK(fabs(number_after(ended.out, "val_loss ") - val) > 1e-3);
    CHECK(before == snapshot());
}

TEST(command_eval_tokens_are_spread_over_split) {
    const char *call = "train_gpt --eval --out a --val-data";
    double loss[3]; /* of a split whose second half is harder, of its easy half, of a part */
    setup();
    OK("head -c 1000 text.txt >easy; { cat easy; tr abcdefghi ihgfedcba <easy; } >both");
    OK(SMALL "--steps 300 --aux sign --out a");
    OK("%s both", call);
    loss[0] = number_after(ended.out, "val_loss ");
    OK("%s easy", call);
    loss[1] = number_after(ended.out, "val_loss ");
    OK("%s both --eval-tokens 400 --workers 3", call);
    loss[2] = number_after(ended.out, "val_loss ");
    CHECK(loss[0] - loss[1] > 0.2 && fabs(loss[2] - loss[0]) < 0.05 && loss[2] != loss[0],
          "all %g, easy half %g, part %g", loss[0], loss[1], loss[2]);
    OK("%s both --eval-tokens 2000", call);
    CHECK_NEAR(number_after(ended.out, "val_loss "), loss[0], 0);
    OK("%s both --eval-tokens 1", call); /* a window at least */
}

TEST(command_samples_while_it_trains_are_kept_and_shown) {
    const char *line = SMALL "--workers 3 --sample-every 4 --prompt ab --schedule constant";
    setup();
    OK("%s --steps 10 --out a", line);
    OK("grep -c '^--- step' a/samples.txt | grep -qx 3"); /* 4, 8, and the last */
    OK("grep -A 1 '^--- step 8$' a/samples.txt | grep -q ^ab");
    OK(MODEL "--workers 3 --sample-every 2 --prompt ab --steps 2 --out b 2>&1 | grep -qx -- "
             "'--- step 2'");
    OK("%s --steps 6 --out b && train_gpt --resume --steps 10 --out b --quiet", line);
    OK("cmp a/samples.txt b/samples.txt"); /* that of step 6 is gone, and the prompt was kept */
    OK("cp b/samples.txt kept; train_gpt --resume --out b --quiet; cmp kept b/samples.txt");
    OK(SMALL "--workers 3 --schedule constant --steps 10 --out c");
    check_same("a", "c", 3); /* samples change nothing */
    check_same("a", "b", 3);
    OK(SMALL "--steps 3 --out a; test ! -s a/samples.txt");
}

TEST(command_init_begins_with_weights_made_elsewhere) {
    setup();
    OK(SMALL "--steps 20 --bias --heads 4 --out a");
    OK("train_gpt --eval --out a");
    double val = number_after(ended.out, "val_loss ");
    OK("train_gpt --data text.txt --init a/last/model.safetensors --batch 6 --steps 0 --out b "
       "--quiet"); /* layers, heads, width, context and bias are the file's */
    CHECK_NEAR(number_after(ended.out, "val_loss "), val, 6e-5);
    OK("train_gpt --data text.txt --init a/last/model.safetensors --batch 6 --steps 3 --out c "
       "--quiet --workers 3 --method muon && train_gpt --resume --steps 5 --out c --quiet");
    REFUSED(2, "--layers 2", MODEL "--layers 2 --init a/last/model.safetensors --out b");
    REFUSED(2, "--init", "train_gpt --resume --out c --init a/last/model.safetensors");
    REFUSED(1, "names must be nanoGPT's", MODEL "--init a/last/worker-0.safetensors --out b");
    REFUSED(1, "vocabulary",
            "tr a-w c-y <text.txt >other; train_gpt --data other --quiet --init "
            "a/last/model.safetensors --out b --overwrite");
    REFUSED(1, "ask for",
            "head -c 40 text.txt >few; for i in 1 2 3 4 5 6 7 8 9; do cat few few "
            "few >>more; done; train_gpt --vocab chars --data more --quiet --init "
            "a/last/model.safetensors --out b --overwrite --batch 6");
    REFUSED(1, "holds it", MODEL "--out a/last");
}

TEST(command_progress_in_pipe_is_plain_lines) {
    setup();
    OK(MODEL "--steps 9 --eval-every 5 --workers 3 --aux sign --out a");
    CHECK(strstr(ended.err, "\nstep 5/9  loss ") && strstr(ended.err, "\nstep 9/9  loss "));
    CHECK(strstr(ended.err, "attn.c_attn.weight") && strstr(ended.err, "reduce: 42.667)\n"));
    CHECK(!strchr(ended.err, '\r') && !strchr(ended.err, '\033'));
    OK(SMALL "--steps 3 --workers 3 --out a");
    CHECK(!*ended.err);
}

TEST(command_data_may_be_characters_bytes_or_tokens) {
    static const struct {
        const char *line, *told, *prompt;
        size_t bytes; /* of the prompt and 50 tokens, at least */
    } rows[] = {
        {"--data text.txt", "23 different characters", "ab c", 4 + 50},
        {"--data text.txt --vocab bytes", "23 different bytes", "ab c", 4 + 50},
        {"--data letters.txt", "23 different characters", "größe 日本", 14 + 50},
        {"--data letters.txt --vocab bytes", "different bytes", "größe", 7 + 50},
        {"--data bytes --val-data text.txt", "256 different bytes: 5120 to train on, 20000", "a",
         51},
        {"--data 'tokens_*' --width 4", "50257 different GPT-2 tokens: 1440 to train on",
         "[100][7]", 8 + 50 * 3},
    };
    static uint32_t tokens[256 + 500] = {20240520, 1}; /* llm.c's header, two tokens a word */
    setup();
    OK("sed 's/a/ö/g; s/b/日/g; s/c/本/g; s/d/ß/g' text.txt >letters.txt; i=0;"
       "while [ $i -lt 256 ]; do printf \"\\\\$(printf %%o $i)\"; i=$((i + 1)); done >all;"
       "for i in 1 2 3 4; do cat all all all all all; done >bytes");
    for (uint32_t i = 0; i < 500; i++) tokens[256 + i] = 100 + i % 50;
    test_write(test_path("tokens_0"), tokens, (tokens[2] = 900) * 2 + 1024);
    test_write(test_path("tokens_1"), tokens, (tokens[2] = 700) * 2 + 1024);
    for (size_t i = 0; i < COUNT(rows); i++) {
        OK(MODEL "--heads 1 --workers 2 --steps 3 --eval-every 0 --out a %s", rows[i].line);
        double val = closing_loss();
        CHECK(strstr(ended.err, rows[i].told), "no '%s': %s", rows[i].told, ended.err);
        OK("train_gpt --eval --out a");
        CHECK_NEAR(number_after(ended.out, "val_loss "), val, 6e-5);
        OK("train_gpt --resume --out a --steps 5 --quiet");
        OK("train_gpt --sample 50 --out a --prompt '%s'", rows[i].prompt);
        CHECK(ended.size >= rows[i].bytes && !*ended.err, "%zu: %s", ended.size, rows[i].line);
        CHECK(strstr(ended.out, rows[i].prompt) == ended.out, "%s: %s", ended.line, ended.out);
    }
    OK(SMALL "--data letters.txt --steps 1 --out b");
    REFUSED(2, "--prompt", "train_gpt --out b --sample 5 --prompt 'gré'");
    REFUSED(2, "[15496]", "train_gpt --out a --sample 5 --prompt '[50257]'");
    REFUSED(2, "[15496]", "train_gpt --out a --sample 5 --prompt Hello");
    tokens[256 + 40] = 50257;
    test_write(test_path("tokens_1"), tokens, 700 * 2 + 1024);
    REFUSED(1, "token 50257 at place 80", MODEL "--data 'tokens_*' --out b");
    REFUSED(1, "not a regular file", MODEL "--out c --data -");
}
