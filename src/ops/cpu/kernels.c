/* kernels: choice of the instruction set at run time. */
#include "ops/cpu/kernels.h"

#include <stddef.h>
#include <string.h>

const mb_kernels *mb_kernels_get(const char *opt_isa)
{
    const mb_kernels *usable[3];
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512) usable[count++] = &mb_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable[count++] = &mb_kernels_avx2;
#endif
    usable[count++] = &mb_kernels_portable;
    for (int i = 0; i < count; i++) {
        if (opt_isa == NULL || strcmp(opt_isa, usable[i]->name) == 0) return usable[i];
    }
    return NULL;
}
