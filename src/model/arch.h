/* arch: what a decoder is made of, read from and written to HF config.json.
 *
 * Layer: model.  Uses: base, tensor.
 *
 * One parametric decoder. Read: model_type llama, olmoe, and select_moe (an OLMoE with trash experts, our
 * documented type: the source's fields plus "base_model_type", "num_trash_experts", "trash_logit_bias").
 * Both 4.x and 5.x spellings of transformers are read (rope_theta, rope_scaling / rope_parameters,
 * torch_dtype / dtype); 4.x names are written. Anything in config.json that changes the function and is not
 * done here (another model_type, rope type, activation, mlp bias ...) is refused by name: MB_EUNSUPPORTED.
 */
#ifndef MB_ARCH_H
#define MB_ARCH_H

#include "base/json.h"
#include "model/rotary.h"
#include "tensor/tensor.h"

typedef enum mb_family { MB_FAMILY_LLAMA, MB_FAMILY_OLMOE } mb_family;
typedef enum mb_qk_norm {
    MB_QK_NORM_NONE,
    MB_QK_NORM_FULL /* OLMoE: over all heads at once */,
    MB_QK_NORM_HEAD
} mb_qk_norm;

typedef struct mb_arch {
    mb_family family;
    int64_t width;  /* D  hidden_size */
    int64_t layers; /* L */
    int64_t heads, kv_heads, head_width;
    int64_t ffn;   /* F  intermediate_size, of the dense FFN or of one expert */
    int64_t vocab; /* V */
    int64_t max_positions;
    double rms_eps, rope_theta, initializer_range;
    mb_rotary rotary; /* rope scaling */
    bool tied_head;   /* tie_word_embeddings */
    bool attention_bias;
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
    double router_aux_loss_coef;
    mb_dtype stored_dtype; /* of the checkpoint's tensors */
    int64_t bos, eos, pad; /* -1: none */
    json_t *config;        /* the config.json it came from (owned), so that unknown harmless fields survive a
                              conversion; may be NULL */
} mb_arch;

mb_status mb_arch_read(const char *folder, mb_arch *out_arch); /* folder/config.json */
mb_status mb_arch_from_json(const json_t *config, const char *where, mb_arch *out_arch);
/* New JSON object with every field written out. Caller json_decref. */
mb_status mb_arch_to_json(const mb_arch *arch, json_t **out_config);
mb_status mb_arch_copy(const mb_arch *arch, mb_arch *out_arch);
void mb_arch_reset(mb_arch *arch); /* frees config */

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
