/* eval_preference: what moe-eval says of a pair shard: which answers the model prefers.
 *
 * Layer: stage.  Uses: measure (preference), learn (reference), store.
 */
#ifndef MB_EVAL_PREFERENCE_H
#define MB_EVAL_PREFERENCE_H

#include "measure/preference.h"
#include "stage/program.h"

/* NULL where the shard has no pairs (MB_EUSAGE where eval.reference was given nonetheless). */
mb_status mb_eval_preference_open(const mb_program *program, const mb_shard *shard,
                                  mb_preference **out_preference);
/* After the forwards: the log, members "preference" and "preference_by_type" of results, /preference/...
 * and /preference_by_type/... of the file (rank 0; NULL elsewhere), figures of the record. With
 * eval.reference also the rewards. Does nothing without a preference. Collective. */
mb_status mb_eval_preference_finish(mb_program *program, mb_shard *shard, mb_preference *opt_preference,
                                    json_t *results, mb_h5 *opt_file);

#endif
