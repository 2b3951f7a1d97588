/* teacher_join.c: parts of a teacher's file, written by any rank, and all of them into one.
 *
 * The rows' content is hashed while they are appended, so that a reader knows them without reading them all.
 *
 * 1. a part   2. appending   3. the whole
 */
#include "store/teacher.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/str.h"
#include "store/scores_part.h"

#define CHUNK_BYTES ((size_t)256 << 10)
enum { COLUMNS = 4 };

/* The datasets that parts and whole have: name, type, numbers a row. */
typedef struct teacher_column {
    const char *path;
    mb_dtype dtype;
    int64_t width; /* 0: one number, without a dimension of its own */
} teacher_column;

static void get_columns(const mb_teacher_shape *shape, teacher_column columns[COLUMNS])
{
    columns[0] = (teacher_column){"/ids", shape->vocab <= 65536 ? MB_U16 : MB_U32, shape->k};
    columns[1] = (teacher_column){"/logprob", shape->dtype, shape->k};
    columns[2] = (teacher_column){"/tail", MB_F32, shape->temperatures};
    columns[3] = (teacher_column){"/mass", MB_F32, 0};
}

/* ---- 1. a part ---- */

static void narrow_ids(const int32_t *ids, int64_t n, uint16_t *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = (uint16_t)ids[i];
}

static mb_status write_column(mb_h5 *file, const teacher_column *column, const void *data, int64_t rows)
{
    mb_tensor tensor = column->width > 0 ? mb_tensor_view2(column->dtype, (void *)data, rows, column->width)
                                         : mb_tensor_view1(column->dtype, (void *)data, rows);
    return mb_h5_write(file, column->path, &tensor);
}

static mb_status write_rows(mb_h5 *file, const mb_teacher_shape *shape, const mb_teacher_part *part)
{
    mb_status status = MB_OK;
    teacher_column columns[COLUMNS];
    uint16_t *narrow = NULL;
    const int64_t rows = part->row_first[part->records], n = rows * shape->k;
    get_columns(shape, columns);
    if (rows == 0) goto done;
    MB_NEW_ARRAY(narrow, n);
    if (columns[0].dtype == MB_U16) narrow_ids(part->ids, n, narrow);
    MB_TRY(write_column(file, &columns[0],
                        columns[0].dtype == MB_U16 ? (const void *)narrow : (const void *)part->ids, rows));
    if (shape->dtype == MB_F16) MB_TRY(mb_dtype_from_f32(MB_F16, part->logprob, n, narrow));
    MB_TRY(write_column(file, &columns[1],
                        shape->dtype == MB_F16 ? (const void *)narrow : (const void *)part->logprob, rows));
    MB_TRY(write_column(file, &columns[2], part->tail, rows));
    MB_TRY(write_column(file, &columns[3], part->mass, rows));
done:
    mb_free(narrow);
    return status;
}

static mb_status write_part(const char *name, const char *key, const mb_teacher_shape *shape,
                            const mb_teacher_part *part)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_tensor first = mb_tensor_view1(MB_I64, part->row_first, part->records + 1);
    MB_TRY(mb_h5_create(name, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-teacher-part"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "key", key));
    MB_TRY(mb_h5_set_int(file, "/", "first", part->first));
    MB_TRY(mb_h5_set_int(file, "/", "rows", part->records));
    MB_TRY(mb_h5_write(file, "/offsets", &first));
    MB_TRY(write_rows(file, shape, part));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

mb_status mb_teacher_part_write(const char *path, const char *key, const mb_teacher_shape *shape,
                                const mb_teacher_part *part)
{
    mb_status status = MB_OK;
    char *folder = mb_scores_part_folder(path), *name = mb_scores_part_path(path, part->first, part->records);
    if (folder == NULL || name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    assert(part->first >= 0 && part->records > 0);
    for (int attempt = 0;; attempt++) {
        MB_TRY(mb_files_make_folders(folder));
        status = write_part(name, key, shape, part);
        if (status == MB_OK || attempt == 3 || mb_files_is_folder(folder)) break;
        mb_status_reset(); /* another run joined the parts and removed the folder: late, but no harm */
    }
    MB_TRY(status);
done:
    mb_free(folder);
    mb_free(name);
    return status;
}

/* ---- 2. appending ---- */

/* A file being joined. */
typedef struct joined {
    mb_h5 *out;
    teacher_column columns[COLUMNS];
    mb_hash *hash[COLUMNS];
    int64_t *offsets; /* [N + 1] */
    int64_t records, rows;
    float *mass; /* [rows], grows */
    int64_t room;
} joined;

static void joined_reset(joined *j)
{
    for (int c = 0; c < COLUMNS; c++) mb_hash_destroy(&j->hash[c]);
    mb_free(j->offsets);
    mb_free(j->mass);
}

static mb_status joined_start(joined *j, mb_h5 *out, const mb_teacher_shape *shape, int64_t records)
{
    mb_status status = MB_OK;
    j->out = out;
    get_columns(shape, j->columns);
    MB_NEW_ARRAY(j->offsets, records + 1);
    for (int c = 0; c < COLUMNS; c++) {
        MB_TRY(mb_hash_create(&j->hash[c]));
        MB_TRY(mb_h5_create_rows(out, j->columns[c].path, j->columns[c].dtype, j->columns[c].width > 0,
                                 &j->columns[c].width, CHUNK_BYTES));
    }
done:
    return status;
}

static mb_status keep_mass(joined *j, const float *mass, int64_t rows)
{
    mb_status status = MB_OK;
    if (j->rows + rows > j->room) {
        const int64_t room = 2 * (j->rows + rows);
        float *grown = mb_realloc(j->mass, (size_t)room, sizeof *grown);
        if (grown == NULL) MB_TRY(MB_ENOMEM);
        j->mass = grown;
        j->room = room;
    }
    memcpy(j->mass + j->rows, mass, (size_t)rows * sizeof *mass);
done:
    return status;
}

static mb_status append_column(joined *j, mb_h5 *in, int c, int64_t rows)
{
    mb_status status = MB_OK;
    const teacher_column *column = &j->columns[c];
    const size_t row_bytes = (size_t)(column->width > 0 ? column->width : 1) * mb_dtype_bytes(column->dtype);
    mb_dtype dtype;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    MB_TRY(mb_h5_shape(in, column->path, &dtype, &dims, shape));
    if (dtype != column->dtype || dims != (column->width > 0 ? 2 : 1) || shape[0] != rows ||
        (dims == 2 && shape[1] != column->width))
        MB_RAISE(MB_EFORMAT, "%s: %s is not [%lld, %lld] %s; remove the part and run again", mb_h5_path(in),
                 column->path, (long long)rows, (long long)column->width, mb_dtype_name(column->dtype));
    MB_TRY(mb_h5_read_new(in, column->path, dtype, &dims, shape, &data));
    MB_TRY(mb_h5_append_rows(j->out, column->path, data, rows));
    mb_hash_add(j->hash[c], data, row_bytes * (size_t)rows);
    if (c == COLUMNS - 1) MB_TRY(keep_mass(j, data, rows));
done:
    mb_free(data);
    return status;
}

static mb_status append_part(joined *j, const mb_scores_part_file *part)
{
    mb_status status = MB_OK;
    mb_h5 *in = NULL;
    int64_t *first = NULL, shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    int dims = 0;
    MB_TRY(mb_h5_open(part->path, &in));
    MB_TRY(mb_h5_read_new(in, "/offsets", MB_I64, &dims, shape, &data));
    first = data;
    if (dims != 1 || shape[0] != part->rows + 1 || first[0] != 0)
        MB_RAISE(MB_EFORMAT, "%s: /offsets does not fit its records; remove the part and run again",
                 part->path);
    for (int64_t r = 0; r < part->rows; r++) {
        if (first[r + 1] < first[r])
            MB_RAISE(MB_EFORMAT, "%s: /offsets falls; remove the part and run again", part->path);
        j->offsets[++j->records] = j->rows + first[r + 1];
    }
    const int64_t rows = first[part->rows];
    for (int c = 0; c < COLUMNS && rows > 0; c++) MB_TRY(append_column(j, in, c, rows));
    j->rows += rows;
done:
    mb_free(data);
    mb_h5_destroy(&in);
    return status;
}

/* ---- 3. the whole ---- */

static int compare_floats(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Mean and 5th percentile of the rows' masses. */
static mb_status write_figures(joined *j)
{
    mb_status status = MB_OK;
    double sum = 0;
    for (int64_t i = 0; i < j->rows; i++) sum += (double)j->mass[i];
    qsort(j->mass, (size_t)j->rows, sizeof *j->mass, compare_floats);
    MB_TRY(mb_h5_set_real(j->out, "/", "mass_mean", j->rows > 0 ? sum / (double)j->rows : 0));
    MB_TRY(mb_h5_set_real(j->out, "/", "mass_p5", j->rows > 0 ? (double)j->mass[(j->rows - 1) / 20] : 0));
done:
    return status;
}

static mb_status write_content(joined *j)
{
    mb_status status = MB_OK;
    mb_hash *all = NULL;
    char text[MB_HASH_TEXT];
    MB_TRY(mb_hash_create(&all));
    mb_hash_add(all, j->offsets, (size_t)(j->records + 1) * sizeof *j->offsets);
    for (int c = 0; c < COLUMNS; c++) {
        mb_hash_get(j->hash[c], text);
        mb_hash_add_text(all, text);
    }
    mb_hash_get(all, text);
    MB_TRY(mb_h5_set_text(j->out, "/", "content", text));
done:
    mb_hash_destroy(&all);
    return status;
}

static mb_status write_shape(mb_h5 *out, mb_shard *shard, const mb_teacher_shape *shape)
{
    mb_status status = MB_OK;
    mb_str list = MB_STR_EMPTY;
    for (int64_t s = 0; s < shape->temperatures; s++)
        MB_TRY(mb_str_add_format(&list, "%s%.17g", s > 0 ? ", " : "[", shape->temperature[s]));
    MB_TRY(mb_str_add(&list, "]"));
    MB_TRY(mb_h5_set_text(out, "/", "temperatures", mb_str_text(&list)));
    MB_TRY(mb_h5_set_text(out, "/", "tokenizer", mb_shard_tokenizer_hash(shard)));
    MB_TRY(mb_h5_set_text(out, "/", "template", mb_shard_template_hash(shard)));
    MB_TRY(mb_h5_set_text(out, "/", "targets", shape->all_targets ? "all" : "masked"));
    MB_TRY(mb_h5_set_int(out, "/", "max_length", shape->max_length));
    MB_TRY(mb_h5_set_int(out, "/", "vocab", shape->vocab));
    MB_TRY(mb_h5_set_int(out, "/", "k", shape->k));
done:
    mb_str_destroy(&list);
    return status;
}

mb_status mb_teacher_join(const char *path, const char *key, mb_shard *shard, const mb_teacher_shape *shape,
                          const json_t *attributes)
{
    mb_status status = MB_OK;
    mb_scores_join_state join = {0};
    joined j = {0};
    MB_TRY(mb_scores_join_start(path, key, shard, "moebatch-teacher", attributes, &join));
    MB_TRY(write_shape(join.out, shard, shape));
    MB_TRY(joined_start(&j, join.out, shape, mb_shard_count(shard)));
    for (int64_t i = 0; i < join.count; i++) MB_TRY(append_part(&j, &join.parts[i]));
    mb_tensor offsets = mb_tensor_view1(MB_I64, j.offsets, j.records + 1);
    MB_TRY(mb_h5_write(join.out, "/offsets", &offsets));
    MB_TRY(write_content(&j));
    MB_TRY(write_figures(&j));
    MB_TRY(mb_scores_join_end(&join, shard));
done:
    joined_reset(&j);
    mb_scores_join_reset(&join);
    return status;
}
