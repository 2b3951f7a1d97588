/* ref: every op in plain C, one function mb_<op>_ref per entry of the table, same arguments as mb_ops_<op>.
 *
 * Layer: ops (ref backend).  Uses: ops_table.h.
 * Simple loops, sums in f64 where they are long, parallel over independent rows only: bits do not depend on
 * threads.
 */
#ifndef MB_OPS_REF_H
#define MB_OPS_REF_H

#include "ops/ops_table.h"

#define MB_REF_DECLARE(op) __typeof__(mb_ops_##op) mb_##op##_ref;
MB_OPS_LIST(MB_REF_DECLARE)
#undef MB_REF_DECLARE

/* Element i of an act tensor, as f32; and back, rounded once. */
static inline float mb_ref_get(const mb_tensor *tensor, int64_t i)
{
    if (tensor->dtype == MB_F32) return mb_tensor_f32(tensor)[i];
    return mb_dtype_f32_from_bf16(((const uint16_t *)tensor->data)[i]);
}
static inline void mb_ref_set(mb_tensor *tensor, int64_t i, float value)
{
    if (tensor->dtype == MB_F32) {
        mb_tensor_f32(tensor)[i] = value;
    } else {
        ((uint16_t *)tensor->data)[i] = mb_dtype_bf16_from_f32(value);
    }
}

/* linear.c: an f32 image of a tensor (itself when it is f32, else a copy in scratch; store rounds the copy
 * back
 * and does nothing for f32), and of a weight as rows of a dtype meet it. */
mb_status mb_linear_ref_rows(mb_ops *ops, const mb_tensor *tensor, float **out);
void mb_linear_ref_store(const float *values, mb_tensor *tensor);
mb_status mb_linear_ref_weight(mb_ops *ops, const mb_weight *w, mb_dtype rows, const float **out);

#endif
