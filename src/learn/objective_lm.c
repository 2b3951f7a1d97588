/* objective_lm.c: objectives "lm" (every token but the first) and "sft" (tokens of the loss mask), with the
 * gates' balance and z losses.
 *
 * 1. functions   2. creation
 */
#include "learn/objective_parts.h"

/* ---- 1. functions ---- */

static int64_t count_targets(const mb_objective *self, const mb_shard_record *record, int64_t sample)
{
    return mb_pack_targets(record, ((const mb_objective_parts *)self)->mask, sample);
}

static mb_status plan_passes(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                             mb_objective_pass passes[MB_OBJECTIVE_MAX_PASSES], int64_t *out_count)
{
    *out_count = 1;
    return mb_objective_parts_plan((mb_objective_parts *)self, microbatch, false, arena, &passes[0]);
}

static mb_status compute_loss(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                              mb_objective_terms *out_terms,
                              mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    const mb_pack *pack = passes[0].context;
    mb_routing routing;
    float **gradient = NULL;
    (void)count;
    mb_objective_parts_start(self, out_terms);
    double total = mb_objective_parts_lm_loss(microbatch, pack, &outputs[0], NULL);
    mb_objective_parts_put(self, out_terms, total);
    if (self->reads_routing) {
        MB_TRY(mb_objective_parts_routing(parts, &passes[0].batch, &outputs[0], true, arena, &routing,
                                          &gradient));
        MB_TRY(mb_objective_parts_gates(parts, microbatch, &routing, pack->rows, arena, gradient, out_terms,
                                        &total));
    }
    out_terms->value[0] = total;
    gradients[0] = (mb_objective_gradient){.d_router_logits = gradient};
done:
    return status;
}

/* ---- 2. creation ---- */

mb_status mb_objective_lm_create(const mb_objective_options *options, mb_lm *lm, mb_objective **out_objective)
{
    mb_status status = MB_OK;
    mb_objective_parts *parts = NULL;
    MB_TRY(mb_objective_parts_create(options, lm, &parts));
    mb_objective *base = &parts->base;
    const bool is_sft = mb_str_equal(options->objective, "sft");
    parts->mask = is_sft ? MB_PACK_MASKED : MB_PACK_ALL;
    base->name = is_sft ? "sft" : "lm";
    base->count_targets = count_targets;
    base->plan_passes = plan_passes;
    base->loss = compute_loss;
    base->reads_routing = parts->aux_coef != 0 || parts->z_coef != 0;
    base->is_fused = !base->reads_routing;
    mb_objective_parts_add_term(base, "loss");
    mb_objective_parts_add_term(base, "lm_loss");
    if (parts->aux_coef != 0) mb_objective_parts_add_term(base, "balance");
    if (parts->z_coef != 0) mb_objective_parts_add_term(base, "z_loss");
    *out_objective = base;
done:
    return status;
}
