/* bpe: the BPE model of a tokenizer.json: vocabulary, merges, and words -> ids.
 *
 * Layer: text.  Uses: base, bpe_vocab, word_cache, tokenizer (mb_ids).
 * Source: Sennrich, Haddow, Birch (2016), ACL, section 3.2; behaviour of huggingface/tokenizers (models/bpe).
 *
 * In byte-level mode a word is bytes and each byte b stands for the vocabulary's printable character of b
 * (Radford et al. 2019).
 */
#ifndef MB_BPE_H
#define MB_BPE_H

#include "base/json.h"
#include "text/bpe_vocab.h"
#include "text/tokenizer.h"

#define MB_BPE_NONE UINT32_MAX

typedef struct mb_bpe mb_bpe;
typedef struct mb_bpe_work mb_bpe_work; /* per thread: symbols, queue, word cache */

/* model: the "model" object; where: the file. */
mb_status mb_bpe_read(const json_t *model, const char *where, bool is_byte_level, mb_bpe **out_bpe);
void mb_bpe_destroy(mb_bpe **bpe);
void mb_bpe_hash(const mb_bpe *bpe, mb_hash *hash); /* merges and settings; not the vocabulary */

const mb_bpe_vocab *mb_bpe_words(const mb_bpe *bpe); /* the vocabulary */

mb_status mb_bpe_work_create(mb_bpe_work **out_work);
void mb_bpe_work_destroy(mb_bpe_work **work);
/* Append the ids of a word, and (opt_lengths) how many bytes of the word each stands for. */
mb_status mb_bpe_encode(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n, mb_ids *ids,
                        mb_ids *opt_lengths);

/* GPT-2's printable character of a byte, and back (-1: no byte's). */
uint32_t mb_bpe_byte_character(unsigned char byte);
int mb_bpe_character_byte(uint32_t character);

#endif
