/* lora_adapter: a PEFT adapter folder opened: which modules it adapts, with what rank and scale, and their
 * values.
 *
 * Layer: model.  Uses: arch, store (safetensors).
 * Source: huggingface/peft 0.21: lora/layer.py (Linear, ParamWrapper), utils/other.py (get_pattern_key).
 *
 * The tensors of the file say which modules are adapted; target_modules (names, regular expression),
 * layers_to_transform, exclude_modules and rank_pattern of the configuration only say how peft chose them.
 * Experts stand there one by one ("...experts.3.up_proj.lora_A.weight": transformers 4.x) or fused
 * (target_parameters, transformers 5.x): of a parameter [E, N, K], lora_A is [E r, K], expert by expert,
 * and lora_B [N, r E], column j E + e for rank j of expert e. Nested wrappers put "base_layer" between. In
 * a fused gate_up_proj gate and up share lora_A: here each gets a copy.
 */
#ifndef MB_LORA_ADAPTER_H
#define MB_LORA_ADAPTER_H

#include "model/arch.h"
#include "store/safetensors.h"

typedef struct mb_lora_adapter mb_lora_adapter;

/* What the adapter has for one module. */
typedef struct mb_lora_part {
    char stem[240]; /* its tensors are <stem>.lora_A.weight and <stem>.lora_B.weight */
    int64_t rank;
    float scale;           /* alpha / r, or / sqrt(r) */
    int64_t expert;        /* in a fused one; -1: it stands alone */
    int64_t experts, half; /* of a fused one: E; 1: the rows of up in a gate_up_proj */
} mb_lora_part;

/* MB_ENOTFOUND, MB_EFORMAT, MB_EUNSUPPORTED (a field that changes the function and is not done, by name). */
mb_status mb_lora_adapter_open(const char *folder, mb_lora_adapter **out_adapter);
void mb_lora_adapter_close(mb_lora_adapter **adapter);
const json_t *mb_lora_adapter_config(const mb_lora_adapter *adapter);
const char *mb_lora_adapter_config_path(const mb_lora_adapter *adapter);

/* Module "model.layers.0.self_attn.q_proj" with a weight [n, k]: *out_found false when it is not adapted. */
mb_status mb_lora_adapter_find(mb_lora_adapter *adapter, const mb_arch *arch, const char *module, int64_t n,
                               int64_t k, bool *out_found, mb_lora_part *out_part);
/* lora_A [rank, k] or lora_B [n, rank] of a part that was found, as f32. */
mb_status mb_lora_adapter_read(const mb_lora_adapter *adapter, const mb_lora_part *part, bool is_b, int64_t n,
                               int64_t k, float *out);
/* Every tensor of the file was found for some module, else MB_EUNSUPPORTED. */
mb_status mb_lora_adapter_check_used(const mb_lora_adapter *adapter);

#endif
