/* objective_parts: what the objectives have in common: one packed pass, LM loss, balance and z. Private to
 * this folder.
 *
 * Layer: learn.  Uses: objective, pack, balance, constraint.
 */
#ifndef MB_OBJECTIVE_PARTS_H
#define MB_OBJECTIVE_PARTS_H

#include "learn/balance.h"
#include "learn/constraint.h"
#include "learn/objective.h"
#include "learn/pack.h"

typedef struct mb_objective_parts {
    mb_objective base;
    int64_t routers, experts, good, picks, vocab; /* of the trained model; experts = E' */
    int threads;
    mb_pack_mask mask; /* rows that get a loss */
    bool over_step;    /* over_step: balance_scope = step */
    double aux_coef, z_coef, constraint_weight;
    mb_balance_rule balance;
    mb_constraint_options constraint;
    int64_t trash_open_steps;
    double trash_bias; /* of the model as it came */
    char *names;       /* storage of the per-layer term names */
    void *own;         /* of the objective, freed by its destroy */
} mb_objective_parts;

/* Common fields from options and model; no functions yet. */
mb_status mb_objective_parts_create(const mb_objective_options *options, mb_lm *lm,
                                    mb_objective_parts **out_parts);
void mb_objective_parts_destroy(mb_objective *self);
void mb_objective_parts_add_term(mb_objective *self, const char *name);

/* Start terms with "loss" (sum so far 0) and add values in the order of self->term. */
void mb_objective_parts_start(const mb_objective *self, mb_objective_terms *terms);
void mb_objective_parts_put(const mb_objective *self, mb_objective_terms *terms, double value);

mb_status mb_objective_parts_plan(const mb_objective_parts *parts, const mb_microbatch *microbatch,
                                  bool with_copies, mb_arena *arena, mb_objective_pass *out_pass);
/* Sum of token losses / step_targets; opt_record_loss[records]: mean per record, NaN without targets. */
double mb_objective_parts_lm_loss(const mb_microbatch *microbatch, const mb_pack *pack,
                                  const mb_lm_output *output, double *opt_record_loss);
/* View of the pass's gates, and zeroed gradients for them (NULL when none is wanted). */
mb_status mb_objective_parts_routing(const mb_objective_parts *parts, const mb_lm_batch *batch,
                                     const mb_lm_output *output, bool gradient, mb_arena *arena,
                                     mb_routing *out_routing, float ***out_gradient);
/* Balance and z terms, put in this order where their coefficients are not 0; adds coefficient x value to
 * out_total. */
mb_status mb_objective_parts_gates(const mb_objective_parts *parts, const mb_microbatch *microbatch,
                                   const mb_routing *routing, int64_t rows, mb_arena *arena,
                                   float *const *gradient, mb_objective_terms *terms, double *out_total);

mb_status mb_objective_lm_create(const mb_objective_options *options, mb_lm *lm,
                                 mb_objective **out_objective);
mb_status mb_objective_warmup_create(const mb_objective_options *options, mb_lm *lm,
                                     mb_objective **out_objective);
mb_status mb_objective_dpo_create(const mb_objective_options *options, mb_lm *lm,
                                  mb_objective **out_objective);
mb_status mb_objective_btm_create(const mb_objective_options *options, mb_lm *lm,
                                  mb_objective **out_objective);
mb_status mb_objective_distil_create(const mb_objective_options *options, mb_lm *lm,
                                     mb_objective **out_objective);

#endif
