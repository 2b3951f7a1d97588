/* dialog: a record's fields -> a list of turns (role, text, whether it is to be learnt), whatever form the
 * record has.
 *
 * Layer: text.  Uses: base.
 * Source: forms and order of roles as in hiyouga/LLaMA-Factory (alpaca, sharegpt), OpenAI chat messages,
 * hh-rlhf.
 *
 * Forms: text ("text"), io (input/output), alpaca (instruction/input/output[/history/system]), messages
 * (role/content), sharegpt (conversations from/value), qa (question/answer), pair (chosen/rejected), oasst (a
 * tree; its best-ranked path). `auto` recognises them by their fields. Field names can be mapped. Start a
 * dialog zeroed; it is reused by the next read.
 */
#ifndef MB_DIALOG_H
#define MB_DIALOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"

typedef enum mb_role { MB_ROLE_TEXT, MB_ROLE_SYSTEM, MB_ROLE_USER, MB_ROLE_ASSISTANT, MB_ROLE_TOOL } mb_role;
const char *mb_role_name(mb_role role);

typedef struct mb_turn {
    mb_role role;
    const char *text; /* owned by the dialog */
    size_t length;
    bool learn;   /* counts in the loss: assistant turns and plain text */
    bool call;    /* an assistant's tool call as JSON text {"name": .., "arguments": ..}; belongs to the
                   * assistant turn before it, if there is one directly before */
    size_t input; /* alpaca: byte of text where `input` begins, a line feed behind the instruction; 0 none */
} mb_turn;

typedef struct mb_dialog {
    mb_turn *turns;
    int64_t count;
    int64_t capacity;
    mb_str text;       /* storage of all texts */
    const char *tools; /* tool descriptions of the record, one JSON object per line (as Python's json.dumps
                        * writes them), else the field's own text; NULL if none; owned */
} mb_dialog;

typedef struct mb_field_map {
    const char
        *form; /* "auto" (NULL too), "text", "io", "alpaca", "messages", "sharegpt", "qa", "pair", "oasst" */
    const char *fields; /* "text=body,output=reply": our name = theirs; NULL none */
} mb_field_map;

void mb_dialog_destroy(mb_dialog *dialog);
/* Fill dialog (reused) from a record. MB_EDATA names the missing field, the empty text or the bad role.
 * Alternation of roles is checked for sharegpt/messages as LLaMA-Factory does (a trailing user turn is
 * dropped; a wrong order is bad data), except that several tool results in a row are right. A pair gives its
 * chosen side. MB_EUSAGE: an unknown form or field name in the map. */
mb_status mb_dialog_read(const json_t *record, const mb_field_map *map, mb_dialog *dialog);
/* Only what is asked, for generation: messages or conversations with their last question kept, prompt,
 * instruction[/input], question, or text. What would answer it in the record is not read. */
mb_status mb_dialog_read_prompt(const json_t *record, const mb_field_map *map, mb_dialog *dialog);
/* Both sides of a preference pair; only the last answer of each is learnt. Forms: conversations or messages +
 * chosen, rejected (one message each); prompt, instruction[/input] or question + chosen, rejected (text,
 * message or messages); chosen, rejected as whole dialogs (lists of messages, or text with "\n\nHuman: " and
 * "\n\nAssistant: "). */
mb_status mb_dialog_read_pair(const json_t *record, const mb_field_map *map, mb_dialog *chosen,
                              mb_dialog *rejected);

#endif
