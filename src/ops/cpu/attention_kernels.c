/* attention_kernels: choice of the instruction set at run time. */
#include "ops/cpu/attention_kernels.h"

#include <string.h>

const mb_attention_kernels *mb_attention_kernels_get(const char *isa, bool is_bf16)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (strncmp(isa, "avx512", 6) == 0)
        return is_bf16 && __builtin_cpu_supports("avx512bf16") ? &mb_attention_avx512bf16
                                                               : &mb_attention_avx512;
    if (strcmp(isa, "avx2") == 0) return &mb_attention_avx2;
#endif
    (void)isa, (void)is_bf16;
    return &mb_attention_portable;
}
