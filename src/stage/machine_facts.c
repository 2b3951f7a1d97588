/* machine_facts.c: cores, memory, limits and GPUs of this process, from the kernel's own files.
 *
 * 1. small files   2. control groups   3. cores and memory   4. launcher   5. all
 */
#include "stage/machine_facts.h"

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "stage/machine_gpus.h"

/* ---- 1. small files ---- */

/* First line without its end; "" when the file cannot be read. */
static void read_line(const char *path, char *out_text, size_t bytes)
{
    FILE *stream = fopen(path, "re");
    out_text[0] = 0;
    if (stream == NULL) return;
    if (fgets(out_text, (int)bytes, stream) == NULL) out_text[0] = 0;
    fclose(stream);
    out_text[strcspn(out_text, "\n")] = 0;
}

/* Bytes of a line "Name:  123 kB" of /proc/meminfo, 0 when it is not there. */
static int64_t meminfo(const char *name)
{
    char line[256];
    long long kib = 0;
    FILE *stream = fopen("/proc/meminfo", "re");
    if (stream == NULL) return 0;
    while (kib == 0 && fgets(line, sizeof line, stream) != NULL)
        if (mb_str_is_prefix(line, name)) kib = strtoll(line + strlen(name) + 1, NULL, 10);
    fclose(stream);
    return kib * 1024;
}

/* ---- 2. control groups ---- */

/* This process's group below the root of a hierarchy: version 2 (controller "") or a controller of version
 * 1. */
static bool find_group(const char *controller, char *out_path, size_t bytes)
{
    char line[4096];
    bool found = false;
    FILE *stream = fopen("/proc/self/cgroup", "re");
    if (stream == NULL) return false;
    while (!found && fgets(line, sizeof line, stream) != NULL) {
        char *names = strchr(line, ':'), *path = names != NULL ? strchr(names + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        if (strcmp(names + 1, controller) != 0) continue;
        snprintf(out_path, bytes, "%s", strcmp(path, "/") == 0 ? "" : path);
        found = true;
    }
    fclose(stream);
    return found;
}

/* The least limit of a group and those above it; 0: none. `file` holds a number of bytes, "max", or for CPUs
 * "<microseconds> <per microseconds>" (then in CPUs, rounded up). */
static int64_t least_limit(const char *root, const char *controller, const char *file)
{
    char group[4096], path[8192], text[128], *slash;
    int64_t least = 0;
    if (!find_group(controller, group, sizeof group)) return 0;
    for (;;) {
        char *rest = text;
        snprintf(path, sizeof path, "%s%s/%s", root, group, file);
        read_line(path, text, sizeof text);
        long long value = strtoll(text, &rest, 10);
        const long long per = rest != text && *rest == ' ' ? strtoll(rest, NULL, 10) : 0;
        if (per > 0) value = (value + per - 1) / per;
        if (rest != text && value > 0 && value < (1LL << 60) && (least == 0 || value < least)) least = value;
        if ((slash = strrchr(group, '/')) == NULL) break;
        *slash = 0;
    }
    return least;
}

/* ---- 3. cores and memory ---- */

static void read_cpus(mb_machine_rank *rank)
{
    const size_t bytes = CPU_ALLOC_SIZE(MB_MACHINE_CPUS);
    cpu_set_t *set = CPU_ALLOC(MB_MACHINE_CPUS);
    if (set != NULL && sched_getaffinity(0, bytes, set) == 0)
        for (int i = 0; i < MB_MACHINE_CPUS; i++)
            if (CPU_ISSET_S(i, bytes, set)) {
                rank->cpus[i / 64] |= 1ULL << (i % 64);
                rank->cpu_count++;
            }
    if (set != NULL) CPU_FREE(set);
    rank->cpus_online = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    rank->quota = (int32_t)least_limit("/sys/fs/cgroup", "", "cpu.max");
}

static void read_memory(mb_machine_rank *rank)
{
    struct statvfs info;
    rank->memory = meminfo("MemTotal:");
    rank->memory_available = meminfo("MemAvailable:");
    rank->memory_limit = least_limit("/sys/fs/cgroup", "", "memory.max");
    if (rank->memory_limit == 0)
        rank->memory_limit = least_limit("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes");
    if (rank->memory_limit > rank->memory) rank->memory_limit = 0;
    rank->shared_memory_free =
        statvfs("/dev/shm", &info) == 0 ? (int64_t)info.f_bavail * (int64_t)info.f_frsize : -1;
}

/* Device files nvidia0, nvidia1, ... */
static int32_t count_gpus(void)
{
    int32_t n = 0;
    DIR *handle = opendir("/dev");
    if (handle == NULL) return 0;
    for (struct dirent *entry = readdir(handle); entry != NULL; entry = readdir(handle))
        n += strncmp(entry->d_name, "nvidia", 6) == 0 && isdigit((unsigned char)entry->d_name[6]);
    closedir(handle);
    return n;
}

/* ---- 4. launcher ---- */

static bool is_above_one(const char *name)
{
    const char *text = getenv(name);
    return text != NULL && atoi(text) > 1;
}

/* A launcher started several tasks and each of them became the only rank of its own. */
static bool is_alone(int size)
{
    if (size > 1) return false;
    return is_above_one("OMPI_COMM_WORLD_SIZE") || is_above_one("PMI_SIZE") ||
           is_above_one("SLURM_STEP_NUM_TASKS");
}

/* ---- 5. all ---- */

void mb_machine_facts_get(int size, mb_machine_rank *out_rank)
{
    struct rlimit limit;
    *out_rank = (mb_machine_rank){0};
    gethostname(out_rank->host, sizeof out_rank->host - 1);
    read_cpus(out_rank);
    read_memory(out_rank);
    out_rank->gpus = count_gpus();
    mb_machine_gpus_summary(out_rank->gpu_text, sizeof out_rank->gpu_text);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        out_rank->file_limit = limit.rlim_cur > INT32_MAX ? INT32_MAX : (int32_t)limit.rlim_cur;
    out_rank->is_alone = is_alone(size);
}
