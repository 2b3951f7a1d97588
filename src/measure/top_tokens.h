/* top_tokens: a row of logits as its likeliest tokens and what the others sum to.
 *
 * Layer: measure.  Uses: base.
 */
#ifndef MB_TOP_TOKENS_H
#define MB_TOP_TOKENS_H

#include <stdbool.h>
#include <stdint.h>

/* Of logits [vocab] the k likeliest tokens, likeliest first, of equals the smaller id: ids [k], logprob [k] =
 * ln p at temperature 1, p the softmax; tail[s] = ln of the sum of p^(1/T_s) over all others, -INFINITY where
 * there are none; *mass: sum of p over the k. One pass to choose, one for the sums, which are in f64.
 * false: the logits are not numbers (a -INFINITY among others is one). */
bool mb_top_tokens_get(const float *logits, int64_t vocab, int64_t k, const double *temperature,
                       int64_t temperatures, int32_t *ids, float *logprob, float *tail, float *mass);

#endif
