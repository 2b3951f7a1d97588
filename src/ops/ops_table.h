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
    X(embedding) X(embedding_backward) X(scatter_rows) X(head_loss) X(rows_loss)                             \
    X(attention) X(attention_backward)                                                                       \
    X(route) X(route_backward) X(shift_columns) X(dispatch) X(expand_rows) X(gather) X(gather_backward)      \
    X(combine) X(combine_backward) X(adamw) X(sum_squares)
/* clang-format on */

#define MB_OPS_ENTRY(op) __typeof__(&mb_ops_##op) op;
typedef struct mb_ops_table {
    MB_OPS_LIST(MB_OPS_ENTRY)
} mb_ops_table;
#undef MB_OPS_ENTRY

/* How a device's memory is reached, and work recorded; as the public functions. */
typedef struct mb_ops_memory {
    mb_status (*upload)(mb_ops *ops, const void *host, size_t bytes, void *data);
    mb_status (*download)(mb_ops *ops, const void *data, size_t bytes, void *host);
    mb_status (*copy)(mb_ops *ops, const void *from, size_t bytes, void *to);
    mb_status (*zero)(mb_ops *ops, void *data, size_t bytes);
    mb_status (*wait)(mb_ops *ops);
    mb_status (*record_begin)(mb_ops *ops); /* NULL: nothing can be recorded */
    mb_status (*record_end)(mb_ops *ops, mb_ops_record **out_record);
    mb_status (*record_run)(mb_ops *ops, mb_ops_record *record);
    void (*record_destroy)(mb_ops_record *record);
} mb_ops_memory;

struct mb_ops {
    const char *name;
    char describe[256];
    char bus_id[MB_OPS_BUS_ID]; /* of the GPU in use, "" none */
    int threads;
    bool row_stable;
    const mb_allocator *allocator, *host_allocator;
    const mb_ops_memory *memory; /* NULL: the host's own */
    bool is_device;              /* the host cannot touch the backend's memory */
    void *stream;                /* ops are queued in it; NULL: done at once */
    bool waits;                  /* wait after every op (MB_CUDA_WAIT=1, and shared memory) */
    mb_arena *scratch;           /* in the backend's memory */
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
/* MB_EUNSUPPORTED: not built, or no GPU; MB_EUSAGE: more ranks than GPUs. */
mb_status mb_ops_cuda_fill(mb_ops *ops, const mb_ops_options *options);
bool mb_ops_cuda_is_built(void);
int mb_ops_cuda_devices(void); /* GPUs this process sees; 0 without any, or without a driver */
mb_status mb_ops_cuda_bus_id(int device, char out_text[MB_OPS_BUS_ID]);

#endif
