/* dialog_tree: a conversation tree of OpenAssistant (oasst1, oasst2: one tree per record) -> its best path.
 *
 * Contents: 1 choosing a reply  2 the path
 * A tree's root is `prompt`; every node has text, role (prompter, assistant), replies and, among siblings, a
 * rank (0 best).
 */
#include <string.h>

#include "text/dialog_build.h"

/* ---- 1 choosing a reply ---- */

/* The reply with the lowest rank; unranked ones come behind, the first of equals wins; deleted ones do not
 * count. */
static const json_t *best_reply(const json_t *node)
{
    const json_t *replies = json_object_get(node, "replies"), *best = NULL;
    json_int_t best_rank = 0;
    for (size_t i = 0; i < json_array_size(replies); i++) {
        const json_t *reply = json_array_get(replies, i);
        const json_t *rank = json_object_get(reply, "rank");
        const json_int_t value = json_is_integer(rank) ? json_integer_value(rank) : INT32_MAX;
        if (json_is_true(json_object_get(reply, "deleted")) || (best != NULL && value >= best_rank)) continue;
        best = reply;
        best_rank = value;
    }
    return best;
}

/* ---- 2 the path ---- */

static mb_status add_node(mb_dialog *dialog, const json_t *node, int64_t depth)
{
    mb_status status = MB_OK;
    const json_t *text = json_object_get(node, "text");
    const char *role = json_string_value(json_object_get(node, "role"));
    const bool asks = depth % 2 == 0;
    if (role == NULL || strcmp(role, asks ? "prompter" : "assistant") != 0)
        MB_RAISE(MB_EDATA, "message %lld of the tree's best path has the role \"%s\" where %s is due",
                 (long long)depth + 1, role != NULL ? role : "", asks ? "prompter" : "assistant");
    if (!json_is_string(text) || json_string_length(text) == 0)
        MB_RAISE(MB_EDATA, "message %lld of the tree's best path has no text", (long long)depth + 1);
    MB_TRY(mb_dialog_build_turn(dialog, asks ? MB_ROLE_USER : MB_ROLE_ASSISTANT, json_string_value(text),
                                json_string_length(text)));
done:
    return status;
}

mb_status mb_dialog_tree_read(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    mb_status status = MB_OK;
    const json_t *node = mb_dialog_build_field(record, map, "prompt");
    if (!json_is_object(node)) MB_RAISE(MB_EDATA, "field \"prompt\" is missing or no message of a tree");
    for (int64_t depth = 0; node != NULL; depth++) {
        const json_t *reply = best_reply(node);
        if (depth % 2 == 0 && reply == NULL) break; /* a question nobody answered */
        MB_TRY(add_node(dialog, node, depth));
        node = reply;
    }
    if (dialog->count == 0) MB_RAISE(MB_EDATA, "the dialog has no answer to learn from");
done:
    return status;
}
