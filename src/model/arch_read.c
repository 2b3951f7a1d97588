/* arch_read: config.json -> architecture.
 *
 * 1. what is refused
 * 2. family
 * 3. sizes, experts
 * 4. which layers: windows, mixtures of experts
 * 5. positions, dtype, tokens
 * 6. the whole
 */
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "model/arch.h"
#include "model/packed_config.h"

#define READ_TYPES "llama, mistral, qwen2, qwen3, olmoe, mixtral, qwen3_moe and select_moe are"

/* ---- 1. refusals ---- */

static bool read_is_set(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    return value != NULL && !json_is_null(value);
}

static mb_status read_warn_training(const json_t *config, const char *where)
{
    mb_status status = MB_OK;
    double dropout = 0, jitter = 0;
    MB_TRY(mb_json_opt_real(config, "attention_dropout", where, &dropout));
    if (dropout != 0) mb_warn("%s: attention_dropout %g is not applied in training", where, dropout);
    MB_TRY(mb_json_opt_real(config, "router_jitter_noise", where, &jitter));
    if (jitter != 0) mb_warn("%s: router_jitter_noise %g is not applied in training", where, jitter);
done:
    return status;
}

/* Fields that would change the function and that we do not compute. */
static mb_status read_refuse(const json_t *config, const char *where)
{
    mb_status status = MB_OK;
    const char *activation = "silu";
    bool mlp_bias = false;
    double partial = 1;
    MB_TRY(mb_json_opt_string(config, "hidden_act", where, &activation));
    if (strcmp(activation, "silu") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: hidden_act '%s' is not supported; only 'silu' is", where, activation);
    MB_TRY(mb_json_opt_bool(config, "mlp_bias", where, &mlp_bias));
    if (mlp_bias) MB_RAISE(MB_EUNSUPPORTED, "%s: mlp_bias true is not supported", where);
    MB_TRY(mb_json_opt_real(config, "partial_rotary_factor", where, &partial));
    if (partial != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: partial_rotary_factor %g is not supported; only 1 is", where, partial);
    MB_TRY(read_warn_training(config, where));
done:
    return status;
}

/* ---- 2. family ---- */

static mb_status read_family(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const char *type = NULL;
    MB_TRY(mb_json_get_string(config, "model_type", where, &type));
    const bool is_select = strcmp(type, "select_moe") == 0;
    if (is_select) {
        MB_TRY(mb_json_get_string(config, "base_model_type", where, &type));
        MB_TRY(mb_json_get_int(config, "num_trash_experts", where, &arch->trash));
        MB_TRY(mb_json_opt_real(config, "trash_logit_bias", where, &arch->trash_logit_bias));
        MB_TRY(mb_json_opt_bool(config, "router_bias", where, &arch->router_bias));
        if (arch->trash < (arch->router_bias ? 0 : 1))
            MB_RAISE(MB_ERANGE, "%s: num_trash_experts must be at least 1, or 0 with router_bias true",
                     where);
    }
    const bool is_known = mb_family_find(type, &arch->family);
    if (is_select && (!is_known || !mb_arch_facts(arch)->is_moe))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: base_model_type '%s' is not supported; select_moe is made of olmoe, mixtral or "
                 "qwen3_moe",
                 where, type);
    if (!is_known)
        MB_RAISE(MB_EUNSUPPORTED, "%s: model_type '%s' is not supported; " READ_TYPES, where, type);
    arch->qk_norm = mb_arch_facts(arch)->qk_norm;
done:
    return status;
}

/* ---- 3. sizes, experts ---- */

static mb_status read_head_width(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const int64_t share = arch->heads > 0 ? arch->width / arch->heads : 0;
    const mb_family_facts *facts = mb_arch_facts(arch);
    arch->head_width = facts->head_width > 0 ? facts->head_width : share;
    MB_TRY(mb_json_opt_int(config, "head_dim", where, &arch->head_width));
    if (arch->family == MB_FAMILY_OLMOE && arch->head_width != share)
        MB_RAISE(MB_EUNSUPPORTED, "%s: head_dim %lld is not supported; OLMoE's is hidden_size / heads = %lld",
                 where, (long long)arch->head_width, (long long)share);
done:
    return status;
}

/* Absent: the family's; null: as many as query heads. */
static mb_status read_kv_heads(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const mb_family_facts *facts = mb_arch_facts(arch);
    const bool is_absent = json_object_get(config, "num_key_value_heads") == NULL;
    arch->kv_heads = is_absent && facts->kv_heads > 0 ? facts->kv_heads : arch->heads;
    MB_TRY(mb_json_opt_int(config, "num_key_value_heads", where, &arch->kv_heads));
done:
    return status;
}

static mb_status read_sizes(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_get_int(config, "hidden_size", where, &arch->width));
    MB_TRY(mb_json_get_int(config, "intermediate_size", where, &arch->ffn));
    MB_TRY(mb_json_get_int(config, "num_hidden_layers", where, &arch->layers));
    MB_TRY(mb_json_get_int(config, "num_attention_heads", where, &arch->heads));
    MB_TRY(mb_json_get_int(config, "vocab_size", where, &arch->vocab));
    if (arch->layers > MB_ARCH_MAX_LAYERS || arch->layers < 1)
        MB_RAISE(MB_ERANGE, "%s: num_hidden_layers is %lld; 1 to %d are supported", where,
                 (long long)arch->layers, MB_ARCH_MAX_LAYERS);
    MB_TRY(read_kv_heads(config, where, arch));
    arch->max_positions = mb_arch_facts(arch)->max_positions;
    MB_TRY(mb_json_opt_int(config, "max_position_embeddings", where, &arch->max_positions));
    MB_TRY(read_head_width(config, where, arch));
done:
    return status;
}

/* num_experts and num_local_experts are two names of one thing: 5.x saves Qwen3-MoE under the second. */
static mb_status read_expert_count(const json_t *config, const char *where, int64_t *out_experts)
{
    mb_status status = MB_OK;
    int64_t experts = -1, local = -1;
    MB_TRY(mb_json_opt_int(config, "num_experts", where, &experts));
    MB_TRY(mb_json_opt_int(config, "num_local_experts", where, &local));
    if (experts != -1 && local != -1 && experts != local)
        MB_RAISE(MB_EFORMAT, "%s: num_experts says %lld and num_local_experts %lld; remove one", where,
                 (long long)experts, (long long)local);
    if (experts == -1) experts = local;
    if (experts == -1) MB_RAISE(MB_EFORMAT, "%s: 'num_experts' is missing", where);
    if (experts < 1 || experts > (int64_t)1 << 30)
        MB_RAISE(MB_ERANGE, "%s: num_experts %lld is out of range", where, (long long)experts);
    *out_experts = experts;
done:
    return status;
}

static mb_status read_experts(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const mb_family_facts *facts = mb_arch_facts(arch);
    if (!facts->is_moe) goto done;
    MB_TRY(read_expert_count(config, where, &arch->experts));
    if (arch->family == MB_FAMILY_QWEN3_MOE) {
        arch->dense_ffn = arch->ffn;
        arch->ffn = facts->expert_ffn;
        MB_TRY(mb_json_opt_int(config, facts->ffn_key, where, &arch->ffn));
    }
    arch->picks = facts->picks;
    MB_TRY(mb_json_opt_int(config, "num_experts_per_tok", where, &arch->picks));
    arch->normalise_picks = facts->normalises;
    if (!facts->normalises) MB_TRY(mb_json_opt_bool(config, "norm_topk_prob", where, &arch->normalise_picks));
    if (arch->family == MB_FAMILY_OLMOE) MB_TRY(mb_json_opt_real(config, "clip_qkv", where, &arch->clip_qkv));
    arch->router_aux_loss_coef = facts->aux_loss;
    MB_TRY(mb_json_opt_real(config, "router_aux_loss_coef", where, &arch->router_aux_loss_coef));
done:
    return status;
}

/* ---- 4. which layers ---- */

static void read_flag_from(mb_arch *arch, int64_t first)
{
    for (int64_t i = first < 0 ? 0 : first; i < arch->layers; i++) arch->layer[i] |= MB_LAYER_WINDOW;
}

/* Flags from layer_types; `*out_full` some layer has no window. */
static mb_status read_layer_types(const json_t *types, const char *where, mb_arch *arch, bool *out_full)
{
    mb_status status = MB_OK;
    *out_full = false;
    if (!json_is_array(types) || (int64_t)json_array_size(types) != arch->layers)
        MB_RAISE(MB_EFORMAT, "%s: layer_types must be a list of num_hidden_layers (%lld) names", where,
                 (long long)arch->layers);
    for (int64_t i = 0; i < arch->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (type == NULL) MB_RAISE(MB_EFORMAT, "%s: layer_types must be a list of names", where);
        const bool is_window = strcmp(type, "sliding_attention") == 0;
        if (!is_window && strcmp(type, "full_attention") != 0)
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: layer_types '%s' is not supported; full_attention and sliding_attention are", where,
                     type);
        if (is_window) arch->layer[i] |= MB_LAYER_WINDOW;
        *out_full |= !is_window;
    }
done:
    return status;
}

/* Families whose layers are told apart: layer_types, or from max_window_layers on. */
static mb_status read_window_types(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    int64_t first = 28;
    bool full;
    MB_TRY(mb_json_opt_int(config, "max_window_layers", where, &first));
    if (!read_is_set(config, "layer_types")) {
        if (arch->window > 0) read_flag_from(arch, first);
        goto done;
    }
    MB_TRY(read_layer_types(json_object_get(config, "layer_types"), where, arch, &full));
    for (int64_t i = 0; i < arch->layers; i++)
        if ((arch->layer[i] & MB_LAYER_WINDOW) != 0 && arch->window == 0)
            MB_RAISE(MB_EFORMAT,
                     "%s: layer_types has sliding_attention, but there is no window; set use_sliding_window "
                     "and sliding_window",
                     where);
done:
    return status;
}

/* Families where a window is every layer's or none's: layer_types may say so too, but nothing else. */
static mb_status read_window_all(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    bool full;
    if (arch->window == 0) goto done;
    if (read_is_set(config, "layer_types")) {
        MB_TRY(read_layer_types(json_object_get(config, "layer_types"), where, arch, &full));
        if (full)
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: layer_types has full_attention, but model_type '%s' with sliding_window has the "
                     "window in all layers; remove one",
                     where, mb_arch_facts(arch)->type);
    }
    read_flag_from(arch, 0);
done:
    return status;
}

static mb_status read_windows(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const mb_family_facts *facts = mb_arch_facts(arch);
    const json_t *value = json_object_get(config, "sliding_window");
    bool is_on = facts->window == MB_FAMILY_WINDOW_ALL;
    if (facts->window == MB_FAMILY_WINDOW_NONE) goto done;
    if (!is_on) MB_TRY(mb_json_opt_bool(config, "use_sliding_window", where, &is_on));
    if (is_on && !json_is_null(value)) {
        arch->window = facts->sliding_window;
        MB_TRY(mb_json_opt_int(config, "sliding_window", where, &arch->window));
        if (value != NULL && (arch->window < 1 || arch->window > (int64_t)1 << 30))
            MB_RAISE(MB_ERANGE, "%s: sliding_window is %lld; it must be positive, or null for none", where,
                     (long long)arch->window);
    }
    MB_TRY(facts->window == MB_FAMILY_WINDOW_TYPES ? read_window_types(config, where, arch)
                                                   : read_window_all(config, where, arch));
    if (arch->window > 0) {
        bool any = false;
        for (int64_t i = 0; i < arch->layers; i++) any |= (arch->layer[i] & MB_LAYER_WINDOW) != 0;
        if (!any) arch->window = 0;
    }
done:
    return status;
}

/* Qwen3-MoE: every decoder_sparse_step-th layer is a mixture of experts but those of mlp_only_layers. */
static mb_status read_moe_layers(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const json_t *only = json_object_get(config, "mlp_only_layers");
    int64_t step = 1;
    if (!mb_arch_facts(arch)->is_moe) goto done;
    for (int64_t i = 0; i < arch->layers; i++) arch->layer[i] |= MB_LAYER_MOE;
    if (arch->family != MB_FAMILY_QWEN3_MOE) goto done;
    MB_TRY(mb_json_opt_int(config, "decoder_sparse_step", where, &step));
    if (step < 1)
        MB_RAISE(MB_ERANGE, "%s: decoder_sparse_step is %lld; it must be positive", where, (long long)step);
    for (int64_t i = 0; i < arch->layers; i++)
        if ((i + 1) % step != 0) arch->layer[i] &= (uint8_t)~MB_LAYER_MOE;
    if (only != NULL && !json_is_null(only) && !json_is_array(only))
        MB_RAISE(MB_EFORMAT, "%s: mlp_only_layers must be a list of layer numbers", where);
    for (size_t i = 0; i < json_array_size(only); i++) {
        const json_t *value = json_array_get(only, i);
        const int64_t layer = json_integer_value(value);
        if (!json_is_integer(value))
            MB_RAISE(MB_EFORMAT, "%s: mlp_only_layers must be a list of layer numbers", where);
        if (layer >= 0 && layer < arch->layers) arch->layer[layer] &= (uint8_t)~MB_LAYER_MOE;
    }
    if (mb_arch_moe_layers(arch) == 0)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: decoder_sparse_step and mlp_only_layers leave no layer with experts; model_type qwen3 "
                 "says this without experts",
                 where);
done:
    return status;
}

/* ---- 5. positions, dtype, tokens ---- */

static mb_status read_rotary(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const json_t *rope = json_object_get(config, "rope_parameters");
    arch->rope_theta = mb_arch_facts(arch)->rope_theta;
    MB_TRY(mb_json_opt_real(config, "rope_theta", where, &arch->rope_theta));
    if (json_is_object(rope)) MB_TRY(mb_json_opt_real(rope, "rope_theta", where, &arch->rope_theta));
    MB_TRY(mb_rotary_read(config, arch->max_positions, arch->head_width, where, &arch->rotary));
done:
    return status;
}

int64_t mb_arch_id(const json_t *value)
{
    if (json_is_array(value)) value = json_array_get(value, 0);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? json_integer_value(value) : -1;
}

/* Absent: the family's, as far as the vocabulary has it. */
static int64_t read_id(const json_t *config, const char *key, int64_t absent, int64_t vocab)
{
    const json_t *value = json_object_get(config, key);
    return value != NULL ? mb_arch_id(value) : absent < vocab ? absent : -1;
}

static mb_status read_bias(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const mb_family_bias bias = mb_arch_facts(arch)->bias;
    if (bias == MB_FAMILY_BIAS_FIELD)
        MB_TRY(mb_json_opt_bool(config, "attention_bias", where, &arch->attention_bias));
    arch->o_bias = arch->attention_bias;
    if (bias == MB_FAMILY_BIAS_QKV) arch->attention_bias = true;
done:
    return status;
}

static mb_status read_rest(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const char *dtype = "float32";
    const mb_family_facts *facts = mb_arch_facts(arch);
    arch->rms_eps = facts->rms_eps;
    arch->initializer_range = 0.02;
    MB_TRY(mb_json_opt_real(config, "rms_norm_eps", where, &arch->rms_eps));
    MB_TRY(mb_json_opt_real(config, "initializer_range", where, &arch->initializer_range));
    MB_TRY(mb_json_opt_bool(config, "tie_word_embeddings", where, &arch->tied_head));
    MB_TRY(read_bias(config, where, arch));
    MB_TRY(mb_json_opt_string(config, "torch_dtype", where, &dtype));
    MB_TRY(mb_json_opt_string(config, "dtype", where, &dtype));
    status = mb_dtype_parse(dtype, &arch->stored_dtype);
    if (status != MB_OK) mb_status_prefix("%s: torch_dtype: ", where);
    MB_TRY(status);
    arch->bos = read_id(config, "bos_token_id", facts->bos, arch->vocab);
    arch->eos = read_id(config, "eos_token_id", facts->eos, arch->vocab);
    arch->pad = read_id(config, "pad_token_id", facts->pad, arch->vocab);
done:
    return status;
}

/* ---- 6. the whole ---- */

mb_status mb_arch_from_json(const json_t *config, const char *where, mb_arch *out_arch)
{
    mb_status status = MB_OK;
    mb_arch arch;
    memset(&arch, 0, sizeof arch); /* padding too: architectures are compared as bytes */
    if (!json_is_object(config)) MB_RAISE(MB_EFORMAT, "%s: not a JSON object", where);
    MB_TRY(read_family(config, where, &arch));
    MB_TRY(read_refuse(config, where));
    MB_TRY(read_sizes(config, where, &arch));
    MB_TRY(read_experts(config, where, &arch));
    MB_TRY(read_windows(config, where, &arch));
    MB_TRY(read_moe_layers(config, where, &arch));
    MB_TRY(read_rest(config, where, &arch));
    MB_TRY(read_rotary(config, where, &arch));
    MB_TRY(mb_packed_config_read(config, where, &arch.packed_bits, &arch.packed_group));
    MB_TRY(mb_arch_check(&arch, where));
    arch.config = json_deep_copy(config);
    if (arch.config == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a copy", where);
    *out_arch = arch;
done:
    return status;
}

mb_status mb_arch_read(const char *folder, mb_arch *out_arch)
{
    mb_status status = MB_OK;
    json_t *config = NULL;
    char *path = mb_files_join(folder, "config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    if (!mb_files_is_file(path))
        MB_RAISE(MB_ENOTFOUND, "%s: not found; a model folder holds config.json and *.safetensors", path);
    MB_TRY(mb_json_read(path, &config));
    MB_TRY(mb_arch_from_json(config, path, out_arch));
done:
    json_decref(config);
    mb_free(path);
    return status;
}
