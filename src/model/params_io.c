/* params_io: weight folders in and out.
 *
 * 1. reading a whole model (per-expert tensors, or the fused ones of transformers 5.x)
 * 2. reading a delta
 * 3. writing
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "model/params.h"
#include "store/safetensors.h"

/* ---- 1. reading ---- */

/* "model.layers.0.mlp.experts.3.up_proj.weight" -> fused "model.layers.0.mlp.experts.gate_up_proj", expert 3,
 * rows of up. */
static bool params_fused_name(const char *name, char *out, size_t bytes, int64_t *out_expert, int *out_half,
                              int *out_halves)
{
    const char *place = strstr(name, ".mlp.experts.");
    char part[16];
    long long expert;
    if (place == NULL || sscanf(place, ".mlp.experts.%lld.%15[a-z_].weight", &expert, part) != 2)
        return false;
    const bool is_down = strcmp(part, "down_proj") == 0;
    snprintf(out, bytes, "%.*s.mlp.experts.%s", (int)(place - name), name,
             is_down ? "down_proj" : "gate_up_proj");
    *out_expert = expert;
    *out_halves = is_down ? 1 : 2;
    *out_half = strcmp(part, "up_proj") == 0;
    return true;
}

static mb_status params_check_finite(const char *folder, const char *name, const float *value, int64_t n)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(value[i]))
            MB_RAISE(MB_EDATA, "%s: tensor %s holds NaN or Inf at element %lld", folder, name, (long long)i);
done:
    return status;
}

/* One expert's matrix out of a fused tensor [E, halves * N, K]. */
static mb_status params_read_fused(const mb_safetensors *file, const char *folder, const char *fused,
                                   int64_t expert, int half, int halves, mb_param *param)
{
    mb_status status = MB_OK;
    mb_tensor view;
    void *copy = NULL;
    char text[64];
    const int64_t n = param->value.shape[0], k = param->value.shape[1], count = n * k;
    MB_TRY(mb_safetensors_view(file, fused, &view));
    if (view.dims != 3 || expert >= view.shape[0] || view.shape[1] != halves * n || view.shape[2] != k)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s is %s; expected [experts, %lld, %lld]", folder, fused,
                 mb_tensor_describe(&view, text, sizeof text), (long long)(halves * n), (long long)k);
    const size_t size = mb_dtype_bytes(view.dtype);
    copy = mb_calloc((size_t)count, size);
    if (copy == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory to read %s", folder, fused);
    memcpy(copy, (const char *)view.data + (size_t)((expert * halves + half) * count) * size,
           (size_t)count * size);
    MB_TRY(mb_dtype_to_f32(view.dtype, copy, count, mb_tensor_f32(&param->value)));
    MB_TRY(params_check_finite(folder, fused, mb_tensor_f32(&param->value), count));
done:
    mb_free(copy);
    return status;
}

static mb_status params_read_one(const mb_safetensors *file, const char *folder, mb_param *param,
                                 int64_t *used)
{
    mb_status status = MB_OK;
    char fused[200];
    int64_t expert = 0;
    int half = 0, halves = 0;
    if (!mb_safetensors_has(file, param->name) &&
        params_fused_name(param->name, fused, sizeof fused, &expert, &half, &halves) &&
        mb_safetensors_has(file, fused)) {
        MB_TRY(params_read_fused(file, folder, fused, expert, half, halves, param));
        *used += expert == 0 && half == 0;
    } else {
        MB_TRY(mb_safetensors_read_f32(file, param->name, param->value.dims, param->value.shape,
                                       mb_tensor_f32(&param->value)));
        *used += 1;
    }
    if (param->value.dims == 2) mb_weight_changed(&param->weight);
done:
    return status;
}

/* Name a tensor of the file that the model has no use for. */
static void params_warn_extra(mb_params *params, const mb_safetensors *file, const char *folder)
{
    const char *first = NULL;
    int64_t n = 0;
    const bool tied = mb_params_find(params, "lm_head.weight") == NULL;
    for (int64_t i = 0; i < mb_safetensors_count(file); i++) {
        const char *name = mb_safetensors_name(file, i);
        if (mb_params_find(params, name) != NULL || mb_str_is_suffix(name, "rotary_emb.inv_freq")) continue;
        if (mb_str_is_suffix(name, ".mlp.experts.gate_up_proj") ||
            mb_str_is_suffix(name, ".mlp.experts.down_proj"))
            continue;
        if (tied && strcmp(name, "lm_head.weight") == 0) continue;
        if (first == NULL) first = name;
        n++;
    }
    if (n > 0)
        mb_warn("%s: %lld tensors do not belong to the model and are ignored (%s ...)", folder, (long long)n,
                first);
}

mb_status mb_params_read(mb_params *params, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    int64_t used = 0;
    MB_TRY(mb_safetensors_open(folder, &file));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        if (strstr(param->name, ".lora_") != NULL) continue;
        MB_TRY(params_read_one(file, folder, param, &used));
    }
    if (used < mb_safetensors_count(file)) params_warn_extra(params, file, folder);
done:
    mb_safetensors_close(&file);
    return status;
}

/* ---- 2. a delta ---- */

mb_status mb_params_read_delta(mb_params *params, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    char *path = mb_files_join(folder, "delta.safetensors");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(mb_safetensors_open(path, &file));
    if (mb_safetensors_count(file) == 0) MB_RAISE(MB_EFORMAT, "%s: holds no tensor", path);
    for (int64_t i = 0; i < mb_safetensors_count(file); i++) {
        const char *name = mb_safetensors_name(file, i);
        mb_param *param = mb_params_find(params, name);
        if (param == NULL)
            MB_RAISE(MB_EDATA, "%s: tensor %s is none of the model's; the delta belongs to another base",
                     path, name);
        MB_TRY(mb_safetensors_read_f32(file, name, param->value.dims, param->value.shape,
                                       mb_tensor_f32(&param->value)));
        if (param->value.dims == 2) mb_weight_changed(&param->weight);
        param->from_delta = true;
    }
done:
    mb_safetensors_close(&file);
    mb_free(path);
    return status;
}

/* ---- 3. writing ---- */

static bool params_is_written(const mb_param *param, bool only_trained)
{
    if (strstr(param->name, ".lora_") != NULL) return false;
    return !only_trained || param->trained || param->from_delta;
}

mb_status mb_params_write(mb_params *params, const char *folder, const char *stem, mb_dtype dtype,
                          int64_t shard_bytes, bool only_trained)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    const int64_t count = mb_params_count(params);
    MB_TRY(mb_safetensors_writer_create(folder, stem, shard_bytes, &writer));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < count; i++) {
            const mb_param *param = mb_params_at(params, i);
            const mb_tensor *value = &param->value;
            if (!params_is_written(param, only_trained)) continue;
            if (pass == 0)
                MB_TRY(mb_safetensors_writer_declare(writer, param->name, dtype, value->dims, value->shape));
            else
                MB_TRY(mb_safetensors_writer_write_f32(writer, param->name, mb_tensor_f32(value),
                                                       mb_tensor_count(value)));
        }
    MB_TRY(mb_safetensors_writer_close(&writer));
done:
    mb_safetensors_writer_destroy(&writer);
    return status;
}
