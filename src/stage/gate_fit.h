/* gate_fit: moe-gate train: from outputs and embeddings to a gate.
 *
 * Layer: stage.  Uses: learn (gate), gate_inputs, gate_settings.
 */
#ifndef MB_GATE_FIT_H
#define MB_GATE_FIT_H

#include "stage/gate_inputs.h"
#include "stage/gate_settings.h"
#include "stage/program.h"

/* What the gate is to say: targets [Q, X] by rule "soft", "best" or "likelihood" (gate_settings); all 0 where
 * no expert is right (likelihood: where none gives the answer any probability). Cloze answers have no
 * probabilities: as soft. */
mb_status mb_gate_fit_targets(const mb_outputs *outputs, const char *rule, float **out_target);
/* Rows (questions that are not shared) for training and validation: the validation rows are the share with
 * the smallest hashes of id and seed, so they depend neither on the order nor on the other questions' number
 * beyond the share; both in rising order, mb_free. opt_shared: [Q]. */
mb_status mb_gate_fit_split(const mb_outputs *outputs, const uint8_t *opt_shared, double share, int64_t seed,
                            int64_t **out_train, int64_t *out_train_count, int64_t **out_validation,
                            int64_t *out_validation_count);

/* gate.h5 and results.json in the run folder. Collective; one rank works. */
mb_status mb_gate_fit_run(mb_program *program);

#endif
