/* sample: logits -> the next token.
 *
 * 1. passes over the vocabulary, in lanes
 * 2. penalty
 * 3. filters
 * 4. drawing
 *
 * Weights are exp((logit - largest) / temperature), so filters compare them without a division. Each filter
 * leaves a list of tokens in rising order.
 */
#include "serve/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { LANES = 16 };

struct mb_sample {
    int64_t vocab;
    float *logits;   /* [V] with the penalty */
    float *weights;  /* [V], then of the tokens kept */
    int32_t *tokens; /* [V] kept */
    int32_t *heap;   /* [V] places in tokens */
    float *top;      /* [V] heap of the largest logits */
};

mb_status mb_sample_create(int64_t vocab, mb_sample **out_sample)
{
    mb_status status = MB_OK;
    mb_sample *sample = NULL;
    MB_NEW(sample);
    sample->vocab = vocab;
    MB_NEW_ARRAY(sample->logits, vocab);
    MB_NEW_ARRAY(sample->weights, vocab);
    MB_NEW_ARRAY(sample->tokens, vocab);
    MB_NEW_ARRAY(sample->heap, vocab);
    MB_NEW_ARRAY(sample->top, vocab);
    *out_sample = sample;
    sample = NULL;
done:
    mb_sample_destroy(&sample);
    return status;
}

void mb_sample_destroy(mb_sample **sample)
{
    mb_sample *s = *sample;
    if (s == NULL) return;
    mb_free(s->logits);
    mb_free(s->weights);
    mb_free(s->tokens);
    mb_free(s->heap);
    mb_free(s->top);
    mb_free(s);
    *sample = NULL;
}

/* ---- 1. passes over the vocabulary ---- */

/* Largest value; NaN when there is one. */
static float largest(const float *x, int64_t n)
{
    float lane[LANES], top = -INFINITY, sum = 0;
    int64_t i = 0;
    for (int l = 0; l < LANES; l++) lane[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int l = 0; l < LANES; l++) top = lane[l] > top ? lane[l] : top;
    /* A NaN never wins a comparison; 0 * x is NaN for it (and for infinities, which are looked at then). */
    float zero[LANES] = {0};
    for (i = 0; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) zero[l] += 0 * x[i + l];
    for (; i < n; i++) sum += 0 * x[i];
    for (int l = 0; l < LANES; l++) sum += zero[l];
    for (i = 0; sum != 0 && i < n; i++)
        if (isnan(x[i])) return NAN;
    return top;
}

/* e^x for x <= 0, to 2e-7 relative: 2^n e^r with r in [-ln2/2, ln2/2] by a polynomial; 0 below -87. */
static inline float exp_below(float x)
{
    union {
        int32_t i;
        float f;
    } power;
    const float bounded = x < -87.0f ? -87.0f : x;
    const int32_t n = (int32_t)(bounded * 1.44269504f - 0.5f);
    const float r = (bounded - (float)n * 0.693359375f) + (float)n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    power.i = (int32_t)((uint32_t)(n + 127) << 23);
    return x < -87.0f ? 0 : (p * r * r + r + 1) * power.f;
}

/* Sum of e^((x - top) * scale); opt_out receives each. */
static double exponentials(const float *x, int64_t n, float top, float scale, float *opt_out)
{
    float lane[LANES] = {0}, piece[LANES];
    double sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) piece[l] = exp_below((x[i + l] - top) * scale);
        for (int l = 0; l < LANES; l++) lane[l] += piece[l];
        if (opt_out != NULL) memcpy(opt_out + i, piece, sizeof piece);
    }
    for (; i < n; i++) {
        const float one = exp_below((x[i] - top) * scale);
        sum += one;
        if (opt_out != NULL) opt_out[i] = one;
    }
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

/* ---- 2. penalty ---- */

/* The logits with tokens seen made less likely: the caller's own when there is no penalty. */
static const float *penalised(mb_sample *s, const mb_sample_rule *rule, const float *logits,
                              const uint32_t *seen, int64_t n)
{
    const float penalty = (float)rule->repetition_penalty;
    if (penalty == 1) return logits;
    memcpy(s->logits, logits, (size_t)s->vocab * sizeof *logits);
    for (int64_t i = 0; i < n; i++) {
        const float x = logits[seen[i]];
        s->logits[seen[i]] = x < 0 ? x * penalty : x / penalty;
    }
    return s->logits;
}

/* ---- 3. filters ---- */

/* The k-th largest of n values, by a heap of the k largest (smallest on top). */
static float kth_largest(float *heap, int64_t k, const float *x, int64_t n)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t at;
        if (count < k) {
            for (at = count++; at > 0 && heap[(at - 1) / 2] > x[i]; at = (at - 1) / 2)
                heap[at] = heap[(at - 1) / 2];
        } else {
            if (x[i] <= heap[0]) continue;
            for (at = 0;;) {
                int64_t child = 2 * at + 1;
                if (child >= k) break;
                if (child + 1 < k && heap[child + 1] < heap[child]) child++;
                if (heap[child] >= x[i]) break;
                heap[at] = heap[child];
                at = child;
            }
        }
        heap[at] = x[i];
    }
    return heap[0];
}

/* Tokens whose logit is at least `least`: their list, weights moved together. Returns their number. */
static int64_t keep_from(mb_sample *s, const float *logits, float least)
{
    int64_t count = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        if (logits[i] < least) continue;
        s->tokens[count] = (int32_t)i;
        s->weights[count++] = s->weights[i];
    }
    return count;
}

/* Is place a behind place b in falling order (equals: the lower token first)? */
static bool is_behind(const mb_sample *s, int32_t a, int32_t b)
{
    return s->weights[a] != s->weights[b] ? s->weights[a] < s->weights[b] : a > b;
}

static void sift(const mb_sample *s, int32_t *heap, int64_t count, int64_t at)
{
    const int32_t moved = heap[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && is_behind(s, heap[child], heap[child + 1])) child++;
        if (!is_behind(s, moved, heap[child])) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static int by_number(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The likeliest tokens until they make up top_p of the mass. Tokens below the mean share of the rest are
 * never among them, so few enter the heap. */
static int64_t keep_mass(mb_sample *s, int64_t count, double top_p)
{
    double total = 0, mass = 0;
    int64_t in = 0, kept = 0;
    for (int64_t i = 0; i < count; i++) total += s->weights[i];
    const double least = (1 - top_p) * total / (double)count * 0.999;
    for (int64_t i = 0; i < count; i++)
        if (s->weights[i] >= least) s->heap[in++] = (int32_t)i;
    for (int64_t i = in / 2 - 1; i >= 0; i--) sift(s, s->heap, in, i);
    /* Taken ones are put behind the shrinking heap. */
    while (in - kept > 0 && (kept == 0 || mass < top_p * total)) {
        const int32_t best = s->heap[0];
        mass += s->weights[best];
        s->heap[0] = s->heap[in - ++kept];
        s->heap[in - kept] = best;
        if (in - kept > 0) sift(s, s->heap, in - kept, 0);
    }
    int32_t *taken = s->heap + (in - kept);
    qsort(taken, (size_t)kept, sizeof *taken, by_number);
    for (int64_t i = 0; i < kept; i++) {
        s->tokens[i] = s->tokens[taken[i]];
        s->weights[i] = s->weights[taken[i]];
    }
    return kept;
}

static int64_t keep_above(mb_sample *s, int64_t count, float least)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        if (s->weights[i] < least) continue;
        s->tokens[kept] = s->tokens[i];
        s->weights[kept++] = s->weights[i];
    }
    return kept;
}

/* ---- 4. drawing ---- */

bool mb_sample_weights(mb_sample *sample, const mb_sample_rule *rule, const float *logits,
                       const uint32_t *seen, int64_t n, int64_t *out_count, const int32_t **out_tokens,
                       const float **out_weights)
{
    mb_sample *s = sample;
    const float *x = penalised(s, rule, logits, seen, n);
    const float top = largest(x, s->vocab);
    if (!isfinite(top)) return false;
    exponentials(x, s->vocab, top, (float)(1 / rule->temperature), s->weights);
    const bool has_k = rule->top_k > 0 && rule->top_k < s->vocab;
    int64_t count = keep_from(s, x, has_k ? kth_largest(s->top, rule->top_k, x, s->vocab) : -INFINITY);
    if (rule->top_p < 1) count = keep_mass(s, count, rule->top_p);
    if (rule->min_p > 0) count = keep_above(s, count, (float)rule->min_p);
    *out_count = count;
    *out_tokens = s->tokens;
    *out_weights = s->weights;
    return true;
}

static uint32_t first_equal(const float *x, float value)
{
    uint32_t i = 0;
    while (x[i] != value) i++;
    return i;
}

static uint32_t draw(const int32_t *tokens, const float *weights, int64_t count, double uniform)
{
    double total = 0, sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < count; i++) total += weights[i];
    for (int64_t i = 0; i < count; i++) {
        if (weights[i] == 0) continue;
        sum += weights[i];
        last = i;
        if (sum > uniform * total) break;
    }
    return (uint32_t)tokens[last];
}

bool mb_sample_next(mb_sample *sample, const mb_sample_rule *rule, const float *logits, const uint32_t *seen,
                    int64_t n, double uniform, uint32_t *out_token, double *out_logprob)
{
    uint32_t token;
    const float top = largest(logits, sample->vocab);
    if (!isfinite(top)) return false;
    if (rule->temperature > 0) {
        int64_t count;
        const int32_t *tokens;
        const float *weights;
        if (!mb_sample_weights(sample, rule, logits, seen, n, &count, &tokens, &weights)) return false;
        token = draw(tokens, weights, count, uniform);
    } else {
        const float *x = penalised(sample, rule, logits, seen, n);
        token = first_equal(x, x == logits ? top : largest(x, sample->vocab));
    }
    *out_token = token;
    *out_logprob = (double)(logits[token] - top) - log(exponentials(logits, sample->vocab, top, 1, NULL));
    return true;
}
