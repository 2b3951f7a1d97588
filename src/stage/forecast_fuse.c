/* forecast_fuse.c: fused models before they are there.
 *
 * 1. members   2. the model around them   3. from keys, from a folder   4. bytes   5. operations
 */
#include "stage/forecast_fuse.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "model/kv_cache.h"

#define MIX_ELEMENTS 12.0 /* a column of a member or of the mixture: as many touched elements take its time */

/* ---- 1. members ---- */

bool mb_forecast_fuse_is_given(const mb_forecast_stage *stage)
{
    const mb_fuse_options_stage *fuse = mb_forecast_stage_fuse(stage);
    return fuse != NULL && mb_fuse_options_is_given(fuse) && !mb_forecast_stage_is_distil(stage);
}

void mb_forecast_fuse_reset(mb_forecast_fused **fused)
{
    if (*fused == NULL) return;
    for (int64_t m = 0; m < (*fused)->count; m++) {
        mb_free((*fused)->name[m]);
        mb_forecast_model_reset(&(*fused)->member[m]);
    }
    MB_FREE(*fused);
}

int64_t mb_forecast_fuse_actives(const mb_forecast_fused *fused)
{
    int64_t n = 0;
    for (int64_t m = 0; m < fused->count; m++) n += fused->kind != MB_FUSE_ENSEMBLE || fused->weight[m] > 0;
    return n;
}

bool mb_forecast_fuse_is_mixed(const mb_forecast_model *model)
{
    return model->fused->kind != MB_FUSE_LAYER;
}

int64_t mb_forecast_fuse_stages(const mb_forecast_model *model)
{
    switch (model->fused->kind) {
    case MB_FUSE_TOKEN:
        return 1;
    case MB_FUSE_LAYER:
        return model->arch.layers + 2;
    default:
        return 0;
    }
}

static mb_status add_member(mb_forecast_stage *stage, const char *name, const char *path,
                            const char *opt_adapter, double weight, mb_forecast_fused *fused)
{
    mb_status status = MB_OK;
    if (fused->count == MB_FUSE_MAX_MEMBERS)
        MB_RAISE(MB_EUSAGE, "a fused model has at most %d members", MB_FUSE_MAX_MEMBERS);
    const int64_t m = fused->count++;
    fused->weight[m] = weight;
    fused->name[m] = mb_strdup(name);
    if (fused->name[m] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    MB_TRY(mb_forecast_model_at(stage, path, opt_adapter, &fused->member[m]));
    if (fused->member[m].is_encoder || fused->member[m].fused != NULL)
        MB_RAISE(MB_EUSAGE, "member %s: %s is %s; a fused model's members are ordinary language models", name,
                 path, fused->member[m].is_encoder ? "an encoder" : "a fused model");
done:
    return status;
}

/* ---- 2. the model around them ---- */

/* What all can do, as fuse_open.c: the first member's shape, routers in the place of experts. */
static mb_status make_arch(const mb_forecast_fused *fused, mb_arch *arch)
{
    mb_status status = MB_OK;
    const bool has_router = fused->kind != MB_FUSE_ENSEMBLE;
    MB_TRY(mb_arch_copy(&fused->member[0].arch, arch));
    for (int64_t m = 1; m < fused->count; m++) {
        const mb_arch *other = &fused->member[m].arch;
        if (other->max_positions < arch->max_positions) arch->max_positions = other->max_positions;
        if (fused->kind == MB_FUSE_LAYER ? other->vocab < arch->vocab : other->vocab > arch->vocab)
            arch->vocab = other->vocab;
    }
    for (int64_t l = 0; l < arch->layers; l++) arch->layer[l] &= (uint8_t)~MB_LAYER_MOE;
    if (arch->experts > 0) arch->ffn = arch->dense_ffn > 0 ? arch->dense_ffn : arch->ffn;
    arch->experts = has_router ? fused->count : 0;
    arch->picks = has_router ? 1 : 0;
    arch->trash = arch->declared_trash = 0;
    arch->router_bias = arch->tied_head = false;
done:
    return status;
}

static void say(mb_forecast_model *model)
{
    const mb_forecast_fused *fused = model->fused;
    size_t used = (size_t)snprintf(model->says, sizeof model->says, "%s of", mb_fuse_kind_name(fused->kind));
    for (int64_t m = 0; m < fused->count && used < sizeof model->says; m++)
        used += (size_t)snprintf(model->says + used, sizeof model->says - used, "%s %s (%s)",
                                 m > 0 ? "," : "", fused->name[m], fused->member[m].says);
}

static mb_status finish(mb_forecast_stage *stage, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    const mb_fuse_options_stage *own = mb_forecast_stage_fuse(stage);
    model->fused->is_spread = own != NULL && mb_str_equal(own->members_on, "ranks");
    MB_TRY(make_arch(model->fused, &model->arch));
    say(model);
done:
    return status;
}

/* ---- 3. from keys, from a folder ---- */

mb_status mb_forecast_fuse_from_keys(mb_forecast_stage *stage, const mb_fuse_options_stage *fuse,
                                     bool new_router, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    mb_fuse_options_list list = {0};
    MB_NEW(model->fused);
    model->fused->kind = !new_router                                      ? MB_FUSE_ENSEMBLE
                         : mb_str_equal(fuse->router_type, "token_level") ? MB_FUSE_TOKEN
                                                                          : MB_FUSE_LAYER;
    model->fused->by_logits = !new_router && mb_str_equal(fuse->mixing, "logits");
    model->fused->hidden = fuse->router_hidden;
    if (fuse->foundation == NULL || fuse->sft == NULL)
        MB_RAISE(MB_EUSAGE, "%s is missing: a fused model has both fuse.foundation and fuse.sft",
                 fuse->foundation == NULL ? "fuse.foundation" : "fuse.sft");
    MB_TRY(mb_fuse_options_list_get(fuse, &list));
    for (int64_t m = 0; m < list.count; m++)
        MB_TRY(add_member(stage, list.member[m].name, list.member[m].path, list.member[m].opt_adapter,
                          list.member[m].weight, model->fused));
    MB_TRY(finish(stage, model));
done:
    mb_fuse_options_list_reset(&list);
    return status;
}

static mb_status read_kind(const json_t *json, const char *file, mb_forecast_fused *fused)
{
    mb_status status = MB_OK;
    const char *kind = NULL, *mixing = "";
    const json_t *router = json_object_get(json, "router");
    MB_TRY(mb_json_get_string(json, "kind", file, &kind));
    MB_TRY(mb_json_opt_string(json, "mixing", file, &mixing));
    fused->by_logits = mb_str_equal(mixing, "logits");
    for (int k = MB_FUSE_ENSEMBLE; k <= MB_FUSE_LAYER; k++) {
        fused->kind = (mb_fuse_kind)k;
        if (mb_str_equal(kind, mb_fuse_kind_name(fused->kind))) break;
        if (k == MB_FUSE_LAYER) MB_RAISE(MB_EFORMAT, "%s: '%s' is no kind of fused model", file, kind);
    }
    if (router != NULL) MB_TRY(mb_json_get_int(router, "hidden", file, &fused->hidden));
done:
    return status;
}

/* As fuse.json has it: from its folder, unless it begins at the root. */
static char *path_from(const char *folder, const char *opt_path)
{
    if (opt_path == NULL || opt_path[0] == '/') return mb_strdup(opt_path);
    return mb_files_join(folder, opt_path);
}

static mb_status read_member(mb_forecast_stage *stage, const char *folder, const json_t *json,
                             const char *file, mb_forecast_fused *fused)
{
    mb_status status = MB_OK;
    const char *name = NULL, *path = NULL,
               *adapter = json_string_value(json_object_get(json, "adapter")); /* null: none */
    char *full = NULL, *adapter_full = NULL;
    double weight = 0;
    MB_TRY(mb_json_get_string(json, "name", file, &name));
    MB_TRY(mb_json_get_string(json, "path", file, &path));
    MB_TRY(mb_json_get_real(json, "weight", file, &weight));
    full = path_from(folder, path);
    adapter_full = path_from(folder, adapter);
    if (full == NULL || (adapter != NULL && adapter_full == NULL))
        MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(add_member(stage, name, full, adapter_full, weight, fused));
done:
    mb_free(full);
    mb_free(adapter_full);
    return status;
}

mb_status mb_forecast_fuse_from_folder(mb_forecast_stage *stage, const char *path, mb_forecast_model *model)
{
    mb_status status = MB_OK;
    json_t *json = NULL, *list, *member;
    size_t i;
    char *file = mb_files_join(path, "fuse.json");
    if (file == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_NEW(model->fused);
    MB_TRY(mb_json_read(file, &json));
    MB_TRY(read_kind(json, file, model->fused));
    MB_TRY(mb_json_get_array(json, "members", file, &list));
    json_array_foreach(list, i, member) MB_TRY(read_member(stage, path, member, file, model->fused));
    if (model->fused->count < 2) MB_RAISE(MB_EFORMAT, "%s names fewer than 2 members", file);
    MB_TRY(finish(stage, model));
done:
    json_decref(json);
    mb_free(file);
    return status;
}

/* ---- 4. bytes ---- */

mb_status mb_forecast_fuse_plan(const mb_forecast_model *model, bool trains,
                                const mb_lm_plan_options *options, mb_fuse_plan *out_plan)
{
    const mb_forecast_fused *fused = model->fused;
    const mb_arch *arch[MB_FUSE_MAX_MEMBERS];
    const char *name[MB_FUSE_MAX_MEMBERS];
    const mb_lora_options *adapter[MB_FUSE_MAX_MEMBERS];
    for (int64_t m = 0; m < fused->count; m++) {
        arch[m] = &fused->member[m].arch;
        name[m] = fused->name[m];
        adapter[m] = fused->member[m].has_adapter ? &fused->member[m].adapter : NULL;
    }
    const mb_fuse_shape shape = {.kind = fused->kind,
                                 .count = fused->count,
                                 .router_hidden = fused->hidden,
                                 .train = trains,
                                 .is_spread = fused->is_spread,
                                 .arch = arch,
                                 .name = name,
                                 .opt_adapter = adapter};
    return mb_fuse_plan_get(&shape, options, out_plan);
}

double mb_forecast_fuse_cache(const mb_forecast_model *model, mb_dtype dtype, int64_t rows)
{
    const mb_forecast_fused *fused = model->fused;
    double sum = 0, most = 0;
    for (int64_t m = 0; m < fused->count; m++) {
        const double one = (double)mb_kv_cache_plan(&fused->member[m].arch, dtype, rows);
        sum += one;
        most = fmax(most, one);
    }
    return fused->is_spread ? most : sum;
}

double mb_forecast_fuse_logits(const mb_forecast_model *model, double rows)
{
    const mb_forecast_fused *fused = model->fused;
    if (fused->kind == MB_FUSE_LAYER || mb_forecast_fuse_actives(fused) < 2) return 0;
    const double row = 4.0 * (double)model->arch.vocab * (double)(mb_forecast_fuse_actives(fused) + 1);
    return fmin(rows * row, fmax(row, (double)((int64_t)64 << 20))); /* a chunk */
}

/* ---- 5. operations ---- */

/* Elements of a router of so many parts. */
static double router_elements(const mb_forecast_fused *fused, double width)
{
    const double hidden = (double)(fused->hidden > 0 ? fused->hidden : 128), members = (double)fused->count;
    return 2 * hidden * width + members * hidden;
}

/* All stages' products, multiply-adds x 2, and what they and the mixing touch. */
static mb_forecast_cost router_cost(const mb_forecast_fused *fused)
{
    mb_forecast_cost cost = {0};
    double width = 0;
    const double first = (double)fused->member[0].arch.width, members = (double)fused->count,
                 stages = (double)fused->member[0].arch.layers + 1;
    for (int64_t m = 0; m < fused->count; m++) width += (double)fused->member[m].arch.width;
    if (fused->kind == MB_FUSE_ENSEMBLE) return cost;
    cost.forward = 2 * router_elements(fused, width);
    cost.elements = 4 * width;
    if (fused->kind == MB_FUSE_TOKEN) return cost;
    /* stage 0 looks at the embeddings, the others at the stream too; outputs are weighed and added */
    cost.forward += stages * 2 * router_elements(fused, width + first);
    cost.elements += stages * (4 * (width + first) + (members + 1) * first);
    return cost;
}

mb_forecast_cost mb_forecast_fuse_cost(const mb_forecast_model *model, bool head, bool wide, double context)
{
    const mb_forecast_fused *fused = model->fused;
    mb_forecast_cost cost = router_cost(fused);
    for (int64_t m = 0; m < fused->count; m++) {
        const mb_forecast_model *member = &fused->member[m];
        if (fused->kind == MB_FUSE_ENSEMBLE && fused->weight[m] == 0) continue;
        cost = mb_forecast_cost_sum(
            cost, mb_forecast_cost_forward(&member->arch, member->arch.layers, head, false, context));
    }
    if (wide && fused->kind != MB_FUSE_LAYER)
        cost.elements +=
            MIX_ELEMENTS * (double)model->arch.vocab * (double)(mb_forecast_fuse_actives(fused) + 1);
    return cost;
}

mb_forecast_cost mb_forecast_fuse_cost_train(const mb_forecast_model *model, bool recompute, double context)
{
    const mb_forecast_fused *fused = model->fused;
    const mb_forecast_training training = {.trained = MB_FORECAST_ADAPTER,
                                           .recompute = recompute,
                                           .context = context}; /* nothing of them trains */
    mb_forecast_cost router = router_cost(fused);
    router.input_gradients = router.weight_gradients = router.forward;
    router.elements *= 3;
    if (fused->kind != MB_FUSE_LAYER) {
        const mb_forecast_cost own = router_cost(fused);
        mb_forecast_cost cost =
            mb_forecast_cost_sum(mb_forecast_fuse_cost(model, true, false, context), router);
        cost.forward -= own.forward;
        cost.elements -= own.elements;
        return cost;
    }
    for (int64_t m = 0; m < fused->count; m++)
        router = mb_forecast_cost_sum(router, mb_forecast_cost_train(&fused->member[m].arch, &training));
    return router;
}
