/* merge_examples.c: see the header.
 *
 * 1. one example   2. AGIEval's table   3. all of a file
 */
#include "stage/merge_examples.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "stage/merge_literal.h"
#include "text/records.h"

typedef struct example {
    mb_question_kind kind;
    uint64_t text_hash;
    char *subject;
    json_t *json;
} example;

struct mb_merge_examples {
    const char *path; /* of the file that is read */
    bool is_strict;
    example *item;
    int64_t count, capacity;
};

/* ---- 1. one example ---- */

static mb_status text_hash(const mb_merge_body *body, uint64_t *out_hash)
{
    mb_question question = {0};
    mb_merge_body_view(body, &question.body);
    return mb_question_text_hash(&question, out_hash);
}

static mb_status add(mb_merge_examples *examples, const mb_merge_body *body)
{
    mb_status status = MB_OK;
    if (examples->count == examples->capacity) {
        const int64_t capacity = 2 * examples->capacity + 8;
        example *more = mb_realloc(examples->item, (size_t)capacity, sizeof *more);
        if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for solved examples");
        examples->item = more;
        examples->capacity = capacity;
    }
    example *item = &examples->item[examples->count++];
    *item = (example){
        .kind = body->kind, .json = json_object(), .subject = mb_strdup(mb_str_text(&body->subject))};
    if (item->json == NULL || item->subject == NULL) MB_RAISE(MB_ENOMEM, "no memory for solved examples");
    MB_TRY(text_hash(body, &item->text_hash));
    MB_TRY(mb_merge_body_json(body, item->json));
    json_object_del(item->json, "answers");
done:
    return status;
}

/* where: row or line, and what is wrong. */
static mb_status pass_over(const mb_merge_examples *examples, const char *where, const char *problem)
{
    if (examples->is_strict)
        return mb_fail(MB_EDATA,
                       "%s: %s%s: this solved example cannot be used; merge.on_bad=skip passes over it",
                       examples->path, where, problem);
    mb_warn("%s: %s%s: this solved example is passed over", examples->path, where, problem);
    return MB_OK;
}

static mb_status take(void *own, const mb_merge_taken *taken)
{
    mb_merge_examples *examples = own;
    if (taken->opt_body == NULL) return pass_over(examples, "", taken->problem);
    return add(examples, taken->opt_body);
}

/* ---- 2. AGIEval's table ---- */

static mb_status add_cell(mb_merge_examples *examples, const mb_merge_format *format, const json_t *cell,
                          mb_merge_body *body)
{
    mb_status status = MB_OK;
    const mb_merge_reading reading = {0};
    json_t *record = NULL;
    bool has = true;
    if (json_string_length(cell) == 0) goto done;
    MB_TRY(mb_merge_literal_read(json_string_value(cell), &record));
    mb_merge_body_reset(body);
    MB_TRY(format->read(record, &reading, body, &has));
    MB_TRY(mb_merge_body_check(body));
    MB_TRY(add(examples, body));
done:
    json_decref(record);
    return status;
}

/* The column of the questions' file; rows "explanation .." are passed over. */
static mb_status read_table(mb_merge_examples *examples, const mb_merge_file *file)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    mb_merge_body body = {0};
    const char *slash = strrchr(file->path, '/'), *name = slash != NULL ? slash + 1 : file->path;
    char column[128], where[200];
    mb_str problem = MB_STR_EMPTY;
    snprintf(column, sizeof column, "%.*s", (int)strcspn(name, "."), name);
    MB_TRY(mb_records_open(file->opt_examples, 0, &records));
    for (;;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        if (record.problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", file->opt_examples, record.problem);
        const char *row = json_string_value(json_object_get(record.json, ""));
        if (row == NULL || !mb_str_is_prefix(row, "sample")) continue;
        status = add_cell(examples, file->format, json_object_get(record.json, column), &body);
        if (status == MB_EDATA) {
            snprintf(where, sizeof where, "%.40s, column %.100s: ", row, column);
            mb_str_reset(&problem);
            MB_TRY(mb_str_add(&problem, mb_status_message()));
            mb_status_reset();
            status = pass_over(examples, where, mb_str_text(&problem));
        }
        if (status != MB_OK) goto done;
    }
done:
    mb_records_close(&records);
    mb_merge_body_destroy(&body);
    mb_str_destroy(&problem);
    return status;
}

/* ---- 3. all of a file ---- */

mb_status mb_merge_examples_open(const mb_merge_file *file, bool support, bool is_strict,
                                 mb_merge_examples **out_examples)
{
    mb_status status = MB_OK;
    mb_merge_examples *examples = NULL;
    mb_merge_file own = *file; /* the examples' file, of the same form */
    own.path = file->opt_examples;
    MB_NEW(examples);
    examples->path = file->opt_examples;
    examples->is_strict = is_strict;
    if (file->opt_examples != NULL && mb_str_equal(file->format->name, "agieval") &&
        mb_str_is_suffix(file->opt_examples, ".csv"))
        MB_TRY(read_table(examples, file));
    else if (file->opt_examples != NULL)
        MB_TRY(mb_merge_inputs_read(&own, support, take, examples));
    *out_examples = examples;
    examples = NULL;
done:
    mb_merge_examples_close(&examples);
    return status;
}

void mb_merge_examples_close(mb_merge_examples **examples)
{
    mb_merge_examples *e = *examples;
    if (e == NULL) return;
    for (int64_t i = 0; i < e->count; i++) {
        mb_free(e->item[i].subject);
        json_decref(e->item[i].json);
    }
    mb_free(e->item);
    MB_FREE(*examples);
}

int64_t mb_merge_examples_count(const mb_merge_examples *examples)
{
    return examples->count;
}

mb_status mb_merge_examples_get(const mb_merge_examples *examples, const mb_merge_body *body, int64_t limit,
                                json_t **out_list)
{
    mb_status status = MB_OK;
    json_t *list = json_array();
    uint64_t hash;
    MB_TRY(text_hash(body, &hash));
    for (int64_t i = 0; i < examples->count && (int64_t)json_array_size(list) < limit; i++) {
        const example *item = &examples->item[i];
        const bool is_other = item->subject[0] != 0 && body->subject.length > 0 &&
                              !mb_str_equal(item->subject, mb_str_text(&body->subject));
        if (!is_other && item->kind == body->kind && item->text_hash != hash)
            json_array_append(list, item->json);
    }
    *out_list = list;
    list = NULL;
done:
    json_decref(list);
    return status;
}
