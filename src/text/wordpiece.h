/* wordpiece: the WordPiece model of a tokenizer.json (BERT, MiniLM): words -> the longest pieces from the
 * left.
 *
 * Layer: text.  Uses: base, bpe_vocab, piece_trie, word_cache.
 * Source: Wu et al. (2016), arXiv:1609.08144; behaviour of huggingface/tokenizers (models/wordpiece): a word
 * of
 * more than max_input_chars_per_word characters, or with a place where no piece fits, is one unknown token.
 */
#ifndef MB_WORDPIECE_H
#define MB_WORDPIECE_H

#include "base/json.h"
#include "text/bpe_vocab.h"
#include "text/tokenizer.h"

typedef struct mb_wordpiece mb_wordpiece;
typedef struct mb_wordpiece_work mb_wordpiece_work; /* per thread: pieces, word cache */

/* model: the "model" object; where: the file. */
mb_status mb_wordpiece_read(const json_t *model, const char *where, mb_wordpiece **out_wordpiece);
void mb_wordpiece_destroy(mb_wordpiece **wordpiece);
void mb_wordpiece_hash(const mb_wordpiece *wordpiece, mb_hash *hash); /* settings; not the vocabulary */
const mb_bpe_vocab *mb_wordpiece_vocab(const mb_wordpiece *wordpiece);

mb_status mb_wordpiece_work_create(mb_wordpiece_work **out_work);
void mb_wordpiece_work_destroy(mb_wordpiece_work **work);
/* Append the ids of a word, and (opt_lengths) how many bytes of the word each stands for. MB_EDATA: the word
 * is unknown, and unk_token is not in the vocabulary. */
mb_status mb_wordpiece_encode(const mb_wordpiece *wordpiece, mb_wordpiece_work *work, const char *word,
                              size_t n, mb_ids *ids, mb_ids *opt_lengths);

#endif
