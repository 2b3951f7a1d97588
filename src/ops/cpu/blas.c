/* blas: products by CBLAS, one thread per call; not row stable (callers use tiles of one size). */
#include "ops/cpu/dense_library.h"

#ifdef MB_HAVE_CBLAS
#include <cblas.h>
#include <stdio.h>

/* Libraries with threads of their own are held to one; the symbols are there only in such a library. */
void openblas_set_num_threads(int threads) __attribute__((weak));
char *openblas_get_config(void) __attribute__((weak));
void bli_thread_set_num_threads(int64_t threads) __attribute__((weak));

static mb_status blas_create(int threads, void **out_state, char *out_describe, size_t bytes,
                             bool *out_row_stable, char *out_bf16)
{
    (void)threads;
    out_bf16[0] = '\0';
    if (openblas_set_num_threads != NULL) openblas_set_num_threads(1);
    if (bli_thread_set_num_threads != NULL) bli_thread_set_num_threads(1);
    const char *config = openblas_get_config != NULL ? openblas_get_config() : "";
    snprintf(out_describe, bytes, "CBLAS %.60s, fixed tiles", config);
    *out_state = NULL;
    *out_row_stable = false;
    return MB_OK;
}

static mb_status blas_run(void *state, int thread, int threads, const mb_product *product)
{
    (void)state, (void)thread, (void)threads;
    const mb_product *p = product;
    bool accumulate = p->accumulate;
    if (p->opt_bias != NULL) {
        for (int64_t i = 0; i < p->m; i++) {
            float *row = (float *)p->c + i * p->ldc;
            for (int64_t j = 0; j < p->n; j++) row[j] = (accumulate ? row[j] : 0) + p->opt_bias[j];
        }
        accumulate = true;
    }
    cblas_sgemm(CblasRowMajor, p->is_a_transposed ? CblasTrans : CblasNoTrans,
                p->is_b_transposed ? CblasTrans : CblasNoTrans, (int)p->m, (int)p->n, (int)p->k, 1.0f, p->a,
                (int)p->lda, p->b, (int)p->ldb, accumulate ? 1.0f : 0.0f, p->c, (int)p->ldc);
    return MB_OK;
}

static void blas_destroy(void *state)
{
    (void)state;
}

const mb_dense_library *mb_blas_get(void)
{
    static const mb_dense_library library = {
        .name = "cblas", .create = blas_create, .destroy = blas_destroy, .run = blas_run};
    return &library;
}
#else
const mb_dense_library *mb_blas_get(void)
{
    return NULL;
}
#endif
