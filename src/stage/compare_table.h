/* compare_table: a comparison of models as text.
 *
 * Layer: stage.  Uses: compare_result.
 */
#ifndef MB_COMPARE_TABLE_H
#define MB_COMPARE_TABLE_H

#include "stage/compare_result.h"

/* Append tables of perplexity, accuracy, both against the baseline, and cost; lines of at most 110
 * characters, more categories than fit in further blocks. */
mb_status mb_compare_table_print(const mb_compare_result *result, mb_str *text);

#endif
