/* json: jansson with our errors: a message says file, line and what was expected.
 *
 * Layer: base.  Uses: jansson, str, files.  This is the only header that shows jansson's json_t to the layers
 * above.
 *
 * Getters take `where` (file or place, for messages). "opt" getters leave the output untouched when the key
 * is absent or null, and still fail when it is there with the wrong type.
 */
#ifndef MB_JSON_H
#define MB_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

/* Parse; release with json_decref. Duplicate keys, trailing text, bad UTF-8, NaN are errors (MB_EFORMAT). */
mb_status mb_json_parse(const char *text, size_t n, const char *where, json_t **out_json);
mb_status mb_json_read(const char *path, json_t **out_json);

/* Serialise; indent 0 = one line. Keys keep insertion order unless sort. Reals with 17 digits. */
mb_status mb_json_print(const json_t *json, int indent, bool sort, mb_str *s);
mb_status mb_json_write(const char *path, const json_t *json, int indent,
                        bool sort); /* atomic; ends with a newline */

/* Required members. Strings and objects are borrowed from the parent. */
mb_status mb_json_get_string(const json_t *object, const char *key, const char *where, const char **out_text);
mb_status mb_json_get_int(const json_t *object, const char *key, const char *where, int64_t *out_value);
mb_status mb_json_get_real(const json_t *object, const char *key, const char *where, double *out_value);
mb_status mb_json_get_bool(const json_t *object, const char *key, const char *where, bool *out_value);
mb_status mb_json_get_array(const json_t *object, const char *key, const char *where, json_t **out_array);
mb_status mb_json_get_object(const json_t *object, const char *key, const char *where, json_t **out_object);

mb_status mb_json_opt_string(const json_t *object, const char *key, const char *where, const char **out_text);
mb_status mb_json_opt_int(const json_t *object, const char *key, const char *where, int64_t *out_value);
mb_status mb_json_opt_real(const json_t *object, const char *key, const char *where, double *out_value);
mb_status mb_json_opt_bool(const json_t *object, const char *key, const char *where, bool *out_value);

/* Set a member; takes over the reference of value (which may be NULL: MB_ENOMEM). */
mb_status mb_json_set(json_t *object, const char *key, json_t *value);

#endif
