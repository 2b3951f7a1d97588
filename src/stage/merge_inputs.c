/* merge_inputs.c: see the header.
 *
 * 1. opening   2. recognising   3. folders   4. all inputs   5. reading
 */
#include "stage/merge_inputs.h"

#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/memory.h"
#include "stage/named_paths.h"
#include "text/records.h"

/* ---- 1. opening ---- */

static bool ends(const char *name, const char *ending)
{
    char packed[40];
    snprintf(packed, sizeof packed, "%s.gz", ending);
    return mb_str_is_suffix(name, ending) || mb_str_is_suffix(name, packed);
}

static bool is_table(const char *name)
{
    return ends(name, ".csv") || ends(name, ".tsv");
}

static bool is_data(const char *name)
{
    return name[0] != '.' &&
           (is_table(name) || ends(name, ".jsonl") || ends(name, ".ndjson") || ends(name, ".json"));
}

static mb_status refuse_columns(const char *path)
{
    mb_status status = MB_OK;
    if (mb_str_is_suffix(path, ".parquet") || mb_str_is_suffix(path, ".arrow"))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: Parquet and Arrow aren't read; export it: python3 datasets/export_hf.py %s --out "
                 "questions.jsonl",
                 path, path);
done:
    return status;
}

static mb_status open_records(const mb_merge_file *file, mb_records **out_records)
{
    return file->has_rows ? mb_records_open_rows(file->path, 0, out_records)
                          : mb_records_open(file->path, 0, out_records);
}

/* ---- 2. recognising ---- */

/* Is the table's first row a question? */
static mb_status find_rows(mb_merge_file *file)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    if (!is_table(file->path)) goto done;
    MB_TRY(mb_records_open_rows(file->path, 0, &records));
    MB_TRY(mb_records_read(records, &record));
    file->has_rows = record.json != NULL && mb_merge_format_is_mmlu_row(record.json);
done:
    mb_records_close(&records);
    return status;
}

static mb_status list_members(const json_t *record, mb_str *s)
{
    mb_status status = MB_OK;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)record, key, value)
    {
        (void)value;
        MB_TRY(mb_str_add_format(s, "%s%s", s->length > 0 ? ", " : "", key));
    }
done:
    return status;
}

static mb_status recognise(mb_merge_file *file)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    mb_str members = MB_STR_EMPTY, problem = MB_STR_EMPTY;
    MB_TRY(open_records(file, &records));
    do {
        MB_TRY(mb_records_read(records, &record));
        if (record.problem != NULL && problem.length == 0) MB_TRY(mb_str_add(&problem, record.problem));
    } while (record.bytes != NULL && record.json == NULL);
    if (record.json == NULL)
        MB_RAISE(MB_EDATA, "%s: no record can be read%s%s", file->path, problem.length > 0 ? ": " : "",
                 mb_str_text(&problem));
    file->format = mb_merge_format_recognise(record.json);
    file->is_found = true;
    if (file->format != NULL) goto done;
    MB_TRY(list_members(record.json, &members));
    MB_RAISE(MB_EDATA,
             "%s: no known format has the members %s; say what they are: format=mapped, "
             "fields=question=..,options=..,answer=..",
             file->path, mb_str_text(&members));
done:
    mb_records_close(&records);
    mb_str_destroy(&members);
    mb_str_destroy(&problem);
    return status;
}

static mb_status find_format(mb_merge_file *file, const char *name)
{
    mb_status status = MB_OK;
    MB_TRY(refuse_columns(file->path));
    MB_TRY(find_rows(file));
    if (mb_str_equal(name, "auto") && file->fields.question[0] == 0) {
        MB_TRY(recognise(file));
        goto done;
    }
    MB_TRY(mb_merge_format_find(mb_str_equal(name, "auto") ? "mapped" : name, &file->format));
    const bool is_mapped = mb_str_equal(file->format->name, "mapped");
    if (is_mapped != (file->fields.question[0] != 0))
        MB_RAISE(MB_EUSAGE, "%s: fields belong to format mapped, and format mapped needs them", file->path);
done:
    return status;
}

/* ---- 3. folders ---- */

/* One of MMLU's tables by its name. */
static bool is_subject_table(const char *path)
{
    return mb_str_is_suffix(path, "_test.csv") || mb_str_is_suffix(path, "_val.csv") ||
           mb_str_is_suffix(path, "_dev.csv");
}

/* "dir/anatomy_test.csv" -> "anatomy", "dir/lsat-ar.jsonl" -> "lsat-ar" */
static char *subject_of(const char *path)
{
    static const char *const parts[] = {"_test", "_dev", "_val", "_train"};
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    size_t n = strcspn(name, ".");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const size_t length = strlen(parts[i]);
        if (n > length && memcmp(name + n - length, parts[i], length) == 0)
            return mb_strndup(name, n - length);
    }
    return mb_strndup(name, n);
}

static mb_status add_file(mb_merge_inputs *inputs, const mb_named_path *input, const char *path,
                          bool in_folder)
{
    mb_status status = MB_OK;
    mb_merge_file *more = mb_realloc(inputs->file, (size_t)inputs->count + 1, sizeof *more);
    if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for the names of files");
    inputs->file = more;
    mb_merge_file *file = &more[inputs->count++];
    *file = (mb_merge_file){.source = mb_strdup(input->name), .path = mb_strdup(path)};
    if (in_folder || is_subject_table(path)) file->opt_subject = subject_of(path);
    if (file->source == NULL || file->path == NULL || (in_folder && file->opt_subject == NULL))
        MB_RAISE(MB_ENOMEM, "no memory for the names of files");
done:
    return status;
}

/* Which files of a folder are asked: all, or where there are tests, those only. Examples are not questions.
 * */
static bool is_asked(const char *name, bool has_tests)
{
    if (!is_data(name) || mb_str_equal(name, "few_shot_prompts.csv")) return false;
    return !has_tests || mb_str_is_suffix(name, "_test.csv");
}

static mb_status add_folder(mb_merge_inputs *inputs, const mb_named_path *input)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL, *test = mb_files_join(input->path, "test");
    int64_t n = 0, found = 0, columns = 0;
    bool has_tests = false;
    if (test == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    const char *folder = mb_files_is_folder(test) ? test : input->path;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        has_tests = has_tests || mb_str_is_suffix(names[i], "_test.csv");
        columns += mb_str_is_suffix(names[i], ".parquet") || mb_str_is_suffix(names[i], ".arrow");
    }
    for (int64_t i = 0; i < n; i++) {
        if (!is_asked(names[i], has_tests)) continue;
        mb_free(path);
        path = mb_files_join(folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        if (!mb_files_is_file(path)) continue;
        MB_TRY(add_file(inputs, input, path, true));
        found++;
    }
    if (found == 0 && columns > 0)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: Parquet and Arrow aren't read; export it: python3 datasets/export_hf.py %s --out "
                 "questions.jsonl",
                 folder, folder);
    if (found == 0)
        MB_RAISE(MB_ENOTFOUND, "%s: no file of questions in this folder (*.jsonl, *.json, *.csv, also .gz)",
                 folder);
done:
    mb_files_free_names(&names, n);
    mb_free(path);
    mb_free(test);
    return status;
}

/* ---- 4. all inputs ---- */

/* The file of examples that lies where its benchmark puts it. */
static mb_status find_examples(mb_merge_file *file)
{
    mb_status status = MB_OK;
    const char *slash = strrchr(file->path, '/');
    const int folder = slash != NULL ? (int)(slash - file->path) : 1;
    const char *base = slash != NULL ? file->path : ".";
    const bool is_agieval = mb_str_equal(file->format->name, "agieval"),
               is_mmlu = mb_str_equal(file->format->name, "mmlu") && file->opt_subject != NULL;
    if (!is_agieval && !is_mmlu) goto done;
    for (int i = 0; i < 2; i++) {
        char *path = is_agieval ? mb_str_format("%.*s/few_shot_prompts.csv", folder, base)
                                : mb_str_format("%.*s/%s%s_dev.csv", folder, base, i == 0 ? "" : "../dev/",
                                                file->opt_subject);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        if (mb_files_is_file(path) && !mb_str_equal(path, file->path)) {
            file->opt_examples = path;
            goto done;
        }
        mb_free(path);
    }
done:
    return status;
}

static mb_status open_input(const mb_merge_input_options *options, const mb_named_path *input,
                            mb_merge_inputs *inputs)
{
    mb_status status = MB_OK;
    const char *format = input->more[0] != NULL ? input->more[0] : options->format,
               *fields = input->more[1] != NULL || input->more[0] != NULL ? input->more[1] : options->fields,
               *examples = input->more[2];
    const int64_t first = inputs->count;
    if (!mb_files_is_folder(input->path) && !mb_files_is_file(input->path))
        MB_RAISE(MB_ENOTFOUND, "%s: %s: there is no such file or folder", options->key, input->path);
    if (examples != NULL && !mb_files_is_file(examples))
        MB_RAISE(MB_ENOTFOUND, "%s: few_shot: %s: there is no such file", options->key, examples);
    MB_TRY(mb_files_is_folder(input->path) ? add_folder(inputs, input)
                                           : add_file(inputs, input, input->path, false));
    for (int64_t i = first; i < inputs->count; i++) {
        mb_merge_file *file = &inputs->file[i];
        MB_TRY(mb_merge_fields_read(options->key, fields, &file->fields));
        MB_TRY(find_format(file, format));
        if (examples == NULL) {
            MB_TRY(find_examples(file));
            continue;
        }
        file->opt_examples = mb_strdup(examples);
        if (file->opt_examples == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    }
done:
    return status;
}

mb_status mb_merge_inputs_open(const mb_merge_input_options *options, mb_merge_inputs *out_inputs)
{
    mb_status status = MB_OK;
    static const char *const further[] = {"format", "fields", "few_shot"};
    mb_named_paths paths = {0};
    mb_merge_inputs inputs = {0};
    MB_TRY(mb_named_paths_read(options->key, options->inputs, further, 3, &paths));
    for (int64_t i = 0; i < paths.count; i++) MB_TRY(open_input(options, &paths.item[i], &inputs));
    *out_inputs = inputs;
    inputs = (mb_merge_inputs){0};
done:
    mb_named_paths_reset(&paths);
    mb_merge_inputs_close(&inputs);
    return status;
}

void mb_merge_inputs_close(mb_merge_inputs *inputs)
{
    for (int64_t i = 0; i < inputs->count; i++) {
        mb_free(inputs->file[i].source);
        mb_free(inputs->file[i].path);
        mb_free(inputs->file[i].opt_subject);
        mb_free(inputs->file[i].opt_examples);
    }
    mb_free(inputs->file);
    *inputs = (mb_merge_inputs){0};
}

/* ---- 5. reading ---- */

/* A record as a question, or why it is none. */
static mb_status read_record(const mb_merge_file *file, const mb_merge_reading *reading,
                             const mb_record *record, mb_merge_body *body, mb_str *problem, bool *out_has)
{
    mb_status status = MB_OK;
    *out_has = true;
    mb_merge_body_reset(body);
    mb_str_reset(problem);
    if (record->problem != NULL) return mb_str_add(problem, record->problem);
    status = file->format->read(record->json, reading, body, out_has);
    if (status == MB_OK && *out_has) status = mb_merge_body_check(body);
    if (status == MB_OK && body->subject.length == 0 && file->opt_subject != NULL)
        status = mb_str_add(&body->subject, file->opt_subject);
    if (status == MB_EDATA) {
        status = mb_str_add_format(problem, "line %lld: %s", (long long)record->line, mb_status_message());
        mb_status_reset();
    }
    return status;
}

mb_status mb_merge_inputs_read(const mb_merge_file *file, bool support, mb_merge_take take, void *own)
{
    mb_status status = MB_OK;
    const mb_merge_reading reading = {.opt_fields = &file->fields, .support = support};
    mb_records *records = NULL;
    mb_record record;
    mb_merge_body body = {0};
    mb_str problem = MB_STR_EMPTY, first = MB_STR_EMPTY;
    int64_t good = 0, bad = 0;
    bool has;
    MB_TRY(open_records(file, &records));
    for (;;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        MB_TRY(read_record(file, &reading, &record, &body, &problem, &has));
        if (!has) continue;
        if (problem.length > 0 && bad++ == 0) MB_TRY(mb_str_add(&first, problem.data));
        good += problem.length == 0;
        const mb_merge_taken taken = {.file = file,
                                      .index = record.index,
                                      .line = record.line,
                                      .opt_body = problem.length == 0 ? &body : NULL,
                                      .problem = mb_str_text(&problem)};
        MB_TRY(take(own, &taken));
    }
    if (good == 0)
        MB_RAISE(MB_EDATA, "%s: no record is a question of format %s%s%s", file->path, file->format->name,
                 bad > 0 ? "; " : "", mb_str_text(&first));
done:
    mb_records_close(&records);
    mb_merge_body_destroy(&body);
    mb_str_destroy(&problem);
    mb_str_destroy(&first);
    return status;
}
