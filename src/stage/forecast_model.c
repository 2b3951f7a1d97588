/* forecast_model.c: shapes from folders, and from what a study says about folders to come.
 *
 * 1. names in paths   2. a folder or a file   3. the study's word   4. adapters   5. the model
 */
#include "stage/forecast_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "model/convert_upcycle.h"

/* ---- 1. names in paths ---- */

/* Parts of a stage's folder that are no stage: "final", "model", "epoch_3", "shard.h5", "scores.h5". */
static bool is_inside(const char *name, size_t n)
{
    static const char *const parts[] = {"final",     "model",         "shard.h5",
                                        "scores.h5", "embeddings.h5", "adapter"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strlen(parts[i]) == n && memcmp(parts[i], name, n) == 0) return true;
    return n > 6 && memcmp(name, "epoch_", 6) == 0;
}

char *mb_forecast_model_stage_of(const char *path)
{
    size_t end = strlen(path);
    for (;;) {
        while (end > 0 && path[end - 1] == '/') end--;
        size_t first = end;
        while (first > 0 && path[first - 1] != '/') first--;
        if (first == 0 || !is_inside(path + first, end - first)) return mb_strndup(path + first, end - first);
        end = first;
    }
}

char *mb_forecast_model_group_of(const mb_forecast_stage *stage, const char *name)
{
    char *group = mb_strdup(name);
    while (group != NULL && !mb_forecast_stage_has_group(stage, group)) {
        char *dash = strrchr(group, '-');
        if (dash == NULL) MB_FREE(group);
        if (dash != NULL) *dash = 0;
    }
    return group;
}

/* ---- 2. a folder or a file ---- */

/* path: a config.json or a folder with one. *out_found false when it is not there. */
static mb_status read_shape(const char *path, mb_forecast_model *model, bool *out_found)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    const bool is_file = mb_files_is_file(path);
    char *file = is_file ? mb_strdup(path) : mb_files_join(path, "config.json");
    const char *type = "";
    *out_found = false;
    if (file == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (!mb_files_is_file(file)) goto done;
    MB_TRY(mb_json_read(file, &json));
    MB_TRY(mb_json_opt_string(json, "model_type", file, &type));
    static const char *const encoders[] = {"bert", "roberta", "xlm-roberta", "camembert", "new", "gte"};
    for (size_t i = 0; i < sizeof encoders / sizeof *encoders; i++)
        model->is_encoder = model->is_encoder || mb_str_equal(encoders[i], type);
    if (model->is_encoder)
        MB_TRY(mb_encoder_config_from_json(json, file, &model->encoder));
    else
        MB_TRY(mb_arch_from_json(json, file, &model->arch));
    snprintf(model->says, sizeof model->says, "%s", file);
    *out_found = true;
done:
    json_decref(json);
    mb_free(file);
    return status;
}

/* ---- 3. the study's word ---- */

/* Trash experts of stages behind moe-convert trash. */
static mb_status add_trash(const mb_forecast_stage *stage, const char *name, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    int64_t trash = 0;
    char *text = NULL;
    mb_arch *arch = &model->arch;
    const bool is_converted = mb_str_is_prefix(name, "convert") || mb_str_is_prefix(name, "warmup") ||
                              mb_str_is_prefix(name, "score");
    if (!is_converted || arch->experts == 0 || arch->trash > 0) goto done;
    text = mb_forecast_stage_text(stage, "convert.convert.trash_experts");
    if (text != NULL) MB_TRY(mb_str_parse_int(text, &trash));
    arch->trash = trash > 0 ? trash : arch->picks;
    const size_t used = strlen(model->says);
    snprintf(model->says + used, sizeof model->says - used, " with %lld trash experts",
             (long long)arch->trash);
done:
    mb_free(text);
    return status;
}

/* Key of the study's group of moe-convert upcycle, when it is there. */
static mb_status upcycle_int(const mb_forecast_stage *stage, const char *key, int64_t *value)
{
    mb_status status = MB_OK;
    char *text = mb_forecast_stage_text(stage, key);
    if (text != NULL) MB_TRY(mb_str_parse_int(text, value));
done:
    mb_free(text);
    return status;
}

/* Experts of stages behind moe-convert upcycle: all but those that make the dense model. */
static mb_status add_experts(const mb_forecast_stage *stage, const char *name, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_options o = {.experts = 8,
                                    .picks = 2,
                                    .granularity = 1,
                                    .router_init = "normal",
                                    .router_init_std = 1,
                                    .scaling = "none",
                                    .normalise = true,
                                    .dtype = "source"};
    mb_convert_upcycle_plan plan = {0};
    const bool is_dense = mb_str_is_prefix(name, "dense") || mb_str_is_prefix(name, "pretrain");
    if (is_dense || model->arch.experts > 0 || !mb_forecast_stage_has_group(stage, "upcycle")) goto done;
    MB_TRY(upcycle_int(stage, "upcycle.convert.experts", &o.experts));
    MB_TRY(upcycle_int(stage, "upcycle.convert.experts_per_token", &o.picks));
    MB_TRY(upcycle_int(stage, "upcycle.convert.granularity", &o.granularity));
    o.layers = mb_forecast_stage_text(stage, "upcycle.convert.layers");
    MB_TRY(mb_convert_upcycle_plan_create(&model->arch, model->says, &o, &plan));
    mb_arch_reset(&model->arch);
    model->arch = plan.arch;
    const size_t used = strlen(model->says);
    snprintf(model->says + used, sizeof model->says - used, " as %lld experts", (long long)o.experts);
done:
    mb_free(o.layers);
    return status;
}

/* moe-convert init takes the vocabulary of a tokenizer made on the spot. */
static mb_status set_vocab(const mb_forecast_stage *stage, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    char *text = mb_forecast_stage_text(stage, "tokenizer.tokenizer.vocab_size");
    if (text != NULL) MB_TRY(mb_str_parse_int(text, &model->arch.vocab));
done:
    mb_free(text);
    return status;
}

static bool is_target(const char *name)
{
    return strstr(name, "target") != NULL || mb_str_is_prefix(name, "finetune") ||
           mb_str_is_prefix(name, "merge");
}

static mb_status read_study(const mb_forecast_stage *stage, const char *name, mb_forecast_model *model,
                            bool *out_found)
{
    mb_status status = MB_OK;
    const bool target = is_target(name);
    const char *const roles[2] = {target ? "target" : "selector", "dense"};
    char *folder = NULL, *config = NULL, key[64];
    for (int i = 0; i < 2 && folder == NULL && config == NULL; i++) {
        snprintf(key, sizeof key, "study.%s", roles[i]);
        folder = mb_forecast_stage_text(stage, key);
        snprintf(key, sizeof key, "study.%s_config", roles[i]);
        config = mb_forecast_stage_text(stage, key);
    }
    if (folder != NULL) MB_TRY(read_shape(folder, model, out_found));
    if (!*out_found && config != NULL) {
        MB_TRY(read_shape(config, model, out_found));
        if (*out_found && !model->is_encoder) MB_TRY(set_vocab(stage, model));
    }
    if (*out_found && !model->is_encoder) MB_TRY(add_experts(stage, name, model));
    if (*out_found && !model->is_encoder) MB_TRY(add_trash(stage, name, model));
done:
    mb_free(folder);
    mb_free(config);
    return status;
}

/* ---- 4. adapters ---- */

static mb_status study_adapter(const mb_forecast_stage *stage, const char *path, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    mb_lora_options *lora = &model->adapter;
    char *name = mb_forecast_model_stage_of(path),
         *group = name != NULL ? mb_forecast_model_group_of(stage, name) : NULL,
         *r_key = mb_str_format("%s.training.lora.r", group != NULL ? group : "training"),
         *targets_key = mb_str_format("%s.training.lora.target_modules", group != NULL ? group : "training"),
         *r = r_key != NULL ? mb_forecast_stage_text(stage, r_key) : NULL,
         *targets = targets_key != NULL ? mb_forecast_stage_text(stage, targets_key) : NULL;
    *lora = (mb_lora_options){.r = 128, .alpha = 256};
    if (r != NULL) MB_TRY(mb_str_parse_int(r, &lora->r));
    lora->targets = targets != NULL ? targets : mb_strdup("q_proj,k_proj,v_proj,o_proj");
    targets = NULL;
    if (lora->targets == NULL) MB_RAISE(MB_ENOMEM, "no memory for the modules of an adapter");
done:
    mb_free(name);
    mb_free(group);
    mb_free(r_key);
    mb_free(targets_key);
    mb_free(r);
    mb_free(targets);
    return status;
}

static mb_status find_adapter(const mb_forecast_stage *stage, const char *path, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    char *file = mb_files_join(path, "adapter_config.json");
    if (file == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (mb_files_is_file(file)) {
        MB_TRY(mb_lora_read_options(path, &model->adapter));
        model->adapter.opt_folder = NULL; /* by its targets: nothing of it is read */
    } else {
        MB_TRY(study_adapter(stage, path, model));
    }
    model->has_adapter = true;
    const size_t used = strlen(model->says);
    snprintf(model->says + used, sizeof model->says - used, ", an adapter of rank %lld",
             (long long)model->adapter.r);
done:
    mb_free(file);
    return status;
}

/* ---- 5. the model ---- */

static mb_status declare_trash(const mb_model_options *options, mb_arch *arch)
{
    if (options->trash_expert_ratio > 0 && arch->experts > 0 && arch->trash == 0) {
        const int64_t n = (int64_t)(options->trash_expert_ratio * (double)arch->experts + 0.5);
        arch->declared_trash = n < 1 ? 1 : n;
    }
    return MB_OK;
}

mb_status mb_forecast_model_find(mb_forecast_stage *stage, const char *opt_path, const char *opt_arch,
                                 mb_forecast_model *out_model)
{
    mb_status status = MB_OK;
    bool found = false;
    const mb_model_options *options = mb_forecast_stage_model(stage);
    const char *path = opt_path != NULL ? opt_path : options != NULL ? options->path : NULL;
    char *name = NULL;
    *out_model = (mb_forecast_model){0};
    if (opt_arch != NULL) {
        MB_TRY(read_shape(opt_arch, out_model, &found));
        if (!found) MB_RAISE(MB_ENOTFOUND, "arch=%s: no config.json, and no folder with one", opt_arch);
    }
    if (!found && path != NULL) MB_TRY(read_shape(path, out_model, &found));
    /* Where neither is there, the group's own name says whose model it is. */
    name =
        path != NULL ? mb_forecast_model_stage_of(path) : mb_strdup(stage->group != NULL ? stage->group : "");
    if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    if (!found && stage->file != NULL) {
        const bool is_eval = stage->program == MB_FORECAST_EVAL && path == NULL;
        MB_TRY(read_study(stage, is_eval ? "target" : name, out_model, &found));
    }
    if (!found)
        MB_RAISE(MB_EUSAGE,
                 "%s is not there%s, and no study file says what model it will be; give "
                 "arch=CONFIG.JSON (or a folder with one)",
                 path != NULL ? path : "model.path", path != NULL ? "" : " (it is not given)");
    if (out_model->is_encoder) goto done;
    MB_TRY(declare_trash(options != NULL ? options : &(mb_model_options){0}, &out_model->arch));
    if (options != NULL && options->adapter != NULL && opt_path == NULL)
        MB_TRY(find_adapter(stage, options->adapter, out_model));
done:
    mb_free(name);
    return status;
}

void mb_forecast_model_reset(mb_forecast_model *model)
{
    if (!model->is_encoder) mb_arch_reset(&model->arch);
    mb_free((char *)model->adapter.targets);
    *model = (mb_forecast_model){0};
}

void mb_forecast_model_shape(const mb_arch *a, char out_text[200])
{
    snprintf(out_text, 200, "L%lld D%lld H%lld/%lldx%lld F%lld/%lld E%lld+%lld K%lld V%lld%s",
             (long long)a->layers, (long long)a->width, (long long)a->heads, (long long)a->kv_heads,
             (long long)a->head_width, (long long)a->ffn, (long long)a->dense_ffn, (long long)a->experts,
             (long long)a->trash, (long long)a->picks, (long long)a->vocab, a->tied_head ? " tied" : "");
}
