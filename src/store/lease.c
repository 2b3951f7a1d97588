/* lease.c: taking and giving back the lease of a run folder.
 *
 * The file is written aside and linked to its name: link fails when the name is taken, and shows no
 * half-written file. A stale one is judged and removed under a lock of the folder, so that of two jobs that
 * see it none removes the other's fresh one.
 *
 * 1. who we are   2. who holds it   3. taking and giving back   4. is it still ours
 */
#include "store/lease.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"

struct mb_lease {
    char *path;  /* <folder>/<name> */
    mb_str text; /* what we wrote */
};

/* ---- 1. who we are ---- */

/* Field `number` (from 3) of /proc/<pid>/stat, "" when there is no such process. */
static void process_field(long pid, int number, char out[32])
{
    char path[64], text[1024];
    out[0] = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *stream = fopen(path, "re");
    if (stream == NULL) return;
    size_t n = fread(text, 1, sizeof text - 1, stream);
    fclose(stream);
    text[n] = 0;
    char *at = strrchr(text, ')'); /* the name before it may hold anything */
    for (int field = 2; at != NULL && field < number; field++) at = strchr(at + 1, ' ');
    if (at != NULL) snprintf(out, 32, "%.*s", (int)strcspn(at + 1, " \n"), at + 1);
}

/* Start time of a process in ticks since boot, "" when there is none. */
static void process_start(long pid, char out[32])
{
    process_field(pid, 22, out);
}

/* Has it ended, but for being waited for by its parent? */
static bool is_ended(long pid)
{
    char state[32];
    process_field(pid, 3, state);
    return state[0] == 'Z' || state[0] == 'X';
}

/* Is it on its way out: exiting (PF_EXITING), or with a SIGKILL that it has not yet taken? */
static bool is_ending(long pid)
{
    char flags[32], pending[32];
    process_field(pid, 9, flags);
    process_field(pid, 31, pending);
    return (strtoul(flags, NULL, 10) & 0x4) != 0 ||
           (strtoul(pending, NULL, 10) & (1ul << (SIGKILL - 1))) != 0;
}

static void boot_id(char out[64])
{
    out[0] = 0;
    FILE *stream = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (stream == NULL) return;
    if (fgets(out, 64, stream) == NULL) out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    fclose(stream);
}

static const char *environment(const char *name)
{
    const char *value = getenv(name);
    return value != NULL ? value : "";
}

static mb_status describe_self(mb_str *text)
{
    mb_status status = MB_OK;
    char host[256] = "", start[32], boot[64];
    gethostname(host, sizeof host - 1);
    process_start((long)getpid(), start);
    boot_id(boot);
    json_t *json = json_pack(
        "{s:s, s:I, s:s, s:s, s:s, s:s, s:s, s:s}", "host", host, "pid", (json_int_t)getpid(), "start", start,
        "boot", boot, "job", environment("SLURM_JOB_ID"), "restart", environment("SLURM_RESTART_COUNT"),
        "array_job", environment("SLURM_ARRAY_JOB_ID"), "array_task", environment("SLURM_ARRAY_TASK_ID"));
    if (json == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for a lease");
    MB_TRY(mb_json_print(json, 0, false, text));
done:
    json_decref(json);
    return status;
}

/* ---- 2. who holds it ---- */

typedef struct holder {
    char host[256], start[32], boot[64], job[64], restart[32];
    long pid;
} holder;

static void copy_member(const json_t *json, const char *key, char *out, size_t bytes)
{
    const char *text = json_string_value(json_object_get(json, key));
    snprintf(out, bytes, "%s", text != NULL ? text : "");
}

/* false when the text is no lease. */
static bool parse_holder(const mb_str *text, holder *out)
{
    json_t *json = NULL;
    if (mb_json_parse(mb_str_text(text), text->length, "lease", &json) != MB_OK) {
        mb_status_reset();
        return false;
    }
    copy_member(json, "host", out->host, sizeof out->host);
    copy_member(json, "start", out->start, sizeof out->start);
    copy_member(json, "boot", out->boot, sizeof out->boot);
    copy_member(json, "job", out->job, sizeof out->job);
    copy_member(json, "restart", out->restart, sizeof out->restart);
    out->pid = (long)json_integer_value(json_object_get(json, "pid"));
    json_decref(json);
    return out->host[0] != 0 && out->pid > 0;
}

static bool is_of_this_host(const holder *h)
{
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    return strcmp(h->host, host) == 0;
}

/* Restarts are counted from "" (none), so an earlier run of our job has a smaller number: a process of such a
 * run that still lives must not take its successor for gone. */
static bool is_earlier_run(const holder *h)
{
    return h->job[0] != 0 && strcmp(h->job, environment("SLURM_JOB_ID")) == 0 &&
           strtol(h->restart, NULL, 10) < strtol(environment("SLURM_RESTART_COUNT"), NULL, 10);
}

static bool is_stale(const holder *h)
{
    char boot[64], start[32];
    if (is_earlier_run(h)) return true;
    if (!is_of_this_host(h)) return false;
    boot_id(boot);
    if (h->boot[0] != 0 && boot[0] != 0 && strcmp(h->boot, boot) != 0) return true;
    if ((kill((pid_t)h->pid, 0) != 0 && errno == ESRCH) || is_ended(h->pid)) return true;
    process_start(h->pid, start);
    return h->start[0] != 0 && start[0] != 0 && strcmp(h->start, start) != 0;
}

/* A job that was just killed may take seconds to go: wait for it, at most ten. */
static bool is_stale_soon(const holder *h)
{
    for (int i = 0; i < 200 && !is_stale(h) && is_of_this_host(h) && is_ending(h->pid); i++) usleep(50000);
    return is_stale(h);
}

/* The lease file's text; out_is_there says whether there is one. */
static mb_status read_lease(const char *path, mb_str *text, bool *out_is_there)
{
    mb_status status = mb_files_read(path, 4096, text);
    *out_is_there = status == MB_OK;
    if (status == MB_ENOTFOUND) {
        mb_status_reset();
        status = MB_OK;
    }
    return status;
}

/* ---- 3. taking and giving back ---- */

/* Write the lease under its name if that is free; out_taken says whether. */
static mb_status try_link(const mb_lease *lease, bool *out_taken)
{
    mb_status status = MB_OK;
    char *aside = mb_str_format("%s.new.%ld", lease->path, (long)getpid());
    if (aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", lease->path);
    MB_TRY(mb_files_write(aside, mb_str_text(&lease->text), lease->text.length));
    *out_taken = link(aside, lease->path) == 0;
    if (!*out_taken && errno != EEXIST)
        MB_RAISE(MB_EIO, "%s: cannot be made: %s", lease->path, strerror(errno));
done:
    if (aside != NULL) unlink(aside);
    mb_free(aside);
    return status;
}

/* Look at the lease that is there: remove it when stale, else say who holds it. Under the folder's lock. */
static mb_status judge(const mb_lease *lease)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    holder h = {0};
    bool is_there = false;
    MB_TRY(read_lease(lease->path, &text, &is_there));
    if (!is_there) goto done; /* given back meanwhile */
    if (!parse_holder(&text, &h))
        MB_RAISE(MB_EEXIST, "%s: not a lease we can read; remove it if no job works here", lease->path);
    if (!is_stale_soon(&h))
        MB_RAISE(MB_EEXIST,
                 "%s: held by process %ld on %s%s%s; wait for it, or remove this file if it is gone",
                 lease->path, h.pid, h.host, h.job[0] ? ", Slurm job " : "", h.job);
    mb_warn("%s: its holder (process %ld on %s) is gone, taken over", lease->path, h.pid, h.host);
    if (unlink(lease->path) != 0 && errno != ENOENT)
        MB_RAISE(MB_EIO, "%s: cannot be removed: %s", lease->path, strerror(errno));
done:
    mb_str_destroy(&text);
    return status;
}

/* Judge with the folder locked, where the file system has locks: a lease is only called stale on its own host
 * or by its own job, so a lock that holds within one host is enough. */
static mb_status judge_locked(const mb_lease *lease, const char *folder)
{
    mb_status status = MB_OK;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) MB_RAISE(MB_EIO, "%s: cannot be opened: %s", folder, strerror(errno));
    while (flock(fd, LOCK_EX) != 0 && errno == EINTR) continue;
    MB_TRY(judge(lease));
done:
    if (fd >= 0) close(fd);
    return status;
}

/* Say that we had it last, for those who had it before. */
static mb_status write_last(const mb_lease *lease)
{
    mb_status status = MB_OK;
    char *path = mb_str_format("%s.last", lease->path);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", lease->path);
    MB_TRY(mb_files_write(path, mb_str_text(&lease->text), lease->text.length));
done:
    mb_free(path);
    return status;
}

static void free_lease(mb_lease **lease)
{
    if (*lease == NULL) return;
    mb_free((*lease)->path);
    mb_str_destroy(&(*lease)->text);
    MB_FREE(*lease);
}

mb_status mb_lease_open(const char *folder, const char *opt_name, mb_lease **out_lease)
{
    mb_status status = MB_OK;
    mb_lease *lease = NULL;
    bool taken = false;
    MB_NEW(lease);
    lease->path = mb_files_join(folder, opt_name != NULL ? opt_name : "lease");
    if (lease->path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(describe_self(&lease->text));
    for (int attempt = 0; attempt < 5 && !taken; attempt++) {
        MB_TRY(try_link(lease, &taken));
        if (!taken) MB_TRY(judge_locked(lease, folder));
    }
    if (!taken) MB_RAISE(MB_EEXIST, "%s: other jobs keep taking it; one of them works here", lease->path);
    MB_TRY(write_last(lease));
    *out_lease = lease;
    lease = NULL;
done:
    if (taken)
        mb_lease_close(&lease);
    else
        free_lease(&lease);
    return status;
}

void mb_lease_close(mb_lease **lease)
{
    mb_str text = MB_STR_EMPTY;
    if (*lease == NULL) return;
    if (mb_files_read((*lease)->path, 4096, &text) == MB_OK &&
        mb_str_equal(mb_str_text(&text), mb_str_text(&(*lease)->text)))
        unlink((*lease)->path);
    mb_str_destroy(&text);
    free_lease(lease);
}

mb_status mb_lease_move(mb_lease *lease, const char *folder)
{
    const char *slash = strrchr(lease->path, '/');
    char *path = mb_files_join(folder, slash != NULL ? slash + 1 : lease->path);
    if (path == NULL) return mb_fail(MB_ENOMEM, "%s: not enough memory", folder);
    mb_free(lease->path);
    lease->path = path;
    return MB_OK;
}

/* ---- 4. is it still ours ---- */

/* Who is described by a lease's text, for a message. */
static void name_holder(const mb_str *text, char *out, size_t bytes)
{
    holder h = {0};
    if (parse_holder(text, &h))
        snprintf(out, bytes, "process %ld on %s%s%s", h.pid, h.host, h.job[0] ? ", Slurm job " : "", h.job);
    else
        snprintf(out, bytes, "another");
}

/* ours: what a lease of ours says. is_taken: we know that we took it. */
static mb_status check_file(const char *path, const mb_str *ours, bool is_taken)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char who[400], *last = mb_str_format("%s.last", path);
    bool is_there = false, is_last = false;
    if (last == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(read_lease(path, &text, &is_there));
    if (is_there && mb_str_equal(mb_str_text(&text), mb_str_text(ours))) goto done;
    if (!is_there) MB_TRY(read_lease(last, &text, &is_last));
    if (!is_there && !is_last && !is_taken) goto done; /* nobody ever took it */
    name_holder(&text, who, sizeof who);
    if (is_there || (is_last && !mb_str_equal(mb_str_text(&text), mb_str_text(ours))))
        MB_RAISE(MB_EEXIST, "%s: %s %s while this process was at work; nothing more is written here", path,
                 who, is_there ? "took over" : "took over and has ended");
    MB_RAISE(MB_EEXIST, "%s: was removed while this process was at work; nothing more is written here", path);
done:
    mb_str_destroy(&text);
    mb_free(last);
    return status;
}

mb_status mb_lease_is_mine(const mb_lease *lease)
{
    return check_file(lease->path, &lease->text, true);
}

mb_status mb_lease_check(const char *folder)
{
    mb_status status = MB_OK;
    mb_str ours = MB_STR_EMPTY;
    char *path = mb_files_join(folder, "lease");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(describe_self(&ours));
    MB_TRY(check_file(path, &ours, false));
done:
    mb_str_destroy(&ours);
    mb_free(path);
    return status;
}

mb_status mb_lease_check_for(const char *path)
{
    mb_status status = MB_OK;
    const char *slash = strrchr(path, '/');
    char *folder = slash != NULL ? mb_strndup(path, (size_t)(slash - path) + 1) : mb_strdup(".");
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(mb_lease_check(folder));
done:
    mb_free(folder);
    return status;
}

bool mb_lease_is_held(const char *folder, const char *opt_name)
{
    mb_str text = MB_STR_EMPTY;
    holder h = {0};
    char *path = mb_files_join(folder, opt_name != NULL ? opt_name : "lease");
    const bool is_there = path != NULL && mb_files_read(path, 4096, &text) == MB_OK;
    if (!is_there) mb_status_reset();
    const bool is_held = is_there && (!parse_holder(&text, &h) || !is_stale(&h));
    mb_str_destroy(&text);
    mb_free(path);
    return is_held;
}
