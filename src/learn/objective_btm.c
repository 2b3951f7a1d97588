/* objective_btm.c: objective "btm": the router of a fused model (model/fuse.h), between members that stay as
 * they are.
 *
 * With w_tm the weight of member m for token t at a stage (softmax of the stage's logits), T the
 * micro-batch's tokens and w_m their mean:
 *   loss = lm_loss + load_balance_weight * balance + sparsity_weight * entropy
 *   balance = M sum_m w_m^2            1 when all members are used alike, M when one is
 *   entropy = mean_t - sum_m w_tm ln w_tm
 * both averaged over the stages (one of a token-level router; embeddings, layers and head of a layer-level
 * one) and over the step's micro-batches. lm_loss is the mean over the step's targets: of the loss mask where
 * the shard has one, or all (training.targets).
 *
 * Source: the form of the balance term: Fedus et al. (2021) "Switch Transformers", eq. 4, with mean weights
 * in both places.
 *
 * 1. terms   2. one stage   3. functions   4. creation
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "learn/objective_parts.h"
#include "model/fuse.h"

enum { NAME_BYTES = 64, OWN_TERMS = 4 };

typedef struct btm {
    double balance_weight, sparsity_weight;
    int64_t members, stages;
    bool shows_stages; /* the shares of every stage are terms too */
} btm;

/* What a stage says of the records' rows. */
typedef struct stage_value {
    double balance, entropy;
    double share[MB_FUSE_MAX_MEMBERS];
} stage_value;

/* ---- 1. terms ---- */

/* A member's name as a part of a term's. */
static void name_share(const mb_lm *lm, int64_t member, int64_t stage, char out[NAME_BYTES])
{
    const int at = snprintf(out, NAME_BYTES, stage < 0 ? "share/" : "stage_share/");
    char *c = out + at;
    snprintf(c, (size_t)(NAME_BYTES - at - 24), "%s", mb_fuse_member_name(lm, member));
    for (; *c != 0; c++)
        if (!isalnum((unsigned char)*c)) *c = '_';
    if (stage >= 0) snprintf(c, 24, "/%lld", (long long)stage);
}

/* share/<member>, and stage_share/<member>/<stage> where there are several and room for them. */
static mb_status name_terms(mb_objective_parts *parts, const mb_lm *lm)
{
    mb_status status = MB_OK;
    btm *own = parts->own;
    const int64_t members = own->members, all = members * (1 + own->stages);
    own->shows_stages = own->stages > 1 && OWN_TERMS + all <= MB_OBJECTIVE_MAX_TERMS;
    mb_objective_parts_add_term(&parts->base, "loss");
    mb_objective_parts_add_term(&parts->base, "lm_loss");
    mb_objective_parts_add_term(&parts->base, "balance");
    mb_objective_parts_add_term(&parts->base, "entropy");
    MB_NEW_ARRAY(parts->names, all * NAME_BYTES);
    for (int64_t i = 0; i < (own->shows_stages ? all : members); i++) {
        char *name = parts->names + i * NAME_BYTES;
        name_share(lm, i % members, i / members - 1, name);
        mb_objective_parts_add_term(&parts->base, name);
    }
done:
    return status;
}

/* ---- 2. one stage ---- */

/* w [M] and ln w of one token. */
static void weigh(const float *logits, int64_t members, double *w, double *log_w)
{
    double most = (double)logits[0], sum = 0;
    for (int64_t m = 1; m < members; m++)
        if ((double)logits[m] > most) most = (double)logits[m];
    for (int64_t m = 0; m < members; m++) sum += w[m] = exp((double)logits[m] - most);
    for (int64_t m = 0; m < members; m++) {
        w[m] /= sum;
        log_w[m] = (double)logits[m] - most - log(sum);
    }
}

static double entropy_of(const double *w, const double *log_w, int64_t members)
{
    double sum = 0;
    for (int64_t m = 0; m < members; m++) sum -= w[m] > 0 ? w[m] * log_w[m] : 0;
    return sum;
}

static stage_value look_at(const float *logits, int64_t rows, int64_t members)
{
    stage_value value = {0};
    double w[MB_FUSE_MAX_MEMBERS], log_w[MB_FUSE_MAX_MEMBERS];
    for (int64_t t = 0; t < rows; t++) {
        weigh(logits + t * members, members, w, log_w);
        value.entropy += entropy_of(w, log_w, members) / (double)rows;
        for (int64_t m = 0; m < members; m++) value.share[m] += w[m] / (double)rows;
    }
    for (int64_t m = 0; m < members; m++) value.balance += (double)members * value.share[m] * value.share[m];
    return value;
}

/* Gradient of a balance + b entropy:
 *   d balance / d z_tm = 2 M / T w_tm (w_m - sum_k w_tk w_k)
 *   d entropy / d z_tm = - 1 / T w_tm (ln w_tm + entropy_t) */
static void add_gradient(const float *logits, int64_t rows, int64_t members, const stage_value *value,
                         double a, double b, float *gradient)
{
    double w[MB_FUSE_MAX_MEMBERS], log_w[MB_FUSE_MAX_MEMBERS];
    const double each = 1.0 / (double)rows;
    for (int64_t t = 0; t < rows; t++) {
        weigh(logits + t * members, members, w, log_w);
        const double entropy = entropy_of(w, log_w, members);
        double mean = 0;
        for (int64_t m = 0; m < members; m++) mean += w[m] * value->share[m];
        for (int64_t m = 0; m < members; m++) {
            if (w[m] == 0) continue;
            const double balance = 2 * (double)members * w[m] * (value->share[m] - mean),
                         spread = -w[m] * (log_w[m] + entropy);
            gradient[t * members + m] += (float)(each * (a * balance + b * spread));
        }
    }
}

/* ---- 3. functions ---- */

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

/* Balance, entropy and shares, scaled by `each`; returns the first two with their weights. */
static double put_terms(const mb_objective_parts *parts, const stage_value *stage, double each,
                        mb_objective_terms *terms)
{
    const mb_objective *base = &parts->base;
    const btm *own = parts->own;
    const double part = each / (double)own->stages;
    double balance = 0, entropy = 0, share[MB_FUSE_MAX_MEMBERS] = {0};
    for (int64_t s = 0; s < own->stages; s++) {
        balance += part * stage[s].balance;
        entropy += part * stage[s].entropy;
        for (int64_t m = 0; m < own->members; m++) share[m] += part * stage[s].share[m];
    }
    mb_objective_parts_put(base, terms, balance);
    mb_objective_parts_put(base, terms, entropy);
    for (int64_t m = 0; m < own->members; m++) mb_objective_parts_put(base, terms, share[m]);
    for (int64_t s = 0; s < own->stages && own->shows_stages; s++)
        for (int64_t m = 0; m < own->members; m++)
            mb_objective_parts_put(base, terms, each * stage[s].share[m]);
    return own->balance_weight * balance + own->sparsity_weight * entropy;
}

static mb_status compute_loss(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                              mb_objective_terms *out_terms,
                              mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    const btm *own = parts->own;
    const mb_pack *pack = passes[0].context;
    const double each = 1.0 / (double)microbatch->step_microbatches, part = each / (double)own->stages;
    const bool wants_gradient = passes[0].want.gradient;
    const int threads = parts->threads;
    mb_routing routing;
    float **gradient = NULL;
    stage_value *stage = NULL;
    (void)count;
    MB_ARENA_ARRAY(arena, stage, own->stages);
    MB_TRY(mb_objective_parts_routing(parts, &passes[0].batch, &outputs[0], wants_gradient, arena, &routing,
                                      &gradient));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t s = 0; s < own->stages; s++) {
        stage[s] = look_at(routing.logits[s], pack->rows, own->members);
        if (wants_gradient)
            add_gradient(routing.logits[s], pack->rows, own->members, &stage[s], part * own->balance_weight,
                         part * own->sparsity_weight, gradient[s]);
    }
    mb_objective_parts_start(self, out_terms);
    const double lm = mb_objective_parts_lm_loss(microbatch, pack, &outputs[0], NULL);
    mb_objective_parts_put(self, out_terms, lm);
    out_terms->value[0] = lm + put_terms(parts, stage, each, out_terms);
    gradients[0] = (mb_objective_gradient){.d_router_logits = gradient};
done:
    return status;
}

static void destroy(mb_objective *self)
{
    mb_free(((mb_objective_parts *)self)->own);
    mb_objective_parts_destroy(self);
}

/* ---- 4. creation ---- */

mb_status mb_objective_btm_create(const mb_objective_options *options, mb_lm *lm,
                                  mb_objective **out_objective)
{
    mb_status status = MB_OK;
    mb_objective_parts *parts = NULL;
    btm *own = NULL;
    if (!mb_lm_is_fused(lm) || mb_lm_routers(lm) == 0)
        MB_RAISE(MB_EUSAGE,
                 "training.objective = btm trains the router of a fused model, and this is %s; give "
                 "fuse.foundation and fuse.sft, or the folder of such a router (fuse.router)",
                 mb_lm_is_fused(lm) ? "an ensemble with fixed weights" : "an ordinary model");
    MB_TRY(mb_objective_parts_create(options, lm, &parts));
    parts->base.destroy = destroy;
    MB_NEW(own);
    parts->own = own;
    *own = (btm){.balance_weight = options->load_balance_weight,
                 .sparsity_weight = options->sparsity_weight,
                 .members = mb_fuse_members(lm),
                 .stages = mb_lm_routers(lm)};
    parts->aux_coef = parts->z_coef = 0; /* those of a mixture of experts; ours stand beside */
    parts->base.plan_routing = NULL;
    parts->base.pick_count = 0;
    parts->mask = mb_str_equal(options->targets, "all") ? MB_PACK_ALL : MB_PACK_MASKED;
    parts->base.name = "btm";
    parts->base.count_targets = count_targets;
    parts->base.plan_passes = plan_passes;
    parts->base.loss = compute_loss;
    parts->base.reads_routing = true;
    MB_TRY(name_terms(parts, lm));
    *out_objective = &parts->base;
    parts = NULL;
done:
    if (parts != NULL) destroy(&parts->base);
    return status;
}
