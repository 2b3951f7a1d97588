/* merge_records.c: see the header.
 *
 * 1. one record   2. files   3. the mode
 */
#include "stage/merge_records.h"

#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/merge_line.h"
#include "stage/merge_options.h"
#include "stage/merge_questions.h"

typedef struct recording {
    const mb_merge_program *own;
    mb_question_style style;
    char **paths; /* [count] files of questions */
    char **names; /* [count] of the files written */
    int64_t count, records;
    mb_str lines, prompt, completion, text; /* of the file, of the record */
} recording;

/* ---- 1. one record ---- */

static mb_status make_text(recording *r, const mb_question *question)
{
    mb_status status = MB_OK;
    const bool has_options = mb_str_equal(r->own->text, "options");
    if (mb_str_equal(r->own->text, "prompt")) return mb_str_add(&r->text, mb_str_text(&r->prompt));
    MB_TRY(mb_str_add(&r->text, question->body.text));
    for (int i = 0; i < question->body.option_count && has_options; i++)
        MB_TRY(mb_str_add_format(&r->text, "\n%c. %s", 'A' + i, question->body.options[i]));
done:
    return status;
}

static mb_status add_record(recording *r, const mb_question *question)
{
    mb_status status = MB_OK;
    mb_str_reset(&r->prompt);
    mb_str_reset(&r->completion);
    mb_str_reset(&r->text);
    MB_TRY(mb_question_prompt(question, r->style, r->own->record_few_shot, &r->prompt));
    MB_TRY(mb_question_solution(question, r->style, &r->completion));
    MB_TRY(make_text(r, question));
    MB_TRY(mb_merge_line_json(json_pack("{s:s, s:s, s:s, s:s, s:s}", "id", question->id, "source",
                                        question->source, "prompt", mb_str_text(&r->prompt), "completion",
                                        mb_str_text(&r->completion), "text", mb_str_text(&r->text)),
                              &r->lines));
    r->records++;
done:
    return status;
}

/* ---- 2. files ---- */

static mb_status add_path(recording *r, char *path, const char *name)
{
    mb_status status = MB_OK;
    char **paths = mb_realloc(r->paths, (size_t)r->count + 1, sizeof *paths);
    if (paths != NULL) r->paths = paths;
    char **names = mb_realloc(r->names, (size_t)r->count + 1, sizeof *names);
    if (names != NULL) r->names = names;
    char *copy = mb_strdup(name);
    if (path == NULL || paths == NULL || names == NULL || copy == NULL) {
        mb_free(path);
        mb_free(copy);
        MB_RAISE(MB_ENOMEM, "no memory for the names of files");
    }
    r->paths[r->count] = path;
    r->names[r->count++] = copy;
done:
    return status;
}

/* Every *.jsonl of a folder without questions.jsonl, in byte order of their names. */
static mb_status find_folder(recording *r, const char *folder)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t n = 0;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++)
        if (mb_str_is_suffix(names[i], ".jsonl"))
            MB_TRY(add_path(r, mb_files_join(folder, names[i]), names[i]));
    if (r->count == 0) MB_RAISE(MB_ENOTFOUND, "questions.path: %s: no *.jsonl of questions here", folder);
done:
    mb_files_free_names(&names, n);
    return status;
}

static mb_status find_files(recording *r)
{
    mb_status status = MB_OK;
    const char *path = r->own->questions;
    char *inner = path != NULL ? mb_files_join(path, "questions.jsonl") : NULL, *found = NULL;
    if (path != NULL && mb_files_is_folder(path) && !mb_files_is_file(inner)) {
        MB_TRY(find_folder(r, path));
        goto done;
    }
    MB_TRY(mb_merge_questions_find(path, &found));
    MB_TRY(add_path(r, found, "records.jsonl"));
done:
    mb_free(inner);
    return status;
}

static mb_status write_file(mb_program *program, recording *r, int64_t i)
{
    mb_status status = MB_OK;
    mb_questions *questions = NULL;
    mb_str_reset(&r->lines);
    MB_TRY(mb_questions_open(r->paths[i], &questions));
    for (int64_t q = 0; q < mb_questions_count(questions); q++)
        MB_TRY(add_record(r, mb_questions_at(questions, q)));
    MB_TRY(mb_merge_questions_write(program, r->names[i], &r->lines));
    MB_TRY(mb_program_output(program, r->names[i]));
    mb_info("  %-24s %7lld records", r->names[i], (long long)mb_questions_count(questions));
done:
    mb_questions_close(&questions);
    return status;
}

/* ---- 3. the mode ---- */

static void destroy(recording *r)
{
    for (int64_t i = 0; i < r->count; i++) {
        mb_free(r->paths[i]);
        mb_free(r->names[i]);
    }
    mb_free(r->paths);
    mb_free(r->names);
    mb_str_destroy(&r->lines);
    mb_str_destroy(&r->prompt);
    mb_str_destroy(&r->completion);
    mb_str_destroy(&r->text);
}

static mb_status do_work(mb_program *program, recording *r)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < r->count; i++) MB_TRY(write_file(program, r, i));
    MB_TRY(mb_program_result_int(program, "records", r->records));
    mb_info("%lld records in style %s; for moe-shard: dataset.form=io "
            "dataset.fields=input=prompt,output=completion dataset.template=plain",
            (long long)r->records, mb_question_style_name(r->style));
done:
    return status;
}

mb_status mb_merge_records_run(mb_program *program)
{
    mb_status status = MB_OK;
    recording r = {.own = program->own};
    bool is_done = false;
    MB_TRY(mb_question_style_parse(r.own->style, &r.style));
    if (program->is_dry_run && r.own->questions != NULL) goto done;
    MB_TRY(find_files(&r));
    MB_TRY(mb_program_begin_run_list(program, (const char *const *)r.names, (const char *const *)r.paths,
                                     r.count, &is_done));
    if (is_done) goto done;
    if (mb_program_is_root(program)) status = do_work(program, &r);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, NULL));
done:
    destroy(&r);
    return status;
}
