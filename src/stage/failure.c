/* failure.c: writing and removing failure.json. */
#include "stage/failure.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/json.h"
#include "base/memory.h"

static char *failure_path(const char *folder, mb_share share)
{
    char *name = mb_share_name(share, "failure", ".json"), *path = NULL;
    if (name != NULL) path = mb_files_join(folder, name);
    mb_free(name);
    return path;
}

/* The Slurm job we are, "" for none: a new block. */
static char *job_name(void)
{
    const char *job = getenv("SLURM_JOB_ID"), *array = getenv("SLURM_ARRAY_JOB_ID"),
               *task = getenv("SLURM_ARRAY_TASK_ID");
    if (array != NULL && task != NULL) return mb_str_format("%s_%s", array, task);
    return mb_strdup(job != NULL ? job : "");
}

mb_status mb_failure_write(const char *folder, mb_share share, mb_status cause, const char *message, int rank)
{
    mb_status status = MB_OK;
    char host[256] = "", now[32], *path = failure_path(folder, share), *job = job_name();
    json_t *json = NULL;
    if (path == NULL || job == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    gethostname(host, sizeof host - 1);
    mb_clock_iso(now);
    json = json_pack("{s:i, s:s, s:s, s:i, s:s, s:s, s:s}", "code", mb_status_exit_code(cause), "status",
                     mb_status_name(cause), "message", message, "rank", rank, "host", host, "job", job,
                     "time", now);
    if (json == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory, or a message that is not UTF-8", path);
    MB_TRY(mb_files_make_folders(folder));
    MB_TRY(mb_json_write(path, json, 1, false));
done:
    json_decref(json);
    mb_free(path);
    mb_free(job);
    return status;
}

void mb_failure_remove(const char *folder, mb_share share)
{
    char *path = failure_path(folder, share);
    if (path != NULL) unlink(path);
    mb_free(path);
}

void mb_failure_remove_all(const char *folder)
{
    char **names = NULL, *path = NULL;
    int64_t n = 0;
    if (mb_files_list(folder, &names, &n) != MB_OK) mb_status_reset();
    for (int64_t i = 0; i < n; ++i) {
        if (!mb_str_is_prefix(names[i], "failure") || !mb_str_is_suffix(names[i], ".json")) continue;
        path = mb_files_join(folder, names[i]);
        if (path != NULL) unlink(path);
        mb_free(path);
    }
    mb_files_free_names(&names, n);
}
