/* normalize_bert: BertNormalizer, StripAccents, Nmt and ByteLevel.
 *
 * 1. classes  2. BertNormalizer: settings  3. BertNormalizer: running  4. the others
 */
#include "text/normalize_bert.h"

#include <string.h>

#include "text/bpe.h"
#include "text/normalize_tables.h"

/* 1. classes */

bool mb_normalize_is_ascii(const char *bytes, size_t n)
{
    unsigned char all = 0;
    for (size_t i = 0; i < n; i++) all |= (unsigned char)bytes[i];
    return all < 0x80;
}

/* What clean_text takes away: controls, formats, private use, U+FFFD (as HF's crate has them: Unicode 8). */
static bool is_dropped(uint32_t c)
{
    static const uint32_t ranges[][2] = {
        {0x0, 0x8},         {0xB, 0xC},         {0xE, 0x1F},        {0x7F, 0x9F},       {0xAD, 0xAD},
        {0x600, 0x605},     {0x61C, 0x61C},     {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x180E, 0x180E},
        {0x200B, 0x200F},   {0x202A, 0x202E},   {0x2060, 0x2064},   {0x2066, 0x206F},   {0xE000, 0xF8FF},
        {0xFEFF, 0xFEFF},   {0xFFF9, 0xFFFB},   {0xFFFD, 0xFFFD},   {0x110BD, 0x110BD}, {0x1BCA0, 0x1BCA3},
        {0x1D173, 0x1D17A}, {0xE0001, 0xE0001}, {0xE0020, 0xE007F}, {0xF0000, 0xFFFFD}, {0x100000, 0x10FFFD},
    };
    static const mb_normalize_table table = {ranges, sizeof ranges / sizeof ranges[0]};
    return mb_normalize_table_has(&table, c);
}

static bool is_chinese(uint32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/* 2. BertNormalizer: settings */

mb_status mb_normalize_bert_read(const json_t *json, const char *where, mb_normalize_bert *bert)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_get_bool(json, "clean_text", where, &bert->clean_text));
    MB_TRY(mb_json_get_bool(json, "handle_chinese_chars", where, &bert->handle_chinese_chars));
    MB_TRY(mb_json_get_bool(json, "lowercase", where, &bert->lowercase));
    bert->strip_accents = bert->lowercase;
    MB_TRY(mb_json_opt_bool(json, "strip_accents", where, &bert->strip_accents));
done:
    return status;
}

void mb_normalize_bert_hash(const mb_normalize_bert *bert, mb_hash *hash)
{
    mb_hash_add_int(hash, bert->clean_text + 2 * bert->handle_chinese_chars + 4 * bert->strip_accents +
                              8 * bert->lowercase);
}

/* 3. BertNormalizer: running */

/* What becomes of ASCII; 0: it goes. */
static void make_table(const mb_normalize_bert *bert, unsigned char table[128])
{
    for (uint32_t c = 0; c < 128; c++) {
        table[c] = (unsigned char)(bert->lowercase ? mb_normalize_lower(c) : c);
        if (!bert->clean_text) continue;
        if (is_dropped(c)) table[c] = 0;
        if (c == '\t' || c == '\n' || c == '\r') table[c] = ' ';
    }
}

/* clean_text and handle_chinese_chars. */
static mb_status clean(const mb_normalize_bert *bert, const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    uint32_t c;
    for (size_t i = 0, length; i < in->n; i += length) {
        length = mb_normalize_decode(in->bytes + i, &c);
        const mb_range range = out->tracked ? mb_normalize_range(in, i, i + length) : (mb_range){0, 0};
        if (is_chinese(c) && bert->handle_chinese_chars) {
            char spaced[6] = " ";
            memcpy(spaced + 1, in->bytes + i, length);
            spaced[length + 1] = ' ';
            MB_TRY(mb_normalize_edit_put(out, spaced, length + 2, range));
        } else if (!bert->clean_text) {
            MB_TRY(mb_normalize_edit_put(out, in->bytes + i, length, range));
        } else if (c == '\t' || c == '\n' || c == '\r' || (mb_normalize_is_white(c) && !is_dropped(c))) {
            MB_TRY(mb_normalize_edit_put(out, " ", 1, range));
        } else if (!is_dropped(c)) {
            MB_TRY(mb_normalize_edit_put(out, in->bytes + i, length, range));
        }
    }
done:
    return status;
}

/* Marks of a table go, unless opt_marks is NULL; the rest in lower case, or as it is. */
static mb_status drop_marks(const mb_normalize_table *opt_marks, bool lowercase, const mb_text_view *in,
                            mb_text_edit *out)
{
    mb_status status = MB_OK;
    uint32_t c;
    for (size_t i = 0, length; i < in->n; i += length) {
        char bytes[4];
        length = mb_normalize_decode(in->bytes + i, &c);
        if (opt_marks != NULL && c >= 0x300 && !is_chinese(c) && mb_normalize_table_has(opt_marks, c))
            continue;
        const mb_range range = out->tracked ? mb_normalize_range(in, i, i + length) : (mb_range){0, 0};
        if (!lowercase || (c >= 0x3400 && c <= 0x9FFF)) {
            MB_TRY(mb_normalize_edit_put(out, in->bytes + i, length, range));
        } else if (c == 0x130) {
            MB_TRY(mb_normalize_edit_put(out, "i\xCC\x87", 3, range));
        } else {
            size_t n = mb_normalize_encode(mb_normalize_lower(c), bytes);
            MB_TRY(mb_normalize_edit_put(out, bytes, n, range));
        }
    }
done:
    return status;
}

/* Text that holds other characters than ASCII; `work` are two edits. */
static mb_status run_other(const mb_normalize_bert *bert, const mb_text_view *in, mb_text_edit work[2],
                           mb_text_edit *out)
{
    mb_status status = MB_OK;
    mb_text_view view = *in;
    mb_normalize_edit_reset(&work[0], out->tracked);
    MB_TRY(clean(bert, &view, &work[0]));
    view = mb_normalize_edit_view(&work[0]);
    if (bert->strip_accents && !mb_normalize_is_plain(MB_NORMALIZE_NFD, view.bytes, view.n)) {
        mb_normalize_edit_reset(&work[1], out->tracked);
        MB_TRY(mb_normalize_form_run(MB_NORMALIZE_NFD, &view, &work[1]));
        view = mb_normalize_edit_view(&work[1]);
    }
    MB_TRY(drop_marks(bert->strip_accents ? &mb_normalize_marks_bert : NULL, bert->lowercase, &view, out));
done:
    return status;
}

/* ASCII that stays is done byte by byte; what lies between is done as a whole (an ASCII character that stays
 * neither changes nor joins what is beside it). */
mb_status mb_normalize_bert_run(const mb_normalize_bert *bert, const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    unsigned char table[128];
    mb_text_edit work[2] = {{.tracked = false}, {.tracked = false}};
    make_table(bert, table);
    for (size_t i = 0, end; i < in->n; i = end) {
        for (end = i; end < in->n && (unsigned char)in->bytes[end] < 0x80 && in->bytes[end] != 0;) end++;
        if (end > i) {
            MB_TRY(mb_normalize_edit_map(out, in, i, end, table));
            if (end == in->n) break;
        }
        for (i = end; end < in->n; end++) {
            const unsigned char byte = (unsigned char)in->bytes[end];
            if (byte < 0x80 && table[byte] != 0 && table[byte] != ' ') break;
        }
        if (i == end) continue;
        mb_text_view part = mb_normalize_slice(in, i, end);
        MB_TRY(run_other(bert, &part, work, out));
    }
done:
    mb_normalize_edit_destroy(&work[0]);
    mb_normalize_edit_destroy(&work[1]);
    return status;
}

/* 4. the others */

mb_status mb_normalize_accents_run(const mb_text_view *in, mb_text_edit *out)
{
    return drop_marks(&mb_normalize_marks, false, in, out);
}

mb_status mb_normalize_nmt_run(const mb_text_view *in, mb_text_edit *out)
{
    static const uint32_t dropped[][2] = {{0x1, 0x8},   {0xB, 0xB},   {0xE, 0x1F},
                                          {0x7F, 0x7F}, {0x8F, 0x8F}, {0x9F, 0x9F}};
    static const uint32_t spaces[][2] = {{0x9, 0xA},       {0xC, 0xD},       {0x1680, 0x1680},
                                         {0x200B, 0x200F}, {0x2028, 0x2029}, {0x2581, 0x2581},
                                         {0xFEFF, 0xFEFF}, {0xFFFD, 0xFFFD}};
    static const mb_normalize_table drop = {dropped, 6}, space = {spaces, 8};
    mb_status status = MB_OK;
    uint32_t c;
    for (size_t i = 0, length; i < in->n; i += length) {
        length = mb_normalize_decode(in->bytes + i, &c);
        if (mb_normalize_table_has(&drop, c)) continue;
        if (mb_normalize_table_has(&space, c))
            MB_TRY(mb_normalize_edit_put(out, " ", 1, mb_normalize_range(in, i, i + length)));
        else
            MB_TRY(mb_normalize_edit_copy(out, in, i, i + length));
    }
done:
    return status;
}

mb_status mb_normalize_bytes_run(const mb_text_view *in, mb_text_edit *out)
{
    mb_status status = MB_OK;
    for (size_t i = 0; i < in->n; i++) {
        char bytes[4];
        size_t n = mb_normalize_encode(mb_bpe_byte_character((unsigned char)in->bytes[i]), bytes);
        MB_TRY(mb_normalize_edit_put(out, bytes, n, mb_normalize_range(in, i, i + 1)));
    }
done:
    return status;
}
