/* pack.c: records (and copies) as packed rows.
 *
 * 1. targets   2. rows   3. the whole
 */
#include "learn/pack.h"

#include "learn/corrupt.h"

/* ---- 1. targets ---- */

static bool takes_all(const mb_shard_record *record, mb_pack_mask mask, int64_t sample)
{
    return mask == MB_PACK_ALL || record->loss_mask == NULL ||
           (mask == MB_PACK_CHOSEN_WHOLE && sample % 2 == 0);
}

bool mb_pack_is_target(const mb_shard_record *record, mb_pack_mask mask, int64_t sample, int64_t token)
{
    return takes_all(record, mask, sample) || record->loss_mask[token] != 0;
}

int64_t mb_pack_targets(const mb_shard_record *record, mb_pack_mask mask, int64_t sample)
{
    if (takes_all(record, mask, sample)) return record->count > 0 ? record->count - 1 : 0;
    int64_t n = 0;
    for (int64_t t = 1; t < record->count; t++) n += record->loss_mask[t] != 0;
    return n;
}

/* ---- 2. rows ---- */

typedef struct rows {
    int32_t *ids, *positions, *offsets, *head_row, *targets;
    int64_t *row_index;
    float *weights;
    int64_t used, heads;
} rows;

static void add_positions(rows *out, int64_t n, int64_t first_index)
{
    for (int64_t t = 0; t < n; t++) {
        out->positions[out->used + t] = (int32_t)t;
        out->row_index[out->used + t] = first_index + t;
    }
    out->used += n;
}

static mb_status add_record(rows *out, const mb_shard_record *record, int64_t sample, mb_pack_mask mask,
                            int64_t vocab)
{
    for (int64_t t = 0; t < record->count; t++) {
        if (record->tokens[t] >= vocab) {
            return mb_fail(MB_EDATA,
                           "record %lld of the shard holds token %u, but the model's vocabulary has %lld "
                           "entries; make the shard with the model's tokenizer",
                           (long long)sample, record->tokens[t], (long long)vocab);
        }
        out->ids[out->used + t] = (int32_t)record->tokens[t];
        if (t == 0 || !mb_pack_is_target(record, mask, sample, t)) continue;
        out->head_row[out->heads] = (int32_t)(out->used + t - 1);
        out->targets[out->heads++] = (int32_t)record->tokens[t];
    }
    add_positions(out, record->count, sample << 20);
    return MB_OK;
}

static void add_copies(rows *out, const mb_microbatch *microbatch, int64_t real_rows, int64_t vocab)
{
    mb_corrupt_source source = {.seed = microbatch->seed,
                                .epoch = microbatch->epoch,
                                .pool = out->ids,
                                .pool_count = real_rows,
                                .vocab = vocab};
    for (int64_t i = 0; i < microbatch->records; i++) {
        source.sample = microbatch->sample[i];
        int64_t n = mb_corrupt_copy(&source, out->ids + out->offsets[i],
                                    out->offsets[i + 1] - out->offsets[i], out->ids + out->used);
        add_positions(out, n, (microbatch->sample[i] << 20) + (1 << 19));
        out->offsets[microbatch->records + i + 1] = (int32_t)out->used;
    }
}

static mb_status alloc_rows(const mb_microbatch *microbatch, mb_pack_mask mask, int64_t times,
                            mb_arena *arena, rows *out)
{
    mb_status status = MB_OK;
    int64_t tokens = 0, heads = 0;
    for (int64_t i = 0; i < microbatch->records; i++) {
        tokens += times * microbatch->record[i].count;
        heads += mb_pack_targets(&microbatch->record[i], mask, microbatch->sample[i]);
    }
    if (tokens > INT32_MAX)
        MB_RAISE(MB_ERANGE,
                 "a micro-batch of %lld tokens is too long; lower training.batch_size or dataset.max_length",
                 (long long)tokens);
    MB_ARENA_ARRAY(arena, out->ids, tokens);
    MB_ARENA_ARRAY(arena, out->positions, tokens);
    MB_ARENA_ARRAY(arena, out->row_index, tokens);
    MB_ARENA_ARRAY(arena, out->offsets, times * microbatch->records + 1);
    MB_ARENA_ARRAY(arena, out->head_row, heads);
    MB_ARENA_ARRAY(arena, out->targets, heads);
    MB_ARENA_ARRAY(arena, out->weights, heads);
done:
    return status;
}

/* ---- 3. the whole ---- */

mb_status mb_pack_batch(const mb_microbatch *microbatch, mb_pack_mask mask, bool with_copies, int64_t vocab,
                        mb_arena *arena, mb_lm_batch *out_batch, mb_pack *out_pack)
{
    mb_status status = MB_OK;
    rows out = {0};
    int64_t records = microbatch->records;
    mb_pack pack = {.records = records, .copies = with_copies ? records : 0};
    MB_TRY(alloc_rows(microbatch, mask, with_copies ? 2 : 1, arena, &out));
    MB_ARENA_ARRAY(arena, pack.head_first, records + 1);
    out.offsets[0] = 0;
    pack.head_first[0] = 0;
    for (int64_t i = 0; i < records; i++) {
        MB_TRY(add_record(&out, &microbatch->record[i], microbatch->sample[i], mask, vocab));
        out.offsets[i + 1] = (int32_t)out.used;
        pack.head_first[i + 1] = out.heads;
    }
    pack.rows = out.used;
    if (with_copies) add_copies(&out, microbatch, pack.rows, vocab);
    float weight = microbatch->step_targets > 0 ? 1.0f / (float)microbatch->step_targets : 0;
    for (int64_t i = 0; i < out.heads; i++) out.weights[i] = weight;
    *out_batch = (mb_lm_batch){.tokens = out.used,
                               .segments = records + pack.copies,
                               .ids = out.ids,
                               .positions = out.positions,
                               .offsets = out.offsets,
                               .row_index = out.row_index,
                               .seed = microbatch->seed + (uint64_t)microbatch->epoch,
                               .head_rows = out.heads,
                               .head_row = out.head_row,
                               .targets = out.targets,
                               .opt_head_weight = out.weights};
    *out_pack = pack;
done:
    return status;
}
