/* perplexity: mean token loss of a shard, over all and per source, rank-independent.
 *
 * Layer: measure.  Uses: comm, store, model.
 */
#ifndef MB_PERPLEXITY_H
#define MB_PERPLEXITY_H

#include "comm/comm.h"
#include "model/lm.h"
#include "store/shard.h"

typedef struct mb_perplexity_row {
    const char *source; /* NULL: all; borrowed from the shard */
    int64_t records, tokens, bytes;
    double nll; /* sum over target tokens */
    double token_perplexity, byte_perplexity, bits_per_byte;
} mb_perplexity_row;

/* rows[0] is all, then one per source: rows has mb_shard_sources + 1 entries. Targets are a record's
 * tokens 2..n (the first max_length tokens; 0: the model's positions); only_masked: those of the loss mask
 * only. Where a record is not predicted whole, the share of its bytes that its targets are of its tokens is
 * counted. Perplexities without targets are NaN. MB_ENUMERIC: the loss is NaN or infinite. Collective; the
 * same bits for any number of ranks. */
mb_status mb_perplexity_run(mb_comm *comm, mb_lm *lm, mb_shard *shard, int64_t max_length,
                            int64_t tile_tokens, bool only_masked, mb_perplexity_row *rows);

#endif
