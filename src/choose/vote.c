/* vote.c: candidates among the voters' answers, compared by the rule's chain of numbers.
 *
 * A candidate stands at its first voter: the answers before it are searched for an equal one, so nothing is
 * allocated.
 *
 * 1. names   2. weights   3. picks   4. candidates   5. rules
 */
#include "choose/vote.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* ---- 1. names ---- */

static const char *const rule_names[MB_VOTE_RULES] = {"majority", "gate_weighted", "mean_prob", "gate_top1"};

mb_status mb_vote_parse(const char *name, mb_vote_rule *out_rule)
{
    for (int i = 0; i < MB_VOTE_RULES; i++)
        if (strcmp(name, rule_names[i]) == 0) {
            *out_rule = (mb_vote_rule)i;
            return MB_OK;
        }
    return mb_fail(MB_EUSAGE,
                   "'%s' is no rule of fusion; there are majority, gate_weighted, mean_prob and "
                   "gate_top1",
                   name);
}

const char *mb_vote_name(mb_vote_rule rule)
{
    return rule_names[rule];
}

mb_vote_question mb_vote_question_get(const mb_outputs *outputs, int64_t q)
{
    const int64_t X = outputs->experts, C = outputs->choices;
    return (mb_vote_question){.kind = outputs->kind[q],
                              .options = outputs->options[q],
                              .experts = X,
                              .choices = C,
                              .choice_prob = outputs->choice_prob + q * X * C,
                              .picked = outputs->picked + q * X,
                              .opt_right = outputs->right + q * X,
                              .opt_gate_logits =
                                  outputs->opt_gate_logits != NULL ? outputs->opt_gate_logits + q * X : NULL,
                              .answer = outputs->answer[q]};
}

/* ---- 2. weights ---- */

typedef struct vote_scale {
    const float *opt_logits;
    double largest, sum;
} vote_scale;

static vote_scale scale_of(const float *opt_logits, int64_t experts)
{
    vote_scale s = {.opt_logits = opt_logits, .sum = (double)experts};
    if (opt_logits == NULL) return s;
    s.largest = opt_logits[0];
    s.sum = 0;
    for (int64_t x = 1; x < experts; x++)
        if (opt_logits[x] > s.largest) s.largest = opt_logits[x];
    for (int64_t x = 0; x < experts; x++) s.sum += exp((double)opt_logits[x] - s.largest);
    return s;
}

static double weight_of(const vote_scale *s, int64_t expert)
{
    return (s->opt_logits != NULL ? exp((double)s->opt_logits[expert] - s->largest) : 1) / s->sum;
}

void mb_vote_weights(const float *opt_gate_logits, int64_t experts, double *out_weights)
{
    const vote_scale scale = scale_of(opt_gate_logits, experts);
    for (int64_t x = 0; x < experts; x++) out_weights[x] = weight_of(&scale, x);
}

/* How many of the members come before member i when sorted by falling logit, then by number. */
static int64_t place_of(const float *opt_logits, const int64_t *members, int64_t count, int64_t i)
{
    int64_t before = 0;
    if (opt_logits == NULL) return i;
    for (int64_t j = 0; j < count; j++) {
        const float a = opt_logits[members[j]], b = opt_logits[members[i]];
        before += a > b || (a == b && j < i);
    }
    return before;
}

int64_t mb_vote_top_k(const float *opt_gate_logits, const int64_t *members, int64_t count, int64_t k,
                      int64_t *out)
{
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++)
        if (k <= 0 || k >= count || place_of(opt_gate_logits, members, count, i) < k) out[n++] = members[i];
    return n;
}

/* ---- 3. picks ---- */

static int32_t pick(int kind, const double *prob, int32_t options)
{
    int32_t best = 0, mask = 0;
    for (int32_t c = 1; c < options; c++)
        if (prob[c] > prob[best]) best = c;
    if (kind == MB_OUTPUTS_SINGLE) return best;
    for (int32_t c = 0; c < options; c++)
        if (prob[c] >= 0.5 * prob[best]) mask |= (int32_t)1 << c;
    return mask;
}

int32_t mb_vote_pick(int kind, const float *prob, int32_t options)
{
    double wide[MB_OUTPUTS_OPTIONS];
    assert(options >= 1 && options <= MB_OUTPUTS_OPTIONS && kind != MB_OUTPUTS_CLOZE);
    for (int32_t c = 0; c < options; c++) wide[c] = prob[c];
    return pick(kind, wide, options);
}

/* ---- 4. candidates ---- */

typedef struct vote_candidate {
    int32_t answer;
    int64_t first; /* its first voter */
    int64_t votes;
    double weight;
} vote_candidate;

/* Sum over all voters of the mean of p over the answer's options. */
static double mean_of(const mb_vote_question *q, const int64_t *members, int64_t count, int32_t answer)
{
    double sum = 0;
    if (q->kind == MB_OUTPUTS_CLOZE) return 0;
    for (int64_t i = 0; i < count; i++) {
        const float *prob = q->choice_prob + members[i] * q->choices;
        double part = 0;
        int held = 0;
        if (q->picked[members[i]] < 0) continue;
        for (int32_t c = 0; c < q->options; c++) {
            const bool is_in = q->kind == MB_OUTPUTS_SINGLE ? c == answer : (answer >> c & 1) != 0;
            part += is_in ? (double)prob[c] : 0;
            held += is_in;
        }
        sum += part / held;
    }
    return sum;
}

/* Does a go before b? by_weight: weights count before votes. */
static bool is_better(const mb_vote_question *q, const int64_t *members, int64_t count, bool by_weight,
                      const vote_candidate *a, const vote_candidate *b)
{
    const bool has_more = a->votes > b->votes, has_fewer = a->votes < b->votes;
    if (!by_weight && (has_more || has_fewer)) return has_more;
    if (a->weight != b->weight) return a->weight > b->weight;
    if (has_more || has_fewer) return has_more;
    const double mean_a = mean_of(q, members, count, a->answer),
                 mean_b = mean_of(q, members, count, b->answer);
    if (mean_a != mean_b) return mean_a > mean_b;
    return q->kind == MB_OUTPUTS_CLOZE ? a->first < b->first : a->answer < b->answer;
}

/* The answer of member i with its voters; votes 0 when it has none, or one before it gave the same. */
static vote_candidate candidate_at(const mb_vote_question *q, const int64_t *members, int64_t count,
                                   const vote_scale *scale, int64_t i)
{
    vote_candidate c = {.answer = q->picked[members[i]], .first = members[i]};
    if (c.answer < 0) return c;
    for (int64_t j = 0; j < i; j++)
        if (q->picked[members[j]] == c.answer) return c;
    for (int64_t j = i; j < count; j++) {
        if (q->picked[members[j]] != c.answer) continue;
        c.votes++;
        c.weight += weight_of(scale, members[j]);
    }
    return c;
}

/* ---- 5. rules ---- */

static int32_t run_votes(const mb_vote_question *q, const int64_t *members, int64_t count, bool by_weight)
{
    const vote_scale scale = scale_of(q->opt_gate_logits, q->experts);
    vote_candidate best = {.answer = -1};
    for (int64_t i = 0; i < count; i++) {
        const vote_candidate c = candidate_at(q, members, count, &scale, i);
        if (c.votes == 0) continue;
        if (best.votes == 0 || is_better(q, members, count, by_weight, &c, &best)) best = c;
    }
    return best.answer;
}

static int32_t run_mean(const mb_vote_question *q, const int64_t *members, int64_t count)
{
    double sum[MB_OUTPUTS_OPTIONS] = {0};
    int64_t voters = 0;
    for (int64_t i = 0; i < count; i++) {
        const float *prob = q->choice_prob + members[i] * q->choices;
        if (q->picked[members[i]] < 0) continue;
        for (int32_t c = 0; c < q->options; c++) sum[c] += prob[c];
        voters++;
    }
    return voters > 0 ? pick(q->kind, sum, q->options) : -1;
}

static int32_t run_top(const mb_vote_question *q, const int64_t *members, int64_t count)
{
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++) {
        if (q->picked[members[i]] < 0) continue;
        if (best < 0 ||
            (q->opt_gate_logits != NULL && q->opt_gate_logits[members[i]] > q->opt_gate_logits[best]))
            best = members[i];
    }
    return best >= 0 ? q->picked[best] : -1;
}

int32_t mb_vote_run(mb_vote_rule rule, const mb_vote_question *question, const int64_t *members,
                    int64_t count)
{
    if (rule == MB_VOTE_MEAN_PROB && question->kind == MB_OUTPUTS_CLOZE) rule = MB_VOTE_MAJORITY;
    switch (rule) {
    case MB_VOTE_MEAN_PROB:
        return run_mean(question, members, count);
    case MB_VOTE_GATE_TOP1:
        return run_top(question, members, count);
    case MB_VOTE_MAJORITY:
    case MB_VOTE_GATE_WEIGHTED:
        break;
    }
    return run_votes(question, members, count, rule == MB_VOTE_GATE_WEIGHTED);
}

bool mb_vote_is_right(const mb_vote_question *question, int32_t picked)
{
    if (picked < 0) return false;
    if (question->kind != MB_OUTPUTS_CLOZE) return picked == question->answer;
    for (int64_t x = 0; x < question->experts && question->opt_right != NULL; x++)
        if (question->picked[x] == picked && question->opt_right[x] != 0) return true;
    return false;
}
