/* arch: config.json in and out, and what follows from it by counting.
 *
 * 1. reading: plain fields, families, spellings of 4.x and 5.x, refusals by name
 * 2. checks that the fields fit each other
 * 3. writing (4.x names)
 * 4. copy, counts
 */
#include "model/arch.h"

#include <string.h>

#include "base/files.h"
#include "base/log.h"

/* ---- 1. reading ---- */

static bool arch_is_set(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    return value != NULL && !json_is_null(value);
}

/* Fields that would change the function and that we do not compute. */
static mb_status arch_refuse(const json_t *config, const char *where)
{
    mb_status status = MB_OK;
    const char *activation = "silu";
    bool mlp_bias = false;
    double dropout = 0, partial = 1;
    MB_TRY(mb_json_opt_string(config, "hidden_act", where, &activation));
    if (strcmp(activation, "silu") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: hidden_act '%s' is not supported; only 'silu' is", where, activation);
    MB_TRY(mb_json_opt_bool(config, "mlp_bias", where, &mlp_bias));
    if (mlp_bias) MB_RAISE(MB_EUNSUPPORTED, "%s: mlp_bias true is not supported", where);
    if (arch_is_set(config, "quantization_config"))
        MB_RAISE(MB_EUNSUPPORTED, "%s: quantization_config is not supported; use the unquantised checkpoint",
                 where);
    MB_TRY(mb_json_opt_real(config, "partial_rotary_factor", where, &partial));
    if (partial != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: partial_rotary_factor %g is not supported; only 1 is", where, partial);
    MB_TRY(mb_json_opt_real(config, "attention_dropout", where, &dropout));
    if (dropout != 0) mb_warn("%s: attention_dropout %g is not applied in training", where, dropout);
done:
    return status;
}

static mb_status arch_read_family(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const char *type = NULL;
    MB_TRY(mb_json_get_string(config, "model_type", where, &type));
    bool is_select = strcmp(type, "select_moe") == 0;
    if (is_select) {
        MB_TRY(mb_json_get_string(config, "base_model_type", where, &type));
        MB_TRY(mb_json_get_int(config, "num_trash_experts", where, &arch->trash));
        MB_TRY(mb_json_opt_real(config, "trash_logit_bias", where, &arch->trash_logit_bias));
        if (strcmp(type, "olmoe") != 0)
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: base_model_type '%s' is not supported; select_moe is made of olmoe", where, type);
        if (arch->trash < 1) MB_RAISE(MB_ERANGE, "%s: num_trash_experts must be at least 1", where);
    }
    if (strcmp(type, "llama") == 0) {
        arch->family = MB_FAMILY_LLAMA;
    } else if (strcmp(type, "olmoe") == 0) {
        arch->family = MB_FAMILY_OLMOE;
        arch->qk_norm = MB_QK_NORM_FULL;
    } else {
        MB_RAISE(MB_EUNSUPPORTED, "%s: model_type '%s' is not supported; llama, olmoe and select_moe are",
                 where, type);
    }
done:
    return status;
}

static mb_status arch_read_sizes(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    bool is_olmoe = arch->family == MB_FAMILY_OLMOE;
    MB_TRY(mb_json_get_int(config, "hidden_size", where, &arch->width));
    MB_TRY(mb_json_get_int(config, "intermediate_size", where, &arch->ffn));
    MB_TRY(mb_json_get_int(config, "num_hidden_layers", where, &arch->layers));
    MB_TRY(mb_json_get_int(config, "num_attention_heads", where, &arch->heads));
    MB_TRY(mb_json_get_int(config, "vocab_size", where, &arch->vocab));
    arch->kv_heads = arch->heads;
    MB_TRY(mb_json_opt_int(config, "num_key_value_heads", where, &arch->kv_heads));
    arch->max_positions = is_olmoe ? 4096 : 2048;
    MB_TRY(mb_json_opt_int(config, "max_position_embeddings", where, &arch->max_positions));
    arch->head_width = arch->heads > 0 ? arch->width / arch->heads : 0;
    if (!is_olmoe) MB_TRY(mb_json_opt_int(config, "head_dim", where, &arch->head_width));
    if (is_olmoe) {
        MB_TRY(mb_json_get_int(config, "num_experts", where, &arch->experts));
        MB_TRY(mb_json_get_int(config, "num_experts_per_tok", where, &arch->picks));
        MB_TRY(mb_json_opt_bool(config, "norm_topk_prob", where, &arch->normalise_picks));
        MB_TRY(mb_json_opt_real(config, "clip_qkv", where, &arch->clip_qkv));
        arch->router_aux_loss_coef = 0.01;
        MB_TRY(mb_json_opt_real(config, "router_aux_loss_coef", where, &arch->router_aux_loss_coef));
    }
done:
    return status;
}

/* An id, null (or negative: none), or a list of ids (the first counts). */
static int64_t arch_read_id(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_array(value)) value = json_array_get(value, 0);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? json_integer_value(value) : -1;
}

static mb_status arch_read_rest(const json_t *config, const char *where, mb_arch *arch)
{
    mb_status status = MB_OK;
    const char *dtype = "float32";
    arch->rms_eps = arch->family == MB_FAMILY_OLMOE ? 1e-5 : 1e-6;
    arch->rope_theta = 10000;
    arch->initializer_range = 0.02;
    MB_TRY(mb_json_opt_real(config, "rms_norm_eps", where, &arch->rms_eps));
    MB_TRY(mb_json_opt_real(config, "rope_theta", where, &arch->rope_theta));
    const json_t *rope = json_object_get(config, "rope_parameters");
    if (json_is_object(rope)) MB_TRY(mb_json_opt_real(rope, "rope_theta", where, &arch->rope_theta));
    MB_TRY(mb_rotary_read(config, arch->max_positions, where, &arch->rotary));
    MB_TRY(mb_json_opt_real(config, "initializer_range", where, &arch->initializer_range));
    MB_TRY(mb_json_opt_bool(config, "tie_word_embeddings", where, &arch->tied_head));
    MB_TRY(mb_json_opt_bool(config, "attention_bias", where, &arch->attention_bias));
    MB_TRY(mb_json_opt_string(config, "torch_dtype", where, &dtype));
    MB_TRY(mb_json_opt_string(config, "dtype", where, &dtype));
    status = mb_dtype_parse(dtype, &arch->stored_dtype);
    if (status != MB_OK) mb_status_prefix("%s: torch_dtype: ", where);
    MB_TRY(status);
    arch->bos = arch_read_id(config, "bos_token_id");
    arch->eos = arch_read_id(config, "eos_token_id");
    arch->pad = arch_read_id(config, "pad_token_id");
done:
    return status;
}

/* ---- 2. checks ---- */

/* The large terms of mb_arch_parameters, without overflow. */
static double arch_parameters_about(const mb_arch *a)
{
    const double d = (double)a->width, heads = (double)(a->heads + a->kv_heads) * (double)a->head_width;
    const double experts = a->experts > 0 ? (double)a->experts : 1;
    const double layer =
        2 * d * (heads + 1) + 3 * d * (double)a->ffn * experts + d * (double)mb_arch_gates(a);
    return (double)a->layers * layer + 2 * d * (double)a->vocab;
}

static mb_status arch_check(const mb_arch *a, const char *where)
{
    mb_status status = MB_OK;
    const int64_t most = (int64_t)1 << 30;
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"hidden_size", a->width},        {"intermediate_size", a->ffn},
                 {"num_hidden_layers", a->layers}, {"num_attention_heads", a->heads},
                 {"vocab_size", a->vocab},         {"num_key_value_heads", a->kv_heads},
                 {"head_dim", a->head_width},      {"max_position_embeddings", a->max_positions}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].value < 1 || sizes[i].value > most)
            MB_RAISE(MB_ERANGE, "%s: %s is %lld; it must be positive", where, sizes[i].name,
                     (long long)sizes[i].value);
    if (a->heads % a->kv_heads != 0)
        MB_RAISE(MB_ESHAPE, "%s: num_attention_heads %lld is no multiple of num_key_value_heads %lld", where,
                 (long long)a->heads, (long long)a->kv_heads);
    if (a->head_width % 2 != 0)
        MB_RAISE(MB_ESHAPE, "%s: head width %lld is odd; rotary positions need pairs", where,
                 (long long)a->head_width);
    if (a->family == MB_FAMILY_OLMOE && a->head_width * a->heads != a->width)
        MB_RAISE(MB_ESHAPE, "%s: hidden_size %lld is no multiple of num_attention_heads %lld", where,
                 (long long)a->width, (long long)a->heads);
    if (a->family == MB_FAMILY_OLMOE && (a->experts < 1 || a->experts > most || a->trash > most))
        MB_RAISE(MB_ERANGE, "%s: num_experts %lld is out of range", where, (long long)a->experts);
    if (a->family == MB_FAMILY_OLMOE && (a->picks < 1 || a->picks > mb_arch_gates(a)))
        MB_RAISE(MB_ERANGE, "%s: num_experts_per_tok %lld is not within 1..%lld experts", where,
                 (long long)a->picks, (long long)mb_arch_gates(a));
    if (!(a->rms_eps >= 0) || !(a->rope_theta > 0) || a->clip_qkv < 0 || !(a->initializer_range >= 0))
        MB_RAISE(MB_ERANGE, "%s: rms_norm_eps, rope_theta, clip_qkv or initializer_range is out of range",
                 where);
    if (a->rotary.type == MB_ROTARY_YARN && a->rope_theta == 1)
        MB_RAISE(MB_ERANGE, "%s: rope_theta 1 leaves nothing for rope scaling 'yarn' to stretch", where);
    if (arch_parameters_about(a) > 1e15)
        MB_RAISE(MB_ERANGE, "%s: its sizes together make %.1e parameters; one of them is wrong", where,
                 arch_parameters_about(a));
done:
    return status;
}

mb_status mb_arch_from_json(const json_t *config, const char *where, mb_arch *out_arch)
{
    mb_status status = MB_OK;
    mb_arch arch = {0};
    if (!json_is_object(config)) MB_RAISE(MB_EFORMAT, "%s: not a JSON object", where);
    MB_TRY(arch_read_family(config, where, &arch));
    MB_TRY(arch_refuse(config, where));
    MB_TRY(arch_read_sizes(config, where, &arch));
    MB_TRY(arch_read_rest(config, where, &arch));
    MB_TRY(arch_check(&arch, where));
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

/* ---- 3. writing ---- */

static const char *arch_torch_dtype(mb_dtype dtype)
{
    return dtype == MB_BF16  ? "bfloat16"
           : dtype == MB_F16 ? "float16"
           : dtype == MB_F64 ? "float64"
                             : "float32";
}

static mb_status arch_write_type(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    bool is_select = arch->trash > 0;
    const char *base = arch->family == MB_FAMILY_LLAMA ? "llama" : "olmoe";
    const char *class = is_select                         ? "SelectMoeForCausalLM"
                        : arch->family == MB_FAMILY_LLAMA ? "LlamaForCausalLM"
                                                          : "OlmoeForCausalLM";
    MB_TRY(mb_json_set(config, "architectures", json_pack("[s]", class)));
    MB_TRY(mb_json_set(config, "model_type", json_string(is_select ? "select_moe" : base)));
    if (is_select) {
        MB_TRY(mb_json_set(config, "base_model_type", json_string(base)));
        MB_TRY(mb_json_set(config, "num_trash_experts", json_integer(arch->trash)));
        MB_TRY(mb_json_set(config, "trash_logit_bias", json_real(arch->trash_logit_bias)));
    } else {
        json_object_del(config, "base_model_type");
        json_object_del(config, "num_trash_experts");
        json_object_del(config, "trash_logit_bias");
    }
done:
    return status;
}

static mb_status arch_write_sizes(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_set(config, "hidden_size", json_integer(arch->width)));
    MB_TRY(mb_json_set(config, "intermediate_size", json_integer(arch->ffn)));
    MB_TRY(mb_json_set(config, "num_hidden_layers", json_integer(arch->layers)));
    MB_TRY(mb_json_set(config, "num_attention_heads", json_integer(arch->heads)));
    MB_TRY(mb_json_set(config, "num_key_value_heads", json_integer(arch->kv_heads)));
    MB_TRY(mb_json_set(config, "vocab_size", json_integer(arch->vocab)));
    MB_TRY(mb_json_set(config, "max_position_embeddings", json_integer(arch->max_positions)));
    if (arch->family == MB_FAMILY_LLAMA) {
        MB_TRY(mb_json_set(config, "head_dim", json_integer(arch->head_width)));
        MB_TRY(mb_json_set(config, "mlp_bias", json_false()));
    }
    if (arch->experts > 0) {
        MB_TRY(mb_json_set(config, "num_experts", json_integer(arch->experts)));
        MB_TRY(mb_json_set(config, "num_experts_per_tok", json_integer(arch->picks)));
        MB_TRY(mb_json_set(config, "norm_topk_prob", json_boolean(arch->normalise_picks)));
        MB_TRY(mb_json_set(config, "router_aux_loss_coef", json_real(arch->router_aux_loss_coef)));
        MB_TRY(mb_json_set(config, "clip_qkv", arch->clip_qkv > 0 ? json_real(arch->clip_qkv) : json_null()));
    }
done:
    return status;
}

static mb_status arch_write_rest(const mb_arch *arch, json_t *config)
{
    mb_status status = MB_OK;
    const struct {
        const char *name;
        int64_t value;
    } ids[] = {{"bos_token_id", arch->bos}, {"eos_token_id", arch->eos}, {"pad_token_id", arch->pad}};
    MB_TRY(mb_json_set(config, "hidden_act", json_string("silu")));
    MB_TRY(mb_json_set(config, "rms_norm_eps", json_real(arch->rms_eps)));
    MB_TRY(mb_json_set(config, "rope_theta", json_real(arch->rope_theta)));
    MB_TRY(mb_rotary_write(&arch->rotary, config));
    MB_TRY(mb_json_set(config, "initializer_range", json_real(arch->initializer_range)));
    MB_TRY(mb_json_set(config, "tie_word_embeddings", json_boolean(arch->tied_head)));
    MB_TRY(mb_json_set(config, "attention_bias", json_boolean(arch->attention_bias)));
    MB_TRY(mb_json_set(config, "torch_dtype", json_string(arch_torch_dtype(arch->stored_dtype))));
    json_object_del(config, "dtype");
    for (int i = 0; i < 3; i++)
        if (arch_read_id(config, ids[i].name) != ids[i].value || json_object_get(config, ids[i].name) == NULL)
            MB_TRY(mb_json_set(config, ids[i].name,
                               ids[i].value < 0 ? json_null() : json_integer(ids[i].value)));
done:
    return status;
}

mb_status mb_arch_to_json(const mb_arch *arch, json_t **out_config)
{
    mb_status status = MB_OK;
    json_t *config = arch->config != NULL ? json_deep_copy(arch->config) : json_object();
    if (config == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
    MB_TRY(arch_write_type(arch, config));
    MB_TRY(arch_write_sizes(arch, config));
    MB_TRY(arch_write_rest(arch, config));
    *out_config = config;
    config = NULL;
done:
    json_decref(config);
    return status;
}

/* ---- 4. copy, counts ---- */

mb_status mb_arch_copy(const mb_arch *arch, mb_arch *out_arch)
{
    mb_status status = MB_OK;
    json_t *config = arch->config != NULL ? json_deep_copy(arch->config) : NULL;
    if (arch->config != NULL && config == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
    *out_arch = *arch;
    out_arch->config = config;
done:
    return status;
}

void mb_arch_reset(mb_arch *arch)
{
    json_decref(arch->config);
    arch->config = NULL;
}

int64_t mb_arch_parameters(const mb_arch *arch)
{
    const int64_t d = arch->width, q = arch->heads * arch->head_width, kv = arch->kv_heads * arch->head_width;
    int64_t layer = 2 * d + 2 * d * q + 2 * d * kv;
    if (arch->attention_bias) layer += q + 2 * kv + d;
    if (arch->qk_norm == MB_QK_NORM_FULL) layer += q + kv;
    if (arch->qk_norm == MB_QK_NORM_HEAD) layer += 2 * arch->head_width;
    if (arch->experts > 0)
        layer += mb_arch_gates(arch) * d + arch->experts * 3 * d * arch->ffn;
    else
        layer += 3 * d * arch->ffn;
    return arch->layers * layer + d + arch->vocab * d * (arch->tied_head ? 1 : 2);
}

double mb_arch_flops(const mb_arch *arch, int64_t blocks, bool head, int64_t context)
{
    const double d = (double)arch->width, q = (double)(arch->heads * arch->head_width);
    const double kv = (double)(arch->kv_heads * arch->head_width), ffn = 6 * d * (double)arch->ffn;
    double layer = 2 * (2 * d * q + 2 * d * kv) + 4 * q * (double)context;
    layer += arch->experts > 0 ? 2 * d * (double)mb_arch_gates(arch) + (double)arch->picks * ffn : ffn;
    return (double)blocks * layer + (head ? 2 * d * (double)arch->vocab : 0);
}
