/* scores_join.c: all parts of a score file into one, with the records' own columns beside the scores.
 *
 * 1. the parts   2. columns   3. attributes   4. join
 */
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "store/scores_part.h"

#define CHUNK_BYTES ((size_t)256 << 10)

/* ---- 1. the parts ---- */

/* Do the parts hold every row of [0, n) once? */
static mb_status check_parts(const char *path, const mb_scores_part_file *parts, int64_t count, int64_t n)
{
    mb_status status = MB_OK;
    int64_t at = 0;
    for (int64_t i = 0; i <= count; i++) {
        int64_t first = i < count ? parts[i].first : n;
        if (first > at)
            MB_RAISE(MB_EFORMAT, "%s: rows %lld to %lld are in no part; score them (run moe-score again)",
                     path, (long long)at, (long long)first - 1);
        if (first < at)
            MB_RAISE(MB_EFORMAT,
                     "%s: %s begins with row %lld, which an earlier part holds already; remove one of them",
                     path, i < count ? parts[i].path : "the end", (long long)first);
        if (i < count) at = first + parts[i].rows;
    }
done:
    return status;
}

/* ---- 2. columns ---- */

/* One dataset of one part behind what the joined file has of it. */
static mb_status append_part(mb_h5 *out, mb_h5 *in, const char *name, mb_dtype dtype, int64_t rows,
                             int64_t width)
{
    mb_status status = MB_OK;
    void *data = NULL;
    mb_dtype stored;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_shape(in, name, &stored, &dims, shape));
    if (stored != dtype || shape[0] != rows || shape[1] != width)
        MB_RAISE(MB_EFORMAT, "%s: %s is not [%lld, %lld] %s; remove the part and score it again",
                 mb_h5_path(in), name, (long long)rows, (long long)width, mb_dtype_name(dtype));
    MB_TRY(mb_h5_read_new(in, name, dtype, &dims, shape, &data));
    MB_TRY(mb_h5_append_rows(out, name, data, rows));
done:
    mb_free(data);
    return status;
}

static mb_status join_columns(mb_h5 *out, const mb_scores_part_file *parts, int64_t part_count,
                              const mb_scores_column *columns, int64_t column_count, int64_t layer_count)
{
    mb_status status = MB_OK;
    mb_h5 *in = NULL;
    char name[96];
    for (int64_t c = 0; c < column_count; c++) {
        snprintf(name, sizeof name, "/scores/%s", columns[c].name);
        MB_TRY(mb_h5_create_rows(out, name, MB_F64, 0, NULL, CHUNK_BYTES));
        snprintf(name, sizeof name, "/layers/%s", columns[c].name);
        if (columns[c].has_layers) MB_TRY(mb_h5_create_rows(out, name, MB_F32, 1, &layer_count, CHUNK_BYTES));
    }
    for (int64_t i = 0; i < part_count; i++) {
        MB_TRY(mb_h5_open(parts[i].path, &in));
        for (int64_t c = 0; c < column_count; c++) {
            snprintf(name, sizeof name, "/scores/%s", columns[c].name);
            MB_TRY(append_part(out, in, name, MB_F64, parts[i].rows, 1));
            snprintf(name, sizeof name, "/layers/%s", columns[c].name);
            if (columns[c].has_layers) MB_TRY(append_part(out, in, name, MB_F32, parts[i].rows, layer_count));
        }
        mb_h5_destroy(&in);
    }
done:
    mb_h5_destroy(&in);
    return status;
}

static mb_status write_sources(mb_h5 *out, const mb_shard *shard)
{
    mb_status status = MB_OK;
    int64_t n = mb_shard_sources(shard), files = mb_shard_files(shard);
    const char **texts = NULL;
    MB_NEW_ARRAY(texts, n + files + 1);
    for (int64_t i = 0; i < n; i++) texts[i] = mb_shard_source_name(shard, i);
    MB_TRY(mb_h5_write_strings(out, "/source_names", texts, n));
    for (int64_t i = 0; i < n; i++) texts[i] = mb_shard_source_file(shard, i);
    MB_TRY(mb_h5_write_strings(out, "/source_files", texts, n));
    for (int64_t i = 0; i < files; i++) texts[i] = mb_shard_file_path(shard, i);
    MB_TRY(mb_h5_write_strings(out, "/provenance/shard_files", texts, files));
done:
    mb_free(texts);
    return status;
}

static mb_status write_records(mb_h5 *out, const mb_shard *shard)
{
    mb_status status = MB_OK;
    int64_t n = mb_shard_count(shard), *tokens = NULL;
    mb_shard_columns columns = mb_shard_columns_get(shard);
    const struct {
        const char *path;
        mb_dtype dtype;
        const void *data;
    } all[] = {{"/record_hash", MB_U64, columns.record_hash},
               {"/source", MB_U16, columns.source},
               {"/source_index", MB_I64, columns.source_index},
               {"/byte_offset", MB_I64, columns.byte_offset},
               {"/byte_length", MB_I64, columns.byte_length}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        mb_tensor tensor = mb_tensor_view1(all[i].dtype, (void *)all[i].data, n);
        MB_TRY(mb_h5_write(out, all[i].path, &tensor));
    }
    MB_NEW_ARRAY(tokens, n);
    for (int64_t i = 0; i < n; i++) tokens[i] = mb_shard_length(shard, i);
    mb_tensor tensor = mb_tensor_view1(MB_I64, tokens, n);
    MB_TRY(mb_h5_write(out, "/tokens", &tensor));
    MB_TRY(write_sources(out, shard));
done:
    mb_free(tokens);
    return status;
}

/* ---- 3. attributes ---- */

/* Members of an object as attributes; nested objects and lists as JSON text. */
static mb_status write_attributes(mb_h5 *out, const json_t *attributes)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)attributes, name, value)
    {
        if (json_is_string(value)) {
            MB_TRY(mb_h5_set_text(out, "/", name, json_string_value(value)));
        } else if (json_is_integer(value)) {
            MB_TRY(mb_h5_set_int(out, "/", name, json_integer_value(value)));
        } else if (json_is_real(value)) {
            MB_TRY(mb_h5_set_real(out, "/", name, json_real_value(value)));
        } else {
            mb_str_reset(&text);
            MB_TRY(mb_json_print(value, 0, false, &text));
            MB_TRY(mb_h5_set_text(out, "/", name, mb_str_text(&text)));
        }
    }
done:
    mb_str_destroy(&text);
    return status;
}

/* What the reader needs to know of the columns. */
static mb_status describe_columns(mb_h5 *out, const mb_scores_column *columns, int64_t column_count,
                                  const int64_t *layers, int64_t layer_count)
{
    mb_status status = MB_OK;
    mb_str names = MB_STR_EMPTY, numbers = MB_STR_EMPTY;
    char name[96];
    for (int64_t c = 0; c < column_count; c++) {
        MB_TRY(mb_str_add_format(&names, "%s\"%s\"", c > 0 ? ", " : "[", columns[c].name));
        snprintf(name, sizeof name, "flops_per_token/%s", columns[c].name);
        MB_TRY(mb_h5_set_real(out, "/", name, columns[c].flops_per_token));
        snprintf(name, sizeof name, "higher_is_better/%s", columns[c].name);
        MB_TRY(mb_h5_set_int(out, "/", name, columns[c].higher_is_better));
    }
    MB_TRY(mb_str_add(&names, column_count > 0 ? "]" : "[]"));
    for (int64_t l = 0; l < layer_count; l++)
        MB_TRY(mb_str_add_format(&numbers, "%s%lld", l > 0 ? ", " : "[", (long long)layers[l]));
    MB_TRY(mb_str_add(&numbers, layer_count > 0 ? "]" : "[]"));
    MB_TRY(mb_h5_set_text(out, "/", "columns", mb_str_text(&names)));
    MB_TRY(mb_h5_set_text(out, "/", "layers", mb_str_text(&numbers)));
done:
    mb_str_destroy(&names);
    mb_str_destroy(&numbers);
    return status;
}

/* ---- 4. join ---- */

mb_status mb_scores_join_start(const char *path, const char *key, mb_shard *shard, const char *format,
                               const json_t *opt_attributes, mb_scores_join_state *join)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT];
    MB_TRY(mb_scores_part_list(path, key, &join->parts, &join->count));
    MB_TRY(check_parts(path, join->parts, join->count, mb_shard_count(shard)));
    MB_TRY(mb_shard_hash(shard, hash));
    MB_TRY(mb_h5_create(path, &join->out));
    MB_TRY(mb_h5_set_text(join->out, "/", "format", format));
    MB_TRY(mb_h5_set_int(join->out, "/", "version", 1));
    MB_TRY(mb_h5_set_text(join->out, "/", "shard", hash));
    if (opt_attributes != NULL) MB_TRY(write_attributes(join->out, opt_attributes));
done:
    return status;
}

mb_status mb_scores_join_end(mb_scores_join_state *join, const mb_shard *shard)
{
    mb_status status = MB_OK;
    MB_TRY(write_records(join->out, shard));
    MB_TRY(mb_h5_close(&join->out));
done:
    return status;
}

void mb_scores_join_reset(mb_scores_join_state *join)
{
    mb_h5_destroy(&join->out);
    mb_scores_part_free_list(&join->parts, join->count);
    *join = (mb_scores_join_state){0};
}

mb_status mb_scores_join(const char *path, const char *key, mb_shard *shard, const mb_scores_column *columns,
                         int64_t column_count, const int64_t *layers, int64_t layer_count,
                         const json_t *attributes)
{
    mb_status status = MB_OK;
    mb_scores_join_state join = {0};
    MB_TRY(mb_scores_join_start(path, key, shard, "moebatch-scores", attributes, &join));
    MB_TRY(describe_columns(join.out, columns, column_count, layers, layer_count));
    MB_TRY(join_columns(join.out, join.parts, join.count, columns, column_count, layer_count));
    MB_TRY(mb_scores_join_end(&join, shard));
done:
    mb_scores_join_reset(&join);
    return status;
}
