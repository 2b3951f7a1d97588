/* corrupt: a damaged copy of a record, drawn by a counter, the same on any rank and after any restart.
 *
 * Layer: learn.  Uses: base.
 *
 * A copy has one kind of damage:
 *   permute  35 %  the record is cut into windows of 2-6 tokens, each shuffled
 *   replace  25 %  each token with probability q (drawn once in 0.15-0.5) becomes another one: for half of
 *                  the copies from anywhere in the micro-batch, for the other half from the whole vocabulary
 *   delete   20 %  each token is dropped with probability q
 *   repeat   20 %  a span of up to half the record is said again (1-4 times) in place of what followed
 *
 * The first token (often a begin mark) stays. A copy is never longer than its record and never empty.
 */
#ifndef MB_CORRUPT_H
#define MB_CORRUPT_H

#include <stdint.h>

typedef enum mb_corrupt_kind {
    MB_CORRUPT_PERMUTE,
    MB_CORRUPT_REPLACE,
    MB_CORRUPT_DELETE,
    MB_CORRUPT_REPEAT,
    MB_CORRUPT_KINDS
} mb_corrupt_kind;

typedef struct mb_corrupt_source {
    uint64_t seed;
    int64_t epoch;
    int64_t sample;      /* global record number, < 2^42 */
    const int32_t *pool; /* tokens of the micro-batch */
    int64_t pool_count;
    int64_t vocab;
} mb_corrupt_source;

mb_corrupt_kind mb_corrupt_kind_get(const mb_corrupt_source *source);
/* tokens[n], n >= 1 -> out[n]; returns the copy's length, 1..n. */
int64_t mb_corrupt_copy(const mb_corrupt_source *source, const int32_t *tokens, int64_t n, int32_t *out);

#endif
