/* embeddings.c: joining, reading and exporting vectors.
 *
 * 1. parts   2. reading   3. numpy
 */
#include "store/embeddings.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "store/scores_part.h"

#define CHUNK_BYTES ((size_t)256 << 10)
#define PART_NAME   "/layers/embedding"
enum { BLOCK_FLOATS = 1 << 20 };

/* ---- 1. parts ---- */

mb_status mb_embeddings_part_write(const char *path, const char *key, int64_t first, int64_t rows,
                                   int64_t width, float *vectors)
{
    mb_status status = MB_OK;
    const mb_scores_column column = {.name = "embedding", .has_layers = true};
    mb_scores_part part = {.first = first, .rows = rows, .layers = vectors};
    MB_NEW_ARRAY(part.values, rows);
    MB_TRY(mb_scores_part_write(path, key, &column, 1, width, &part));
done:
    mb_free(part.values);
    return status;
}

static mb_status append_part(mb_h5 *out, const mb_scores_part_file *part, int64_t width)
{
    mb_status status = MB_OK;
    mb_h5 *in = NULL;
    void *data = NULL;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_open(part->path, &in));
    MB_TRY(mb_h5_read_new(in, PART_NAME, MB_F32, &dims, shape, &data));
    if (dims != 2 || shape[0] != part->rows || shape[1] != width)
        MB_RAISE(MB_EFORMAT, "%s: %s is not [%lld, %lld]; remove the part and run again", part->path,
                 PART_NAME, (long long)part->rows, (long long)width);
    MB_TRY(mb_h5_append_rows(out, "/embeddings", data, part->rows));
done:
    mb_free(data);
    mb_h5_destroy(&in);
    return status;
}

mb_status mb_embeddings_join(const char *path, const char *key, mb_shard *shard, int64_t width,
                             const json_t *attributes)
{
    mb_status status = MB_OK;
    mb_scores_join_state join = {0};
    MB_TRY(mb_scores_join_start(path, key, shard, "moebatch-embeddings", attributes, &join));
    MB_TRY(mb_h5_set_int(join.out, "/", "dimension", width));
    MB_TRY(mb_h5_create_rows(join.out, "/embeddings", MB_F32, 1, &width, CHUNK_BYTES));
    for (int64_t i = 0; i < join.count; i++) MB_TRY(append_part(join.out, &join.parts[i], width));
    MB_TRY(mb_scores_join_end(&join, shard));
done:
    mb_scores_join_reset(&join);
    return status;
}

/* ---- 2. reading ---- */

struct mb_embeddings {
    mb_h5 *file;
    int64_t count, width;
};

mb_status mb_embeddings_open(const char *path, mb_embeddings **out_embeddings)
{
    mb_status status = MB_OK;
    mb_embeddings *e = NULL;
    mb_str format = MB_STR_EMPTY;
    mb_dtype dtype;
    int dims = 0;
    int64_t version = 0, shape[MB_TENSOR_MAX_DIMS];
    MB_NEW(e);
    MB_TRY(mb_h5_open(path, &e->file));
    if (mb_h5_get_text(e->file, "/", "format", &format) != MB_OK ||
        strcmp(mb_str_text(&format), "moebatch-embeddings") != 0)
        MB_RAISE(MB_EFORMAT, "%s: not a file of embeddings; make one with moe-embed", path);
    MB_TRY(mb_h5_get_int(e->file, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: embeddings of version %lld, this program reads version 1", path,
                 (long long)version);
    MB_TRY(mb_h5_shape(e->file, "/embeddings", &dtype, &dims, shape));
    if (dims != 2 || dtype != MB_F32) MB_RAISE(MB_EFORMAT, "%s: /embeddings is not [N, D] f32", path);
    e->count = shape[0];
    e->width = shape[1];
    *out_embeddings = e;
    e = NULL;
done:
    mb_str_destroy(&format);
    mb_embeddings_close(&e);
    return status;
}

void mb_embeddings_close(mb_embeddings **embeddings)
{
    if (*embeddings == NULL) return;
    mb_h5_destroy(&(*embeddings)->file);
    MB_FREE(*embeddings);
}

int64_t mb_embeddings_count(const mb_embeddings *embeddings)
{
    return embeddings->count;
}

int64_t mb_embeddings_width(const mb_embeddings *embeddings)
{
    return embeddings->width;
}

mb_h5 *mb_embeddings_file(const mb_embeddings *embeddings)
{
    return embeddings->file;
}

mb_status mb_embeddings_read(const mb_embeddings *embeddings, int64_t first, int64_t rows, float *out)
{
    return mb_h5_read_rows(embeddings->file, "/embeddings", MB_F32, first, rows, out);
}

/* ---- 3. numpy ---- */

/* Magic, version, length, and the dictionary padded with blanks to a multiple of 64 bytes. */
static mb_status write_header(FILE *out, const char *path, int64_t rows, int64_t width)
{
    char head[128];
    memset(head, ' ', sizeof head);
    memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
    const int n = snprintf(head + 10, sizeof head - 10,
                           "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }",
                           (long long)rows, (long long)width);
    head[10 + n] = ' ';
    head[sizeof head - 1] = '\n';
    return fwrite(head, sizeof head, 1, out) == 1 ? MB_OK : mb_fail(MB_EIO, "%s: cannot be written", path);
}

mb_status mb_embeddings_export(const char *path, const char *npy_path)
{
    mb_status status = MB_OK;
    mb_embeddings *e = NULL;
    FILE *out = NULL;
    float *block = NULL;
    char *aside = mb_str_format("%s.tmp.%ld", npy_path, (long)getpid());
    if (aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", npy_path);
    MB_TRY(mb_embeddings_open(path, &e));
    MB_TRY(mb_files_check_space(npy_path, e->count * e->width * (int64_t)sizeof(float), "the numpy file"));
    const int64_t step = BLOCK_FLOATS / e->width + 1;
    MB_NEW_ARRAY(block, step * e->width);
    out = fopen(aside, "wb");
    if (out == NULL) MB_RAISE(MB_EIO, "%s: %s", aside, strerror(errno));
    MB_TRY(write_header(out, aside, e->count, e->width));
    for (int64_t first = 0; first < e->count; first += step) {
        const int64_t rows = e->count - first < step ? e->count - first : step;
        MB_TRY(mb_embeddings_read(e, first, rows, block));
        if (fwrite(block, sizeof *block * (size_t)e->width, (size_t)rows, out) != (size_t)rows)
            MB_RAISE(MB_EIO, "%s: %s", aside, strerror(errno));
    }
    const int closed = fclose(out);
    out = NULL;
    if (closed != 0) MB_RAISE(MB_EIO, "%s: %s", aside, strerror(errno));
    MB_TRY(mb_files_sync(aside));
    MB_TRY(mb_files_rename(aside, npy_path));
done:
    if (out != NULL) fclose(out);
    if (status != MB_OK && aside != NULL) unlink(aside);
    mb_free(block);
    mb_free(aside);
    mb_embeddings_close(&e);
    return status;
}
