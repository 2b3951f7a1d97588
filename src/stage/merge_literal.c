/* merge_literal.c: recursive descent over one literal.
 *
 * 1. texts   2. the rest   3. all
 */
#include "stage/merge_literal.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 32 };

typedef struct parser {
    const char *text, *at;
    int depth;
} parser;

static mb_status read_value(parser *p, json_t **out);

static mb_status wrong(const parser *p, const char *expected)
{
    return mb_fail(MB_EDATA, "byte %lld of the literal: %s is expected, not '%.12s'",
                   (long long)(p->at - p->text), expected, p->at);
}

static void pass_space(parser *p)
{
    while (isspace((unsigned char)*p->at)) p->at++;
}

/* ---- 1. texts ---- */

static mb_status add_code(uint32_t code, mb_str *s)
{
    char bytes[4];
    size_t n = 0;
    if (code < 0x80) {
        bytes[n++] = (char)code;
    } else if (code < 0x800) {
        bytes[n++] = (char)(0xC0 | code >> 6);
        bytes[n++] = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        bytes[n++] = (char)(0xE0 | code >> 12);
        bytes[n++] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[n++] = (char)(0x80 | (code & 0x3F));
    } else {
        bytes[n++] = (char)(0xF0 | code >> 18);
        bytes[n++] = (char)(0x80 | (code >> 12 & 0x3F));
        bytes[n++] = (char)(0x80 | (code >> 6 & 0x3F));
        bytes[n++] = (char)(0x80 | (code & 0x3F));
    }
    return mb_str_append(s, bytes, n);
}

/* \xNN, \uNNNN, \UNNNNNNNN; at: behind the letter. */
static mb_status add_hexadecimal(parser *p, int digits, mb_str *s)
{
    mb_status status = MB_OK;
    char number[9] = {0}, *end;
    for (int i = 0; i < digits && isxdigit((unsigned char)p->at[i]); i++) number[i] = p->at[i];
    const unsigned long code = strtoul(number, &end, 16);
    if (end != number + digits || code == 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        MB_TRY(wrong(p, "the number of a character"));
    p->at += digits;
    MB_TRY(add_code((uint32_t)code, s));
done:
    return status;
}

/* Behind a backslash. One that Python does not know stays as it stands. */
static mb_status add_escape(parser *p, mb_str *s)
{
    static const char from[] = "\\'\"ntrabfv", to[] = "\\'\"\n\t\r\a\b\f\v";
    const char letter = *p->at++;
    const char *known = letter != 0 ? strchr(from, letter) : NULL;
    if (letter == 0) return wrong(p, "the end of a text");
    if (letter == '\n') return MB_OK;
    if (known != NULL) return mb_str_append(s, &to[known - from], 1);
    if (letter == 'x') return add_hexadecimal(p, 2, s);
    if (letter == 'u') return add_hexadecimal(p, 4, s);
    if (letter == 'U') return add_hexadecimal(p, 8, s);
    return mb_str_add_format(s, "\\%c", letter);
}

static mb_status read_text(parser *p, mb_str *s)
{
    mb_status status = MB_OK;
    const char quote = *p->at++;
    while (*p->at != quote) {
        if (*p->at == 0) MB_TRY(wrong(p, "the end of a text"));
        if (*p->at == '\\') {
            p->at++;
            MB_TRY(add_escape(p, s));
        } else {
            MB_TRY(mb_str_append(s, p->at++, 1));
        }
    }
    p->at++;
done:
    return status;
}

/* ---- 2. the rest ---- */

static mb_status read_string(parser *p, json_t **out)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    MB_TRY(read_text(p, &s));
    *out = json_stringn(mb_str_text(&s), s.length);
    if (*out == NULL) MB_RAISE(MB_EDATA, "a text of the literal is not UTF-8");
done:
    mb_str_destroy(&s);
    return status;
}

static mb_status read_list(parser *p, char end, json_t **out)
{
    mb_status status = MB_OK;
    json_t *list = json_array(), *one = NULL;
    p->at++;
    for (pass_space(p); *p->at != end; pass_space(p)) {
        MB_TRY(read_value(p, &one));
        json_array_append_new(list, one);
        pass_space(p);
        if (*p->at == ',')
            p->at++;
        else if (*p->at != end)
            MB_TRY(wrong(p, "a comma"));
    }
    p->at++;
    *out = list;
    list = NULL;
done:
    json_decref(list);
    return status;
}

static mb_status read_dictionary(parser *p, json_t **out)
{
    mb_status status = MB_OK;
    json_t *object = json_object(), *value = NULL;
    mb_str key = MB_STR_EMPTY;
    p->at++;
    for (pass_space(p); *p->at != '}'; pass_space(p)) {
        if (*p->at != '\'' && *p->at != '"') MB_TRY(wrong(p, "a text as key"));
        mb_str_reset(&key);
        MB_TRY(read_text(p, &key));
        pass_space(p);
        if (*p->at != ':') MB_TRY(wrong(p, "a colon"));
        p->at++;
        MB_TRY(read_value(p, &value));
        MB_TRY(mb_json_set(object, mb_str_text(&key), value));
        pass_space(p);
        if (*p->at == ',')
            p->at++;
        else if (*p->at != '}')
            MB_TRY(wrong(p, "a comma"));
    }
    p->at++;
    *out = object;
    object = NULL;
done:
    mb_str_destroy(&key);
    json_decref(object);
    return status;
}

static mb_status read_word(parser *p, json_t **out)
{
    mb_status status = MB_OK;
    static const char *const words[] = {"None", "True", "False"};
    char *end;
    for (int i = 0; i < 3; i++) {
        if (!mb_str_is_prefix(p->at, words[i])) continue;
        p->at += strlen(words[i]);
        *out = i == 0 ? json_null() : json_boolean(i == 1);
        return MB_OK;
    }
    const size_t n = strspn(p->at, "+-.0123456789eE");
    if (n == 0) MB_TRY(wrong(p, "a literal"));
    if (memchr(p->at, '.', n) == NULL && memchr(p->at, 'e', n) == NULL && memchr(p->at, 'E', n) == NULL)
        *out = json_integer(strtoll(p->at, &end, 10));
    else
        *out = json_real(strtod(p->at, &end));
    if (end != p->at + n || *out == NULL) {
        json_decref(*out);
        *out = NULL;
        MB_TRY(wrong(p, "a number"));
    }
    p->at = end;
done:
    return status;
}

/* ---- 3. all ---- */

static mb_status read_value(parser *p, json_t **out)
{
    mb_status status = MB_OK;
    pass_space(p);
    if (++p->depth > DEEPEST) MB_TRY(wrong(p, "less nesting"));
    switch (*p->at) {
    case '{':
        MB_TRY(read_dictionary(p, out));
        break;
    case '[':
        MB_TRY(read_list(p, ']', out));
        break;
    case '(':
        MB_TRY(read_list(p, ')', out));
        break;
    case '\'':
    case '"':
        MB_TRY(read_string(p, out));
        break;
    default:
        MB_TRY(read_word(p, out));
    }
    p->depth--;
done:
    return status;
}

mb_status mb_merge_literal_read(const char *text, json_t **out_json)
{
    mb_status status = MB_OK;
    parser p = {.text = text, .at = text};
    json_t *json = NULL;
    MB_TRY(read_value(&p, &json));
    pass_space(&p);
    if (*p.at != 0) MB_TRY(wrong(&p, "the end"));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}
