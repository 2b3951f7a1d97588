/* Every golden model against transformers: logits, hidden state, router logits, losses and every gradient, on
 * each backend. */
#include "model_cases.h"

typedef struct golden {
    char *folder, *file;
    mb_safetensors *expected;
    cases_batch batch;
} golden;

static void golden_open(golden *g, const char *name)
{
    mb_tensor ids, offsets;
    int32_t id[256], offset[16];
    g->folder = cases_path(name);
    g->file = mb_files_join(g->folder, "expected.safetensors");
    assert_status_ok(mb_safetensors_open(g->file, &g->expected));
    assert_status_ok(mb_safetensors_view(g->expected, "ids", &ids));
    assert_status_ok(mb_safetensors_view(g->expected, "offsets", &offsets));
    memcpy(id, ids.data, mb_tensor_bytes(&ids));
    memcpy(offset, offsets.data, mb_tensor_bytes(&offsets));
    cases_pack(&g->batch, id, offset, offsets.shape[0] - 1);
}

static void golden_close(golden *g)
{
    mb_safetensors_close(&g->expected);
    mb_free(g->folder);
    mb_free(g->file);
}

static float *golden_read(const golden *g, const char *name, int64_t n)
{
    mb_tensor view;
    assert_status_ok(mb_safetensors_view(g->expected, name, &view));
    assert_int_equal(mb_tensor_count(&view), n);
    float *value = mb_calloc((size_t)n, sizeof *value);
    memcpy(value, view.data, (size_t)n * sizeof *value);
    return value;
}

static int golden_compare(const golden *g, const char *name, const float *value, int64_t n)
{
    float *expected = golden_read(g, name, n);
    const double difference = cases_difference(value, expected, n);
    if (!(difference <= 1e-4)) print_error("# %s %s differs by %g\n", g->folder, name, difference);
    mb_free(expected);
    return difference <= 1e-4 ? 0 : 1;
}

static int golden_gradients(const golden *g, mb_params *params, const char *prefix, bool every)
{
    int bad = 0, seen = 0;
    char name[240];
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        snprintf(name, sizeof name, "%s.%s", prefix, param->name);
        if (!every && !mb_safetensors_has(g->expected, name)) continue;
        bad += golden_compare(g, name, mb_tensor_f32(&param->gradient), mb_tensor_count(&param->value));
        seen++;
    }
    assert_true(seen > 4);
    return bad;
}

/* The head's rows are all but the last of each segment: pick them out of [T, V]. */
static int golden_logits(const golden *g, const mb_lm *lm, const mb_lm_output *out)
{
    const int64_t v = mb_lm_arch(lm)->vocab, t = g->batch.batch.tokens, n = g->batch.batch.head_rows;
    float *all = golden_read(g, "logits", t * v), *rows = mb_calloc((size_t)(n * v), sizeof *rows);
    for (int64_t i = 0; i < n; i++)
        memcpy(rows + i * v, all + g->batch.head_row[i] * v, (size_t)v * sizeof *rows);
    const double difference = cases_difference(out->logits, rows, n * v);
    int bad = !(difference <= 1e-4);
    if (bad) print_error("# %s logits differ by %g\n", g->folder, difference);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < v; j++) bad += rows[i * v + j] > rows[i * v + out->argmax[i]] + 1e-4f;
    mb_free(all);
    mb_free(rows);
    return bad;
}

static int golden_forward(const golden *g, mb_lm *lm, const mb_lm_output *out)
{
    const mb_arch *arch = mb_lm_arch(lm);
    char name[64];
    int bad = golden_logits(g, lm, out);
    bad += golden_compare(g, "hidden", out->hidden, g->batch.batch.tokens * arch->width);
    bad += golden_compare(g, "token_loss", out->token_loss, g->batch.batch.head_rows);
    assert_int_equal(out->routers, arch->experts > 0 ? arch->layers : 0);
    for (int64_t i = 0; i < out->routers; i++) {
        snprintf(name, sizeof name, "router_logits.%d", (int)i);
        bad += golden_compare(g, name, out->router_logits[i], g->batch.batch.tokens * mb_arch_gates(arch));
    }
    return bad;
}

static int golden_backward(const golden *g, mb_lm *lm, mb_lm_pass *pass, float *gradient, bool fused)
{
    const int64_t n = g->batch.batch.head_rows, layers = mb_lm_routers(lm);
    const int64_t elements = mb_params_trained_count(mb_lm_params(lm));
    float weight[256], *randoms[8] = {0};
    char name[64];
    for (int64_t i = 0; i < n; i++) weight[i] = 1.0f / (float)n;
    int bad = 0;
    if (!fused) {
        memset(gradient, 0, (size_t)elements * sizeof *gradient);
        assert_status_ok(mb_lm_backward(pass, weight, NULL, NULL));
        bad += golden_gradients(g, mb_lm_params(lm), "lm", false);
        memset(gradient, 0, (size_t)elements * sizeof *gradient);
    }
    for (int64_t i = 0; i < layers; i++) {
        snprintf(name, sizeof name, "random.%d", (int)i);
        randoms[i] = golden_read(g, name, g->batch.batch.tokens * mb_arch_gates(mb_lm_arch(lm)));
    }
    assert_status_ok(mb_lm_backward(pass, fused ? NULL : weight, randoms, NULL));
    bad += golden_gradients(g, mb_lm_params(lm), "all", true);
    for (int64_t i = 0; i < layers; i++) mb_free(randoms[i]);
    return bad;
}

static void golden_run(const char *name, const char *backend)
{
    golden g = {0};
    mb_ops *ops = cases_ops(backend);
    if (ops == NULL) skip();
    golden_open(&g, name);
    mb_lm *lm = cases_open(ops, g.folder, "all");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    mb_lm_want want = {.gradient = true, .hidden = true, .argmax = true, .logits = true};
    const int64_t elements = mb_params_trained_count(mb_lm_params(lm));
    float *gradient = mb_calloc((size_t)elements, sizeof *gradient), weight[256];
    assert_int_equal(elements, mb_arch_parameters(mb_lm_arch(lm)));
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &g.batch.batch, &want, &out));
    int bad = golden_forward(&g, lm, &out);
    bad += golden_backward(&g, lm, pass, gradient, false);
    /* The same with the head's gradient fused into the forward. */
    for (int64_t i = 0; i < g.batch.batch.head_rows; i++) weight[i] = 1.0f / (float)g.batch.batch.head_rows;
    g.batch.batch.opt_head_weight = weight;
    want = (mb_lm_want){.gradient = true};
    memset(gradient, 0, (size_t)elements * sizeof *gradient);
    assert_status_ok(mb_lm_forward(pass, &g.batch.batch, &want, &out));
    bad += golden_backward(&g, lm, pass, gradient, true);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_free(gradient);
    golden_close(&g);
    mb_ops_destroy(&ops);
    assert_int_equal(bad, 0);
}

static void test_llama_tied_ref(void **s)
{
    (void)s;
    golden_run("llama_tied", "ref");
}
static void test_llama_tied_cpu(void **s)
{
    (void)s;
    golden_run("llama_tied", "cpu");
}
static void test_llama_bias_ref(void **s)
{
    (void)s;
    golden_run("llama_bias", "ref");
}
static void test_llama_bias_cpu(void **s)
{
    (void)s;
    golden_run("llama_bias", "cpu");
}
static void test_olmoe_plain_ref(void **s)
{
    (void)s;
    golden_run("olmoe_plain", "ref");
}
static void test_olmoe_plain_cpu(void **s)
{
    (void)s;
    golden_run("olmoe_plain", "cpu");
}
static void test_olmoe_clip_ref(void **s)
{
    (void)s;
    golden_run("olmoe_clip", "ref");
}
static void test_olmoe_clip_cpu(void **s)
{
    (void)s;
    golden_run("olmoe_clip", "cpu");
}
static void test_select_moe_ref(void **s)
{
    (void)s;
    golden_run("select_moe", "ref");
}
static void test_select_moe_cpu(void **s)
{
    (void)s;
    golden_run("select_moe", "cpu");
}
static void test_llama_linear_ref(void **s)
{
    (void)s;
    golden_run("llama_linear", "ref");
}
static void test_llama_linear_cpu(void **s)
{
    (void)s;
    golden_run("llama_linear", "cpu");
}
static void test_llama_llama3_ref(void **s)
{
    (void)s;
    golden_run("llama_llama3", "ref");
}
static void test_llama_llama3_cpu(void **s)
{
    (void)s;
    golden_run("llama_llama3", "cpu");
}
static void test_llama_yarn_ref(void **s)
{
    (void)s;
    golden_run("llama_yarn", "ref");
}
static void test_llama_yarn_cpu(void **s)
{
    (void)s;
    golden_run("llama_yarn", "cpu");
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_tied_ref),   cmocka_unit_test(test_llama_tied_cpu),
        cmocka_unit_test(test_llama_bias_ref),   cmocka_unit_test(test_llama_bias_cpu),
        cmocka_unit_test(test_olmoe_plain_ref),  cmocka_unit_test(test_olmoe_plain_cpu),
        cmocka_unit_test(test_olmoe_clip_ref),   cmocka_unit_test(test_olmoe_clip_cpu),
        cmocka_unit_test(test_select_moe_ref),   cmocka_unit_test(test_select_moe_cpu),
        cmocka_unit_test(test_llama_linear_ref), cmocka_unit_test(test_llama_linear_cpu),
        cmocka_unit_test(test_llama_llama3_ref), cmocka_unit_test(test_llama_llama3_cpu),
        cmocka_unit_test(test_llama_yarn_ref),   cmocka_unit_test(test_llama_yarn_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
