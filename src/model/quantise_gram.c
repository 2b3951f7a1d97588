/* quantise_gram: products of a chunk, and their exact sum.
 *
 * 1. create
 * 2. the tap
 * 3. a chunk
 * 4. sums
 */
#include "model/quantise_gram.h"

#include <math.h>
#include <string.h>

enum { HEAD_BITS = 62, SPARE_BITS = 16 };

struct mb_quantise_gram {
    mb_ops *ops;
    const mb_projection *one;
    const mb_projection_group *group;
    int64_t first, count, k, chunks;
    mb_projection_tap tap;
    mb_buffer *data;   /* [count, K, K] f32 of a chunk, the backend's */
    float *host;       /* the same on the host where that is another place */
    mb_tensor *dw;     /* [experts of the group, or 1] into data, dims 0 outside the range */
    int64_t *sum;      /* [count, K, K] lower triangles; after the sum read as f64 */
    int64_t *rows;     /* [count] */
    int exponent;      /* of the sum */
    int64_t *new_rows; /* [count] of the chunk */
    int32_t *offsets;  /* [experts + 1] */
    bool overflow, is_read;
};

/* ---- 1. create ---- */

static mb_status gram_see_one(void *context, const mb_projection *projection, const mb_tensor *x);
static mb_status gram_see_group(void *context, const mb_projection_group *group, const mb_dispatch *dispatch,
                                const mb_tensor *x);

mb_status mb_quantise_gram_create(mb_ops *ops, const mb_projection *one, const mb_projection_group *group,
                                  int64_t first, int64_t count, int64_t k, int64_t chunks,
                                  mb_quantise_gram **out_gram)
{
    mb_status status = MB_OK;
    mb_quantise_gram *g = NULL;
    const int64_t n = group != NULL ? group->count : 1, square = k * k;
    MB_NEW(g);
    *g = (mb_quantise_gram){.ops = ops,
                            .one = one,
                            .group = group,
                            .first = first,
                            .count = count,
                            .k = k,
                            .chunks = chunks,
                            .tap = {g, gram_see_one, gram_see_group}};
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), (size_t)(count * square) * sizeof(float), &g->data));
    if (mb_ops_is_device(ops)) MB_NEW_ARRAY(g->host, count * square);
    MB_NEW_ARRAY(g->dw, n);
    MB_NEW_ARRAY(g->sum, count * square);
    MB_NEW_ARRAY(g->rows, count);
    MB_NEW_ARRAY(g->new_rows, count);
    MB_NEW_ARRAY(g->offsets, n + 1);
    for (int64_t i = 0; i < count; i++)
        g->dw[first + i] = mb_tensor_view2(MB_F32, (float *)g->data->data + i * square, k, k);
    *out_gram = g;
    g = NULL;
done:
    mb_quantise_gram_destroy(&g);
    return status;
}

void mb_quantise_gram_destroy(mb_quantise_gram **gram)
{
    mb_quantise_gram *g = *gram;
    if (g == NULL) return;
    mb_buffer_destroy(&g->data);
    mb_free(g->host);
    mb_free(g->dw);
    mb_free(g->sum);
    mb_free(g->rows);
    mb_free(g->new_rows);
    mb_free(g->offsets);
    mb_free(g);
    *gram = NULL;
}

/* ---- 2. the tap ---- */

static mb_status gram_see_one(void *context, const mb_projection *projection, const mb_tensor *x)
{
    mb_quantise_gram *g = context;
    if (projection != g->one) return MB_OK;
    g->new_rows[0] += x->shape[0];
    return mb_ops_linear_dw(g->ops, x, x, &g->dw[0], NULL);
}

static mb_status gram_see_group(void *context, const mb_projection_group *group, const mb_dispatch *dispatch,
                                const mb_tensor *x)
{
    mb_status status = MB_OK;
    mb_quantise_gram *g = context;
    if (group != g->group) goto done;
    MB_TRY(mb_ops_download(g->ops, dispatch->offsets, (size_t)(group->count + 1) * sizeof *g->offsets,
                           g->offsets));
    MB_TRY(mb_ops_wait(g->ops));
    for (int64_t i = 0; i < g->count; i++)
        g->new_rows[i] += g->offsets[g->first + i + 1] - g->offsets[g->first + i];
    MB_TRY(mb_ops_grouped_linear_dw(g->ops, x, x, dispatch->offsets, group->count, g->dw));
done:
    return status;
}

const mb_projection_tap *mb_quantise_gram_tap(const mb_quantise_gram *gram)
{
    return &gram->tap;
}

/* ---- 3. a chunk ---- */

mb_status mb_quantise_gram_begin(mb_quantise_gram *gram)
{
    memset(gram->new_rows, 0, (size_t)gram->count * sizeof *gram->new_rows);
    return mb_ops_zero(gram->ops, gram->data->data, gram->data->bytes);
}

static const float *gram_chunk(const mb_quantise_gram *g)
{
    return g->host != NULL ? g->host : g->data->data;
}

mb_status mb_quantise_gram_end(mb_quantise_gram *gram, double *out_most)
{
    mb_status status = MB_OK;
    mb_quantise_gram *g = gram;
    double most = 0;
    bool is_bad = false;
    if (g->host != NULL) MB_TRY(mb_ops_download(g->ops, g->data->data, g->data->bytes, g->host));
    MB_TRY(mb_ops_wait(g->ops));
    const float *x = gram_chunk(g);
    for (int64_t i = 0; i < g->count; i++)
        for (int64_t c = 0; c < g->k; c++) { /* the diagonal has the largest */
            const double d = x[(i * g->k + c) * g->k + c];
            most = fmax(most, d);
            is_bad |= !isfinite(d);
        }
    if (is_bad)
        MB_RAISE(MB_ENUMERIC, "quantise: a layer's inputs are NaN or Inf; the model or the calibration "
                              "records are damaged");
    *out_most = most;
done:
    return status;
}

int mb_quantise_gram_exponent(double most, int64_t chunks)
{
    int of_most = 0, of_chunks = 0;
    (void)frexp(most, &of_most);
    while (((int64_t)1 << of_chunks) < chunks) of_chunks++;
    return HEAD_BITS - SPARE_BITS - of_chunks - of_most;
}

void mb_quantise_gram_add(mb_quantise_gram *gram, int exponent)
{
    gram->exponent = exponent;
    mb_quantise_gram *g = gram;
    const double scale = ldexp(1, exponent), limit = ldexp(1, HEAD_BITS) / (double)g->chunks;
    const float *x = gram_chunk(g);
    bool overflow = false;
    for (int64_t i = 0; i < g->count; i++) {
        g->rows[i] += g->new_rows[i];
        if (g->new_rows[i] == 0) continue;
#pragma omp parallel for schedule(static, 16) reduction(|| : overflow)
        for (int64_t r = 0; r < g->k; r++)
            for (int64_t c = 0; c <= r; c++) {
                const int64_t at = (i * g->k + r) * g->k + c;
                const double v = x[at] * scale;
                overflow = overflow || !(fabs(v) <= limit);
                if (fabs(v) <= limit) g->sum[at] += llrint(v);
            }
    }
    g->overflow |= overflow;
}

/* ---- 4. sums ---- */

mb_status mb_quantise_gram_sum(mb_quantise_gram *gram, mb_comm *comm, bool *out_overflow)
{
    mb_status status = MB_OK;
    mb_quantise_gram *g = gram;
    int64_t overflow = g->overflow;
    MB_TRY(mb_comm_allreduce_i64(comm, &overflow, 1, MB_COMM_MAX));
    if (overflow == 0) {
        MB_TRY(mb_comm_allreduce_i64(comm, g->rows, g->count, MB_COMM_SUM));
        MB_TRY(mb_comm_allreduce_i64(comm, g->sum, g->count * g->k * g->k, MB_COMM_SUM));
        for (int64_t i = 0; i < g->count * g->k * g->k; i++) {
            const double value = (double)g->sum[i];
            memcpy(&g->sum[i], &value, sizeof value);
        }
        g->is_read = true;
    }
    *out_overflow = overflow != 0;
done:
    return status;
}

void mb_quantise_gram_reset(mb_quantise_gram *gram)
{
    memset(gram->sum, 0, (size_t)(gram->count * gram->k * gram->k) * sizeof *gram->sum);
    memset(gram->rows, 0, (size_t)gram->count * sizeof *gram->rows);
    gram->overflow = gram->is_read = false;
}

int64_t mb_quantise_gram_rows(const mb_quantise_gram *gram, int64_t i)
{
    return gram->rows[i];
}

const double *mb_quantise_gram_matrix(mb_quantise_gram *gram, int64_t i)
{
    return (const double *)(const void *)(gram->sum + i * gram->k * gram->k);
}

double mb_quantise_gram_unit(const mb_quantise_gram *gram)
{
    return ldexp(1, -gram->exponent);
}
