/* fuse_plan: bytes a fused model and one of its passes will take: those of the members, and of the mixing.
 *
 * 1. routers and mixing   2. an open model   3. a model that is not open
 */
#include "model/fuse_state.h"

/* ---- 1. routers and mixing ---- */

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

/* ---- 2. an open model ---- */

/* Every member's pass keeps the room of its own temporaries. */
static void add_member(const mb_lm_plan *one, mb_lm_plan *plan)
{
    plan->weights += one->weights;
    plan->slots += one->slots;
    plan->packed += one->packed;
    plan->activations += one->activations;
    plan->scratch += one->scratch;
}

/* Behind the members' plans. */
static void add_mixing(mb_lm *lm, const mb_lm_plan_options *options, mb_lm_plan *plan)
{
    for (int64_t i = 0; i < mb_params_count(lm->params); i++) {
        const mb_param *param = mb_params_at(lm->params, i);
        *(param->trained ? &plan->trained : &plan->weights) += mb_params_bytes(param);
    }
    plan->gradients = options->gradient ? plan->trained : 0;
    if (lm->fuse->kind == MB_FUSE_LAYER)
        mb_fuse_layer_plan(lm, options, plan);
    else
        plan_mixing(lm->fuse, options, plan);
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
        add_member(&one, &plan);
    }
    add_mixing(lm, options, &plan);
    *out_plan = plan;
done:
    return status;
}

/* ---- 3. a model that is not open ---- */

/* Tensors without values, and the blocks that name them: all that a plan looks at. */
static mb_status make_member(fuse_member *member, const mb_lora_options *opt_adapter,
                             const mb_lm_plan_options *o)
{
    mb_status status = MB_OK;
    mb_lm *lm;
    MB_NEW(member->lm);
    lm = member->lm;
    lm->dtype = o->dtype;
    lm->input_gradient = o->input_gradient;
    MB_TRY(mb_arch_copy(&member->arch, &lm->arch));
    MB_TRY(mb_params_create(&lm->arch, NULL, &lm->params));
    if (opt_adapter != NULL) MB_TRY(mb_lora_attach(&lm->lora, opt_adapter, &lm->arch, lm->params));
    MB_TRY(mb_params_choose(lm->params, "none"));
    MB_NEW_ARRAY(lm->blocks, lm->arch.layers);
    for (int64_t i = 0; i < lm->arch.layers; i++)
        MB_TRY(mb_block_find(&lm->blocks[i], &lm->arch, lm->params, i, lm->input_gradient));
done:
    return status;
}

static mb_status make_model(const mb_fuse_shape *shape, const mb_lm_plan_options *o, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    struct mb_fuse *fuse;
    mb_lm *lm = NULL;
    MB_NEW(lm);
    MB_NEW(lm->fuse);
    fuse = lm->fuse;
    *out_lm = lm;
    fuse->kind = shape->kind;
    fuse->trains = shape->train;
    fuse->hidden = shape->router_hidden > 0 ? shape->router_hidden : MB_FUSE_ROUTER_HIDDEN;
    lm->dtype = o->dtype;
    for (int64_t m = 0; m < shape->count; m++) {
        fuse_member *member = &fuse->member[fuse->count++];
        member->name = mb_strdup(shape->name[m]);
        member->path = mb_strdup(shape->name[m]);
        if (member->name == NULL || member->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
        MB_TRY(mb_arch_copy(shape->arch[m], &member->arch));
    }
    MB_TRY(mb_arch_copy(shape->arch[0], &lm->arch));
    MB_TRY(mb_fuse_make_routers(fuse));
    MB_TRY(mb_params_create_empty(lm->arch.layers, NULL, &lm->params));
    for (int64_t s = 0; s < fuse->stages; s++) MB_TRY(mb_fuse_router_add(&fuse->router[s], lm->params));
    MB_TRY(mb_params_choose(lm->params, fuse->trains && fuse->stages > 0 ? "all" : "none"));
done:
    return status;
}

/* With member `only` alone on this rank (-1: all of them). */
static mb_status plan_shape(const mb_fuse_shape *shape, const mb_lm_plan_options *o, int64_t only,
                            mb_lm_plan *plan)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    mb_lm_plan one;
    mb_lm_plan_options own = *o;
    *plan = (mb_lm_plan){0};
    own.input_gradient = shape->train && shape->kind == MB_FUSE_LAYER;
    MB_TRY(make_model(shape, &own, &lm));
    for (int64_t m = 0; m < shape->count; m++) {
        if (only >= 0 && m != only) continue;
        MB_TRY(make_member(&lm->fuse->member[m], shape->opt_adapter[m], &own));
        own.gradient = false;
        MB_TRY(mb_lm_plan_get(shape->arch[m], "none", shape->opt_adapter[m], &own, &one));
        own.gradient = o->gradient;
        add_member(&one, plan);
    }
    add_mixing(lm, o, plan);
done:
    mb_lm_destroy(&lm);
    return status;
}

static size_t sum_of(const mb_lm_plan *plan)
{
    return plan->weights + plan->slots + plan->trained + plan->gradients + plan->activations + plan->scratch;
}

static mb_status count_routers(const mb_fuse_shape *shape, const mb_lm_plan_options *o, mb_fuse_plan *plan)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    mb_fuse_shape trained = *shape;
    trained.train = true;
    MB_TRY(make_model(&trained, o, &lm));
    plan->tensors = mb_params_count(lm->params);
    for (int64_t i = 0; i < plan->tensors; i++)
        plan->router += mb_tensor_count(&mb_params_at(lm->params, i)->value);
    for (int64_t b = MB_PARAMS_EMBEDDING; b <= lm->arch.layers; b++) {
        int64_t first, n = mb_params_block_trained(lm->params, b, &first);
        if (n > plan->most_of_block) plan->most_of_block = n;
    }
done:
    mb_lm_destroy(&lm);
    return status;
}

mb_status mb_fuse_plan_get(const mb_fuse_shape *shape, const mb_lm_plan_options *options,
                           mb_fuse_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_fuse_plan plan = {0};
    mb_lm_plan one;
    MB_TRY(count_routers(shape, options, &plan));
    if (!shape->is_spread) MB_TRY(plan_shape(shape, options, -1, &plan.bytes));
    for (int64_t m = 0; shape->is_spread && m < shape->count; m++) {
        MB_TRY(plan_shape(shape, options, m, &one));
        if (sum_of(&one) > sum_of(&plan.bytes)) plan.bytes = one;
    }
    *out_plan = plan;
done:
    return status;
}
