/* cuda: the backend's state, its errors, and what its files offer each other.
 *
 * Layer: ops (cuda backend).  Uses: device.cuh, blas.h.
 *
 * One process, one GPU, one stream: ops are queued in order. Scratch comes from ops->scratch (device memory;
 * given back when the op returns, which is right because the next op is queued behind). No op waits for the
 * device but where ops.h says so.
 */
#ifndef MB_CUDA_H
#define MB_CUDA_H

#include "ops/cuda/device.cuh"

struct mb_cuda_blas; /* blas.h */

/* Whose expert products: MB_CUDA_GROUPED=own (grouped.cu), cublas (waits for the sizes), wgmma
 * (grouped_sm90.cu, where it can). */
typedef enum mb_cuda_groups {
    MB_CUDA_GROUPS_OWN,
    MB_CUDA_GROUPS_CUBLAS,
    MB_CUDA_GROUPS_WGMMA
} mb_cuda_groups;

typedef struct mb_cuda {
    int device;
    cudaStream_t stream;
    int processors;      /* multiprocessors */
    int capability;      /* 80, 90 */
    size_t shared_bytes; /* most a block may ask for */
    struct mb_cuda_blas *blas;
    mb_allocator memory, pinned;    /* what ops->allocator and host_allocator point at */
    int64_t live_blocks;            /* of both */
    int64_t live_bytes, peak_bytes; /* of device memory */
    mb_cuda_groups groups;
} mb_cuda;

static inline mb_cuda *mb_cuda_of(mb_ops *ops)
{
    return (mb_cuda *)ops->backend;
}

/* Return from a function of mb_status (functions here own nothing that needs a done: label). */
#define MB_CUDA_TRY(call)                                                                                    \
    do {                                                                                                     \
        const mb_status mb_status_ = (call);                                                                 \
        if (mb_status_ != MB_OK) return mb_status_trace(mb_status_, __func__, __FILE__, __LINE__);           \
    } while (0)
/* The same for calls of the runtime. */
#define MB_CUDA_CALL(call)                                                                                   \
    do {                                                                                                     \
        const cudaError_t mb_error_ = (call);                                                                \
        if (mb_error_ != cudaSuccess) return mb_cuda_fail(mb_error_, #call, __func__, __FILE__, __LINE__);   \
    } while (0)
/* Last line of a function that launched kernels. */
#define MB_CUDA_LAUNCHED() mb_cuda_launched(__func__, __FILE__, __LINE__)

mb_status mb_cuda_fail(cudaError_t error, const char *what, const char *function, const char *file, int line);
mb_status mb_cuda_launched(const char *function, const char *file, int line);

/* n elements of scratch, or MB_ENOMEM. */
template <typename T> static inline mb_status mb_cuda_scratch(mb_ops *ops, int64_t n, T **out)
{
    *out = (T *)mb_arena_alloc(ops->scratch, (size_t)n, sizeof(T));
    return *out != NULL ? MB_OK : MB_ENOMEM;
}

static inline int64_t mb_cuda_blocks(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}
static inline int mb_cuda_min(int64_t a, int64_t b)
{
    return (int)(a < b ? a : b);
}

/* Tensor data as T. */
template <typename T> static inline T *mb_data(const mb_tensor *tensor)
{
    return (T *)tensor->data;
}

/* Run `body` with T being float or mb_bf16, by a tensor's dtype: MB_CUDA_BY_DTYPE(x->dtype, T, { ... }) */
#define MB_CUDA_BY_DTYPE(dtype, T, ...)                                                                      \
    do {                                                                                                     \
        if ((dtype) == MB_F32) {                                                                             \
            typedef float T;                                                                                 \
            __VA_ARGS__                                                                                      \
        } else {                                                                                             \
            typedef mb_bf16 T;                                                                               \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    } while (0)

/* Each file overwrites its entries. */
void mb_cuda_fill_norm(mb_ops_table *table);      /* norm.cu: rms_norm, rms_norm_backward, layer_norm */
void mb_cuda_fill_act(mb_ops_table *table);       /* act.cu: swiglu .. dropout, cast */
void mb_cuda_fill_embed(mb_ops_table *table);     /* embed.cu: embedding, its backward, scatter_rows */
void mb_cuda_fill_linear(mb_ops_table *table);    /* linear.cu: linear, _dx, _dw */
void mb_cuda_fill_grouped(mb_ops_table *table);   /* grouped.cu */
void mb_cuda_fill_head(mb_ops_table *table);      /* head.cu */
void mb_cuda_fill_rows_loss(mb_ops_table *table); /* rows_loss.cu */
void mb_cuda_fill_attention(mb_ops_table *table); /* attention.cu */
void mb_cuda_fill_attention_backward(mb_ops_table *table); /* attention_backward.cu */
void mb_cuda_fill_route(mb_ops_table *table);              /* route.cu: route, its backward, shift_columns */
void mb_cuda_fill_dispatch(
    mb_ops_table *table); /* dispatch.cu: dispatch, expand_rows, gather, combine, backwards */
void mb_cuda_fill_adamw(mb_ops_table *table); /* adamw.cu: adamw, sum_squares */

/* linear.cu: the matrix as rows of dtype `rows` meet it, [N, K]: its own data, or a copy in the backend's
 * packed form (remade when the weight's version changed), or in scratch (quantised, or f32 rows and a bf16
 * matrix). */
mb_status mb_cuda_weight(mb_ops *ops, mb_weight *w, mb_dtype rows, const void **out);
/* The same for a group in as few launches as can be: out[groups]. */
mb_status mb_cuda_weights(mb_ops *ops, mb_weight *const *w, int64_t groups, mb_dtype rows, const void **out);
/* linear.cu: row-major y[T,N] = beta y + x[T,K] op(w), f32 sums; x, w of dtype `in`, y of dtype `out`; w
 * is [N,K] (is_nt) or [K,N]; leading dimensions in elements. By cuBLAS. */
mb_status mb_cuda_product(mb_ops *ops, bool is_nt, int64_t rows, int64_t n, int64_t k, mb_dtype in,
                          const void *x, const void *w, float beta, mb_dtype out, void *y);
/* Row-major dw[N,K] = beta dw + dy[T,N]^T x[T,K]; dw f32. */
mb_status mb_cuda_product_tn(mb_ops *ops, int64_t rows, int64_t n, int64_t k, mb_dtype in, const void *dy,
                             const void *x, float beta, float *dw);
/* act.cu: n values of one dtype in another. */
mb_status mb_cuda_cast(mb_ops *ops, mb_dtype from_dtype, const void *from, int64_t n, mb_dtype to_dtype,
                       void *to);

#endif
