/* The subset search: what one set is worth by vote.h's functions, tables, grids and fronts by plain search, and
 * branch and bound against all subsets on a thousand random instances; forty experts. */
#include "mb_test.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"
#include "choose/subset.h"

enum { C = 4 };

/* Numbers in a row. */
typedef struct dice {
    uint64_t seed, index;
} dice;

static double draw(dice *rng)
{
    return mb_rng_uniform(rng->seed, 0, 0, rng->index++);
}

static int64_t below(dice *rng, int64_t n)
{
    return (int64_t)(draw(rng) * (double)n);
}

/* ---- instances ---- */

/* Questions of all kinds; experts are good at some of four fields and guess elsewhere. */
static mb_outputs *instance_make(dice *rng, int64_t questions, int64_t experts, bool has_gate)
{
    mb_outputs *o = NULL;
    assert_int_equal(mb_outputs_create(questions, experts, C, &o), MB_OK);
    o->opt_gate_logits = has_gate ? mb_calloc((size_t)(questions * experts), sizeof(float)) : NULL;
    for (int64_t q = 0; q < questions; q++) {
        const int kind = (int)below(rng, 8);
        const int64_t field = below(rng, 4);
        o->kind[q] = kind == 6 ? MB_OUTPUTS_MULTIPLE : kind == 7 ? MB_OUTPUTS_CLOZE : MB_OUTPUTS_SINGLE;
        o->options[q] = o->kind[q] == MB_OUTPUTS_CLOZE ? 0 : (int32_t)(2 + below(rng, C - 1));
        o->answer[q] = o->kind[q] == MB_OUTPUTS_CLOZE ? -1
                       : o->kind[q] == MB_OUTPUTS_SINGLE
                           ? (int32_t)below(rng, o->options[q])
                           : (int32_t)(1 + below(rng, (1 << o->options[q]) - 1));
        for (int64_t e = 0; e < experts; e++) {
            const int64_t at = q * experts + e;
            const bool is_good = draw(rng) < (e % 4 == field ? 0.7 : 0.2);
            float *p = o->choice_prob + at * C, sum = 0;
            if (has_gate) o->opt_gate_logits[at] = (float)(below(rng, 5) + (e % 4 == field));
            if (below(rng, 12) == 0) continue; /* no answer */
            if (o->kind[q] == MB_OUTPUTS_CLOZE) {
                o->picked[at] = is_good ? 0 : (int32_t)(1 + below(rng, 3));
                o->right[at] = is_good;
                continue;
            }
            for (int c = 0; c < o->options[q]; c++) {
                const bool is_in =
                    o->kind[q] == MB_OUTPUTS_SINGLE ? c == o->answer[q] : (o->answer[q] >> c & 1) != 0;
                p[c] = (float)(1 + below(rng, 8)) + (is_in && is_good ? 8 : 0);
                sum += p[c];
            }
            for (int c = 0; c < o->options[q]; c++) p[c] /= sum;
            o->picked[at] = mb_vote_pick(o->kind[q], p, o->options[q]);
            o->right[at] = o->picked[at] == o->answer[q];
        }
    }
    return o;
}

static mb_subset_costs costs_make(dice *rng, int64_t experts)
{
    mb_subset_costs costs = {.aggregation = 0.01};
    for (int64_t e = 0; e < experts; e++) {
        costs.latency[e] = 0.1 * (double)(1 + below(rng, 9));
        costs.energy[e] = (double)(1 + below(rng, 12));
    }
    return costs;
}

static mb_subset *subset_make(const mb_outputs *o, mb_vote_rule rule, int64_t top_k, bool is_mean,
                              const mb_subset_costs *costs)
{
    const mb_subset_options options = {.rule = rule, .top_k = top_k, .is_energy_mean = is_mean};
    mb_subset *s = NULL;
    assert_int_equal(mb_subset_create(o, &options, costs, &s), MB_OK);
    return s;
}

/* ---- a plain reading of subset.h ---- */

static int64_t plain_right(const mb_outputs *o, mb_vote_rule rule, int64_t top_k, uint64_t set,
                           const mb_subset_costs *costs, double *out_mean_energy)
{
    int64_t members[MB_SUBSET_EXPERTS], asked[MB_SUBSET_EXPERTS], n = 0, right = 0;
    double joules = 0;
    for (int64_t e = 0; e < o->experts; e++)
        if (set >> e & 1) members[n++] = e;
    for (int64_t q = 0; q < o->questions; q++) {
        const mb_vote_question question = mb_vote_question_get(o, q);
        const int64_t k = mb_vote_top_k(question.opt_gate_logits, members, n, top_k, asked);
        right += mb_vote_is_right(&question, mb_vote_run(rule, &question, asked, k));
        for (int64_t i = 0; i < k; i++) joules += costs->energy[asked[i]];
    }
    *out_mean_energy = joules / (double)o->questions;
    return right;
}

static void test_one_set_is_worth_what_votes_say(void **state)
{
    (void)state;
    dice rng = {.seed = 3};
    for (int round = 0; round < 60; round++) {
        const int64_t X = 1 + below(&rng, 9);
        mb_outputs *o = instance_make(&rng, 25, X, round % 3 != 0);
        const mb_subset_costs costs = costs_make(&rng, X);
        for (int rule = 0; rule < MB_VOTE_RULES; rule++) {
            const int64_t top_k = below(&rng, 5);
            mb_subset *s = subset_make(o, (mb_vote_rule)rule, top_k, true, &costs);
            for (uint64_t set = 1; set < UINT64_C(1) << X; set += 1 + (uint64_t)below(&rng, 3)) {
                mb_subset_found found;
                double joules;
                mb_subset_measure(s, set, &found);
                assert_int_equal(found.right,
                                 plain_right(o, (mb_vote_rule)rule, top_k, set, &costs, &joules));
                assert_true(fabs(found.energy - joules) < 1e-9);
            }
            mb_subset_destroy(&s);
        }
        mb_outputs_close(&o);
    }
}

static void test_costs_of_a_set(void **state)
{
    (void)state;
    dice rng = {.seed = 4};
    mb_outputs *o = instance_make(&rng, 5, 4, true);
    const mb_subset_costs costs = {
        .latency = {0.5, 0.2, 0.9, 0.2}, .energy = {3, 8, 5, 1}, .aggregation = 0.125};
    mb_subset *s = subset_make(o, MB_VOTE_MAJORITY, 2, false, &costs);
    mb_subset_found found;
    mb_subset_measure(s, 0xB, &found); /* 0, 1, 3: the two dearest are 8 and 3 */
    assert_true(found.latency == 0.625 && found.energy == 11);
    double latency[MB_SUBSET_DECILES], energy[MB_SUBSET_DECILES];
    int64_t latencies, energies;
    mb_subset_auto_limits(s, latency, &latencies, energy, &energies);
    assert_int_equal(latencies, 3); /* 0.2 twice */
    assert_true(latency[0] == 0.325 && latency[1] == 0.625 && latency[2] == 1.025);
    assert_int_equal(energies, 4); /* 1; 1 + 3; 3 + 5; 5 + 8 */
    assert_true(energy[0] == 1 && energy[1] == 4 && energy[2] == 8 && energy[3] == 13);
    const mb_subset_limits limits = {0.625 * (1 - 1e-13), INFINITY}, below_it = {0.624, INFINITY};
    assert_true(mb_subset_meets(&found, &limits) && !mb_subset_meets(&found, &below_it));
    mb_subset_destroy(&s);
    mb_outputs_close(&o);
}

/* ---- all subsets ---- */

static void test_table_is_that_of_every_set(void **state)
{
    (void)state;
    dice rng = {.seed = 5};
    mb_comm *comm = NULL;
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    for (int round = 0; round < 40; round++) {
        const int64_t X = 1 + below(&rng, 10);
        mb_outputs *o = instance_make(&rng, 20, X, round % 4 != 0);
        const mb_subset_costs costs = costs_make(&rng, X);
        mb_subset *s = subset_make(o, (mb_vote_rule)(round % 4), round % 5, round % 7 == 0, &costs);
        for (int threads = 1; threads <= 2; threads++) {
            mb_subset_table table;
            assert_int_equal(mb_subset_sweep(comm, s, threads, &table), MB_OK);
            assert_int_equal(table.right[0], 0);
            for (uint64_t set = 1; set < UINT64_C(1) << X; set++) {
                mb_subset_found direct, stored;
                mb_subset_measure(s, set, &direct);
                mb_subset_table_get(&table, set, &stored);
                assert_memory_equal(&direct, &stored, sizeof direct);
            }
            mb_subset_table_reset(&table);
        }
        mb_subset_destroy(&s);
        mb_outputs_close(&o);
    }
    mb_comm_destroy(&comm);
}

static bool beats(const mb_subset_found *a, const mb_subset_found *b)
{
    return a->right >= b->right && a->latency <= b->latency && a->energy <= b->energy &&
           (a->right > b->right || a->latency < b->latency || a->energy < b->energy);
}

/* Same figures, but fewer experts or the lower mask. */
static bool is_twin_before(const mb_subset_found *a, const mb_subset_found *b)
{
    const int x = __builtin_popcountll(a->set), y = __builtin_popcountll(b->set);
    return a->right == b->right && a->latency == b->latency && a->energy == b->energy &&
           (x < y || (x == y && a->set < b->set));
}

static void test_grid_and_front_against_plain_search(void **state)
{
    (void)state;
    dice rng = {.seed = 6};
    mb_comm *comm = NULL;
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    for (int round = 0; round < 30; round++) {
        const int64_t X = 1 + below(&rng, 7);
        const uint64_t n = UINT64_C(1) << X;
        mb_outputs *o = instance_make(&rng, 15, X, true);
        const mb_subset_costs costs = costs_make(&rng, X);
        mb_subset *s = subset_make(o, MB_VOTE_GATE_WEIGHTED, round % 3, false, &costs);
        const double latency[3] = {0.31, 0.51, 0.91}, energy[4] = {2, 6, 12, 30};
        mb_subset_table table;
        mb_subset_found grid[12], *front, found, best;
        int64_t count, on_front = 0;
        assert_int_equal(mb_subset_sweep(comm, s, 1, &table), MB_OK);
        assert_int_equal(mb_subset_grid(&table, latency, 3, energy, 4, grid), MB_OK);
        for (int i = 0; i < 12; i++) {
            const mb_subset_limits limits = {latency[i / 4], energy[i % 4]};
            best = (mb_subset_found){0};
            for (uint64_t set = 1; set < n; set++) {
                mb_subset_table_get(&table, set, &found);
                if (mb_subset_meets(&found, &limits) && mb_subset_is_better(&found, &best)) best = found;
            }
            assert_int_equal(grid[i].set, best.set);
            if (i >= 4) assert_true(grid[i].right >= grid[i - 4].right);
            if (i % 4 > 0) assert_true(grid[i].right >= grid[i - 1].right);
        }
        assert_int_equal(mb_subset_front(&table, &front, &count), MB_OK);
        for (uint64_t set = 1; set < n; set++) {
            bool is_beaten = false, is_there = false;
            mb_subset_table_get(&table, set, &found);
            for (uint64_t other = 1; other < n && !is_beaten; other++) {
                mb_subset_found b;
                mb_subset_table_get(&table, other, &b);
                is_beaten = beats(&b, &found) || is_twin_before(&b, &found);
            }
            for (int64_t i = 0; i < count; i++) is_there = is_there || front[i].set == set;
            assert_int_equal(is_there, !is_beaten);
            on_front += !is_beaten;
        }
        assert_int_equal(on_front, count);
        for (int64_t i = 1; i < count; i++) assert_true(front[i].latency >= front[i - 1].latency);
        mb_free(front);
        mb_subset_table_reset(&table);
        mb_subset_destroy(&s);
        mb_outputs_close(&o);
    }
    mb_comm_destroy(&comm);
}

/* ---- branch and bound ---- */

/* No set between included and allowed is right more often than the bound says. */
static void test_bounds_hold(void **state)
{
    (void)state;
    dice rng = {.seed = 7};
    int64_t tight = 0, nodes = 0;
    for (int round = 0; round < 120; round++) {
        const int64_t X = 2 + below(&rng, 6);
        mb_outputs *o = instance_make(&rng, 20, X, round % 5 != 0);
        const mb_subset_costs costs = costs_make(&rng, X);
        mb_subset *s = subset_make(o, (mb_vote_rule)(round % 4), below(&rng, 4), false, &costs);
        for (int i = 0; i < 10; i++, nodes++) {
            const uint64_t allowed = 1 + (uint64_t)below(&rng, (1 << X) - 1);
            const uint64_t included = allowed & (uint64_t)below(&rng, 1 << X);
            const int64_t bound = mb_subset_bound(s, included, allowed, NULL);
            int64_t most = 0;
            for (uint64_t set = 1; set < UINT64_C(1) << X; set++) {
                mb_subset_found found;
                if ((set & included) != included || (set & ~allowed) != 0) continue;
                mb_subset_measure(s, set, &found);
                if (found.right > most) most = found.right;
            }
            assert_true(bound >= most);
            tight += bound == most;
        }
        mb_subset_destroy(&s);
        mb_outputs_close(&o);
    }
    assert_true(tight > nodes / 4); /* a bound that says "all questions" would hold too */
}

static void test_a_thousand_instances_both_ways(void **state)
{
    (void)state;
    dice rng = {.seed = 8};
    mb_comm *comm = NULL;
    int64_t none = 0, cut = 0, looked = 0;
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    for (int round = 0; round < 1000; round++) {
        const int64_t X = 1 + below(&rng, 10);
        mb_outputs *o = instance_make(&rng, 10 + below(&rng, 30), X, round % 5 != 0);
        const mb_subset_costs costs = costs_make(&rng, X);
        mb_subset *s = subset_make(o, (mb_vote_rule)(round % 4), (round / 4) % 5, false, &costs);
        const mb_subset_limits limits = {round % 7 == 0 ? INFINITY : 0.11 + 0.1 * (double)below(&rng, 10),
                                         round % 11 == 0 ? INFINITY : (double)below(&rng, 30)};
        mb_subset_table table;
        mb_subset_found best, found;
        mb_subset_work work;
        assert_int_equal(mb_subset_sweep(comm, s, 1, &table), MB_OK);
        assert_int_equal(mb_subset_grid(&table, &limits.latency, 1, &limits.energy, 1, &best), MB_OK);
        assert_int_equal(mb_subset_search(comm, s, &limits, 0, 1, NULL, 0, &found, &work), MB_OK);
        assert_true(work.is_proved);
        assert_memory_equal(&best, &found, sizeof best);
        assert_int_equal(work.bound, best.right);
        none += best.set == 0, cut += work.pruned_bound, looked += work.nodes;
        mb_subset_table_reset(&table);
        mb_subset_destroy(&s);
        mb_outputs_close(&o);
    }
    print_message("# 1000 instances: %lld nodes, %lld cut by bounds, %lld without a set\n", (long long)looked,
                  (long long)cut, (long long)none);
    assert_true(none > 10 && none < 500 && cut > 1000);
    mb_comm_destroy(&comm);
}

static void test_forty_experts(void **state)
{
    (void)state;
    dice rng = {.seed = 9};
    mb_comm *comm = NULL;
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    mb_outputs *o = instance_make(&rng, 200, 40, true);
    const mb_subset_costs costs = costs_make(&rng, 40);
    mb_subset *s = subset_make(o, MB_VOTE_GATE_WEIGHTED, 0, false, &costs);
    const mb_subset_limits limits = {0.75, 12};
    mb_subset_found found, again;
    mb_subset_work work, same;
    assert_int_equal(mb_subset_search(comm, s, &limits, 0, 1, NULL, 0, &found, &work), MB_OK);
    assert_int_equal(mb_subset_search(comm, s, &limits, 0, 2, NULL, 0, &again, &same), MB_OK);
    print_message(
        "# 40 experts: set %llx, %lld of 200 right, %lld nodes, %lld sets measured, %lld cut by bounds, "
        "%lld by limits, %.2f s\n",
        (unsigned long long)found.set, (long long)found.right, (long long)work.nodes,
        (long long)work.evaluations, (long long)work.pruned_bound, (long long)work.pruned_limits,
        work.seconds);
    assert_true(work.is_proved && mb_subset_meets(&found, &limits));
    assert_memory_equal(&found, &again, sizeof found);
    assert_int_equal(work.nodes, same.nodes);
    assert_int_equal(work.evaluations, same.evaluations);
    /* Time that is up leaves a set, and a bound that holds. */
    assert_int_equal(mb_subset_search(comm, s, &(mb_subset_limits){INFINITY, INFINITY}, 1e-6, 1, &found.set,
                                      1, &again, &same),
                     MB_OK);
    assert_true(!same.is_proved && again.right >= found.right && same.bound >= again.right &&
                same.bound <= 200);
    mb_subset_destroy(&s);
    mb_outputs_close(&o);
    mb_comm_destroy(&comm);
}

/* Forty experts, of which the latency limit leaves few enough to look at all their sets one by one. */
static void test_forty_experts_against_every_feasible_set(void **state)
{
    (void)state;
    mb_comm *comm = NULL;
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    for (int round = 0; round < MB_VOTE_RULES; round++) {
        dice rng = {.seed = 20 + (uint64_t)round};
        mb_outputs *o = instance_make(&rng, 60, 40, true);
        const mb_subset_costs costs = costs_make(&rng, 40);
        mb_subset *s = subset_make(o, (mb_vote_rule)round, round % 4, false, &costs);
        const mb_subset_limits limits = {0.36, 14};
        mb_subset_found best = {0}, found;
        mb_subset_work work;
        int fast[40], n = 0;
        for (int e = 0; e < 40; e++)
            if (costs.latency[e] + costs.aggregation <= limits.latency) fast[n++] = e;
        assert_in_range(n, 6, 18);
        for (uint32_t some = 1; some < UINT32_C(1) << n; some++) {
            uint64_t set = 0;
            for (int i = 0; i < n; i++)
                if (some >> i & 1) set |= UINT64_C(1) << fast[i];
            mb_subset_measure(s, set, &found);
            if (mb_subset_meets(&found, &limits) && mb_subset_is_better(&found, &best)) best = found;
        }
        assert_int_equal(mb_subset_search(comm, s, &limits, 0, 2, NULL, 0, &found, &work), MB_OK);
        print_message("# %s, top_k %d, %d of 40 fast enough: %lld of 60 right, %lld nodes for %u sets\n",
                      mb_vote_name((mb_vote_rule)round), round % 4, n, (long long)found.right,
                      (long long)work.nodes, (UINT32_C(1) << n) - 1);
        assert_true(work.is_proved);
        assert_memory_equal(&best, &found, sizeof best);
        mb_subset_destroy(&s);
        mb_outputs_close(&o);
    }
    mb_comm_destroy(&comm);
}

/* ---- refused ---- */

static void test_refused(void **state)
{
    (void)state;
    dice rng = {.seed = 10};
    mb_comm *comm = NULL;
    mb_outputs *o = instance_make(&rng, 3, 30, false);
    mb_subset_costs costs = costs_make(&rng, 30);
    mb_subset *s = subset_make(o, MB_VOTE_MAJORITY, 0, true, &costs);
    mb_subset_table table;
    mb_subset_found found;
    mb_subset_work work;
    assert_int_equal(mb_comm_create(NULL, NULL, &comm), MB_OK);
    assert_int_equal(mb_subset_sweep(comm, s, 1, &table), MB_ERANGE);
    assert_non_null(strstr(mb_status_message(), "at most 24"));
    assert_int_equal(mb_subset_search(comm, s, &(mb_subset_limits){1, 1}, 0, 1, NULL, 0, &found, &work),
                     MB_EUNSUPPORTED);
    mb_subset_destroy(&s);
    costs.energy[7] = -1;
    for (int e = 0; e < 30; e++) o->expert_names[e] = mb_strdup(e == 7 ? "seven" : "other");
    assert_int_equal(mb_subset_create(o, &(mb_subset_options){0}, &costs, &s), MB_EDATA);
    assert_non_null(strstr(mb_status_message(), "seven"));
    mb_outputs_close(&o);
    mb_comm_destroy(&comm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_set_is_worth_what_votes_say),
        cmocka_unit_test(test_costs_of_a_set),
        cmocka_unit_test(test_table_is_that_of_every_set),
        cmocka_unit_test(test_grid_and_front_against_plain_search),
        cmocka_unit_test(test_bounds_hold),
        cmocka_unit_test(test_a_thousand_instances_both_ways),
        cmocka_unit_test(test_forty_experts),
        cmocka_unit_test(test_forty_experts_against_every_feasible_set),
        cmocka_unit_test(test_refused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
