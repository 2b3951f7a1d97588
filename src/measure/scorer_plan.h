/* scorer_plan: what a scoring pass has to do, from the options and the data alone. Private to scorer*.c.
 *
 * Layer: measure.  Uses: tile, store (scores).
 */
#ifndef MB_SCORER_PLAN_H
#define MB_SCORER_PLAN_H

#include "measure/scorer.h"
#include "measure/tile.h"

typedef enum mb_scorer_kind {
    MB_SCORER_GOOD_MASS,
    MB_SCORER_GOOD_LOGITS,
    MB_SCORER_PERPLEXITY,
    MB_SCORER_ENTROPY,
    MB_SCORER_BYTES_PER_TOKEN,
    MB_SCORER_LENGTH,
    MB_SCORER_REPEATS,
    MB_SCORER_RANDOM,
    MB_SCORER_LOGPROB,
    MB_SCORER_MEAN_LOGPROB,
    MB_SCORER_TARGETS,
    MB_SCORER_KINDS
} mb_scorer_kind;

typedef struct mb_scorer_plan {
    mb_scorer_kind kinds[MB_SCORER_KINDS]; /* of the columns */
    mb_scores_column columns[MB_SCORER_KINDS];
    int64_t column_count;
    bool wants[MB_SCORER_KINDS];
    int64_t
        *layers; /* [layer_count] rising numbers of routers that count; 0 of them when no score has layers */
    int64_t layer_count;
    int64_t routers;    /* forward passes for routers alone stop after so many */
    int64_t limit;      /* tokens of a record */
    mb_tile_plan tiles; /* its windows are the parts */
} mb_scorer_plan;

/* MB_EUSAGE: an unknown score, a layer there is not, or a score whose model is missing or unfit. */
mb_status mb_scorer_plan_create(const mb_scorer_options *options, const mb_shard *shard,
                                const mb_lm *opt_router_lm, const mb_lm *opt_source_lm,
                                mb_scorer_plan *out_plan);
void mb_scorer_plan_reset(mb_scorer_plan *plan);

/* Rows of the source model's passes that get a loss. */
mb_tile_targets mb_scorer_plan_targets(const mb_scorer_plan *plan);

/* Options as they count, for the file's attribute "options" and for the key. New object. */
mb_status mb_scorer_plan_json(const mb_scorer_plan *plan, const mb_scorer_options *options,
                              json_t **out_json);

#endif
