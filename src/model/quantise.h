/* quantise: round-to-nearest of frozen weight matrices to 8 or 4 bits, by groups of columns.
 *
 * Layer: model.  Uses: ops (mb_weight).
 * Source: symmetric group-wise round-to-nearest as compressed-tensors does it: scale = max|w| / ((2^bits -
 * 1) / 2) over a group of a row, q = clamp(round(w / scale), -2^(bits-1), 2^(bits-1) - 1), ties to even. A
 * group of zeros has scale 0.
 */
#ifndef MB_QUANTISE_H
#define MB_QUANTISE_H

#include "ops/ops.h"

/* Scales per row of K columns; bytes per row. */
static inline int64_t mb_quantise_groups(int64_t k, int64_t group)
{
    return (k + group - 1) / group;
}
static inline int64_t mb_quantise_row_bytes(int64_t k, int bits)
{
    return bits == 8 ? k : (k + 1) / 2;
}

/* value [N, K] f32 into the weight's tensor and scales, all in the host's memory. */
void mb_quantise_rows(const float *value, mb_weight *weight);

#endif
