/* panels (AVX-512): packing into panels of bf16, transposing, and products.
 *
 * A word is the 32 bits of two bf16 numbers, the first in the low half.
 *
 * 1. words
 * 2. packing
 * 3. transposing
 * 4. products
 */
#include "ops/cpu/panels.h"

#include <immintrin.h>
#include <string.h>

#include "ops/cpu/transpose_avx512.h"

enum { LANES = 16, GROUPS = MB_PANEL_COLUMNS / LANES };

bool mb_panels_is_usable(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

/* ---- 1. words ---- */

static inline __mmask16 mask16(int64_t n)
{
    return n >= LANES ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1u);
}

static inline __mmask32 mask32(int64_t n)
{
    return n >= 2 * LANES ? 0xFFFFFFFFu : n <= 0 ? 0 : (__mmask32)((1u << n) - 1u);
}

/* f32 bits rounded to bf16, in the high half of each lane; the low half is anything. */
static inline __m512i rounded(__m512i x)
{
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7FFF)), odd);
    const __m512i size = _mm512_and_si512(x, _mm512_set1_epi32(0x7FFFFFFF));
    const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(0x7F800000));
    return _mm512_mask_or_epi32(up, is_nan, x, _mm512_set1_epi32(0x400000));
}

/* 16 numbers of a row as bf16 in the high halves. */
static inline __m512i load_high(const mb_panels_source *b, int64_t row, int64_t column, int64_t columns)
{
    const __mmask16 mask = mask16(columns - column);
    const int64_t at = row * b->ld + column;
    if (!b->is_bf16) return rounded(_mm512_maskz_loadu_epi32(mask, (const float *)b->data + at));
    const __m256i x = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)b->data + at);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

/* 32 numbers of a row as 16 words. */
static inline __m512i load_words(const mb_panels_source *b, int64_t row, int64_t column, int64_t columns)
{
    const int64_t at = row * b->ld + column, left = columns - column;
    if (b->is_bf16) return _mm512_maskz_loadu_epi16(mask32(left), (const uint16_t *)b->data + at);
    const float *data = (const float *)b->data + at;
    const __m512i low = rounded(_mm512_maskz_loadu_epi32(mask16(left), data));
    const __mmask16 rest = mask16(left - LANES);
    const __m512i high =
        rest == 0 ? _mm512_setzero_si512() : rounded(_mm512_maskz_loadu_epi32(rest, data + LANES));
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31,
                                         29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(low, odd, high);
}

/* ---- 2. packing ---- */

/* One pair of rows, all columns. */
static inline void pack_pair(const mb_panels_source *b, int64_t row, int64_t k, int64_t n, int64_t stride,
                             uint16_t *out)
{
    for (int64_t j = 0; j < n; j += LANES) {
        const int64_t panel = j / MB_PANEL_COLUMNS, column = j % MB_PANEL_COLUMNS;
        const __m512i zero = _mm512_setzero_si512();
        const __m512i low = row < k ? load_high(b, row, j, n) : zero;
        const __m512i high = row + 1 < k ? load_high(b, row + 1, j, n) : zero;
        const __m512i word = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(low, 16), high);
        _mm512_store_si512(out + panel * stride + (row / 2 * MB_PANEL_COLUMNS + column) * 2, word);
    }
}

/* Columns n.. of the last panel are zero. */
static void clear_last(int64_t k, int64_t n, int64_t stride, uint16_t *out)
{
    const int64_t used = n % MB_PANEL_COLUMNS;
    if (used == 0) return;
    const int64_t first = (used + LANES - 1) / LANES * LANES;
    uint16_t *panel = out + n / MB_PANEL_COLUMNS * stride;
    for (int64_t row = 0; row < mb_panels_rows(k); row += 2) {
        memset(panel + (row / 2 * MB_PANEL_COLUMNS + first) * 2, 0,
               (size_t)(MB_PANEL_COLUMNS - first) * 2 * sizeof *out);
    }
}

void mb_panels_pack(const mb_panels_source *b, int64_t k, int64_t n, int64_t stride, uint16_t *out)
{
    const mb_panels_source wide = {b->data, false, b->ld}, narrow = {b->data, true, b->ld};
    if (b->is_bf16) {
        for (int64_t row = 0; row < mb_panels_rows(k); row += 2) pack_pair(&narrow, row, k, n, stride, out);
    } else {
        for (int64_t row = 0; row < mb_panels_rows(k); row += 2) pack_pair(&wide, row, k, n, stride, out);
    }
    clear_last(k, n, stride, out);
}

/* 16 columns (rows of b) from `first`, 32 rows from `row`. */
static inline void pack_square(const mb_panels_source *b, int64_t row, int64_t first, int64_t k, int64_t n,
                               int64_t stride, uint16_t *out)
{
    __m512i x[LANES];
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++) {
        x[i] = first + i < n ? load_words(b, first + i, row, k) : _mm512_setzero_si512();
    }
    transpose_words(x);
    uint16_t *panel = out + first / MB_PANEL_COLUMNS * stride;
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; i++) {
        const int64_t at = (row / 2 + i) * MB_PANEL_COLUMNS + first % MB_PANEL_COLUMNS;
        _mm512_store_si512(panel + at * 2, x[i]);
    }
}

static inline void pack_squares(const mb_panels_source *b, int64_t k, int64_t n, int64_t stride,
                                uint16_t *out)
{
    for (int64_t first = 0; first < n; first += LANES) {
        for (int64_t row = 0; row < k; row += MB_PANEL_ROWS) pack_square(b, row, first, k, n, stride, out);
    }
}

void mb_panels_pack_transposed(const mb_panels_source *b, int64_t k, int64_t n, int64_t stride, uint16_t *out)
{
    const mb_panels_source wide = {b->data, false, b->ld}, narrow = {b->data, true, b->ld};
    if (b->is_bf16) {
        pack_squares(&narrow, k, n, stride, out);
    } else {
        pack_squares(&wide, k, n, stride, out);
    }
    clear_last(k, n, stride, out);
}

/* ---- 3. transposing ---- */

void mb_panels_transpose(const uint16_t *a, int64_t k, int64_t m, int64_t ld, int64_t width, uint16_t *out)
{
    const mb_panels_source b = {a, true, ld};
    for (int64_t row = 0; row < width; row += MB_PANEL_ROWS) {
        for (int64_t first = 0; first < m; first += LANES) {
            __m512i x[LANES];
#pragma GCC unroll 16
            for (int64_t i = 0; i < LANES; i++) {
                const int64_t r = row + 2 * i;
                const __m512i zero = _mm512_setzero_si512();
                const __m512i low = r < k ? load_high(&b, r, first, m) : zero;
                const __m512i high = r + 1 < k ? load_high(&b, r + 1, first, m) : zero;
                x[i] = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(low, 16), high);
            }
            transpose_words(x);
#pragma GCC unroll 16
            for (int64_t i = 0; i < LANES; i++) {
                if (first + i < m) _mm512_storeu_si512(out + (first + i) * width + row, x[i]);
            }
        }
    }
}

/* ---- 4. products ---- */

enum {
    ROWS = 6,
    TILE = MB_PANEL_TILE,
    DEPTH = 1024 /* numbers of k taken at a time: of all columns, before the next */
};

/* Numbers 2 i.. of a row of k as a word. */
static inline int32_t word_at(const uint16_t *a, int64_t i, int64_t k)
{
    int32_t word = 0;
    memcpy(&word, a + i, (size_t)(i + 1 < k ? 2 : 1) * sizeof *a);
    return word;
}

/* 16 columns of a row of c from `column`. */
static inline void finish(const mb_panels_product *p, int64_t row, int64_t column, __m512 sum)
{
    const __mmask16 mask = mask16(p->n - column);
    const int64_t at = row * p->ldc + column;
    uint16_t *narrow = (uint16_t *)p->c + at;
    float *wide = (float *)p->c + at;
    if (p->opt_bias != NULL) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, p->opt_bias + column));
    if (p->accumulate && p->is_c_bf16) {
        const __m512i old = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, narrow));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(old, 16)));
    } else if (p->accumulate) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, wide));
    }
    if (!p->is_c_bf16) {
        _mm512_mask_storeu_ps(wide, mask, sum);
        return;
    }
    const __m512i bits = _mm512_srli_epi32(rounded(_mm512_castps_si512(sum)), 16);
    _mm256_mask_storeu_epi16(narrow, mask, _mm512_cvtepi32_epi16(bits));
}

/* A panel's columns of a row of c into the cache, to be written. */
static inline void fetch(const mb_panels_product *p, int64_t row, int64_t column)
{
    const int64_t size = p->is_c_bf16 ? 2 : 4;
    const char *c = (const char *)p->c + (row * p->ldc + column) * size;
    for (int64_t at = 0; at < MB_PANEL_COLUMNS * size; at += 64) __builtin_prefetch(c + at, 1);
}

/* A tile's rows of a, one panel, k from first to last (both even, or the end): sums are kept between the
 * parts of k; behind the last part they go to c, from `column` on. */
typedef struct panel_part {
    const mb_panels_product *p; /* c and bias of the tile */
    const uint16_t *a, *panel;
    int64_t m, first, last, column, ld;
    int64_t row_step, pair_step; /* of a: numbers from a row to the next, from a pair of k to the next */
    float *sums;
} panel_part;

/* Rows row.. of the part, their number and that of vectors known where this is inlined. */
static inline __attribute__((always_inline, target("avx512bf16"))) void
sum_rows(int rows, int groups, const panel_part *t, int64_t row)
{
    const mb_panels_product *p = t->p;
    const uint16_t *a = t->a + row * t->row_step;
    const int64_t step = t->row_step;
    const bool is_end = t->last >= p->k;
    float *sums = t->sums + row * t->ld;
    __m512 acc[ROWS][GROUPS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int g = 0; g < groups; g++)
            acc[r][g] = t->first == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * t->ld + g * LANES);
    }
    for (int r = 0; is_end && r < rows; r++) fetch(p, row + r, t->column);
    for (int64_t i = t->first; i < t->last; i += 2) {
        __m512bh b[GROUPS];
        const bool is_pair = i + 1 < p->k;
        const uint16_t *x_at = a + i / 2 * t->pair_step;
#pragma GCC unroll 16
        for (int g = 0; g < groups; g++)
            b[g] = (__m512bh)_mm512_load_si512(t->panel + i * MB_PANEL_COLUMNS + g * LANES * 2);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            int32_t word;
            if (is_pair) memcpy(&word, x_at + r * step, sizeof word);
            if (!is_pair) word = word_at(a + r * step, i, p->k);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(word);
#pragma GCC unroll 16
            for (int g = 0; g < groups; g++) acc[r][g] = _mm512_dpbf16_ps(acc[r][g], x, b[g]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int g = 0; g < groups; g++) {
            if (is_end)
                finish(p, row + r, t->column + g * LANES, acc[r][g]);
            else
                _mm512_storeu_ps(sums + r * t->ld + g * LANES, acc[r][g]);
        }
    }
}

/* All rows; the panel's first `groups` vectors of columns. */
static inline __attribute__((always_inline, target("avx512bf16"))) void sum_tile(int groups,
                                                                                 const panel_part *t)
{
    int64_t r = 0;
    for (; r + ROWS <= t->m; r += ROWS) sum_rows(ROWS, groups, t, r);
    switch (t->m - r) {
    case 5:
        sum_rows(5, groups, t, r);
        break;
    case 4:
        sum_rows(4, groups, t, r);
        break;
    case 3:
        sum_rows(3, groups, t, r);
        break;
    case 2:
        sum_rows(2, groups, t, r);
        break;
    case 1:
        sum_rows(1, groups, t, r);
        break;
    default:
        break;
    }
}

static __attribute__((target("avx512bf16"))) void sum_panel(const panel_part *t)
{
    if (t->p->n - t->column <= LANES) {
        sum_tile(1, t);
    } else {
        sum_tile(GROUPS, t);
    }
}

void mb_panels_finish(const mb_panels_product *p, const float *sums, int64_t ld)
{
    for (int64_t row = 0; row < p->m; row++) {
        for (int64_t column = 0; column < p->n; column += LANES) {
            const __mmask16 mask = mask16(p->n - column);
            finish(p, row, column, _mm512_maskz_loadu_ps(mask, sums + row * ld + column));
        }
    }
}

/* Rows first.. of at most TILE by panels of [column, column + columns). */
static void multiply_tile(const mb_panels_product *p, int64_t first, int64_t m, int64_t column,
                          int64_t columns, float *sums)
{
    const int64_t stride = mb_panels_stride(p->k), n = p->n - column < columns ? p->n - column : columns;
    mb_panels_product tile = *p;
    tile.m = m, tile.n = n;
    tile.opt_bias = p->opt_bias != NULL ? p->opt_bias + column : NULL;
    tile.c = (char *)p->c + (first * p->ldc + column) * (p->is_c_bf16 ? 2 : 4);
    for (int64_t k = 0; k < p->k; k += DEPTH) {
        panel_part part = {.p = &tile,
                           .a = p->is_a_panels ? p->a : p->a + first * p->lda,
                           .m = m,
                           .first = k,
                           .last = p->k - k < DEPTH ? p->k : k + DEPTH,
                           .row_step = p->is_a_panels ? 2 : p->lda,
                           .pair_step = p->is_a_panels ? 2 * MB_PANEL_COLUMNS : 2,
                           .ld = columns};
        for (int64_t j = 0; j < n; j += MB_PANEL_COLUMNS) {
            part.panel = p->panels + (column + j) / MB_PANEL_COLUMNS * stride;
            part.column = j;
            part.sums = sums + j;
            sum_panel(&part);
        }
    }
}

void mb_panels_multiply(const mb_panels_product *p, float *sums, int64_t columns)
{
    for (int64_t column = 0; column < p->n; column += columns) {
        for (int64_t first = 0; first < p->m; first += TILE) {
            multiply_tile(p, first, p->m - first < TILE ? p->m - first : TILE, column, columns, sums);
        }
    }
}
