/* question_loglik.c: questions -> parts -> tasks of choice.h -> part files -> one table.
 *
 * 1. memory   2. prompts   3. parts   4. one part   5. run   6. reading
 */
#include "measure/question_loglik.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/stop.h"
#include "measure/choice.h"
#include "measure/tile.h"
#include "store/h5.h"
#include "text/tasks_build.h"

static const char format_name[] = "moebatch-question-part";

struct mb_question_loglik {
    const mb_questions *questions;
    const mb_tokenizer *tokenizer;
    const mb_question_loglik_options *options;
    const char *folder, *key;
    int64_t count, choices; /* Q, C */
    int32_t *tokens;        /* [Q] */
    int64_t *first;         /* [parts + 1] */
    int64_t parts;
};

/* ---- 1. memory ---- */

void mb_question_loglik_close(mb_question_loglik **loglik)
{
    mb_question_loglik *l = *loglik;
    if (l == NULL) return;
    mb_free(l->tokens);
    mb_free(l->first);
    MB_FREE(*loglik);
}

int64_t mb_question_loglik_count(const mb_question_loglik *loglik)
{
    return loglik->count;
}

int64_t mb_question_loglik_choices(const mb_question_loglik *loglik)
{
    return loglik->choices;
}

const int32_t *mb_question_loglik_tokens(const mb_question_loglik *loglik)
{
    return loglik->tokens;
}

/* ---- 2. prompts ---- */

static mb_status count_tokens(mb_question_loglik *l)
{
    mb_status status = MB_OK;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_str prompt = MB_STR_EMPTY;
    MB_NEW_ARRAY(l->tokens, l->count);
    MB_TRY(mb_tokenizer_scratch_create(l->tokenizer, &scratch));
    for (int64_t q = 0; q < l->count; q++) {
        mb_str_reset(&prompt);
        mb_ids_reset(&ids);
        MB_TRY(mb_question_prompt(mb_questions_at(l->questions, q), l->options->style, l->options->few_shot,
                                  &prompt));
        MB_TRY(mb_tokenizer_encode(l->tokenizer, scratch, mb_str_text(&prompt), prompt.length, true, &ids));
        l->tokens[q] = (int32_t)ids.count;
    }
done:
    mb_tokenizer_scratch_destroy(&scratch);
    mb_ids_destroy(&ids);
    mb_str_destroy(&prompt);
    return status;
}

/* ---- 3. parts ---- */

static int options_of(const mb_question_loglik *l, int64_t q)
{
    return mb_questions_at(l->questions, q)->body.option_count;
}

/* Tokens that are computed for a question: letters of one prompt share it. */
static int64_t cost_of(const mb_question_loglik *l, int64_t q)
{
    const int64_t options = options_of(l, q);
    return l->tokens[q] * (l->options->style == MB_QUESTION_LETTERS && options > 0 ? 1 : options);
}

static mb_status cut_parts(mb_question_loglik *l)
{
    mb_status status = MB_OK;
    int64_t all = 0, held = 0;
    for (int64_t q = 0; q < l->count; q++) all += cost_of(l, q);
    const int64_t least = mb_tile_part_tokens(all, l->options->tile_tokens);
    MB_NEW_ARRAY(l->first, l->count + 1);
    for (int64_t q = 0; q < l->count && all > 0; q++) {
        if (q == 0 || held >= least) {
            l->first[l->parts++] = q;
            held = 0;
        }
        held += cost_of(l, q);
    }
    l->first[l->parts] = l->count;
done:
    return status;
}

int64_t mb_question_loglik_parts(const mb_question_loglik *loglik)
{
    return loglik->parts;
}

mb_status mb_question_loglik_open(const mb_questions *questions, const mb_tokenizer *tokenizer,
                                  const mb_question_loglik_options *options, const char *folder,
                                  const char *key, mb_question_loglik **out_loglik)
{
    mb_status status = MB_OK;
    mb_question_loglik *l = NULL;
    MB_NEW(l);
    *l = (mb_question_loglik){.questions = questions,
                              .tokenizer = tokenizer,
                              .options = options,
                              .folder = folder,
                              .key = key,
                              .count = mb_questions_count(questions),
                              .choices = 1};
    if (options->limit > 0 && options->limit < l->count) l->count = options->limit;
    if (l->count == 0) MB_RAISE(MB_EDATA, "%s: holds no questions", mb_questions_path(questions));
    for (int64_t q = 0; q < l->count; q++)
        if (options_of(l, q) > l->choices) l->choices = options_of(l, q);
    MB_TRY(count_tokens(l));
    MB_TRY(cut_parts(l));
    *out_loglik = l;
    l = NULL;
done:
    mb_question_loglik_close(&l);
    return status;
}

static char *part_path(const mb_question_loglik *l, int64_t part)
{
    return mb_str_format("%s/%.16s-options-%lld-%lld.h5", l->folder, l->key, (long long)l->first[part],
                         (long long)l->first[part + 1]);
}

/* ---- 4. one part ---- */

/* The questions of a part that have options, as a task without a name: what has the progress is the run. */
static mb_status make_task(const mb_question_loglik *l, int64_t part, mb_task **out_task)
{
    mb_status status = MB_OK;
    mb_tasks_build build = {0};
    mb_task *task = NULL;
    mb_str text = MB_STR_EMPTY;
    MB_NEW(task);
    build.task = task;
    task->delimiter = "";
    task->path = mb_strdup(mb_questions_path(l->questions));
    if (task->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a task");
    for (int64_t q = l->first[part]; q < l->first[part + 1]; q++) {
        const mb_question *question = mb_questions_at(l->questions, q);
        if (question->body.option_count == 0) continue;
        mb_str_reset(&text);
        MB_TRY(mb_question_prompt(question, l->options->style, l->options->few_shot, &text));
        MB_TRY(mb_tasks_build_question(&build, mb_str_text(&text), q));
        for (int i = 0; i < question->body.option_count; i++) {
            mb_str_reset(&text);
            MB_TRY(mb_question_choice(&question->body, l->options->style, i, &text));
            MB_TRY(mb_tasks_build_choice(&build, mb_str_text(&text)));
        }
    }
    *out_task = task;
    task = NULL;
done:
    mb_task_close(&task);
    mb_str_destroy(&text);
    return status;
}

static mb_status write_part(const mb_question_loglik *l, int64_t part, float *loglik)
{
    mb_status status = MB_OK;
    const mb_tensor tensor = mb_tensor_view2(MB_F32, loglik, l->first[part + 1] - l->first[part], l->choices);
    mb_h5 *file = NULL;
    char *path = part_path(l, part);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", format_name));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_write(file, "/loglik", &tensor));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    mb_free(path);
    return status;
}

/* Computed by this rank alone. */
static mb_status run_part(mb_comm *alone, mb_lm *lm, const mb_question_loglik *l, int64_t max_length,
                          int64_t part)
{
    mb_status status = MB_OK;
    const mb_question_loglik_options *o = l->options;
    const int64_t first = l->first[part], n = l->first[part + 1] - first;
    mb_task *task = NULL;
    mb_choice_result result = {0};
    float *loglik = NULL;
    MB_NEW_ARRAY(loglik, n * l->choices);
    for (int64_t i = 0; i < n * l->choices; i++) loglik[i] = NAN;
    MB_TRY(make_task(l, part, &task));
    MB_TRY(mb_choice_run(alone, lm, task, l->tokenizer, max_length, o->tile_tokens, o->softmax_dtype, 0,
                         &result));
    for (int64_t k = 0; k < result.count; k++)
        for (int64_t c = 0; c < task->questions[k].choice_count; c++)
            loglik[(task->questions[k].doc_id - first) * l->choices + c] =
                (float)result.questions[k].loglik[c];
    MB_TRY(write_part(l, part, loglik));
done:
    mb_task_close(&task);
    mb_choice_result_reset(&result);
    mb_free(loglik);
    return status;
}

/* ---- 5. run ---- */

static mb_status read_part(const mb_question_loglik *l, int64_t part, float *out_loglik)
{
    mb_status status = MB_OK;
    mb_tensor tensor = mb_tensor_view2(MB_F32, out_loglik, l->first[part + 1] - l->first[part], l->choices);
    mb_h5 *file = NULL;
    char *path = part_path(l, part);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(mb_h5_read(file, "/loglik", &tensor));
done:
    mb_h5_destroy(&file);
    mb_free(path);
    return status;
}

/* Is the part there, and can it be read? One that cannot is made again. */
static mb_status is_part_there(const mb_question_loglik *l, int64_t part, float *room, bool *out_is_there)
{
    mb_status status = MB_OK;
    char *path = part_path(l, part);
    *out_is_there = false;
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (!mb_files_is_file(path)) goto done;
    status = read_part(l, part, room);
    *out_is_there = status == MB_OK;
    if (status == MB_OK || status == MB_ENOMEM) goto done;
    mb_warn("%s is made again: %s", path, mb_status_message());
    mb_status_reset();
    status = MB_OK;
done:
    mb_free(path);
    return status;
}

/* The parts that are to be made, the same list on all ranks. Collective. */
static mb_status list_missing(mb_comm *comm, const mb_question_loglik *l, int64_t **out_missing,
                              int64_t *out_count)
{
    mb_status status = MB_OK;
    int64_t *missing = NULL, n = 0;
    float *room = NULL;
    missing = mb_calloc((size_t)l->parts + 1, sizeof *missing);
    room = mb_calloc((size_t)(l->count * l->choices), sizeof *room);
    if (missing == NULL || room == NULL) status = MB_ENOMEM;
    for (int64_t p = 0; p < l->parts && status == MB_OK && mb_comm_rank(comm) == 0; p++) {
        bool is_there = false;
        status = is_part_there(l, p, room, &is_there);
        missing[p] = !is_there;
    }
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_comm_bcast(comm, missing, (size_t)l->parts * sizeof *missing, 0));
    for (int64_t p = 0; p < l->parts; p++)
        if (missing[p] != 0) missing[n++] = p;
    *out_missing = missing;
    *out_count = n;
    missing = NULL;
done:
    mb_free(missing);
    mb_free(room);
    return status;
}

static mb_status run_parts(mb_comm *alone, mb_comm_queue *queue, mb_lm *lm, const mb_question_loglik *l,
                           const int64_t *missing, int64_t count)
{
    mb_status status = MB_OK;
    mb_progress progress;
    int64_t unit = 0;
    const int64_t max_length = mb_tile_limit(l->options->max_length, lm, NULL); /* warns once */
    mb_progress_start(&progress, "questions", "parts", l->parts - count, l->parts);
    for (;;) {
        if (mb_stop_is_set()) MB_RAISE(MB_ESTOPPED, "stopped while questions are answered; run again");
        MB_TRY(mb_comm_queue_next(queue, &unit));
        if (unit < 0) break;
        MB_TRY(run_part(alone, lm, l, max_length, missing[unit]));
        mb_progress_step(&progress, l->parts - count + unit + 1, NULL);
    }
    mb_progress_end(&progress, l->parts, NULL);
done:
    return status;
}

mb_status mb_question_loglik_run(mb_comm *comm, mb_lm *lm, const mb_question_loglik *loglik,
                                 int64_t *out_skipped)
{
    mb_status status = MB_OK;
    const mb_question_loglik *l = loglik;
    mb_comm *alone = NULL;
    mb_comm_queue *queue = NULL;
    int64_t *missing = NULL, count = 0;
    MB_TRY(list_missing(comm, l, &missing, &count));
    *out_skipped = l->parts - count;
    if (count == 0) goto done;
    MB_TRY(mb_comm_split(comm, mb_comm_rank(comm), &alone));
    MB_TRY(mb_comm_queue_create(comm, count, &queue));
    MB_TRY(mb_comm_agree(comm, run_parts(alone, queue, lm, l, missing, count)));
done:
    mb_comm_queue_destroy(&queue);
    mb_comm_destroy(&alone);
    mb_free(missing);
    return status;
}

/* ---- 6. reading ---- */

mb_status mb_question_loglik_read(const mb_question_loglik *loglik, float *out_loglik)
{
    mb_status status = MB_OK;
    const mb_question_loglik *l = loglik;
    for (int64_t i = 0; i < l->count * l->choices; i++) out_loglik[i] = NAN;
    for (int64_t p = 0; p < l->parts; p++) MB_TRY(read_part(l, p, out_loglik + l->first[p] * l->choices));
done:
    return status;
}
