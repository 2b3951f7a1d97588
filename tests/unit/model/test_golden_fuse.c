/* Fused models against PyTorch: ensembles of both mixings; token- and layer-level routers, their losses and
 * the gradient of every router tensor (also from outside, of the balance and entropy terms), on each backend.
 */
#include "fuse_cases.h"

typedef struct golden {
    const char *name, *level; /* "token", "layer" */
    mb_ops *ops;
    mb_safetensors *expected;
    cases_batch batch;
    double worst; /* largest difference as a share of its limit */
} golden;

static bool golden_open(golden *g, const char *name, const char *backend)
{
    *g = (golden){.name = name, .ops = cases_ops(backend)};
    if (g->ops == NULL) return false;
    g->expected = fuse_cases_expected(name);
    fuse_cases_batch(g->expected, &g->batch);
    return true;
}

static void golden_close(golden *g)
{
    print_message("# %s: largest difference %.2g of what is allowed\n", g->name, g->worst);
    mb_safetensors_close(&g->expected);
    mb_ops_destroy(&g->ops);
}

static int golden_compare(golden *g, const char *prefix, const char *name, const float *value, int64_t n,
                          double limit)
{
    char *key = mb_str_format("%s.%s", prefix, name);
    float *expected = fuse_cases_read(g->expected, key, n);
    assert_non_null(expected);
    const double difference = cases_difference(value, expected, n);
    const bool is_bad = !(difference <= limit);
    if (difference / limit > g->worst) g->worst = difference / limit;
    if (is_bad) print_error("# %s %s differs by %g, limit %g\n", g->name, key, difference, limit);
    mb_free(expected);
    mb_free(key);
    return is_bad;
}

/* ---- ensembles ---- */

static int ensemble(golden *g, bool by_logits)
{
    const mb_fuse_options options = {.kind = MB_FUSE_ENSEMBLE, .by_logits = by_logits};
    mb_lm *lm = fuse_cases_open_as(g->ops, g->name, &options);
    const char *prefix = by_logits ? "ensemble.logits" : "ensemble.probabilities";
    const int64_t n = g->batch.batch.head_rows, v = mb_lm_arch(lm)->vocab;
    const mb_lm_want want = {.logits = true, .argmax = true};
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &g->batch.batch, &want, &out));
    int bad = golden_compare(g, prefix, "logits", out.logits, n * v, 1e-5);
    bad += golden_compare(g, prefix, "token_loss", out.token_loss, n, 1e-5);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    return bad;
}

static void check_ensembles(const char *name, const char *backend)
{
    golden g;
    if (!golden_open(&g, name, backend)) skip();
    const int bad = ensemble(&g, false) + ensemble(&g, true);
    golden_close(&g);
    assert_int_equal(bad, 0);
}

/* ---- routers ---- */

static int compare_gradients(golden *g, mb_lm *lm, const char *prefix)
{
    int bad = 0;
    char *level = mb_str_format("%s.%s", g->level, prefix);
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(lm)); i++) {
        const mb_param *param = mb_params_at(mb_lm_params(lm), i);
        const int64_t n = mb_tensor_count(&param->value);
        float *gradient = cases_read(g->ops, mb_tensor_f32(&param->gradient), n);
        bad += golden_compare(g, level, param->name, gradient, n, 1e-4);
        mb_free(gradient);
    }
    mb_free(level);
    return bad;
}

/* Gradients of the mean token loss and of what enters at the routers' logits. */
static int router_backward(golden *g, mb_lm *lm, mb_lm_pass *pass, float *gradient, const char *outside,
                           const char *prefix)
{
    float *d_logits[16] = {0}, weight[256];
    const int64_t n = g->batch.batch.head_rows, stages = mb_lm_routers(lm);
    for (int64_t i = 0; i < n; i++) weight[i] = 1.0f / (float)n;
    for (int64_t s = 0; s < stages; s++) {
        char *name = mb_str_format("%s.%s.%lld", g->level, outside, (long long)s);
        d_logits[s] = fuse_cases_read(g->expected, name, g->batch.batch.tokens * mb_fuse_members(lm));
        assert_non_null(d_logits[s]);
        mb_free(name);
    }
    cases_zero(g->ops, gradient, mb_params_trained_count(mb_lm_params(lm)));
    const bool is_fused = g->batch.batch.opt_head_weight != NULL;
    assert_status_ok(mb_lm_backward(pass, is_fused ? NULL : weight, d_logits, NULL));
    for (int64_t s = 0; s < stages; s++) mb_free(d_logits[s]);
    return compare_gradients(g, lm, prefix);
}

static int router_forward(golden *g, mb_lm *lm, mb_lm_pass *pass, const mb_lm_want *want)
{
    const int64_t n = g->batch.batch.head_rows, t = g->batch.batch.tokens, m = mb_fuse_members(lm);
    mb_lm_output out;
    assert_status_ok(mb_lm_forward(pass, &g->batch.batch, want, &out));
    int bad = golden_compare(g, g->level, "token_loss", out.token_loss, n, 1e-4);
    if (want->logits)
        bad += golden_compare(g, g->level, "logits", out.logits, n * mb_lm_arch(lm)->vocab, 1e-4);
    assert_int_equal(out.routers, mb_lm_routers(lm));
    for (int64_t s = 0; s < out.routers; s++) {
        char *name = mb_str_format("router_logits.%lld", (long long)s);
        bad += golden_compare(g, g->level, name, out.router_logits[s], t * m, 1e-4);
        for (int64_t i = 0; i < t; i++) {
            const float *row = out.router_logits[s] + i * m;
            assert_true(row[out.router_ids[s][i]] >= row[0] && row[out.router_ids[s][i]] >= row[m - 1]);
        }
        mb_free(name);
    }
    return bad;
}

static int router_passes(golden *g, mb_lm *lm, mb_lm_pass *pass, float *gradient)
{
    const mb_lm_want want = {.gradient = true, .logits = true}, again = {.gradient = true, .recompute = true};
    float weight[256];
    int bad = router_forward(g, lm, pass, &want);
    bad += router_backward(g, lm, pass, gradient, "random", "all");
    bad += router_forward(g, lm, pass, &want);
    bad += router_backward(g, lm, pass, gradient, "btm.d_router_logits", "btm");
    for (int i = 0; i < 256; i++) weight[i] = 1.0f / (float)g->batch.batch.head_rows;
    g->batch.batch.opt_head_weight = weight; /* the head's part in the forward, blocks made again */
    bad += router_forward(g, lm, pass, &again);
    bad += router_backward(g, lm, pass, gradient, "random", "all");
    g->batch.batch.opt_head_weight = NULL;
    return bad;
}

static void check_router(const char *name, const char *backend, mb_fuse_kind kind)
{
    golden g;
    if (!golden_open(&g, name, backend)) skip();
    mb_lm *lm = fuse_cases_open(g.ops, name, kind);
    mb_lm_pass *pass = NULL;
    g.level = kind == MB_FUSE_TOKEN ? "token" : "layer";
    fuse_cases_set_router(lm, g.expected, g.level);
    mb_buffer *room = cases_room(g.ops, mb_params_trained_count(mb_lm_params(lm)));
    mb_params_bind_gradient(mb_lm_params(lm), room->data);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    const int bad = router_passes(&g, lm, pass, room->data);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_buffer_destroy(&room);
    golden_close(&g);
    assert_int_equal(bad, 0);
}

/* ---- tests ---- */

static const char *backend_of(void **state)
{
    return strchr(*state, ' ') + 1;
}

static char *case_of(void **state)
{
    return mb_strndup(*state, (size_t)(strchr(*state, ' ') - (char *)*state));
}

static void test_ensembles(void **state)
{
    char *name = case_of(state);
    check_ensembles(name, backend_of(state));
    mb_free(name);
}

static void test_token_level(void **state)
{
    char *name = case_of(state);
    check_router(name, backend_of(state), MB_FUSE_TOKEN);
    mb_free(name);
}

static void test_layer_level(void **state)
{
    char *name = case_of(state);
    check_router(name, backend_of(state), MB_FUSE_LAYER);
    mb_free(name);
}

#define GOLDEN_CASE(text)                                                                                    \
    {text " ensembles", test_ensembles, NULL, NULL, text},                                                   \
        {text " token", test_token_level, NULL, NULL, text},                                                 \
    {                                                                                                        \
        text " layer", test_layer_level, NULL, NULL, text                                                    \
    }

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        GOLDEN_CASE("llama ref"),  GOLDEN_CASE("qwen3 ref"),    GOLDEN_CASE("mixtral ref"),
        GOLDEN_CASE("llama cpu"),  GOLDEN_CASE("qwen3 cpu"),    GOLDEN_CASE("mixtral cpu"),
        GOLDEN_CASE("llama cuda"), GOLDEN_CASE("mixtral cuda"),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
