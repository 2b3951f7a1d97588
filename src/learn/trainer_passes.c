/* trainer_passes.c: the forward, loss and backward of one micro-batch.
 *
 * Passes of an objective's second model (a teacher) run first, and what came of them makes the batches of the
 * trained model whole.
 *
 * A validation has the same passes without their gradients, and without dropout. The loss of one forward can
 * be asked for several times: scaled as a part of its type and as a part of all.
 *
 * 1. creation   2. looking at what came out   3. training   4. validation   5. routing alone
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "learn/trainer_impl.h"

/* ---- 1. creation ---- */

enum { ARENA_BYTES = 1 << 20 };

mb_status mb_trainer_passes_create(mb_lm *lm, mb_objective *objective, mb_trainer_passes *out_passes)
{
    *out_passes = (mb_trainer_passes){.lm = lm, .objective = objective};
    return mb_arena_create(ARENA_BYTES, &out_passes->arena);
}

void mb_trainer_passes_destroy(mb_trainer_passes *passes)
{
    for (int64_t i = 0; i < MB_OBJECTIVE_MAX_PASSES; i++) mb_lm_pass_destroy(&passes->pass[i]);
    mb_arena_destroy(&passes->arena);
}

/* ---- 2. looking at what came out ---- */

static int64_t first_bad_router(const mb_lm_output *output, int64_t rows, int64_t experts)
{
    for (int64_t l = 0; l < output->routers; l++) {
        for (int64_t i = 0; i < rows * experts; i++) {
            if (!isfinite(output->router_logits[l][i])) return l;
        }
    }
    return -1;
}

static mb_status check_finite(const mb_trainer_passes *passes, const mb_objective_pass *planned,
                              const mb_lm_output *outputs, const mb_objective_terms *terms)
{
    for (int64_t i = 0; i < terms->count; i++) {
        if (isfinite(terms->value[i])) continue;
        int64_t bad =
            first_bad_router(&outputs[0], planned[0].batch.tokens, mb_arch_gates(mb_lm_arch(passes->lm)));
        char layer[64] = "";
        if (bad >= 0) snprintf(layer, sizeof layer, ", first seen at router %lld", (long long)bad);
        return mb_fail(MB_ENUMERIC, "%s is %g%s; lower training.learning_rate or look at these records",
                       terms->name[i], terms->value[i], layer);
    }
    return MB_OK;
}

/* Picks of the records' rows, which come first in a pass, added to counts [routers, E']. */
static void add_picks(const mb_trainer_passes *passes, const mb_microbatch *microbatch,
                      const mb_lm_output *output, int64_t tokens, int64_t *counts)
{
    const mb_arch *arch = mb_lm_arch(passes->lm);
    const int64_t experts = mb_arch_gates(arch);
    int64_t rows = 0;
    for (int64_t i = 0; i < microbatch->records; i++) rows += microbatch->record[i].count;
    if (rows > tokens) rows = tokens;
    for (int64_t l = 0; l < output->routers; l++) {
        const int32_t *ids = output->router_ids[l];
        for (int64_t i = 0; i < rows * arch->picks; i++) counts[l * experts + ids[i]]++;
    }
}

/* ---- 3. training ---- */

static mb_status check_passes(const mb_trainer_passes *passes, const mb_objective_pass *planned,
                              int64_t count, bool is_training)
{
    int64_t backwards = 0;
    for (int64_t i = 0; i < count; i++) {
        backwards += planned[i].want.gradient;
        if (planned[i].model > (passes->objective->opt_second != NULL) ||
            (planned[i].model == 1 && planned[i].want.gradient))
            return mb_fail(MB_EUNSUPPORTED,
                           "objective %s asks for a model that it was not given, or to train its second one",
                           passes->objective->name);
    }
    if (is_training && backwards != 1 && mb_params_has_sink(mb_lm_params(passes->lm)))
        return mb_fail(MB_EUNSUPPORTED,
                       "objective %s makes %lld backward passes of a micro-batch; training.zero = 2 "
                       "and 3 take one: set training.zero=1",
                       passes->objective->name, (long long)backwards);
    return MB_OK;
}

/* Those of one model, up to where they are queued. */
static mb_status start_forwards(mb_trainer_passes *passes, mb_objective_pass *planned, int64_t count,
                                int64_t model, mb_lm_output *outputs)
{
    mb_status status = MB_OK;
    const bool is_device = mb_ops_is_device(mb_lm_ops(passes->lm)); /* routing has to be fetched there */
    mb_lm *lm = model == 0 ? passes->lm : passes->objective->opt_second;
    for (int64_t i = 0; i < count; i++) {
        if (planned[i].model != model) continue;
        planned[i].want.recompute = passes->recompute && planned[i].want.gradient;
        const bool is_read =
            passes->objective->reads_routing || (passes->loads != NULL && planned[i].want.gradient);
        planned[i].want.no_routing |= is_device && !is_read;
        if (passes->pass[i] == NULL) MB_TRY(mb_lm_pass_create(lm, &passes->pass[i]));
        MB_TRY(mb_lm_forward_start(passes->pass[i], &planned[i].batch, &planned[i].want, &outputs[i]));
    }
done:
    return status;
}

static mb_status run_forwards(mb_trainer_passes *passes, mb_objective_pass *planned, int64_t count,
                              mb_lm_output *outputs)
{
    mb_status status = MB_OK;
    mb_objective *objective = passes->objective;
    if (objective->opt_second != NULL) {
        MB_TRY(start_forwards(passes, planned, count, 1, outputs));
        for (int64_t i = 0; i < count; i++)
            if (planned[i].model == 1) MB_TRY(mb_lm_pass_wait(passes->pass[i]));
        MB_TRY(objective->complete(objective, planned, outputs, count));
    }
    MB_TRY(start_forwards(passes, planned, count, 0, outputs));
done:
    return status;
}

static mb_status run_backwards(mb_trainer_passes *passes, const mb_objective_pass *planned, int64_t count,
                               const mb_objective_gradient *gradients)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < count; i++) {
        if (!planned[i].want.gradient) continue;
        MB_TRY(mb_lm_backward(passes->pass[i], gradients[i].d_token_loss, gradients[i].d_router_logits,
                              gradients[i].d_hidden));
    }
done:
    return status;
}

static mb_status wait_forwards(mb_trainer_passes *passes, int64_t count)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < count; i++) MB_TRY(mb_lm_pass_wait(passes->pass[i]));
done:
    return status;
}

/* On a device the backward of a fused objective is queued behind the forward before the loss is looked at, so
 * that the device is never without work. */
mb_status mb_trainer_passes_train(mb_trainer_passes *passes, const mb_microbatch *microbatch,
                                  mb_objective_terms *out_terms)
{
    mb_status status = MB_OK;
    mb_objective *objective = passes->objective;
    mb_objective_pass planned[MB_OBJECTIVE_MAX_PASSES];
    mb_lm_output outputs[MB_OBJECTIVE_MAX_PASSES];
    mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES] = {{0}};
    const bool is_ahead = objective->is_fused && mb_ops_is_device(mb_lm_ops(passes->lm));
    int64_t count = 0;
    mb_arena_reset(passes->arena);
    MB_TRY(objective->plan_passes(objective, microbatch, passes->arena, planned, &count));
    MB_TRY(check_passes(passes, planned, count, true));
    MB_TRY(mb_lm_gradient_begin(passes->lm));
    MB_TRY(run_forwards(passes, planned, count, outputs));
    if (is_ahead) MB_TRY(run_backwards(passes, planned, count, gradients));
    MB_TRY(wait_forwards(passes, count));
    for (int64_t i = 0; i < count && passes->loads != NULL; i++)
        if (planned[i].want.gradient)
            add_picks(passes, microbatch, &outputs[i], planned[i].batch.tokens, passes->loads);
    MB_TRY(
        objective->loss(objective, microbatch, passes->arena, planned, outputs, count, out_terms, gradients));
    MB_TRY(check_finite(passes, planned, outputs, out_terms));
    if (!is_ahead) MB_TRY(run_backwards(passes, planned, count, gradients));
done:
    return status;
}

/* ---- 4. validation ---- */

mb_status mb_trainer_passes_validate(mb_trainer_passes *passes, const mb_trainer_view *views, int64_t n,
                                     mb_objective_terms *out_terms)
{
    mb_status status = MB_OK;
    mb_objective *objective = passes->objective;
    mb_objective_pass planned[MB_OBJECTIVE_MAX_PASSES];
    mb_lm_output outputs[MB_OBJECTIVE_MAX_PASSES];
    mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES] = {{0}};
    int64_t count = 0;
    mb_arena_reset(passes->arena);
    MB_TRY(objective->plan_passes(objective, &views[0].microbatch, passes->arena, planned, &count));
    for (int64_t i = 0; i < count; i++) {
        planned[i].want.gradient = false;
        planned[i].batch.row_index = NULL; /* no dropout */
        planned[i].batch.opt_head_weight = NULL;
    }
    MB_TRY(check_passes(passes, planned, count, false));
    MB_TRY(run_forwards(passes, planned, count, outputs));
    MB_TRY(wait_forwards(passes, count));
    for (int64_t v = 0; v < n; v++) {
        objective->has_picks = views[v].opt_picks != NULL;
        if (objective->has_picks)
            memcpy(objective->picks, views[v].opt_picks,
                   (size_t)objective->pick_count * sizeof *objective->picks);
        MB_TRY(objective->loss(objective, &views[v].microbatch, passes->arena, planned, outputs, count,
                               &out_terms[v], gradients));
    }
done:
    objective->has_picks = false;
    return status;
}

/* ---- 5. routing alone ---- */

mb_status mb_trainer_passes_route(mb_trainer_passes *passes, const mb_microbatch *microbatch, int64_t *picks)
{
    mb_status status = MB_OK;
    mb_objective *objective = passes->objective;
    mb_objective_pass planned;
    mb_lm_output output;
    if (passes->pass[0] == NULL) MB_TRY(mb_lm_pass_create(passes->lm, &passes->pass[0]));
    mb_arena_reset(passes->arena);
    MB_TRY(objective->plan_routing(objective, microbatch, passes->arena, &planned));
    if (microbatch->is_validation) planned.batch.row_index = NULL;
    MB_TRY(mb_lm_forward(passes->pass[0], &planned.batch, &planned.want, &output));
    add_picks(passes, microbatch, &output, planned.batch.tokens, picks);
done:
    return status;
}
