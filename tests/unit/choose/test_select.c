/* test_select: selection against brute force, quotas, budgets, temperature, errors. Seed 20260 throughout. */
#include "mb_test.h"

#include "base/rng.h"
#include "choose/exact_sum.h"
#include "choose/select.h"
#include "choose/select_quota.h"

enum { SEED = 20260, SOURCES = 4, MOST = 400 };

static const char *const names[SOURCES] = {"web", "books", "code",
                                           "web"}; /* the last one is the first's other file */

typedef struct table {
    double score[MOST];
    uint64_t hash[MOST];
    uint16_t source[MOST];
    int64_t tokens[MOST], n;
} table;

static double draw(uint32_t sub, int64_t i)
{
    return mb_rng_uniform(SEED, MB_RNG_DATA, sub, (uint64_t)i);
}

/* Few distinct scores and hashes, so that every level of ties happens. */
static table make_table(int64_t n, bool with_nan)
{
    table t = {.n = n};
    for (int64_t i = 0; i < n; i++) {
        t.score[i] = floor(draw(1, i) * 24) / 8 - 1.5;
        if (draw(7, i) < 0.02) t.score[i] = -0.0;
        if (draw(8, i) < 0.02) t.score[i] = draw(9, i) < 0.5 ? INFINITY : -INFINITY;
        t.hash[i] = (uint64_t)(draw(2, i) * 5) << 61 | (uint64_t)(draw(3, i) * 3);
        t.source[i] = (uint16_t)(draw(4, i) * SOURCES);
        t.tokens[i] = 1 + (int64_t)(draw(5, i) * 40);
        if (with_nan && draw(6, i) < 0.1) t.score[i] = NAN;
    }
    return t;
}

static const table *sorted_table;

static int best_first(const void *a, const void *b)
{
    const table *t = sorted_table;
    int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    if (t->score[i] != t->score[j]) return t->score[i] > t->score[j] ? -1 : 1;
    if (t->hash[i] != t->hash[j]) return t->hash[i] < t->hash[j] ? -1 : 1;
    if (t->source[i] != t->source[j]) return t->source[i] < t->source[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

static int group_of(const table *t, int64_t i, bool is_none)
{
    return is_none ? 0 : t->source[i] % 3;
}

/* Take per group, best first, `target[g]` records, or as many as fit into that many tokens. */
static int64_t brute_force(const table *t, bool is_none, const int64_t target[3], bool by_tokens,
                           int64_t *out)
{
    int64_t order[MOST], n = 0, used[3] = {0}, count = 0;
    bool is_full[3] = {false};
    for (int64_t i = 0; i < t->n; i++) {
        if (!isnan(t->score[i])) order[n++] = i;
    }
    sorted_table = t;
    qsort(order, (size_t)n, sizeof *order, best_first);
    for (int64_t k = 0; k < n; k++) {
        int g = group_of(t, order[k], is_none);
        int64_t cost = by_tokens ? t->tokens[order[k]] : 1;
        is_full[g] = is_full[g] || used[g] + cost > target[g];
        if (is_full[g]) continue;
        used[g] += cost;
        out[count++] = order[k];
    }
    return count;
}

static mb_status run(const table *t, const mb_select_options *options, int64_t **record, double **score,
                     int64_t *count)
{
    mb_comm *comm = NULL;
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    const mb_select_rows rows = {
        .count = t->n, .score = t->score, .record_hash = t->hash, .source = t->source, .tokens = t->tokens};
    mb_status status = mb_select_run(comm, &rows, t->n, names, SOURCES, options, record, score, count);
    mb_comm_destroy(&comm);
    return status;
}

static void check(const table *t, const mb_select_options *options, bool is_none, const int64_t target[3],
                  bool by_tokens)
{
    int64_t *record = NULL, count, expected[MOST], n = brute_force(t, is_none, target, by_tokens, expected);
    double *score = NULL;
    mb_test_ok(run(t, options, &record, &score, &count));
    assert_int_equal(count, n);
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(record[i], expected[i]);
        assert_true(score[i] == t->score[expected[i]]);
    }
    mb_free(record);
    mb_free(score);
}

static void count_groups(const table *t, bool by_tokens, uint64_t weight[3])
{
    memset(weight, 0, 3 * sizeof *weight);
    for (int64_t i = 0; i < t->n; i++) {
        if (!isnan(t->score[i])) weight[group_of(t, i, false)] += by_tokens ? (uint64_t)t->tokens[i] : 1;
    }
}

static void test_counts(void **state)
{
    (void)state;
    print_message("# seed %d\n", SEED);
    for (int64_t n = 1; n <= MOST; n += n < 20 ? 1 : 37) {
        table t = make_table(n, true);
        uint64_t weight[3];
        int64_t target[3] = {0};
        count_groups(&t, false, weight);
        int64_t usable = (int64_t)(weight[0] + weight[1] + weight[2]);
        for (int64_t k = 1; k <= usable; k += 1 + usable / 9) {
            const int64_t all[3] = {k};
            check(&t, &(mb_select_options){.selection_count = k, .quota = "none"}, true, all, false);
            mb_test_ok(mb_select_quota_apportion(k, weight, 3, target));
            check(&t, &(mb_select_options){.selection_count = k, .quota = "proportional"}, false, target,
                  false);
        }
    }
}

static void test_budgets(void **state)
{
    (void)state;
    for (int64_t n = 3; n <= MOST; n += 61) {
        table t = make_table(n, true);
        uint64_t weight[3];
        int64_t target[3];
        count_groups(&t, true, weight);
        int64_t tokens = (int64_t)(weight[0] + weight[1] + weight[2]);
        for (int64_t budget = 120; budget <= tokens + 50; budget += 1 + tokens / 7) {
            const int64_t all[3] = {budget};
            check(&t, &(mb_select_options){.token_budget = budget, .quota = "none"}, true, all, true);
            mb_test_ok(mb_select_quota_apportion(budget, weight, 3, target));
            check(&t, &(mb_select_options){.token_budget = budget, .quota = "proportional"}, false, target,
                  true);
        }
    }
}

static void test_lists_and_equal(void **state)
{
    (void)state;
    table t = make_table(MOST, false);
    check(&t, &(mb_select_options){.selection_count = 31, .quota = "equal"}, false, (int64_t[]){11, 10, 10},
          false);
    check(&t, &(mb_select_options){.selection_count = 40, .quota = "code=1,books=3"}, false,
          (int64_t[]){0, 30, 10}, false);
    check(&t, &(mb_select_options){.selection_percentage = 0.05, .quota = "web=0.5,books=0.25,code=0.25"},
          false, (int64_t[]){10, 5, 5}, false);
}

static void test_apportion(void **state)
{
    (void)state;
    int64_t out[4];
    mb_test_ok(mb_select_quota_apportion(10, (const uint64_t[]){1, 1, 1}, 3, out));
    assert_true(out[0] == 4 && out[1] == 3 && out[2] == 3);
    mb_test_ok(mb_select_quota_apportion(7, (const uint64_t[]){53, 24, 23, 0}, 4, out)); /* 3.71 1.68 1.61 */
    assert_true(out[0] == 4 && out[1] == 2 && out[2] == 1 && out[3] == 0);
    const uint64_t big = UINT64_C(1) << 61;
    mb_test_ok(mb_select_quota_apportion(INT64_MAX, (const uint64_t[]){big, big, big, 1}, 4, out));
    assert_true((uint64_t)out[0] + (uint64_t)out[1] + (uint64_t)out[2] + (uint64_t)out[3] == INT64_MAX);
    mb_test_ok(mb_select_quota_apportion(5, (const uint64_t[]){0, 0}, 2, out));
    assert_true(out[0] == 0 && out[1] == 0);
}

static void fails(const table *t, const mb_select_options *options, mb_status expected, const char *part)
{
    int64_t *record = NULL, count = 0;
    double *score = NULL;
    mb_test_fails(run(t, options, &record, &score, &count), expected, part);
    assert_null(record);
    assert_null(score);
}

static void test_errors(void **state)
{
    (void)state;
    table t = make_table(100, true), plain = make_table(100, false);
    uint64_t weight[3];
    char part[64];
    count_groups(&t, false, weight);
    int64_t usable = (int64_t)(weight[0] + weight[1] + weight[2]);
    assert_true(usable < 100);
    snprintf(part, sizeof part, "there are %lld with a score and %lld", (long long)usable,
             (long long)(100 - usable));
    fails(&t, &(mb_select_options){.selection_count = 100, .quota = "none"}, MB_ERANGE, part);
    fails(&t, &(mb_select_options){.selection_percentage = 1, .quota = "proportional"}, MB_ERANGE, part);
    fails(&plain, &(mb_select_options){.selection_percentage = 0.001, .quota = "none"}, MB_ERANGE,
          "of 100 records");
    fails(&plain, &(mb_select_options){.selection_count = 90, .quota = "equal"}, MB_ERANGE,
          "wants 30 records of source");
    fails(&plain, &(mb_select_options){.selection_count = 9, .quota = "wob=1"}, MB_EUSAGE, "no source 'wob'");
    fails(&plain, &(mb_select_options){.selection_count = 9, .quota = "web=1,web=2"}, MB_EUSAGE, "twice");
    fails(&plain, &(mb_select_options){.selection_count = 9, .quota = "web=0"}, MB_EUSAGE,
          "no source a share");
    fails(&plain, &(mb_select_options){.selection_count = 9, .quota = "best"}, MB_EUSAGE,
          "neither proportional");
    fails(&plain, &(mb_select_options){.selection_count = 9, .token_budget = 9, .quota = "none"}, MB_EUSAGE,
          "take one of them");
    plain.tokens[0] = plain.tokens[1] = 50;
    plain.score[0] = INFINITY; /* the best does not fit */
    plain.hash[0] = plain.source[0] = 0;
    fails(&plain, &(mb_select_options){.token_budget = 49, .quota = "none"}, MB_ERANGE,
          "the selection is empty");
    plain.source[17] = 4;
    fails(&plain, &(mb_select_options){.selection_count = 9, .quota = "none"}, MB_EDATA, "record 17");
}

/* Sampling: low temperature gives the best, every record is drawn at high temperature equally often, no
 * record twice, better ones more often in between. */
static void test_temperature(void **state)
{
    (void)state;
    enum { N = 40, TAKEN = 10, RUNS = 400 };
    table t = {.n = N};
    int hits[2][N] = {{0}};
    for (int64_t i = 0; i < N; i++) {
        t.score[i] = (double)i;
        t.hash[i] = mb_rng_u64(SEED, MB_RNG_DATA, 40, (uint64_t)i);
        t.tokens[i] = 1;
    }
    check(&t, &(mb_select_options){.selection_count = TAKEN, .quota = "none", .temperature = 1e-5, .seed = 3},
          true, (int64_t[]){TAKEN, 0, 0}, false);
    for (int pass = 0; pass < 2; pass++) {
        for (int seed = 0; seed < RUNS; seed++) {
            int64_t *record = NULL, count;
            double *score = NULL;
            bool seen[N] = {false};
            const mb_select_options options = {
                .selection_count = TAKEN, .quota = "none", .temperature = pass == 0 ? 1e6 : 1, .seed = seed};
            mb_test_ok(run(&t, &options, &record, &score, &count));
            assert_int_equal(count, TAKEN);
            for (int64_t i = 0; i < count; i++) {
                assert_false(seen[record[i]]);
                seen[record[i]] = true;
                hits[pass][record[i]]++;
                assert_true(score[i] == t.score[record[i]]);
            }
            mb_free(record);
            mb_free(score);
        }
    }
    double low = 0, high = 0, spread = 0;
    for (int i = 0; i < N; i++) {
        double d = hits[0][i] - RUNS / 4.0;
        spread += d * d / (RUNS / 4.0 * 0.75);
        if (i < N / 2)
            low += hits[1][i];
        else
            high += hits[1][i];
    }
    assert_true(spread < 75); /* chi-square of about 39 degrees: 1 in 10^4 above */
    assert_true(high > 2 * low);
}

static void test_exact_sum(void **state)
{
    (void)state;
    mb_exact_sum sum = {{0}}, other = {{0}};
    const double values[] = {
        1e300, 1,      -1e300,  0x1p-1074, -0.1, 3, 0x1.fffffffffffffp1023, -0x1.fffffffffffffp1023,
        0.1,   1e-310, -1e-310, -4};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) mb_exact_sum_add(&sum, values[i]);
    assert_true(mb_exact_sum_get(&sum) == 0x1p-1074);
    memset(&sum, 0, sizeof sum);
    for (int64_t i = 0; i < 5000; i++) mb_exact_sum_add(&sum, draw(50, i) - 0.7);
    for (int64_t i = 4999; i >= 0; i--) mb_exact_sum_add(&other, draw(50, i) - 0.7);
    long double plain = 0;
    for (int64_t i = 0; i < 5000; i++) plain += (long double)(draw(50, i) - 0.7);
    assert_true(mb_exact_sum_get(&sum) == mb_exact_sum_get(&other));
    assert_true(mb_exact_sum_get(&sum) < 0);
    mb_test_near(mb_exact_sum_get(&sum), (double)plain, 1e-15);
}

/* ---- comparisons ---- */

static void brute_correlations(const double *a, const double *b, int64_t n, double *spearman, double *kendall)
{
    double concordant = 0, tied_a = 0, tied_b = 0, pairs = 0, xy = 0, xx = 0, yy = 0;
    for (int64_t i = 0; i < n; i++) {
        double ra = 0, rb = 0;
        for (int64_t j = 0; j < n; j++) {
            ra += (a[j] < a[i]) - (a[j] > a[i]);
            rb += (b[j] < b[i]) - (b[j] > b[i]);
            if (j >= i) continue;
            double sign = ((a[i] > a[j]) - (a[i] < a[j])) * ((b[i] > b[j]) - (b[i] < b[j]));
            concordant += sign;
            tied_a += a[i] == a[j];
            tied_b += b[i] == b[j];
            pairs++;
        }
        xy += ra * rb;
        xx += ra * ra;
        yy += rb * rb;
    }
    *spearman = xy / sqrt(xx * yy);
    *kendall = concordant / sqrt((pairs - tied_a) * (pairs - tied_b));
}

static void test_correlate(void **state)
{
    (void)state;
    double a[MOST], b[MOST], spearman, kendall, s, k;
    for (int64_t n = 2; n < MOST; n += 1 + n / 3) {
        for (int64_t i = 0; i < n; i++) {
            a[i] = floor(draw(60, i + n) * 9);
            b[i] = floor(draw(61, i + n) * 30) + a[i];
        }
        if (n == 2) b[1] = b[0] + 1, a[1] = a[0] - 1;
        mb_test_ok(mb_select_correlate(a, b, n, &spearman, &kendall));
        brute_correlations(a, b, n, &s, &k);
        mb_test_near_abs(spearman, s, 1e-12, 1e-12);
        mb_test_near_abs(kendall, k, 1e-12, 1e-12);
    }
    for (int i = 0; i < 5; i++) b[i] = 1;
    mb_test_ok(mb_select_correlate(a, b, 5, &spearman, &kendall));
    assert_true(isnan(spearman) && isnan(kendall));
}

static void test_compare(void **state)
{
    (void)state;
    mb_select_comparison c;
    const int64_t a[] = {10, -3, 7, 8}, b[] = {7, 99, 10, -3, 5, 6};
    const double a_score[] = {4, 3, 2, NAN}, b_score[] = {1, 9, 5, 3, 2, 2};
    mb_test_ok(mb_select_compare(a, a_score, 4, b, b_score, 6, &c));
    assert_true(c.a == 4 && c.b == 6 && c.both == 3);
    mb_test_near(c.jaccard, 3.0 / 7, 1e-15);
    mb_test_near(c.spearman, 1, 1e-15);
    mb_test_near(c.kendall, 1, 1e-15);
    mb_test_ok(mb_select_compare(a, NULL, 4, a, a_score, 4, &c));
    assert_true(c.jaccard == 1 && isnan(c.spearman));
    mb_test_ok(mb_select_compare(a, NULL, 0, a, NULL, 0, &c));
    assert_true(c.jaccard == 1 && c.both == 0);
}

static void test_auc(void **state)
{
    (void)state;
    double good[200], bad[300];
    for (int64_t i = 0; i < 200; i++) good[i] = floor(draw(70, i) * 12) + 1;
    for (int64_t i = 0; i < 300; i++) bad[i] = floor(draw(71, i) * 12);
    good[5] = INFINITY;
    good[6] = NAN;
    double sum = 0;
    for (int i = 0; i < 200; i++) {
        for (int j = 0; j < 300 && !isnan(good[i]); j++)
            sum += good[i] > bad[j] ? 1 : good[i] == bad[j] ? 0.5 : 0;
    }
    assert_true(mb_select_auc(good, 200, bad, 300) == sum / (199.0 * 300));
    assert_true(mb_select_auc(good, 1, good, 1) == 0.5);
    assert_true(isnan(mb_select_auc(good, 0, bad, 300)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),          cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_lists_and_equal), cmocka_unit_test(test_apportion),
        cmocka_unit_test(test_errors),          cmocka_unit_test(test_temperature),
        cmocka_unit_test(test_exact_sum),       cmocka_unit_test(test_correlate),
        cmocka_unit_test(test_compare),         cmocka_unit_test(test_auc),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
