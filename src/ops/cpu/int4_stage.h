/* int4_stage: a piece of 64 rows of a quantised weight, transposed: words of bits and scales by column.
 *
 * Layer: ops (cpu backend, internal).  Included once per file, by int4_body.h and int4_avx512bf16.c.
 *
 * A word is 32 bits of a row: 8 fields of 4 bits, or 4 of 8, the first lowest. Fields of 8 bits are stored
 * + 128 here.
 */
#ifndef MB_CPU_INT4_STAGE_H
#define MB_CPU_INT4_STAGE_H

#include "ops/cpu/int4.h"
#include "ops/cpu/simd.h"

#if defined(__AVX512F__)
#include "ops/cpu/transpose_avx512.h"
#endif

enum {
    COLUMNS = MB_INT4_COLUMNS,
    WORDS = 64,        /* of a row in a piece */
    SPANS = 2 * WORDS, /* runs of words with one scale, at most */
    CACHE_LINE = 64
};

/* Words t of a row are columns first + t * each .. of the weight; span s has words ends[s-1] .. ends[s]. */
typedef struct stage {
    uint32_t words[WORDS][COLUMNS];
    float scale[WORDS + 16][COLUMNS]; /* by group, from the first that the piece touches */
    int64_t first, fields;            /* columns of the weight in the piece */
    int64_t spans, ends[SPANS];
} stage;

/* ---- 1. vectors ---- */

/* The first n bytes, zeros behind; none when n <= 0. */
static inline mb_vu load_bytes(const char *p, int64_t n)
{
    mb_vu x = {0};
#if defined(__AVX512F__)
    if (n >= 64) return (mb_vu)_mm512_loadu_si512(p);
    if (n > 0) x = (mb_vu)_mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, p);
#else
#if defined(__AVX2__)
    if (n >= 32) return (mb_vu)_mm256_loadu_si256((const __m256i *)(const void *)p);
    if (n > 0 && n % 4 == 0) return (mb_vu)vf_load_part((const float *)(const void *)p, n / 4);
#endif
    if (n > 0) memcpy(&x, p, (size_t)(n < (int64_t)sizeof x ? n : (int64_t)sizeof x));
#endif
    return x;
}

/* W x W words, in place. */
static inline __attribute__((always_inline)) void transpose(mb_vu x[W])
{
#if defined(__AVX512F__)
    transpose_words((__m512i *)x);
#elif defined(__AVX2__)
    __m256i y[8], *z = (__m256i *)x;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_epi32(z[i], z[i + 1]);
        y[i + 1] = _mm256_unpackhi_epi32(z[i], z[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
        z[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
        z[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
        z[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
        z[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++) {
        y[i] = _mm256_permute2x128_si256(z[i], z[i + 4], 0x20);
        y[i + 4] = _mm256_permute2x128_si256(z[i], z[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) z[i] = y[i];
#else
    const mb_vu a = __builtin_shuffle(x[0], x[1], (mb_vu){0, 4, 1, 5});
    const mb_vu b = __builtin_shuffle(x[0], x[1], (mb_vu){2, 6, 3, 7});
    const mb_vu c = __builtin_shuffle(x[2], x[3], (mb_vu){0, 4, 1, 5});
    const mb_vu d = __builtin_shuffle(x[2], x[3], (mb_vu){2, 6, 3, 7});
    x[0] = __builtin_shuffle(a, c, (mb_vu){0, 1, 4, 5});
    x[1] = __builtin_shuffle(a, c, (mb_vu){2, 3, 6, 7});
    x[2] = __builtin_shuffle(b, d, (mb_vu){0, 1, 4, 5});
    x[3] = __builtin_shuffle(b, d, (mb_vu){2, 3, 6, 7});
#endif
}

/* ---- 2. a piece ---- */

/* Rows of words, `stride` bytes apart, as columns: out[i] has word i of each; `bytes` of a row exist. */
static inline void transpose_rows(const char *from, int64_t stride, int64_t rows, int64_t bytes,
                                  uint32_t flip, uint32_t (*out)[COLUMNS])
{
    for (int64_t row = 0; row < COLUMNS; row += W) {
        for (int64_t at = 0; at < bytes; at += 4 * W) {
            mb_vu x[W];
            const char *corner = from + row * stride + at;
            if (rows - row >= W && bytes - at >= 4 * W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; i++) x[i] = load_bytes(corner + i * stride, 4 * W);
            } else {
                for (int i = 0; i < W; i++)
                    x[i] = load_bytes(corner + i * stride, row + i < rows ? bytes - at : 0);
            }
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < W; i++) {
                x[i] ^= flip;
                memcpy(&out[at / 4 + i][row], &x[i], sizeof x[i]);
            }
        }
    }
}

/* Bytes `at` .. of rows row.. row+n (at most COLUMNS). */
static inline void stage_piece(const mb_weight *w, int64_t row, int64_t n, int64_t at, stage *s)
{
    const int64_t row_bytes = w->tensor.shape[1], left = row_bytes - at, groups = w->scale.shape[1];
    const int64_t bytes = left < 4 * WORDS ? left : 4 * WORDS, each = 32 / w->bits;
    s->first = at * 8 / w->bits;
    s->fields = w->width - s->first < WORDS * each ? w->width - s->first : WORDS * each;
    const int64_t words = (s->fields + each - 1) / each, last = (s->first + s->fields - 1) / w->group;
    transpose_rows((const char *)w->tensor.data + row * row_bytes + at, row_bytes, n, bytes,
                   w->bits == 8 ? 0x80808080u : 0, s->words);
    int64_t group = s->first / w->group;
    transpose_rows((const char *)(mb_tensor_f32(&w->scale) + row * groups + group), groups * 4, n,
                   (last + 1 - group) * 4, 0, (uint32_t(*)[COLUMNS])(void *)s->scale);
    s->spans = 0;
    for (; group <= last; group++) {
        const int64_t end = ((group + 1) * w->group - s->first) / each;
        s->ends[s->spans++] = group == last || end > words ? words : end;
    }
}

/* ---- 3. fields as floats ---- */

/* A field from bit `at` on of word & mask, as a float: its exponent, and what is to be taken off. at + bits
 * <= 23. */
static inline uint32_t field_exponent(int at)
{
    return (uint32_t)(127 + 23 - at) << 23;
}
static inline float field_bias(int at, int bits)
{
    return (float)((1 << (23 - at)) + (1 << (bits - 1)));
}

#endif
