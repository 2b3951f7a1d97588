/* fuse_plan: bytes a fused model and one of its passes will take: those of the members, and of the mixing.
 */
#include "model/fuse_state.h"

/* Bytes of a row of one stage's router: logits, weights and ids, rstd, and with a gradient gate and up;
 * *most: its largest temporary. */
static int64_t plan_router(const mb_fuse_router *router, bool gradient, int64_t *most)
{
    const int64_t h = router->hidden, total = router->total,
                  inner = 4 * h * (gradient ? 5 : 3) + 4 * total * (gradient ? 3 : 2);
    if (inner > *most) *most = inner;
    return 8 * router->members + 4 * router->parts + (gradient ? 8 * h : 0);
}

/* Rows of the arena beside the members' passes. */
static void plan_mixing(const struct mb_fuse *fuse, const mb_lm_plan_options *o, mb_lm_plan *plan)
{
    const bool gradient = o->gradient && fuse->trains;
    int64_t kept = 0, most = 0;
    for (int64_t s = 0; s < fuse->stages; s++) {
        const mb_fuse_router *router = &fuse->router[s];
        kept += plan_router(router, gradient, &most);
    }
    if (fuse->stages > 0) kept += 4 * (fuse->router[0].members + fuse->router[fuse->stages - 1].parts);
    if (fuse->kind == MB_FUSE_TOKEN)
        for (int64_t m = 0; m < fuse->count; m++) kept += 4 * fuse->member[m].arch.width + 4;
    plan->activations += (size_t)(kept * o->tokens);
    plan->scratch += (size_t)(most * o->tokens);
}

mb_status mb_fuse_plan_open(mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *out_plan)
{
    mb_status status = MB_OK;
    const struct mb_fuse *fuse = lm->fuse;
    mb_lm_plan plan = {0}, one;
    mb_lm_plan_options o = *options;
    o.gradient = false;
    for (int64_t m = 0; m < fuse->count; m++) {
        if (fuse->member[m].lm == NULL) continue;
        MB_TRY(mb_lm_plan_open(fuse->member[m].lm, &o, &one));
        plan.weights += one.weights;
        plan.slots += one.slots;
        plan.packed += one.packed;
        plan.activations += one.activations;
        if (one.scratch > plan.scratch) plan.scratch = one.scratch;
    }
    for (int64_t i = 0; i < mb_params_count(lm->params); i++) {
        const mb_param *param = mb_params_at(lm->params, i);
        *(param->trained ? &plan.trained : &plan.weights) += mb_params_bytes(lm->params, param);
    }
    plan.gradients = options->gradient ? plan.trained : 0;
    if (fuse->kind == MB_FUSE_LAYER)
        mb_fuse_layer_plan(lm, options, &plan);
    else
        plan_mixing(fuse, options, &plan);
    *out_plan = plan;
done:
    return status;
}
