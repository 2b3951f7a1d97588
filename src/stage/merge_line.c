/* merge_line.c: see the header.
 *
 * 1. keys   2. lines
 */
#include "stage/merge_line.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "text/answer_match.h"

/* ---- 1. keys ---- */

mb_merge_same mb_merge_same_parse(const char *name)
{
    if (mb_str_equal(name, "options")) return MB_MERGE_SAME_OPTIONS;
    return mb_str_equal(name, "order") ? MB_MERGE_SAME_ORDER : MB_MERGE_SAME_QUESTION;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static mb_status add_text_hash(const char *text, mb_str *scratch, uint64_t *out_hash)
{
    mb_status status = MB_OK;
    mb_str_reset(scratch);
    MB_TRY(mb_answer_match_text(text, strlen(text), scratch));
    *out_hash = mb_hash_u64(mb_str_text(scratch), scratch->length, 0);
done:
    return status;
}

/* Of those options whose bit is set, in any order; the hashes of their texts are sorted. */
static mb_status hash_options(const mb_question_body *body, uint32_t mask, bool in_order, uint64_t first,
                              uint64_t *out_hash)
{
    mb_status status = MB_OK;
    uint64_t value[MB_QUESTION_MAX_OPTIONS + 1] = {first};
    mb_str scratch = MB_STR_EMPTY;
    size_t n = 1;
    for (int i = 0; i < body->option_count; i++)
        if ((mask & 1U << i) != 0) MB_TRY(add_text_hash(body->options[i], &scratch, &value[n++]));
    if (!in_order) qsort(value + 1, n - 1, sizeof *value, by_value);
    *out_hash = mb_hash_u64(value, n * sizeof *value, n);
done:
    mb_str_destroy(&scratch);
    return status;
}

mb_status mb_merge_same_hash(const mb_question_body *body, mb_merge_same same, uint64_t *out_hash)
{
    mb_status status = MB_OK;
    const mb_question question = {.body = *body};
    uint64_t text;
    MB_TRY(mb_question_text_hash(&question, &text));
    if (same == MB_MERGE_SAME_QUESTION)
        *out_hash = text;
    else
        MB_TRY(hash_options(body, UINT32_MAX, same == MB_MERGE_SAME_ORDER, text, out_hash));
done:
    return status;
}

mb_status mb_merge_answer_hash(const mb_question_body *body, uint64_t *out_hash)
{
    mb_status status = MB_OK;
    mb_str scratch = MB_STR_EMPTY;
    uint64_t cloze = 0;
    if (body->answer != NULL) MB_TRY(add_text_hash(body->answer, &scratch, &cloze));
    MB_TRY(hash_options(body, body->answer_mask, false, cloze, out_hash));
done:
    mb_str_destroy(&scratch);
    return status;
}

/* ---- 2. lines ---- */

static double chance_of(const mb_merge_body *body)
{
    if (body->kind == MB_QUESTION_CLOZE) return 0;
    return body->kind == MB_QUESTION_SINGLE ? 1.0 / body->option_count
                                            : 1.0 / ((1 << body->option_count) - 1);
}

mb_status mb_merge_line_json(json_t *object, mb_str *lines)
{
    mb_status status = MB_OK;
    if (object == NULL) MB_RAISE(MB_ENOMEM, "no memory for a line");
    MB_TRY(mb_json_print(object, 0, false, lines));
    MB_TRY(mb_str_add(lines, "\n"));
done:
    json_decref(object);
    return status;
}

mb_status mb_merge_line_add(const mb_merge_body *body, const mb_merge_origin *origin, const json_t *few_shot,
                            mb_str *lines, char out_id[MB_QUESTION_ID])
{
    mb_status status = MB_OK;
    mb_question_body view;
    mb_question question = {0};
    json_t *object = json_object();
    mb_merge_body_view(body, &view);
    MB_TRY(mb_question_hash(&view, out_id));
    MB_TRY(mb_json_set(object, "id", json_string(out_id)));
    MB_TRY(mb_json_set(object, "source", json_string(origin->source)));
    MB_TRY(mb_json_set(object, "source_index", json_integer(origin->source_index)));
    if (body->subject.length > 0) MB_TRY(mb_json_set(object, "subject", json_string(body->subject.data)));
    MB_TRY(mb_json_set(object, "kind", json_string(mb_question_kind_name(body->kind))));
    MB_TRY(mb_merge_body_json(body, object));
    MB_TRY(mb_json_set(object, "chance", json_real(chance_of(body))));
    MB_TRY(mb_json_set(object, "few_shot", json_deep_copy(few_shot)));
    MB_TRY(mb_question_from_json(object, &question));
    MB_TRY(mb_merge_line_json(json_incref(object), lines));
done:
    mb_question_reset(&question);
    json_decref(object);
    return status;
}
