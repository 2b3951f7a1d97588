/* router_stats_file: shares of members per answer as HDF5, written by parts and joined.
 *
 * 1. making a file
 * 2. a query
 * 3. a part
 */
#include "stage/router_stats_file.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

#define CHUNK_BYTES ((size_t)256 << 10)

struct mb_router_stats_file {
    mb_router_shape shape;
    mb_h5 *h5;
    int64_t tokens, bytes;                                           /* behind each other so far */
    double prompt[MB_FUSE_MAX_MEMBERS], answer[MB_FUSE_MAX_MEMBERS]; /* sums over rows */
    int64_t prompt_rows, answer_rows;
};

/* ---- 1. making a file ---- */

static mb_status write_names(mb_router_stats_file *file)
{
    mb_status status = MB_OK;
    const mb_router_shape *shape = &file->shape;
    char(*texts)[32] = NULL;
    const char **names = NULL;
    MB_NEW_ARRAY(texts, shape->stages);
    MB_NEW_ARRAY(names, shape->stages);
    for (int64_t s = 0; s < shape->stages; s++) names[s] = mb_router_shape_stage(shape, s, texts[s]);
    MB_TRY(mb_h5_write_strings(file->h5, "/stages", names, shape->stages));
    MB_TRY(mb_h5_write_strings(file->h5, "/members", shape->members_name, shape->members));
done:
    mb_free(texts);
    mb_free(names);
    return status;
}

static mb_status make_columns(mb_router_stats_file *file)
{
    mb_status status = MB_OK;
    static const char *const whole[] = {"/record", "/sample", "/prompt_rows", "/answer_rows"};
    const int64_t row[] = {file->shape.stages, file->shape.members}, zero = 0;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        MB_TRY(mb_h5_create_rows(file->h5, whole[i], MB_I64, 0, NULL, CHUNK_BYTES));
    MB_TRY(mb_h5_create_rows(file->h5, "/prompt", MB_F64, 2, row, CHUNK_BYTES));
    MB_TRY(mb_h5_create_rows(file->h5, "/answer", MB_F64, 2, row, CHUNK_BYTES));
    if (!file->shape.has_tokens) goto done;
    MB_TRY(mb_h5_create_rows(file->h5, "/tokens/offsets", MB_I64, 0, NULL, CHUNK_BYTES));
    MB_TRY(mb_h5_append_rows(file->h5, "/tokens/offsets", &zero, 1));
    MB_TRY(mb_h5_create_rows(file->h5, "/tokens/ids", MB_U32, 0, NULL, CHUNK_BYTES));
    MB_TRY(mb_h5_create_rows(file->h5, "/tokens/share", MB_F32, 2, row, CHUNK_BYTES));
    MB_TRY(mb_h5_create_rows(file->h5, "/tokens/end", MB_I64, 0, NULL, CHUNK_BYTES));
    MB_TRY(mb_h5_create_rows(file->h5, "/tokens/text", MB_U8, 0, NULL, CHUNK_BYTES));
done:
    return status;
}

mb_status mb_router_stats_file_create(const char *path, const mb_router_shape *shape, const char *opt_model,
                                      const char *opt_tokenizer, mb_router_stats_file **out_file)
{
    mb_status status = MB_OK;
    mb_router_stats_file *file = NULL;
    MB_NEW(file);
    file->shape = *shape;
    MB_TRY(mb_h5_create(path, &file->h5));
    MB_TRY(mb_h5_set_text(file->h5, "/", "format",
                          opt_model != NULL ? "moebatch-router-stats" : "moebatch-router-stats-part"));
    MB_TRY(mb_h5_set_int(file->h5, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file->h5, "/", "kind", shape->by_layer ? "layer_level" : "token_level"));
    if (opt_model != NULL) MB_TRY(mb_h5_set_text(file->h5, "/", "model", opt_model));
    if (opt_tokenizer != NULL) MB_TRY(mb_h5_set_text(file->h5, "/", "tokenizer", opt_tokenizer));
    MB_TRY(write_names(file));
    MB_TRY(make_columns(file));
    *out_file = file;
    file = NULL;
done:
    mb_router_stats_file_destroy(&file);
    return status;
}

void mb_router_stats_file_destroy(mb_router_stats_file **file)
{
    if (*file == NULL) return;
    mb_h5_destroy(&(*file)->h5);
    MB_FREE(*file);
}

mb_status mb_router_stats_file_close(mb_router_stats_file **file)
{
    const mb_status status = mb_h5_close(&(*file)->h5);
    mb_router_stats_file_destroy(file);
    return status;
}

/* ---- 2. a query ---- */

static void add_to_mean(const mb_router_shape *shape, const double *part, int64_t rows, double *sum,
                        int64_t *all_rows)
{
    double share[MB_FUSE_MAX_MEMBERS];
    if (rows == 0) return;
    mb_router_query_mean(shape, part, share);
    for (int64_t m = 0; m < shape->members; m++) sum[m] += share[m] * (double)rows;
    *all_rows += rows;
}

static mb_status add_tokens(mb_router_stats_file *file, const mb_router_query *q)
{
    mb_status status = MB_OK;
    int64_t end;
    MB_TRY(mb_h5_append_rows(file->h5, "/tokens/ids", q->ids, q->tokens));
    MB_TRY(mb_h5_append_rows(file->h5, "/tokens/share", q->share, q->tokens));
    for (int64_t i = 0; i < q->tokens; i++) {
        end = file->bytes + q->end[i];
        MB_TRY(mb_h5_append_rows(file->h5, "/tokens/end", &end, 1));
    }
    MB_TRY(mb_h5_append_rows(file->h5, "/tokens/text", mb_str_text(&q->text), (int64_t)q->text.length));
    file->tokens += q->tokens;
    file->bytes += (int64_t)q->text.length;
    MB_TRY(mb_h5_append_rows(file->h5, "/tokens/offsets", &file->tokens, 1));
done:
    return status;
}

mb_status mb_router_stats_file_add(mb_router_stats_file *file, const mb_router_query *query)
{
    mb_status status = MB_OK;
    const mb_router_query *q = query;
    MB_TRY(mb_h5_append_rows(file->h5, "/record", &q->record, 1));
    MB_TRY(mb_h5_append_rows(file->h5, "/sample", &q->sample, 1));
    MB_TRY(mb_h5_append_rows(file->h5, "/prompt_rows", &q->prompt_rows, 1));
    MB_TRY(mb_h5_append_rows(file->h5, "/answer_rows", &q->answer_rows, 1));
    MB_TRY(mb_h5_append_rows(file->h5, "/prompt", q->prompt, 1));
    MB_TRY(mb_h5_append_rows(file->h5, "/answer", q->answer, 1));
    if (file->shape.has_tokens) MB_TRY(add_tokens(file, q));
    add_to_mean(&file->shape, q->prompt, q->prompt_rows, file->prompt, &file->prompt_rows);
    add_to_mean(&file->shape, q->answer, q->answer_rows, file->answer, &file->answer_rows);
done:
    return status;
}

void mb_router_stats_file_mean(const mb_router_stats_file *file, double *out_prompt, double *out_answer)
{
    for (int64_t m = 0; m < file->shape.members; m++) {
        out_prompt[m] = file->prompt_rows > 0 ? file->prompt[m] / (double)file->prompt_rows : (double)NAN;
        out_answer[m] = file->answer_rows > 0 ? file->answer[m] / (double)file->answer_rows : (double)NAN;
    }
}

/* ---- 3. a part ---- */

/* Row `at` of all, as the query that was added. */
static mb_status read_query(const mb_router_shape *shape, mb_h5 *in, int64_t at, mb_router_query *q)
{
    mb_status status = MB_OK;
    const int64_t width = shape->stages * shape->members;
    MB_NEW_ARRAY(q->prompt, width);
    MB_NEW_ARRAY(q->answer, width);
    MB_TRY(mb_h5_read_rows(in, "/record", MB_I64, at, 1, &q->record));
    MB_TRY(mb_h5_read_rows(in, "/sample", MB_I64, at, 1, &q->sample));
    MB_TRY(mb_h5_read_rows(in, "/prompt_rows", MB_I64, at, 1, &q->prompt_rows));
    MB_TRY(mb_h5_read_rows(in, "/answer_rows", MB_I64, at, 1, &q->answer_rows));
    MB_TRY(mb_h5_read_rows(in, "/prompt", MB_F64, at, 1, q->prompt));
    MB_TRY(mb_h5_read_rows(in, "/answer", MB_F64, at, 1, q->answer));
done:
    return status;
}

static mb_status read_tokens(const mb_router_shape *shape, mb_h5 *in, int64_t at, int64_t *bytes,
                             mb_router_query *q)
{
    mb_status status = MB_OK;
    int64_t range[2];
    MB_TRY(mb_h5_read_rows(in, "/tokens/offsets", MB_I64, at, 2, range));
    q->tokens = range[1] - range[0];
    if (q->tokens < 1) MB_RAISE(MB_EFORMAT, "%s: an answer without tokens", mb_h5_path(in));
    MB_NEW_ARRAY(q->ids, q->tokens);
    MB_NEW_ARRAY(q->end, q->tokens);
    MB_NEW_ARRAY(q->share, q->tokens * shape->stages * shape->members);
    MB_TRY(mb_h5_read_rows(in, "/tokens/ids", MB_U32, range[0], q->tokens, q->ids));
    MB_TRY(mb_h5_read_rows(in, "/tokens/end", MB_I64, range[0], q->tokens, q->end));
    MB_TRY(mb_h5_read_rows(in, "/tokens/share", MB_F32, range[0], q->tokens, q->share));
    const int64_t first = *bytes, n = q->end[q->tokens - 1] - first;
    if (n < 0) MB_RAISE(MB_EFORMAT, "%s: texts of tokens out of order", mb_h5_path(in));
    for (int64_t i = 0; i < q->tokens; i++) q->end[i] -= first;
    MB_TRY(mb_str_reserve(&q->text, (size_t)n));
    if (n > 0) MB_TRY(mb_h5_read_rows(in, "/tokens/text", MB_U8, first, n, q->text.data));
    q->text.length = (size_t)n;
    q->text.data[n] = 0;
    *bytes += n;
done:
    return status;
}

mb_status mb_router_stats_file_append(mb_router_stats_file *file, const char *part)
{
    mb_status status = MB_OK;
    mb_h5 *in = NULL;
    mb_router_query q = {0};
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS], bytes = 0;
    MB_TRY(mb_h5_open(part, &in));
    MB_TRY(mb_h5_shape(in, "/answer", &dtype, &dims, shape));
    if (dims != 3 || shape[1] != file->shape.stages || shape[2] != file->shape.members)
        MB_RAISE(MB_EFORMAT, "%s: not a part of this model's shares; remove it and run again", part);
    for (int64_t i = 0; i < shape[0]; i++) {
        MB_TRY(read_query(&file->shape, in, i, &q));
        if (file->shape.has_tokens) MB_TRY(read_tokens(&file->shape, in, i, &bytes, &q));
        MB_TRY(mb_router_stats_file_add(file, &q));
        mb_router_query_reset(&q);
    }
done:
    mb_router_query_reset(&q);
    mb_h5_destroy(&in);
    return status;
}
