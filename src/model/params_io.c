/* params_io: weight folders in and out.
 *
 * 1. reading a whole model
 * 2. reading a delta
 * 3. writing
 */
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "model/packed_io.h"
#include "model/params_source.h"
#include "store/safetensors.h"

/* ---- 1. reading ---- */

/* Name a tensor of the file that the model has no use for. */
static void params_warn_extra(mb_params *params, const mb_safetensors *file, const char *folder)
{
    const char *first = NULL;
    int64_t n = 0;
    for (int64_t i = 0; i < mb_safetensors_count(file); i++) {
        const char *name = mb_safetensors_name(file, i);
        if (mb_params_source_is_known(params, name) || mb_packed_io_is_known(params, name)) continue;
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
    mb_params_source source;
    MB_TRY(mb_safetensors_open(folder, &file));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        if (strstr(param->name, ".lora_") != NULL) continue;
        if (param->is_carried && !mb_params_source_has(file, param)) continue;
        if (param->is_packed) {
            MB_TRY(mb_packed_io_load(file, folder, param));
            continue;
        }
        MB_TRY(mb_params_source_find(file, folder, param, &source));
        MB_TRY(mb_params_source_load(&source, folder, param));
        param->was_read = true;
    }
    params_warn_extra(params, file, folder);
done:
    mb_safetensors_close(&file);
    return status;
}

/* ---- 2. a delta ---- */

mb_status mb_params_read_delta(mb_params *params, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    mb_params_source source;
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
        if (param->is_packed)
            MB_RAISE(MB_EDATA, "%s: tensor %s is kept in 4 bits in the base, and a delta cannot change it",
                     path, name);
        MB_TRY(mb_params_source_find(file, path, param, &source));
        MB_TRY(mb_params_source_load(&source, path, param));
        param->from_delta = param->was_read = true;
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
    return !only_trained || param->trained || param->is_carried || param->from_delta;
}

/* Does memory hold a tensor rounded whose folder has it as it was? */
static bool params_is_rounded(const mb_param *param)
{
    return param->value.dtype != MB_F32 && !param->from_delta && !param->is_packed;
}

static bool params_has_rounded(mb_params *params, bool only_trained)
{
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (params_is_written(param, only_trained) && params_is_rounded(param)) return true;
    }
    return false;
}

/* Values to write: from memory, or from the folder they came from when memory holds them rounded. */
static mb_status params_value(const mb_param *param, const mb_safetensors *opt_file, const char *source,
                              const char *folder, float *out)
{
    mb_status status = MB_OK;
    mb_params_source from;
    if (opt_file != NULL && params_is_rounded(param)) {
        MB_TRY(mb_params_source_find(opt_file, source, param, &from));
        MB_TRY(mb_params_source_read(&from, source, out));
        goto done;
    }
    if (param->weight.bits != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: tensor %s is kept quantised; write the model's adapter or a delta",
                 folder, param->name);
    MB_TRY(mb_params_get_f32(param, out));
done:
    return status;
}

static mb_status params_declare(mb_params *params, mb_safetensors_writer *writer, mb_dtype dtype,
                                bool only_trained)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (!params_is_written(param, only_trained)) continue;
        if (param->is_packed) {
            MB_TRY(mb_packed_io_declare(writer, param->name, param->value.shape[0], param->value.shape[1],
                                        param->group, MB_F32));
            continue;
        }
        MB_TRY(mb_safetensors_writer_declare(writer, param->name, param->is_carried ? MB_F32 : dtype,
                                             param->value.dims, param->value.shape));
    }
done:
    return status;
}

static mb_status params_write_packed(const mb_param *param, mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    mb_packed_io_matrix matrix = {0};
    MB_TRY(mb_packed_io_get(param, &matrix));
    MB_TRY(mb_packed_io_write(writer, param->name, &matrix));
done:
    mb_packed_io_reset(&matrix);
    return status;
}

mb_status mb_params_write(mb_params *params, const char *folder, const char *stem, mb_dtype dtype,
                          int64_t shard_bytes, bool only_trained, const char *opt_source)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    mb_safetensors *file = NULL;
    float *value = NULL;
    if (opt_source != NULL && params_has_rounded(params, only_trained))
        MB_TRY(mb_safetensors_open(opt_source, &file));
    MB_TRY(mb_safetensors_writer_create(folder, stem, shard_bytes, &writer));
    MB_TRY(params_declare(params, writer, dtype, only_trained));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const int64_t n = mb_tensor_count(&param->value);
        if (!params_is_written(param, only_trained)) continue;
        if (param->is_packed) {
            MB_TRY(params_write_packed(param, writer));
            continue;
        }
        MB_FREE(value);
        MB_NEW_ARRAY(value, n);
        MB_TRY(params_value(param, file, opt_source, folder, value));
        MB_TRY(mb_safetensors_writer_write_f32(writer, param->name, value, n));
    }
    MB_TRY(mb_safetensors_writer_close(&writer));
done:
    mb_free(value);
    mb_safetensors_close(&file);
    mb_safetensors_writer_destroy(&writer);
    return status;
}
