/* forecast_model.c: shapes from folders, and from what a study says about folders to come.
 *
 * 1. names in paths   2. a folder or a file   3. the study's word   4. the stage that makes it   5. adapters
 * 6. a folder to come   7. the stage's model   8. the teacher
 */
#include "stage/forecast_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "model/convert_upcycle.h"
#include "stage/forecast_fuse.h"
#include "stage/forecast_makers.h"
#include "stage/train_teacher.h"

/* ---- 1. names in paths ---- */

/* Parts of a stage's folder that are no stage: "final", "model", "epoch_3", "shard.h5", "scores.h5". */
static bool is_inside(const char *name, size_t n)
{
    static const char *const parts[] = {"final",   "model", "shard.h5",    "scores.h5",     "embeddings.h5",
                                        "adapter", "best",  "best_router", "validation.h5", "teacher.h5"};
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

/* ---- 4. the stage that makes it ---- */

static mb_status add_upcycled(const mb_convert_upcycle_options *options, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_plan plan = {0};
    MB_TRY(mb_convert_upcycle_plan_create(&model->arch, model->says, options, &plan));
    mb_arch_reset(&model->arch);
    model->arch = plan.arch;
done:
    return status;
}

/* What moe-convert makes of its model. */
static mb_status read_converted(mb_forecast_stage *maker, mb_forecast_model *model, bool *out_found)
{
    mb_status status = MB_OK;
    const mb_convert_program *own = &maker->own.convert;
    mb_arch *arch = &model->arch;
    if (mb_str_equal(maker->mode, "init"))
        return own->config != NULL ? read_shape(own->config, model, out_found) : MB_OK;
    if (own->model.path == NULL) return MB_OK;
    MB_TRY(mb_forecast_model_at(maker, own->model.path, NULL, model));
    *out_found = !model->is_encoder && model->fused == NULL;
    if (!*out_found) goto done;
    if (mb_str_equal(maker->mode, "upcycle")) MB_TRY(add_upcycled(&own->upcycle, model));
    if (mb_str_equal(maker->mode, "trash") && arch->trash == 0)
        arch->trash = own->trash.trash_experts > 0 ? own->trash.trash_experts : arch->picks;
    if (mb_str_equal(maker->mode, "plain")) {
        arch->experts += arch->trash;
        arch->trash = arch->declared_trash = 0;
    }
done:
    return status;
}

/* *out_maker: name of the stage (mb_free), NULL: none makes it. */
static mb_status read_maker(const mb_forecast_stage *stage, const char *path, mb_forecast_model *model,
                            bool *out_found, char **out_maker)
{
    mb_status status = MB_OK;
    mb_forecast_stage maker;
    bool is_made;
    MB_TRY(mb_forecast_makers_find(stage, path, &maker, &is_made));
    if (!is_made) goto done;
    *out_maker = mb_forecast_model_stage_of(maker.common.output_dir != NULL ? maker.common.output_dir : path);
    if (maker.program == MB_FORECAST_CONVERT) MB_TRY(read_converted(&maker, model, out_found));
    if (maker.program == MB_FORECAST_TRAIN) {
        MB_TRY(mb_forecast_model_find(&maker, NULL, NULL, model));
        model->has_adapter = false; /* one would be named as such */
        *out_found = true;
    }
done:
    mb_forecast_stage_reset(&maker);
    return status;
}

/* ---- 5. adapters ---- */

static mb_status find_adapter(const mb_forecast_stage *stage, const char *path, mb_forecast_model *model);

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

/* Of the stage that trains it. */
static mb_status maker_adapter(const mb_forecast_stage *stage, const char *path, mb_forecast_model *model,
                               bool *out_found)
{
    mb_status status = MB_OK;
    mb_forecast_stage maker;
    bool is_made;
    const mb_train_program *own = &maker.own.train;
    *out_found = false;
    MB_TRY(mb_forecast_makers_find(stage, path, &maker, &is_made));
    if (!is_made || maker.program != MB_FORECAST_TRAIN || own->lora_targets == NULL) goto done;
    if (own->model.adapter != NULL) /* it trains on */
        MB_TRY(find_adapter(&maker, own->model.adapter, model));
    else
        model->adapter = (mb_lora_options){
            .r = own->lora_r, .alpha = own->lora_alpha, .targets = mb_strdup(own->lora_targets)};
    if (model->adapter.targets == NULL) MB_RAISE(MB_ENOMEM, "no memory for the modules of an adapter");
    *out_found = true;
done:
    mb_forecast_stage_reset(&maker);
    return status;
}

static mb_status find_adapter(const mb_forecast_stage *stage, const char *path, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    bool found = false;
    char *file = mb_files_join(path, "adapter_config.json");
    if (file == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (mb_files_is_file(file)) {
        MB_TRY(mb_lora_read_options(path, &model->adapter));
        model->adapter.opt_folder = NULL; /* by its targets: nothing of it is read */
    } else {
        MB_TRY(maker_adapter(stage, path, model, &found));
        if (!found) MB_TRY(study_adapter(stage, path, model));
    }
    model->has_adapter = true;
    const size_t used = strlen(model->says);
    snprintf(model->says + used, sizeof model->says - used, ", an adapter of rank %lld",
             (long long)model->adapter.r);
done:
    mb_free(file);
    return status;
}

/* ---- 6. a folder to come ---- */

static mb_status find_shape(mb_forecast_stage *stage, const char *path, mb_forecast_model *model,
                            bool *out_found, char **out_maker)
{
    mb_status status = MB_OK;
    char *name = mb_forecast_model_stage_of(path);
    if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    *out_found = mb_fuse_is_folder(path);
    if (*out_found)
        MB_TRY(mb_forecast_fuse_from_folder(stage, path, model));
    else
        MB_TRY(read_shape(path, model, out_found));
    if (!*out_found && stage->file != NULL) MB_TRY(read_study(stage, name, model, out_found));
    if (!*out_found) MB_TRY(read_maker(stage, path, model, out_found, out_maker));
    if (!*out_found && stage->arch != NULL) MB_TRY(read_shape(stage->arch, model, out_found));
done:
    mb_free(name);
    return status;
}

mb_status mb_forecast_model_at(mb_forecast_stage *stage, const char *path, const char *opt_adapter,
                               mb_forecast_model *out_model)
{
    mb_status status = MB_OK;
    bool found = false;
    char *maker = NULL;
    *out_model = (mb_forecast_model){0};
    MB_TRY(find_shape(stage, path, out_model, &found, &maker));
    if (!found && maker != NULL)
        MB_RAISE(MB_EUNSUPPORTED, "%s cannot be forecast: what stage %s will make of its model is not known",
                 path, maker);
    if (!found)
        MB_RAISE(MB_EUSAGE,
                 "%s is not there, and no study file says what model it will be; give arch=CONFIG.JSON (or a "
                 "folder with one)",
                 path);
    if (opt_adapter != NULL && out_model->fused == NULL) MB_TRY(find_adapter(stage, opt_adapter, out_model));
done:
    mb_free(maker);
    return status;
}

/* ---- 7. the stage's model ---- */

static mb_status declare_trash(const mb_model_options *options, mb_arch *arch)
{
    if (options->trash_expert_ratio > 0 && arch->experts > 0 && arch->trash == 0) {
        const int64_t n = (int64_t)(options->trash_expert_ratio * (double)arch->experts + 0.5);
        arch->declared_trash = n < 1 ? 1 : n;
    }
    return MB_OK;
}

/* training.student_init: a parent by the keys, or the member of this name of a fused teacher (train_model.c).
 */
static mb_status find_student(mb_forecast_stage *stage, const char *word, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    const mb_train_program *own = &stage->own.train;
    const bool is_first = mb_str_equal(word, "foundation");
    mb_forecast_model teacher = {0};
    const char *folder = own->fuse.router != NULL ? own->fuse.router : own->teacher,
               *path = is_first ? own->fuse.foundation : own->fuse.sft,
               *adapter = is_first ? own->fuse.foundation_adapter : own->fuse.sft_adapter;
    if (!is_first && !mb_str_equal(word, "sft")) return mb_forecast_model_at(stage, word, NULL, model);
    if (path != NULL) return mb_forecast_model_at(stage, path, adapter, model);
    if (folder != NULL) MB_TRY(mb_forecast_model_at(stage, folder, NULL, &teacher));
    for (int64_t m = 0; teacher.fused != NULL && m < teacher.fused->count; m++) {
        if (!mb_str_equal(teacher.fused->name[m], word)) continue;
        *model = teacher.fused->member[m];
        teacher.fused->member[m] = (mb_forecast_model){0};
        goto done;
    }
    MB_RAISE(MB_EUSAGE,
             "training.student_init = %s: fuse.%s is missing; give it, or a fused teacher that has it", word,
             word);
done:
    mb_forecast_model_reset(&teacher);
    return status;
}

/* Where neither a path nor a shape is given: the group's own name says whose model it is. */
static mb_status find_by_group(mb_forecast_stage *stage, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    bool found = false;
    const char *name = stage->program == MB_FORECAST_EVAL ? "target"
                       : stage->group != NULL             ? stage->group
                                                          : "";
    if (stage->file != NULL) MB_TRY(read_study(stage, name, model, &found));
    if (!found)
        MB_RAISE(MB_EUSAGE, "model.path is not there (it is not given), and no study file says what model it "
                            "will be; give arch=CONFIG.JSON (or a folder with one)");
done:
    return status;
}

/* Fused models run, and their routers train; other programs take none. */
static mb_status check_fused(const mb_forecast_stage *stage, const mb_forecast_model *model)
{
    const bool is_btm = mb_forecast_stage_is_btm(stage);
    if (is_btm && model->fused == NULL)
        return mb_fail(MB_EUSAGE,
                       "training.objective = btm trains the router of a fused model, and %s is an ordinary "
                       "one; give fuse.foundation and fuse.sft, or fuse.router",
                       model->says);
    if (model->fused == NULL || is_btm) return MB_OK;
    if (stage->program == MB_FORECAST_TRAIN)
        return mb_fail(MB_EUSAGE, "%s: a fused model's router trains with training.objective=btm",
                       model->says);
    if (mb_forecast_stage_fuse(stage) == NULL)
        return mb_fail(MB_EUSAGE, "%s: %s takes no fused models", model->says,
                       mb_forecast_stage_name(stage->program));
    return MB_OK;
}

static mb_status find_own(mb_forecast_stage *stage, mb_forecast_model *model)
{
    const mb_model_options *options = mb_forecast_stage_model(stage);
    const mb_fuse_options_stage *fuse = mb_forecast_stage_fuse(stage);
    const char *path = options != NULL ? options->path : NULL;
    if (mb_forecast_fuse_is_given(stage)) {
        if (fuse->router != NULL) return mb_forecast_model_at(stage, fuse->router, NULL, model);
        return mb_forecast_fuse_from_keys(stage, fuse, mb_forecast_stage_is_btm(stage), model);
    }
    if (path != NULL) return mb_forecast_model_at(stage, path, options->adapter, model);
    if (mb_forecast_stage_is_distil(stage) && stage->own.train.student_init != NULL)
        return find_student(stage, stage->own.train.student_init, model);
    return find_by_group(stage, model);
}

mb_status mb_forecast_model_find(mb_forecast_stage *stage, const char *opt_path, const char *opt_arch,
                                 mb_forecast_model *out_model)
{
    mb_status status = MB_OK;
    bool found = false;
    const mb_model_options *options = mb_forecast_stage_model(stage);
    *out_model = (mb_forecast_model){0};
    if (opt_arch != NULL && !mb_forecast_fuse_is_given(stage)) {
        MB_TRY(read_shape(opt_arch, out_model, &found));
        if (!found) MB_RAISE(MB_ENOTFOUND, "arch=%s: no config.json, and no folder with one", opt_arch);
        if (options != NULL && options->adapter != NULL && opt_path == NULL)
            MB_TRY(find_adapter(stage, options->adapter, out_model));
    } else if (opt_path != NULL) {
        MB_TRY(mb_forecast_model_at(stage, opt_path, NULL, out_model));
    } else {
        stage->arch = opt_arch;
        MB_TRY(find_own(stage, out_model));
    }
    if (out_model->is_encoder) goto done;
    if (opt_path == NULL) MB_TRY(check_fused(stage, out_model));
    if (out_model->fused == NULL)
        MB_TRY(declare_trash(options != NULL ? options : &(mb_model_options){0}, &out_model->arch));
done:
    return status;
}

/* ---- 8. the teacher ---- */

mb_status mb_forecast_model_find_teacher(mb_forecast_stage *stage, mb_forecast_model *out_model,
                                         bool *out_found)
{
    const mb_train_program *own = &stage->own.train;
    *out_model = (mb_forecast_model){0};
    *out_found = mb_forecast_stage_is_distil(stage) && mb_train_teacher_is_online(own);
    if (!*out_found) return MB_OK;
    if (own->teacher != NULL)
        return mb_forecast_model_at(stage, own->teacher, own->teacher_adapter, out_model);
    if (own->fuse.router != NULL) return mb_forecast_model_at(stage, own->fuse.router, NULL, out_model);
    return mb_forecast_fuse_from_keys(stage, &own->fuse, false, out_model);
}

void mb_forecast_model_reset(mb_forecast_model *model)
{
    mb_forecast_fuse_reset(&model->fused);
    if (!model->is_encoder) mb_arch_reset(&model->arch);
    mb_free((char *)model->adapter.targets);
    *model = (mb_forecast_model){0};
}

const char *mb_forecast_model_kind(const mb_forecast_model *model)
{
    return model->fused != NULL ? mb_fuse_kind_name(model->fused->kind) : NULL;
}

void mb_forecast_model_shape(const mb_arch *a, const char *opt_kind, char out_text[200])
{
    snprintf(out_text, 200, "L%lld D%lld H%lld/%lldx%lld F%lld/%lld E%lld+%lld K%lld V%lld%s%s%s",
             (long long)a->layers, (long long)a->width, (long long)a->heads, (long long)a->kv_heads,
             (long long)a->head_width, (long long)a->ffn, (long long)a->dense_ffn, (long long)a->experts,
             (long long)a->trash, (long long)a->picks, (long long)a->vocab, a->tied_head ? " tied" : "",
             opt_kind != NULL ? " " : "", opt_kind != NULL ? opt_kind : "");
}
