/* merge_literal: a Python literal as JSON: how AGIEval stores its solved examples inside a table.
 *
 * Layer: stage.  Uses: base.
 * Source: the Python language reference, 2.4 (literals) and 6.2 (displays).
 */
#ifndef MB_MERGE_LITERAL_H
#define MB_MERGE_LITERAL_H

#include "base/json.h"

/* Dictionaries with text keys, lists, tuples (as lists), texts ('..', ".."), whole numbers, reals, True,
 * False, None. Release with json_decref. MB_EDATA: anything else, with the byte it stands at. */
mb_status mb_merge_literal_read(const char *text, json_t **out_json);

#endif
