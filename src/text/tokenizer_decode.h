/* tokenizer_decode: the decoder of a tokenizer.json: token texts -> text.
 *
 * Layer: text.  Uses: base, bpe, tokenizer_pattern.
 * Source: behaviour of huggingface/tokenizers (decoders ByteLevel, Replace, ByteFallback, Fuse, Strip,
 * Metaspace, WordPiece, BPEDecoder, CTC, Sequence).
 */
#ifndef MB_TOKENIZER_DECODE_H
#define MB_TOKENIZER_DECODE_H

#include "text/tokenizer_pattern.h"

typedef struct mb_tokenizer_decoder mb_tokenizer_decoder;

/* A list of texts stored one behind the other. Start zeroed. */
typedef struct mb_tokenizer_pieces {
    mb_str text;
    size_t *ends; /* of each piece in text */
    int64_t count;
    int64_t capacity;
} mb_tokenizer_pieces;
void mb_tokenizer_pieces_destroy(mb_tokenizer_pieces *pieces);
mb_status mb_tokenizer_pieces_add(mb_tokenizer_pieces *pieces, const char *bytes, size_t n);

/* json may be NULL or null: tokens are joined by spaces, as HF does. */
mb_status mb_tokenizer_decoder_read(const json_t *json, const char *where,
                                    mb_tokenizer_decoder **out_decoder);
void mb_tokenizer_decoder_destroy(mb_tokenizer_decoder **decoder);
void mb_tokenizer_decoder_hash(const mb_tokenizer_decoder *decoder, mb_hash *hash);
/* Append the text of the pieces to s. `pieces` is used up. */
mb_status mb_tokenizer_decoder_run(const mb_tokenizer_decoder *decoder, mb_tokenizer_pieces *pieces,
                                   mb_str *s);

/* Append bytes to s with U+FFFD for what is not UTF-8 (one for each maximal part of a character, as Rust and
 * the Unicode standard do). */
mb_status mb_tokenizer_decode_lossy(const char *bytes, size_t n, mb_str *s);

#endif
