/* objective_warmup.c: objective "router_warmup": LM loss, balance and z on the records, and a constraint on
 * the mass of the good experts.
 *
 * Under pair_rank the corrupted copies are further segments of the same packed pass; they take no part in LM
 * loss, head, balance and z.
 *
 * 1. functions   2. creation
 */
#include <stdio.h>

#include "learn/objective_parts.h"
#include "learn/schedule.h"

enum { NAME_BYTES = 16 };

/* ---- 1. functions ---- */

static bool wants_copies(const mb_objective_parts *parts)
{
    return parts->constraint.kind == MB_CONSTRAINT_PAIR_RANK && parts->constraint.copy_share != 0;
}

static int64_t count_targets(const mb_objective *self, const mb_shard_record *record, int64_t sample)
{
    (void)self;
    return mb_pack_targets(record, MB_PACK_ALL, sample);
}

static mb_status plan_passes(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                             mb_objective_pass passes[MB_OBJECTIVE_MAX_PASSES], int64_t *out_count)
{
    mb_objective_parts *parts = (mb_objective_parts *)self;
    *out_count = 1;
    return mb_objective_parts_plan(parts, microbatch, wants_copies(parts), arena, &passes[0]);
}

static void put_constraint(const mb_objective_parts *parts, const mb_constraint_value *value, double each,
                           mb_objective_terms *terms)
{
    const mb_objective *base = &parts->base;
    mb_objective_parts_put(base, terms, each * value->constraint);
    if (parts->constraint.kind == MB_CONSTRAINT_PAIR_RANK) {
        mb_objective_parts_put(base, terms, each * value->loss_rank);
        mb_objective_parts_put(base, terms, each * value->copy_rank);
        mb_objective_parts_put(base, terms, each * value->anchor);
        mb_objective_parts_put(base, terms, value->is_single ? 1 : 0);
    }
    mb_objective_parts_put(base, terms, each * value->mean_ratio);
    for (int64_t l = 0; l < parts->routers; l++) mb_objective_parts_put(base, terms, each * value->r_mean[l]);
    for (int64_t l = 0; l < parts->routers; l++) mb_objective_parts_put(base, terms, each * value->r_var[l]);
}

static mb_status compute_loss(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                              mb_objective_terms *out_terms,
                              mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    const mb_pack *pack = passes[0].context;
    double each = 1.0 / (double)microbatch->step_microbatches, *record_loss;
    mb_routing routing;
    float **gradient = NULL;
    mb_constraint_value value;
    (void)count;
    MB_ARENA_ARRAY(arena, record_loss, pack->records);
    mb_objective_parts_start(self, out_terms);
    double total = mb_objective_parts_lm_loss(microbatch, pack, &outputs[0], record_loss);
    mb_objective_parts_put(self, out_terms, total);
    MB_TRY(
        mb_objective_parts_routing(parts, &passes[0].batch, &outputs[0], true, arena, &routing, &gradient));
    MB_TRY(mb_objective_parts_gates(parts, microbatch, &routing, pack->rows, arena, gradient, out_terms,
                                    &total));
    if (parts->good < parts->experts) {
        mb_constraint_segments segments = {.records = pack->records,
                                           .copies = pack->copies,
                                           .offsets = passes[0].batch.offsets,
                                           .loss = record_loss};
        MB_TRY(mb_constraint_loss(&parts->constraint, &routing, &segments, each * parts->constraint_weight,
                                  arena, gradient, &value));
        put_constraint(parts, &value, each, out_terms);
        total += parts->constraint_weight * each * value.constraint;
    }
    out_terms->value[0] = total;
    gradients[0] = (mb_objective_gradient){.d_router_logits = gradient};
done:
    return status;
}

static void begin_step(mb_objective *self, mb_lm *lm, int64_t step)
{
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    if (parts->trash_open_steps < 1 || !(parts->trash_bias < 0)) return;
    mb_lm_set_trash_bias(lm, mb_schedule_trash_bias(parts->trash_bias, step, parts->trash_open_steps));
}

/* ---- 2. creation ---- */

static mb_status name_terms(mb_objective_parts *parts)
{
    mb_status status = MB_OK;
    mb_objective *base = &parts->base;
    mb_objective_parts_add_term(base, "loss");
    mb_objective_parts_add_term(base, "lm_loss");
    if (parts->aux_coef != 0) mb_objective_parts_add_term(base, "balance");
    if (parts->z_coef != 0) mb_objective_parts_add_term(base, "z_loss");
    if (parts->good == parts->experts) return MB_OK;
    mb_objective_parts_add_term(base, "constraint");
    if (parts->constraint.kind == MB_CONSTRAINT_PAIR_RANK) {
        mb_objective_parts_add_term(base, "loss_rank");
        mb_objective_parts_add_term(base, "copy_rank");
        mb_objective_parts_add_term(base, "anchor");
        mb_objective_parts_add_term(base, "single_records");
    }
    mb_objective_parts_add_term(base, "mean_ratio");
    MB_NEW_ARRAY(parts->names, 2 * parts->routers * NAME_BYTES);
    for (int64_t i = 0; i < 2 * parts->routers; i++) {
        char *name = parts->names + i * NAME_BYTES;
        snprintf(name, NAME_BYTES, "%s/%d", i < parts->routers ? "r_mean" : "r_var",
                 (int)(i % parts->routers));
        mb_objective_parts_add_term(base, name);
    }
done:
    return status;
}

static mb_status check_model(const mb_objective_parts *parts)
{
    if (parts->routers == 0) {
        return mb_fail(MB_EUSAGE, "training.objective = router_warmup needs a model with routers, and this "
                                  "one is dense; warm up a converted MoE (moe-convert)");
    }
    if (2 * parts->routers + 16 > MB_OBJECTIVE_MAX_TERMS) {
        return mb_fail(MB_EUNSUPPORTED, "router_warmup takes at most %d routers, the model has %lld",
                       (MB_OBJECTIVE_MAX_TERMS - 16) / 2, (long long)parts->routers);
    }
    if (parts->good == parts->experts && parts->constraint.kind != MB_CONSTRAINT_NONE) {
        return mb_fail(MB_EUSAGE, "training.constraint_loss needs trash experts, and this model has none; "
                                  "add them with moe-convert, declare some with "
                                  "trash_expert_ratio, or set training.constraint_loss = none");
    }
    return MB_OK;
}

mb_status mb_objective_warmup_create(const mb_objective_options *options, mb_lm *lm,
                                     mb_objective **out_objective)
{
    mb_status status = MB_OK;
    mb_objective_parts *parts = NULL;
    MB_TRY(mb_objective_parts_create(options, lm, &parts));
    MB_TRY(check_model(parts));
    parts->base.name = "router_warmup";
    parts->base.count_targets = count_targets;
    parts->base.plan_passes = plan_passes;
    parts->base.loss = compute_loss;
    parts->base.begin_step = begin_step;
    parts->base.reads_routing = true;
    if (parts->constraint.kind == MB_CONSTRAINT_PAIR_RANK && parts->constraint.copy_share < 1)
        parts->base.least_records = 2;
    parts->base.row_copies = wants_copies(parts) ? 2 : 1;
    MB_TRY(name_terms(parts));
    *out_objective = &parts->base;
    parts = NULL;
done:
    mb_objective_parts_destroy((mb_objective *)parts);
    return status;
}
