/* arch: do the fields of an architecture fit each other, and what follows from them by counting.
 *
 * 1. checks
 * 2. copy
 * 3. counts
 */
#include "model/arch.h"

#include <math.h>

/* ---- 1. checks ---- */

/* The large terms of mb_arch_parameters, without overflow. */
static double arch_parameters_about(const mb_arch *a)
{
    const double d = (double)a->width, heads = (double)(a->heads + a->kv_heads) * (double)a->head_width;
    const double experts = a->experts > 0 ? (double)a->experts : 1;
    const double layer = 2 * d * (heads + 1) + 3 * d * (double)a->ffn * experts +
                         3 * d * (double)a->dense_ffn + d * (double)mb_arch_gates(a);
    return (double)a->layers * layer + 2 * d * (double)a->vocab;
}

static mb_status arch_check_experts(const mb_arch *a, const char *where)
{
    mb_status status = MB_OK;
    const int64_t most = (int64_t)1 << 30;
    if (!mb_arch_facts(a)->is_moe) goto done;
    if (a->experts < 1 || a->experts > most || a->trash > most)
        MB_RAISE(MB_ERANGE, "%s: num_experts %lld is out of range", where, (long long)a->experts);
    if (a->picks < 1 || a->picks > mb_arch_gates(a))
        MB_RAISE(MB_ERANGE, "%s: num_experts_per_tok %lld is not within 1..%lld experts", where,
                 (long long)a->picks, (long long)mb_arch_gates(a));
    if (mb_arch_moe_layers(a) < a->layers && (a->dense_ffn < 1 || a->dense_ffn > most))
        MB_RAISE(MB_ERANGE, "%s: intermediate_size is %lld; it must be positive", where,
                 (long long)a->dense_ffn);
done:
    return status;
}

static mb_status arch_check_heads(const mb_arch *a, const char *where)
{
    mb_status status = MB_OK;
    if (a->heads % a->kv_heads != 0)
        MB_RAISE(MB_ESHAPE, "%s: num_attention_heads %lld is no multiple of num_key_value_heads %lld", where,
                 (long long)a->heads, (long long)a->kv_heads);
    if (a->head_width % 2 != 0)
        MB_RAISE(MB_ESHAPE, "%s: head width %lld is odd; rotary positions need pairs", where,
                 (long long)a->head_width);
    if (a->family == MB_FAMILY_OLMOE && a->head_width * a->heads != a->width)
        MB_RAISE(MB_ESHAPE, "%s: hidden_size %lld is no multiple of num_attention_heads %lld", where,
                 (long long)a->width, (long long)a->heads);
done:
    return status;
}

mb_status mb_arch_check(const mb_arch *arch, const char *where)
{
    mb_status status = MB_OK;
    const mb_arch *a = arch;
    const int64_t most = (int64_t)1 << 30;
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"hidden_size", a->width},
                 {a->experts > 0 ? mb_arch_facts(a)->ffn_key : "intermediate_size", a->ffn},
                 {"num_hidden_layers", a->layers},
                 {"num_attention_heads", a->heads},
                 {"vocab_size", a->vocab},
                 {"num_key_value_heads", a->kv_heads},
                 {"head_dim", a->head_width},
                 {"max_position_embeddings", a->max_positions}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].value < 1 || sizes[i].value > most)
            MB_RAISE(MB_ERANGE, "%s: %s is %lld; it must be positive", where, sizes[i].name,
                     (long long)sizes[i].value);
    MB_TRY(arch_check_heads(a, where));
    MB_TRY(arch_check_experts(a, where));
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

/* ---- 2. copy ---- */

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

/* ---- 3. counts ---- */

int64_t mb_arch_moe_layers(const mb_arch *arch)
{
    int64_t n = 0;
    for (int64_t i = 0; i < arch->layers; i++) n += mb_arch_is_moe(arch, i);
    return n;
}

int64_t mb_arch_parameters(const mb_arch *arch)
{
    const int64_t d = arch->width, q = arch->heads * arch->head_width, kv = arch->kv_heads * arch->head_width;
    const int64_t moe = mb_arch_moe_layers(arch), dense = arch->layers - moe;
    int64_t layer = 2 * d + 2 * d * q + 2 * d * kv;
    if (arch->attention_bias) layer += q + 2 * kv;
    if (arch->o_bias) layer += d;
    if (arch->qk_norm == MB_QK_NORM_FULL) layer += q + kv;
    if (arch->qk_norm == MB_QK_NORM_HEAD) layer += 2 * arch->head_width;
    return arch->layers * layer +
           moe * (mb_arch_gates(arch) * (d + arch->router_bias) + arch->experts * 3 * d * arch->ffn) +
           dense * 3 * d * mb_arch_dense_ffn(arch) + d + arch->vocab * d * (arch->tied_head ? 1 : 2);
}

double mb_arch_flops(const mb_arch *arch, int64_t blocks, bool head, int64_t context)
{
    const double d = (double)arch->width, q = (double)(arch->heads * arch->head_width);
    const double kv = (double)(arch->kv_heads * arch->head_width);
    double sum = head ? 2 * d * (double)arch->vocab : 0;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t window = mb_arch_window(arch, i);
        const double keys = (double)(window > 0 && window < context ? window : context);
        sum += 2 * (2 * d * q + 2 * d * kv) + 4 * q * keys;
        sum += mb_arch_is_moe(arch, i)
                   ? 2 * d * (double)mb_arch_gates(arch) + (double)arch->picks * 6 * d * (double)arch->ffn
                   : 6 * d * (double)mb_arch_dense_ffn(arch);
    }
    return sum;
}
