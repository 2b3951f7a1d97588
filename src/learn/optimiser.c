/* optimiser.c: AdamW on owned elements.
 *
 * Without weight decay the owned range is one call. With it the range is cut into runs of equal decay; on a
 * host also at block borders, so that the calls are the same whoever owns a block. A device computes every
 * element by itself, wherever a call begins, and long runs keep it busy.
 *
 * 1. runs   2. creation   3. moments   4. step
 */
#include "learn/optimiser.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/staging.h"

typedef struct run {
    int64_t first, count; /* in the trained space */
    bool decays;
} run;

struct mb_optimiser {
    mb_ops *ops;
    mb_comm *comm;
    mb_params *params;
    mb_lanes *lanes;
    mb_optimiser_options options;
    int64_t first, count; /* owned */
    mb_buffer *moment[2];
    mb_staging *staging; /* the way to them on a device */
    double *squares;     /* per owned block */
    run *runs;           /* inside the owned range */
    int64_t run_count;
};

/* ---- 1. runs ---- */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Adds [first, end) cut to the owned range, and at block borders; out NULL only counts. */
static int64_t add_runs(const mb_optimiser *optimiser, int64_t first, int64_t end, bool decays, run *out)
{
    int64_t n = 0, owned_end = optimiser->first + optimiser->count;
    if (first < optimiser->first) first = optimiser->first;
    end = smaller(end, owned_end);
    while (first < end) {
        int64_t stop = mb_ops_is_device(optimiser->ops)
                           ? end
                           : smaller(end, (first / MB_LANES_BLOCK + 1) * MB_LANES_BLOCK);
        if (out != NULL) out[n] = (run){.first = first, .count = stop - first, .decays = decays};
        n++;
        first = stop;
    }
    return n;
}

static int64_t make_runs(const mb_optimiser *optimiser, run *out)
{
    int64_t n = 0, first = 0, end = 0;
    bool decays = false;
    for (int64_t i = 0; i < mb_params_count(optimiser->params); i++) {
        const mb_param *param = mb_params_at(optimiser->params, i);
        if (!param->trained) continue;
        bool mine = param->value.dims > 1;
        if (param->flat != end || mine != decays) {
            n += add_runs(optimiser, first, end, decays, out == NULL ? NULL : out + n);
            first = param->flat;
            decays = mine;
        }
        end = param->flat + mb_tensor_count(&param->value);
    }
    return n + add_runs(optimiser, first, end, decays, out == NULL ? NULL : out + n);
}

static mb_status plan_runs(mb_optimiser *optimiser)
{
    mb_status status = MB_OK;
    if (optimiser->options.weight_decay == 0) {
        MB_NEW(optimiser->runs);
        optimiser->runs[0] = (run){.first = optimiser->first, .count = optimiser->count};
        optimiser->run_count = optimiser->count > 0;
    } else {
        optimiser->run_count = make_runs(optimiser, NULL);
        MB_NEW_ARRAY(optimiser->runs, optimiser->run_count);
        make_runs(optimiser, optimiser->runs);
    }
done:
    return status;
}

/* ---- 2. creation ---- */

mb_status mb_optimiser_create(mb_ops *ops, mb_params *params, mb_lanes *lanes,
                              const mb_optimiser_options *options, mb_optimiser **out_optimiser)
{
    mb_status status = MB_OK;
    mb_optimiser *optimiser = NULL;
    MB_NEW(optimiser);
    optimiser->ops = ops;
    optimiser->params = params;
    optimiser->lanes = lanes;
    optimiser->comm = mb_lanes_comm(lanes);
    optimiser->options = *options;
    mb_lanes_owned(lanes, &optimiser->first, &optimiser->count);
    for (int i = 0; i < 2; i++)
        MB_TRY(mb_buffer_create(mb_ops_allocator(ops), (size_t)optimiser->count * sizeof(float),
                                &optimiser->moment[i]));
    if (mb_ops_is_device(ops)) MB_TRY(mb_staging_create(ops, &optimiser->staging));
    MB_NEW_ARRAY(optimiser->squares, (optimiser->count + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK);
    MB_TRY(plan_runs(optimiser));
    *out_optimiser = optimiser;
    optimiser = NULL;
done:
    mb_optimiser_destroy(&optimiser);
    return status;
}

void mb_optimiser_destroy(mb_optimiser **optimiser)
{
    if (*optimiser == NULL) return;
    mb_staging_destroy(&(*optimiser)->staging);
    for (int i = 0; i < 2; i++) mb_buffer_destroy(&(*optimiser)->moment[i]);
    mb_free((*optimiser)->squares);
    mb_free((*optimiser)->runs);
    MB_FREE(*optimiser);
}

/* ---- 3. moments ---- */

float *mb_optimiser_moment(mb_optimiser *optimiser, int moment)
{
    assert(moment == 1 || moment == 2);
    return optimiser->moment[moment - 1]->data;
}

mb_status mb_optimiser_download(mb_optimiser *optimiser, int moment, int64_t first, int64_t n, float *host)
{
    const float *values = mb_optimiser_moment(optimiser, moment) + first;
    const size_t bytes = (size_t)n * sizeof *host;
    if (optimiser->staging != NULL) return mb_staging_get(optimiser->staging, values, bytes, host);
    if (n > 0) memcpy(host, values, bytes);
    return MB_OK;
}

mb_status mb_optimiser_upload(mb_optimiser *optimiser, int moment, int64_t first, int64_t n,
                              const float *host)
{
    float *values = mb_optimiser_moment(optimiser, moment) + first;
    const size_t bytes = (size_t)n * sizeof *host;
    if (optimiser->staging != NULL) return mb_staging_put(optimiser->staging, host, bytes, values);
    if (n > 0) memcpy(values, host, bytes);
    return MB_OK;
}

/* ---- 4. step ---- */

static mb_status sum_owned(mb_optimiser *optimiser, const float *gradient)
{
    if (optimiser->count == 0) return MB_OK;
    return mb_ops_sum_squares(optimiser->ops, gradient, optimiser->count, MB_LANES_BLOCK, optimiser->squares);
}

static mb_status global_norm(mb_optimiser *optimiser, const float *gradient, double *out_norm)
{
    mb_status status = MB_OK;
    double total = 0;
    MB_TRY(mb_comm_agree(optimiser->comm, sum_owned(optimiser, gradient)));
    MB_TRY(mb_lanes_block_sum(optimiser->lanes, optimiser->squares, &total));
    *out_norm = sqrt(total);
done:
    return status;
}

static mb_status update_owned(mb_optimiser *optimiser, mb_adamw adamw, float *gradient)
{
    mb_status status = MB_OK;
    float *owned = mb_params_owned(optimiser->params, optimiser->first),
          *moment1 = mb_optimiser_moment(optimiser, 1), *moment2 = mb_optimiser_moment(optimiser, 2);
    for (int64_t i = 0; i < optimiser->run_count; i++) {
        const run *part = &optimiser->runs[i];
        int64_t at = part->first - optimiser->first;
        adamw.weight_decay = part->decays ? optimiser->options.weight_decay : 0;
        MB_TRY(mb_ops_adamw(optimiser->ops, &adamw, part->count, gradient + at, owned + at, moment1 + at,
                            moment2 + at));
    }
done:
    return status;
}

mb_status mb_optimiser_step(mb_optimiser *optimiser, float *gradient, int64_t step, double learning_rate,
                            double *out_norm)
{
    mb_status status = MB_OK;
    const mb_optimiser_options *options = &optimiser->options;
    double norm = 0;
    MB_TRY(global_norm(optimiser, gradient, &norm));
    *out_norm = norm;
    if (!isfinite(norm)) MB_RAISE(MB_ENUMERIC, "the norm of the gradient is %g", norm);
    mb_adamw adamw = {.learning_rate = learning_rate,
                      .beta1 = options->beta1,
                      .beta2 = options->beta2,
                      .epsilon = options->epsilon,
                      .step = step,
                      .gradient_scale = 1};
    if (options->max_norm > 0) adamw.gradient_scale = fmin(1.0, options->max_norm / (norm + 1e-6));
    status = update_owned(optimiser, adamw, gradient);
    if (!mb_params_is_sharded(optimiser->params)) {
        const mb_status gathered = mb_lanes_allgather(optimiser->lanes, mb_params_trained(optimiser->params));
        if (status == MB_OK) status = gathered;
    }
    const mb_status synced = mb_params_sync(optimiser->params);
    MB_TRY(mb_comm_agree(optimiser->comm, status != MB_OK ? status : synced));
done:
    return status;
}
