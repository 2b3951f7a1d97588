/* panels: the layout in which bf16 products take their right operand, made by our own vector loops; and
 * products with it.
 *
 * Layer: ops (cpu backend, internal).  Uses: AVX-512 (mb_panels_is_usable).
 *
 * b[k,n] as panels of 64 columns; in a panel, pairs of rows one after the other, and in a pair the two bf16
 * numbers of each column side by side: [ceil(n/64)][rows/2][64][2], rows rounded up to 32, zeros beyond k and
 * n. oneDNN calls it BA16a64b2a and prefers it for every shape.
 */
#ifndef MB_CPU_PANELS_H
#define MB_CPU_PANELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MB_PANEL_COLUMNS = 64,
    MB_PANEL_ROWS = 32,
    MB_PANEL_TILE = 128 /* rows of a taken at a time */
};

static inline int64_t mb_panels_rows(int64_t k)
{
    return (k + MB_PANEL_ROWS - 1) / MB_PANEL_ROWS * MB_PANEL_ROWS;
}
/* bf16 numbers from one panel to the next; of all panels of n columns. */
static inline int64_t mb_panels_stride(int64_t k)
{
    return mb_panels_rows(k) * MB_PANEL_COLUMNS;
}
static inline int64_t mb_panels_count(int64_t k, int64_t n)
{
    return (n + MB_PANEL_COLUMNS - 1) / MB_PANEL_COLUMNS * mb_panels_stride(k);
}

/* f32 or bf16 numbers, rows ld apart. */
typedef struct mb_panels_source {
    const void *data;
    bool is_bf16;
    int64_t ld;
} mb_panels_source;

/* AVX-512 with bf16 products on this processor. */
bool mb_panels_is_usable(void);

/* Panels of b[k,n] that is stored [k,n], and of one that is stored [n,k] (f32 rounded to nearest even).
 * `stride`:
 * from one panel to the next in out, mb_panels_stride of the whole k; a piece of the rows starts at out + 64
 * times its first row, which is a multiple of 32. */
void mb_panels_pack(const mb_panels_source *b, int64_t k, int64_t n, int64_t stride, uint16_t *out);
void mb_panels_pack_transposed(const mb_panels_source *b, int64_t k, int64_t n, int64_t stride,
                               uint16_t *out);
/* out[m][width] = a[k][m] transposed: a's rows ld apart, width = mb_panels_rows(k), zeros beyond k. */
void mb_panels_transpose(const uint16_t *a, int64_t k, int64_t m, int64_t ld, int64_t width, uint16_t *out);

/* c[m,n] = (accumulate ? c : 0) + a[m,k] b + opt_bias; c f32 or bf16. The sums run over pairs of k in order,
 * whatever m and n: a row's bits depend on nothing else, and are those of oneDNN's AVX-512 kernels. */
typedef struct mb_panels_product {
    int64_t m, n, k;
    const uint16_t *a, *panels;
    const float *opt_bias;
    void *c;
    int64_t lda, ldc;
    bool accumulate, is_c_bf16;
    bool is_a_panels; /* a[m,k] as the panels of its transpose [k,m], m <= 64: what mb_panels_pack makes of k
                         rows of m numbers; k is a multiple of 32 then and lda is not read */
} mb_panels_product;
/* sums: scratch of MB_PANEL_TILE * columns floats; that many columns (a multiple of 64) are taken at
 * a time. */
void mb_panels_multiply(const mb_panels_product *product, float *sums, int64_t columns);
/* The last step alone: c from the sums of a b, rows ld apart. */
void mb_panels_finish(const mb_panels_product *product, const float *sums, int64_t ld);

#endif
