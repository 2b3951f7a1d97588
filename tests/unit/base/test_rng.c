/* test_rng: Random123's known answers, independence of streams, ranges and moments. Seed 12345 throughout. */
#include "mb_test.h"

#include "base/rng.h"

enum { SEED = 12345 };

/* kat_vectors of Random123 1.14, philox4x32 10. */
static void test_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t out[4];
        mb_rng_philox(rows[i].counter, rows[i].key, out);
        assert_memory_equal(out, rows[i].out, sizeof out);
    }
    uint32_t block[4]; /* the third row through the layout of counter and key */
    mb_rng_block(UINT64_C(0x299f31d0a4093822), 0x03707344, 0x13198a2e, UINT64_C(0x85a308d3243f6a88), block);
    assert_memory_equal(block, rows[2].out, sizeof block);
}

static void test_streams(void **state)
{
    (void)state;
    uint64_t base = mb_rng_u64(SEED, MB_RNG_INIT, 0, 0);
    assert_true(base == mb_rng_u64(SEED, MB_RNG_INIT, 0, 0));
    assert_true(base != mb_rng_u64(SEED + 1, MB_RNG_INIT, 0, 0));
    assert_true(base != mb_rng_u64(SEED, MB_RNG_SHUFFLE, 0, 0));
    assert_true(base != mb_rng_u64(SEED, MB_RNG_INIT, 1, 0));
    assert_true(base != mb_rng_u64(SEED, MB_RNG_INIT, 0, 1));
    assert_true(base != mb_rng_u64(SEED, MB_RNG_INIT, 0, UINT64_C(1) << 32));
    assert_true(base != mb_rng_u64(SEED + (UINT64_C(1) << 32), MB_RNG_INIT, 0, 0));
}

static void test_moments(void **state)
{
    (void)state;
    enum { N = 100000 };
    double sum = 0, squares = 0, normal = 0, normal_squares = 0, normal_fourth = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = mb_rng_uniform(SEED, MB_RNG_TRASH, 2, i), z = mb_rng_normal(SEED, MB_RNG_INIT, 3, i);
        assert_true(u >= 0 && u < 1);
        assert_true(isfinite(z));
        sum += u;
        squares += u * u;
        normal += z;
        normal_squares += z * z;
        normal_fourth += z * z * z * z;
    }
    mb_test_near_abs(sum / N, 0.5, 0, 5 * 0.2887 / sqrt(N));
    mb_test_near_abs(squares / N, 1.0 / 3, 0, 5 * 0.298 / sqrt(N));
    mb_test_near_abs(normal / N, 0, 0, 5 / sqrt(N));
    mb_test_near_abs(normal_squares / N, 1, 0, 5 * sqrt(2) / sqrt(N));
    mb_test_near_abs(normal_fourth / N, 3, 0, 5 * sqrt(96) / sqrt(N));
}

static void test_below(void **state)
{
    (void)state;
    int64_t seen[7] = {0};
    for (uint64_t i = 0; i < 70000; i++) {
        uint64_t value = mb_rng_below(SEED, MB_RNG_SELECT, 0, i, 7);
        assert_true(value < 7);
        seen[value]++;
        assert_true(mb_rng_below(SEED, MB_RNG_SELECT, 0, i, 1) == 0);
    }
    for (int i = 0; i < 7; i++) assert_in_range(seen[i], 9500, 10500);
    /* Bounds for which a quarter of all words is rejected: the rest must still be even. */
    const uint64_t n = UINT64_C(3) << 62;
    int64_t thirds[3] = {0};
    for (uint64_t i = 0; i < 30000; i++) {
        uint64_t value = mb_rng_below(SEED, MB_RNG_SELECT, 1, i, n);
        assert_true(value < n);
        thirds[value / (n / 3)]++;
    }
    for (int i = 0; i < 3; i++) assert_in_range(thirds[i], 9500, 10500);
}

static void test_permutation(void **state)
{
    (void)state;
    int64_t order[1000], seen[1000] = {0}, fixed = 0;
    mb_rng_permutation(SEED, MB_RNG_SHUFFLE, 4, 1000, order);
    for (int64_t i = 0; i < 1000; i++) {
        assert_in_range(order[i], 0, 999);
        seen[order[i]]++;
        fixed += order[i] == i;
    }
    for (int64_t i = 0; i < 1000; i++) assert_int_equal(seen[i], 1);
    assert_true(fixed < 10);
    int64_t counts[6] = {0}, three[3];
    for (uint32_t epoch = 0; epoch < 6000; epoch++) {
        mb_rng_permutation(SEED, MB_RNG_SHUFFLE, epoch, 3, three);
        counts[three[0] * 2 + (three[1] > three[2])]++;
    }
    for (int i = 0; i < 6; i++) assert_in_range(counts[i], 850, 1150);
    mb_rng_permutation(SEED, MB_RNG_SHUFFLE, 0, 0, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers), cmocka_unit_test(test_streams),
        cmocka_unit_test(test_moments),       cmocka_unit_test(test_below),
        cmocka_unit_test(test_permutation),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %d\n", SEED);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
