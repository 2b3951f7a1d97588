/* runfolder.c: a stage's record: what went in, what came out, and whether that still holds.
 *
 * 1. opening and closing   2. what goes in   3. is it done   4. what comes out
 */
#include "store/runfolder.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/memory.h"
#include "base/version_info.h"
#include "store/contenthash.h"
#include "store/lease.h"

struct mb_runfolder {
    char *path, *record; /* the folder, its done.json */
    mb_lease *lease;
    json_t *program, *stage, *inputs, *config, *outputs, *results; /* outputs: list of paths */
    mb_str *reason; /* apart, so that a const run can say why */
    char started[32];
    double clock;
};

/* ---- 1. opening and closing ---- */

mb_status mb_runfolder_open(const char *path, const char *program, const char *stage, mb_runfolder **out_run)
{
    mb_status status = MB_OK;
    mb_runfolder *run = NULL;
    MB_NEW(run);
    MB_NEW(run->reason);
    run->path = mb_strdup(path);
    run->record = mb_files_join(path, "done.json");
    run->program = json_string(program);
    run->stage = json_string(stage);
    run->inputs = json_object();
    run->config = json_object();
    run->outputs = json_array();
    run->results = json_object();
    run->clock = mb_clock_seconds();
    mb_clock_iso(run->started);
    if (run->path == NULL || run->record == NULL || run->program == NULL || run->stage == NULL ||
        run->inputs == NULL || run->config == NULL || run->outputs == NULL || run->results == NULL)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(mb_files_make_folders(path));
    MB_TRY(mb_lease_open(path, &run->lease));
    *out_run = run;
    run = NULL;
done:
    mb_runfolder_close(&run);
    return status;
}

void mb_runfolder_close(mb_runfolder **run)
{
    mb_runfolder *r = *run;
    if (r == NULL) return;
    mb_lease_close(&r->lease);
    json_decref(r->program);
    json_decref(r->stage);
    json_decref(r->inputs);
    json_decref(r->config);
    json_decref(r->outputs);
    json_decref(r->results);
    if (r->reason != NULL) mb_str_destroy(r->reason);
    mb_free(r->reason);
    mb_free(r->path);
    mb_free(r->record);
    MB_FREE(*run);
}

const char *mb_runfolder_path(const mb_runfolder *run)
{
    return run->path;
}

/* ---- 2. what goes in ---- */

mb_status mb_runfolder_input(mb_runfolder *run, const char *name, const char *path)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT];
    MB_TRY(mb_contenthash_path(path, hash));
    MB_TRY(mb_json_set(run->inputs, name, json_string(hash)));
done:
    return status;
}

mb_status mb_runfolder_input_text(mb_runfolder *run, const char *name, const char *text)
{
    char hash[MB_HASH_TEXT];
    mb_hash_bytes(text, strlen(text), hash);
    return mb_json_set(run->inputs, name, json_string(hash));
}

mb_status mb_runfolder_config(mb_runfolder *run, json_t *config)
{
    json_decref(run->config);
    run->config = json_incref(config);
    return MB_OK;
}

/* ---- 3. is it done ---- */

/* The path of an output: absolute as it stands, else in the folder (mb_free). */
static char *output_path(const mb_runfolder *run, const char *path)
{
    return path[0] == '/' ? mb_strdup(path) : mb_files_join(run->path, path);
}

/* Which member two objects differ in first; NULL when in none. Borrowed from them. */
static const char *find_difference(const json_t *now, const json_t *then)
{
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)now, name,
                        value) if (!json_equal(value, json_object_get(then, name))) return name;
    json_object_foreach((json_t *)then, name, value) if (json_object_get(now, name) == NULL) return name;
    return NULL;
}

static bool outputs_are_whole(const mb_runfolder *run, const json_t *outputs, mb_str *reason)
{
    const char *name = NULL;
    json_t *hash = NULL;
    char found[MB_HASH_TEXT];
    json_object_foreach((json_t *)outputs, name, hash)
    {
        char *path = output_path(run, name);
        bool there = path != NULL && mb_contenthash_path(path, found) == MB_OK;
        mb_free(path);
        if (there && json_is_string(hash) && strcmp(found, json_string_value(hash)) == 0) continue;
        mb_str_add_format(reason, "output %s %s", name, there ? "changed" : "is missing or damaged");
        return false;
    }
    return true;
}

/* Compare with the record; false with a reason. */
static bool matches(const mb_runfolder *run, const json_t *record, mb_str *reason)
{
    static const char *const parts[] = {"inputs", "config"};
    const json_t *const now[] = {run->inputs, run->config};
    if (!json_equal(json_object_get(record, "program"), run->program) ||
        !json_equal(json_object_get(record, "stage"), run->stage)) {
        mb_str_add(reason, "the record is of another program or stage");
        return false;
    }
    for (int i = 0; i < 2; i++) {
        const char *name = find_difference(now[i], json_object_get(record, parts[i]));
        if (name == NULL) continue;
        mb_str_add_format(reason, "%s: %s changed", parts[i], name);
        return false;
    }
    return outputs_are_whole(run, json_object_get(record, "outputs"), reason);
}

bool mb_runfolder_is_done(const mb_runfolder *run)
{
    json_t *record = NULL;
    mb_str_reset(run->reason);
    if (!mb_files_is_file(run->record)) {
        mb_str_add(run->reason, "no record");
        return false;
    }
    if (mb_json_read(run->record, &record) != MB_OK) {
        mb_str_add_format(run->reason, "the record cannot be read: %s", mb_status_message());
        mb_status_reset();
        return false;
    }
    bool done = matches(run, record, run->reason);
    if (!done) mb_status_reset();
    json_decref(record);
    return done;
}

const char *mb_runfolder_reason(const mb_runfolder *run)
{
    return mb_str_text(run->reason);
}

/* ---- 4. what comes out ---- */

mb_status mb_runfolder_output(mb_runfolder *run, const char *path)
{
    if (json_array_append_new(run->outputs, json_string(path)) != 0)
        return mb_fail(MB_ENOMEM, "%s: not enough memory", run->path);
    return MB_OK;
}

mb_status mb_runfolder_result(mb_runfolder *run, const char *name, json_t *value)
{
    return mb_json_set(run->results, name, value);
}

static mb_status hash_outputs(const mb_runfolder *run, json_t *hashes)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT], *path = NULL;
    for (size_t i = 0; i < json_array_size(run->outputs); i++) {
        const char *name = json_string_value(json_array_get(run->outputs, i));
        mb_free(path);
        path = output_path(run, name);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", run->path);
        MB_TRY(mb_contenthash_path(path, hash));
        MB_TRY(mb_json_set(hashes, name, json_string(hash)));
    }
done:
    mb_free(path);
    return status;
}

/* Where, when, by what and how long. */
static mb_status describe_run(const mb_runfolder *run, int ranks, const char *opt_backend, json_t *provenance)
{
    static const char *const jobs[] = {"SLURM_JOB_ID",       "SLURM_ARRAY_JOB_ID",  "SLURM_ARRAY_TASK_ID",
                                       "SLURM_JOB_NAME",     "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST",
                                       "SLURM_CLUSTER_NAME", "SLURM_JOB_PARTITION"};
    mb_status status = MB_OK;
    char host[256] = "", ended[32];
    json_t *job = NULL;
    gethostname(host, sizeof host - 1);
    mb_clock_iso(ended);
    MB_TRY(mb_json_set(provenance, "source", json_string(mb_version_source())));
    MB_TRY(mb_json_set(provenance, "host", json_string(host)));
    MB_TRY(mb_json_set(provenance, "ranks", json_integer(ranks)));
    MB_TRY(mb_json_set(provenance, "started", json_string(run->started)));
    MB_TRY(mb_json_set(provenance, "ended", json_string(ended)));
    MB_TRY(mb_json_set(provenance, "seconds", json_real(mb_clock_seconds() - run->clock)));
    if (opt_backend != NULL) MB_TRY(mb_json_set(provenance, "backend", json_string(opt_backend)));
    MB_TRY(mb_json_set(provenance, "slurm", json_object()));
    job = json_object_get(provenance, "slurm");
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
        if (getenv(jobs[i]) != NULL) MB_TRY(mb_json_set(job, jobs[i], json_string(getenv(jobs[i]))));
done:
    return status;
}

mb_status mb_runfolder_finish(mb_runfolder *run, int ranks, const char *opt_backend)
{
    mb_status status = MB_OK;
    json_t *record = json_object();
    if (record == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", run->path);
    MB_TRY(mb_json_set(record, "program", json_incref(run->program)));
    MB_TRY(mb_json_set(record, "stage", json_incref(run->stage)));
    MB_TRY(mb_json_set(record, "inputs", json_incref(run->inputs)));
    MB_TRY(mb_json_set(record, "outputs", json_object()));
    MB_TRY(hash_outputs(run, json_object_get(record, "outputs")));
    MB_TRY(mb_json_set(record, "results", json_incref(run->results)));
    MB_TRY(mb_json_set(record, "config", json_incref(run->config)));
    MB_TRY(mb_json_set(record, "provenance", json_object()));
    MB_TRY(describe_run(run, ranks, opt_backend, json_object_get(record, "provenance")));
    MB_TRY(mb_json_write(run->record, record, 1, false));
done:
    json_decref(record);
    return status;
}
