/* pack: a micro-batch as packed rows: records one after another, then (when asked) their corrupted copies.
 *
 * Layer: learn.  Uses: base, model (lm.h types), corrupt, objective.
 *
 * Copies have no targets. Row numbers for dropout: sample * 2^20 + position, copies + 2^19.
 */
#ifndef MB_PACK_H
#define MB_PACK_H

#include "learn/objective.h"

typedef struct mb_pack {
    int64_t records, copies; /* segments: records, then copies (0 or as many) */
    int64_t rows;            /* of the records alone; the batch has more with copies */
    int64_t *head_first;     /* [records+1] first head row of each record */
} mb_pack;

/* Target tokens of a record: tokens 1.., those with a mask of 1 when use_mask and there is one. */
int64_t mb_pack_targets(const mb_shard_record *record, bool use_mask);

/* Everything in the arena. Head weights are 1 / step_targets. Tokens must be < vocab: MB_EDATA names the
 * record by its number. */
mb_status mb_pack_batch(const mb_microbatch *microbatch, bool use_mask, bool with_copies, int64_t vocab,
                        mb_arena *arena, mb_lm_batch *out_batch, mb_pack *out_pack);

#endif
