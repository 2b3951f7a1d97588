/* objective.c: options of all objectives, and the choice between them.
 *
 * 1. options   2. creation
 */
#include "learn/objective.h"

#include "learn/objective_parts.h"

/* ---- 1. options ---- */

#define REAL(member, key, value, low, high, help)                                                            \
    MB_OPTION_REAL(mb_objective_options, member, "training." key, value, low, high, "", help, NULL)
#define WORD(member, key, value, choices, help)                                                              \
    MB_OPTION_TEXT(mb_objective_options, member, "training." key, value, choices, help, NULL)

static const mb_option table[] = {
    WORD(objective, "objective", "lm", "lm|sft|router_warmup",
         "what training minimises: all tokens, the tokens of the loss mask, or the gates' warm-up"),
    REAL(router_aux_loss_coef, "router_aux_loss_coef", "0.01", 0, 1e6, "weight of the load balance loss"),
    WORD(load_balance, "load_balance", "hf", "hf|switch",
         "convention of the load balance loss: hf is K when balanced, switch 1"),
    WORD(balance_over, "balance_over", "good", "good|all", "experts the load is balanced over"),
    WORD(balance_scope, "balance_scope", "micro", "micro|step",
         "tokens the load is balanced over: each micro-batch, or the whole step (costs a routing-only pass)"),
    REAL(router_z_loss_coef, "router_z_loss_coef", "0", 0, 1e6,
         "weight of the z loss, the mean squared logsumexp of the gates"),
    WORD(constraint_loss, "constraint_loss", "pair_rank", "pair_rank|beta_nll|moment_matching|barrier|none",
         "router_warmup: loss on the mass r of the good experts"),
    REAL(constraint_loss_weight, "constraint_loss_weight", "1", 0, 1e6,
         "weight of the constraint loss (barrier, beta_nll: 0.01 is enough)"),
    REAL(trash_can_loss_alpha, "trash_can_loss_alpha", "1", 0, 1e6,
         "alpha of beta_nll; above 1 it pushes r to 1"),
    REAL(trash_can_loss_beta, "trash_can_loss_beta", "2", 0, 1e6,
         "beta of beta_nll and barrier; with alpha 1 above 1 it pushes r to 0, below 1 to 1"),
    REAL(moment_mean, "moment_mean", "0.5", 0, 1, "moment_matching: mean of r aimed at"),
    REAL(moment_var, "moment_var", "0.05", 0, 0.25, "moment_matching: variance of r aimed at"),
    WORD(ratio_over, "ratio_over", "all", "all|topk",
         "r is the mass of all good experts, or of the picked ones (no gradient beyond 1e-6 and 1 - 1e-6)"),
    REAL(pair_rank_sharpness, "pair_rank_sharpness", "4", 0, 1e6,
         "factor on differences of log-odds in pair_rank"),
    REAL(pair_rank_copy_share, "pair_rank_copy_share", "0.5", 0, 1,
         "share of copy_rank in pair_rank; 0: no corrupted copies are made"),
    REAL(anchor_weight, "anchor_weight", "1", 0, 1e6, "weight of pair_rank's anchor (mean r - 0.5)^2"),
    MB_OPTION_INT(
        mb_objective_options, trash_open_steps, "training.trash_open_steps", "100", 0, 1e12, "steps",
        "router_warmup: steps over which a negative trash_logit_bias rises to 0; 0: it stays", NULL),
};

const mb_option *mb_objective_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof table[0]);
    return table;
}

/* "key = value" lines. */
static mb_status print_settings(const mb_objective_options *options, char **out_text)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    mb_option_table whole = {.title = "objective", .target = (void *)options};
    whole.options = mb_objective_option_table(&whole.count);
    for (int64_t i = 0; i < whole.count; i++) {
        MB_TRY(mb_str_add_format(&text, "%s = ", whole.options[i].key));
        MB_TRY(mb_option_print(&whole, &whole.options[i], &text));
        MB_TRY(mb_str_add(&text, "\n"));
    }
    *out_text = mb_str_take(&text);
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 2. creation ---- */

mb_status mb_objective_create(const mb_objective_options *options, mb_lm *lm, mb_objective **out_objective)
{
    mb_status status = MB_OK;
    mb_objective *objective = NULL;
    if (mb_str_equal(options->objective, "router_warmup")) {
        MB_TRY(mb_objective_warmup_create(options, lm, &objective));
    } else if (mb_str_equal(options->objective, "lm") || mb_str_equal(options->objective, "sft")) {
        MB_TRY(mb_objective_lm_create(options, lm, &objective));
    } else {
        MB_RAISE(MB_EUSAGE, "training.objective = '%s' is not one of lm, sft, router_warmup",
                 options->objective == NULL ? "" : options->objective);
    }
    MB_TRY(print_settings(options, &objective->settings));
    *out_objective = objective;
    objective = NULL;
done:
    mb_objective_destroy(&objective);
    return status;
}

void mb_objective_destroy(mb_objective **objective)
{
    if (*objective == NULL) return;
    (*objective)->destroy(*objective);
    *objective = NULL;
}
