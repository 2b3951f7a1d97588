/* kernels_body: the vector loops, compiled once per instruction set. The including file defines
 * MB_KERNELS_TABLE (the table's name) and MB_KERNELS_NAME.
 *
 * 1. norms
 * 2. element-wise
 * 3. softmax and cross-entropy
 * 4. optimiser
 */
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"

/* The last vector of a range: n - i elements, at most W. */
static inline mb_vf load_at(const float *p, int64_t i, int64_t n)
{
    return n - i >= W ? vf_load(p + i) : vf_load_part(p + i, n - i);
}

static inline void store_at(float *p, int64_t i, int64_t n, mb_vf x)
{
    if (n - i >= W) {
        vf_store(p + i, x);
    } else {
        vf_store_part(p + i, x, n - i);
    }
}

/* ---- 1. norms ---- */

static float dot(const float *a, const float *b, int64_t n)
{
    mb_vf s0 = vf_set(0), s1 = s0;
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        s0 = vf_fma(vf_load(a + i), vf_load(b + i), s0);
        s1 = vf_fma(vf_load(a + i + W), vf_load(b + i + W), s1);
    }
    for (; i < n; i += W) s0 = vf_fma(load_at(a, i, n), load_at(b, i, n), s0);
    return vf_sum(s0 + s1);
}

static void rms_norm(const float *x, const float *w, float eps, int64_t rows, int64_t d, float *y,
                     float *rstd)
{
    for (int64_t r = 0; r < rows; r++, x += d, y += d) {
        rstd[r] = 1.0f / sqrtf(dot(x, x, d) / (float)d + eps);
        mb_vf factor = vf_set(rstd[r]);
        for (int64_t i = 0; i < d; i += W) store_at(y, i, d, load_at(x, i, d) * factor * load_at(w, i, d));
    }
}

/* dx = r w dy - x r^3 / D sum(w dy x) */
static void rms_norm_backward(const float *dy, const float *x, const float *w, const float *rstd,
                              int64_t rows, int64_t d, bool accumulate, float *dx, float *opt_dw)
{
    for (int64_t r = 0; r < rows; r++, x += d, dy += d, dx += d) {
        mb_vf sum = vf_set(0), factor = vf_set(rstd[r]);
        for (int64_t i = 0; i < d; i += W) {
            mb_vf gx = load_at(dy, i, d) * load_at(x, i, d);
            sum = vf_fma(gx, load_at(w, i, d), sum);
            if (opt_dw != NULL) store_at(opt_dw, i, d, vf_fma(gx, factor, load_at(opt_dw, i, d)));
        }
        mb_vf c = vf_set(-vf_sum(sum) * rstd[r] * rstd[r] * rstd[r] / (float)d);
        for (int64_t i = 0; i < d; i += W) {
            mb_vf value = vf_fma(c, load_at(x, i, d), factor * load_at(w, i, d) * load_at(dy, i, d));
            if (accumulate) value = value + load_at(dx, i, d);
            store_at(dx, i, d, value);
        }
    }
}

static double sum_squares(const float *x, int64_t n)
{
    double sums[8] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
#pragma omp simd
        for (int64_t j = 0; j < 8; j++) sums[j] += (double)x[i + j] * x[i + j];
    }
    for (; i < n; i++) sums[0] += (double)x[i] * x[i];
    for (int64_t j = 0; j < 8; j++) sum += sums[j];
    return sum;
}

/* ---- 2. element-wise ---- */

static void swiglu(const float *gate, const float *up, int64_t n, float *y)
{
    for (int64_t i = 0; i < n; i += W) {
        mb_vf g = load_at(gate, i, n);
        store_at(y, i, n, g * vf_sigmoid(g) * load_at(up, i, n));
    }
}

/* silu'(g) = s (1 + g (1 - s)) */
static void swiglu_backward(const float *dy, const float *gate, const float *up, int64_t n, float *dgate,
                            float *dup)
{
    mb_vf one = vf_set(1.0f);
    for (int64_t i = 0; i < n; i += W) {
        mb_vf g = load_at(gate, i, n), u = load_at(up, i, n), d = load_at(dy, i, n), s = vf_sigmoid(g);
        store_at(dup, i, n, d * g * s);
        store_at(dgate, i, n, d * u * s * vf_fma(g, one - s, one));
    }
}

static void rope(float *x, const float *cosine, const float *sine, int64_t heads, int64_t half, float sign)
{
    for (int64_t h = 0; h < heads; h++, x += 2 * half) {
        for (int64_t i = 0; i < half; i += W) {
            mb_vf a = load_at(x, i, half), b = load_at(x + half, i, half);
            mb_vf c = load_at(cosine, i, half), s = vf_set(sign) * load_at(sine, i, half);
            store_at(x, i, half, a * c - b * s);
            store_at(x + half, i, half, b * c + a * s);
        }
    }
}

static void axpy(float factor, const float *x, int64_t n, float *y)
{
    mb_vf f = vf_set(factor);
    for (int64_t i = 0; i < n; i += W) store_at(y, i, n, vf_fma(f, load_at(x, i, n), load_at(y, i, n)));
}

static void scale(float factor, const float *x, int64_t n, float *y)
{
    mb_vf f = vf_set(factor);
    for (int64_t i = 0; i < n; i += W) store_at(y, i, n, f * load_at(x, i, n));
}

static void clamp(float limit, int64_t n, float *y)
{
    for (int64_t i = 0; i < n; i += W) {
        store_at(y, i, n, vf_max(vf_set(-limit), vf_min(vf_set(limit), load_at(y, i, n))));
    }
}

static void clamp_backward(float limit, const float *y, int64_t n, float *dy)
{
    for (int64_t i = 0; i < n; i += W) {
        store_at(dy, i, n, vf_where_less(vf_abs(load_at(y, i, n)), vf_set(limit), load_at(dy, i, n)));
    }
}

/* ---- 3. softmax and cross-entropy ---- */

static float highest(const float *x, int64_t n)
{
    if (n < W) {
        float top = x[0];
        for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
        return top;
    }
    mb_vf top = vf_load(x);
    for (int64_t i = W; i + W <= n; i += W) top = vf_max(top, vf_load(x + i));
    return vf_highest(vf_max(top, vf_load(x + n - W)));
}

/* y = exp(x - top); returns the sum, in f64 over blocks of 4096. */
static double exponentials(const float *x, int64_t n, float top, float *y)
{
    double sum = 0;
    mb_vf shift = vf_set(top);
    for (int64_t block = 0; block < n; block += 4096) {
        int64_t end = block + 4096 < n ? block + 4096 : n, i = block;
        mb_vf s = vf_set(0);
        for (; i + W <= end; i += W) {
            mb_vf e = vf_exp(vf_load(x + i) - shift);
            vf_store(y + i, e);
            s = s + e;
        }
        sum += (double)vf_sum(s);
        if (i == end) continue;
        float last[W];
        vf_store(last, vf_exp(vf_load_part(x + i, end - i) - shift));
        for (int64_t j = i; j < end; j++) {
            y[j] = last[j - i];
            sum += (double)last[j - i];
        }
    }
    return sum;
}

static void softmax(const float *x, int64_t n, float *y)
{
    double sum = exponentials(x, n, highest(x, n), y);
    scale((float)(1.0 / sum), y, n, y);
}

static float cross_entropy(float *x, int64_t n, int64_t target, float weight, int32_t *out_argmax)
{
    float top = highest(x, n), wanted = x[target];
    int64_t best = 0;
    while (best < n - 1 && x[best] != top) best++;
    *out_argmax = (int32_t)best;
    double sum = exponentials(x, n, top, x);
    if (weight != 0) {
        scale((float)(weight / sum), x, n, x);
        x[target] -= weight;
    }
    return (float)(log(sum) + ((double)top - wanted));
}

/* ---- 4. optimiser ---- */

static void adamw(const mb_adamw_factors *f, int64_t n, const float *g, float *p, float *m, float *v)
{
    mb_vf beta1 = vf_set(f->beta1), beta2 = vf_set(f->beta2), rest1 = vf_set(f->one_minus_beta1);
    mb_vf rest2 = vf_set(f->one_minus_beta2), step = vf_set(-f->step), keep = vf_set(f->keep);
    for (int64_t i = 0; i < n; i += W) {
        mb_vf gradient = load_at(g, i, n) * vf_set(f->gradient_scale);
        mb_vf first = vf_fma(beta1, load_at(m, i, n), rest1 * gradient);
        mb_vf second = vf_fma(beta2, load_at(v, i, n), rest2 * gradient * gradient);
        mb_vf root = vf_fma(vf_sqrt(second), vf_set(f->inverse_root), vf_set(f->epsilon));
        store_at(m, i, n, first);
        store_at(v, i, n, second);
        store_at(p, i, n, vf_fma(step, first / root, keep * load_at(p, i, n)));
    }
}

#include "ops/cpu/attention_body.h"

const mb_kernels MB_KERNELS_TABLE = {
    .name = MB_KERNELS_NAME,
    .rms_norm = rms_norm,
    .rms_norm_backward = rms_norm_backward,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .rope = rope,
    .axpy = axpy,
    .scale = scale,
    .clamp = clamp,
    .clamp_backward = clamp_backward,
    .dot = dot,
    .sum_squares = sum_squares,
    .softmax = softmax,
    .cross_entropy = cross_entropy,
    .adamw = adamw,
    .panel = PANEL,
    .attention_scratch = SCRATCH_FLOATS,
    .pack_panels = pack_panels,
    .attention = attention,
    .attention_backward = attention_backward,
};
