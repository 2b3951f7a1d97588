/* int4_avx2: products of f32 rows with quantised weights for AVX2. */
#define MB_INT4_GET mb_int4_get_avx2
#include "ops/cpu/int4_body.h"
