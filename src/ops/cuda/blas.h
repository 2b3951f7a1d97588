/* blas: cuBLAS, opened at run time, so that programs start where there is none.
 *
 * Layer: ops (cuda backend).  Uses: cublas_v2.h (types only).
 * The emulator of the tests gives plain C functions of the same meaning (column-major, as cuBLAS) instead.
 */
#ifndef MB_CUDA_BLAS_H
#define MB_CUDA_BLAS_H

#include <cublas_v2.h>

#include "ops/cuda/cuda.h"

#define MB_CUDA_BLAS_LIST(X)                                                                                 \
    X(cublasCreate_v2)                                                                                       \
    X(cublasDestroy_v2)                                                                                      \
    X(cublasSetStream_v2)                                                                                    \
    X(cublasSetWorkspace_v2) X(cublasSetMathMode) X(cublasGetVersion_v2) X(cublasGemmGroupedBatchedEx)

/* cublas_v2.h overloads this name in C++. */
typedef cublasStatus_t (*mb_cublas_gemm_ex)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m,
                                            int n, int k, const void *alpha, const void *a, cudaDataType,
                                            int lda, const void *b, cudaDataType, int ldb, const void *beta,
                                            void *c, cudaDataType, int ldc, cublasComputeType_t,
                                            cublasGemmAlgo_t);

#define MB_CUDA_BLAS_ENTRY(function) decltype(&function) function##_;
typedef struct mb_cuda_blas {
    void *library; /* of dlopen; NULL in the emulator */
    cublasHandle_t handle;
    void *workspace;
    MB_CUDA_BLAS_LIST(MB_CUDA_BLAS_ENTRY)
    mb_cublas_gemm_ex cublasGemmEx_;
} mb_cuda_blas;
#undef MB_CUDA_BLAS_ENTRY

/* MB_EUNSUPPORTED with the names tried when the library is not there. */
mb_status mb_cuda_blas_create(mb_ops *ops, mb_cuda_blas **out_blas);
void mb_cuda_blas_destroy(mb_ops *ops, mb_cuda_blas **blas);

#define MB_CUBLAS_CALL(call)                                                                                 \
    do {                                                                                                     \
        const cublasStatus_t mb_result_ = (call);                                                            \
        if (mb_result_ != CUBLAS_STATUS_SUCCESS)                                                             \
            return mb_status_fail(MB_EDEVICE, __func__, __FILE__, __LINE__, "%s: cuBLAS status %d", #call,   \
                                  (int)mb_result_);                                                          \
    } while (0)

#endif
