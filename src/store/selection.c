/* selection: selected records -> JSONL.
 *
 * Plain JSONL sources are read by place, one record at a time; packed or array files are read once, front to
 * back, keeping the wanted records.
 *
 * Contents: 1. splicing members  2. fetching records  3. writing  4. reading back
 */
#include "store/selection.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/records.h"

/* ---- 1. splicing members ---- */

static const char *const own_names[] = {"source_dataset", "source_index", "text", "quality_score"};

static size_t skip_space(const char *s, size_t n, size_t i)
{
    while (i < n && (s[i] == ' ' || s[i] == '\t' || s[i] == '\n' || s[i] == '\r')) ++i;
    return i;
}

/* End of the JSON string that begins at s[i] == '"'. */
static size_t skip_string(const char *s, size_t n, size_t i)
{
    for (++i; i < n && s[i] != '"'; ++i)
        if (s[i] == '\\') ++i;
    return i + 1;
}

/* End of any JSON value that begins at i (the text is known to be valid JSON). */
static size_t skip_value(const char *s, size_t n, size_t i)
{
    int depth = 0;
    while (i < n) {
        if (s[i] == '"')
            i = skip_string(s, n, i);
        else {
            if (depth == 0 && (s[i] == ',' || s[i] == '}' || s[i] == ']')) break;
            if (s[i] == '{' || s[i] == '[') ++depth;
            if (s[i] == '}' || s[i] == ']') --depth;
            ++i;
        }
        if (depth == 0 && i < n && (s[i - 1] == '"' || s[i - 1] == '}' || s[i - 1] == ']')) break;
    }
    return i;
}

/* Is `key` (raw bytes between the quotes) one of our names, or a name already taken by renaming or standing
 * in the object? */
static bool is_own(const char *key, size_t n)
{
    for (size_t i = 0; i < sizeof own_names / sizeof *own_names; ++i)
        if (strlen(own_names[i]) == n && memcmp(own_names[i], key, n) == 0) return true;
    return false;
}

static bool has_member(const char *s, size_t n, const char *key, size_t key_length)
{
    size_t i = skip_space(s, n, 0) + 1;
    for (i = skip_space(s, n, i); i < n && s[i] == '"';) {
        size_t end = skip_string(s, n, i);
        if (end - i - 2 == key_length && memcmp(s + i + 1, key, key_length) == 0) return true;
        i = skip_space(s, n, skip_space(s, n, end) + 1);
        i = skip_space(s, n, skip_value(s, n, i));
        i = skip_space(s, n, i + 1);
    }
    return false;
}

/* "source_" in front of a taken name, as often as it takes. */
static mb_status add_renamed_key(const char *s, size_t n, const char *key, size_t key_length, mb_str *line)
{
    mb_status status = MB_OK;
    mb_str name = MB_STR_EMPTY;
    MB_TRY(mb_str_append(&name, key, key_length));
    while (is_own(name.data, name.length) ||
           (name.length != key_length && has_member(s, n, name.data, name.length))) {
        mb_str longer = MB_STR_EMPTY;
        status = mb_str_add(&longer, "source_");
        if (status == MB_OK) status = mb_str_append(&longer, name.data, name.length);
        mb_str_destroy(&name);
        name = longer;
        MB_TRY(status);
    }
    MB_TRY(mb_str_add(line, "\""));
    MB_TRY(mb_str_append(line, name.data, name.length));
    MB_TRY(mb_str_add(line, "\""));
done:
    mb_str_destroy(&name);
    return status;
}

mb_status mb_selection_splice(const char *s, size_t n, mb_str *line)
{
    mb_status status = MB_OK;
    size_t i = skip_space(s, n, 0);
    if (i >= n || s[i] != '{') return MB_OK;
    for (i = skip_space(s, n, i + 1); i < n && s[i] == '"';) {
        const size_t key_end = skip_string(s, n, i), colon = skip_space(s, n, key_end),
                     value = skip_space(s, n, colon + 1);
        const size_t value_end = skip_value(s, n, value);
        size_t trimmed = value_end;
        while (trimmed > value && strchr(" \t\r\n", s[trimmed - 1]) != NULL) --trimmed;
        MB_TRY(mb_str_add(line, ", "));
        MB_TRY(add_renamed_key(s, n, s + i + 1, key_end - i - 2, line));
        MB_TRY(mb_str_add(line, ": "));
        MB_TRY(mb_str_append(line, s + value, trimmed - value));
        i = skip_space(s, n, value_end);
        if (i >= n || s[i] != ',') break;
        i = skip_space(s, n, i + 1);
    }
done:
    return status;
}

/* ---- 2. fetching records ---- */

typedef struct fetcher {
    const mb_shard_input *inputs; /* by score-table source */
    int *file;                    /* [sources] descriptor of plain files, -1 */
    char **kept;                  /* [count] bytes of records of other files, by position in the selection */
    mb_str buffer;
} fetcher;

/* Read every wanted record of a packed or array file in one go. wanted: positions in the selection sorted by
 * source_index. */
typedef struct wanted {
    int64_t source_index, position;
} wanted;

static int by_index(const void *a, const void *b)
{
    const wanted *x = a, *y = b;
    return x->source_index != y->source_index ? (x->source_index < y->source_index ? -1 : 1)
                                              : (x->position > y->position) - (x->position < y->position);
}

static mb_status keep_records(fetcher *f, const mb_shard_input *input, wanted *list, int64_t n)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    qsort(list, (size_t)n, sizeof *list, by_index);
    MB_TRY(mb_records_open(input->path, INT64_MAX, &records));
    for (int64_t i = 0; i < n;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL)
            MB_RAISE(MB_EDATA,
                     "%s: record %lld is gone; the file changed since it was sharded: run moe-shard again",
                     input->path, (long long)list[i].source_index);
        for (; i < n && list[i].source_index == record.index; ++i) {
            /* CSV rows are kept as the object they were read as. */
            char *text = record.json != NULL && record.bytes[0] != '{'
                             ? json_dumps(record.json, JSON_ENSURE_ASCII | JSON_PRESERVE_ORDER)
                             : NULL;
            f->kept[list[i].position] =
                text != NULL ? mb_strdup(text) : mb_strndup(record.bytes, record.length);
            free(text);
            if (f->kept[list[i].position] == NULL)
                MB_RAISE(MB_ENOMEM, "no memory for the selected records of %s", input->path);
        }
    }
done:
    mb_records_close(&records);
    return status;
}

static mb_status open_sources(fetcher *f, const mb_scores_records *rows, const int64_t *records,
                              int64_t count)
{
    mb_status status = MB_OK;
    wanted *list = NULL;
    MB_NEW_ARRAY(list, count + 1);
    for (int64_t s = 0; s < rows->source_count; ++s) {
        int64_t n = 0;
        for (int64_t i = 0; i < count; ++i)
            if (rows->source[records[i]] == s) list[n++] = (wanted){rows->source_index[records[i]], i};
        if (n == 0) continue;
        if (mb_shard_build_is_plain(f->inputs[s].path)) {
            f->file[s] = open(f->inputs[s].path, O_RDONLY);
            if (f->file[s] < 0)
                MB_RAISE(MB_ENOTFOUND, "%s: cannot be opened; the selection needs the original file",
                         f->inputs[s].path);
        } else {
            MB_TRY(keep_records(f, &f->inputs[s], list, n));
        }
    }
done:
    mb_free(list);
    return status;
}

static mb_status fetch(fetcher *f, const mb_scores_records *rows, int64_t record, int64_t position,
                       const char **out_bytes, size_t *out_length)
{
    mb_status status = MB_OK;
    const int64_t s = rows->source[record], n = rows->byte_length[record];
    if (f->kept[position] != NULL) {
        *out_bytes = f->kept[position];
        *out_length = strlen(f->kept[position]);
        goto done;
    }
    MB_TRY(mb_str_reserve(&f->buffer, (size_t)n));
    for (int64_t have = 0; have < n;) {
        ssize_t got =
            pread(f->file[s], f->buffer.data + have, (size_t)(n - have), rows->byte_offset[record] + have);
        if (got <= 0)
            MB_RAISE(MB_EDATA,
                     "%s: record %lld at byte %lld is cut off; the file changed since it was sharded: run "
                     "moe-shard again",
                     f->inputs[s].path, (long long)rows->source_index[record],
                     (long long)rows->byte_offset[record]);
        have += got;
    }
    f->buffer.data[n] = '\0';
    *out_bytes = f->buffer.data;
    *out_length = (size_t)n;
done:
    return status;
}

/* ---- 3. writing ---- */

typedef struct selection_writer {
    fetcher fetcher;
    mb_shard_input *inputs;
    int64_t input_count;
    mb_tokenizer *tokenizer;
    mb_template **templates; /* [template_count] by source of the score table */
    int64_t template_count;
    mb_dialog dialog;
    mb_rendered rendered;
    mb_str line;
    FILE *out;
} selection_writer;

static mb_status add_json_text(mb_str *line, const char *text, size_t n)
{
    mb_status status = MB_OK;
    json_t *string = json_stringn(text, n);
    char *encoded = string != NULL ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    if (encoded == NULL) MB_RAISE(MB_ENOMEM, "no memory for the text of a selected record");
    MB_TRY(mb_str_add(line, encoded));
done:
    free(encoded);
    json_decref(string);
    return status;
}

/* A whole record must still render to the hash it was sharded with; the pieces of a split one hash with their
 * first token and are not checked. */
static mb_status check_record(const selection_writer *w, const mb_scores_records *rows, int64_t record,
                              const mb_shard_input *input)
{
    const bool is_piece = (record > 0 && rows->source_index[record - 1] == rows->source_index[record] &&
                           rows->source[record - 1] == rows->source[record]);
    if (is_piece ||
        mb_hash_u64(w->rendered.text.data, w->rendered.text.length, 0) == rows->record_hash[record])
        return MB_OK;
    return mb_fail(
        MB_EDATA,
        "%s: record %lld is not what was sharded; the file (or the template) changed: run moe-shard again",
        input->path, (long long)rows->source_index[record]);
}

static mb_status write_line(selection_writer *w, const mb_scores_records *rows, int64_t record,
                            int64_t position, double quality)
{
    mb_status status = MB_OK;
    json_t *object = NULL;
    const char *bytes = NULL;
    size_t n = 0;
    const mb_shard_input *input = &w->fetcher.inputs[rows->source[record]];
    MB_TRY(fetch(&w->fetcher, rows, record, position, &bytes, &n));
    MB_TRY(mb_json_parse(bytes, n, input->path, &object));
    status = mb_shard_build_render(object, input, w->templates[rows->source[record]], w->tokenizer, false,
                                   &w->dialog, &w->rendered);
    if (status != MB_OK)
        mb_status_prefix("%s: record %lld: ", input->path, (long long)rows->source_index[record]);
    MB_TRY(status);
    MB_TRY(check_record(w, rows, record, input));
    mb_str_reset(&w->line);
    MB_TRY(mb_str_add(&w->line, "{\"source_dataset\": "));
    MB_TRY(add_json_text(&w->line, input->name, strlen(input->name)));
    MB_TRY(mb_str_add_format(&w->line,
                             ", \"source_index\": %lld, \"text\": ", (long long)rows->source_index[record]));
    MB_TRY(add_json_text(&w->line, mb_str_text(&w->rendered.text), w->rendered.text.length));
    if (isfinite(quality))
        MB_TRY(mb_str_add_format(&w->line, ", \"quality_score\": %.9g", quality));
    else
        MB_TRY(mb_str_add(&w->line, ", \"quality_score\": null"));
    MB_TRY(mb_selection_splice(bytes, n, &w->line));
    MB_TRY(mb_str_add(&w->line, "}\n"));
    if (fwrite(w->line.data, 1, w->line.length, w->out) != w->line.length)
        MB_RAISE(MB_EIO, "the selection could not be written: disk full?");
done:
    json_decref(object);
    return status;
}

/* Inputs in the order of the score table's sources. */
static mb_status match_inputs(selection_writer *w, const mb_scores_records *rows,
                              const mb_shard_build_options *options, mb_shard_input **out_matched)
{
    mb_status status = MB_OK;
    mb_shard_input *matched = NULL;
    MB_TRY(mb_shard_build_inputs(options, &w->inputs, &w->input_count));
    MB_NEW_ARRAY(matched, rows->source_count + 1);
    for (int64_t s = 0; s < rows->source_count; ++s) {
        int64_t found = -1;
        for (int64_t i = 0; i < w->input_count; ++i)
            if (mb_str_equal(w->inputs[i].name, rows->source_names[s])) found = i;
        if (found < 0)
            MB_RAISE(MB_EUSAGE, "dataset.inputs has no '%s', which the scores were made from",
                     rows->source_names[s]);
        matched[s] = w->inputs[found];
    }
    *out_matched = matched;
    matched = NULL;
done:
    mb_free(matched);
    return status;
}

/* The template of each source, as sharding had it. */
static mb_status open_templates(selection_writer *w, const mb_shard_build_options *options,
                                const mb_shard_input *matched, int64_t count)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(w->templates, count);
    w->template_count = count;
    for (int64_t i = 0; i < count; ++i)
        MB_TRY(mb_shard_build_template_named(options,
                                             matched[i].tmpl != NULL ? matched[i].tmpl : options->tmpl,
                                             w->tokenizer, &w->templates[i]));
done:
    return status;
}

static void close_writer(selection_writer *w, int64_t sources, int64_t count)
{
    for (int64_t s = 0; w->fetcher.file != NULL && s < sources; ++s)
        if (w->fetcher.file[s] >= 0) close(w->fetcher.file[s]);
    for (int64_t i = 0; w->fetcher.kept != NULL && i < count; ++i) mb_free(w->fetcher.kept[i]);
    mb_free(w->fetcher.file);
    mb_free(w->fetcher.kept);
    mb_str_destroy(&w->fetcher.buffer);
    mb_shard_build_free_inputs(&w->inputs, w->input_count);
    for (int64_t i = 0; i < w->template_count; ++i) mb_template_close(&w->templates[i]);
    mb_free(w->templates);
    mb_tokenizer_close(&w->tokenizer);
    mb_dialog_destroy(&w->dialog);
    mb_rendered_destroy(&w->rendered);
    mb_str_destroy(&w->line);
    if (w->out != NULL) fclose(w->out);
}

mb_status mb_selection_write(const char *path, const mb_scores *scores, const mb_shard_build_options *options,
                             const int64_t *records, const double *quality, int64_t count)
{
    mb_status status = MB_OK;
    selection_writer w = {0};
    mb_shard_input *matched = NULL;
    mb_scores_records rows = {0};
    char *temporary = NULL;
    MB_TRY(mb_scores_records_view(scores, &rows));
    MB_TRY(match_inputs(&w, &rows, options, &matched));
    w.fetcher.inputs = matched;
    MB_NEW_ARRAY(w.fetcher.file, rows.source_count + 1);
    for (int64_t s = 0; s < rows.source_count; ++s) w.fetcher.file[s] = -1;
    MB_NEW_ARRAY(w.fetcher.kept, count + 1);
    MB_TRY(mb_tokenizer_open(options->tokenizer_path, &w.tokenizer));
    MB_TRY(open_templates(&w, options, matched, rows.source_count));
    MB_TRY(open_sources(&w.fetcher, &rows, records, count));
    temporary = mb_str_format("%s.tmp.%ld", path, (long)getpid());
    if (temporary == NULL || (w.out = fopen(temporary, "wb")) == NULL)
        MB_RAISE(MB_EIO, "%s: cannot be written", path);
    for (int64_t i = 0; i < count; ++i) MB_TRY(write_line(&w, &rows, records[i], i, quality[i]));
    if (fflush(w.out) != 0 || fsync(fileno(w.out)) != 0)
        MB_RAISE(MB_EIO, "%s: could not be written: disk full?", path);
    MB_TRY(mb_files_rename(temporary, path));
done:
    close_writer(&w, rows.source_count, count);
    if (status != MB_OK && temporary != NULL) unlink(temporary);
    mb_free(matched);
    mb_free(temporary);
    return status;
}

/* ---- 4. reading back ---- */

static mb_status read_line(const mb_record *record, const char *path, int64_t *out_key, double *out_score)
{
    mb_status status = MB_OK;
    const char *name;
    int64_t index;
    *out_score = NAN;
    if (record->problem != NULL)
        MB_RAISE(MB_EDATA, "%s: line %lld: %s", path, (long long)record->line, record->problem);
    MB_TRY(mb_json_get_string(record->json, "source_dataset", path, &name));
    MB_TRY(mb_json_get_int(record->json, "source_index", path, &index));
    MB_TRY(mb_json_opt_real(record->json, "quality_score", path, out_score));
    *out_key = (int64_t)mb_hash_u64(name, strlen(name), (uint64_t)index);
done:
    return status;
}

mb_status mb_selection_read(const char *path, int64_t **out_keys, double **out_scores, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    int64_t *keys = NULL, n = 0, capacity = 0;
    double *scores = NULL;
    MB_TRY(mb_records_open(path, INT64_MAX, &records));
    for (;; ++n) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        if (n == capacity) {
            capacity = capacity ? 2 * capacity : 1024;
            int64_t *more_keys = mb_realloc(keys, (size_t)capacity, sizeof *keys);
            if (more_keys != NULL) keys = more_keys;
            double *more_scores = mb_realloc(scores, (size_t)capacity, sizeof *scores);
            if (more_scores != NULL) scores = more_scores;
            if (more_keys == NULL || more_scores == NULL)
                MB_RAISE(MB_ENOMEM, "%s: no memory for %lld records", path, (long long)capacity);
        }
        MB_TRY(read_line(&record, path, &keys[n], &scores[n]));
    }
    *out_keys = keys;
    *out_scores = scores;
    *out_count = n;
    keys = NULL;
    scores = NULL;
done:
    mb_records_close(&records);
    mb_free(keys);
    mb_free(scores);
    return status;
}
