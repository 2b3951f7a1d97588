/* bpe_train: learn a byte-level BPE from text and write a tokenizer.json that HF `tokenizers` loads.
 *
 * Layer: text.  Uses: base, tokenizer.
 * Source: Sennrich, Haddow, Birch (2016), ACL, section 3.2; byte alphabet and pre-tokenizer of GPT-2 (Radford
 * et al. 2019).
 */
#ifndef MB_BPE_TRAIN_H
#define MB_BPE_TRAIN_H

#include <stdint.h>

#include "base/str.h"

typedef struct mb_bpe_train mb_bpe_train;

/* vocab_size counts the 256 bytes, the merges and the special tokens (which come first, ids from 0:
 * "<|endoftext|>", "<|pad|>" unless `specials`, comma separated, names others). min_frequency: pairs seen
 * less often are not merged. */
mb_status mb_bpe_train_create(int64_t vocab_size, int64_t min_frequency, const char *opt_specials,
                              mb_bpe_train **out_train);
void mb_bpe_train_destroy(mb_bpe_train **train);
/* Count the words of one text (valid UTF-8). Words are counted, not kept in order: any order of calls gives
 * the same result. */
mb_status mb_bpe_train_add(mb_bpe_train *train, const char *text, size_t n);
/* Learn the merges (ties: higher count, then the smaller pair of ids, as HF) and write folder/tokenizer.json
 * and folder/tokenizer_config.json (eos = the first special token, pad = the second, else the first). The
 * folder is made when missing. The counts stay: more text may follow, and another write. */
mb_status mb_bpe_train_write(mb_bpe_train *train, const char *folder);

#endif
