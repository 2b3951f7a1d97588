/* normalize_unicode: characters, their classes, and the Unicode normalisation forms piece by piece.
 *
 * 1. UTF-8  2. classes  3. normalisation forms  4. lower case
 */
#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"
#include "text/normalize.h"
#include "text/normalize_tables.h"

/* 1. UTF-8 */

size_t mb_normalize_decode(const char *p, uint32_t *out_character)
{
    const unsigned char *u = (const unsigned char *)p;
    if (u[0] < 0x80) {
        *out_character = u[0];
        return 1;
    }
    if (u[0] < 0xE0) {
        *out_character = (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
        return 2;
    }
    if (u[0] < 0xF0) {
        *out_character = (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
        return 3;
    }
    *out_character = (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 |
                     (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
    return 4;
}

size_t mb_normalize_encode(uint32_t character, char out_bytes[4])
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)character, (utf8proc_uint8_t *)out_bytes);
}

/* 2. classes */

bool mb_normalize_is_white(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

bool mb_normalize_is_word(uint32_t c)
{
    if (c < 0x80) return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '_';
    if (c >= 0x4E00 && c <= 0x9FFF) return true;
    return mb_normalize_table_has(&mb_normalize_words, c);
}

bool mb_normalize_is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
    if (c >= 0x3400 && c <= 0x9FFF) return false;
    return mb_normalize_table_has(&mb_normalize_punctuation, c);
}

/* Numbers of Unicode 16 and 17, which HF (through Rust) knows and utf8proc may not. */
static const uint32_t young_numbers[][2] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11DE0, 0x11DE9}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x16FF4, 0x16FF6}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA},
};

bool mb_normalize_is_numeric(uint32_t c)
{
    if (c < 0x80) return c >= '0' && c <= '9';
    for (size_t i = 0; i < sizeof young_numbers / sizeof young_numbers[0]; i++)
        if (c >= young_numbers[i][0] && c <= young_numbers[i][1]) return true;
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

/* 3. normalisation forms */

/* Characters younger than Unicode 9 that utf8proc reorders, decomposes or joins. HF's normalisers have the
 * tables of Unicode 9, in which they are unassigned and stay as they are. */
static const uint32_t young[][2] = {
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0xECE, 0xECE},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},
    {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},   {0xA82C, 0xA82C},   {0xAB69, 0xAB69},
    {0x105C0, 0x105F3}, {0x10781, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10D24, 0x10D27},
    {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10EFC, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11380, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16100, 0x16139}, {0x16D40, 0x16D79}, {0x16FF0, 0x16FF1},
    {0x1CCD6, 0x1CCF9}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
};

static bool is_young(uint32_t c)
{
    size_t low = 0, high = sizeof young / sizeof young[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > young[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof young / sizeof young[0] && c >= young[low][0];
}

typedef enum place { PLACE_STABLE, PLACE_START, PLACE_INSIDE, PLACE_ALONE } place;

/* A starter that joins nothing before it? */
static bool is_free(utf8proc_int32_t c, bool composes)
{
    const utf8proc_property_t *property = utf8proc_get_property(c);
    bool is_jamo = c >= 0x1161 && c <= 0x11FF; /* the leading ones join nothing before them */
    bool may_join = property->comb_index != UINT16_MAX && (property->comb_index & 0x8000) != 0;
    return property->combining_class == 0 && !(composes && (may_join || is_jamo));
}

/* PLACE_STABLE: a piece starts at c, and alone c stays as it is. PLACE_START: a piece starts at c.
 * PLACE_INSIDE: c may depend on what is before it. PLACE_ALONE: c is young: a piece is c and no more. */
static place place_of(mb_normalize_form form, uint32_t c)
{
    bool composes = form == MB_NORMALIZE_NFC || form == MB_NORMALIZE_NFKC;
    bool is_compat = form == MB_NORMALIZE_NFKC || form == MB_NORMALIZE_NFKD;
    utf8proc_int32_t parts[32];
    int last_class = 0;
    if (c < 0x80 || (c < 0x300 && form == MB_NORMALIZE_NFC)) return PLACE_STABLE;
    if (c >= 0x3400 && c <= 0x9FEF) return PLACE_STABLE; /* ideographs */
    if (is_young(c)) return PLACE_ALONE;
    if (c >= 0xAC00 && c <= 0xD7A3) return composes ? PLACE_STABLE : PLACE_START;
    const utf8proc_property_t *property = utf8proc_get_property((utf8proc_int32_t)c);
    if (property->decomp_seqindex == UINT16_MAX || (property->decomp_type != 0 && !is_compat))
        return is_free((utf8proc_int32_t)c, composes) ? PLACE_STABLE : PLACE_INSIDE;
    utf8proc_option_t options = is_compat ? UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT : UTF8PROC_DECOMPOSE;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, parts, 32, options, &last_class);
    return n > 0 && is_free(parts[0], composes) ? PLACE_START : PLACE_INSIDE;
}

bool mb_normalize_is_plain(mb_normalize_form form, const char *bytes, size_t n)
{
    uint32_t c;
    for (size_t i = 0; i < n;) {
        if ((unsigned char)bytes[i] < 0x80) {
            i++;
            continue;
        }
        i += mb_normalize_decode(bytes + i, &c);
        place where = place_of(form, c);
        if (where == PLACE_START || where == PLACE_INSIDE) return false;
    }
    return true;
}

static utf8proc_option_t options_of(mb_normalize_form form)
{
    int options = UTF8PROC_STABLE;
    options |= form == MB_NORMALIZE_NFC || form == MB_NORMALIZE_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (form == MB_NORMALIZE_NFKC || form == MB_NORMALIZE_NFKD) options |= UTF8PROC_COMPAT;
    return (utf8proc_option_t)options;
}

/* Append what bytes [a, b) became; characters that stayed at either end keep their own ranges. */
static mb_status put_piece(const char *made, size_t n, const mb_text_view *in, size_t a, size_t b,
                           mb_text_edit *out)
{
    mb_status status = MB_OK;
    const char *from = in->bytes + a;
    size_t most = n < b - a ? n : b - a, head = 0, tail = 0;
    while (head < most && made[head] == from[head]) head++;
    while (head > 0 && head < b - a && ((unsigned char)from[head] & 0xC0) == 0x80) head--;
    while (head > 0 && head < n && ((unsigned char)made[head] & 0xC0) == 0x80) head--;
    while (tail < most - head && made[n - 1 - tail] == from[b - a - 1 - tail]) tail++;
    while (tail > 0 && ((unsigned char)made[n - tail] & 0xC0) == 0x80) tail--;
    MB_TRY(mb_normalize_edit_copy(out, in, a, a + head));
    if (n - head - tail > 0) {
        mb_range range =
            a + head < b - tail ? mb_normalize_range(in, a + head, b - tail) : mb_normalize_range(in, a, b);
        MB_TRY(mb_normalize_edit_put(out, made + head, n - head - tail, range));
    }
    MB_TRY(mb_normalize_edit_copy(out, in, b - tail, b));
done:
    return status;
}

/* Normalise bytes [a, b) of `in` as one piece. */
static mb_status run_piece(mb_normalize_form form, const mb_text_view *in, size_t a, size_t b,
                           mb_text_edit *out)
{
    mb_status status = MB_OK;
    utf8proc_int32_t few[64], *work = few;
    utf8proc_option_t options = options_of(form);
    const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)in->bytes + a;
    utf8proc_ssize_t count = utf8proc_decompose(bytes, (utf8proc_ssize_t)(b - a), few, 60, options);
    if (count > 60) {
        work = NULL;
        MB_NEW_ARRAY(work, count + 1);
        count = utf8proc_decompose(bytes, (utf8proc_ssize_t)(b - a), work, count, options);
    }
    if (count >= 0) count = utf8proc_reencode(work, count, options);
    if (count < 0) MB_RAISE(MB_EDATA, "Unicode normalisation failed: %s", utf8proc_errmsg(count));
    MB_TRY(put_piece((const char *)work, (size_t)count, in, a, b, out));
done:
    if (work != few) mb_free(work);
    return status;
}

mb_status mb_normalize_form_run(mb_normalize_form form, const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    size_t kept = 0;     /* everything before it is written */
    size_t start = 0;    /* the last piece begins here */
    bool stable = false; /* the last piece is one character that stays as it is */
    uint32_t c;
    for (size_t i = 0, length; i < in->n; i += length) {
        length = mb_normalize_decode(in->bytes + i, &c);
        place where = place_of(form, c);
        if (where == PLACE_INSIDE) {
            stable = false;
            continue;
        }
        if (!stable && i > start) {
            MB_TRY(mb_normalize_edit_copy(out, in, kept, start));
            MB_TRY(run_piece(form, in, start, i, out));
            kept = i;
        }
        stable = where != PLACE_START;
        start = where == PLACE_ALONE ? i + length : i;
    }
    MB_TRY(mb_normalize_edit_copy(out, in, kept, stable ? in->n : start));
    if (!stable && start < in->n) MB_TRY(run_piece(form, in, start, in->n, out));
done:
    return status;
}

/* 4. lower case */

/* Capitals of Unicode 16 and 17, likewise: ranges first, last, and the lower case of the first. */
static const uint32_t young_capitals[][3] = {
    {0x1C89, 0x1C89, 0x1C8A},    {0xA7CB, 0xA7CB, 0x264},  {0xA7CC, 0xA7CC, 0xA7CD},
    {0xA7CE, 0xA7CE, 0xA7CF},    {0xA7D2, 0xA7D2, 0xA7D3}, {0xA7D4, 0xA7D4, 0xA7D5},
    {0xA7DA, 0xA7DA, 0xA7DB},    {0xA7DC, 0xA7DC, 0x19B},  {0x10D50, 0x10D65, 0x10D70},
    {0x16EA0, 0x16EB8, 0x16EBB},
};

uint32_t mb_normalize_lower(uint32_t c)
{
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
    for (size_t i = 0; c >= 0x1C89 && i < sizeof young_capitals / sizeof young_capitals[0]; i++)
        if (c >= young_capitals[i][0] && c <= young_capitals[i][1])
            return young_capitals[i][2] + (c - young_capitals[i][0]);
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

mb_status mb_normalize_lowercase_run(const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    unsigned char table[128];
    uint32_t c;
    for (uint32_t a = 0; a < 128; a++) table[a] = (unsigned char)mb_normalize_lower(a);
    for (size_t i = 0, length; i < in->n; i += length) {
        char bytes[4];
        length = 0;
        while (i + length < in->n && (signed char)in->bytes[i + length] > 0) length++;
        if (length > 0) {
            MB_TRY(mb_normalize_edit_map(out, in, i, i + length, table));
            continue;
        }
        length = mb_normalize_decode(in->bytes + i, &c);
        mb_range range = mb_normalize_range(in, i, i + length);
        if (c == 0x130) { /* the one character whose lower case is two */
            MB_TRY(mb_normalize_edit_put(out, "i\xCC\x87", 3, range));
            continue;
        }
        size_t n = mb_normalize_encode(mb_normalize_lower(c), bytes);
        MB_TRY(mb_normalize_edit_put(out, bytes, n, range));
    }
done:
    return status;
}
