/* lora: adapters as extra tensors of the parameter list.
 *
 * 1. which modules
 * 2. attach: by name, or as an adapter's file says
 * 3. initial values
 * 4. merge
 */
#include "model/lora.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/option.h"
#include "base/rng.h"
#include "model/lora_adapter.h"

/* ---- 1. which modules ---- */

/* Last part of the module of "<module>.weight", NULL when the name is no weight. */
static bool lora_module(const char *name, char *out, size_t bytes)
{
    const size_t length = strlen(name), tail = strlen(".weight");
    if (!mb_str_is_suffix(name, ".weight") || length - tail >= bytes) return false;
    memcpy(out, name, length - tail);
    out[length - tail] = 0;
    return true;
}

static bool lora_is_target(const char *module, char *const *targets, int64_t n, bool *used)
{
    const char *last = strrchr(module, '.') != NULL ? strrchr(module, '.') + 1 : module;
    bool is_target = false;
    for (int64_t i = 0; i < n; i++) {
        const bool linear = mb_str_is_suffix(last, "_proj") || (last[0] == 'w' && strlen(last) == 2);
        const bool all = linear && strcmp(targets[i], "all-linear") == 0;
        if (!all && strcmp(targets[i], last) != 0) continue;
        used[i] = is_target = true;
    }
    return is_target;
}

static mb_status lora_attach_module(mb_params *params, const char *module, int64_t rank, float scale,
                                    const mb_param *weight)
{
    mb_status status = MB_OK;
    char name[200];
    const int64_t block = weight->block, n = weight->value.shape[0], k = weight->value.shape[1];
    const int64_t a[2] = {rank, k}, b[2] = {n, rank};
    snprintf(name, sizeof name, "%s.lora_A.weight", module);
    MB_TRY(mb_params_add(params, name, block, 2, a));
    snprintf(name, sizeof name, "%s.lora_B.weight", module);
    MB_TRY(mb_params_add(params, name, block, 2, b));
    mb_params_at(params, mb_params_count(params) - 1)->lora_scale = scale;
done:
    return status;
}

/* A matrix of a decoder layer and its module's name, NULL when the i-th parameter is none. */
static const mb_param *lora_weight(mb_params *params, const mb_arch *arch, int64_t i, char *module,
                                   size_t bytes)
{
    const mb_param *weight = mb_params_at(params, i);
    if (weight->block < 0 || weight->block >= arch->layers || weight->value.dims != 2) return NULL;
    return lora_module(weight->name, module, bytes) ? weight : NULL;
}

/* ---- 2. attach ---- */

static mb_status lora_check(const mb_lora_options *options)
{
    mb_status status = MB_OK;
    if (options->r < 1 || options->r > 65536)
        MB_RAISE(MB_EUSAGE, "lora: r is %lld; it must be at least 1", (long long)options->r);
    if (!(options->dropout >= 0 && options->dropout < 1))
        MB_RAISE(MB_EUSAGE, "lora: dropout is %g; it must be within [0, 1)", options->dropout);
    if (!isfinite(options->alpha)) MB_RAISE(MB_EUSAGE, "lora: alpha is not a number");
    if (options->targets == NULL || options->targets[0] == 0) MB_RAISE(MB_EUSAGE, "lora: targets is empty");
done:
    return status;
}

static mb_status lora_attach_named(const mb_lora_options *options, const mb_arch *arch, mb_params *params)
{
    mb_status status = MB_OK;
    char **targets = NULL, module[160];
    bool *used = NULL;
    int64_t n = 0;
    const int64_t count = mb_params_count(params);
    const double r = (double)options->r, scale = options->alpha / (options->rslora ? sqrt(r) : r);
    MB_TRY(lora_check(options));
    MB_TRY(mb_option_list_split(options->targets, &targets, &n));
    MB_NEW_ARRAY(used, n);
    for (int64_t i = 0; i < count; i++) {
        const mb_param *found = lora_weight(params, arch, i, module, sizeof module);
        if (found == NULL || !lora_is_target(module, targets, n, used)) continue;
        const mb_param weight = *found; /* the list moves when it grows */
        MB_TRY(lora_attach_module(params, module, options->r, (float)scale, &weight));
    }
    for (int64_t i = 0; i < n; i++)
        if (!used[i])
            MB_RAISE(
                MB_EUSAGE,
                "lora: target '%s' matches no module; there are q_proj, k_proj, v_proj, o_proj, %s%s and "
                "all-linear",
                targets[i],
                arch->family == MB_FAMILY_MIXTRAL ? "w1, w2, w3" : "gate_proj, up_proj, down_proj",
                arch->experts > 0 ? ", gate" : "");
done:
    mb_free(used);
    mb_option_list_free(&targets, n);
    return status;
}

/* Experts of a layer are computed together: all have an adapter of one rank and scale, or none has. */
static mb_status lora_check_expert(mb_params *params, const char *module, const mb_lora_part *part,
                                   bool found)
{
    mb_status status = MB_OK;
    char name[200];
    long long expert;
    const char *place = strstr(module, ".experts."), *end = NULL;
    if (place == NULL || sscanf(place, ".experts.%lld", &expert) != 1 || expert == 0) goto done;
    end = strchr(place + strlen(".experts."), '.');
    if (end == NULL) goto done;
    snprintf(name, sizeof name, "%.*s.experts.0%s.lora_B.weight", (int)(place - module), module, end);
    const mb_param *b = mb_params_find(params, name);
    if ((b != NULL) == found &&
        (b == NULL || (b->value.shape[1] == part->rank && b->lora_scale == part->scale)))
        goto done;
    MB_RAISE(MB_EUNSUPPORTED,
             "adapter: module %s is adapted otherwise than expert 0 of its layer; experts of a layer must "
             "have the same rank and alpha, or none: merge the adapter with peft first",
             module);
done:
    return status;
}

static mb_status lora_attach_folder(const char *folder, const mb_arch *arch, mb_params *params)
{
    mb_status status = MB_OK;
    mb_lora_adapter *adapter = NULL;
    mb_lora_part part;
    char module[160];
    bool found = false;
    const int64_t count = mb_params_count(params);
    MB_TRY(mb_lora_adapter_open(folder, &adapter));
    for (int64_t i = 0; i < count; i++) {
        const mb_param *there = lora_weight(params, arch, i, module, sizeof module);
        if (there == NULL) continue;
        const mb_param weight = *there;
        MB_TRY(mb_lora_adapter_find(adapter, arch, module, weight.value.shape[0], weight.value.shape[1],
                                    &found, &part));
        MB_TRY(lora_check_expert(params, module, &part, found));
        if (found) MB_TRY(lora_attach_module(params, module, part.rank, part.scale, &weight));
    }
    MB_TRY(mb_lora_adapter_check_used(adapter));
done:
    mb_lora_adapter_close(&adapter);
    return status;
}

mb_status mb_lora_attach(mb_lora *lora, const mb_lora_options *options, const mb_arch *arch,
                         mb_params *params)
{
    mb_status status = MB_OK;
    MB_TRY(options->opt_folder != NULL ? lora_attach_folder(options->opt_folder, arch, params)
                                       : lora_attach_named(options, arch, params));
    char *copy = mb_strdup(options->targets);
    if (copy == NULL) MB_RAISE(MB_ENOMEM, "lora: no memory");
    *lora = (mb_lora){.is_on = true, .options = *options};
    lora->options.targets = copy;
    lora->options.opt_folder = NULL;
done:
    return status;
}

/* ---- 3. initial values ---- */

mb_status mb_lora_randomise(const mb_lora *lora, mb_params *params)
{
    mb_status status = MB_OK;
    float *value = NULL;
    for (int64_t i = 0; lora->is_on && i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        const bool is_a = strstr(param->name, ".lora_A.") != NULL;
        if (!is_a && strstr(param->name, ".lora_B.") == NULL) continue;
        const int64_t n = mb_tensor_count(&param->value);
        const uint32_t sub = (uint32_t)mb_hash_u64(param->name, strlen(param->name), 0);
        const double bound = 1 / sqrt((double)param->value.shape[1]);
        MB_FREE(value);
        MB_NEW_ARRAY(value, n);
        for (int64_t j = 0; j < n; j++) {
            double u = mb_rng_uniform(lora->options.seed, MB_RNG_INIT, sub, (uint64_t)j);
            value[j] = is_a ? (float)(bound * (2 * u - 1)) : 0;
        }
        MB_TRY(mb_params_set_f32(param, value));
    }
done:
    mb_free(value);
    return status;
}

void mb_lora_reset(mb_lora *lora)
{
    mb_free((char *)lora->options.targets);
    *lora = (mb_lora){0};
}

/* ---- 4. merge ---- */

mb_status mb_lora_merge(mb_lora *lora, mb_ops *ops, mb_params *params)
{
    mb_status status = MB_OK;
    char name[200];
    for (int64_t i = 0; lora->is_on && i < mb_params_count(params); i++) {
        mb_param *a = mb_params_at(params, i);
        const char *place = strstr(a->name, ".lora_A.");
        if (place == NULL) continue;
        const int stem = (int)(place - a->name);
        snprintf(name, sizeof name, "%.*s.lora_B.weight", stem, a->name);
        mb_param *b = mb_params_find(params, name);
        snprintf(name, sizeof name, "%.*s.weight", stem, a->name);
        mb_param *w = mb_params_find(params, name);
        if (w->value.dtype != MB_F32)
            MB_RAISE(MB_EUNSUPPORTED, "merge: %s is kept in %s; open the model in f32", w->name,
                     mb_dtype_name(w->value.dtype));
        MB_TRY(mb_ops_scale(ops, b->lora_scale, &b->value));
        MB_TRY(mb_ops_linear_dx(ops, &b->value, &a->weight, true, &w->value));
        MB_TRY(mb_ops_zero(ops, b->value.data, mb_tensor_bytes(&b->value)));
        mb_weight_changed(&b->weight);
        mb_weight_changed(&w->weight);
    }
done:
    return status;
}
