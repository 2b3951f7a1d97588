/* arch: what a decoder is made of, read from and written to HF config.json.
 *
 * Layer: model.  Uses: base, tensor.
 *
 * One parametric decoder. Read: model_type llama, mistral, qwen2, qwen3, olmoe, mixtral, qwen3_moe, and
 * select_moe (a mixture of experts with trash experts or with router biases, our documented type:
 * docs/formats.md). 4.x and 5.x spellings of transformers are read (rope_theta, rope_scaling /
 * rope_parameters, torch_dtype / dtype, num_experts / num_local_experts) with transformers' own defaults
 * where a field is absent; 4.x names are written, every field that counts. What changes the function and is
 * not done here (another model_type, rope type, activation, mlp bias ...) is refused by name:
 * MB_EUNSUPPORTED.
 */
#ifndef MB_ARCH_H
#define MB_ARCH_H

#include "base/json.h"
#include "model/family.h"
#include "model/rotary.h"
#include "tensor/tensor.h"

enum { MB_ARCH_MAX_LAYERS = 512 };
/* What a layer is, flags of mb_arch.layer. */
enum { MB_LAYER_MOE = 1, MB_LAYER_WINDOW = 2 };

typedef struct mb_arch {
    mb_family family;
    int64_t width;  /* D  hidden_size */
    int64_t layers; /* L */
    int64_t heads, kv_heads, head_width;
    int64_t ffn; /* F  of one expert; of the dense FFN when there are no experts */
    int64_t
        dense_ffn;  /* of the dense layers of a model that has experts too (Qwen3-MoE's intermediate_size) */
    int64_t window; /* sliding window of the layers flagged MB_LAYER_WINDOW: keys a query sees, itself
                          included; 0 none */
    uint8_t layer[MB_ARCH_MAX_LAYERS]; /* flags */
    int64_t vocab;                     /* V */
    int64_t max_positions;
    double rms_eps, rope_theta, initializer_range;
    mb_rotary rotary;    /* rope scaling */
    bool tied_head;      /* tie_word_embeddings */
    bool attention_bias; /* of q, k, v */
    bool o_bias;         /* of o_proj too (Llama); Qwen2 has none */
    mb_qk_norm qk_norm;
    double clip_qkv; /* 0: none */
    /* mixture of experts; experts == 0: dense */
    int64_t experts;         /* E: experts that compute */
    int64_t trash;           /* trash experts after them, with zero output: the gate has E + trash rows */
    int64_t declared_trash;  /* the last so many of E that scores and losses call trash (trash_expert_ratio);
                                trash == 0 then */
    int64_t picks;           /* K  num_experts_per_tok */
    bool normalise_picks;    /* norm_topk_prob */
    double trash_logit_bias; /* added to trash logits for routing only */
    bool router_bias;        /* routers pick by p + b, b [E + trash] a tensor of each (select_moe alone) */
    double router_aux_loss_coef;
    mb_dtype stored_dtype; /* of the checkpoint's tensors */
    int packed_bits;       /* of the layers' matrices in the folder: 4 (packed_config.h); 0: not quantised */
    int64_t packed_group;  /* columns of most of them that share a scale; 0: all of a row */
    int64_t bos, eos, pad; /* -1: none */
    json_t *config;        /* the config.json it came from (owned), so that unknown harmless fields survive a
                              conversion; may be NULL */
} mb_arch;

mb_status mb_arch_read(const char *folder, mb_arch *out_arch); /* folder/config.json */
mb_status mb_arch_from_json(const json_t *config, const char *where, mb_arch *out_arch);
/* Do the fields fit each other? MB_ERANGE, MB_ESHAPE with the field's name. */
mb_status mb_arch_check(const mb_arch *arch, const char *where);
/* A token id field: an id, null, absent or negative (-1), or a list of ids (the first counts). */
int64_t mb_arch_id(const json_t *value);
/* New JSON object with every field written out. Caller json_decref. */
mb_status mb_arch_to_json(const mb_arch *arch, json_t **out_config);
mb_status mb_arch_copy(const mb_arch *arch, mb_arch *out_arch);
void mb_arch_reset(mb_arch *arch); /* frees config */

static inline bool mb_arch_is_moe(const mb_arch *arch, int64_t layer)
{
    return (arch->layer[layer] & MB_LAYER_MOE) != 0;
}
static inline int64_t mb_arch_window(const mb_arch *arch, int64_t layer)
{
    return (arch->layer[layer] & MB_LAYER_WINDOW) != 0 ? arch->window : 0;
}
int64_t mb_arch_moe_layers(const mb_arch *arch); /* layers that have a router */
static inline int64_t mb_arch_dense_ffn(const mb_arch *arch)
{
    return arch->experts > 0 ? arch->dense_ffn : arch->ffn;
} /* F of a layer without experts */

static inline const mb_family_facts *mb_arch_facts(const mb_arch *arch)
{
    return mb_family_get(arch->family);
}

static inline int64_t mb_arch_gates(const mb_arch *arch)
{
    return arch->experts + arch->trash;
} /* E' rows of a gate */
static inline int64_t mb_arch_good(const mb_arch *arch)
{
    return arch->experts - arch->declared_trash;
} /* good experts come first */
/* Parameters in all; multiply-adds x 2 of one token's forward pass through blocks [0, blocks) and, when head,
 * the LM head (attention counted at `context` tokens). */
int64_t mb_arch_parameters(const mb_arch *arch);
double mb_arch_flops(const mb_arch *arch, int64_t blocks, bool head, int64_t context);

#endif
