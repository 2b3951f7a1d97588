/* row_products: choice of the instruction set at run time, and packing. */
#include "choose/row_products.h"

#include <stddef.h>
#include <string.h>

const mb_row_products *mb_row_products_get(const char *opt_isa)
{
    const mb_row_products *usable[3];
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512) usable[count++] = &mb_row_products_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        usable[count++] = &mb_row_products_avx2;
#endif
    usable[count++] = &mb_row_products_portable;
    for (int i = 0; i < count; i++)
        if (opt_isa == NULL || strcmp(opt_isa, usable[i]->name) == 0) return usable[i];
    return NULL;
}

int64_t mb_row_products_lanes(int64_t n)
{
    return (n + 15) / 16 * 16;
}

void mb_row_products_pack(const float *const *rows, int64_t n, int64_t width, float *out)
{
    const int64_t lanes = mb_row_products_lanes(n);
    for (int64_t d = 0; d < width; d++) {
        for (int64_t j = 0; j < n; j++) out[d * lanes + j] = rows[j][d];
        for (int64_t j = n; j < lanes; j++) out[d * lanes + j] = 0;
    }
}
