/* str: a growing byte string, and small helpers on C strings.
 *
 * Layer: base.  Uses: memory.
 */
#ifndef MB_STR_H
#define MB_STR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Always 0-terminated once something was added; may hold 0 bytes. Start with MB_STR_EMPTY, end with
 * mb_str_destroy. */
typedef struct mb_str {
    char *data; /* NULL while empty and never grown; use mb_str_text for printing */
    size_t length;
    size_t capacity;
} mb_str;
#define MB_STR_EMPTY ((mb_str){0})

void mb_str_destroy(mb_str *s);                       /* frees, resets to MB_STR_EMPTY */
void mb_str_reset(mb_str *s);                         /* length 0, keeps memory */
const char *mb_str_text(const mb_str *s);             /* never NULL */
mb_status mb_str_reserve(mb_str *s, size_t capacity); /* room for capacity bytes + terminator */
mb_status mb_str_append(mb_str *s, const void *bytes, size_t n);
mb_status mb_str_add(mb_str *s, const char *text);
mb_status mb_str_add_format(mb_str *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
char *mb_str_take(mb_str *s); /* the bytes, caller frees with mb_free; s is empty afterwards */

/* "%s/%s"-like formatting into a new block; NULL + MB_ENOMEM on failure. Free with mb_free. */
char *mb_str_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

bool mb_str_is_prefix(const char *text, const char *prefix);
bool mb_str_is_suffix(const char *text, const char *suffix);
bool mb_str_equal(const char *a, const char *b); /* NULLs equal each other only */

/* Edit distance (insert, delete, replace, swap of neighbours), for "did you mean". */
int mb_str_distance(const char *a, const char *b);
/* The nearest of n names when near enough to be a slip (distance <= 1 + length/3), else NULL. Borrowed. */
const char *mb_str_nearest(const char *word, const char *const *names, int64_t n);

/* Strict parsers of a whole string: MB_ERANGE/MB_EUSAGE with a message on anything else. */
mb_status mb_str_parse_int(const char *text, int64_t *out_value); /* also 1e6, 64k, 2M, 1G (powers of 1000) */
mb_status mb_str_parse_real(const char *text, double *out_value);
mb_status mb_str_parse_bool(const char *text, bool *out_value); /* true/false, yes/no, on/off, 1/0 */

/* Is [bytes, bytes+n) valid UTF-8? opt_bad receives the offset of the first bad byte. */
bool mb_str_is_utf8(const void *bytes, size_t n, size_t *opt_bad);

#endif
