/* rng: counter-based random numbers; a number is a pure function of (seed, stream, index).
 *
 * Layer: base.
 * Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", SC'11:
 * Philox4x32-10.
 *
 * Streams keep uses apart; `index` is a global sample or element number, so nothing depends on ranks or
 * threads.
 */
#ifndef MB_RNG_H
#define MB_RNG_H

#include <stdint.h>

enum mb_rng_stream {
    MB_RNG_INIT = 1,      /* weight initialisation; sub = hash of the tensor name */
    MB_RNG_SHUFFLE = 2,   /* order of records; sub = epoch */
    MB_RNG_DROPOUT = 3,   /* sub = layer and place */
    MB_RNG_CORRUPT = 4,   /* corrupted copies; sub = epoch */
    MB_RNG_TRASH = 5,     /* trash rows */
    MB_RNG_SELECT = 6,    /* random scores, sampling with temperature */
    MB_RNG_DATA = 7,      /* data recipes and mixes */
    MB_RNG_BOOTSTRAP = 8, /* resampling */
    MB_RNG_GENERATE = 9   /* tokens drawn; sub = position, index = record and sample */
};

/* The bare generator: ten rounds on a counter of four words with a key of two. */
void mb_rng_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Four 32-bit words: counter (index low, index high, sub, stream), key (seed low, seed high). stream < 65536.
 */
void mb_rng_block(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index, uint32_t out[4]);

uint64_t mb_rng_u64(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index);
double mb_rng_uniform(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index); /* [0, 1), 53 bits */
double mb_rng_normal(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index);  /* Box-Muller, f64 */
uint64_t mb_rng_below(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index,
                      uint64_t n); /* [0, n), n >= 1 */

/* Permutation of 0..n-1 (Fisher-Yates on the stream above): out[n]. */
void mb_rng_permutation(uint64_t seed, uint32_t stream, uint32_t sub, int64_t n, int64_t *out);

#endif
