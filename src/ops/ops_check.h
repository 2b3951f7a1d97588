/* ops_check: the argument rules of ops.h, tested once before dispatch.
 *
 * Layer: ops (internal).  Uses: ops.h.
 * Contents of arrays (ids, offsets) are checked where the host can read them.
 * All return MB_ESHAPE, MB_EUNSUPPORTED (dtype) or MB_ERANGE with the op, what was expected and what was
 * given.
 */
#ifndef MB_OPS_CHECK_H
#define MB_OPS_CHECK_H

#include "ops/ops.h"

/* x [T,K], w [N,K], y [T,N], opt_bias [N]. */
mb_status mb_ops_check_linear(const mb_tensor *x, const mb_weight *w, const mb_tensor *opt_bias,
                              const mb_tensor *y);
mb_status mb_ops_check_linear_dw(const mb_tensor *dy, const mb_tensor *x, const mb_tensor *dw,
                                 const mb_tensor *opt_dbias);
/* Offsets rise from 0 to at most the rows of x and y; every w[e] is [N,K]. */
mb_status mb_ops_check_grouped(const mb_ops *ops, const mb_tensor *x, const int32_t *offsets, int64_t groups,
                               mb_weight *const *w, const mb_tensor *y);
mb_status mb_ops_check_grouped_dw(const mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                  const int32_t *offsets, int64_t groups, const mb_tensor *dw);
/* n tensors of one count, f32 or bf16 each; `same`: of one dtype too; `f32`: one tensor, of that dtype. */
mb_status mb_ops_check_count(const char *op, int n, const mb_tensor *const *tensors);
mb_status mb_ops_check_f32(const char *op, const char *what, const mb_tensor *tensor);
mb_status mb_ops_check_same(const char *op, int n, const mb_tensor *const *tensors);
mb_status mb_ops_check_layer_norm(const mb_tensor *x, const mb_tensor *w, const mb_tensor *b,
                                  const mb_tensor *y);
mb_status mb_ops_check_rms_norm(const mb_tensor *x, const mb_tensor *w, const mb_tensor *y,
                                const mb_tensor *rstd);
mb_status mb_ops_check_rms_norm_backward(const mb_tensor *dy, const mb_tensor *x, const mb_tensor *w,
                                         const mb_tensor *rstd, const mb_tensor *dx, const mb_tensor *opt_dw);
mb_status mb_ops_check_rope(const mb_ops *ops, const mb_tensor *x, const int32_t *positions,
                            const mb_tensor *table);
mb_status mb_ops_check_dropout(const mb_tensor *x, float p, const mb_tensor *y);
mb_status mb_ops_check_embedding(const mb_ops *ops, const int32_t *tokens, const mb_tensor *table,
                                 const mb_tensor *rows);
mb_status mb_ops_check_scatter_rows(const mb_ops *ops, const mb_tensor *x, const int32_t *rows,
                                    const mb_tensor *y);
mb_status mb_ops_check_head_loss(const mb_ops *ops, const mb_tensor *h, const mb_weight *w,
                                 const int32_t *targets, const mb_tensor *loss, const float *opt_row_weight,
                                 const mb_tensor *opt_dh, const mb_tensor *opt_dw);
mb_status mb_ops_check_rows_loss(const mb_ops *ops, const mb_tensor *logits, const int32_t *opt_targets,
                                 const mb_teacher_rows *opt_teacher, const mb_tensor *opt_ce,
                                 const mb_tensor *opt_distance, const float *opt_row_weight);
/* `wide` are [T,H,Dh], `narrow` [T,G,Dh]. */
mb_status mb_ops_check_attention(const mb_ops *ops, const mb_attention_shape *shape, int wides,
                                 const mb_tensor *const *wide, int narrows, const mb_tensor *const *narrow,
                                 const mb_tensor *lse);
mb_status mb_ops_check_attention_backward(const mb_attention_shape *shape);
mb_status mb_ops_check_route(const mb_tensor *logits, const mb_tensor *opt_bias, int64_t picks,
                             const mb_tensor *probs, const mb_tensor *weights);
mb_status mb_ops_check_route_backward(const mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                                      const mb_tensor *weights, const mb_tensor *dweights,
                                      const mb_tensor *dlogits);
mb_status mb_ops_check_dispatch(const mb_ops *ops, const int32_t *ids, int64_t tokens, int64_t picks,
                                int64_t experts, const mb_dispatch *dispatch);
/* tokens [T,D], rows [P,D] with P = dispatch->rows. */
mb_status mb_ops_check_rows_of(const mb_dispatch *dispatch, const mb_tensor *tokens, const mb_tensor *rows);
/* tokens f32. */
mb_status mb_ops_check_combine(const mb_dispatch *dispatch, const mb_tensor *weights, const mb_tensor *tokens,
                               const mb_tensor *rows, const mb_tensor *opt_dweights);
mb_status mb_ops_check_adamw(const mb_adamw *adamw, int64_t n);
mb_status mb_ops_check_blocks(int64_t n, int64_t block);

#endif
