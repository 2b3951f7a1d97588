/* family: what sets one kind of decoder apart: its names, what transformers assumes where config.json is
 * silent, and which of its layers have biases, norms, windows.
 *
 * Layer: model.
 * Source: transformers' configuration_*.py and modeling_*.py, 4.57 and 5.23.
 */
#ifndef MB_FAMILY_H
#define MB_FAMILY_H

#include <stdbool.h>
#include <stdint.h>

typedef enum mb_family {
    MB_FAMILY_LLAMA,
    MB_FAMILY_MISTRAL,
    MB_FAMILY_QWEN2,
    MB_FAMILY_QWEN3,
    MB_FAMILY_OLMOE,
    MB_FAMILY_MIXTRAL,
    MB_FAMILY_QWEN3_MOE,
    MB_FAMILIES
} mb_family;

typedef enum mb_qk_norm {
    MB_QK_NORM_NONE,
    MB_QK_NORM_FULL /* OLMoE: over all heads at once */,
    MB_QK_NORM_HEAD /* Qwen3: each head by itself, one weight [Dh] */
} mb_qk_norm;

/* Which linear maps of the attention have a bias. */
typedef enum mb_family_bias {
    MB_FAMILY_BIAS_NONE,
    MB_FAMILY_BIAS_FIELD, /* q, k, v and o when attention_bias says so */
    MB_FAMILY_BIAS_QKV    /* q, k, v always, o never */
} mb_family_bias;

/* Which layers have the sliding window. */
typedef enum mb_family_window {
    MB_FAMILY_WINDOW_NONE,
    MB_FAMILY_WINDOW_ALL,    /* all, when sliding_window is set */
    MB_FAMILY_WINDOW_SWITCH, /* all, when use_sliding_window is true */
    MB_FAMILY_WINDOW_TYPES   /* when use_sliding_window is true: those of layer_types, else from
                                max_window_layers on */
} mb_family_window;

typedef struct mb_family_facts {
    const char *type, *class_name; /* model_type; architectures[0] */
    mb_qk_norm qk_norm;
    mb_family_bias bias;
    mb_family_window window;
    bool is_moe;
    bool normalises; /* always divides the weights of the picks by their sum; has no norm_topk_prob */
    /* Tensor names of an expert layer: "model.layers.0.<moe>.gate.weight",
     * "model.layers.0.<moe>.experts.0.<up>.weight". */
    const char *moe, *gate, *up, *down;
    const char *experts_key, *ffn_key; /* fields: how many experts, how wide one is */
    /* What transformers takes where a field is absent; 0 heads: as many as query heads; 0 width: D / heads;
     * -1: no such token. */
    int64_t kv_heads, head_width, max_positions, sliding_window, expert_ffn, picks, bos, eos, pad;
    double rms_eps, rope_theta, aux_loss;
} mb_family_facts;

const mb_family_facts *mb_family_get(mb_family family);
bool mb_family_find(const char *type, mb_family *out_family); /* by model_type */

#endif
