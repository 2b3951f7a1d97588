/* kernels_avx2: the vector loops for AVX2. */
#define MB_KERNELS_TABLE mb_kernels_avx2
#define MB_KERNELS_NAME  "avx2"
#include "ops/cpu/kernels_body.h"
