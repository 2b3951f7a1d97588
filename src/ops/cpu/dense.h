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
 * read). */
typedef struct mb_product {
    int64_t m, n, k;
    bool is_a_transposed, is_b_transposed, accumulate;
    const float *a, *b, *opt_bias;
    const void *opt_packed;
    float *c;
    int64_t lda, ldb, ldc;
} mb_product;

/* library: "dnnl", "cblas" or NULL for the first that this build has. MB_EUNSUPPORTED when there is none. */
mb_status mb_dense_create(const char *opt_library, int threads, mb_dense **out_dense);
void mb_dense_destroy(mb_dense **dense);
const char *mb_dense_describe(const mb_dense *dense); /* "oneDNN 2.6.3 brg:avx512_core" */
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

/* A 64-byte aligned block of each thread's own, kept between calls and grown as needed: for padding and
 * copies. */
void *mb_dense_thread_block(mb_dense *dense, int thread, size_t bytes);

#endif
