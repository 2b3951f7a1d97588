/* convert_upcycle_plan: which layout a dense architecture becomes, and whether the options fit it.
 *
 * 1. layouts
 * 2. experts, groups, weight scaling
 * 3. layers
 * 4. the plan
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/option.h"
#include "model/convert_upcycle.h"

/* ---- 1. layouts ---- */

static mb_status plan_refuse_biases(const mb_arch *dense, const char *where)
{
    mb_status status = MB_OK;
    if (dense->family == MB_FAMILY_QWEN2)
        MB_RAISE(
            MB_EUNSUPPORTED,
            "%s: Qwen2 cannot be upcycled: its q, k and v projections have biases. Mixtral has none, "
            "Qwen3-MoE and OLMoE norm queries and keys, and Qwen2-MoE wants a shared expert that a dense "
            "model does not have. Upcycle a Qwen3, Llama or Mistral model instead",
            where);
    if (dense->family == MB_FAMILY_LLAMA && (dense->attention_bias || dense->o_bias))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: attention_bias is true; Mixtral, the layout Llama is upcycled to, has no biases. Use "
                 "a model without them",
                 where);
done:
    return status;
}

/* Qwen3-MoE has one window for all layers. */
static mb_status plan_refuse_windows(const mb_arch *dense, const char *where)
{
    mb_status status = MB_OK;
    int64_t windows = 0;
    for (int64_t i = 0; i < dense->layers; i++) windows += mb_arch_window(dense, i) > 0;
    if (windows != 0 && windows != dense->layers)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: %lld of %lld layers have a sliding window (layer_types, max_window_layers); Qwen3-MoE "
                 "has it in all or none. Set use_sliding_window to false if texts stay within the window of "
                 "%lld",
                 where, (long long)windows, (long long)dense->layers, (long long)dense->window);
done:
    return status;
}

static mb_status plan_layout(const mb_arch *dense, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    if (dense->experts > 0)
        MB_RAISE(MB_EUSAGE, "%s: is a mixture of %lld experts already; upcycling starts from a dense model",
                 where, (long long)dense->experts);
    MB_TRY(plan_refuse_biases(dense, where));
    if (dense->family == MB_FAMILY_QWEN3) MB_TRY(plan_refuse_windows(dense, where));
    MB_TRY(mb_arch_copy(dense, arch));
    arch->family = dense->family == MB_FAMILY_QWEN3 ? MB_FAMILY_QWEN3_MOE : MB_FAMILY_MIXTRAL;
    arch->router_aux_loss_coef = mb_arch_facts(arch)->aux_loss;
    /* Fields of the dense type that mean nothing in the new one, or would be read otherwise there. */
    static const char *const fields[] = {"layer_types",          "max_window_layers", "mlp_bias",
                                         "pretraining_tp",       "auto_map",          "_name_or_path",
                                         "num_experts_per_tok",  "norm_topk_prob",    "moe_intermediate_size",
                                         "router_aux_loss_coef", "mlp_only_layers"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) json_object_del(arch->config, fields[i]);
    if (arch->family == MB_FAMILY_MIXTRAL) json_object_del(arch->config, "attention_bias");
done:
    return status;
}

/* ---- 2. experts, groups, weight scaling ---- */

static mb_status plan_count(const mb_arch *dense, const mb_convert_upcycle_options *o, const char *where)
{
    mb_status status = MB_OK;
    char divisors[160] = "";
    if (o->experts < 1 || o->experts > 65536)
        MB_RAISE(MB_EUSAGE, "convert.experts = %lld is not within 1..65536", (long long)o->experts);
    if (o->picks < 1 || o->picks > o->experts)
        MB_RAISE(MB_EUSAGE, "convert.experts_per_token = %lld is not within 1..%lld experts",
                 (long long)o->picks, (long long)o->experts);
    if (o->granularity < 1)
        MB_RAISE(MB_EUSAGE,
                 "convert.granularity = %lld; it is 1 for whole copies, or how many shards an FFN "
                 "is cut into",
                 (long long)o->granularity);
    if (dense->ffn % o->granularity != 0) {
        for (int64_t g = 2; g <= 64 && g <= dense->ffn; g++)
            if (dense->ffn % g == 0)
                snprintf(divisors + strlen(divisors), sizeof divisors - strlen(divisors), " %lld",
                         (long long)g);
        MB_RAISE(MB_EUSAGE,
                 "%s: intermediate_size %lld cannot be cut into convert.granularity = %lld equal shards; "
                 "possible are 1%s",
                 where, (long long)dense->ffn, (long long)o->granularity, divisors);
    }
    if (o->experts % o->granularity != 0)
        MB_RAISE(MB_EUSAGE,
                 "convert.experts = %lld is no multiple of convert.granularity = %lld: some shards would be "
                 "there more often than others; take %lld or %lld experts",
                 (long long)o->experts, (long long)o->granularity,
                 (long long)(o->experts / o->granularity + (o->experts < o->granularity)) *
                     (long long)o->granularity,
                 (long long)(o->experts / o->granularity + 1 + (o->experts < o->granularity)) *
                     (long long)o->granularity);
done:
    return status;
}

static mb_status plan_routers(const mb_convert_upcycle_options *o, const mb_convert_upcycle_plan *plan)
{
    mb_status status = MB_OK;
    const bool is_zero = strcmp(o->router_init, "zero") == 0;
    const bool is_prompts = strcmp(o->router_init, "prompts") == 0;
    if (!is_zero && !is_prompts && strcmp(o->router_init, "normal") != 0)
        MB_RAISE(MB_EUSAGE, "convert.router_init '%s' is not one of normal, zero, prompts", o->router_init);
    if (plan->virtual_groups && o->picks % o->granularity != 0)
        MB_RAISE(
            MB_EUSAGE,
            "convert.experts_per_token = %lld is no multiple of convert.granularity = %lld: with virtual "
            "groups a token picks whole groups. Take experts_per_token = %lld (as many multiply-adds "
            "as %lld dense FFNs), or convert.virtual_groups = false",
            (long long)o->picks, (long long)o->granularity,
            (long long)((o->picks / o->granularity + 1) * o->granularity),
            (long long)(o->picks / o->granularity + 1));
    if (is_zero && !plan->virtual_groups && o->noise == 0)
        MB_RAISE(MB_EUSAGE, "convert.router_init = zero: equal experts with equal scores stay tied for ever; "
                            "use normal or prompts, or add convert.noise = 0.01");
    if (is_prompts && o->prompts == NULL)
        MB_RAISE(MB_EUSAGE, "convert.router_init = prompts needs convert.prompts: a JSONL file of "
                            "{\"expert\": 0, \"text\": ...}, or a text file for each expert");
    if (!is_prompts && o->prompts != NULL)
        MB_RAISE(MB_EUSAGE,
                 "convert.prompts is given, but convert.router_init is %s; say "
                 "convert.router_init=prompts",
                 o->router_init);
    if (!(o->router_init_std >= 0) || (strcmp(o->router_init, "normal") == 0 && o->router_init_std == 0))
        MB_RAISE(MB_EUSAGE, "convert.router_init_std must be positive");
    if (is_prompts && !(o->prompts_margin > 0))
        MB_RAISE(MB_EUSAGE, "convert.prompts_margin must be positive");
done:
    return status;
}

static mb_status plan_scaling(const mb_convert_upcycle_options *o, mb_convert_upcycle_plan *plan)
{
    mb_status status = MB_OK;
    const double g = (double)o->granularity;
    const bool is_down = strcmp(o->scaling, "down") == 0, is_cubic = strcmp(o->scaling, "megatron") == 0;
    if (!is_down && !is_cubic && strcmp(o->scaling, "none") != 0)
        MB_RAISE(MB_EUSAGE, "convert.scaling '%s' is not one of none, megatron, down", o->scaling);
    if (!o->normalise && mb_arch_facts(&plan->arch)->normalises)
        MB_RAISE(MB_EUSAGE,
                 "convert.norm_topk_prob = false: Mixtral, the layout of this model, always divides "
                 "the weights of the picks by their sum; leave it true");
    if (!(o->noise >= 0 && o->noise <= 10)) MB_RAISE(MB_EUSAGE, "convert.noise is not within 0..10");
    plan->factor = o->normalise ? g : (double)plan->groups * g * g / (double)o->picks;
    for (int i = 0; i < 3; i++) plan->scale[i] = is_cubic ? (float)cbrt(plan->factor) : 1;
    if (is_down) plan->scale[2] = (float)plan->factor;
done:
    return status;
}

/* ---- 3. layers ---- */

static mb_status plan_range(const char *item, int64_t layers, int64_t *out_first, int64_t *out_last)
{
    mb_status status = MB_OK;
    char text[64];
    const char *dash = strchr(item, '-');
    snprintf(text, sizeof text, "%.*s", dash != NULL ? (int)(dash - item) : 63, item);
    bool good = mb_str_parse_int(text, out_first) == MB_OK;
    *out_last = *out_first;
    if (dash != NULL) good = good && mb_str_parse_int(dash + 1, out_last) == MB_OK;
    if (!good || *out_first < 0 || *out_first > *out_last || *out_last >= layers) {
        mb_status_reset();
        MB_RAISE(MB_EUSAGE,
                 "convert.layers: '%s' is no layer and no range of layers; the model has layers 0 to %lld "
                 "(convert.layers=0,2,4-9)",
                 item, (long long)layers - 1);
    }
done:
    return status;
}

static mb_status plan_layers(const char *opt_layers, mb_arch *arch)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0, first, last;
    MB_TRY(mb_option_list_split(opt_layers, &items, &n));
    for (int64_t i = 0; i < arch->layers; i++)
        arch->layer[i] = (uint8_t)((arch->layer[i] & ~MB_LAYER_MOE) | (n == 0 ? MB_LAYER_MOE : 0));
    for (int64_t k = 0; k < n; k++) {
        MB_TRY(plan_range(items[k], arch->layers, &first, &last));
        for (int64_t i = first; i <= last; i++) arch->layer[i] |= MB_LAYER_MOE;
    }
    if (mb_arch_moe_layers(arch) < arch->layers && arch->family != MB_FAMILY_QWEN3_MOE)
        MB_RAISE(MB_EUSAGE, "convert.layers: Mixtral, the layout of this model, has experts in every layer; "
                            "leave convert.layers out (only Qwen3 models can keep dense layers)");
done:
    mb_option_list_free(&items, n);
    return status;
}

/* ---- 4. the plan ---- */

static mb_status plan_dtype(const mb_convert_upcycle_options *o, mb_convert_upcycle_plan *plan)
{
    mb_status status = MB_OK;
    const mb_dtype old = plan->arch.stored_dtype;
    bool keeps = true;
    if (strcmp(o->dtype, "source") != 0) MB_TRY(mb_dtype_parse(o->dtype, &plan->arch.stored_dtype));
    const mb_dtype new = plan->arch.stored_dtype;
    if (strcmp(o->dtype, "source") != 0 && new != MB_F32 &&new != MB_BF16)
        MB_RAISE(MB_EUSAGE, "convert.dtype '%s' is not one of source, f32, bf16", o->dtype);
    keeps = old == new || new == MB_F32;
    const bool is_whole = plan->scale[0] == 1 && plan->scale[1] == 1;
    int power;
    const bool rounds = new != MB_F32 &&frexpf(plan->scale[2], &power) != 0.5f;
    const bool is_scaled_right = plan->factor == (double)plan->scale[2] && !rounds;
    const bool has_siblings = o->siblings != NULL && o->siblings[0] != 0;
    plan->is_exact = keeps && is_whole && is_scaled_right && o->normalise && o->noise == 0 && !has_siblings &&
                     (plan->shards == 1 || plan->virtual_groups);
done:
    return status;
}

mb_status mb_convert_upcycle_plan_create(const mb_arch *dense, const char *where,
                                         const mb_convert_upcycle_options *options,
                                         mb_convert_upcycle_plan *out_plan)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_options *o = options;
    mb_convert_upcycle_plan plan = {0};
    MB_TRY(plan_layout(dense, where, &plan.arch));
    MB_TRY(plan_count(dense, o, where));
    plan.shards = o->granularity;
    plan.groups = o->experts / o->granularity;
    plan.virtual_groups = o->virtual_groups && o->granularity > 1;
    plan.arch.experts = o->experts;
    plan.arch.picks = o->picks;
    plan.arch.normalise_picks = o->normalise;
    plan.arch.ffn = dense->ffn / o->granularity;
    plan.arch.dense_ffn = plan.arch.family == MB_FAMILY_QWEN3_MOE ? dense->ffn : 0;
    MB_TRY(plan_layers(o->layers, &plan.arch));
    MB_TRY(plan_routers(o, &plan));
    MB_TRY(plan_scaling(o, &plan));
    MB_TRY(plan_dtype(o, &plan));
    if (o->source_is_sibling && (o->siblings == NULL || o->siblings[0] == 0))
        MB_RAISE(MB_EUSAGE, "convert.source_is_sibling is given without convert.siblings");
    MB_TRY(mb_arch_check(&plan.arch, where));
    *out_plan = plan;
    plan.arch.config = NULL;
done:
    mb_arch_reset(&plan.arch);
    return status;
}

void mb_convert_upcycle_plan_reset(mb_convert_upcycle_plan *plan)
{
    mb_arch_reset(&plan->arch);
}
