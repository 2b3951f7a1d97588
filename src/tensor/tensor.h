/* tensor: dtypes, owned buffers and dense row-major views over them.
 *
 * Layer: tensor.  Uses: base.
 *
 * A buffer owns memory, through an allocator the backend registers (host memory by default). A tensor is a
 * view: it never owns and is passed by value or const pointer. All tensors are contiguous in row-major order;
 * a view of leading rows or of a range of rows is contiguous too.
 */
#ifndef MB_TENSOR_H
#define MB_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/allocator.h"
#include "base/memory.h"
#include "base/status.h"

typedef enum mb_dtype {
    MB_F32,
    MB_F64,
    MB_BF16,
    MB_F16,
    MB_I8,
    MB_U8,
    MB_U16,
    MB_I32,
    MB_U32,
    MB_I64,
    MB_U64,
    MB_BOOL,
    MB_DTYPE_COUNT
} mb_dtype;

size_t mb_dtype_bytes(mb_dtype dtype);
const char *mb_dtype_name(mb_dtype dtype);                       /* "f32", as in our options */
mb_status mb_dtype_parse(const char *text, mb_dtype *out_dtype); /* f32 float32 F32 bf16 bfloat16 BF16 ... */

/* Conversions of single values and of arrays, to nearest even. */
float mb_dtype_f32_from_bf16(uint16_t bits);
float mb_dtype_f32_from_f16(uint16_t bits);
uint16_t mb_dtype_bf16_from_f32(float value);
uint16_t mb_dtype_f16_from_f32(float value);
/* n elements of a float dtype (f32, f64, bf16, f16) into f32 and back. MB_EUNSUPPORTED for others. */
mb_status mb_dtype_to_f32(mb_dtype from, const void *source, int64_t n, float *out);
mb_status mb_dtype_from_f32(mb_dtype to, const float *source, int64_t n, void *out);

typedef struct mb_buffer {
    void *data;
    size_t bytes;
    const mb_allocator *allocator;
} mb_buffer;
mb_status mb_buffer_create(const mb_allocator *allocator, size_t bytes, mb_buffer **out_buffer);
void mb_buffer_destroy(mb_buffer **buffer);

#define MB_TENSOR_MAX_DIMS 4
typedef struct mb_tensor {
    mb_dtype dtype;
    int dims;                          /* 0 for "no tensor" */
    int64_t shape[MB_TENSOR_MAX_DIMS]; /* unused entries are 1 */
    void *data;
} mb_tensor;

mb_tensor mb_tensor_view1(mb_dtype dtype, void *data, int64_t n0);
mb_tensor mb_tensor_view2(mb_dtype dtype, void *data, int64_t n0, int64_t n1);
mb_tensor mb_tensor_view3(mb_dtype dtype, void *data, int64_t n0, int64_t n1, int64_t n2);
/* Rows first..first+n of the leading dimension. Asserts the range. */
mb_tensor mb_tensor_rows(const mb_tensor *tensor, int64_t first, int64_t n);
int64_t
mb_tensor_count(const mb_tensor *tensor); /* elements; 1 for a scalar of dims 0 with data, 0 without data */
size_t mb_tensor_bytes(const mb_tensor *tensor);
bool mb_tensor_is_shape(const mb_tensor *tensor, int dims, const int64_t *shape);
/* "[2, 3] f32" into a caller's buffer. Returns it. */
char *mb_tensor_describe(const mb_tensor *tensor, char *out_text, size_t bytes);

static inline float *mb_tensor_f32(const mb_tensor *tensor)
{
    return (float *)tensor->data;
}

#endif
