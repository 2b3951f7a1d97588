/* dense_library: what dense.c needs of a library, and what the libraries' files share with it.
 *
 * Layer: ops (cpu backend, internal).
 */
#ifndef MB_CPU_DENSE_LIBRARY_H
#define MB_CPU_DENSE_LIBRARY_H

#include "ops/cpu/dense.h"

typedef struct mb_dense_library {
    const char *name;
    /* out_bf16 [32]: name of its products of bf16 with the bit guarantees, "" for none. */
    mb_status (*create)(int threads, void **out_state, char *out_describe, size_t bytes, bool *out_row_stable,
                        char *out_bf16);
    void (*destroy)(void *state);
    mb_status (*run)(void *state, int thread, int threads, const mb_product *product);
    /* NULL when the library has no packed form. A packed form begins with its free function. */
    mb_status (*pack)(void *state, int thread, const float *b, int64_t k, int64_t n, int64_t ldb,
                      bool is_b_transposed, void **out_packed);
} mb_dense_library;

typedef struct mb_dense_packed {
    void (*free)(struct mb_dense_packed *packed);
} mb_dense_packed;

/* NULL entries of a build without the library. */
const mb_dense_library *mb_dnnl_get(void);
const mb_dense_library *mb_blas_get(void);

#endif
