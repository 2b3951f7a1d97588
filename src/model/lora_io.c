/* lora_io: PEFT adapter folders, adapter_config.json and adapter_model.safetensors.
 *
 * 1. reading the options
 * 2. reading and writing the tensors
 */
#include <math.h>
#include <string.h>

#include "base/files.h"
#include "base/option.h"
#include "model/lora.h"
#include "store/safetensors.h"

#define LORA_PREFIX "base_model.model."

/* ---- 1. reading the options ---- */

static bool lora_is_empty(const json_t *value)
{
    return value == NULL || json_is_null(value) || json_is_false(value) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_string(value) && strcmp(json_string_value(value), "none") == 0);
}

static mb_status lora_refuse(const json_t *config, const char *where)
{
    static const char *const fields[] = {"use_dora",
                                         "modules_to_save",
                                         "rank_pattern",
                                         "alpha_pattern",
                                         "bias",
                                         "fan_in_fan_out",
                                         "layers_to_transform",
                                         "layers_pattern",
                                         "layer_replication",
                                         "exclude_modules",
                                         "trainable_token_indices",
                                         "target_parameters",
                                         "lora_bias",
                                         "use_qalora",
                                         "megatron_config",
                                         "alora_invocation_tokens"};
    mb_status status = MB_OK;
    const char *type = NULL;
    MB_TRY(mb_json_get_string(config, "peft_type", where, &type));
    if (strcmp(type, "LORA") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: peft_type '%s' is not supported; only LORA is", where, type);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (!lora_is_empty(json_object_get(config, fields[i])))
            MB_RAISE(MB_EUNSUPPORTED, "%s: %s is set and not supported; merge the adapter with peft first",
                     where, fields[i]);
    const char *init = json_string_value(json_object_get(config, "init_lora_weights"));
    if (init != NULL && (mb_str_is_prefix(init, "pissa") || mb_str_is_prefix(init, "olora") ||
                         mb_str_is_prefix(init, "loftq") || mb_str_is_prefix(init, "corda")))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: init_lora_weights '%s' changes the base model; convert the adapter with peft", where,
                 init);
done:
    return status;
}

static mb_status lora_read_targets(const json_t *config, const char *where, char **out_targets)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    const json_t *targets = json_object_get(config, "target_modules");
    if (json_is_string(targets)) {
        if (strcmp(json_string_value(targets), "all-linear") != 0)
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: target_modules is a regular expression; only a list of names is supported", where);
        MB_TRY(mb_str_add(&s, "all-linear"));
    } else if (!json_is_array(targets) || json_array_size(targets) == 0) {
        MB_RAISE(MB_EFORMAT, "%s: target_modules must be a list of module names", where);
    }
    for (size_t i = 0; json_is_array(targets) && i < json_array_size(targets); i++) {
        const char *name = json_string_value(json_array_get(targets, i));
        if (name == NULL) MB_RAISE(MB_EFORMAT, "%s: target_modules must be a list of module names", where);
        const char *last = strrchr(name, '.') != NULL ? strrchr(name, '.') + 1 : name;
        MB_TRY(mb_str_add_format(&s, "%s%s", i > 0 ? "," : "", last));
    }
    *out_targets = mb_str_take(&s);
done:
    mb_str_destroy(&s);
    return status;
}

mb_status mb_lora_read_options(const char *folder, mb_lora_options *out_options)
{
    mb_status status = MB_OK;
    json_t *config = NULL;
    char *targets = NULL;
    mb_lora_options options = {0};
    char *path = mb_files_join(folder, "adapter_config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    if (!mb_files_is_file(path))
        MB_RAISE(MB_ENOTFOUND, "%s: not found; a PEFT adapter folder holds it", path);
    MB_TRY(mb_json_read(path, &config));
    MB_TRY(lora_refuse(config, path));
    MB_TRY(mb_json_get_int(config, "r", path, &options.r));
    MB_TRY(mb_json_get_real(config, "lora_alpha", path, &options.alpha));
    MB_TRY(mb_json_opt_real(config, "lora_dropout", path, &options.dropout));
    MB_TRY(mb_json_opt_bool(config, "use_rslora", path, &options.rslora));
    MB_TRY(lora_read_targets(config, path, &targets));
    options.targets = targets;
    *out_options = options;
    targets = NULL;
done:
    mb_free(targets);
    json_decref(config);
    mb_free(path);
    return status;
}

/* ---- 2. tensors ---- */

mb_status mb_lora_read(const char *folder, const mb_lora *lora, mb_params *params)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    char *path = NULL, name[240];
    int64_t found = 0;
    (void)lora;
    path = mb_files_join(folder, "adapter_model.safetensors");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(mb_safetensors_open(path, &file));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        if (strstr(param->name, ".lora_") == NULL) continue;
        snprintf(name, sizeof name, LORA_PREFIX "%s", param->name);
        MB_TRY(mb_safetensors_read_f32(file, name, 2, param->value.shape, mb_tensor_f32(&param->value)));
        mb_weight_changed(&param->weight);
        found++;
    }
    if (found != mb_safetensors_count(file))
        MB_RAISE(MB_EUNSUPPORTED, "%s: holds %lld tensors, of which only %lld belong to the model's modules",
                 path, (long long)mb_safetensors_count(file), (long long)found);
done:
    mb_safetensors_close(&file);
    mb_free(path);
    return status;
}

static void lora_add_target(json_t *targets, const char *name)
{
    for (size_t i = 0; i < json_array_size(targets); i++)
        if (strcmp(json_string_value(json_array_get(targets, i)), name) == 0) return;
    json_array_append_new(targets, json_string(name));
}

/* Names one by one: what peft calls all-linear would take the gates of a mixture of experts too. */
static mb_status lora_list_targets(const char *list, json_t **out_targets)
{
    static const char *const linear[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                         "gate_proj", "up_proj", "down_proj"};
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0;
    json_t *targets = json_array();
    if (targets == NULL) MB_RAISE(MB_ENOMEM, "lora: no memory");
    MB_TRY(mb_option_list_split(list, &words, &n));
    for (int64_t i = 0; i < n; i++) {
        const bool all = strcmp(words[i], "all-linear") == 0;
        for (size_t j = 0; all && j < sizeof linear / sizeof linear[0]; j++)
            lora_add_target(targets, linear[j]);
        if (!all) lora_add_target(targets, words[i]);
    }
    *out_targets = targets;
    targets = NULL;
done:
    json_decref(targets);
    mb_option_list_free(&words, n);
    return status;
}

static mb_status lora_write_config(const char *folder, const mb_lora *lora, const char *base_model_path)
{
    mb_status status = MB_OK;
    const mb_lora_options *o = &lora->options;
    json_t *config = NULL, *targets = NULL;
    char *path = mb_files_join(folder, "adapter_config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(lora_list_targets(o->targets, &targets));
    json_t *alpha = o->alpha == floor(o->alpha) ? json_integer((json_int_t)o->alpha) : json_real(o->alpha);
    config =
        json_pack("{s:s, s:n, s:s?, s:s, s:b, s:n, s:b, s:b, s:n, s:n, s:o, s:f, s:n, s:s, s:I, s:{}, s:{}, "
                  "s:O, s:b, s:b}",
                  "peft_type", "LORA", "auto_mapping", "base_model_name_or_path", base_model_path, "bias",
                  "none", "fan_in_fan_out", 0, "modules_to_save", "inference_mode", 1, "init_lora_weights", 1,
                  "layers_pattern", "layers_to_transform", "lora_alpha", alpha, "lora_dropout", o->dropout,
                  "revision", "task_type", "CAUSAL_LM", "r", (json_int_t)o->r, "rank_pattern",
                  "alpha_pattern", "target_modules", targets, "use_dora", 0, "use_rslora", (int)o->rslora);
    if (config == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for the configuration", path);
    MB_TRY(mb_json_write(path, config, 2, true));
done:
    json_decref(config);
    json_decref(targets);
    mb_free(path);
    return status;
}

mb_status mb_lora_write(const char *folder, const mb_lora *lora, mb_params *params,
                        const char *base_model_path)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    char name[240];
    const int64_t count = mb_params_count(params);
    MB_TRY(lora_write_config(folder, lora, base_model_path));
    MB_TRY(mb_safetensors_writer_create(folder, "adapter_model", 0, &writer));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < count; i++) {
            const mb_param *param = mb_params_at(params, i);
            const mb_tensor *value = &param->value;
            if (strstr(param->name, ".lora_") == NULL) continue;
            snprintf(name, sizeof name, LORA_PREFIX "%s", param->name);
            if (pass == 0)
                MB_TRY(mb_safetensors_writer_declare(writer, name, MB_F32, 2, value->shape));
            else
                MB_TRY(mb_safetensors_writer_write_f32(writer, name, mb_tensor_f32(value),
                                                       mb_tensor_count(value)));
        }
    MB_TRY(mb_safetensors_writer_close(&writer));
done:
    mb_safetensors_writer_destroy(&writer);
    return status;
}
