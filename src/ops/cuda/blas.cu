/* blas: cuBLAS opened at run time, one handle on the backend's stream.
 *
 * The workspace is ours and of a fixed size, so that a product's bits do not depend on what cuBLAS would have
 * found free, and no call allocates. f32 products are plain f32 (no TF32); bf16 products keep f32 sums
 * throughout.
 *
 * 1. the library 2. the handle
 */
#include "ops/cuda/blas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef MB_CUDA_EMULATED
#include <dlfcn.h>
#endif

/* Where the CUDA of the build was; the makefile says it. */
#ifndef MB_CUDA_HOME
#define MB_CUDA_HOME "/usr/local/cuda"
#endif

/* ---- 1. the library ---- */

#ifdef MB_CUDA_EMULATED

static mb_status open_library(mb_cuda_blas *blas)
{
#define LINKED(function) blas->function##_ = function;
    MB_CUDA_BLAS_LIST(LINKED)
#undef LINKED
    blas->cublasGemmEx_ = cublasGemmEx;
    return MB_OK;
}

#else

/* A file of a folder ("" for the search path of the system). cuBLAS needs libcublasLt, which a folder that
 * the loader does not know holds beside it: opened first then. */
static void *open_in(const char *folder, const char *version)
{
    char path[1024];
    const char *slash = folder[0] != '\0' ? "/" : "";
    if (folder[0] != '\0') {
        snprintf(path, sizeof path, "%.511s/libcublasLt.so%s", folder, version);
        (void)dlopen(path, RTLD_LAZY | RTLD_GLOBAL);
    }
    snprintf(path, sizeof path, "%.511s%slibcublas.so%s", folder, slash, version);
    return dlopen(path, RTLD_LAZY | RTLD_LOCAL);
}

/* The folders, in the order they are tried. */
enum { FOLDERS = 5 };
static void name_folders(char folders[FOLDERS][512])
{
    const char *home = getenv("CUDA_HOME");
    const char *homes[2] = {home != NULL && home[0] != '\0' ? home : NULL, MB_CUDA_HOME};
    folders[0][0] = '\0';
    for (int i = 0; i < 2; i++) {
        folders[1 + 2 * i][0] = folders[2 + 2 * i][0] = '\0';
        if (homes[i] == NULL) continue;
        snprintf(folders[1 + 2 * i], 512, "%s/lib64", homes[i]);
        snprintf(folders[2 + 2 * i], 512, "%s/lib", homes[i]);
    }
}

static mb_status open_library(mb_cuda_blas *blas)
{
    const char *versions[] = {".13", ".12", ""}, *why = NULL;
    char folders[FOLDERS][512], tried[3000] = "";
    name_folders(folders);
    for (int f = 0; f < FOLDERS && blas->library == NULL; f++) {
        if (f > 0 && folders[f][0] == '\0') continue;
        for (int v = 0; v < 3 && blas->library == NULL; v++) blas->library = open_in(folders[f], versions[v]);
        snprintf(tried + strlen(tried), sizeof tried - strlen(tried), "%s%.511s", f > 0 ? ", in " : "",
                 folders[f]);
    }
    if (blas->library == NULL)
        return mb_fail(MB_EUNSUPPORTED,
                       "backend \"cuda\": cuBLAS was not found: tried libcublas.so.13, libcublas.so.12 and "
                       "libcublas.so on the library path%s; set LD_LIBRARY_PATH or CUDA_HOME, or use "
                       "backend = \"cpu\"",
                       tried);
    *(void **)&blas->cublasGemmGroupedBatchedEx_ = NULL;
#define LOOKED_UP(function)                                                                                  \
    *(void **)&blas->function##_ = dlsym(blas->library, #function);                                          \
    if (blas->function##_ == NULL && strcmp(#function, "cublasGemmGroupedBatchedEx") != 0) why = #function;
    MB_CUDA_BLAS_LIST(LOOKED_UP)
#undef LOOKED_UP
    *(void **)&blas->cublasGemmEx_ = dlsym(blas->library, "cublasGemmEx");
    if (blas->cublasGemmEx_ == NULL) why = "cublasGemmEx";
    if (why != NULL)
        return mb_fail(MB_EUNSUPPORTED,
                       "backend \"cuda\": the cuBLAS found has no %s; CUDA 12 or later is needed", why);
    return MB_OK;
}

#endif

/* ---- 2. the handle ---- */

static mb_status make_handle(mb_cuda *cuda, mb_cuda_blas *blas)
{
    const size_t bytes = cuda->capability >= 90 ? (size_t)32 << 20 : (size_t)4 << 20;
    const cublasMath_t math =
        (cublasMath_t)((int)CUBLAS_DEFAULT_MATH | (int)CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    const cublasStatus_t created = blas->cublasCreate_v2_(&blas->handle);
    if (created != CUBLAS_STATUS_SUCCESS) {
        blas->handle = NULL;
        return mb_fail(
            MB_EDEVICE,
            "cuBLAS did not start: status %d; is the driver as new as the library, and is there GPU memory?",
            (int)created);
    }
    MB_CUBLAS_CALL(
        blas->cublasSetStream_v2_(blas->handle, cuda->stream)); /* resets the workspace: before it */
    MB_CUDA_CALL(cudaMalloc(&blas->workspace, bytes));
    MB_CUBLAS_CALL(blas->cublasSetWorkspace_v2_(blas->handle, blas->workspace, bytes));
    MB_CUBLAS_CALL(blas->cublasSetMathMode_(blas->handle, math));
    return MB_OK;
}

mb_status mb_cuda_blas_create(mb_ops *ops, mb_cuda_blas **out_blas)
{
    mb_cuda_blas *blas = (mb_cuda_blas *)mb_calloc(1, sizeof *blas);
    if (blas == NULL) return MB_ENOMEM;
    mb_status status = open_library(blas);
    if (status == MB_OK) status = make_handle(mb_cuda_of(ops), blas);
    if (status != MB_OK) {
        mb_cuda_blas_destroy(ops, &blas);
        return mb_status_trace(status, __func__, __FILE__, __LINE__);
    }
    *out_blas = blas;
    return MB_OK;
}

void mb_cuda_blas_destroy(mb_ops *ops, mb_cuda_blas **blas)
{
    (void)ops;
    if (*blas == NULL) return;
    if ((*blas)->handle != NULL) (void)(*blas)->cublasDestroy_v2_((*blas)->handle);
    if ((*blas)->workspace != NULL) (void)cudaFree((*blas)->workspace);
    mb_free(*blas);
    /* The library stays: it registered its kernels with the driver for as long as the process lives. */
    *blas = NULL;
}
