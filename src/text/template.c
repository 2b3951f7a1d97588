/* template: see the header.
 *
 * Contents: 1 open, close, find  2 output  3 system block  4 contents  5 blocks  6 render
 */
#include "text/template.h"

#include <string.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/dialog_text.h"
#include "text/template_file.h"

/* ---- 1 open, close, find ---- */

void mb_template_close(mb_template **tmpl)
{
    if (*tmpl == NULL) return;
    json_decref((*tmpl)->json);
    MB_FREE(*tmpl);
}

const char *mb_template_name(const mb_template *tmpl)
{
    return tmpl->name;
}

const char *mb_template_hash(const mb_template *tmpl)
{
    return tmpl->hash;
}

static mb_status open_file(const char *path, mb_template **out_template)
{
    mb_status status = MB_OK;
    mb_template *tmpl = NULL;
    MB_NEW(tmpl);
    MB_TRY(mb_template_file_read(path, tmpl));
    *out_template = tmpl;
    tmpl = NULL;
done:
    mb_template_close(&tmpl);
    return status;
}

static mb_status fail_not_found(const char *folder, const char *name)
{
    mb_status status = MB_OK;
    mb_str list = MB_STR_EMPTY;
    char **names = NULL;
    int64_t count = 0;
    MB_TRY(mb_files_list(folder, &names, &count));
    for (int64_t i = 0; i < count; i++)
        if (mb_str_is_suffix(names[i], ".json"))
            MB_TRY(mb_str_add_format(&list, "%s%.*s", list.length > 0 ? ", " : "", (int)strlen(names[i]) - 5,
                                     names[i]));
    MB_RAISE(MB_ENOTFOUND, "there is no chat template \"%s\" in %s (there are: %s)", name, folder,
             mb_str_text(&list));
done:
    mb_files_free_names(&names, count);
    mb_str_destroy(&list);
    return status;
}

mb_status mb_template_open(const char *folder, const char *name_or_path, mb_template **out_template)
{
    mb_status status = MB_OK;
    char *path = mb_str_is_suffix(name_or_path, ".json") ? mb_strdup(name_or_path)
                                                         : mb_str_format("%s/%s.json", folder, name_or_path);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for the name of a template");
    if (!mb_files_is_file(path) && !mb_str_is_suffix(name_or_path, ".json"))
        MB_TRY(fail_not_found(folder, name_or_path));
    MB_TRY(open_file(path, out_template));
done:
    mb_free(path);
    return status;
}

static bool has_jinja(const mb_template *tmpl, const char *hash)
{
    const json_t *hashes = json_object_get(tmpl->json, "jinja_hashes");
    for (size_t i = 0; i < json_array_size(hashes); i++)
        if (mb_str_equal(json_string_value(json_array_get(hashes, i)), hash)) return true;
    return false;
}

mb_status mb_template_find_by_jinja(const char *folder, const char *jinja_text, char **out_name)
{
    mb_status status = MB_OK;
    mb_template *tmpl = NULL;
    char *path = NULL, *found = NULL;
    char **names = NULL;
    char hash[MB_HASH_TEXT];
    int64_t count = 0;
    mb_hash_bytes(jinja_text, strlen(jinja_text), hash);
    MB_TRY(mb_files_list(folder, &names, &count));
    for (int64_t i = 0; i < count && found == NULL; i++) {
        if (!mb_str_is_suffix(names[i], ".json")) continue;
        mb_free(path);
        path = mb_files_join(folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for the name of a template");
        MB_TRY(open_file(path, &tmpl));
        if (has_jinja(tmpl, hash) && (found = mb_strdup(tmpl->name)) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for the name of a template");
        mb_template_close(&tmpl);
    }
    *out_name = found;
done:
    mb_template_close(&tmpl);
    mb_files_free_names(&names, count);
    mb_free(path);
    return status;
}

/* ---- 2 output ---- */

void mb_rendered_destroy(mb_rendered *rendered)
{
    mb_str_destroy(&rendered->text);
    mb_free(rendered->ranges);
    *rendered = (mb_rendered){0};
}

/* What one rendering works with. */
typedef struct job {
    const mb_template *tmpl;
    const mb_dialog *dialog;
    const char *bos, *eos;
    mb_rendered *out;
    mb_str scratch;
    int64_t
        last_question; /* index of the last user turn that is no tool result; count - 1 when there is none */
} job;

/* A piece of the file, "{bos}" and "{eos}" filled in. */
static mb_status add_piece(job *j, const char *piece)
{
    mb_status status = MB_OK;
    while (*piece != 0) {
        const char *bos = strstr(piece, "{bos}"), *eos = strstr(piece, "{eos}");
        const bool is_bos = bos != NULL && (eos == NULL || bos < eos);
        const char *at = is_bos ? bos : eos;
        if (at == NULL) return mb_str_add(&j->out->text, piece);
        MB_TRY(mb_str_append(&j->out->text, piece, (size_t)(at - piece)));
        MB_TRY(mb_str_add(&j->out->text, is_bos ? j->bos : j->eos));
        piece = at + 5;
    }
done:
    return status;
}

/* Everything from byte `first` to the end so far is learnt. */
static mb_status add_range(mb_rendered *out, size_t first)
{
    mb_status status = MB_OK;
    if (first >= out->text.length) return MB_OK;
    if (out->range_count > 0 && out->ranges[2 * out->range_count - 1] >= (int64_t)first) {
        out->ranges[2 * out->range_count - 1] = (int64_t)out->text.length;
        return MB_OK;
    }
    if (out->range_count == out->range_capacity) {
        const int64_t capacity = out->range_capacity * 2 + 8;
        int64_t *ranges = mb_realloc(out->ranges, (size_t)capacity, 2 * sizeof *ranges);
        if (ranges == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld ranges", (long long)capacity);
        out->ranges = ranges;
        out->range_capacity = capacity;
    }
    out->ranges[2 * out->range_count] = (int64_t)first;
    out->ranges[2 * out->range_count++ + 1] = (int64_t)out->text.length;
done:
    return status;
}

/* ---- 3 system block ---- */

static bool is_system(const mb_turn *turn)
{
    return turn->role == MB_ROLE_SYSTEM;
}

static const char *default_system(const job *j)
{
    const mb_dialog *dialog = j->dialog;
    for (int64_t i = 0; i < dialog->count && j->tmpl->default_system_input != NULL; i++)
        if (dialog->turns[i].role == MB_ROLE_USER)
            return dialog->turns[i].input > 0 ? j->tmpl->default_system_input : j->tmpl->default_system;
    return j->tmpl->default_system;
}

/* The system text (the dialog's, else the file's own) and the tools. Nothing when there is neither. */
static mb_status add_system(job *j)
{
    mb_status status = MB_OK;
    const mb_template *tmpl = j->tmpl;
    const mb_dialog *dialog = j->dialog;
    const bool own = dialog->count > 0 && is_system(&dialog->turns[0]);
    const char *text = own ? dialog->turns[0].text : default_system(j);
    size_t n = own ? dialog->turns[0].length : text != NULL ? strlen(text) : 0;
    if (text == NULL && dialog->tools == NULL) return MB_OK;
    if (dialog->tools != NULL && !tmpl->has_tools)
        MB_RAISE(MB_EUNSUPPORTED,
                 "template \"%s\" has no place for tools; take another template, or map tools to a field "
                 "that is not there",
                 tmpl->name);
    if (tmpl->strip && own && !tmpl->system_in_user) mb_dialog_text_strip(&text, &n);
    MB_TRY(add_piece(j, tmpl->system.before));
    if (text != NULL) MB_TRY(mb_str_append(&j->out->text, text, n));
    if (dialog->tools != NULL) {
        if (text != NULL) MB_TRY(add_piece(j, tmpl->tools.join));
        MB_TRY(add_piece(j, tmpl->tools.before));
        MB_TRY(mb_str_add(&j->out->text, dialog->tools));
        MB_TRY(add_piece(j, tmpl->tools.after));
    }
    MB_TRY(add_piece(j, tmpl->system.end));
    MB_TRY(add_piece(j, tmpl->system.after));
done:
    return status;
}

/* ---- 4 contents ---- */

static mb_status add_stripped(job *j, const char *text, size_t n)
{
    if (j->tmpl->strip) mb_dialog_text_strip(&text, &n);
    return mb_str_append(&j->out->text, text, n);
}

/* A question; with a system block inside it when the template wants that, white space is taken off the two
 * together. */
static mb_status add_question(job *j, const mb_turn *turn, bool is_first)
{
    mb_status status = MB_OK;
    const size_t first = j->out->text.length;
    const size_t instruction = turn->input > 0 ? turn->input - 1 : turn->length;
    mb_str_reset(&j->scratch);
    if (is_first && j->tmpl->system_in_user) MB_TRY(add_system(j));
    MB_TRY(mb_str_append(&j->out->text, turn->text, instruction));
    if (turn->input > 0) {
        MB_TRY(add_piece(j, j->tmpl->user.input));
        MB_TRY(mb_str_append(&j->out->text, turn->text + turn->input, turn->length - turn->input));
    }
    if (!j->tmpl->strip) goto done;
    MB_TRY(mb_str_append(&j->scratch, j->out->text.data + first, j->out->text.length - first));
    j->out->text.length = first;
    MB_TRY(add_stripped(j, mb_str_text(&j->scratch), j->scratch.length));
done:
    return status;
}

static void trim_lines(const char **text, size_t *n, bool before, bool after)
{
    for (; before && *n > 0 && **text == '\n'; (*n)--) (*text)++;
    for (; after && *n > 0 && (*text)[*n - 1] == '\n';) (*n)--;
}

static const char *find_last(const char *text, size_t n, const char *mark)
{
    const size_t length = strlen(mark);
    for (size_t i = n; i >= length; i--)
        if (memcmp(text + i - length, mark, length) == 0) return text + i - length;
    return NULL;
}

/* An answer that may hold <think>..</think>. */
static mb_status add_thought(job *j, const char *text, size_t n, bool is_behind, bool is_last)
{
    mb_status status = MB_OK;
    static const char open[] = "<think>", close[] = "</think>";
    const char *thought = "";
    size_t thought_length = 0;
    const char *first_close = memmem(text, n, close, sizeof close - 1);
    if (first_close != NULL) {
        const char *last_close = find_last(text, n, close);
        thought = text;
        thought_length = (size_t)(first_close - text);
        trim_lines(&thought, &thought_length, false, true);
        const char *last_open = find_last(thought, thought_length, open);
        if (last_open != NULL) {
            thought_length -= (size_t)(last_open - thought) + sizeof open - 1;
            thought = last_open + sizeof open - 1;
        }
        trim_lines(&thought, &thought_length, true, false);
        n -= (size_t)(last_close - text) + sizeof close - 1;
        text = last_close + sizeof close - 1;
        trim_lines(&text, &n, true, false);
    }
    const bool has_thought = thought_length > 0;
    if (is_behind && (is_last || has_thought)) {
        trim_lines(&thought, &thought_length, true, true);
        trim_lines(&text, &n, true, false);
        MB_TRY(mb_str_add(&j->out->text, "<think>\n"));
        MB_TRY(mb_str_append(&j->out->text, thought, thought_length));
        MB_TRY(mb_str_add(&j->out->text, "\n</think>\n\n"));
    }
    MB_TRY(mb_str_append(&j->out->text, text, n));
done:
    return status;
}

/* ---- 5 blocks ---- */

/* Turns from i on that make one block: tool results in a row, or an answer with its calls. */
static int64_t block_end(const mb_dialog *dialog, int64_t i)
{
    const mb_role role = dialog->turns[i].role;
    int64_t end = i + 1;
    if (role != MB_ROLE_TOOL && role != MB_ROLE_ASSISTANT) return end;
    while (end < dialog->count && dialog->turns[end].role == role &&
           (role == MB_ROLE_TOOL || dialog->turns[end].call))
        end++;
    return end;
}

static mb_status add_block_end(job *j, const mb_template_piece *piece, bool is_last)
{
    return add_piece(j, is_last && piece->after_last != NULL ? piece->after_last : piece->after);
}

static mb_status add_answer(job *j, int64_t first, int64_t end)
{
    mb_status status = MB_OK;
    const mb_turn *turns = j->dialog->turns;
    const mb_template_piece *piece = &j->tmpl->assistant;
    const bool is_last = end == j->dialog->count, is_behind = first > j->last_question;
    MB_TRY(add_piece(j, piece->before));
    const size_t content_at = j->out->text.length;
    size_t joined_at = content_at;
    if (j->tmpl->think || j->tmpl->think_always) {
        const bool has_text = !turns[first].call, always = j->tmpl->think_always;
        MB_TRY(add_thought(j, turns[first].text, has_text ? turns[first].length : 0, is_behind || always,
                           is_last || always));
        joined_at = has_text ? content_at : j->out->text.length;
        if (has_text) first++;
    } else if (!turns[first].call) {
        MB_TRY(add_stripped(j, turns[first].text, turns[first].length));
        first++;
    }
    for (int64_t i = first; i < end; i++) {
        if (j->out->text.length > joined_at) MB_TRY(add_piece(j, piece->join));
        MB_TRY(add_piece(j, piece->item_before));
        MB_TRY(mb_str_append(&j->out->text, turns[i].text, turns[i].length));
        MB_TRY(add_piece(j, piece->item_after));
    }
    const bool learn = turns[end - 1].learn;
    if (learn && !j->tmpl->learn_end) MB_TRY(add_range(j->out, content_at));
    MB_TRY(add_piece(j, piece->end));
    if (learn && j->tmpl->learn_end) MB_TRY(add_range(j->out, content_at));
    MB_TRY(add_block_end(j, piece, is_last));
    if (learn && j->tmpl->learn_after) MB_TRY(add_range(j->out, content_at));
done:
    return status;
}

static mb_status add_tool_results(job *j, int64_t first, int64_t end)
{
    mb_status status = MB_OK;
    const mb_template_piece *piece = &j->tmpl->tool;
    if (!j->tmpl->has_tool)
        MB_RAISE(MB_EUNSUPPORTED, "template \"%s\" has no place for tool results; take another template",
                 j->tmpl->name);
    MB_TRY(add_piece(j, piece->before));
    for (int64_t i = first; i < end; i++) {
        if (i > first) MB_TRY(add_piece(j, piece->join));
        MB_TRY(add_piece(j, piece->item_before));
        MB_TRY(add_stripped(j, j->dialog->turns[i].text, j->dialog->turns[i].length));
        MB_TRY(add_piece(j, piece->item_after));
    }
    MB_TRY(add_piece(j, piece->end));
    MB_TRY(add_block_end(j, piece, end == j->dialog->count));
done:
    return status;
}

static mb_status add_block(job *j, int64_t first, int64_t end, bool is_first_question)
{
    mb_status status = MB_OK;
    const mb_turn *turn = &j->dialog->turns[first];
    switch (turn->role) {
    case MB_ROLE_ASSISTANT:
        return add_answer(j, first, end);
    case MB_ROLE_TOOL:
        return add_tool_results(j, first, end);
    case MB_ROLE_USER:
        if (!is_first_question) MB_TRY(add_piece(j, j->tmpl->between));
        MB_TRY(add_piece(j, j->tmpl->user.before));
        MB_TRY(add_question(j, turn, is_first_question));
        MB_TRY(add_piece(j, j->tmpl->user.end));
        MB_TRY(add_block_end(j, &j->tmpl->user, end == j->dialog->count));
        break;
    default:
        MB_RAISE(MB_EDATA, "turn %lld: %s may not stand inside a dialog", (long long)first + 1,
                 mb_role_name(turn->role));
    }
done:
    return status;
}

/* ---- 6 render ---- */

static bool is_only_text(const mb_dialog *dialog)
{
    for (int64_t i = 0; i < dialog->count; i++)
        if (dialog->turns[i].role != MB_ROLE_TEXT) return false;
    return true;
}

static mb_status render_text(const mb_dialog *dialog, mb_rendered *out)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < dialog->count; i++) {
        const size_t first = out->text.length;
        MB_TRY(mb_str_append(&out->text, dialog->turns[i].text, dialog->turns[i].length));
        if (dialog->turns[i].learn) MB_TRY(add_range(out, first));
    }
done:
    return status;
}

static bool is_tool_result(const mb_turn *turn)
{
    return mb_str_is_prefix(turn->text, "<tool_response>") &&
           mb_str_is_suffix(turn->text, "</tool_response>");
}

static mb_status render_turns(job *j)
{
    mb_status status = MB_OK;
    const mb_dialog *dialog = j->dialog;
    bool is_first_question = true;
    j->last_question = dialog->count - 1;
    for (int64_t i = dialog->count - 1; i >= 0; i--)
        if (dialog->turns[i].role == MB_ROLE_USER && !is_tool_result(&dialog->turns[i])) {
            j->last_question = i;
            break;
        }
    MB_TRY(add_piece(j, j->tmpl->start));
    if (!j->tmpl->system_in_user) MB_TRY(add_system(j));
    for (int64_t i = dialog->count > 0 && is_system(&dialog->turns[0]), end; i < dialog->count; i = end) {
        end = block_end(dialog, i);
        MB_TRY(add_block(j, i, end, is_first_question));
        if (dialog->turns[i].role == MB_ROLE_USER) is_first_question = false;
    }
done:
    return status;
}

static mb_status render(const mb_template *tmpl, const mb_dialog *dialog, bool is_prompt,
                        const char *opt_bos_text, const char *opt_eos_text, mb_rendered *rendered)
{
    mb_status status = MB_OK;
    job j = {.tmpl = tmpl,
             .dialog = dialog,
             .bos = opt_bos_text != NULL ? opt_bos_text : "",
             .eos = opt_eos_text != NULL ? opt_eos_text : "",
             .out = rendered};
    mb_str_reset(&rendered->text);
    rendered->range_count = 0;
    if (is_only_text(dialog)) {
        MB_TRY(render_text(dialog, rendered));
        goto done;
    }
    MB_TRY(render_turns(&j));
    const char *begin = tmpl->assistant.prompt != NULL ? tmpl->assistant.prompt : tmpl->assistant.before;
    MB_TRY(add_piece(&j, is_prompt ? begin : tmpl->end));
done:
    mb_str_destroy(&j.scratch);
    return status;
}

mb_status mb_template_render(const mb_template *tmpl, const mb_dialog *dialog, bool learn_all,
                             const char *opt_bos_text, const char *opt_eos_text, mb_rendered *rendered)
{
    mb_status status = MB_OK;
    MB_TRY(render(tmpl, dialog, false, opt_bos_text, opt_eos_text, rendered));
    if (!learn_all) goto done;
    rendered->range_count = 0;
    MB_TRY(add_range(rendered, 0));
done:
    return status;
}

mb_status mb_template_render_prompt(const mb_template *tmpl, const mb_dialog *dialog,
                                    const char *opt_bos_text, const char *opt_eos_text, mb_rendered *rendered)
{
    mb_status status = MB_OK;
    MB_TRY(render(tmpl, dialog, true, opt_bos_text, opt_eos_text, rendered));
    rendered->range_count = 0;
done:
    return status;
}
