/* scores.c: reading a score file.
 *
 * Columns are described by attributes; their values are read on demand, the records' own columns when the
 * file is opened.
 *
 * 1. opening   2. reading
 */
#include "store/scores.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"

struct mb_scores {
    mb_h5 *file;
    int64_t records, layer_count;
    mb_scores_column *columns;
    int64_t column_count;
    void *data[6]; /* record_hash, source, source_index, byte_offset, byte_length, tokens */
    char **source_names, **source_files;
    int64_t source_count, file_count;
};

/* ---- 1. opening ---- */

static mb_status read_list(mb_h5 *file, const char *name, json_t **out_list)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *list = NULL;
    MB_TRY(mb_h5_get_text(file, "/", name, &text));
    MB_TRY(mb_json_parse(mb_str_text(&text), text.length, mb_h5_path(file), &list));
    if (!json_is_array(list))
        MB_RAISE(MB_EFORMAT, "%s: attribute \"%s\" is not a list", mb_h5_path(file), name);
    *out_list = list;
    list = NULL;
done:
    mb_str_destroy(&text);
    json_decref(list);
    return status;
}

static mb_status open_columns(mb_scores *scores)
{
    mb_status status = MB_OK;
    json_t *names = NULL, *layers = NULL;
    char path[160];
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS], better = 0;
    MB_TRY(read_list(scores->file, "columns", &names));
    MB_TRY(read_list(scores->file, "layers", &layers));
    scores->layer_count = (int64_t)json_array_size(layers);
    MB_NEW_ARRAY(scores->columns, json_array_size(names) + 1);
    for (size_t i = 0; i < json_array_size(names); i++) {
        mb_scores_column *column = &scores->columns[i];
        const char *name = json_string_value(json_array_get(names, i));
        if (name == NULL || strlen(name) >= sizeof column->name)
            MB_RAISE(MB_EFORMAT, "%s: attribute \"columns\" is not a list of short names",
                     mb_h5_path(scores->file));
        snprintf(column->name, sizeof column->name, "%s", name);
        snprintf(path, sizeof path, "/scores/%s", name);
        MB_TRY(mb_h5_shape(scores->file, path, NULL, &dims, shape));
        if (dims != 1 || shape[0] != scores->records)
            MB_RAISE(MB_EFORMAT, "%s: %s has not one value for each of the %lld records",
                     mb_h5_path(scores->file), path, (long long)scores->records);
        snprintf(path, sizeof path, "flops_per_token/%s", name);
        MB_TRY(mb_h5_get_real(scores->file, "/", path, &column->flops_per_token));
        snprintf(path, sizeof path, "higher_is_better/%s", name);
        MB_TRY(mb_h5_get_int(scores->file, "/", path, &better));
        column->higher_is_better = better != 0;
        snprintf(path, sizeof path, "/layers/%s", name);
        column->has_layers = mb_h5_has(scores->file, path);
        scores->column_count++;
    }
done:
    json_decref(names);
    json_decref(layers);
    return status;
}

static const struct {
    const char *path;
    mb_dtype dtype;
} record_columns[] = {{"/record_hash", MB_U64}, {"/source", MB_U16},      {"/source_index", MB_I64},
                      {"/byte_offset", MB_I64}, {"/byte_length", MB_I64}, {"/tokens", MB_I64}};
enum { RECORD_COLUMNS = sizeof record_columns / sizeof *record_columns };

static mb_status open_records(mb_scores *scores)
{
    mb_status status = MB_OK;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    for (int i = 0; i < RECORD_COLUMNS; i++) {
        MB_TRY(mb_h5_read_new(scores->file, record_columns[i].path, record_columns[i].dtype, &dims, shape,
                              &scores->data[i]));
        if (i == 0) scores->records = shape[0];
        if (dims != 1 || shape[0] != scores->records)
            MB_RAISE(MB_EFORMAT, "%s: %s has not one value for each of the %lld records",
                     mb_h5_path(scores->file), record_columns[i].path, (long long)scores->records);
    }
    MB_TRY(mb_h5_read_strings(scores->file, "/source_names", &scores->source_names, &scores->source_count));
    MB_TRY(mb_h5_read_strings(scores->file, "/source_files", &scores->source_files, &scores->file_count));
    if (scores->file_count != scores->source_count)
        MB_RAISE(MB_EFORMAT, "%s: %lld names of sources, but %lld files", mb_h5_path(scores->file),
                 (long long)scores->source_count, (long long)scores->file_count);
    const uint16_t *source = scores->data[1];
    for (int64_t i = 0; i < scores->records; i++)
        if (source[i] >= scores->source_count)
            MB_RAISE(MB_EFORMAT, "%s: record %lld has source %u of %lld", mb_h5_path(scores->file),
                     (long long)i, source[i], (long long)scores->source_count);
done:
    return status;
}

mb_status mb_scores_open(const char *path, mb_scores **out_scores)
{
    mb_status status = MB_OK;
    mb_scores *scores = NULL;
    mb_str format = MB_STR_EMPTY;
    int64_t version = 0;
    MB_NEW(scores);
    MB_TRY(mb_h5_open(path, &scores->file));
    if (mb_h5_get_text(scores->file, "/", "format", &format) != MB_OK ||
        strcmp(mb_str_text(&format), "moebatch-scores") != 0)
        MB_RAISE(MB_EFORMAT, "%s: not a score file; make one with moe-score", path);
    MB_TRY(mb_h5_get_int(scores->file, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: a score file of version %lld, this program reads version 1", path,
                 (long long)version);
    MB_TRY(open_records(scores));
    MB_TRY(open_columns(scores));
    *out_scores = scores;
    scores = NULL;
done:
    mb_str_destroy(&format);
    mb_scores_close(&scores);
    return status;
}

void mb_scores_close(mb_scores **scores)
{
    mb_scores *s = *scores;
    if (s == NULL) return;
    for (int i = 0; i < RECORD_COLUMNS; i++) mb_free(s->data[i]);
    mb_h5_free_strings(&s->source_names, s->source_count);
    mb_h5_free_strings(&s->source_files, s->file_count);
    mb_free(s->columns);
    mb_h5_destroy(&s->file);
    MB_FREE(*scores);
}

/* ---- 2. reading ---- */

int64_t mb_scores_count(const mb_scores *scores)
{
    return scores->records;
}
int64_t mb_scores_columns(const mb_scores *scores)
{
    return scores->column_count;
}
int64_t mb_scores_layers(const mb_scores *scores)
{
    return scores->layer_count;
}

const mb_scores_column *mb_scores_column_get(const mb_scores *scores, int64_t i)
{
    assert(i >= 0 && i < scores->column_count);
    return &scores->columns[i];
}

static mb_status find_column(const mb_scores *scores, const char *name, const mb_scores_column **out_column)
{
    mb_str names = MB_STR_EMPTY;
    for (int64_t i = 0; i < scores->column_count; i++) {
        *out_column = &scores->columns[i];
        if (strcmp(scores->columns[i].name, name) == 0) {
            mb_str_destroy(&names);
            return MB_OK;
        }
        if (mb_str_add_format(&names, "%s%s", i > 0 ? ", " : "", scores->columns[i].name) != MB_OK) break;
    }
    mb_status status =
        mb_fail(MB_ENOTFOUND, "%s: there is no score \"%s\"; there are %s", mb_h5_path(scores->file), name,
                names.length > 0 ? mb_str_text(&names) : "none");
    mb_str_destroy(&names);
    return status;
}

mb_status mb_scores_read(const mb_scores *scores, const char *name, int64_t first, int64_t rows, double *out)
{
    mb_status status = MB_OK;
    const mb_scores_column *column = NULL;
    char path[96];
    MB_TRY(find_column(scores, name, &column));
    snprintf(path, sizeof path, "/scores/%s", column->name);
    MB_TRY(mb_h5_read_rows(scores->file, path, MB_F64, first, rows, out));
done:
    return status;
}

mb_status mb_scores_read_layers(const mb_scores *scores, const char *name, const int64_t *layers, int64_t n,
                                int64_t first, int64_t rows, double *out)
{
    mb_status status = MB_OK;
    const mb_scores_column *column = NULL;
    char path[96];
    float *block = NULL;
    int64_t width = scores->layer_count, step = 65536 / (width > 0 ? width : 1) + 1;
    MB_TRY(find_column(scores, name, &column));
    if (!column->has_layers)
        MB_RAISE(MB_ENOTFOUND, "%s: score \"%s\" is not stored by layer", mb_h5_path(scores->file), name);
    if (n < 1)
        MB_RAISE(MB_ERANGE, "%s: no layers are named for score \"%s\"", mb_h5_path(scores->file), name);
    for (int64_t l = 0; l < n; l++)
        if (layers[l] < 0 || layers[l] >= width)
            MB_RAISE(MB_ERANGE, "%s: layer position %lld of score \"%s\" is outside 0..%lld",
                     mb_h5_path(scores->file), (long long)layers[l], name, (long long)width - 1);
    snprintf(path, sizeof path, "/layers/%s", column->name);
    MB_NEW_ARRAY(block, step * width);
    for (int64_t at = 0; at < rows; at += step) {
        int64_t part = rows - at < step ? rows - at : step;
        MB_TRY(mb_h5_read_rows(scores->file, path, MB_F32, first + at, part, block));
        for (int64_t i = 0; i < part; i++) {
            double sum = 0;
            for (int64_t l = 0; l < n; l++) sum += block[i * width + layers[l]];
            out[at + i] = sum / (double)n;
        }
    }
done:
    mb_free(block);
    return status;
}

mb_status mb_scores_records_view(const mb_scores *scores, mb_scores_records *out_records)
{
    *out_records = (mb_scores_records){.record_hash = scores->data[0],
                                       .source = scores->data[1],
                                       .source_index = scores->data[2],
                                       .byte_offset = scores->data[3],
                                       .byte_length = scores->data[4],
                                       .tokens = scores->data[5],
                                       .source_names = (const char *const *)scores->source_names,
                                       .source_files = (const char *const *)scores->source_files,
                                       .source_count = scores->source_count};
    return MB_OK;
}

mb_h5 *mb_scores_file(const mb_scores *scores)
{
    return scores->file;
}
