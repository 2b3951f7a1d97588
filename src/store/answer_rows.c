/* answer_rows.c: the questions' columns of answers and outputs.
 *
 * 1. memory   2. pieces of a file   3. reading and writing   4. checks
 */
#include "store/answer_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. memory ---- */

void mb_answer_rows_reset(mb_answer_rows *rows)
{
    mb_free(rows->answer);
    mb_free(rows->kind);
    mb_free(rows->options);
    mb_free(rows->chance);
    mb_free(rows->text_hash);
    mb_free(rows->source);
    mb_h5_free_strings(&rows->ids, rows->questions);
    mb_h5_free_strings(&rows->source_names, rows->sources);
    mb_h5_free_strings(&rows->texts, rows->text_count);
    mb_free(rows->questions_hash);
    mb_free(rows->style);
    *rows = (mb_answer_rows){0};
}

mb_status mb_answer_rows_create(int64_t questions, int64_t choices, mb_answer_rows *rows)
{
    mb_status status = MB_OK;
    *rows = (mb_answer_rows){.questions = questions, .choices = choices};
    MB_NEW_ARRAY(rows->answer, questions);
    MB_NEW_ARRAY(rows->kind, questions);
    MB_NEW_ARRAY(rows->options, questions);
    MB_NEW_ARRAY(rows->chance, questions);
    MB_NEW_ARRAY(rows->text_hash, questions);
    MB_NEW_ARRAY(rows->ids, questions);
    MB_NEW_ARRAY(rows->source, questions);
    for (int64_t q = 0; q < questions; q++) rows->answer[q] = -1;
done:
    return status;
}

mb_status mb_answer_rows_copy(char *const *texts, int64_t n, char ***out_texts)
{
    mb_status status = MB_OK;
    char **copy = NULL;
    int64_t i = 0;
    MB_NEW_ARRAY(copy, n);
    for (; i < n; i++) {
        copy[i] = mb_strdup(texts[i]);
        if (copy[i] == NULL && texts[i] != NULL)
            MB_RAISE(MB_ENOMEM, "no memory for %lld texts", (long long)n);
    }
    *out_texts = copy;
    copy = NULL;
done:
    mb_h5_free_strings(&copy, i);
    return status;
}

/* ---- 2. pieces of a file ---- */

mb_status mb_answer_rows_open_file(const char *path, const char *format, const char *made_by,
                                   mb_h5 **out_file)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_str text = MB_STR_EMPTY;
    int64_t version = 0;
    MB_TRY(mb_h5_open(path, &file));
    if (mb_h5_get_text(file, "/", "format", &text) != MB_OK || strcmp(mb_str_text(&text), format) != 0)
        MB_RAISE(MB_EFORMAT, "%s: not a file of format %s; make one with %s", path, format, made_by);
    MB_TRY(mb_h5_get_int(file, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: %s of version %lld, this program reads version 1", path, format,
                 (long long)version);
    *out_file = file;
    file = NULL;
done:
    mb_str_destroy(&text);
    mb_h5_destroy(&file);
    return status;
}

mb_status mb_answer_rows_array(mb_h5 *file, const char *name, mb_dtype dtype, int dims, const int64_t *shape,
                               void *out_data)
{
    mb_status status = MB_OK;
    int has = 0;
    int64_t have[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    MB_TRY(mb_h5_read_new(file, name, dtype, &has, have, &data));
    for (int d = 0; d < dims; d++)
        if (has != dims || have[d] != shape[d])
            MB_RAISE(MB_EFORMAT, "%s: dataset %s has not the size that the others say; make the file again",
                     mb_h5_path(file), name);
    memcpy(out_data, &data, sizeof data);
    data = NULL;
done:
    mb_free(data);
    return status;
}

mb_status mb_answer_rows_strings(mb_h5 *file, const char *name, int64_t n, char ***out_texts)
{
    mb_status status = MB_OK;
    char **texts = NULL;
    int64_t count = 0;
    MB_TRY(mb_h5_read_strings(file, name, &texts, &count));
    if (count != n)
        MB_RAISE(MB_EFORMAT, "%s: dataset %s has %lld entries where %lld belong; make the file again",
                 mb_h5_path(file), name, (long long)count, (long long)n);
    *out_texts = texts;
    texts = NULL;
done:
    mb_h5_free_strings(&texts, count);
    return status;
}

mb_status mb_answer_rows_attribute(mb_h5 *file, const char *name, char **out_text)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, "/", name, &text));
    *out_text = mb_strdup(mb_str_text(&text));
    if (*out_text == NULL) MB_RAISE(MB_ENOMEM, "no memory for attribute %s", name);
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status write_list(mb_h5 *file, const char *name, mb_dtype dtype, const void *data, int64_t n)
{
    const mb_tensor tensor = mb_tensor_view1(dtype, (void *)(uintptr_t)data, n);
    return mb_h5_write(file, name, &tensor);
}

static mb_status write_strings(mb_h5 *file, const char *name, char *const *texts, int64_t n)
{
    return mb_h5_write_strings(file, name, (const char *const *)texts, n);
}

/* ---- 3. reading and writing ---- */

mb_status mb_answer_rows_read(mb_h5 *file, mb_answer_rows *rows)
{
    mb_status status = MB_OK;
    mb_dtype dtype;
    int dims = 0;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_shape(file, "/answer", &dtype, &dims, shape));
    if (dims != 1) MB_RAISE(MB_EFORMAT, "%s: /answer is no list", mb_h5_path(file));
    const int64_t n = shape[0];
    rows->questions = n;
    MB_TRY(mb_answer_rows_array(file, "/answer", MB_I32, 1, &n, &rows->answer));
    MB_TRY(mb_answer_rows_array(file, "/kind", MB_U8, 1, &n, &rows->kind));
    MB_TRY(mb_answer_rows_array(file, "/options", MB_I32, 1, &n, &rows->options));
    MB_TRY(mb_answer_rows_array(file, "/chance", MB_F32, 1, &n, &rows->chance));
    MB_TRY(mb_answer_rows_array(file, "/text_hash", MB_U64, 1, &n, &rows->text_hash));
    MB_TRY(mb_answer_rows_array(file, "/source", MB_I32, 1, &n, &rows->source));
    MB_TRY(mb_answer_rows_strings(file, "/id", n, &rows->ids));
    MB_TRY(mb_h5_read_strings(file, "/source_names", &rows->source_names, &rows->sources));
    if (mb_h5_has(file, "/texts"))
        MB_TRY(mb_h5_read_strings(file, "/texts", &rows->texts, &rows->text_count));
    MB_TRY(mb_answer_rows_attribute(file, "questions", &rows->questions_hash));
    MB_TRY(mb_answer_rows_attribute(file, "style", &rows->style));
    MB_TRY(mb_h5_get_int(file, "/", "few_shot", &rows->few_shot));
done:
    return status;
}

mb_status mb_answer_rows_write(mb_h5 *file, const mb_answer_rows *rows)
{
    mb_status status = MB_OK;
    const int64_t n = rows->questions;
    MB_TRY(mb_h5_set_text(file, "/", "questions", rows->questions_hash));
    MB_TRY(mb_h5_set_text(file, "/", "style", rows->style));
    MB_TRY(mb_h5_set_int(file, "/", "few_shot", rows->few_shot));
    MB_TRY(write_list(file, "/answer", MB_I32, rows->answer, n));
    MB_TRY(write_list(file, "/kind", MB_U8, rows->kind, n));
    MB_TRY(write_list(file, "/options", MB_I32, rows->options, n));
    MB_TRY(write_list(file, "/chance", MB_F32, rows->chance, n));
    MB_TRY(write_list(file, "/text_hash", MB_U64, rows->text_hash, n));
    MB_TRY(write_list(file, "/source", MB_I32, rows->source, n));
    MB_TRY(write_strings(file, "/id", rows->ids, n));
    MB_TRY(write_strings(file, "/source_names", rows->source_names, rows->sources));
    if (rows->text_count > 0) MB_TRY(write_strings(file, "/texts", rows->texts, rows->text_count));
done:
    return status;
}

/* ---- 4. checks ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static mb_status check_ids(const mb_answer_rows *rows, mb_status code, const char *path)
{
    mb_status status = MB_OK;
    const char **sorted = NULL;
    MB_NEW_ARRAY(sorted, rows->questions);
    for (int64_t q = 0; q < rows->questions; q++) {
        if (rows->ids[q] == NULL || rows->ids[q][0] == 0)
            MB_RAISE(code, "%s: question %lld has no id", path, (long long)q);
        sorted[q] = rows->ids[q];
    }
    qsort(sorted, (size_t)rows->questions, sizeof *sorted, by_text);
    for (int64_t q = 1; q < rows->questions; q++)
        if (strcmp(sorted[q - 1], sorted[q]) == 0)
            MB_RAISE(code, "%s: question %s stands there twice", path, sorted[q]);
done:
    mb_free(sorted);
    return status;
}

static mb_status check_row(const mb_answer_rows *rows, int64_t q, mb_status code, const char *path)
{
    const int kind = rows->kind[q];
    const int32_t options = rows->options[q], answer = rows->answer[q];
    const char *fault = NULL;
    if (kind > MB_OUTPUTS_CLOZE)
        fault = "/kind";
    else if (kind == MB_OUTPUTS_CLOZE
                 ? options != 0
                 : options < 1 || options > rows->choices || options > MB_OUTPUTS_OPTIONS)
        fault = "/options";
    else if (kind == MB_OUTPUTS_CLOZE      ? answer != -1
             : kind == MB_OUTPUTS_MULTIPLE ? answer < 1 || (int64_t)answer >= (int64_t)1 << options
                                           : answer < 0 || answer >= options)
        fault = "/answer";
    else if (!(rows->chance[q] >= 0 && rows->chance[q] <= 1))
        fault = "/chance";
    else if (rows->source[q] < 0 || rows->source[q] >= rows->sources)
        fault = "/source";
    if (fault == NULL) return MB_OK;
    return mb_fail(code, "%s: %s of question %lld (%s) is out of range", path, fault, (long long)q,
                   rows->ids[q]);
}

mb_status mb_answer_rows_check(const mb_answer_rows *rows, mb_status code, const char *path)
{
    mb_status status = MB_OK;
    if (rows->questions < 1 || rows->choices < 1) MB_RAISE(code, "%s: has no questions", path);
    MB_TRY(check_ids(rows, code, path));
    for (int64_t q = 0; q < rows->questions; q++) MB_TRY(check_row(rows, q, code, path));
    for (int64_t t = 1; t < rows->text_count; t++)
        if (strcmp(rows->texts[t - 1], rows->texts[t]) >= 0)
            MB_RAISE(code, "%s: /texts are not each once and in byte order (entry %lld)", path, (long long)t);
done:
    return status;
}

mb_status mb_answer_rows_check_picks(const mb_answer_rows *rows, int64_t experts, const int32_t *picked,
                                     const uint8_t *right, mb_status code, const char *path)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < rows->questions * experts; i++) {
        const int64_t q = i / experts;
        const int kind = rows->kind[q];
        const int64_t pick = picked[i], end = kind == MB_OUTPUTS_CLOZE      ? rows->text_count
                                              : kind == MB_OUTPUTS_MULTIPLE ? (int64_t)1 << rows->options[q]
                                                                            : rows->options[q];
        if (pick < -1 || pick >= end || (kind == MB_OUTPUTS_MULTIPLE && pick == 0))
            MB_RAISE(code, "%s: /picked of question %lld (%s), expert %lld is out of range", path,
                     (long long)q, rows->ids[q], (long long)(i % experts));
        const bool is_right = pick >= 0 && pick == rows->answer[q];
        if (right[i] > 1 || (kind == MB_OUTPUTS_CLOZE ? pick < 0 && right[i] != 0 : right[i] != is_right))
            MB_RAISE(code, "%s: /right of question %lld (%s), expert %lld is not what its pick says", path,
                     (long long)q, rows->ids[q], (long long)(i % experts));
    }
done:
    return status;
}
