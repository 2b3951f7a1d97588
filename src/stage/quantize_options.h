/* quantize_options: the options of moe-quantize.
 *
 * Layer: stage.  Uses: model_options, quantise_layers.
 */
#ifndef MB_QUANTIZE_OPTIONS_H
#define MB_QUANTIZE_OPTIONS_H

#include "model/quantise_layers.h"
#include "stage/model_options.h"

typedef struct mb_quantize_program {
    mb_model_options model;
    char *method, *group, *calibration, *validation;
    int64_t bits, samples, max_length, seed, expert_tokens, tile_tokens;
    double damping;
    bool act_order;
} mb_quantize_program;
const mb_option *mb_quantize_option_table(int64_t *out_count);

/* As the model layer takes them; stored: dtype of the model's folder. MB_EUSAGE: options that contradict each
 * other, or one that is missing. */
mb_status mb_quantize_options_get(const mb_quantize_program *own, mb_dtype stored,
                                  mb_quantise_options *out_options);

#endif
