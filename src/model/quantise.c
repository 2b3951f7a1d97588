/* quantise: one row at a time, one group at a time. */
#include "model/quantise.h"

#include <math.h>
#include <string.h>

static int quantise_one(float value, float inverse, int bits)
{
    const int low = -(1 << (bits - 1)), high = -low - 1;
    const int q = (int)lrintf(value * inverse);
    return q < low ? low : q > high ? high : q;
}

static void quantise_group(const float *value, int64_t first, int64_t n, int bits, void *row,
                           float *out_scale)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(value[first + i]));
    *out_scale = most / ((float)((1 << bits) - 1) / 2);
    const float inverse = *out_scale > 0 ? 1 / *out_scale : 0;
    for (int64_t i = first; i < first + n; i++) {
        const int q = quantise_one(value[i], inverse, bits);
        if (bits == 8)
            ((int8_t *)row)[i] = (int8_t)q;
        else
            ((uint8_t *)row)[i / 2] |= (uint8_t)((q + 8) << (i % 2 == 0 ? 0 : 4));
    }
}

void mb_quantise_rows(const float *value, mb_weight *weight)
{
    const int64_t n = weight->tensor.shape[0], k = weight->width, groups = weight->scale.shape[1];
    const int64_t bytes = mb_quantise_row_bytes(k, weight->bits);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        char *row = (char *)weight->tensor.data + r * bytes;
        memset(row, 0, (size_t)bytes);
        for (int64_t g = 0; g < groups; g++) {
            const int64_t first = g * weight->group, left = k - first;
            quantise_group(value + r * k, first, left < weight->group ? left : weight->group, weight->bits,
                           row, mb_tensor_f32(&weight->scale) + r * groups + g);
        }
    }
}
