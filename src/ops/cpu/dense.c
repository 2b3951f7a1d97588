/* dense: chooses the library, and keeps a block of memory per thread. */
#include "ops/cpu/dense.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "ops/cpu/dense_library.h"

typedef struct thread_block {
    void *data;
    size_t bytes;
    char pad[48]; /* one cache line each */
} thread_block;

struct mb_dense {
    const mb_dense_library *library;
    void *state;
    char describe[96];
    bool is_row_stable;
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

mb_status mb_dense_create(const char *opt_library, int threads, mb_dense **out_dense)
{
    mb_status status = MB_OK;
    mb_dense *dense = NULL;
    MB_NEW(dense);
    dense->threads = threads;
    MB_NEW_ARRAY(dense->blocks, threads);
    MB_TRY(library_get(opt_library, &dense->library));
    MB_TRY(dense->library->create(threads, &dense->state, dense->describe, sizeof dense->describe,
                                  &dense->is_row_stable));
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
    for (int i = 0; (*dense)->blocks != NULL && i < (*dense)->threads; i++) mb_free((*dense)->blocks[i].data);
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
bool mb_dense_can_pack(const mb_dense *dense)
{
    return dense->library->pack != NULL;
}

mb_status mb_dense_run(mb_dense *dense, int thread, int threads, const mb_product *product)
{
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

void *mb_dense_thread_block(mb_dense *dense, int thread, size_t bytes)
{
    thread_block *block = &dense->blocks[thread];
    if (block->bytes < bytes || block->data == NULL) {
        mb_free(block->data);
        block->data = mb_calloc(bytes, 1);
        block->bytes = block->data != NULL ? bytes : 0;
    }
    return block->data;
}
