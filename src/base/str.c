/* str.c: growing strings, comparisons, edit distance, strict parsers, UTF-8.
 *
 * 1. growing   2. comparing   3. edit distance   4. parsing   5. UTF-8
 */
#include "base/str.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/memory.h"

/* ---- 1. growing ---- */

void mb_str_destroy(mb_str *s)
{
    mb_free(s->data);
    *s = MB_STR_EMPTY;
}

void mb_str_reset(mb_str *s)
{
    s->length = 0;
    if (s->data != NULL) s->data[0] = 0;
}

const char *mb_str_text(const mb_str *s)
{
    return s->data == NULL ? "" : s->data;
}

mb_status mb_str_reserve(mb_str *s, size_t capacity)
{
    if (s->data != NULL && capacity <= s->capacity) return MB_OK;
    if (capacity > SIZE_MAX / 4)
        return mb_fail(MB_ENOMEM, "a string of %zu bytes was asked for: too large", capacity);
    size_t wanted = s->capacity + s->capacity / 2;
    if (wanted < capacity) wanted = capacity;
    if (wanted < 63) wanted = 63;
    char *data = mb_realloc(s->data, wanted + 1, 1);
    if (data == NULL) return mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
    data[s->length] = 0;
    s->data = data;
    s->capacity = wanted;
    return MB_OK;
}

mb_status mb_str_append(mb_str *s, const void *bytes, size_t n)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_reserve(s, s->length + n));
    if (n > 0) memcpy(s->data + s->length, bytes, n);
    s->length += n;
    s->data[s->length] = 0;
done:
    return status;
}

mb_status mb_str_add(mb_str *s, const char *text)
{
    return mb_str_append(s, text, strlen(text));
}

static mb_status add_arguments(mb_str *s, const char *format, va_list arguments)
{
    mb_status status = MB_OK;
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    if (length < 0) MB_RAISE(MB_ERANGE, "text cannot be formatted with '%s'", format);
    MB_TRY(mb_str_reserve(s, s->length + (size_t)length));
    vsnprintf(s->data + s->length, (size_t)length + 1, format, again);
    s->length += (size_t)length;
done:
    va_end(again);
    return status;
}

mb_status mb_str_add_format(mb_str *s, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    mb_status status = add_arguments(s, format, arguments);
    va_end(arguments);
    return status;
}

char *mb_str_take(mb_str *s)
{
    char *data = s->data != NULL ? s->data : mb_calloc(1, 1);
    *s = MB_STR_EMPTY;
    return data;
}

char *mb_str_format(const char *format, ...)
{
    mb_str s = MB_STR_EMPTY;
    va_list arguments;
    va_start(arguments, format);
    mb_status status = add_arguments(&s, format, arguments);
    va_end(arguments);
    if (status != MB_OK) {
        mb_str_destroy(&s);
        return NULL;
    }
    return mb_str_take(&s);
}

/* ---- 2. comparing ---- */

bool mb_str_is_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

bool mb_str_is_suffix(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return m <= n && memcmp(text + n - m, suffix, m) == 0;
}

bool mb_str_equal(const char *a, const char *b)
{
    if (a == NULL || b == NULL) return a == b;
    return strcmp(a, b) == 0;
}

/* ---- 3. edit distance ---- */

enum { DISTANCE_MAX = 255 }; /* longer names are compared by their beginning */

static int min3(int a, int b, int c)
{
    int least = a < b ? a : b;
    return least < c ? least : c;
}

/* Optimal string alignment: three rows of the table of distances between beginnings of a and b. */
int mb_str_distance(const char *a, const char *b)
{
    int rows[3][DISTANCE_MAX + 1];
    int n = (int)strnlen(a, DISTANCE_MAX), m = (int)strnlen(b, DISTANCE_MAX);
    for (int j = 0; j <= m; j++) rows[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = rows[i % 3], *before = rows[(i + 2) % 3], *earlier = rows[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int cost = a[i - 1] == b[j - 1] ? 0 : 1;
            now[j] = min3(before[j] + 1, now[j - 1] + 1, before[j - 1] + cost);
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && earlier[j - 2] + 1 < now[j]) now[j] = earlier[j - 2] + 1;
        }
    }
    return rows[n % 3][m];
}

const char *mb_str_nearest(const char *word, const char *const *names, int64_t n)
{
    const char *nearest = NULL;
    int least = 2 + (int)(strlen(word) / 3);
    for (int64_t i = 0; i < n; i++) {
        int distance = mb_str_distance(word, names[i]);
        if (distance < least) {
            least = distance;
            nearest = names[i];
        }
    }
    return nearest;
}

/* ---- 4. parsing ---- */

/* Power of ten of a suffix: k 3, M 6, G 9; -1 for any other letter. */
static int suffix_power(char letter)
{
    switch (letter) {
    case 'k':
    case 'K':
        return 3;
    case 'M':
        return 6;
    case 'G':
        return 9;
    default:
        return -1;
    }
}

typedef struct decimal {
    bool negative;
    int digits; /* digits read */
    int power;  /* value = mantissa * 10^power */
    bool overflow;
    uint64_t mantissa;
} decimal;

static const char *read_digits(const char *p, decimal *d, int power_per_digit)
{
    for (; isdigit((unsigned char)*p); p++) {
        if (__builtin_mul_overflow(d->mantissa, (uint64_t)10, &d->mantissa)) d->overflow = true;
        if (__builtin_add_overflow(d->mantissa, (uint64_t)(*p - '0'), &d->mantissa)) d->overflow = true;
        d->digits++;
        d->power += power_per_digit;
    }
    return p;
}

/* [+-]digits[.digits][e[+]digits][kMG] up to the end of the text; false when it is not that. */
static bool read_decimal(const char *text, decimal *d)
{
    const char *p = text;
    *d = (decimal){.negative = *p == '-'};
    if (*p == '-' || *p == '+') p++;
    p = read_digits(p, d, 0);
    if (*p == '.') p = read_digits(p + 1, d, -1);
    if (d->digits == 0) return false;
    if (*p == 'e' || *p == 'E') {
        p++;
        if (*p == '+') p++;
        if (!isdigit((unsigned char)*p)) return false;
        int exponent = 0;
        for (; isdigit((unsigned char)*p); p++) {
            if (exponent < 1000) exponent = 10 * exponent + (*p - '0');
        }
        d->power += exponent;
    }
    if (*p != 0 && suffix_power(*p) >= 0) d->power += suffix_power(*p++);
    return *p == 0;
}

mb_status mb_str_parse_int(const char *text, int64_t *out_value)
{
    decimal d;
    if (!read_decimal(text, &d))
        return mb_fail(MB_EUSAGE, "'%s' is not a whole number (like 64, 1e6, 64k, 2M)", text);
    for (; d.power < 0 && d.mantissa % 10 == 0; d.power++) d.mantissa /= 10;
    if (d.power < 0 && d.mantissa != 0 && !d.overflow)
        return mb_fail(MB_EUSAGE, "'%s' is not a whole number", text);
    for (; d.power > 0 && d.mantissa != 0 && !d.overflow; d.power--) {
        d.overflow = __builtin_mul_overflow(d.mantissa, (uint64_t)10, &d.mantissa);
    }
    uint64_t limit = d.negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;
    if (d.overflow || d.mantissa > limit) return mb_fail(MB_ERANGE, "'%s' does not fit into 64 bits", text);
    *out_value = d.negative ? (int64_t)(0 - d.mantissa) : (int64_t)d.mantissa;
    return MB_OK;
}

mb_status mb_str_parse_real(const char *text, double *out_value)
{
    char *end = NULL;
    const char *first = text + (*text == '-' || *text == '+');
    bool begins = isdigit((unsigned char)*first) || (*first == '.' && isdigit((unsigned char)first[1]));
    bool hexadecimal = first[0] == '0' && (first[1] == 'x' || first[1] == 'X');
    if (!begins || hexadecimal) return mb_fail(MB_EUSAGE, "'%s' is not a number", text);
    errno = 0;
    double value = strtod(text, &end);
    if (*end != 0) return mb_fail(MB_EUSAGE, "'%s' is not a number", text);
    if (!isfinite(value)) return mb_fail(MB_ERANGE, "'%s' is too large for a number", text);
    *out_value = value;
    return MB_OK;
}

mb_status mb_str_parse_bool(const char *text, bool *out_value)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *out_value = i % 2 == 1;
            return MB_OK;
        }
    }
    return mb_fail(MB_EUSAGE, "'%s' is neither true nor false (also yes/no, on/off, 1/0)", text);
}

/* ---- 5. UTF-8 ---- */

/* Length of the valid sequence at p (left bytes to the end), 0 when invalid. Table 3-7 of the Unicode
 * standard. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    unsigned char lead = p[0];
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return 0;
    size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (left < length) return 0;
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < length; i++) {
        if (p[i] < 0x80 || p[i] > 0xBF) return 0;
    }
    return length;
}

bool mb_str_is_utf8(const void *bytes, size_t n, size_t *opt_bad)
{
    const unsigned char *p = bytes;
    for (size_t at = 0; at < n;) {
        size_t length = utf8_length(p + at, n - at);
        if (length == 0) {
            if (opt_bad != NULL) *opt_bad = at;
            return false;
        }
        at += length;
    }
    return true;
}
