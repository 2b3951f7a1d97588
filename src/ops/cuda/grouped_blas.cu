/* grouped_blas: expert products by cuBLAS: one grouped call where it takes the dtypes, else a call per
 * expert.
 *
 * The sizes come to the host first, which waits for the device; so do the arrays of pointers at the end.
 */
#include "ops/cuda/blas.h"
#include "ops/cuda/grouped.h"
#include "ops/cuda/product.h"

enum { INTS = 7, POINTERS = 3 };

/* Arrays of one grouped call, [experts with rows] each. The pointers are on the host first. */
typedef struct group_arrays {
    int32_t *offsets; /* [groups + 1] */
    int *m, *n, *k, *a_stride, *b_stride, *y_stride, *size;
    cublasOperation_t *a_form, *b_form;
    float *alpha, *beta;
    const void **pointers; /* a[count], b[count], y[count] */
    int count;
} group_arrays;

static void free_arrays(group_arrays *g)
{
    mb_free(g->offsets);
    mb_free(g->m);
    mb_free(g->a_form);
    mb_free(g->alpha);
    mb_free(g->pointers);
}

static mb_status make_arrays(mb_ops *ops, const int32_t *offsets, int64_t groups, group_arrays *g)
{
    const size_t e = (size_t)groups;
    g->offsets = (int32_t *)mb_calloc(e + 1, sizeof *g->offsets);
    g->m = (int *)mb_calloc(INTS * e, sizeof *g->m);
    g->a_form = (cublasOperation_t *)mb_calloc(2 * e, sizeof *g->a_form);
    g->alpha = (float *)mb_calloc(2 * e, sizeof *g->alpha);
    g->pointers = (const void **)mb_calloc(POINTERS * e, sizeof *g->pointers);
    if (g->offsets == NULL || g->m == NULL || g->a_form == NULL || g->alpha == NULL || g->pointers == NULL)
        return MB_ENOMEM;
    g->n = g->m + e, g->k = g->n + e, g->a_stride = g->k + e, g->b_stride = g->a_stride + e;
    g->y_stride = g->b_stride + e, g->size = g->y_stride + e;
    g->b_form = g->a_form + e;
    g->beta = g->alpha + e;
    MB_CUDA_TRY(mb_ops_download(ops, offsets, (e + 1) * sizeof *offsets, g->offsets));
    return mb_ops_wait(ops);
}

/* One expert's product, row-major: y[m,n] = beta y + a b by form. */
typedef struct one_product {
    mb_cuda_form form;
    int64_t m, n, k;
    mb_cuda_matrix a, b;
    void *y;
} one_product;

/* It as cuBLAS sees it, column-major: the transposed, so that b comes first. */
static void add_product(group_arrays *g, int64_t groups, const one_product *p, float beta)
{
    const int i = g->count++;
    g->m[i] = (int)p->n, g->n[i] = (int)p->m, g->k[i] = (int)p->k;
    g->a_stride[i] = (int)p->b.stride, g->b_stride[i] = (int)p->a.stride, g->y_stride[i] = (int)p->n;
    g->a_form[i] = p->form == MB_CUDA_NT ? CUBLAS_OP_T : CUBLAS_OP_N;
    g->b_form[i] = p->form == MB_CUDA_TN ? CUBLAS_OP_T : CUBLAS_OP_N;
    g->alpha[i] = 1, g->beta[i] = beta, g->size[i] = 1;
    g->pointers[i] = p->b.data, g->pointers[groups + i] = p->a.data, g->pointers[2 * groups + i] = p->y;
}

static mb_status run_grouped(mb_ops *ops, group_arrays *g, int64_t groups, mb_dtype dtype)
{
    mb_cuda_blas *blas = mb_cuda_of(ops)->blas;
    const cudaDataType_t of = dtype == MB_F32 ? CUDA_R_32F : CUDA_R_16BF;
    const void **pointers = NULL;
    if (g->count == 0) return MB_OK;
    MB_CUDA_TRY(mb_cuda_scratch(ops, POINTERS * groups, &pointers));
    MB_CUDA_TRY(mb_ops_upload(ops, g->pointers, (size_t)(POINTERS * groups) * sizeof *pointers, pointers));
    MB_CUBLAS_CALL(blas->cublasGemmGroupedBatchedEx_(
        blas->handle, g->a_form, g->b_form, g->m, g->n, g->k, g->alpha, pointers, of, g->a_stride,
        pointers + groups, of, g->b_stride, g->beta, (void *const *)(uintptr_t)(pointers + 2 * groups), of,
        g->y_stride, g->count, g->size, CUBLAS_COMPUTE_32F));
    return mb_ops_wait(ops); /* the arrays are freed next */
}

/* cuBLAS groups products whose results have the dtype of the rows. */
static bool has_grouped(mb_ops *ops, mb_dtype in, mb_dtype out)
{
    return in == out && mb_cuda_of(ops)->blas->cublasGemmGroupedBatchedEx_ != NULL;
}

static const void *row_of(const mb_tensor *tensor, int64_t row)
{
    return (const char *)tensor->data + row * mb_ops_width(tensor) * (tensor->dtype == MB_F32 ? 4 : 2);
}

static mb_status run_forward(mb_ops *ops, bool is_nt, const mb_tensor *x, int64_t groups,
                             const void *const *w, float beta, mb_tensor *y, group_arrays *g)
{
    const int64_t depth = mb_ops_width(x), width = mb_ops_width(y);
    const bool is_grouped = has_grouped(ops, x->dtype, y->dtype);
    for (int64_t e = 0; e < groups; e++) {
        const int64_t first = g->offsets[e], rows = g->offsets[e + 1] - first;
        const one_product p = {is_nt ? MB_CUDA_NT : MB_CUDA_NN,
                               rows,
                               width,
                               depth,
                               {row_of(x, first), depth},
                               {w[e], is_nt ? depth : width},
                               (void *)(uintptr_t)row_of(y, first)};
        if (rows == 0 || width == 0) continue;
        if (is_grouped && depth > 0)
            add_product(g, groups, &p, beta);
        else
            MB_CUDA_TRY(mb_cuda_gemm(ops, p.form, p.m, p.n, p.k, x->dtype, p.a, p.b, NULL, beta, y->dtype,
                                     p.y, width));
    }
    return run_grouped(ops, g, groups, x->dtype);
}

mb_status mb_cuda_groups_by_blas(mb_ops *ops, bool is_nt, const mb_tensor *x, const int32_t *offsets,
                                 int64_t groups, const void *const *w, bool accumulate, mb_tensor *y)
{
    group_arrays g = {};
    mb_status status = make_arrays(ops, offsets, groups, &g);
    if (status == MB_OK) status = run_forward(ops, is_nt, x, groups, w, accumulate, y, &g);
    free_arrays(&g);
    return status == MB_OK ? MB_OK : mb_status_trace(status, __func__, __FILE__, __LINE__);
}

static mb_status run_dw(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x, int64_t groups, mb_tensor *dw,
                        group_arrays *g)
{
    const int64_t n = mb_ops_width(dy), k = mb_ops_width(x);
    const bool is_grouped = has_grouped(ops, x->dtype, MB_F32);
    for (int64_t e = 0; e < groups; e++) {
        const int64_t first = g->offsets[e], rows = g->offsets[e + 1] - first;
        const one_product p = {MB_CUDA_TN, n, k, rows, {row_of(dy, first), n}, {row_of(x, first), k},
                               dw[e].data};
        if (rows == 0 || dw[e].dims == 0) continue;
        if (is_grouped)
            add_product(g, groups, &p, 1);
        else
            MB_CUDA_TRY(mb_cuda_gemm(ops, p.form, n, k, rows, x->dtype, p.a, p.b, NULL, 1, MB_F32, p.y, k));
    }
    return run_grouped(ops, g, groups, MB_F32);
}

mb_status mb_cuda_groups_dw_by_blas(mb_ops *ops, const mb_tensor *dy, const mb_tensor *x,
                                    const int32_t *offsets, int64_t groups, mb_tensor *dw)
{
    group_arrays g = {};
    mb_status status = make_arrays(ops, offsets, groups, &g);
    if (status == MB_OK) status = run_dw(ops, dy, x, groups, dw, &g);
    free_arrays(&g);
    return status == MB_OK ? MB_OK : mb_status_trace(status, __func__, __FILE__, __LINE__);
}
