/* convert: model folder -> model folder, each proven by a verify step.
 *
 * Layer: model.  Uses: lm, store.
 *
 * All write a checkpoint-like folder (beside, then renamed) and copy tokenizer files.
 */
#ifndef MB_CONVERT_H
#define MB_CONVERT_H

#include "model/lm.h"

typedef struct mb_convert_report {
    int64_t tensors, identical, changed, added; /* parameters by their bytes, source against result, whichever
                                                   names they are saved under */
    double max_logit_difference;    /* relative to the largest |logit|, same tokens through both; NaN when not
                                       comparable */
    double mean_trash_mass;         /* of the result, 0 when none */
    double loss_before, loss_after; /* mean token loss of both on the probe tokens */
} mb_convert_report;

typedef struct mb_convert_trash_options {
    int64_t trash_experts;  /* 0: picks */
    const char *trash_init; /* "normal" | "closed" */
    double trash_init_std;  /* 0.02 */
    uint64_t seed;
} mb_convert_trash_options;

/* OLMoE, Mixtral, Qwen3-MoE -> select_moe: gate [E,D] -> [E+T,D]; every other tensor byte-identical, stored
 * dtype kept. A dense source is refused with the command that upcycles it. */
mb_status mb_convert_trash(const char *source, const char *target, const mb_convert_trash_options *options);
/* select_moe -> its base as a stock model of E+T experts, trash experts with zero weights (the trash bias
 * must be 0, or large and negative: refused otherwise). Selection biases of routers are left out when they
 * are all 0, and refused otherwise: a stock model would route differently. */
mb_status mb_convert_plain(const char *source, const char *target);
/* base + PEFT adapter -> HF weights. */
mb_status mb_convert_merge(mb_ops *ops, const char *source, const char *adapter, const char *target);
/* base + delta -> HF weights. */
mb_status mb_convert_full(mb_ops *ops, const char *source, const char *target);
/* config.json (a file or folder) -> a folder with random weights; opt_tokenizer folder copied into it. */
mb_status mb_convert_init(mb_ops *ops, const char *config, const char *opt_tokenizer, uint64_t seed,
                          const char *target);

/* Compare source and target: tensor checksums, logits side by side on n token ids (given or made by seed).
 * Fails (MB_EDATA) when `expect_equal` and the relative difference exceeds tolerance, or when an original
 * tensor changed. With an adapter the merged tensors are compared instead, to the rounding of their stored
 * dtype. */
mb_status mb_convert_verify(mb_ops *ops, const char *source, const char *opt_adapter, const char *target,
                            const int32_t *opt_ids, int64_t n, bool expect_equal, double tolerance,
                            mb_convert_report *out_report);

#endif
