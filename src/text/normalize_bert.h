/* normalize_bert: the normalisers that look at one character at a time: BertNormalizer, StripAccents, Nmt,
 * and
 * ByteLevel.
 *
 * Layer: text.  Uses: base, normalize, normalize_tables.
 * Source: behaviour of huggingface/tokenizers (normalizers/bert, strip, unicode, byte_level).
 */
#ifndef MB_NORMALIZE_BERT_H
#define MB_NORMALIZE_BERT_H

#include "text/normalize.h"

typedef struct mb_normalize_bert {
    bool clean_text;           /* controls go, white space becomes a space */
    bool handle_chinese_chars; /* a space on both sides of each ideograph */
    bool strip_accents;        /* NFD, then nonspacing marks go; null in the file: as lowercase */
    bool lowercase;
} mb_normalize_bert;
mb_status mb_normalize_bert_read(const json_t *json, const char *where, mb_normalize_bert *bert);
void mb_normalize_bert_hash(const mb_normalize_bert *bert, mb_hash *hash);
mb_status mb_normalize_bert_run(const mb_normalize_bert *bert, const mb_text_view *in, mb_text_edit *out);

mb_status mb_normalize_accents_run(const mb_text_view *in, mb_text_edit *out); /* StripAccents: marks go */
mb_status mb_normalize_nmt_run(const mb_text_view *in, mb_text_edit *out); /* Nmt: SentencePiece's cleaning */
/* ByteLevel: each byte becomes its printable character. */
mb_status mb_normalize_bytes_run(const mb_text_view *in, mb_text_edit *out);

bool mb_normalize_is_ascii(const char *bytes, size_t n);

#endif
