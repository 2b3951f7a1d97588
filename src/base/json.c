/* json.c: jansson behind our errors.
 *
 * 1. parsing   2. printing   3. members
 */
#include "base/json.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

#include "base/files.h"
#include "base/memory.h"

/* ---- 1. parsing ---- */

/* Copy of the text in which whole numbers beyond 64 bits (outside strings) end in ".0", so that they become
 * reals: files in the wild hold 1000000000000000019884624838656 for "no limit". */
static mb_status widen_integers(const char *text, size_t n, mb_str *s)
{
    mb_status status = MB_OK;
    bool quoted = false;
    size_t first = 0; /* what is not copied yet */
    for (size_t i = 0; i < n; i++) {
        if (quoted && text[i] == '\\') {
            i++;
        } else if (text[i] == '"') {
            quoted = !quoted;
        } else if (!quoted && isdigit((unsigned char)text[i])) {
            size_t end = i;
            while (end < n && isdigit((unsigned char)text[end])) end++;
            bool real = (i > 0 && strchr(".eE+", text[i - 1]) != NULL) ||
                        (end < n && strchr(".eE", text[end]) != NULL);
            if (end - i > 18 && !real) {
                MB_TRY(mb_str_append(s, text + first, end - first));
                MB_TRY(mb_str_add(s, ".0"));
                first = end;
            }
            i = end - 1;
        }
    }
    MB_TRY(mb_str_append(s, text + first, n - first));
done:
    return status;
}

mb_status mb_json_parse(const char *text, size_t n, const char *where, json_t **out_json)
{
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL;
    mb_status status = MB_OK;
    mb_str wide = MB_STR_EMPTY;
    json_error_t error;
    json_t *json = json_loadb(text, n, flags, &error);
    if (json == NULL && json_error_code(&error) == json_error_numeric_overflow) {
        MB_TRY(widen_integers(text, n, &wide));
        json = json_loadb(wide.data, wide.length, flags, &error);
    }
    if (json == NULL && json_error_code(&error) == json_error_out_of_memory) {
        MB_RAISE(MB_ENOMEM, "%s: not enough memory to parse it", where);
    }
    if (json == NULL)
        MB_RAISE(MB_EFORMAT, "%s:%d:%d: not valid JSON: %s", where, error.line, error.column, error.text);
    *out_json = json;
done:
    mb_str_destroy(&wide);
    return status;
}

mb_status mb_json_read(const char *path, json_t **out_json)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_files_read(path, 0, &text));
    MB_TRY(mb_json_parse(mb_str_text(&text), text.length, path, out_json));
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 2. printing ---- */

static int append_piece(const char *bytes, size_t n, void *s)
{
    return mb_str_append(s, bytes, n) == MB_OK ? 0 : -1;
}

mb_status mb_json_print(const json_t *json, int indent, bool sort, mb_str *s)
{
    mb_status status = MB_OK;
    size_t flags = JSON_ENCODE_ANY | JSON_REAL_PRECISION(17);
    if (indent > 0) flags |= JSON_INDENT((size_t)indent > 31 ? 31 : (size_t)indent);
    if (sort) flags |= JSON_SORT_KEYS;
    size_t before = s->length;
    mb_status_reset();
    if (json_dump_callback(json, append_piece, s, flags) != 0) {
        s->length = before;
        if (s->data != NULL) s->data[before] = 0;
        MB_RAISE(*mb_status_message() != 0 ? MB_ENOMEM : MB_ENUMERIC,
                 "a JSON value cannot be written: it holds NaN or Inf, holds itself, or there is no memory");
    }
done:
    return status;
}

mb_status mb_json_write(const char *path, const json_t *json, int indent, bool sort)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_json_print(json, indent, sort, &text));
    MB_TRY(mb_str_add(&text, "\n"));
    MB_TRY(mb_files_write(path, text.data, text.length));
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 3. members ---- */

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    default:
        return "null";
    }
}

/* The member, NULL when absent or null and not required. */
static mb_status find_member(const json_t *object, const char *key, const char *where, bool required,
                             json_t **out_value)
{
    if (!json_is_object(object))
        return mb_fail(MB_EFORMAT, "%s: an object with '%s' was expected", where, key);
    json_t *value = json_object_get(object, key);
    if (json_is_null(value)) value = NULL;
    if (value == NULL && required) return mb_fail(MB_EFORMAT, "%s: '%s' is missing", where, key);
    *out_value = value;
    return MB_OK;
}

static mb_status wrong_type(const json_t *value, const char *key, const char *where, const char *expected)
{
    return mb_fail(MB_EFORMAT, "%s: '%s' is %s, expected %s", where, key, type_name(value), expected);
}

static mb_status get_string(const json_t *object, const char *key, const char *where, bool required,
                            const char **out_text)
{
    mb_status status = MB_OK;
    json_t *value = NULL;
    MB_TRY(find_member(object, key, where, required, &value));
    if (value == NULL) goto done;
    if (!json_is_string(value)) MB_TRY(wrong_type(value, key, where, "a string"));
    if (strlen(json_string_value(value)) != json_string_length(value)) {
        MB_RAISE(MB_EFORMAT, "%s: '%s' holds a zero byte", where, key);
    }
    *out_text = json_string_value(value);
done:
    return status;
}

static mb_status get_int(const json_t *object, const char *key, const char *where, bool required,
                         int64_t *out_value)
{
    mb_status status = MB_OK;
    json_t *value = NULL;
    MB_TRY(find_member(object, key, where, required, &value));
    if (value == NULL) goto done;
    if (!json_is_integer(value)) MB_TRY(wrong_type(value, key, where, "a whole number"));
    *out_value = (int64_t)json_integer_value(value);
done:
    return status;
}

static mb_status get_real(const json_t *object, const char *key, const char *where, bool required,
                          double *out_value)
{
    mb_status status = MB_OK;
    json_t *value = NULL;
    MB_TRY(find_member(object, key, where, required, &value));
    if (value == NULL) goto done;
    if (!json_is_number(value)) MB_TRY(wrong_type(value, key, where, "a number"));
    *out_value = json_number_value(value);
done:
    return status;
}

static mb_status get_bool(const json_t *object, const char *key, const char *where, bool required,
                          bool *out_value)
{
    mb_status status = MB_OK;
    json_t *value = NULL;
    MB_TRY(find_member(object, key, where, required, &value));
    if (value == NULL) goto done;
    if (!json_is_boolean(value)) MB_TRY(wrong_type(value, key, where, "true or false"));
    *out_value = json_is_true(value);
done:
    return status;
}

mb_status mb_json_get_string(const json_t *object, const char *key, const char *where, const char **out_text)
{
    return get_string(object, key, where, true, out_text);
}

mb_status mb_json_get_int(const json_t *object, const char *key, const char *where, int64_t *out_value)
{
    return get_int(object, key, where, true, out_value);
}

mb_status mb_json_get_real(const json_t *object, const char *key, const char *where, double *out_value)
{
    return get_real(object, key, where, true, out_value);
}

mb_status mb_json_get_bool(const json_t *object, const char *key, const char *where, bool *out_value)
{
    return get_bool(object, key, where, true, out_value);
}

mb_status mb_json_get_array(const json_t *object, const char *key, const char *where, json_t **out_array)
{
    mb_status status = MB_OK;
    json_t *value = NULL;
    MB_TRY(find_member(object, key, where, true, &value));
    if (!json_is_array(value)) MB_TRY(wrong_type(value, key, where, "an array"));
    *out_array = value;
done:
    return status;
}

mb_status mb_json_get_object(const json_t *object, const char *key, const char *where, json_t **out_object)
{
    mb_status status = MB_OK;
    json_t *value = NULL;
    MB_TRY(find_member(object, key, where, true, &value));
    if (!json_is_object(value)) MB_TRY(wrong_type(value, key, where, "an object"));
    *out_object = value;
done:
    return status;
}

mb_status mb_json_opt_string(const json_t *object, const char *key, const char *where, const char **out_text)
{
    return get_string(object, key, where, false, out_text);
}

mb_status mb_json_opt_int(const json_t *object, const char *key, const char *where, int64_t *out_value)
{
    return get_int(object, key, where, false, out_value);
}

mb_status mb_json_opt_real(const json_t *object, const char *key, const char *where, double *out_value)
{
    return get_real(object, key, where, false, out_value);
}

mb_status mb_json_opt_bool(const json_t *object, const char *key, const char *where, bool *out_value)
{
    return get_bool(object, key, where, false, out_value);
}

mb_status mb_json_set(json_t *object, const char *key, json_t *value)
{
    if (value == NULL || json_object_set_new(object, key, value) != 0) {
        return mb_fail(MB_ENOMEM, "'%s' cannot be set: no memory, or its text is not valid UTF-8", key);
    }
    return MB_OK;
}
