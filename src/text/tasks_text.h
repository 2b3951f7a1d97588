/* tasks_text: the text changes of task prompts, with Python's meaning.
 *
 * Layer: text.  Uses: base, utf8proc.
 * Source: CPython str.capitalize; lm_eval/tasks/hellaswag/utils.py (preprocess).
 */
#ifndef MB_TASKS_TEXT_H
#define MB_TASKS_TEXT_H

#include "base/str.h"

/* Append text.capitalize(): the first character in title case, the rest in lower case (final sigma included).
 */
mb_status mb_tasks_text_capitalize(const char *text, mb_str *s);
/* Append HellaSwag's preprocess(text): strip, " [title]" -> ". ", other [..] out, two spaces -> one. */
mb_status mb_tasks_text_preprocess(const char *text, mb_str *s);
/* Unicode characters of valid UTF-8. */
int64_t mb_tasks_text_characters(const char *text);

#endif
