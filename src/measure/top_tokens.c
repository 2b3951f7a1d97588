/* top_tokens.c: a heap of the k best so far, whose root is the worst of them; most tokens lose against it at
 * once. Afterwards the heap is taken apart from the worst on, which sorts it.
 *
 * 1. the heap   2. sums   3. a row
 */
#include "measure/top_tokens.h"

#include <math.h>

/* ---- 1. the heap ---- */

/* Does token a come behind token b? */
static bool is_worse(const float *logits, int32_t a, int32_t b)
{
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

/* Let the token at i sink to its place among n: a parent is worse than its children. */
static void sink(const float *logits, int32_t *heap, int64_t n, int64_t i)
{
    const int32_t token = heap[i];
    for (int64_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && is_worse(logits, heap[child + 1], heap[child])) child++;
        if (!is_worse(logits, heap[child], token)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = token;
}

static void choose(const float *logits, int64_t vocab, int64_t k, int32_t *heap)
{
    for (int64_t i = 0; i < k; i++) heap[i] = (int32_t)i;
    for (int64_t i = k / 2 - 1; i >= 0; i--) sink(logits, heap, k, i);
    for (int64_t v = k; v < vocab; v++) {
        if (!(logits[v] > logits[heap[0]])) continue; /* of equals the earlier stays */
        heap[0] = (int32_t)v;
        sink(logits, heap, k, 0);
    }
    for (int64_t n = k - 1; n > 0; n--) {
        const int32_t worst = heap[0];
        heap[0] = heap[n];
        heap[n] = worst;
        sink(logits, heap, n, 0);
    }
}

/* ---- 2. sums ---- */

/* Of all tokens (last < 0) or of those behind `last`: the largest logit, -INFINITY where there are none. */
static float largest(const float *logits, int64_t vocab, int32_t last)
{
    float top = -INFINITY;
    for (int64_t v = 0; v < vocab; v++)
        if (logits[v] > top && (last < 0 || is_worse(logits, (int32_t)v, last))) top = logits[v];
    return top;
}

/* ln of the sum of e^((z - top) / T) over them. */
static double log_sum(const float *logits, int64_t vocab, float top, double temperature, int32_t last)
{
    const float factor = (float)(1.0 / temperature);
    double sum = 0;
    for (int64_t v = 0; v < vocab; v++) {
        if (last >= 0 && !is_worse(logits, (int32_t)v, last)) continue;
        sum += (double)expf((logits[v] - top) * factor);
    }
    return log(sum);
}

/* ---- 3. a row ---- */

bool mb_top_tokens_get(const float *logits, int64_t vocab, int64_t k, const double *temperature,
                       int64_t temperatures, int32_t *ids, float *logprob, float *tail, float *mass)
{
    choose(logits, vocab, k, ids);
    const float top = logits[ids[0]], next = largest(logits, vocab, ids[k - 1]);
    const double all = log_sum(logits, vocab, top, 1, -1);
    double sum = 0;
    if (!isfinite(top) || !isfinite(all)) return false;
    for (int64_t i = 0; i < k; i++) {
        const double value = (double)logits[ids[i]] - (double)top - all;
        logprob[i] = (float)value;
        sum += exp(value);
    }
    /* p^(1/T) = e^((z - top - all) / T) = e^((z - next) / T) e^((next - top - all) / T) */
    for (int64_t s = 0; s < temperatures; s++) {
        const double t = temperature[s], shift = ((double)next - (double)top - all) / t;
        tail[s] =
            next == -INFINITY ? -INFINITY : (float)(shift + log_sum(logits, vocab, next, t, ids[k - 1]));
    }
    *mass = (float)(sum < 1 ? sum : 1);
    return true;
}
