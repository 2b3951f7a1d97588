/* answer_match: see the header.
 *
 * Contents: 1. names  2. text  3. numbers  4. comparing
 */
#include "text/answer_match.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- 1. names ---- */

const char *mb_answer_match_name(mb_answer_match match)
{
    return match == MB_ANSWER_MATCH_NUMBER ? "number" : "text";
}

mb_status mb_answer_match_parse(const char *name, mb_answer_match *out_match)
{
    mb_status status = MB_OK;
    if (strcmp(name, "text") != 0 && strcmp(name, "number") != 0)
        MB_RAISE(MB_EUSAGE, "answers are matched by text or number, not by '%s'", name);
    *out_match = strcmp(name, "number") == 0 ? MB_ANSWER_MATCH_NUMBER : MB_ANSWER_MATCH_TEXT;
done:
    return status;
}

/* ---- 2. text ---- */

static bool is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F) || c == 0x85 ||
           utf8proc_category(c) == UTF8PROC_CATEGORY_ZS || utf8proc_category(c) == UTF8PROC_CATEGORY_ZL ||
           utf8proc_category(c) == UTF8PROC_CATEGORY_ZP;
}

static bool is_end_mark(int32_t c)
{
    static const int32_t marks[] = {'.',    ',',    ';',    ':',    '!',    '?',    0x2026, 0x3001,
                                    0x3002, 0xFF01, 0xFF0C, 0xFF0E, 0xFF1A, 0xFF1B, 0xFF1F};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (marks[i] == c) return true;
    return false;
}

/* Folded characters -> s. What would end the text is held back until a character that stays follows. */
static mb_status add_folded(const uint8_t *text, utf8proc_ssize_t n, mb_str *s)
{
    mb_status status = MB_OK;
    const size_t begin = s->length;
    size_t held = s->length; /* what is behind it in s goes when nothing else follows */
    bool wants_space = false;
    for (utf8proc_ssize_t i = 0, used; i < n; i += used) {
        int32_t c;
        used = utf8proc_iterate(text + i, n - i, &c);
        if (used <= 0) MB_RAISE(MB_EDATA, "the text is not UTF-8 at byte %lld", (long long)i);
        if (is_space(c)) {
            wants_space = s->length > begin;
            continue;
        }
        if (wants_space) MB_TRY(mb_str_add(s, " "));
        wants_space = false;
        MB_TRY(mb_str_append(s, text + i, (size_t)used));
        if (!is_end_mark(c)) held = s->length;
    }
    s->length = held;
    if (s->data != NULL) s->data[held] = 0;
done:
    return status;
}

mb_status mb_answer_match_text(const char *text, size_t n, mb_str *s)
{
    mb_status status = MB_OK;
    uint8_t *folded = NULL;
    const utf8proc_ssize_t length = utf8proc_map((const uint8_t *)text, (utf8proc_ssize_t)n, &folded,
                                                 UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_CASEFOLD);
    if (length == UTF8PROC_ERROR_NOMEM) MB_RAISE(MB_ENOMEM, "no memory for an answer");
    if (length < 0) MB_RAISE(MB_EDATA, "the answer is no text: %s", utf8proc_errmsg(length));
    MB_TRY(add_folded(folded, length, s));
done:
    free(folded);
    return status;
}

/* ---- 3. numbers ---- */

static bool is_digit(const char *text, size_t n, size_t at)
{
    return at < n && isdigit((unsigned char)text[at]);
}

/* Do a comma and three digits, and then none, stand here? */
static bool is_group(const char *text, size_t n, size_t at)
{
    return at < n && text[at] == ',' && is_digit(text, n, at + 1) && is_digit(text, n, at + 2) &&
           is_digit(text, n, at + 3) && !is_digit(text, n, at + 4);
}

/* The end of the number whose first digit is here; its digits go to s. */
static mb_status read_number(const char *text, size_t n, size_t at, bool is_negative, mb_str *s,
                             size_t *out_end)
{
    mb_status status = MB_OK;
    const size_t begin = s->length;
    if (is_negative) MB_TRY(mb_str_add(s, "-"));
    const size_t first = s->length;
    for (; is_digit(text, n, at) || is_group(text, n, at); at++)
        if (text[at] != ',' && (text[at] != '0' || s->length > first)) MB_TRY(mb_str_append(s, &text[at], 1));
    if (s->length == first) MB_TRY(mb_str_add(s, "0"));
    if (at < n && text[at] == '.' && is_digit(text, n, at + 1)) {
        MB_TRY(mb_str_add(s, "."));
        for (at++; is_digit(text, n, at); at++) MB_TRY(mb_str_append(s, &text[at], 1));
        while (s->data[s->length - 1] == '0') s->length--;
        if (s->data[s->length - 1] == '.') s->length--;
    }
    s->data[s->length] = 0;
    if (strcmp(s->data + begin, "-0") == 0) {
        s->length = begin;
        MB_TRY(mb_str_add(s, "0"));
    }
    *out_end = at;
done:
    return status;
}

/* A minus sign right before the digits, behind nothing that it could join to them. */
static bool is_minus(const char *text, size_t at)
{
    if (at == 0 || text[at - 1] != '-') return false;
    return at == 1 || !(isalnum((unsigned char)text[at - 2]) || text[at - 2] == ')' || text[at - 2] == '-');
}

mb_status mb_answer_match_number(const char *text, size_t n, mb_str *s, bool *out_has)
{
    mb_status status = MB_OK;
    const size_t begin = s->length;
    *out_has = false;
    for (size_t i = 0; i < n;) {
        if (!is_digit(text, n, i)) {
            i++;
            continue;
        }
        s->length = begin;
        MB_TRY(read_number(text, n, i, is_minus(text, i), s, &i));
        *out_has = true;
    }
done:
    return status;
}

/* ---- 4. comparing ---- */

mb_status mb_answer_match_check(mb_answer_match match, const char *expected, size_t expected_n,
                                const char *answer, size_t answer_n, bool *out_is_equal)
{
    mb_status status = MB_OK;
    mb_str a = MB_STR_EMPTY, b = MB_STR_EMPTY;
    bool has_a = true, has_b = true;
    if (match == MB_ANSWER_MATCH_NUMBER) {
        MB_TRY(mb_answer_match_number(expected, expected_n, &a, &has_a));
        MB_TRY(mb_answer_match_number(answer, answer_n, &b, &has_b));
        if (!has_a) MB_RAISE(MB_EDATA, "the expected answer holds no number; match by text");
    } else {
        MB_TRY(mb_answer_match_text(expected, expected_n, &a));
        MB_TRY(mb_answer_match_text(answer, answer_n, &b));
    }
    *out_is_equal = has_b && a.length == b.length && memcmp(mb_str_text(&a), mb_str_text(&b), a.length) == 0;
done:
    mb_str_destroy(&a);
    mb_str_destroy(&b);
    return status;
}
