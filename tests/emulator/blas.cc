/* blas: the functions of cublas_v2.h as plain loops.
 *
 * 1. handles 2. one product 3. calls
 */
#include "cublas_v2.h"

#include "internal.h"

using namespace emulated;

/* ---- 1. handles ---- */

struct cublasContext {
    cudaStream_t stream;
    void *workspace;
    size_t workspace_bytes;
    cublasMath_t math;
};

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle)
{
    if (handle == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    *handle = new cublasContext();
    return CUBLAS_STATUS_SUCCESS;
}

/* The real one waits for the device. */
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle)
{
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    delete handle;
    return cudaDeviceSynchronize() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

/* Gives the handle its own workspace again. */
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream)
{
    Lock lock;
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!is_stream(stream)) return CUBLAS_STATUS_INVALID_VALUE;
    handle->stream = stream;
    handle->workspace = NULL, handle->workspace_bytes = 0;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t bytes)
{
    Lock lock;
    size_t left = 0;
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if ((uintptr_t)workspace % 256 != 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (workspace != NULL && (memory_of(workspace, &left) != Memory::device || left < bytes))
        return CUBLAS_STATUS_INVALID_VALUE;
    handle->workspace = workspace, handle->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode)
{
    const int base = (int)mode & ~(int)CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (base < 0 || base > (int)CUBLAS_TF32_TENSOR_OP_MATH) return CUBLAS_STATUS_INVALID_VALUE;
    handle->math = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t handle, int *version)
{
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (version == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    *version = 130000;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- 2. one product ---- */

struct Product {
    cublasOperation_t transa, transb;
    int64_t m, n, k, lda, ldb, ldc;
    float alpha, beta;
    cudaDataType in, out;
};

static size_t size_of(cudaDataType type)
{
    return type == CUDA_R_16BF ? 2 : 4;
}

static float get(cudaDataType type, const void *data, int64_t i)
{
    return type == CUDA_R_16BF ? mb_emulated_bits<float>((uint32_t)((const uint16_t *)data)[i] << 16)
                               : ((const float *)data)[i];
}

/* To nearest even; a NaN stays one. */
static uint16_t to_bf16(float x)
{
    const uint32_t bits = mb_emulated_bits<uint32_t>(x);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void put(cudaDataType type, void *data, int64_t i, float x)
{
    if (type == CUDA_R_16BF)
        ((uint16_t *)data)[i] = to_bf16(x);
    else
        ((float *)data)[i] = x;
}

/* Bytes from the first element of a column-major matrix to behind its last. */
static size_t extent(int64_t rows, int64_t columns, int64_t ld, cudaDataType type)
{
    return rows == 0 || columns == 0 ? 0 : (size_t)((columns - 1) * ld + rows) * size_of(type);
}

static void check_matrix(const char *name, const char *what, const void *data, int64_t rows, int64_t columns,
                         int64_t ld, cudaDataType type)
{
    if ((uintptr_t)data % size_of(type) != 0)
        stop("%s: %s at %p is not aligned to its type", name, what, data);
    mb_emulated_check_range(name, what, data, extent(rows, columns, ld, type));
}

/* A column of C: `column` [m] of sums, with k rising. */
static void sum_column(const Product &p, const float *a, const void *b, int64_t j, float *column)
{
    for (int64_t i = 0; i < p.m; i++) column[i] = 0;
    for (int64_t l = 0; l < p.k; l++) {
        const float scale = get(p.in, b, p.transb == CUBLAS_OP_N ? l + j * p.ldb : j + l * p.ldb);
        for (int64_t i = 0; i < p.m; i++) column[i] += a[l * p.m + i] * scale;
    }
}

static void multiply(const char *name, const Product &p, const void *a, const void *b, void *c)
{
    if (p.m == 0 || p.n == 0) return;
    const bool is_used = p.alpha != 0 && p.k > 0, a_is_n = p.transa == CUBLAS_OP_N,
               b_is_n = p.transb == CUBLAS_OP_N;
    std::vector<float> packed, column((size_t)p.m);
    check_matrix(name, "C", c, p.m, p.n, p.ldc, p.out);
    if (is_used) {
        check_matrix(name, "A", a, a_is_n ? p.m : p.k, a_is_n ? p.k : p.m, p.lda, p.in);
        check_matrix(name, "B", b, b_is_n ? p.k : p.n, b_is_n ? p.n : p.k, p.ldb, p.in);
        packed.resize((size_t)(p.m * p.k));
        for (int64_t l = 0; l < p.k; l++)
            for (int64_t i = 0; i < p.m; i++)
                packed[(size_t)(l * p.m + i)] = get(p.in, a, a_is_n ? i + l * p.lda : l + i * p.lda);
    }
    for (int64_t j = 0; j < p.n; j++) {
        if (is_used) sum_column(p, packed.data(), b, j, column.data());
        for (int64_t i = 0; i < p.m; i++) {
            const float sum = is_used ? p.alpha * column[(size_t)i] : 0.0f;
            const float old = p.beta == 0 ? 0.0f : p.beta * get(p.out, c, i + j * p.ldc);
            put(p.out, c, i + j * p.ldc, p.beta == 0 ? sum : sum + old);
        }
    }
}

/* ---- 3. calls ---- */

static bool is_operation(cublasOperation_t op)
{
    return op == CUBLAS_OP_N || op == CUBLAS_OP_T || op == CUBLAS_OP_C;
}

static cublasStatus_t check_product(const Product &p)
{
    const int64_t a_rows = p.transa == CUBLAS_OP_N ? p.m : p.k, b_rows = p.transb == CUBLAS_OP_N ? p.k : p.n;
    if (!is_operation(p.transa) || !is_operation(p.transb) || p.m < 0 || p.n < 0 || p.k < 0 ||
        p.lda < (a_rows > 1 ? a_rows : 1) || p.ldb < (b_rows > 1 ? b_rows : 1) || p.ldc < (p.m > 1 ? p.m : 1))
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_types(cudaDataType a, cudaDataType b, cudaDataType c, cublasComputeType_t compute,
                                  bool is_grouped)
{
    const bool is_f32 = a == CUDA_R_32F && c == CUDA_R_32F;
    const bool is_bf16 = a == CUDA_R_16BF && (c == CUDA_R_16BF || (c == CUDA_R_32F && !is_grouped));
    if (a != b || (!is_f32 && !is_bf16)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (compute == CUBLAS_COMPUTE_32F || (compute == CUBLAS_COMPUTE_32F_PEDANTIC && (is_f32 || !is_grouped)))
        return CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

static cublasStatus_t status_of(cudaError_t error)
{
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                            int n, int k, const void *alpha, const void *A, cudaDataType Atype, int lda,
                            const void *B, cudaDataType Btype, int ldb, const void *beta, void *C,
                            cudaDataType Ctype, int ldc, cublasComputeType_t computeType, cublasGemmAlgo_t)
{
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (alpha == NULL || beta == NULL) return CUBLAS_STATUS_INVALID_VALUE;
    const Product p = {transa, transb, m, n, k, lda, ldb, ldc, *(const float *)alpha, *(const float *)beta,
                       Atype,  Ctype};
    cublasStatus_t status = check_types(Atype, Btype, Ctype, computeType, false);
    if (status == CUBLAS_STATUS_SUCCESS) status = check_product(p);
    if (status != CUBLAS_STATUS_SUCCESS || m == 0 || n == 0) return status;
    return status_of(mb_emulated_enqueue(handle->stream, "cublasGemmEx",
                                         [p, A, B, C]() { multiply("cublasGemmEx", p, A, B, C); }));
}

struct Group {
    Product product;
    int size;
};

static void multiply_groups(const std::vector<Group> &groups, const void *const *a, const void *const *b,
                            void *const *c)
{
    const char *name = "cublasGemmGroupedBatchedEx";
    size_t all = 0, at = 0;
    for (const Group &group : groups) all += (size_t)group.size;
    mb_emulated_check_range(name, "Aarray", a, all * sizeof *a);
    mb_emulated_check_range(name, "Barray", b, all * sizeof *b);
    mb_emulated_check_range(name, "Carray", c, all * sizeof *c);
    for (const Group &group : groups)
        for (int i = 0; i < group.size; i++, at++) multiply(name, group.product, a[at], b[at], c[at]);
}

cublasStatus_t cublasGemmGroupedBatchedEx(cublasHandle_t handle, const cublasOperation_t transa_array[],
                                          const cublasOperation_t transb_array[], const int m_array[],
                                          const int n_array[], const int k_array[], const void *alpha_array,
                                          const void *const Aarray[], cudaDataType_t Atype,
                                          const int lda_array[], const void *const Barray[],
                                          cudaDataType_t Btype, const int ldb_array[], const void *beta_array,
                                          void *const Carray[], cudaDataType_t Ctype, const int ldc_array[],
                                          int group_count, const int group_size[],
                                          cublasComputeType_t computeType)
{
    std::vector<Group> groups;
    if (handle == NULL) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (group_count < 0) return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t status = check_types(Atype, Btype, Ctype, computeType, true);
    for (int g = 0; g < group_count && status == CUBLAS_STATUS_SUCCESS; g++) {
        const Product p = {transa_array[g],
                           transb_array[g],
                           m_array[g],
                           n_array[g],
                           k_array[g],
                           lda_array[g],
                           ldb_array[g],
                           ldc_array[g],
                           ((const float *)alpha_array)[g],
                           ((const float *)beta_array)[g],
                           Atype,
                           Ctype};
        status = group_size[g] < 0 ? CUBLAS_STATUS_INVALID_VALUE : check_product(p);
        groups.push_back({p, group_size[g]});
    }
    if (status != CUBLAS_STATUS_SUCCESS || group_count == 0) return status;
    return status_of(
        mb_emulated_enqueue(handle->stream, "cublasGemmGroupedBatchedEx", [groups, Aarray, Barray, Carray]() {
            multiply_groups(groups, Aarray, Barray, Carray);
        }));
}
