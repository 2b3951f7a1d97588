/* batches.c: order, subset, steps.
 *
 * 1. subset and order   2. number of steps   3. creation   4. access
 */
#include "learn/batches.h"

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"

#define SUBSET_EPOCH UINT32_MAX /* sub-stream of the subset's draw */

struct mb_batches {
    mb_shard *shard;
    uint64_t seed;
    int64_t width;                                    /* records of a sample */
    int64_t records;                                  /* of the subset */
    int64_t *subset;                                  /* [samples] increasing sample numbers; NULL: all */
    int64_t *order;                                   /* [samples] places in the subset, of ordered_epoch */
    int64_t ordered_epoch;                            /* -1: none yet */
    int64_t batch_size, per_step, epoch_steps, steps; /* batch_size and per_step in records */
    int64_t last_records;                             /* records of the last epoch, which may be a part */
    int64_t max_length;
};

/* ---- 1. subset and order ---- */

static int compare_int64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static mb_status draw_subset(mb_batches *batches, double ratio)
{
    mb_status status = MB_OK;
    int64_t all = mb_shard_count(batches->shard) / batches->width,
            samples = ratio >= 1 ? all : (int64_t)ceil(ratio * (double)all);
    if (samples < 1)
        MB_RAISE(MB_EDATA,
                 "there is nothing to train on: the shard has %lld records and dataset.subset_ratio is %g",
                 (long long)mb_shard_count(batches->shard), ratio);
    batches->records = samples * batches->width;
    if (samples == all) return MB_OK;
    MB_NEW_ARRAY(batches->subset, all);
    mb_rng_permutation(batches->seed, MB_RNG_SHUFFLE, SUBSET_EPOCH, all, batches->subset);
    int64_t *cut = mb_realloc(batches->subset, (size_t)samples, sizeof *cut);
    if (cut == NULL) return mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
    batches->subset = cut;
    qsort(batches->subset, (size_t)samples, sizeof *batches->subset, compare_int64);
done:
    return status;
}

mb_status mb_batches_sample(mb_batches *batches, int64_t epoch, int64_t place, int64_t *out_record)
{
    mb_status status = MB_OK;
    const int64_t samples = batches->records / batches->width;
    if (batches->order == NULL) MB_NEW_ARRAY(batches->order, samples);
    if (batches->ordered_epoch != epoch) {
        mb_rng_permutation(batches->seed, MB_RNG_SHUFFLE, (uint32_t)epoch, samples, batches->order);
        batches->ordered_epoch = epoch;
    }
    const int64_t at = batches->order[place / batches->width],
                  sample = batches->subset == NULL ? at : batches->subset[at];
    *out_record = sample * batches->width + place % batches->width;
done:
    return status;
}

int64_t mb_batches_length(const mb_batches *batches, int64_t record)
{
    int64_t length = mb_shard_length(batches->shard, record);
    return batches->max_length > 0 && length > batches->max_length ? batches->max_length : length;
}

mb_status mb_batches_most_tokens(const mb_batches *batches, int64_t *out_tokens)
{
    mb_status status = MB_OK;
    const int64_t width = batches->width, samples = batches->records / width,
                  most = batches->batch_size / width;
    int64_t *lengths = NULL, sum = 0;
    MB_NEW_ARRAY(lengths, samples);
    for (int64_t i = 0; i < samples; i++) {
        const int64_t sample = batches->subset != NULL ? batches->subset[i] : i;
        for (int64_t side = 0; side < width; side++)
            lengths[i] += mb_batches_length(batches, sample * width + side);
    }
    qsort(lengths, (size_t)samples, sizeof *lengths, compare_int64);
    for (int64_t i = samples - 1; i >= 0 && i >= samples - most; i--) sum += lengths[i];
    *out_tokens = sum;
done:
    mb_free(lengths);
    return status;
}

/* ---- 2. number of steps ---- */

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void count_epoch_steps(mb_batches *batches, double epochs)
{
    double whole = floor(epochs);
    int64_t rest = llround((epochs - whole) * (double)(batches->records / batches->width)) * batches->width;
    batches->steps = (int64_t)whole * batches->epoch_steps + divide_up(rest, batches->per_step);
    if (rest > 0) batches->last_records = rest;
}

/* Steps until so many tokens were taken, at most `limit` (0: no limit). */
static mb_status count_token_steps(mb_batches *batches, int64_t max_tokens, int64_t limit)
{
    mb_status status = MB_OK;
    int64_t tokens = 0, step = 0, record;
    while (tokens < max_tokens && (limit == 0 || step < limit)) {
        int64_t before = tokens, epoch = step / batches->epoch_steps;
        mb_batches_step taken = {.first = step % batches->epoch_steps * batches->per_step};
        taken.count = batches->records - taken.first < batches->per_step ? batches->records - taken.first
                                                                         : batches->per_step;
        for (int64_t i = 0; i < taken.count; i++) {
            MB_TRY(mb_batches_sample(batches, epoch, taken.first + i, &record));
            tokens += mb_batches_length(batches, record);
        }
        step++;
        if (tokens == before)
            MB_RAISE(MB_EDATA, "a whole step of records has no tokens, so training.max_tokens is never "
                               "reached; remove empty records");
    }
    batches->steps = step;
done:
    return status;
}

static mb_status count_steps(mb_batches *batches, const mb_trainer_options *options)
{
    batches->epoch_steps = divide_up(batches->records, batches->per_step);
    batches->last_records = batches->records;
    if (options->max_tokens > 0) return count_token_steps(batches, options->max_tokens, options->max_steps);
    batches->steps = options->max_steps;
    if (options->max_steps == 0) count_epoch_steps(batches, options->epochs);
    if (batches->steps > 0) return MB_OK;
    return mb_fail(
        MB_EUSAGE,
        "training.epochs = %g of %lld records is no step at all; raise it, or set training.max_steps",
        options->epochs, (long long)batches->records);
}

/* ---- 3. creation ---- */

mb_status mb_batches_create(mb_shard *shard, const mb_trainer_options *options, mb_batches **out_batches)
{
    mb_status status = MB_OK;
    mb_batches *batches = NULL;
    MB_NEW(batches);
    batches->shard = shard;
    batches->seed = (uint64_t)options->seed;
    batches->ordered_epoch = -1;
    batches->width = mb_shard_is_pairs(shard) ? 2 : 1;
    batches->batch_size = options->batch_size * batches->width;
    batches->per_step = batches->batch_size * options->gradient_accumulation_steps;
    batches->max_length = options->max_length;
    MB_TRY(draw_subset(batches, options->subset_ratio > 0 ? options->subset_ratio : 1));
    MB_TRY(count_steps(batches, options));
    *out_batches = batches;
    batches = NULL;
done:
    mb_batches_destroy(&batches);
    return status;
}

void mb_batches_destroy(mb_batches **batches)
{
    if (*batches == NULL) return;
    mb_free((*batches)->subset);
    mb_free((*batches)->order);
    MB_FREE(*batches);
}

/* ---- 4. access ---- */

int64_t mb_batches_records(const mb_batches *batches)
{
    return batches->records;
}

int64_t mb_batches_width(const mb_batches *batches)
{
    return batches->width;
}

int64_t mb_batches_steps(const mb_batches *batches)
{
    return batches->steps;
}

mb_batches_step mb_batches_step_get(const mb_batches *batches, int64_t step)
{
    int64_t within = step % batches->epoch_steps, epoch = step / batches->epoch_steps;
    bool is_last_epoch = epoch == (batches->steps - 1) / batches->epoch_steps;
    int64_t limit = is_last_epoch ? batches->last_records : batches->records;
    mb_batches_step taken = {
        .epoch = epoch, .first = within * batches->per_step, .is_epoch_start = within == 0};
    taken.count = limit - taken.first < batches->per_step ? limit - taken.first : batches->per_step;
    taken.microbatches = divide_up(taken.count, batches->batch_size);
    taken.is_epoch_end = within == batches->epoch_steps - 1 || step == batches->steps - 1;
    return taken;
}
