/* route (ref): softmax and top-K of the router, rows to experts and back.
 * Source: Shazeer et al. 2017; Fedus et al. 2021 (softmax before top-K); Jiang et al. 2024 (Mixtral: weights
 * normalised over the picks); Wang et al. 2024 (arXiv 2408.15664: a bias that only the choice sees).
 */
#include <math.h>
#include <string.h>

#include "ops/ref/ref.h"

/* ---- router ---- */

/* What a column is chosen by. */
static float score_of(const float *probs, const float *opt_bias, int64_t e)
{
    return opt_bias != NULL ? probs[e] + opt_bias[e] : probs[e];
}

static void row_route(const float *logits, const float *opt_bias, int64_t experts, int64_t picks,
                      bool normalise, float *probs, int32_t *ids, float *weights)
{
    float top = logits[0];
    double sum = 0;
    for (int64_t e = 1; e < experts; e++) top = logits[e] > top ? logits[e] : top;
    for (int64_t e = 0; e < experts; e++) {
        probs[e] = (float)exp((double)logits[e] - top);
        sum += probs[e];
    }
    for (int64_t e = 0; e < experts; e++) probs[e] = (float)(probs[e] / sum);
    double picked = 0;
    for (int64_t k = 0; k < picks; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts; e++) {
            bool is_taken = false;
            for (int64_t j = 0; j < k; j++) is_taken = is_taken || ids[j] == e;
            if (!is_taken && (best < 0 || score_of(probs, opt_bias, e) > score_of(probs, opt_bias, best)))
                best = e;
        }
        ids[k] = (int32_t)best;
        picked += probs[best];
    }
    for (int64_t k = 0; k < picks; k++) {
        weights[k] = !normalise                ? probs[ids[k]]
                     : picked < MB_ROUTE_LEAST ? 0
                                               : (float)(probs[ids[k]] / picked);
    }
}

mb_status mb_route_ref(mb_ops *ops, const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                       bool normalise, mb_tensor *probs, int32_t *ids, mb_tensor *weights)
{
    int64_t tokens = mb_ops_rows(logits), experts = mb_ops_width(logits);
    const float *bias = opt_bias != NULL ? mb_tensor_f32(opt_bias) : NULL;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < tokens; t++) {
        row_route(mb_tensor_f32(logits) + t * experts, bias, experts, picks, normalise,
                  mb_tensor_f32(probs) + t * experts, ids + t * picks, mb_tensor_f32(weights) + t * picks);
    }
    return MB_OK;
}

/* weights = p_k / s with s the sum of the picked: dp_k = (dw_k - sum_j dw_j w_j) / s; then through the
 * softmax. */
static void row_route_backward(const float *probs, int64_t experts, const int32_t *ids, const float *weights,
                               int64_t picks, bool normalise, const float *dweights, float *dlogits)
{
    double picked = 0, inner = 0, mean = 0;
    for (int64_t k = 0; k < picks; k++) {
        picked += probs[ids[k]];
        inner += (double)dweights[k] * weights[k];
    }
    if (normalise && picked < MB_ROUTE_LEAST) return;
    for (int64_t k = 0; k < picks; k++) {
        double dp = normalise ? (dweights[k] - inner) / picked : dweights[k];
        mean += dp * probs[ids[k]];
    }
    for (int64_t e = 0; e < experts; e++) {
        double dp = 0;
        for (int64_t k = 0; k < picks; k++) {
            if (ids[k] == e) dp += normalise ? (dweights[k] - inner) / picked : dweights[k];
        }
        dlogits[e] = (float)(dlogits[e] + probs[e] * (dp - mean));
    }
}

mb_status mb_route_backward_ref(mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                const mb_tensor *weights, bool normalise, const mb_tensor *dweights,
                                mb_tensor *dlogits)
{
    int64_t tokens = mb_ops_rows(probs), experts = mb_ops_width(probs), picks = mb_ops_width(weights);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < tokens; t++) {
        row_route_backward(mb_tensor_f32(probs) + t * experts, experts, ids + t * picks,
                           mb_tensor_f32(weights) + t * picks, picks, normalise,
                           mb_tensor_f32(dweights) + t * picks, mb_tensor_f32(dlogits) + t * experts);
    }
    return MB_OK;
}

/* ---- rows to experts and back ---- */

/* Counting sort: stable, so rows of one expert stay in the order of tokens, then picks. */
mb_status mb_dispatch_ref(mb_ops *ops, const int32_t *ids, int64_t tokens, int64_t picks, int64_t experts,
                          mb_dispatch *dispatch)
{
    (void)ops;
    int32_t *offsets = dispatch->offsets;
    memset(offsets, 0, (size_t)(experts + 1) * sizeof *offsets);
    for (int64_t i = 0; i < tokens * picks; i++) {
        if (ids[i] < experts) offsets[ids[i] + 1]++;
    }
    for (int64_t e = 0; e < experts; e++) offsets[e + 1] += offsets[e];
    for (int64_t i = 0; i < tokens * picks; i++) {
        dispatch->slot_row[i] = ids[i] < experts ? offsets[ids[i]]++ : -1;
        if (ids[i] < experts) dispatch->row_token[dispatch->slot_row[i]] = (int32_t)(i / picks);
    }
    for (int64_t e = experts; e > 0; e--) offsets[e] = offsets[e - 1]; /* they had moved to the ends */
    offsets[0] = 0;
    dispatch->rows = offsets[experts];
    return MB_OK;
}

mb_status mb_gather_ref(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch, mb_tensor *y)
{
    int64_t d = mb_ops_width(x);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t p = 0; p < dispatch->rows; p++) {
        for (int64_t i = 0; i < d; i++)
            mb_ref_set(y, p * d + i, mb_ref_get(x, dispatch->row_token[p] * d + i));
    }
    return MB_OK;
}

mb_status mb_gather_backward_ref(mb_ops *ops, const mb_tensor *dy, const mb_dispatch *dispatch, int64_t picks,
                                 mb_tensor *dx)
{
    int64_t tokens = mb_ops_rows(dx), d = mb_ops_width(dx);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t k = 0; k < picks; k++) {
            int64_t row = dispatch->slot_row[t * picks + k];
            if (row < 0) continue;
            for (int64_t i = 0; i < d; i++) mb_tensor_f32(dx)[t * d + i] += mb_ref_get(dy, row * d + i);
        }
    }
    return MB_OK;
}

mb_status mb_combine_ref(mb_ops *ops, const mb_tensor *x, const mb_dispatch *dispatch,
                         const mb_tensor *weights, mb_tensor *y)
{
    int64_t tokens = mb_ops_rows(y), d = mb_ops_width(y), picks = mb_ops_width(weights);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t k = 0; k < picks; k++) {
            int64_t row = dispatch->slot_row[t * picks + k];
            float weight = mb_tensor_f32(weights)[t * picks + k];
            if (row < 0) continue;
            for (int64_t i = 0; i < d; i++)
                mb_tensor_f32(y)[t * d + i] += weight * mb_ref_get(x, row * d + i);
        }
    }
    return MB_OK;
}

mb_status mb_combine_backward_ref(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                  const mb_dispatch *dispatch, const mb_tensor *weights, mb_tensor *dx,
                                  mb_tensor *opt_dweights)
{
    int64_t tokens = mb_ops_rows(dy), d = mb_ops_width(dy), picks = mb_ops_width(weights);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < tokens; t++) {
        const float *g = mb_tensor_f32(dy) + t * d;
        for (int64_t k = 0; k < picks; k++) {
            int64_t row = dispatch->slot_row[t * picks + k];
            double sum = 0;
            for (int64_t i = 0; row >= 0 && i < d; i++) {
                sum += (double)g[i] * mb_ref_get(x, row * d + i);
                mb_ref_set(dx, row * d + i, mb_tensor_f32(weights)[t * picks + k] * g[i]);
            }
            if (opt_dweights != NULL) mb_tensor_f32(opt_dweights)[t * picks + k] = (float)sum;
        }
    }
    return MB_OK;
}

mb_status mb_shift_columns_ref(mb_ops *ops, int64_t first, float value, mb_tensor *y)
{
    const int64_t rows = mb_ops_rows(y), columns = mb_ops_width(y);
    (void)ops;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t e = first; e < columns; e++) mb_tensor_f32(y)[t * columns + e] += value;
    return MB_OK;
}

mb_status mb_expand_rows_ref(mb_ops *ops, const mb_dispatch *dispatch, const int64_t *row_index,
                             int64_t tokens, int64_t picks, int64_t *out)
{
    (void)ops;
    for (int64_t i = 0; i < tokens * picks; i++)
        if (dispatch->slot_row[i] >= 0) out[dispatch->slot_row[i]] = row_index[i / picks] * picks + i % picks;
    return MB_OK;
}
