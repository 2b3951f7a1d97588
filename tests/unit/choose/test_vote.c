/* Fusion of experts' answers: every rule against a plain search over all answers there can be, on instances
 * full of ties, and the ties one by one. */
#include "mb_test.h"

#include "base/rng.h"
#include "choose/vote.h"

enum { X = 6, C = 4 };
static const uint64_t seed = 11;

/* ---- an independent reading of vote.h ---- */

typedef struct numbers {
    double first, second, third; /* in the order they count */
} numbers;

static double plain_weight(const mb_vote_question *q, int64_t x)
{
    double top = -INFINITY, sum = 0;
    if (q->opt_gate_logits == NULL) return 1.0 / (double)q->experts;
    for (int64_t e = 0; e < q->experts; e++) top = fmax(top, q->opt_gate_logits[e]);
    for (int64_t e = 0; e < q->experts; e++) sum += exp(q->opt_gate_logits[e] - top);
    return exp(q->opt_gate_logits[x] - top) / sum;
}

static double plain_mean(const mb_vote_question *q, const int64_t *members, int64_t n, int32_t answer)
{
    double sum = 0;
    if (q->kind == MB_OUTPUTS_CLOZE) return 0;
    for (int64_t i = 0; i < n; i++) {
        if (q->picked[members[i]] < 0) continue;
        double part = 0, held = 0;
        for (int c = 0; c < q->options; c++)
            if (q->kind == MB_OUTPUTS_SINGLE ? c == answer : (answer & 1 << c) != 0) {
                part += q->choice_prob[members[i] * q->choices + c];
                held += 1;
            }
        sum += part / held;
    }
    return sum;
}

static int32_t plain_vote(mb_vote_rule rule, const mb_vote_question *q, const int64_t *members, int64_t n)
{
    const int32_t end = q->kind == MB_OUTPUTS_SINGLE ? q->options : 1 << C;
    int32_t best = -1;
    int64_t best_first = 0;
    numbers top = {0};
    for (int32_t answer = 0; answer < end; answer++) {
        double votes = 0, weight = 0;
        int64_t first = -1;
        for (int64_t i = 0; i < n; i++) {
            if (q->picked[members[i]] != answer) continue;
            if (first < 0) first = members[i];
            votes += 1;
            weight += plain_weight(q, members[i]);
        }
        if (first < 0) continue;
        const bool by_weight = rule == MB_VOTE_GATE_WEIGHTED;
        const numbers its = {by_weight ? weight : votes, by_weight ? votes : weight,
                             plain_mean(q, members, n, answer)};
        int sign = (its.first > top.first) - (its.first < top.first);
        if (sign == 0) sign = (its.second > top.second) - (its.second < top.second);
        if (sign == 0) sign = (its.third > top.third) - (its.third < top.third);
        if (sign == 0 && q->kind == MB_OUTPUTS_CLOZE) sign = first < best_first ? 1 : -1;
        if (best < 0 || sign > 0) best = answer, best_first = first, top = its;
    }
    return best;
}

static int32_t plain_mean_prob(const mb_vote_question *q, const int64_t *members, int64_t n)
{
    double sum[C] = {0}, top = -1;
    int64_t voters = 0;
    int32_t mask = 0, single = -1;
    for (int64_t i = 0; i < n; i++) {
        if (q->picked[members[i]] < 0) continue;
        voters++;
        for (int c = 0; c < q->options; c++) sum[c] += q->choice_prob[members[i] * q->choices + c];
    }
    if (voters == 0) return -1;
    for (int c = 0; c < q->options; c++)
        if (sum[c] > top) top = sum[c], single = c;
    for (int c = 0; c < q->options; c++)
        if (sum[c] / top >= 0.5) mask |= 1 << c;
    return q->kind == MB_OUTPUTS_SINGLE ? single : mask;
}

static int32_t plain_top1(const mb_vote_question *q, const int64_t *members, int64_t n)
{
    int64_t best = -1;
    for (int64_t i = n - 1; i >= 0; i--) {
        if (q->picked[members[i]] < 0) continue;
        if (best < 0 || q->opt_gate_logits == NULL ||
            q->opt_gate_logits[members[i]] >= q->opt_gate_logits[best])
            best = members[i];
    }
    return best < 0 ? -1 : q->picked[best];
}

/* ---- random instances ---- */

typedef struct instance {
    float prob[X * C], logits[X];
    int32_t picked[X];
    uint8_t right[X];
    mb_vote_question q;
} instance;

static uint64_t draw(uint32_t sub, int64_t number, uint64_t n)
{
    return mb_rng_below(seed, MB_RNG_DATA, sub, (uint64_t)number, n);
}

/* Probabilities of few levels (powers of two add up exactly), logits of three values, one in eight without an
 * answer: ties at every level. */
static void make(instance *v, int64_t number)
{
    *v = (instance){0};
    const int kind = (int)draw(1, number, 3);
    const int32_t options = kind == MB_OUTPUTS_CLOZE ? 0 : 2 + (int32_t)draw(2, number, C - 1);
    for (int64_t x = 0; x < X; x++) {
        const int64_t at = number * X + x;
        float left = 1;
        v->logits[x] = (float)draw(3, at, 3) * 0.5f;
        const int32_t start = options > 0 ? (int32_t)draw(4, at, (uint64_t)options) : 0;
        for (int32_t c = 0; c < C; c++) v->prob[x * C + c] = NAN;
        for (int32_t c = 0; c < options; c++) {
            const bool is_last = c == options - 1;
            const float p = is_last ? left : left * (draw(5, at * C + c, 2) != 0 ? 0.5f : 0.25f);
            v->prob[x * C + (start + c) % options] = p;
            left -= p;
        }
        v->picked[x] =
            kind == MB_OUTPUTS_CLOZE ? (int32_t)draw(6, at, 3) : mb_vote_pick(kind, v->prob + x * C, options);
        if (draw(7, at, 8) == 0) v->picked[x] = -1;
    }
    v->q = (mb_vote_question){.kind = kind,
                              .options = options,
                              .experts = X,
                              .choices = C,
                              .choice_prob = v->prob,
                              .picked = v->picked,
                              .opt_right = v->right,
                              .opt_gate_logits = draw(8, number, 4) != 0 ? v->logits : NULL};
}

static void test_all_subsets(void **state)
{
    (void)state;
    int64_t checked = 0, fused_away = 0;
    for (int64_t number = 0; number < 1500; number++) {
        instance v;
        make(&v, number);
        for (int set = 0; set < 1 << X; set++) {
            int64_t members[X], n = 0;
            for (int64_t x = 0; x < X; x++)
                if (set >> x & 1) members[n++] = x;
            for (int rule = 0; rule < MB_VOTE_RULES; rule++) {
                const int32_t got = mb_vote_run((mb_vote_rule)rule, &v.q, members, n);
                int32_t expected;
                if (rule == MB_VOTE_GATE_TOP1)
                    expected = plain_top1(&v.q, members, n);
                else if (rule == MB_VOTE_MEAN_PROB && v.q.kind != MB_OUTPUTS_CLOZE)
                    expected = plain_mean_prob(&v.q, members, n);
                else
                    expected =
                        plain_vote(rule == MB_VOTE_GATE_WEIGHTED ? MB_VOTE_GATE_WEIGHTED : MB_VOTE_MAJORITY,
                                   &v.q, members, n);
                if (got != expected)
                    print_message("# instance %lld, set %d, rule %s: %d, expected %d\n", (long long)number,
                                  set, mb_vote_name((mb_vote_rule)rule), got, expected);
                assert_int_equal(got, expected);
                checked++;
                fused_away += n > 0 && got != v.picked[members[0]];
            }
        }
    }
    print_message("# %lld fused answers, %lld are not the first member's\n", (long long)checked,
                  (long long)fused_away);
    assert_true(fused_away > checked / 10);
}

/* ---- ties by hand ---- */

static mb_vote_question hand(int kind, int32_t options, int64_t experts, const float *prob,
                             const int32_t *picked, const float *logits)
{
    return (mb_vote_question){.kind = kind,
                              .options = options,
                              .experts = experts,
                              .choices = options > 0 ? options : 1,
                              .choice_prob = prob,
                              .picked = picked,
                              .opt_gate_logits = logits};
}

static const int64_t all[] = {0, 1, 2, 3};

static void test_ties(void **state)
{
    (void)state;
    /* Two against two: the gate decides; without it the mean probability; then the lower option. */
    const float prob[] = {.6f, .4f, .6f, .4f, .3f, .7f, .3f, .7f},
                level[] = {.75f, .25f, .75f, .25f, .25f, .75f, .25f, .75f};
    const int32_t picked[] = {0, 0, 1, 1};
    const float to_zero[] = {1, 0, 0, 0}, to_one[] = {0, 0, 0, 1};
    mb_vote_question q = hand(MB_OUTPUTS_SINGLE, 2, 4, prob, picked, to_zero);
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all, 4), 0);
    q.opt_gate_logits = to_one;
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all, 4), 1);
    q.opt_gate_logits = NULL;
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all, 4), 1);
    q.choice_prob = level;
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all, 4), 0);
    assert_int_equal(mb_vote_run(MB_VOTE_MEAN_PROB, &q, all, 4), 0);
    /* One heavy voter against two light ones. */
    const float heavy[] = {5, 0, 0, 0};
    const int32_t split[] = {0, 1, 1, -1};
    q = hand(MB_OUTPUTS_SINGLE, 2, 4, prob, split, heavy);
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all, 4), 1);
    assert_int_equal(mb_vote_run(MB_VOTE_GATE_WEIGHTED, &q, all, 4), 0);
    assert_int_equal(mb_vote_run(MB_VOTE_GATE_TOP1, &q, all, 4), 0);
    assert_int_equal(mb_vote_run(MB_VOTE_GATE_TOP1, &q, all + 1, 3), 1);
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all + 3, 1), -1);
    assert_false(mb_vote_is_right(&q, -1));
    /* Texts: the one of the first voter, not the lower index. */
    const int32_t texts[] = {7, 2, 2, 7};
    const uint8_t right[] = {0, 1, 1, 0};
    q = hand(MB_OUTPUTS_CLOZE, 0, 4, NULL, texts, NULL);
    q.opt_right = right;
    assert_int_equal(mb_vote_run(MB_VOTE_MAJORITY, &q, all, 4), 7);
    assert_int_equal(mb_vote_run(MB_VOTE_MEAN_PROB, &q, all, 3), 2);
    assert_true(mb_vote_is_right(&q, 2));
    assert_false(mb_vote_is_right(&q, 7));
    /* Masks vote as a whole, and only whole ones are right. */
    const float many[] = {.5f, .5f, 0, .5f, .25f, .25f, 0, .5f, .5f};
    const int32_t masks[] = {3, 7, 6};
    q = hand(MB_OUTPUTS_MULTIPLE, 3, 3, many, masks, NULL);
    q.answer = 3;
    for (int64_t x = 0; x < 3; x++)
        assert_int_equal(mb_vote_pick(MB_OUTPUTS_MULTIPLE, many + 3 * x, 3), masks[x]);
    /* sums 1, 1.25, 0.75: all are at least half of 1.25 */
    assert_int_equal(mb_vote_run(MB_VOTE_MEAN_PROB, &q, all, 3), 7);
    assert_true(mb_vote_is_right(&q, 3));
    assert_false(mb_vote_is_right(&q, 1));
}

static void test_top_k(void **state)
{
    (void)state;
    const float logits[] = {0, 2, 2, 1, 3};
    const int64_t members[] = {0, 1, 2, 3, 4}, some[] = {0, 2, 3};
    int64_t out[5];
    assert_int_equal(mb_vote_top_k(logits, members, 5, 2, out), 2);
    assert_int_equal(out[0], 1); /* the lower of two equal ones */
    assert_int_equal(out[1], 4);
    assert_int_equal(mb_vote_top_k(logits, members, 5, 0, out), 5);
    assert_int_equal(mb_vote_top_k(logits, some, 3, 9, out), 3);
    assert_int_equal(mb_vote_top_k(logits, some, 3, 2, out), 2);
    assert_int_equal(out[0], 2);
    assert_int_equal(out[1], 3);
    assert_int_equal(mb_vote_top_k(NULL, some, 3, 2, out), 2);
    assert_int_equal(out[1], 2);
    double weights[5], sum = 0;
    mb_vote_weights(logits, 5, weights);
    for (int i = 0; i < 5; i++) sum += weights[i];
    mb_test_near(sum, 1, 1e-14);
    mb_test_near(weights[4] / weights[3], exp(2), 1e-14);
}

static void test_names(void **state)
{
    (void)state;
    for (int i = 0; i < MB_VOTE_RULES; i++) {
        mb_vote_rule rule;
        mb_test_ok(mb_vote_parse(mb_vote_name((mb_vote_rule)i), &rule));
        assert_int_equal(rule, i);
    }
    mb_vote_rule rule;
    mb_test_fails(mb_vote_parse("best", &rule), MB_EUSAGE, "no rule of fusion");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_subsets), cmocka_unit_test(test_ties),
                                       cmocka_unit_test(test_top_k), cmocka_unit_test(test_names)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
