/* ops_table: what a backend is, to ops.c and to the backends: a table with one entry per op, and its own
 * state.
 *
 * Layer: ops (internal).  Uses: ops.h.
 *
 * An entry has the type of the public function of the same name and is called after the checks of
 * ops_check.c. A new op is one line in MB_OPS_LIST, one function in ref/, and overwriting entries where
 * another backend is faster.
 */
#ifndef MB_OPS_TABLE_H
#define MB_OPS_TABLE_H

#include "ops/ops.h"

/* clang-format off */
#define MB_OPS_LIST(X)                                                                                       \
    X(linear) X(linear_dx) X(linear_dw)                                                                      \
    X(grouped_linear) X(grouped_linear_dx) X(grouped_linear_dw)                                              \
    X(rms_norm) X(rms_norm_backward) X(layer_norm) X(swiglu) X(swiglu_backward) X(gelu) X(multiply) X(rope)  \
    X(cast) X(axpy) X(scale) X(clamp) X(clamp_backward) X(dropout)                                           \
    X(embedding) X(embedding_backward) X(head_loss)                                                          \
    X(attention) X(attention_backward)                                                                       \
    X(route) X(route_backward) X(dispatch) X(gather) X(gather_backward) X(combine)                           \
    X(combine_backward) X(adamw) X(sum_squares)
/* clang-format on */

#define MB_OPS_ENTRY(op) __typeof__(&mb_ops_##op) op;
typedef struct mb_ops_table {
    MB_OPS_LIST(MB_OPS_ENTRY)
} mb_ops_table;
#undef MB_OPS_ENTRY

struct mb_ops {
    const char *name;
    char describe[256];
    int threads;
    bool row_stable;
    const mb_allocator *allocator;
    mb_arena *scratch;
    mb_ops_table table;
    void *backend; /* the backend's own state, NULL for ref */
    void (*backend_destroy)(void *backend);
};

/* Leading dimension, and elements per row: [T,H,Dh] counts as T rows of H*Dh. */
static inline int64_t mb_ops_rows(const mb_tensor *tensor)
{
    return tensor->shape[0];
}
static inline int64_t mb_ops_width(const mb_tensor *tensor)
{
    return tensor->shape[1] * tensor->shape[2] * tensor->shape[3];
}

/* Overwrite the entries a backend has, and set its name, describe, row_stable and state. */
void mb_ops_ref_fill(mb_ops *ops);
mb_status mb_ops_cpu_fill(mb_ops *ops);
bool mb_ops_cpu_is_built(void); /* with a matrix library; if not, "auto" is ref */

#endif
