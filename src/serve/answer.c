/* answer: ids of an answer -> its text, and where a stop string ends it.
 *
 * 1. text
 * 2. stop strings
 */
#include "serve/answer.h"

#include <string.h>

#include "base/json.h"
#include "base/memory.h"

enum {
    CONTEXT = 8, /* tokens of the prompt that are decoded with the answer */
    SLACK = 32   /* tokens looked at beyond those a stop string can have: special ones have no text */
};

/* ---- 1. text ---- */

/* The ids that the tokenizer knows: models may have more rows than their tokenizer has tokens. */
static mb_status append_known(const mb_tokenizer *tokenizer, const uint32_t *ids, int64_t n, mb_ids *out)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; i++)
        if (mb_tokenizer_token(tokenizer, ids[i]) != NULL) MB_TRY(mb_ids_append(out, ids[i]));
done:
    return status;
}

mb_status mb_answer_text(const mb_tokenizer *tokenizer, const uint32_t *prompt, int64_t prompt_count,
                         const uint32_t *answer, int64_t n, mb_str *text)
{
    mb_status status = MB_OK;
    mb_ids ids = {0};
    mb_str before = MB_STR_EMPTY, whole = MB_STR_EMPTY;
    const int64_t most = prompt_count < CONTEXT ? prompt_count : CONTEXT;
    MB_TRY(append_known(tokenizer, prompt + prompt_count - most, most, &ids));
    const int64_t context = ids.count;
    MB_TRY(append_known(tokenizer, answer, n, &ids));
    MB_TRY(mb_tokenizer_decode(tokenizer, ids.data, context, true, &before));
    MB_TRY(mb_tokenizer_decode(tokenizer, ids.data, ids.count, true, &whole));
    if (before.length <= whole.length &&
        (before.length == 0 || memcmp(before.data, whole.data, before.length) == 0)) {
        MB_TRY(mb_str_append(text, mb_str_text(&whole) + before.length, whole.length - before.length));
    } else { /* the prompt ends inside a character */
        MB_TRY(mb_tokenizer_decode(tokenizer, ids.data + context, ids.count - context, true, text));
    }
done:
    mb_ids_destroy(&ids);
    mb_str_destroy(&before);
    mb_str_destroy(&whole);
    return status;
}

/* ---- 2. stop strings ---- */

static mb_status stops_add(mb_answer_stops *stops, const char *string)
{
    mb_status status = MB_OK;
    if (string == NULL || string[0] == '\0')
        MB_RAISE(MB_EUSAGE, "generate.stop: give strings that are not empty, as [\"\\n\\n\", \"User:\"]");
    char **more = mb_realloc(stops->strings, (size_t)stops->count + 1, sizeof *more);
    if (more == NULL) MB_RAISE(MB_ENOMEM, "generate.stop: no memory");
    stops->strings = more;
    more[stops->count] = mb_strdup(string);
    if (more[stops->count] == NULL) MB_RAISE(MB_ENOMEM, "generate.stop: no memory");
    stops->count++;
    if (strlen(string) > stops->longest) stops->longest = strlen(string);
done:
    return status;
}

mb_status mb_answer_stops_read(const char *option, mb_answer_stops *stops)
{
    mb_status status = MB_OK;
    json_t *list = NULL;
    if (option == NULL || option[0] == '\0') return MB_OK;
    if (option[0] != '[' && option[0] != '"') {
        MB_TRY(stops_add(stops, option));
        goto done;
    }
    MB_TRY(mb_json_parse(option, strlen(option), "generate.stop", &list));
    if (json_is_string(list)) MB_TRY(stops_add(stops, json_string_value(list)));
    for (size_t i = 0; i < json_array_size(list); i++)
        MB_TRY(stops_add(stops, json_string_value(json_array_get(list, i))));
done:
    if (status != MB_OK) mb_answer_stops_reset(stops);
    json_decref(list);
    return status;
}

void mb_answer_stops_reset(mb_answer_stops *stops)
{
    for (int64_t i = 0; i < stops->count; i++) mb_free(stops->strings[i]);
    mb_free(stops->strings);
    *stops = (mb_answer_stops){0};
}

int64_t mb_answer_stops_find(const mb_answer_stops *stops, const char *text, size_t n)
{
    const char *first = NULL;
    for (int64_t i = 0; i < stops->count; i++) {
        const char *at = n > 0 ? memmem(text, n, stops->strings[i], strlen(stops->strings[i])) : NULL;
        if (at != NULL && (first == NULL || at < first)) first = at;
    }
    return first != NULL ? first - text : -1;
}

mb_status mb_answer_stops_check(const mb_answer_stops *stops, const mb_tokenizer *tokenizer,
                                const uint32_t *prompt, int64_t prompt_count, const uint32_t *answer,
                                int64_t n, mb_str *text, bool *out_found)
{
    mb_status status = MB_OK;
    mb_ids ids = {0};
    const int64_t window = (int64_t)stops->longest + SLACK;
    *out_found = false;
    if (stops->count == 0) return MB_OK;
    mb_str_reset(text);
    if (n > window) { /* a byte or more of text per token: what is new lies in the window */
        MB_TRY(append_known(tokenizer, answer + n - window, window, &ids));
        MB_TRY(mb_tokenizer_decode(tokenizer, ids.data, ids.count, true, text));
        if (mb_answer_stops_find(stops, mb_str_text(text), text->length) < 0) goto done;
        mb_str_reset(text);
    }
    MB_TRY(mb_answer_text(tokenizer, prompt, prompt_count, answer, n, text));
    const int64_t at = mb_answer_stops_find(stops, mb_str_text(text), text->length);
    if (at < 0) goto done;
    text->length = (size_t)at;
    text->data[at] = '\0';
    *out_found = true;
done:
    mb_ids_destroy(&ids);
    return status;
}
