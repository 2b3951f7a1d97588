/* attention_loops: the loops of attention, compiled once per instruction set. The including file defines
 * MB_ATTENTION_TABLE, MB_ATTENTION_NAME and, for bf16 dot products (AVX-512 only), MB_ATTENTION_PAIRS.
 *
 * Layer: ops (cpu backend, internal).
 * Sources: Dao et al. 2022, "FlashAttention", algorithms 1 and 4 (running maximum, recomputed probabilities);
 * Dao 2023, section 3.1 (queries outside, keys inside).
 *
 * All products go through one routine, tile(): c[m,n] (+)= a[m,k] b[k,n], sums running over k in order in one
 * register per element, so that the bits of an element do not depend on how m and n are cut. The operands a
 * and b consist of 32-bit units along k: one f32, or two bf16 where there is an instruction for their
 * products. The first operand is read unit by unit, so it may lie either way round; the second in vectors
 * along n.
 *
 * 1. products
 * 2. rows of any dtype
 * 3. packing
 * 4. powers of two
 */
#include <sched.h>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/simd.h"

#if defined(__AVX512F__)
enum { NV = 4, MR4 = 6, MR3 = 8, MR2 = 12, MR1 = 12 };
#else
enum { NV = 2, MR4 = 1, MR3 = 1, MR2 = 6, MR1 = 6 };
#endif
#if defined(MB_ATTENTION_PAIRS)
enum { PAIR = 2 }; /* elements of a unit */
#else
enum { PAIR = 1 };
#endif
enum { PANEL = NV * W, ROWS = 48, BLOCK = 256, CHUNK = 192, AHEAD = 32 };

/* ---- 1. products ---- */

/* A matrix [k,n] whose columns come in panels of PANEL, `panel_stride` units apart; its rows are `stride`
 * apart. */
typedef struct panels {
    const float *data;
    int64_t stride, panel_stride;
} panels;

typedef struct operand {
    const float *data;
    int64_t row_stride, column_stride;
} operand;

static inline mb_vf unit_set(const float *unit)
{
#if defined(MB_ATTENTION_PAIRS)
    int32_t bits; /* not a float: it may look like a NaN */
    memcpy(&bits, unit, sizeof bits);
    return (mb_vf)_mm512_set1_epi32(bits);
#else
    return vf_set(*unit);
#endif
}

static inline mb_vf unit_fma(mb_vf a, mb_vf b, mb_vf c)
{
#if defined(MB_ATTENTION_PAIRS)
    return (mb_vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
    return vf_fma(a, b, c);
#endif
}

/* mr rows times nv vectors; mr and nv are constants after inlining. */
static inline __attribute__((always_inline)) void tile(const int mr, const int nv, int64_t k, const float *a,
                                                       int64_t row_stride, int64_t column_stride,
                                                       const float *b, int64_t ldb, bool accumulate, float *c,
                                                       int64_t ldc)
{
    mb_vf sum[12][4];
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[i][j] = accumulate ? vf_load(c + i * ldc + j * W) : vf_set(0);
    }
    for (int64_t p = 0; p < k; p++, a += column_stride, b += ldb) {
        mb_vf row[4];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) row[j] = vf_load(b + j * W);
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++) {
            mb_vf x = unit_set(a + i * row_stride);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] = unit_fma(x, row[j], sum[i][j]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) vf_store(c + i * ldc + j * W, sum[i][j]);
    }
}

/* All m rows times nv vectors, mr rows at a time, then 4, 2 and 1. */
static inline __attribute__((always_inline)) void column(const int mr, const int nv, int64_t m, int64_t k,
                                                         operand a, const float *b, int64_t ldb,
                                                         bool accumulate, float *c, int64_t ldc)
{
    const float *x = a.data;
    const int64_t rs = a.row_stride, cs = a.column_stride;
    int64_t i = 0;
    for (; i + mr <= m; i += mr) tile(mr, nv, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    for (; mr > 4 && i + 4 <= m; i += 4)
        tile(4, nv, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    for (; mr > 2 && i + 2 <= m; i += 2)
        tile(2, nv, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
    for (; mr > 1 && i < m; i++) tile(1, nv, k, x + i * rs, rs, cs, b, ldb, accumulate, c + i * ldc, ldc);
}

/* c[m,n] = (accumulate ? c : 0) + a[m,k] b[k,n]; n is a multiple of W, k counts units. */
static void product(int64_t m, int64_t n, int64_t k, operand a, panels b, bool accumulate, float *c,
                    int64_t ldc)
{
    for (int64_t j = 0; j < n; j += PANEL, b.data += b.panel_stride) {
        const int64_t vectors = (n - j < PANEL ? n - j : PANEL) / W;
        float *y = c + j;
        if (vectors == 1) column(MR1, 1, m, k, a, b.data, b.stride, accumulate, y, ldc);
        if (vectors == 2) column(MR2, 2, m, k, a, b.data, b.stride, accumulate, y, ldc);
#if defined(__AVX512F__)
        if (vectors == 3) column(MR3, 3, m, k, a, b.data, b.stride, accumulate, y, ldc);
        if (vectors == 4) column(MR4, 4, m, k, a, b.data, b.stride, accumulate, y, ldc);
#endif
    }
}

/* ---- 2. rows of any dtype ---- */

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
static inline int64_t rounded(int64_t n, int64_t to) /* up */
{
    return (n + to - 1) / to * to;
}

/* Units along a row of `width` elements, and floats of a row that is summed or used as a second operand. */
static inline int64_t units_of(int64_t width)
{
    return (width + PAIR - 1) / PAIR;
}
static inline int64_t padded(int64_t width)
{
    return rounded(width, W);
}
/* From one query's row to the next where queries are the first operand: f32 rows serve as the second too. */
static inline int64_t query_stride(int64_t width)
{
    return PAIR == 1 ? padded(width) : units_of(width);
}

static inline const void *element(const mb_attention_head *head, const void *base, int64_t i)
{
    return (const char *)base + i * (head->is_bf16 ? 2 : 4);
}

/* Where query row r begins, in elements from the head's first. */
static inline int64_t query_at(const mb_attention_head *head, int64_t r)
{
    return r / head->share * head->stride + r % head->share * head->width;
}
static inline int64_t lse_at(const mb_attention_head *head, int64_t r)
{
    return r / head->share * head->lse_stride + r % head->share;
}

static void read_row(bool is_bf16, const void *row, int64_t n, float *out)
{
    int64_t i = 0;
    if (!is_bf16) {
        memcpy(out, row, (size_t)n * sizeof *out);
        return;
    }
    for (; i + W <= n; i += W) vf_store(out + i, vf_from_bf16(vh_load((const uint16_t *)row + i)));
    if (i < n) vf_store_part(out + i, vf_from_bf16(vh_load_part((const uint16_t *)row + i, n - i)), n - i);
}

/* n f32 to a row of the head's dtype. */
static void write_row(bool is_bf16, const float *x, int64_t n, void *row)
{
    int64_t i = 0;
    if (!is_bf16) {
        memcpy(row, x, (size_t)n * sizeof *x);
        return;
    }
    for (; i + W <= n; i += W) vh_store((uint16_t *)row + i, vf_to_bf16(vf_load(x + i)));
    if (i < n) vh_store_part((uint16_t *)row + i, vf_to_bf16(vf_load_part(x + i, n - i)), n - i);
}

/* A row as units, zeros up to `units`. */
static inline void read_units(bool is_bf16, const void *row, int64_t width, int64_t units, float *out)
{
    memset(out + units_of(width) - 1, 0, (size_t)(units - units_of(width) + 1) * sizeof *out);
    if (PAIR == 1) {
        read_row(is_bf16, row, width, out);
    } else {
        memcpy(out, row, (size_t)width * 2);
    }
}

static float dot_rows(const float *a, const float *b, int64_t n) /* n: a multiple of W */
{
    mb_vf sum = vf_set(0);
    for (int64_t i = 0; i < n; i += W) sum = vf_fma(vf_load(a + i), vf_load(b + i), sum);
    return vf_sum(sum);
}

/* ---- 3. packing ---- */

/* turn: 4 units each of W rows, turned: out + i * PANEL gets unit i of all of them. */
typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_index __attribute__((vector_size(16)));

static inline void turn_quad(const float *in, int64_t stride, float *out)
{
    quad a, b, c, d;
    memcpy(&a, in, sizeof a), memcpy(&b, in + stride, sizeof b);
    memcpy(&c, in + 2 * stride, sizeof c), memcpy(&d, in + 3 * stride, sizeof d);
    quad ab = __builtin_shuffle(a, b, (quad_index){0, 4, 1, 5}),
         AB = __builtin_shuffle(a, b, (quad_index){2, 6, 3, 7});
    quad cd = __builtin_shuffle(c, d, (quad_index){0, 4, 1, 5}),
         CD = __builtin_shuffle(c, d, (quad_index){2, 6, 3, 7});
    quad turned[4] = {__builtin_shuffle(ab, cd, (quad_index){0, 1, 4, 5}),
                      __builtin_shuffle(ab, cd, (quad_index){2, 3, 6, 7}),
                      __builtin_shuffle(AB, CD, (quad_index){0, 1, 4, 5}),
                      __builtin_shuffle(AB, CD, (quad_index){2, 3, 6, 7})};
    for (int64_t i = 0; i < 4; i++) memcpy(out + i * PANEL, &turned[i], sizeof turned[i]);
}

#if defined(__AVX512F__)
/* Rows i, i + 4, i + 8, i + 12 side by side: one part of 128 bits each. */
static inline __m512 every_fourth(const float *in, int64_t stride)
{
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(in));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(in + 4 * stride), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(in + 8 * stride), 2);
    return _mm512_insertf32x4(x, _mm_loadu_ps(in + 12 * stride), 3);
}

static inline void turn(const float *in, int64_t stride, float *out)
{
    const __m512 a = every_fourth(in, stride), b = every_fourth(in + stride, stride);
    const __m512 c = every_fourth(in + 2 * stride, stride), d = every_fourth(in + 3 * stride, stride);
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                  AB = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)),
                  CD = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    _mm512_storeu_ps(out, _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)));
    _mm512_storeu_ps(out + PANEL, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    _mm512_storeu_ps(out + 2 * PANEL, _mm512_castpd_ps(_mm512_unpacklo_pd(AB, CD)));
    _mm512_storeu_ps(out + 3 * PANEL, _mm512_castpd_ps(_mm512_unpackhi_pd(AB, CD)));
}
#else
static inline void turn(const float *in, int64_t stride, float *out)
{
    for (int64_t i = 0; i < W; i += 4) turn_quad(in + i * stride, stride, out + i);
}
#endif

/* W rows [W][units] as columns of a panel. */
static void turn_rows(const float *in, int64_t stride, int64_t units, float *out)
{
    int64_t i = 0;
    for (; i + 4 <= units; i += 4) turn(in + i, stride, out + i * PANEL);
    for (; i < units; i++)
        for (int64_t j = 0; j < W; j++) memcpy(out + i * PANEL + j, in + j * stride + i, sizeof *out);
}

/* Floats of `rows` rows as panels of the turned matrix, and of the scratch that takes. */
static inline int64_t panel_floats(int64_t rows, int64_t width)
{
    return rounded(rows, PANEL) * units_of(width);
}
static inline int64_t turn_floats(int64_t width)
{
    return W * units_of(width);
}

/* Rows that will be read soon: those of one head lie apart, further than the processor looks ahead. */
static inline void prefetch_rows(const char *row, int64_t rows, int64_t step, int64_t bytes)
{
    for (int64_t j = 0; j < rows; j++, row += step)
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
}

/* Rows [rows, width] of the head's dtype, `stride` elements apart, as panels [units][PANEL]; zeros up to the
 * next multiple of W. */
static void pack_turned(bool is_bf16, const void *x, int64_t rows, int64_t width, int64_t stride, float *out,
                        float *scratch)
{
    const bool is_plain = PAIR == 1 ? !is_bf16 : width % 2 == 0;
    const int64_t units = units_of(width), bytes = is_bf16 ? 2 : 4;
    for (int64_t first = 0; first < rows; first += W) {
        float *to = out + first / PANEL * PANEL * units + first % PANEL;
        const char *from = (const char *)x + first * stride * bytes;
        const int64_t soon = first + AHEAD;
        if (soon < rows)
            prefetch_rows(from + AHEAD * stride * bytes, least(W, rows - soon), stride * bytes,
                          width * bytes);
        if (is_plain && first + W <= rows) {
            turn_rows((const float *)(const void *)from, stride / PAIR, units, to);
            continue;
        }
        for (int64_t j = 0; j < W; j++) {
            if (first + j < rows) {
                read_units(is_bf16, from + j * stride * bytes, width, units, scratch + j * units);
            } else {
                memset(scratch + j * units, 0, (size_t)units * sizeof *scratch);
            }
        }
        turn_rows(scratch, units, units, to);
    }
}

/* Two rows of bf16 side by side: [i] = a[i], b[i]. */
static void interleave(const uint16_t *a, const uint16_t *b, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + W <= n; i += W)
        vf_store(out + i, (mb_vf)(vh_widen(vh_load(a + i)) | vh_widen(vh_load(b + i)) << 16));
    if (i == n) return;
    const mb_vu rest = vh_widen(vh_load_part(a + i, n - i)) | vh_widen(vh_load_part(b + i, n - i)) << 16;
    vf_store(out + i, (mb_vf)rest); /* rows are padded to W */
}

/* Row i of a second operand that runs along rows: rows i * PAIR and on. opt_next: the second of a pair. */
static inline void pack_row(bool is_bf16, const void *row, const void *opt_next, int64_t width, float *out)
{
    static const uint16_t zeros[1024];
    if (PAIR == 1) {
        read_units(is_bf16, row, width, padded(width), out);
        return;
    }
    if (opt_next != NULL) {
        interleave(row, opt_next, width, out);
        return;
    }
    for (int64_t i = 0; i < width; i += 1024)
        interleave((const uint16_t *)row + i, zeros, least(1024, width - i), out + i);
}

/* Rows [rows, width] as a second operand [ceil(rows / PAIR)][padded(width)] units. */
static inline int64_t row_floats(int64_t rows, int64_t width)
{
    return (rows + PAIR - 1) / PAIR * padded(width);
}
static void pack_rows(bool is_bf16, const void *x, int64_t rows, int64_t width, int64_t stride, float *out)
{
    const int64_t step = stride * (is_bf16 ? 2 : 4);
    const char *row = x;
    for (int64_t i = 0; i < rows; i += PAIR, row += PAIR * step, out += padded(width)) {
        if (i + AHEAD < rows)
            prefetch_rows(row + AHEAD * step, least(PAIR, rows - i - AHEAD), step, width * (is_bf16 ? 2 : 4));
        pack_row(is_bf16, row, i + 1 < rows ? row + step : NULL, width, out);
    }
}

static inline panels plain(const float *data, int64_t stride)
{
    return (panels){data, stride, PANEL};
}

/* ---- 4. powers of two ---- */

/* 2^x for x up to about 1: 2^floor(x) times a polynomial of the rest that is exact at 0; relative error of
 * the fit 1e-7, with PAIRS (results are rounded to bf16, sums are not) 3e-6. Below -126 (AVX-512: -149) 0;
 * NaN stays NaN. */
static inline mb_vf power2(mb_vf x)
{
#if defined(__AVX512F__)
    const mb_vf low = vf_set(-200.0f);
#else
    const mb_vf low = vf_set(-126.0f);
#endif
    const mb_vf bounded = vf_max(low, x); /* in this order a NaN passes */
#if defined(__AVX512F__)
    const mb_vf r = _mm512_reduce_ps(bounded, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const mb_vf n = vf_round(bounded - vf_set(0.5f)), r = bounded - n;
#endif
#if defined(MB_ATTENTION_PAIRS)
    mb_vf p = vf_fma(vf_set(0.0134266885f), r, vf_set(0.05224246532f));
    p = vf_fma(p, r, vf_set(0.241280213f));
    p = vf_fma(p, r, vf_set(0.6930448413f));
#else
    mb_vf p = vf_fma(vf_set(0.001867130515f), r, vf_set(0.009017028846f));
    p = vf_fma(p, r, vf_set(0.05579991266f));
    p = vf_fma(p, r, vf_set(0.2401644439f));
    p = vf_fma(p, r, vf_set(0.6931512952f));
#endif
    p = vf_fma(p, r, vf_set(1.0f));
#if defined(__AVX512F__)
    return vf_scale2(p, bounded);
#else
    const mb_vf y = vf_scale2(p, n);
    return y - vf_where_less(x, low, y);
#endif
}

static const float log2_e = 1.44269504088896341f, ln_2 = 0.693147180559945309f;

#include "ops/cpu/attention_forward_loops.h"
#include "ops/cpu/attention_backward_loops.h"

const mb_attention_kernels MB_ATTENTION_TABLE = {
    .name = MB_ATTENTION_NAME,
    .rows = ROWS,
    .block = BLOCK,
    .chunk = CHUNK,
    .packed_floats = packed_floats,
    .partial_floats = partial_floats,
    .forward_scratch = forward_scratch,
    .backward_scratch = backward_scratch,
    .pack = pack_block,
    .forward = forward,
    .merge = merge,
    .deltas = deltas,
    .backward = backward,
};
