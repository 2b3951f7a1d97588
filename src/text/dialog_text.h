/* dialog_text: text helpers with Python's meaning: strip, and JSON as json.dumps(x, ensure_ascii=False)
 * writes it.
 *
 * Layer: text.  Uses: base.
 * Source: CPython str.strip, json.dumps, float.__repr__; chat templates and task prompts are defined by them.
 */
#ifndef MB_DIALOG_TEXT_H
#define MB_DIALOG_TEXT_H

#include "base/json.h"

/* Bytes of Unicode white space at the start, at the end of [text, text + n). */
size_t mb_dialog_text_space_before(const char *text, size_t n);
size_t mb_dialog_text_space_after(const char *text, size_t n);
/* str.strip(): moves *text and *n. */
void mb_dialog_text_strip(const char **text, size_t *n);
/* Append the JSON text of a value. */
mb_status mb_dialog_text_json(const json_t *json, mb_str *s);

#endif
