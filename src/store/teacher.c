/* teacher.c: the file of a teacher: its shape, opening, does it fit, rows of a record.
 *
 * A record's rows are read by themselves. Where the file has all targets and the student only those of the
 * loss mask, the others are passed over.
 *
 * 1. shape   2. opening   3. does it fit   4. rows
 */
#include "store/teacher.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/option.h"
#include "base/str.h"

/* ---- 1. shape ---- */

static int64_t id_bytes(const mb_teacher_shape *shape)
{
    return shape->vocab <= 65536 ? 2 : 4;
}

int64_t mb_teacher_row_bytes(const mb_teacher_shape *shape)
{
    return shape->k * (id_bytes(shape) + (int64_t)mb_dtype_bytes(shape->dtype)) +
           (shape->temperatures + 1) * (int64_t)sizeof(float);
}

int64_t mb_teacher_dense_bytes(const mb_teacher_shape *shape)
{
    return shape->vocab * (int64_t)sizeof(float);
}

mb_status mb_teacher_parse_temperatures(const char *list, mb_teacher_shape *shape)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(list, &items, &n));
    if (n == 0 || n > MB_TEACHER_TEMPERATURES)
        MB_RAISE(MB_EUSAGE, "teacher.temperatures has %lld numbers; give 1 to %d, e.g. 1,1.5,2,3",
                 (long long)n, MB_TEACHER_TEMPERATURES);
    for (int64_t i = 0; i < n; i++) {
        double value = 0;
        if (mb_str_parse_real(items[i], &value) != MB_OK || !(value >= 0.01 && value <= 1000))
            MB_RAISE(MB_EUSAGE, "teacher.temperatures: '%s' is no temperature from 0.01 to 1000", items[i]);
        for (int64_t j = 0; j < i; j++)
            if (shape->temperature[j] == value)
                MB_RAISE(MB_EUSAGE, "teacher.temperatures names %g twice", value);
        shape->temperature[i] = value;
    }
    shape->temperatures = n;
done:
    mb_option_list_free(&items, n);
    return status;
}

static bool is_target(const mb_shard_record *record, bool all_targets, int64_t token)
{
    return all_targets || record->loss_mask == NULL || record->loss_mask[token] != 0;
}

/* Of its tokens 1 .. length - 1. */
static int64_t count_targets(const mb_shard_record *record, bool all_targets, int64_t length)
{
    int64_t n = 0;
    for (int64_t t = 1; t < length; t++) n += is_target(record, all_targets, t);
    return n;
}

int64_t mb_teacher_targets(const mb_teacher_shape *shape, const mb_shard_record *record)
{
    const bool is_cut = shape->max_length > 0 && shape->max_length < record->count;
    return count_targets(record, shape->all_targets, is_cut ? shape->max_length : record->count);
}

/* ---- 2. opening ---- */

struct mb_teacher {
    mb_h5 *file;
    mb_teacher_shape shape;
    int64_t records, rows, *offsets; /* [records + 1] */
    char content[MB_HASH_TEXT], shard[MB_HASH_TEXT];
    mb_str tokenizer;
    char *scratch; /* rows as they are stored */
    size_t scratch_bytes;
};

static mb_status read_hash(mb_h5 *file, const char *name, char out[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, "/", name, &text));
    if (text.length >= MB_HASH_TEXT)
        MB_RAISE(MB_EFORMAT, "%s: attribute %s is no hash", mb_h5_path(file), name);
    memcpy(out, mb_str_text(&text), text.length + 1);
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status read_temperatures(mb_teacher *t)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *list = NULL;
    MB_TRY(mb_h5_get_text(t->file, "/", "temperatures", &text));
    list = json_loads(mb_str_text(&text), 0, NULL);
    const size_t n = json_array_size(list);
    if (n < 1 || n > MB_TEACHER_TEMPERATURES)
        MB_RAISE(MB_EFORMAT, "%s: attribute temperatures is no list of them", mb_h5_path(t->file));
    for (size_t i = 0; i < n; i++) t->shape.temperature[i] = json_number_value(json_array_get(list, i));
    t->shape.temperatures = (int64_t)n;
done:
    json_decref(list);
    mb_str_destroy(&text);
    return status;
}

static mb_status check_format(mb_teacher *t)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    int64_t version = 0;
    if (mb_h5_get_text(t->file, "/", "format", &text) != MB_OK ||
        strcmp(mb_str_text(&text), "moebatch-teacher") != 0)
        MB_RAISE(MB_EFORMAT, "%s: not the file of a teacher; make one with moe-teacher", mb_h5_path(t->file));
    MB_TRY(mb_h5_get_int(t->file, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: the file of a teacher of version %lld, this program reads version 1",
                 mb_h5_path(t->file), (long long)version);
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status read_shape(mb_teacher *t)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    mb_teacher_shape *shape = &t->shape;
    MB_TRY(mb_h5_get_int(t->file, "/", "vocab", &shape->vocab));
    MB_TRY(mb_h5_get_int(t->file, "/", "k", &shape->k));
    MB_TRY(mb_h5_get_int(t->file, "/", "max_length", &shape->max_length));
    MB_TRY(mb_h5_get_text(t->file, "/", "targets", &text));
    shape->all_targets = strcmp(mb_str_text(&text), "all") == 0;
    MB_TRY(mb_h5_get_text(t->file, "/", "tokenizer", &t->tokenizer));
    MB_TRY(read_temperatures(t));
    MB_TRY(read_hash(t->file, "content", t->content));
    MB_TRY(read_hash(t->file, "shard", t->shard));
    if (shape->k < 1 || shape->k > shape->vocab)
        MB_RAISE(MB_EFORMAT, "%s: k = %lld of %lld tokens", mb_h5_path(t->file), (long long)shape->k,
                 (long long)shape->vocab);
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status check_dataset(mb_teacher *t, const char *path, int64_t width, mb_dtype *out_dtype)
{
    mb_status status = MB_OK;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_shape(t->file, path, out_dtype, &dims, shape));
    if (shape[0] != t->rows || (width > 0 && (dims != 2 || shape[1] != width)))
        MB_RAISE(MB_EFORMAT, "%s: %s is not [%lld, %lld]; make the file again", mb_h5_path(t->file), path,
                 (long long)t->rows, (long long)width);
done:
    return status;
}

static mb_status read_offsets(mb_teacher *t)
{
    mb_status status = MB_OK;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    mb_dtype ids, tail;
    MB_TRY(mb_h5_read_new(t->file, "/offsets", MB_I64, &dims, shape, &data));
    t->offsets = data;
    t->records = shape[0] - 1;
    if (dims != 1 || t->records < 0 || t->offsets[0] != 0)
        MB_RAISE(MB_EFORMAT, "%s: /offsets is no list of rows", mb_h5_path(t->file));
    for (int64_t r = 0; r < t->records; r++)
        if (t->offsets[r + 1] < t->offsets[r])
            MB_RAISE(MB_EFORMAT, "%s: /offsets falls at record %lld", mb_h5_path(t->file), (long long)r);
    t->rows = t->offsets[t->records];
    MB_TRY(check_dataset(t, "/ids", t->rows > 0 ? t->shape.k : 0, &ids));
    MB_TRY(check_dataset(t, "/logprob", t->rows > 0 ? t->shape.k : 0, &t->shape.dtype));
    MB_TRY(check_dataset(t, "/tail", t->rows > 0 ? t->shape.temperatures : 0, &tail));
    if (ids != (id_bytes(&t->shape) == 2 ? MB_U16 : MB_U32) || tail != MB_F32 ||
        (t->shape.dtype != MB_F16 && t->shape.dtype != MB_F32))
        MB_RAISE(MB_EFORMAT, "%s: /ids, /logprob or /tail has a type that it cannot have",
                 mb_h5_path(t->file));
done:
    return status;
}

mb_status mb_teacher_open(const char *path, mb_teacher **out_teacher)
{
    mb_status status = MB_OK;
    mb_teacher *t = NULL;
    MB_NEW(t);
    MB_TRY(mb_h5_open(path, &t->file));
    MB_TRY(check_format(t));
    MB_TRY(read_shape(t));
    MB_TRY(read_offsets(t));
    *out_teacher = t;
    t = NULL;
done:
    mb_teacher_close(&t);
    return status;
}

void mb_teacher_close(mb_teacher **teacher)
{
    if (*teacher == NULL) return;
    mb_h5_destroy(&(*teacher)->file);
    mb_str_destroy(&(*teacher)->tokenizer);
    mb_free((*teacher)->offsets);
    mb_free((*teacher)->scratch);
    MB_FREE(*teacher);
}

const mb_teacher_shape *mb_teacher_shape_get(const mb_teacher *teacher)
{
    return &teacher->shape;
}

const char *mb_teacher_content(const mb_teacher *teacher)
{
    return teacher->content;
}

mb_h5 *mb_teacher_file(const mb_teacher *teacher)
{
    return teacher->file;
}

mb_status mb_teacher_figures_read(mb_teacher *teacher, mb_teacher_figures *out_figures)
{
    mb_status status = MB_OK;
    mb_teacher_figures figures = {.rows = teacher->rows};
    MB_TRY(mb_files_size(mb_h5_path(teacher->file), &figures.bytes));
    MB_TRY(mb_h5_get_real(teacher->file, "/", "mass_mean", &figures.mass_mean));
    MB_TRY(mb_h5_get_real(teacher->file, "/", "mass_p5", &figures.mass_p5));
    *out_figures = figures;
done:
    return status;
}

/* ---- 3. does it fit ---- */

static mb_status find_temperature(const mb_teacher *t, double temperature, int64_t *out_place)
{
    mb_status status = MB_OK;
    mb_str there = MB_STR_EMPTY;
    for (int64_t s = 0; s < t->shape.temperatures; s++) {
        *out_place = s;
        if (t->shape.temperature[s] == temperature) goto done;
        MB_TRY(mb_str_add_format(&there, "%s%g", s > 0 ? ", " : "", t->shape.temperature[s]));
    }
    MB_RAISE(MB_EUSAGE,
             "%s was made for the temperatures %s, and training.temperature = %g; take one of them, or make "
             "the file again with %g in teacher.temperatures",
             mb_h5_path(t->file), mb_str_text(&there), temperature, temperature);
done:
    mb_str_destroy(&there);
    return status;
}

static mb_status differs(mb_str *differences, const char *what, const char *stored, const char *here)
{
    if (strcmp(stored, here) == 0) return MB_OK;
    return mb_str_add_format(differences, "%s%s (%s there, %s here)", differences->length > 0 ? ", " : "",
                             what, stored[0] != 0 ? stored : "none", here[0] != 0 ? here : "none");
}

/* Records that were cut there and go on here. */
static mb_status compare_length(const mb_teacher *t, const mb_teacher_wish *wish, mb_str *differences)
{
    mb_status status = MB_OK;
    int64_t longer = 0;
    const int64_t limit = t->shape.max_length;
    for (int64_t r = 0; limit > 0 && r < mb_shard_count(wish->shard); r++) {
        const int64_t n = mb_shard_length(wish->shard, r);
        longer += (wish->max_length > 0 && wish->max_length < n ? wish->max_length : n) > limit;
    }
    if (longer > 0)
        MB_TRY(mb_str_add_format(differences,
                                 "%slength (records were cut at %lld tokens there, and %lld go on here; set "
                                 "dataset.max_length=%lld)",
                                 differences->length > 0 ? ", " : "", (long long)limit, (long long)longer,
                                 (long long)limit));
done:
    return status;
}

/* Targets that the student has and the file has not: only where the shard has a loss mask. */
static mb_status compare_targets(const mb_teacher *t, const mb_teacher_wish *wish, mb_str *differences)
{
    mb_status status = MB_OK;
    mb_shard_record record = {0};
    if (!wish->all_targets || t->shape.all_targets) goto done;
    for (int64_t r = 0; r < mb_shard_count(wish->shard) && record.count == 0; r++)
        MB_TRY(mb_shard_read(wish->shard, r, &record));
    if (record.count > 0 && record.loss_mask != NULL)
        MB_TRY(differs(differences, "targets", "those of the loss mask", "all"));
done:
    return status;
}

mb_status mb_teacher_check(const mb_teacher *teacher, const mb_teacher_wish *wish, int64_t *out_temperature)
{
    mb_status status = MB_OK;
    mb_str differences = MB_STR_EMPTY;
    char shard[MB_HASH_TEXT], stored[32], here[32];
    MB_TRY(mb_shard_hash(wish->shard, shard));
    MB_TRY(differs(&differences, "tokenizer", mb_str_text(&teacher->tokenizer),
                   mb_shard_tokenizer_hash(wish->shard)));
    MB_TRY(differs(&differences, "shard", teacher->shard, shard));
    snprintf(stored, sizeof stored, "%lld tokens", (long long)teacher->shape.vocab);
    snprintf(here, sizeof here, "%lld tokens", (long long)wish->vocab);
    MB_TRY(differs(&differences, "vocabulary", stored, here));
    if (strcmp(teacher->shard, shard) == 0) {
        MB_TRY(compare_targets(teacher, wish, &differences));
        MB_TRY(compare_length(teacher, wish, &differences));
    }
    if (differences.length > 0)
        MB_RAISE(MB_EDATA,
                 "%s is not a teacher of these data: it differs in %s; make it of them with moe-teacher "
                 "dataset.path=%s",
                 mb_h5_path(teacher->file), mb_str_text(&differences), mb_shard_file_path(wish->shard, 0));
    if (mb_shard_count(wish->shard) != teacher->records)
        MB_RAISE(MB_EFORMAT, "%s has %lld records, the shard has %lld; make the file again",
                 mb_h5_path(teacher->file), (long long)teacher->records,
                 (long long)mb_shard_count(wish->shard));
    MB_TRY(find_temperature(teacher, wish->temperature, out_temperature));
done:
    mb_str_destroy(&differences);
    return status;
}

/* ---- 4. rows ---- */

static mb_status grow_scratch(mb_teacher *t, size_t bytes)
{
    if (bytes <= t->scratch_bytes) return MB_OK;
    char *grown = mb_realloc(t->scratch, bytes, 1);
    if (grown == NULL) return mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
    t->scratch = grown;
    t->scratch_bytes = bytes;
    return MB_OK;
}

static void widen_ids(const mb_teacher *t, int64_t n, int32_t *out)
{
    const uint16_t *narrow = (const uint16_t *)t->scratch;
    if (id_bytes(&t->shape) == 2)
        for (int64_t i = 0; i < n; i++) out[i] = narrow[i];
    else
        memcpy(out, t->scratch, (size_t)n * sizeof *out);
}

/* Ids that no row of logits has would be read out of bounds. */
static mb_status check_ids(const mb_teacher *t, int64_t number, const int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->shape.vocab)
            return mb_fail(MB_EFORMAT, "%s: record %lld has token %lld of %lld; make the file again",
                           mb_h5_path(t->file), (long long)number, (long long)ids[i],
                           (long long)t->shape.vocab);
    return MB_OK;
}

/* Rows of the file one after another, from the record's first on. */
static mb_status read_rows(mb_teacher *t, int64_t number, int64_t rows, int64_t temperature, int32_t *ids,
                           float *logprob, float *tail)
{
    mb_status status = MB_OK;
    const mb_teacher_shape *shape = &t->shape;
    const int64_t first = t->offsets[number], n = rows * shape->k;
    const int64_t wide = shape->k > shape->temperatures ? shape->k : shape->temperatures;
    MB_TRY(grow_scratch(t, (size_t)(rows * wide) * sizeof(float)));
    MB_TRY(mb_h5_read_rows(t->file, "/ids", id_bytes(shape) == 2 ? MB_U16 : MB_U32, first, rows, t->scratch));
    widen_ids(t, n, ids);
    MB_TRY(check_ids(t, number, ids, n));
    if (shape->dtype == MB_F32) {
        MB_TRY(mb_h5_read_rows(t->file, "/logprob", MB_F32, first, rows, logprob));
    } else {
        MB_TRY(mb_h5_read_rows(t->file, "/logprob", shape->dtype, first, rows, t->scratch));
        MB_TRY(mb_dtype_to_f32(shape->dtype, t->scratch, n, logprob));
    }
    MB_TRY(mb_h5_read_rows(t->file, "/tail", MB_F32, first, rows, t->scratch));
    for (int64_t i = 0; i < rows; i++)
        tail[i] = ((const float *)t->scratch)[i * shape->temperatures + temperature];
done:
    return status;
}

/* Only the rows of targets in the loss mask, where the file has all. */
static mb_status read_masked(mb_teacher *t, int64_t number, const mb_shard_record *record, int64_t rows,
                             int64_t temperature, int32_t *ids, float *logprob, float *tail)
{
    mb_status status = MB_OK;
    const int64_t k = t->shape.k;
    int32_t *all_ids = NULL;
    float *all_logprob = NULL, *all_tail = NULL;
    int64_t kept = 0;
    MB_NEW_ARRAY(all_ids, rows * k);
    MB_NEW_ARRAY(all_logprob, rows * k);
    MB_NEW_ARRAY(all_tail, rows);
    MB_TRY(read_rows(t, number, rows, temperature, all_ids, all_logprob, all_tail));
    for (int64_t token = 1; token < record->count; token++) {
        if (!is_target(record, false, token)) continue;
        memcpy(ids + kept * k, all_ids + (token - 1) * k, (size_t)k * sizeof *ids);
        memcpy(logprob + kept * k, all_logprob + (token - 1) * k, (size_t)k * sizeof *logprob);
        tail[kept++] = all_tail[token - 1];
    }
done:
    mb_free(all_ids);
    mb_free(all_logprob);
    mb_free(all_tail);
    return status;
}

mb_status mb_teacher_read(mb_teacher *teacher, int64_t number, const mb_shard_record *record,
                          bool all_targets, int64_t temperature, int64_t n, int32_t *ids, float *logprob,
                          float *tail)
{
    mb_status status = MB_OK;
    const bool all_there = teacher->shape.all_targets;
    assert(number >= 0 && number < teacher->records);
    const int64_t rows = count_targets(record, all_there, record->count),
                  stored = teacher->offsets[number + 1] - teacher->offsets[number];
    if (rows > stored || count_targets(record, all_targets, record->count) != n)
        MB_RAISE(MB_EDATA,
                 "record %lld has %lld targets here and %lld in %s; make the file again with moe-teacher",
                 (long long)number, (long long)rows, (long long)stored, mb_h5_path(teacher->file));
    if (n == 0) goto done;
    if (rows == n)
        MB_TRY(read_rows(teacher, number, rows, temperature, ids, logprob, tail));
    else
        MB_TRY(read_masked(teacher, number, record, rows, temperature, ids, logprob, tail));
done:
    return status;
}
