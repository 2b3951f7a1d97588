/* row_products_avx2: row_products_body.h for AVX2. */
#if defined(__x86_64__)
#include "choose/row_products_body.h"

const mb_row_products mb_row_products_avx2 = MB_ROW_PRODUCTS_TABLE("avx2");
#endif
