/* tokenizer: Hugging Face tokenizer.json -> ids and back, with the same ids as HF `tokenizers`.
 *
 * Layer: text.  Uses: base, PCRE2, utf8proc.
 * Source: behaviour of huggingface/tokenizers 0.22 (models BPE, WordPiece, Unigram; all normalizers,
 * post-processors and decoders; all pre-tokenizers but FixedLength).
 *
 * Byte-level BPE (GPT-2, GPT-NeoX/OLMoE, Qwen2/3, Llama-3) and SentencePiece-style BPE with byte fallback
 * (Llama-2), WordPiece (BERT, MiniLM) and Unigram (XLM-R, T5, mGTE). Whatever a tokenizer.json asks for that
 * is not done here is refused by name (MB_EUNSUPPORTED),
 * never tokenised wrongly. Its `truncation` and `padding` are ignored (transformers switches both off unless
 * a call asks), and so is the trimming of offsets by ByteLevel. A loaded tokenizer is read-only; encode may
 * run in several threads, each with its own mb_tokenizer_scratch.
 */
#ifndef MB_TOKENIZER_H
#define MB_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/str.h"

typedef struct mb_tokenizer mb_tokenizer;
typedef struct mb_tokenizer_scratch
    mb_tokenizer_scratch; /* per thread: match data, work arrays, word cache */

/* A growing array of ids. Start zeroed; end with mb_ids_destroy. */
typedef struct mb_ids {
    uint32_t *data;
    int64_t count;
    int64_t capacity;
} mb_ids;
mb_status mb_ids_append(mb_ids *ids, uint32_t id);
mb_status mb_ids_append_all(mb_ids *ids, const uint32_t *data, int64_t n);
void mb_ids_reset(mb_ids *ids); /* count 0, keeps memory */
void mb_ids_destroy(mb_ids *ids);

/* Open `path`: a tokenizer.json, or a folder with tokenizer.json and, when there, tokenizer_config.json,
 * special_tokens_map.json, generation_config.json (for bos, eos, pad, add_bos_token, chat_template).
 * add_bos_token and add_eos_token replace the post-processor's template only for tokenizer classes of Llama
 * and Gemma, as in transformers. Errors: MB_ENOTFOUND, MB_EFORMAT (with file and entry), MB_EUNSUPPORTED
 * (with the component's name). */
mb_status mb_tokenizer_open(const char *path, mb_tokenizer **out_tokenizer);
void mb_tokenizer_close(mb_tokenizer **tokenizer);
mb_status mb_tokenizer_scratch_create(const mb_tokenizer *tokenizer, mb_tokenizer_scratch **out_scratch);
void mb_tokenizer_scratch_destroy(mb_tokenizer_scratch **scratch);

/* Append the ids of text (n bytes, valid UTF-8 else MB_EDATA with the offset) to ids. Added and special
 * tokens inside the text are recognised, as HF does. add_special_tokens: apply the post-processor (BOS, EOS).
 * Nothing is appended on failure. At most 512 MiB of text (MB_ERANGE). A scratch belongs to one tokenizer
 * (else MB_EUSAGE). */
mb_status mb_tokenizer_encode(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch, const char *text,
                              size_t n, bool add_special_tokens, mb_ids *ids);

/* The same, with the byte range of the ORIGINAL text that each id came from: spans receives 2 values (first,
 * end) per id, appended; special tokens put in by the post-processor have first == end. Ids that share a
 * character (byte fallback, split bytes of one character) all carry that character's range. A character put
 * in by a normaliser or pre-tokenizer in front of the text carries the range of the character behind it;
 * characters joined by NFC carry that of all of them. Used for answer masks. */
mb_status mb_tokenizer_encode_spans(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch,
                                    const char *text, size_t n, bool add_special_tokens, mb_ids *ids,
                                    mb_ids *spans);

/* Append the text of ids to s, through the decoder. Invalid UTF-8 left by cut characters becomes U+FFFD as in
 * HF. Unknown ids: MB_ERANGE. */
mb_status mb_tokenizer_decode(const mb_tokenizer *tokenizer, const uint32_t *ids, int64_t n,
                              bool skip_special_tokens, mb_str *s);

int64_t mb_tokenizer_count(const mb_tokenizer *tokenizer); /* largest id + 1, added tokens included */
/* Id of an exact token string ("</s>", "Ġthe"); false when there is none. */
bool mb_tokenizer_find(const mb_tokenizer *tokenizer, const char *token, uint32_t *out_id);
const char *mb_tokenizer_token(const mb_tokenizer *tokenizer,
                               uint32_t id); /* as in the vocabulary; NULL when unused */
/* -1 when the folder names none. From tokenizer_config.json, else special_tokens_map, else well-known added
 * tokens. */
int64_t mb_tokenizer_bos(const mb_tokenizer *tokenizer);
int64_t mb_tokenizer_eos(const mb_tokenizer *tokenizer);
int64_t mb_tokenizer_pad(const mb_tokenizer *tokenizer);
/* The folder's chat template text (tokenizer_config.json or chat_template.jinja), NULL if none. Borrowed. */
const char *mb_tokenizer_chat_template(const mb_tokenizer *tokenizer);
/* Hash of the canonical form (id, bytes, special; merges in order; normaliser and pre-tokenizer settings),
 * never of file bytes. */
const char *mb_tokenizer_hash(const mb_tokenizer *tokenizer);

#endif
