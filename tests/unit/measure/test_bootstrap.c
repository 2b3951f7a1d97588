/* bootstrap: draws and intervals against numpy (tests/golden/bootstrap.json), how often an interval holds the
 * truth, what pairing is worth, threads, odd inputs. */
#include "mb_test.h"

#include <omp.h>

#include "base/json.h"
#include "base/rng.h"
#include "measure/bootstrap.h"

enum { SEED = 20, MOST = 64 };

static int64_t read_numbers(const json_t *list, double *out)
{
    const int64_t n = (int64_t)json_array_size(list);
    for (int64_t i = 0; i < n; i++) out[i] = json_number_value(json_array_get(list, (size_t)i));
    return n;
}

/* ---- against numpy ---- */

static void check_interval(const json_t *levels, const double *values, int64_t draws, int64_t stride)
{
    const char *level;
    json_t *expected;
    json_object_foreach((json_t *)(uintptr_t)levels, level, expected)
    {
        double low, high, pair[2];
        read_numbers(expected, pair);
        mb_test_ok(mb_bootstrap_interval(values, draws, stride, atof(level), &low, &high));
        mb_test_near_abs(low, pair[0], 1e-12, 1e-13);
        mb_test_near_abs(high, pair[1], 1e-12, 1e-13);
    }
}

static void test_golden(void **state)
{
    (void)state;
    json_t *golden = NULL;
    mb_test_ok(mb_json_read("tests/golden/bootstrap.json", &golden));
    const json_t *columns = json_object_get(golden, "columns"),
                 *intervals = json_object_get(golden, "intervals");
    const int64_t draws = json_integer_value(json_object_get(golden, "draws"));
    double value[4][MOST], weight[4][MOST], own[4],
        *drawn = mb_calloc((size_t)(4 * draws), sizeof *drawn),
        *difference = mb_calloc((size_t)draws, sizeof *difference);
    mb_bootstrap_column column[4];
    int64_t records = 0;
    read_numbers(json_object_get(golden, "own"), own);
    for (size_t c = 0; c < 4; c++) {
        records = read_numbers(json_object_get(json_array_get(columns, c), "value"), value[c]);
        read_numbers(json_object_get(json_array_get(columns, c), "weight"), weight[c]);
        column[c] = (mb_bootstrap_column){value[c], weight[c]};
        mb_test_near(mb_bootstrap_statistic(&column[c], records), own[c], 1e-14);
    }
    assert_int_equal(records, json_integer_value(json_object_get(golden, "records")));
    mb_test_ok(mb_bootstrap_draw(column, 4, records, draws,
                                 (uint64_t)json_integer_value(json_object_get(golden, "seed")),
                                 (uint32_t)json_integer_value(json_object_get(golden, "sub")), drawn));
    for (size_t b = 0; b < 3; b++) {
        double row[4];
        read_numbers(json_array_get(json_object_get(golden, "first_draws"), b), row);
        for (int c = 0; c < 4; c++) mb_test_near(drawn[4 * b + (size_t)c], row[c], 1e-13);
    }
    for (int c = 0; c < 4; c++) {
        char name[32];
        snprintf(name, sizeof name, "column %d", c);
        check_interval(json_object_get(intervals, name), drawn + c, draws, 4);
    }
    for (int64_t b = 0; b < draws; b++) difference[b] = drawn[4 * b + 1] - drawn[4 * b];
    check_interval(json_object_get(intervals, "difference of losses"), difference, draws, 1);
    for (int64_t b = 0; b < draws; b++) difference[b] = drawn[4 * b + 3] - drawn[4 * b + 2];
    check_interval(json_object_get(intervals, "difference of shares"), difference, draws, 1);
    mb_free(drawn);
    mb_free(difference);
    json_decref(golden);
}

/* ---- what intervals are for ---- */

/* Of 300 samples of 50 records, 95 % intervals must hold the true mean about 19 times in 20. */
static void test_coverage(void **state)
{
    (void)state;
    enum { SAMPLES = 300, RECORDS = 50, DRAWS = 400 };
    double value[RECORDS], drawn[DRAWS], low, high;
    int held = 0;
    for (int s = 0; s < SAMPLES; s++) {
        const mb_bootstrap_column column = {.value = value};
        for (int i = 0; i < RECORDS; i++)
            value[i] = 3 + mb_rng_normal(SEED, MB_RNG_DATA, 1, (uint64_t)(s * RECORDS + i));
        mb_test_ok(mb_bootstrap_draw(&column, 1, RECORDS, DRAWS, SEED, (uint32_t)s, drawn));
        mb_test_ok(mb_bootstrap_interval(drawn, DRAWS, 1, 0.95, &low, &high));
        held += low <= 3 && 3 <= high;
    }
    print_message("# %d of %d intervals hold the mean\n", held, SAMPLES);
    assert_in_range(held, SAMPLES * 90 / 100, SAMPLES * 985 / 1000);
}

/* Two models share which records are hard: the interval of their difference is narrow when both take the same
 * draws, and wide when each has its own. */
static void test_pairs_matter(void **state)
{
    (void)state;
    enum { RECORDS = 60, DRAWS = 1000 };
    double value[2][RECORDS], paired[2 * DRAWS], alone[2][DRAWS], difference[DRAWS], low, high, width[2];
    for (int i = 0; i < RECORDS; i++) {
        const double hard = mb_rng_normal(SEED, MB_RNG_DATA, 2, (uint64_t)i);
        for (int m = 0; m < 2; m++)
            value[m][i] =
                hard + 0.2 * m + 0.1 * mb_rng_normal(SEED, MB_RNG_DATA, 3 + (uint32_t)m, (uint64_t)i);
    }
    const mb_bootstrap_column column[2] = {{.value = value[0]}, {.value = value[1]}};
    mb_test_ok(mb_bootstrap_draw(column, 2, RECORDS, DRAWS, SEED, 0, paired));
    for (int b = 0; b < DRAWS; b++) difference[b] = paired[2 * b + 1] - paired[2 * b];
    mb_test_ok(mb_bootstrap_interval(difference, DRAWS, 1, 0.95, &low, &high));
    width[0] = high - low;
    assert_true(low > 0 && low < 0.2 && high > 0.2);
    for (uint32_t m = 0; m < 2; m++)
        mb_test_ok(mb_bootstrap_draw(&column[m], 1, RECORDS, DRAWS, SEED, 1 + m, alone[m]));
    for (int b = 0; b < DRAWS; b++) difference[b] = alone[1][b] - alone[0][b];
    mb_test_ok(mb_bootstrap_interval(difference, DRAWS, 1, 0.95, &low, &high));
    width[1] = high - low;
    assert_true(low < 0 && width[1] > 5 * width[0]);
}

/* ---- what must not matter, and odd inputs ---- */

static void test_threads_and_columns(void **state)
{
    (void)state;
    enum { RECORDS = 23, DRAWS = 101 };
    double value[RECORDS], other[RECORDS], one[DRAWS], four[DRAWS], two[2 * DRAWS];
    const mb_bootstrap_column column[2] = {{.value = other}, {.value = value}};
    for (int i = 0; i < RECORDS; i++) {
        value[i] = mb_rng_normal(SEED, MB_RNG_DATA, 6, (uint64_t)i);
        other[i] = -i;
    }
    omp_set_num_threads(1);
    mb_test_ok(mb_bootstrap_draw(&column[1], 1, RECORDS, DRAWS, SEED, 9, one));
    omp_set_num_threads(4);
    mb_test_ok(mb_bootstrap_draw(&column[1], 1, RECORDS, DRAWS, SEED, 9, four));
    mb_test_ok(mb_bootstrap_draw(column, 2, RECORDS, DRAWS, SEED, 9, two));
    assert_memory_equal(one, four, sizeof one);
    for (int b = 0; b < DRAWS; b++) assert_true(one[b] == two[2 * b + 1]);
    mb_test_ok(mb_bootstrap_draw(&column[1], 1, RECORDS, DRAWS, SEED, 10, four));
    assert_memory_not_equal(one, four, sizeof one);
}

static void test_missing(void **state)
{
    (void)state;
    enum { DRAWS = 200 };
    const double value[3] = {1, NAN, 5}, weight[3] = {1, 0, 1}, none[3] = {0, 0, 0};
    const mb_bootstrap_column some = {value, weight}, nothing = {value, none};
    double drawn[DRAWS], low, high;
    assert_true(mb_bootstrap_statistic(&some, 3) == 3);
    assert_true(isnan(mb_bootstrap_statistic(&nothing, 3)));
    mb_test_ok(
        mb_bootstrap_draw(&some, 1, 3, DRAWS, SEED, 0, drawn)); /* 1 draw in 27 takes the middle alone */
    mb_test_ok(mb_bootstrap_interval(drawn, DRAWS, 1, 0.95, &low, &high));
    assert_true(low == 1 && high == 5);
    mb_test_ok(mb_bootstrap_draw(&nothing, 1, 3, DRAWS, SEED, 0, drawn));
    mb_test_ok(mb_bootstrap_interval(drawn, DRAWS, 1, 0.95, &low, &high));
    assert_true(isnan(low) && isnan(high));
    mb_test_ok(mb_bootstrap_interval(value, 1, 1, 0.95, &low, &high));
    assert_true(low == 1 && high == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),       cmocka_unit_test(test_coverage),
        cmocka_unit_test(test_pairs_matter), cmocka_unit_test(test_threads_and_columns),
        cmocka_unit_test(test_missing),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
