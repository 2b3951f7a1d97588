/* routing_share: which experts the tokens of each type of text go to, and how far that is more than chance.
 *
 * Layer: measure.  Uses: comm, store (shard), model (lm).
 *
 * Types are those of the shard's records, its sources where it has none. What is counted are the experts a
 * token was sent to (all K picks, trash experts too), per type and layer with a router.
 *
 * The tokens of a record are alike, so records are the independent units (not tokens), and any number of
 * tokens of few records shows some relation between expert and type. What no relation gives is measured: the
 * types are permuted over the records, several times, and all is counted once more for each. Records that
 * come from one place of the data (both sides of a pair, pieces of a long text, repeats) are one unit. All
 * sums are of integers (probabilities in units of 2^-32), so they do not depend on order or ranks.
 */
#ifndef MB_ROUTING_SHARE_H
#define MB_ROUTING_SHARE_H

#include "comm/comm.h"
#include "measure/routing_information.h"
#include "measure/tile.h"

typedef struct mb_routing_share mb_routing_share;

typedef struct mb_routing_share_options {
    bool only_answers;    /* tokens of the loss mask only (the rows of those tokens themselves); all where the
                             shard has none */
    int64_t permutations; /* P, 0: no baseline */
    int64_t seed;         /* of them */
} mb_routing_share_options;

/* shard and lm are borrowed until destroy. MB_EUSAGE: the model has no router, or the tables of so many
 * permutations would not fit (4 GiB). MB_ERANGE: more than 2^31 tokens. */
mb_status mb_routing_share_create(mb_shard *shard, mb_lm *lm, const mb_routing_share_options *options,
                                  mb_routing_share **out_share);
void mb_routing_share_destroy(mb_routing_share **share);
/* The records of a tile of that shard, whose forward gave `output` with the routing of all layers. Not
 * collective. MB_ENUMERIC: a router's logits are not numbers. */
mb_status mb_routing_share_add(mb_routing_share *share, const mb_tile *tile, const mb_lm_output *output);
/* Collective, once: sums of all ranks, and what follows from them. */
mb_status mb_routing_share_finish(mb_routing_share *share, mb_comm *comm);

/* Information between expert and type, under one weighting of the types. Entry [routers] of each array is
 * that of all layers together. */
typedef struct mb_routing_share_relation {
    mb_routing_information *info; /* [routers + 1] */
    double *shuffled;             /* [P, routers + 1] mutual of each permutation */
    double *mean, *sd, *p_value;  /* [routers + 1] of those: mean, standard deviation (n - 1), and (1 +
                                      permutations at or above what was found) / (1 + P); NaN without (sd:
                                      below 2) */
} mb_routing_share_relation;

typedef struct mb_routing_share_result {
    int64_t types, routers, gates, picks; /* gates E': experts and trash experts */
    int64_t trash;                        /* the last so many gates are trash, or were declared so */
    int64_t units;                        /* what was permuted: records, those of one place together */
    bool has_types;                       /* false: sources stand for types */
    mb_routing_share_options options;
    const char *const *names;                  /* [types] */
    const int64_t *layers;                     /* [routers] number of the layer */
    const int64_t *records, *tokens;           /* [types] of which anything was counted; tokens counted */
    const int64_t *counts, *first_counts;      /* [types, routers, E'] picks; first picks */
    const double *mass;                        /* [types, routers, E'] sums of softmax probabilities of the
                                                  gate's logits, without any bias of the choice */
    const double *share, *entropy;             /* [types, routers, E'] of a type's picks in a layer (NaN where
                                                  it has none); [types, routers] of them, nats */
    mb_routing_share_relation weighted, equal; /* types as they come; types of equal weight */
} mb_routing_share_result;
/* After finish; borrowed from the share. */
const mb_routing_share_result *mb_routing_share_get(const mb_routing_share *share);

#endif
