/* fuse_layer_plan: bytes a pass of a layer-level model takes, for one of its rows, counted along
 * fuse_layer.c, fuse_head.c, fuse_router.c and fuse_layer_backward.c. Left out: the rounding of each array to
 * whole lines, and logits that are asked for.
 *
 * 1. heads and routers
 * 2. the members' blocks
 * 3. the whole
 */
#include "model/fuse_state.h"

typedef struct plan_row { /* bytes of a row: kept by the pass; the most of temporaries at one time */
    int64_t kept, most;
} plan_row;

typedef struct plan_how {
    int64_t d, act, here;   /* width, bytes of an act number, members that are here */
    bool trains, recompute; /* a backward pass comes; it makes the blocks again */
} plan_how;

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- 1. heads and routers ---- */

static void plan_head(const plan_how *how, plan_row *row)
{
    const bool is_f32 = how->act == 4;
    const int64_t narrow = how->here * how->d * how->act, wide = how->here * how->d * 4;
    const int64_t forward = 4 * how->d + narrow + 8 * how->here + wide + (is_f32 ? 0 : narrow);
    const int64_t backward = (is_f32 ? 0 : wide) + narrow + 4 * how->here + 4 * how->d;
    row->kept += 8 + 8 * how->here; /* loss and largest, numbers */
    if (!how->trains) {
        row->most = larger(row->most, forward);
        return;
    }
    row->kept += forward + narrow; /* with the gradient of the weighted rows, made in the forward */
    row->most = larger(row->most, 4 * how->d + wide + 4 * how->here + backward);
}

/* What a forward keeps, and what it needs meanwhile; of the backward the latter alone. */
static int64_t router_kept(const mb_fuse_router *router, bool keeps)
{
    return 8 * router->members + 4 * router->parts + (keeps ? 8 * router->hidden : 0);
}

static int64_t router_forward(const mb_fuse_router *router, bool keeps)
{
    const int64_t normed = 4 * router->width[0], u = 4 * router->hidden + 8 * router->members;
    return (keeps ? 0 : 8 * router->hidden) + 4 * router->total + larger(normed, u);
}

static int64_t router_backward(const mb_fuse_router *router)
{
    const int64_t network = 16 * router->hidden + 4 * router->total + 4 * router->width[0];
    return 8 * router->members + 4 * router->total + network;
}

static void plan_routers(const struct mb_fuse *fuse, const plan_how *how, plan_row *row)
{
    const int64_t outputs = 4 * fuse->count * how->d;
    for (int64_t s = 0; s < fuse->stages; s++) {
        const mb_fuse_router *router = &fuse->router[s];
        const bool keeps = how->trains && !how->recompute;
        row->kept += router_kept(router, keeps) + (keeps ? outputs : 0);
        if (how->trains && s > 1)
            row->kept += 4 * how->d; /* the stream into it; stage 1 has the pass's own */
        row->most = larger(row->most, router_forward(router, keeps));
    }
}

/* ---- 2. the members' blocks ---- */

/* Layer `index` of all members, and the backward of the stage it is in. */
static void plan_layer(const struct mb_fuse *fuse, const plan_how *how, int64_t index, plan_row *row)
{
    const mb_fuse_router *router = &fuse->router[index + 1];
    const int64_t stage = 4 * how->d + 4 * fuse->count * how->d + 8 * fuse->count;
    int64_t kept = 0, forward = 0, backward = router_backward(router);
    for (int64_t m = 0; m < fuse->count; m++) {
        if (fuse->member[m].lm == NULL) continue;
        const mb_lm_plan_block one = mb_lm_plan_block_get(fuse->member[m].lm, index, how->trains);
        kept += one.always + one.kept;
        forward = larger(forward, one.forward + (how->trains ? 0 : one.always));
        backward = larger(backward, one.backward);
    }
    if (how->trains && how->recompute) {
        const int64_t again = router_kept(router, true);
        const int64_t now = larger(forward, router_forward(router, true));
        row->most = larger(row->most, 4 * how->d + kept + again + larger(now, stage + backward));
    } else {
        row->kept += how->trains ? kept : 0;
        row->most = larger(row->most, larger(forward, how->trains ? stage + backward : 0));
    }
}

/* ---- 3. the whole ---- */

void mb_fuse_layer_plan(const mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *plan)
{
    const struct mb_fuse *fuse = lm->fuse;
    int64_t here = 0;
    for (int64_t m = 0; m < fuse->count; m++) here += fuse->member[m].lm != NULL;
    const plan_how how = {.d = lm->arch.width,
                          .act = (int64_t)mb_dtype_bytes(lm->dtype),
                          .here = here,
                          .trains = options->gradient && fuse->trains,
                          .recompute = options->recompute};
    plan_row row = {.kept = 8 * how.d + (how.act == 4 ? 0 : how.act * how.d) + 4 * fuse->count};
    if (!how.trains || how.recompute) row.kept += 4 * fuse->count * how.d; /* outputs that are not kept */
    const bool on_device = lm->ops != NULL && mb_ops_is_device(lm->ops);
    if (on_device) row.kept += 4 * (5 * fuse->count + 1); /* places of rows */
    plan_routers(fuse, &how, &row);
    for (int64_t l = 0; l < lm->arch.layers; l++) plan_layer(fuse, &how, l, &row);
    if (options->has_head) plan_head(&how, &row);
    plan->activations = (size_t)(row.kept * options->tokens);
    plan->scratch = (size_t)(row.most * options->tokens);
}
