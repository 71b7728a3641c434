/* checkpoint.h - named tensors and text pairs <-> a folder that is complete at every instant. MIT.

     RUN/last       the newest save       RUN/last.new   a save while it is written
     RUN/previous   the save before it    RUN/best, RUN/best.new   the same for another name
     RUN/lock       names the process that writes RUN

   A save is a folder of parts. A part is a safetensors file, which carries its name, the identity
   of the run, the step and the number of parts. A save is complete when that many verified files
   agree.

     write     1. NAME.new is emptied   2. every part is written and synced there
               3. the old NAME becomes `previous` or is removed   4. NAME.new becomes NAME
     read      the first complete one of NAME.new, NAME and, for "last", previous

   From 3. on the new save is complete and on the disk, so the process may be killed between any two
   system calls. The next save first finishes 3. and 4. of a complete NAME.new. A damaged `last` is
   removed, and `previous` stays.

   IDENTITY     A new run in RUN has a new identity. Its first complete "last" removes the saves of
                other runs. The parts of two runs are never one save, and `previous` never replaces
                the `last` of another run.
   LINKS        Reading follows links to folders. Saving replaces the link and leaves its target.
   OTHER FILES  in the folder of a save are never deleted: they move with it to NAME.kept-1, ...
   PROCESSES    One process locks, begins and commits; any process or thread writes parts between.
   ERRORS       0, or a code and a sentence: -1 a save is missing or damaged, -2 the system refused.
   API          checkpoint_lock, _unlock, _exists       make RUN and lock it; does it hold a save?
                checkpoint_begin, _write, _commit       save, under a checkpoint_new_identity
                checkpoint_open, _open_part, _close     read */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "base.h"
#include "safetensors.h"

#include <dirent.h>
#include <signal.h>
#include <sys/file.h>

#define CHECKPOINT__SUFFIX ".safetensors"
#define CHECKPOINT__STEPS ((uint64_t)1 << 53)

typedef struct CheckpointStamp {
    uint64_t run;  /* identity, neither 0 nor UINT64_MAX; kept when the run is resumed */
    uint64_t step; /* at most 2^53 */
    int parts;     /* files of the save, "model" included */
} CheckpointStamp;

typedef struct Checkpoint {
    char folder[BASE_PATH];
    StFile model;
    CheckpointStamp stamp;
} Checkpoint;

/* What a RUN may hold. */
static const char *const checkpoint__names[] = {"last", "last.new", "previous", "best", "best.new"};
enum { CHECKPOINT__NAMES = 5 };

/* out <- a path; "" when it is too long, which names no file. */
__attribute__((format(printf, 2, 3))) static inline void checkpoint__path(char out[BASE_PATH],
                                                                          const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(out, BASE_PATH, format, arguments);
    va_end(arguments);
    if (n < 0 || n >= BASE_PATH) *out = 0;
}

static inline int checkpoint__fail(char *error, size_t size, const char *path, const char *what) {
    if (!*path) errno = ENAMETOOLONG;
    return base_fail(error, size, -2, "%s: %s: %s", *path ? path : "a path in the folder", what,
                     strerror(errno));
}

/* Does errno say that there is no such file? */
static inline int checkpoint__missing(void) {
    return errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
}

/* ------------------------------------------------------------------------------------------------
 * reading: which saves are complete */

/* A number of the metadata, or UINT64_MAX when there is none. */
static inline uint64_t checkpoint__number(const StFile *f, const char *key, int base) {
    const char *text = st_meta(f, key);
    char *end;
    size_t n = text ? strlen(text) : 0;
    if (!n || n > 16 || strspn(text, "0123456789abcdef") != n) return UINT64_MAX;
    uint64_t x = strtoull(text, &end, base);
    return *end ? UINT64_MAX : x;
}

/* Open one part and read its stamp. */
static inline int checkpoint__open_file(StFile *f, CheckpointStamp *stamp, const char *folder,
                                        const char *part, char *error, size_t size) {
    char path[BASE_PATH];
    checkpoint__path(path, "%s/%s" CHECKPOINT__SUFFIX, folder, part);
    if (!*folder || !*path) return checkpoint__fail(error, size, "", "cannot open");
    if (st_open(f, path, error, size)) return errno && !checkpoint__missing() ? -2 : -1;
    const char *name = st_meta(f, "checkpoint_part");
    uint64_t parts = checkpoint__number(f, "checkpoint_parts", 10);
    stamp->run = checkpoint__number(f, "checkpoint_run", 16);
    stamp->step = checkpoint__number(f, "checkpoint_step", 10);
    stamp->parts = parts <= 1 << 20 ? (int)parts : 0;
    if (f->verified && name && strcmp(name, part) == 0 && stamp->run && stamp->run < UINT64_MAX &&
        stamp->step <= CHECKPOINT__STEPS && stamp->parts)
        return 0;
    st_close(f);
    return base_fail(error, size, -1, "%s: is not a part of a save, or of another version", path);
}

/* Open another part of the save: -1 when it belongs to another run or step. */
static inline int checkpoint_open_part(const Checkpoint *c, const char *part, StFile *f,
                                       char *error, size_t size) {
    CheckpointStamp s = {.run = 0}, own = c->stamp;
    *f = (StFile){0};
    int failed = checkpoint__open_file(f, &s, c->folder, part, error, size);
    if (failed || (s.run == own.run && s.step == own.step && s.parts == own.parts)) return failed;
    st_close(f);
    return base_fail(error, size, -1,
                     "%s/%s" CHECKPOINT__SUFFIX
                     ": belongs to step %llu of run %016llx, the model to step %llu of %016llx",
                     c->folder, part, (unsigned long long)s.step, (unsigned long long)s.run,
                     (unsigned long long)own.step, (unsigned long long)own.run);
}

/* Verify that all parts of the save are there; its model is open. */
static inline int checkpoint__verify_parts(const Checkpoint *c, char *error, size_t size) {
    char why[512] = "";
    int found = 1, failed = 0;
    DIR *all = opendir(c->folder);
    for (struct dirent *d; all && failed != -2 && (errno = 0, d = readdir(all));) {
        StFile f;
        char *suffix = strstr(d->d_name, CHECKPOINT__SUFFIX);
        if (!suffix || strcmp(suffix, CHECKPOINT__SUFFIX)) continue;
        *suffix = 0;
        if (strcmp(d->d_name, "model") == 0) continue;
        failed = checkpoint_open_part(c, d->d_name, &f, why, sizeof why);
        if (!failed) st_close(&f);
        found += !failed;
    }
    if (failed != -2 && errno && !checkpoint__missing())
        failed = checkpoint__fail(why, sizeof why, c->folder, "cannot be listed");
    if (all) closedir(all);
    if (failed == -2) return base_fail(error, size, -2, "%s", why);
    if (found == c->stamp.parts) return 0;
    return base_fail(error, size, -1, "%s: holds %d of the %d parts of its save%s%s", c->folder,
                     found, c->stamp.parts, *why ? ": " : "", why);
}

/* Open the model in RUN/NAME, when it or the whole save is complete. After a failure c->stamp.run
 * is 0 unless the model was complete. */
static inline int checkpoint__try(Checkpoint *c, const char *run, const char *name, int whole,
                                  char *error, size_t size) {
    *c = (Checkpoint){.folder = ""};
    checkpoint__path(c->folder, *name ? "%s/%s" : "%s%s", run, name);
    int failed = checkpoint__open_file(&c->model, &c->stamp, c->folder, "model", error, size);
    if (failed) c->stamp.run = 0;
    if (!failed && whole) failed = checkpoint__verify_parts(c, error, size);
    if (failed) st_close(&c->model);
    return failed;
}

/* The stamp of a complete save. */
static inline int checkpoint__stamp_of(CheckpointStamp *stamp, const char *run, const char *name,
                                       char *error, size_t size) {
    Checkpoint c;
    int failed = checkpoint__try(&c, run, name, 1, error, size);
    *stamp = c.stamp;
    st_close(&c.model);
    return failed;
}

/* Does RUN hold any save, complete or not? What cannot be examined counts. */
static inline int checkpoint_exists(const char *run) {
    char path[BASE_PATH];
    for (int i = 0; i < CHECKPOINT__NAMES; i++) {
        checkpoint__path(path, "%s/%s/model" CHECKPOINT__SUFFIX, run, checkpoint__names[i]);
        if (access(path, F_OK) == 0 || !checkpoint__missing()) return 1;
    }
    return 0;
}

/* Open the newest complete save of that name; `whole` verifies all parts, otherwise the model only.
 * `note` is empty, or a sentence when the save is not RUN/NAME. RUN may itself be a save's folder.
 */
static inline int checkpoint_open(const char *run, const char *name, int whole, Checkpoint *c,
                                  char *note, size_t note_size, char *error, size_t size) {
    char fresh[64], why[1024] = "";
    snprintf(fresh, sizeof fresh, "%s.new", name);
    *note = 0;
    if (!checkpoint_exists(run)) {
        int failed = checkpoint__try(c, run, "", whole, error, size);
        return failed == -1 ? checkpoint__try(c, run, name, whole, error, size) : failed;
    }
    for (int attempt = 0;; attempt++) { /* again: a run that saves may move them meanwhile */
        int failed = checkpoint__try(c, run, fresh, 1, error, size);
        if (!failed)
            base_fail(note, note_size, 0, "%s, the save of step %llu, is complete and is used",
                      c->folder, (unsigned long long)c->stamp.step);
        if (failed != -1) return failed;
        failed = checkpoint__try(c, run, name, whole, error, size);
        if (failed != -1) return failed;
        uint64_t identity = c->stamp.run;
        if (strcmp(name, "last") == 0)
            failed = checkpoint__try(c, run, "previous", whole, why, sizeof why);
        if (failed == -2) return base_fail(error, size, -2, "%s", why);
        if (!failed && (!identity || identity == c->stamp.run))
            return base_fail(note, note_size, 0, "%s; %s, the save of step %llu, is used instead",
                             error, c->folder, (unsigned long long)c->stamp.step);
        st_close(&c->model);
        if (attempt == 2) return -1;
    }
}

static inline void checkpoint_close(Checkpoint *c) { st_close(&c->model); }

/* ------------------------------------------------------------------------------------------------
 * saving */

/* A random number for a run that starts. */
static inline uint64_t checkpoint_new_identity(void) {
    uint64_t x = 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (getentropy(&x, sizeof x))
        x = base_hash((uint64_t)now.tv_sec << 30 | (uint64_t)now.tv_nsec, (uint64_t)getpid());
    return x % (UINT64_MAX - 1) + 1;
}

/* Remove the save RUN/NAME, or the link of that name. The model goes first: if the process is
 * killed here, what is left is no save. */
static inline int checkpoint__remove(const char *run, const char *name, char *error, size_t size) {
    static const char *const ends[] = {CHECKPOINT__SUFFIX, CHECKPOINT__SUFFIX ".tmp"};
    char folder[BASE_PATH], path[BASE_PATH];
    struct stat s;
    checkpoint__path(folder, "%s/%s", run, name);
    if (lstat(folder, &s))
        return errno == ENOENT ? 0 : checkpoint__fail(error, size, folder, "cannot be examined");
    if (S_ISLNK(s.st_mode) && unlink(folder) == 0) return 0;
    checkpoint__path(path, "%s/model" CHECKPOINT__SUFFIX, folder);
    DIR *all = unlink(path) && errno != ENOENT ? NULL : opendir(folder);
    if (!all) return checkpoint__fail(error, size, folder, "cannot be removed");
    for (struct dirent *d; (d = readdir(all));) {
        const char *end = strstr(d->d_name, CHECKPOINT__SUFFIX);
        checkpoint__path(path, "%s/%s", folder, d->d_name);
        if (end && (strcmp(end, ends[0]) == 0 || strcmp(end, ends[1]) == 0)) unlink(path);
    }
    closedir(all);
    int failed = rmdir(folder);
    for (int i = 1; failed && (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR); i++) {
        checkpoint__path(path, "%s.kept-%d", folder, i);
        failed = rename(folder, path);
    }
    return failed ? checkpoint__fail(error, size, folder, "cannot be removed") : 0;
}

/* Steps 3 and 4 of a save: RUN/NAME.new, which is complete and has this stamp, becomes RUN/NAME. */
static inline int checkpoint__publish(const char *run, const char *name, CheckpointStamp stamp,
                                      int keep_previous, char *error, size_t size) {
    char from[BASE_PATH], to[BASE_PATH], previous[BASE_PATH];
    CheckpointStamp old;
    int last = strcmp(name, "last") == 0;
    checkpoint__path(from, "%s/%s.new", run, name);
    checkpoint__path(to, "%s/%s", run, name);
    checkpoint__path(previous, "%s/previous", run);
    if (base_sync_directory(from) || base_sync_directory(run))
        return checkpoint__fail(error, size, from, "cannot be synced");

    int failed = checkpoint__stamp_of(&old, run, name, error, size);
    if (failed == -2) return -2;
    int same = !failed && old.run == stamp.run, keep = last && same && keep_previous;
    for (int i = 2; i < CHECKPOINT__NAMES && last && !same; i++) { /* saves of other runs */
        failed = checkpoint__stamp_of(&old, run, checkpoint__names[i], error, size);
        if (failed != -2 && old.run && old.run != stamp.run)
            failed = checkpoint__remove(run, checkpoint__names[i], error, size);
        if (failed == -2) return -2;
    }
    if (last && (same || !keep_previous) && checkpoint__remove(run, "previous", error, size))
        return -2;
    if (!keep && checkpoint__remove(run, name, error, size)) return -2;
    if (keep && rename(to, previous)) return checkpoint__fail(error, size, to, "cannot be renamed");
    if (rename(from, to)) return checkpoint__fail(error, size, from, "cannot be renamed");
    return base_sync_directory(run) ? checkpoint__fail(error, size, run, "cannot be synced") : 0;
}

/* One process: an empty RUN/NAME.new. */
static inline int checkpoint_begin(const char *run, const char *name, char *error, size_t size) {
    char fresh[64], folder[BASE_PATH];
    CheckpointStamp left;
    snprintf(fresh, sizeof fresh, "%s.new", name);
    checkpoint__path(folder, "%s/%s", run, fresh);
    int failed = checkpoint__stamp_of(&left, run, fresh, error, size);
    if (!failed)
        failed = checkpoint__publish(run, name, left, 1, error, size);
    else if (failed == -1)
        failed = checkpoint__remove(run, fresh, error, size);
    if (failed || mkdir(folder, 0777) == 0) return failed;
    return checkpoint__fail(error, size, folder, "cannot be made");
}

/* Any worker: one part of the save. A save needs the part "model"; other names are the caller's. */
static inline int checkpoint_write(const char *run, const char *name, const char *part,
                                   const CheckpointStamp *stamp, const StTensor *t, size_t n,
                                   const StPair *pairs, size_t n_pairs, char *error, size_t size) {
    char path[BASE_PATH], run_text[24], step_text[24], parts_text[24];
    const StPair own[] = {{.key = "checkpoint_part", .value = part},
                          {.key = "checkpoint_run", .value = run_text},
                          {.key = "checkpoint_step", .value = step_text},
                          {.key = "checkpoint_parts", .value = parts_text}};
    enum { OWN = sizeof own / sizeof *own };
    assert(stamp->run && stamp->step <= CHECKPOINT__STEPS && stamp->parts > 0);
    checkpoint__path(path, "%s/%s.new/%s" CHECKPOINT__SUFFIX, run, name, part);
    StPair *all = *path ? malloc((OWN + n_pairs) * sizeof *all) : NULL;
    if (!all) return checkpoint__fail(error, size, path, "cannot be written");
    snprintf(run_text, sizeof run_text, "%016llx", (unsigned long long)stamp->run);
    snprintf(step_text, sizeof step_text, "%llu", (unsigned long long)stamp->step);
    snprintf(parts_text, sizeof parts_text, "%d", stamp->parts);
    memcpy(all, own, sizeof own);
    if (n_pairs) memcpy(all + OWN, pairs, n_pairs * sizeof *pairs);
    int failed = st_write(path, t, n, all, OWN + n_pairs, error, size);
    free(all);
    return failed ? -2 : 0;
}

/* One process, after all parts are written: RUN/NAME.new becomes RUN/NAME. With keep_previous, the
 * "last" before it becomes RUN/previous, if it is complete and of the same run.
 * cost     a pass over the new save and one over the old */
static inline int checkpoint_commit(const char *run, const char *name, int keep_previous,
                                    char *error, size_t size) {
    char fresh[64];
    CheckpointStamp stamp;
    snprintf(fresh, sizeof fresh, "%s.new", name);
    int failed = checkpoint__stamp_of(&stamp, run, fresh, error, size);
    return failed ? failed : checkpoint__publish(run, name, stamp, keep_previous, error, size);
}

/* ------------------------------------------------------------------------------------------------
 * locking */

/* Make a small save, so that what prevents saving is found before hundreds of steps rely on it. */
static inline int checkpoint__rehearse(const char *run, char *error, size_t size) {
    const CheckpointStamp stamp = {.run = 1, .parts = 1};
    char path[BASE_PATH];
    struct stat s, here;
    if (stat(run, &here)) return checkpoint__fail(error, size, run, "cannot be examined");
    for (int i = 0; i < CHECKPOINT__NAMES; i++) {
        checkpoint__path(path, "%s/%s", run, checkpoint__names[i]);
        if (lstat(path, &s) || S_ISLNK(s.st_mode)) continue;
        if (!S_ISDIR(s.st_mode) || s.st_dev != here.st_dev)
            return base_fail(error, size, -2, "%s: is no ordinary folder and in the way of a save",
                             path);
        if (faccessat(AT_FDCWD, path, R_OK | W_OK | X_OK, AT_EACCESS))
            return checkpoint__fail(error, size, path, "cannot be replaced by a save");
    }
    int failed = checkpoint_begin(run, ".trial", error, size) ||
                 checkpoint_write(run, ".trial", "model", &stamp, NULL, 0, NULL, 0, error, size) ||
                 checkpoint_commit(run, ".trial", 0, error, size);
    if (!failed) return checkpoint__remove(run, ".trial", error, size);
    checkpoint__remove(run, ".trial.new", path, sizeof path);
    return -2;
}

static inline void checkpoint_unlock(int fd) {
    if (fd < 0) return;
    flock(fd, LOCK_UN); /* closing alone would not do while a child holds a copy */
    close(fd);
}

/* Make RUN, lock it, and try whether it can be saved in. Returns -1 when another process holds it.
 * fork     flock belongs to the open file: children share it, may close it, and the kernel releases
 *          it when the last of them ends. Children of a dead process are waited for, 2 seconds. */
static inline int checkpoint_lock(const char *run, int *fd, char *error, size_t size) {
    char path[BASE_PATH], host[64] = "", text[128], holder[64] = "";
    struct stat s;
    *fd = -1;
    gethostname(host, sizeof host - 1);
    checkpoint__path(path, "%s", run);
    if (!*path) return checkpoint__fail(error, size, path, "cannot be made");
    for (char *slash = path; slash;) { /* RUN and its parents */
        slash = strchr(slash + 1, '/');
        if (slash) *slash = 0;
        int failed = mkdir(path, 0777), code = errno;
        if (failed && (stat(path, &s) || !S_ISDIR(s.st_mode))) {
            errno = code == EEXIST ? ENOTDIR : code;
            return checkpoint__fail(error, size, path, "cannot be made a folder");
        }
        if (slash) *slash = '/';
    }
    checkpoint__path(path, "%s/lock", run);
    int lock = base_open(path, O_RDWR | O_CREAT);
    if (lock < 0) return checkpoint__fail(error, size, path, "cannot be written");
    for (int tries = 0; flock(lock, LOCK_EX | LOCK_NB); tries++) {
        long pid = 0;
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) break; /* this file system has no locks */
        ssize_t n = pread(lock, text, sizeof text - 1, 0);
        text[n > 0 ? n : 0] = 0;
        sscanf(text, "%ld %63s", &pid, holder);
        int dead = pid < 1 || (strcmp(host, holder) == 0 && kill((pid_t)pid, 0) && errno == ESRCH);
        if (dead && tries < 100) {
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
            continue;
        }
        close(lock);
        return base_fail(error, size, -1, "%s: is in use by process %ld on %s%s", run, pid,
                         base_harmless(holder), dead ? ", or by children that it left" : "");
    }
    int n = snprintf(text, sizeof text, "%ld %s\n", (long)getpid(), host);
    int failed = ftruncate(lock, 0) || base_write(lock, text, (size_t)n)
                     ? checkpoint__fail(error, size, path, "cannot be written")
                     : checkpoint__rehearse(run, error, size);
    if (failed) checkpoint_unlock(lock);
    if (!failed) *fd = lock;
    return failed;
}

#endif
