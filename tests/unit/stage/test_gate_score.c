/* gate_fit and gate_score: targets by each rule, the split, and what systems are worth on a table by hand. */
#include "mb_test.h"

#include "stage/gate_fit.h"
#include "stage/gate_score.h"

enum { Q = 6, X = 3, C = 4 };

static char *copy(const char *text)
{
    char *out = mb_strdup(text);
    assert_non_null(out);
    return out;
}

/* Three singles of 4 options, a multiple of 3, two cloze; two sources. first: number of the first id. */
static mb_outputs *make(int first)
{
    static const uint8_t kinds[Q] = {0, 0, 0, 1, 2, 2};
    static const int32_t options[Q] = {4, 4, 4, 3, 0, 0}, answers[Q] = {1, 0, 3, 6, -1, -1};
    static const int32_t picks[Q][X] = {{1, 1, 2}, {2, 0, 3}, {0, 1, 2}, {6, 2, 6}, {0, 1, 0}, {1, -1, 0}};
    static const uint8_t rights[Q][X] = {{1, 1, 0}, {0, 1, 0}, {0, 0, 0}, {1, 0, 1}, {1, 0, 1}, {0, 0, 1}};
    mb_outputs *o = NULL;
    mb_test_ok(mb_outputs_create(Q, X, C, &o));
    memcpy(o->kind, kinds, sizeof kinds);
    memcpy(o->options, options, sizeof options);
    memcpy(o->answer, answers, sizeof answers);
    memcpy(o->picked, picks, sizeof picks);
    memcpy(o->right, rights, sizeof rights);
    for (int64_t q = 0; q < Q; q++) {
        o->ids[q] = mb_str_format("%016d", first + (int)q);
        o->chance[q] = options[q] == 4 ? 0.25F : options[q] == 3 ? 1.0F / 7 : 0;
        o->source[q] = q >= 3;
        /* What picks, or is in a picked mask, gets twice what others get. */
        for (int64_t x = 0; x < X; x++) {
            float *p = o->choice_prob + (q * X + x) * C, sum = 0;
            for (int32_t c = 0; c < options[q]; c++)
                sum += p[c] = 1 + (kinds[q] == 0 ? picks[q][x] == c : picks[q][x] >> c & 1) * (1 + (float)x);
            for (int32_t c = 0; c < options[q]; c++) p[c] /= sum;
        }
    }
    o->source_names = mb_calloc(2, sizeof *o->source_names);
    o->source_names[0] = copy("arc");
    o->source_names[1] = copy("gaps");
    o->sources = 2;
    for (int x = 0; x < X; x++) {
        o->expert_names[x] = mb_str_format("e%d", x);
        o->model_hashes[x] = mb_str_format("m%d", x);
    }
    return o;
}

static void check_row(const float *row, double a, double b, double c)
{
    const double expected[X] = {a, b, c};
    for (int x = 0; x < X; x++) mb_test_near_abs(row[x], expected[x], 0, 1e-6);
}

static void test_targets(void **state)
{
    (void)state;
    mb_outputs *o = make(0);
    float *soft = NULL, *best = NULL, *likely = NULL;
    mb_test_ok(mb_gate_fit_targets(o, "soft", &soft));
    check_row(soft, 0.5, 0.5, 0);
    check_row(soft + X, 0, 1, 0);
    check_row(soft + 2 * X, 0, 0, 0); /* nobody is right */
    check_row(soft + 3 * X, 0.5, 0, 0.5);
    check_row(soft + 5 * X, 0, 0, 1);
    mb_test_ok(mb_gate_fit_targets(o, "best", &best));
    check_row(best, 0, 1, 0); /* 3 / 6 against 2 / 5 */
    check_row(best + 3 * X, 0, 0, 1);
    check_row(best + 2 * X, 0, 0, 0);
    check_row(best + 4 * X, 0.5, 0, 0.5); /* cloze has no probabilities */
    mb_test_ok(mb_gate_fit_targets(o, "likelihood", &likely));
    const double p[X] = {2.0 / 5, 3.0 / 6, 1.0 / 7}, sum = p[0] + p[1] + p[2];
    check_row(likely, p[0] / sum, p[1] / sum, p[2] / sum);
    const double m[X] = {2.0 / 5, (1 + 3) / 5.0 / 2, 4.0 / 9}, all = m[0] + m[1] + m[2];
    check_row(likely + 3 * X, m[0] / all, m[1] / all, m[2] / all);
    check_row(likely + 4 * X, 0.5, 0, 0.5);
    mb_free(soft);
    mb_free(best);
    mb_free(likely);
    mb_outputs_close(&o);
}

/* Every question that is not shared is in one part; who is held back follows from its id and the seed. */
static void test_split(void **state)
{
    (void)state;
    enum { N = 200 };
    mb_outputs *o = NULL;
    uint8_t shared[N] = {0}, where[2][N] = {{0}};
    int64_t *train = NULL, *validation = NULL, trains, validations, differ = 0;
    mb_test_ok(mb_outputs_create(N, 1, 1, &o));
    for (int q = 0; q < N; q++) {
        o->ids[q] = mb_str_format("%016x", 77 * q);
        shared[q] = q % 5 == 0;
    }
    for (int seed = 0; seed < 2; seed++) {
        mb_test_ok(mb_gate_fit_split(o, shared, 0.25, seed, &train, &trains, &validation, &validations));
        assert_int_equal(trains, 120);
        assert_int_equal(validations, 40);
        for (int64_t i = 0; i < trains; i++) where[seed][train[i]] += 1;
        for (int64_t i = 0; i < validations; i++) where[seed][validation[i]] += 2;
        for (int64_t i = 1; i < validations; i++) assert_true(validation[i - 1] < validation[i]);
        for (int q = 0; q < N; q++) assert_true(shared[q] ? where[seed][q] == 0 : where[seed][q] % 3 != 0);
        mb_free(train);
        mb_free(validation);
    }
    for (int q = 0; q < N; q++) differ += where[0][q] != where[1][q];
    assert_true(differ > 20);
    /* In another order the same questions are held back. */
    for (int q = 0; q < N / 2; q++) {
        char *id = o->ids[q];
        o->ids[q] = o->ids[N - 1 - q];
        o->ids[N - 1 - q] = id;
    }
    for (int q = 0; q < N; q++) shared[q] = (N - 1 - q) % 5 == 0;
    mb_test_ok(mb_gate_fit_split(o, shared, 0.25, 1, &train, &trains, &validation, &validations));
    for (int64_t i = 0; i < validations; i++) assert_int_equal(where[1][N - 1 - validation[i]], 2);
    mb_free(train);
    mb_free(validation);
    mb_test_ok(mb_gate_fit_split(o, NULL, 0, 1, &train, &trains, &validation, &validations));
    assert_true(trains == N && validations == 0);
    mb_free(train);
    mb_free(validation);
    mb_outputs_close(&o);
}

static double accuracy(const mb_gate_score *s, const char *system, int64_t group)
{
    const int64_t at = mb_gate_score_find(s, system);
    if (at < 0) print_message("# there is no %s\n", system);
    assert_true(at >= 0);
    return s->accuracy[at * s->groups + group].value;
}

static void test_score(void **state)
{
    (void)state;
    static const float logits[Q * X] = {2, 1, 0, 0, 3, 1, 1, 2, 3, 1, 2, 0, 0, 1, 5, 2, 0, 1};
    static const int64_t top_k[1] = {2};
    const mb_gate_score_options options = {
        .top_k = top_k, .top_k_count = 1, .draws = 300, .seed = 4, .level = 0.9};
    mb_outputs *train = make(100), *test = make(0);
    mb_gate_score s = {0};
    mb_test_fails(mb_gate_score_make(train, test, &options, &s), MB_EDATA, "moe-gate apply");
    test->opt_gate_logits = mb_calloc(Q * X, sizeof *logits);
    memcpy(test->opt_gate_logits, logits, sizeof logits);
    mb_test_ok(mb_gate_score_make(train, test, &options, &s));
    assert_int_equal(s.groups, 6); /* all, two sources, three kinds */
    assert_string_equal(s.group[1], "source/arc");
    assert_string_equal(s.group[5], "kind/cloze");
    assert_int_equal(s.size[1], 3);
    /* First choices are experts 0, 1, 2, 1, 2, 0. */
    mb_test_near(accuracy(&s, "gate_top1", 0), 3.0 / 6, 1e-12);
    mb_test_near(accuracy(&s, "gate_top1", 1), 2.0 / 3, 1e-12);
    mb_test_near(accuracy(&s, "oracle", 0), 5.0 / 6, 1e-12);
    mb_test_near(accuracy(&s, "random", 0), 8.0 / 18, 1e-12);
    mb_test_near(accuracy(&s, "chance", 0), (3 * 0.25 + 1.0 / 7) / 6, 1e-6);
    /* Three of six right: experts 0 and 2, the first of them is taken. */
    assert_int_equal(s.best_expert, 0);
    mb_test_near(accuracy(&s, "best_single", 0), 3.0 / 6, 1e-12);
    mb_test_near(accuracy(&s, "expert/e1", 0), 2.0 / 6, 1e-12);
    mb_test_near(accuracy(&s, "expert/e2", 2), 3.0 / 3, 1e-12);
    /* Majority of all: right on the first, of two voters each on the multiple one and the first cloze one; the
     * rest by weight. */
    mb_test_near(accuracy(&s, "majority_all", 0), (1 + 1 + 0 + 1 + 1 + 0) / 6.0, 1e-12);
    assert_true(mb_gate_score_find(&s, "mean_prob@2") >= 0 && mb_gate_score_find(&s, "mean_prob@3") < 0);
    const mb_gate_score_value *gain = &s.gain[s.best_single * s.groups];
    assert_true(gain->value == 0 && gain->low == 0 && gain->high == 0);
    mb_test_near(s.picks[0], 2.0 / 6, 1e-12);
    mb_test_near(s.weight[0] + s.weight[1] + s.weight[2], 1, 1e-12);
    mb_gate_score_reset(&s);
    mb_free(train->ids[3]);
    train->ids[3] = copy(test->ids[5]);
    mb_test_fails(mb_gate_score_make(train, test, &options, &s), MB_EDATA, "1 questions stand in");
    mb_free(train->expert_names[1]);
    train->expert_names[1] = copy("other");
    mb_test_fails(mb_gate_score_make(train, test, &options, &s), MB_EDATA, "different experts");
    mb_outputs_close(&train);
    mb_outputs_close(&test);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_targets), cmocka_unit_test(test_split),
                                       cmocka_unit_test(test_score)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
