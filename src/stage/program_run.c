/* program_run.c: a program's run folder: is there work, whose is it, what came of it.
 *
 * 1. the record   2. beginning   3. finishing
 */
#include "stage/program_run.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "config/config.h"
#include "stage/failure.h"

/* ---- 1. the record ---- */

/* The folders of a fused model's members, and where they are. */
static bool is_place_of_member(const char *key)
{
    static const char *const keys[] = {"foundation", "sft",    "foundation_adapter", "sft_adapter",
                                       "more",       "router", "members_on"};
    if (!mb_str_is_prefix(key, "fuse.")) return false;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (mb_str_equal(key + strlen("fuse."), keys[i])) return true;
    return false;
}

/* Does the list "a|b|c" hold the key? */
static bool is_listed(const char *list, const char *key)
{
    const size_t n = strlen(key);
    for (const char *at = strstr(list, key); at != NULL; at = strstr(at + 1, key))
        if ((at == list || at[-1] == '|') && (at[n] == '|' || at[n] == 0)) return true;
    return false;
}

/* Keys whose value does not change a result, or whose content is hashed as an input. */
static bool is_passed_over(const char *key)
{
    static const char places[] =
        "model.adapter|training.student_init|dataset.inputs|score.cache_dir|eval.reference|"
        "eval.questions|infer.experts|merge.inputs|without.inputs|quantize.calibration|"
        "quantize.validation|gate.train|gate.test|gate.embeddings|gate.experts_data|"
        "subset.train|subset.test|subset.latency|subset.energy|subset.embeddings_train|"
        "subset.embeddings_test|bench.experts|bench.inputs";
    static const char manners[] = "threads|gpu.share|training.time_limit_minutes|training.save_steps|"
                                  "training.save_total_limit|training.async_save|training.strict";
    return is_place_of_member(key) || mb_str_is_prefix(key, "output.") || mb_str_is_prefix(key, "run.") ||
           mb_str_is_prefix(key, "slurm.") || mb_str_is_suffix(key, ".path") ||
           mb_str_is_prefix(key, "training.logging") || mb_str_is_prefix(key, "training.save_minutes") ||
           is_listed(places, key) || is_listed(manners, key);
}

/* Configuration and inputs of output.dir's record; with the lease, or without to look only. */
static mb_status open_run(mb_program *program, const char *const *names, const char *const *paths, int64_t n)
{
    mb_status status = MB_OK;
    json_t *config = NULL;
    MB_TRY(mb_runfolder_view(program->options.output_dir, program->spec->name, program->stage, program->share,
                             &program->run));
    if (!program->asks_done) MB_TRY(mb_runfolder_claim(program->run));
    MB_TRY(mb_config_resolved(program->tables, program->table_count, &config));
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(config, next, key, value) if (is_passed_over(key)) json_object_del(config, key);
    if (program->mode != NULL) MB_TRY(mb_json_set(config, "mode", json_string(program->mode)));
    MB_TRY(mb_runfolder_config(program->run, config));
    for (int64_t i = 0; i < n; ++i)
        if (paths[i] != NULL) MB_TRY(mb_runfolder_input(program->run, names[i], paths[i]));
done:
    json_decref(config);
    return status;
}

/* ---- 2. beginning ---- */

/* A finished stage that does not match is never overwritten, but kept under another name. */
static mb_status move_aside(mb_program *program)
{
    mb_status status = MB_OK;
    char *aside = NULL;
    mb_str reason = MB_STR_EMPTY;
    MB_TRY(mb_str_add(&reason, mb_runfolder_reason(program->run)));
    MB_TRY(mb_runfolder_move_aside(program->run, program->options.force, &aside));
    if (aside != NULL) {
        mb_info("%s was made otherwise (%s); it is kept as %s", program->options.output_dir,
                mb_str_text(&reason), aside);
        mb_free(program->aside);
        program->aside = aside;
    }
    MB_TRY(mb_runfolder_claim(program->run));
done:
    mb_str_destroy(&reason);
    return status;
}

void mb_program_move_back(mb_program *program)
{
    char *state = NULL;
    /* Other shares may be at work in the folder. */
    if (program->aside != NULL && mb_share_is_whole(program->share))
        state = mb_program_path(program, "state");
    if (state != NULL && !mb_files_is_folder(state) && mb_runfolder_is_mine(program->run) == MB_OK) {
        mb_log_init(program->spec->name, mb_comm_rank(program->comm), mb_comm_size(program->comm), NULL);
        mb_log_set_progress_file(NULL);
        mb_runfolder_close(&program->run);
        if (mb_files_remove_tree(program->options.output_dir) == MB_OK &&
            mb_files_rename(program->aside, program->options.output_dir) == MB_OK)
            mb_warn("%s: the earlier result is back in its place", program->options.output_dir);
    }
    mb_free(state);
}

/* The log and the progress file of a run in its folder; a share has its own. */
static mb_status open_logs(mb_program *program)
{
    mb_status status = MB_OK;
    char *log = mb_share_name(program->share, "run", ".log"), *path = NULL,
         *progress = mb_share_name(program->share, "progress", ".json"), *progress_path = NULL;
    if (log != NULL) path = mb_program_path(program, log);
    if (progress != NULL) progress_path = mb_program_path(program, progress);
    if (path == NULL || progress_path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    mb_log_init(program->spec->name, 0, mb_comm_size(program->comm), path);
    MB_TRY(mb_log_set_progress_file(progress_path));
done:
    mb_free(log);
    mb_free(path);
    mb_free(progress);
    mb_free(progress_path);
    return status;
}

/* Rank 0's part: is there work? Then the folder is ours, and empty but for what an interrupted run of the
 * same work left. */
static mb_status claim_run(mb_program *program, const char *const *names, const char *const *paths, int64_t n,
                           int64_t *out_is_done)
{
    mb_status status = MB_OK;
    char *done = mb_program_path(program, "done.json");
    if (done == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(open_run(program, names, paths, n));
    mb_failure_remove(program->options.output_dir, program->share);
    for (;;) { /* of several shares one moves an earlier result aside; and it may be joined meanwhile */
        *out_is_done = !program->options.force && mb_runfolder_is_done(program->run);
        if (*out_is_done) goto done;
        if (!mb_files_is_file(done)) break;
        MB_TRY(move_aside(program));
    }
    mb_debug("%s: to do (%s)", program->options.output_dir, mb_runfolder_reason(program->run));
    MB_TRY(open_logs(program));
done:
    mb_free(done);
    return status;
}

/* Rank 0's part of --is-done. What cannot be read is not done. */
static mb_status look_at_run(mb_program *program, const char *const *names, const char *const *paths,
                             int64_t n)
{
    mb_status status = open_run(program, names, paths, n);
    if (status == MB_OK && mb_runfolder_is_done(program->run)) {
        program->answer = MB_PROGRAM_DONE;
        printf("done\n");
        goto done;
    }
    if (status == MB_ENOMEM) goto done;
    program->answer = MB_PROGRAM_NOT_DONE;
    printf("not done: %s\n", status == MB_OK ? mb_runfolder_reason(program->run) : mb_status_message());
    mb_status_reset();
    status = MB_OK;
done:
    return status;
}

mb_status mb_program_begin_run_list(mb_program *program, const char *const *names, const char *const *paths,
                                    int64_t n, bool *out_is_done)
{
    mb_status status = MB_OK;
    int64_t is_done = 0;
    if (program->options.output_dir == NULL)
        MB_RAISE(MB_EUSAGE,
                 "%s: output.dir is missing: say where the results go, e.g. output.dir=checkpoints/my-run/%s",
                 program->spec->name, program->stage);
    if (program->asks_done) {
        if (mb_program_is_root(program)) status = look_at_run(program, names, paths, n);
        MB_TRY(mb_comm_agree(program->comm, status));
        MB_TRY(mb_comm_bcast(program->comm, &program->answer, sizeof program->answer, 0));
        *out_is_done = true;
        goto done;
    }
    if (mb_program_is_root(program)) status = claim_run(program, names, paths, n, &is_done);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, &is_done, sizeof is_done, 0));
    program->has_begun = true;
    *out_is_done = is_done != 0;
    if (is_done) mb_info("%s: up to date, nothing to do", program->options.output_dir);
done:
    return status;
}

mb_status mb_program_begin_run(mb_program *program, bool *out_is_done, ...)
{
    const char *names[32], *paths[32];
    int64_t n = 0;
    va_list list;
    va_start(list, out_is_done);
    for (const char *name; n < 32 && (name = va_arg(list, const char *)) != NULL; ++n) {
        names[n] = name;
        paths[n] = va_arg(list, const char *);
    }
    va_end(list);
    return mb_program_begin_run_list(program, names, paths, n, out_is_done);
}

/* ---- 3. finishing ---- */

static mb_status write_record(mb_program *program)
{
    mb_status status = MB_OK;
    const mb_runfolder_machine machine = {.ranks = mb_comm_size(program->comm),
                                          .threads = program->ops != NULL ? mb_ops_threads(program->ops) : 1,
                                          .opt_backend =
                                              program->ops != NULL ? mb_ops_describe(program->ops) : NULL};
    status = mb_runfolder_finish(program->run, &machine);
    if (status != MB_OK && !mb_share_is_whole(program->share) && mb_program_is_whole_done(program)) {
        mb_info("%s: others did this share too, and joined the work", program->options.output_dir);
        mb_status_reset();
        status = MB_OK;
    }
    MB_TRY(status);
    if (mb_share_is_whole(program->share)) mb_failure_remove_all(program->options.output_dir);
done:
    return status;
}

mb_status mb_program_finish_run(mb_program *program, ...)
{
    mb_status status = MB_OK;
    va_list list;
    va_start(list, program);
    if (mb_program_is_root(program)) {
        for (const char *path; status == MB_OK && (path = va_arg(list, const char *)) != NULL;)
            status = mb_runfolder_output(program->run, path);
        if (status == MB_OK) status = write_record(program);
    }
    va_end(list);
    return mb_comm_agree(program->comm, status);
}

mb_status mb_program_output(mb_program *program, const char *path)
{
    return program->run != NULL ? mb_runfolder_output(program->run, path) : MB_OK;
}

bool mb_program_is_whole_done(const mb_program *program)
{
    return program->run != NULL && mb_runfolder_is_whole_done(program->run);
}

mb_status mb_program_work_hash(const mb_program *program, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    char text[MB_HASH_TEXT] = "";
    if (program->run != NULL) status = mb_runfolder_hash(program->run, text);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, text, sizeof text, 0));
    memcpy(out_text, text, sizeof text);
done:
    return status;
}

mb_status mb_program_result_real(mb_program *program, const char *name, double value)
{
    return program->run != NULL ? mb_runfolder_result(program->run, name, json_real(value)) : MB_OK;
}

mb_status mb_program_result_int(mb_program *program, const char *name, int64_t value)
{
    return program->run != NULL ? mb_runfolder_result(program->run, name, json_integer(value)) : MB_OK;
}

char *mb_program_path(const mb_program *program, const char *name)
{
    return mb_files_join(program->options.output_dir, name);
}
