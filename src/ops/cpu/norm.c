/* norm (cpu): root mean square norm and layer norm over ranges of rows; dw by fixed blocks of rows, added in
 * block order. */
#include <string.h>

#include "ops/cpu/cpu.h"

enum { BLOCK_FLOATS = 8192 }; /* rows of a block: about this many elements */

static int64_t block_rows(int64_t d)
{
    return d >= BLOCK_FLOATS ? 1 : BLOCK_FLOATS / d;
}

mb_status mb_rms_norm_cpu(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, float eps, mb_tensor *y,
                          mb_tensor *out_rstd)
{
    int64_t d = mb_tensor_count(w), rows = mb_tensor_count(out_rstd), step = block_rows(d);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(ops->threads) if (rows > step)
    for (int64_t r = 0; r < rows; r += step) {
        kernels->rms_norm(mb_act_at(mb_cpu_act(x), r * d), mb_tensor_f32(w), eps,
                          rows - r < step ? rows - r : step, d, mb_act_at(mb_cpu_act(y), r * d),
                          mb_tensor_f32(out_rstd) + r);
    }
    return MB_OK;
}

mb_status mb_layer_norm_cpu(mb_ops *ops, const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                            float eps, mb_tensor *y)
{
    int64_t d = mb_tensor_count(w), rows = mb_tensor_count(x) / d, step = block_rows(d);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(ops->threads) if (rows > step)
    for (int64_t r = 0; r < rows; r += step) {
        kernels->layer_norm(mb_act_at(mb_cpu_act(x), r * d), mb_tensor_f32(w), mb_tensor_f32(b), eps,
                            rows - r < step ? rows - r : step, d, mb_act_at(mb_cpu_act(y), r * d));
    }
    return MB_OK;
}

/* parts[blocks, d] into dw[d], in block order; each thread owns columns. */
static void add_parts(mb_ops *ops, const float *parts, int64_t blocks, int64_t d, float *dw)
{
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, blocks * d);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t first, last;
        mb_cpu_part(d, 16, i, threads, &first, &last);
        for (int64_t b = 0; b < blocks; b++)
            kernels->axpy(1.0f, mb_act_f32(parts + b * d + first), last - first, mb_act_f32(dw + first));
    }
}

mb_status mb_rms_norm_backward_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, const mb_tensor *w,
                                   const mb_tensor *rstd, bool accumulate, mb_tensor *dx, mb_tensor *opt_dw)
{
    mb_status status = MB_OK;
    int64_t d = mb_tensor_count(w), rows = mb_tensor_count(rstd), step = block_rows(d);
    int64_t blocks = (rows + step - 1) / step;
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    float *parts = NULL;
    if (opt_dw != NULL) MB_ARENA_ARRAY(ops->scratch, parts, blocks * d);
#pragma omp parallel for schedule(static) num_threads(ops->threads) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t r = b * step, n = rows - r < step ? rows - r : step;
        float *part = parts != NULL ? parts + b * d : NULL;
        if (part != NULL) memset(part, 0, (size_t)d * sizeof *part);
        kernels->rms_norm_backward(mb_act_at(mb_cpu_act(dy), r * d), mb_act_at(mb_cpu_act(x), r * d),
                                   mb_tensor_f32(w), mb_tensor_f32(rstd) + r, n, d, accumulate,
                                   mb_act_at(mb_cpu_act(dx), r * d), part);
    }
    if (parts != NULL) add_parts(ops, parts, blocks, d, mb_tensor_f32(opt_dw));
done:
    return status;
}
