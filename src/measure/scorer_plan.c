/* scorer_plan.c: columns, layers, costs, parts.
 *
 * Parts are the windows of the tile plan (mb_tile_part_tokens).
 *
 * 1. columns   2. layers   3. costs   4. the plan
 */
#include "measure/scorer_plan.h"

#include <stdlib.h>
#include <string.h>

/* ---- 1. columns ---- */

static const struct {
    const char *name;
    bool needs_router, needs_source, has_layers, higher_is_better;
} kinds[MB_SCORER_KINDS] = {
    [MB_SCORER_GOOD_MASS] = {"good_mass", true, false, true, true},
    [MB_SCORER_GOOD_LOGITS] = {"good_logits", true, false, true, true},
    [MB_SCORER_PERPLEXITY] = {"perplexity", false, true, false, false},
    [MB_SCORER_ENTROPY] = {"entropy", false, true, true, false},
    [MB_SCORER_BYTES_PER_TOKEN] = {"bytes_per_token", false, false, false, true},
    [MB_SCORER_LENGTH] = {"length", false, false, false, true},
    [MB_SCORER_REPEATS] = {"repeats", false, false, false, false},
    [MB_SCORER_RANDOM] = {"random", false, false, false, true},
    [MB_SCORER_LOGPROB] = {"logprob", false, true, false, true},
    [MB_SCORER_MEAN_LOGPROB] = {"mean_logprob", false, true, false, true},
    [MB_SCORER_TARGETS] = {"targets", false, false, false, true},
};

static mb_status unknown_score(const char *name)
{
    const char *names[MB_SCORER_KINDS];
    for (int k = 0; k < MB_SCORER_KINDS; k++) names[k] = kinds[k].name;
    const char *nearest = mb_str_nearest(name, names, MB_SCORER_KINDS);
    return mb_fail(
        MB_EUSAGE,
        "score.scores: there is no score '%s'%s%s%s; there are good_mass, good_logits, perplexity, entropy, "
        "bytes_per_token, length, repeats, random, logprob, mean_logprob, targets",
        name, nearest != NULL ? " (did you mean " : "", nearest != NULL ? nearest : "",
        nearest != NULL ? "?)" : "");
}

static mb_status add_column(mb_scorer_plan *plan, const char *name)
{
    mb_status status = MB_OK;
    int kind = 0;
    while (kind < MB_SCORER_KINDS && strcmp(kinds[kind].name, name) != 0) kind++;
    if (kind == MB_SCORER_KINDS) MB_TRY(unknown_score(name));
    if (plan->wants[kind]) goto done;
    plan->wants[kind] = true;
    plan->kinds[plan->column_count] = (mb_scorer_kind)kind;
    mb_scores_column *column = &plan->columns[plan->column_count++];
    memcpy(column->name, kinds[kind].name, strlen(kinds[kind].name) + 1);
    column->has_layers = kinds[kind].has_layers;
    column->higher_is_better = kinds[kind].higher_is_better;
    if (kind == MB_SCORER_LOGPROB) MB_TRY(add_column(plan, kinds[MB_SCORER_TARGETS].name));
done:
    return status;
}

static mb_status add_columns(mb_scorer_plan *plan, const char *list)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(list, &names, &n));
    if (n == 0) MB_RAISE(MB_EUSAGE, "score.scores is empty: name at least one score, e.g. good_mass");
    for (int64_t i = 0; i < n; i++) MB_TRY(add_column(plan, names[i]));
done:
    mb_option_list_free(&names, n);
    return status;
}

mb_status mb_scorer_needs_get(const char *scores, mb_scorer_needs *out_needs)
{
    mb_status status = MB_OK;
    mb_scorer_plan plan = {0};
    MB_TRY(add_columns(&plan, scores));
    *out_needs =
        (mb_scorer_needs){.head = mb_scorer_plan_targets(&plan) != MB_TILE_NO_TARGETS,
                          .policy = plan.wants[MB_SCORER_LOGPROB] || plan.wants[MB_SCORER_MEAN_LOGPROB],
                          .plain = plan.wants[MB_SCORER_PERPLEXITY] || plan.wants[MB_SCORER_ENTROPY],
                          .seed = plan.wants[MB_SCORER_RANDOM],
                          .columns = plan.column_count};
    for (int64_t c = 0; c < plan.column_count; c++) {
        out_needs->router = out_needs->router || kinds[plan.kinds[c]].needs_router;
        out_needs->source = out_needs->source || kinds[plan.kinds[c]].needs_source;
        out_needs->layered += kinds[plan.kinds[c]].has_layers;
    }
done:
    return status;
}

/* Of model.path with its adapter, not of what it was made from. */
static bool is_of_policy(mb_scorer_kind kind)
{
    return kind == MB_SCORER_LOGPROB || kind == MB_SCORER_MEAN_LOGPROB;
}

static mb_status check_models(const mb_scorer_plan *plan, const mb_lm *router, const mb_lm *source)
{
    for (int64_t c = 0; c < plan->column_count; c++) {
        mb_scorer_kind kind = plan->kinds[c];
        if (kinds[kind].needs_router && router == NULL) {
            return mb_fail(MB_EUSAGE, "score %s needs the model with trash experts (model.path)",
                           kinds[kind].name);
        }
        if (kinds[kind].needs_source && source == NULL) {
            return mb_fail(MB_EUSAGE, "score %s needs the unconverted model (%s)", kinds[kind].name,
                           is_of_policy(kind) ? "model.path" : "score.source_model");
        }
        if (kinds[kind].needs_router &&
            mb_arch_good(mb_lm_arch(router)) == mb_arch_gates(mb_lm_arch(router))) {
            return mb_fail(MB_EUSAGE,
                           "score %s: the model has no trash experts; convert it (moe-convert trash) or set "
                           "model.trash_expert_ratio",
                           kinds[kind].name);
        }
        if (kind == MB_SCORER_ENTROPY && mb_lm_routers(source) == 0) {
            return mb_fail(
                MB_EUSAGE,
                "score entropy: the source model is dense, it has no routers; leave the score out");
        }
    }
    return MB_OK;
}

/* ---- 2. layers ---- */

static int order_i64(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static mb_status read_layers(mb_scorer_plan *plan, const char *list, int64_t routers)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0, kept = 0, count;
    MB_TRY(mb_option_list_split(list, &words, &n));
    if (n == 0) MB_RAISE(MB_EUSAGE, "score.score_layers is empty: say all, or layer numbers like 0,1,-1");
    bool is_all = n == 1 && strcmp(words[0], "all") == 0;
    count = is_all ? routers : n;
    MB_NEW_ARRAY(plan->layers, count);
    for (int64_t i = 0; is_all && i < routers; i++) plan->layers[i] = i;
    for (int64_t i = 0; !is_all && i < n; i++) {
        int64_t layer;
        MB_TRY(mb_str_parse_int(words[i], &layer));
        plan->layers[i] = layer < 0 ? layer + routers : layer;
        if (plan->layers[i] >= 0 && plan->layers[i] < routers) continue;
        MB_RAISE(MB_EUSAGE,
                 "score.score_layers: there is no layer %s; the model has %lld layers with a router, 0 to "
                 "%lld (or -1 to "
                 "-%lld from the end)",
                 words[i], (long long)routers, (long long)routers - 1, (long long)routers);
    }
    qsort(plan->layers, (size_t)count, sizeof *plan->layers, order_i64);
    for (int64_t i = 0; i < count; i++) {
        if (kept == 0 || plan->layers[kept - 1] != plan->layers[i]) plan->layers[kept++] = plan->layers[i];
    }
    plan->layer_count = kept;
    plan->routers = plan->layers[kept - 1] + 1;
done:
    mb_option_list_free(&words, n);
    return status;
}

static mb_status choose_layers(mb_scorer_plan *plan, const char *list, const mb_lm *router,
                               const mb_lm *source)
{
    mb_status status = MB_OK;
    bool by_router = plan->wants[MB_SCORER_GOOD_MASS] || plan->wants[MB_SCORER_GOOD_LOGITS];
    bool by_source = plan->wants[MB_SCORER_ENTROPY];
    if (!by_router && !by_source) goto done;
    if (by_router && by_source && mb_lm_routers(router) != mb_lm_routers(source)) {
        MB_RAISE(MB_EUSAGE,
                 "the source model has %lld layers with a router, the converted one %lld; they are not the "
                 "same model: "
                 "correct score.source_model, or leave score entropy out",
                 (long long)mb_lm_routers(source), (long long)mb_lm_routers(router));
    }
    MB_TRY(read_layers(plan, list, mb_lm_routers(by_router ? router : source)));
done:
    return status;
}

/* ---- 3. costs ---- */

/* Forward cost per token of what each score needs by itself. The last block of a pass for routers alone ends
 * at its gate: its experts are taken off again. */
static void set_costs(mb_scorer_plan *plan, const mb_lm *router, const mb_lm *source)
{
    const int64_t context = (int64_t)(plan->tiles.context + 0.5);
    for (int64_t c = 0; c < plan->column_count; c++) {
        mb_scorer_kind kind = plan->kinds[c];
        if (!kinds[kind].needs_router && !kinds[kind].needs_source) continue;
        const mb_arch *arch = mb_lm_arch(kinds[kind].needs_router ? router : source);
        if (kind == MB_SCORER_PERPLEXITY || is_of_policy(kind)) {
            plan->columns[c].flops_per_token = mb_arch_flops(arch, arch->layers, true, context);
            continue;
        }
        double experts = 6.0 * (double)arch->picks * (double)arch->width * (double)arch->ffn;
        plan->columns[c].flops_per_token = mb_arch_flops(arch, plan->routers, false, context) - experts;
    }
}

/* ---- 4. the plan ---- */

mb_status mb_scorer_plan_create(const mb_scorer_options *options, const mb_shard *shard,
                                const mb_lm *opt_router_lm, const mb_lm *opt_source_lm,
                                mb_scorer_plan *out_plan)
{
    mb_status status = MB_OK;
    mb_scorer_plan plan = {0};
    if (mb_shard_count(shard) == 0) MB_RAISE(MB_EDATA, "the shard has no records: there is nothing to score");
    MB_TRY(add_columns(&plan, options->scores));
    MB_TRY(check_models(&plan, opt_router_lm, opt_source_lm));
    MB_TRY(choose_layers(&plan, options->score_layers != NULL ? options->score_layers : "all", opt_router_lm,
                         opt_source_lm));
    plan.limit = mb_tile_limit(options->max_length, opt_router_lm, opt_source_lm);
    MB_TRY(mb_tile_plan_create(shard, plan.limit, options->tile_tokens,
                               mb_tile_part_tokens(mb_tile_tokens(shard, plan.limit), options->tile_tokens),
                               &plan.tiles));
    set_costs(&plan, opt_router_lm, opt_source_lm);
    *out_plan = plan;
    plan = (mb_scorer_plan){0};
done:
    mb_scorer_plan_reset(&plan);
    return status;
}

void mb_scorer_plan_reset(mb_scorer_plan *plan)
{
    mb_free(plan->layers);
    mb_tile_plan_reset(&plan->tiles);
    *plan = (mb_scorer_plan){0};
}

mb_tile_targets mb_scorer_plan_targets(const mb_scorer_plan *plan)
{
    if (plan->wants[MB_SCORER_PERPLEXITY]) return MB_TILE_ALL_TARGETS;
    const bool masked = plan->wants[MB_SCORER_LOGPROB] || plan->wants[MB_SCORER_MEAN_LOGPROB];
    return masked ? MB_TILE_MASKED_TARGETS : MB_TILE_NO_TARGETS;
}

mb_status mb_scorer_plan_json(const mb_scorer_plan *plan, const mb_scorer_options *options, json_t **out_json)
{
    mb_status status = MB_OK;
    json_t *names = json_array(), *layers = json_array(), *json = NULL;
    for (int64_t c = 0; c < plan->column_count; c++)
        json_array_append_new(names, json_string(plan->columns[c].name));
    for (int64_t i = 0; i < plan->layer_count; i++)
        json_array_append_new(layers, json_integer(plan->layers[i]));
    json = json_pack("{s:O, s:O, s:I, s:I}", "scores", names, "score_layers", layers, "tile_tokens",
                     (json_int_t)options->tile_tokens, "max_length", (json_int_t)plan->limit);
    if (json == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the options of a scoring pass");
    if (plan->wants[MB_SCORER_RANDOM]) MB_TRY(mb_json_set(json, "seed", json_integer(options->seed)));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    json_decref(names);
    json_decref(layers);
    return status;
}
