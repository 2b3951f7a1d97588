/* balance: load balance and z losses of the gates, with gradients.
 *
 * Layer: learn.  Uses: base, routing.
 * Source: Fedus, Zoph, Shazeer (2021) Switch Transformers, eq. 4-6; Zoph et al. (2022) ST-MoE, eq. 5;
 * transformers' load_balancing_loss_func.
 *
 * With f_e the share of picks that went to expert e and P_e its mean probability:
 *   hf      all layers' rows concatenated: E * sum_e K f_e P_e; K when balanced.
 *   switch  per layer E * sum_e f_e P_e, mean over layers; 1 when balanced.
 * Over the good experts only, P is the softmax over the good logits and f_e the share among good picks, so
 * that a model without trash gets exactly the usual value. Picks carry no gradient.
 */
#ifndef MB_BALANCE_H
#define MB_BALANCE_H

#include <stdbool.h>

#include "base/memory.h"
#include "learn/routing.h"

typedef enum mb_balance_kind { MB_BALANCE_HF, MB_BALANCE_SWITCH } mb_balance_kind;

typedef struct mb_balance_rule {
    mb_balance_kind kind;
    bool over_all;             /* all experts, not the good ones alone */
    const int64_t *step_picks; /* [routers, E'] of a whole step of which the rows at hand are a part: the
                                  parts' values add up to the step's. NULL: the rows stand alone */
} mb_balance_rule;

/* Over rows 0..rows-1 of routing (rows >= 1). gradient: [routers] of [T, E']; NULL: value only. */
mb_status mb_balance_load(const mb_routing *routing, int64_t rows, const mb_balance_rule *rule, double scale,
                          mb_arena *arena, float *const *opt_gradient, double *out_value);

/* Mean over rows and layers of logsumexp(all logits)^2. */
mb_status mb_balance_z(const mb_routing *routing, int64_t rows, double scale, mb_arena *arena,
                       float *const *opt_gradient, double *out_value);

#endif
