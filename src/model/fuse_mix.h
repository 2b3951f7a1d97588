/* fuse_mix: rows of several models' logits into rows of one distribution, in the host's memory.
 *
 * Layer: model.  Uses: nothing.
 * Source: Li et al. (2022) "Branch-Train-Merge", section 2 (the mean of distributions).
 *
 * The same bits for any number of threads and of rows in the call: sums go over fixed pieces of a row, in
 * f64.
 */
#ifndef MB_FUSE_MIX_H
#define MB_FUSE_MIX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* What a token has that no member can give: ln of nothing, but a number. */
#define MB_FUSE_NEVER (-1e30f)

typedef struct mb_fuse_mix {
    int64_t rows, size, members; /* size: of the joint vocabulary */
    const float *const *logits;  /* [members] of [rows, width[m]]; NULL: weighs nothing */
    const int64_t *width;        /* [members] columns, the first of the joint ones */
    const uint8_t *const *has;   /* [members] of [size], which of them count; NULL: all */
    const double *weight;        /* [rows, members] */
    bool by_logits; /* sum_m w_m z_m, a token's over those that have it and divided by their weights; else
                       ln sum_m w_m softmax(z_m) */
    int threads;
} mb_fuse_mix;

/* out [rows, size]. Where all the weight is one member's its row comes out as it is (by_logits) or as its
 * log-softmax. */
mb_status mb_fuse_mix_rows(const mb_fuse_mix *mix, float *out);
/* ln sum exp of a row, and the first largest of it. */
double mb_fuse_mix_sum(const float *row, int64_t size);
int32_t mb_fuse_mix_largest(const float *row, int64_t size);

#endif
