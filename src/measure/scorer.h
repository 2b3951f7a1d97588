/* scorer: the scoring pass: every record of a shard through a model, in fixed tiles, into a score table.
 *
 * Layer: measure.  Uses: comm, store (shard, scores), model (lm).
 *
 * Tiles (runs of consecutive records, cut by tokens) and parts (runs of tiles, a file each) are formed by the
 * data before anybody asks how many ranks there are; ranks take parts from a shared queue.
 *
 * Scores of a record, over all its tokens up to max_length (bytes_per_token, length, repeats: of the whole
 * record):
 * - good_mass: softmax mass of the good experts over all gates (logits without the trash bias), mean over
 *   tokens and layers; higher is better
 * - good_logits: sum of the good experts' raw logits, mean over tokens, summed over layers (the stored layers
 *   are not summed); higher
 * - perplexity: of the source model, exp of the mean loss of tokens 2..n; lower; NaN for a record of one
 * token
 * - entropy: of the source model's router softmax in nats, mean over tokens and layers; lower
 * - bytes_per_token: bytes of the text per token; higher
 * - length: tokens; higher
 * - repeats: share of tokens in runs of 8 that stood earlier in the record (scorer_record.h); lower
 * - random: uniform by (seed, record_hash)
 * - logprob: sum of ln p over the record's targets, tokens 2..n of the loss mask (all of them where the shard
 *   has none); comes with targets, their number; 0 where there are none. By the source model, which is
 *   model.path with its adapter then: the reference of preference training (learn/reference.h)
 * - mean_logprob: the same per target; NaN where there are none
 * - targets: needs no model
 *
 * flops_per_token is the forward cost of getting that score alone: all blocks and the head for perplexity and
 * log-probabilities (as if every token were a target);
 * for router scores the blocks up to the last asked layer, whose experts are not computed. NaN scores (no
 * tokens) stay NaN: they are never selected.
 */
#ifndef MB_SCORER_H
#define MB_SCORER_H

#include "base/option.h"
#include "comm/comm.h"
#include "model/lm.h"
#include "store/scores.h"
#include "store/share.h"

typedef struct mb_scorer_options {
    char *scores;        /* score.scores: list of the names above, by default all before logprob */
    char *score_layers;  /* score.score_layers: "all", or list of MoE layer numbers from 0 (negative from the
                            end), "0,1,-1" */
    int64_t tile_tokens; /* score.tile_tokens 8192 */
    int64_t max_length;  /* dataset.max_length 0 */
    int64_t seed;        /* score.seed 42 (random score) */
} mb_scorer_options;
const mb_option *mb_scorer_option_table(int64_t *out_count);

/* What the asked scores need. */
typedef struct mb_scorer_needs {
    bool router, source; /* the model with trash experts; the source model */
    bool policy;         /* log-probabilities: the source model is model.path with its adapter */
    bool plain;          /* perplexity, entropy: it has no adapter */
    bool head;           /* of the source model */
    bool seed;           /* score.seed */
    int64_t columns;     /* of the table, */
    int64_t layered;     /* by layer too (score.score_layers) */
} mb_scorer_needs;
/* scores: a list as score.scores. MB_EUSAGE: there is no such score, or none is named. */
mb_status mb_scorer_needs_get(const char *scores, mb_scorer_needs *out_needs);

typedef struct mb_scorer_report {
    int64_t records, tokens, parts, skipped_parts;
    double seconds;
    int64_t activation_bytes; /* the most the passes of a rank held */
    json_t *part_names; /* of a share: its part files, relative to the folder of the result (json_decref);
                                 else, and on ranks but 0, NULL */
} mb_scorer_report;

/* Passes per model that are open at a time: on a device the next tile is queued before the host works on
 * what came of the last. */
int mb_scorer_passes(const mb_ops *ops);

/* router_lm gives good_mass, good_logits (NULL when none is asked for); source_lm, the unconverted model,
 * gives perplexity, log-probabilities and entropy of its routers (NULL likewise). Collective. A record's
 * score does not depend on its tile-mates (bitwise where the backend is row-stable). Restart does only
 * missing parts. MB_ESTOPPED when the stop flag is set: finished parts stay. MB_EUSAGE: an unknown score
 * or layer, or a model that does not give what is asked. A share of the work (not the whole) makes its
 * parts and does not join them. report: records and tokens of all ranks' work, those of skipped parts
 * included. The parts stay (mb_scores_parts_remove). */
mb_status mb_scorer_run(mb_comm *comm, mb_lm *opt_router_lm, mb_lm *opt_source_lm, mb_shard *shard,
                        const mb_scorer_options *options, mb_share share, const char *out_path,
                        mb_scorer_report *out_report);

#endif
