/* test_losses: every balance and constraint loss against PyTorch and against central differences. */
#include "mb_test.h"

#include "learn/balance.h"
#include "learn/constraint.h"
#include "base/rng.h"
#include "store/h5.h"

#define GOLDEN "tests/golden/losses/losses.h5"

/* ---- helpers ---- */

enum { ROUTERS = 3, EXPERTS = 10, GOOD = 8, PICKS = 3 };

typedef struct gates {
    mb_routing routing;
    float *logits[ROUTERS], *gradient[ROUTERS];
    int32_t *ids[ROUTERS];
} gates;

static void gates_create(gates *g, int64_t routers, int64_t rows)
{
    for (int64_t l = 0; l < routers; l++) {
        g->logits[l] = mb_calloc((size_t)(rows * EXPERTS), sizeof(float));
        g->gradient[l] = mb_calloc((size_t)(rows * EXPERTS), sizeof(float));
        g->ids[l] = mb_calloc((size_t)(rows * PICKS), sizeof(int32_t));
    }
    g->routing = (mb_routing){.threads = 2,
                              .routers = routers,
                              .rows = rows,
                              .experts = EXPERTS,
                              .good = GOOD,
                              .picks = PICKS,
                              .logits = g->logits,
                              .ids = g->ids};
}

static void gates_destroy(gates *g)
{
    for (int64_t l = 0; l < g->routing.routers; l++) {
        mb_free(g->logits[l]);
        mb_free(g->gradient[l]);
        mb_free(g->ids[l]);
    }
}

static void gates_clear(gates *g)
{
    for (int64_t l = 0; l < g->routing.routers; l++)
        memset(g->gradient[l], 0, (size_t)(g->routing.rows * EXPERTS) * sizeof(float));
}

/* Random logits; the picks are the highest. */
static void gates_draw(gates *g, uint64_t seed)
{
    for (int64_t l = 0; l < g->routing.routers; l++) {
        for (int64_t t = 0; t < g->routing.rows; t++) {
            float *row = g->logits[l] + t * EXPERTS;
            bool taken[EXPERTS] = {false};
            for (int64_t e = 0; e < EXPERTS; e++)
                row[e] =
                    (float)(1.3 * mb_rng_normal(seed, MB_RNG_INIT, (uint32_t)l, (uint64_t)(t * EXPERTS + e)));
            for (int64_t k = 0; k < PICKS; k++) {
                int32_t best = -1;
                for (int32_t e = 0; e < EXPERTS; e++) {
                    if (!taken[e] && (best < 0 || row[e] > row[best])) best = e;
                }
                taken[best] = true;
                g->ids[l][t * PICKS + k] = best;
            }
        }
    }
}

static void *golden_read(mb_h5 *file, const char *name, mb_dtype dtype, int64_t *out_count)
{
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    mb_test_ok(mb_h5_read_new(file, name, dtype, &dims, shape, &data));
    *out_count = 1;
    for (int i = 0; i < dims; i++) *out_count *= shape[i];
    return data;
}

static void golden_gates(mb_h5 *file, const char *group, int64_t routers, gates *g)
{
    char name[64];
    int64_t n, picks;
    snprintf(name, sizeof name, "/%s/logits", group);
    float *logits = golden_read(file, name, MB_F32, &n);
    snprintf(name, sizeof name, "/%s/ids", group);
    int32_t *ids = golden_read(file, name, MB_I32, &picks);
    int64_t rows = n / routers / EXPERTS;
    gates_create(g, routers, rows);
    for (int64_t l = 0; l < routers; l++) {
        memcpy(g->logits[l], logits + l * rows * EXPERTS, (size_t)(rows * EXPERTS) * sizeof(float));
        memcpy(g->ids[l], ids + l * rows * PICKS, (size_t)(rows * PICKS) * sizeof(int32_t));
    }
    mb_free(logits);
    mb_free(ids);
}

static void golden_compare(mb_h5 *file, const char *name, double value, const gates *g, double scale)
{
    char path[64];
    int64_t n, each = g->routing.rows * EXPERTS;
    double expected;
    snprintf(path, sizeof path, "/%s/value", name);
    mb_test_ok(mb_h5_read_f64(file, path, &expected));
    print_message("# %s %.9g\n", name, expected);
    mb_test_near(value, expected, 1e-7);
    snprintf(path, sizeof path, "/%s/gradient", name);
    float *gradient = golden_read(file, path, MB_F32, &n);
    assert_int_equal(n, each * g->routing.routers);
    for (int64_t i = 0; i < n; i++) gradient[i] *= (float)scale;
    for (int64_t l = 0; l < g->routing.routers; l++)
        mb_test_near_all(g->gradient[l], gradient + l * each, each, 1e-5, 1e-9);
    mb_free(gradient);
}

/* ---- balance ---- */

static void test_balance_golden(void **state)
{
    (void)state;
    mb_h5 *file = NULL;
    mb_arena *arena = NULL;
    gates g;
    double value;
    mb_test_ok(mb_h5_open(GOLDEN, &file));
    mb_test_ok(mb_arena_create(1024, &arena));
    golden_gates(file, "balance", 2, &g);
    mb_test_ok(mb_balance_load(&g.routing, g.routing.rows,
                               &(mb_balance_rule){.kind = MB_BALANCE_HF, .over_all = true}, 0.5, arena,
                               g.gradient, &value));
    golden_compare(file, "balance/hf", value, &g, 0.5);
    gates_clear(&g);
    mb_test_ok(mb_balance_load(&g.routing, g.routing.rows,
                               &(mb_balance_rule){.kind = MB_BALANCE_SWITCH, .over_all = true}, 1, arena,
                               g.gradient, &value));
    golden_compare(file, "balance/switch", value, &g, 1);
    gates_clear(&g);
    mb_test_ok(mb_balance_load(&g.routing, g.routing.rows,
                               &(mb_balance_rule){.kind = MB_BALANCE_HF, .over_all = false}, 2, arena,
                               g.gradient, &value));
    golden_compare(file, "balance/good", value, &g, 2);
    gates_clear(&g);
    mb_test_ok(mb_balance_z(&g.routing, g.routing.rows, 3, arena, g.gradient, &value));
    golden_compare(file, "balance/z", value, &g, 3);
    gates_destroy(&g);
    mb_arena_destroy(&arena);
    mb_h5_destroy(&file);
}

/* Without trash the good form is the whole form; equal logits are balanced: K (hf) and 1 (switch). */
static void test_balance_balanced(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    gates g;
    double all, good, value;
    mb_test_ok(mb_arena_create(1024, &arena));
    gates_create(&g, ROUTERS, 40);
    gates_draw(&g, 5);
    g.routing.good = EXPERTS;
    mb_test_ok(mb_balance_load(&g.routing, 40, &(mb_balance_rule){.kind = MB_BALANCE_HF, .over_all = true}, 1,
                               arena, NULL, &all));
    mb_test_ok(mb_balance_load(&g.routing, 40, &(mb_balance_rule){.kind = MB_BALANCE_HF, .over_all = false},
                               1, arena, NULL, &good));
    assert_true(all == good);
    for (int64_t l = 0; l < ROUTERS; l++) {
        memset(g.logits[l], 0, 40 * EXPERTS * sizeof(float));
        for (int64_t i = 0; i < 40 * PICKS; i++) g.ids[l][i] = (int32_t)(i % EXPERTS);
    }
    mb_test_ok(mb_balance_load(&g.routing, 40, &(mb_balance_rule){.kind = MB_BALANCE_HF, .over_all = true}, 1,
                               arena, g.gradient, &value));
    mb_test_near(value, PICKS, 1e-12);
    mb_test_ok(mb_balance_load(&g.routing, 40,
                               &(mb_balance_rule){.kind = MB_BALANCE_SWITCH, .over_all = true}, 1, arena,
                               NULL, &value));
    mb_test_near(value, 1, 1e-12);
    for (int64_t i = 0; i < 40 * EXPERTS; i++) mb_test_near_abs(g.gradient[0][i], 0, 0, 1e-9);
    gates_destroy(&g);
    mb_arena_destroy(&arena);
}

/* Rows behind the real ones (copies) have no say. */
static void test_balance_leaves_copies(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    gates g;
    double before, after;
    mb_test_ok(mb_arena_create(1024, &arena));
    gates_create(&g, ROUTERS, 50);
    gates_draw(&g, 6);
    mb_test_ok(mb_balance_load(&g.routing, 30, &(mb_balance_rule){.kind = MB_BALANCE_HF, .over_all = false},
                               1, arena, g.gradient, &before));
    mb_test_ok(mb_balance_z(&g.routing, 30, 1, arena, g.gradient, &before));
    for (int64_t i = 30 * EXPERTS; i < 50 * EXPERTS; i++) assert_true(g.gradient[1][i] == 0);
    g.logits[1][35 * EXPERTS] += 3;
    mb_test_ok(mb_balance_z(&g.routing, 30, 1, arena, NULL, &after));
    assert_true(before == after);
    gates_destroy(&g);
    mb_arena_destroy(&arena);
}

/* Parts with the picks of the whole add up to the whole, in value and gradient. */
static void test_balance_over_step(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    gates whole, part;
    double expected, value, sum = 0;
    int64_t picks[ROUTERS * EXPERTS] = {0};
    mb_balance_rule rule = {.kind = MB_BALANCE_HF}, step = {.kind = MB_BALANCE_HF, .step_picks = picks};
    mb_test_ok(mb_arena_create(1024, &arena));
    gates_create(&whole, ROUTERS, 50);
    gates_draw(&whole, 8);
    mb_test_ok(mb_balance_load(&whole.routing, 50, &rule, 1, arena, whole.gradient, &expected));
    for (int64_t l = 0; l < ROUTERS; l++) {
        for (int64_t i = 0; i < 50 * PICKS; i++) picks[l * EXPERTS + whole.ids[l][i]]++;
    }
    for (int64_t first = 0; first < 50; first += 30) {
        int64_t rows = first == 0 ? 30 : 20;
        part = whole;
        part.routing.rows = rows;
        part.routing.logits = part.logits;
        part.routing.ids = part.ids;
        for (int64_t l = 0; l < ROUTERS; l++) {
            part.logits[l] = whole.logits[l] + first * EXPERTS;
            part.ids[l] = whole.ids[l] + first * PICKS;
            part.gradient[l] = mb_calloc((size_t)(rows * EXPERTS), sizeof(float));
        }
        mb_test_ok(mb_balance_load(&part.routing, rows, &step, 1, arena, part.gradient, &value));
        sum += value;
        for (int64_t l = 0; l < ROUTERS; l++) {
            mb_test_near_all(part.gradient[l], whole.gradient[l] + first * EXPERTS, rows * EXPERTS, 1e-6,
                             1e-10);
            mb_free(part.gradient[l]);
        }
    }
    mb_test_near(sum, expected, 1e-12);
    gates_destroy(&whole);
    mb_arena_destroy(&arena);
}

/* ---- constraints ---- */

static const mb_constraint_options presets[] = {
    {.kind = MB_CONSTRAINT_BETA_NLL, .alpha = 1.5, .beta = 3},
    {.kind = MB_CONSTRAINT_BARRIER, .beta = 2.5},
    {.kind = MB_CONSTRAINT_MOMENT_MATCHING, .mean = 0.4, .var = 0.05},
    {.kind = MB_CONSTRAINT_PAIR_RANK, .sharpness = 4, .copy_share = 0.3, .anchor_weight = 0.7},
    {.kind = MB_CONSTRAINT_BETA_NLL, .alpha = 1.5, .beta = 3, .over_picks = true},
};
static const char *const preset_names[] = {"constraint/beta_nll", "constraint/barrier",
                                           "constraint/moment_matching", "constraint/pair_rank",
                                           "constraint/topk"};
enum { PRESETS = sizeof presets / sizeof presets[0] };

static void test_constraint_golden(void **state)
{
    (void)state;
    mb_h5 *file = NULL;
    mb_arena *arena = NULL;
    gates g;
    int64_t n, records;
    mb_test_ok(mb_h5_open(GOLDEN, &file));
    mb_test_ok(mb_arena_create(1024, &arena));
    golden_gates(file, "constraint", ROUTERS, &g);
    int32_t *offsets = golden_read(file, "/constraint/offsets", MB_I32, &n);
    double *loss = golden_read(file, "/constraint/loss", MB_F64, &records);
    mb_constraint_segments segments = {
        .records = records, .copies = records, .offsets = offsets, .loss = loss};
    assert_int_equal(n, 2 * records + 1);
    for (int i = 0; i < PRESETS; i++) {
        mb_constraint_value value;
        gates_clear(&g);
        mb_test_ok(mb_constraint_loss(&presets[i], &g.routing, &segments, 0.25, arena, g.gradient, &value));
        golden_compare(file, preset_names[i], value.constraint, &g, 0.25);
    }
    mb_free(offsets);
    mb_free(loss);
    gates_destroy(&g);
    mb_arena_destroy(&arena);
    mb_h5_destroy(&file);
}

typedef double (*loss_function)(const gates *g, mb_arena *arena, int choice);

static const int32_t fd_offsets[] = {0, 5, 9, 11, 18, 22, 27, 29, 36}; /* four records, four copies */
static const double fd_loss[] = {3.1, 2.2, NAN, 2.9};

static double constraint_at(const gates *g, mb_arena *arena, int choice)
{
    mb_constraint_segments segments = {.records = 4, .copies = 4, .offsets = fd_offsets, .loss = fd_loss};
    mb_constraint_value value;
    mb_test_ok(mb_constraint_loss(&presets[choice], &g->routing, &segments, 1, arena, NULL, &value));
    return value.constraint;
}

static double balance_at(const gates *g, mb_arena *arena, int choice)
{
    double value;
    if (choice == 4) {
        mb_test_ok(mb_balance_z(&g->routing, 18, 1, arena, NULL, &value));
    } else {
        mb_test_ok(mb_balance_load(&g->routing, 18,
                                   &(mb_balance_rule){.kind = choice & 1 ? MB_BALANCE_SWITCH : MB_BALANCE_HF,
                                                      .over_all = choice >> 1},
                                   1, arena, NULL, &value));
    }
    return value;
}

/* Central differences in f64 at every logit; the step is what is left of 1/256 after rounding to f32. */
static void check_differences(gates *g, mb_arena *arena, loss_function function, int choice)
{
    for (int64_t l = 0; l < ROUTERS; l++) {
        for (int64_t i = 0; i < g->routing.rows * EXPERTS; i++) {
            float kept = g->logits[l][i];
            volatile float up = kept + 0x1p-8f, down = kept - 0x1p-8f;
            g->logits[l][i] = up;
            double high = function(g, arena, choice);
            g->logits[l][i] = down;
            double low = function(g, arena, choice);
            g->logits[l][i] = kept;
            mb_arena_reset(arena);
            mb_test_near_abs(g->gradient[l][i], (high - low) / ((double)up - (double)down), 2e-4, 2e-7);
        }
    }
}

static void test_differences(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    gates g;
    double value;
    mb_constraint_value constraint;
    mb_constraint_segments segments = {.records = 4, .copies = 4, .offsets = fd_offsets, .loss = fd_loss};
    mb_test_ok(mb_arena_create(1 << 16, &arena));
    gates_create(&g, ROUTERS, 36);
    print_message("# seed 7\n");
    gates_draw(&g, 7);
    for (int i = 0; i < PRESETS; i++) {
        gates_clear(&g);
        mb_test_ok(mb_constraint_loss(&presets[i], &g.routing, &segments, 1, arena, g.gradient, &constraint));
        check_differences(&g, arena, constraint_at, i);
    }
    for (int i = 0; i < 5; i++) {
        gates_clear(&g);
        if (i == 4) {
            mb_test_ok(mb_balance_z(&g.routing, 18, 1, arena, g.gradient, &value));
        } else {
            mb_test_ok(mb_balance_load(
                &g.routing, 18,
                &(mb_balance_rule){.kind = i & 1 ? MB_BALANCE_SWITCH : MB_BALANCE_HF, .over_all = i >> 1}, 1,
                arena, g.gradient, &value));
        }
        check_differences(&g, arena, balance_at, i);
    }
    gates_destroy(&g);
    mb_arena_destroy(&arena);
}

/* alpha > 1 pushes r up, alpha = 1 with beta > 1 down, with beta < 1 up; also far out, where 1 - r would
 * round to 0. */
static void test_constraint_signs(void **state)
{
    (void)state;
    static const struct {
        double alpha, beta, s;
        bool rises;
    } rows[] = {{3, 1, 0, true},   {1, 2, 0, false},  {1, 0.5, 0, true},
                {1, 2, 40, false}, {3, 1, -60, true}, {1, 0.5, 90, true}};
    mb_arena *arena = NULL;
    gates g;
    int32_t offsets[] = {0, 1};
    mb_constraint_segments segments = {.records = 1, .offsets = offsets};
    mb_test_ok(mb_arena_create(1024, &arena));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        mb_constraint_options options = {
            .kind = MB_CONSTRAINT_BETA_NLL, .alpha = rows[i].alpha, .beta = rows[i].beta};
        mb_constraint_value value;
        gates_create(&g, 1, 1);
        for (int64_t e = 0; e < GOOD; e++) g.logits[0][e] = (float)rows[i].s;
        mb_test_ok(mb_constraint_loss(&options, &g.routing, &segments, 1, arena, g.gradient, &value));
        assert_true(isfinite(value.constraint));
        assert_true(rows[i].rises ? g.gradient[0][0] < 0
                                  : g.gradient[0][0] > 0); /* descent goes against the gradient */
        assert_true(rows[i].rises ? g.gradient[0][EXPERTS - 1] > 0 : g.gradient[0][EXPERTS - 1] < 0);
        gates_destroy(&g);
    }
    mb_arena_destroy(&arena);
}

/* ---- pair_rank ---- */

static mb_constraint_value rank_at(gates *g, const double *loss, int64_t records, mb_arena *arena)
{
    static const int32_t offsets[] = {0, 2, 4, 6};
    mb_constraint_options options = {.kind = MB_CONSTRAINT_PAIR_RANK, .sharpness = 4};
    mb_constraint_segments segments = {.records = records, .offsets = offsets, .loss = loss};
    mb_constraint_value value;
    gates_clear(g);
    mb_test_ok(mb_constraint_loss(&options, &g->routing, &segments, 1, arena, g->gradient, &value));
    return value;
}

static double gradient_sum(const gates *g, int64_t first, int64_t end)
{
    double sum = 0;
    for (int64_t t = first; t < end; t++) sum += (double)g->gradient[0][t * EXPERTS]; /* of one good expert */
    return sum;
}

static void test_pair_rank(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    gates g;
    static const double rising[] = {1, 2, 3}, equal[] = {2, 2, 2}, nothing[] = {NAN, 2, NAN};
    mb_test_ok(mb_arena_create(1024, &arena));
    gates_create(&g, 1, 6);
    mb_constraint_value value = rank_at(&g, rising, 3, arena);
    mb_test_near(value.loss_rank, log(2), 1e-12); /* all s are equal */
    assert_false(value.is_single);
    assert_true(gradient_sum(&g, 0, 2) < 0);              /* the easy record rises, */
    assert_true(gradient_sum(&g, 4, 6) > 0);              /* the hard one falls, */
    mb_test_near_abs(gradient_sum(&g, 2, 4), 0, 0, 1e-9); /* and the middle one stays */
    value = rank_at(&g, equal, 3, arena);
    assert_true(value.loss_rank == 0 && gradient_sum(&g, 0, 6) == 0);
    assert_false(value.is_single);
    value = rank_at(&g, nothing, 3, arena);
    assert_true(value.loss_rank == 0 && value.is_single);
    value = rank_at(&g, rising, 1, arena);
    assert_true(value.loss_rank == 0 && value.is_single && gradient_sum(&g, 0, 6) == 0);
    for (int64_t t = 0; t < 2; t++)
        g.logits[0][t * EXPERTS] = 5; /* the easy record is on top already: less loss */
    value = rank_at(&g, rising, 3, arena);
    assert_true(value.loss_rank < log(2));
    for (int64_t t = 4; t < 6; t++) g.logits[0][t * EXPERTS] = 9; /* the hard one above it: more */
    value = rank_at(&g, rising, 3, arena);
    assert_true(value.loss_rank > log(2));
    gates_destroy(&g);
    mb_arena_destroy(&arena);
}

/* The copy's gate falls, the record's rises; the anchor pulls mean r to a half. */
static void test_copies_and_anchor(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 2, 4};
    static const double loss[] = {2};
    mb_arena *arena = NULL;
    gates g;
    mb_constraint_value value;
    mb_constraint_segments segments = {.records = 1, .copies = 1, .offsets = offsets, .loss = loss};
    mb_constraint_options copies = {.kind = MB_CONSTRAINT_PAIR_RANK, .sharpness = 4, .copy_share = 1};
    mb_constraint_options anchor = {.kind = MB_CONSTRAINT_PAIR_RANK, .sharpness = 4, .anchor_weight = 1};
    mb_test_ok(mb_arena_create(1024, &arena));
    gates_create(&g, 1, 4);
    mb_test_ok(mb_constraint_loss(&copies, &g.routing, &segments, 1, arena, g.gradient, &value));
    mb_test_near(value.copy_rank, log(2), 1e-12);
    assert_true(gradient_sum(&g, 0, 2) < 0 && gradient_sum(&g, 2, 4) > 0);
    gates_clear(&g);
    mb_test_ok(mb_constraint_loss(&anchor, &g.routing, &segments, 1, arena, g.gradient, &value));
    mb_test_near(value.mean_ratio, (double)GOOD / EXPERTS, 1e-12);
    mb_test_near(value.anchor, 0.09, 1e-9);
    assert_true(gradient_sum(&g, 0, 2) > 0 && gradient_sum(&g, 2, 4) == 0);
    gates_destroy(&g);
    mb_arena_destroy(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balance_golden),        cmocka_unit_test(test_balance_balanced),
        cmocka_unit_test(test_balance_leaves_copies), cmocka_unit_test(test_balance_over_step),
        cmocka_unit_test(test_constraint_golden),     cmocka_unit_test(test_differences),
        cmocka_unit_test(test_constraint_signs),      cmocka_unit_test(test_pair_rank),
        cmocka_unit_test(test_copies_and_anchor),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
