/* lora: adapters as extra tensors of the parameter list.
 *
 * 1. which modules
 * 2. attach, initial values
 * 3. merge
 */
#include "model/lora.h"

#include <math.h>
#include <string.h>

#include "base/hash.h"
#include "base/option.h"
#include "base/rng.h"

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
        bool all = strcmp(targets[i], "all-linear") == 0 && mb_str_is_suffix(last, "_proj");
        if (!all && strcmp(targets[i], last) != 0) continue;
        used[i] = is_target = true;
    }
    return is_target;
}

static mb_status lora_attach_module(mb_params *params, const char *module, const mb_lora_options *options,
                                    const mb_param *weight)
{
    mb_status status = MB_OK;
    char name[200];
    const int64_t block = weight->block, n = weight->value.shape[0], k = weight->value.shape[1];
    const int64_t a[2] = {options->r, k}, b[2] = {n, options->r};
    snprintf(name, sizeof name, "%s.lora_A.weight", module);
    MB_TRY(mb_params_add(params, name, block, 2, a));
    snprintf(name, sizeof name, "%s.lora_B.weight", module);
    MB_TRY(mb_params_add(params, name, block, 2, b));
done:
    return status;
}

/* ---- 2. attach, initial values ---- */

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

mb_status mb_lora_attach(mb_lora *lora, const mb_lora_options *options, const mb_arch *arch,
                         mb_params *params)
{
    mb_status status = MB_OK;
    char **targets = NULL, module[160];
    bool *used = NULL;
    int64_t n = 0;
    const int64_t count = mb_params_count(params);
    MB_TRY(lora_check(options));
    MB_TRY(mb_option_list_split(options->targets, &targets, &n));
    MB_NEW_ARRAY(used, n);
    for (int64_t i = 0; i < count; i++) {
        const mb_param weight = *mb_params_at(params, i);
        if (weight.block < 0 || weight.block >= arch->layers || weight.value.dims != 2) continue;
        if (!lora_module(weight.name, module, sizeof module)) continue;
        if (lora_is_target(module, targets, n, used))
            MB_TRY(lora_attach_module(params, module, options, &weight));
    }
    for (int64_t i = 0; i < n; i++)
        if (!used[i])
            MB_RAISE(MB_EUSAGE,
                     "lora: target '%s' matches no module; there are q_proj, k_proj, v_proj, o_proj, "
                     "gate_proj, up_proj, down_proj%s and all-linear",
                     targets[i], arch->experts > 0 ? ", gate" : "");
    char *copy = mb_strdup(options->targets);
    if (copy == NULL) MB_RAISE(MB_ENOMEM, "lora: no memory");
    *lora = (mb_lora){.is_on = true, .options = *options};
    lora->options.targets = copy;
    lora->scale = (float)(options->alpha / (options->rslora ? sqrt((double)options->r) : (double)options->r));
done:
    mb_free(used);
    mb_option_list_free(&targets, n);
    return status;
}

mb_status mb_lora_randomise(const mb_lora *lora, mb_params *params)
{
    for (int64_t i = 0; lora->is_on && i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        const bool is_a = strstr(param->name, ".lora_A.") != NULL;
        if (!is_a && strstr(param->name, ".lora_B.") == NULL) continue;
        const int64_t n = mb_tensor_count(&param->value);
        const uint32_t sub = (uint32_t)mb_hash_u64(param->name, strlen(param->name), 0);
        const double bound = 1 / sqrt((double)param->value.shape[1]);
        float *value = mb_tensor_f32(&param->value);
        for (int64_t j = 0; j < n; j++) {
            double u = mb_rng_uniform(lora->options.seed, MB_RNG_INIT, sub, (uint64_t)j);
            value[j] = is_a ? (float)(bound * (2 * u - 1)) : 0;
        }
        mb_weight_changed(&param->weight);
    }
    return MB_OK;
}

void mb_lora_reset(mb_lora *lora)
{
    mb_free((char *)lora->options.targets);
    *lora = (mb_lora){0};
}

/* ---- 3. merge ---- */

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
        MB_TRY(mb_ops_scale(ops, lora->scale, &b->value));
        MB_TRY(mb_ops_linear_dx(ops, &b->value, &a->weight, true, &w->value));
        memset(b->value.data, 0, mb_tensor_bytes(&b->value));
        mb_weight_changed(&b->weight);
        mb_weight_changed(&w->weight);
    }
done:
    return status;
}
