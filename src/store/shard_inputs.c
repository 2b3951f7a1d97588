/* shard_inputs: the list of input files, from "name=path,..." or a list of groups.
 *
 * Contents: 1. option table  2. parsing  3. template
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "store/shard_build.h"

/* ---- 1. option table ---- */

static const mb_option options[] = {
    {.key = "dataset.inputs",
     .kind = MB_OPTION_KIND_JSON,
     .field = offsetof(mb_shard_build_options, inputs),
     .unit = "",
     .help = "files to read: name=path,name=path or a list of groups { name, path, form, fields, type, "
             "template, weight, samples, validation }",
     .aliases = "dataset.data_path|dataset.datasets"},
    MB_OPTION_TEXT(mb_shard_build_options, form, "dataset.form", "auto",
                   "auto|text|io|alpaca|messages|sharegpt|qa|pair|oasst",
                   "form of the records of inputs that name none", NULL),
    MB_OPTION_TEXT(mb_shard_build_options, fields, "dataset.fields", NULL, NULL,
                   "field mapping ours=theirs, e.g. text=body", NULL),
    MB_OPTION_TEXT(
        mb_shard_build_options, tmpl, "dataset.template", "lines", NULL,
        "chat template: a name of dataset.template_dir, a .json file, or auto: the tokenizer folder's own",
        "template"),
    MB_OPTION_TEXT(mb_shard_build_options, template_dir, "dataset.template_dir", "conf/template", NULL,
                   "folder of the template files", NULL),
    {.key = "tokenizer.path",
     .kind = MB_OPTION_KIND_TEXT,
     .field = offsetof(mb_shard_build_options, tokenizer_path),
     .unit = "",
     .help = "tokenizer.json, or the folder that holds it",
     .aliases = "tokenizer_path"},
    MB_OPTION_INT(mb_shard_build_options, max_length, "dataset.max_length", "2048", 2, 1 << 24, "tokens",
                  "longest record; longer ones follow dataset.on_long", "cutoff_len|max_seq_length"),
    MB_OPTION_INT(mb_shard_build_options, min_length, "dataset.min_length", "2", 2, 1 << 24, "tokens",
                  "shorter records are bad", NULL),
    MB_OPTION_TEXT(mb_shard_build_options, on_bad, "dataset.on_bad", "skip", "skip|fail",
                   "records that cannot be read: skip and count, or fail at the first", NULL),
    MB_OPTION_TEXT(mb_shard_build_options, on_long, "dataset.on_long", "cut", "cut|split|skip",
                   "records over max_length", NULL),
    MB_OPTION_TEXT(mb_shard_build_options, loss_on, "dataset.loss_on", "answers", "answers|all",
                   "tokens that count in the loss", NULL),
    MB_OPTION_TEXT(
        mb_shard_build_options, pairs, "dataset.pairs", "auto", "auto|true|false",
        "both sides of preference pairs, two records for each; auto: when every input has the form "
        "pair; false: the chosen side alone",
        NULL),
    MB_OPTION_BOOL(mb_shard_build_options, append_eos, "dataset.append_eos", "true",
                   "put the end-of-text token after every record that has none", NULL),
    MB_OPTION_INT(
        mb_shard_build_options, total, "dataset.total", "0", 0, 1e12, "records",
        "records drawn of all inputs with a weight; 0: as many as every one of them can give its share of",
        NULL),
    MB_OPTION_INT(mb_shard_build_options, seed, "dataset.seed", "42", 0, 9e15, "",
                  "which records are drawn, held back, and how they are shuffled", NULL),
    MB_OPTION_BOOL(mb_shard_build_options, oversample, "dataset.oversample", "false",
                   "repeat the records of an input that has fewer than it is to give", NULL),
    MB_OPTION_BOOL(mb_shard_build_options, shuffle, "dataset.shuffle", "false",
                   "mix the records of all inputs by dataset.seed; else they keep the order of the inputs",
                   NULL),
    MB_OPTION_REAL(mb_shard_build_options, validation, "dataset.validation", "0", 0, 1e12, "records or share",
                   "of each input, hold back so many records (1 and above) or this share (below 1) for "
                   "validation.h5",
                   "val_size"),
    MB_OPTION_INT(mb_shard_build_options, max_record_bytes, "dataset.max_record_bytes", "67108864", 64, 1e12,
                  "bytes", "longer records are bad", NULL),
};

const mb_option *mb_shard_build_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options / sizeof *options);
    return options;
}

/* ---- 2. parsing ---- */

void mb_shard_build_free_inputs(mb_shard_input **inputs, int64_t count)
{
    if (*inputs == NULL) return;
    for (int64_t i = 0; i < count; ++i) {
        mb_shard_input *input = &(*inputs)[i];
        mb_free(input->name);
        mb_free(input->path);
        mb_free(input->form);
        mb_free(input->fields);
        mb_free(input->type);
        mb_free(input->tmpl);
    }
    MB_FREE(*inputs);
}

/* "dir/news.jsonl.gz" -> "news" */
static char *name_of_path(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *stem = slash != NULL ? slash + 1 : path;
    const char *dot = strchr(stem, '.');
    return dot != NULL && dot != stem ? mb_strndup(stem, (size_t)(dot - stem)) : mb_strdup(stem);
}

static mb_status parse_word(const char *word, mb_shard_input *input)
{
    mb_status status = MB_OK;
    const char *equals = strchr(word, '=');
    input->name = equals != NULL ? mb_strndup(word, (size_t)(equals - word)) : name_of_path(word);
    input->path = mb_strdup(equals != NULL ? equals + 1 : word);
    if (input->name == NULL || input->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for the list of inputs");
done:
    return status;
}

static mb_status parse_group(const json_t *group, int64_t number, mb_shard_input *input)
{
    static const char *const known[] = {"name",     "path",   "form",    "fields",    "type",
                                        "template", "weight", "samples", "validation"};
    const size_t n_known = sizeof known / sizeof *known;
    mb_status status = MB_OK;
    char where[64];
    const char *name = NULL, *path = NULL, *form = NULL, *fields = NULL, *type = NULL, *tmpl = NULL, *key;
    json_t *value;
    snprintf(where, sizeof where, "dataset.inputs[%lld]", (long long)number);
    if (!json_is_object(group))
        MB_RAISE(MB_EUSAGE, "%s: a group { name = ...; path = ...; } is expected", where);
    json_object_foreach((json_t *)group, key, value)
    {
        bool is_known = false;
        for (size_t i = 0; i < n_known; ++i) is_known = is_known || strcmp(key, known[i]) == 0;
        if (!is_known) {
            const char *near = mb_str_nearest(key, known, n_known);
            MB_RAISE(MB_EUSAGE, "%s: unknown key '%s'%s%s", where, key, near ? "; did you mean " : "",
                     near ? near : "");
        }
    }
    MB_TRY(mb_json_get_string(group, "path", where, &path));
    MB_TRY(mb_json_opt_string(group, "name", where, &name));
    MB_TRY(mb_json_opt_string(group, "form", where, &form));
    MB_TRY(mb_json_opt_string(group, "fields", where, &fields));
    MB_TRY(mb_json_opt_string(group, "type", where, &type));
    MB_TRY(mb_json_opt_string(group, "template", where, &tmpl));
    MB_TRY(mb_json_opt_int(group, "samples", where, &input->samples));
    MB_TRY(mb_json_opt_real(group, "weight", where, &input->weight));
    MB_TRY(mb_json_opt_real(group, "validation", where, &input->validation));
    if (input->samples < 0) MB_RAISE(MB_EUSAGE, "%s: samples is below 0", where);
    if (input->weight < 0 && json_object_get(group, "weight") != NULL)
        MB_RAISE(MB_EUSAGE, "%s: weight is below 0", where);
    if (input->validation < 0 && json_object_get(group, "validation") != NULL)
        MB_RAISE(MB_EUSAGE, "%s: validation is below 0", where);
    input->path = mb_strdup(path);
    input->name = name != NULL ? mb_strdup(name) : name_of_path(path);
    input->form = mb_strdup(form);
    input->fields = mb_strdup(fields);
    input->type = mb_strdup(type);
    input->tmpl = mb_strdup(tmpl);
done:
    return status;
}

static mb_status finish_inputs(const mb_shard_build_options *opts, mb_shard_input *inputs, int64_t n)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; ++i) {
        if (inputs[i].form == NULL) inputs[i].form = mb_strdup(opts->form);
        if (inputs[i].fields == NULL) inputs[i].fields = mb_strdup(opts->fields);
        if (!mb_files_is_file(inputs[i].path))
            MB_RAISE(MB_ENOTFOUND, "%s: no such file (dataset.inputs, entry '%s')", inputs[i].path,
                     inputs[i].name);
        for (int64_t j = 0; j < i; ++j)
            if (strcmp(inputs[i].name, inputs[j].name) == 0)
                MB_RAISE(MB_EUSAGE, "dataset.inputs: two inputs are named '%s'; give each its own name=path",
                         inputs[i].name);
    }
done:
    return status;
}

/* What a group does not say. */
static void clear_inputs(mb_shard_input *inputs, int64_t n)
{
    for (int64_t i = 0; i < n; ++i) inputs[i].weight = inputs[i].validation = -1;
}

static mb_status parse_words(const char *text, mb_shard_input **inputs, int64_t *n)
{
    mb_status status = MB_OK;
    char **words = NULL;
    MB_TRY(mb_option_list_split(text, &words, n));
    MB_NEW_ARRAY(*inputs, *n + 1);
    clear_inputs(*inputs, *n);
    for (int64_t i = 0; i < *n; ++i) MB_TRY(parse_word(words[i], &(*inputs)[i]));
done:
    mb_option_list_free(&words, *n);
    return status;
}

static mb_status parse_groups(const char *text, mb_shard_input **inputs, int64_t *n)
{
    mb_status status = MB_OK;
    json_t *list = NULL;
    MB_TRY(mb_json_parse(text, strlen(text), "dataset.inputs", &list));
    if (!json_is_array(list)) MB_RAISE(MB_EUSAGE, "dataset.inputs: a list of groups is expected");
    *n = (int64_t)json_array_size(list);
    MB_NEW_ARRAY(*inputs, *n + 1);
    clear_inputs(*inputs, *n);
    for (int64_t i = 0; i < *n; ++i) {
        const json_t *item = json_array_get(list, (size_t)i);
        if (json_is_string(item))
            MB_TRY(parse_word(json_string_value(item), &(*inputs)[i]));
        else
            MB_TRY(parse_group(item, i, &(*inputs)[i]));
    }
done:
    json_decref(list);
    return status;
}

mb_status mb_shard_build_inputs(const mb_shard_build_options *opts, mb_shard_input **out_inputs,
                                int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_shard_input *inputs = NULL;
    int64_t n = 0;
    const char *text = opts->inputs != NULL ? opts->inputs : "";
    MB_TRY(text[strspn(text, " \t\n")] == '[' ? parse_groups(text, &inputs, &n)
                                              : parse_words(text, &inputs, &n));
    if (n == 0) MB_RAISE(MB_EUSAGE, "dataset.inputs is empty: give name=path,name=path");
    if (n > UINT16_MAX) MB_RAISE(MB_EUSAGE, "dataset.inputs: at most %d inputs", UINT16_MAX);
    MB_TRY(finish_inputs(opts, inputs, n));
    *out_inputs = inputs;
    *out_count = n;
    inputs = NULL;
done:
    mb_shard_build_free_inputs(&inputs, n);
    return status;
}

mb_status mb_shard_build_is_pairs(const mb_shard_build_options *opts, const mb_shard_input *inputs,
                                  int64_t count, bool *out_is_pairs)
{
    mb_status status = MB_OK;
    const char *wanted = opts->pairs != NULL ? opts->pairs : "auto";
    int64_t pairs = 0, other = -1;
    for (int64_t i = 0; i < count; ++i) {
        if (mb_str_equal(inputs[i].form, "pair"))
            ++pairs;
        else if (!mb_str_equal(inputs[i].form, "auto"))
            other = i;
    }
    const bool is_pairs = strcmp(wanted, "true") == 0 || (strcmp(wanted, "auto") == 0 && pairs == count);
    if (strcmp(wanted, "auto") == 0 && pairs > 0 && pairs < count)
        MB_RAISE(MB_EUSAGE,
                 "dataset.inputs: some inputs have the form pair, others not, and a shard holds either "
                 "pairs or single records; shard them apart, or say dataset.pairs=true (auto forms are "
                 "pairs too) or false (of pairs, the chosen side alone)");
    if (is_pairs && other >= 0)
        MB_RAISE(MB_EUSAGE,
                 "dataset.inputs: '%s' has the form %s, which is no preference pair "
                 "(dataset.pairs=true)",
                 inputs[other].name, inputs[other].form);
    if (is_pairs && mb_str_equal(opts->loss_on, "all"))
        MB_RAISE(MB_EUSAGE, "dataset.loss_on=all has no meaning for preference pairs: only answers count");
    if (is_pairs && mb_str_equal(opts->on_long, "split"))
        MB_RAISE(MB_EUSAGE, "a preference pair cannot be split; say dataset.on_long=cut or skip");
    *out_is_pairs = is_pairs;
done:
    return status;
}

/* ---- 3. template ---- */

/* `dir` below a folder that is `up` folders above the program's own; NULL when it is not there. */
static char *beside_program(const char *up, const char *dir)
{
    char program[4096];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) return NULL;
    program[n] = '\0';
    char *slash = strrchr(program, '/');
    if (slash != NULL) *slash = '\0';
    char *path = mb_str_format("%s/%s/%s", program, up, dir);
    if (path != NULL && !mb_files_is_folder(path)) MB_FREE(path);
    return path;
}

char *mb_shard_build_template_folder(const char *template_dir)
{
    char *found = NULL;
    if (!mb_files_is_folder(template_dir) && template_dir[0] != '/') {
        found = beside_program("../..", template_dir);
        if (found == NULL) found = beside_program("../share/moebatch", template_dir);
    }
    return found != NULL ? found : mb_strdup(template_dir);
}

/* The shipped template that equals the tokenizer folder's own. */
static mb_status find_own(const char *folder, const char *tokenizer_path, const mb_tokenizer *tokenizer,
                          mb_template **out_template)
{
    mb_status status = MB_OK;
    char *name = NULL;
    const char *jinja = mb_tokenizer_chat_template(tokenizer);
    if (jinja == NULL)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: the tokenizer has no chat template of its own; name one with dataset.template (chatml, "
                 "qwen3, llama3, alpaca, lines, ...)",
                 tokenizer_path);
    MB_TRY(mb_template_find_by_jinja(folder, jinja, &name));
    if (name == NULL) {
        char hash[MB_HASH_TEXT];
        mb_hash_bytes(jinja, strlen(jinja), hash);
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: the tokenizer's own chat template (hash %s) is none of those in %s; name the one that "
                 "renders alike with dataset.template, or put its hash into a template file's jinja_hashes",
                 tokenizer_path, hash, folder);
    }
    mb_info("chat template of the tokenizer: %s", name);
    MB_TRY(mb_template_open(folder, name, out_template));
done:
    mb_free(name);
    return status;
}

mb_status mb_shard_build_template_named(const mb_shard_build_options *opts, const char *name,
                                        const mb_tokenizer *opt_tokenizer, mb_template **out_template)
{
    mb_status status = MB_OK;
    mb_tokenizer *own = NULL;
    char *folder = mb_shard_build_template_folder(opts->template_dir);
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for the folder of the templates");
    if (!mb_str_equal(name, "auto")) {
        MB_TRY(mb_template_open(folder, name, out_template));
        goto done;
    }
    if (opts->tokenizer_path == NULL)
        MB_RAISE(MB_EUSAGE, "dataset.template=auto is the tokenizer folder's own: tokenizer.path is missing");
    if (opt_tokenizer == NULL) MB_TRY(mb_tokenizer_open(opts->tokenizer_path, &own));
    MB_TRY(find_own(folder, opts->tokenizer_path, own != NULL ? own : opt_tokenizer, out_template));
done:
    mb_tokenizer_close(&own);
    mb_free(folder);
    return status;
}

mb_status mb_shard_build_template(const mb_shard_build_options *opts, mb_template **out_template)
{
    return mb_shard_build_template_named(opts, opts->tmpl, NULL, out_template);
}
