/* exact_sum: sums of f64 values without rounding, so that their order and the number of ranks do not matter.
 *
 * Layer: choose.  Uses: nothing.
 * Source: the fixed-point accumulator of Kulisch (1986), in words of 32 bits held in i64 so that carries
 * wait.
 */
#ifndef MB_EXACT_SUM_H
#define MB_EXACT_SUM_H

#include <stdint.h>

/* 2098 bits between the smallest and the largest double, and room for 2^29 additions. Words of several
 * accumulators may be added to each other (2^29 values in all). Start zeroed. */
enum { MB_EXACT_SUM_WORDS = 68 };
typedef struct mb_exact_sum {
    int64_t word[MB_EXACT_SUM_WORDS];
} mb_exact_sum;

void mb_exact_sum_add(mb_exact_sum *sum, double value); /* finite */
/* Within one rounding per word of the exact sum, and a function of the exact sum alone. */
double mb_exact_sum_get(const mb_exact_sum *sum);

#endif
