/* row_products_portable: row_products_body.h in plain C. */
#include "choose/row_products_body.h"

const mb_row_products mb_row_products_portable = MB_ROW_PRODUCTS_TABLE("portable");
