/* scorer_record: the formulas of the scores, on one record's tokens and router logits. Private to scorer*.c
 * and its tests.
 *
 * Layer: measure.  Uses: base.
 *
 * Sums are f64 in token order, so that a record's score does not depend on what is around it.
 */
#ifndef MB_SCORER_RECORD_H
#define MB_SCORER_RECORD_H

#include <stdint.h>

#include "base/status.h"

/* Means over the tokens of logits[T, gates] of one router; T > 0, good experts are the first `good` columns.
 */
typedef struct mb_scorer_router {
    double good_mass;   /* softmax mass of the good experts */
    double good_logits; /* sum of the good experts' raw logits */
    double entropy;     /* of the softmax over all gates, in nats */
} mb_scorer_router;
mb_scorer_router mb_scorer_record_router(const float *logits, int64_t tokens, int64_t gates, int64_t good);

/* Share of the tokens that lie in a run of 8 tokens which stood earlier in the record already: 0 for text
 * that repeats nothing, near 1 - 1/k for a text said k times. 0 for n < 9. Repeated lines, boilerplate and
 * loops of a generator show here, short common phrases do not. */
enum { MB_SCORER_RECORD_GRAM = 8 };
mb_status mb_scorer_record_repeats(const uint32_t *tokens, int64_t n, double *out_share);

#endif
