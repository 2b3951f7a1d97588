/* int4_portable: products of f32 rows with quantised weights for any processor. */
#define MB_INT4_GET mb_int4_get_portable
#include "ops/cpu/int4_body.h"
