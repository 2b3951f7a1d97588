/* packed_io: rows of words to rows of bytes and back.
 *
 * 1. finding
 * 2. reading
 * 3. matrices
 * 4. writing
 */
#include "model/packed_io.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/packed_config.h"
#include "model/params_source.h"

static int64_t packed_words(int64_t k)
{
    return (k * MB_PACKED_BITS + 31) / 32;
}

static int64_t packed_bytes(int64_t k)
{
    return (k + 1) / 2;
}

/* ---- 1. finding ---- */

/* One of the three tensors of a parameter. */
static mb_status packed_view(const mb_safetensors *file, const char *folder, const mb_param *param,
                             const char *suffix, mb_tensor *out, char *name, size_t bytes)
{
    mb_status status = MB_OK;
    if (!mb_params_source_name(file, param, suffix, name, bytes))
        MB_RAISE(MB_ENOTFOUND, "%s: tensor %s%s is missing", folder, param->name, suffix);
    MB_TRY(mb_safetensors_view(file, name, out));
done:
    return status;
}

/* The group of columns, from the shapes of the three. */
static mb_status packed_find(const mb_safetensors *file, const char *folder, const mb_param *param,
                             mb_tensor *out_words, mb_tensor *out_scale, int64_t *out_group)
{
    mb_status status = MB_OK;
    const int64_t n = param->value.shape[0], k = param->value.shape[1];
    const int64_t words[2] = {n, packed_words(k)};
    mb_tensor shape;
    char name[240], text[64];
    int64_t said[2] = {0, 0};
    MB_TRY(packed_view(file, folder, param, "_shape", &shape, name, sizeof name));
    if (mb_tensor_count(&shape) == 2 && shape.dtype == MB_I64) memcpy(said, shape.data, sizeof said);
    if (said[0] != n || said[1] != k)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s says [%lld, %lld]; this model wants i64 [2] of [%lld, %lld]",
                 folder, name, (long long)said[0], (long long)said[1], (long long)n, (long long)k);
    MB_TRY(packed_view(file, folder, param, "_scale", out_scale, name, sizeof name));
    const int64_t groups = out_scale->dims == 2 ? out_scale->shape[1] : 0;
    if (groups < 1 || out_scale->shape[0] != n || k % groups != 0)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s is %s; expected [%lld, groups of %lld columns]", folder, name,
                 mb_tensor_describe(out_scale, text, sizeof text), (long long)n, (long long)k);
    MB_TRY(packed_view(file, folder, param, "_packed", out_words, name, sizeof name));
    if (out_words->dtype != MB_I32 || !mb_tensor_is_shape(out_words, 2, words))
        MB_RAISE(MB_ESHAPE, "%s: tensor %s is %s; expected [%lld, %lld] i32", folder, name,
                 mb_tensor_describe(out_words, text, sizeof text), (long long)n, (long long)words[1]);
    *out_group = k / groups;
done:
    return status;
}

mb_status mb_packed_io_mark(mb_params *params, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    mb_tensor words, scale;
    char name[240];
    int64_t found = 0;
    MB_TRY(mb_safetensors_open(folder, &file));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        if (param->value.dims != 2 || !mb_params_is_in_layer(params, param) ||
            !mb_params_source_name(file, param, "_packed", name, sizeof name))
            continue;
        MB_TRY(packed_find(file, folder, param, &words, &scale, &param->group));
        param->is_packed = true;
        found++;
    }
    if (found == 0)
        MB_RAISE(MB_EUSAGE,
                 "%s: config.json has a quantization_config, but no tensor of the layers is packed", folder);
done:
    mb_safetensors_close(&file);
    return status;
}

bool mb_packed_io_is_known(mb_params *params, const char *name)
{
    static const char *const suffixes[] = {"_packed", "_scale", "_shape"};
    char text[240];
    for (int i = 0; i < 3; i++) {
        if (!mb_str_is_suffix(name, suffixes[i])) continue;
        snprintf(text, sizeof text, "%.*s", (int)(strlen(name) - strlen(suffixes[i])), name);
        return mb_params_source_is_known(params, text);
    }
    return false;
}

/* ---- 2. reading ---- */

static mb_status packed_scales(const mb_tensor *view, const char *folder, const char *name, float *out)
{
    mb_status status = MB_OK;
    const int64_t n = mb_tensor_count(view);
    void *aligned = mb_calloc((size_t)n, mb_dtype_bytes(view->dtype));
    if (aligned == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    memcpy(aligned, view->data, (size_t)n * mb_dtype_bytes(view->dtype));
    MB_TRY(mb_dtype_to_f32(view->dtype, aligned, n, out));
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            MB_RAISE(MB_EDATA, "%s: tensor %s_scale holds NaN or Inf at element %lld; the model is damaged",
                     folder, name, (long long)i);
done:
    mb_free(aligned);
    return status;
}

mb_status mb_packed_io_read(const mb_safetensors *file, const char *folder, const mb_param *param,
                            mb_packed_io_matrix *out_matrix)
{
    mb_status status = MB_OK;
    const int64_t n = param->value.shape[0], k = param->value.shape[1];
    mb_packed_io_matrix matrix = {0};
    mb_tensor words, scale;
    int64_t group;
    MB_TRY(packed_find(file, folder, param, &words, &scale, &group));
    MB_TRY(mb_packed_io_create(n, k, group, &matrix));
    for (int64_t r = 0; r < n; r++)
        memcpy(matrix.packed + r * packed_bytes(k), (const char *)words.data + 4 * r * packed_words(k),
               (size_t)packed_bytes(k));
    MB_TRY(packed_scales(&scale, folder, param->name, matrix.scale));
    *out_matrix = matrix;
    matrix = (mb_packed_io_matrix){0};
done:
    mb_packed_io_reset(&matrix);
    return status;
}

mb_status mb_packed_io_load(const mb_safetensors *file, const char *folder, mb_param *param)
{
    mb_status status = MB_OK;
    mb_packed_io_matrix matrix = {0};
    if (param->is_elsewhere) goto done;
    MB_TRY(mb_packed_io_read(file, folder, param, &matrix));
    if (matrix.group != param->group)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s has groups of %lld columns, the model was opened with %lld",
                 folder, param->name, (long long)matrix.group, (long long)param->group);
    MB_TRY(mb_params_set_packed(param, matrix.packed, matrix.scale));
done:
    mb_packed_io_reset(&matrix);
    return status;
}

/* ---- 3. matrices ---- */

mb_status mb_packed_io_create(int64_t n, int64_t k, int64_t group, mb_packed_io_matrix *out_matrix)
{
    mb_status status = MB_OK;
    mb_packed_io_matrix matrix = {.n = n, .k = k, .group = group};
    MB_NEW_ARRAY(matrix.packed, n * packed_bytes(k));
    MB_NEW_ARRAY(matrix.scale, n * (k / group));
    *out_matrix = matrix;
    matrix = (mb_packed_io_matrix){0};
done:
    mb_packed_io_reset(&matrix);
    return status;
}

void mb_packed_io_reset(mb_packed_io_matrix *matrix)
{
    mb_free(matrix->packed);
    mb_free(matrix->scale);
    *matrix = (mb_packed_io_matrix){0};
}

void mb_packed_io_values(const mb_packed_io_matrix *matrix, float *out)
{
    const int64_t k = matrix->k;
    mb_weight weight;
    mb_weight_init_quantised(&weight, mb_tensor_view2(MB_U8, matrix->packed, matrix->n, packed_bytes(k)),
                             MB_PACKED_BITS, k, matrix->group,
                             mb_tensor_view2(MB_F32, matrix->scale, matrix->n, k / matrix->group));
    mb_weight_read(&weight, 0, matrix->n, out);
    mb_weight_reset(&weight);
}

mb_status mb_packed_io_get(const mb_param *param, mb_packed_io_matrix *out_matrix)
{
    mb_status status = MB_OK;
    mb_packed_io_matrix matrix = {0};
    MB_TRY(mb_packed_io_create(param->value.shape[0], param->value.shape[1], param->weight.group, &matrix));
    MB_TRY(mb_params_get_packed(param, matrix.packed, matrix.scale));
    *out_matrix = matrix;
    matrix = (mb_packed_io_matrix){0};
done:
    mb_packed_io_reset(&matrix);
    return status;
}

/* ---- 4. writing ---- */

mb_status mb_packed_io_declare(mb_safetensors_writer *writer, const char *name, int64_t n, int64_t k,
                               int64_t group, mb_dtype dtype)
{
    mb_status status = MB_OK;
    const int64_t words[2] = {n, packed_words(k)}, scales[2] = {n, k / group}, two = 2;
    char text[240];
    snprintf(text, sizeof text, "%s_packed", name);
    MB_TRY(mb_safetensors_writer_declare(writer, text, MB_I32, 2, words));
    snprintf(text, sizeof text, "%s_scale", name);
    MB_TRY(mb_safetensors_writer_declare(writer, text, dtype, 2, scales));
    snprintf(text, sizeof text, "%s_shape", name);
    MB_TRY(mb_safetensors_writer_declare(writer, text, MB_I64, 1, &two));
done:
    return status;
}

mb_status mb_packed_io_write(mb_safetensors_writer *writer, const char *name,
                             const mb_packed_io_matrix *matrix)
{
    mb_status status = MB_OK;
    const int64_t shape[2] = {matrix->n, matrix->k}, words = packed_words(matrix->k),
                  bytes = packed_bytes(matrix->k);
    char text[240], *packed = NULL;
    MB_NEW_ARRAY(packed, 4 * matrix->n * words);
    for (int64_t r = 0; r < matrix->n; r++)
        memcpy(packed + 4 * r * words, matrix->packed + r * bytes, (size_t)bytes);
    snprintf(text, sizeof text, "%s_packed", name);
    MB_TRY(mb_safetensors_writer_write(writer, text, packed, (size_t)(4 * matrix->n * words)));
    snprintf(text, sizeof text, "%s_scale", name);
    MB_TRY(mb_safetensors_writer_write_f32(writer, text, matrix->scale,
                                           matrix->n * (matrix->k / matrix->group)));
    snprintf(text, sizeof text, "%s_shape", name);
    MB_TRY(mb_safetensors_writer_write(writer, text, shape, sizeof shape));
done:
    mb_free(packed);
    return status;
}
