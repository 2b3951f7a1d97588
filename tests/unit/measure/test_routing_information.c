/* test_routing_information: tables whose information is known in closed form, and the size of what chance
 * adds. */
#include "mb_test.h"

#include "base/rng.h"
#include "measure/routing_information.h"

enum { SEED = 905, MOST = 16 };

static mb_routing_information get(const int64_t *counts, int64_t types, int64_t experts, bool is_equal)
{
    int64_t scratch[MOST];
    return mb_routing_information_get(counts, types, experts, experts, is_equal, scratch);
}

static double entropy2(double p)
{
    return -p * log(p) - (1 - p) * log(1 - p);
}

/* Rows in proportion: nothing is known of the type, under any weights. */
static void test_independent(void **state)
{
    (void)state;
    const int64_t counts[] = {10, 20, 70, 1, 2, 7, 100, 200, 700};
    for (int equal = 0; equal < 2; equal++) {
        mb_routing_information info = get(counts, 3, 3, equal != 0);
        mb_test_near_abs(info.mutual, 0, 0, 1e-15);
        mb_test_near_abs(info.normalised, 0, 0, 1e-14);
        mb_test_near(info.expert_entropy, -0.1 * log(0.1) - 0.2 * log(0.2) - 0.7 * log(0.7), 1e-14);
    }
    /* (9 cells - 3 experts - 3 types + 1) / 2N */
    mb_test_near(get(counts, 3, 3, false).corrected, -4.0 / (2 * 1110), 1e-10);
    mb_test_near(get(counts, 3, 3, true).type_entropy, log(3), 1e-14);
}

/* A type has an expert of its own: all is known. */
static void test_certain(void **state)
{
    (void)state;
    const int64_t counts[] = {5, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 2};
    mb_routing_information info = get(counts, 3, 4, true);
    mb_test_near(info.mutual, log(3), 1e-14);
    mb_test_near(info.normalised, 1, 1e-14);
    info = get(counts, 3, 4, false);
    const double h = -5.0 / 16 * log(5.0 / 16) - 9.0 / 16 * log(9.0 / 16) - 2.0 / 16 * log(2.0 / 16);
    mb_test_near(info.mutual, h, 1e-14);
    mb_test_near(info.type_entropy, h, 1e-14);
    mb_test_near(info.expert_entropy, h, 1e-14);
    mb_test_near(info.normalised, 1, 1e-14);
    mb_test_near(info.corrected, h - (3 - 3 - 3 + 1) / 32.0, 1e-14);
}

/* A binary channel that errs one time in ten, as many picks of each type, then ten times as many of one. */
static void test_channel(void **state)
{
    (void)state;
    const int64_t even[] = {900, 100, 100, 900}, uneven[] = {9000, 1000, 100, 900};
    for (int equal = 0; equal < 2; equal++)
        mb_test_near(get(even, 2, 2, equal != 0).mutual, log(2) - entropy2(0.1), 1e-13);
    mb_test_near(get(uneven, 2, 2, true).mutual, log(2) - entropy2(0.1), 1e-13);
    mb_test_near(get(uneven, 2, 2, false).mutual, entropy2(9100.0 / 11000) - entropy2(0.1), 1e-13);
    mb_test_near(get(uneven, 2, 2, false).type_entropy, entropy2(1.0 / 11), 1e-13);
    mb_test_near(get(uneven, 2, 2, false).normalised,
                 (entropy2(9100.0 / 11000) - entropy2(0.1)) / entropy2(1.0 / 11), 1e-13);
}

/* Nothing counted, one type, a type without picks, rows apart. */
static void test_edges(void **state)
{
    (void)state;
    const int64_t none[6] = {0}, one[] = {3, 1}, apart[] = {8, 2, -1, 0, 0, -1, 2, 8, -1},
                  dense[] = {8, 2, 2, 8};
    int64_t scratch[3];
    mb_routing_information info = get(none, 3, 2, true);
    assert_true(info.mutual == 0 && info.corrected == 0 && isnan(info.normalised));
    info = get(one, 1, 2, false);
    mb_test_near_abs(info.mutual, 0, 0, 1e-15);
    assert_true(isnan(info.normalised) && info.type_entropy == 0);
    for (int equal = 0; equal < 2; equal++) {
        info = mb_routing_information_get(apart, 3, 3, 2, equal != 0, scratch);
        const mb_routing_information same = get(dense, 2, 2, equal != 0);
        mb_test_near(info.mutual, same.mutual, 1e-15);
        mb_test_near(info.corrected, same.corrected, 1e-14);
    }
    assert_true(isnan(mb_routing_information_entropy(none, 2)));
    mb_test_near(mb_routing_information_entropy(one, 2), entropy2(0.25), 1e-15);
}

static void test_mean(void **state)
{
    (void)state;
    const mb_routing_information layers[] = {{0.2, 0.1, 0.5, 1.0, 0.7}, {0.4, 0.4, 0.5, 1.4, 0.7}};
    const mb_routing_information mean = mb_routing_information_mean(layers, 2);
    mb_test_near(mean.mutual, 0.3, 1e-15);
    mb_test_near(mean.corrected, 0.25, 1e-15);
    mb_test_near(mean.expert_entropy, 1.2, 1e-15);
    mb_test_near(mean.normalised, 0.3 / 0.7, 1e-15);
}

/* Picks drawn alike for all types: what is measured is too high, the corrected value is about right on
 * average. */
static void test_correction(void **state)
{
    (void)state;
    enum { TYPES = 4, EXPERTS = 6, DRAWS = 600 };
    static const int64_t picks[TYPES] = {60, 100, 200, 400};
    static const double upto[EXPERTS] = {0.3, 0.5, 0.7, 0.85, 0.95, 1};
    print_message("# seed %d\n", SEED);
    for (int equal = 0; equal < 2; equal++) {
        double plain = 0, corrected = 0;
        for (uint32_t d = 0; d < DRAWS; d++) {
            int64_t counts[TYPES * EXPERTS] = {0};
            for (int64_t i = 0, t = 0, left = picks[0]; t < TYPES; i++) {
                const double u = mb_rng_uniform(SEED, MB_RNG_DATA, d, (uint64_t)i);
                int64_t e = 0;
                while (u >= upto[e]) e++;
                counts[t * EXPERTS + e]++;
                if (--left == 0 && ++t < TYPES) left = picks[t];
            }
            const mb_routing_information info = get(counts, TYPES, EXPERTS, equal != 0);
            plain += info.mutual / DRAWS;
            corrected += info.corrected / DRAWS;
        }
        print_message("# equal %d: %.6f, corrected %.6f\n", equal, plain, corrected);
        assert_true(plain > 0.009);
        mb_test_near_abs(corrected, 0, 0, 0.1 * plain);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_independent), cmocka_unit_test(test_certain),
                                       cmocka_unit_test(test_channel),     cmocka_unit_test(test_edges),
                                       cmocka_unit_test(test_mean),        cmocka_unit_test(test_correction)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
