/* bpe: reads the BPE model of a tokenizer.json and checks all of it.
 *
 * 1. byte characters  2. byte tokens  3. merges  4. settings  5. create and access
 */
#include "text/bpe.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "text/bpe_model.h"
#include "text/normalize.h"

#define BLANK "\xE2\x96\x81" /* U+2581 */

/* 1. byte characters */

uint32_t mb_bpe_byte_character(unsigned char byte)
{
    if (byte <= 32) return 256u + byte;
    if (byte >= 127 && byte <= 160) return 256u + 33 + (byte - 127u);
    return byte == 173 ? 256u + 33 + 34 : byte;
}

int mb_bpe_character_byte(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
    if (c >= 256 && c <= 288) return (int)c - 256;
    if (c >= 289 && c <= 322) return (int)c - 289 + 127;
    return c == 323 ? 173 : -1;
}

/* 2. byte tokens */

static void find_byte_ids(mb_bpe *bpe)
{
    for (int b = 0; b < 256; b++) {
        char text[8];
        size_t n;
        if (bpe->is_byte_level)
            n = mb_normalize_encode(mb_bpe_byte_character((unsigned char)b), text);
        else
            n = (size_t)snprintf(text, sizeof text, "<0x%02X>", b);
        bpe->byte_id[b] = mb_bpe_vocab_find(&bpe->vocab, text, n);
    }
}

/* 3. merges */

/* The two texts of an entry: "a b" or ["a", "b"]. */
static mb_status split_merge(const json_t *entry, const char *where, size_t index, const char **a, size_t *na,
                             const char **b, size_t *nb)
{
    *a = json_string_value(json_array_get(entry, 0));
    *b = json_string_value(json_array_get(entry, 1));
    if (json_array_size(entry) == 2 && *a != NULL && *b != NULL) {
        *na = strlen(*a);
        *nb = strlen(*b);
        return MB_OK;
    }
    const char *text = json_string_value(entry);
    const char *space = text != NULL ? strchr(text, ' ') : NULL;
    if (space == NULL || strchr(space + 1, ' ') != NULL)
        return mb_fail(MB_EFORMAT, "%s: model.merges entry %zu must be \"a b\" or [\"a\", \"b\"]%s%s", where,
                       index, text != NULL ? ", not " : "", text != NULL ? text : "");
    *a = text;
    *na = (size_t)(space - text);
    *b = space + 1;
    *nb = strlen(*b);
    return MB_OK;
}

static mb_status find_merge_token(const mb_bpe *bpe, const char *text, size_t n, const char *where,
                                  size_t index, uint32_t *out_id)
{
    *out_id = mb_bpe_vocab_find(&bpe->vocab, text, n);
    if (*out_id != MB_BPE_NONE) return MB_OK;
    return mb_fail(MB_EFORMAT,
                   "%s: model.merges entry %zu needs the token \"%.*s\", which is not in model.vocab", where,
                   index, (int)(n < 200 ? n : 200), text);
}

/* Does U+2581 follow another character inside the token? */
static bool has_inner_blank(const char *text, size_t n)
{
    for (size_t i = 3; i + 3 <= n; i++)
        if (memcmp(text + i, BLANK, 3) == 0 && memcmp(text + i - 3, BLANK, 3) != 0) return true;
    return n > 3 && memcmp(text, BLANK, 3) != 0 && memmem(text, n, BLANK, 3) != NULL;
}

static bool has_all_fallbacks(const mb_bpe *bpe)
{
    for (int b = 0; b < 256; b++)
        if (bpe->byte_id[b] == MB_BPE_NONE) return false;
    return bpe->byte_fallback;
}

static bool is_boundary(const char *text, size_t n, size_t at)
{
    return at == n || ((unsigned char)text[at] & 0xC0) != 0x80;
}

static mb_status read_merges(mb_bpe *bpe, json_t *list, const char *where, mb_hash *hash)
{
    mb_status status = MB_OK;
    mb_str joined = MB_STR_EMPTY;
    size_t count = json_array_size(list), na = 0, nb = 0;
    const size_t skip = bpe->prefix != NULL ? strlen(bpe->prefix) : 0; /* of the right one */
    const char *a = NULL, *b = NULL;
    uint32_t left = 0, right = 0, id = 0;
    if (count > MB_BPE_VOCAB_MAX_ID)
        MB_RAISE(MB_EFORMAT, "%s: model.merges has %zu entries; that is too many", where, count);
    MB_TRY(mb_bpe_merges_create(&bpe->merges, (int64_t)count));
    bpe->cuts_at_blank = !bpe->is_byte_level && !bpe->ignore_merges && bpe->prefix == NULL &&
                         bpe->suffix == NULL && mb_bpe_vocab_find(&bpe->vocab, BLANK, 3) != MB_BPE_NONE;
    if (!bpe->has_unk && !has_all_fallbacks(bpe))
        bpe->cuts_at_blank = false; /* a character may vanish between two U+2581 */
    mb_hash_add_int(hash, (int64_t)count);
    for (size_t i = 0; i < count; i++) {
        MB_TRY(split_merge(json_array_get(list, i), where, i, &a, &na, &b, &nb));
        MB_TRY(find_merge_token(bpe, a, na, where, i, &left));
        MB_TRY(find_merge_token(bpe, b, nb, where, i, &right));
        if (nb < skip || !is_boundary(b, nb, skip))
            MB_RAISE(MB_EFORMAT,
                     "%s: model.merges entry %zu: \"%.*s\" is shorter than the "
                     "continuing_subword_prefix",
                     where, i, (int)(nb < 200 ? nb : 200), b);
        mb_str_reset(&joined);
        MB_TRY(mb_str_append(&joined, a, na));
        MB_TRY(mb_str_append(&joined, b + skip, nb - skip));
        MB_TRY(find_merge_token(bpe, mb_str_text(&joined), joined.length, where, i, &id));
        mb_bpe_merges_put(&bpe->merges, left, right, (uint32_t)i, id);
        if (has_inner_blank(mb_str_text(&joined), joined.length)) bpe->cuts_at_blank = false;
        mb_hash_add_int(hash, left);
        mb_hash_add_int(hash, right);
    }
done:
    mb_str_destroy(&joined);
    return status;
}

/* 4. settings */

/* continuing_subword_prefix, end_of_word_suffix: null and "" are the same. */
static mb_status read_affix(const json_t *model, const char *key, const char *where, char **out_text)
{
    mb_status status = MB_OK;
    const char *text = NULL;
    MB_TRY(mb_json_opt_string(model, key, where, &text));
    if (text == NULL || text[0] == '\0') return MB_OK;
    if ((*out_text = mb_strdup(text)) == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
done:
    return status;
}

static mb_status read_settings(mb_bpe *bpe, const json_t *model, const char *where, mb_hash *hash)
{
    mb_status status = MB_OK;
    const char *unk = NULL;
    double dropout = 0;
    MB_TRY(read_affix(model, "continuing_subword_prefix", where, &bpe->prefix));
    MB_TRY(read_affix(model, "end_of_word_suffix", where, &bpe->suffix));
    MB_TRY(mb_json_opt_real(model, "dropout", where, &dropout));
    if (dropout != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: model.dropout is %g; only null is done here", where, dropout);
    MB_TRY(mb_json_opt_bool(model, "fuse_unk", where, &bpe->fuse_unk));
    MB_TRY(mb_json_opt_bool(model, "byte_fallback", where, &bpe->byte_fallback));
    MB_TRY(mb_json_opt_bool(model, "ignore_merges", where, &bpe->ignore_merges));
    MB_TRY(mb_json_opt_string(model, "unk_token", where, &unk));
    bpe->has_unk = unk != NULL;
    bpe->unk_id = unk != NULL ? mb_bpe_vocab_find(&bpe->vocab, unk, strlen(unk)) : MB_BPE_NONE;
    mb_hash_add_int(hash,
                    bpe->fuse_unk + 2 * bpe->byte_fallback + 4 * bpe->ignore_merges + 8 * bpe->is_byte_level);
    mb_hash_add_text(hash, unk != NULL ? unk : "");
    if (bpe->prefix != NULL || bpe->suffix != NULL) {
        mb_hash_add_text(hash, bpe->prefix != NULL ? bpe->prefix : "");
        mb_hash_add_text(hash, bpe->suffix != NULL ? bpe->suffix : "");
    }
done:
    return status;
}

/* 5. create and access */

mb_status mb_bpe_read(const json_t *model, const char *where, bool is_byte_level, mb_bpe **out_bpe)
{
    mb_status status = MB_OK;
    mb_bpe *bpe = NULL;
    mb_hash *hash = NULL;
    json_t *vocab = NULL, *merges = NULL;
    MB_NEW(bpe);
    bpe->is_byte_level = is_byte_level;
    MB_TRY(mb_hash_create(&hash));
    MB_TRY(mb_json_get_object(model, "vocab", where, &vocab));
    MB_TRY(mb_json_get_array(model, "merges", where, &merges));
    MB_TRY(mb_bpe_vocab_read(&bpe->vocab, vocab, where));
    MB_TRY(read_settings(bpe, model, where, hash));
    find_byte_ids(bpe);
    for (int b = 0; b < 256 && is_byte_level && bpe->byte_fallback; b++)
        if (bpe->byte_id[b] == MB_BPE_NONE)
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: byte_fallback with a ByteLevel pre-tokenizer, and no token for byte %d, is not "
                     "done here",
                     where, b);
    MB_TRY(read_merges(bpe, merges, where, hash));
    mb_hash_get(hash, bpe->settings_hash);
    *out_bpe = bpe;
    bpe = NULL;
done:
    mb_hash_destroy(&hash);
    mb_bpe_destroy(&bpe);
    return status;
}

void mb_bpe_destroy(mb_bpe **bpe)
{
    if (*bpe == NULL) return;
    mb_bpe_vocab_destroy(&(*bpe)->vocab);
    mb_free((*bpe)->prefix);
    mb_free((*bpe)->suffix);
    mb_bpe_merges_destroy(&(*bpe)->merges);
    MB_FREE(*bpe);
}

void mb_bpe_hash(const mb_bpe *bpe, mb_hash *hash)
{
    mb_hash_add_text(hash, bpe->settings_hash);
}

const mb_bpe_vocab *mb_bpe_words(const mb_bpe *bpe)
{
    return &bpe->vocab;
}
