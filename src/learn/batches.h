/* batches: which records a step takes, before anybody asks how many ranks there are.
 *
 * Layer: learn.  Uses: store (shard).
 *
 * The subset is drawn once by the seed; every epoch has its own permutation of it keyed by (seed, epoch). A
 * step takes batch_size * accumulation samples in that order, the last one of an epoch what is left; its
 * micro-batches are batch_size samples each, the last one what is left. A sample is a record, or of a pair
 * shard a pair, whose records stay together, the chosen one first; the draws are of samples. All that is
 * counted here (places, counts) is records.
 */
#ifndef MB_BATCHES_H
#define MB_BATCHES_H

#include "learn/trainer.h"

typedef struct mb_batches mb_batches;

typedef struct mb_batches_step {
    int64_t epoch;        /* from 0 */
    int64_t first, count; /* records: places in the epoch's order */
    int64_t microbatches;
    bool is_epoch_start, is_epoch_end; /* end: also the last step of all */
} mb_batches_step;

/* MB_EDATA: the shard (or the subset) has no records. The shard is borrowed. */
mb_status mb_batches_create(mb_shard *shard, const mb_trainer_options *options, mb_batches **out_batches);
void mb_batches_destroy(mb_batches **batches);

int64_t mb_batches_records(const mb_batches *batches); /* of an epoch: the subset */
int64_t mb_batches_steps(const mb_batches *batches);   /* in all */
/* step 0 .. steps-1 */
mb_batches_step mb_batches_step_get(const mb_batches *batches, int64_t step);
/* Shard record number at a place of an epoch's order; makes that order when the epoch changes. */
mb_status mb_batches_sample(mb_batches *batches, int64_t epoch, int64_t place, int64_t *out_record);
/* Tokens of a record after the cut. */
int64_t mb_batches_length(const mb_batches *batches, int64_t record);
/* Records of a sample: 2 of a pair shard, else 1. A micro-batch has batch_size times as many. */
int64_t mb_batches_width(const mb_batches *batches);
/* Tokens of the batch_size longest samples: the most a micro-batch can have. */
mb_status mb_batches_most_tokens(const mb_batches *batches, int64_t *out_tokens);

#endif
