/* rows: whole rows from one table to another, in the dtype of the other.
 *
 * Layer: ops (cuda backend).  Uses: vector.cuh.
 */
#ifndef MB_CUDA_ROWS_CUH
#define MB_CUDA_ROWS_CUH

#include "ops/cuda/vector.cuh"

/* Which rows: y[opt_to[r]] = x[opt_from[r]] for r < rows (NULL: r itself); rows of a negative `from` are left
 * alone. */
typedef struct mb_rows {
    int64_t rows, width;
    const int32_t *opt_from, *opt_to;
} mb_rows;

/* Element `index` of all rows: where it comes from and goes to. False: nowhere. */
static __device__ __forceinline__ bool mb_rows_find(const mb_rows &r, int64_t index, int64_t *from,
                                                    int64_t *to)
{
    const int64_t row = mb_divide(index, r.width), column = index - row * r.width;
    if (row >= r.rows) return false;
    const int64_t source = r.opt_from != NULL ? r.opt_from[row] : row;
    *from = source * r.width + column;
    *to = (r.opt_to != NULL ? r.opt_to[row] : row) * r.width + column;
    return source >= 0;
}

/* Units of 2, 4 or 16 bytes; the width is in units. */
template <typename U> static __global__ void mb_rows_copy(mb_rows r, const U *x, U *y)
{
    int64_t from, to;
    if (mb_rows_find(r, (int64_t)blockIdx.x * blockDim.x + threadIdx.x, &from, &to)) y[to] = x[from];
}

/* From one dtype to the other, N elements a thread. */
template <typename X, typename Y, int N> static __global__ void mb_rows_cast(mb_rows r, const X *x, Y *y)
{
    int64_t from, to;
    if (!mb_rows_find(r, ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N, &from, &to)) return;
    float a[N];
    mb_load(x + from, a);
    mb_store(y + to, a);
}

template <typename X, typename Y>
static inline mb_status mb_launch_rows_cast(mb_ops *ops, const mb_rows &r, bool is_whole, const void *x,
                                            void *y)
{
    enum { THREADS = 256, N = 4 };
    cudaStream_t stream = mb_cuda_of(ops)->stream;
    if (is_whole)
        MB_LAUNCH((mb_rows_cast<X, Y, N>), (int)mb_cuda_blocks(r.rows * (r.width / N), THREADS), THREADS, 0,
                  stream, r, (const X *)x, (Y *)y);
    else
        MB_LAUNCH((mb_rows_cast<X, Y, 1>), (int)mb_cuda_blocks(r.rows * r.width, THREADS), THREADS, 0, stream,
                  r, (const X *)x, (Y *)y);
    return MB_CUDA_LAUNCHED();
}

template <typename U>
static inline mb_status mb_launch_rows_copy(mb_ops *ops, mb_rows r, int64_t units, const void *x, void *y)
{
    enum { THREADS = 256 };
    r.width = units;
    MB_LAUNCH(mb_rows_copy<U>, (int)mb_cuda_blocks(r.rows * units, THREADS), THREADS, 0,
              mb_cuda_of(ops)->stream, r, (const U *)x, (U *)y);
    return MB_CUDA_LAUNCHED();
}

/* Bits stay as they are where dtypes are alike. */
static inline mb_status mb_launch_rows(mb_ops *ops, const mb_rows &r, mb_dtype x_dtype, const void *x,
                                       mb_dtype y_dtype, void *y)
{
    if (r.rows * r.width == 0) return MB_OK;
    if (x_dtype != y_dtype) {
        const bool is_whole = mb_is_whole(x_dtype, x, r.width, 4) && mb_is_whole(y_dtype, y, r.width, 4);
        if (x_dtype == MB_F32) return mb_launch_rows_cast<float, mb_bf16>(ops, r, is_whole, x, y);
        return mb_launch_rows_cast<mb_bf16, float>(ops, r, is_whole, x, y);
    }
    const int whole = x_dtype == MB_F32 ? 4 : 8;
    if (mb_is_whole(x_dtype, x, r.width, whole) && mb_is_whole(y_dtype, y, r.width, whole))
        return mb_launch_rows_copy<uint4>(ops, r, r.width / whole, x, y);
    if (x_dtype == MB_F32) return mb_launch_rows_copy<uint32_t>(ops, r, r.width, x, y);
    return mb_launch_rows_copy<uint16_t>(ops, r, r.width, x, y);
}

#endif
