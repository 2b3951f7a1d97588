/* records_row: see the header.
 *
 * Contents: 1 split  2 object  3 header
 */
#include "text/records_row.h"

#include <string.h>

#include "base/memory.h"

/* ---- 1 split ---- */

/* The field at bytes[i]: its text goes into s, the place behind it is returned through out_next. */
static mb_status read_field(const char *bytes, size_t n, size_t i, char delimiter, mb_str *s,
                            size_t *out_next)
{
    mb_status status = MB_OK;
    mb_str_reset(s);
    if (i >= n || bytes[i] != '"') {
        const char *end = i < n ? memchr(bytes + i, delimiter, n - i) : NULL;
        const size_t length = end != NULL ? (size_t)(end - bytes) - i : n - i;
        MB_TRY(mb_str_append(s, bytes + i, length));
        *out_next = i + length;
        goto done;
    }
    for (i++;;) {
        const char *quote = i < n ? memchr(bytes + i, '"', n - i) : NULL;
        if (quote == NULL) MB_RAISE(MB_EDATA, "a quote is opened and never closed");
        MB_TRY(mb_str_append(s, bytes + i, (size_t)(quote - bytes) - i));
        i = (size_t)(quote - bytes) + 1;
        if (i >= n || bytes[i] != '"') break;
        MB_TRY(mb_str_append(s, "\"", 1));
        i++;
    }
    if (i < n && bytes[i] != delimiter)
        MB_RAISE(MB_EDATA,
                 "text stands between a closing quote and the next field; write a quote inside quotes twice");
    *out_next = i;
done:
    return status;
}

mb_status mb_records_row_split(const char *bytes, size_t n, char delimiter, json_t **out_fields)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    json_t *fields = json_array();
    if (fields == NULL) MB_RAISE(MB_ENOMEM, "no memory for the fields of a row");
    if (memchr(bytes, 0, n) != NULL) MB_RAISE(MB_EDATA, "holds a NUL byte");
    for (size_t i = 0;; i++) {
        MB_TRY(read_field(bytes, n, i, delimiter, &s, &i));
        json_t *field = json_stringn(mb_str_text(&s), s.length);
        if (field == NULL) MB_RAISE(MB_EDATA, "field %zu is not UTF-8", json_array_size(fields) + 1);
        if (json_array_append_new(fields, field) != 0)
            MB_RAISE(MB_ENOMEM, "no memory for the fields of a row");
        if (i >= n) break;
    }
    *out_fields = fields;
    fields = NULL;
done:
    json_decref(fields);
    mb_str_destroy(&s);
    return status;
}

/* ---- 2 object ---- */

mb_status mb_records_row_object(json_t *fields, json_t *opt_header, json_t **out_object)
{
    mb_status status = MB_OK;
    const size_t count = json_array_size(fields);
    json_t *object = json_object();
    if (object == NULL) MB_RAISE(MB_ENOMEM, "no memory for a row");
    if (opt_header != NULL && json_array_size(opt_header) != count)
        MB_RAISE(MB_EDATA, "has %zu fields, the header row has %zu", count, json_array_size(opt_header));
    for (size_t i = 0; i < count; i++) {
        char number[24];
        snprintf(number, sizeof number, "%zu", i);
        const char *name = opt_header != NULL ? json_string_value(json_array_get(opt_header, i)) : number;
        if (json_object_set(object, name, json_array_get(fields, i)) != 0)
            MB_RAISE(MB_ENOMEM, "no memory for a row");
    }
    *out_object = object;
    object = NULL;
done:
    json_decref(object);
    return status;
}

/* ---- 3 header ---- */

mb_status mb_records_row_check_header(const json_t *header)
{
    mb_status status = MB_OK;
    const size_t count = json_array_size(header);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i; j++)
            if (json_equal(json_array_get(header, i), json_array_get(header, j)))
                MB_RAISE(MB_EFORMAT, "columns %zu and %zu are both named \"%s\"; rename one", j + 1, i + 1,
                         json_string_value(json_array_get(header, i)));
done:
    return status;
}
