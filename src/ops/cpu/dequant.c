/* dequant: choice of the loops, and blocks of a weight row by row. */
#include "ops/cpu/dequant.h"

#include <string.h>

#include "ops/ops_table.h"

const mb_dequant *mb_dequant_get(const char *isa)
{
#if defined(__x86_64__)
    if (strcmp(isa, "avx512") == 0) return &mb_dequant_avx512;
    if (strcmp(isa, "avx2") == 0) return &mb_dequant_avx2;
#endif
    (void)isa;
    return &mb_dequant_portable;
}

/* Columns first..last of a row of int4, all of one scale. */
static void int4_span(const mb_dequant *loops, const uint8_t *row, float scale, int64_t first, int64_t last,
                      float *out)
{
    if (first % 2 != 0) {
        *out++ = (float)((int)(row[first / 2] >> 4) - 8) * scale;
        first++;
    }
    loops->from_int4(row + first / 2, scale, last - first, out);
}

static void quantised_row(const mb_dequant *loops, const mb_weight *w, int64_t row, int64_t first,
                          int64_t last, float *out)
{
    const float *scales = mb_tensor_f32(&w->scale) + row * w->scale.shape[1];
    const int64_t bytes = w->tensor.shape[1];
    while (first < last) {
        const int64_t group = first / w->group, next = (group + 1) * w->group;
        const int64_t end = next < last ? next : last;
        if (w->bits == 8) {
            const int8_t *x = (const int8_t *)w->tensor.data + row * bytes + first;
            loops->from_int8(x, scales[group], end - first, out);
        } else {
            const uint8_t *x = (const uint8_t *)w->tensor.data + row * bytes;
            int4_span(loops, x, scales[group], first, end, out);
        }
        out += end - first;
        first = end;
    }
}

void mb_dequant_block(const mb_dequant *loops, const mb_weight *w, mb_block block, bool is_rounded,
                      int64_t ld, float *out)
{
    const int64_t width = w->width, n = block.columns;
    for (int64_t i = 0; i < block.rows; i++, out += ld) {
        const int64_t row = block.row + i, at = row * width + block.column;
        if (w->bits != 0) {
            quantised_row(loops, w, row, block.column, block.column + n, out);
        } else if (w->tensor.dtype == MB_BF16) {
            loops->from_bf16((const uint16_t *)w->tensor.data + at, n, out);
        } else {
            memcpy(out, mb_tensor_f32(&w->tensor) + at, (size_t)n * sizeof *out);
        }
        if (is_rounded) loops->round(out, n);
    }
}
