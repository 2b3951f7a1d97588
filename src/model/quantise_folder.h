/* quantise_folder: a quantised model as a folder that transformers, vLLM and mb_lm_open read.
 *
 * Layer: model.  Uses: quantise_layers, packed_io, packed_config, store.
 */
#ifndef MB_QUANTISE_FOLDER_H
#define MB_QUANTISE_FOLDER_H

#include "model/quantise_layers.h"

/* From lm after mb_quantise_layers_run, its blocks' files in the folder `blocks` and the companions
 * (tokenizer ...) of `source`: config.json with a quantization_config, weights; published under target.
 * *out_bytes: of the weight files. */
mb_status mb_quantise_folder_write(mb_lm *lm, const mb_quantise_options *options, const char *blocks,
                                   const char *source, const char *target, int64_t *out_bytes);

#endif
