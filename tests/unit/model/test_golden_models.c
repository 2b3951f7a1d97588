/* Every golden model against transformers: logits, hidden state, router logits, losses and every gradient,
 * on each backend. */
#include "model_cases.h"

/* A computation in bf16 may be off by this much of what transformers' own in bf16 is, measured as
 * |a - b| / |b| over a tensor; of an error so small that it is a single rounding, by that. Gradients are
 * judged all together (root mean square of their errors): one of few tokens is a matter of chance, and may
 * be off by more. */
#define GOLDEN_BF16     1.5
#define GOLDEN_GRADIENT 5.0
#define GOLDEN_ROUND    (1.0 / 256)

typedef struct golden {
    mb_ops *ops;
    char *folder, *file;
    bool is_bf16;
    double worst;        /* largest share of the allowed error */
    double ours, theirs; /* sums of squares of the errors of gradients in bf16 */
    mb_safetensors *expected;
    cases_batch batch;
} golden;

static void golden_open(golden *g, const char *name, const char *expected)
{
    mb_tensor ids, offsets;
    int32_t id[256], offset[16];
    char *folder = cases_path(name), *inputs = mb_files_join(folder, "expected.safetensors");
    mb_safetensors *file = NULL;
    g->folder = cases_path(expected);
    g->file = mb_files_join(g->folder, "expected.safetensors");
    assert_status_ok(mb_safetensors_open(g->file, &g->expected));
    assert_status_ok(mb_safetensors_open(inputs, &file));
    assert_status_ok(mb_safetensors_view(file, "ids", &ids));
    assert_status_ok(mb_safetensors_view(file, "offsets", &offsets));
    memcpy(id, ids.data, mb_tensor_bytes(&ids));
    memcpy(offset, offsets.data, mb_tensor_bytes(&offsets));
    cases_pack(&g->batch, id, offset, offsets.shape[0] - 1);
    mb_safetensors_close(&file);
    mb_free(inputs);
    mb_free(folder);
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

static double golden_norm_difference(const float *a, const float *b, int64_t n)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

/* How far value may be off from the expected, and is. */
static int golden_judge(golden *g, const char *name, const float *value, const float *expected, int64_t n)
{
    char own[300];
    double limit = 1e-4, difference = cases_difference(value, expected, n);
    if (g->is_bf16) {
        snprintf(own, sizeof own, "bf16.%s", name);
        float *error = golden_read(g, own, 1);
        const bool is_gradient = strncmp(name, "all.", 4) == 0;
        limit = fmax((is_gradient ? GOLDEN_GRADIENT : GOLDEN_BF16) * (double)*error, GOLDEN_ROUND);
        difference = golden_norm_difference(value, expected, n);
        g->ours += is_gradient ? difference * difference : 0;
        g->theirs += is_gradient ? (double)*error * (double)*error : 0;
        mb_free(error);
    }
    g->worst = fmax(g->worst, difference / limit);
    if (difference <= limit) return 0;
    print_error("# %s %s differs by %g, limit %g\n", g->folder, name, difference, limit);
    return 1;
}

static int golden_compare(golden *g, const char *name, const float *value, int64_t n)
{
    float *expected = golden_read(g, name, n);
    const int bad = golden_judge(g, name, value, expected, n);
    mb_free(expected);
    return bad;
}

static int golden_gradients(golden *g, mb_params *params, const char *prefix, bool every)
{
    int bad = 0, seen = 0;
    char name[240];
    if (g->is_bf16 && !every) return 0;
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (param->is_carried) continue; /* has none */
        snprintf(name, sizeof name, "%s.%s", prefix, param->name);
        if (!every && !mb_safetensors_has(g->expected, name)) continue;
        const int64_t n = mb_tensor_count(&param->value);
        float *gradient = cases_read(g->ops, mb_tensor_f32(&param->gradient), n);
        bad += golden_compare(g, name, gradient, n);
        mb_free(gradient);
        seen++;
    }
    assert_true(seen > 4);
    return bad;
}

/* The head's rows are all but the last of each segment: pick them out of [T, V]. */
static int golden_logits(golden *g, const mb_lm *lm, const mb_lm_output *out)
{
    const int64_t v = mb_lm_arch(lm)->vocab, t = g->batch.batch.tokens, n = g->batch.batch.head_rows;
    float *all = golden_read(g, "logits", t * v), *rows = mb_calloc((size_t)(n * v), sizeof *rows);
    for (int64_t i = 0; i < n; i++)
        memcpy(rows + i * v, all + g->batch.head_row[i] * v, (size_t)v * sizeof *rows);
    int bad = golden_judge(g, "logits", out->logits, rows, n * v);
    for (int64_t i = 0; !g->is_bf16 && i < n; i++)
        for (int64_t j = 0; j < v; j++) bad += rows[i * v + j] > rows[i * v + out->argmax[i]] + 1e-4f;
    mb_free(all);
    mb_free(rows);
    return bad;
}

static int golden_forward(golden *g, mb_lm *lm, const mb_lm_output *out)
{
    const mb_arch *arch = mb_lm_arch(lm);
    char name[64];
    int bad = golden_logits(g, lm, out);
    bad += golden_compare(g, "hidden", out->hidden, g->batch.batch.tokens * arch->width);
    bad += golden_compare(g, "token_loss", out->token_loss, g->batch.batch.head_rows);
    assert_int_equal(out->routers, mb_lm_routers(lm));
    for (int64_t i = 0; i < out->routers; i++) {
        snprintf(name, sizeof name, "router_logits.%d", (int)i);
        bad += golden_compare(g, name, out->router_logits[i], g->batch.batch.tokens * mb_arch_gates(arch));
    }
    return bad;
}

static int golden_backward(golden *g, mb_lm *lm, mb_lm_pass *pass, float *gradient, bool fused)
{
    const int64_t n = g->batch.batch.head_rows, layers = mb_lm_routers(lm);
    const int64_t elements = mb_params_trained_count(mb_lm_params(lm));
    float weight[256], *randoms[8] = {0};
    char name[64];
    for (int64_t i = 0; i < n; i++) weight[i] = 1.0f / (float)n;
    int bad = 0;
    if (!fused) {
        cases_zero(g->ops, gradient, elements);
        assert_status_ok(mb_lm_backward(pass, weight, NULL, NULL));
        bad += golden_gradients(g, mb_lm_params(lm), "lm", false);
        cases_zero(g->ops, gradient, elements);
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

/* Every gradient once more with the head's fused into the forward. */
static int golden_fused(golden *g, mb_lm *lm, mb_lm_pass *pass, float *gradient)
{
    float weight[256];
    mb_lm_output out;
    const mb_lm_want want = {.gradient = true};
    const int64_t elements = mb_params_trained_count(mb_lm_params(lm));
    for (int64_t i = 0; i < g->batch.batch.head_rows; i++) weight[i] = 1.0f / (float)g->batch.batch.head_rows;
    g->batch.batch.opt_head_weight = weight;
    cases_zero(g->ops, gradient, elements);
    assert_status_ok(mb_lm_forward(pass, &g->batch.batch, &want, &out));
    const int bad = golden_backward(g, lm, pass, gradient, true);
    g->batch.batch.opt_head_weight = NULL;
    return bad;
}

/* The same bits when the blocks are made again in the backward pass. */
static int golden_recomputed(golden *g, mb_lm *lm, mb_lm_pass *pass, const float *gradient)
{
    mb_lm_output out;
    const mb_lm_want want = {.gradient = true, .recompute = true};
    const int64_t elements = mb_params_trained_count(mb_lm_params(lm));
    mb_buffer *room = cases_room(g->ops, elements);
    float weight[256];
    for (int64_t i = 0; i < g->batch.batch.head_rows; i++) weight[i] = 1.0f / (float)g->batch.batch.head_rows;
    g->batch.batch.opt_head_weight = weight;
    mb_params_bind_gradient(mb_lm_params(lm), room->data);
    assert_status_ok(mb_lm_forward(pass, &g->batch.batch, &want, &out));
    int bad = golden_backward(g, lm, pass, room->data, true);
    float *again = cases_read(g->ops, room->data, elements), *first = cases_read(g->ops, gradient, elements);
    const bool same = memcmp(again, first, (size_t)elements * sizeof *again) == 0;
    bad += !same;
    if (!same) print_error("# %s: gradients change when blocks are made again\n", g->folder);
    g->batch.batch.opt_head_weight = NULL;
    mb_free(again);
    mb_free(first);
    mb_buffer_destroy(&room);
    return bad;
}

/* Outputs of the model opened frozen, its matrices kept in the dtype of computing. */
static int golden_frozen(golden *g, mb_ops *ops, const char *path, mb_dtype dtype)
{
    mb_lm *lm = NULL;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_options options = {.path = path, .train = "none", .dtype = dtype};
    const mb_lm_want want = {.hidden = true, .argmax = true, .logits = true};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &g->batch.batch, &want, &out));
    const int bad = golden_forward(g, lm, &out);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    return bad;
}

static void golden_run(const char *name, const char *backend, mb_dtype dtype)
{
    mb_ops *ops = cases_ops(backend);
    if (ops == NULL) skip();
    golden g = {.ops = ops, .is_bf16 = dtype == MB_BF16};
    golden_open(&g, name, name);
    mb_lm *lm = cases_open(ops, g.folder, "all");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.gradient = true, .hidden = true, .argmax = true, .logits = true};
    const int64_t elements = mb_params_trained_count(mb_lm_params(lm));
    mb_buffer *room = cases_room(ops, elements);
    float *gradient = room->data;
    assert_int_equal(elements + mb_params_carried_count(mb_lm_params(lm)),
                     mb_arch_parameters(mb_lm_arch(lm)));
    mb_lm_set_dtype(lm, dtype);
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &g.batch.batch, &want, &out));
    int bad = golden_forward(&g, lm, &out);
    bad += golden_backward(&g, lm, pass, gradient, false);
    bad += golden_fused(&g, lm, pass, gradient);
    bad += golden_recomputed(&g, lm, pass, gradient);
    bad += golden_frozen(&g, ops, g.folder, dtype);
    const double ratio = g.theirs > 0 ? sqrt(g.ours / g.theirs) : 0;
    bad += ratio > GOLDEN_BF16;
    if (g.is_bf16) print_message("# gradients: %.3f of the error of transformers\n", ratio);
    print_message("# %s %s %s: at most %.3f of the allowed error\n", name, backend, mb_dtype_name(dtype),
                  g.worst);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    mb_buffer_destroy(&room);
    golden_close(&g);
    mb_ops_destroy(&ops);
    assert_int_equal(bad, 0);
}

/* ---- forms of transformers 5 ---- */

/* A folder of the 5.x configuration and, where 5.x would save the same weights, those of 4.x. */
static char *golden_assemble(const char *name, const char *five)
{
    char *folder = cases_temporary();
    const char *const files[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        char *own = mb_str_format("%s/%s/%s", CASES_FOLDER, five, files[i]);
        char *old = mb_str_format("%s/%s/%s", CASES_FOLDER, name, files[i]);
        char *to = mb_files_join(folder, files[i]);
        assert_status_ok(mb_files_copy(mb_files_is_file(own) ? own : old, to));
        mb_free(own);
        mb_free(old);
        mb_free(to);
    }
    return folder;
}

static void golden_run_five(const char *name, const char *backend)
{
    mb_ops *ops = cases_ops(backend);
    if (ops == NULL) skip();
    golden g = {.ops = ops};
    char *five = mb_str_format("%s_five", name), *folder = golden_assemble(name, five);
    golden_open(&g, name, five);
    mb_lm *lm = cases_open(ops, folder, "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.hidden = true, .argmax = true, .logits = true};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &g.batch.batch, &want, &out));
    const int bad = golden_forward(&g, lm, &out);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    golden_close(&g);
    cases_remove(folder);
    mb_free(five);
    mb_ops_destroy(&ops);
    assert_int_equal(bad, 0);
}

/* ---- the tests: case, backend, dtype ---- */

static void test_f32_ref(void **s)
{
    golden_run(*s, "ref", MB_F32);
}
static void test_f32_cpu(void **s)
{
    golden_run(*s, "cpu", MB_F32);
}
static void test_bf16_ref(void **s)
{
    golden_run(*s, "ref", MB_BF16);
}
static void test_bf16_cpu(void **s)
{
    golden_run(*s, "cpu", MB_BF16);
}
static void test_f32_cuda(void **s)
{
    golden_run(*s, "cuda", MB_F32);
}
static void test_bf16_cuda(void **s)
{
    golden_run(*s, "cuda", MB_BF16);
}
static void test_form_of_5(void **s)
{
    golden_run_five(*s, "ref");
}

#define GOLDEN_CASE(name)                                                                                    \
    {name " f32 ref", test_f32_ref, NULL, NULL, name}, {name " f32 cpu", test_f32_cpu, NULL, NULL, name},    \
        {name " bf16 ref", test_bf16_ref, NULL, NULL, name},                                                 \
    {                                                                                                        \
        name " bf16 cpu", test_bf16_cpu, NULL, NULL, name                                                    \
    }
/* Of the smallest, which a GPU made of host threads can do too. */
#define GOLDEN_CUDA(name)                                                                                    \
    {                                                                                                        \
        name " f32 cuda", test_f32_cuda, NULL, NULL, name                                                    \
    }
#define GOLDEN_CUDA_BF16(name)                                                                               \
    {                                                                                                        \
        name " bf16 cuda", test_bf16_cuda, NULL, NULL, name                                                  \
    }
#define GOLDEN_FIVE(name)                                                                                    \
    {                                                                                                        \
        name " as 5.x saves it", test_form_of_5, NULL, NULL, name                                            \
    }

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        GOLDEN_CASE("llama_tied"),
        GOLDEN_CASE("llama_bias"),
        GOLDEN_CASE("llama_linear"),
        GOLDEN_CASE("llama_llama3"),
        GOLDEN_CASE("llama_yarn"),
        GOLDEN_CASE("llama_dynamic"),
        GOLDEN_CASE("llama_longrope"),
        GOLDEN_CASE("mistral"),
        GOLDEN_CASE("qwen2"),
        GOLDEN_CASE("qwen3"),
        GOLDEN_CASE("olmoe_plain"),
        GOLDEN_CASE("olmoe_clip"),
        GOLDEN_CASE("mixtral"),
        GOLDEN_CASE("qwen3_moe"),
        GOLDEN_CASE("select_moe"),
        GOLDEN_CASE("select_mixtral"),
        GOLDEN_CASE("select_qwen3_moe"),
        GOLDEN_CASE("biased_mixtral"),
        GOLDEN_CASE("biased_qwen3_moe"),
        GOLDEN_CUDA("mistral"),
        GOLDEN_CUDA("qwen2"),
        GOLDEN_CUDA("select_mixtral"),
        GOLDEN_CUDA("biased_qwen3_moe"),
        GOLDEN_CUDA("olmoe_clip"),
        GOLDEN_CUDA_BF16("qwen3"),
        GOLDEN_CUDA_BF16("select_mixtral"),
        GOLDEN_FIVE("llama_tied"),
        GOLDEN_FIVE("llama_yarn"),
        GOLDEN_FIVE("llama_longrope"),
        GOLDEN_FIVE("olmoe_plain"),
        GOLDEN_FIVE("mistral"),
        GOLDEN_FIVE("qwen2"),
        GOLDEN_FIVE("qwen3"),
        GOLDEN_FIVE("mixtral"),
        GOLDEN_FIVE("qwen3_moe"),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
