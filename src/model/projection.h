/* projection: one linear map of a block, y = W x + b, with the low-rank adapter it may carry; alone or as a
 * group of experts.
 *
 * Layer: model.  Uses: params, ops.
 * Source: Hu et al. (2021), LoRA: y = W x + scale * B (A dropout(x)). Nothing of the adapter's path is kept
 * for the backward pass: A dropout(x) is rank r and made again.
 */
#ifndef MB_PROJECTION_H
#define MB_PROJECTION_H

#include "model/params.h"

typedef struct mb_projection {
    mb_param *weight;          /* [N, K] */
    mb_param *bias;            /* [N] or NULL */
    mb_param *lora_a, *lora_b; /* [r, K], [N, r] or NULL */
    float lora_scale;          /* alpha / r */
    uint32_t sub;              /* of dropout draws: block and place */
} mb_projection;

/* The same place of all experts. Arrays are [count]; lora ones NULL without an adapter. */
typedef struct mb_projection_group {
    int64_t count, rank;
    mb_param **weight, **lora_a, **lora_b;
    mb_weight **weights, **weights_a, **weights_b;
    mb_tensor *gradients; /* work array of the weight gradient calls */
    bool is_weight_trained, is_lora_trained;
    float lora_scale;
    uint32_t sub;
} mb_projection_group;

/* Somebody who looks at what goes into projections in the forward pass, before they run (model/gptq). x: act
 * [rows, K], of a group sorted by expert (dispatch). All in the backend's memory; ops may be queued. */
typedef struct mb_projection_tap {
    void *context;
    mb_status (*one)(void *context, const mb_projection *projection, const mb_tensor *x);
    mb_status (*group)(void *context, const mb_projection_group *group, const mb_dispatch *dispatch,
                       const mb_tensor *x);
} mb_projection_tap;

/* What a call needs to know of its pass. Temporaries come from the arena and are given back. */
typedef struct mb_projection_context {
    mb_ops *ops;
    mb_arena *arena;
    float dropout;
    uint64_t seed;
    const int64_t *row_index;         /* of the rows of x, for dropout; NULL: no dropout */
    bool no_adapter;                  /* forward without the adapter: y = W x + b */
    const mb_projection_tap *opt_tap; /* of forwards */
} mb_projection_context;

/* Parameters called `<prefix>.weight`, `.bias`, `.lora_A.weight`, `.lora_B.weight` (the first must exist:
 * assert). */
void mb_projection_find(mb_projection *projection, mb_params *params, const char *prefix, uint32_t sub);
/* `<prefix>.<e>.<name>.weight` ... for e < count. */
mb_status mb_projection_group_find(mb_projection_group *group, mb_params *params, const char *prefix,
                                   const char *name, int64_t count, uint32_t sub);
void mb_projection_group_reset(mb_projection_group *group);
bool mb_projection_is_trained(const mb_projection *projection);
bool mb_projection_group_is_trained(const mb_projection_group *group);

mb_status mb_projection_forward(const mb_projection_context *context, mb_projection *projection,
                                const mb_tensor *x, bool accumulate, mb_tensor *y);
/* Adds weight gradients; dx = (accumulate ? dx : 0) + ... when asked. x is read only when the projection is
 * trained. */
mb_status mb_projection_backward(const mb_projection_context *context, mb_projection *projection,
                                 const mb_tensor *dy, const mb_tensor *opt_x, bool accumulate,
                                 mb_tensor *opt_dx);
mb_status mb_projection_group_forward(const mb_projection_context *context, mb_projection_group *group,
                                      const mb_dispatch *dispatch, const mb_tensor *x, mb_tensor *y);
mb_status mb_projection_group_backward(const mb_projection_context *context, mb_projection_group *group,
                                       const mb_dispatch *dispatch, const mb_tensor *dy,
                                       const mb_tensor *opt_x, bool accumulate, mb_tensor *opt_dx);

#endif
