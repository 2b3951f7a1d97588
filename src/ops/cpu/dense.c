/* dense: chooses the library, and keeps blocks of memory per thread. */
#include "ops/cpu/dense.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "ops/cpu/dense_library.h"
#include "ops/cpu/panels.h"

typedef struct thread_block {
    void *data;
    size_t bytes;
    char pad[48]; /* one cache line each */
} thread_block;   /* [threads * MB_DENSE_USES] */

struct mb_dense {
    const mb_dense_library *library;
    void *state;
    char describe[160];
    bool is_row_stable, has_bf16, has_panels; /* products of bf16; by our own loops */
    int threads;
    thread_block *blocks;
};

static mb_status library_get(const char *opt_name, const mb_dense_library **out_library)
{
    const mb_dense_library *libraries[] = {mb_dnnl_get(), mb_blas_get()};
    for (int i = 0; i < 2; i++) {
        if (libraries[i] == NULL) continue;
        if (opt_name != NULL && strcmp(opt_name, libraries[i]->name) != 0) continue;
        *out_library = libraries[i];
        return MB_OK;
    }
    return mb_fail(MB_EUNSUPPORTED,
                   "matrix library \"%s\" is not in this build; install oneDNN or a CBLAS, or use "
                   "backend = \"ref\"",
                   opt_name != NULL ? opt_name : "any");
}

/* Our own loops serve products of bf16, but for a library that has matrix units, or was asked for by name. */
static void choose_bf16(mb_dense *dense, const char *opt_library, const char *library_bf16)
{
    const bool is_asked = opt_library != NULL || strstr(library_bf16, "amx") != NULL;
    dense->has_bf16 = true;
    dense->has_panels = library_bf16[0] == '\0' || !is_asked;
}

mb_status mb_dense_create(const char *opt_library, bool may_bf16, int threads, mb_dense **out_dense)
{
    mb_status status = MB_OK;
    mb_dense *dense = NULL;
    char bf16[32] = "";
    MB_NEW(dense);
    dense->threads = threads;
    MB_NEW_ARRAY(dense->blocks, threads * MB_DENSE_USES);
    MB_TRY(library_get(opt_library, &dense->library));
    MB_TRY(dense->library->create(threads, &dense->state, dense->describe, sizeof dense->describe,
                                  &dense->is_row_stable, bf16));
    if (may_bf16 && mb_panels_is_usable()) choose_bf16(dense, opt_library, bf16);
    const size_t used = strlen(dense->describe);
    snprintf(dense->describe + used, sizeof dense->describe - used, ", bf16 %s",
             dense->has_panels ? "panels:avx512_bf16"
             : dense->has_bf16 ? bf16
                               : "as f32");
    *out_dense = dense;
    dense = NULL;
done:
    mb_dense_destroy(&dense);
    return status;
}

void mb_dense_destroy(mb_dense **dense)
{
    if (*dense == NULL) return;
    if ((*dense)->state != NULL) (*dense)->library->destroy((*dense)->state);
    for (int i = 0; (*dense)->blocks != NULL && i < (*dense)->threads * MB_DENSE_USES; i++) {
        mb_free((*dense)->blocks[i].data);
    }
    mb_free((*dense)->blocks);
    MB_FREE(*dense);
}

const char *mb_dense_describe(const mb_dense *dense)
{
    return dense->describe;
}
bool mb_dense_is_row_stable(const mb_dense *dense)
{
    return dense->is_row_stable;
}
bool mb_dense_has_bf16(const mb_dense *dense)
{
    return dense->has_bf16;
}
bool mb_dense_has_panels(const mb_dense *dense)
{
    return dense->has_panels;
}
bool mb_dense_can_pack(const mb_dense *dense)
{
    return dense->library->pack != NULL;
}

static mb_panels_product panels_product(const mb_product *p)
{
    return (mb_panels_product){.m = p->m,
                               .n = p->n,
                               .k = p->k,
                               .a = p->a,
                               .panels = p->b,
                               .opt_bias = p->opt_bias,
                               .c = p->c,
                               .lda = p->lda,
                               .ldc = p->ldc,
                               .accumulate = p->accumulate,
                               .is_a_panels = p->is_a_panels,
                               .is_c_bf16 = p->is_c_bf16};
}

static mb_status run_panels(mb_dense *dense, int thread, const mb_product *product)
{
    enum { MOST = 512 };
    const mb_panels_product panels = panels_product(product);
    const int64_t width = (product->n + MB_PANEL_COLUMNS - 1) / MB_PANEL_COLUMNS * MB_PANEL_COLUMNS;
    const int64_t columns = width < MOST ? width : MOST;
    float *sums = mb_dense_thread_block(dense, thread, MB_DENSE_PADDING,
                                        (size_t)(MB_PANEL_TILE * columns) * sizeof *sums);
    if (sums == NULL) return MB_ENOMEM;
    mb_panels_multiply(&panels, sums, columns);
    return MB_OK;
}

/* oneDNN's fast kernels want rows without gaps: a and c through copies where they have some. */
static mb_status run_gaps(mb_dense *dense, int thread, const mb_product *product)
{
    const int64_t m = product->m, n = product->n, k = product->k;
    const bool has_a = product->lda != k, has_c = product->ldc != n;
    if (!has_a && !has_c) return dense->library->run(dense->state, thread, 1, product);
    const size_t sums_bytes = (size_t)(has_c ? m * n : 0) * sizeof(float);
    char *block = mb_dense_thread_block(dense, thread, MB_DENSE_PADDING,
                                        sums_bytes + (size_t)(has_a ? m * k : 0) * sizeof(uint16_t) + 64);
    if (block == NULL) return MB_ENOMEM;
    float *sums = (float *)(void *)block;
    uint16_t *rows = (uint16_t *)(void *)(block + (sums_bytes + 63) / 64 * 64);
    mb_product dense_rows = *product;
    for (int64_t r = 0; has_a && r < m; r++)
        memcpy(rows + r * k, (const uint16_t *)product->a + r * product->lda, (size_t)k * sizeof *rows);
    if (has_a) dense_rows.a = rows, dense_rows.lda = k;
    if (has_c) dense_rows.c = sums, dense_rows.ldc = n, dense_rows.is_c_bf16 = dense_rows.accumulate = false;
    if (has_c) dense_rows.opt_bias = NULL;
    mb_status status = dense->library->run(dense->state, thread, 1, &dense_rows);
    const mb_panels_product panels = panels_product(product);
    if (status == MB_OK && has_c) mb_panels_finish(&panels, sums, n);
    return status;
}

/* The same for f32 results; the order of the last sums is oneDNN's. */
static mb_status run_gap_f32(mb_dense *dense, int thread, const mb_product *product)
{
    const int64_t m = product->m, n = product->n;
    float *sums = mb_dense_thread_block(dense, thread, MB_DENSE_STAGE, (size_t)(m * n) * sizeof *sums);
    if (sums == NULL) return MB_ENOMEM;
    mb_product rows = *product;
    rows.c = sums, rows.ldc = n, rows.accumulate = false, rows.opt_bias = NULL;
    mb_status status = dense->library->run(dense->state, thread, 1, &rows);
    for (int64_t r = 0; status == MB_OK && r < m; r++) {
        float *c = (float *)product->c + r * product->ldc;
        for (int64_t j = 0; j < n; j++) {
            float sum = sums[r * n + j];
            if (product->opt_bias != NULL) sum += product->opt_bias[j];
            c[j] = product->accumulate ? sum + c[j] : sum;
        }
    }
    return status;
}

mb_status mb_dense_run(mb_dense *dense, int thread, int threads, const mb_product *product)
{
    if (product->is_bf16 && dense->has_panels) return run_panels(dense, thread, product);
    if (product->is_bf16) return run_gaps(dense, thread, product);
    if (product->ldc != product->n && dense->is_row_stable) return run_gap_f32(dense, thread, product);
    return dense->library->run(dense->state, thread, threads, product);
}

mb_status mb_dense_pack(mb_dense *dense, int thread, const float *b, int64_t k, int64_t n, int64_t ldb,
                        bool is_b_transposed, void **out_packed)
{
    return dense->library->pack(dense->state, thread, b, k, n, ldb, is_b_transposed, out_packed);
}

void mb_dense_free_packed(void *packed)
{
    if (packed != NULL) ((mb_dense_packed *)packed)->free(packed);
}

void *mb_dense_thread_block(mb_dense *dense, int thread, mb_dense_use use, size_t bytes)
{
    thread_block *block = &dense->blocks[thread * MB_DENSE_USES + (int)use];
    if (block->bytes < bytes || block->data == NULL) {
        mb_free(block->data);
        block->data = mb_calloc(bytes, 1);
        block->bytes = block->data != NULL ? bytes : 0;
    }
    return block->data;
}
