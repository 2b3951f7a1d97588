/* subset_options.c: the table. */
#include "stage/subset_options.h"

static const mb_option table[] = {
    MB_OPTION_TEXT(mb_subset_program, train, "subset.train", NULL, NULL,
                   "outputs.h5 (or its folder) of the questions that subsets are chosen on", NULL),
    MB_OPTION_TEXT(mb_subset_program, test, "subset.test", NULL, NULL,
                   "outputs.h5 (or its folder) of the questions that the chosen subsets are reported on",
                   NULL),
    MB_OPTION_TEXT(mb_subset_program, latency, "subset.latency", NULL, NULL,
                   "latency.json of moe-bench, or its folder", NULL),
    MB_OPTION_TEXT(mb_subset_program, energy, "subset.energy", NULL, NULL,
                   "energy.json of moe-bench, or its folder; default: beside latency.json", NULL),
    MB_OPTION_TEXT(
        mb_subset_program, method, "subset.method", "auto", "auto|exhaustive|branch_and_bound",
        "exhaustive: every subset, up to 24 experts, with the whole Pareto front; branch_and_bound: up "
        "to 40 experts; auto: exhaustive up to 20",
        NULL),
    MB_OPTION_TEXT(mb_subset_program, rule, "subset.rule", "gate_weighted",
                   "majority|gate_weighted|mean_prob|gate_top1", "how the members' answers are fused", NULL),
    MB_OPTION_INT(mb_subset_program, top_k, "subset.top_k", "3", 0, 40, "experts",
                  "members that the gate asks for a question; 0: all of the subset", NULL),
    MB_OPTION_TEXT(
        mb_subset_program, limits, "subset.limits", "max", "max|mean",
        "energy of a subset: max: the dearest request there can be, its top_k largest energies; mean: "
        "of the gate's actual picks (exhaustive only)",
        NULL),
    MB_OPTION_LIST(mb_subset_program, latency_limits, "subset.latency_limits", "1,2,3",
                   "latency limits in seconds; auto: the deciles of what was measured (which have tables of "
                   "their own in any case)",
                   NULL),
    MB_OPTION_LIST(mb_subset_program, energy_limits, "subset.energy_limits", "5,10,15,20,25,30,35,40,45,50",
                   "energy limits in joules, or auto", NULL),
    MB_OPTION_REAL(
        mb_subset_program, seconds, "subset.seconds", "60", 0, 1e9, "seconds",
        "branch_and_bound: time for one pair of limits, then the best subset found and a bound; 0: no "
        "end",
        NULL),
    MB_OPTION_BOOL(
        mb_subset_program, check, "subset.check", "true",
        "exhaustive: find the subsets of all pairs of limits by branch and bound too, and fail where "
        "they differ (not for limits mean)",
        NULL),
    MB_OPTION_BOOL(
        mb_subset_program, retrain, "subset.retrain", "true",
        "with both embeddings: train a gate on every subset chosen under limits alone, and report it "
        "beside the masked one",
        NULL),
    MB_OPTION_TEXT(mb_subset_program, embeddings_train, "subset.embeddings_train", NULL, NULL,
                   "embeddings of subset.train's questions (moe-embed), for retrained gates", NULL),
    MB_OPTION_TEXT(mb_subset_program, embeddings_test, "subset.embeddings_test", NULL, NULL,
                   "embeddings of subset.test's questions", NULL),
    MB_OPTION_TEXT(mb_subset_program, targets, "subset.targets", "soft", "soft|best|likelihood",
                   "what retrained gates learn, as gate.targets", NULL),
    MB_OPTION_JSON(mb_subset_program, experts_data, "subset.experts_data", NULL,
                   "files of questions the experts were trained on (name=path,...): questions that stand "
                   "there too are left out of both sets and counted",
                   NULL),
};

const mb_option *mb_subset_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof *table);
    return table;
}
