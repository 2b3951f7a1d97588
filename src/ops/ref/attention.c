/* attention (ref): causal softmax attention inside segments, one query at a time.
 * Source: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023; window: Jiang et al. 2023
 * (Mistral 7B), section 2.
 */
#include <math.h>
#include <string.h>

#include "ops/ref/ref.h"

/* The first key a query of row t sees, in a segment that begins at `begin`. */
static int64_t first_key(const mb_attention_shape *shape, int64_t begin, int64_t t)
{
    int64_t first = shape->window > 0 ? t - shape->window + 1 : begin;
    return first > begin ? first : begin;
}

static double dot(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static int64_t longest_segment(const mb_attention_shape *shape)
{
    int64_t longest = 1;
    for (int64_t s = 0; s < shape->segments; s++) {
        int64_t rows = shape->offsets[s + 1] - shape->offsets[s];
        if (rows > longest) longest = rows;
    }
    return longest;
}

/* One query row and head: o[Dh] and lse; p and sums are scratch. */
static void one_query(const mb_attention_shape *shape, int64_t begin, int64_t t, int64_t h, const float *q,
                      const float *k, const float *v, float *o, float *lse, double *p, double *sums)
{
    int64_t dh = shape->head_width, g = h / (shape->heads / shape->kv_heads), stride = shape->kv_heads * dh;
    int64_t first = first_key(shape, begin, t);
    double top = -INFINITY, sum = 0;
    for (int64_t j = first; j <= t; j++) {
        p[j - first] = dot(q, k + j * stride + g * dh, dh) * shape->scale;
        if (p[j - first] > top) top = p[j - first];
    }
    memset(sums, 0, (size_t)dh * sizeof *sums);
    for (int64_t j = first; j <= t; j++) {
        double weight = exp(p[j - first] - top);
        const float *row = v + j * stride + g * dh;
        sum += weight;
        for (int64_t i = 0; i < dh; i++) sums[i] += weight * row[i];
    }
    for (int64_t i = 0; i < dh; i++) o[i] = (float)(sums[i] / sum);
    *lse = (float)(top + log(sum));
}

mb_status mb_attention_ref(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                           const mb_tensor *k, const mb_tensor *v, mb_tensor *o, mb_tensor *lse)
{
    mb_status status = MB_OK;
    int64_t heads = shape->heads, dh = shape->head_width, longest = longest_segment(shape);
    double *scratch = NULL;
    MB_ARENA_ARRAY(ops->scratch, scratch, heads * (longest + dh));
    for (int64_t s = 0; s < shape->segments; s++) {
        int64_t begin = shape->offsets[s], end = shape->offsets[s + 1];
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t h = 0; h < heads; h++) {
            double *p = scratch + h * (longest + dh);
            for (int64_t t = begin; t < end; t++) {
                int64_t at = t * heads + h;
                one_query(shape, begin, t, h, mb_tensor_f32(q) + at * dh, mb_tensor_f32(k), mb_tensor_f32(v),
                          mb_tensor_f32(o) + at * dh, mb_tensor_f32(lse) + at, p, p + longest);
            }
        }
    }
done:
    return status;
}

/* Gradients of one head of one segment: dv += p do; dp = do v; ds = p (dp - do.o); dq = ds k; dk += ds q. */
static void head_backward(const mb_attention_shape *shape, int64_t begin, int64_t end, int64_t h,
                          const float *q, const float *k, const float *v, const float *o, const float *lse,
                          const float *d_o, float *dq, double *dk, double *dv)
{
    int64_t dh = shape->head_width, g = h / (shape->heads / shape->kv_heads), stride = shape->kv_heads * dh;
    for (int64_t t = begin; t < end; t++) {
        int64_t at = t * shape->heads + h;
        const float *query = q + at * dh, *gradient = d_o + at * dh;
        double delta = dot(gradient, o + at * dh, dh);
        for (int64_t j = first_key(shape, begin, t); j <= t; j++) {
            const float *key = k + j * stride + g * dh, *value = v + j * stride + g * dh;
            double *key_sum = dk + (j - begin) * dh, *value_sum = dv + (j - begin) * dh;
            double p = exp(dot(query, key, dh) * shape->scale - lse[at]);
            double ds = p * (dot(gradient, value, dh) - delta) * shape->scale;
            for (int64_t i = 0; i < dh; i++) {
                value_sum[i] += p * gradient[i];
                key_sum[i] += ds * query[i];
                dq[at * dh + i] += (float)(ds * key[i]);
            }
        }
    }
}

mb_status mb_attention_backward_ref(mb_ops *ops, const mb_attention_shape *shape, const mb_tensor *q,
                                    const mb_tensor *k, const mb_tensor *v, const mb_tensor *o,
                                    const mb_tensor *lse, const mb_tensor *d_o, mb_tensor *dq, mb_tensor *dk,
                                    mb_tensor *dv)
{
    mb_status status = MB_OK;
    int64_t dh = shape->head_width, groups = shape->kv_heads, share = shape->heads / groups;
    int64_t longest = longest_segment(shape);
    double *scratch = NULL;
    MB_ARENA_ARRAY(ops->scratch, scratch, groups * 2 * longest * dh);
    memset(dq->data, 0, mb_tensor_bytes(dq));
    for (int64_t s = 0; s < shape->segments; s++) {
        int64_t begin = shape->offsets[s], end = shape->offsets[s + 1];
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t g = 0; g < groups; g++) {
            double *key_sum = scratch + g * 2 * longest * dh, *value_sum = key_sum + longest * dh;
            memset(key_sum, 0, (size_t)(2 * longest * dh) * sizeof *key_sum);
            for (int64_t h = g * share; h < (g + 1) * share; h++) {
                head_backward(shape, begin, end, h, mb_tensor_f32(q), mb_tensor_f32(k), mb_tensor_f32(v),
                              mb_tensor_f32(o), mb_tensor_f32(lse), mb_tensor_f32(d_o), mb_tensor_f32(dq),
                              key_sum, value_sum);
            }
            for (int64_t t = begin; t < end; t++) {
                for (int64_t i = 0; i < dh; i++) {
                    mb_tensor_f32(dk)[(t * groups + g) * dh + i] = (float)key_sum[(t - begin) * dh + i];
                    mb_tensor_f32(dv)[(t * groups + g) * dh + i] = (float)value_sum[(t - begin) * dh + i];
                }
            }
        }
    }
done:
    return status;
}
