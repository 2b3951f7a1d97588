/* adamw (cuda): the optimiser's step, every element by itself, and sums of squares in f64.
 *
 * Source: Loshchilov & Hutter 2019, "Decoupled weight decay regularization", algorithm 2 (the decay times the
 * learning rate). What does not depend on the element is computed once, in f64, and rounded.
 */
#include "ops/cuda/vector.cuh"

enum { THREADS = 256, EACH = 4 };

typedef struct adamw_factors {
    float beta1, beta2, rest1, rest2, gradient_scale, step, inverse_root, epsilon, keep;
} adamw_factors;

static __device__ __forceinline__ void adamw_one(const adamw_factors &f, float gradient, float &p, float &m,
                                                 float &v)
{
    const float g = gradient * f.gradient_scale;
    m = fmaf(f.beta1, m, f.rest1 * g);
    v = fmaf(f.beta2, v, f.rest2 * g * g);
    p = fmaf(-f.step, m / fmaf(sqrtf(v), f.inverse_root, f.epsilon), f.keep * p);
}

template <int N>
static __global__ void adamw_step(adamw_factors f, int64_t n, const float *gradient, float *parameter,
                                  float *moment1, float *moment2)
{
    const int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= n) {
        float g[N], p[N], m[N], v[N];
        mb_load(gradient + first, g);
        mb_load(parameter + first, p);
        mb_load(moment1 + first, m);
        mb_load(moment2 + first, v);
#pragma unroll
        for (int i = 0; i < N; i++) adamw_one(f, g[i], p[i], m[i], v[i]);
        mb_store(parameter + first, p);
        mb_store(moment1 + first, m);
        mb_store(moment2 + first, v);
    } else {
        for (int64_t i = first; i < n; i++) adamw_one(f, gradient[i], parameter[i], moment1[i], moment2[i]);
    }
}

static mb_status cuda_adamw(mb_ops *ops, const mb_adamw *adamw, int64_t n, const float *gradient,
                            float *parameter, float *moment1, float *moment2)
{
    const adamw_factors f = {(float)adamw->beta1,
                             (float)adamw->beta2,
                             (float)(1 - adamw->beta1),
                             (float)(1 - adamw->beta2),
                             (float)adamw->gradient_scale,
                             (float)(adamw->learning_rate / (1 - pow(adamw->beta1, (double)adamw->step))),
                             (float)(1 / sqrt(1 - pow(adamw->beta2, (double)adamw->step))),
                             (float)adamw->epsilon,
                             (float)(1 - adamw->learning_rate * adamw->weight_decay)};
    const bool is_whole =
        ((uintptr_t)gradient | (uintptr_t)parameter | (uintptr_t)moment1 | (uintptr_t)moment2) %
            (EACH * sizeof(float)) ==
        0;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    if (is_whole)
        MB_LAUNCH(adamw_step<EACH>, (int)mb_cuda_blocks(n, THREADS * EACH), THREADS, 0, stream, f, n,
                  gradient, parameter, moment1, moment2);
    else
        MB_LAUNCH(adamw_step<1>, (int)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, f, n, gradient,
                  parameter, moment1, moment2);
    return MB_CUDA_LAUNCHED();
}

/* One block per block of x; thread t adds elements (j THREADS + t) EACH .., for j = 0, 1, .., in both
 * twins. */
template <bool IS_WHOLE>
static __global__ void sum_squares(const float *x, int64_t n, int64_t block, double *out)
{
    MB_SHARED(double, room, 32);
    const int64_t begin = (int64_t)blockIdx.x * block, width = n - begin < block ? n - begin : block;
    double sum = 0;
    for (int64_t at = (int64_t)threadIdx.x * EACH; at < width; at += THREADS * EACH) {
        float value[EACH];
        if (IS_WHOLE && at + EACH <= width) {
            mb_load(x + begin + at, value);
        } else {
#pragma unroll
            for (int i = 0; i < EACH; i++) value[i] = at + i < width ? x[begin + at + i] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) sum = fma((double)value[i], (double)value[i], sum);
    }
    sum = mb_block_sum(sum, room);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

static mb_status cuda_sum_squares(mb_ops *ops, const float *x, int64_t n, int64_t block, double *out)
{
    const int64_t blocks = mb_cuda_blocks(n, block);
    const bool is_whole = block % EACH == 0 && (uintptr_t)x % (EACH * sizeof(float)) == 0;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    double *sums = NULL;
    if (n == 0) return MB_OK;
    MB_CUDA_TRY(mb_cuda_scratch(ops, blocks, &sums));
    if (is_whole)
        MB_LAUNCH(sum_squares<true>, (int)blocks, THREADS, 0, stream, x, n, block, sums);
    else
        MB_LAUNCH(sum_squares<false>, (int)blocks, THREADS, 0, stream, x, n, block, sums);
    MB_CUDA_TRY(MB_CUDA_LAUNCHED());
    if (!ops->is_device) MB_CUDA_TRY(mb_ops_wait(ops)); /* a copy of ordinary memory is not queued */
    MB_CUDA_TRY(mb_ops_download(ops, sums, (size_t)blocks * sizeof *sums, out));
    return mb_ops_wait(ops);
}

void mb_cuda_fill_adamw(mb_ops_table *table)
{
    table->adamw = cuda_adamw;
    table->sum_squares = cuda_sum_squares;
}
