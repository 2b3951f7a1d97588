/* head (ref): logits, cross-entropy and its gradient, a chunk of rows at a time. */
#include <math.h>
#include <string.h>

#include "ops/ref/ref.h"

enum { CHUNK = 16 }; /* rows whose logits exist at one time */

/* logits[V] of one row; out_loss, argmax; then logits becomes the softmax. */
static void row_softmax(const float *h, const float *w, int64_t v, int64_t d, int32_t target, double *logits,
                        float *out_loss, int32_t *out_argmax)
{
    int64_t best = 0;
    for (int64_t i = 0; i < v; i++) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < d; j++) sum += (double)h[j] * w[i * d + j];
        logits[i] = sum;
        if ((float)sum > (float)logits[best]) best = i;
    }
    double top = logits[best], sum = 0, wanted = logits[target];
    for (int64_t i = 0; i < v; i++) {
        logits[i] = exp(logits[i] - top);
        sum += logits[i];
    }
    for (int64_t i = 0; i < v; i++) logits[i] /= sum;
    *out_loss = (float)(log(sum) + top - wanted);
    *out_argmax = (int32_t)best;
}

/* dh = weight (softmax - onehot) W; the weighted difference is left in p. */
static void row_gradient(double *p, const float *w, int64_t v, int64_t d, int32_t target, float weight,
                         double *sums, float *opt_dh)
{
    p[target] -= 1;
    for (int64_t i = 0; i < v; i++) p[i] *= weight;
    if (opt_dh == NULL) return;
    memset(sums, 0, (size_t)d * sizeof *sums);
    for (int64_t i = 0; i < v; i++) {
        for (int64_t j = 0; j < d; j++) sums[j] += p[i] * w[i * d + j];
    }
    for (int64_t j = 0; j < d; j++) opt_dh[j] = (float)sums[j];
}

static void add_dw(mb_ops *ops, const double *p, const float *h, int64_t rows, int64_t v, int64_t d,
                   float *dw)
{
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t i = 0; i < v; i++) {
        for (int64_t j = 0; j < d; j++) {
            double sum = 0;
            for (int64_t r = 0; r < rows; r++) sum += p[r * v + i] * h[r * d + j];
            dw[i * d + j] = (float)(dw[i * d + j] + sum);
        }
    }
}

mb_status mb_head_loss_ref(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                           mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                           mb_tensor *opt_dh, mb_tensor *opt_dw)
{
    mb_status status = MB_OK;
    int64_t n = mb_ops_rows(h), d = mb_ops_width(h), v = mb_ops_rows(&w->tensor);
    const float *table = mb_tensor_f32(&w->tensor), *in = mb_tensor_f32(h);
    double *logits = NULL, *sums = NULL;
    MB_ARENA_ARRAY(ops->scratch, logits, CHUNK * v);
    MB_ARENA_ARRAY(ops->scratch, sums, CHUNK * d);
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = n - first < CHUNK ? n - first : CHUNK;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t r = 0; r < rows; r++) {
            int64_t t = first + r;
            int32_t best = 0;
            double *p = logits + r * v;
            row_softmax(in + t * d, table, v, d, targets[t], p, mb_tensor_f32(out_loss) + t, &best);
            if (opt_argmax != NULL) opt_argmax[t] = best;
            if (opt_row_weight == NULL) continue;
            float *dh = opt_dh != NULL ? mb_tensor_f32(opt_dh) + t * d : NULL;
            if (opt_row_weight[t] == 0) memset(p, 0, (size_t)v * sizeof *p);
            if (opt_row_weight[t] != 0) {
                row_gradient(p, table, v, d, targets[t], opt_row_weight[t], sums + r * d, dh);
            } else if (dh != NULL) {
                memset(dh, 0, (size_t)d * sizeof *dh);
            }
        }
        if (opt_dw != NULL) add_dw(ops, logits, in + first * d, rows, v, d, mb_tensor_f32(opt_dw));
    }
done:
    return status;
}
