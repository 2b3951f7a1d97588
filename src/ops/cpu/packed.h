/* packed: what a weight looks like to a product: packed forms that are kept with it, and blocks of columns
 * that are made for one call.
 *
 * Layer: ops (cpu backend, internal).
 *
 * f32 rows meet an f32 weight plain; it is packed by the library when that pays. bf16 rows meet panels
 * (panels.h), of which a thread makes what it needs in memory of its own; panels of a weight that is used
 * again are kept. Weights of other dtypes, quantised ones among them, are expanded by blocks and never kept,
 * but for the panels of bf16 weights.
 */
#ifndef MB_CPU_PACKED_H
#define MB_CPU_PACKED_H

#include "ops/cpu/dense.h"
#include "ops/cpu/dequant.h"

typedef enum mb_direction { MB_FORWARD, MB_BACKWARD } mb_direction; /* x W^T, dy W */

/* Rows and columns of the right operand: of W^T or W. */
static inline int64_t mb_packed_rows(const mb_weight *w, mb_direction d)
{
    return d == MB_FORWARD ? w->width : w->tensor.shape[0];
}
static inline int64_t mb_packed_columns(const mb_weight *w, mb_direction d)
{
    return d == MB_FORWARD ? w->tensor.shape[0] : w->width;
}

/* Count a call of `rows` rows and say whether the values are to be packed now; they then count as packed, so
 * that a weight which serves two groups is packed once. */
mb_status mb_packed_count(mb_dense *dense, mb_weight *w, mb_direction d, int64_t rows, bool is_bf16,
                          bool *out_due);
/* Pack what is due: f32 for the library, by one thread of any. */
mb_status mb_packed_make(mb_dense *dense, int thread, mb_weight *w, mb_direction d);
/* Memory for panels that are due; columns of them, by any thread. */
mb_status mb_packed_reserve(mb_weight *w, mb_direction d);
void mb_packed_fill(mb_weight *w, mb_direction d, int64_t column, int64_t columns);

/* The library's packed form, the panels kept; NULL: none of these values. */
const void *mb_packed_get(const mb_dense *dense, const mb_weight *w, mb_direction d);
const uint16_t *mb_packed_panels(const mb_dense *dense, const mb_weight *w, mb_direction d);

/* Columns column.. as panels in the thread's memory; column a multiple of 64. */
mb_status mb_packed_block_panels(mb_dense *dense, int thread, const mb_dequant *loops, const mb_weight *w,
                                 mb_direction d, int64_t column, int64_t columns, const uint16_t **out);
/* The same as f32, stored [columns, K] forward and [N, columns] backward; rounded to bf16 when asked. */
mb_status mb_packed_block_f32(mb_dense *dense, int thread, const mb_dequant *loops, const mb_weight *w,
                              mb_direction d, int64_t column, int64_t columns, bool is_rounded,
                              const float **out);

#endif
