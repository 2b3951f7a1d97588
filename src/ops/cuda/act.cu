/* act (cuda): gated and plain activations, rotary positions, small element-wise ops, dropout.
 *
 * All are bound by memory (but dropout, whose ten rounds of Philox per element are arithmetic): a thread
 * moves 16 bytes of the widest dtype per array where the arrays allow it. What is done to an element is a
 * small struct given to one of three kernels; products that feed sums are fmaf, so that every mix of dtypes
 * computes alike.
 *
 * 1. one array, in place   2. two arrays   3. gates   4. rotary positions   5. dropout   6. the table
 * Sources: Shazeer 2020, "GLU variants improve transformer"; Hendrycks & Gimpel 2016, "Gaussian error linear
 * units"; Su et al. 2021, "RoFormer"; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
 */
#include "ops/cuda/rows.cuh"

extern "C" {
#include "base/rng.h"
}

enum { THREADS = 256 };

static __device__ __forceinline__ int64_t thread_index()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* ---- 1. one array, in place ---- */

template <class F, typename Y, int N> static __global__ void change(F f, int64_t n, Y *y)
{
    const int64_t first = thread_index() * N;
    if (first + N <= n) {
        float a[N];
        mb_load(y + first, a);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = f(a[i]);
        mb_store(y + first, a);
    } else {
        for (int64_t i = first; i < n; i++) y[i] = mb_from_float<Y>(f(mb_float(y[i])));
    }
}

template <class F> static mb_status launch_change(mb_ops *ops, F f, mb_tensor *y)
{
    const int64_t n = mb_tensor_count(y);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(y->dtype, Y, {
        enum { N = mb_most<Y, Y>::N };
        if (mb_is_whole(y->dtype, y->data, N, N))
            MB_LAUNCH((change<F, Y, N>), (int)mb_cuda_blocks(n, THREADS * N), THREADS, 0, stream, f, n,
                      mb_data<Y>(y));
        else
            MB_LAUNCH((change<F, Y, 1>), (int)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, f, n,
                      mb_data<Y>(y));
    });
    return MB_CUDA_LAUNCHED();
}

struct gelu_erf {
    __device__ __forceinline__ float operator()(float x) const
    {
        return x * (0.5f * erfcf(-x * 0.70710678118654752f));
    }
};
/* 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). */
struct gelu_tanh {
    __device__ __forceinline__ float operator()(float x) const
    {
        return x * sigmoid(x * fmaf(x * x, 2 * 0.79788456f * 0.044715f, 2 * 0.79788456f));
    }
};
struct scaled {
    float factor;
    __device__ __forceinline__ float operator()(float x) const { return factor * x; }
};
/* Comparisons keep a NaN as it is. */
struct clamped {
    float limit;
    __device__ __forceinline__ float operator()(float x) const
    {
        return x > limit ? limit : x < -limit ? -limit : x;
    }
};

static mb_status cuda_gelu(mb_ops *ops, bool is_tanh, mb_tensor *y)
{
    return is_tanh ? launch_change(ops, gelu_tanh{}, y) : launch_change(ops, gelu_erf{}, y);
}
static mb_status cuda_scale(mb_ops *ops, float scale, mb_tensor *y)
{
    return launch_change(ops, scaled{scale}, y);
}
static mb_status cuda_clamp(mb_ops *ops, float limit, mb_tensor *y)
{
    return launch_change(ops, clamped{limit}, y);
}

/* ---- 2. two arrays ---- */

/* y = f(x, y) */
template <class F, typename X, typename Y, int N>
static __global__ void join(F f, int64_t n, const X *x, Y *y)
{
    const int64_t first = thread_index() * N;
    if (first + N <= n) {
        float a[N], b[N];
        mb_load(x + first, a);
        mb_load(y + first, b);
#pragma unroll
        for (int i = 0; i < N; i++) b[i] = f(a[i], b[i]);
        mb_store(y + first, b);
    } else {
        for (int64_t i = first; i < n; i++) y[i] = mb_from_float<Y>(f(mb_float(x[i]), mb_float(y[i])));
    }
}

template <class F>
static mb_status launch_join(mb_ops *ops, F f, int64_t n, mb_dtype x_dtype, const void *x, mb_dtype y_dtype,
                             void *y)
{
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x_dtype, X, MB_CUDA_BY_DTYPE(y_dtype, Y, {
                         enum { N = mb_most<X, Y>::N };
                         if (mb_is_whole(x_dtype, x, N, N) && mb_is_whole(y_dtype, y, N, N))
                             MB_LAUNCH((join<F, X, Y, N>), (int)mb_cuda_blocks(n, THREADS * N), THREADS, 0,
                                       stream, f, n, (const X *)x, (Y *)y);
                         else
                             MB_LAUNCH((join<F, X, Y, 1>), (int)mb_cuda_blocks(n, THREADS), THREADS, 0,
                                       stream, f, n, (const X *)x, (Y *)y);
                     }););
    return MB_CUDA_LAUNCHED();
}

struct multiplied {
    __device__ __forceinline__ float operator()(float x, float y) const { return y * x; }
};
struct added {
    float factor;
    __device__ __forceinline__ float operator()(float x, float y) const { return fmaf(factor, x, y); }
};
/* x: the clamped values, y: the gradient. */
struct masked {
    float limit;
    __device__ __forceinline__ float operator()(float x, float y) const
    {
        return fabsf(x) >= limit ? 0.0f : y;
    }
};

/* Rows of whole accesses are one row; the last elements, when there are some, another. */
mb_status mb_cuda_cast(mb_ops *ops, mb_dtype from_dtype, const void *from, int64_t n, mb_dtype to_dtype,
                       void *to)
{
    const int64_t most = n - n % 8;
    const mb_rows body = {1, most, NULL, NULL}, rest = {1, n - most, NULL, NULL};
    MB_CUDA_TRY(mb_launch_rows(ops, body, from_dtype, from, to_dtype, to));
    return mb_launch_rows(ops, rest, from_dtype,
                          (const char *)from + (size_t)most * mb_dtype_bytes(from_dtype), to_dtype,
                          (char *)to + (size_t)most * mb_dtype_bytes(to_dtype));
}
static mb_status cuda_cast(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    return mb_cuda_cast(ops, x->dtype, x->data, mb_tensor_count(y), y->dtype, y->data);
}
static mb_status cuda_multiply(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    return launch_join(ops, multiplied{}, mb_tensor_count(y), x->dtype, x->data, y->dtype, y->data);
}
static mb_status cuda_axpy(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y)
{
    return launch_join(ops, added{scale}, mb_tensor_count(y), x->dtype, x->data, y->dtype, y->data);
}
/* The limit as y's dtype has it: clamped values are that, above or below the f32 limit. */
static mb_status cuda_clamp_backward(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy)
{
    const float reached = y->dtype == MB_F32 ? limit : mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(limit));
    return launch_join(ops, masked{reached}, mb_tensor_count(dy), y->dtype, y->data, dy->dtype, dy->data);
}

/* ---- 3. gates ---- */

template <typename A, int N> static __global__ void swiglu(int64_t n, const A *gate, const A *up, A *y)
{
    const int64_t first = thread_index() * N;
    if (first + N <= n) {
        float g[N], u[N];
        mb_load(gate + first, g);
        mb_load(up + first, u);
#pragma unroll
        for (int i = 0; i < N; i++) g[i] = g[i] * sigmoid(g[i]) * u[i];
        mb_store(y + first, g);
    } else {
        for (int64_t i = first; i < n; i++) {
            const float g = mb_float(gate[i]);
            y[i] = mb_from_float<A>(g * sigmoid(g) * mb_float(up[i]));
        }
    }
}

/* silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g). In: the gate, up, and dy; out: dgate, dup. */
static __device__ __forceinline__ void swiglu_slope(float d, float &g, float &u)
{
    const float s = sigmoid(g), dgate = d * u * s * fmaf(g, 1.0f - s, 1.0f);
    u = d * g * s;
    g = dgate;
}

template <typename A, int N>
static __global__ void swiglu_backward(int64_t n, const A *dy, const A *gate, const A *up, A *dgate, A *dup)
{
    const int64_t first = thread_index() * N;
    if (first + N <= n) {
        float d[N], g[N], u[N];
        mb_load(dy + first, d);
        mb_load(gate + first, g);
        mb_load(up + first, u);
#pragma unroll
        for (int i = 0; i < N; i++) swiglu_slope(d[i], g[i], u[i]);
        mb_store(dgate + first, g);
        mb_store(dup + first, u);
    } else {
        for (int64_t i = first; i < n; i++) {
            float g = mb_float(gate[i]), u = mb_float(up[i]);
            swiglu_slope(mb_float(dy[i]), g, u);
            dgate[i] = mb_from_float<A>(g);
            dup[i] = mb_from_float<A>(u);
        }
    }
}

static bool all_whole(const mb_tensor *const *tensors, int count, int n)
{
    bool is_whole = true;
    for (int i = 0; i < count; i++)
        is_whole = is_whole && mb_is_whole(tensors[i]->dtype, tensors[i]->data, n, n);
    return is_whole;
}

static mb_status cuda_swiglu(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y)
{
    const mb_tensor *const all[] = {gate, up, y};
    const int64_t n = mb_tensor_count(y);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(y->dtype, A, {
        enum { N = mb_most<A, A>::N };
        if (all_whole(all, 3, N))
            MB_LAUNCH((swiglu<A, N>), (int)mb_cuda_blocks(n, THREADS * N), THREADS, 0, stream, n,
                      mb_data<const A>(gate), mb_data<const A>(up), mb_data<A>(y));
        else
            MB_LAUNCH((swiglu<A, 1>), (int)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, n,
                      mb_data<const A>(gate), mb_data<const A>(up), mb_data<A>(y));
    });
    return MB_CUDA_LAUNCHED();
}

static mb_status cuda_swiglu_backward(mb_ops *ops, const mb_tensor *dy, const mb_tensor *gate,
                                      const mb_tensor *up, mb_tensor *dgate, mb_tensor *dup)
{
    const mb_tensor *const all[] = {dy, gate, up, dgate, dup};
    const int64_t n = mb_tensor_count(dy);
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(dy->dtype, A, {
        enum { N = mb_most<A, A>::N };
        if (all_whole(all, 5, N))
            MB_LAUNCH((swiglu_backward<A, N>), (int)mb_cuda_blocks(n, THREADS * N), THREADS, 0, stream, n,
                      mb_data<const A>(dy), mb_data<const A>(gate), mb_data<const A>(up), mb_data<A>(dgate),
                      mb_data<A>(dup));
        else
            MB_LAUNCH((swiglu_backward<A, 1>), (int)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, n,
                      mb_data<const A>(dy), mb_data<const A>(gate), mb_data<const A>(up), mb_data<A>(dgate),
                      mb_data<A>(dup));
    });
    return MB_CUDA_LAUNCHED();
}

/* ---- 4. rotary positions ---- */

/* A thread turns N pairs of one head: elements i .. and i + half .. . `lanes` = half / N threads per head. */
template <typename X, int N>
static __global__ void rope(int64_t rows, int heads, int half, float sign, const int32_t *positions,
                            const float *table, X *x)
{
    const int lanes = half / N, per_row = heads * lanes;
    const int64_t index = thread_index(), row = mb_divide(index, per_row);
    if (row >= rows) return;
    const int rest = (int)(index - row * per_row), i = rest % lanes * N;
    const float *cosine = table + (int64_t)positions[row] * 2 * half + i;
    X *low = x + (row * heads + rest / lanes) * 2 * half + i, *high = low + half;
    float a[N], b[N];
    mb_load(low, a);
    mb_load(high, b);
#pragma unroll
    for (int from = 0; from < N; from += N < 4 ? N : 4) {
        float c[N < 4 ? N : 4], s[N < 4 ? N : 4];
        mb_load(cosine + from, c);
        mb_load(cosine + half + from, s);
#pragma unroll
        for (int j = 0; j < (N < 4 ? N : 4); j++) {
            const float first = a[from + j], second = b[from + j], sine = sign * s[j];
            a[from + j] = fmaf(first, c[j], -(second * sine));
            b[from + j] = fmaf(second, c[j], first * sine);
        }
    }
    mb_store(low, a);
    mb_store(high, b);
}

static mb_status cuda_rope(mb_ops *ops, mb_tensor *x, const int32_t *positions, const mb_tensor *table,
                           bool inverse)
{
    const int64_t rows = x->shape[0];
    const int heads = (int)x->shape[1], half = (int)(x->shape[2] / 2);
    const float sign = inverse ? -1.0f : 1.0f;
    const int64_t n = rows * heads * half;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x->dtype, X, {
        enum { N = mb_most<X, X>::N };
        if (mb_is_whole(x->dtype, x->data, half, N) && mb_is_whole(MB_F32, table->data, half, 4))
            MB_LAUNCH((rope<X, N>), (int)mb_cuda_blocks(n / N, THREADS), THREADS, 0, stream, rows, heads,
                      half, sign, positions, mb_data<const float>(table), mb_data<X>(x));
        else
            MB_LAUNCH((rope<X, 1>), (int)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, rows, heads, half,
                      sign, positions, mb_data<const float>(table), mb_data<X>(x));
    });
    return MB_CUDA_LAUNCHED();
}

/* ---- 5. dropout ---- */

struct draw {
    uint64_t seed, limit; /* dropped: the 53 bits drawn are below the limit */
    uint32_t sub;
    float keep;
};

/* The first two words of mb_rng_block, as mb_rng_u64 joins them. */
static __device__ __forceinline__ uint64_t philox(const draw &d, uint64_t index)
{
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = d.sub, c3 = MB_RNG_DROPOUT;
    uint32_t k0 = (uint32_t)d.seed, k1 = (uint32_t)(d.seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)c1 << 32 | c0;
}

template <typename A, int N>
static __global__ void dropout(draw d, int64_t rows, int64_t width, const int64_t *row_index, const A *x,
                               A *y)
{
    const int64_t first = thread_index() * N, row = mb_divide(first, width);
    if (row >= rows) return;
    const uint64_t index = (uint64_t)row_index[row] * (uint64_t)width + (uint64_t)(first - row * width);
    float a[N];
    mb_load(x + first, a);
#pragma unroll
    for (int i = 0; i < N; i++) a[i] = philox(d, index + i) >> 11 < d.limit ? 0.0f : d.keep * a[i];
    mb_store(y + first, a);
}

/* The draw u = k 2^-53 < p, both exact in f64, is k < p 2^53, which is k < ceil(p 2^53) for whole k. */
static mb_status cuda_dropout(mb_ops *ops, const mb_tensor *x, float p, uint64_t seed, uint32_t sub,
                              const int64_t *row_index, mb_tensor *y)
{
    const draw d = {seed, (uint64_t)ceil((double)p * 0x1p53), sub, 1.0f / (1.0f - p)};
    const int64_t rows = mb_ops_rows(x), width = mb_ops_width(x), n = rows * width;
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (n == 0) return MB_OK;
    MB_CUDA_BY_DTYPE(x->dtype, A, {
        enum { N = mb_most<A, A>::N };
        if (mb_is_whole(x->dtype, x->data, width, N) && mb_is_whole(y->dtype, y->data, width, N))
            MB_LAUNCH((dropout<A, N>), (int)mb_cuda_blocks(n / N, THREADS), THREADS, 0, stream, d, rows,
                      width, row_index, mb_data<const A>(x), mb_data<A>(y));
        else
            MB_LAUNCH((dropout<A, 1>), (int)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, d, rows, width,
                      row_index, mb_data<const A>(x), mb_data<A>(y));
    });
    return MB_CUDA_LAUNCHED();
}

/* ---- 6. the table ---- */

void mb_cuda_fill_act(mb_ops_table *table)
{
    table->gelu = cuda_gelu;
    table->scale = cuda_scale;
    table->clamp = cuda_clamp;
    table->cast = cuda_cast;
    table->multiply = cuda_multiply;
    table->axpy = cuda_axpy;
    table->clamp_backward = cuda_clamp_backward;
    table->swiglu = cuda_swiglu;
    table->swiglu_backward = cuda_swiglu_backward;
    table->rope = cuda_rope;
    table->dropout = cuda_dropout;
}
