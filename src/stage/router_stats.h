/* router_stats: what share each member of a fused model had in the answers of a generator, by the weights its
 * routers gave in the very forwards that generated.
 *
 * Layer: stage.  Uses: serve (generate, stream), model (fuse).
 *
 * A token belongs to the row that foretold it, the one before: the rows of positions 0 .. n-2 of a prompt of
 * n tokens are its share (none when n = 1), row n-1 and those of the answer but for its last token are the
 * answer's, as many as it has tokens. Row n-1 counts for every sample of the prompt. S stages (a token level
 * router has one; a layer level one the embeddings, every layer and the heads), M members.
 */
#ifndef MB_ROUTER_STATS_H
#define MB_ROUTER_STATS_H

#include "model/fuse.h"
#include "serve/generate.h"

typedef struct mb_router_shape {
    int64_t stages, members;
    const char *members_name[MB_FUSE_MAX_MEMBERS]; /* borrowed from the model */
    bool by_layer;                                 /* the stages are embeddings, layers, heads */
    bool has_tokens;                               /* every token's weights are kept too */
} mb_router_shape;
/* MB_EUSAGE: a model without a router between members. */
mb_status mb_router_shape_get(const mb_lm *lm, bool has_tokens, mb_router_shape *out_shape);
/* "embedding", "layer 0", ..., "head", or "token"; text holds it. */
const char *mb_router_shape_stage(const mb_router_shape *shape, int64_t stage, char text[32]);

/* One answer. Start zeroed. */
typedef struct mb_router_query {
    int64_t record, sample;
    int64_t prompt_rows, answer_rows;
    double *prompt, *answer; /* [S, M] mean weights, NaN where there are no rows */
    /* With has_tokens, of prompt and answer: */
    int64_t tokens;
    uint32_t *ids; /* [tokens] */
    float *share;  /* [tokens, S, M] of the row that foretold it, NaN for the first */
    int64_t *end;  /* [tokens] bytes of text up to its end: a character belongs to its last token */
    mb_str text;
} mb_router_query;
void mb_router_query_reset(mb_router_query *query);
/* Mean over the stages of one of its two arrays. */
void mb_router_query_mean(const mb_router_shape *shape, const double *part, double *out_share);

typedef struct mb_router_stats mb_router_stats;

/* opt_tokenizer: for the tokens' texts; borrowed. samples: of each prompt. */
mb_status mb_router_stats_create(const mb_router_shape *shape, const mb_tokenizer *opt_tokenizer,
                                 int64_t samples, mb_router_stats **out_stats);
void mb_router_stats_destroy(mb_router_stats **stats);
const mb_router_shape *mb_router_stats_shape(const mb_router_stats *stats);
/* For a source's `route`. Memory: per open record S M numbers, with has_tokens those of each row. */
mb_status mb_router_stats_route(mb_router_stats *stats, const mb_generate_routing *routing);
/* For a source's `take`: what belongs to this answer; the caller's to reset. */
mb_status mb_router_stats_take(mb_router_stats *stats, const mb_generate_answer *answer,
                               mb_router_query *out_query);

/* A table of one answer's shares in the log; per token too where there are such. */
mb_status mb_router_query_log(const mb_router_shape *shape, const mb_router_query *query);

#endif
