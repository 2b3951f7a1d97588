/* tensor.c: views.
 *
 * 1. making views   2. asking
 */
#include "tensor/tensor.h"

#include <assert.h>
#include <stdio.h>

/* ---- 1. making views ---- */

mb_tensor mb_tensor_view1(mb_dtype dtype, void *data, int64_t n0)
{
    return (mb_tensor){.dtype = dtype, .dims = 1, .shape = {n0, 1, 1, 1}, .data = data};
}

mb_tensor mb_tensor_view2(mb_dtype dtype, void *data, int64_t n0, int64_t n1)
{
    return (mb_tensor){.dtype = dtype, .dims = 2, .shape = {n0, n1, 1, 1}, .data = data};
}

mb_tensor mb_tensor_view3(mb_dtype dtype, void *data, int64_t n0, int64_t n1, int64_t n2)
{
    return (mb_tensor){.dtype = dtype, .dims = 3, .shape = {n0, n1, n2, 1}, .data = data};
}

mb_tensor mb_tensor_rows(const mb_tensor *tensor, int64_t first, int64_t n)
{
    assert(tensor->dims >= 1 && first >= 0 && n >= 0 && first <= tensor->shape[0] - n);
    mb_tensor rows = *tensor;
    size_t row_bytes = mb_dtype_bytes(tensor->dtype);
    for (int i = 1; i < tensor->dims; i++) row_bytes *= (size_t)tensor->shape[i];
    rows.shape[0] = n;
    if (tensor->data != NULL) rows.data = (char *)tensor->data + (size_t)first * row_bytes;
    return rows;
}

/* ---- 2. asking ---- */

int64_t mb_tensor_count(const mb_tensor *tensor)
{
    if (tensor->dims == 0) return tensor->data != NULL ? 1 : 0;
    int64_t count = 1;
    for (int i = 0; i < tensor->dims; i++) count *= tensor->shape[i];
    return count;
}

size_t mb_tensor_bytes(const mb_tensor *tensor)
{
    return (size_t)mb_tensor_count(tensor) * mb_dtype_bytes(tensor->dtype);
}

bool mb_tensor_is_shape(const mb_tensor *tensor, int dims, const int64_t *shape)
{
    if (tensor->dims != dims) return false;
    for (int i = 0; i < dims; i++) {
        if (tensor->shape[i] != shape[i]) return false;
    }
    return true;
}

char *mb_tensor_describe(const mb_tensor *tensor, char *out_text, size_t bytes)
{
    char shape[MB_TENSOR_MAX_DIMS * 24] = "";
    size_t used = 0;
    for (int i = 0; i < tensor->dims; i++) {
        int length = snprintf(shape + used, sizeof shape - used, "%s%lld", i > 0 ? ", " : "",
                              (long long)tensor->shape[i]);
        used += length > 0 ? (size_t)length : 0;
    }
    snprintf(out_text, bytes, "[%s] %s", shape, mb_dtype_name(tensor->dtype));
    return out_text;
}
