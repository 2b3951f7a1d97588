/* fuse_layer: what a pass of a layer-level model keeps; seen by fuse_layer.c, fuse_layer_backward.c and
 * fuse_head.c only.
 *
 * Layer: model.  Uses: fuse_state, head_rows.
 *
 * Stage 0 weighs the members' embeddings, stage s = 1..L their layers s-1, stage L+1 their heads (and final
 * norms). A stage's outputs are stacked: member m's row t is row m*T + t of [M*T, D]; mixing them and its
 * gradient are the ops that combine experts (mb_ops_combine), every member being chosen by every token. Of a
 * model whose members are on several ranks a rank runs its own member alone, and has all outputs: they are
 * exchanged at every stage.
 */
#ifndef MB_FUSE_LAYER_H
#define MB_FUSE_LAYER_H

#include "model/fuse_state.h"
#include "model/head_rows.h"

typedef struct fuse_layer_stage {
    mb_tensor h;       /* [T, D] the stream it got; dims 0 at stage 0 */
    mb_tensor outputs; /* [M*T, D]; dims 0 when they are made again in the backward pass */
    mb_fuse_router_saved saved;
} fuse_layer_stage;

/* The heads' own rows: Nh of each member that is here, R members in all. */
typedef struct fuse_layer_head {
    const int32_t *weight_row; /* [R*Nh] of weights [T*M]: head_row[n] * M + m */
    mb_dispatch same;          /* row i to row i, [R*Nh] */
    mb_tensor n, rstd;         /* act [R*Nh, D] normed by each, [R*Nh] */
    mb_tensor share;           /* [R*Nh, 1] weights */
    mb_tensor scaled;          /* act [R*Nh, D] share * n: what the matrices get */
    mb_tensor d_scaled;        /* act [R*Nh, D] when its gradient was made in the forward; dims 0 otherwise */
} fuse_layer_head;

struct mb_fuse_layer_pass {
    fuse_layer_stage *stage;                       /* [L+2] */
    mb_block_saved *saved;                         /* [M*L] of member m's block l: m*L + l */
    mb_block_context context[MB_FUSE_MAX_MEMBERS]; /* the pass's, with each member's own */
    mb_tensor long_rope[MB_FUSE_MAX_MEMBERS];      /* rows of their own angles, when a segment is long */
    mb_weight views[MB_FUSE_MAX_MEMBERS];          /* of a head that has more rows than the vocabulary */
    mb_weight *heads[MB_FUSE_MAX_MEMBERS];
    mb_dispatch mix;           /* token t's member m is row m*T + t */
    mb_fuse_router_map map[2]; /* of stage 0, and of all others */
    mb_tensor work;            /* [M*T, D] outputs that are not kept */
    mb_tensor norm_rstd;       /* [M*T] of the final norms */
    fuse_layer_head head;
    float *room; /* [M*T*D] of the host's memory, where outputs are exchanged and lie on a device */
    bool trains; /* a backward pass will come */
    bool keeps;  /* for it, everything it needs; false with recompute */
};

/* Members that are here: active[first] .. active[first + count - 1]. */
void mb_fuse_layer_here(const struct mb_fuse *fuse, int64_t *out_first, int64_t *out_count);
/* Rows of member m in a stacked tensor of `rows` rows each. */
mb_tensor mb_fuse_layer_rows(const mb_tensor *stacked, int64_t m, int64_t rows);
/* The outputs of the members that are here at stage s from its input h [T, D], into [M*T, D]. gradient: what
 * their blocks keep goes to layer->saved. */
mb_status mb_fuse_layer_outputs(mb_lm_pass *pass, int64_t s, const mb_tensor *h, bool gradient,
                                mb_tensor *outputs);
/* What the router of stage s looks at: parts[P], P is returned. */
int64_t mb_fuse_layer_parts(const mb_lm_pass *pass, int64_t s, const mb_tensor *h, const mb_tensor *outputs,
                            mb_tensor *parts);

static inline const mb_fuse_router_map *mb_fuse_layer_map(const mb_lm_pass *pass, int64_t s)
{
    return &pass->fuse->layer->map[s > 0];
}

/* ---- fuse_head.c ---- */

/* Arrays of numbers the head needs, before any op is queued. */
mb_status mb_fuse_head_begin(mb_lm_pass *pass);
/* Losses, largest and logits of the head rows, from pass->x and the weights of stage L+1. */
mb_status mb_fuse_head_forward(mb_lm_pass *pass);
/* The same with members on several ranks, exchanged in chunks of rows. Collective: every rank comes here,
 * with its status so far. */
mb_status mb_fuse_head_forward_ranks(mb_lm_pass *pass, mb_status before);
/* From gradients of the row losses (NULL: the forward had them) to those of the stream, dh [T, D] +=, and of
 * the weights, dw [T, M] +=. */
mb_status mb_fuse_head_backward(mb_lm_pass *pass, const float *opt_d_token_loss, mb_tensor *dh,
                                mb_tensor *dw);

#endif
