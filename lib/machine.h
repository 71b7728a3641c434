/* machine.h - the cores and the memory that this process may use. C11 + POSIX, MIT.

   Limits are the affinity mask, the physical memory and the control groups' (cgroups, versions 1
   and 2). A group is a folder under /sys/fs/cgroup. Every group above it limits it too.
*/
#ifndef MACHINE_H
#define MACHINE_H

#include <sched.h>

#include "base.h"

/* The number that a file begins with, -1 when there is none ("max"), and the one after it. */
static inline int64_t machine__number(const char *folder, const char *name, int64_t *second) {
    char path[BASE_PATH + 64];
    long long number[2] = {-1, -1};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%lld %lld", &number[0], &number[1]) < 1) number[0] = -1;
    if (f) fclose(f);
    *second = number[1];
    return number[0];
}

/* The limit of one group, by the files of version 2, then of version 1. */
static inline uint64_t machine__folder(const char *folder, const char *controller) {
    int64_t period, none;
    if (strcmp(controller, "memory") == 0) {
        int64_t limit = machine__number(folder, "memory.max", &none);
        if (limit < 0) limit = machine__number(folder, "memory.limit_in_bytes", &none);
        return limit < 0 ? UINT64_MAX : (uint64_t)limit;
    }
    int64_t quota = machine__number(folder, "cpu.max", &period);
    if (quota < 0) {
        quota = machine__number(folder, "cpu.cfs_quota_us", &none);
        period = machine__number(folder, "cpu.cfs_period_us", &none);
    }
    return quota > 0 && period > 0 ? (uint64_t)(1000 * quota / period) : UINT64_MAX;
}

/* The least of `least` and the limits of the group at `path` and of all groups above it. */
static inline uint64_t machine__path(uint64_t least, const char *root, const char *mount,
                                     const char *path, const char *controller) {
    char folder[BASE_PATH];
    int top = snprintf(folder, sizeof folder, "%s/sys/fs/cgroup/%s", root, mount);
    int length = snprintf(folder, sizeof folder, "%s/sys/fs/cgroup/%s%s", root, mount, path);
    if (length >= BASE_PATH) return least;
    for (char *end = folder + length; end; end = strrchr(folder + top, '/')) {
        *end = 0;
        uint64_t limit = machine__folder(folder, controller);
        if (limit < least) least = limit;
    }
    return least;
}

/* The least limit of this process's control groups, version 1 or 2, on "cpu" (thousandths of a
 * core) or "memory" (bytes); UINT64_MAX where there is none.
 * root   prefix of /proc and /sys, "" but in tests */
static inline uint64_t comm_group_limit(const char *root, const char *controller) {
    char line[BASE_PATH];
    uint64_t least = UINT64_MAX;
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *f = fopen(line, "r");
    /* "0::/path" of version 2; "4:cpu,cpuacct:/path" of version 1, mounted by all names or one */
    while (f && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        const char *mounts[] = {++names, controller};
        int version = *names ? 1 : 2, ours = version == 2;
        for (const char *at = names; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
            ours |= strcspn(at, ",") == strlen(controller) &&
                    strncmp(at, controller, strlen(controller)) == 0;
        for (int i = 0; ours && i < 3 - version; i++)
            least = machine__path(least, root, mounts[i], path, controller);
    }
    if (f) fclose(f);
    return least;
}

/* Cores that this process may use; at least 1. */
static inline int comm_cores(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
    uint64_t quota = comm_group_limit("", "cpu") / 1000;
    if (quota < (uint64_t)cores) cores = (long)quota;
    return cores > 0 ? (int)cores : 1;
}

/* Bytes of memory that this process may use. */
static inline uint64_t comm_memory_limit(void) {
    uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t group = comm_group_limit("", "memory");
    return group < all ? group : all;
}

#endif
