/* dialog_text: see the header.
 *
 * Contents: 1 white space  2 JSON
 */
#include "text/dialog_text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1 white space ---- */

/* White space of two and three bytes, as str.isspace() has it. */
static const char *const wide_spaces[] = {"\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80",
                                          "\xE2\x80\x81", "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84",
                                          "\xE2\x80\x85", "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88",
                                          "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8", "\xE2\x80\xA9",
                                          "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

static bool is_narrow_space(char c)
{
    return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
}

/* Bytes of the white space character at the start (or end) of the text, 0 if it is none. */
static size_t one_space(const char *text, size_t n, bool at_end)
{
    if (n == 0) return 0;
    if (is_narrow_space(text[at_end ? n - 1 : 0])) return 1;
    for (size_t i = 0; i < sizeof wide_spaces / sizeof *wide_spaces; i++) {
        const size_t length = strlen(wide_spaces[i]);
        if (length <= n && memcmp(at_end ? text + n - length : text, wide_spaces[i], length) == 0)
            return length;
    }
    return 0;
}

size_t mb_dialog_text_space_before(const char *text, size_t n)
{
    size_t total = 0, one;
    while ((one = one_space(text + total, n - total, false)) > 0) total += one;
    return total;
}

size_t mb_dialog_text_space_after(const char *text, size_t n)
{
    size_t total = 0, one;
    while ((one = one_space(text, n - total, true)) > 0) total += one;
    return total;
}

void mb_dialog_text_strip(const char **text, size_t *n)
{
    const size_t before = mb_dialog_text_space_before(*text, *n);
    *text += before;
    *n -= before;
    *n -= mb_dialog_text_space_after(*text, *n);
}

/* ---- 2 JSON ---- */

static mb_status add_string(const char *text, size_t n, mb_str *s)
{
    mb_status status = MB_OK;
    static const char from[] = "\"\\\n\r\t\b\f";
    static const char to[] = "\"\\nrtbf";
    MB_TRY(mb_str_append(s, "\"", 1));
    for (size_t i = 0; i < n; i++) {
        const char *special = text[i] != 0 ? strchr(from, text[i]) : NULL;
        if (special != NULL)
            MB_TRY(mb_str_add_format(s, "\\%c", to[special - from]));
        else if ((unsigned char)text[i] < 0x20)
            MB_TRY(mb_str_add_format(s, "\\u%04x", (unsigned)text[i]));
        else
            MB_TRY(mb_str_append(s, text + i, 1));
    }
    MB_TRY(mb_str_append(s, "\"", 1));
done:
    return status;
}

/* float.__repr__: the fewest digits that read back the same, fixed for exponents -4..15. */
static mb_status add_real(double value, mb_str *s)
{
    char text[40], digits[24];
    int precision = 0;
    do {
        snprintf(text, sizeof text, "%.*e", precision, value);
    } while (strtod(text, NULL) != value && ++precision < 17);
    const int exponent = atoi(strchr(text, 'e') + 1);
    const char *sign = signbit(value) ? "-" : "";
    int count = 0;
    for (const char *p = text; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9') digits[count++] = *p;
    if (exponent < -4 || exponent >= 16)
        return mb_str_add_format(s, "%s%c%s%.*se%c%02d", sign, digits[0], count > 1 ? "." : "", count - 1,
                                 digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    snprintf(text, sizeof text, "%.*f", count - 1 > exponent ? count - 1 - exponent : 1, value);
    return mb_str_add(s, text);
}

static mb_status add_array(const json_t *json, mb_str *s)
{
    mb_status status = MB_OK;
    for (size_t i = 0; i < json_array_size(json); i++) {
        MB_TRY(mb_str_add(s, i == 0 ? "[" : ", "));
        MB_TRY(mb_dialog_text_json(json_array_get(json, i), s));
    }
    MB_TRY(mb_str_add(s, json_array_size(json) == 0 ? "[]" : "]"));
done:
    return status;
}

static mb_status add_object(const json_t *json, mb_str *s)
{
    mb_status status = MB_OK;
    const char *separator = "{";
    /* jansson's iterators want a non-const object; nothing is changed through them */
    json_t *object = (json_t *)json;
    for (void *at = json_object_iter(object); at != NULL;
         at = json_object_iter_next(object, at), separator = ", ") {
        const char *key = json_object_iter_key(at);
        MB_TRY(mb_str_add(s, separator));
        MB_TRY(add_string(key, strlen(key), s));
        MB_TRY(mb_str_add(s, ": "));
        MB_TRY(mb_dialog_text_json(json_object_iter_value(at), s));
    }
    MB_TRY(mb_str_add(s, json_object_size(json) == 0 ? "{}" : "}"));
done:
    return status;
}

mb_status mb_dialog_text_json(const json_t *json, mb_str *s)
{
    switch (json_typeof(json)) {
    case JSON_STRING:
        return add_string(json_string_value(json), json_string_length(json), s);
    case JSON_INTEGER:
        return mb_str_add_format(s, "%lld", (long long)json_integer_value(json));
    case JSON_REAL:
        return add_real(json_real_value(json), s);
    case JSON_TRUE:
        return mb_str_add(s, "true");
    case JSON_FALSE:
        return mb_str_add(s, "false");
    case JSON_NULL:
        return mb_str_add(s, "null");
    case JSON_ARRAY:
        return add_array(json, s);
    case JSON_OBJECT:
        return add_object(json, s);
    }
    return MB_OK;
}
