/* unigram: the Unigram model of a tokenizer.json (XLM-R, T5, mGTE): words -> the pieces of the highest score.
 *
 * Layer: text.  Uses: base, bpe_vocab, piece_trie, word_cache.
 * Source: Kudo (2018), ACL, section 3.2; behaviour of huggingface/tokenizers (models/unigram,
 * encode_optimized): the path is grown from the left, a tie keeps the path found first, an unknown character
 * costs the lowest score less 10, and neighbouring unknown ones are one token. Scores are read with the last
 * bit that serde_json gives them, since it decides ties.
 */
#ifndef MB_UNIGRAM_H
#define MB_UNIGRAM_H

#include "base/json.h"
#include "text/bpe_vocab.h"
#include "text/tokenizer.h"

typedef struct mb_unigram mb_unigram;
typedef struct mb_unigram_work mb_unigram_work; /* per thread: best paths, word cache */

/* model: the "model" object; where: the file. */
mb_status mb_unigram_read(const json_t *model, const char *where, mb_unigram **out_unigram);
void mb_unigram_destroy(mb_unigram **unigram);
void mb_unigram_hash(const mb_unigram *unigram, mb_hash *hash); /* scores and settings; not the vocabulary */
const mb_bpe_vocab *mb_unigram_vocab(const mb_unigram *unigram);

mb_status mb_unigram_work_create(mb_unigram_work **out_work);
void mb_unigram_work_destroy(mb_unigram_work **work);
/* Append the ids of a word, and (opt_lengths) how many bytes of the word each stands for. MB_EDATA: an
 * unknown character, and the model has no unk_id. */
mb_status mb_unigram_encode(const mb_unigram *unigram, mb_unigram_work *work, const char *word, size_t n,
                            mb_ids *ids, mb_ids *opt_lengths);

/* A score as serde_json reads its shortest decimal form: digits / 10^k with one rounding each. */
double mb_unigram_score(double value);

#endif
