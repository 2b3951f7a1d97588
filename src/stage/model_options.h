/* model_options: how programs name a model: folder, adapter, trash ratio, dtype and where weights live.
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
    char *dtype;               /* model.dtype f32|bf16 */
    bool bf16;                 /* model.bf16 */
    char *quantize;            /* model.quantize none|int8|int4 */
    bool load_in_8bit, load_in_4bit;
    int64_t quantize_group; /* model.quantize_group 64 */
    bool shard;             /* model.shard */
    bool fetch_ahead;       /* model.fetch_ahead */
    bool share_weights;     /* model.share_weights true */
    mb_comm *opt_comm;      /* no option: the ranks the two above are about; set before opening */
    bool router_bias;       /* no option: as in lm.h, set before opening by what moves it */
} mb_model_options;
const mb_option *mb_model_option_table(int64_t *out_count);

/* dtype, quantisation, sharding and sharing into the options of lm.h. */
mb_status mb_model_options_storage(const mb_model_options *options, mb_lm_options *lm);
/* Collective with opt_comm. MB_EUSAGE when model.path is missing. train: as in lm.h. */
mb_status mb_model_options_open(const mb_model_options *options, mb_ops *ops, const char *train,
                                const mb_lora_options *opt_lora, uint64_t seed, mb_lm **out_lm);

#endif
