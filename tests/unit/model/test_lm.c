/* lm: packing, partial training, limits of a forward, memory of a pass, refusals. */
#include "model_cases.h"

static mb_ops *lm_ops(void)
{
    mb_ops *ops = cases_ops("cpu");
    return ops != NULL ? ops : cases_ops("ref");
}

/* ---- packing ---- */

static void lm_check_packing(const char *name)
{
    static const int32_t offsets[] = {0, 9, 10, 27, 33};
    mb_ops *ops = lm_ops();
    char *path = cases_path(name);
    mb_lm *lm = cases_open(ops, path, "none");
    const int64_t v = mb_lm_arch(lm)->vocab;
    cases_batch all, one;
    cases_random(&all, v, offsets, 4, CASES_SEED);
    float *together = cases_logits(lm, &all);
    int64_t row = 0;
    for (int s = 0; s < 4; s++) {
        const int32_t own[2] = {0, offsets[s + 1] - offsets[s]};
        cases_pack(&one, all.ids + offsets[s], own, 1);
        if (one.batch.head_rows == 0) continue;
        float *alone = cases_logits(lm, &one);
        const int64_t n = one.batch.head_rows * v;
        if (mb_ops_is_row_stable(ops))
            assert_memory_equal(alone, together + row * v, (size_t)n * sizeof *alone);
        else
            assert_true(cases_difference(alone, together + row * v, n) <= 1e-6);
        row += one.batch.head_rows;
        mb_free(alone);
    }
    assert_int_equal(row, all.batch.head_rows);
    mb_free(together);
    mb_lm_destroy(&lm);
    mb_free(path);
    mb_ops_destroy(&ops);
}

static void test_packed_llama_equals_separate(void **state)
{
    (void)state;
    lm_check_packing("llama_bias");
}
static void test_packed_olmoe_equals_separate(void **state)
{
    (void)state;
    lm_check_packing("select_moe");
}

/* ---- partial training ---- */

/* All gradients of a mean loss and of random router gradients, for what `train` says: new block. */
static float *lm_gradient(mb_ops *ops, const char *path, const char *train, mb_lm **out_lm)
{
    static const int32_t offsets[] = {0, 11, 20};
    mb_lm *lm = cases_open(ops, path, train);
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b;
    float weight[64], *d_router[8] = {0};
    const mb_lm_want want = {.gradient = true};
    const int64_t n = mb_params_trained_count(mb_lm_params(lm)), gates = mb_arch_gates(mb_lm_arch(lm));
    float *gradient = mb_calloc((size_t)n, sizeof *gradient);
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    cases_random(&b, mb_lm_arch(lm)->vocab, offsets, 2, CASES_SEED + 1);
    for (int64_t i = 0; i < b.batch.head_rows; i++) weight[i] = 0.05f + 0.01f * (float)(i % 3);
    for (int64_t l = 0; l < mb_lm_routers(lm); l++) {
        d_router[l] = mb_calloc((size_t)(b.batch.tokens * gates), sizeof(float));
        for (int64_t i = 0; i < b.batch.tokens * gates; i++)
            d_router[l][i] = 0.01f * (float)((i * 7 + l) % 11 - 5);
    }
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_status_ok(mb_lm_backward(pass, weight, d_router, NULL));
    for (int l = 0; l < 8; l++) mb_free(d_router[l]);
    mb_lm_pass_destroy(&pass);
    *out_lm = lm;
    return gradient;
}

static void lm_check_partial(const char *name, const char *train)
{
    mb_ops *ops = lm_ops();
    char *path = cases_path(name);
    mb_lm *whole = NULL, *part = NULL;
    float *a = lm_gradient(ops, path, "all", &whole), *b = lm_gradient(ops, path, train, &part);
    int64_t compared = 0;
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(part)); i++) {
        const mb_param *some = mb_params_at(mb_lm_params(part), i);
        const mb_param *all = mb_params_find(mb_lm_params(whole), some->name);
        if (!some->trained) continue;
        const int64_t n = mb_tensor_count(&some->value);
        double size = 0;
        for (int64_t j = 0; j < n; j++) size += fabs((double)mb_tensor_f32(&all->gradient)[j]);
        assert_true(size > 0);
        assert_true(cases_difference(mb_tensor_f32(&some->gradient), mb_tensor_f32(&all->gradient), n) <=
                    1e-6);
        compared++;
    }
    assert_true(compared > 0);
    assert_true(mb_params_trained_count(mb_lm_params(part)) < mb_params_trained_count(mb_lm_params(whole)));
    mb_lm_destroy(&whole);
    mb_lm_destroy(&part);
    mb_free(a);
    mb_free(b);
    mb_free(path);
    mb_ops_destroy(&ops);
}

static void test_router_gradients_are_those_of_full_training(void **state)
{
    (void)state;
    lm_check_partial("select_moe", "router");
    lm_check_partial("olmoe_clip", "router");
    lm_check_partial("olmoe_plain", "model.layers.1.mlp.gate.weight");
}

static void test_any_subset_trains_alike(void **state)
{
    (void)state;
    static const char *const moe[] = {"model.layers.0.self_attn.o_proj.weight",
                                      "model.layers.1.self_attn.v_proj.bias",
                                      "*.experts.1.*",
                                      "model.layers.1.mlp.experts.0.down_proj.weight",
                                      "*.k_norm.weight",
                                      "model.layers.1.post_attention*",
                                      "model.norm.weight",
                                      "model.embed_tokens.weight",
                                      "model.layers.1.input_layernorm.weight"};
    static const char *const dense[] = {
        "lm_head.weight", "model.layers.2.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.bias", "model.norm.weight,model.layers.2.self_attn.k_proj.*"};
    for (size_t i = 0; i < sizeof moe / sizeof moe[0]; i++) lm_check_partial("olmoe_clip", moe[i]);
    for (size_t i = 0; i < sizeof dense / sizeof dense[0]; i++) lm_check_partial("llama_bias", dense[i]);
}

/* ---- a limit of routers ---- */

static void test_limit_of_routers_gives_the_same_logits(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 8, 21};
    mb_ops *ops = lm_ops();
    char *path = cases_path("select_moe");
    mb_lm *lm = cases_open(ops, path, "none");
    mb_lm_pass *full = NULL, *cut = NULL;
    mb_lm_output a, b;
    cases_batch batch;
    cases_random(&batch, mb_lm_arch(lm)->vocab, offsets, 2, CASES_SEED);
    const int64_t rows = batch.batch.head_rows;
    const mb_lm_want none = {0};
    mb_lm_want one = {.routers = 1};
    assert_status_ok(mb_lm_pass_create(lm, &full));
    assert_status_ok(mb_lm_pass_create(lm, &cut));
    assert_status_ok(mb_lm_forward(full, &batch.batch, &none, &a));
    assert_int_equal(a.routers, 2);
    batch.batch.head_rows = 0;
    for (int64_t limit = 0; limit <= 2; limit++) {
        one.routers = limit;
        assert_status_ok(mb_lm_forward(cut, &batch.batch, &one, &b));
        assert_int_equal(b.routers, limit == 0 ? 2 : limit);
        assert_null(b.token_loss);
        for (int64_t l = 0; l < b.routers; l++) {
            assert_memory_equal(a.router_logits[l], b.router_logits[l], 21 * 6 * sizeof(float));
            assert_memory_equal(a.router_ids[l], b.router_ids[l], 21 * 3 * sizeof(int32_t));
        }
    }
    one.routers = 3;
    assert_status_says(mb_lm_forward(cut, &batch.batch, &one, &b), MB_EUSAGE,
                       "3 routers asked for, the model has 2");
    one.routers = 1;
    batch.batch.head_rows = rows;
    assert_status_says(mb_lm_forward(cut, &batch.batch, &one, &b), MB_EUSAGE, "excludes head");
    mb_lm_pass_destroy(&full);
    mb_lm_pass_destroy(&cut);
    mb_lm_destroy(&lm);
    mb_free(path);
    mb_ops_destroy(&ops);
}

/* ---- gradient of the hidden state, and of router logits alone ---- */

static double lm_objective(mb_lm_pass *pass, const cases_batch *b, const float *d_hidden,
                           float *const *d_router)
{
    mb_lm_output out;
    const mb_lm_want want = {.hidden = true, .gradient = true};
    double sum = 0;
    assert_status_ok(mb_lm_forward(pass, &b->batch, &want, &out));
    for (int64_t i = 0; i < b->batch.tokens * 32; i++) sum += (double)d_hidden[i] * out.hidden[i];
    for (int64_t l = 0; l < out.routers; l++)
        for (int64_t i = 0; i < b->batch.tokens * 6; i++)
            sum += (double)d_router[l][i] * out.router_logits[l][i];
    return sum;
}

static void test_hidden_gradient_matches_differences(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 5, 12};
    mb_ops *ops = cases_ops("ref");
    char *path = cases_path("olmoe_plain");
    mb_lm *lm = cases_open(ops, path, "all");
    mb_params *params = mb_lm_params(lm);
    mb_lm_pass *pass = NULL;
    cases_batch b;
    float d_hidden[12 * 32], router[2][12 * 6], *d_router[2] = {router[0], router[1]};
    const int64_t n = mb_params_trained_count(params);
    float *gradient = mb_calloc((size_t)n, sizeof *gradient), *value = mb_params_trained(params);
    mb_params_bind_gradient(params, gradient);
    cases_random(&b, 80, offsets, 2, CASES_SEED);
    b.batch.head_rows = 0;
    for (int i = 0; i < 12 * 32; i++) d_hidden[i] = 0.1f * (float)((i * 5) % 13 - 6);
    for (int i = 0; i < 12 * 6; i++) router[0][i] = router[1][i] = 0.1f * (float)((i * 3) % 7 - 3);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    (void)lm_objective(pass, &b, d_hidden, d_router);
    assert_status_ok(mb_lm_backward(pass, NULL, d_router, d_hidden));
    int checked = 0, total = 0;
    for (int64_t i = 17; i < n; i += 511) {
        const float kept = value[i], h = 2e-3f;
        value[i] = kept + h;
        mb_params_changed(params);
        const double up = lm_objective(pass, &b, d_hidden, d_router);
        value[i] = kept - h;
        mb_params_changed(params);
        const double down = lm_objective(pass, &b, d_hidden, d_router);
        value[i] = kept;
        const double slope = (up - down) / (2.0 * (double)h);
        total++;
        checked += fabs(slope - gradient[i]) <= 0.02 * fabs(slope) + 0.02;
    }
    print_message("# %d of %d slopes agree\n", checked,
                  total); /* a step may change a pick: the function jumps */
    assert_true(total > 40 && checked >= total - total / 20);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_free(gradient);
    mb_free(path);
    mb_ops_destroy(&ops);
}

/* ---- memory ---- */

static void test_steady_steps_allocate_nothing(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 16, 33};
    mb_ops *ops = lm_ops();
    char *path = cases_path("select_moe");
    mb_lm *lm = cases_open(ops, path, "all");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    mb_lm_plan plan;
    cases_batch b;
    float weight[64];
    const mb_lm_want want = {.gradient = true};
    const mb_lm_plan_options shape = {.tokens = offsets[2], .gradient = true, .has_head = true};
    const int64_t n = mb_params_trained_count(mb_lm_params(lm));
    float *gradient = mb_calloc((size_t)n, sizeof *gradient);
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    for (int i = 0; i < 64; i++) weight[i] = 0.1f;
    cases_random(&b, 80, offsets, 2, CASES_SEED);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    int64_t bytes = 0;
    for (int step = 0; step < 5; step++) {
        assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
        assert_status_ok(mb_lm_backward(pass, weight, NULL, NULL));
        if (step >= 2) assert_int_equal(mb_memory_live_bytes(), bytes);
        bytes = mb_memory_live_bytes();
    }
    assert_status_ok(mb_lm_plan_get(mb_lm_arch(lm), "all", NULL, &shape, &plan));
    const double real = (double)mb_arena_peak_bytes(mb_lm_pass_arena(pass));
    const double planned = (double)(plan.activations + plan.scratch);
    print_message("# arena %.0f bytes, planned %.0f\n", real, planned);
    assert_true(planned > 0.8 * real && planned < 1.6 * real);
    assert_int_equal(plan.trained, (size_t)n * sizeof(float));
    assert_int_equal(plan.gradients, plan.trained);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_free(gradient);
    mb_free(path);
    mb_ops_destroy(&ops);
}

/* A frozen model keeps less the less it trains. */
static void test_router_training_keeps_less(void **state)
{
    (void)state;
    mb_lm_plan all, router, none;
    const mb_lm_plan_options back = {.tokens = 64, .gradient = true, .has_head = true},
                             forward = {.tokens = 64};
    mb_arch arch;
    assert_status_ok(mb_arch_read(CASES_FOLDER "/olmoe_plain", &arch));
    assert_status_ok(mb_lm_plan_get(&arch, "all", NULL, &back, &all));
    assert_status_ok(mb_lm_plan_get(&arch, "router", NULL, &back, &router));
    assert_status_ok(mb_lm_plan_get(&arch, "none", NULL, &forward, &none));
    assert_true(none.activations < router.activations && router.activations < all.activations);
    assert_int_equal(router.trained, 2 * 6 * 32 * sizeof(float));
    assert_int_equal(none.trained + none.gradients, 0);
    assert_int_equal(all.weights + all.trained, none.weights);
    mb_arch_reset(&arch);
}

/* ---- refusals ---- */

static void test_bad_batches_are_refused(void **state)
{
    (void)state;
    static const int32_t offsets[] = {0, 6};
    mb_ops *ops = lm_ops();
    char *path = cases_path("llama_tied");
    mb_lm *lm = cases_open(ops, path, "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b;
    const mb_lm_want want = {0};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    cases_random(&b, 80, offsets, 1, CASES_SEED);
    b.ids[3] = 80;
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "row 3 holds token 80");
    b.ids[3] = -1;
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "row 3 holds token -1");
    b.ids[3] = 0;
    b.positions[2] = 64;
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "row 2 has position 64");
    b.positions[2] = 2;
    b.targets[1] = 99;
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "target 1 is token 99");
    b.targets[1] = 0;
    b.head_row[1] = 0;
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "head row 1");
    b.head_row[1] = 1;
    b.offsets[1] = 5;
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "segments");
    b.offsets[1] = 6;
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_status_says(mb_lm_backward(pass, NULL, NULL, NULL), MB_EUSAGE, "no forward with gradient");
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    lm = cases_open(ops, path, "all");
    const mb_lm_want gradient = {.gradient = true};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &gradient, &out));
    assert_status_says(mb_lm_backward(pass, NULL, NULL, NULL), MB_EUSAGE, "no gradient is bound");
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_free(path);
    mb_ops_destroy(&ops);
}

static void test_train_and_trash_options(void **state)
{
    (void)state;
    mb_ops *ops = lm_ops();
    mb_lm *lm = NULL;
    mb_lm_options o = {.path = CASES_FOLDER "/llama_tied", .train = "router"};
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "dense");
    o.train = "*.mlp.gate_prj.weight";
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "matches no tensor");
    o = (mb_lm_options){.path = CASES_FOLDER "/llama_tied", .train = "none", .trash_expert_ratio = 0.1};
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "dense");
    o.path = CASES_FOLDER "/select_moe";
    assert_status_says(mb_lm_open(ops, &o, &lm), MB_EUSAGE, "2 trash experts of its own");
    o.path = CASES_FOLDER "/olmoe_plain";
    o.trash_expert_ratio = 0.34;
    assert_status_ok(mb_lm_open(ops, &o, &lm));
    assert_int_equal(mb_lm_arch(lm)->declared_trash, 2);
    assert_int_equal(mb_arch_good(mb_lm_arch(lm)), 4);
    assert_int_equal(mb_arch_gates(mb_lm_arch(lm)), 6);
    assert_int_equal(mb_params_lowest_trained(mb_lm_params(lm)), 3);
    assert_int_equal(strlen(mb_lm_hash(lm)), 32);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_llama_equals_separate),
        cmocka_unit_test(test_packed_olmoe_equals_separate),
        cmocka_unit_test(test_router_gradients_are_those_of_full_training),
        cmocka_unit_test(test_any_subset_trains_alike),
        cmocka_unit_test(test_limit_of_routers_gives_the_same_logits),
        cmocka_unit_test(test_hidden_gradient_matches_differences),
        cmocka_unit_test(test_steady_steps_allocate_nothing),
        cmocka_unit_test(test_router_training_keeps_less),
        cmocka_unit_test(test_bad_batches_are_refused),
        cmocka_unit_test(test_train_and_trash_options),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
