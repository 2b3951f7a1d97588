/* route (cpu): router, and rows to experts and back, over rows of tokens. */
#include "ops/cpu/cpu.h"

/* ---- router ---- */

/* What a column is chosen by. */
static inline float score_of(const float *probs, const float *opt_bias, int64_t e)
{
    return opt_bias != NULL ? probs[e] + opt_bias[e] : probs[e];
}

/* The columns of the `picks` largest scores, by repeated insertion: kept in falling order, ties to the lower
 * index. */
static void pick(const float *probs, const float *opt_bias, int64_t experts, int64_t picks, int32_t *ids)
{
    int64_t count = 0;
    for (int64_t e = 0; e < experts; e++) {
        const float score = score_of(probs, opt_bias, e);
        if (count == picks && !(score > score_of(probs, opt_bias, ids[count - 1]))) continue;
        int64_t at = count < picks ? count++ : count - 1;
        while (at > 0 && score > score_of(probs, opt_bias, ids[at - 1])) {
            ids[at] = ids[at - 1];
            at--;
        }
        ids[at] = (int32_t)e;
    }
}

mb_status mb_route_cpu(mb_ops *ops, const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                       bool normalise, mb_tensor *probs, int32_t *ids, mb_tensor *weights)
{
    int64_t tokens = mb_ops_rows(logits), experts = mb_ops_width(logits);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    const float *bias = opt_bias != NULL ? mb_tensor_f32(opt_bias) : NULL;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, tokens *experts * 4))
    for (int64_t t = 0; t < tokens; t++) {
        float *p = mb_tensor_f32(probs) + t * experts, *w = mb_tensor_f32(weights) + t * picks;
        int32_t *own = ids + t * picks;
        kernels->softmax(mb_tensor_f32(logits) + t * experts, experts, p);
        pick(p, bias, experts, picks, own);
        double sum = 0;
        for (int64_t k = 0; k < picks; k++) sum += p[own[k]];
        const bool is_void = normalise && sum < MB_ROUTE_LEAST;
        for (int64_t k = 0; k < picks; k++)
            w[k] = is_void ? 0 : normalise ? (float)(p[own[k]] / sum) : p[own[k]];
    }
    return MB_OK;
}

/* As in the plain C backend: through the division by the sum, then through the softmax. */
mb_status mb_route_backward_cpu(mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                const mb_tensor *weights, bool normalise, const mb_tensor *dweights,
                                mb_tensor *dlogits)
{
    int64_t tokens = mb_ops_rows(probs), experts = mb_ops_width(probs), picks = mb_ops_width(weights);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, tokens *experts * 4))
    for (int64_t t = 0; t < tokens; t++) {
        const float *p = mb_tensor_f32(probs) + t * experts, *w = mb_tensor_f32(weights) + t * picks;
        const float *dw = mb_tensor_f32(dweights) + t * picks;
        const int32_t *own = ids + t * picks;
        float *dl = mb_tensor_f32(dlogits) + t * experts;
        double picked = 0, inner = 0, mean = 0;
        for (int64_t k = 0; k < picks; k++) {
            picked += p[own[k]];
            inner += (double)dw[k] * w[k];
        }
        if (normalise && picked < MB_ROUTE_LEAST) continue;
        for (int64_t k = 0; k < picks; k++) {
            double dp = normalise ? (dw[k] - inner) / picked : dw[k];
            mean += dp * p[own[k]];
            dl[own[k]] = (float)(dl[own[k]] + p[own[k]] * dp);
        }
        kernels->axpy((float)-mean, mb_act_f32(p), experts, mb_act_f32(dl));
    }
    return MB_OK;
}

/* ---- rows to experts and back ---- */

mb_status mb_gather_cpu(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch, mb_tensor *y)
{
    int64_t d = mb_ops_width(x);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, dispatch->rows *d))
    for (int64_t p = 0; p < dispatch->rows; p++) {
        kernels->cast(mb_act_at(mb_cpu_act(x), dispatch->row_token[p] * d), d,
                      mb_act_at(mb_cpu_act(y), p * d));
    }
    return MB_OK;
}

mb_status mb_gather_backward_cpu(mb_ops *ops, const mb_tensor *dy, const mb_dispatch *dispatch, int64_t picks,
                                 mb_tensor *dx)
{
    int64_t tokens = mb_ops_rows(dx), d = mb_ops_width(dx);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, tokens *picks *d))
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t k = 0; k < picks; k++) {
            int64_t row = dispatch->slot_row[t * picks + k];
            if (row < 0) continue;
            kernels->axpy(1.0f, mb_act_at(mb_cpu_act(dy), row * d), d, mb_act_at(mb_cpu_act(dx), t * d));
        }
    }
    return MB_OK;
}

mb_status mb_combine_cpu(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch,
                         const mb_tensor *weights, mb_tensor *y)
{
    int64_t tokens = mb_ops_rows(y), d = mb_ops_width(y), picks = mb_ops_width(weights);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, tokens *picks *d))
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t k = 0; k < picks; k++) {
            int64_t row = dispatch->slot_row[t * picks + k];
            float weight = mb_tensor_f32(weights)[t * picks + k];
            if (row < 0) continue;
            kernels->axpy(weight, mb_act_at(mb_cpu_act(x), row * d), d, mb_act_at(mb_cpu_act(y), t * d));
        }
    }
    return MB_OK;
}

mb_status mb_combine_backward_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                  const mb_dispatch *dispatch, const mb_tensor *weights, mb_tensor *dx,
                                  mb_tensor *opt_dweights)
{
    int64_t tokens = mb_ops_rows(dy), d = mb_ops_width(dy), picks = mb_ops_width(weights);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, tokens *picks *d))
    for (int64_t t = 0; t < tokens; t++) {
        const mb_act g = mb_act_at(mb_cpu_act(dy), t * d);
        for (int64_t k = 0; k < picks; k++) {
            int64_t at = t * picks + k, row = dispatch->slot_row[at];
            if (row >= 0)
                kernels->scale(mb_tensor_f32(weights)[at], g, d, mb_act_at(mb_cpu_act(dx), row * d));
            if (opt_dweights == NULL) continue;
            mb_tensor_f32(opt_dweights)[at] =
                row >= 0 ? kernels->dot(g, mb_act_at(mb_cpu_act(x), row * d), d) : 0.0f;
        }
    }
    return MB_OK;
}
