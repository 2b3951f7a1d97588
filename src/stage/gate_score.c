/* gate_score.c: systems, groups, shares and intervals.
 *
 * 1. checks   2. systems   3. right and wrong   4. groups   5. intervals   6. the gate itself   7. all
 */
#include "stage/gate_score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "choose/vote.h"
#include "measure/bootstrap.h"
#include "store/h5.h"

void mb_gate_score_reset(mb_gate_score *s)
{
    mb_h5_free_strings(&s->system, s->systems);
    mb_h5_free_strings(&s->group, s->groups);
    mb_free(s->correct);
    mb_free(s->member);
    mb_free(s->size);
    mb_free(s->accuracy);
    mb_free(s->gain);
    mb_free(s->picks);
    mb_free(s->weight);
    *s = (mb_gate_score){0};
}

int64_t mb_gate_score_find(const mb_gate_score *score, const char *system)
{
    for (int64_t i = 0; i < score->systems; i++)
        if (strcmp(score->system[i], system) == 0) return i;
    return -1;
}

/* ---- 1. checks ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static mb_status check_apart(const mb_outputs *train, const mb_outputs *test)
{
    mb_status status = MB_OK;
    const char **ids = NULL;
    int64_t both = 0;
    MB_NEW_ARRAY(ids, train->questions);
    for (int64_t q = 0; q < train->questions; q++) ids[q] = train->ids[q];
    qsort(ids, (size_t)train->questions, sizeof *ids, by_text);
    for (int64_t q = 0; q < test->questions; q++)
        both += bsearch(&test->ids[q], ids, (size_t)train->questions, sizeof *ids, by_text) != NULL;
    if (both > 0)
        MB_RAISE(MB_EDATA,
                 "%lld questions stand in gate.train and in gate.test; split them first (moe-merge "
                 "split)",
                 (long long)both);
done:
    mb_free(ids);
    return status;
}

static mb_status check(const mb_outputs *train, const mb_outputs *test)
{
    mb_status status = MB_OK;
    bool are_alike = train->experts == test->experts;
    for (int64_t x = 0; x < test->experts && are_alike; x++)
        are_alike = strcmp(train->expert_names[x], test->expert_names[x]) == 0 &&
                    strcmp(train->model_hashes[x], test->model_hashes[x]) == 0;
    if (!are_alike)
        MB_RAISE(MB_EDATA,
                 "gate.train and gate.test hold answers of different experts; take the same ones, in "
                 "the same order");
    if (test->opt_gate_logits == NULL)
        MB_RAISE(MB_EDATA, "gate.test has no gate logits; run moe-gate apply first");
    MB_TRY(check_apart(train, test));
done:
    return status;
}

/* ---- 2. systems ---- */

static const mb_vote_rule fusing[] = {MB_VOTE_MAJORITY, MB_VOTE_GATE_WEIGHTED, MB_VOTE_MEAN_PROB};
enum { FUSING = 3 };

/* What stands at a place of the list. */
typedef enum plan_kind { FUSED, ORACLE, BEST_SINGLE, RANDOM, CHANCE, EXPERT } plan_kind;
typedef struct plan {
    plan_kind kind;
    mb_vote_rule rule;
    int64_t k, expert; /* k 0: all */
} plan;

static int64_t make_plans(const mb_gate_score_options *o, int64_t experts, plan *out)
{
    int64_t n = 0;
    out[n++] = (plan){.kind = FUSED, .rule = MB_VOTE_GATE_TOP1};
    for (int64_t i = 0; i <= o->top_k_count; i++)
        for (int r = 0; r < FUSING; r++)
            out[n++] = (plan){.kind = FUSED, .rule = fusing[r], .k = i < o->top_k_count ? o->top_k[i] : 0};
    for (plan_kind which = ORACLE; which <= CHANCE; which++) out[n++] = (plan){.kind = which};
    for (int64_t x = 0; x < experts; x++) out[n++] = (plan){.kind = EXPERT, .expert = x};
    return n;
}

static char *plan_name(const plan *p, const mb_outputs *test)
{
    static const char *const names[] = {
        [ORACLE] = "oracle", [BEST_SINGLE] = "best_single", [RANDOM] = "random", [CHANCE] = "chance"};
    if (p->kind == EXPERT) return mb_str_format("expert/%s", test->expert_names[p->expert]);
    if (p->kind != FUSED) return mb_strdup(names[p->kind]);
    if (p->rule == MB_VOTE_GATE_TOP1) return mb_strdup("gate_top1");
    if (p->k == 0) return mb_str_format("%s_all", mb_vote_name(p->rule));
    return mb_str_format("%s@%lld", mb_vote_name(p->rule), (long long)p->k);
}

/* ---- 3. right and wrong ---- */

static int64_t find_best(const mb_outputs *train)
{
    int64_t best = 0, most = -1;
    for (int64_t x = 0; x < train->experts; x++) {
        int64_t right = 0;
        for (int64_t q = 0; q < train->questions; q++) right += train->right[q * train->experts + x];
        if (right > most) {
            most = right;
            best = x;
        }
    }
    return best;
}

/* all: 0 .. X - 1; room: X. */
static double judge(const plan *p, const mb_outputs *test, int64_t q, int64_t best, const int64_t *all,
                    int64_t *room)
{
    const int64_t X = test->experts;
    const uint8_t *right = test->right + q * X;
    double sum = 0;
    for (int64_t x = 0; x < X; x++) sum += right[x];
    switch (p->kind) {
    case ORACLE:
        return sum > 0;
    case BEST_SINGLE:
        return right[best];
    case RANDOM:
        return sum / (double)X;
    case CHANCE:
        return test->chance[q];
    case EXPERT:
        return right[p->expert];
    case FUSED:
        break;
    }
    const mb_vote_question question = mb_vote_question_get(test, q);
    const int64_t n = mb_vote_top_k(question.opt_gate_logits, all, X, p->k, room);
    return mb_vote_is_right(&question, mb_vote_run(p->rule, &question, room, n));
}

static mb_status fill_correct(const mb_outputs *train, const mb_outputs *test, mb_gate_score *s)
{
    mb_status status = MB_OK;
    plan *plans = NULL;
    int64_t *all = NULL, *room = NULL;
    MB_NEW_ARRAY(plans, FUSING * (s->options.top_k_count + 1) + 5 + test->experts);
    MB_NEW_ARRAY(all, test->experts);
    MB_NEW_ARRAY(room, test->experts);
    for (int64_t x = 0; x < test->experts; x++) all[x] = x;
    const int64_t n = make_plans(&s->options, test->experts, plans);
    MB_NEW_ARRAY(s->system, n);
    MB_NEW_ARRAY(s->correct, n * test->questions);
    s->systems = n;
    s->best_expert = find_best(train);
    for (int64_t i = 0; i < n; i++) {
        s->system[i] = plan_name(&plans[i], test);
        if (s->system[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
        if (plans[i].kind == BEST_SINGLE) s->best_single = i;
        if (plans[i].kind == ORACLE) s->oracle = i;
        for (int64_t q = 0; q < test->questions; q++)
            s->correct[i * test->questions + q] = judge(&plans[i], test, q, s->best_expert, all, room);
    }
done:
    mb_free(plans);
    mb_free(all);
    mb_free(room);
    return status;
}

/* ---- 4. groups ---- */

static const char *const kind_names[] = {"single", "multiple", "cloze"};

static mb_status add_group(mb_gate_score *s, char *name, const mb_outputs *test, int32_t source, int kind)
{
    mb_status status = MB_OK;
    double *member = s->member + s->groups * s->questions;
    int64_t n = 0;
    for (int64_t q = 0; q < s->questions; q++) {
        member[q] = (source < 0 || test->source[q] == source) && (kind < 0 || test->kind[q] == kind);
        n += member[q] > 0;
    }
    if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    if (n == 0) {
        mb_free(name);
        goto done;
    }
    s->size[s->groups] = n;
    s->group[s->groups++] = name;
done:
    return status;
}

static mb_status fill_groups(const mb_outputs *test, mb_gate_score *s)
{
    mb_status status = MB_OK;
    const int64_t most = test->sources + 4;
    bool are_several = false;
    MB_NEW_ARRAY(s->group, most);
    MB_NEW_ARRAY(s->size, most);
    MB_NEW_ARRAY(s->member, most * s->questions);
    MB_TRY(add_group(s, mb_strdup("all"), test, -1, -1));
    for (int64_t i = 0; i < test->sources; i++)
        MB_TRY(add_group(s, mb_str_format("source/%s", test->source_names[i]), test, (int32_t)i, -1));
    for (int64_t q = 1; q < s->questions; q++) are_several |= test->kind[q] != test->kind[0];
    for (int k = 0; k < 3 && are_several; k++)
        MB_TRY(add_group(s, mb_str_format("kind/%s", kind_names[k]), test, -1, k));
done:
    return status;
}

/* ---- 5. intervals ---- */

static mb_status fill_values(mb_gate_score *s)
{
    mb_status status = MB_OK;
    const int64_t cells = s->systems * s->groups, draws = s->options.draws, Q = s->questions;
    mb_bootstrap_column *columns = NULL;
    double *drawn = NULL, *apart = NULL;
    MB_NEW_ARRAY(columns, cells);
    MB_NEW_ARRAY(drawn, draws * cells);
    MB_NEW_ARRAY(apart, draws);
    MB_NEW_ARRAY(s->accuracy, cells);
    MB_NEW_ARRAY(s->gain, cells);
    for (int64_t c = 0; c < cells; c++)
        columns[c] = (mb_bootstrap_column){.value = s->correct + c / s->groups * Q,
                                           .weight = s->member + c % s->groups * Q};
    MB_TRY(mb_bootstrap_draw(columns, cells, Q, draws, (uint64_t)s->options.seed, 0, drawn));
    for (int64_t c = 0; c < cells; c++) {
        const int64_t base = s->best_single * s->groups + c % s->groups;
        mb_gate_score_value *accuracy = &s->accuracy[c], *gain = &s->gain[c];
        accuracy->value = mb_bootstrap_statistic(&columns[c], Q);
        gain->value = accuracy->value - mb_bootstrap_statistic(&columns[base], Q);
        MB_TRY(mb_bootstrap_interval(drawn + c, draws, cells, s->options.level, &accuracy->low,
                                     &accuracy->high));
        for (int64_t d = 0; d < draws; d++) apart[d] = drawn[d * cells + c] - drawn[d * cells + base];
        MB_TRY(mb_bootstrap_interval(apart, draws, 1, s->options.level, &gain->low, &gain->high));
    }
done:
    mb_free(columns);
    mb_free(drawn);
    mb_free(apart);
    return status;
}

/* ---- 6. the gate itself ---- */

static mb_status fill_gate(const mb_outputs *test, mb_gate_score *s)
{
    mb_status status = MB_OK;
    const int64_t X = test->experts;
    double *weights = NULL;
    float *target = NULL;
    MB_NEW_ARRAY(weights, X);
    MB_NEW_ARRAY(target, s->questions * X);
    MB_NEW_ARRAY(s->picks, s->groups * X);
    MB_NEW_ARRAY(s->weight, s->groups * X);
    for (int64_t q = 0; q < s->questions; q++) {
        const float *logits = test->opt_gate_logits + q * X;
        const uint8_t *right = test->right + q * X;
        int64_t top = 0, n = 0;
        mb_vote_weights(logits, X, weights);
        for (int64_t x = 0; x < X; x++) {
            if (logits[x] > logits[top]) top = x;
            n += right[x];
        }
        for (int64_t x = 0; x < X && n > 0; x++) target[q * X + x] = (float)right[x] / (float)n;
        for (int64_t g = 0; g < s->groups; g++) {
            const double share = s->member[g * s->questions + q] / (double)s->size[g];
            s->picks[g * X + top] += share;
            for (int64_t x = 0; x < X; x++) s->weight[g * X + x] += share * weights[x];
        }
    }
    s->nll = mb_gate_loss(test->opt_gate_logits, target, s->questions, X, 1);
    s->ece = mb_gate_reliability(test->opt_gate_logits, target, s->questions, X, 1, s->bins);
done:
    mb_free(weights);
    mb_free(target);
    return status;
}

/* ---- 7. all ---- */

mb_status mb_gate_score_make(const mb_outputs *train, const mb_outputs *test,
                             const mb_gate_score_options *options, mb_gate_score *out_score)
{
    mb_status status = MB_OK;
    mb_gate_score s = {.questions = test->questions, .experts = test->experts, .options = *options};
    MB_TRY(check(train, test));
    MB_TRY(fill_correct(train, test, &s));
    MB_TRY(fill_groups(test, &s));
    MB_TRY(fill_values(&s));
    MB_TRY(fill_gate(test, &s));
    *out_score = s;
    s = (mb_gate_score){0};
done:
    mb_gate_score_reset(&s);
    return status;
}
