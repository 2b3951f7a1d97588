/* question.c: reading questions, what identifies them, and their prompts.
 *
 * 1. names   2. one object   3. hashes   4. files   5. prompts
 */
#include "text/question.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "text/answer_match.h"
#include "text/records.h"

/* ---- 1. names ---- */

static const char *const kind_names[MB_QUESTION_KINDS] = {"single", "multiple", "cloze"};

const char *mb_question_kind_name(mb_question_kind kind)
{
    return kind_names[kind];
}

const char *mb_question_style_name(mb_question_style style)
{
    return style == MB_QUESTION_TEXTS ? "texts" : "letters";
}

mb_status mb_question_style_parse(const char *name, mb_question_style *out_style)
{
    mb_status status = MB_OK;
    if (!mb_str_equal(name, "letters") && !mb_str_equal(name, "texts"))
        MB_RAISE(MB_EUSAGE, "options are put as letters or texts, not as '%s'", name);
    *out_style = mb_str_equal(name, "texts") ? MB_QUESTION_TEXTS : MB_QUESTION_LETTERS;
done:
    return status;
}

/* ---- 2. one object ---- */

static mb_status read_kind(const json_t *object, mb_question_kind *out_kind)
{
    mb_status status = MB_OK;
    const char *name;
    int kind = 0;
    MB_TRY(mb_json_get_string(object, "kind", "question", &name));
    while (kind < MB_QUESTION_KINDS && !mb_str_equal(name, kind_names[kind])) kind++;
    if (kind == MB_QUESTION_KINDS) MB_RAISE(MB_EDATA, "kind is '%s': single, multiple or cloze", name);
    *out_kind = (mb_question_kind)kind;
done:
    return status;
}

static mb_status read_options(const json_t *object, mb_question_kind kind, mb_question_body *body)
{
    mb_status status = MB_OK;
    json_t *options, *option;
    size_t i;
    MB_TRY(mb_json_get_array(object, "options", "question", &options));
    const size_t n = json_array_size(options);
    if (kind == MB_QUESTION_CLOZE ? n != 0 : n < 2 || n > MB_QUESTION_MAX_OPTIONS)
        MB_RAISE(MB_EDATA, "a %s question has %s options, not %zu", kind_names[kind],
                 kind == MB_QUESTION_CLOZE ? "no" : "2 to 10", n);
    json_array_foreach(options, i, option)
    {
        if (!json_is_string(option)) MB_RAISE(MB_EDATA, "option %zu is no text", i);
        body->options[i] = json_string_value(option);
    }
    body->option_count = (int)n;
done:
    return status;
}

static mb_status add_right(const json_t *value, mb_question_body *body)
{
    mb_status status = MB_OK;
    if (!json_is_integer(value)) MB_RAISE(MB_EDATA, "answer: the number of an option, from 0, is expected");
    const json_int_t i = json_integer_value(value);
    if (i < 0 || i >= body->option_count)
        MB_RAISE(MB_EDATA, "answer %" JSON_INTEGER_FORMAT " is no option: there are %d, from 0", i,
                 body->option_count);
    if ((body->answer_mask & 1U << i) != 0)
        MB_RAISE(MB_EDATA, "answer names option %" JSON_INTEGER_FORMAT " twice", i);
    body->answer_mask |= 1U << i;
done:
    return status;
}

/* A question or a solved example. */
static mb_status read_body(const json_t *object, mb_question_kind kind, mb_question_body *body)
{
    mb_status status = MB_OK;
    const json_t *answer = json_object_get(object, "answer"), *one;
    size_t i;
    *body = (mb_question_body){0};
    MB_TRY(mb_json_get_string(object, "question", "question", &body->text));
    MB_TRY(read_options(object, kind, body));
    if (kind == MB_QUESTION_CLOZE) {
        MB_TRY(mb_json_get_string(object, "answer", "question", &body->answer));
    } else if (kind == MB_QUESTION_SINGLE) {
        MB_TRY(add_right(answer, body));
    } else {
        if (!json_is_array(answer) || json_array_size(answer) == 0)
            MB_RAISE(MB_EDATA, "answer: the list of all right options is expected");
        json_array_foreach(answer, i, one) MB_TRY(add_right(one, body));
    }
done:
    return status;
}

static mb_status read_accepted(const json_t *object, mb_question *question)
{
    mb_status status = MB_OK;
    const json_t *one;
    size_t i;
    json_t *answers;
    bool is_there = false;
    MB_TRY(mb_json_get_array(object, "answers", "question", &answers));
    json_array_foreach(answers, i, one)
    {
        if (!json_is_string(one)) MB_RAISE(MB_EDATA, "answers: entry %zu is no text", i);
        is_there = is_there || mb_str_equal(json_string_value(one), question->body.answer);
    }
    if (!is_there) MB_RAISE(MB_EDATA, "answers does not hold the answer itself");
    question->accepted = answers;
done:
    return status;
}

static mb_status read_few_shot(const json_t *object, mb_question *question)
{
    mb_status status = MB_OK;
    json_t *list;
    mb_question_body *shots = NULL;
    MB_TRY(mb_json_get_array(object, "few_shot", "question", &list));
    question->few_shot_count = (int64_t)json_array_size(list);
    if (question->few_shot_count == 0) goto done;
    MB_NEW_ARRAY(shots, question->few_shot_count);
    question->few_shot = shots;
    for (int64_t i = 0; i < question->few_shot_count; i++)
        MB_TRY(read_body(json_array_get(list, (size_t)i), question->kind, &shots[i]));
done:
    return status;
}

mb_status mb_question_from_json(const json_t *object, mb_question *out_question)
{
    mb_status status = MB_OK;
    mb_question question = {.answer = -1};
    const char *id;
    double expected = 0;
    MB_TRY(read_kind(object, &question.kind));
    MB_TRY(read_body(object, question.kind, &question.body));
    if (question.kind == MB_QUESTION_CLOZE) MB_TRY(read_accepted(object, &question));
    if (question.kind == MB_QUESTION_SINGLE) {
        question.answer = __builtin_ctz(question.body.answer_mask);
        expected = 1.0 / question.body.option_count;
    } else if (question.kind == MB_QUESTION_MULTIPLE) {
        expected = 1.0 / ((1 << question.body.option_count) - 1);
    }
    MB_TRY(mb_json_get_real(object, "chance", "question", &question.chance));
    if (fabs(question.chance - expected) > 1e-6)
        MB_RAISE(MB_EDATA, "chance is %g; of a %s question with %d options it is %g", question.chance,
                 kind_names[question.kind], question.body.option_count, expected);
    MB_TRY(mb_json_get_string(object, "source", "question", &question.source));
    MB_TRY(mb_json_get_int(object, "source_index", "question", &question.source_index));
    MB_TRY(mb_json_opt_string(object, "subject", "question", &question.opt_subject));
    MB_TRY(mb_json_get_string(object, "id", "question", &id));
    MB_TRY(mb_question_hash(&question.body, question.id));
    if (!mb_str_equal(id, question.id))
        MB_RAISE(MB_EDATA, "id is %s, the content's is %s: it was edited after moe-merge wrote it", id,
                 question.id);
    MB_TRY(read_few_shot(object, &question));
    *out_question = question;
    question.few_shot = NULL;
done:
    mb_question_reset(&question);
    return status;
}

void mb_question_reset(mb_question *question)
{
    mb_free((void *)question->few_shot);
    *question = (mb_question){0};
}

/* ---- 3. hashes ---- */

/* Normalised, and a byte that no text holds behind it. */
static mb_status add_normalised(const char *text, mb_str *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_answer_match_text(text, strlen(text), s));
    MB_TRY(mb_str_append(s, "", 1));
done:
    return status;
}

mb_status mb_question_hash(const mb_question_body *body, char out_id[MB_QUESTION_ID])
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    MB_TRY(add_normalised(body->text, &s));
    for (int i = 0; i < body->option_count; i++) MB_TRY(add_normalised(body->options[i], &s));
    snprintf(out_id, MB_QUESTION_ID, "%016" PRIx64, mb_hash_u64(s.data, s.length, 0));
done:
    mb_str_destroy(&s);
    return status;
}

mb_status mb_question_text_hash(const mb_question *question, uint64_t *out_hash)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    MB_TRY(add_normalised(question->body.text, &s));
    *out_hash = mb_hash_u64(s.data, s.length, 0);
done:
    mb_str_destroy(&s);
    return status;
}

/* ---- 4. files ---- */

struct mb_questions {
    char *path;
    json_t *objects; /* array: what the questions' texts are borrowed from */
    mb_question *question;
    int64_t count, capacity;
    char hash[MB_HASH_TEXT];
};

static mb_status grow(mb_questions *questions)
{
    mb_status status = MB_OK;
    if (questions->count < questions->capacity) goto done;
    const int64_t capacity = questions->capacity == 0 ? 256 : 2 * questions->capacity;
    mb_question *more = mb_realloc(questions->question, (size_t)capacity, sizeof *more);
    if (more == NULL) return MB_ENOMEM;
    questions->question = more;
    questions->capacity = capacity;
done:
    return status;
}

static mb_status add(mb_questions *questions, const mb_record *record)
{
    mb_status status = MB_OK;
    if (record->problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", questions->path, record->problem);
    MB_TRY(grow(questions));
    if (json_array_append(questions->objects, record->json) != 0)
        MB_RAISE(MB_ENOMEM, "no memory for questions");
    status = mb_question_from_json(record->json, &questions->question[questions->count]);
    if (status != MB_OK) {
        mb_status_prefix("%s: line %lld: ", questions->path, (long long)record->line);
        if (status == MB_EFORMAT) status = MB_EDATA; /* a missing member, a wrong type */
        goto done;
    }
    questions->count++;
done:
    return status;
}

static int by_id(const void *a, const void *b)
{
    return strcmp((*(const mb_question *const *)a)->id, (*(const mb_question *const *)b)->id);
}

static mb_status check_ids(const mb_questions *questions)
{
    mb_status status = MB_OK;
    const mb_question **sorted = NULL;
    MB_NEW_ARRAY(sorted, questions->count);
    for (int64_t i = 0; i < questions->count; i++) sorted[i] = &questions->question[i];
    if (questions->count > 0) qsort(sorted, (size_t)questions->count, sizeof(mb_question *), by_id);
    for (int64_t i = 1; i < questions->count; i++)
        if (mb_str_equal(sorted[i - 1]->id, sorted[i]->id))
            MB_RAISE(MB_EDATA,
                     "%s: question %s stands there twice (%s %lld and %s %lld); moe-merge leaves out "
                     "what is there twice",
                     questions->path, sorted[i]->id, sorted[i - 1]->source,
                     (long long)sorted[i - 1]->source_index, sorted[i]->source,
                     (long long)sorted[i]->source_index);
done:
    mb_free(sorted);
    return status;
}

static mb_status read_all(mb_questions *questions, mb_records *records)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    mb_record record;
    MB_TRY(mb_hash_create(&hash));
    for (;;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        MB_TRY(add(questions, &record));
        mb_hash_add(hash, record.bytes, record.length);
        mb_hash_add(hash, "\n", 1);
    }
    mb_hash_get(hash, questions->hash);
done:
    mb_hash_destroy(&hash);
    return status;
}

mb_status mb_questions_open(const char *path, mb_questions **out_questions)
{
    mb_status status = MB_OK;
    mb_questions *questions = NULL;
    mb_records *records = NULL;
    *out_questions = NULL;
    MB_NEW(questions);
    questions->path = mb_str_format("%s", path);
    questions->objects = json_array();
    if (questions->path == NULL || questions->objects == NULL) MB_RAISE(MB_ENOMEM, "no memory for questions");
    MB_TRY(mb_records_open(path, 0, &records));
    MB_TRY(read_all(questions, records));
    MB_TRY(check_ids(questions));
    *out_questions = questions;
    questions = NULL;
done:
    mb_records_close(&records);
    mb_questions_close(&questions);
    return status;
}

void mb_questions_close(mb_questions **questions)
{
    mb_questions *q = *questions;
    if (q == NULL) return;
    for (int64_t i = 0; i < q->count; i++) mb_question_reset(&q->question[i]);
    mb_free(q->question);
    json_decref(q->objects);
    mb_free(q->path);
    MB_FREE(*questions);
}

int64_t mb_questions_count(const mb_questions *questions)
{
    return questions->count;
}

const mb_question *mb_questions_at(const mb_questions *questions, int64_t i)
{
    return &questions->question[i];
}

const char *mb_questions_path(const mb_questions *questions)
{
    return questions->path;
}

void mb_questions_hash(const mb_questions *questions, char out_text[33])
{
    memcpy(out_text, questions->hash, MB_HASH_TEXT);
}

/* ---- 5. prompts ---- */

static mb_status add_body(const mb_question_body *body, mb_question_style style, mb_str *text)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add_format(text, "Question: %s\n", body->text));
    for (int i = 0; i < body->option_count && style == MB_QUESTION_LETTERS; i++)
        MB_TRY(mb_str_add_format(text, "%c. %s\n", 'A' + i, body->options[i]));
    MB_TRY(mb_str_add(text, "Answer:"));
done:
    return status;
}

mb_status mb_question_choice(const mb_question_body *body, mb_question_style style, int i, mb_str *text)
{
    if (style == MB_QUESTION_LETTERS) return mb_str_add_format(text, " %c", 'A' + i);
    return mb_str_add_format(text, " %s", body->options[i]);
}

static mb_status add_solution(const mb_question_body *body, mb_question_style style, mb_str *text)
{
    mb_status status = MB_OK;
    bool is_first = true;
    if (body->answer != NULL) return mb_str_add_format(text, " %s", body->answer);
    for (int i = 0; i < body->option_count; i++) {
        if ((body->answer_mask & 1U << i) == 0) continue;
        if (!is_first) MB_TRY(mb_str_add(text, style == MB_QUESTION_LETTERS ? "," : ";"));
        MB_TRY(mb_question_choice(body, style, i, text));
        is_first = false;
    }
done:
    return status;
}

mb_status mb_question_solution(const mb_question *question, mb_question_style style, mb_str *text)
{
    return add_solution(&question->body, style, text);
}

mb_status mb_question_prompt(const mb_question *question, mb_question_style style, int64_t few_shot,
                             mb_str *text)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < few_shot && i < question->few_shot_count; i++) {
        MB_TRY(add_body(&question->few_shot[i], style, text));
        MB_TRY(add_solution(&question->few_shot[i], style, text));
        MB_TRY(mb_str_add(text, "\n\n"));
    }
    MB_TRY(add_body(&question->body, style, text));
done:
    return status;
}
