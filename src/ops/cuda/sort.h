/* sort: stable counting sort of small keys on the device, for rows to experts and for tokens of one id.
 *
 * Layer: ops (cuda backend).  Uses: cuda.h.
 */
#ifndef MB_CUDA_SORT_H
#define MB_CUDA_SORT_H

#include "ops/cuda/cuda.h"

enum { MB_SORT_MOST_BINS = 8192 };

/* Item i of n has key (keys[j] >> shift) & mask with j = opt_order != NULL ? opt_order[i] : i. Items of
 * keys in [0, bins) are put in rising order of keys, then of i; the others nowhere. */
typedef struct mb_sort {
    int64_t n;
    const int32_t *keys, *opt_order;
    int shift;
    int32_t mask;
    int64_t bins;       /* 0..MB_SORT_MOST_BINS */
    int32_t divisor;    /* sorted[p] = j / divisor of the item put at p; -1 at places that no item takes */
    int32_t *offsets;   /* [bins+1] first place of each key */
    int32_t *sorted;    /* [n] */
    int32_t *opt_place; /* [n] place of item i, -1 for nowhere */
} mb_sort;

/* One kernel where items are few, else four. Every part of the answer depends on the input alone.
 * MB_EUNSUPPORTED: too many bins. */
mb_status mb_cuda_sort(mb_ops *ops, const mb_sort *sort);

#endif
