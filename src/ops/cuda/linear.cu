/* linear: dense products by cuBLAS, and weights in the form that rows meet.
 *
 * A row-major product is the column-major product of the transposed, which is what cuBLAS is asked for. bf16
 * rows with a bf16 result go there in one call; where the result must be rounded after something cuBLAS does
 * not do (a bias), or from f32 rows, it comes in f32 into scratch that stays in the chip's cache (some rows
 * at a time) and a kernel rounds it once.
 *
 * A bf16 copy of an f32 weight is kept with the weight (one block of memory for a whole group of weights) and
 * is made anew by one launch for the group when versions changed. Quantised weights are widened into scratch
 * at every call.
 *
 * 1. widening and rounding weights 2. copies that are kept 3. weights of a call
 * 4. products 5. biases 6. entries
 */
#include "ops/cuda/blas.h"
#include "ops/cuda/product.h"

enum { THREADS = 256, RUN = 8, JOBS = 96 };

/* ---- 1. widening and rounding weights ---- */

/* One matrix to write: `bits` of a stored element (32: f32, 16: bf16, 8, 4). */
typedef struct weight_job {
    const void *from;
    const float *scale;
    void *to;
    int32_t bits;
    int16_t is_fast; /* runs of 8 elements are in one row and scale, and loads of them aligned */
    int16_t unused;
    int64_t group;
} weight_job;
typedef struct weight_jobs {
    weight_job job[JOBS];
} weight_jobs;

/* Element i of the flattened [N, K]. */
static __device__ float weight_element(const weight_job &job, int64_t k, int64_t i)
{
    if (job.bits == 32) return ((const float *)job.from)[i];
    if (job.bits == 16) return mb_float(((const mb_bf16 *)job.from)[i]);
    const int64_t row = i / k, column = i % k, scales = (k + job.group - 1) / job.group;
    const float scale = job.scale[row * scales + column / job.group];
    if (job.bits == 8) return (float)((const int8_t *)job.from)[i] * scale;
    const uint8_t pair = ((const uint8_t *)job.from)[row * ((k + 1) / 2) + column / 2];
    return (float)((int)(column % 2 == 0 ? pair & 15 : pair >> 4) - 8) * scale;
}

/* 8 elements from i on, by aligned loads. */
static __device__ void weight_run(const weight_job &job, int64_t k, int64_t i, float v[RUN])
{
    if (job.bits == 32) {
        const float4 *from = (const float4 *)((const float *)job.from + i);
        const float4 a = from[0], b = from[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        return;
    }
    if (job.bits == 16) {
        const uint4 a = *(const uint4 *)((const uint16_t *)job.from + i);
        const uint32_t words[4] = {a.x, a.y, a.z, a.w};
        for (int j = 0; j < 4; j++) v[2 * j] = mb_low_bf16(words[j]), v[2 * j + 1] = mb_high_bf16(words[j]);
        return;
    }
    const int64_t row = i / k, column = i - row * k, scales = (k + job.group - 1) / job.group;
    const float scale = job.scale[row * scales + column / job.group];
    if (job.bits == 8) {
        const uint2 a = *(const uint2 *)((const int8_t *)job.from + i);
        for (int j = 0; j < RUN; j++)
            v[j] = (float)(int8_t)((j < 4 ? a.x : a.y) >> (8 * (j % 4)) & 255) * scale;
        return;
    }
    const uint32_t a = *(const uint32_t *)((const uint8_t *)job.from + i / 2);
    for (int j = 0; j < RUN; j++) v[j] = (float)((int)(a >> (4 * j) & 15) - 8) * scale;
}

static __device__ void store_run(float *to, const float v[RUN])
{
    ((float4 *)to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4 *)to)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ void store_run(mb_bf16 *to, const float v[RUN])
{
    *(uint4 *)to = make_uint4(mb_pack_bf16(v[0], v[1]), mb_pack_bf16(v[2], v[3]), mb_pack_bf16(v[4], v[5]),
                              mb_pack_bf16(v[6], v[7]));
}

/* blockIdx.y: the matrix; all are [count / k, k]. */
template <typename TO>
static __global__ void __launch_bounds__(THREADS)
    write_weights(const weight_jobs jobs, int64_t count, int64_t k)
{
    const weight_job &job = jobs.job[blockIdx.y];
    TO *to = (TO *)job.to;
    const int64_t step = (int64_t)gridDim.x * THREADS * RUN;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * RUN; i < count; i += step) {
        float v[RUN];
        if (job.is_fast != 0 && i + RUN <= count) {
            weight_run(job, k, i, v);
            store_run(to + i, v);
        } else {
            for (int64_t j = i; j < i + RUN && j < count; j++)
                to[j] = mb_from_float<TO>(weight_element(job, k, j));
        }
    }
}

static weight_job make_job(const mb_weight *w, void *to)
{
    weight_job job = {};
    const bool is_aligned = (uintptr_t)w->tensor.data % 16 == 0 && (uintptr_t)to % 16 == 0;
    job.from = w->tensor.data;
    job.to = to;
    job.bits = w->bits != 0 ? w->bits : w->tensor.dtype == MB_F32 ? 32 : 16;
    job.scale = w->bits != 0 ? mb_data<const float>(&w->scale) : NULL;
    job.group = w->bits != 0 ? w->group : 1;
    job.is_fast = is_aligned && (w->bits == 0 || (w->width % RUN == 0 && w->group % RUN == 0));
    return job;
}

static mb_status launch_jobs(mb_ops *ops, const weight_jobs *jobs, int n, int64_t count, int64_t k,
                             mb_dtype to)
{
    mb_cuda *cuda = mb_cuda_of(ops);
    if (n == 0 || count == 0) return MB_OK;
    const int64_t wanted = mb_cuda_blocks(count, THREADS * RUN), room = 16 * (int64_t)cuda->processors;
    const dim3 grid((unsigned)(wanted < room ? wanted : room), (unsigned)n);
    MB_CUDA_BY_DTYPE(to, T,
                     { MB_LAUNCH(write_weights<T>, grid, THREADS, 0, cuda->stream, *jobs, count, k); });
    return MB_CUDA_LAUNCHED();
}

/* ---- 2. copies that are kept ---- */

/* Memory of the copies that were made together; freed with the last of them. */
typedef struct weight_slab {
    const mb_allocator *allocator;
    void *data;
    int64_t users;
} weight_slab;

/* What mb_weight.packed points at. */
typedef struct weight_copy {
    weight_slab *slab;
    void *data;
    const void *from; /* values of which matrix, */
    uint64_t version; /* and of which of its versions; 0: none yet */
} weight_copy;

static void free_copy(void *packed)
{
    weight_copy *copy = (weight_copy *)packed;
    weight_slab *slab = copy->slab;
    mb_free(copy);
    if (--slab->users > 0) return;
    slab->allocator->free(slab->allocator->context, slab->data);
    mb_free(slab);
}

/* A kept copy has no rows of other dtypes: only f32 matrices that bf16 rows meet have one. */
static bool is_kept(const mb_weight *w, mb_dtype rows)
{
    return w->bits == 0 && w->tensor.dtype == MB_F32 && rows == MB_BF16;
}
static bool is_direct(const mb_weight *w, mb_dtype rows)
{
    return w->bits == 0 && w->tensor.dtype == rows;
}

/* Room for copies of `bytes` each of the weights that have none, in one block. */
static mb_status make_copies(mb_ops *ops, mb_weight *const *w, int64_t groups, mb_dtype rows, size_t bytes)
{
    int64_t missing = 0; /* counting one twice that is named twice: some room stays empty */
    bool is_short = false;
    for (int64_t e = 0; e < groups; e++) missing += is_kept(w[e], rows) && w[e]->packed == NULL;
    if (missing == 0) return MB_OK;
    weight_slab *slab = (weight_slab *)mb_calloc(1, sizeof *slab);
    if (slab == NULL) return MB_ENOMEM;
    slab->allocator = ops->allocator;
    slab->data = slab->allocator->alloc(slab->allocator->context, (size_t)missing * bytes);
    if (slab->data == NULL) {
        mb_free(slab);
        return MB_ENOMEM;
    }
    for (int64_t e = 0; e < groups; e++) {
        if (!is_kept(w[e], rows) || w[e]->packed != NULL) continue;
        weight_copy *copy = (weight_copy *)mb_calloc(1, sizeof *copy);
        if (copy == NULL) {
            is_short = true;
            break;
        }
        copy->slab = slab;
        copy->data = (char *)slab->data + (size_t)slab->users * bytes;
        slab->users++;
        w[e]->packed = copy;
        w[e]->packed_free = free_copy;
    }
    if (slab->users == 0) {
        slab->allocator->free(slab->allocator->context, slab->data);
        mb_free(slab);
    }
    return is_short ? MB_ENOMEM : MB_OK;
}

/* ---- 3. weights of a call ---- */

mb_status mb_cuda_weights(mb_ops *ops, mb_weight *const *w, int64_t groups, mb_dtype rows, const void **out)
{
    if (groups == 0) return MB_OK;
    const int64_t k = w[0]->width, count = mb_ops_rows(&w[0]->tensor) * k;
    const size_t bytes = ((size_t)count * (rows == MB_F32 ? 4 : 2) + 255) & ~(size_t)255;
    weight_jobs jobs = {};
    int64_t scratch_users = 0;
    int n = 0;
    char *scratch = NULL;
    MB_CUDA_TRY(make_copies(ops, w, groups, rows, bytes));
    for (int64_t e = 0; e < groups; e++) scratch_users += !is_kept(w[e], rows) && !is_direct(w[e], rows);
    if (scratch_users > 0) MB_CUDA_TRY(mb_cuda_scratch(ops, scratch_users * (int64_t)bytes, &scratch));
    for (int64_t e = 0; e < groups; e++) {
        weight_copy *copy = (weight_copy *)w[e]->packed;
        out[e] = w[e]->tensor.data;
        if (is_direct(w[e], rows)) continue;
        if (is_kept(w[e], rows)) {
            out[e] = copy->data;
            if (copy->version == w[e]->version && copy->from == w[e]->tensor.data) continue;
            copy->version = w[e]->version;
            copy->from = w[e]->tensor.data;
        } else {
            out[e] = scratch;
            scratch += bytes;
        }
        jobs.job[n++] = make_job(w[e], (void *)(uintptr_t)out[e]);
        if (n < JOBS) continue;
        MB_CUDA_TRY(launch_jobs(ops, &jobs, n, count, k, rows));
        n = 0;
    }
    return launch_jobs(ops, &jobs, n, count, k, rows);
}

mb_status mb_cuda_weight(mb_ops *ops, mb_weight *w, mb_dtype rows, const void **out)
{
    return mb_cuda_weights(ops, &w, 1, rows, out);
}

/* ---- 4. products ---- */

enum { FINISH_ROWS = 8 };

/* y[m,n] = (accumulate ? y : 0) + sums[m,n] + opt_bias[n]; sums NULL: nothing but the bias. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    finish_rows(const float *opt_sums, const float *opt_bias, int64_t m, int64_t n, bool accumulate, T *y,
                int64_t y_stride)
{
    const int64_t column = (int64_t)blockIdx.y * THREADS + threadIdx.x,
                  first = (int64_t)blockIdx.x * FINISH_ROWS;
    if (column >= n) return;
    const float bias = opt_bias != NULL ? opt_bias[column] : 0;
    for (int64_t row = first; row < first + FINISH_ROWS && row < m; row++) {
        T *to = y + row * y_stride + column;
        const float sum = (opt_sums != NULL ? opt_sums[row * n + column] : 0) + bias;
        *to = mb_from_float<T>(accumulate ? mb_float(*to) + sum : sum);
    }
}

static mb_status finish(mb_ops *ops, const float *opt_sums, const float *opt_bias, int64_t m, int64_t n,
                        bool accumulate, mb_dtype out, void *y, int64_t y_stride)
{
    const dim3 grid((unsigned)mb_cuda_blocks(m, FINISH_ROWS), (unsigned)mb_cuda_blocks(n, THREADS));
    MB_CUDA_BY_DTYPE(out, T, {
        MB_LAUNCH(finish_rows<T>, grid, THREADS, 0, mb_cuda_of(ops)->stream, opt_sums, opt_bias, m, n,
                  accumulate, (T *)y, y_stride);
    });
    return MB_CUDA_LAUNCHED();
}

/* What cuBLAS does itself. */
static mb_status blas_product(mb_ops *ops, mb_cuda_form form, int64_t m, int64_t n, int64_t k, mb_dtype in,
                              mb_cuda_matrix a, mb_cuda_matrix b, float beta, mb_dtype out, void *y,
                              int64_t y_stride)
{
    mb_cuda_blas *blas = mb_cuda_of(ops)->blas;
    const float alpha = 1;
    const cudaDataType_t of_rows = in == MB_F32 ? CUDA_R_32F : CUDA_R_16BF;
    const int a_stride = (int)(a.stride > 0 ? a.stride : 1), b_stride = (int)(b.stride > 0 ? b.stride : 1);
    MB_CUBLAS_CALL(blas->cublasGemmEx_(blas->handle, form == MB_CUDA_NT ? CUBLAS_OP_T : CUBLAS_OP_N,
                                       form == MB_CUDA_TN ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m, (int)k,
                                       &alpha, b.data, of_rows, b_stride, a.data, of_rows, a_stride, &beta, y,
                                       out == MB_F32 ? CUDA_R_32F : CUDA_R_16BF, (int)y_stride,
                                       CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    return MB_OK;
}

/* Rows whose f32 sums stay in the cache: 16 MiB of them, a multiple of 128. */
static int64_t rows_at_a_time(int64_t m, int64_t n)
{
    const int64_t rows = ((int64_t)16 << 20) / (4 * n) / 128 * 128;
    return rows < 128 ? (m < 128 ? m : 128) : rows < m ? rows : m;
}

mb_status mb_cuda_gemm(mb_ops *ops, mb_cuda_form form, int64_t m, int64_t n, int64_t k, mb_dtype in,
                       mb_cuda_matrix a, mb_cuda_matrix b, const float *opt_bias, float beta, mb_dtype out,
                       void *y, int64_t y_stride)
{
    const bool accumulate = beta != 0;
    float *sums = NULL;
    if (m == 0 || n == 0 || (k == 0 && accumulate && opt_bias == NULL)) return MB_OK;
    if (k == 0) return finish(ops, NULL, opt_bias, m, n, accumulate, out, y, y_stride);
    if (out == MB_F32 || (in == MB_BF16 && opt_bias == NULL)) {
        MB_CUDA_TRY(blas_product(ops, form, m, n, k, in, a, b, beta, out, y, y_stride));
        return opt_bias == NULL ? MB_OK : finish(ops, NULL, opt_bias, m, n, true, out, y, y_stride);
    }
    const int64_t most = rows_at_a_time(m, n), size = in == MB_F32 ? 4 : 2;
    MB_CUDA_TRY(mb_cuda_scratch(ops, most * n, &sums));
    for (int64_t first = 0; first < m; first += most) {
        const int64_t rows = m - first < most ? m - first : most;
        mb_cuda_matrix some = a;
        some.data = (const char *)a.data + size * (form == MB_CUDA_TN ? first : first * a.stride);
        MB_CUDA_TRY(blas_product(ops, form, rows, n, k, in, some, b, 0, MB_F32, sums, n));
        MB_CUDA_TRY(
            finish(ops, sums, opt_bias, rows, n, accumulate, out, (mb_bf16 *)y + first * y_stride, y_stride));
    }
    return MB_OK;
}

mb_status mb_cuda_product(mb_ops *ops, bool is_nt, int64_t rows, int64_t n, int64_t k, mb_dtype in,
                          const void *x, const void *w, float beta, mb_dtype out, void *y)
{
    const mb_cuda_matrix a = {x, k}, b = {w, is_nt ? k : n};
    return mb_cuda_gemm(ops, is_nt ? MB_CUDA_NT : MB_CUDA_NN, rows, n, k, in, a, b, NULL, beta, out, y, n);
}

mb_status mb_cuda_product_tn(mb_ops *ops, int64_t rows, int64_t n, int64_t k, mb_dtype in, const void *dy,
                             const void *x, float beta, float *dw)
{
    const mb_cuda_matrix a = {dy, n}, b = {x, k};
    return mb_cuda_gemm(ops, MB_CUDA_TN, n, k, rows, in, a, b, NULL, beta, MB_F32, dw, k);
}

/* ---- 5. biases ---- */

enum { SUM_COLUMNS = 32, SUM_ROWS = 512 };

/* partial[chunk, n] = sums of SUM_ROWS rows: a lane has a column, a warp every eighth row. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    sum_columns(const T *dy, int64_t rows, int64_t n, float *partial)
{
    MB_SHARED(float, room, THREADS);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t column = (int64_t)blockIdx.y * SUM_COLUMNS + lane, first = (int64_t)blockIdx.x * SUM_ROWS;
    float sum = 0;
    for (int64_t row = first + warp; row < first + SUM_ROWS && row < rows && column < n; row += THREADS / 32)
        sum += mb_float(dy[row * n + column]);
    room[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || column >= n) return;
    for (int i = 1; i < THREADS / 32; i++) sum += room[32 * i + lane];
    partial[blockIdx.x * n + column] = sum;
}

static __global__ void __launch_bounds__(THREADS)
    add_partials(const float *partial, int64_t chunks, int64_t n, float *dbias)
{
    const int64_t column = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (column >= n) return;
    float sum = 0;
    for (int64_t i = 0; i < chunks; i++) sum += partial[i * n + column];
    dbias[column] += sum;
}

static mb_status add_dbias(mb_ops *ops, const mb_tensor *dy, float *dbias)
{
    const cudaStream_t stream = mb_cuda_of(ops)->stream;
    const int64_t rows = mb_ops_rows(dy), n = mb_ops_width(dy), chunks = mb_cuda_blocks(rows, SUM_ROWS);
    float *partial = NULL;
    if (rows == 0 || n == 0) return MB_OK;
    MB_CUDA_TRY(mb_cuda_scratch(ops, chunks * n, &partial));
    const dim3 grid((unsigned)chunks, (unsigned)mb_cuda_blocks(n, SUM_COLUMNS));
    MB_CUDA_BY_DTYPE(dy->dtype, T, {
        MB_LAUNCH(sum_columns<T>, grid, THREADS, 0, stream, mb_data<const T>(dy), rows, n, partial);
    });
    MB_LAUNCH(add_partials, (unsigned)mb_cuda_blocks(n, THREADS), THREADS, 0, stream, (const float *)partial,
              chunks, n, dbias);
    return MB_CUDA_LAUNCHED();
}

/* ---- 6. entries ---- */

static mb_status cuda_linear(mb_ops *ops, const mb_tensor *x, mb_weight *w, const mb_tensor *opt_bias,
                             bool accumulate, mb_tensor *y)
{
    const int64_t rows = mb_ops_rows(x), n = mb_ops_rows(&w->tensor), k = w->width;
    const float *bias = opt_bias != NULL ? mb_data<const float>(opt_bias) : NULL;
    const void *values = NULL;
    if (rows == 0) return MB_OK;
    MB_CUDA_TRY(mb_cuda_weight(ops, w, x->dtype, &values));
    const mb_cuda_matrix a = {x->data, k}, b = {values, k};
    return mb_cuda_gemm(ops, MB_CUDA_NT, rows, n, k, x->dtype, a, b, bias, accumulate, y->dtype, y->data, n);
}

static mb_status cuda_linear_dx(mb_ops *ops, const mb_tensor *dy, mb_weight *w, bool accumulate,
                                mb_tensor *dx)
{
    const int64_t rows = mb_ops_rows(dy), n = mb_ops_rows(&w->tensor), k = w->width;
    const void *values = NULL;
    if (rows == 0) return MB_OK;
    MB_CUDA_TRY(mb_cuda_weight(ops, w, dy->dtype, &values));
    return mb_cuda_product(ops, false, rows, k, n, dy->dtype, dy->data, values, accumulate, dx->dtype,
                           dx->data);
}

static mb_status cuda_linear_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, mb_tensor *dw,
                                mb_tensor *opt_dbias)
{
    if (opt_dbias != NULL) MB_CUDA_TRY(add_dbias(ops, dy, mb_data<float>(opt_dbias)));
    return mb_cuda_product_tn(ops, mb_ops_rows(x), mb_ops_width(dy), mb_ops_width(x), x->dtype, dy->data,
                              x->data, 1, mb_data<float>(dw));
}

void mb_cuda_fill_linear(mb_ops_table *table)
{
    table->linear = cuda_linear;
    table->linear_dx = cuda_linear_dx;
    table->linear_dw = cuda_linear_dw;
}
