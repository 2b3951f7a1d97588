/* template_file: a template's pieces as read from its file. Private to template*.c.
 *
 * Layer: text.  Uses: base.
 */
#ifndef MB_TEMPLATE_FILE_H
#define MB_TEMPLATE_FILE_H

#include <stdbool.h>

#include "base/hash.h"
#include "base/json.h"

/* Pieces around one role's contents. A run of tool results, or an answer with its tool calls, is one block of
 * several items. NULL: not in the file. All strings are borrowed from the file's JSON. */
typedef struct mb_template_piece {
    const char *before;      /* the block */
    const char *end;         /* end-of-turn marker: learnt with an answer when learn_end */
    const char *after;       /* behind the marker; learnt with an answer when learn_after */
    const char *after_last;  /* instead of after, behind the last turn */
    const char *item_before; /* tool result, or (assistant) tool call */
    const char *item_after;
    const char *join;   /* between items */
    const char *prompt; /* assistant: instead of before, at the end of a prompt */
    const char *input;  /* user: between an instruction and its input */
} mb_template_piece;

struct mb_template {
    json_t *json; /* owner of all strings */
    char hash[MB_HASH_TEXT];
    const char *name;
    const char *start; /* of the whole */
    const char *end;
    const char *between;              /* before each user turn but the first */
    const char *default_system;       /* NULL: none. "" still makes a system block */
    const char *default_system_input; /* the same, when the first question has an input part */
    bool learn_end;
    bool learn_after;
    bool strip;          /* contents lose white space around them */
    bool system_in_user; /* the system block stands inside the first user block */
    bool think; /* Qwen3's treatment of <think>: only answers behind the last question keep theirs; the last
                   always has one. An empty one is learnt too: it stands behind what begins an answer */
    bool think_always; /* every answer has one, as TRL and LLaMA-Factory train Qwen3 */
    mb_template_piece system, user, assistant, tool;
    bool has_tool, has_tools;
    mb_template_piece tools; /* before, after; join: between the system text and it */
};
typedef struct mb_template mb_template;

/* Fill tmpl from a file's JSON (kept). MB_EFORMAT names an unknown key or a wrong type. */
mb_status mb_template_file_read(const char *path, mb_template *tmpl);

#endif
