/* test_pair_loss: preference losses of one pair: central differences, far values, lists. (Against TRL:
 * test_preference.) */
#include "mb_test.h"

#include "base/rng.h"
#include "learn/pair_loss.h"

static const char *const all_lists[] = {"sigmoid",      "hinge",
                                        "ipo",          "robust",
                                        "sigmoid_norm", "exo_pair",
                                        "nca_pair",     "bco_pair",
                                        "sppo_hard",    "apo_zero",
                                        "apo_down",     "simpo",
                                        "orpo",         "sigmoid:0.8,ipo:0.2 ,orpo:2"};
enum { LISTS = sizeof all_lists / sizeof all_lists[0] };

static mb_pair_loss loss_of(const char *list, double beta)
{
    mb_pair_loss loss;
    const bool smooth = strcmp(list, "sigmoid") == 0 || strcmp(list, "robust") == 0 ||
                        strcmp(list, "simpo") == 0 || strcmp(list, "exo_pair") == 0;
    mb_test_ok(mb_pair_loss_parse(list, beta, smooth ? 0.07 : 0, 0.8, &loss));
    return loss;
}

static void test_pair_differences(void **state)
{
    (void)state;
    const double h = 1e-5;
    print_message("# seed 5\n");
    for (int i = 0; i < LISTS; i++) {
        const mb_pair_loss loss = loss_of(all_lists[i], 0.35);
        for (uint64_t k = 0; k < 40; k++) {
            mb_pair_side chosen = {.targets = 3 + (int64_t)k % 5}, rejected = {.targets = 2 + (int64_t)k % 7};
            chosen.reference = -9 + 3 * mb_rng_normal(5, MB_RNG_INIT, 0, k);
            rejected.reference = -9 + 3 * mb_rng_normal(5, MB_RNG_INIT, 1, k);
            chosen.logprob = -fabs(-9 + 5 * mb_rng_normal(5, MB_RNG_INIT, 2, k)) - 0.1;
            rejected.logprob = -fabs(-9 + 5 * mb_rng_normal(5, MB_RNG_INIT, 3, k)) - 0.1;
            const mb_pair_value value = mb_pair_loss_get(&loss, &chosen, &rejected);
            mb_pair_side up = chosen, down = chosen;
            up.logprob += h, down.logprob -= h;
            const double by_chosen = (mb_pair_loss_get(&loss, &up, &rejected).loss -
                                      mb_pair_loss_get(&loss, &down, &rejected).loss) /
                                     (2 * h);
            up = down = rejected;
            up.logprob += h, down.logprob -= h;
            const double by_rejected =
                (mb_pair_loss_get(&loss, &chosen, &up).loss - mb_pair_loss_get(&loss, &chosen, &down).loss) /
                (2 * h);
            mb_test_near_at(value.d_chosen, by_chosen, 1e-6, 1e-8, all_lists[i], __FILE__, __LINE__);
            mb_test_near_at(value.d_rejected, by_rejected, 1e-6, 1e-8, all_lists[i], __FILE__, __LINE__);
        }
    }
}

/* Far out, where exp overflows and 1 - p rounds to 0, values and slopes stay finite and right. */
static void test_pair_far_out(void **state)
{
    (void)state;
    static const double far[] = {-3e4, -800, -1e-9, 0};
    for (int i = 0; i < LISTS; i++) {
        const mb_pair_loss loss = loss_of(all_lists[i], 2.0);
        for (int a = 0; a < 4; a++) {
            for (int b = 0; b < 4; b++) {
                const mb_pair_side chosen = {far[a], -100, 4}, rejected = {far[b], -100, 0};
                const mb_pair_value value = mb_pair_loss_get(&loss, &chosen, &rejected);
                assert_true(isfinite(value.loss) && isfinite(value.d_chosen) && isfinite(value.d_rejected));
            }
        }
    }
    const mb_pair_loss sigmoid = loss_of("sigmoid_norm", 1);
    mb_pair_side chosen = {-1e4, 0, 1}, rejected = {0, 0, 1};
    mb_test_near(mb_pair_loss_get(&sigmoid, &chosen, &rejected).loss, 1e4, 1e-12); /* -ln S(x) -> -x */
    mb_test_near(mb_pair_loss_get(&sigmoid, &chosen, &rejected).d_chosen, -1, 1e-12);
    chosen.logprob = 40;
    mb_test_near(mb_pair_loss_get(&sigmoid, &chosen, &rejected).loss, exp(-40), 1e-9);
}

static void test_pair_lists(void **state)
{
    (void)state;
    static const struct {
        const char *list;
        double beta, smoothing;
        const char *message;
    } bad[] = {{"sigmod", 0.1, 0, "'sigmod' is not one of"}, {"", 0.1, 0, "is not one of"},
               {"sigmoid,", 0.1, 0, "is not one of"},        {"sigmoid:x", 0.1, 0, "no weight above 0"},
               {"sigmoid:-1", 0.1, 0, "no weight above 0"},  {"sigmoid", 0, 0, "training.dpo.beta = 0"},
               {"hinge", 0.1, 0.1, "label_smoothing = 0.1"}, {"robust", 0.1, 0.5, "below 0.5"},
               {"exo_pair", 0.1, 0, "exo_pair needs"}};
    mb_pair_loss loss;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        mb_test_fails(mb_pair_loss_parse(bad[i].list, bad[i].beta, bad[i].smoothing, 0, &loss), MB_EUSAGE,
                      bad[i].message);
    mb_test_fails(mb_pair_loss_parse("orpo : 0.5,simpo", 0.1, 0, 0.5, &loss), MB_EUSAGE, "'orpo ' is not");
    mb_test_ok(mb_pair_loss_parse("orpo:0.5, simpo", 0.1, 0, 0.5, &loss));
    assert_int_equal(loss.count, 2);
    assert_true(!mb_pair_loss_needs_reference(&loss) && mb_pair_loss_has_free(&loss));
    mb_test_near(mb_pair_loss_weight(&loss, MB_PAIR_LOSS_ORPO), 0.5, 0);
    mb_status_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pair_differences),
        cmocka_unit_test(test_pair_far_out),
        cmocka_unit_test(test_pair_lists),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
