/* merge_without.c: see the header.
 *
 * 1. what others have   2. lines   3. the mode
 */
#include "stage/merge_without.h"

#include <stdio.h>

#include "base/log.h"
#include "base/memory.h"
#include "stage/merge_line.h"
#include "stage/merge_options.h"
#include "stage/merge_questions.h"
#include "stage/merge_seen.h"

typedef struct removing {
    const mb_merge_program *own;
    mb_merge_same same;
    mb_merge_inputs inputs;
    int64_t input; /* that is read */
    mb_questions *questions;
    mb_merge_seen *others; /* key -> number of the file */
    mb_str kept, removed;
    int64_t kept_count, removed_count;
    json_t *by_file, *by_source; /* how many were removed */
} removing;

/* ---- 1. what others have ---- */

static mb_status take_other(void *own, const mb_merge_taken *taken)
{
    mb_status status = MB_OK;
    removing *r = own;
    mb_question_body view;
    uint64_t key;
    int64_t first;
    if (taken->opt_body == NULL) {
        mb_warn("%s: %s: not compared", taken->file->path, taken->problem);
        goto done;
    }
    mb_merge_body_view(taken->opt_body, &view);
    MB_TRY(mb_merge_same_hash(&view, r->same, &key));
    MB_TRY(mb_merge_seen_add(r->others, key, r->input, &first));
done:
    return status;
}

/* ---- 2. lines ---- */

static mb_status take(void *own, int64_t i, const mb_question *question, const char *line, size_t length)
{
    mb_status status = MB_OK;
    removing *r = own;
    uint64_t key;
    (void)i;
    MB_TRY(mb_merge_same_hash(&question->body, r->same, &key));
    const int64_t found = mb_merge_seen_get(r->others, key);
    if (found < 0) {
        MB_TRY(mb_str_append(&r->kept, line, length));
        MB_TRY(mb_str_add(&r->kept, "\n"));
        r->kept_count++;
        goto done;
    }
    const char *name = r->inputs.file[found].source;
    r->removed_count++;
    MB_TRY(mb_merge_questions_count(r->by_file, name, 1));
    MB_TRY(mb_merge_questions_count(r->by_source, question->source, 1));
    MB_TRY(
        mb_merge_line_json(json_pack("{s:s, s:s, s:I, s:s}", "id", question->id, "source", question->source,
                                     "source_index", (json_int_t)question->source_index, "found_in", name),
                           &r->removed));
done:
    return status;
}

static mb_status write_report(const mb_program *program, const removing *r)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(program, "without.json");
    json_t *report = json_pack("{s:s, s:i, s:s, s:I, s:I, s:O, s:O}", "format", "moebatch-without", "version",
                               1, "by", r->own->by, "kept", (json_int_t)r->kept_count, "removed",
                               (json_int_t)r->removed_count, "found_in", r->by_file, "sources", r->by_source);
    if (path == NULL || report == NULL) MB_RAISE(MB_ENOMEM, "no memory for the counts");
    MB_TRY(mb_json_write(path, report, 2, false));
done:
    json_decref(report);
    mb_free(path);
    return status;
}

/* ---- 3. the mode ---- */

static mb_status do_work(mb_program *program, removing *r, const char *path)
{
    mb_status status = MB_OK;
    r->by_file = json_object();
    r->by_source = json_object();
    for (int64_t f = 0; f < r->inputs.count; f++)
        MB_TRY(mb_merge_questions_count(r->by_file, r->inputs.file[f].source, 0));
    MB_TRY(mb_merge_seen_create(&r->others));
    MB_TRY(mb_questions_open(path, &r->questions));
    for (r->input = 0; r->input < r->inputs.count; r->input++)
        MB_TRY(mb_merge_inputs_read(&r->inputs.file[r->input], r->own->support, take_other, r));
    MB_TRY(mb_merge_questions_each(r->questions, take, r));
    MB_TRY(mb_merge_questions_write(program, "questions.jsonl", &r->kept));
    MB_TRY(mb_merge_questions_write(program, "removed.jsonl", &r->removed));
    MB_TRY(write_report(program, r));
    mb_info("%lld questions stand in the other files too and were left out; %lld stay",
            (long long)r->removed_count, (long long)r->kept_count);
    if (r->kept_count == 0) mb_warn("%s: no question is left", path);
    MB_TRY(mb_program_result_int(program, "questions", r->kept_count));
    MB_TRY(mb_program_result_int(program, "removed", r->removed_count));
done:
    return status;
}

static mb_status begin(mb_program *program, const removing *r, const char *path, bool *out_is_done)
{
    mb_status status = MB_OK;
    const int64_t n = r->inputs.count;
    const char **names = NULL, **paths = NULL;
    char **made = NULL;
    MB_NEW_ARRAY(names, n + 1);
    MB_NEW_ARRAY(paths, n + 1);
    MB_NEW_ARRAY(made, n);
    names[0] = "questions";
    paths[0] = path;
    for (int64_t i = 0; i < n; i++) {
        const mb_merge_file *file = &r->inputs.file[i];
        made[i] =
            mb_str_format("without %s/%s", file->source, file->opt_subject != NULL ? file->opt_subject : "");
        if (made[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for names");
        names[i + 1] = made[i];
        paths[i + 1] = file->path;
    }
    MB_TRY(mb_program_begin_run_list(program, names, paths, n + 1, out_is_done));
done:
    for (int64_t i = 0; made != NULL && i < n; i++) mb_free(made[i]);
    mb_free(made);
    mb_free(names);
    mb_free(paths);
    return status;
}

static void destroy(removing *r)
{
    mb_merge_inputs_close(&r->inputs);
    mb_questions_close(&r->questions);
    mb_merge_seen_destroy(&r->others);
    mb_str_destroy(&r->kept);
    mb_str_destroy(&r->removed);
    json_decref(r->by_file);
    json_decref(r->by_source);
}

mb_status mb_merge_without_run(mb_program *program)
{
    mb_status status = MB_OK;
    removing r = {.own = program->own};
    bool is_done = false;
    char *path = NULL;
    const mb_merge_input_options options = {
        .key = "without.inputs", .inputs = r.own->without, .format = "auto", .fields = NULL};
    if (r.own->without == NULL)
        MB_RAISE(MB_EUSAGE, "without.inputs is missing: files whose questions are left out, name=path,...");
    if (program->is_dry_run && r.own->questions != NULL) goto done;
    r.same = mb_merge_same_parse(r.own->by);
    MB_TRY(mb_merge_questions_find(r.own->questions, &path));
    MB_TRY(mb_comm_agree(program->comm, mb_merge_inputs_open(&options, &r.inputs)));
    if (r.inputs.count == 0) MB_RAISE(MB_EUSAGE, "without.inputs names no file");
    MB_TRY(begin(program, &r, path, &is_done));
    if (is_done) goto done;
    if (mb_program_is_root(program)) status = do_work(program, &r, path);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, "questions.jsonl", "removed.jsonl", "without.json", NULL));
done:
    mb_free(path);
    destroy(&r);
    return status;
}
