/* act (cpu): element-wise ops over ranges, rotary positions over rows. */
#include "ops/cpu/cpu.h"

enum { STEP = 1024 }; /* ranges begin at multiples of this */

mb_status mb_swiglu_cpu(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->swiglu(mb_tensor_f32(gate) + a, mb_tensor_f32(up) + a, b - a, mb_tensor_f32(y) + a);
    }
    return MB_OK;
}

mb_status mb_swiglu_backward_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *gate, const mb_tensor *up,
                                 mb_tensor *dgate, mb_tensor *dup)
{
    int64_t n = mb_tensor_count(dy);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->swiglu_backward(mb_tensor_f32(dy) + a, mb_tensor_f32(gate) + a, mb_tensor_f32(up) + a, b - a,
                                 mb_tensor_f32(dgate) + a, mb_tensor_f32(dup) + a);
    }
    return MB_OK;
}

mb_status mb_rope_cpu(mb_ops *ops, mb_tensor *x, const int32_t *positions, const mb_tensor *table,
                      bool inverse)
{
    int64_t rows = x->shape[0], heads = x->shape[1], width = x->shape[2];
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, mb_tensor_count(x)))
    for (int64_t t = 0; t < rows; t++) {
        const float *angles = mb_tensor_f32(table) + positions[t] * width;
        kernels->rope(mb_tensor_f32(x) + t * heads * width, angles, angles + width / 2, heads, width / 2,
                      inverse ? -1.0f : 1.0f);
    }
    return MB_OK;
}

mb_status mb_axpy_cpu(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->axpy(scale, mb_tensor_f32(x) + a, b - a, mb_tensor_f32(y) + a);
    }
    return MB_OK;
}

mb_status mb_scale_cpu(mb_ops *ops, float scale, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->scale(scale, mb_tensor_f32(y) + a, b - a, mb_tensor_f32(y) + a);
    }
    return MB_OK;
}

mb_status mb_clamp_cpu(mb_ops *ops, float limit, mb_tensor *y)
{
    int64_t n = mb_tensor_count(y);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->clamp(limit, b - a, mb_tensor_f32(y) + a);
    }
    return MB_OK;
}

mb_status mb_clamp_backward_cpu(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy)
{
    int64_t n = mb_tensor_count(y);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    int threads = mb_cpu_threads_for(ops, n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t a, b;
        mb_cpu_part(n, STEP, i, threads, &a, &b);
        kernels->clamp_backward(limit, mb_tensor_f32(y) + a, b - a, mb_tensor_f32(dy) + a);
    }
    return MB_OK;
}
