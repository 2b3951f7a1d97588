/* bpe_train_merge: counted words -> merges, with pair counts kept up to date and a queue of pairs.
 *
 * Layer: text.  Uses: base.
 * Source: Sennrich, Haddow, Birch (2016), ACL, section 3.2; order of ties as in huggingface/tokenizers'
 * BpeTrainer.
 */
#ifndef MB_BPE_TRAIN_MERGE_H
#define MB_BPE_TRAIN_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_bpe_train_merge mb_bpe_train_merge;

/* words: word w is symbols[starts[w] .. starts[w + 1]) and occurs counts[w] times. symbols is taken over as
 * work space (not freed); starts and counts are borrowed. */
mb_status mb_bpe_train_merge_create(uint32_t *symbols, const int64_t *starts, const int64_t *counts,
                                    int64_t word_count, mb_bpe_train_merge **out_merge);
void mb_bpe_train_merge_destroy(mb_bpe_train_merge **merge);

/* The most frequent pair of neighbours (ties: the smaller pair of ids); false when none occurs. */
mb_status mb_bpe_train_merge_best(mb_bpe_train_merge *merge, bool *out_found, uint32_t *out_left,
                                  uint32_t *out_right, int64_t *out_count);
/* Put id in place of that pair everywhere (call after best, before the next best). */
mb_status mb_bpe_train_merge_apply(mb_bpe_train_merge *merge, uint32_t id);

#endif
