/* objective.c: options of all objectives, and the choice between them.
 *
 * 1. options   2. creation   3. data
 */
#include "learn/objective.h"

#include <string.h>

#include "learn/objective_parts.h"

/* ---- 1. options ---- */

#define REAL(member, key, value, low, high, help)                                                            \
    MB_OPTION_REAL(mb_objective_options, member, "training." key, value, low, high, "", help, NULL)
#define DPO(member, key, value, low, high, help, alias)                                                      \
    MB_OPTION_REAL(mb_objective_options, member, "training.dpo." key, value, low, high, "", help, alias)
#define WORD(member, key, value, choices, help)                                                              \
    MB_OPTION_TEXT(mb_objective_options, member, "training." key, value, choices, help, NULL)

static const mb_option table[] = {
    WORD(objective, "objective", "lm", "lm|sft|router_warmup|dpo|btm|distil|distill",
         "what training minimises: all tokens, the tokens of the loss mask, the gates' warm-up, a "
         "preference loss over pairs, the loss of a fused model by its router (btm), or the distance to a "
         "teacher (distil)"),
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
    MB_OPTION_LIST(
        mb_objective_options, dpo_loss, "training.dpo.loss", "sigmoid",
        "dpo: sigmoid, hinge, ipo, robust, simpo, orpo, sigmoid_norm, exo_pair, nca_pair, bco_pair, "
        "sppo_hard, apo_zero or apo_down, or a list with weights: sigmoid:0.8,ipo:0.2",
        "training.loss_type|training.pref_loss|loss_type|pref_loss"),
    DPO(dpo_beta, "beta", "0.1", 0, 1e6,
        "dpo: how far a reward is from a log-ratio; ipo's tau, orpo's lambda (simpo: 2 is usual)",
        "training.beta|training.pref_beta|beta|pref_beta"),
    DPO(dpo_label_smoothing, "label_smoothing", "0", 0, 0.5,
        "dpo: share of pairs whose sides are taken to be the wrong way round (sigmoid: cDPO; robust, simpo, "
        "exo_pair)",
        "training.label_smoothing|training.dpo_label_smoothing|label_smoothing|dpo_label_smoothing"),
    DPO(dpo_simpo_gamma, "simpo_gamma", "0.5", 0, 1e6, "simpo: margin that is aimed at",
        "training.simpo_gamma|simpo_gamma"),
    DPO(dpo_sft_weight, "sft_weight", "0", 0, 1e6,
        "dpo: weight of the chosen answers' mean cross-entropy beside the preference loss",
        "training.rpo_alpha|training.pref_ftx|rpo_alpha|pref_ftx"),
    DPO(dpo_ld_alpha, "ld_alpha", "1", 0, 1,
        "dpo: weight of an answer's tokens behind the length of the pair's shorter one; 1: all the same",
        "training.ld_alpha|ld_alpha"),
    MB_OPTION_TEXT(mb_objective_options, dpo_nll_over, "training.dpo.nll_over", "all", "all|answers",
                   "orpo: tokens of the chosen side in its cross-entropy, with the prompt or without", NULL),
    MB_OPTION_TEXT(mb_objective_options, reference, "training.reference", NULL, NULL,
                   "dpo: score file with the pairs' log-probabilities (moe-score score.scores=logprob), or "
                   "adapter_off: the model under the adapter, which a new adapter has by itself",
                   NULL),
    MB_OPTION_TEXT(mb_objective_options, validation_reference, "training.validation_reference", NULL, NULL,
                   "dpo: the same of the validation pairs", NULL),
    MB_OPTION_BOOL(mb_objective_options, reference_any_model, "training.reference_any_model", "false",
                   "dpo: the score file may be of another model than the one training starts from", NULL),
    MB_OPTION_REAL(mb_objective_options, load_balance_weight, "training.load_balance_weight", "0.01", 0, 1e6,
                   "",
                   "btm: weight of the balance of the members, 1 when all are used alike, their number when "
                   "one is",
                   "load_balance_weight"),
    MB_OPTION_REAL(mb_objective_options, sparsity_weight, "training.sparsity_weight", "0.001", 0, 1e6, "",
                   "btm: weight of the mean entropy of the members' weights", "sparsity_weight"),
    MB_OPTION_TEXT(
        mb_objective_options, targets, "training.targets", "masked", "masked|all",
        "btm, distil: tokens whose loss counts: those of the shard's loss mask (all where it has none), or "
        "all",
        NULL),
    MB_OPTION_REAL(mb_objective_options, temperature, "training.temperature", "2", 0.01, 1000, "",
                   "distil: temperature of both distributions; with teacher.store one of its temperatures",
                   "training.distill_temperature|distill_temperature"),
    WORD(distill_loss, "distill_loss", "forward_kl", "forward_kl|reverse_kl|jsd",
         "distil: KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon "
         "divergence"),
    REAL(distill_beta, "distill_beta", "0.5", 0, 1, "distil: the teacher's share of jsd's mixture"),
    MB_OPTION_REAL(mb_objective_options, distill_loss_weight, "training.distill_loss_weight", "0.7", 0, 1e6,
                   "", "distil: weight of temperature^2 times the distance to the teacher",
                   "distill_loss_weight"),
    MB_OPTION_REAL(mb_objective_options, task_loss_weight, "training.task_loss_weight", "0.3", 0, 1e6, "",
                   "distil: weight of the cross-entropy of the records' own tokens", "task_loss_weight"),
    MB_OPTION_TEXT(mb_objective_options, teacher_store, "teacher.store", NULL, NULL,
                   "distil: file of moe-teacher with what the teacher says of the shard's tokens",
                   "teacher_store"),
    MB_OPTION_TEXT(mb_objective_options, teacher_validation_store, "teacher.validation_store", NULL, NULL,
                   "distil: the same of the validation shard", "teacher_validation_store"),
};

const mb_option *mb_objective_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof table[0]);
    return table;
}

static bool is_distil(const mb_objective_options *options)
{
    return mb_str_equal(options->objective, "distil") || mb_str_equal(options->objective, "distill");
}

/* Is this a setting of the objective at hand? Files stand in the settings by their content (open_data). */
static bool is_setting(const mb_objective_options *options, const char *key)
{
    static const char *const btm[] = {"training.load_balance_weight", "training.sparsity_weight",
                                      "training.targets"},
                             *const distil[] = {"training.temperature", "training.distill_loss",
                                                "training.distill_beta", "training.distill_loss_weight",
                                                "training.task_loss_weight"};
    if (mb_str_is_prefix(key, "training.dpo.")) return mb_str_equal(options->objective, "dpo");
    for (size_t i = 0; i < sizeof btm / sizeof *btm; i++)
        if (mb_str_equal(key, btm[i]))
            return mb_str_equal(options->objective, "btm") || (i == 2 && is_distil(options));
    for (size_t i = 0; i < sizeof distil / sizeof *distil; i++)
        if (mb_str_equal(key, distil[i])) return is_distil(options);
    if (mb_str_is_prefix(key, "teacher.")) return false;
    return !mb_str_is_prefix(key, "training.reference") &&
           !mb_str_equal(key, "training.validation_reference");
}

/* "key = value" lines. */
static mb_status print_settings(const mb_objective_options *options, char **out_text)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    mb_option_table whole = {.title = "objective", .target = (void *)options};
    whole.options = mb_objective_option_table(&whole.count);
    for (int64_t i = 0; i < whole.count; i++) {
        if (!is_setting(options, whole.options[i].key)) continue;
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
    } else if (mb_str_equal(options->objective, "dpo")) {
        MB_TRY(mb_objective_dpo_create(options, lm, &objective));
    } else if (mb_str_equal(options->objective, "btm")) {
        MB_TRY(mb_objective_btm_create(options, lm, &objective));
    } else if (is_distil(options)) {
        MB_TRY(mb_objective_distil_create(options, lm, &objective));
    } else {
        MB_RAISE(MB_EUSAGE,
                 "training.objective = '%s' is not one of lm, sft, router_warmup, dpo, btm, distil",
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

/* ---- 3. data ---- */

static mb_status check_kind(const mb_objective *objective, const mb_shard *shard)
{
    const char *file = mb_shard_file_path(shard, 0);
    if (mb_shard_is_pairs(shard) && !objective->wants_pairs)
        return mb_fail(MB_EDATA,
                       "%s holds preference pairs, and objective %s takes records one by one; set "
                       "training.objective=dpo, or make a shard of the chosen answers (dataset.pairs=false)",
                       file, objective->name);
    if (!mb_shard_is_pairs(shard) && objective->wants_pairs)
        return mb_fail(MB_EDATA,
                       "%s holds records one by one, and objective %s takes preference pairs; make the shard "
                       "with moe-shard from records with chosen and rejected answers (dataset.pairs=true)",
                       file, objective->name);
    return MB_OK;
}

mb_status mb_objective_open_data(mb_objective *objective, const mb_objective_data *data)
{
    mb_status status = MB_OK;
    MB_TRY(check_kind(objective, data->shard));
    if (data->opt_validation != NULL) MB_TRY(check_kind(objective, data->opt_validation));
    if (objective->open_data != NULL) MB_TRY(objective->open_data(objective, data));
done:
    return status;
}
