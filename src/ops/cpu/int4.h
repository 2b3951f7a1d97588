/* int4: products x W^T with weights of 4 or 8 bits, that read the weight once and keep no copy of it.
 *
 * Layer: ops (cpu backend, internal).  Uses: ops.h; dequant.c and panels.h for the same numbers.
 *
 * A weight's values are those of mb_weight_read: integer times scale, rounded to bf16 where rows are bf16.
 * Columns of 64 rows of W are read in pieces of 256 bytes a row, transposed so that a vector holds one column
 * of W of many rows, and become floats without a conversion: a field of bits is put under the exponent that
 * makes its lowest bit count 1, and what that adds is taken off again, exactly.
 *
 * bf16 rows (mb_int4_few_bf16): sums run over pairs of k in order, as those of mb_panels_multiply, whose bits
 * they have. f32 rows: sums run over k in order, one fused multiply-add each (portable: a product and a sum);
 * a row's bits depend on nothing else.
 *
 * int4_body.h is the one source for f32 rows; int4_avx512.c, int4_avx2.c and int4_portable.c compile it.
 */
#ifndef MB_CPU_INT4_H
#define MB_CPU_INT4_H

#include "ops/ops.h"

enum {
    MB_INT4_COLUMNS = 64, /* of y, a product takes at a time */
    MB_INT4_FEW = 8       /* rows of x that mb_int4_few_bf16 takes, at most */
};

/* y[m, n] = (accumulate ? y : 0) + x[m, K] W[row.. row+n]^T + opt_bias[n], of one thread. */
typedef struct mb_int4_product {
    const mb_weight *w;
    int64_t m, n, row;
    const void *x; /* f32, or bf16 for mb_int4_few_bf16 */
    int64_t ldx;
    const float *opt_bias;
    void *y; /* f32; or bf16, of mb_int4_few_bf16 when is_y_bf16 */
    int64_t ldy;
    bool accumulate, is_y_bf16;
    bool is_rounded; /* f32 rows: the weight rounded to bf16 all the same */
} mb_int4_product;

/* Rooms are a thread's scratch, 64-byte aligned. */

/* f32 rows, any number; room: MB_INT4_ROOM bytes. Weights that are quantised, runs of 8 columns with one
 * scale. */
enum { MB_INT4_ROOM = 256 << 10 };
typedef void (*mb_int4_multiply)(const mb_int4_product *product, void *room);
bool mb_int4_is_fast(const mb_weight *w);
mb_int4_multiply mb_int4_get(const char *isa); /* as mb_kernels_get chose */

/* bf16 rows, where mb_panels_is_usable and the processor has AVX512_VBMI; weights with runs of 16 bytes of
 * one scale. room: mb_int4_room_bf16 bytes. */
bool mb_int4_is_fast_bf16(const mb_weight *w);
size_t mb_int4_room_bf16(const mb_weight *w);
/* 1 to MB_INT4_FEW rows. */
void mb_int4_few_bf16(const mb_int4_product *product, void *room);
/* Rows row.. row+n of W as the panels of columns of W^T (panels.h): out[ceil(n / 64) * stride]. */
void mb_int4_panels(const mb_weight *w, int64_t row, int64_t n, int64_t stride, uint16_t *out, void *room);

#if defined(__x86_64__)
mb_int4_multiply mb_int4_get_avx512(void);
mb_int4_multiply mb_int4_get_avx2(void);
#endif
mb_int4_multiply mb_int4_get_portable(void);

#endif
