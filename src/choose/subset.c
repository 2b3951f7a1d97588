/* subset.c: the questions as the search wants them, and what one set is worth.
 *
 * 1. questions   2. fused answers   3. costs   4. one set   5. create, destroy
 */
#include "choose/subset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "choose/subset_state.h"

/* ---- 1. questions ---- */

static int compare_answers(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The distinct answers of a question, rising; returns their number. */
static int distinct_answers(const int32_t *picked, int experts, int32_t *out)
{
    int n = 0, kept = 0;
    for (int e = 0; e < experts; e++)
        if (picked[e] >= 0) out[n++] = picked[e];
    qsort(out, (size_t)n, sizeof *out, compare_answers);
    for (int i = 0; i < n; i++)
        if (i == 0 || out[i] != out[kept - 1]) out[kept++] = out[i];
    return kept;
}

static void order_by_gate(const float *opt_logits, int experts, uint8_t *out_order)
{
    for (int e = 0; e < experts; e++) {
        int place = 0;
        for (int j = 0; j < experts; j++) {
            if (opt_logits == NULL)
                place += j < e;
            else
                place += opt_logits[j] > opt_logits[e] || (opt_logits[j] == opt_logits[e] && j < e);
        }
        out_order[place] = (uint8_t)e;
    }
}

/* Mean of p over the options of an answer, as vote.c takes it. */
static double mean_of(const mb_vote_question *q, int expert, int32_t answer)
{
    const float *prob = q->choice_prob + expert * q->choices;
    double part = 0;
    int held = 0;
    if (q->kind == MB_OUTPUTS_CLOZE) return 0;
    for (int32_t c = 0; c < q->options; c++) {
        const bool is_in = q->kind == MB_OUTPUTS_SINGLE ? c == answer : (answer >> c & 1) != 0;
        part += is_in ? (double)prob[c] : 0;
        held += is_in;
    }
    return part / held;
}

static void fill_question(mb_subset *s, const mb_outputs *outputs, int64_t q)
{
    const mb_vote_question from = mb_vote_question_get(outputs, q);
    const int X = s->experts;
    mb_subset_question *to = s->question + q;
    int32_t answers[MB_SUBSET_EXPERTS] = {0};
    uint64_t *givers = s->givers + q * X;
    double *weight = s->weights + q * X, *mean = s->means + q * X * X;
    *to = (mb_subset_question){.kind = from.kind, .options = from.options, .answer = from.answer};
    to->rule = s->options.rule;
    if (to->rule == MB_VOTE_MEAN_PROB && from.kind == MB_OUTPUTS_CLOZE) to->rule = MB_VOTE_MAJORITY;
    to->givers = givers, to->weight = weight, to->mean = mean, to->prob = from.choice_prob;
    order_by_gate(from.opt_gate_logits, X, to->order);
    mb_vote_weights(from.opt_gate_logits, X, weight);
    to->classes = distinct_answers(from.picked, X, answers);
    for (int c = 0; c < to->classes; c++) {
        if (mb_vote_is_right(&from, answers[c])) to->right_classes |= mb_subset_bit(c);
        for (int e = 0; e < X; e++) {
            if (from.picked[e] == answers[c]) givers[c] |= mb_subset_bit(e);
            if (from.picked[e] >= 0) mean[e * to->classes + c] = mean_of(&from, e, answers[c]);
        }
        to->voters |= givers[c];
        if (to->right_classes >> c & 1) to->right |= givers[c];
    }
}

/* ---- 2. fused answers ---- */

/* Sum of the members' numbers, in rising order of expert. */
static double sum_of(const double *values, int stride, uint64_t members)
{
    double sum = 0;
    for (; members != 0; members &= members - 1) sum += values[mb_subset_lowest(members) * stride];
    return sum;
}

/* Does class a go before the best one so far, b < a? */
static bool is_class_better(const mb_subset_question *q, uint64_t members, bool by_weight, int a, int b)
{
    const uint64_t of_a = members & q->givers[a], of_b = members & q->givers[b];
    const int votes_a = mb_subset_count(of_a), votes_b = mb_subset_count(of_b);
    if (!by_weight && votes_a != votes_b) return votes_a > votes_b;
    const double weight_a = sum_of(q->weight, 1, of_a), weight_b = sum_of(q->weight, 1, of_b);
    if (weight_a != weight_b) return weight_a > weight_b;
    if (votes_a != votes_b) return votes_a > votes_b;
    const double mean_a = sum_of(q->mean + a, q->classes, members),
                 mean_b = sum_of(q->mean + b, q->classes, members);
    if (mean_a != mean_b) return mean_a > mean_b;
    return q->kind == MB_OUTPUTS_CLOZE && mb_subset_lowest(of_a) < mb_subset_lowest(of_b);
}

static bool decide_votes(const mb_subset_question *q, uint64_t members, bool by_weight)
{
    int best = 0; /* one that somebody gives */
    while ((members & q->givers[best]) == 0) best++;
    for (int c = best + 1; c < q->classes; c++)
        if ((members & q->givers[c]) != 0 && is_class_better(q, members, by_weight, c, best)) best = c;
    return q->right_classes >> best & 1;
}

static bool decide_mean(const mb_subset *s, const mb_subset_question *q, uint64_t members)
{
    double sum[MB_OUTPUTS_OPTIONS] = {0};
    int32_t best = 0, mask = 0;
    for (; members != 0; members &= members - 1) {
        const float *prob = q->prob + mb_subset_lowest(members) * s->choices;
        for (int32_t c = 0; c < q->options; c++) sum[c] += prob[c];
    }
    for (int32_t c = 1; c < q->options; c++)
        if (sum[c] > sum[best]) best = c;
    if (q->kind == MB_OUTPUTS_SINGLE) return best == q->answer;
    for (int32_t c = 0; c < q->options; c++)
        if (sum[c] >= 0.5 * sum[best]) mask |= (int32_t)1 << c;
    return mask == q->answer;
}

bool mb_subset_decide(const mb_subset *subset, const mb_subset_question *question, uint64_t members)
{
    members &= question->voters;
    if (members == 0) return false;
    if ((members & ~question->right) == 0 && question->rule != MB_VOTE_MEAN_PROB) return true;
    switch (question->rule) {
    case MB_VOTE_MEAN_PROB:
        return decide_mean(subset, question, members);
    case MB_VOTE_GATE_TOP1:
        for (int r = 0; r < subset->experts; r++)
            if (members >> question->order[r] & 1) return question->right >> question->order[r] & 1;
        return false;
    case MB_VOTE_MAJORITY:
    case MB_VOTE_GATE_WEIGHTED:
        break;
    }
    if ((members & question->right) == 0) return false;
    return decide_votes(question, members, question->rule == MB_VOTE_GATE_WEIGHTED);
}

uint64_t mb_subset_asked(const mb_subset *subset, const mb_subset_question *question, uint64_t set)
{
    uint64_t asked = 0;
    if (mb_subset_count(set) <= subset->voters_most) return set;
    for (int r = 0, n = 0; n < subset->voters_most; r++) {
        const uint64_t bit = mb_subset_bit(question->order[r]);
        if ((set & bit) == 0) continue;
        asked |= bit;
        n++;
    }
    return asked;
}

/* ---- 3. costs ---- */

double mb_subset_latency(const mb_subset *subset, uint64_t set)
{
    double most = 0;
    for (; set != 0; set &= set - 1) most = fmax(most, subset->costs.latency[mb_subset_lowest(set)]);
    return most + subset->costs.aggregation;
}

double mb_subset_energy_max(const mb_subset *subset, uint64_t set)
{
    double sum = 0;
    for (int i = 0, n = 0; i < subset->experts && n < subset->voters_most; i++) {
        if ((set >> subset->by_energy[i] & 1) == 0) continue;
        sum += subset->costs.energy[subset->by_energy[i]];
        n++;
    }
    return sum;
}

/* ---- 4. one set ---- */

void mb_subset_measure(const mb_subset *subset, uint64_t set, mb_subset_found *out_found)
{
    double energy = 0;
    *out_found = (mb_subset_found){.set = set, .latency = mb_subset_latency(subset, set)};
    for (int64_t q = 0; q < subset->questions; q++) {
        const uint64_t asked = mb_subset_asked(subset, subset->question + q, set);
        out_found->right += mb_subset_decide(subset, subset->question + q, asked);
        if (subset->options.is_energy_mean) energy += sum_of(subset->costs.energy, 1, asked);
    }
    out_found->energy = subset->options.is_energy_mean ? energy / (double)subset->questions
                                                       : mb_subset_energy_max(subset, set);
}

bool mb_subset_is_better(const mb_subset_found *a, const mb_subset_found *b)
{
    if (a->set == 0 || b->set == 0) return a->set != 0 && b->set == 0;
    if (a->right != b->right) return a->right > b->right;
    if (a->energy != b->energy) return a->energy < b->energy;
    if (a->latency != b->latency) return a->latency < b->latency;
    const int count_a = mb_subset_count(a->set), count_b = mb_subset_count(b->set);
    return count_a != count_b ? count_a < count_b : a->set < b->set;
}

bool mb_subset_meets(const mb_subset_found *found, const mb_subset_limits *limits)
{
    return found->set != 0 && mb_subset_is_within(found->latency, limits->latency) &&
           mb_subset_is_within(found->energy, limits->energy);
}

/* ---- 5. create, destroy ---- */

static mb_status check(const mb_outputs *outputs, const mb_subset_costs *costs)
{
    if (outputs->experts < 1 || outputs->experts > MB_SUBSET_EXPERTS)
        return mb_fail(MB_ERANGE, "%lld experts: the subset search takes 1 to %d",
                       (long long)outputs->experts, MB_SUBSET_EXPERTS);
    if (outputs->questions < 1) return mb_fail(MB_ERANGE, "no questions to judge subsets by");
    if (!(isfinite(costs->aggregation) && costs->aggregation >= 0))
        return mb_fail(MB_EDATA, "the seconds of fusing are %g; at least 0 are expected", costs->aggregation);
    for (int64_t e = 0; e < outputs->experts; e++)
        if (!(isfinite(costs->latency[e]) && costs->latency[e] >= 0 && isfinite(costs->energy[e]) &&
              costs->energy[e] >= 0))
            return mb_fail(MB_EDATA, "expert %s: latency %g s, energy %g J; at least 0 are expected",
                           outputs->expert_names[e], costs->latency[e], costs->energy[e]);
    return MB_OK;
}

static void sort_by_energy(mb_subset *s)
{
    for (int e = 0; e < s->experts; e++) {
        int place = 0;
        for (int j = 0; j < s->experts; j++)
            place += s->costs.energy[j] > s->costs.energy[e] ||
                     (s->costs.energy[j] == s->costs.energy[e] && j < e);
        s->by_energy[place] = (uint8_t)e;
    }
}

mb_status mb_subset_create(const mb_outputs *outputs, const mb_subset_options *options,
                           const mb_subset_costs *costs, mb_subset **out_subset)
{
    mb_status status = MB_OK;
    mb_subset *s = NULL;
    *out_subset = NULL;
    MB_TRY(check(outputs, costs));
    MB_NEW(s);
    s->options = *options;
    s->costs = *costs;
    s->questions = outputs->questions, s->choices = outputs->choices;
    s->experts = (int)outputs->experts;
    s->voters_most = options->top_k > 0 && options->top_k < s->experts ? (int)options->top_k : s->experts;
    sort_by_energy(s);
    MB_NEW_ARRAY(s->question, s->questions);
    MB_NEW_ARRAY(s->givers, s->questions * s->experts);
    MB_NEW_ARRAY(s->weights, s->questions * s->experts);
    MB_NEW_ARRAY(s->means, s->questions * s->experts * s->experts);
    for (int64_t q = 0; q < s->questions; q++) fill_question(s, outputs, q);
    *out_subset = s;
    s = NULL;
done:
    mb_subset_destroy(&s);
    return status;
}

void mb_subset_destroy(mb_subset **subset)
{
    mb_subset *s = *subset;
    if (s == NULL) return;
    mb_free(s->question);
    mb_free(s->givers);
    mb_free(s->weights);
    mb_free(s->means);
    MB_FREE(*subset);
}

int64_t mb_subset_questions(const mb_subset *subset)
{
    return subset->questions;
}

int64_t mb_subset_experts(const mb_subset *subset)
{
    return subset->experts;
}
