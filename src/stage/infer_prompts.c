/* infer_prompts: a file of records -> prompts as token ids.
 *
 * 1. opening
 * 2. text of a record
 * 3. ids
 * 4. reading
 */
#include "stage/infer_prompts.h"

#include <string.h>

#include "base/memory.h"
#include "text/dialog.h"

struct mb_infer_prompts {
    const mb_infer_program *options;
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_template *tmpl; /* NULL: none is known, plain texts only */
    bool lays_out_all; /* the template was named: of `prompt` and `text` too */
    mb_records *records;
    int64_t count, at;
    mb_dialog dialog;
    mb_rendered rendered;
    mb_str problem;
};

/* ---- 1. opening ---- */

static mb_status open_template(mb_infer_prompts *p)
{
    mb_status status = MB_OK;
    const mb_infer_program *o = p->options;
    char *name = NULL, *folder = mb_shard_build_template_folder(o->template_dir);
    const char *jinja = mb_tokenizer_chat_template(p->tokenizer);
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for the folder of the templates");
    p->lays_out_all = !mb_str_equal(o->tmpl, "auto");
    if (p->lays_out_all)
        MB_TRY(mb_template_open(folder, o->tmpl, &p->tmpl));
    else if (jinja != NULL)
        MB_TRY(mb_template_find_by_jinja(folder, jinja, &name));
    if (name != NULL) MB_TRY(mb_template_open(folder, name, &p->tmpl));
done:
    mb_free(name);
    mb_free(folder);
    return status;
}

static mb_status open_records(mb_infer_prompts *p)
{
    mb_status status = MB_OK;
    int64_t *offsets = NULL, *lengths = NULL;
    MB_TRY(mb_records_scan(p->options->input, &offsets, &lengths, &p->count));
    MB_TRY(mb_records_open(p->options->input, 0, &p->records));
    if (p->options->limit > 0 && p->options->limit < p->count) p->count = p->options->limit;
done:
    mb_free(offsets);
    mb_free(lengths);
    return status;
}

mb_status mb_infer_prompts_open(const mb_infer_program *options, const char *tokenizer_folder,
                                mb_infer_prompts **out_prompts)
{
    mb_status status = MB_OK;
    mb_infer_prompts *p = NULL;
    MB_NEW(p);
    p->options = options;
    MB_TRY(
        mb_tokenizer_open(options->tokenizer != NULL ? options->tokenizer : tokenizer_folder, &p->tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(p->tokenizer, &p->scratch));
    MB_TRY(open_template(p));
    if (options->input != NULL) MB_TRY(open_records(p));
    *out_prompts = p;
    p = NULL;
done:
    mb_infer_prompts_close(&p);
    return status;
}

void mb_infer_prompts_close(mb_infer_prompts **prompts)
{
    mb_infer_prompts *p = *prompts;
    if (p == NULL) return;
    mb_records_close(&p->records);
    mb_template_close(&p->tmpl);
    mb_tokenizer_scratch_destroy(&p->scratch);
    mb_tokenizer_close(&p->tokenizer);
    mb_dialog_destroy(&p->dialog);
    mb_rendered_destroy(&p->rendered);
    mb_str_destroy(&p->problem);
    mb_free(p);
    *prompts = NULL;
}

int64_t mb_infer_prompts_count(const mb_infer_prompts *prompts)
{
    return prompts->count;
}

const mb_tokenizer *mb_infer_prompts_tokenizer(const mb_infer_prompts *prompts)
{
    return prompts->tokenizer;
}

const char *mb_infer_prompts_template(const mb_infer_prompts *prompts)
{
    return prompts->tmpl != NULL ? mb_template_hash(prompts->tmpl) : "";
}

/* ---- 2. text of a record ---- */

/* One text that is continued as it stands: no list of turns, and nothing that asks for an answer. */
static bool is_plain(const json_t *record, const mb_dialog *dialog)
{
    static const char *const asked[] = {"messages", "conversations", "instruction", "question"};
    if (dialog->count != 1) return false;
    if (dialog->turns[0].role == MB_ROLE_TEXT) return true;
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
        if (json_object_get(record, asked[i]) != NULL) return false;
    return !json_is_array(json_object_get(record, "prompt"));
}

/* The text of a special token, NULL when its id is -1. */
static const char *token_text(const mb_infer_prompts *p, int64_t id)
{
    return id >= 0 ? mb_tokenizer_token(p->tokenizer, (uint32_t)id) : NULL;
}

/* Borrowed until the next record. */
static mb_status record_text(mb_infer_prompts *p, const json_t *record, const char **out_text,
                             size_t *out_length)
{
    mb_status status = MB_OK;
    const mb_field_map map = {.form = p->options->form, .fields = p->options->fields};
    status = mb_dialog_read_prompt(record, &map, &p->dialog);
    if (status != MB_OK)
        mb_status_prefix("a prompt is a string, or has prompt, text, messages, instruction or question: ");
    MB_TRY(status);
    if (!p->lays_out_all && is_plain(record, &p->dialog)) {
        *out_text = p->dialog.turns[0].text;
        *out_length = p->dialog.turns[0].length;
        goto done;
    }
    if (p->tmpl == NULL)
        MB_RAISE(MB_EUSAGE,
                 "%s holds questions, and the tokenizer's folder names no chat template that is known "
                 "here; name one with generate.template (chatml, llama3, plain, ...)",
                 p->options->input);
    MB_TRY(mb_template_render_prompt(p->tmpl, &p->dialog, token_text(p, mb_tokenizer_bos(p->tokenizer)),
                                     token_text(p, mb_tokenizer_eos(p->tokenizer)), &p->rendered));
    *out_text = mb_str_text(&p->rendered.text);
    *out_length = p->rendered.text.length;
done:
    return status;
}

/* ---- 3. ids ---- */

mb_status mb_infer_prompts_text(mb_infer_prompts *prompts, const char *text, size_t n, mb_ids *ids)
{
    mb_status status = MB_OK;
    mb_infer_prompts *p = prompts;
    const int64_t eos = mb_tokenizer_eos(p->tokenizer);
    const char *begin = token_text(p, mb_tokenizer_bos(p->tokenizer)), *end = token_text(p, eos);
    /* A template that writes the begin mark itself gets none from the tokenizer. */
    const bool has_begin = begin != NULL && n >= strlen(begin) && memcmp(text, begin, strlen(begin)) == 0;
    const size_t mark = end != NULL ? strlen(end) : 0;
    const bool has_end = mark > 0 && n >= mark && memcmp(text + n - mark, end, mark) == 0;
    mb_ids_reset(ids);
    MB_TRY(mb_tokenizer_encode(p->tokenizer, p->scratch, text, n, !has_begin, ids));
    /* Nothing comes behind an end mark that the tokenizer puts there. */
    if (eos >= 0 && !has_end && ids->count > 0 && ids->data[ids->count - 1] == (uint32_t)eos) ids->count--;
    if (ids->count == 0) MB_RAISE(MB_EDATA, "the prompt is empty");
done:
    return status;
}

/* ---- 4. reading ---- */

/* A line that is a plain string stands for {"prompt": ...}. NULL: it is none. */
static json_t *plain_string(const mb_record *record)
{
    json_t *text = NULL, *object = NULL;
    if (record->length == 0 || record->bytes[0] != '"') return NULL;
    if (mb_json_parse(record->bytes, record->length, "line", &text) != MB_OK) mb_status_reset();
    if (json_is_string(text) && strlen(json_string_value(text)) == json_string_length(text))
        object = json_pack("{s:O}", "prompt", text);
    json_decref(text);
    return object;
}

static mb_status convert(mb_infer_prompts *p, const json_t *record, int64_t longest, mb_ids *ids)
{
    mb_status status = MB_OK;
    const char *text = NULL;
    size_t n = 0;
    MB_TRY(record_text(p, record, &text, &n));
    MB_TRY(mb_infer_prompts_text(p, text, n, ids));
    if (ids->count > longest)
        MB_RAISE(MB_EDATA,
                 "the prompt has %lld tokens; at most %lld can be answered (the model's positions and "
                 "generate.batch_tokens)",
                 (long long)ids->count, (long long)longest);
done:
    return status;
}

mb_status mb_infer_prompts_read(mb_infer_prompts *prompts, int64_t index, int64_t longest,
                                json_t **out_record, mb_ids *ids, const char **out_problem, int64_t *out_line)
{
    mb_status status = MB_OK;
    mb_infer_prompts *p = prompts;
    mb_record record = {0};
    json_t *object = NULL;
    do {
        MB_TRY(mb_records_read(p->records, &record));
        if (record.bytes == NULL)
            MB_RAISE(MB_EDATA, "%s: ends before record %lld; it changed while it was read", p->options->input,
                     (long long)index);
    } while (p->at++ < index);
    *out_record = NULL;
    *out_line = record.line;
    mb_str_reset(&p->problem);
    object = record.json != NULL ? json_incref(record.json) : plain_string(&record);
    if (object == NULL) {
        MB_TRY(mb_str_add(&p->problem, record.problem));
    } else {
        status = convert(p, object, longest, ids);
        if (status == MB_OK) {
            *out_record = json_incref(object);
        } else if (status == MB_EDATA || status == MB_EFORMAT || status == MB_ERANGE ||
                   status == MB_EUNSUPPORTED) {
            status = MB_OK;
            MB_TRY(
                mb_str_add_format(&p->problem, "line %lld: %s", (long long)record.line, mb_status_message()));
            mb_status_reset();
        }
    }
    *out_problem = mb_str_text(&p->problem);
done:
    json_decref(object);
    return status;
}
