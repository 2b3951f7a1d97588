/* attention (ref): softmax attention inside segments, one query at a time; bf16 through f32 copies.
 * Source: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023; window: Jiang et al. 2023
 * (Mistral 7B), section 2.
 *
 * 1. what a query sees
 * 2. f32 copies
 * 3. forward
 * 4. backward
 */
#include <math.h>
#include <string.h>

#include "ops/ref/ref.h"

/* ---- 1. what a query sees ---- */

/* Keys of one segment: rows first..first+count of k and v; its queries are the last of them, rows query.. of
 * q. */
typedef struct segment {
    int64_t query, queries, first, count;
} segment;

static segment segment_of(const mb_attention_shape *shape, int64_t s)
{
    const int64_t query = shape->offsets[s], queries = shape->offsets[s + 1] - query;
    if (shape->opt_key_first == NULL) return (segment){query, queries, query, queries};
    return (segment){query, queries, shape->opt_key_first[s], shape->opt_key_count[s]};
}

/* Keys low..high of the segment are seen by its query i. */
static void seen(const mb_attention_shape *shape, const segment *own, int64_t i, int64_t *out_low,
                 int64_t *out_high)
{
    const int64_t at = own->count - own->queries + i;
    *out_high = shape->is_bidirectional ? own->count : at + 1;
    *out_low = shape->window > 0 && at >= shape->window ? at - shape->window + 1 : 0;
}

static int64_t longest_segment(const mb_attention_shape *shape)
{
    int64_t longest = 1;
    for (int64_t s = 0; s < shape->segments; s++) {
        const int64_t rows = segment_of(shape, s).count;
        if (rows > longest) longest = rows;
    }
    return longest;
}

static double dot(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* ---- 2. f32 copies ---- */

/* The tensor's values: itself, or a copy in scratch. */
static mb_status read_f32(mb_ops *ops, const mb_tensor *x, const float **out)
{
    mb_status status = MB_OK;
    float *copy = NULL;
    *out = mb_tensor_f32(x);
    if (x->dtype == MB_F32) return MB_OK;
    MB_ARENA_ARRAY(ops->scratch, copy, mb_tensor_count(x) + 1);
    MB_TRY(mb_dtype_to_f32(x->dtype, x->data, mb_tensor_count(x), copy));
    *out = copy;
done:
    return status;
}

/* Where an output is formed: itself, or scratch that write_f32 rounds. */
static mb_status room_f32(mb_ops *ops, const mb_tensor *y, float **out)
{
    mb_status status = MB_OK;
    *out = mb_tensor_f32(y);
    if (y->dtype != MB_F32) MB_ARENA_ARRAY(ops->scratch, *out, mb_tensor_count(y) + 1);
done:
    return status;
}

static mb_status write_f32(const float *room, mb_tensor *y)
{
    if (y->dtype == MB_F32) return MB_OK;
    return mb_dtype_from_f32(y->dtype, room, mb_tensor_count(y), y->data);
}

/* ---- 3. forward ---- */

typedef struct arrays {
    const float *q, *k, *v;
    float *o, *lse;
} arrays;

/* One query row and head: o[Dh] and lse; p and sums are scratch. */
static void one_query(const mb_attention_shape *shape, const segment *own, int64_t i, int64_t h,
                      const arrays *all, double *p, double *sums)
{
    const int64_t dh = shape->head_width, stride = shape->kv_heads * dh;
    const int64_t g = h / (shape->heads / shape->kv_heads), at = (own->query + i) * shape->heads + h;
    const float *keys = all->k + own->first * stride + g * dh;
    const float *values = all->v + own->first * stride + g * dh;
    int64_t low, high;
    double top = -INFINITY, sum = 0;
    seen(shape, own, i, &low, &high);
    for (int64_t j = low; j < high; j++) {
        p[j - low] = dot(all->q + at * dh, keys + j * stride, dh) * shape->scale;
        if (p[j - low] > top) top = p[j - low];
    }
    memset(sums, 0, (size_t)dh * sizeof *sums);
    for (int64_t j = low; j < high; j++) {
        const double weight = exp(p[j - low] - top);
        sum += weight;
        for (int64_t c = 0; c < dh; c++) sums[c] += weight * values[j * stride + c];
    }
    for (int64_t c = 0; c < dh; c++) all->o[at * dh + c] = (float)(sums[c] / sum);
    all->lse[at] = (float)(top + log(sum));
}

mb_status mb_attention_ref(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                           const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    mb_status status = MB_OK;
    const int64_t heads = shape->heads, own_scratch = longest_segment(shape) + shape->head_width;
    double *scratch = NULL;
    arrays all = {.lse = mb_tensor_f32(lse)};
    MB_ARENA_ARRAY(ops->scratch, scratch, heads * own_scratch);
    MB_TRY(read_f32(ops, q, &all.q));
    MB_TRY(read_f32(ops, k, &all.k));
    MB_TRY(read_f32(ops, v, &all.v));
    MB_TRY(room_f32(ops, o, &all.o));
    for (int64_t s = 0; s < shape->segments; s++) {
        const segment own = segment_of(shape, s);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t h = 0; h < heads; h++) {
            double *p = scratch + h * own_scratch;
            for (int64_t i = 0; i < own.queries; i++)
                one_query(shape, &own, i, h, &all, p, p + own_scratch - shape->head_width);
        }
    }
    MB_TRY(write_f32(all.o, o));
done:
    return status;
}

/* ---- 4. backward ---- */

typedef struct gradients {
    const float *q, *k, *v, *o, *lse, *d_o;
    float *dq, *dk, *dv;
} gradients;

/* Gradients of one query row and head: dv += p do; dp = do v; ds = p (dp - do.o); dq = ds k; dk += ds q. */
static void query_backward(const mb_attention_shape *shape, const segment *own, int64_t i, int64_t h,
                           const gradients *all, double *dq, double *dk, double *dv)
{
    const int64_t dh = shape->head_width, stride = shape->kv_heads * dh;
    const int64_t g = h / (shape->heads / shape->kv_heads), at = (own->query + i) * shape->heads + h;
    const float *query = all->q + at * dh, *gradient = all->d_o + at * dh;
    const double delta = dot(gradient, all->o + at * dh, dh);
    int64_t low, high;
    seen(shape, own, i, &low, &high);
    memset(dq, 0, (size_t)dh * sizeof *dq);
    for (int64_t j = low; j < high; j++) {
        const float *key = all->k + (own->first + j) * stride + g * dh;
        const float *value = all->v + (own->first + j) * stride + g * dh;
        const double p = exp(dot(query, key, dh) * shape->scale - all->lse[at]);
        const double ds = p * (dot(gradient, value, dh) - delta) * shape->scale;
        for (int64_t c = 0; c < dh; c++) {
            dv[j * dh + c] += p * gradient[c];
            dk[j * dh + c] += ds * query[c];
            dq[c] += ds * key[c];
        }
    }
    for (int64_t c = 0; c < dh; c++) all->dq[at * dh + c] = (float)dq[c];
}

/* All query heads of one key head of one segment; sums: Dh + 2 * keys * Dh. */
static void group_backward(const mb_attention_shape *shape, const segment *own, int64_t g,
                           const gradients *all, double *sums)
{
    const int64_t dh = shape->head_width, share = shape->heads / shape->kv_heads;
    double *key_sum = sums + dh, *value_sum = key_sum + own->count * dh;
    memset(sums, 0, (size_t)(dh + 2 * own->count * dh) * sizeof *sums);
    for (int64_t h = g * share; h < (g + 1) * share; h++)
        for (int64_t i = 0; i < own->queries; i++)
            query_backward(shape, own, i, h, all, sums, key_sum, value_sum);
    for (int64_t j = 0; j < own->count; j++) {
        const int64_t at = ((own->first + j) * shape->kv_heads + g) * dh;
        for (int64_t c = 0; c < dh; c++) {
            all->dk[at + c] = (float)key_sum[j * dh + c];
            all->dv[at + c] = (float)value_sum[j * dh + c];
        }
    }
}

mb_status mb_attention_backward_ref(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                    const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                    const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq, mb_tensor *dk,
                                    mb_tensor *dv)
{
    mb_status status = MB_OK;
    const int64_t groups = shape->kv_heads,
                  own_scratch = (2 * longest_segment(shape) + 1) * shape->head_width;
    double *scratch = NULL;
    gradients all = {.lse = mb_tensor_f32(lse)};
    const mb_tensor *in[] = {q, k, v, o, d_o};
    const float **to[] = {&all.q, &all.k, &all.v, &all.o, &all.d_o};
    MB_ARENA_ARRAY(ops->scratch, scratch, groups * own_scratch);
    for (int i = 0; i < 5; i++) MB_TRY(read_f32(ops, in[i], to[i]));
    MB_TRY(room_f32(ops, dq, &all.dq));
    MB_TRY(room_f32(ops, dk, &all.dk));
    MB_TRY(room_f32(ops, dv, &all.dv));
    for (int64_t s = 0; s < shape->segments; s++) {
        const segment own = segment_of(shape, s);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t g = 0; g < groups; g++) group_backward(shape, &own, g, &all, scratch + g * own_scratch);
    }
    MB_TRY(write_f32(all.dq, dq));
    MB_TRY(write_f32(all.dk, dk));
    MB_TRY(write_f32(all.dv, dv));
done:
    return status;
}
