/* records_extent: where a record ends, found piece by piece as the bytes come in.
 *
 * Layer: text.  Uses: nothing.
 *
 * The end depends on the bytes alone, never on a limit or on buffer borders, so that scanning and reading
 * count alike.
 */
#ifndef MB_RECORDS_EXTENT_H
#define MB_RECORDS_EXTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum mb_records_form { MB_RECORDS_LINES, MB_RECORDS_ARRAY, MB_RECORDS_ROWS } mb_records_form;

/* State inside one record; zeroed at its start. */
typedef struct mb_records_extent {
    int64_t depth;  /* ARRAY: open brackets */
    bool in_string; /* ARRAY */
    bool escaped;   /* ARRAY: after a backslash */
    bool started;   /* ARRAY: first byte seen; ROWS: inside a field */
    bool quoted;    /* ROWS: inside quotes */
} mb_records_extent;

/* Look at n bytes of a record. Returns how many of them belong to it; *out_ended says whether its end was
 * among them (the byte after the returned count is a line feed, a comma, white space, a closing bracket, or
 * the record closed itself). */
size_t mb_records_extent_step(mb_records_extent *extent, mb_records_form form, char delimiter,
                              const char *bytes, size_t n, bool *out_ended);

#endif
