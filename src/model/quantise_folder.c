/* quantise_folder: see the header.
 *
 * 1. config.json
 * 2. tensors
 * 3. the whole
 */
#include "model/quantise_folder.h"

#include <string.h>

#include "base/files.h"
#include "model/lm_state.h"
#include "model/packed_config.h"
#include "model/packed_io.h"
#include "store/checkpoint.h"

#define FOLDER_SHARD_BYTES ((int64_t)5 * 1000 * 1000 * 1000)
enum { FOLDER_EXCEPTIONS = 16 };

/* ---- 1. config.json ---- */

/* "model.layers.3.mlp.down_proj.weight" -> "model\.layers\.\d+\.mlp\.down_proj$" */
static void folder_pattern(const char *name, char *out, size_t bytes)
{
    const size_t end = strlen(name) - strlen(".weight");
    size_t at = 0;
    for (size_t i = 0; i < end && at + 4 < bytes; i++) {
        const bool is_digit = name[i] >= '0' && name[i] <= '9' && name[i - 1] == '.';
        if (is_digit) {
            while (i + 1 < end && name[i + 1] != '.') i++;
            memcpy(out + at, "\\d+", 3), at += 3;
            continue;
        }
        if (name[i] == '.') out[at++] = '\\';
        out[at++] = name[i];
    }
    out[at++] = '$';
    out[at] = 0;
}

/* Matrices whose columns the group asked for does not divide. */
static mb_status folder_exceptions(mb_lm *lm, int64_t wanted, mb_packed_exception *list, int64_t *out_count)
{
    mb_status status = MB_OK;
    int64_t count = 0, at;
    for (int64_t i = 0; i < mb_params_count(lm->params); i++) {
        const mb_param *param = mb_params_at(lm->params, i);
        mb_packed_exception one;
        if (!mb_quantise_layers_has(lm->params, param)) continue;
        const int64_t k = param->value.shape[1], group = mb_gptq_group(k, wanted);
        if (group == wanted) continue;
        folder_pattern(param->name, one.pattern, sizeof one.pattern);
        one.group = group == k ? 0 : group;
        for (at = 0; at < count && strcmp(list[at].pattern, one.pattern) != 0; at++) {
        }
        if (at == FOLDER_EXCEPTIONS)
            MB_RAISE(MB_EUNSUPPORTED, "quantise: more than %d kinds of matrices with other groups",
                     FOLDER_EXCEPTIONS);
        list[at] = one;
        if (at == count) count++;
    }
    *out_count = count;
done:
    return status;
}

static mb_status folder_config(mb_lm *lm, const mb_quantise_options *options, const char *folder)
{
    mb_status status = MB_OK;
    mb_arch arch = lm->arch; /* borrows config */
    mb_packed_exception exceptions[FOLDER_EXCEPTIONS];
    int64_t count = 0;
    json_t *config = NULL, *quantised = NULL, *ignore = json_pack("[s]", "lm_head");
    char *path = mb_files_join(folder, "config.json");
    if (path == NULL || ignore == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    if (arch.experts > 0 && json_array_append_new(ignore, json_string("re:.*\\.gate$")) != 0)
        MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(folder_exceptions(lm, options->gptq.group, exceptions, &count));
    MB_TRY(mb_packed_config_make(options->gptq.group, options->by_gptq && options->gptq.act_order, exceptions,
                                 count, ignore, &quantised));
    MB_TRY(mb_arch_to_json(&arch, &config));
    MB_TRY(mb_json_set(config, "quantization_config", json_incref(quantised)));
    MB_TRY(mb_json_write(path, config, 2, false));
done:
    json_decref(config);
    json_decref(quantised);
    json_decref(ignore);
    mb_free(path);
    return status;
}

/* ---- 2. tensors ---- */

static bool folder_has(const mb_param *param)
{
    return strstr(param->name, ".lora_") == NULL;
}

static mb_status folder_declare(mb_lm *lm, const mb_quantise_options *options, mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    const mb_dtype dtype = lm->arch.stored_dtype;
    for (int64_t i = 0; i < mb_params_count(lm->params); i++) {
        const mb_param *p = mb_params_at(lm->params, i);
        const int64_t *shape = p->value.shape;
        if (!folder_has(p)) continue;
        if (mb_quantise_layers_has(lm->params, p))
            MB_TRY(mb_packed_io_declare(writer, p->name, shape[0], shape[1],
                                        mb_gptq_group(shape[1], options->gptq.group), options->gptq.stored));
        else
            MB_TRY(mb_safetensors_writer_declare(writer, p->name, p->is_carried ? MB_F32 : dtype,
                                                 p->value.dims, shape));
    }
done:
    return status;
}

static mb_status folder_write_plain(const mb_param *param, mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    const int64_t n = mb_tensor_count(&param->value);
    float *value = NULL;
    MB_NEW_ARRAY(value, n);
    MB_TRY(mb_params_get_f32(param, value));
    MB_TRY(mb_safetensors_writer_write_f32(writer, param->name, value, n));
done:
    mb_free(value);
    return status;
}

static mb_status folder_open_block(const char *blocks, int64_t block, mb_safetensors **file, char **path)
{
    mb_status status = MB_OK;
    mb_safetensors_close(file);
    mb_free(*path);
    *path = mb_str_format("%s/block-%lld.safetensors", blocks, (long long)block);
    if (*path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", blocks);
    MB_TRY(mb_safetensors_open(*path, file));
done:
    return status;
}

static mb_status folder_fill(mb_lm *lm, const char *blocks, mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    mb_packed_io_matrix matrix = {0};
    char *path = NULL;
    int64_t opened = -1;
    for (int64_t i = 0; i < mb_params_count(lm->params); i++) {
        const mb_param *param = mb_params_at(lm->params, i);
        if (!folder_has(param)) continue;
        if (!mb_quantise_layers_has(lm->params, param)) {
            MB_TRY(folder_write_plain(param, writer));
            continue;
        }
        if (param->block != opened) MB_TRY(folder_open_block(blocks, param->block, &file, &path));
        opened = param->block;
        MB_TRY(mb_packed_io_read(file, path, param, &matrix));
        MB_TRY(mb_packed_io_write(writer, param->name, &matrix));
        mb_packed_io_reset(&matrix);
    }
done:
    mb_packed_io_reset(&matrix);
    mb_safetensors_close(&file);
    mb_free(path);
    return status;
}

/* ---- 3. the whole ---- */

static mb_status folder_bytes(const char *folder, int64_t *out_bytes)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL;
    int64_t n = 0, one, sum = 0;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (!mb_str_is_suffix(names[i], ".safetensors")) continue;
        path = mb_files_join(folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
        MB_TRY(mb_files_size(path, &one));
        sum += one;
        MB_FREE(path);
    }
    *out_bytes = sum;
done:
    mb_free(path);
    mb_files_free_names(&names, n);
    return status;
}

mb_status mb_quantise_folder_write(mb_lm *lm, const mb_quantise_options *options, const char *blocks,
                                   const char *source, const char *target, int64_t *out_bytes)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    char *folder = NULL;
    MB_TRY(mb_checkpoint_begin(target, &folder));
    MB_TRY(mb_safetensors_writer_create(folder, "model", FOLDER_SHARD_BYTES, &writer));
    MB_TRY(folder_declare(lm, options, writer));
    MB_TRY(folder_fill(lm, blocks, writer));
    MB_TRY(mb_safetensors_writer_close(&writer));
    MB_TRY(folder_config(lm, options, folder));
    MB_TRY(mb_lm_copy_companions(source, folder));
    MB_TRY(folder_bytes(folder, out_bytes));
    MB_TRY(mb_checkpoint_commit(folder, target));
done:
    mb_safetensors_writer_destroy(&writer);
    if (status != MB_OK && folder != NULL) (void)mb_files_remove_tree(folder);
    mb_free(folder);
    return status;
}
