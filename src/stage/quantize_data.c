/* quantize_data: see the header. */
#include "stage/quantize_data.h"

#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "measure/perplexity.h"

/* ---- 1. calibration ---- */

static int64_t data_length(const mb_shard *shard, int64_t record, int64_t limit)
{
    const int64_t n = mb_shard_length(shard, record);
    return n < limit ? n : limit;
}

/* is_taken [records of the shard]; how many, and their tokens. */
static mb_status data_draw(const mb_quantize_program *own, const mb_shard *shard, int64_t limit,
                           bool *is_taken, int64_t *out_records, int64_t *out_tokens)
{
    mb_status status = MB_OK;
    const int64_t n = mb_shard_count(shard);
    int64_t *order = NULL;
    *out_records = *out_tokens = 0;
    MB_NEW_ARRAY(order, n);
    mb_rng_permutation((uint64_t)own->seed, MB_RNG_DATA, 0, n, order);
    for (int64_t i = 0; i < n && *out_records < own->samples; i++) {
        const int64_t tokens = data_length(shard, order[i], limit);
        if (tokens < 2) continue;
        is_taken[order[i]] = true;
        ++*out_records;
        *out_tokens += tokens;
    }
    if (*out_records == 0)
        MB_RAISE(MB_EDATA, "%s: holds no record of two tokens or more to calibrate with", own->calibration);
    if (*out_records < own->samples)
        mb_warn("%s: has only %lld records to calibrate with, fewer than quantize.samples = %lld",
                own->calibration, (long long)*out_records, (long long)own->samples);
done:
    mb_free(order);
    return status;
}

mb_status mb_quantize_data_read(const mb_quantize_program *own, const mb_lm *lm, mb_quantize_data *out_data)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    mb_shard_record record;
    mb_quantize_data data = {0};
    bool *is_taken = NULL;
    int64_t records, tokens, at = 0;
    MB_TRY(mb_shard_open(own->calibration, 0, &shard));
    const int64_t positions = mb_lm_arch(lm)->max_positions,
                  limit = own->max_length < positions ? own->max_length : positions;
    MB_NEW_ARRAY(is_taken, mb_shard_count(shard));
    MB_TRY(data_draw(own, shard, limit, is_taken, &records, &tokens));
    MB_NEW_ARRAY(data.offsets, records + 1);
    MB_NEW_ARRAY(data.ids, tokens);
    for (int64_t i = 0; i < mb_shard_count(shard); i++) {
        if (!is_taken[i]) continue;
        MB_TRY(mb_shard_read(shard, i, &record));
        const int64_t n = data_length(shard, i, limit);
        for (int64_t t = 0; t < n; t++) data.ids[data.offsets[at] + t] = (int32_t)record.tokens[t];
        data.offsets[at + 1] = data.offsets[at] + n;
        at++;
    }
    data.records = (mb_quantise_records){.records = records, .offsets = data.offsets, .ids = data.ids};
    *out_data = data;
    data = (mb_quantize_data){0};
done:
    mb_quantize_data_reset(&data);
    mb_free(is_taken);
    mb_shard_close(&shard);
    return status;
}

void mb_quantize_data_reset(mb_quantize_data *data)
{
    mb_free(data->offsets);
    mb_free(data->ids);
    *data = (mb_quantize_data){0};
}

/* ---- 2. validation ---- */

mb_status mb_quantize_data_loss(mb_program *program, const mb_quantize_program *own, mb_lm *lm,
                                mb_quantize_loss *out_loss)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    mb_perplexity_row *rows = NULL;
    const mb_perplexity_options options = {.tile_tokens = own->tile_tokens};
    status = mb_shard_open(own->validation, 0, &shard);
    if (status == MB_OK && (rows = mb_calloc((size_t)mb_perplexity_rows(shard), sizeof *rows)) == NULL)
        status = MB_ENOMEM;
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_perplexity_run(program->comm, lm, shard, &options, rows));
    *out_loss = (mb_quantize_loss){rows[0].token_perplexity, rows[0].nll, rows[0].tokens};
done:
    mb_free(rows);
    mb_shard_close(&shard);
    return status;
}
