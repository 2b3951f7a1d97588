/* dialog_build: what the readers of the forms share: adding turns, finding mapped fields. Private to
 * dialog*.c.
 *
 * Layer: text.  Uses: base, dialog.
 */
#ifndef MB_DIALOG_BUILD_H
#define MB_DIALOG_BUILD_H

#include "text/dialog.h"

/* Forget all turns and texts; memory is kept. Until mb_dialog_build_finish the texts' pointers are not set.
 */
void mb_dialog_build_reset(mb_dialog *dialog);
/* Begin a turn; its text is what is appended to dialog->text until mb_dialog_build_end. */
mb_status mb_dialog_build_begin(mb_dialog *dialog, mb_role role);
mb_status mb_dialog_build_end(mb_dialog *dialog);
mb_status mb_dialog_build_turn(mb_dialog *dialog, mb_role role, const char *text, size_t n);
mb_status mb_dialog_build_finish(mb_dialog *dialog, const mb_str *opt_tools);

/* The value of our field, under its mapped name; NULL when absent or null. */
const json_t *mb_dialog_build_field(const json_t *object, const mb_field_map *map, const char *name);
/* A field's name in the record, for messages: at most 63 bytes. */
const char *mb_dialog_build_name(const mb_field_map *map, const char *name, char out_name[64]);
/* Add a turn from a text field. MB_EDATA when it is missing, no text, or empty. */
mb_status mb_dialog_build_add(mb_dialog *dialog, mb_role role, const json_t *record, const mb_field_map *map,
                              const char *name);
/* instruction[/input] -> a user turn. */
mb_status mb_dialog_build_instruction(mb_dialog *dialog, const json_t *record, const mb_field_map *map);
/* The `system` field, when there is one that is not empty. */
mb_status mb_dialog_build_system(mb_dialog *dialog, const json_t *record, const mb_field_map *map);

/* In dialog_messages.c. A list of messages, from `messages` (role, content) or `conversations` (from, value),
 * checked for order; trailing turns without an answer are kept when keep_open. */
mb_status mb_dialog_messages_add(mb_dialog *dialog, const json_t *messages, const mb_field_map *map,
                                 bool keep_open);
/* One message that must be an answer. */
mb_status mb_dialog_messages_add_answer(mb_dialog *dialog, const json_t *message, const mb_field_map *map);
/* The record's `tools` as lines. */
mb_status mb_dialog_messages_tools(const json_t *record, const mb_field_map *map, mb_str *s);

/* In dialog_pair.c. What was asked; *out_found is false when no field holds it. */
mb_status mb_dialog_pair_prompt(const json_t *record, const mb_field_map *map, mb_dialog *dialog,
                                bool *out_found);
/* One side ("chosen" or "rejected") of a pair. */
mb_status mb_dialog_pair_read(const json_t *record, const mb_field_map *map, const char *side,
                              mb_dialog *dialog);

/* In dialog_tree.c. The best path of an OpenAssistant tree. */
mb_status mb_dialog_tree_read(const json_t *record, const mb_field_map *map, mb_dialog *dialog);

#endif
