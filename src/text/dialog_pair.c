/* dialog_pair: one side of a preference pair -> turns.
 *
 * Contents: 1 hh-rlhf text  2 prompt  3 sides
 */
#include <string.h>

#include "text/dialog_build.h"
#include "text/dialog_text.h"

/* ---- 1 hh-rlhf text ---- */

static const char human_mark[] = "\n\nHuman:";
static const char assistant_mark[] = "\n\nAssistant:";

/* The nearest mark from `text` on; NULL if none. */
static const char *find_mark(const char *text, mb_role *out_role, size_t *out_length)
{
    const char *human = strstr(text, human_mark), *assistant = strstr(text, assistant_mark);
    const bool is_human = human != NULL && (assistant == NULL || human < assistant);
    *out_role = is_human ? MB_ROLE_USER : MB_ROLE_ASSISTANT;
    *out_length = is_human ? sizeof human_mark - 1 : sizeof assistant_mark - 1;
    return is_human ? human : assistant;
}

static mb_status add_marked_text(mb_dialog *dialog, const char *text)
{
    mb_status status = MB_OK;
    mb_role role, next_role, before = MB_ROLE_ASSISTANT;
    size_t length, next_length;
    for (const char *at = find_mark(text, &role, &length); at != NULL;
         role = next_role, length = next_length) {
        const char *content = at + length;
        const char *next = find_mark(content, &next_role, &next_length);
        size_t n = next != NULL ? (size_t)(next - content) : strlen(content);
        mb_dialog_text_strip(&content, &n);
        if (role == before) MB_RAISE(MB_EDATA, "two turns of the %s follow each other", mb_role_name(role));
        if (n == 0) MB_RAISE(MB_EDATA, "a turn of the %s is empty", mb_role_name(role));
        MB_TRY(mb_dialog_build_turn(dialog, role, content, n));
        before = role;
        at = next;
    }
    if (before != MB_ROLE_ASSISTANT) MB_RAISE(MB_EDATA, "the dialog does not end with an answer");
done:
    return status;
}

/* ---- 2 prompt ---- */

mb_status mb_dialog_pair_prompt(const json_t *record, const mb_field_map *map, mb_dialog *dialog,
                                bool *out_found)
{
    mb_status status = MB_OK;
    static const char *const lists[] = {"conversations", "messages", "prompt"};
    *out_found = true;
    MB_TRY(mb_dialog_build_system(dialog, record, map));
    for (size_t i = 0; i < 3; i++) {
        const json_t *list = mb_dialog_build_field(record, map, lists[i]);
        if (!json_is_array(list)) continue;
        MB_TRY(mb_dialog_messages_add(dialog, list, map, true));
        const mb_role last = dialog->count > 0 ? dialog->turns[dialog->count - 1].role : MB_ROLE_ASSISTANT;
        if (last != MB_ROLE_USER && last != MB_ROLE_TOOL)
            MB_RAISE(MB_EDATA, "field \"%s\" does not end with a question", lists[i]);
        return MB_OK;
    }
    if (mb_dialog_build_field(record, map, "prompt") != NULL)
        return mb_dialog_build_add(dialog, MB_ROLE_USER, record, map, "prompt");
    if (mb_dialog_build_field(record, map, "instruction") != NULL)
        return mb_dialog_build_instruction(dialog, record, map);
    if (mb_dialog_build_field(record, map, "question") != NULL)
        return mb_dialog_build_add(dialog, MB_ROLE_USER, record, map, "question");
    *out_found = false;
done:
    return status;
}

/* ---- 3 sides ---- */

static mb_status add_list_side(mb_dialog *dialog, const json_t *record, const json_t *side,
                               const mb_field_map *map, bool has_prompt, const char *name)
{
    mb_status status = MB_OK;
    const json_t *last = json_array_get(side, json_array_size(side) - 1);
    if (json_array_size(side) == 0) MB_RAISE(MB_EDATA, "field \"%s\" is empty", name);
    if (has_prompt && json_array_size(side) > 1) {
        /* whole dialogs that repeat the prompt: they stand for themselves */
        mb_dialog_build_reset(dialog);
        MB_TRY(mb_dialog_build_system(dialog, record, map));
        has_prompt = false;
    }
    if (has_prompt) return mb_dialog_messages_add_answer(dialog, last, map);
    MB_TRY(mb_dialog_messages_add(dialog, side, map, true));
    if (dialog->turns[dialog->count - 1].role != MB_ROLE_ASSISTANT)
        MB_RAISE(MB_EDATA, "field \"%s\" does not end with an answer", name);
done:
    return status;
}

mb_status mb_dialog_pair_read(const json_t *record, const mb_field_map *map, const char *side,
                              mb_dialog *dialog)
{
    mb_status status = MB_OK;
    char theirs[64];
    bool has_prompt = false;
    const json_t *value = mb_dialog_build_field(record, map, side);
    mb_dialog_build_name(map, side, theirs);
    if (value == NULL) MB_RAISE(MB_EDATA, "field \"%s\" is missing", theirs);
    MB_TRY(mb_dialog_pair_prompt(record, map, dialog, &has_prompt));
    if (json_is_array(value)) {
        MB_TRY(add_list_side(dialog, record, value, map, has_prompt, theirs));
    } else if (json_is_object(value)) {
        if (!has_prompt)
            MB_RAISE(MB_EDATA,
                     "what was asked is missing (conversations, messages, prompt, instruction or question)");
        MB_TRY(mb_dialog_messages_add_answer(dialog, value, map));
    } else if (!has_prompt && json_is_string(value) &&
               mb_str_is_prefix(json_string_value(value), human_mark)) {
        MB_TRY(add_marked_text(dialog, json_string_value(value)));
    } else {
        if (!has_prompt)
            MB_RAISE(MB_EDATA,
                     "what was asked is missing (conversations, messages, prompt, instruction or question)");
        MB_TRY(mb_dialog_build_add(dialog, MB_ROLE_ASSISTANT, record, map, side));
    }
done:
    return status;
}
