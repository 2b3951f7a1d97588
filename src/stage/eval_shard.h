/* eval_shard: what moe-eval measures on a token shard: perplexity, of pairs the preference, and with
 * eval.routing the routing.
 *
 * Layer: stage.  Uses: measure (perplexity, routing_share), eval_preference, store.
 */
#ifndef MB_EVAL_SHARD_H
#define MB_EVAL_SHARD_H

#include "stage/program.h"
#include "stage/program_options.h"

/* One pass over dataset.path. Members "perplexity", "perplexity_by_type" (a shard with types), those of pairs
 * (eval_preference.h) and "routing" of `results`; /perplexity/... and /perplexity_by_type/... of the file
 * (rank 0; NULL elsewhere); routing.h5 in the run folder. Collective. */
mb_status mb_eval_shard_run(mb_program *program, mb_lm *lm, json_t *results, mb_h5 *opt_file);

#endif
