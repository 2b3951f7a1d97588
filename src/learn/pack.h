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

/* Tokens 1.. of a record that are targets: */
typedef enum mb_pack_mask {
    MB_PACK_ALL,          /* every one */
    MB_PACK_MASKED,       /* those of the loss mask; all where there is none */
    MB_PACK_CHOSEN_WHOLE, /* pairs: every one of the chosen side, of the rejected those of the mask */
} mb_pack_mask;

/* Their number; sample: the record's number in the shard (its side of a pair). */
int64_t mb_pack_targets(const mb_shard_record *record, mb_pack_mask mask, int64_t sample);
bool mb_pack_is_target(const mb_shard_record *record, mb_pack_mask mask, int64_t sample, int64_t token);

/* Everything in the arena. Head weights are 1 / step_targets. Tokens must be < vocab: MB_EDATA names the
 * record by its number. */
mb_status mb_pack_batch(const mb_microbatch *microbatch, mb_pack_mask mask, bool with_copies, int64_t vocab,
                        mb_arena *arena, mb_lm_batch *out_batch, mb_pack *out_pack);

#endif
