/* dequant_avx512: the conversions for AVX-512. */
#define MB_DEQUANT_TABLE mb_dequant_avx512
#include "ops/cpu/dequant_body.h"
