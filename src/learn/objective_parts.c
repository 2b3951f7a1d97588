/* objective_parts.c: what the objectives have in common.
 *
 * 1. creation   2. terms   3. pass and LM loss   4. gates
 */
#include "learn/objective_parts.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- 1. creation ---- */

static mb_constraint_kind parse_constraint(const char *text)
{
    static const char *const names[] = {[MB_CONSTRAINT_NONE] = "none",
                                        [MB_CONSTRAINT_BETA_NLL] = "beta_nll",
                                        [MB_CONSTRAINT_MOMENT_MATCHING] = "moment_matching",
                                        [MB_CONSTRAINT_BARRIER] = "barrier",
                                        [MB_CONSTRAINT_PAIR_RANK] = "pair_rank"};
    for (int i = 0; i < (int)(sizeof names / sizeof names[0]); i++) {
        if (mb_str_equal(text, names[i])) return (mb_constraint_kind)i;
    }
    return MB_CONSTRAINT_NONE;
}

/* Which experts the records' tokens pick, nothing else. */
static mb_status plan_routing(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              mb_objective_pass *out_pass)
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    MB_TRY(mb_objective_parts_plan(parts, microbatch, false, arena, out_pass));
    out_pass->batch.head_rows = 0;
    out_pass->want = (mb_lm_want){.routers = parts->routers};
done:
    return status;
}

mb_status mb_objective_parts_create(const mb_objective_options *options, mb_lm *lm,
                                    mb_objective_parts **out_parts)
{
    mb_status status = MB_OK;
    mb_objective_parts *parts = NULL;
    const mb_arch *arch = mb_lm_arch(lm);
    MB_NEW(parts);
    parts->routers = mb_lm_routers(lm);
    parts->experts = mb_arch_gates(arch);
    parts->good = mb_arch_good(arch);
    parts->picks = arch->picks;
    parts->vocab = arch->vocab;
    parts->threads = mb_ops_threads(mb_lm_ops(lm));
    parts->aux_coef = parts->routers > 0 ? options->router_aux_loss_coef : 0;
    parts->z_coef = parts->routers > 0 ? options->router_z_loss_coef : 0;
    parts->constraint_weight = options->constraint_loss_weight;
    parts->balance.kind = mb_str_equal(options->load_balance, "switch") ? MB_BALANCE_SWITCH : MB_BALANCE_HF;
    parts->balance.over_all = mb_str_equal(options->balance_over, "all");
    parts->constraint = (mb_constraint_options){.kind = parse_constraint(options->constraint_loss),
                                                .over_picks = mb_str_equal(options->ratio_over, "topk"),
                                                .alpha = options->trash_can_loss_alpha,
                                                .beta = options->trash_can_loss_beta,
                                                .mean = options->moment_mean,
                                                .var = options->moment_var,
                                                .sharpness = options->pair_rank_sharpness,
                                                .copy_share = options->pair_rank_copy_share,
                                                .anchor_weight = options->anchor_weight};
    parts->trash_open_steps = options->trash_open_steps;
    parts->trash_bias = arch->trash_logit_bias;
    if (parts->experts > MB_ROUTING_MAX_EXPERTS) {
        MB_RAISE(MB_EUNSUPPORTED, "the model's gates have %lld rows; training takes at most %d",
                 (long long)parts->experts, MB_ROUTING_MAX_EXPERTS);
    }
    parts->base.destroy = mb_objective_parts_destroy;
    parts->over_step = mb_str_equal(options->balance_scope, "step");
    if (parts->aux_coef != 0 && parts->over_step) {
        parts->base.plan_routing = plan_routing;
        parts->base.pick_count = parts->routers * parts->experts;
        MB_NEW_ARRAY(parts->base.picks, parts->base.pick_count);
    }
    *out_parts = parts;
    parts = NULL;
done:
    mb_objective_parts_destroy((mb_objective *)parts);
    return status;
}

void mb_objective_parts_destroy(mb_objective *self)
{
    mb_objective_parts *parts = (mb_objective_parts *)self;
    if (parts == NULL) return;
    mb_free(parts->base.settings);
    mb_free(parts->base.picks);
    mb_free(parts->names);
    mb_free(parts);
}

/* ---- 2. terms ---- */

void mb_objective_parts_add_term(mb_objective *self, const char *name)
{
    assert(self->term_count < MB_OBJECTIVE_MAX_TERMS);
    self->term[self->term_count++] = name;
}

void mb_objective_parts_start(const mb_objective *self, mb_objective_terms *terms)
{
    terms->count = 0;
    mb_objective_parts_put(self, terms, 0);
}

void mb_objective_parts_put(const mb_objective *self, mb_objective_terms *terms, double value)
{
    assert(terms->count < self->term_count);
    terms->name[terms->count] = self->term[terms->count];
    terms->value[terms->count++] = value;
}

/* ---- 3. pass and LM loss ---- */

mb_status mb_objective_parts_plan(const mb_objective_parts *parts, const mb_microbatch *microbatch,
                                  bool with_copies, mb_arena *arena, mb_objective_pass *out_pass)
{
    mb_status status = MB_OK;
    mb_pack *pack = NULL;
    MB_ARENA_ARRAY(arena, pack, 1);
    *out_pass = (mb_objective_pass){.model = 0, .want = {.gradient = true}, .context = pack};
    MB_TRY(mb_pack_batch(microbatch, parts->mask, with_copies, parts->vocab, arena, &out_pass->batch, pack));
done:
    return status;
}

double mb_objective_parts_lm_loss(const mb_microbatch *microbatch, const mb_pack *pack,
                                  const mb_lm_output *output, double *opt_record_loss)
{
    double total = 0;
    for (int64_t i = 0; i < pack->records; i++) {
        double sum = 0;
        int64_t n = pack->head_first[i + 1] - pack->head_first[i];
        for (int64_t h = pack->head_first[i]; h < pack->head_first[i + 1]; h++)
            sum += (double)output->token_loss[h];
        if (opt_record_loss != NULL) opt_record_loss[i] = n > 0 ? sum / (double)n : NAN;
        total += sum;
    }
    return microbatch->step_targets > 0 ? total / (double)microbatch->step_targets : 0;
}

/* ---- 4. gates ---- */

mb_status mb_objective_parts_routing(const mb_objective_parts *parts, const mb_lm_batch *batch,
                                     const mb_lm_output *output, bool gradient, mb_arena *arena,
                                     mb_routing *out_routing, float ***out_gradient)
{
    mb_status status = MB_OK;
    float **arrays = NULL;
    int64_t each = batch->tokens * parts->experts;
    assert(output->routers == parts->routers);
    if (gradient && parts->routers > 0) {
        MB_ARENA_ARRAY(arena, arrays, parts->routers);
        for (int64_t l = 0; l < parts->routers; l++) {
            MB_ARENA_ARRAY(arena, arrays[l], each);
            memset(arrays[l], 0, (size_t)each * sizeof *arrays[l]);
        }
    }
    *out_routing = (mb_routing){.routers = parts->routers,
                                .rows = batch->tokens,
                                .experts = parts->experts,
                                .good = parts->good,
                                .picks = parts->picks,
                                .logits = output->router_logits,
                                .ids = output->router_ids,
                                .threads = parts->threads};
    *out_gradient = arrays;
done:
    return status;
}

mb_status mb_objective_parts_gates(const mb_objective_parts *parts, const mb_microbatch *microbatch,
                                   const mb_routing *routing, int64_t rows, mb_arena *arena,
                                   float *const *gradient, mb_objective_terms *terms, double *out_total)
{
    mb_status status = MB_OK;
    double value = 0, each = 1.0 / (double)microbatch->step_microbatches;
    if (parts->aux_coef != 0) {
        mb_balance_rule rule = parts->balance;
        double share = parts->base.has_picks ? 1 : each; /* over the step the parts add up by themselves */
        if (parts->base.has_picks) rule.step_picks = parts->base.picks;
        MB_TRY(mb_balance_load(routing, rows, &rule, share * parts->aux_coef, arena, gradient, &value));
        mb_objective_parts_put(&parts->base, terms, share * value);
        *out_total += parts->aux_coef * share * value;
    }
    if (parts->z_coef != 0) {
        const bool over_step = parts->over_step && microbatch->step_tokens > 0;
        const double share = over_step ? (double)rows / (double)microbatch->step_tokens : each;
        MB_TRY(mb_balance_z(routing, rows, share * parts->z_coef, arena, gradient, &value));
        mb_objective_parts_put(&parts->base, terms, share * value);
        *out_total += parts->z_coef * share * value;
    }
done:
    return status;
}
