/* embed (cpu): rows of a table; gradients with columns divided over threads, so rows are added in token
 * order. */
#include <string.h>

#include "ops/cpu/cpu.h"

mb_status mb_embedding_cpu(mb_ops *ops, const int32_t *tokens, const mb_tensor *table, mb_tensor *y)
{
    int64_t rows = mb_ops_rows(y), d = mb_ops_width(table);
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, rows *d))
    for (int64_t t = 0; t < rows; t++) {
        memcpy(mb_tensor_f32(y) + t * d, mb_tensor_f32(table) + tokens[t] * d, (size_t)d * sizeof(float));
    }
    return MB_OK;
}

mb_status mb_embedding_backward_cpu(mb_ops *ops, const int32_t *tokens, const mb_tensor *dy,
                                    mb_tensor *dtable)
{
    int64_t rows = mb_ops_rows(dy), d = mb_ops_width(dtable);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, rows * d);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t first, last;
        mb_cpu_part(d, 16, i, threads, &first, &last);
        for (int64_t t = 0; t < rows && last > first; t++) {
            kernels->axpy(1.0f, mb_tensor_f32(dy) + t * d + first, last - first,
                          mb_tensor_f32(dtable) + tokens[t] * d + first);
        }
    }
    return MB_OK;
}
