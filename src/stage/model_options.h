/* model_options: how programs name a model: folder, adapter, trash ratio.
 *
 * Layer: stage.  Uses: base, model.
 */
#ifndef MB_MODEL_OPTIONS_H
#define MB_MODEL_OPTIONS_H

#include "base/option.h"
#include "model/lm.h"

typedef struct mb_model_options {
    char *path;                /* model.path */
    char *adapter;             /* model.adapter */
    double trash_expert_ratio; /* model.trash_expert_ratio */
} mb_model_options;
const mb_option *mb_model_option_table(int64_t *out_count);

/* MB_EUSAGE when model.path is missing. train: as in lm.h. */
mb_status mb_model_options_open(const mb_model_options *options, mb_ops *ops, const char *train,
                                const mb_lora_options *opt_lora, uint64_t seed, mb_lm **out_lm);

#endif
