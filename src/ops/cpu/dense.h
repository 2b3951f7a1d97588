/* dense: one matrix product on one or all threads, by oneDNN's matmul primitive or by CBLAS; packed weights.
 *
 * Layer: ops (cpu backend, internal).  Uses: base.
 */
#ifndef MB_CPU_DENSE_H
#define MB_CPU_DENSE_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct mb_dense mb_dense;

/* c[m,n] = (accumulate ? c : 0) + op(a)[m,k] op(b)[k,n] + opt_bias[n], row-major with leading dimensions.
 * A transposed operand is stored [k,m] or [n,k]. opt_packed is b as mb_dense_pack made it (then b is not
 * read).
 * is_bf16 (where mb_dense_has_bf16, with threads = 1): a is bf16 [m,k], b are the panels of b[k,n]
 * (panels.h), c is
 * f32 or bf16. */
typedef struct mb_product {
    int64_t m, n, k;
    bool is_a_transposed, is_b_transposed, accumulate, is_bf16, is_c_bf16;
    bool is_a_panels; /* bf16 by our own loops (mb_dense_has_panels): see mb_panels_product */
    const void *a, *b;
    const float *opt_bias;
    const void *opt_packed;
    void *c;
    int64_t lda, ldb, ldc;
} mb_product;

/* library: "dnnl", "cblas" or NULL for the first that this build has. MB_EUNSUPPORTED when there is none.
 * may_bf16 false: products of bf16 are not offered even where they could be. */
mb_status mb_dense_create(const char *opt_library, bool may_bf16, int threads, mb_dense **out_dense);
void mb_dense_destroy(mb_dense **dense);
/* "oneDNN 2.6.3 brg:avx512_core, bf16 panels:avx512_bf16" (our loops), "..., bf16 brg:..." (the library's),
 * "...,
 * bf16 as f32" (no products of bf16). */
const char *mb_dense_describe(const mb_dense *dense);
bool mb_dense_has_bf16(const mb_dense *dense);
bool mb_dense_has_panels(const mb_dense *dense); /* they are our own loops' */
/* Do the bits of a row of c not depend on m, n, threads and packing? If not, callers use tiles of one size.
 */
bool mb_dense_is_row_stable(const mb_dense *dense);
bool mb_dense_can_pack(const mb_dense *dense);

/* m, n, k >= 1. Called outside parallel regions (thread 0, threads = all), or inside by each thread with
 * threads = 1. */
mb_status mb_dense_run(mb_dense *dense, int thread, int threads, const mb_product *product);

/* Packed form of op(b)[k,n], one thread of any. Free with mb_dense_free_packed. */
mb_status mb_dense_pack(mb_dense *dense, int thread, const float *b, int64_t k, int64_t n, int64_t ldb,
                        bool is_b_transposed, void **out_packed);
void mb_dense_free_packed(void *packed);

/* 64-byte aligned blocks of each thread's own, kept between calls and grown as needed. */
typedef enum mb_dense_use { MB_DENSE_PADDING, MB_DENSE_WEIGHT, MB_DENSE_STAGE, MB_DENSE_USES } mb_dense_use;
void *mb_dense_thread_block(mb_dense *dense, int thread, mb_dense_use use, size_t bytes);

#endif
