/* dialog: see the header.
 *
 * Contents: 1 turns  2 fields  3 simple forms  4 recognising the form  5 read
 */
#include "text/dialog.h"

#include <string.h>

#include "base/memory.h"
#include "text/dialog_build.h"

/* ---- 1 turns ---- */

const char *mb_role_name(mb_role role)
{
    static const char *const names[] = {"text", "system", "user", "assistant", "tool"};
    return names[role];
}

void mb_dialog_destroy(mb_dialog *dialog)
{
    mb_free(dialog->turns);
    mb_str_destroy(&dialog->text);
    *dialog = (mb_dialog){0};
}

void mb_dialog_build_reset(mb_dialog *dialog)
{
    dialog->count = 0;
    dialog->tools = NULL;
    mb_str_reset(&dialog->text);
}

/* While a dialog is built, length holds the offset in the storage where the open turn began. */
mb_status mb_dialog_build_begin(mb_dialog *dialog, mb_role role)
{
    mb_status status = MB_OK;
    if (dialog->count == dialog->capacity) {
        const int64_t capacity = dialog->capacity * 2 + 8;
        mb_turn *turns = mb_realloc(dialog->turns, (size_t)capacity, sizeof *turns);
        if (turns == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld turns", (long long)capacity);
        dialog->turns = turns;
        dialog->capacity = capacity;
    }
    dialog->turns[dialog->count++] = (mb_turn){
        .role = role,
        .length = dialog->text.length,
        .learn = role == MB_ROLE_ASSISTANT || role == MB_ROLE_TEXT,
    };
done:
    return status;
}

mb_status mb_dialog_build_end(mb_dialog *dialog)
{
    mb_turn *turn = &dialog->turns[dialog->count - 1];
    turn->length = dialog->text.length - turn->length;
    return mb_str_append(&dialog->text, "", 1);
}

mb_status mb_dialog_build_turn(mb_dialog *dialog, mb_role role, const char *text, size_t n)
{
    mb_status status = MB_OK;
    MB_TRY(mb_dialog_build_begin(dialog, role));
    MB_TRY(mb_str_append(&dialog->text, text, n));
    MB_TRY(mb_dialog_build_end(dialog));
done:
    return status;
}

mb_status mb_dialog_build_finish(mb_dialog *dialog, const mb_str *opt_tools)
{
    mb_status status = MB_OK;
    const size_t tools_at = dialog->text.length;
    const bool has_tools = opt_tools != NULL && opt_tools->length > 0;
    if (has_tools) MB_TRY(mb_str_append(&dialog->text, opt_tools->data, opt_tools->length + 1));
    const char *at = mb_str_text(&dialog->text);
    for (int64_t i = 0; i < dialog->count; i++) {
        dialog->turns[i].text = at;
        at += dialog->turns[i].length + 1;
    }
    dialog->tools = has_tools ? dialog->text.data + tools_at : NULL;
done:
    return status;
}

/* ---- 2 fields ---- */

static const char *const field_names[] = {
    "text",   "instruction", "input",         "output",   "system",         "history", "messages",
    "role",   "content",     "conversations", "from",     "value",          "tools",   "question",
    "answer", "prompt",      "chosen",        "rejected", "message_tree_id"};

/* Their name of our field in "ours=theirs,...": its start and length; our own name when it is not mapped. */
static const char *mapped(const mb_field_map *map, const char *name, size_t *out_length)
{
    const size_t n = strlen(name);
    for (const char *p = map != NULL ? map->fields : NULL; p != NULL && *p != 0; p = strchr(p, ',')) {
        p += strspn(p, ", ");
        if (strncmp(p, name, n) != 0 || p[n] != '=') continue;
        *out_length = strcspn(p + n + 1, ",");
        return p + n + 1;
    }
    *out_length = n;
    return name;
}

const char *mb_dialog_build_name(const mb_field_map *map, const char *name, char out_name[64])
{
    size_t n;
    const char *theirs = mapped(map, name, &n);
    snprintf(out_name, 64, "%.*s", (int)n, theirs);
    return out_name;
}

const json_t *mb_dialog_build_field(const json_t *object, const mb_field_map *map, const char *name)
{
    char theirs[64];
    const json_t *value = json_object_get(object, mb_dialog_build_name(map, name, theirs));
    return json_is_null(value) ? NULL : value;
}

static mb_status check_map(const mb_field_map *map)
{
    mb_status status = MB_OK;
    for (const char *p = map != NULL ? map->fields : NULL; p != NULL && *p != 0; p = strchr(p, ',')) {
        char ours[32];
        p += strspn(p, ", ");
        if (*p == 0) break;
        const size_t n = strcspn(p, "=,");
        snprintf(ours, sizeof ours, "%.*s", (int)n, p);
        const size_t theirs = p[n] == '=' ? strcspn(p + n + 1, ",") : 0;
        if (theirs == 0 || theirs > 63)
            MB_RAISE(MB_EUSAGE, "field map \"%s\": write %s=<name of at most 63 bytes>", map->fields, ours);
        bool known = false;
        for (size_t i = 0; i < sizeof field_names / sizeof *field_names; i++)
            known |= strcmp(ours, field_names[i]) == 0;
        const char *nearest = mb_str_nearest(ours, field_names, sizeof field_names / sizeof *field_names);
        if (!known)
            MB_RAISE(MB_EUSAGE, "field map \"%s\": there is no field \"%s\" of ours%s%s", map->fields, ours,
                     nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "");
    }
done:
    return status;
}

/* A field that must hold some text. */
static mb_status get_text(const json_t *record, const mb_field_map *map, const char *name,
                          const json_t **out_text)
{
    mb_status status = MB_OK;
    char theirs[64];
    const json_t *value = mb_dialog_build_field(record, map, name);
    mb_dialog_build_name(map, name, theirs);
    if (value == NULL) MB_RAISE(MB_EDATA, "field \"%s\" is missing", theirs);
    if (!json_is_string(value)) MB_RAISE(MB_EDATA, "field \"%s\" is not text", theirs);
    if (json_string_length(value) == 0) MB_RAISE(MB_EDATA, "field \"%s\" is empty", theirs);
    *out_text = value;
done:
    return status;
}

mb_status mb_dialog_build_add(mb_dialog *dialog, mb_role role, const json_t *record, const mb_field_map *map,
                              const char *name)
{
    mb_status status = MB_OK;
    const json_t *text;
    MB_TRY(get_text(record, map, name, &text));
    MB_TRY(mb_dialog_build_turn(dialog, role, json_string_value(text), json_string_length(text)));
done:
    return status;
}

/* ---- 3 simple forms ---- */

mb_status mb_dialog_build_system(mb_dialog *dialog, const json_t *record, const mb_field_map *map)
{
    const json_t *text = mb_dialog_build_field(record, map, "system");
    if (text == NULL || (json_is_string(text) && json_string_length(text) == 0)) return MB_OK;
    return mb_dialog_build_add(dialog, MB_ROLE_SYSTEM, record, map, "system");
}

/* `history`: earlier [question, answer] pairs. */
static mb_status add_history(mb_dialog *dialog, const json_t *record, const mb_field_map *map)
{
    mb_status status = MB_OK;
    const json_t *history = mb_dialog_build_field(record, map, "history");
    if (history == NULL) return MB_OK;
    if (!json_is_array(history)) MB_RAISE(MB_EDATA, "field \"history\" is not a list");
    for (size_t i = 0; i < json_array_size(history); i++) {
        const json_t *pair = json_array_get(history, i);
        for (size_t k = 0; k < 2; k++) {
            const json_t *text = json_array_get(pair, k);
            if (json_array_size(pair) != 2 || !json_is_string(text) || json_string_length(text) == 0)
                MB_RAISE(MB_EDATA, "history: entry %zu is not a pair of texts", i + 1);
            MB_TRY(mb_dialog_build_turn(dialog, k == 0 ? MB_ROLE_USER : MB_ROLE_ASSISTANT,
                                        json_string_value(text), json_string_length(text)));
        }
    }
done:
    return status;
}

mb_status mb_dialog_build_instruction(mb_dialog *dialog, const json_t *record, const mb_field_map *map)
{
    mb_status status = MB_OK;
    const json_t *instruction;
    const json_t *input = mb_dialog_build_field(record, map, "input");
    MB_TRY(get_text(record, map, "instruction", &instruction));
    if (input != NULL && !json_is_string(input)) MB_RAISE(MB_EDATA, "field \"input\" is not text");
    MB_TRY(mb_dialog_build_begin(dialog, MB_ROLE_USER));
    MB_TRY(mb_str_append(&dialog->text, json_string_value(instruction), json_string_length(instruction)));
    if (json_string_length(input) > 0) {
        MB_TRY(mb_str_append(&dialog->text, "\n", 1));
        dialog->turns[dialog->count - 1].input = json_string_length(instruction) + 1;
        MB_TRY(mb_str_append(&dialog->text, json_string_value(input), json_string_length(input)));
    }
    MB_TRY(mb_dialog_build_end(dialog));
done:
    return status;
}

static mb_status read_text(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    return mb_dialog_build_add(dialog, MB_ROLE_TEXT, record, map, "text");
}

static mb_status read_two(const json_t *record, const mb_field_map *map, mb_dialog *dialog, const char *asked,
                          const char *answer)
{
    mb_status status = MB_OK;
    MB_TRY(mb_dialog_build_system(dialog, record, map));
    MB_TRY(mb_dialog_build_add(dialog, MB_ROLE_USER, record, map, asked));
    MB_TRY(mb_dialog_build_add(dialog, MB_ROLE_ASSISTANT, record, map, answer));
done:
    return status;
}

static mb_status read_io(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    return read_two(record, map, dialog, "input", "output");
}

static mb_status read_qa(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    return read_two(record, map, dialog, "question", "answer");
}

static mb_status read_alpaca(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    mb_status status = MB_OK;
    MB_TRY(mb_dialog_build_system(dialog, record, map));
    MB_TRY(add_history(dialog, record, map));
    MB_TRY(mb_dialog_build_instruction(dialog, record, map));
    MB_TRY(mb_dialog_build_add(dialog, MB_ROLE_ASSISTANT, record, map, "output"));
done:
    return status;
}

static mb_status read_list(const json_t *record, const mb_field_map *map, mb_dialog *dialog, const char *name)
{
    mb_status status = MB_OK;
    char theirs[64];
    const json_t *list = mb_dialog_build_field(record, map, name);
    mb_dialog_build_name(map, name, theirs);
    if (list == NULL) MB_RAISE(MB_EDATA, "field \"%s\" is missing", theirs);
    if (!json_is_array(list)) MB_RAISE(MB_EDATA, "field \"%s\" is not a list of messages", theirs);
    MB_TRY(mb_dialog_build_system(dialog, record, map));
    MB_TRY(mb_dialog_messages_add(dialog, list, map, false));
done:
    return status;
}

static mb_status read_messages(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    return read_list(record, map, dialog, "messages");
}

static mb_status read_sharegpt(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    return read_list(record, map, dialog, "conversations");
}

static mb_status read_pair(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    return mb_dialog_pair_read(record, map, "chosen", dialog);
}

/* ---- 4 recognising the form ---- */

typedef struct form {
    const char *name;
    const char *first, *second; /* fields that tell it */
    mb_status (*read)(const json_t *record, const mb_field_map *map, mb_dialog *dialog);
} form;

/* In the order `auto` tries them. */
static const form forms[] = {
    {"pair", "chosen", "rejected", read_pair},
    {"oasst", "prompt", "message_tree_id", mb_dialog_tree_read},
    {"sharegpt", "conversations", NULL, read_sharegpt},
    {"messages", "messages", NULL, read_messages},
    {"alpaca", "instruction", "output", read_alpaca},
    {"qa", "question", "answer", read_qa},
    {"io", "input", "output", read_io},
    {"text", "text", NULL, read_text},
};
enum { FORM_COUNT = sizeof forms / sizeof *forms };

static mb_status find_form(const json_t *record, const mb_field_map *map, const form **out_form)
{
    mb_status status = MB_OK;
    const char *name = map != NULL && map->form != NULL ? map->form : "auto";
    const bool is_auto = strcmp(name, "auto") == 0;
    for (int i = 0; i < FORM_COUNT; i++) {
        const bool fits =
            mb_dialog_build_field(record, map, forms[i].first) != NULL &&
            (forms[i].second == NULL || mb_dialog_build_field(record, map, forms[i].second) != NULL);
        if (is_auto ? fits : strcmp(name, forms[i].name) == 0) {
            *out_form = &forms[i];
            return MB_OK;
        }
    }
    if (!is_auto)
        MB_RAISE(MB_EUSAGE,
                 "there is no record form \"%s\"; take auto, text, io, alpaca, messages, sharegpt, qa, pair "
                 "or oasst",
                 name);
    MB_RAISE(MB_EDATA, "none of the known forms fits its fields (text; input, output; instruction, output; "
                       "messages; conversations; "
                       "question, answer; chosen, rejected); name them in the field map");
done:
    return status;
}

/* ---- 5 read ---- */

mb_status mb_dialog_read(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    mb_status status = MB_OK;
    mb_str tools = MB_STR_EMPTY;
    const form *found = NULL;
    mb_dialog_build_reset(dialog);
    MB_TRY(check_map(map));
    if (!json_is_object(record)) MB_RAISE(MB_EDATA, "the record is not a JSON object");
    MB_TRY(find_form(record, map, &found));
    MB_TRY(found->read(record, map, dialog));
    MB_TRY(mb_dialog_messages_tools(record, map, &tools));
    MB_TRY(mb_dialog_build_finish(dialog, &tools));
done:
    if (status != MB_OK) mb_dialog_build_reset(dialog);
    mb_str_destroy(&tools);
    return status;
}

mb_status mb_dialog_read_prompt(const json_t *record, const mb_field_map *map, mb_dialog *dialog)
{
    mb_status status = MB_OK;
    mb_str tools = MB_STR_EMPTY;
    bool found = false;
    mb_dialog_build_reset(dialog);
    MB_TRY(check_map(map));
    if (!json_is_object(record)) MB_RAISE(MB_EDATA, "the record is not a JSON object");
    MB_TRY(mb_dialog_pair_prompt(record, map, dialog, &found));
    if (!found) MB_TRY(read_text(record, map, dialog));
    MB_TRY(mb_dialog_messages_tools(record, map, &tools));
    MB_TRY(mb_dialog_build_finish(dialog, &tools));
done:
    if (status != MB_OK) mb_dialog_build_reset(dialog);
    mb_str_destroy(&tools);
    return status;
}

static mb_status read_side(const json_t *record, const mb_field_map *map, const char *side, mb_dialog *dialog)
{
    mb_status status = MB_OK;
    mb_str tools = MB_STR_EMPTY;
    mb_dialog_build_reset(dialog);
    MB_TRY(mb_dialog_pair_read(record, map, side, dialog));
    MB_TRY(mb_dialog_messages_tools(record, map, &tools));
    MB_TRY(mb_dialog_build_finish(dialog, &tools));
    int64_t last = dialog->count - 1;
    while (last > 0 && dialog->turns[last].call && dialog->turns[last - 1].role == MB_ROLE_ASSISTANT) last--;
    for (int64_t i = 0; i < last; i++) dialog->turns[i].learn = false;
done:
    if (status != MB_OK) mb_dialog_build_reset(dialog);
    mb_str_destroy(&tools);
    return status;
}

mb_status mb_dialog_read_pair(const json_t *record, const mb_field_map *map, mb_dialog *chosen,
                              mb_dialog *rejected)
{
    mb_status status = MB_OK;
    MB_TRY(check_map(map));
    if (!json_is_object(record)) MB_RAISE(MB_EDATA, "the record is not a JSON object");
    MB_TRY(read_side(record, map, "chosen", chosen));
    MB_TRY(read_side(record, map, "rejected", rejected));
done:
    return status;
}
