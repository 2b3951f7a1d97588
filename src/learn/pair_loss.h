/* pair_loss: losses over the log-probabilities of a chosen and a rejected answer, with gradients and the
 * rewards that are logged.
 *
 * Layer: learn.  Uses: base (status).
 * Source: as TRL's DPOTrainer, CPOTrainer (simpo) and ORPOTrainer compute them. Rafailov et al. (2023) DPO,
 * eq. 7 (sigmoid; with label smoothing Mitchell (2023), cDPO); Zhao et al. (2023) SLiC-HF, eq. 1 (hinge);
 * Azar et al. (2023) IPO, eq. 17; Chowdhury et al. (2024) robust DPO, eq. 12; Meng et al. (2024) SimPO,
 * eq. 6; Hong et al. (2024) ORPO, eq. 6 and 7; Ji et al. (2024) EXO, eq. 16; Chen et al. (2024) NCA; Jung et
 * al. (2024) BCO; Wu et al. (2024) SPPO, eq. 4.7; D'Oosterlinck et al. (2024) APO, eq. 7 and 8.
 *
 * With p the sum of ln p over an answer's tokens, n their number, r = p - p_reference and d = r(chosen) -
 * r(rejected), S the sigmoid, e label_smoothing:
 *   sigmoid       -(1-e) ln S(beta d) - e ln S(-beta d)
 *   hinge         max(0, 1 - beta d)
 *   ipo           (r/n(chosen) - r/n(rejected) - 1/(2 beta))^2
 *   robust        (-(1-e) ln S(beta d) + e ln S(-beta d)) / (1 - 2e)
 *   sigmoid_norm  -ln S(beta (r/n(chosen) - r/n(rejected)))
 *   exo_pair      KL of S(beta d) from (1-e, e)
 *   nca_pair, bco_pair, sppo_hard, apo_zero, apo_down: see the functions
 *   simpo         as sigmoid, of beta (p/n(chosen) - p/n(rejected)) - simpo_gamma; no reference
 *   orpo          -beta ln S(ln odds(chosen) - ln odds(rejected)), odds of p/n; no reference. Its other part,
 *                 the mean -ln p of the chosen side, is the objective's
 * A list adds them up with weights.
 */
#ifndef MB_PAIR_LOSS_H
#define MB_PAIR_LOSS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define MB_PAIR_LOSS_MAX 8

typedef enum mb_pair_loss_kind {
    MB_PAIR_LOSS_SIGMOID,
    MB_PAIR_LOSS_HINGE,
    MB_PAIR_LOSS_IPO,
    MB_PAIR_LOSS_ROBUST,
    MB_PAIR_LOSS_SIGMOID_NORM,
    MB_PAIR_LOSS_EXO_PAIR,
    MB_PAIR_LOSS_NCA_PAIR,
    MB_PAIR_LOSS_BCO_PAIR,
    MB_PAIR_LOSS_SPPO_HARD,
    MB_PAIR_LOSS_APO_ZERO,
    MB_PAIR_LOSS_APO_DOWN,
    MB_PAIR_LOSS_SIMPO,
    MB_PAIR_LOSS_ORPO,
    MB_PAIR_LOSS_KINDS
} mb_pair_loss_kind;

typedef struct mb_pair_loss {
    int count; /* of the list, >= 1 */
    mb_pair_loss_kind kind[MB_PAIR_LOSS_MAX];
    double weight[MB_PAIR_LOSS_MAX];
    double beta, label_smoothing, simpo_gamma;
} mb_pair_loss;

/* A side of a pair. */
typedef struct mb_pair_side {
    double logprob, reference; /* sums of ln p */
    int64_t targets;           /* n; 0 counts as 1 */
} mb_pair_side;

typedef struct mb_pair_value {
    double loss;                           /* weighted sum of the list */
    double d_chosen, d_rejected;           /* of loss by the sides' logprob */
    double reward_chosen, reward_rejected; /* beta r; without a reference beta p/n */
    double logp_chosen, logp_rejected;     /* p; without a reference p/n */
    double log_odds, log_odds_ratio;       /* orpo: the difference of ln odds, and its ln S */
} mb_pair_value;

/* Kinds and weights from "sigmoid" or "sigmoid:0.8,ipo:0.2" (weight 1 when none is given), with the other
 * settings checked against them: MB_EUSAGE says what does not go together. */
mb_status mb_pair_loss_parse(const char *list, double beta, double label_smoothing, double simpo_gamma,
                             mb_pair_loss *out_loss);
bool mb_pair_loss_has(const mb_pair_loss *loss, mb_pair_loss_kind kind);
/* Weight of a kind, 0 when it is not in the list. */
double mb_pair_loss_weight(const mb_pair_loss *loss, mb_pair_loss_kind kind);
bool mb_pair_loss_needs_reference(const mb_pair_loss *loss);
/* Is there one that takes no reference (simpo, orpo)? */
bool mb_pair_loss_has_free(const mb_pair_loss *loss);
mb_pair_value mb_pair_loss_get(const mb_pair_loss *loss, const mb_pair_side *chosen,
                               const mb_pair_side *rejected);

#endif
