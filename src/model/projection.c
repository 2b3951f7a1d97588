/* projection: linear maps with adapters.
 *
 * 1. finding the parameters
 * 2. one projection
 * 3. a group of experts
 */
#include "model/projection.h"

#include <assert.h>
#include <stdio.h>

/* ---- 1. finding the parameters ---- */

static mb_param *projection_param(mb_params *params, const char *prefix, const char *suffix)
{
    char name[200];
    snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    return mb_params_find(params, name);
}

void mb_projection_find(mb_projection *projection, mb_params *params, const char *prefix, uint32_t sub)
{
    projection->weight = projection_param(params, prefix, "weight");
    projection->bias = projection_param(params, prefix, "bias");
    projection->lora_a = projection_param(params, prefix, "lora_A.weight");
    projection->lora_b = projection_param(params, prefix, "lora_B.weight");
    projection->lora_scale = projection->lora_b != NULL ? projection->lora_b->lora_scale : 0;
    projection->sub = sub;
    assert(projection->weight != NULL);
}

static mb_status group_allocate(mb_projection_group *group, int64_t count, bool has_lora)
{
    mb_status status = MB_OK;
    group->count = count;
    MB_NEW_ARRAY(group->weight, count);
    MB_NEW_ARRAY(group->weights, count);
    MB_NEW_ARRAY(group->gradients, count);
    if (!has_lora) goto done;
    MB_NEW_ARRAY(group->lora_a, count);
    MB_NEW_ARRAY(group->lora_b, count);
    MB_NEW_ARRAY(group->weights_a, count);
    MB_NEW_ARRAY(group->weights_b, count);
done:
    return status;
}

mb_status mb_projection_group_find(mb_projection_group *group, mb_params *params, const char *prefix,
                                   const char *name, int64_t count, uint32_t sub)
{
    mb_status status = MB_OK;
    char text[160];
    group->sub = sub;
    for (int64_t e = 0; e < count; e++) {
        mb_projection one = {0};
        snprintf(text, sizeof text, "%s.%lld.%s", prefix, (long long)e, name);
        mb_projection_find(&one, params, text, sub);
        if (e == 0) MB_TRY(group_allocate(group, count, one.lora_a != NULL));
        group->weight[e] = one.weight;
        group->weights[e] = &one.weight->weight;
        group->is_weight_trained |= one.weight->trained;
        if (group->lora_a == NULL) continue;
        assert(one.lora_a != NULL && one.lora_b != NULL);
        group->lora_a[e] = one.lora_a;
        group->lora_b[e] = one.lora_b;
        group->weights_a[e] = &one.lora_a->weight;
        group->weights_b[e] = &one.lora_b->weight;
        group->is_lora_trained |= one.lora_a->trained;
        group->rank = one.lora_a->value.shape[0];
        group->lora_scale = one.lora_scale;
    }
done:
    return status;
}

void mb_projection_group_reset(mb_projection_group *group)
{
    mb_free(group->weight);
    mb_free(group->weights);
    mb_free(group->gradients);
    mb_free(group->lora_a);
    mb_free(group->lora_b);
    mb_free(group->weights_a);
    mb_free(group->weights_b);
    *group = (mb_projection_group){0};
}

bool mb_projection_is_trained(const mb_projection *projection)
{
    return projection->weight->trained || (projection->bias != NULL && projection->bias->trained) ||
           (projection->lora_a != NULL && projection->lora_a->trained);
}

bool mb_projection_group_is_trained(const mb_projection_group *group)
{
    return group->is_weight_trained || group->is_lora_trained;
}

static mb_status projection_new(const mb_projection_context *context, mb_dtype dtype, int64_t n0, int64_t n1,
                                mb_tensor *out)
{
    mb_status status = MB_OK;
    char *data;
    MB_ARENA_ARRAY(context->arena, data, n0 * n1 * (int64_t)mb_dtype_bytes(dtype));
    *out = mb_tensor_view2(dtype, data, n0, n1);
done:
    return status;
}

/* out: x with elements dropped, or x itself without dropout. */
static mb_status projection_dropped(const mb_projection_context *context, uint32_t sub, const mb_tensor *x,
                                    mb_tensor *out)
{
    mb_status status = MB_OK;
    *out = *x;
    if (context->dropout <= 0 || context->row_index == NULL) goto done;
    MB_TRY(projection_new(context, x->dtype, x->shape[0], x->shape[1], out));
    MB_TRY(mb_ops_dropout(context->ops, x, context->dropout, context->seed, sub, context->row_index, out));
done:
    return status;
}

/* Gradient of the dropped rows back onto the rows. In place. */
static mb_status projection_undrop(const mb_projection_context *context, uint32_t sub, mb_tensor *dx)
{
    if (context->dropout <= 0 || context->row_index == NULL) return MB_OK;
    return mb_ops_dropout(context->ops, dx, context->dropout, context->seed, sub, context->row_index, dx);
}

/* ---- 2. one projection ---- */

/* h = scale * A dropout(x) */
static mb_status projection_inner(const mb_projection_context *context, mb_projection *p, const mb_tensor *x,
                                  mb_tensor *dropped, mb_tensor *h)
{
    mb_status status = MB_OK;
    MB_TRY(projection_dropped(context, p->sub, x, dropped));
    MB_TRY(projection_new(context, x->dtype, x->shape[0], p->lora_a->value.shape[0], h));
    MB_TRY(mb_ops_linear(context->ops, dropped, &p->lora_a->weight, NULL, false, h));
    MB_TRY(mb_ops_scale(context->ops, p->lora_scale, h));
done:
    return status;
}

mb_status mb_projection_forward(const mb_projection_context *context, mb_projection *projection,
                                const mb_tensor *x, bool accumulate, mb_tensor *y)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(context->arena);
    const mb_tensor *bias = projection->bias != NULL ? &projection->bias->value : NULL;
    if (context->opt_tap != NULL) MB_TRY(context->opt_tap->one(context->opt_tap->context, projection, x));
    MB_TRY(mb_ops_linear(context->ops, x, &projection->weight->weight, bias, accumulate, y));
    if (projection->lora_a != NULL && !context->no_adapter) {
        mb_tensor dropped, h;
        MB_TRY(projection_inner(context, projection, x, &dropped, &h));
        MB_TRY(mb_ops_linear(context->ops, &h, &projection->lora_b->weight, NULL, true, y));
    }
done:
    mb_arena_release(context->arena, mark);
    return status;
}

static mb_status projection_backward_lora(const mb_projection_context *context, mb_projection *p,
                                          const mb_tensor *dy, const mb_tensor *opt_x, mb_tensor *opt_dx)
{
    mb_status status = MB_OK;
    mb_tensor dropped, h, dh, part;
    const bool trained = p->lora_a->trained;
    if (!trained && opt_dx == NULL) goto done;
    MB_TRY(projection_new(context, dy->dtype, dy->shape[0], p->lora_a->value.shape[0], &dh));
    MB_TRY(mb_ops_linear_dx(context->ops, dy, &p->lora_b->weight, false, &dh));
    MB_TRY(mb_ops_scale(context->ops, p->lora_scale, &dh));
    if (trained) {
        assert(opt_x != NULL);
        MB_TRY(projection_inner(context, p, opt_x, &dropped, &h));
        MB_TRY(mb_ops_linear_dw(context->ops, dy, &h, &p->lora_b->gradient, NULL));
        MB_TRY(mb_ops_linear_dw(context->ops, &dh, &dropped, &p->lora_a->gradient, NULL));
    }
    if (opt_dx == NULL) goto done;
    MB_TRY(projection_new(context, opt_dx->dtype, opt_dx->shape[0], opt_dx->shape[1], &part));
    MB_TRY(mb_ops_linear_dx(context->ops, &dh, &p->lora_a->weight, false, &part));
    MB_TRY(projection_undrop(context, p->sub, &part));
    MB_TRY(mb_ops_axpy(context->ops, 1, &part, opt_dx));
done:
    return status;
}

mb_status mb_projection_backward(const mb_projection_context *context, mb_projection *projection,
                                 const mb_tensor *dy, const mb_tensor *opt_x, bool accumulate,
                                 mb_tensor *opt_dx)
{
    mb_status status = MB_OK;
    mb_projection *p = projection;
    const mb_arena_mark mark = mb_arena_mark_get(context->arena);
    const bool bias_trained = p->bias != NULL && p->bias->trained;
    if (opt_dx != NULL) MB_TRY(mb_ops_linear_dx(context->ops, dy, &p->weight->weight, accumulate, opt_dx));
    if (p->weight->trained || bias_trained) {
        mb_tensor dw = p->weight->gradient;
        assert(opt_x != NULL);
        if (!p->weight->trained) {
            MB_TRY(projection_new(context, MB_F32, dw.shape[0], dw.shape[1], &dw));
            MB_TRY(mb_ops_zero(context->ops, dw.data, mb_tensor_bytes(&dw)));
        }
        MB_TRY(mb_ops_linear_dw(context->ops, dy, opt_x, &dw, bias_trained ? &p->bias->gradient : NULL));
    }
    if (p->lora_a != NULL) MB_TRY(projection_backward_lora(context, p, dy, opt_x, opt_dx));
done:
    mb_arena_release(context->arena, mark);
    return status;
}

/* ---- 3. a group of experts ---- */

static mb_status group_inner(const mb_projection_context *context, mb_projection_group *g,
                             const mb_dispatch *dispatch, const mb_tensor *x, mb_tensor *dropped,
                             mb_tensor *h)
{
    mb_status status = MB_OK;
    MB_TRY(projection_dropped(context, g->sub, x, dropped));
    MB_TRY(projection_new(context, x->dtype, x->shape[0], g->rank, h));
    MB_TRY(mb_ops_grouped_linear(context->ops, dropped, dispatch->offsets, g->count, g->weights_a, h));
    MB_TRY(mb_ops_scale(context->ops, g->lora_scale, h));
done:
    return status;
}

mb_status mb_projection_group_forward(const mb_projection_context *context, mb_projection_group *group,
                                      const mb_dispatch *dispatch, const mb_tensor *x, mb_tensor *y)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(context->arena);
    if (context->opt_tap != NULL)
        MB_TRY(context->opt_tap->group(context->opt_tap->context, group, dispatch, x));
    MB_TRY(mb_ops_grouped_linear(context->ops, x, dispatch->offsets, group->count, group->weights, y));
    if (group->lora_a != NULL && !context->no_adapter) {
        mb_tensor dropped, h, part;
        MB_TRY(group_inner(context, group, dispatch, x, &dropped, &h));
        MB_TRY(projection_new(context, y->dtype, y->shape[0], y->shape[1], &part));
        MB_TRY(mb_ops_grouped_linear(context->ops, &h, dispatch->offsets, group->count, group->weights_b,
                                     &part));
        MB_TRY(mb_ops_axpy(context->ops, 1, &part, y));
    }
done:
    mb_arena_release(context->arena, mark);
    return status;
}

static mb_status group_dw(const mb_projection_context *context, mb_projection_group *g,
                          const mb_dispatch *dispatch, mb_param **params, const mb_tensor *dy,
                          const mb_tensor *x)
{
    for (int64_t e = 0; e < g->count; e++)
        g->gradients[e] = params[e]->trained ? params[e]->gradient : (mb_tensor){0};
    return mb_ops_grouped_linear_dw(context->ops, dy, x, dispatch->offsets, g->count, g->gradients);
}

static mb_status group_backward_lora(const mb_projection_context *context, mb_projection_group *g,
                                     const mb_dispatch *dispatch, const mb_tensor *dy, const mb_tensor *opt_x,
                                     mb_tensor *opt_dx)
{
    mb_status status = MB_OK;
    mb_tensor dropped, h, dh, part;
    if (!g->is_lora_trained && opt_dx == NULL) goto done;
    const int32_t *offsets = dispatch->offsets;
    MB_TRY(projection_new(context, dy->dtype, dy->shape[0], g->rank, &dh));
    MB_TRY(mb_ops_grouped_linear_dx(context->ops, dy, offsets, g->count, g->weights_b, false, &dh));
    MB_TRY(mb_ops_scale(context->ops, g->lora_scale, &dh));
    if (g->is_lora_trained) {
        assert(opt_x != NULL);
        MB_TRY(group_inner(context, g, dispatch, opt_x, &dropped, &h));
        MB_TRY(group_dw(context, g, dispatch, g->lora_b, dy, &h));
        MB_TRY(group_dw(context, g, dispatch, g->lora_a, &dh, &dropped));
    }
    if (opt_dx == NULL) goto done;
    MB_TRY(projection_new(context, opt_dx->dtype, opt_dx->shape[0], opt_dx->shape[1], &part));
    MB_TRY(mb_ops_grouped_linear_dx(context->ops, &dh, offsets, g->count, g->weights_a, false, &part));
    MB_TRY(projection_undrop(context, g->sub, &part));
    MB_TRY(mb_ops_axpy(context->ops, 1, &part, opt_dx));
done:
    return status;
}

mb_status mb_projection_group_backward(const mb_projection_context *context, mb_projection_group *group,
                                       const mb_dispatch *dispatch, const mb_tensor *dy,
                                       const mb_tensor *opt_x, bool accumulate, mb_tensor *opt_dx)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(context->arena);
    if (opt_dx != NULL)
        MB_TRY(mb_ops_grouped_linear_dx(context->ops, dy, dispatch->offsets, group->count, group->weights,
                                        accumulate, opt_dx));
    if (group->is_weight_trained) {
        assert(opt_x != NULL);
        MB_TRY(group_dw(context, group, dispatch, group->weight, dy, opt_x));
    }
    if (group->lora_a != NULL) MB_TRY(group_backward_lora(context, group, dispatch, dy, opt_x, opt_dx));
done:
    mb_arena_release(context->arena, mark);
    return status;
}
