/* params_value: a parameter's values as f32, whatever they are kept in and wherever that lies.
 *
 * 1. the same parameter in the host's memory
 * 2. get and set
 * 3. initial values
 */
#include <assert.h>
#include <string.h>

#include "base/hash.h"
#include "base/rng.h"
#include "model/params.h"
#include "model/params_shard.h"
#include "model/quantise.h"
#include "model/staging.h"

static bool value_is_quantised(const mb_param *param)
{
    return param->value.dtype == MB_I8 || param->value.dtype == MB_U8;
}

/* Is it kept as plain f32 on a device, so that it travels as it is? */
static bool value_is_plain_there(const mb_param *param)
{
    return param->shard == NULL && param->staging != NULL && param->value.dtype == MB_F32;
}

/* ---- 1. the same parameter in the host's memory ---- */

/* A parameter that is cut over the ranks or lies on a device, as a whole: the same one in memory of its own
 * (mb_free of out->value.data). */
static mb_status value_whole(const mb_param *param, mb_param *out)
{
    mb_status status = MB_OK;
    char *data;
    MB_NEW_ARRAY(data, param->bytes);
    *out = *param;
    out->shard = NULL;
    out->staging = NULL;
    out->value.data = data;
    out->scale = value_is_quantised(param) ? data + param->scale_at : NULL;
    out->weight.packed = NULL;
    out->weight.tensor.data = data;
    out->weight.scale.data = out->scale;
done:
    return status;
}

/* ---- 2. get and set ---- */

mb_status mb_params_get_f32(const mb_param *param, float *out)
{
    mb_status status = MB_OK;
    mb_param whole = {0};
    if (value_is_plain_there(param)) {
        MB_TRY(mb_staging_get(param->staging, param->value.data, mb_tensor_bytes(&param->value), out));
    } else if (param->shard != NULL || param->staging != NULL) {
        MB_TRY(value_whole(param, &whole));
        MB_TRY(param->shard != NULL
                   ? mb_params_shard_read(param->shard, param, whole.value.data)
                   : mb_staging_get(param->staging, param->value.data, param->bytes, whole.value.data));
        MB_TRY(mb_params_get_f32(&whole, out));
    } else if (param->value.dims == 2) {
        mb_weight_read(&param->weight, 0, param->value.shape[0], out);
    } else {
        memcpy(out, param->value.data, mb_tensor_bytes(&param->value));
    }
done:
    mb_free(whole.value.data);
    return status;
}

mb_status mb_params_set_f32(mb_param *param, const float *value)
{
    mb_status status = MB_OK;
    mb_param whole = {0};
    if (param->is_elsewhere) goto done;
    if (value_is_plain_there(param)) {
        MB_TRY(mb_staging_put(param->staging, value, mb_tensor_bytes(&param->value), param->value.data));
    } else if (param->shard != NULL || param->staging != NULL) {
        MB_TRY(value_whole(param, &whole));
        MB_TRY(mb_params_set_f32(&whole, value));
        if (param->shard != NULL)
            MB_TRY(mb_params_shard_put(param->shard, param, whole.value.data));
        else
            MB_TRY(mb_staging_put(param->staging, whole.value.data, param->bytes, param->value.data));
    } else if (value_is_quantised(param)) {
        mb_quantise_rows(value, &param->weight);
    } else {
        MB_TRY(
            mb_dtype_from_f32(param->value.dtype, value, mb_tensor_count(&param->value), param->value.data));
    }
    if (param->value.dims == 2) mb_weight_changed(&param->weight);
done:
    mb_free(whole.value.data);
    return status;
}

static size_t value_scale_bytes(const mb_param *param)
{
    return (size_t)(param->value.shape[0] * mb_quantise_groups(param->value.shape[1], param->group)) *
           sizeof(float);
}

mb_status mb_params_get_packed(const mb_param *param, uint8_t *out_rows, float *out_scale)
{
    mb_status status = MB_OK;
    mb_param whole = {0};
    assert(param->bits == 4);
    if (param->shard != NULL || param->staging != NULL) {
        MB_TRY(value_whole(param, &whole));
        MB_TRY(param->shard != NULL
                   ? mb_params_shard_read(param->shard, param, whole.value.data)
                   : mb_staging_get(param->staging, param->value.data, param->bytes, whole.value.data));
        MB_TRY(mb_params_get_packed(&whole, out_rows, out_scale));
        goto done;
    }
    memcpy(out_rows, param->value.data, mb_tensor_bytes(&param->weight.tensor));
    memcpy(out_scale, param->scale, value_scale_bytes(param));
done:
    mb_free(whole.value.data);
    return status;
}

mb_status mb_params_set_packed(mb_param *param, const uint8_t *rows, const float *scale)
{
    mb_status status = MB_OK;
    mb_param whole = {0};
    assert(param->bits == 4);
    if (param->is_elsewhere) goto done;
    if (param->shard != NULL || param->staging != NULL) {
        MB_TRY(value_whole(param, &whole));
        MB_TRY(mb_params_set_packed(&whole, rows, scale));
        if (param->shard != NULL)
            MB_TRY(mb_params_shard_put(param->shard, param, whole.value.data));
        else
            MB_TRY(mb_staging_put(param->staging, whole.value.data, param->bytes, param->value.data));
    } else {
        memcpy(param->value.data, rows, mb_tensor_bytes(&param->weight.tensor));
        memcpy(param->scale, scale, value_scale_bytes(param));
    }
    mb_weight_changed(&param->weight);
done:
    mb_free(whole.value.data);
    return status;
}

/* ---- 3. initial values ---- */

mb_status mb_params_randomise(mb_params *params, uint64_t seed, double std)
{
    mb_status status = MB_OK;
    float *value = NULL;
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        if (strstr(param->name, ".lora_") != NULL) continue;
        const int64_t n = mb_tensor_count(&param->value);
        const uint32_t sub = (uint32_t)mb_hash_u64(param->name, strlen(param->name), 0);
        const bool is_bias = param->is_carried || mb_str_is_suffix(param->name, ".bias");
        MB_FREE(value);
        MB_NEW_ARRAY(value, n);
#pragma omp parallel for schedule(static) if (n > 65536)
        for (int64_t j = 0; j < n; j++)
            value[j] = is_bias ? 0
                       : param->value.dims == 1
                           ? 1
                           : (float)(std * mb_rng_normal(seed, MB_RNG_INIT, sub, (uint64_t)j));
        MB_TRY(mb_params_set_f32(param, value));
    }
done:
    mb_free(value);
    return status;
}
