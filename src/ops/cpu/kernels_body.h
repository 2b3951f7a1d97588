/* kernels_body: the vector loops, compiled once per instruction set. The including file defines
 * MB_KERNELS_TABLE (the table's name) and MB_KERNELS_NAME.
 *
 * 1. norms
 * 2. element-wise
 * 3. softmax and cross-entropy
 * 4. optimiser
 */
#include <float.h>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd.h"
#include "ops/ops.h"

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

/* The same of activations: the dtype is tested per vector, a branch that never changes within a call. */
static inline mb_vf act_load(mb_act act, int64_t i, int64_t n)
{
    if (!act.is_bf16) return load_at(act.data, i, n);
    const uint16_t *p = (const uint16_t *)act.data + i;
    return vf_from_bf16(n - i >= W ? vh_load(p) : vh_load_part(p, n - i));
}

static inline void act_store(mb_act act, int64_t i, int64_t n, mb_vf x)
{
    if (!act.is_bf16) {
        store_at(act.data, i, n, x);
        return;
    }
    uint16_t *p = (uint16_t *)act.data + i;
    if (n - i >= W) {
        vh_store(p, vf_to_bf16(x));
    } else {
        vh_store_part(p, vf_to_bf16(x), n - i);
    }
}

/* ---- 1. norms ---- */

static float dot(mb_act a, mb_act b, int64_t n)
{
    mb_vf s0 = vf_set(0), s1 = s0;
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        s0 = vf_fma(act_load(a, i, n), act_load(b, i, n), s0);
        s1 = vf_fma(act_load(a, i + W, n), act_load(b, i + W, n), s1);
    }
    for (; i < n; i += W) s0 = vf_fma(act_load(a, i, n), act_load(b, i, n), s0);
    return vf_sum(s0 + s1);
}

static void rms_norm(mb_act x, const float *w, float eps, int64_t rows, int64_t d, mb_act y, float *rstd)
{
    for (int64_t r = 0; r < rows; r++) {
        rstd[r] = 1.0f / sqrtf(dot(x, x, d) / (float)d + eps);
        mb_vf factor = vf_set(rstd[r]);
        for (int64_t i = 0; i < d; i += W) act_store(y, i, d, act_load(x, i, d) * factor * load_at(w, i, d));
        x = mb_act_at(x, d);
        y = mb_act_at(y, d);
    }
}

/* dx = r w dy - x r^3 / D sum(w dy x) */
static void rms_norm_backward(mb_act dy, mb_act x, const float *w, const float *rstd, int64_t rows, int64_t d,
                              bool accumulate, mb_act dx, float *opt_dw)
{
    for (int64_t r = 0; r < rows; r++) {
        mb_vf sum = vf_set(0), factor = vf_set(rstd[r]);
        for (int64_t i = 0; i < d; i += W) {
            mb_vf gx = act_load(dy, i, d) * act_load(x, i, d);
            sum = vf_fma(gx, load_at(w, i, d), sum);
            if (opt_dw != NULL) store_at(opt_dw, i, d, vf_fma(gx, factor, load_at(opt_dw, i, d)));
        }
        mb_vf c = vf_set(-vf_sum(sum) * rstd[r] * rstd[r] * rstd[r] / (float)d);
        for (int64_t i = 0; i < d; i += W) {
            mb_vf value = vf_fma(c, act_load(x, i, d), factor * load_at(w, i, d) * act_load(dy, i, d));
            if (accumulate) value = value + act_load(dx, i, d);
            act_store(dx, i, d, value);
        }
        dy = mb_act_at(dy, d);
        x = mb_act_at(x, d);
        dx = mb_act_at(dx, d);
    }
}

/* Sum of (x - shift)^power, power 1 or 2. Lanes beyond d must not count: they are loaded as zeros. */
static float shifted_sum(mb_act x, int64_t d, float shift, bool is_squared)
{
    mb_vf sum = vf_set(0), s = vf_set(shift);
    int64_t i = 0;
    for (; i + W <= d; i += W) {
        mb_vf off = act_load(x, i, d) - s;
        sum = is_squared ? vf_fma(off, off, sum) : sum + off;
    }
    float rest[W] = {0}, total = vf_sum(sum);
    if (i < d) vf_store(rest, act_load(x, i, d) - s);
    for (int64_t j = 0; j < d - i; j++) total += is_squared ? rest[j] * rest[j] : rest[j];
    return total;
}

/* The mean in two steps (the second adds what the first lost), then the variance around it. */
static void layer_norm(mb_act x, const float *w, const float *b, float eps, int64_t rows, int64_t d, mb_act y)
{
    for (int64_t r = 0; r < rows; r++) {
        float mean = shifted_sum(x, d, 0, false) / (float)d;
        mean += shifted_sum(x, d, mean, false) / (float)d;
        mb_vf factor = vf_set(1.0f / sqrtf(shifted_sum(x, d, mean, true) / (float)d + eps)), m = vf_set(mean);
        for (int64_t i = 0; i < d; i += W) {
            mb_vf value = (act_load(x, i, d) - m) * factor;
            act_store(y, i, d, vf_fma(value, load_at(w, i, d), load_at(b, i, d)));
        }
        x = mb_act_at(x, d);
        y = mb_act_at(y, d);
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

static void swiglu(mb_act gate, mb_act up, int64_t n, mb_act y)
{
    for (int64_t i = 0; i < n; i += W) {
        mb_vf g = act_load(gate, i, n);
        act_store(y, i, n, g * vf_sigmoid(g) * act_load(up, i, n));
    }
}

/* silu'(g) = s (1 + g (1 - s)) */
static void swiglu_backward(mb_act dy, mb_act gate, mb_act up, int64_t n, mb_act dgate, mb_act dup)
{
    mb_vf one = vf_set(1.0f);
    for (int64_t i = 0; i < n; i += W) {
        mb_vf g = act_load(gate, i, n), u = act_load(up, i, n), d = act_load(dy, i, n), s = vf_sigmoid(g);
        act_store(dup, i, n, d * g * s);
        act_store(dgate, i, n, d * u * s * vf_fma(g, one - s, one));
    }
}

/* By tanh: 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). */
static void gelu(bool is_tanh, int64_t n, mb_act y)
{
    for (int64_t i = 0; i < n; i += W) {
        mb_vf x = act_load(y, i, n);
        if (is_tanh) {
            mb_vf u = x * vf_fma(x * x, vf_set(2 * 0.79788456f * 0.044715f), vf_set(2 * 0.79788456f));
            act_store(y, i, n, x * vf_sigmoid(u));
        } else {
            act_store(y, i, n, x * vf_normal(x));
        }
    }
}

static void multiply(mb_act x, int64_t n, mb_act y)
{
    for (int64_t i = 0; i < n; i += W) act_store(y, i, n, act_load(y, i, n) * act_load(x, i, n));
}

static void cast(mb_act x, int64_t n, mb_act y)
{
    if (x.is_bf16 == y.is_bf16) {
        if (n > 0) memcpy(y.data, x.data, (size_t)n * (x.is_bf16 ? 2 : 4));
        return;
    }
    for (int64_t i = 0; i < n; i += W) act_store(y, i, n, act_load(x, i, n));
}

static void rope(mb_act x, const float *cosine, const float *sine, int64_t heads, int64_t half, float sign)
{
    for (int64_t h = 0; h < heads; h++, x = mb_act_at(x, 2 * half)) {
        mb_act second = mb_act_at(x, half);
        for (int64_t i = 0; i < half; i += W) {
            mb_vf a = act_load(x, i, half), b = act_load(second, i, half);
            mb_vf c = load_at(cosine, i, half), s = vf_set(sign) * load_at(sine, i, half);
            act_store(x, i, half, a * c - b * s);
            act_store(second, i, half, b * c + a * s);
        }
    }
}

static void axpy(float factor, mb_act x, int64_t n, mb_act y)
{
    mb_vf f = vf_set(factor);
    for (int64_t i = 0; i < n; i += W) act_store(y, i, n, vf_fma(f, act_load(x, i, n), act_load(y, i, n)));
}

static void act_scale(float factor, mb_act x, int64_t n, mb_act y)
{
    mb_vf f = vf_set(factor);
    for (int64_t i = 0; i < n; i += W) act_store(y, i, n, f * act_load(x, i, n));
}

static inline void scale(float factor, const float *x, int64_t n, float *y)
{
    act_scale(factor, mb_act_f32(x), n, mb_act_f32(y));
}

static void clamp(float limit, int64_t n, mb_act y)
{
    for (int64_t i = 0; i < n; i += W) {
        act_store(y, i, n, vf_max(vf_set(-limit), vf_min(vf_set(limit), act_load(y, i, n))));
    }
}

static void clamp_backward(float limit, mb_act y, int64_t n, mb_act dy)
{
    for (int64_t i = 0; i < n; i += W) {
        act_store(dy, i, n, vf_where_less(vf_abs(act_load(y, i, n)), vf_set(limit), act_load(dy, i, n)));
    }
}

/* Ten rounds of Philox4x32 (base/rng.h) on W / 2 counters a vector: a word lies in the low half of a lane,
 * what is above it does not matter until the end. CHAINS vectors go side by side, since a round waits for the
 * one before. out, rounded up to CHAINS * W / 2 elements: all ones for those that stay. */
enum { CHAINS = 4 };

static void draw_kept(const mb_draws *draws, uint64_t first, int64_t n, int32_t *out)
{
    const uint64_t low = 0xFFFFFFFFu;
    const mb_vq zero = {0};
    mb_vq at = zero;
    for (int j = 0; j < W / 2; j++) at[j] = first + (uint64_t)j;
    for (int64_t i = 0; i < n; i += CHAINS * W / 2, at += CHAINS * W / 2) {
        mb_vq c0[CHAINS], c1[CHAINS], c2[CHAINS], c3[CHAINS];
        uint64_t k0 = draws->seed & low, k1 = draws->seed >> 32;
#pragma GCC unroll 4
        for (int j = 0; j < CHAINS; j++) {
            c0[j] = at + (uint64_t)(j * W / 2);
            c1[j] = c0[j] >> 32;
            c2[j] = zero + draws->sub;
            c3[j] = zero + draws->stream;
        }
        for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
            for (int j = 0; j < CHAINS; j++) {
                mb_vq p0 = vq_multiply(c0[j], zero + 0xD2511F53u),
                      p1 = vq_multiply(c2[j], zero + 0xCD9E8D57u);
                c0[j] = (p1 >> 32) ^ c1[j] ^ k0;
                c2[j] = (p0 >> 32) ^ c3[j] ^ k1;
                c1[j] = p1;
                c3[j] = p0;
            }
            k0 = (k0 + 0x9E3779B9u) & low;
            k1 = (k1 + 0xBB67AE85u) & low;
        }
#pragma GCC unroll 4
        for (int j = 0; j < CHAINS; j++) {
            mb_vq word = c1[j] << 32 | (c0[j] & low);
            *(mb_vi_half_loose *)(out + i + j * W / 2) =
                __builtin_convertvector(word >= draws->below, mb_vi_half);
        }
    }
}

static void dropout(const mb_draws *draws, uint64_t first, float factor, mb_act x, int64_t n, mb_act y)
{
    enum { BLOCK = 256 };
    int32_t kept[BLOCK];
    mb_vf f = vf_set(factor);
    for (int64_t b = 0; b < n; b += BLOCK, x = mb_act_at(x, BLOCK), y = mb_act_at(y, BLOCK)) {
        int64_t m = n - b < BLOCK ? n - b : BLOCK;
        draw_kept(draws, first + (uint64_t)b, m, kept);
        for (int64_t i = 0; i < m; i += W) {
            mb_vi mask = *(const mb_vi_loose *)(kept + i);
            act_store(y, i, m, (mb_vf)((mb_vi)(f * act_load(x, i, m)) & mask));
        }
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
static double exponentials(const float *x, int64_t n, float top, float *opt_y)
{
    double sum = 0;
    mb_vf shift = vf_set(top);
    for (int64_t block = 0; block < n; block += 4096) {
        int64_t end = block + 4096 < n ? block + 4096 : n, i = block;
        mb_vf s = vf_set(0);
        for (; i + W <= end; i += W) {
            mb_vf e = vf_exp(vf_load(x + i) - shift);
            if (opt_y != NULL) vf_store(opt_y + i, e);
            s = s + e;
        }
        sum += (double)vf_sum(s);
        if (i == end) continue;
        float last[W];
        vf_store(last, vf_exp(vf_load_part(x + i, end - i) - shift));
        for (int64_t j = i; j < end; j++) {
            if (opt_y != NULL) opt_y[j] = last[j - i];
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
    double sum = exponentials(x, n, top, weight != 0 ? x : NULL);
    if (weight != 0) {
        scale((float)(weight / sum), x, n, x);
        x[target] -= weight;
    }
    return (float)(log(sum) + ((double)top - wanted));
}

#include "ops/cpu/rows_loops.h"

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

const mb_kernels MB_KERNELS_TABLE = {
    .name = MB_KERNELS_NAME,
    .rms_norm = rms_norm,
    .rms_norm_backward = rms_norm_backward,
    .layer_norm = layer_norm,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .gelu = gelu,
    .multiply = multiply,
    .cast = cast,
    .rope = rope,
    .axpy = axpy,
    .scale = act_scale,
    .clamp = clamp,
    .clamp_backward = clamp_backward,
    .dropout = dropout,
    .dot = dot,
    .sum_squares = sum_squares,
    .softmax = softmax,
    .cross_entropy = cross_entropy,
    .teacher_loss = teacher_loss,
    .adamw = adamw,
};
