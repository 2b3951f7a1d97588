/* lora: low-rank adapters in PEFT's format.
 *
 * Layer: model.  Uses: params, lora_adapter.
 * Source: Hu et al. (2021), LoRA; file layout of huggingface/peft (adapter_config.json,
 * adapter_model.safetensors with "base_model.model." names).
 *
 * y = W x + (alpha / r) B (A dropout(x)); A [r, K] Kaiming-uniform(a = sqrt 5), B [N, r] zero.
 */
#ifndef MB_LORA_H
#define MB_LORA_H

#include "model/params.h"

typedef struct mb_lora_options {
    int64_t r;
    double alpha;
    double dropout;
    const char *targets; /* comma-separated module names: "q_proj,k_proj,v_proj,o_proj", also gate_proj,
                            up_proj, down_proj (experts too; Mixtral's are w1, w3, w2), gate, or
                            "all-linear" (all but head and gate) */
    bool rslora;         /* scale alpha / sqrt(r) */
    uint64_t seed;
    const char *opt_folder; /* of an adapter that is there: its tensors say which modules. Borrowed */
} mb_lora_options;

typedef struct mb_lora {
    bool is_on;
    mb_lora_options options; /* targets owned */
} mb_lora;                   /* the scale of a module stands with its lora_B (mb_param.lora_scale) */

/* Add A and B tensors for every matching module to params (before seal). MB_EUSAGE when a target matches
 * nothing (names what there is). */
mb_status mb_lora_attach(mb_lora *lora, const mb_lora_options *options, const mb_arch *arch,
                         mb_params *params);
/* Initial values (after seal). */
mb_status mb_lora_randomise(const mb_lora *lora, mb_params *params);
void mb_lora_reset(mb_lora *lora);

/* PEFT adapter folder (lora_adapter.h). Options of an existing one: r, alpha, dropout, rslora, targets as the
 * configuration words them, opt_folder = folder; what changes the function and is not done (dora,
 * modules_to_save ...) is refused by name. Written: experts one by one in 4.x names, which peft reads with
 * transformers 4.x and 5.x. */
mb_status mb_lora_read_options(const char *folder,
                               mb_lora_options *out_options); /* targets mb_free'd by the caller */
mb_status mb_lora_read(const char *folder, const mb_arch *arch, mb_params *params);
mb_status mb_lora_write(const char *folder, const mb_lora *lora, mb_params *params,
                        const char *base_model_path);
/* W += scale B A for every adapted module; the adapter's tensors stay but B becomes zero. */
mb_status mb_lora_merge(mb_lora *lora, mb_ops *ops, mb_params *params);

#endif
