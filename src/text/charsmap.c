/* charsmap: reads and runs SentencePiece's precompiled table of replacements.
 *
 * 1. base64  2. reading  3. looking up  4. running
 */
#include "text/charsmap.h"

#include <string.h>

#include "base/memory.h"

#define WHOLE 6 /* graphemes of fewer bytes are looked up as a whole */

struct mb_charsmap {
    mb_str blob;
    const uint32_t *units; /* in blob */
    size_t unit_count;
    const char *texts; /* in blob, text_count bytes, then a 0 */
    size_t text_count;
    bool is_plain[128]; /* ASCII that nothing becomes of, beside ASCII */
};

/* 1. base64 */

static int digit_of(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static mb_status decode_base64(const char *text, size_t n, const char *where, mb_str *out)
{
    mb_status status = MB_OK;
    size_t padding = n > 0 && text[n - 1] == '=' ? 1 + (n > 1 && text[n - 2] == '=') : 0;
    uint32_t bits = 0;
    if (n % 4 != 0) MB_RAISE(MB_EFORMAT, "%s: normalizer.precompiled_charsmap is not whole base64", where);
    MB_TRY(mb_str_reserve(out, n / 4 * 3 + 1));
    for (size_t i = 0; i < n; i++) {
        int digit = i >= n - padding ? 0 : digit_of(text[i]);
        if (digit < 0)
            MB_RAISE(MB_EFORMAT, "%s: normalizer.precompiled_charsmap is not base64 at character %zu", where,
                     i);
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 != 3) continue;
        const char bytes[3] = {(char)(bits >> 16), (char)(bits >> 8), (char)bits};
        MB_TRY(mb_str_append(out, bytes, i + 1 == n ? 3 - padding : 3));
    }
done:
    return status;
}

/* 3. looking up */

static size_t unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* What the shortest prefix of text[n] in the table becomes; *out_text NULL when there is none. MB_EFORMAT:
 * the
 * table points outside itself. */
static mb_status look_up(const mb_charsmap *map, const char *text, size_t n, const char **out_text,
                         size_t *out_n)
{
    size_t at = unit_offset(map->units[0]);
    *out_text = NULL;
    for (size_t i = 0; i < n && text[i] != 0; i++) {
        at ^= (unsigned char)text[i];
        if (at >= map->unit_count) goto damaged;
        const uint32_t unit = map->units[at];
        if ((unit & (1u << 31 | 0xFF)) != (unsigned char)text[i]) return MB_OK;
        at ^= unit_offset(unit);
        if ((unit >> 8 & 1) == 0) continue;
        if (at >= map->unit_count) goto damaged;
        const size_t start = map->units[at] & ((1u << 31) - 1);
        if (start > map->text_count || ((unsigned char)map->texts[start] & 0xC0) == 0x80) goto damaged;
        *out_text = map->texts + start;
        *out_n = strlen(*out_text);
        return MB_OK;
    }
    return MB_OK;
damaged:
    return mb_fail(MB_EFORMAT, "the normalizer's precompiled_charsmap is damaged: it points outside itself");
}

/* 2. reading */

static mb_status parse(mb_charsmap *map, const char *where)
{
    mb_status status = MB_OK;
    uint32_t bytes = 0;
    if (map->blob.length >= 4) memcpy(&bytes, map->blob.data, 4);
    bytes -= bytes % 4;
    if (bytes < 4 || bytes > map->blob.length - 4)
        MB_RAISE(MB_EFORMAT, "%s: normalizer.precompiled_charsmap is shorter than it says", where);
    map->units = (const uint32_t *)(const void *)(map->blob.data + 4); /* blocks are aligned */
    map->unit_count = bytes / 4;
    map->texts = map->blob.data + 4 + bytes;
    map->text_count = map->blob.length - 4 - bytes;
    if (!mb_str_is_utf8(map->texts, map->text_count, NULL))
        MB_RAISE(MB_EFORMAT, "%s: normalizer.precompiled_charsmap has texts that are not UTF-8", where);
    for (int c = 1; c < 128; c++) {
        const char byte = (char)c, *text;
        size_t n = 0;
        status = look_up(map, &byte, 1, &text, &n);
        if (status != MB_OK) mb_status_prefix("%s: ", where);
        MB_TRY(status);
        map->is_plain[c] = text == NULL && c != '\r';
    }
done:
    return status;
}

mb_status mb_charsmap_read(const json_t *json, const char *where, mb_charsmap **out_charsmap)
{
    mb_status status = MB_OK;
    mb_charsmap *map = NULL;
    const char *text = NULL;
    MB_NEW(map);
    MB_TRY(mb_json_get_string(json, "precompiled_charsmap", where, &text));
    MB_TRY(decode_base64(text, strlen(text), where, &map->blob));
    MB_TRY(parse(map, where));
    *out_charsmap = map;
    map = NULL;
done:
    mb_charsmap_destroy(&map);
    return status;
}

void mb_charsmap_destroy(mb_charsmap **charsmap)
{
    if (*charsmap == NULL) return;
    mb_str_destroy(&(*charsmap)->blob);
    MB_FREE(*charsmap);
}

void mb_charsmap_hash(const mb_charsmap *charsmap, mb_hash *hash)
{
    mb_hash_add(hash, charsmap->blob.data, charsmap->blob.length);
}

/* 4. running */

static mb_status run_grapheme(const mb_charsmap *map, const mb_text_view *in, size_t a, size_t b,
                              mb_text_edit *out)
{
    mb_status status = MB_OK;
    const char *text = NULL;
    size_t n = 0;
    uint32_t c;
    if (b - a < WHOLE) {
        MB_TRY(look_up(map, in->bytes + a, b - a, &text, &n));
        if (text != NULL) return mb_normalize_edit_put(out, text, n, mb_normalize_range(in, a, b));
    }
    for (size_t i = a, length; i < b; i += length) {
        length = mb_normalize_decode(in->bytes + i, &c);
        MB_TRY(look_up(map, in->bytes + i, length, &text, &n));
        if (text != NULL)
            MB_TRY(mb_normalize_edit_put(out, text, n, mb_normalize_range(in, i, i + length)));
        else
            MB_TRY(mb_normalize_edit_copy(out, in, i, i + length));
    }
done:
    return status;
}

mb_status mb_charsmap_run(const mb_charsmap *map, const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    for (size_t i = 0, end; i < in->n; i = end) {
        for (end = i; end < in->n; end++) {
            const unsigned char byte = (unsigned char)in->bytes[end];
            if (byte >= 0x80 || !map->is_plain[byte]) break;
        }
        if (end < in->n && end > i && (unsigned char)in->bytes[end] >= 0x80)
            end--; /* a mark may join the last one */
        MB_TRY(mb_normalize_edit_copy(out, in, i, end));
        i = end;
        if (i == in->n) break;
        end = mb_normalize_grapheme_end(in->bytes, in->n, i);
        MB_TRY(run_grapheme(map, in, i, end, out));
    }
done:
    return status;
}
