/* kernels_avx512: the vector loops for AVX-512. */
#define MB_KERNELS_TABLE mb_kernels_avx512
#define MB_KERNELS_NAME  "avx512"
#include "ops/cpu/kernels_body.h"
