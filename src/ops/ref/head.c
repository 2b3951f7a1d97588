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

/* The op's arguments, rows and weight as f32. */
typedef struct head_work {
    int64_t d, v;
    const float *h, *w, *opt_row_weight;
    const int32_t *targets;
    float *loss, *opt_dh;
    int32_t *opt_argmax;
} head_work;

/* Row t: loss, argmax, dh; p[V] keeps its weighted difference (zeros without a weight). */
static void run_row(const head_work *work, int64_t t, double *p, double *sums)
{
    const int64_t d = work->d, v = work->v;
    int32_t best = 0;
    row_softmax(work->h + t * d, work->w, v, d, work->targets[t], p, work->loss + t, &best);
    if (work->opt_argmax != NULL) work->opt_argmax[t] = best;
    if (work->opt_row_weight == NULL) return;
    float *dh = work->opt_dh != NULL ? work->opt_dh + t * d : NULL;
    if (work->opt_row_weight[t] != 0) {
        row_gradient(p, work->w, v, d, work->targets[t], work->opt_row_weight[t], sums, dh);
        return;
    }
    memset(p, 0, (size_t)v * sizeof *p);
    if (dh != NULL) memset(dh, 0, (size_t)d * sizeof *dh);
}

mb_status mb_head_loss_ref(mb_ops *ops, const mb_tensor *h, mb_weight *w, const int32_t *targets,
                           mb_tensor *out_loss, int32_t *opt_argmax, const float *opt_row_weight,
                           mb_tensor *opt_dh, mb_tensor *opt_dw)
{
    mb_status status = MB_OK;
    const int64_t n = mb_ops_rows(h), d = mb_ops_width(h), v = mb_ops_rows(&w->tensor);
    float *in = NULL;
    double *logits = NULL, *sums = NULL;
    head_work work = {.d = d,
                      .v = v,
                      .opt_row_weight = opt_row_weight,
                      .targets = targets,
                      .loss = mb_tensor_f32(out_loss),
                      .opt_argmax = opt_argmax};
    MB_TRY(mb_linear_ref_rows(ops, h, &in));
    MB_TRY(mb_linear_ref_weight(ops, w, h->dtype, &work.w));
    work.h = in;
    if (opt_dh != NULL) MB_TRY(mb_linear_ref_rows(ops, opt_dh, &work.opt_dh));
    MB_ARENA_ARRAY(ops->scratch, logits, CHUNK * v);
    MB_ARENA_ARRAY(ops->scratch, sums, CHUNK * d);
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t rows = n - first < CHUNK ? n - first : CHUNK;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
        for (int64_t r = 0; r < rows; r++) run_row(&work, first + r, logits + r * v, sums + r * d);
        if (opt_dw != NULL) add_dw(ops, logits, in + first * d, rows, v, d, mb_tensor_f32(opt_dw));
    }
    if (opt_dh != NULL) mb_linear_ref_store(work.opt_dh, opt_dh);
done:
    return status;
}
