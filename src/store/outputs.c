/* outputs.c: the table of what every expert answered to every question.
 *
 * 1. memory   2. reading   3. writing   4. parts of a table
 */
#include "store/outputs.h"

#include <math.h>
#include <string.h>

#include "base/json.h"
#include "store/answer_rows.h"

/* ---- 1. memory ---- */

/* The questions' columns; the table owns them. */
static mb_answer_rows rows_of(const mb_outputs *o)
{
    return (mb_answer_rows){.questions = o->questions,
                            .choices = o->choices,
                            .answer = o->answer,
                            .kind = o->kind,
                            .options = o->options,
                            .chance = o->chance,
                            .text_hash = o->text_hash,
                            .ids = o->ids,
                            .source = o->source,
                            .source_names = o->source_names,
                            .sources = o->sources,
                            .texts = o->texts,
                            .text_count = o->text_count,
                            .questions_hash = o->questions_hash,
                            .style = o->style,
                            .few_shot = o->few_shot};
}

static void take_rows(mb_outputs *o, const mb_answer_rows *rows)
{
    o->questions = rows->questions;
    o->answer = rows->answer;
    o->kind = rows->kind;
    o->options = rows->options;
    o->chance = rows->chance;
    o->text_hash = rows->text_hash;
    o->ids = rows->ids;
    o->source = rows->source;
    o->source_names = rows->source_names;
    o->sources = rows->sources;
    o->texts = rows->texts;
    o->text_count = rows->text_count;
    o->questions_hash = rows->questions_hash;
    o->style = rows->style;
    o->few_shot = rows->few_shot;
}

void mb_outputs_close(mb_outputs **outputs)
{
    mb_outputs *o = *outputs;
    if (o == NULL) return;
    mb_answer_rows rows = rows_of(o);
    mb_answer_rows_reset(&rows);
    mb_free(o->choice_prob);
    mb_free(o->picked);
    mb_free(o->right);
    mb_free(o->opt_gate_logits);
    mb_free(o->opt_latency);
    mb_free(o->opt_gate_hash);
    mb_h5_free_strings(&o->expert_names, o->experts);
    mb_h5_free_strings(&o->model_hashes, o->experts);
    MB_FREE(*outputs);
}

mb_status mb_outputs_create(int64_t questions, int64_t experts, int64_t choices, mb_outputs **out_outputs)
{
    mb_status status = MB_OK;
    mb_outputs *o = NULL;
    mb_answer_rows rows;
    MB_NEW(o);
    status = mb_answer_rows_create(questions, choices, &rows);
    take_rows(o, &rows);
    MB_TRY(status);
    o->choices = choices;
    o->experts = experts;
    MB_NEW_ARRAY(o->choice_prob, questions * experts * choices);
    MB_NEW_ARRAY(o->picked, questions * experts);
    MB_NEW_ARRAY(o->right, questions * experts);
    MB_NEW_ARRAY(o->expert_names, experts);
    MB_NEW_ARRAY(o->model_hashes, experts);
    for (int64_t i = 0; i < questions * experts * choices; i++) o->choice_prob[i] = NAN;
    for (int64_t i = 0; i < questions * experts; i++) o->picked[i] = -1;
    *out_outputs = o;
    o = NULL;
done:
    mb_outputs_close(&o);
    return status;
}

mb_status mb_outputs_expert(const mb_outputs *outputs, const char *name, int64_t *out_expert)
{
    mb_status status = MB_OK;
    mb_str names = MB_STR_EMPTY;
    for (int64_t x = 0; x < outputs->experts; x++) {
        if (strcmp(outputs->expert_names[x], name) == 0) {
            *out_expert = x;
            goto done;
        }
        MB_TRY(mb_str_add(&names, x > 0 ? ", " : ""));
        MB_TRY(mb_str_add(&names, outputs->expert_names[x]));
    }
    status = mb_fail(MB_ENOTFOUND, "there is no expert '%s'; there are: %s", name, mb_str_text(&names));
done:
    mb_str_destroy(&names);
    return status;
}

/* ---- 2. reading ---- */

/* Whole and consistent, as outputs.h says. */
static mb_status check(const mb_outputs *o, mb_status code, const char *path)
{
    mb_status status = MB_OK;
    const mb_answer_rows rows = rows_of(o);
    if (o->experts < 1) MB_RAISE(code, "%s: has no experts", path);
    MB_TRY(mb_answer_rows_check(&rows, code, path));
    MB_TRY(mb_answer_rows_check_picks(&rows, o->experts, o->picked, o->right, code, path));
    for (int64_t x = 0; x < o->experts; x++)
        for (int64_t y = 0; y < x; y++)
            if (strcmp(o->expert_names[x], o->expert_names[y]) == 0)
                MB_RAISE(code, "%s: two experts are named '%s'", path, o->expert_names[x]);
    for (int64_t i = 0; i < o->questions * o->experts; i++) {
        const int64_t q = i / o->experts;
        const float *prob = o->choice_prob + i * o->choices;
        for (int32_t c = 0; c < o->options[q] && o->picked[i] >= 0; c++)
            if (!(prob[c] >= 0 && prob[c] <= 1))
                MB_RAISE(code, "%s: /choice_prob of question %lld (%s), expert %lld is no probability", path,
                         (long long)q, o->ids[q], (long long)(i % o->experts));
        if (o->opt_gate_logits != NULL && !isfinite(o->opt_gate_logits[i]))
            MB_RAISE(code, "%s: /gate_logits of question %lld (%s) are not finite", path, (long long)q,
                     o->ids[q]);
    }
done:
    return status;
}

static mb_status read_models(mb_h5 *file, mb_outputs *o)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *list = NULL;
    MB_TRY(mb_h5_get_text(file, "/", "models", &text));
    MB_TRY(mb_json_parse(mb_str_text(&text), text.length, mb_h5_path(file), &list));
    if (!json_is_array(list) || (int64_t)json_array_size(list) != o->experts)
        MB_RAISE(MB_EFORMAT, "%s: attribute models is no list of %lld hashes", mb_h5_path(file),
                 (long long)o->experts);
    MB_NEW_ARRAY(o->model_hashes, o->experts);
    for (int64_t x = 0; x < o->experts; x++) {
        const char *hash = json_string_value(json_array_get(list, (size_t)x));
        if (hash == NULL) MB_RAISE(MB_EFORMAT, "%s: attribute models holds no texts", mb_h5_path(file));
        o->model_hashes[x] = mb_strdup(hash);
        if (o->model_hashes[x] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a hash");
    }
done:
    json_decref(list);
    mb_str_destroy(&text);
    return status;
}

static mb_status read_experts(mb_h5 *file, mb_outputs *o)
{
    mb_status status = MB_OK;
    mb_dtype dtype;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_shape(file, "/choice_prob", &dtype, &dims, shape));
    if (dims != 3) MB_RAISE(MB_EFORMAT, "%s: /choice_prob is not [Q, X, C]", mb_h5_path(file));
    o->experts = shape[1];
    o->choices = shape[2];
    shape[0] = o->questions;
    MB_TRY(mb_answer_rows_array(file, "/choice_prob", MB_F32, 3, shape, &o->choice_prob));
    MB_TRY(mb_answer_rows_array(file, "/picked", MB_I32, 2, shape, &o->picked));
    MB_TRY(mb_answer_rows_array(file, "/right", MB_U8, 2, shape, &o->right));
    MB_TRY(mb_answer_rows_strings(file, "/expert_names", o->experts, &o->expert_names));
    MB_TRY(read_models(file, o));
    if (mb_h5_has(file, "/gate_logits")) {
        MB_TRY(mb_answer_rows_array(file, "/gate_logits", MB_F32, 2, shape, &o->opt_gate_logits));
        MB_TRY(mb_answer_rows_attribute(file, "gate", &o->opt_gate_hash));
    }
    if (mb_h5_has(file, "/latency"))
        MB_TRY(mb_answer_rows_array(file, "/latency", MB_F32, 2, shape, &o->opt_latency));
done:
    return status;
}

mb_status mb_outputs_open(const char *path, mb_outputs **out_outputs)
{
    mb_status status = MB_OK;
    mb_outputs *o = NULL;
    mb_h5 *file = NULL;
    mb_answer_rows rows = {0};
    MB_NEW(o);
    MB_TRY(mb_answer_rows_open_file(path, "moebatch-outputs", "moe-gate join", &file));
    status = mb_answer_rows_read(file, &rows);
    take_rows(o, &rows);
    MB_TRY(status);
    MB_TRY(read_experts(file, o));
    MB_TRY(check(o, MB_EFORMAT, path));
    *out_outputs = o;
    o = NULL;
done:
    mb_h5_destroy(&file);
    mb_outputs_close(&o);
    return status;
}

/* ---- 3. writing ---- */

static mb_status write_matrix(mb_h5 *file, const char *name, mb_dtype dtype, const void *data,
                              const mb_outputs *o)
{
    const mb_tensor tensor = mb_tensor_view2(dtype, (void *)(uintptr_t)data, o->questions, o->experts);
    return mb_h5_write(file, name, &tensor);
}

static mb_status write_models(mb_h5 *file, const mb_outputs *o)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *list = json_array();
    for (int64_t x = 0; x < o->experts; x++)
        json_array_append_new(list, json_string(o->model_hashes[x] != NULL ? o->model_hashes[x] : ""));
    MB_TRY(mb_json_print(list, 0, false, &text));
    MB_TRY(mb_h5_set_text(file, "/", "models", mb_str_text(&text)));
done:
    json_decref(list);
    mb_str_destroy(&text);
    return status;
}

mb_status mb_outputs_write(const mb_outputs *outputs, const char *path)
{
    mb_status status = MB_OK;
    const mb_outputs *o = outputs;
    const mb_answer_rows rows = rows_of(o);
    const mb_tensor prob =
        mb_tensor_view3(MB_F32, (void *)o->choice_prob, o->questions, o->experts, o->choices);
    mb_h5 *file = NULL;
    MB_TRY(check(o, MB_EDATA, path));
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-outputs"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(write_models(file, o));
    MB_TRY(mb_answer_rows_write(file, &rows));
    MB_TRY(mb_h5_write(file, "/choice_prob", &prob));
    MB_TRY(write_matrix(file, "/picked", MB_I32, o->picked, o));
    MB_TRY(write_matrix(file, "/right", MB_U8, o->right, o));
    MB_TRY(
        mb_h5_write_strings(file, "/expert_names", (const char *const *)(void *)o->expert_names, o->experts));
    if (o->opt_gate_logits != NULL) {
        MB_TRY(mb_h5_set_text(file, "/", "gate", o->opt_gate_hash != NULL ? o->opt_gate_hash : ""));
        MB_TRY(write_matrix(file, "/gate_logits", MB_F32, o->opt_gate_logits, o));
    }
    if (o->opt_latency != NULL) MB_TRY(write_matrix(file, "/latency", MB_F32, o->opt_latency, o));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 4. parts of a table ---- */

static mb_status take_names(const mb_outputs *from, const int64_t *questions, const int64_t *experts,
                            mb_outputs *to)
{
    mb_status status = MB_OK;
    for (int64_t q = 0; q < to->questions; q++) {
        to->ids[q] = mb_strdup(from->ids[questions[q]]);
        if (to->ids[q] == NULL) MB_RAISE(MB_ENOMEM, "no memory for an id");
    }
    for (int64_t x = 0; x < to->experts; x++) {
        const char *hash = from->model_hashes[experts[x]];
        to->expert_names[x] = mb_strdup(from->expert_names[experts[x]]);
        to->model_hashes[x] = mb_strdup(hash != NULL ? hash : "");
        if (to->expert_names[x] == NULL || to->model_hashes[x] == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for the names of experts");
    }
    to->questions_hash = mb_strdup(from->questions_hash);
    to->style = mb_strdup(from->style);
    to->few_shot = from->few_shot;
    if (to->questions_hash == NULL || to->style == NULL) MB_RAISE(MB_ENOMEM, "no memory for attributes");
    MB_TRY(mb_answer_rows_copy(from->source_names, from->sources, &to->source_names));
    to->sources = from->sources;
    MB_TRY(mb_answer_rows_copy(from->texts, from->text_count, &to->texts));
    to->text_count = from->text_count;
done:
    return status;
}

static void take_question(const mb_outputs *from, int64_t q, const int64_t *experts, mb_outputs *to,
                          int64_t at)
{
    to->answer[at] = from->answer[q];
    to->kind[at] = from->kind[q];
    to->options[at] = from->options[q];
    to->chance[at] = from->chance[q];
    to->text_hash[at] = from->text_hash[q];
    to->source[at] = from->source[q];
    for (int64_t x = 0; x < to->experts; x++) {
        const int64_t i = q * from->experts + experts[x], j = at * to->experts + x;
        memcpy(to->choice_prob + j * to->choices, from->choice_prob + i * from->choices,
               (size_t)to->choices * sizeof *to->choice_prob);
        to->picked[j] = from->picked[i];
        to->right[j] = from->right[i];
        if (to->opt_gate_logits != NULL) to->opt_gate_logits[j] = from->opt_gate_logits[i];
        if (to->opt_latency != NULL) to->opt_latency[j] = from->opt_latency[i];
    }
}

mb_status mb_outputs_take(const mb_outputs *outputs, const int64_t *questions, int64_t question_count,
                          const int64_t *experts, int64_t expert_count, mb_outputs **out_outputs)
{
    mb_status status = MB_OK;
    mb_outputs *to = NULL;
    bool is_all = expert_count == outputs->experts;
    for (int64_t x = 0; x < expert_count && is_all; x++) is_all = experts[x] == x;
    MB_TRY(mb_outputs_create(question_count, expert_count, outputs->choices, &to));
    if (outputs->opt_gate_logits != NULL && is_all) {
        MB_NEW_ARRAY(to->opt_gate_logits, question_count * expert_count);
        to->opt_gate_hash = mb_strdup(outputs->opt_gate_hash != NULL ? outputs->opt_gate_hash : "");
        if (to->opt_gate_hash == NULL) MB_RAISE(MB_ENOMEM, "no memory for attributes");
    }
    if (outputs->opt_latency != NULL) MB_NEW_ARRAY(to->opt_latency, question_count * expert_count);
    MB_TRY(take_names(outputs, questions, experts, to));
    for (int64_t q = 0; q < question_count; q++) take_question(outputs, questions[q], experts, to, q);
    *out_outputs = to;
    to = NULL;
done:
    mb_outputs_close(&to);
    return status;
}
