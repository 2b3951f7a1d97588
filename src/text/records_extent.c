/* records_extent: see the header.
 *
 * Contents: 1 elements of a JSON array  2 rows of a CSV file  3 dispatch
 */
#include "text/records_extent.h"

#include <string.h>

/* ---- 1 elements of a JSON array ---- */

/* Inside a string: skip to its closing quote. Returns the bytes used. */
static size_t skip_string(mb_records_extent *extent, const char *bytes, size_t n)
{
    size_t i = 0;
    for (; i < n && extent->in_string; i++) {
        if (extent->escaped)
            extent->escaped = false;
        else if (bytes[i] == '\\')
            extent->escaped = true;
        else if (bytes[i] == '"')
            extent->in_string = false;
    }
    return i;
}

static bool is_scalar_end(char c)
{
    return c == ',' || c == ']' || c == '}' || c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static size_t step_element(mb_records_extent *extent, const char *bytes, size_t n, bool *out_ended)
{
    size_t i = 0;
    while (i < n) {
        if (extent->in_string) {
            i += skip_string(extent, bytes + i, n - i);
            if (!extent->in_string && extent->depth == 0) return *out_ended = true, i;
            continue;
        }
        const char c = bytes[i];
        if (extent->depth == 0 && extent->started && is_scalar_end(c)) return *out_ended = true, i;
        extent->started = true;
        i++;
        if (c == '"')
            extent->in_string = true;
        else if (c == '{' || c == '[')
            extent->depth++;
        else if ((c == '}' || c == ']') && --extent->depth <= 0)
            return *out_ended = true, i;
    }
    return n;
}

/* ---- 2 rows of a CSV file ---- */

/* A quote opens a quoted field only where a field begins; two quotes inside one stand for a quote, which
 * toggling twice handles. */
static size_t step_row(mb_records_extent *extent, char delimiter, const char *bytes, size_t n,
                       bool *out_ended)
{
    for (size_t i = 0; i < n; i++) {
        const char c = bytes[i];
        if (extent->quoted) {
            if (c == '"') extent->quoted = false, extent->escaped = true;
            continue;
        }
        if (c == '\n') return *out_ended = true, i;
        if (c == '"' && (!extent->started || extent->escaped)) extent->quoted = true;
        extent->escaped = false;
        extent->started = c != delimiter;
    }
    return n;
}

/* ---- 3 dispatch ---- */

size_t mb_records_extent_step(mb_records_extent *extent, mb_records_form form, char delimiter,
                              const char *bytes, size_t n, bool *out_ended)
{
    *out_ended = false;
    if (form == MB_RECORDS_ARRAY) return step_element(extent, bytes, n, out_ended);
    if (form == MB_RECORDS_ROWS) return step_row(extent, delimiter, bytes, n, out_ended);
    const char *end = n > 0 ? memchr(bytes, '\n', n) : NULL;
    *out_ended = end != NULL;
    return end != NULL ? (size_t)(end - bytes) : n;
}
