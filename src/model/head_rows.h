/* head_rows: logits of a head in chunks of rows, straight into losses and gradients: cross-entropy, and the
 * distance to a teacher's distribution. One matrix, or several whose logits are added.
 *
 * Layer: model.  Uses: ops.
 * Source: Hinton et al. (2015) "Distilling the knowledge in a neural network", section 2; Agarwal et al.
 * (2024) "On-policy distillation" (GKD), eq. 1: generalised Jensen-Shannon divergence.
 *
 * What mb_ops_head_loss is for one matrix without a teacher, with every logit in memory only as long as its
 * chunk lasts. It costs one more pass over the logits in bf16 (their gradient is rounded by an op of its
 * own). Where that op would do, the losses and largest have its bits.
 */
#ifndef MB_HEAD_ROWS_H
#define MB_HEAD_ROWS_H

#include "ops/ops.h"

/* Logits of row n: sum over m of x[m*N + n] weight[m]^T, each product rounded to f32 by itself and added in
 * order of m. All pointers lie in the backend's memory, but for the arrays of pointers and what is said. */
typedef struct mb_head_rows {
    int64_t count;            /* M >= 1 */
    mb_weight *const *weight; /* [M] of [V, D] */
    const mb_tensor *x;       /* act [M*N, D] */
    const int32_t *opt_targets;
    /* opt_dense in the host's memory (a device gets each chunk's rows when they are due; it must stay until
     * the next wait), the other arrays in the backend's. */
    const mb_teacher_rows *opt_teacher;
    mb_tensor *opt_loss;         /* [N] cross-entropy at targets */
    mb_tensor *opt_distance;     /* [N] D of the teacher, not times T^2 */
    int32_t *opt_argmax;         /* [N] the first largest id */
    mb_tensor *opt_logits;       /* f32 [N, V], all of them */
    const float *opt_row_weight; /* [N] dLoss / d row loss (ops.h): gradients are wanted */
    mb_tensor *opt_dx;           /* act [M*N, D], overwritten */
    mb_tensor *const *opt_dw;    /* [M] of f32 [V, D], +=; an entry may be NULL: frozen */
} mb_head_rows;

/* A row's bits do not depend on how many rows there are, where mb_ops_is_row_stable. */
mb_status mb_head_rows_run(mb_ops *ops, const mb_head_rows *head);
/* Rows of a chunk: it takes 4 V bytes a row of mb_ops_scratch, 8 V with several matrices, 4 V more with a
 * dense teacher on a device, 2 V more with gradients in bf16. */
int64_t mb_head_rows_chunk(const mb_ops *ops, int64_t vocab);

#endif
