/* word_model: the model of a tokenizer.json, of whichever kind: the vocabulary with added tokens, words ->
 * ids.
 *
 * Layer: text.  Uses: base, bpe, wordpiece, unigram.
 */
#ifndef MB_WORD_MODEL_H
#define MB_WORD_MODEL_H

#include "base/json.h"
#include "text/tokenizer.h"

#define MB_WORD_MODEL_NONE UINT32_MAX

typedef struct mb_word_model mb_word_model;
typedef struct mb_word_model_work mb_word_model_work; /* per thread */

/* model: the "model" object; where: the file; is_byte_level: words are bytes that stand for the vocabulary's
 * printable characters. A type that is not BPE, WordPiece or Unigram is refused (MB_EUNSUPPORTED). */
mb_status mb_word_model_read(const json_t *model, const char *where, bool is_byte_level,
                             mb_word_model **out_model);
void mb_word_model_destroy(mb_word_model **model);
void mb_word_model_hash(const mb_word_model *model, mb_hash *hash); /* settings; not the vocabulary */

/* The vocabulary; ids that mb_word_model_add adds are found by text but never made by the model. */
int64_t mb_word_model_size(const mb_word_model *model);  /* tokens of the model */
int64_t mb_word_model_count(const mb_word_model *model); /* largest id + 1 */
uint32_t mb_word_model_find(const mb_word_model *model, const char *token, size_t n); /* NONE if unknown */
const char *mb_word_model_token(const mb_word_model *model, uint32_t id,
                                size_t *opt_length); /* NULL: unused */
mb_status mb_word_model_add(mb_word_model *model, const char *token,
                            uint32_t id); /* MB_EEXIST: id is taken */

mb_status mb_word_model_work_create(const mb_word_model *model, mb_word_model_work **out_work);
void mb_word_model_work_destroy(mb_word_model_work **work);
/* Append the ids of a word, and (opt_lengths) how many bytes of the word each stands for. */
mb_status mb_word_model_encode(const mb_word_model *model, mb_word_model_work *work, const char *word,
                               size_t n, mb_ids *ids, mb_ids *opt_lengths);

#endif
