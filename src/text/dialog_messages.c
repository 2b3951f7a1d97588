/* dialog_messages: lists of messages, OpenAI's (role, content, tool_calls) and ShareGPT's (from, value), and
 * tool descriptions.
 *
 * Contents: 1 roles  2 content  3 tool calls  4 messages and their order  5 tools
 */
#include <string.h>

#include "text/dialog_build.h"
#include "text/dialog_text.h"

/* ---- 1 roles ---- */

typedef struct role_name {
    const char *name;
    mb_role role;
    bool call;
} role_name;

static const role_name role_names[] = {
    {"system", MB_ROLE_SYSTEM, false},       {"developer", MB_ROLE_SYSTEM, false},
    {"user", MB_ROLE_USER, false},           {"human", MB_ROLE_USER, false},
    {"assistant", MB_ROLE_ASSISTANT, false}, {"gpt", MB_ROLE_ASSISTANT, false},
    {"model", MB_ROLE_ASSISTANT, false},     {"function_call", MB_ROLE_ASSISTANT, true},
    {"tool", MB_ROLE_TOOL, false},           {"observation", MB_ROLE_TOOL, false},
    {"function", MB_ROLE_TOOL, false},       {"ipython", MB_ROLE_TOOL, false},
};

/* A message's field under either of its names. */
static const json_t *member(const json_t *message, const mb_field_map *map, const char *name,
                            const char *other)
{
    const json_t *value = mb_dialog_build_field(message, map, name);
    return value != NULL ? value : mb_dialog_build_field(message, map, other);
}

static mb_status get_role(const json_t *message, const mb_field_map *map, size_t number,
                          const role_name **out_role)
{
    mb_status status = MB_OK;
    if (!json_is_object(message)) MB_RAISE(MB_EDATA, "message %zu is not an object", number);
    const char *name = json_string_value(member(message, map, "role", "from"));
    if (name == NULL) MB_RAISE(MB_EDATA, "message %zu has no role (field \"role\" or \"from\")", number);
    for (size_t i = 0; i < sizeof role_names / sizeof *role_names; i++)
        if (strcmp(name, role_names[i].name) == 0) {
            *out_role = &role_names[i];
            return MB_OK;
        }
    MB_RAISE(MB_EDATA, "message %zu has the unknown role \"%s\"", number, name);
done:
    return status;
}

/* ---- 2 content ---- */

/* Text, or a list of {"type": "text", "text": ..} parts. */
static mb_status add_content(const json_t *content, size_t number, mb_str *s)
{
    mb_status status = MB_OK;
    if (json_is_string(content))
        return mb_str_append(s, json_string_value(content), json_string_length(content));
    if (content != NULL && !json_is_array(content))
        MB_RAISE(MB_EDATA, "message %zu: its content is not text", number);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const json_t *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!json_is_string(text) || (type != NULL && strcmp(type, "text") != 0))
            MB_RAISE(MB_EDATA, "message %zu: part %zu of its content is no text%s%s", number, i + 1,
                     type != NULL ? " but " : "", type != NULL ? type : "");
        MB_TRY(mb_str_append(s, json_string_value(text), json_string_length(text)));
    }
done:
    return status;
}

/* ---- 3 tool calls ---- */

/* Arguments come as an object, or as its JSON text. */
static mb_status add_arguments(const json_t *arguments, mb_str *s)
{
    if (!json_is_string(arguments))
        return arguments != NULL ? mb_dialog_text_json(arguments, s) : mb_str_add(s, "{}");
    json_t *parsed = json_loadb(json_string_value(arguments), json_string_length(arguments), 0, NULL);
    const mb_status status =
        parsed != NULL ? mb_dialog_text_json(parsed, s)
                       : mb_str_append(s, json_string_value(arguments), json_string_length(arguments));
    json_decref(parsed);
    return status;
}

static mb_status add_call(mb_dialog *dialog, const json_t *call, size_t number)
{
    mb_status status = MB_OK;
    const json_t *function = json_object_get(call, "function");
    if (function == NULL) function = call;
    const json_t *name = json_object_get(function, "name");
    if (!json_is_string(name)) MB_RAISE(MB_EDATA, "message %zu: a tool call has no name", number);
    MB_TRY(mb_dialog_build_begin(dialog, MB_ROLE_ASSISTANT));
    dialog->turns[dialog->count - 1].call = true;
    MB_TRY(mb_str_add(&dialog->text, "{\"name\": "));
    MB_TRY(mb_dialog_text_json(name, &dialog->text));
    MB_TRY(mb_str_add(&dialog->text, ", \"arguments\": "));
    MB_TRY(add_arguments(json_object_get(function, "arguments"), &dialog->text));
    MB_TRY(mb_str_add(&dialog->text, "}"));
    MB_TRY(mb_dialog_build_end(dialog));
done:
    return status;
}

static mb_status add_calls(mb_dialog *dialog, const json_t *calls, size_t number)
{
    mb_status status = MB_OK;
    if (!json_is_array(calls)) return add_call(dialog, calls, number);
    for (size_t i = 0; i < json_array_size(calls); i++)
        MB_TRY(add_call(dialog, json_array_get(calls, i), number));
done:
    return status;
}

/* ShareGPT's function_call: the call, or a list of calls, as JSON text. */
static mb_status add_call_text(mb_dialog *dialog, const json_t *content, size_t number)
{
    mb_status status = MB_OK;
    json_t *calls = NULL;
    if (!json_is_string(content)) MB_RAISE(MB_EDATA, "message %zu: its tool call is not text", number);
    calls = json_loadb(json_string_value(content), json_string_length(content), 0, NULL);
    if (calls == NULL) MB_RAISE(MB_EDATA, "message %zu: its tool call is not JSON", number);
    MB_TRY(add_calls(dialog, calls, number));
done:
    json_decref(calls);
    return status;
}

/* ---- 4 messages and their order ---- */

static mb_status add_message(mb_dialog *dialog, const json_t *message, const mb_field_map *map,
                             const role_name *role, size_t number)
{
    mb_status status = MB_OK;
    const int64_t first = dialog->count;
    const json_t *content = member(message, map, "content", "value");
    const json_t *weight = json_object_get(message, "weight");
    const json_t *calls = role->role == MB_ROLE_ASSISTANT ? json_object_get(message, "tool_calls") : NULL;
    if (role->call) {
        MB_TRY(add_call_text(dialog, content, number));
    } else {
        const size_t before = dialog->text.length;
        MB_TRY(mb_dialog_build_begin(dialog, role->role));
        MB_TRY(add_content(content, number, &dialog->text));
        const bool empty = dialog->text.length == before;
        if (empty && json_array_size(calls) == 0)
            MB_RAISE(MB_EDATA, "message %zu (%s) is empty", number, mb_role_name(role->role));
        if (empty)
            dialog->count--;
        else
            MB_TRY(mb_dialog_build_end(dialog));
    }
    if (json_array_size(calls) > 0) MB_TRY(add_calls(dialog, calls, number));
    if (weight != NULL && json_is_number(weight) && json_number_value(weight) == 0)
        for (int64_t i = first; i < dialog->count; i++) dialog->turns[i].learn = false;
done:
    return status;
}

/* May `role` follow `before`? MB_ROLE_TEXT stands for the start of the dialog. */
static bool is_order(mb_role before, mb_role role)
{
    switch (role) {
    case MB_ROLE_USER:
        return before == MB_ROLE_TEXT || before == MB_ROLE_SYSTEM || before == MB_ROLE_ASSISTANT;
    case MB_ROLE_TOOL:
        return before == MB_ROLE_ASSISTANT || before == MB_ROLE_TOOL;
    case MB_ROLE_ASSISTANT:
        return before == MB_ROLE_USER || before == MB_ROLE_TOOL;
    default:
        return before == MB_ROLE_TEXT;
    }
}

/* Turns behind the last answer have nothing to learn from them. */
static void drop_open_turns(mb_dialog *dialog)
{
    while (dialog->count > 0 && dialog->turns[dialog->count - 1].role != MB_ROLE_ASSISTANT) {
        dialog->count--;
        dialog->text.length -= dialog->turns[dialog->count].length + 1;
    }
}

mb_status mb_dialog_messages_add(mb_dialog *dialog, const json_t *messages, const mb_field_map *map,
                                 bool keep_open)
{
    mb_status status = MB_OK;
    mb_role before = dialog->count > 0 ? dialog->turns[dialog->count - 1].role : MB_ROLE_TEXT;
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        const role_name *role;
        MB_TRY(get_role(message, map, i + 1, &role));
        if (!is_order(before, role->role))
            MB_RAISE(MB_EDATA, "message %zu: %s may not %s%s", i + 1, mb_role_name(role->role),
                     before == MB_ROLE_TEXT ? "begin a dialog" : "follow ",
                     before == MB_ROLE_TEXT ? "" : mb_role_name(before));
        before = role->role;
        MB_TRY(add_message(dialog, message, map, role, i + 1));
    }
    if (keep_open) return MB_OK;
    drop_open_turns(dialog);
    if (dialog->count == 0) MB_RAISE(MB_EDATA, "the dialog has no answer to learn from");
done:
    return status;
}

mb_status mb_dialog_messages_add_answer(mb_dialog *dialog, const json_t *message, const mb_field_map *map)
{
    mb_status status = MB_OK;
    const role_name *role;
    MB_TRY(get_role(message, map, 1, &role));
    if (role->role != MB_ROLE_ASSISTANT)
        MB_RAISE(MB_EDATA, "an answer has the role \"%s\"", mb_role_name(role->role));
    MB_TRY(add_message(dialog, message, map, role, 1));
done:
    return status;
}

/* ---- 5 tools ---- */

/* One description; wrapped as {"type": "function", "function": ..} unless it is so already. */
static mb_status add_tool(const json_t *tool, mb_str *s)
{
    mb_status status = MB_OK;
    const char *type = json_string_value(json_object_get(tool, "type"));
    const bool wrapped = type != NULL && strcmp(type, "function") == 0;
    if (s->length > 0) MB_TRY(mb_str_add(s, "\n"));
    if (!wrapped) MB_TRY(mb_str_add(s, "{\"type\": \"function\", \"function\": "));
    MB_TRY(mb_dialog_text_json(tool, s));
    if (!wrapped) MB_TRY(mb_str_add(s, "}"));
done:
    return status;
}

mb_status mb_dialog_messages_tools(const json_t *record, const mb_field_map *map, mb_str *s)
{
    mb_status status = MB_OK;
    const json_t *tools = mb_dialog_build_field(record, map, "tools");
    json_t *parsed = NULL;
    if (json_is_string(tools)) {
        parsed = json_loadb(json_string_value(tools), json_string_length(tools), 0, NULL);
        if (parsed == NULL) return mb_str_append(s, json_string_value(tools), json_string_length(tools));
        tools = parsed;
    }
    if (json_is_object(tools) && json_object_size(tools) > 0) MB_TRY(add_tool(tools, s));
    for (size_t i = 0; i < json_array_size(tools); i++) MB_TRY(add_tool(json_array_get(tools, i), s));
done:
    json_decref(parsed);
    return status;
}
