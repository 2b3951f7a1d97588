/* dequant_avx2: the conversions for AVX2. */
#define MB_DEQUANT_TABLE mb_dequant_avx2
#include "ops/cpu/dequant_body.h"
