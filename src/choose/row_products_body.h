/* row_products_body: the loops of row_products.h, for the instruction set of the file that includes this.
 *
 * 1. vectors   2. products   3. the two nearest   4. distances and exact sums   5. products of columns
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "choose/row_products.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* ---- 1. vectors ---- */

#if defined(__AVX512F__)
enum { W = 16, TILE = 6 };
#elif defined(__AVX2__)
enum { W = 8, TILE = 3 };
#else
enum { W = 4, TILE = 2 };
#endif
enum { LINE = 16, HALF = W / 2, F64_LANES = 8, F64_VECTORS = F64_LANES / HALF };

typedef float vf __attribute__((vector_size(4 * W)));
typedef float vf_loose __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float vh_loose __attribute__((vector_size(2 * W), aligned(4), may_alias)); /* W / 2 of them */
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef double vd __attribute__((vector_size(4 * W))); /* W / 2 of them */
typedef double vd_loose __attribute__((vector_size(4 * W), aligned(8), may_alias));
typedef int64_t vq __attribute__((vector_size(4 * W)));
typedef int64_t vq_loose __attribute__((vector_size(4 * W), aligned(8), may_alias));

static inline vf fused(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < W; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

static inline vf spread(float x)
{
    return x - (vf){0};
}

static inline vf load(const float *p)
{
    return *(const vf_loose *)p;
}

static inline vd load_wide(const float *p)
{
    return __builtin_convertvector(*(const vh_loose *)p, vd);
}

static inline vi choose_i(vi mask, vi a, vi b)
{
    return (mask & a) | (~mask & b);
}

static inline vf choose_f(vi mask, vf a, vf b)
{
    return (vf)choose_i(mask, (vi)a, (vi)b);
}

/* ---- 2. products ---- */

/* `height` rows (a constant where this is inlined) times `across` vectors of a panel. */
static inline __attribute__((always_inline)) void tile(const float *const *rows, const float *panel,
                                                       int64_t width, int64_t lanes, int height, int across,
                                                       float *out)
{
    vf sums[TILE][4];
#pragma GCC unroll 16
    for (int r = 0; r < height; r++)
#pragma GCC unroll 4
        for (int v = 0; v < across; v++) sums[r][v] = (vf){0};
    for (int64_t d = 0; d < width; d++) {
        vf column[4];
#pragma GCC unroll 4
        for (int v = 0; v < across; v++) column[v] = load(panel + d * lanes + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < height; r++) {
            const vf x = spread(rows[r][d]);
#pragma GCC unroll 4
            for (int v = 0; v < across; v++) sums[r][v] = fused(x, column[v], sums[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < height; r++)
        for (int v = 0; v < across; v++) *(vf_loose *)(out + r * lanes + v * W) = sums[r][v];
}

static inline __attribute__((always_inline)) void rows_times(const float *const *rows, int64_t n,
                                                             const float *panel, int64_t width, int64_t lanes,
                                                             int across, float *out)
{
    int64_t r = 0;
    for (; r + TILE <= n; r += TILE) tile(rows + r, panel, width, lanes, TILE, across, out + r * lanes);
    for (; r < n; r++) tile(rows + r, panel, width, lanes, 1, across, out + r * lanes);
}

static void products(const float *const *rows, int64_t n, const float *panel, int64_t width, int64_t lanes,
                     float *out)
{
    int64_t at = 0;
    for (; at + 4 * W <= lanes; at += 4 * W) rows_times(rows, n, panel + at, width, lanes, 4, out + at);
    for (; at + 2 * W <= lanes; at += 2 * W) rows_times(rows, n, panel + at, width, lanes, 2, out + at);
    for (; at < lanes; at += W) rows_times(rows, n, panel + at, width, lanes, 1, out + at);
}

/* ---- 3. the two nearest ---- */

static mb_row_nearest nearest(const float *product, const float *bias, int64_t n)
{
    vf best = spread(INFINITY), second = best;
    vi at = {0}, index = {0};
    for (int i = 0; i < W; i++) index[i] = i;
    for (int64_t j = 0; j < n; j += W, index += W) {
        const vf value = load(bias + j) - 2 * load(product + j);
        const vi is_less = value < best;
        const vf loser = choose_f(is_less, best, value);
        second = choose_f(loser < second, loser, second);
        at = choose_i(is_less, index, at);
        best = choose_f(is_less, value, best);
    }
    mb_row_nearest found = {.best = INFINITY, .second = INFINITY, .index = INT32_MAX};
    for (int i = 0; i < W; i++) {
        const bool is_better = best[i] < found.best || (best[i] == found.best && at[i] < found.index);
        const float loser = is_better ? found.best : best[i];
        if (loser < found.second) found.second = loser;
        if (second[i] < found.second) found.second = second[i];
        if (is_better) found.best = best[i];
        if (is_better) found.index = at[i];
    }
    return found;
}

/* ---- 4. distances and exact sums ---- */

static inline double lanes_sum(const vd *lanes)
{
    double lane[F64_LANES];
    memcpy(lane, lanes, sizeof lane);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

static double distance(const float *a, const float *b, int64_t width)
{
    vd total[F64_VECTORS] = {{0}};
    double rest = 0;
    int64_t d = 0;
    for (; d + F64_LANES <= width; d += F64_LANES)
        for (int v = 0; v < F64_VECTORS; v++) {
            const vd difference = load_wide(a + d + v * HALF) - load_wide(b + d + v * HALF);
            total[v] += difference * difference;
        }
    for (; d < width; d++) rest += ((double)a[d] - (double)b[d]) * ((double)a[d] - (double)b[d]);
    return lanes_sum(total) + rest;
}

static double distance_f64(const float *a, const double *b, int64_t width)
{
    vd total[F64_VECTORS] = {{0}};
    double rest = 0;
    int64_t d = 0;
    for (; d + F64_LANES <= width; d += F64_LANES)
        for (int v = 0; v < F64_VECTORS; v++) {
            const vd difference = load_wide(a + d + v * HALF) - *(const vd_loose *)(b + d + v * HALF);
            total[v] += difference * difference;
        }
    for (; d < width; d++) rest += ((double)a[d] - b[d]) * ((double)a[d] - b[d]);
    return lanes_sum(total) + rest;
}

/* 1.5 * 2^52 plus a number below 2^51 has the rounded number in its lowest bits. */
static const double shifter = 6755399441055744.0;

static inline int64_t fixed(double x)
{
    int64_t bits, zero;
    const double shifted = x + shifter;
    memcpy(&bits, &shifted, sizeof bits);
    memcpy(&zero, &shifter, sizeof zero);
    return bits - zero;
}

static void add_fixed(const float *row, const double *scale, int64_t width, bool minus, int64_t *out)
{
    const vd shift = shifter - (vd){0}, sign = (minus ? -1.0 : 1.0) - (vd){0};
    int64_t d = 0;
    for (; d + HALF <= width; d += HALF) {
        const vd value = load_wide(row + d) * (*(const vd_loose *)(scale + d) * sign) + shift;
        *(vq_loose *)(out + d) += (vq)value - (vq)shift;
    }
    for (; d < width; d++) out[d] += fixed((double)row[d] * (scale[d] * (minus ? -1.0 : 1.0)));
}

static inline vf root(vf a)
{
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < W; i++) a[i] = sqrtf(a[i]);
    return a;
#endif
}

static void squares(const float *product, float own, const float *norm, int64_t n, float *out)
{
    for (int64_t j = 0; j < n; j += W) {
        const vf square = (own + load(norm + j)) - 2 * load(product + j);
        *(vf_loose *)(out + j) = choose_f(square > 0, square, (vf){0});
    }
}

static double sum(const float *square, bool of_roots, int64_t n)
{
    vd total[F64_VECTORS] = {{0}};
    for (int64_t j = 0; j < n; j += LINE) {
        float line[LINE];
        for (int v = 0; v < LINE; v += W) {
            const vf value = load(square + j + v);
            *(vf_loose *)(line + v) = of_roots ? root(value) : value;
        }
        for (int v = 0; v < LINE / HALF; v++) total[v % F64_VECTORS] += load_wide(line + v * HALF);
    }
    return lanes_sum(total);
}

/* ---- 5. products of columns ---- */

enum { GRAM_STEP = W >= 8 ? 2 : 1 }; /* vectors at a time: as many as have room in registers */

static void gram(const float *x, int64_t rows, int64_t stride, int64_t i, int64_t j, float *out)
{
    enum { H = W == 16 ? MB_ROW_GRAM_HEIGHT : 4 };
    for (int a = 0; a < MB_ROW_GRAM_HEIGHT; a += H)
        for (int b = 0; b < MB_ROW_GRAM_WIDTH; b += GRAM_STEP * W) {
            vf sums[H][GRAM_STEP];
            memset(sums, 0, sizeof sums);
            for (int64_t r = 0; r < rows; r++) {
                const float *row = x + r * stride;
                vf right[GRAM_STEP];
#pragma GCC unroll 2
                for (int v = 0; v < GRAM_STEP; v++) right[v] = load(row + j + b + v * W);
#pragma GCC unroll 8
                for (int h = 0; h < H; h++)
#pragma GCC unroll 2
                    for (int v = 0; v < GRAM_STEP; v++)
                        sums[h][v] = fused(spread(row[i + a + h]), right[v], sums[h][v]);
            }
            for (int h = 0; h < H; h++)
                for (int v = 0; v < GRAM_STEP; v++)
                    *(vf_loose *)(out + (a + h) * MB_ROW_GRAM_WIDTH + b + v * W) = sums[h][v];
        }
}

#define MB_ROW_PRODUCTS_TABLE(isa)                                                                           \
    {                                                                                                        \
        .name = isa, .products = products, .nearest = nearest, .distance = distance,                         \
        .distance_f64 = distance_f64, .add_fixed = add_fixed, .squares = squares, .sum = sum, .gram = gram   \
    }
