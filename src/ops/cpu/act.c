/* act (cpu): element-wise ops over ranges; rotary positions and dropout over rows.
 *
 * 1. ranges
 * 2. gated and plain activations
 * 3. small ops
 * 4. rows
 */
#include <math.h>

#include "base/rng.h"
#include "ops/cpu/cpu.h"
#include "tensor/tensor.h"

/* ---- 1. ranges ---- */

/* The arguments of an element-wise op; which are set is the op's business. */
typedef struct act_work {
    const mb_kernels *kernels;
    mb_act in[3], out[2];
    float number;
    bool flag;
} act_work;

typedef void (*act_body)(const act_work *work, int64_t first, int64_t n);

static mb_act in_at(const act_work *work, int i, int64_t first)
{
    return mb_act_at(work->in[i], first);
}
static mb_act out_at(const act_work *work, int i, int64_t first)
{
    return mb_act_at(work->out[i], first);
}

/* body over parts of [0, n), one per thread. Every element is computed alone, so the division changes no
 * bits. */
static mb_status over(mb_ops *ops, int64_t n, act_body body, act_work work)
{
    enum { STEP = 1024 }; /* parts begin at multiples of this */
    int threads = mb_cpu_threads_for(ops, n);
    work.kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < threads; i++) {
        int64_t first, last;
        mb_cpu_part(n, STEP, i, threads, &first, &last);
        body(&work, first, last - first);
    }
    return MB_OK;
}

/* ---- 2. gated and plain activations ---- */

static void swiglu_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->swiglu(in_at(w, 0, first), in_at(w, 1, first), n, out_at(w, 0, first));
}

mb_status mb_swiglu_cpu(mb_ops *ops, const mb_tensor *gate, const mb_tensor *up, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), swiglu_part,
                (act_work){.in = {mb_cpu_act(gate), mb_cpu_act(up)}, .out = {mb_cpu_act(y)}});
}

static void swiglu_backward_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->swiglu_backward(in_at(w, 0, first), in_at(w, 1, first), in_at(w, 2, first), n,
                                out_at(w, 0, first), out_at(w, 1, first));
}

mb_status mb_swiglu_backward_cpu(mb_ops *ops, const mb_tensor *dy, const mb_tensor *gate, const mb_tensor *up,
                                 mb_tensor *dgate, mb_tensor *dup)
{
    return over(ops, mb_tensor_count(dy), swiglu_backward_part,
                (act_work){.in = {mb_cpu_act(dy), mb_cpu_act(gate), mb_cpu_act(up)},
                           .out = {mb_cpu_act(dgate), mb_cpu_act(dup)}});
}

static void gelu_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->gelu(w->flag, n, out_at(w, 0, first));
}

mb_status mb_gelu_cpu(mb_ops *ops, bool is_tanh, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), gelu_part, (act_work){.flag = is_tanh, .out = {mb_cpu_act(y)}});
}

/* ---- 3. small ops ---- */

static void multiply_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->multiply(in_at(w, 0, first), n, out_at(w, 0, first));
}

mb_status mb_multiply_cpu(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), multiply_part,
                (act_work){.in = {mb_cpu_act(x)}, .out = {mb_cpu_act(y)}});
}

static void cast_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->cast(in_at(w, 0, first), n, out_at(w, 0, first));
}

mb_status mb_cast_cpu(mb_ops *ops, const mb_tensor *x, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), cast_part,
                (act_work){.in = {mb_cpu_act(x)}, .out = {mb_cpu_act(y)}});
}

static void axpy_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->axpy(w->number, in_at(w, 0, first), n, out_at(w, 0, first));
}

mb_status mb_axpy_cpu(mb_ops *ops, float scale, const mb_tensor *x, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), axpy_part,
                (act_work){.number = scale, .in = {mb_cpu_act(x)}, .out = {mb_cpu_act(y)}});
}

static void scale_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->scale(w->number, out_at(w, 0, first), n, out_at(w, 0, first));
}

mb_status mb_scale_cpu(mb_ops *ops, float scale, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), scale_part, (act_work){.number = scale, .out = {mb_cpu_act(y)}});
}

static void clamp_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->clamp(w->number, n, out_at(w, 0, first));
}

mb_status mb_clamp_cpu(mb_ops *ops, float limit, mb_tensor *y)
{
    return over(ops, mb_tensor_count(y), clamp_part, (act_work){.number = limit, .out = {mb_cpu_act(y)}});
}

static void clamp_backward_part(const act_work *w, int64_t first, int64_t n)
{
    w->kernels->clamp_backward(w->number, in_at(w, 0, first), n, out_at(w, 0, first));
}

/* The limit as y's dtype has it, as in the plain C backend. */
mb_status mb_clamp_backward_cpu(mb_ops *ops, float limit, const mb_tensor *y, mb_tensor *dy)
{
    if (y->dtype == MB_BF16) limit = mb_dtype_f32_from_bf16(mb_dtype_bf16_from_f32(limit));
    return over(ops, mb_tensor_count(y), clamp_backward_part,
                (act_work){.number = limit, .in = {mb_cpu_act(y)}, .out = {mb_cpu_act(dy)}});
}

/* ---- 4. rows ---- */

mb_status mb_rope_cpu(mb_ops *ops, mb_tensor *x, const int32_t *positions, const mb_tensor *table,
                      bool inverse)
{
    int64_t rows = x->shape[0], heads = x->shape[1], width = x->shape[2];
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, mb_tensor_count(x)))
    for (int64_t t = 0; t < rows; t++) {
        const float *angles = mb_tensor_f32(table) + positions[t] * width;
        kernels->rope(mb_act_at(mb_cpu_act(x), t * heads * width), angles, angles + width / 2, heads,
                      width / 2, inverse ? -1.0f : 1.0f);
    }
    return MB_OK;
}

/* A uniform number u is the high 53 bits of a word over 2^53; u < p just when the word is below the smallest
 * multiple of 2^-53 at or above p, times 2^64. */
mb_status mb_dropout_cpu(mb_ops *ops, const mb_tensor *x, float p, uint64_t seed, uint32_t sub,
                         const int64_t *row_index, mb_tensor *y)
{
    int64_t rows = mb_ops_rows(x), width = mb_ops_width(x);
    const mb_kernels *kernels = mb_cpu_get(ops)->kernels;
    mb_draws draws = {.seed = seed,
                      .below = (uint64_t)ceil((double)p * 0x1p53) << 11,
                      .stream = MB_RNG_DROPOUT,
                      .sub = sub};
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, 4 * rows * width))
    for (int64_t r = 0; r < rows; r++) {
        kernels->dropout(&draws, (uint64_t)(row_index[r] * width), 1.0f / (1.0f - p),
                         mb_act_at(mb_cpu_act(x), r * width), width, mb_act_at(mb_cpu_act(y), r * width));
    }
    return MB_OK;
}
