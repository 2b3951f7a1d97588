/* runfolder.c: a stage's record: what went in, what came out, and whether that still holds.
 *
 * 1. opening and closing   2. moving aside   3. what goes in   4. is it done   5. what comes out
 */
#include "store/runfolder.h"

#include <stdio.h>
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
    char *path, *record, *whole; /* the folder; our record, and that of the whole (the same but for shares) */
    char *lease_name;
    mb_share share;
    mb_lease *lease;                                               /* NULL: not taken */
    json_t *program, *stage, *inputs, *config, *outputs, *results; /* outputs: list of paths */
    mb_str *reason; /* apart, so that a const run can say why */
    char started[32];
    double clock;
};

/* ---- 1. opening and closing ---- */

/* <folder>/<stem>[-<k>of<n>]<ending>: a new block, NULL on no memory. */
static char *share_path(const char *folder, mb_share share, const char *stem, const char *ending)
{
    char *name = mb_share_name(share, stem, ending), *path = NULL;
    if (name != NULL) path = mb_files_join(folder, name);
    mb_free(name);
    return path;
}

mb_status mb_runfolder_view(const char *path, const char *program, const char *stage, mb_share share,
                            mb_runfolder **out_run)
{
    mb_status status = MB_OK;
    mb_runfolder *run = NULL;
    MB_NEW(run);
    MB_NEW(run->reason);
    run->share = share;
    run->path = mb_strdup(path);
    run->record = share_path(path, share, "done", ".json");
    run->whole = mb_files_join(path, "done.json");
    run->lease_name = mb_share_name(share, "lease", "");
    run->program = json_string(program);
    run->stage = json_string(stage);
    run->inputs = json_object();
    run->config = json_object();
    run->outputs = json_array();
    run->results = json_object();
    run->clock = mb_clock_seconds();
    mb_clock_iso(run->started);
    if (run->path == NULL || run->record == NULL || run->whole == NULL || run->lease_name == NULL ||
        run->program == NULL || run->stage == NULL || run->inputs == NULL || run->config == NULL ||
        run->outputs == NULL || run->results == NULL)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    *out_run = run;
    run = NULL;
done:
    mb_runfolder_close(&run);
    return status;
}

mb_status mb_runfolder_claim(mb_runfolder *run)
{
    mb_status status = MB_OK;
    if (run->lease != NULL) goto done;
    MB_TRY(mb_files_make_folders(run->path));
    MB_TRY(mb_lease_open(run->path, run->lease_name, &run->lease));
done:
    return status;
}

mb_status mb_runfolder_open(const char *path, const char *program, const char *stage, mb_share share,
                            mb_runfolder **out_run)
{
    mb_status status = MB_OK;
    mb_runfolder *run = NULL;
    MB_TRY(mb_runfolder_view(path, program, stage, share, &run));
    MB_TRY(mb_runfolder_claim(run));
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
    mb_free(r->whole);
    mb_free(r->lease_name);
    MB_FREE(*run);
}

const char *mb_runfolder_path(const mb_runfolder *run)
{
    return run->path;
}

mb_status mb_runfolder_is_mine(const mb_runfolder *run)
{
    if (run->lease == NULL) return mb_fail(MB_EEXIST, "%s: this process has no lease of it", run->path);
    return mb_lease_is_mine(run->lease);
}

/* ---- 2. moving aside ---- */

static const double WAIT_SECONDS = 60;

static bool is_done_by(const mb_runfolder *run, const char *path);

/* Is a share of the folder's work being done? Its lease's name in `who`. */
static mb_status find_share_at_work(const char *folder, bool *out_found, mb_str *who)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t n = 0;
    *out_found = false;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n && !*out_found; i++) {
        if (!mb_str_is_prefix(names[i], "lease-") || strchr(names[i], '.') != NULL) continue;
        *out_found = mb_lease_is_held(folder, names[i]);
        mb_str_reset(who);
        MB_TRY(mb_str_add(who, names[i]));
    }
done:
    mb_files_free_names(&names, n);
    return status;
}

/* The lease of the whole, of a folder that others may be moving away under our feet. */
static mb_status wait_for_lease(const char *folder, double until, mb_lease **out_lease)
{
    mb_status status = MB_OK;
    for (;;) {
        MB_TRY(mb_files_make_folders(folder));
        status = mb_lease_open(folder, NULL, out_lease);
        if (status == MB_OK || mb_clock_seconds() > until) break;
        mb_status_reset();
        usleep(100000);
    }
    MB_TRY(status);
done:
    return status;
}

static mb_status rename_aside(const char *folder, mb_lease *lease, char **out_aside)
{
    mb_status status = MB_OK;
    char *aside = NULL;
    for (int i = 1;; i++) {
        mb_free(aside);
        aside = mb_str_format("%s.%d", folder, i);
        if (aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
        if (!mb_files_is_folder(aside)) break;
    }
    MB_TRY(mb_files_rename(folder, aside));
    MB_TRY(mb_lease_move(lease, aside));
    *out_aside = aside;
    aside = NULL;
done:
    mb_free(aside);
    return status;
}

mb_status mb_runfolder_move_aside(mb_runfolder *run, bool even_if_done, char **out_aside)
{
    mb_status status = MB_OK;
    const double until = mb_clock_seconds() + WAIT_SECONDS;
    const bool is_whole = mb_share_is_whole(run->share);
    mb_lease *lease = is_whole ? run->lease : NULL;
    mb_str who = MB_STR_EMPTY;
    char *aside = NULL;
    bool is_at_work = true;
    if (!is_whole) mb_lease_close(&run->lease);
    run->lease = NULL;
    if (lease == NULL) MB_TRY(wait_for_lease(run->path, until, &lease));
    if (mb_files_is_file(run->whole) && (even_if_done || !is_done_by(run, run->whole))) {
        for (;; usleep(100000)) { /* shares that find the same give theirs back soon */
            MB_TRY(find_share_at_work(run->path, &is_at_work, &who));
            if (!is_at_work || mb_clock_seconds() > until) break;
        }
        if (is_at_work)
            MB_RAISE(MB_EEXIST,
                     "%s/%s: a share of the work there is being done; wait for it, or remove this file if it "
                     "is gone",
                     run->path, mb_str_text(&who));
        MB_TRY(rename_aside(run->path, lease, &aside));
    }
    *out_aside = aside;
done:
    mb_lease_close(&lease);
    mb_str_destroy(&who);
    return status;
}

/* ---- 3. what goes in ---- */

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

const char *mb_runfolder_input_hash(const mb_runfolder *run, const char *name)
{
    return json_string_value(json_object_get(run->inputs, name));
}

mb_status mb_runfolder_config(mb_runfolder *run, json_t *config)
{
    json_decref(run->config);
    run->config = json_incref(config);
    return MB_OK;
}

mb_status mb_runfolder_hash(const mb_runfolder *run, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_json_print(run->inputs, 0, true, &text));
    MB_TRY(mb_json_print(run->config, 0, true, &text));
    mb_hash_bytes(mb_str_text(&text), text.length, out_text);
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 4. is it done ---- */

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

/* Does this record hold? If not, the reason says why. */
static bool is_done_by(const mb_runfolder *run, const char *path)
{
    json_t *record = NULL;
    mb_str_reset(run->reason);
    if (!mb_files_is_file(path)) {
        mb_str_add(run->reason, "no record");
        return false;
    }
    if (mb_json_read(path, &record) != MB_OK) {
        mb_str_add_format(run->reason, "the record cannot be read: %s", mb_status_message());
        mb_status_reset();
        return false;
    }
    bool done = matches(run, record, run->reason);
    if (!done) mb_status_reset();
    json_decref(record);
    return done;
}

bool mb_runfolder_is_whole_done(const mb_runfolder *run)
{
    return is_done_by(run, run->whole);
}

bool mb_runfolder_is_done(const mb_runfolder *run)
{
    const bool is_share = !mb_share_is_whole(run->share);
    return (is_share && mb_files_is_file(run->whole) && is_done_by(run, run->whole)) ||
           is_done_by(run, run->record);
}

const char *mb_runfolder_reason(const mb_runfolder *run)
{
    return mb_str_text(run->reason);
}

/* ---- 5. what comes out ---- */

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

/* Slurm's word on where we are, and how often the job was begun again. */
static mb_status describe_job(json_t *provenance)
{
    static const char *const names[] = {"SLURM_JOB_ID",        "SLURM_ARRAY_JOB_ID",  "SLURM_ARRAY_TASK_ID",
                                        "SLURM_JOB_NAME",      "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST",
                                        "SLURM_JOB_NUM_NODES", "SLURM_CLUSTER_NAME",  "SLURM_JOB_PARTITION",
                                        "SLURM_JOB_ACCOUNT",   "SLURM_CPUS_PER_TASK", "SLURM_STEP_ID"};
    mb_status status = MB_OK;
    const char *restarts = getenv("SLURM_RESTART_COUNT");
    MB_TRY(
        mb_json_set(provenance, "restarts", json_integer(restarts != NULL ? strtol(restarts, NULL, 10) : 0)));
    MB_TRY(mb_json_set(provenance, "slurm", json_object()));
    json_t *job = json_object_get(provenance, "slurm");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]) != NULL) MB_TRY(mb_json_set(job, names[i], json_string(getenv(names[i]))));
done:
    return status;
}

/* Where, when, by what and how long. */
static mb_status describe_run(const mb_runfolder *run, const mb_runfolder_machine *machine,
                              json_t *provenance)
{
    mb_status status = MB_OK;
    char host[256] = "", ended[32], share[64];
    gethostname(host, sizeof host - 1);
    mb_clock_iso(ended);
    MB_TRY(mb_json_set(provenance, "source", json_string(mb_version_source())));
    MB_TRY(mb_json_set(provenance, "host", json_string(host)));
    MB_TRY(mb_json_set(provenance, "ranks", json_integer(machine->ranks)));
    MB_TRY(mb_json_set(provenance, "threads", json_integer(machine->threads)));
    MB_TRY(mb_json_set(provenance, "started", json_string(run->started)));
    MB_TRY(mb_json_set(provenance, "ended", json_string(ended)));
    MB_TRY(mb_json_set(provenance, "seconds", json_real(mb_clock_seconds() - run->clock)));
    if (!mb_share_is_whole(run->share)) {
        snprintf(share, sizeof share, "%lld/%lld", (long long)run->share.part, (long long)run->share.of);
        MB_TRY(mb_json_set(provenance, "share", json_string(share)));
    }
    if (machine->opt_backend != NULL)
        MB_TRY(mb_json_set(provenance, "backend", json_string(machine->opt_backend)));
    MB_TRY(describe_job(provenance));
done:
    return status;
}

mb_status mb_runfolder_finish(mb_runfolder *run, const mb_runfolder_machine *machine)
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
    MB_TRY(describe_run(run, machine, json_object_get(record, "provenance")));
    MB_TRY(mb_runfolder_is_mine(run));
    MB_TRY(mb_json_write(run->record, record, 1, false));
done:
    json_decref(record);
    return status;
}
