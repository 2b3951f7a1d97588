/* embed (ref): rows of a table, and their gradients added in token order. */
#include <string.h>

#include "ops/ref/ref.h"

mb_status mb_embedding_ref(mb_ops *ops, const int32_t *tokens, const mb_tensor *table, mb_tensor *y)
{
    int64_t rows = mb_ops_rows(y), d = mb_ops_width(table);
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < d; i++) mb_ref_set(y, t * d + i, mb_ref_get(table, tokens[t] * d + i));
    }
    return MB_OK;
}

/* Each thread owns a range of columns and walks all tokens, so a table row is added to in token order. */
mb_status mb_embedding_backward_ref(mb_ops *ops, const int32_t *tokens, const mb_tensor *dy,
                                    mb_tensor *dtable)
{
    enum { COLUMNS = 64 };
    int64_t rows = mb_ops_rows(dy), d = mb_ops_width(dtable);
    int64_t slices = (d + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static) num_threads(ops->threads)
    for (int64_t s = 0; s < slices; s++) {
        int64_t first = s * COLUMNS, last = first + COLUMNS < d ? first + COLUMNS : d;
        for (int64_t t = 0; t < rows; t++) {
            float *row = mb_tensor_f32(dtable) + tokens[t] * d;
            for (int64_t i = first; i < last; i++) row[i] += mb_ref_get(dy, t * d + i);
        }
    }
    return MB_OK;
}

mb_status mb_scatter_rows_ref(mb_ops *ops, const mb_tensor *x, const int32_t *rows, mb_tensor *y)
{
    const size_t bytes = (size_t)mb_ops_width(y) * mb_dtype_bytes(y->dtype);
    const int64_t n = mb_ops_rows(x);
#pragma omp parallel for schedule(static) num_threads(ops->threads) if (n > 64)
    for (int64_t t = 0; t < n; t++)
        memcpy((char *)y->data + (size_t)rows[t] * bytes, (const char *)x->data + (size_t)t * bytes, bytes);
    return MB_OK;
}
