/* row_products: the inner loops of clustering (k-means, silhouette, principal components) over rows of
 * floats.
 *
 * Layer: choose.  Uses: nothing.
 *
 * row_products_body.h is the one source; row_products_avx512.c, _avx2.c and _portable.c compile it. A product
 * is one chain of fused multiply-adds over the columns in order, whatever the width of the vectors, and sums
 * in f64 have eight fixed lanes: every instruction set gives the same bits, and a row's do not depend on the
 * rows beside it.
 *
 * A panel holds up to MB_ROW_LANES vectors, transposed: panel[d * lanes + j] is column d of vector j; lanes
 * is a multiple of 16, vectors beyond the last are zeros.
 */
#ifndef MB_ROW_PRODUCTS_H
#define MB_ROW_PRODUCTS_H

#include <stdbool.h>
#include <stdint.h>

enum { MB_ROW_LANES = 64, MB_ROW_GRAM_HEIGHT = 8, MB_ROW_GRAM_WIDTH = 32 };

/* The two smallest of bias[j] - 2 product[j]. */
typedef struct mb_row_nearest {
    float best, second; /* +inf where there is none */
    int32_t index;      /* of the best; of equals the first */
} mb_row_nearest;

typedef struct mb_row_products {
    const char *name;
    /* out[r * lanes + j] = sum over d of rows[r][d] * panel[d * lanes + j] */
    void (*products)(const float *const *rows, int64_t n, const float *panel, int64_t width, int64_t lanes,
                     float *out);
    /* Of n values (a multiple of 16): product, bias [n]. */
    mb_row_nearest (*nearest)(const float *product, const float *bias, int64_t n);
    /* Sum over d of (a[d] - b[d])^2 in f64, of b given in f32. */
    double (*distance)(const float *a, const float *b, int64_t width);
    /* The same of b in f64. */
    double (*distance_f64)(const float *a, const double *b, int64_t width);
    /* sum[d] += or -= round(row[d] * scale[d]); |row[d] * scale[d]| < 2^51. */
    void (*add_fixed)(const float *row, const double *scale, int64_t width, bool minus, int64_t *sum);
    /* out[j] = max(0, own + norm[j] - 2 product[j]) of n values (a multiple of 16). */
    void (*squares)(const float *product, float own, const float *norm, int64_t n, float *out);
    /* Sum in f64 of the roots of n squares (a multiple of 16), or of the squares. */
    double (*sum)(const float *squares, bool of_roots, int64_t n);
    /* out[a * 32 + b] = sum over rows r in order of x[r * stride + i + a] * x[r * stride + j + b], a < 8,
     * b < 32 */
    void (*gram)(const float *x, int64_t rows, int64_t stride, int64_t i, int64_t j, float *out);
} mb_row_products;

/* The best set this processor has, or the one named by opt_isa ("portable", "avx2", "avx512", as MB_ISA of
 * the environment says it for programs); NULL: not known or not here. */
const mb_row_products *mb_row_products_get(const char *opt_isa);

/* Lanes of a panel of n vectors, and the panel of rows[first..first+n): out [width * lanes]. */
int64_t mb_row_products_lanes(int64_t n);
void mb_row_products_pack(const float *const *rows, int64_t n, int64_t width, float *out);

#if defined(__x86_64__)
extern const mb_row_products mb_row_products_avx512;
extern const mb_row_products mb_row_products_avx2;
#endif
extern const mb_row_products mb_row_products_portable;

#endif
