/* dequant_body: conversions between f32, bf16 and small integers, compiled once per instruction set. The
 * including
 * file defines MB_DEQUANT_TABLE.
 */
#include "ops/cpu/dequant.h"

#include <string.h>

/* Rounded to nearest even; NaN stays NaN, quiet. */
static inline uint32_t rounded(uint32_t x)
{
    const uint32_t up = x + 0x7FFFu + (x >> 16 & 1u), nan = x | 0x400000u;
    return ((x & 0x7FFFFFFFu) > 0x7F800000u ? nan : up) & 0xFFFF0000u;
}

static void from_bf16(const uint16_t *x, int64_t n, float *out)
{
    uint32_t *bits = (uint32_t *)(void *)out;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) bits[i] = (uint32_t)x[i] << 16;
}

static void to_bf16(const float *x, int64_t n, uint16_t *out)
{
    const uint32_t *bits = (const uint32_t *)(const void *)x;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = (uint16_t)(rounded(bits[i]) >> 16);
}

static void to_bf16_in_place(float *x, int64_t n)
{
    enum { PIECE = 256 };
    uint16_t piece[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) { /* what is written lies before what is read */
        const int64_t count = n - i < PIECE ? n - i : PIECE;
        to_bf16(x + i, count, piece);
        memcpy((char *)x + i * 2, piece, (size_t)count * sizeof *piece);
    }
}

static void round_all(float *x, int64_t n)
{
    uint32_t *bits = (uint32_t *)(void *)x;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) bits[i] = rounded(bits[i]);
}

static void from_int8(const int8_t *x, float scale, int64_t n, float *out)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = (float)x[i] * scale;
}

static void from_int4(const uint8_t *x, float scale, int64_t n, float *out)
{
#pragma omp simd
    for (int64_t i = 0; i < n / 2; i++) {
        out[2 * i] = (float)((int)(x[i] & 15) - 8) * scale;
        out[2 * i + 1] = (float)((int)(x[i] >> 4) - 8) * scale;
    }
    if (n % 2 != 0) out[n - 1] = (float)((int)(x[n / 2] & 15) - 8) * scale;
}

const mb_dequant MB_DEQUANT_TABLE = {.from_bf16 = from_bf16,
                                     .to_bf16 = to_bf16,
                                     .to_bf16_in_place = to_bf16_in_place,
                                     .round = round_all,
                                     .from_int8 = from_int8,
                                     .from_int4 = from_int4};
