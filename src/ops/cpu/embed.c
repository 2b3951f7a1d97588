/* embed (cpu): rows of a table; gradients with columns divided over threads, so rows are added in token
 * order. */
#include "ops/cpu/cpu.h"

mb_status mb_embedding_cpu(mb_ops *ops, const int32_t *tokens, const mb_tensor *table, mb_tensor *y)
{
    int64_t rows = mb_ops_rows(y), d = mb_ops_width(table);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, rows *d))
    for (int64_t t = 0; t < rows; t++) {
        kernels->cast(mb_act_at(mb_cpu_act(table), tokens[t] * d), d, mb_act_at(mb_cpu_act(y), t * d));
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
            kernels->axpy(1.0f, mb_act_at(mb_cpu_act(dy), t * d + first), last - first,
                          mb_act_at(mb_cpu_act(dtable), tokens[t] * d + first));
        }
    }
    return MB_OK;
}
