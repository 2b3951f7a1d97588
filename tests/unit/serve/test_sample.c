/* sample: probabilities against transformers' processors (tests/golden/sampling.json), ties, draws, bad
 * logits. */
#include "mb_test.h"

#include "base/json.h"
#include "base/rng.h"
#include "serve/sample.h"

enum { MOST = 64 };

static double number(const json_t *object, const char *key, double otherwise)
{
    const json_t *value = json_object_get(object, key);
    return value != NULL ? json_number_value(value) : otherwise;
}

static int falling(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* is_tied: which of equal tokens top-p keeps is open there; then the lists are compared in falling order. */
static void check_case(const json_t *one, size_t index, bool is_tied)
{
    const mb_sample_rule rule = {.temperature = number(one, "temperature", 1),
                                 .top_k = (int64_t)number(one, "top_k", 0),
                                 .top_p = number(one, "top_p", 1),
                                 .min_p = number(one, "min_p", 0),
                                 .repetition_penalty = number(one, "repetition_penalty", 1)};
    const json_t *logits = json_object_get(one, "logits"), *seen = json_object_get(one, "seen"),
                 *expected = json_object_get(one, "probabilities");
    float x[MOST];
    uint32_t ids[MOST];
    double p[MOST] = {0}, other[MOST], sum = 0;
    const int64_t v = (int64_t)json_array_size(logits), n = (int64_t)json_array_size(seen);
    assert_true(v <= MOST && n <= MOST);
    for (int64_t i = 0; i < v; i++) {
        const json_t *value = json_array_get(logits, (size_t)i);
        x[i] = json_is_null(value) ? -INFINITY : (float)json_number_value(value);
    }
    for (int64_t i = 0; i < n; i++) ids[i] = (uint32_t)json_integer_value(json_array_get(seen, (size_t)i));
    mb_sample *sample;
    int64_t count;
    const int32_t *tokens;
    const float *weights;
    mb_test_ok(mb_sample_create(v, &sample));
    assert_true(mb_sample_weights(sample, &rule, x, ids, n, &count, &tokens, &weights));
    for (int64_t i = 0; i < count; i++) {
        assert_true(i == 0 || tokens[i] > tokens[i - 1]);
        p[tokens[i]] = weights[i];
        sum += weights[i];
    }
    for (int64_t i = 0; i < v; i++) {
        other[i] = json_number_value(json_array_get(expected, (size_t)i));
        p[i] /= sum;
    }
    if (is_tied && rule.top_p < 1) {
        qsort(p, (size_t)v, sizeof *p, falling);
        qsort(other, (size_t)v, sizeof *other, falling);
    }
    for (int64_t i = 0; i < v; i++) {
        if (!mb_test_is_near(p[i], other[i], 1e-4, 1e-6))
            print_message("# case %zu, token %lld: %g, expected %g\n", index, (long long)i, p[i], other[i]);
        assert_true(mb_test_is_near(p[i], other[i], 1e-4, 1e-6));
    }
    mb_sample_destroy(&sample);
}

static void test_transformers(void **state)
{
    (void)state;
    json_t *golden = NULL;
    mb_test_ok(mb_json_read("tests/golden/sampling.json", &golden));
    const json_t *cases = json_object_get(golden, "warpers");
    assert_true(json_array_size(cases) >= 30);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(json_array_get(cases, i), i, i >= json_array_size(cases) / 2);
    json_decref(golden);
}

static void test_greedy(void **state)
{
    (void)state;
    float x[1003];
    uint32_t token;
    double logprob, sum = 0;
    mb_sample *sample;
    const mb_sample_rule rule = {.top_p = 1, .repetition_penalty = 1};
    for (int i = 0; i < 1003; i++) x[i] = (float)mb_rng_normal(7, MB_RNG_GENERATE, 0, (uint64_t)i);
    x[517] = x[900] = x[1002] = 9; /* the first of equals */
    for (int i = 0; i < 1003; i++) sum += exp((double)x[i]);
    mb_test_ok(mb_sample_create(1003, &sample));
    assert_true(mb_sample_next(sample, &rule, x, NULL, 0, 0, &token, &logprob));
    assert_int_equal(token, 517);
    mb_test_near(logprob, 9 - log(sum), 1e-5);
    const mb_sample_rule penalty = {.top_p = 1, .repetition_penalty = 2};
    const uint32_t seen[] = {517, 517, 3, 900};
    assert_true(mb_sample_next(sample, &penalty, x, seen, 4, 0, &token, &logprob));
    assert_int_equal(token, 1002);
    x[77] = NAN;
    assert_false(mb_sample_next(sample, &rule, x, NULL, 0, 0, &token, &logprob));
    x[77] = -INFINITY;
    assert_true(mb_sample_next(sample, &rule, x, NULL, 0, 0, &token, &logprob));
    x[77] = INFINITY;
    assert_false(mb_sample_next(sample, &rule, x, NULL, 0, 0, &token, &logprob));
    for (int i = 0; i < 1003; i++) x[i] = -INFINITY;
    assert_false(mb_sample_next(sample, &rule, x, NULL, 0, 0, &token, &logprob));
    mb_sample_destroy(&sample);
}

/* Frequencies of many draws are the probabilities; a uniform number at either end stays inside. */
static void test_draws(void **state)
{
    (void)state;
    enum { V = 12, DRAWS = 40000 };
    const uint64_t seed = 20261123;
    print_message("# seed %llu\n", (unsigned long long)seed);
    float x[V];
    int64_t hits[V] = {0}, count;
    const int32_t *tokens;
    const float *weights;
    double logprob, sum = 0;
    uint32_t token;
    mb_sample *sample;
    const mb_sample_rule rule = {.temperature = 0.8, .top_k = 9, .top_p = 0.95, .repetition_penalty = 1};
    for (int i = 0; i < V; i++) x[i] = 0.7f * (float)mb_rng_normal(seed, MB_RNG_GENERATE, 1, (uint64_t)i);
    mb_test_ok(mb_sample_create(V, &sample));
    for (int i = 0; i < DRAWS; i++) {
        const double u = mb_rng_uniform(seed, MB_RNG_GENERATE, 2, (uint64_t)i);
        assert_true(mb_sample_next(sample, &rule, x, NULL, 0, u, &token, &logprob));
        hits[token]++;
    }
    assert_true(mb_sample_weights(sample, &rule, x, NULL, 0, &count, &tokens, &weights));
    assert_true(count > 2 && count < V);
    for (int64_t i = 0; i < count; i++) sum += weights[i];
    int64_t seen = 0;
    for (int64_t i = 0; i < count; i++) {
        const double p = weights[i] / sum, found = (double)hits[tokens[i]] / DRAWS;
        assert_true(fabs(found - p) < 5 * sqrt(p * (1 - p) / DRAWS) + 1e-9);
        seen += hits[tokens[i]];
    }
    assert_int_equal(seen, DRAWS);
    const int32_t first = tokens[0], last = tokens[count - 1];
    assert_true(mb_sample_next(sample, &rule, x, NULL, 0, 0, &token, &logprob));
    assert_int_equal(token, first);
    assert_true(mb_sample_next(sample, &rule, x, NULL, 0, 0x1.fffffffffffffp-1, &token, &logprob));
    assert_int_equal(token, last);
    mb_sample_destroy(&sample);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_transformers), cmocka_unit_test(test_greedy),
                                       cmocka_unit_test(test_draws)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
