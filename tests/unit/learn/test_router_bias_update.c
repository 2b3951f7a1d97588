/* test_router_bias_update: the bias that moves against the load: its rule, what it does to a skewed router,
 * and that training with it goes on after a stop with the same bits.
 *
 * 1. the rule
 * 2. a skewed router
 * 3. training
 */
#include "fixture.h"

#include "learn/router_bias.h"

static char *folder, *shard;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    shard = fix_shard(folder, "plain.h5", FIX_RECORDS, false);
    return 0;
}

static int teardown(void **state)
{
    mb_stop_reset();
    MB_FREE(shard);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static mb_lm *make(mb_ops *ops, int64_t experts, int64_t trash, bool has_bias)
{
    mb_lm *lm = NULL;
    mb_arch arch = fix_arch(experts, trash);
    arch.router_bias = has_bias;
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &lm));
    return lm;
}

/* ---- 1. the rule ---- */

static void test_rule(void **state)
{
    (void)state;
    enum { G = 5, R = 2 };                           /* four good experts and a trash one */
    const int64_t loads[R][G] = {{10, 2, 4, 0, 900}, /* mean of the good: 4 */
                                 {0, 0, 0, 0, 7}};   /* none */
    const int64_t uneven[R][G] = {{3, 3, 3, 2, 0},   /* mean 2.75 */
                                  {1, 1, 1, 1, 0}};  /* even */
    const float once[R][G] = {{-0.25f, 0.25f, 0, 0.25f}, {0}};
    const float twice[R][G] = {{-0.5f, 0, -0.25f, 0.5f}, {0}};
    float bias[R][G];
    mb_ops *ops = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *lm = make(ops, G - 1, 1, true), *plain = make(ops, G - 1, 1, false);
    mb_test_ok(mb_router_bias_update(lm, loads[0], 0.25));
    mb_test_ok(mb_lm_router_bias_read(lm, bias[0]));
    assert_memory_equal(bias, once, sizeof bias);
    mb_test_ok(mb_router_bias_update(lm, loads[0], 0));
    mb_test_ok(mb_router_bias_update(lm, uneven[0], 0.25));
    mb_test_ok(mb_lm_router_bias_read(lm, bias[0]));
    assert_memory_equal(bias, twice, sizeof bias);
    mb_test_ok(mb_router_bias_update(plain, loads[0], 0));
    mb_test_fails(mb_router_bias_update(plain, loads[0], 0.25), MB_EUSAGE, "no selection bias");
    mb_lm_destroy(&lm), mb_lm_destroy(&plain);
    mb_ops_destroy(&ops);
}

/* ---- 2. a skewed router ---- */

enum { SKEW_TOKENS = 512, SKEW_EXPERTS = 8 };

/* Rows of the gates that favour some experts, the more the lower their number. */
static void skew(mb_lm *lm)
{
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(lm)); i++) {
        mb_param *param = mb_params_at(mb_lm_params(lm), i);
        const bool is_norm = mb_str_is_suffix(param->name, "post_attention_layernorm.weight");
        if (!mb_str_is_suffix(param->name, ".gate.weight") && !is_norm) continue;
        const int64_t n = mb_tensor_count(&param->value), width = mb_lm_arch(lm)->width;
        float *values = mb_calloc((size_t)n, sizeof *values);
        mb_test_ok(mb_params_get_f32(param, values));
        for (int64_t j = 0; j < n; j++)
            values[j] = is_norm ? 1 : values[j] * (float)(SKEW_EXPERTS - j / width) * 0.5f;
        mb_test_ok(mb_params_set_f32(param, values));
        mb_free(values);
    }
}

/* Picks of the good experts of both routers on the same random tokens; the larger max / mean of the two. */
static double count_loads(mb_lm *lm, mb_lm_pass *pass, int64_t *loads)
{
    static int32_t ids[SKEW_TOKENS], positions[SKEW_TOKENS];
    static int32_t offsets[SKEW_TOKENS / 32 + 1];
    const mb_lm_want want = {.routers = 2};
    const int64_t gates = mb_arch_gates(mb_lm_arch(lm)), picks = mb_lm_arch(lm)->picks;
    mb_lm_output out;
    double worst = 0;
    for (int32_t t = 0; t < SKEW_TOKENS; t++) {
        ids[t] = (int32_t)mb_rng_below(3, MB_RNG_DATA, 0, (uint64_t)t, FIX_VOCAB);
        positions[t] = t % 32;
    }
    for (int32_t s = 0; s <= SKEW_TOKENS / 32; s++) offsets[s] = 32 * s;
    const mb_lm_batch batch = {.tokens = SKEW_TOKENS,
                               .segments = SKEW_TOKENS / 32,
                               .ids = ids,
                               .positions = positions,
                               .offsets = offsets};
    mb_test_ok(mb_lm_forward(pass, &batch, &want, &out));
    memset(loads, 0, (size_t)(2 * gates) * sizeof *loads);
    for (int64_t r = 0; r < 2; r++) {
        int64_t most = 0, sum = 0;
        for (int64_t i = 0; i < SKEW_TOKENS * picks; i++) loads[r * gates + out.router_ids[r][i]]++;
        for (int64_t e = 0; e < SKEW_EXPERTS; e++) {
            sum += loads[r * gates + e];
            if (loads[r * gates + e] > most) most = loads[r * gates + e];
        }
        worst = fmax(worst, (double)(most * SKEW_EXPERTS) / (double)sum);
    }
    return worst;
}

static void even_out(const char *backend, int64_t trash, int steps, double rate)
{
    mb_ops *ops = NULL;
    mb_lm_pass *pass = NULL;
    int64_t loads[2 * (SKEW_EXPERTS + 2)];
    float bias[2 * (SKEW_EXPERTS + 2)];
    if (mb_ops_create(backend, 1, &ops) != MB_OK) {
        mb_status_reset();
        skip();
    }
    mb_lm *lm = make(ops, SKEW_EXPERTS, trash, true);
    const int64_t gates = SKEW_EXPERTS + trash;
    skew(lm);
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    const double before = count_loads(lm, pass, loads);
    double after = before;
    for (int step = 0; step < steps; step++) {
        mb_test_ok(mb_router_bias_update(lm, loads, rate * (steps - step) / steps));
        after = count_loads(lm, pass, loads);
    }
    print_message("# %s, %d trash: max / mean load %.2f before, %.2f after\n", backend, (int)trash, before,
                  after);
    assert_true(before > 1.5);
    assert_true(after < 1.1);
    mb_test_ok(mb_lm_router_bias_read(lm, bias));
    for (int64_t r = 0; r < 2; r++)
        for (int64_t e = SKEW_EXPERTS; e < gates; e++) assert_true(bias[r * gates + e] == 0);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

static void test_loads_even_out(void **state)
{
    (void)state, even_out("ref", 0, 300, 4e-3);
}
static void test_loads_even_out_beside_trash(void **state)
{
    (void)state, even_out("cpu", 2, 300, 4e-3);
}
static void test_loads_even_out_on_a_device(void **state)
{
    (void)state, even_out("cuda", 0, 60, 1.2e-2); /* the emulator is slow */
}

/* ---- 3. training ---- */

/* The biases that a finished run wrote with its weights. */
static void read_final(const char *run, float *bias, int64_t n)
{
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    char *path = mb_files_join(run, "final");
    const mb_lm_options options = {.path = path, .train = "none"};
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_open(ops, &options, &lm));
    assert_int_equal(mb_params_carried_count(mb_lm_params(lm)), n);
    mb_test_ok(mb_lm_router_bias_read(lm, bias));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_free(path);
}

/* Stopped on the way, inside steps and after them, it ends with the bits of the run in one piece: the trained
 * weights and the biases that decided what they learned from. */
static void test_stop_and_resume(void **state)
{
    enum { N = 2 * 6, PIECES = 20 };
    (void)state;
    for (int is_aside = 0; is_aside < 2; is_aside++) {
        mb_trainer_options options = fix_trainer_options();
        fix_run whole = {.arch = fix_arch(4, 2), .train = "all", .objective = "lm", .shard = shard},
                cut = {0}, still = {0};
        float a[N], b[N], none[N] = {0};
        int stops = 0;
        whole.arch.router_bias = true;
        options.router_bias_rate = 0.01;
        options.async_save = is_aside == 1;
        options.save_steps = is_aside; /* 0: only where it is stopped, 1: while the biases go on */
        options.epochs = 2;
        cut = still = whole;
        whole.folder = mb_test_path(folder, is_aside ? "whole_aside" : "whole");
        cut.folder = mb_test_path(folder, is_aside ? "cut_aside" : "cut");
        still.folder = mb_test_path(folder, is_aside ? "still_aside" : "still");
        mb_test_ok(fix_train(&whole, &options));
        mb_status status = MB_ESTOPPED;
        for (; status == MB_ESTOPPED && stops < PIECES; stops++) {
            cut.stop_after = 7;
            status = fix_train(&cut, &options);
        }
        mb_test_ok(status);
        assert_true(stops >= 4);
        options.router_bias_rate = 0;
        mb_test_ok(fix_train(&still, &options));
        read_final(whole.folder, a, N), read_final(cut.folder, b, N);
        assert_memory_equal(a, b, sizeof a);
        assert_memory_equal(whole.trained, cut.trained, (size_t)whole.count * sizeof(float));
        assert_memory_not_equal(a, none, sizeof a);
        assert_memory_not_equal(whole.trained, still.trained, (size_t)whole.count * sizeof(float));
        read_final(still.folder, b, N);
        assert_memory_equal(b, none, sizeof b);
        const fix_run *const runs[] = {&whole, &cut, &still};
        for (int i = 0; i < 3; i++) mb_free((char *)runs[i]->folder), mb_free(runs[i]->trained);
        fix_trainer_free(&options);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_loads_even_out),
        cmocka_unit_test(test_loads_even_out_beside_trash),
        cmocka_unit_test(test_loads_even_out_on_a_device),
        cmocka_unit_test(test_stop_and_resume),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
