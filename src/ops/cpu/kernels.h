/* kernels: the vector loops of the cpu backend, once per instruction set; one thread, raw pointers, rows or
 * ranges.
 *
 * Layer: ops (cpu backend, internal).
 * kernels_body.h is the one source; kernels_avx512.c, kernels_avx2.c and kernels_portable.c compile it.
 */
#ifndef MB_CPU_KERNELS_H
#define MB_CPU_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mb_adamw_factors {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, gradient_scale, step, inverse_root, epsilon, keep;
} mb_adamw_factors;

/* One head of one segment; rows are `stride` floats apart, key rows `kv_stride`. */
typedef struct mb_head {
    int64_t rows, width, stride, kv_stride, lse_stride, window;
    float scale;
    const float *q, *k, *v;
    float *o, *lse;      /* forward: out; backward: in */
    const float *d_o;    /* backward */
    float *dq, *dk, *dv; /* backward; dk and dv are added to */
} mb_head;

typedef struct mb_kernels {
    const char *name;
    /* y = x rstd w for rows of d; backward adds dy x rstd to opt_dw[d]. */
    void (*rms_norm)(const float *x, const float *w, float eps, int64_t rows, int64_t d, float *y,
                     float *rstd);
    void (*rms_norm_backward)(const float *dy, const float *x, const float *w, const float *rstd,
                              int64_t rows, int64_t d, bool accumulate, float *dx, float *opt_dw);
    void (*swiglu)(const float *gate, const float *up, int64_t n, float *y);
    void (*swiglu_backward)(const float *dy, const float *gate, const float *up, int64_t n, float *dgate,
                            float *dup);
    /* heads x [2*half], one angle row; sign -1 turns back. */
    void (*rope)(float *x, const float *cosine, const float *sine, int64_t heads, int64_t half, float sign);
    void (*axpy)(float scale, const float *x, int64_t n, float *y);
    void (*scale)(float scale, const float *x, int64_t n, float *y); /* y = scale x */
    void (*clamp)(float limit, int64_t n, float *y);
    void (*clamp_backward)(float limit, const float *y, int64_t n, float *dy);
    float (*dot)(const float *a, const float *b, int64_t n);
    double (*sum_squares)(const float *x, int64_t n);
    void (*softmax)(const float *x, int64_t n, float *y);
    /* -log softmax(x)[target] and the first largest; with weight != 0 x becomes weight * (softmax - onehot).
     */
    float (*cross_entropy)(float *x, int64_t n, int64_t target, float weight, int32_t *out_argmax);
    void (*adamw)(const mb_adamw_factors *f, int64_t n, const float *g, float *p, float *m, float *v);
    /* Attention. Keys (and values, backward) in panels: see mb_kernels_panel_floats. scratch:
     * attention_scratch floats. */
    int64_t panel;
    int64_t attention_scratch;
    void (*pack_panels)(const float *k, int64_t rows, int64_t width, int64_t stride, float *out_panels);
    /* Queries first..last of a head. */
    void (*attention)(const mb_head *head, int64_t first, int64_t last, const float *key_panels,
                      float *scratch);
    void (*attention_backward)(const mb_head *head, const float *key_panels, const float *value_panels,
                               float *scratch);
} mb_kernels;

/* Floats of `rows` keys of `width` as panels [ceil(rows/panel)][width][panel], zero padded. */
static inline int64_t mb_kernels_panel_floats(const mb_kernels *kernels, int64_t rows, int64_t width)
{
    return (rows + kernels->panel - 1) / kernels->panel * kernels->panel * width;
}

/* The best set this processor has, or the one named by opt_isa ("portable", "avx2", "avx512"); NULL: not
 * known or not here. */
const mb_kernels *mb_kernels_get(const char *opt_isa);

#if defined(__x86_64__)
extern const mb_kernels mb_kernels_avx512;
extern const mb_kernels mb_kernels_avx2;
#endif
extern const mb_kernels mb_kernels_portable;

#endif
