/* records_row: one row of a CSV or TSV file (RFC 4180) -> its fields, and with the header row a JSON object
 * of strings.
 *
 * Layer: text.  Uses: base.
 */
#ifndef MB_RECORDS_ROW_H
#define MB_RECORDS_ROW_H

#include <stdint.h>

#include "base/json.h"

/* Split a row (without its line end) into a JSON array of strings. MB_EDATA says what is wrong with it. */
mb_status mb_records_row_split(const char *bytes, size_t n, char delimiter, json_t **out_fields);
/* Fields with the header's names -> object; header NULL: names "0", "1", ... MB_EDATA when their counts
 * differ. */
mb_status mb_records_row_object(json_t *fields, json_t *opt_header, json_t **out_object);
/* MB_EFORMAT when two columns share a name. */
mb_status mb_records_row_check_header(const json_t *header);

#endif
