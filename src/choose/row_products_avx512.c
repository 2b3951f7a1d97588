/* row_products_avx512: row_products_body.h for AVX-512. */
#if defined(__x86_64__)
#include "choose/row_products_body.h"

const mb_row_products mb_row_products_avx512 = MB_ROW_PRODUCTS_TABLE("avx512");
#endif
