/* fuse: ensembles and token-level routers: what they give, how they train, caches, memory. */
#include "fuse_pair.h"

#include "model/fuse_mix.h"

/* ---- ensembles ---- */

static void fuse_check_ensemble(const char *backend, const char *name)
{
    fuse_case c;
    cases_batch b;
    double weight[2 * ROWS];
    if (!fuse_begin(&c, backend, name, 3, 7)) return;
    mb_lm *lm = fuse_ensemble(&c), *one = cases_open(c.ops, c.path[0], "none"),
          *two = cases_open(c.ops, c.path[1], "none");
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    for (int i = 0; i < 2 * ROWS; i++) weight[i] = i % 2 == 0 ? 0.3 : 0.7;
    fuse_result fused = fuse_forward(lm, &b.batch);
    fuse_result x = fuse_forward(mb_fuse_member_lm(lm, 0), &b.batch);
    b.batch.targets = b.targets;
    mb_lm_want want = {.no_routing = true};
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    fuse_result y = {.rows = b.batch.head_rows, .vocab = mb_lm_arch(two)->vocab};
    y.logits = cases_logits(two, &b);
    fuse_check_rows(&fused, &x, &y, weight, &b.batch);
    assert_int_equal(mb_lm_routers(lm), 0);
    assert_int_equal(mb_lm_arch(lm)->experts, 0);
    /* the losses alone are the same */
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_memory_equal(out.token_loss, fused.loss, (size_t)fused.rows * sizeof(float));
    assert_null(out.logits);
    assert_null(out.argmax);
    mb_lm_pass_destroy(&pass);
    fuse_free(&fused);
    fuse_free(&x);
    fuse_free(&y);
    mb_lm_destroy(&lm);
    mb_lm_destroy(&one);
    mb_lm_destroy(&two);
    fuse_end(&c);
}

static void test_an_ensemble_is_the_mean_of_probabilities(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++) {
        fuse_check_ensemble(fuse_backends[i], "llama");
        fuse_check_ensemble(fuse_backends[i], "qwen3");
    }
}

static void test_logits_are_mixed_as_they_are(void **state)
{
    (void)state;
    fuse_case c;
    cases_batch b;
    assert_true(fuse_begin(&c, "ref", "llama", 0.25, 0.75));
    mb_lm *lm = fuse_open(&c, MB_FUSE_ENSEMBLE, true, false);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    fuse_result fused = fuse_forward(lm, &b.batch);
    float *x = cases_logits(mb_fuse_member_lm(lm, 0), &b), *y = cases_logits(mb_fuse_member_lm(lm, 1), &b);
    const int64_t v = fused.vocab;
    for (int64_t i = 0; i < fused.rows; i++) {
        double p[64];
        for (int64_t t = 0; t < v; t++) {
            const double z = 0.25 * (double)x[i * v + t] + 0.75 * (double)y[i * v + t];
            assert_true(fabs(z - (double)fused.logits[i * v + t]) <= 1e-6);
        }
        fuse_softmax(fused.logits + i * v, v, p);
        assert_true(fabs((double)fused.loss[i] + log(p[b.targets[i]])) <= 1e-6);
    }
    mb_free(x);
    mb_free(y);
    fuse_free(&fused);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

/* Members with an adapter, in bf16, quantised: what each of them gives is what is mixed, and a folder of them
 * gives it again. */
static void fuse_check_kept(const char *backend, mb_dtype dtype, int bits)
{
    fuse_case c;
    cases_batch b;
    double weight[2 * ROWS];
    mb_lm *lm = NULL, *again = NULL;
    if (!fuse_begin(&c, backend, "llama", 1, 1)) return;
    char *base = cases_path("mixtral"), *adapter = cases_path("mixtral_adapter"), *folder = cases_temporary();
    c.member[0].path = c.member[1].path = base;
    c.member[1].opt_adapter = adapter;
    mb_fuse_options options = fuse_options(&c, MB_FUSE_ENSEMBLE);
    options.dtype = dtype;
    options.frozen_bits = bits;
    options.frozen_group = bits > 0 ? 4 : 0;
    assert_status_ok(mb_fuse_open(c.ops, &options, &lm));
    assert_int_equal(mb_lm_dtype(lm), dtype);
    cases_random(&b, 40, fuse_offsets, 4, CASES_SEED);
    for (int i = 0; i < 2 * ROWS; i++) weight[i] = 0.5;
    fuse_result fused = fuse_forward(lm, &b.batch), x = {0}, y = {0};
    x.logits = cases_logits(mb_fuse_member_lm(lm, 0), &b);
    y.logits = cases_logits(mb_fuse_member_lm(lm, 1), &b);
    assert_true(cases_difference(x.logits, y.logits, fused.rows * 40) > 1e-3); /* the adapter is there */
    fuse_check_rows(&fused, &x, &y, weight, &b.batch);
    assert_status_ok(mb_lm_write(lm, folder, "full", MB_F32));
    const mb_lm_options read = {
        .path = folder, .dtype = dtype, .frozen_bits = bits, .frozen_group = options.frozen_group};
    assert_status_ok(mb_lm_open(c.ops, &read, &again));
    assert_non_null(mb_lm_adapter(mb_fuse_member_lm(again, 1)));
    assert_null(mb_lm_adapter(mb_fuse_member_lm(again, 0)));
    fuse_result z = fuse_forward(again, &b.batch);
    assert_memory_equal(z.logits, fused.logits, (size_t)(fused.rows * 40) * sizeof(float));
    fuse_free(&fused);
    fuse_free(&x);
    fuse_free(&y);
    fuse_free(&z);
    mb_lm_destroy(&again);
    mb_lm_destroy(&lm);
    cases_remove(folder);
    mb_free(base);
    mb_free(adapter);
    fuse_end(&c);
}

static void test_members_keep_their_adapters_and_storage(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++) {
        fuse_check_kept(fuse_backends[i], MB_F32, 0);
        fuse_check_kept(fuse_backends[i], MB_BF16, 0);
        fuse_check_kept(fuse_backends[i], MB_F32, 8);
    }
}

/* ---- one member alone ---- */

/* A prompt of 7 rows and 4 steps of one, two slots; logits of every step: new block [6, V]. */
static float *fuse_generate(mb_lm *lm, int64_t *out_steps)
{
    enum { PROMPT = 7, STEPS = 5, SLOTS = 2 };
    const int64_t v = mb_lm_arch(lm)->vocab;
    mb_kv_cache *cache = NULL;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    float *logits = mb_calloc((size_t)(STEPS * SLOTS * v), sizeof *logits);
    int32_t ids[PROMPT * SLOTS], positions[PROMPT * SLOTS], offsets[SLOTS + 1],
        slot[SLOTS] = {1, 0}, head[SLOTS], length[SLOTS] = {0, 0};
    assert_status_ok(mb_lm_cache_create(lm, SLOTS, 32, &cache));
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    for (int step = 0; step < STEPS; step++) {
        const int rows = step == 0 ? PROMPT : 1;
        offsets[0] = 0;
        for (int s = 0; s < SLOTS; s++) {
            for (int i = 0; i < rows; i++) {
                ids[offsets[s] + i] = (int32_t)((length[s] * 5 + i * 11 + s * 3 + 4) % 40);
                positions[offsets[s] + i] = length[s] + i;
            }
            offsets[s + 1] = offsets[s] + rows;
            head[s] = offsets[s + 1] - 1;
            length[s] += rows;
        }
        const mb_lm_batch batch = {.tokens = offsets[SLOTS],
                                   .segments = SLOTS,
                                   .ids = ids,
                                   .positions = positions,
                                   .offsets = offsets,
                                   .head_rows = SLOTS,
                                   .head_row = head,
                                   .opt_cache = cache,
                                   .opt_slot = slot};
        const mb_lm_want want = {.logits = true, .no_routing = step % 2 == 0};
        assert_status_ok(mb_lm_forward(pass, &batch, &want, &out));
        memcpy(logits + step * SLOTS * v, out.logits, (size_t)(SLOTS * v) * sizeof *logits);
        assert_int_equal(cache->length[slot[0]], length[0]);
    }
    mb_lm_pass_destroy(&pass);
    mb_kv_cache_destroy(&cache);
    *out_steps = STEPS * SLOTS;
    return logits;
}

/* The same rows without a cache. */
static float *fuse_generate_whole(mb_lm *lm)
{
    enum { PROMPT = 7, STEPS = 5, SLOTS = 2 };
    const int64_t v = mb_lm_arch(lm)->vocab;
    float *logits = mb_calloc((size_t)(STEPS * SLOTS * v), sizeof *logits);
    int32_t ids[SLOTS][32], length[SLOTS] = {0, 0};
    for (int step = 0; step < STEPS; step++)
        for (int s = 0; s < SLOTS; s++) {
            const int rows = step == 0 ? PROMPT : 1;
            for (int i = 0; i < rows; i++)
                ids[s][length[s] + i] = (int32_t)((length[s] * 5 + i * 11 + s * 3 + 4) % 40);
            length[s] += rows;
            cases_batch b;
            const int32_t offsets[2] = {0, length[s]}, last = length[s] - 1;
            cases_pack(&b, ids[s], offsets, 1);
            b.batch.head_rows = 1;
            b.batch.head_row = &last;
            b.batch.targets = NULL;
            float *row = cases_logits(lm, &b);
            memcpy(logits + (step * SLOTS + s) * v, row, (size_t)v * sizeof *row);
            mb_free(row);
        }
    return logits;
}

static void fuse_check_single(const char *backend, int which)
{
    fuse_case c;
    cases_batch b;
    int64_t steps;
    if (!fuse_begin(&c, backend, "llama", which == 0, which == 1)) return;
    mb_lm *lm = fuse_ensemble(&c), *alone = cases_open(c.ops, c.path[which], "none");
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    fuse_result x = fuse_forward(lm, &b.batch), y = fuse_forward(alone, &b.batch);
    fuse_check_same(&x, &y);
    float *g = fuse_generate(lm, &steps), *h = fuse_generate(alone, &steps);
    assert_memory_equal(g, h, (size_t)(steps * x.vocab) * sizeof *g);
    assert_true(fabs(mb_lm_flops(lm, 10) - mb_lm_flops(alone, 10)) < 1);
    mb_free(g);
    mb_free(h);
    fuse_free(&x);
    fuse_free(&y);
    mb_lm_destroy(&lm);
    mb_lm_destroy(&alone);
    fuse_end(&c);
}

static void test_all_weight_on_one_is_that_model_bit_for_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++)
        for (int which = 0; which < 2; which++) fuse_check_single(fuse_backends[i], which);
}

/* ---- token level ---- */

static void fuse_check_new_router(const char *backend, const char *name)
{
    fuse_case c;
    cases_batch b;
    if (!fuse_begin(&c, backend, name, 0.3, 0.7)) return;
    mb_lm *ensemble = fuse_ensemble(&c), *token = fuse_open(&c, MB_FUSE_TOKEN, false, false);
    cases_random(&b, mb_lm_arch(token)->vocab, fuse_offsets, 4, CASES_SEED);
    fuse_result x = fuse_forward(ensemble, &b.batch), y = fuse_forward(token, &b.batch);
    assert_true(cases_difference(y.logits, x.logits, x.rows * x.vocab) <= 1e-6);
    assert_true(cases_difference(y.loss, x.loss, x.rows) <= 1e-6);
    assert_memory_equal(y.argmax, x.argmax, (size_t)x.rows * sizeof(int32_t));
    for (int64_t t = 0; t < b.batch.tokens; t++) {
        assert_true(fabs((double)(y.router[2 * t + 1] - y.router[2 * t]) - log(0.7 / 0.3)) <= 1e-6);
        assert_int_equal(y.ids[t], 1);
    }
    assert_int_equal(mb_lm_routers(token), 1);
    assert_int_equal(mb_lm_arch(token)->experts, 2);
    assert_int_equal(mb_lm_arch(token)->picks, 1);
    fuse_free(&x);
    fuse_free(&y);
    mb_lm_destroy(&ensemble);
    mb_lm_destroy(&token);
    fuse_end(&c);
}

static void test_a_new_token_router_is_the_ensemble(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++) {
        fuse_check_new_router(fuse_backends[i], "llama");
        fuse_check_new_router(fuse_backends[i], "mixtral");
    }
}

static void fuse_check_token(const char *backend)
{
    fuse_case c;
    cases_batch b;
    double weight[2 * ROWS], w[2];
    if (!fuse_begin(&c, backend, "llama", 0.3, 0.7)) return;
    mb_lm *lm = fuse_open(&c, MB_FUSE_TOKEN, false, false);
    fuse_randomise(lm);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    fuse_result fused = fuse_forward(lm, &b.batch), x = {0}, y = {0};
    x.logits = cases_logits(mb_fuse_member_lm(lm, 0), &b);
    y.logits = cases_logits(mb_fuse_member_lm(lm, 1), &b);
    double least = 1, most = 0;
    for (int64_t i = 0; i < fused.rows; i++) {
        fuse_softmax(fused.router + 2 * b.head_row[i], 2, w);
        weight[2 * i] = w[0], weight[2 * i + 1] = w[1];
        if (w[0] < least) least = w[0];
        if (w[0] > most) most = w[0];
    }
    assert_true(most - least > 0.05); /* it looks at the rows */
    fuse_check_rows(&fused, &x, &y, weight, &b.batch);
    fuse_free(&fused);
    fuse_free(&x);
    fuse_free(&y);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

static void test_a_token_router_weighs_each_row(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++)
        fuse_check_token(fuse_backends[i]);
}

static void test_a_router_can_choose_one_member_exactly(void **state)
{
    (void)state;
    fuse_case c;
    cases_batch b;
    assert_true(fuse_begin(&c, "ref", "llama", 0.5, 0.5));
    mb_lm *lm = fuse_open(&c, MB_FUSE_TOKEN, false, false);
    fuse_set(lm, "router.0.down_proj.bias", fuse_first);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    fuse_result fused = fuse_forward(lm, &b.batch), x = fuse_forward(mb_fuse_member_lm(lm, 0), &b.batch);
    assert_memory_equal(fused.loss, x.loss, (size_t)x.rows * sizeof(float));
    assert_memory_equal(fused.argmax, x.argmax, (size_t)x.rows * sizeof(int32_t));
    fuse_free(&fused);
    fuse_free(&x);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

/* ---- gradients ---- */

/* sum of weight * token loss + of outside * router logits, in f64. */
static double fuse_objective(mb_lm_pass *pass, const mb_lm_batch *batch, const float *weight,
                             const float *outside, bool gradient, mb_lm_output *out)
{
    const mb_lm_want want = {.gradient = gradient};
    double sum = 0;
    assert_status_ok(mb_lm_forward(pass, batch, &want, out));
    for (int64_t i = 0; i < batch->head_rows; i++) sum += (double)weight[i] * (double)out->token_loss[i];
    for (int64_t i = 0; i < 2 * batch->tokens; i++)
        sum += (double)outside[i] * (double)out->router_logits[0][i];
    return sum;
}

/* The gradient of each tensor along itself, against the objective's difference. */
static void fuse_check_gradient(const char *backend, const char *name)
{
    fuse_case c;
    cases_batch b;
    float weight[ROWS], outside[2 * ROWS];
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    if (!fuse_begin(&c, backend, name, 0.4, 0.6)) return;
    mb_lm *lm = fuse_open(&c, MB_FUSE_TOKEN, false, true);
    mb_params *params = mb_lm_params(lm);
    const int64_t n = mb_params_trained_count(params);
    assert_int_equal(mb_params_count(params), 6);
    fuse_randomise(lm);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED + 4);
    for (int i = 0; i < ROWS; i++) weight[i] = 0.1f + 0.02f * (float)(i % 5);
    for (int i = 0; i < 2 * ROWS; i++) outside[i] = 0.03f * sinf((float)i);
    float *d_router[1] = {outside};
    mb_buffer *gradient = cases_room(c.ops, n);
    cases_zero(c.ops, gradient->data, n);
    mb_params_bind_gradient(params, gradient->data);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    (void)fuse_objective(pass, &b.batch, weight, outside, true, &out);
    assert_status_ok(mb_lm_backward(pass, weight, d_router, NULL));
    float *g = cases_read(c.ops, gradient->data, n);
    for (int64_t p = 0; p < mb_params_count(params); p++) {
        mb_param *param = mb_params_at(params, p);
        const int64_t size = mb_tensor_count(&param->value);
        float *value = mb_calloc((size_t)size, sizeof *value),
              *moved = mb_calloc((size_t)size, sizeof *value);
        double along = 0, length = 0, at[2];
        assert_status_ok(mb_params_get_f32(param, value));
        for (int64_t i = 0; i < size; i++) length += (double)g[param->flat + i] * (double)g[param->flat + i];
        length = sqrt(length);
        assert_true(length > 1e-6);
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < size; i++)
                moved[i] =
                    value[i] + (float)((side == 0 ? 4e-3 : -4e-3) * (double)g[param->flat + i] / length);
            assert_status_ok(mb_params_set_f32(param, moved));
            at[side] = fuse_objective(pass, &b.batch, weight, outside, false, &out);
        }
        assert_status_ok(mb_params_set_f32(param, value));
        along = (at[0] - at[1]) / 8e-3;
        if (fabs(along - length) > 2e-3 * length)
            print_error("# %s: %g, not %g\n", param->name, length, along);
        assert_true(fabs(along - length) <= 2e-3 * length);
        mb_free(value);
        mb_free(moved);
    }
    mb_free(g);
    mb_lm_pass_destroy(&pass);
    mb_buffer_destroy(&gradient);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

static void test_the_routers_gradients_are_those_of_the_objective(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++)
        fuse_check_gradient(fuse_backends[i], "llama");
}

/* ---- caches ---- */

static void fuse_check_cache(const char *backend, mb_fuse_kind kind)
{
    fuse_case c;
    int64_t steps;
    if (!fuse_begin(&c, backend, "qwen3", 0.4, 0.6)) return;
    mb_lm *lm = fuse_open(&c, kind, false, false);
    if (kind == MB_FUSE_TOKEN) fuse_randomise(lm);
    float *kept = fuse_generate(lm, &steps), *whole = fuse_generate_whole(lm);
    const int64_t n = steps * mb_lm_arch(lm)->vocab;
    if (mb_ops_is_row_stable(c.ops) && strcmp(backend, "ref") == 0)
        assert_memory_equal(kept, whole, (size_t)n * sizeof *kept);
    else
        assert_true(cases_difference(kept, whole, n) <= 2e-6);
    mb_free(kept);
    mb_free(whole);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

static void test_kept_keys_change_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++) {
        fuse_check_cache(fuse_backends[i], MB_FUSE_ENSEMBLE);
        fuse_check_cache(fuse_backends[i], MB_FUSE_TOKEN);
    }
}

static void test_a_chain_of_caches_is_handled_as_one(void **state)
{
    (void)state;
    fuse_case c;
    mb_kv_cache *cache = NULL;
    assert_true(fuse_begin(&c, "ref", "llama", 1, 1));
    mb_lm *lm = fuse_ensemble(&c);
    assert_status_ok(mb_lm_cache_create(lm, 2, 20, &cache));
    assert_non_null(cache->next);
    assert_null(cache->next->next);
    mb_kv_cache_place(cache, 1, 4, 8);
    assert_int_equal(cache->next->first[1], 4);
    assert_int_equal(cache->next->room[1], 8);
    mb_kv_cache_grow(cache, 1, 3);
    assert_int_equal(cache->next->length[1], 0);
    mb_kv_cache_grow(cache->next, 1, 3);
    mb_kv_cache_place(cache, 0, 12, 8);
    assert_status_ok(mb_kv_cache_copy(cache, 1, 0));
    assert_int_equal(cache->next->length[0], 3);
    mb_kv_cache_cut(cache, 1, 1);
    assert_int_equal(cache->next->length[1], 1);
    mb_kv_cache_destroy(&cache);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

/* ---- mixing of rows ---- */

static void test_mixed_rows_do_not_depend_on_threads(void **state)
{
    (void)state;
    enum { V = 9001, N = 3, M = 3 };
    float *logits[M], *one = mb_calloc((size_t)N * V, sizeof *one),
                      *four = mb_calloc((size_t)N * V, sizeof *one);
    const float *rows[M];
    const int64_t width[M] = {V, V - 700, V};
    const uint8_t *has[M] = {NULL, NULL, NULL};
    const double weight[N * M] = {0.2, 0.5, 0.3, 1, 0, 0, 0, 0.999, 0.001};
    for (int m = 0; m < M; m++) {
        logits[m] = mb_calloc((size_t)(N * width[m]), sizeof(float));
        for (int64_t i = 0; i < N * width[m]; i++) logits[m][i] = 30 * sinf((float)(i * (m + 2)) * 0.37f);
        rows[m] = logits[m];
    }
    mb_fuse_mix mix = {.rows = N,
                       .size = V,
                       .members = M,
                       .logits = rows,
                       .width = width,
                       .has = has,
                       .weight = weight,
                       .threads = 1};
    for (int by_logits = 0; by_logits < 2; by_logits++) {
        mix.by_logits = by_logits != 0;
        mix.threads = 1;
        assert_status_ok(mb_fuse_mix_rows(&mix, one));
        mix.threads = 4;
        assert_status_ok(mb_fuse_mix_rows(&mix, four));
        assert_memory_equal(one, four, sizeof(float) * N * V);
        if (by_logits) assert_memory_equal(one + V, logits[0] + V, sizeof(float) * V);
        for (int64_t v = V - 700; v < V && by_logits; v += 99) {
            const double mean = (0.2 * (double)logits[0][v] + 0.3 * (double)logits[2][v]) / 0.5;
            assert_true(fabs((double)one[v] - mean) <= 1e-5);
        }
        if (by_logits) continue;
        double p[2] = {0, 0}, gone = 0;
        for (int64_t v = 0; v < V; v++) {
            p[0] += exp((double)one[v]);
            p[1] += exp((double)one[V + v]);
        }
        for (int64_t v = V - 700; v < V; v++) gone += exp((double)one[v]);
        assert_true(fabs(p[0] - 1) <= 1e-5); /* each member's own distribution is whole */
        assert_true(fabs(p[1] - 1) <= 1e-5);
        assert_true(gone > 0 && gone < 0.5);
    }
    for (int m = 0; m < M; m++) mb_free(logits[m]);
    mb_free(one);
    mb_free(four);
}

/* ---- memory ---- */

static void test_a_pass_takes_what_was_planned(void **state)
{
    (void)state;
    fuse_case c;
    cases_batch b;
    mb_lm_plan plan;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    assert_true(fuse_begin(&c, "ref", "llama", 1, 1));
    mb_lm *lm = fuse_open(&c, MB_FUSE_TOKEN, false, true);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    const mb_lm_plan_options options = {.tokens = ROWS, .gradient = true, .has_head = true};
    const mb_lm_want want = {.gradient = true};
    assert_status_ok(mb_lm_plan_open(lm, &options, &plan));
    float *gradient = mb_calloc((size_t)mb_params_trained_count(mb_lm_params(lm)), sizeof *gradient), d[ROWS];
    for (int i = 0; i < ROWS; i++) d[i] = 1;
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    int64_t bytes = 0;
    for (int step = 0; step < 5; step++) { /* steady steps allocate nothing */
        assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
        assert_status_ok(mb_lm_backward(pass, d, NULL, NULL));
        if (step >= 2) assert_int_equal(mb_memory_live_bytes(), bytes);
        bytes = mb_memory_live_bytes();
    }
    const double real = (double)mb_lm_pass_peak_bytes(pass), said = (double)(plan.activations + plan.scratch);
    print_message("# pass: %.0f bytes, planned %.0f\n", real, said);
    assert_true(real > 0.6 * said && real < 1.5 * said);
    const mb_params_bytes_used used = mb_lm_used(lm);
    const double weights = (double)used.frozen + (double)mb_lm_rope_bytes(lm);
    print_message("# weights: %.0f bytes, planned %.0f\n", weights, (double)plan.weights);
    assert_true(fabs(weights - (double)plan.weights) <= 0.05 * weights);
    assert_int_equal(plan.trained, used.trained);
    assert_int_equal(plan.trained, 4 * mb_params_trained_count(mb_lm_params(lm)));
    mb_free(gradient);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_ensemble_is_the_mean_of_probabilities),
        cmocka_unit_test(test_logits_are_mixed_as_they_are),
        cmocka_unit_test(test_members_keep_their_adapters_and_storage),
        cmocka_unit_test(test_all_weight_on_one_is_that_model_bit_for_bit),
        cmocka_unit_test(test_a_new_token_router_is_the_ensemble),
        cmocka_unit_test(test_a_token_router_weighs_each_row),
        cmocka_unit_test(test_a_router_can_choose_one_member_exactly),
        cmocka_unit_test(test_the_routers_gradients_are_those_of_the_objective),
        cmocka_unit_test(test_kept_keys_change_nothing),
        cmocka_unit_test(test_a_chain_of_caches_is_handled_as_one),
        cmocka_unit_test(test_mixed_rows_do_not_depend_on_threads),
        cmocka_unit_test(test_a_pass_takes_what_was_planned),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
