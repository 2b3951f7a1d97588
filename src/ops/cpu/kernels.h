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

/* Elements of an activation: f32 or bf16. */
typedef struct mb_act {
    void *data;
    bool is_bf16;
} mb_act;

static inline mb_act mb_act_f32(const float *x)
{
    return (mb_act){(void *)x, false};
}
static inline mb_act mb_act_at(mb_act act, int64_t i) /* from element i on */
{
    return (mb_act){(char *)act.data + i * (act.is_bf16 ? 2 : 4), act.is_bf16};
}

/* Dropout: an element goes where the first 64 bits of its block of Philox are below `below`. */
typedef struct mb_draws {
    uint64_t seed, below;
    uint32_t stream, sub;
} mb_draws;

typedef struct mb_adamw_factors {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, gradient_scale, step, inverse_root, epsilon, keep;
} mb_adamw_factors;

/* A row of an mb_teacher_rows. */
typedef struct mb_teacher_row {
    double temperature, beta;
    const int32_t *opt_ids; /* [k]; NULL: dense, k is the row's n */
    const float *logprob;   /* [k] */
    int64_t k;
    float tail;
} mb_teacher_row;

typedef struct mb_row_losses {
    float ce, distance;
    int32_t argmax;
} mb_row_losses;

typedef struct mb_kernels {
    const char *name;
    /* y = x rstd w for rows of d; backward adds dy x rstd to opt_dw[d]. */
    void (*rms_norm)(mb_act x, const float *w, float eps, int64_t rows, int64_t d, mb_act y, float *rstd);
    void (*rms_norm_backward)(mb_act dy, mb_act x, const float *w, const float *rstd, int64_t rows, int64_t d,
                              bool accumulate, mb_act dx, float *opt_dw);
    void (*layer_norm)(mb_act x, const float *w, const float *b, float eps, int64_t rows, int64_t d,
                       mb_act y);
    void (*swiglu)(mb_act gate, mb_act up, int64_t n, mb_act y);
    void (*swiglu_backward)(mb_act dy, mb_act gate, mb_act up, int64_t n, mb_act dgate, mb_act dup);
    void (*gelu)(bool is_tanh, int64_t n, mb_act y);
    void (*multiply)(mb_act x, int64_t n, mb_act y);
    void (*cast)(mb_act x, int64_t n, mb_act y);
    /* heads x [2*half], one angle row; sign -1 turns back. */
    void (*rope)(mb_act x, const float *cosine, const float *sine, int64_t heads, int64_t half, float sign);
    void (*axpy)(float scale, mb_act x, int64_t n, mb_act y);
    void (*scale)(float scale, mb_act x, int64_t n, mb_act y); /* y = scale x */
    void (*clamp)(float limit, int64_t n, mb_act y);
    void (*clamp_backward)(float limit, mb_act y, int64_t n, mb_act dy);
    /* y = 0 or scale x; the elements are first, first + 1, ... of the draws. */
    void (*dropout)(const mb_draws *draws, uint64_t first, float scale, mb_act x, int64_t n, mb_act y);
    float (*dot)(mb_act a, mb_act b, int64_t n);
    double (*sum_squares)(const float *x, int64_t n);
    void (*softmax)(const float *x, int64_t n, float *y);
    /* -log softmax(x)[target] and the first largest; with weight != 0 x becomes weight * (softmax - onehot),
     * else it stays. */
    float (*cross_entropy)(float *x, int64_t n, int64_t target, float weight, int32_t *out_argmax);
    /* A row x[n] beside a teacher's (ops.h, mb_ops_rows_loss); target -1: none. has_gradient: x becomes
     * distil T dD/dx + task * (softmax - onehot); else it stays. room: [k] unless the teacher is dense. */
    void (*teacher_loss)(float *x, int64_t n, int64_t target, const mb_teacher_row *teacher, float distil,
                         float task, bool has_gradient, float *room, mb_row_losses *out);
    void (*adamw)(const mb_adamw_factors *f, int64_t n, const float *g, float *p, float *m, float *v);
} mb_kernels;

/* The best set this processor has, or the one named by opt_isa ("portable", "avx2", "avx512"); NULL: not
 * known or not here. */
const mb_kernels *mb_kernels_get(const char *opt_isa);

#if defined(__x86_64__)
extern const mb_kernels mb_kernels_avx512;
extern const mb_kernels mb_kernels_avx2;
#endif
extern const mb_kernels mb_kernels_portable;

#endif
