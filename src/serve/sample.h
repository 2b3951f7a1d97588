/* sample: logits -> the next token.
 *
 * Layer: serve.  Uses: base.
 * Source: behaviour of transformers' logits processors, in their order: repetition penalty (Keskar et al.
 * 2019), temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2019), min-p (Nguyen et al. 2024).
 *
 * A draw is a pure function of the logits and the uniform number given, so that nothing depends on what
 * else is in a batch. Ties: top-k keeps all that equal the k-th; of equals at top-p's border the lower ids
 * stay (transformers leaves that to an unstable sort).
 */
#ifndef MB_SAMPLE_H
#define MB_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_sample_rule {
    double temperature;        /* 0: greedy, the first largest logit; the three below have no effect then */
    int64_t top_k;             /* 0: all */
    double top_p;              /* 1: all */
    double min_p;              /* 0: all; else at least this share of the likeliest token's probability */
    double repetition_penalty; /* 1: none; of all tokens of prompt and answer */
} mb_sample_rule;

/* Work arrays of one thread. */
typedef struct mb_sample mb_sample;
mb_status mb_sample_create(int64_t vocab, mb_sample **out_sample);
void mb_sample_destroy(mb_sample **sample);

/* The next token. logits [V]; seen [n]: tokens so far, for the penalty; uniform: in [0, 1), not used when
 * greedy. *out_logprob: log of the token's probability in the softmax of the logits as they are. False when
 * a logit is NaN or none is finite. Cost: a few passes over V. */
bool mb_sample_next(mb_sample *sample, const mb_sample_rule *rule, const float *logits, const uint32_t *seen,
                    int64_t n, double uniform, uint32_t *out_token, double *out_logprob);

/* What mb_sample_next draws from: tokens in rising order, and their weights (not yet divided by their sum),
 * both borrowed until the next call. temperature > 0. False as above. */
bool mb_sample_weights(mb_sample *sample, const mb_sample_rule *rule, const float *logits,
                       const uint32_t *seen, int64_t n, int64_t *out_count, const int32_t **out_tokens,
                       const float **out_weights);

#endif
