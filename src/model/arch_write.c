/* arch_write: architecture -> config.json in 4.x names, every field that counts written out.
 *
 * 1. type
 * 2. sizes, experts
 * 3. which layers
 * 4. the rest
 */
#include <string.h>

#include "model/arch.h"

/* ---- 1. type ---- */

static mb_status write_type(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    const bool is_select = arch->trash > 0 || arch->router_bias;
    const mb_family_facts *facts = mb_arch_facts(arch);
    const char *class_name = is_select ? "SelectMoeForCausalLM" : facts->class_name;
    MB_TRY(mb_json_set(config, "architectures", json_pack("[s]", class_name)));
    MB_TRY(mb_json_set(config, "model_type", json_string(is_select ? "select_moe" : facts->type)));
    if (is_select) {
        MB_TRY(mb_json_set(config, "base_model_type", json_string(facts->type)));
        MB_TRY(mb_json_set(config, "num_trash_experts", json_integer(arch->trash)));
        MB_TRY(mb_json_set(config, "trash_logit_bias", json_real(arch->trash_logit_bias)));
        if (arch->router_bias || json_object_get(config, "router_bias") != NULL)
            MB_TRY(mb_json_set(config, "router_bias", json_boolean(arch->router_bias)));
    } else {
        json_object_del(config, "base_model_type");
        json_object_del(config, "num_trash_experts");
        json_object_del(config, "trash_logit_bias");
        json_object_del(config, "router_bias");
    }
done:
    return status;
}

/* ---- 2. sizes, experts ---- */

static mb_status write_sizes(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    const int64_t ffn = arch->family == MB_FAMILY_QWEN3_MOE ? arch->dense_ffn : arch->ffn;
    MB_TRY(mb_json_set(config, "hidden_size", json_integer(arch->width)));
    MB_TRY(mb_json_set(config, "intermediate_size", json_integer(ffn)));
    MB_TRY(mb_json_set(config, "num_hidden_layers", json_integer(arch->layers)));
    MB_TRY(mb_json_set(config, "num_attention_heads", json_integer(arch->heads)));
    MB_TRY(mb_json_set(config, "num_key_value_heads", json_integer(arch->kv_heads)));
    MB_TRY(mb_json_set(config, "vocab_size", json_integer(arch->vocab)));
    MB_TRY(mb_json_set(config, "max_position_embeddings", json_integer(arch->max_positions)));
    if (arch->family != MB_FAMILY_OLMOE)
        MB_TRY(mb_json_set(config, "head_dim", json_integer(arch->head_width)));
    if (arch->family == MB_FAMILY_LLAMA) MB_TRY(mb_json_set(config, "mlp_bias", json_false()));
done:
    return status;
}

static mb_status write_experts(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    const mb_family_facts *facts = mb_arch_facts(arch);
    json_object_del(config, "num_experts");
    json_object_del(config, "num_local_experts");
    if (arch->experts == 0) goto done;
    MB_TRY(mb_json_set(config, facts->experts_key, json_integer(arch->experts)));
    MB_TRY(mb_json_set(config, "num_experts_per_tok", json_integer(arch->picks)));
    MB_TRY(mb_json_set(config, "router_aux_loss_coef", json_real(arch->router_aux_loss_coef)));
    if (!facts->normalises)
        MB_TRY(mb_json_set(config, "norm_topk_prob", json_boolean(arch->normalise_picks)));
    if (arch->family == MB_FAMILY_QWEN3_MOE)
        MB_TRY(mb_json_set(config, facts->ffn_key, json_integer(arch->ffn)));
    if (arch->family == MB_FAMILY_OLMOE)
        MB_TRY(mb_json_set(config, "clip_qkv", arch->clip_qkv > 0 ? json_real(arch->clip_qkv) : json_null()));
done:
    return status;
}

/* ---- 3. which layers ---- */

static mb_status write_layer_types(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    int64_t first = 0;
    json_t *types = json_array();
    if (types == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
    for (int64_t i = 0; i < arch->layers; i++) {
        const bool is_window = mb_arch_window(arch, i) > 0;
        if (!is_window) first = i + 1;
        if (json_array_append_new(types, json_string(is_window ? "sliding_attention" : "full_attention")) < 0)
            MB_RAISE(MB_ENOMEM, "config: no memory");
    }
    MB_TRY(mb_json_set(config, "layer_types", json_incref(types)));
    if (json_object_get(config, "max_window_layers") == NULL)
        MB_TRY(mb_json_set(config, "max_window_layers", json_integer(first)));
done:
    json_decref(types);
    return status;
}

static mb_status write_windows(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    const mb_family_window kind = mb_arch_facts(arch)->window;
    if (kind == MB_FAMILY_WINDOW_NONE) goto done;
    MB_TRY(
        mb_json_set(config, "sliding_window", arch->window > 0 ? json_integer(arch->window) : json_null()));
    if (kind == MB_FAMILY_WINDOW_TYPES) MB_TRY(write_layer_types(arch, config));
    if (kind != MB_FAMILY_WINDOW_ALL)
        MB_TRY(mb_json_set(config, "use_sliding_window", json_boolean(arch->window > 0)));
done:
    return status;
}

static mb_status write_moe_layers(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    json_t *only = json_array();
    if (only == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
    if (arch->family != MB_FAMILY_QWEN3_MOE) goto done;
    for (int64_t i = 0; i < arch->layers; i++)
        if (!mb_arch_is_moe(arch, i) && json_array_append_new(only, json_integer(i)) < 0)
            MB_RAISE(MB_ENOMEM, "config: no memory");
    MB_TRY(mb_json_set(config, "mlp_only_layers", json_incref(only)));
    MB_TRY(mb_json_set(config, "decoder_sparse_step", json_integer(1)));
done:
    json_decref(only);
    return status;
}

/* ---- 4. the rest ---- */

static const char *write_dtype(mb_dtype dtype)
{
    return dtype == MB_BF16  ? "bfloat16"
           : dtype == MB_F16 ? "float16"
           : dtype == MB_F64 ? "float64"
                             : "float32";
}

/* A list of ids stays one while its first counts. */
static mb_status write_ids(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    const struct {
        const char *name;
        int64_t value;
    } ids[] = {{"bos_token_id", arch->bos}, {"eos_token_id", arch->eos}, {"pad_token_id", arch->pad}};
    for (int i = 0; i < 3; i++) {
        const json_t *old = json_object_get(config, ids[i].name);
        if (old == NULL || mb_arch_id(old) != ids[i].value)
            MB_TRY(mb_json_set(config, ids[i].name,
                               ids[i].value < 0 ? json_null() : json_integer(ids[i].value)));
    }
done:
    return status;
}

static mb_status write_rest(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_set(config, "hidden_act", json_string("silu")));
    MB_TRY(mb_json_set(config, "rms_norm_eps", json_real(arch->rms_eps)));
    MB_TRY(mb_json_set(config, "rope_theta", json_real(arch->rope_theta)));
    MB_TRY(mb_rotary_write(&arch->rotary, arch->head_width, config));
    MB_TRY(mb_json_set(config, "initializer_range", json_real(arch->initializer_range)));
    MB_TRY(mb_json_set(config, "tie_word_embeddings", json_boolean(arch->tied_head)));
    if (mb_arch_facts(arch)->bias == MB_FAMILY_BIAS_FIELD)
        MB_TRY(mb_json_set(config, "attention_bias", json_boolean(arch->attention_bias)));
    MB_TRY(mb_json_set(config, "torch_dtype", json_string(write_dtype(arch->stored_dtype))));
    json_object_del(config, "dtype");
    if (arch->packed_bits == 0) json_object_del(config, "quantization_config");
    MB_TRY(write_ids(arch, config));
done:
    return status;
}

mb_status mb_arch_to_json(const mb_arch *arch, json_t **out_config)
{
    mb_status status = MB_OK;
    json_t *config = arch->config != NULL ? json_deep_copy(arch->config) : json_object();
    if (config == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
    MB_TRY(write_type(arch, config));
    MB_TRY(write_sizes(arch, config));
    MB_TRY(write_experts(arch, config));
    MB_TRY(write_windows(arch, config));
    MB_TRY(write_moe_layers(arch, config));
    MB_TRY(write_rest(arch, config));
    *out_config = config;
    config = NULL;
done:
    json_decref(config);
    return status;
}
