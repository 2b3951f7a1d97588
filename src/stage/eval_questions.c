/* eval_questions.c: a file of questions through one model.
 *
 * 1. what is open   2. cloze prompts out   3. cloze answers back   4. results   5. all
 */
#include "stage/eval_questions.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "measure/question_loglik.h"
#include "stage/eval_generate.h"
#include "stage/question_answers.h"
#include "text/records.h"

/* Without eval.stop a cloze answer ends with its line: a new question would follow. */
static const char end_of_line[] = "[\"\\n\"]";

/* ---- 1. what is open ---- */

typedef struct work {
    mb_program *program;
    mb_eval_program *own;
    mb_lm *lm;
    const char *tokenizer_path; /* borrowed */
    mb_answer_match match;
    mb_questions *questions;
    mb_tokenizer *tokenizer;
    mb_question_loglik_options options;
    mb_question_loglik *loglik;
    mb_ids ends;
    char *folder; /* of parts */
    char key[MB_HASH_TEXT];
    int64_t count, cloze; /* questions, limited; of them cloze */
} work;

static mb_status open_work(work *w)
{
    mb_status status = MB_OK;
    const mb_eval_program *o = w->own;
    w->tokenizer_path = o->tokenizer != NULL ? o->tokenizer : mb_lm_base(w->lm);
    w->options = (mb_question_loglik_options){.few_shot = o->fewshot,
                                              .limit = o->limit,
                                              .max_length = o->max_length,
                                              .tile_tokens = o->tile_tokens};
    MB_TRY(mb_question_style_parse(o->question_style, &w->options.style));
    MB_TRY(mb_dtype_parse(o->softmax_dtype, &w->options.softmax_dtype));
    MB_TRY(mb_answer_match_parse(o->category.match, &w->match));
    MB_TRY(mb_questions_open(o->questions, &w->questions));
    MB_TRY(mb_tokenizer_open(w->tokenizer_path, &w->tokenizer));
    MB_TRY(mb_generate_ends_read(mb_lm_base(w->lm), w->tokenizer, &w->ends));
    w->folder = mb_program_path(w->program, "parts");
    if (w->folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_question_loglik_open(w->questions, w->tokenizer, &w->options, w->folder, w->key, &w->loglik));
    w->count = mb_question_loglik_count(w->loglik);
    for (int64_t q = 0; q < w->count; q++)
        w->cloze += mb_questions_at(w->questions, q)->kind == MB_QUESTION_CLOZE;
    if (w->cloze > 0 && o->category.generate && o->model.shard)
        MB_RAISE(MB_EUSAGE, "model.shard does not go with generation: ranks answer each at their own pace; "
                            "say eval.generate=false to leave cloze questions unanswered");
    if (mb_program_is_root(w->program)) MB_TRY(mb_files_make_folders(w->folder));
done:
    return status;
}

static void close_work(work *w)
{
    mb_question_loglik_close(&w->loglik);
    mb_questions_close(&w->questions);
    mb_tokenizer_close(&w->tokenizer);
    mb_ids_destroy(&w->ends);
    mb_free(w->folder);
}

/* <parts>/<key>.cloze<suffix>: mb_free; NULL: no memory. */
static char *cloze_path(const work *w, const char *suffix)
{
    return mb_str_format("%s/%.16s.cloze%s", w->folder, w->key, suffix);
}

/* ---- 2. cloze prompts out ---- */

static mb_status write_prompts(const work *w, const char *path)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY, prompt = MB_STR_EMPTY;
    json_t *line = NULL;
    for (int64_t q = 0; q < w->count; q++) {
        const mb_question *question = mb_questions_at(w->questions, q);
        if (question->kind != MB_QUESTION_CLOZE) continue;
        mb_str_reset(&prompt);
        MB_TRY(mb_question_prompt(question, w->options.style, w->options.few_shot, &prompt));
        json_decref(line);
        line =
            json_pack("{s:I, s:s%}", "record", (json_int_t)q, "prompt", mb_str_text(&prompt), prompt.length);
        if (line == NULL) MB_RAISE(MB_ENOMEM, "no memory for a prompt");
        MB_TRY(mb_json_print(line, 0, false, &text));
        MB_TRY(mb_str_add(&text, "\n"));
    }
    MB_TRY(mb_files_write(path, mb_str_text(&text), text.length));
done:
    json_decref(line);
    mb_str_destroy(&text);
    mb_str_destroy(&prompt);
    return status;
}

/* ---- 3. cloze answers back ---- */

/* texts [count]: mb_free each. */
static mb_status read_texts(const work *w, const char *joined, char **texts)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record read;
    MB_TRY(mb_records_open(joined, 0, &records));
    for (;;) {
        int64_t at = 0;
        const char *text = NULL;
        MB_TRY(mb_records_read(records, &read));
        if (read.bytes == NULL) break;
        if (read.problem != NULL) MB_RAISE(MB_EFORMAT, "%s: %s", joined, read.problem);
        MB_TRY(mb_json_get_int(read.json, "record", "an answer", &at));
        MB_TRY(mb_json_get_string(read.json, "generated_text", "an answer", &text));
        if (at < 0 || at >= w->count || texts[at] != NULL)
            MB_RAISE(MB_EFORMAT, "%s: has another record", joined);
        texts[at] = mb_strdup(text);
        if (texts[at] == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
    }
done:
    mb_records_close(&records);
    return status;
}

static mb_status generate(const work *w, const char *joined)
{
    mb_status status = MB_OK;
    const mb_category_program *o = &w->own->category;
    mb_eval_generate_cost cost = {0};
    char *asked = cloze_path(w, ".prompts.jsonl"), *left_out = cloze_path(w, ".left-out.jsonl");
    const mb_eval_generate what = {.name = "cloze questions",
                                   .prompts = asked,
                                   .count = w->cloze,
                                   .folder = w->folder,
                                   .key = w->key,
                                   .joined = joined,
                                   .left_out = left_out,
                                   .tokenizer_path = w->tokenizer_path,
                                   .template_dir = o->template_dir,
                                   .opt_stop = o->stop != NULL ? o->stop : end_of_line,
                                   .ends = &w->ends,
                                   .max_new_tokens = o->max_new_tokens,
                                   .batch_sequences = o->batch_sequences};
    if (asked == NULL || left_out == NULL) status = mb_fail(MB_ENOMEM, "no memory for a path");
    if (status == MB_OK && mb_program_is_root(w->program)) status = write_prompts(w, asked);
    MB_TRY(mb_comm_agree(w->program->comm, status));
    MB_TRY(mb_eval_generate_run(w->program->comm, w->lm, &what, &cost));
    mb_info("%lld cloze questions: %lld tokens generated in %.1f s", (long long)w->cloze,
            (long long)cost.generated_tokens, cost.seconds);
done:
    mb_free(asked);
    mb_free(left_out);
    return status;
}

/* ---- 4. results ---- */

static mb_status make_table(const work *w, const char *opt_joined, mb_answers **out_answers)
{
    mb_status status = MB_OK;
    mb_answers *a = NULL;
    const int64_t choices = mb_question_loglik_choices(w->loglik);
    float *loglik = NULL;
    char **texts = NULL;
    MB_NEW_ARRAY(loglik, w->count * choices);
    MB_NEW_ARRAY(texts, w->count);
    MB_TRY(mb_question_answers_create(w->questions, w->count, choices, mb_question_loglik_tokens(w->loglik),
                                      w->options.style, w->options.few_shot, &a));
    MB_TRY(mb_question_loglik_read(w->loglik, loglik));
    mb_question_answers_pick(w->questions, loglik, a);
    if (opt_joined != NULL) MB_TRY(read_texts(w, opt_joined, texts));
    status = mb_question_answers_texts(w->questions, (const char *const *)(void *)texts, w->match, a);
    if (status != MB_OK) mb_status_prefix("%s: ", mb_questions_path(w->questions));
    MB_TRY(status);
    a->model_hash = mb_strdup(mb_lm_hash(w->lm));
    a->tokenizer_hash = mb_strdup(mb_tokenizer_hash(w->tokenizer));
    if (a->model_hash == NULL || a->tokenizer_hash == NULL) MB_RAISE(MB_ENOMEM, "no memory for attributes");
    *out_answers = a;
    a = NULL;
done:
    for (int64_t q = 0; texts != NULL && q < w->count; q++) mb_free(texts[q]);
    mb_free(texts);
    mb_free(loglik);
    mb_answers_close(&a);
    return status;
}

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static mb_status add_results(const work *w, const mb_answers *a, const mb_question_answers_summary *s,
                             json_t *results)
{
    mb_status status = MB_OK;
    json_t *rows = json_object(), *own = NULL;
    for (int64_t i = 0; i < s->count; i++) {
        const mb_question_answers_row *r = &s->row[i];
        mb_info("  %-28s %7.2f %% right [%6.2f, %6.2f], by chance %6.2f %%, %lld questions", r->name,
                100 * r->accuracy, 100 * r->low, 100 * r->high, 100 * r->chance, (long long)r->questions);
        MB_TRY(mb_json_set(rows, r->name,
                           json_pack("{s:I, s:o, s:o, s:o, s:o}", "questions", (json_int_t)r->questions,
                                     "accuracy", number(r->accuracy), "low", number(r->low), "high",
                                     number(r->high), "chance", number(r->chance))));
    }
    own = json_pack("{s:s, s:s, s:s, s:I, s:s, s:I, s:I, s:f, s:O}", "file", w->own->questions, "hash",
                    a->questions_hash, "style", a->style, "few_shot", (json_int_t)a->few_shot, "match",
                    mb_answer_match_name(w->match), "draws", (json_int_t)w->own->draws, "seed",
                    (json_int_t)w->own->draw_seed, "level", w->own->level, "accuracy", rows);
    MB_TRY(mb_json_set(results, "questions", json_incref(own)));
    MB_TRY(mb_program_result_int(w->program, "questions", a->questions));
    MB_TRY(mb_program_result_real(w->program, "accuracy", s->row[0].accuracy));
    MB_TRY(mb_program_result_real(w->program, "chance", s->row[0].chance));
done:
    json_decref(rows);
    json_decref(own);
    return status;
}

/* One rank. */
static mb_status write_results(const work *w, const char *opt_joined, json_t *results, mb_h5 *file)
{
    mb_status status = MB_OK;
    mb_answers *a = NULL;
    mb_question_answers_summary summary = {0};
    char *path = mb_program_path(w->program, "answers.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(make_table(w, opt_joined, &a));
    MB_TRY(mb_question_answers_summarise(a, w->own->draws, w->own->draw_seed, w->own->level, &summary));
    MB_TRY(add_results(w, a, &summary, results));
    MB_TRY(mb_h5_write_f64(file, "/questions/accuracy", summary.row[0].accuracy));
    MB_TRY(mb_answers_write(a, path));
    MB_TRY(mb_program_output(w->program, "answers.h5"));
done:
    mb_question_answers_summary_reset(&summary);
    mb_answers_close(&a);
    mb_free(path);
    return status;
}

/* ---- 5. all ---- */

/* Can what is accepted be matched at all? */
static mb_status check_accepted(const mb_question *question, mb_answer_match match)
{
    mb_status status = MB_OK;
    const json_t *one;
    size_t i;
    bool is_equal;
    json_array_foreach(question->accepted, i, one)
    {
        const char *text = json_string_value(one);
        MB_TRY(mb_answer_match_check(match, text, strlen(text), "", 0, &is_equal));
    }
done:
    return status;
}

mb_status mb_eval_questions_check(const mb_eval_program *options)
{
    mb_status status = MB_OK;
    mb_questions *questions = NULL;
    mb_answer_match match;
    if (options->questions == NULL) goto done;
    MB_TRY(mb_answer_match_parse(options->category.match, &match));
    MB_TRY(mb_questions_open(options->questions, &questions));
    if (mb_questions_count(questions) == 0) MB_RAISE(MB_EDATA, "%s: holds no questions", options->questions);
    for (int64_t q = 0; q < mb_questions_count(questions); q++) {
        const mb_question *question = mb_questions_at(questions, q);
        status = check_accepted(question, match);
        if (status != MB_OK)
            mb_status_prefix("%s: question %lld (%s), eval.match=%s: ", options->questions, (long long)q,
                             question->id, options->category.match);
        MB_TRY(status);
    }
done:
    mb_questions_close(&questions);
    return status;
}

mb_status mb_eval_questions_run(mb_program *program, mb_lm *lm, json_t *results, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own, .lm = lm};
    int64_t skipped = 0;
    char *joined = NULL;
    MB_TRY(mb_program_work_hash(program, w.key));
    MB_TRY(mb_comm_agree(program->comm, open_work(&w)));
    const int64_t parts = mb_question_loglik_parts(w.loglik);
    mb_info("%s: %lld questions, %lld of them cloze; style %s, %lld examples", w.own->questions,
            (long long)w.count, (long long)w.cloze, w.own->question_style, (long long)w.options.few_shot);
    MB_TRY(mb_question_loglik_run(program->comm, lm, w.loglik, &skipped));
    if (skipped > 0) mb_info("%lld of %lld parts were done before", (long long)skipped, (long long)parts);
    if (w.cloze > 0 && w.own->category.generate) {
        joined = cloze_path(&w, ".answers.jsonl");
        MB_TRY(mb_comm_agree(program->comm, joined != NULL ? MB_OK : MB_ENOMEM));
        MB_TRY(generate(&w, joined));
    } else if (w.cloze > 0) {
        mb_warn("%lld cloze questions stay unanswered (eval.generate=false) and count as answered wrongly",
                (long long)w.cloze);
    }
    status = mb_program_is_root(program) ? write_results(&w, joined, results, opt_file) : MB_OK;
    MB_TRY(mb_comm_agree(program->comm, status));
done:
    close_work(&w);
    mb_free(joined);
    return status;
}
