/* lora_io: PEFT adapter folders, adapter_config.json and adapter_model.safetensors.
 *
 * 1. reading
 * 2. writing: how the adapted modules are named
 * 3. writing the folder
 */
#include <math.h>
#include <string.h>

#include "base/files.h"
#include "base/option.h"
#include "model/lora.h"
#include "model/lora_adapter.h"
#include "store/safetensors.h"

#define LORA_PREFIX "base_model.model."

/* ---- 1. reading ---- */

/* The configuration's words: last parts of the names, or its regular expression. */
static mb_status lora_read_targets(const json_t *config, const char *where, char **out_targets)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    const json_t *targets = json_object_get(config, "target_modules");
    if (json_is_string(targets))
        MB_TRY(mb_str_add(&s, json_string_value(targets)));
    else if (targets != NULL && !json_is_null(targets) && !json_is_array(targets))
        MB_RAISE(MB_EFORMAT, "%s: target_modules must be a list of module names", where);
    for (size_t i = 0; json_is_array(targets) && i < json_array_size(targets); i++) {
        const char *name = json_string_value(json_array_get(targets, i));
        if (name == NULL) MB_RAISE(MB_EFORMAT, "%s: target_modules must be a list of module names", where);
        const char *last = strrchr(name, '.') != NULL ? strrchr(name, '.') + 1 : name;
        MB_TRY(mb_str_add_format(&s, "%s%s", i > 0 ? "," : "", last));
    }
    if (s.length == 0) MB_TRY(mb_str_add(&s, "target_parameters"));
    *out_targets = mb_str_take(&s);
done:
    mb_str_destroy(&s);
    return status;
}

mb_status mb_lora_read_options(const char *folder, mb_lora_options *out_options)
{
    mb_status status = MB_OK;
    mb_lora_adapter *adapter = NULL;
    char *targets = NULL;
    mb_lora_options options = {.opt_folder = folder};
    MB_TRY(mb_lora_adapter_open(folder, &adapter));
    const json_t *config = mb_lora_adapter_config(adapter);
    const char *path = mb_lora_adapter_config_path(adapter);
    MB_TRY(mb_json_get_int(config, "r", path, &options.r));
    MB_TRY(mb_json_get_real(config, "lora_alpha", path, &options.alpha));
    MB_TRY(mb_json_opt_real(config, "lora_dropout", path, &options.dropout));
    MB_TRY(mb_json_opt_bool(config, "use_rslora", path, &options.rslora));
    if (options.r < 1 || !(options.dropout >= 0 && options.dropout < 1))
        MB_RAISE(MB_ERANGE, "%s: r %lld or lora_dropout %g is out of range", path, (long long)options.r,
                 options.dropout);
    MB_TRY(lora_read_targets(config, path, &targets));
    options.targets = targets;
    *out_options = options;
    targets = NULL;
done:
    mb_free(targets);
    mb_lora_adapter_close(&adapter);
    return status;
}

/* Module of "<module>.lora_A.weight" (or lora_B), false when the name is none. */
static bool lora_stem(const char *name, char *out_module, size_t bytes)
{
    const char *place = strstr(name, ".lora_");
    if (place == NULL || (size_t)(place - name) >= bytes) return false;
    memcpy(out_module, name, (size_t)(place - name));
    out_module[place - name] = 0;
    return true;
}

mb_status mb_lora_read(const char *folder, const mb_arch *arch, mb_params *params)
{
    mb_status status = MB_OK;
    mb_lora_adapter *adapter = NULL;
    mb_lora_part part;
    char module[200], name[220];
    float *value = NULL;
    bool found = false;
    MB_TRY(mb_lora_adapter_open(folder, &adapter));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        if (!lora_stem(param->name, module, sizeof module)) continue;
        snprintf(name, sizeof name, "%s.weight", module);
        const mb_param *weight = mb_params_find(params, name);
        const int64_t n = weight->value.shape[0], k = weight->value.shape[1];
        MB_TRY(mb_lora_adapter_find(adapter, arch, module, n, k, &found, &part));
        if (!found) MB_RAISE(MB_ENOTFOUND, "%s: module %s has no adapter", folder, module);
        MB_FREE(value);
        MB_NEW_ARRAY(value, mb_tensor_count(&param->value));
        MB_TRY(mb_lora_adapter_read(adapter, &part, strstr(param->name, ".lora_B.") != NULL, n, k, value));
        MB_TRY(mb_params_set_f32(param, value));
    }
done:
    mb_free(value);
    mb_lora_adapter_close(&adapter);
    return status;
}

/* ---- 2. how the adapted modules are named ---- */

typedef struct lora_names {
    json_t *targets, *ranks, *alphas; /* target_modules, rank_pattern, alpha_pattern */
} lora_names;

static const char *lora_last(const char *module)
{
    return strrchr(module, '.') != NULL ? strrchr(module, '.') + 1 : module;
}

static bool lora_has(const json_t *targets, const char *name)
{
    for (size_t i = 0; i < json_array_size(targets); i++)
        if (strcmp(json_string_value(json_array_get(targets, i)), name) == 0) return true;
    return false;
}

static void lora_add_target(json_t *targets, const char *name)
{
    if (!lora_has(targets, name)) json_array_append_new(targets, json_string(name));
}

static double lora_alpha(const mb_lora *lora, const mb_param *b)
{
    const double r = (double)b->value.shape[1];
    return (double)b->lora_scale * (lora->options.rslora ? sqrt(r) : r);
}

static bool lora_is_default(const mb_lora *lora, const mb_param *b)
{
    const double alpha = lora->options.alpha;
    return b->value.shape[1] == lora->options.r && fabs(lora_alpha(lora, b) - alpha) <= 1e-6 * fabs(alpha);
}

/* Last parts of names, in the order of `list` as far as it names them one by one. */
static mb_status lora_words(const char *list, mb_params *params, json_t *words)
{
    mb_status status = MB_OK;
    char **items = NULL, module[200];
    int64_t n = 0;
    MB_TRY(mb_option_list_split(list, &items, &n));
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < mb_params_count(params); j++) {
            if (!lora_stem(mb_params_at(params, j)->name, module, sizeof module)) continue;
            const bool is_all = strcmp(items[i], "all-linear") == 0 && strcmp(lora_last(module), "gate") != 0;
            if (is_all || strcmp(items[i], lora_last(module)) == 0) lora_add_target(words, lora_last(module));
        }
done:
    mb_option_list_free(&items, n);
    return status;
}

/* Do these words mean just the adapted modules, all of the same rank and alpha? */
static bool lora_words_suffice(const mb_lora *lora, const json_t *words, mb_params *params)
{
    char module[200], name[220];
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const bool is_b = strstr(param->name, ".lora_B.") != NULL;
        if (is_b && !lora_is_default(lora, param)) return false;
        if (strstr(param->name, ".lora_") != NULL || !mb_str_is_suffix(param->name, ".weight")) continue;
        snprintf(module, sizeof module, "%.*s", (int)(strlen(param->name) - strlen(".weight")), param->name);
        snprintf(name, sizeof name, "%s.lora_B.weight", module);
        if (lora_has(words, lora_last(module)) != (mb_params_find(params, name) != NULL)) return false;
    }
    return json_array_size(words) > 0;
}

/* Every module by its whole name, with its rank and alpha where they are not the adapter's. */
static mb_status lora_list_whole(const mb_lora *lora, mb_params *params, lora_names *names)
{
    mb_status status = MB_OK;
    char module[200];
    json_array_clear(names->targets);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *b = mb_params_at(params, i);
        if (strstr(b->name, ".lora_B.") == NULL || !lora_stem(b->name, module, sizeof module)) continue;
        if (json_array_append_new(names->targets, json_string(module)) < 0)
            MB_RAISE(MB_ENOMEM, "lora: no memory");
        if (lora_is_default(lora, b)) continue;
        MB_TRY(mb_json_set(names->ranks, module, json_integer(b->value.shape[1])));
        MB_TRY(mb_json_set(names->alphas, module, json_real(lora_alpha(lora, b))));
    }
done:
    return status;
}

/* Names one by one: what peft calls all-linear would take the gates of a mixture of experts too. */
static mb_status lora_list_targets(const mb_lora *lora, mb_params *params, lora_names *names)
{
    mb_status status = MB_OK;
    names->targets = json_array();
    names->ranks = json_object();
    names->alphas = json_object();
    if (names->targets == NULL || names->ranks == NULL || names->alphas == NULL)
        MB_RAISE(MB_ENOMEM, "lora: no memory");
    MB_TRY(lora_words(lora->options.targets, params, names->targets));
    if (!lora_words_suffice(lora, names->targets, params)) MB_TRY(lora_list_whole(lora, params, names));
done:
    return status;
}

static void lora_names_reset(lora_names *names)
{
    json_decref(names->targets);
    json_decref(names->ranks);
    json_decref(names->alphas);
}

/* ---- 3. writing the folder ---- */

static mb_status lora_write_config(const char *folder, const mb_lora *lora, mb_params *params,
                                   const char *base_model_path)
{
    mb_status status = MB_OK;
    const mb_lora_options *o = &lora->options;
    json_t *config = NULL;
    lora_names names = {0};
    char *path = mb_files_join(folder, "adapter_config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(lora_list_targets(lora, params, &names));
    json_t *alpha = o->alpha == floor(o->alpha) ? json_integer((json_int_t)o->alpha) : json_real(o->alpha);
    config = json_pack(
        "{s:s, s:n, s:s?, s:s, s:b, s:n, s:b, s:b, s:n, s:n, s:o, s:f, s:n, s:s, s:I, s:O, s:O, "
        "s:O, s:b, s:b}",
        "peft_type", "LORA", "auto_mapping", "base_model_name_or_path", base_model_path, "bias", "none",
        "fan_in_fan_out", 0, "modules_to_save", "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
        "layers_to_transform", "lora_alpha", alpha, "lora_dropout", o->dropout, "revision", "task_type",
        "CAUSAL_LM", "r", (json_int_t)o->r, "rank_pattern", names.ranks, "alpha_pattern", names.alphas,
        "target_modules", names.targets, "use_dora", 0, "use_rslora", (int)o->rslora);
    if (config == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for the configuration", path);
    MB_TRY(mb_json_write(path, config, 2, true));
done:
    json_decref(config);
    lora_names_reset(&names);
    mb_free(path);
    return status;
}

mb_status mb_lora_write(const char *folder, const mb_lora *lora, mb_params *params,
                        const char *base_model_path)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    char name[240];
    float *copy = NULL;
    const int64_t count = mb_params_count(params);
    MB_TRY(lora_write_config(folder, lora, params, base_model_path));
    MB_TRY(mb_safetensors_writer_create(folder, "adapter_model", 0, &writer));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < count; i++) {
            const mb_param *param = mb_params_at(params, i);
            const mb_tensor *value = &param->value;
            if (strstr(param->name, ".lora_") == NULL) continue;
            snprintf(name, sizeof name, LORA_PREFIX "%s", param->name);
            if (pass == 0) {
                MB_TRY(mb_safetensors_writer_declare(writer, name, MB_F32, 2, value->shape));
                continue;
            }
            MB_FREE(copy);
            MB_NEW_ARRAY(copy, mb_tensor_count(value));
            MB_TRY(mb_params_get_f32(param, copy));
            MB_TRY(mb_safetensors_writer_write_f32(writer, name, copy, mb_tensor_count(value)));
        }
    MB_TRY(mb_safetensors_writer_close(&writer));
done:
    mb_free(copy);
    mb_safetensors_writer_destroy(&writer);
    return status;
}
