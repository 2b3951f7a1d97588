/* merge_body.c: see the header.
 *
 * 1. what is asked   2. options   3. which are right   4. the whole
 */
#include "stage/merge_body.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/dialog_text.h"

/* ---- 1. what is asked ---- */

void mb_merge_body_reset(mb_merge_body *body)
{
    mb_str_reset(&body->text);
    mb_str_reset(&body->subject);
    for (int i = 0; i < MB_QUESTION_MAX_OPTIONS; i++) mb_str_reset(&body->option[i]);
    json_decref(body->accepted);
    body->accepted = NULL;
    body->kind = MB_QUESTION_SINGLE;
    body->option_count = 0;
    body->answer_mask = 0;
}

void mb_merge_body_destroy(mb_merge_body *body)
{
    mb_str_destroy(&body->text);
    mb_str_destroy(&body->subject);
    for (int i = 0; i < MB_QUESTION_MAX_OPTIONS; i++) mb_str_destroy(&body->option[i]);
    json_decref(body->accepted);
    *body = (mb_merge_body){0};
}

/* A text without the white space around it; numbers (as tables have them) as they are written. */
static mb_status add_stripped(const json_t *value, const char *what, mb_str *s)
{
    mb_status status = MB_OK;
    const char *text = json_string_value(value);
    size_t n = json_string_length(value);
    if (json_is_number(value)) return mb_dialog_text_json(value, s);
    if (value == NULL || json_is_null(value)) MB_RAISE(MB_EDATA, "%s is missing", what);
    if (text == NULL) MB_RAISE(MB_EDATA, "%s is no text", what);
    mb_dialog_text_strip(&text, &n);
    if (n == 0) MB_RAISE(MB_EDATA, "%s is empty", what);
    MB_TRY(mb_str_append(s, text, n));
done:
    return status;
}

static bool is_empty(const json_t *value)
{
    const char *text = json_string_value(value);
    size_t n = json_string_length(value);
    if (text != NULL) mb_dialog_text_strip(&text, &n);
    return value == NULL || json_is_null(value) || (text != NULL && n == 0);
}

mb_status mb_merge_body_ask(mb_merge_body *body, const json_t *opt_passage, const json_t *question)
{
    mb_status status = MB_OK;
    if (!is_empty(opt_passage)) {
        MB_TRY(add_stripped(opt_passage, "the passage", &body->text));
        MB_TRY(mb_str_add(&body->text, "\n\n"));
    }
    MB_TRY(add_stripped(question, "the question", &body->text));
done:
    return status;
}

mb_status mb_merge_body_subject(mb_merge_body *body, const json_t *opt_subject)
{
    if (is_empty(opt_subject)) return MB_OK;
    return add_stripped(opt_subject, "the subject", &body->subject);
}

/* ---- 2. options ---- */

mb_status mb_merge_body_option(mb_merge_body *body, const json_t *text)
{
    mb_status status = MB_OK;
    char what[32];
    snprintf(what, sizeof what, "option %c", 'A' + body->option_count);
    if (body->option_count == MB_QUESTION_MAX_OPTIONS)
        MB_RAISE(MB_EDATA, "it has more than %d options", MB_QUESTION_MAX_OPTIONS);
    MB_TRY(add_stripped(text, what, &body->option[body->option_count]));
    body->option_count++;
done:
    return status;
}

mb_status mb_merge_body_options(mb_merge_body *body, const json_t *list)
{
    mb_status status = MB_OK;
    const json_t *option;
    size_t i;
    if (!json_is_array(list)) MB_RAISE(MB_EDATA, "its options are missing, or no list");
    json_array_foreach(list, i, option) MB_TRY(mb_merge_body_option(body, option));
done:
    return status;
}

/* The bytes of letter i and its mark in front of a text: of the form "(A)", or "A." "A)" "A:" "A " and their
 * wide forms; 0: none. */
static size_t letter_length(const char *text, int i, bool in_parentheses)
{
    static const char *const marks[] = {".",  ")",  ":",           " ", "\t", "、", "．", /* wide forms */
                                        "：", "）", "\xE3\x80\x80"};
    if (in_parentheses) return text[0] == '(' && text[1] == 'A' + i && text[2] == ')' ? 3 : 0;
    if (text[0] != 'A' + i) return 0;
    for (size_t k = 0; k < sizeof marks / sizeof *marks; k++)
        if (mb_str_is_prefix(text + 1, marks[k])) return 1 + strlen(marks[k]);
    return 0;
}

static mb_status cut_front(mb_str *s, size_t n)
{
    mb_status status = MB_OK;
    mb_str rest = MB_STR_EMPTY;
    const char *text = s->data + n;
    size_t length = s->length - n;
    mb_dialog_text_strip(&text, &length);
    if (length == 0) goto done; /* the letter is all there is */
    MB_TRY(mb_str_append(&rest, text, length));
    mb_str_reset(s);
    MB_TRY(mb_str_append(s, rest.data, rest.length));
done:
    mb_str_destroy(&rest);
    return status;
}

mb_status mb_merge_body_unletter(mb_merge_body *body)
{
    mb_status status = MB_OK;
    bool has_all = body->option_count > 0;
    size_t n;
    for (int i = 0; i < body->option_count; i++) {
        const char *text = mb_str_text(&body->option[i]);
        has_all = has_all && (letter_length(text, i, true) > 0 || letter_length(text, i, false) > 0);
    }
    for (int i = 0; i < body->option_count; i++) {
        const char *text = mb_str_text(&body->option[i]);
        n = letter_length(text, i, true);
        if (n == 0 && has_all) n = letter_length(text, i, false);
        if (n > 0) MB_TRY(cut_front(&body->option[i], n));
    }
done:
    return status;
}

/* ---- 3. which are right ---- */

/* The letter in "B", "b", "(B)", "B." as a number from 0; -1: none. */
static int letter_of(const char *text, size_t n)
{
    const bool in_parentheses = n == 3 && text[0] == '(' && text[2] == ')';
    const bool is_marked = n == 2 && (text[1] == '.' || text[1] == ')');
    if (n != 1 && !in_parentheses && !is_marked) return -1;
    const int letter = toupper((unsigned char)text[in_parentheses ? 1 : 0]);
    return letter >= 'A' && letter <= 'Z' ? letter - 'A' : -1;
}

static bool is_number(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)text[i])) return false;
    return n > 0 && n < 4;
}

static int same_text(const mb_merge_body *body, const char *text, size_t n)
{
    for (int i = 0; i < body->option_count; i++)
        if (body->option[i].length == n && memcmp(mb_str_text(&body->option[i]), text, n) == 0) return i;
    return -1;
}

/* The option that a text names: a label, a letter, a number, an option. -1: none. */
static int64_t option_of_text(const mb_merge_body *body, const char *text, size_t n, const json_t *opt_labels,
                              int first)
{
    const json_t *label;
    size_t i;
    json_array_foreach(opt_labels, i, label)
    {
        const char *name = json_string_value(label);
        if (name != NULL && strlen(name) == n && memcmp(name, text, n) == 0) return (int64_t)i;
    }
    if (opt_labels != NULL) return -1;
    if (letter_of(text, n) >= 0) return letter_of(text, n);
    if (is_number(text, n)) return strtol(text, NULL, 10) - first;
    return same_text(body, text, n);
}

static mb_status add_right(mb_merge_body *body, const json_t *value, const json_t *opt_labels, int first)
{
    mb_status status = MB_OK;
    const char *text = json_string_value(value);
    size_t n = json_string_length(value);
    int64_t i;
    if (value == NULL || json_is_null(value)) MB_RAISE(MB_EDATA, "the answer is missing");
    if (text == NULL && !json_is_integer(value))
        MB_RAISE(MB_EDATA, "the answer is neither text nor a whole number");
    if (text != NULL) {
        mb_dialog_text_strip(&text, &n);
        i = option_of_text(body, text, n, opt_labels, first);
        if (i < 0 || i >= body->option_count)
            MB_RAISE(MB_EDATA, "the answer '%.*s' is none of the %d options", n > 60 ? 60 : (int)n, text,
                     body->option_count);
    } else {
        i = json_integer_value(value) - first;
        if (i < 0 || i >= body->option_count)
            MB_RAISE(MB_EDATA, "the answer %" JSON_INTEGER_FORMAT " is none of the %d options, from %d",
                     json_integer_value(value), body->option_count, first);
    }
    if ((body->answer_mask & 1U << i) != 0)
        MB_RAISE(MB_EDATA, "the answer names option %c twice", 'A' + (int)i);
    body->answer_mask |= 1U << i;
done:
    return status;
}

mb_status mb_merge_body_answer(mb_merge_body *body, const json_t *value, const json_t *opt_labels, int first)
{
    mb_status status = MB_OK;
    const json_t *one;
    size_t i;
    if (!json_is_array(value)) return add_right(body, value, opt_labels, first);
    if (json_array_size(value) == 0) MB_RAISE(MB_EDATA, "the list of right answers is empty");
    body->kind = MB_QUESTION_MULTIPLE;
    json_array_foreach(value, i, one) MB_TRY(add_right(body, one, opt_labels, first));
done:
    return status;
}

mb_status mb_merge_body_answer_text(mb_merge_body *body, const json_t *value)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(add_stripped(value, "the answer", &text));
    const int i = same_text(body, text.data, text.length);
    if (i < 0)
        MB_RAISE(MB_EDATA, "the answer '%.60s' is none of the %d options", text.data, body->option_count);
    body->answer_mask = 1U << i;
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status accept(mb_merge_body *body, const char *text, size_t n)
{
    mb_status status = MB_OK;
    const json_t *one;
    size_t i;
    json_t *value = json_stringn(text, n);
    json_array_foreach(body->accepted, i, one) if (json_equal(one, value)) goto done;
    if (value == NULL || json_array_append(body->accepted, value) != 0)
        MB_RAISE(MB_ENOMEM, "no memory for a question");
done:
    json_decref(value);
    return status;
}

mb_status mb_merge_body_cloze(mb_merge_body *body, const json_t *value)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    const size_t n = json_is_array(value) ? json_array_size(value) : 1;
    body->kind = MB_QUESTION_CLOZE;
    body->accepted = json_array();
    if (body->accepted == NULL) MB_RAISE(MB_ENOMEM, "no memory for a question");
    if (n == 0) MB_RAISE(MB_EDATA, "the list of accepted answers is empty");
    for (size_t i = 0; i < n; i++) {
        mb_str_reset(&text);
        MB_TRY(add_stripped(json_is_array(value) ? json_array_get(value, i) : value, "the answer", &text));
        MB_TRY(accept(body, text.data, text.length));
    }
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 4. the whole ---- */

mb_status mb_merge_body_check(const mb_merge_body *body)
{
    mb_status status = MB_OK;
    if (body->kind == MB_QUESTION_CLOZE) goto done;
    if (body->option_count < 2)
        MB_RAISE(MB_EDATA, "it has %d options; 2 to %d are expected", body->option_count,
                 MB_QUESTION_MAX_OPTIONS);
    for (int i = 0; i < body->option_count; i++) {
        const int same = same_text(body, body->option[i].data, body->option[i].length);
        if (((body->answer_mask >> same ^ body->answer_mask >> i) & 1U) != 0)
            MB_RAISE(MB_EDATA, "options %c and %c are the same text, and one of them is right", 'A' + same,
                     'A' + i);
    }
    if (body->answer_mask == 0) MB_RAISE(MB_EDATA, "the answer is missing");
done:
    return status;
}

static json_t *answer_json(const mb_merge_body *body)
{
    if (body->kind == MB_QUESTION_CLOZE) return json_incref(json_array_get(body->accepted, 0));
    if (body->kind == MB_QUESTION_SINGLE) return json_integer(__builtin_ctz(body->answer_mask));
    json_t *list = json_array();
    for (int i = 0; i < body->option_count; i++)
        if ((body->answer_mask & 1U << i) != 0) json_array_append_new(list, json_integer(i));
    return list;
}

mb_status mb_merge_body_json(const mb_merge_body *body, json_t *object)
{
    mb_status status = MB_OK;
    json_t *options = json_array();
    for (int i = 0; i < body->option_count; i++)
        json_array_append_new(options, json_stringn(body->option[i].data, body->option[i].length));
    MB_TRY(mb_json_set(object, "question", json_stringn(body->text.data, body->text.length)));
    MB_TRY(mb_json_set(object, "options", json_incref(options)));
    MB_TRY(mb_json_set(object, "answer", answer_json(body)));
    if (body->kind == MB_QUESTION_CLOZE) MB_TRY(mb_json_set(object, "answers", json_incref(body->accepted)));
done:
    json_decref(options);
    return status;
}

void mb_merge_body_view(const mb_merge_body *body, mb_question_body *out_body)
{
    *out_body = (mb_question_body){.text = mb_str_text(&body->text),
                                   .option_count = body->option_count,
                                   .answer_mask = body->answer_mask,
                                   .answer = json_string_value(json_array_get(body->accepted, 0))};
    for (int i = 0; i < body->option_count; i++) out_body->options[i] = mb_str_text(&body->option[i]);
}
