/* train_parts: what trains, as the keys of moe-train say it: training.trainable, peft_mode, model.adapter,
 * and the experts of num_experts_to_train or experts_to_train.
 *
 * Layer: stage.  Uses: program_options.
 */
#ifndef MB_TRAIN_PARTS_H
#define MB_TRAIN_PARTS_H

#include "stage/program_options.h"

/* For mb_lm_options.train: "all", "router", "lora" or a list of params_choose.h; mb_free. has_adapter:
 * model.adapter is there. MB_EUSAGE: the two keys about experts contradict each other. */
mb_status mb_train_parts_get(const mb_train_program *own, bool has_adapter, char **out_train);

#endif
