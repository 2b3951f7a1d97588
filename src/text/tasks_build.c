/* tasks_build: see the header.
 *
 * Contents: 1 questions  2 gold  3 members  4 files
 */
#include "text/tasks_build.h"

#include <string.h>

#include "base/memory.h"
#include "text/records.h"

enum { MAX_RECORD_BYTES = 1 << 26 };

/* ---- 1 questions ---- */

mb_status mb_tasks_build_question(mb_tasks_build *build, const char *context, int64_t doc_id)
{
    mb_status status = MB_OK;
    mb_task *task = build->task;
    if (task->count == build->capacity) {
        const int64_t capacity = build->capacity * 2 + 256;
        mb_task_question *questions = mb_realloc(task->questions, (size_t)capacity, sizeof *questions);
        if (questions == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld questions", (long long)capacity);
        task->questions = questions;
        build->capacity = capacity;
    }
    char *copy = mb_strdup(context);
    if (copy == NULL) MB_RAISE(MB_ENOMEM, "no memory for a question");
    task->questions[task->count++] = (mb_task_question){.context = copy, .gold = -1, .doc_id = doc_id};
done:
    return status;
}

mb_status mb_tasks_build_choice(mb_tasks_build *build, const char *text)
{
    mb_status status = MB_OK;
    mb_task_question *question = &build->task->questions[build->task->count - 1];
    char **choices = mb_realloc(question->choices, (size_t)question->choice_count + 1, sizeof *choices);
    if (choices == NULL) MB_RAISE(MB_ENOMEM, "no memory for a choice");
    question->choices = choices;
    choices[question->choice_count] = mb_strdup(text);
    if (choices[question->choice_count] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a choice");
    question->choice_count++;
done:
    return status;
}

mb_status mb_tasks_build_choices(mb_tasks_build *build, const json_t *texts)
{
    mb_status status = MB_OK;
    if (!json_is_array(texts) || json_array_size(texts) == 0)
        MB_RAISE(MB_EDATA, "the choices are no list of texts");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        if (!json_is_string(text)) MB_RAISE(MB_EDATA, "choice %zu is no text", i + 1);
        MB_TRY(mb_tasks_build_choice(build, json_string_value(text)));
    }
done:
    return status;
}

/* ---- 2 gold ---- */

static int64_t find_text(const json_t *labels, const char *text)
{
    for (size_t i = 0; i < json_array_size(labels); i++)
        if (mb_str_equal(json_string_value(json_array_get(labels, i)), text)) return (int64_t)i;
    return -1;
}

static int64_t find_choice(const mb_task_question *question, const char *text)
{
    for (int64_t i = 0; i < question->choice_count; i++)
        if (strcmp(question->choices[i], text) == 0) return i;
    return -1;
}

mb_status mb_tasks_build_gold(mb_tasks_build *build, const json_t *answer, const json_t *opt_labels)
{
    mb_status status = MB_OK;
    mb_task_question *question = &build->task->questions[build->task->count - 1];
    const char *text = json_string_value(answer);
    int64_t gold = -1;
    if (json_is_integer(answer)) {
        gold = json_integer_value(answer);
    } else if (text == NULL) {
        MB_RAISE(MB_EDATA, answer == NULL ? "the answer is missing" : "the answer is not one choice");
    } else if (opt_labels != NULL) {
        gold = find_text(opt_labels, text);
    } else {
        const size_t n = strlen(text);
        if (n == 1 && text[0] >= 'A' && text[0] <= 'Z')
            gold = text[0] - 'A';
        else if (n > 0 && n < 4 && strspn(text, "0123456789") == n)
            MB_TRY(mb_str_parse_int(text, &gold));
        else
            gold = find_choice(question, text);
    }
    if (gold < 0 || gold >= question->choice_count)
        MB_RAISE(MB_EDATA, "the answer %s%.40s%s is none of the %lld choices", text != NULL ? "\"" : "number",
                 text != NULL ? text : "", text != NULL ? "\"" : "", (long long)question->choice_count);
    question->gold = gold;
done:
    return status;
}

/* ---- 3 members ---- */

mb_status mb_tasks_build_text(const json_t *record, const char *name, const char **out_text)
{
    mb_status status = MB_OK;
    const json_t *value = json_object_get(record, name);
    if (value == NULL || json_is_null(value)) MB_RAISE(MB_EDATA, "field \"%s\" is missing", name);
    if (!json_is_string(value)) MB_RAISE(MB_EDATA, "field \"%s\" is no text", name);
    *out_text = json_string_value(value);
done:
    return status;
}

const json_t *mb_tasks_build_member(const json_t *record, const char *names)
{
    for (const char *p = names; p != NULL && *p != 0;) {
        char name[32];
        const size_t n = strcspn(p, "|");
        snprintf(name, sizeof name, "%.*s", (int)n, p);
        const json_t *value = json_object_get(record, name);
        if (value != NULL && !json_is_null(value)) return value;
        p += n + (p[n] == '|');
    }
    return NULL;
}

/* ---- 4 files ---- */

mb_status mb_tasks_build_read(mb_tasks_build *build, const char *path, bool rows,
                              mb_tasks_build_record record)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    bool go_on = true;
    MB_TRY(rows ? mb_records_open_rows(path, MAX_RECORD_BYTES, &records)
                : mb_records_open(path, MAX_RECORD_BYTES, &records));
    while (go_on) {
        mb_record one;
        MB_TRY(mb_records_read(records, &one));
        if (one.bytes == NULL) break;
        if (one.problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", path, one.problem);
        status = record(build, one.json, one.index, &go_on);
        if (status != MB_OK) mb_status_prefix("%s:%lld: ", path, (long long)one.line);
        MB_TRY(status);
    }
done:
    mb_records_close(&records);
    return status;
}
