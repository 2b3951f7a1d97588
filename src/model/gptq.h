/* gptq: 4-bit integers for a weight matrix that lose least on the inputs it was seen with.
 *
 * Layer: model.  Uses: tensor.
 * Source: Frantar et al. (2023), GPTQ (ICLR), in the form Chee et al. (2023), QuIP, theorem 6, prove to be
 * the same: with the Hessian H = X^T X of a layer's inputs (damped) factored as M D M^T, M unit upper
 * triangular, columns are rounded one after another, and column i is first moved by the errors of those
 * before it,
 *     q_i = round(w_i + sum_{j < i} (w_j - q_j) M_ji),
 * which needs no inverse of H. The loss is the sum of D_i times the squared error of each rounding.
 *
 * Integers and scales are those of compressed-tensors: symmetric, scale = max|w| / 7.5 over a group of a row
 * (rounded to the dtype it is stored in before anything is divided by it), q = round(w / scale), ties to
 * even, within -8 .. 7. A group of zeros has scale 0. Everything is computed in f64, one row at a time, so
 * that rows can be shared out without a change of a bit.
 */
#ifndef MB_GPTQ_H
#define MB_GPTQ_H

#include "tensor/tensor.h"

#define MB_GPTQ_GROUP 256 /* the largest group, but for a whole row */

typedef struct mb_gptq_options {
    int64_t group;   /* columns of a row that share a scale: 1 .. MB_GPTQ_GROUP, or K */
    double damping;  /* share of the diagonal's mean that is added to it: 0.01 */
    bool act_order;  /* columns of the largest diagonal first. Groups stay those of neighbouring columns,
                        their scales are then taken from the matrix as given ("static groups") */
    mb_dtype stored; /* dtype of stored scales: f32, bf16, f16 */
} mb_gptq_options;

typedef struct mb_gptq mb_gptq;

/* Factor a Hessian [K, K] (its lower triangle with the diagonal is read; any scale will do) for every matrix
 * with these inputs. Columns whose diagonal is 0 were never used: their weights become 0. Where the damped
 * Hessian is not positive definite the damping grows tenfold until it is. MB_ENUMERIC: it holds NaN or Inf,
 * or no damping up to 1 helps. Memory while it runs: 16 K^2 bytes; kept: 4 K^2. */
mb_status mb_gptq_create(const double *hessian, int64_t k, const mb_gptq_options *options,
                         mb_gptq **out_gptq);
void mb_gptq_destroy(mb_gptq **gptq);
double mb_gptq_damping(const mb_gptq *gptq); /* that it took */
int64_t mb_gptq_dead(const mb_gptq *gptq);   /* columns never used */

/* Rows value [n, K] -> out_packed [n, (K + 1) / 2] (column 2i in the low half of byte i, q + 8, as mb_weight
 * keeps them), out_scale [n, K / group] (mb_gptq_groups), as f32 of the stored dtype, and out_loss [n], the
 * damped Hessian's of each row. MB_ENUMERIC: a value is NaN or Inf, or a scale does not fit the dtype. */
mb_status mb_gptq_run(const mb_gptq *gptq, const float *value, int64_t n, uint8_t *out_packed,
                      float *out_scale, double *out_loss);
/* The same by rounding to nearest (damping and act_order are not read). */
mb_status mb_gptq_round(const float *value, int64_t n, int64_t k, const mb_gptq_options *options,
                        uint8_t *out_packed, float *out_scale);

/* Scales of a row. K must be a multiple of the group. */
static inline int64_t mb_gptq_groups(int64_t k, int64_t group)
{
    return k / group;
}
/* The group a matrix of K columns gets where `wanted` was asked for: itself when it divides K, else the
 * nearest even divisor of K (by ratio, the smaller of two) within a factor of 4, else K (a scale per row). */
int64_t mb_gptq_group(int64_t k, int64_t wanted);

#endif
