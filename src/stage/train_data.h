/* train_data: the shards of moe-train, what it trains on and what it validates on.
 *
 * Layer: stage.  Uses: program_options, program, store (shard).
 */
#ifndef MB_TRAIN_DATA_H
#define MB_TRAIN_DATA_H

#include "stage/program.h"
#include "stage/program_options.h"

/* Opens dataset.path into *out_shard and training.validation_path, if there is one, into
 * own->trainer.opt_validation. Collective. */
mb_status mb_train_data_open(mb_program *program, mb_shard **out_shard);
void mb_train_data_close(mb_program *program, mb_shard **shard);
/* What training.reference names, if it is a file; else NULL. */
const char *mb_train_data_reference(const char *opt_reference);
/* Do they fit the model and each other? MB_EDATA says what does not. */
mb_status mb_train_data_check(const mb_train_program *own, const mb_shard *shard, const mb_lm *lm);
/* Into done.json: the last validation, the first and the lowest loss; the cost of routing-only passes. */
mb_status mb_train_data_results(mb_program *program, const mb_trainer_report *report);

#endif
