/* normalize: the normaliser of a tokenizer.json, and texts whose bytes remember where they came from.
 *
 * Layer: text.  Uses: base, tokenizer_pattern, utf8proc (only normalize_unicode.c includes it).
 * Source: behaviour of huggingface/tokenizers (all its normalizers: BertNormalizer, NFC, NFD, NFKC, NFKD,
 * Lowercase, Strip, StripAccents, Nmt, Replace, Prepend, Precompiled, ByteLevel, Sequence).
 */
#ifndef MB_NORMALIZE_H
#define MB_NORMALIZE_H

#include "text/tokenizer_pattern.h"

/* A byte range [first, end). */
typedef struct mb_range {
    int64_t first, end;
} mb_range;

/* A borrowed text. Byte i came from the original range ranges[i] (always whole characters); ranges == NULL:
 * the text is the original itself from byte `base` on, or an edit that was not tracked. base: where the first
 * byte came from (of an edit that was not tracked: nearly). */
typedef struct mb_text_view {
    const char *bytes;
    size_t n;
    const mb_range *ranges;
    int64_t base;
} mb_text_view;

/* Bytes [first, end) of a view, as a view. */
mb_text_view mb_normalize_slice(const mb_text_view *view, size_t first, size_t end);

/* Original range of bytes [a, b) of a view, b > a, widened to whole characters. */
mb_range mb_normalize_range(const mb_text_view *view, size_t a, size_t b);

/* A text being written, with its ranges when `tracked`. */
typedef struct mb_text_edit {
    mb_str text;
    mb_range *ranges;
    size_t range_capacity;
    bool tracked;
} mb_text_edit;
void mb_normalize_edit_destroy(mb_text_edit *edit);
void mb_normalize_edit_reset(mb_text_edit *edit, bool tracked);
/* Append bytes that all came from `range`; or bytes [a, b) of a view as they are. */
mb_status mb_normalize_edit_put(mb_text_edit *edit, const char *bytes, size_t n, mb_range range);
mb_status mb_normalize_edit_copy(mb_text_edit *edit, const mb_text_view *view, size_t a, size_t b);
/* Append the bytes [a, b) of a view, all ASCII, each as `table` has it; those it has as 0 are left out. */
mb_status mb_normalize_edit_map(mb_text_edit *edit, const mb_text_view *view, size_t a, size_t b,
                                const unsigned char table[128]);
mb_text_view mb_normalize_edit_view(const mb_text_edit *edit);

/* Unicode: decode one character of valid UTF-8 (gives its length), and classes of characters. */
size_t mb_normalize_decode(const char *p, uint32_t *out_character);
size_t mb_normalize_encode(uint32_t character, char out_bytes[4]);
bool mb_normalize_is_white(uint32_t character);       /* White_Space */
bool mb_normalize_is_word(uint32_t character);        /* \w */
bool mb_normalize_is_punctuation(uint32_t character); /* of ASCII all signs; else P */
bool mb_normalize_is_numeric(uint32_t character);     /* Nd, Nl, No */

typedef enum mb_normalize_form {
    MB_NORMALIZE_NFC,
    MB_NORMALIZE_NFD,
    MB_NORMALIZE_NFKC,
    MB_NORMALIZE_NFKD
} mb_normalize_form;
/* True when the text is in the form without looking further (not "false when it is not"). */
bool mb_normalize_is_plain(mb_normalize_form form, const char *bytes, size_t n);
mb_status mb_normalize_form_run(mb_normalize_form form, const mb_text_view *in, mb_text_edit *out);
mb_status mb_normalize_lowercase_run(const mb_text_view *in, mb_text_edit *out);
uint32_t mb_normalize_lower(uint32_t character); /* of one whose lower case is one; U+0130 is not */
/* The end of the grapheme (extended cluster of Unicode's text segments) that begins at `at`. */
size_t mb_normalize_grapheme_end(const char *bytes, size_t n, size_t at);

typedef struct mb_normalizer mb_normalizer;
/* json may be NULL or null: a normaliser that does nothing. */
mb_status mb_normalizer_read(const json_t *json, const char *where, mb_normalizer **out_normalizer);
void mb_normalizer_destroy(mb_normalizer **normalizer);
bool mb_normalizer_is_empty(const mb_normalizer *normalizer);
void mb_normalizer_hash(const mb_normalizer *normalizer, mb_hash *hash);
/* Run over `text`; out_view points into `edits` (two, of the caller) or at text itself when nothing changed.
 */
mb_status mb_normalizer_run(const mb_normalizer *normalizer, mb_tokenizer_matcher *matcher,
                            const mb_text_view *text, bool tracked, mb_text_edit edits[2],
                            mb_text_view *out_view);

#endif
