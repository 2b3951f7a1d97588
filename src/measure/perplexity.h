/* perplexity: mean token loss of a shard, over all, per source and per type, rank-independent.
 *
 * Layer: measure.  Uses: comm, store, model.
 */
#ifndef MB_PERPLEXITY_H
#define MB_PERPLEXITY_H

#include "comm/comm.h"
#include "measure/preference.h"
#include "measure/routing_share.h"
#include "model/lm.h"
#include "store/shard.h"

typedef struct mb_perplexity_row {
    const char *source, *type; /* one or none (all) is set; borrowed from the shard */
    int64_t records, tokens, bytes;
    double nll; /* sum over target tokens */
    double token_perplexity, byte_perplexity, bits_per_byte;
} mb_perplexity_row;

typedef struct mb_perplexity_options {
    int64_t max_length;            /* longer records are cut; 0: the model's positions */
    int64_t tile_tokens;           /* computed together */
    bool only_masked;              /* targets of the loss mask only */
    mb_routing_share *opt_routing; /* gets the routing of all records, from the same forwards */
    mb_preference *opt_preference; /* gets the log-probabilities of all records; pair shards only */
} mb_perplexity_options;

/* Rows of a shard: all, then one per source, then one per type. */
int64_t mb_perplexity_rows(const mb_shard *shard);

/* Targets are a record's tokens 2..n (of its first max_length tokens). Where a record is not predicted
 * whole, the share of its bytes that its targets are of its tokens is counted. Perplexities without
 * targets are NaN. MB_ENUMERIC: the loss is NaN or infinite. opt_routing and opt_preference are added to
 * and not finished. Collective; the same bits for any number of ranks. */
mb_status mb_perplexity_run(mb_comm *comm, mb_lm *lm, mb_shard *shard, const mb_perplexity_options *options,
                            mb_perplexity_row *rows);

#endif
