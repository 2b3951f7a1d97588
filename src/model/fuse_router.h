/* fuse_router: the small network that weighs whole models, row by row.
 *
 * Layer: model.  Uses: params, block (arena helpers), ops.
 * Source: docs/fuse.md; SwiGLU: Shazeer (2020) "GLU variants improve transformer".
 *
 * A stage looks at P parts, [R, D_p] each. Every part gets an RMS norm with a learned weight; side by side
 * they are z [R, sum of D_p]; logits = O (silu(G z) * (U z)) + b; w = softmax of the logits over the M
 * members. All f32, in any dtype of computing. Tensors, in the order of the trained space:
 *   router.<s>.norm.<p>.weight [D_p], router.<s>.gate_proj.weight and up_proj.weight [H, sum of D_p],
 *   router.<s>.down_proj.weight [M, H], router.<s>.down_proj.bias [M].
 */
#ifndef MB_FUSE_ROUTER_H
#define MB_FUSE_ROUTER_H

#include "model/block.h"
#include "model/fuse.h"

enum { MB_FUSE_MAX_PARTS = MB_FUSE_MAX_MEMBERS + 1, MB_FUSE_ROUTER_HIDDEN = 128 };

typedef struct mb_fuse_router {
    mb_params *params; /* borrowed */
    int64_t stage, block, parts, members, hidden;
    int64_t width[MB_FUSE_MAX_PARTS]; /* D_p */
    int64_t total;                    /* their sum */
    mb_param *norm[MB_FUSE_MAX_PARTS], *gate, *up, *down, *bias;
} mb_fuse_router;

/* How R rows of the parts stand in z, the same for all stages of the same widths: as ops take them. */
typedef struct mb_fuse_router_map {
    int64_t rows, parts;
    const int32_t *place[MB_FUSE_MAX_PARTS]; /* fuse_router.c */
    const int32_t *ids; /* [R, M]: 0 .. M-1 in every row, as op route_backward wants them */
} mb_fuse_router_map;

/* What a forward gives and its backward needs, in the pass's arena. */
typedef struct mb_fuse_router_saved {
    mb_tensor rstd[MB_FUSE_MAX_PARTS]; /* [R] */
    mb_tensor gate, up;                /* [R, H]; dims 0 unless kept */
    mb_tensor logits, w;               /* [R, M] */
} mb_fuse_router_saved;

/* Fill everything but the parameters. */
void mb_fuse_router_init(mb_fuse_router *router, int64_t stage, int64_t block, int64_t parts,
                         const int64_t *width, int64_t members, int64_t hidden);
/* Its tensors into the list, before seal; pointers to them after it. */
mb_status mb_fuse_router_add(const mb_fuse_router *router, mb_params *params);
void mb_fuse_router_find(mb_fuse_router *router, mb_params *params);
/* Norms 1, G and U N(0, 0.02) by tensor name, O 0, b = ln of the weights [M] less their mean: the fixed
 * mixture at first. Weights > 0. */
mb_status mb_fuse_router_randomise(mb_fuse_router *router, uint64_t seed, const double *weight);

/* For R rows; in the pass's arenas (context->p.arena and host), before the forward. */
mb_status mb_fuse_router_map_create(const mb_fuse_router *router, const mb_block_context *context,
                                    int64_t rows, mb_fuse_router_map *out_map);

/* parts[P] of [R, D_p], f32. keep: a backward will come; the parts must stay until then. Of the context p.ops
 * and p.arena are used. */
mb_status mb_fuse_router_forward(mb_fuse_router *router, const mb_block_context *context,
                                 const mb_fuse_router_map *map, const mb_tensor *parts, bool keep,
                                 mb_fuse_router_saved *saved);
/* From gradients of w [R, M] and of the logits [R, M] (either or both): adds into the bound gradients of what
 * trains, and into opt_d_parts[p] [R, D_p] where that is not NULL. */
mb_status mb_fuse_router_backward(mb_fuse_router *router, const mb_block_context *context,
                                  const mb_fuse_router_map *map, const mb_tensor *parts,
                                  const mb_fuse_router_saved *saved, const mb_tensor *opt_d_w,
                                  const mb_tensor *opt_d_logits, mb_tensor *const *opt_d_parts);

#endif
