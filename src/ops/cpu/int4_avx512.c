/* int4_avx512: products of f32 rows with quantised weights for AVX-512. */
#define MB_INT4_GET mb_int4_get_avx512
#include "ops/cpu/int4_body.h"
