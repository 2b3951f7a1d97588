/* Rounds of a cell under a clock and a counter of our own: quantiles as numpy's, the warm-up left out, joules by
 * the block; the power model's arithmetic. */
#include "mb_test.h"

#include "measure/latency.h"
#include "measure/power_model.h"

static void test_quantiles_are_numpys(void **state)
{
    (void)state;
    const double values[] = {3, 1, 4, 1, 5, 9, 2, 6}; /* numpy.percentile(values, [5, 50, 95]) */
    mb_latency_spread s;
    assert_int_equal(mb_latency_spread_get(values, 8, &s), MB_OK);
    assert_true(fabs(s.p5 - 1.0) < 1e-12 && fabs(s.p50 - 3.5) < 1e-12 && fabs(s.p95 - 7.95) < 1e-12);
    assert_true(s.min == 1 && s.max == 9 && fabs(s.mean - 31.0 / 8) < 1e-12);
    assert_int_equal(mb_latency_spread_get(values, 1, &s), MB_OK);
    assert_true(s.p5 == 3 && s.p50 == 3 && s.p95 == 3);
}

/* Time and joules that the test moves on. */
typedef struct world {
    double seconds, core_seconds, joules;
    bool has_counter;
} world;

static double seconds(void *own)
{
    return ((world *)own)->seconds;
}

static double core_seconds(void *own)
{
    return ((world *)own)->core_seconds;
}

static bool joules(void *own, double *out_joules, double *out_uncertainty)
{
    *out_joules = ((world *)own)->joules;
    *out_uncertainty = 0.5;
    return ((world *)own)->has_counter;
}

static void one_round(world *w, mb_latency *cell, double first, double rest)
{
    mb_latency_begin(cell);
    w->seconds += first, w->core_seconds += 2 * first, w->joules += 10 * first;
    mb_latency_first(cell);
    w->seconds += rest, w->core_seconds += rest, w->joules += 20 * rest;
    mb_latency_first(cell); /* a second call changes nothing */
    mb_latency_end(cell);
}

static void test_warm_up_is_left_out_and_rounds_are_kept(void **state)
{
    (void)state;
    world w = {.seconds = 100};
    const mb_latency_meter meter = {&w, seconds, core_seconds, NULL};
    const mb_latency_options options = {.warmup = 2, .repeats = 3, .least_seconds = 1000};
    mb_latency *cell = NULL;
    int64_t n, rounds = 0;
    assert_int_equal(mb_latency_create(&meter, &options, &cell), MB_OK);
    for (; mb_latency_wants(cell); rounds++) one_round(&w, cell, 0.25, 0.5 * (double)rounds);
    assert_int_equal(rounds, 5); /* without a counter nothing is prolonged */
    const mb_latency_round *all = mb_latency_rounds(cell, &n);
    assert_int_equal(n, 3);
    for (int i = 0; i < 3; i++) {
        assert_true(fabs(all[i].seconds - (0.25 + 0.5 * (i + 2))) < 1e-9);
        assert_true(fabs(all[i].first_seconds - 0.25) < 1e-9);
        assert_true(fabs(all[i].core_seconds - (0.5 + 0.5 * (i + 2))) < 1e-9);
        assert_true(all[i].joules == 0);
    }
    assert_false(mb_latency_has_joules(cell));
    mb_latency_destroy(&cell);
}

static void test_a_counter_has_its_time(void **state)
{
    (void)state;
    world w = {.has_counter = true};
    const mb_latency_meter meter = {&w, seconds, core_seconds, joules};
    const mb_latency_options options = {.warmup = 1, .repeats = 2, .least_seconds = 4.9};
    mb_latency *cell = NULL;
    int64_t n, rounds = 0;
    assert_int_equal(mb_latency_create(&meter, &options, &cell), MB_OK);
    for (; mb_latency_wants(cell); rounds++) one_round(&w, cell, 0.5, 0.5);
    assert_int_equal(rounds, 6); /* five seconds behind the warm-up */
    const mb_latency_block block = mb_latency_block_get(cell);
    assert_int_equal(block.rounds, 5);
    assert_true(fabs(block.joules - 75) < 1e-9 && fabs(block.seconds - 5) < 1e-9 && block.uncertainty == 0.5);
    assert_true(mb_latency_has_joules(cell));
    (void)mb_latency_rounds(cell, &n);
    assert_int_equal(n, 2);
    w.has_counter = false; /* it is lost */
    one_round(&w, cell, 1, 1);
    assert_false(mb_latency_has_joules(cell));
    mb_latency_destroy(&cell);
}

static void test_the_power_model(void **state)
{
    (void)state;
    const mb_power_model model = {.watts_per_core = 8, .watts_idle = 20, .watts_gpu = 300};
    mb_str text = MB_STR_EMPTY;
    assert_true(mb_power_model_joules(&model, 2, 3) == 320 * 2 + 8 * 3);
    assert_int_equal(mb_power_model_text(&model, &text), MB_OK);
    assert_non_null(strstr(mb_str_text(&text), "stated power model, not measured"));
    assert_non_null(strstr(mb_str_text(&text), "300 W for the GPU"));
    mb_str_destroy(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantiles_are_numpys),
        cmocka_unit_test(test_warm_up_is_left_out_and_rounds_are_kept),
        cmocka_unit_test(test_a_counter_has_its_time),
        cmocka_unit_test(test_the_power_model),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
