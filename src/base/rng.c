/* rng.c: Philox4x32-10 and what is drawn from it.
 *
 * Counter words: index low, index high, sub, stream. Key words: seed low, seed high. So every (seed, stream,
 * sub, index) is its own block; none collide. Numbers drawn again after a rejection use stream ^ attempt *
 * 2^16.
 *
 * 1. Philox   2. numbers
 */
#include "base/rng.h"

#include <assert.h>
#include <math.h>

/* ---- 1. Philox ---- */

void mb_rng_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

void mb_rng_block(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index, uint32_t out[4])
{
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), sub, stream};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    mb_rng_philox(counter, key, out);
}

/* ---- 2. numbers ---- */

static void two_words(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index, uint64_t out[2])
{
    uint32_t block[4];
    mb_rng_block(seed, stream, sub, index, block);
    out[0] = (uint64_t)block[1] << 32 | block[0];
    out[1] = (uint64_t)block[3] << 32 | block[2];
}

uint64_t mb_rng_u64(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index)
{
    uint64_t words[2];
    two_words(seed, stream, sub, index, words);
    return words[0];
}

double mb_rng_uniform(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index)
{
    return (double)(mb_rng_u64(seed, stream, sub, index) >> 11) * 0x1p-53;
}

double mb_rng_normal(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index)
{
    uint64_t words[2];
    two_words(seed, stream, sub, index, words);
    double radius = (double)((words[0] >> 11) + 1) * 0x1p-53; /* (0, 1]: its logarithm is finite */
    double turn = (double)(words[1] >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(radius)) * cos(6.283185307179586476925 * turn);
}

/* Multiply and take the high word; the low word tells the few draws to reject (Lemire 2019, ACM TOMACS
 * 29(1)). */
uint64_t mb_rng_below(uint64_t seed, uint32_t stream, uint32_t sub, uint64_t index, uint64_t n)
{
    assert(n >= 1);
    uint64_t threshold = (0 - n) % n;
    for (uint32_t attempt = 0;; attempt++) {
        uint64_t words[2];
        two_words(seed, stream ^ attempt << 16, sub, index, words);
        for (int i = 0; i < 2; i++) {
            unsigned __int128 product = (unsigned __int128)words[i] * n;
            if ((uint64_t)product >= threshold) return (uint64_t)(product >> 64);
        }
    }
}

void mb_rng_permutation(uint64_t seed, uint32_t stream, uint32_t sub, int64_t n, int64_t *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)mb_rng_below(seed, stream, sub, (uint64_t)i, (uint64_t)i + 1);
        int64_t kept = out[i];
        out[i] = out[j];
        out[j] = kept;
    }
}
