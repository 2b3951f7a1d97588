/* Layer-level fused models: weights of one and zero are that model, bit for bit; finite differences of every
 * router tensor, of three models, of quantised ones and of mixtures of experts; blocks made again, gradients
 * by block and a head in the forward give the same; kept keys; bf16; memory planned; other vocabularies and
 * architectures. */
#include "fuse_cases.h"

#include "model/lm_state.h"

static const int32_t OFFSETS[] = {0, 6, 7, 15};

enum { SEGMENTS = 3 };

static mb_ops *ops_of(void **state)
{
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    return ops;
}

/* ---- routers ---- */

static bool is_named(const mb_param *param, const char *what)
{
    return strstr(param->name, what) != NULL;
}

/* All weight on one member: logits so far apart that the others' weight is 0. */
static void set_one_hot(mb_lm *lm, int64_t member)
{
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        const bool is_bias = is_named(param, "down_proj.bias");
        if (!is_bias && !is_named(param, "down_proj.weight")) continue;
        const int64_t n = mb_tensor_count(&param->value);
        float *value = mb_calloc((size_t)n, sizeof *value);
        for (int64_t j = 0; is_bias && j < n; j++) value[j] = j == member ? 200.0f : -200.0f;
        assert_status_ok(mb_params_set_f32(param, value));
        mb_free(value);
    }
    mb_params_changed(params);
}

static float draw(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1u << 23) - 1.0f;
}

static void set_random(mb_lm *lm, uint32_t seed)
{
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        const int64_t n = mb_tensor_count(&param->value);
        float *value = mb_calloc((size_t)n, sizeof *value);
        const bool is_norm = is_named(param, ".norm."), is_down = is_named(param, "down_proj");
        for (int64_t j = 0; j < n; j++)
            value[j] = (is_norm ? 1.0f : 0.0f) + (is_down ? 0.8f : 0.25f) * draw(&seed);
        assert_status_ok(mb_params_set_f32(param, value));
        mb_free(value);
    }
    mb_params_changed(params);
}

/* ---- one model ---- */

static void check_bits(const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i] != b[i])
            fail_msg("number %lld is %.9g and not %.9g", (long long)i, (double)a[i], (double)b[i]);
}

/* The model with all weight on `member` gives what the member does; where it has more tokens, the logits'
 * first columns. */
static void check_is_member(mb_lm *lm, int64_t member, const cases_batch *b)
{
    mb_lm *own = mb_fuse_member_lm(lm, member);
    mb_lm_pass *passes[2] = {NULL, NULL};
    mb_lm_output out[2];
    const mb_lm_want want = {.logits = true, .argmax = true};
    const int64_t n = b->batch.head_rows, v = mb_lm_arch(lm)->vocab, its = mb_lm_arch(own)->vocab;
    set_one_hot(lm, member);
    for (int i = 0; i < 2; i++) {
        assert_status_ok(mb_lm_pass_create(i == 0 ? lm : own, &passes[i]));
        assert_status_ok(mb_lm_forward(passes[i], &b->batch, &want, &out[i]));
    }
    for (int64_t i = 0; i < n; i++) check_bits(out[0].logits + i * v, out[1].logits + i * its, v);
    if (its == v) { /* ref keeps the logits of a loss without others in f64 */
        if (strcmp(mb_ops_name(mb_lm_ops(lm)), "ref") != 0)
            check_bits(out[0].token_loss, out[1].token_loss, n);
        assert_true(cases_difference(out[0].token_loss, out[1].token_loss, n) <= 1e-6);
        assert_memory_equal(out[0].argmax, out[1].argmax, (size_t)n * sizeof *out[0].argmax);
    }
    for (int64_t s = 0; s < out[0].routers; s++)
        for (int64_t t = 0; t < b->batch.tokens; t++) assert_int_equal(out[0].router_ids[s][t], member);
    for (int i = 0; i < 2; i++) mb_lm_pass_destroy(&passes[i]);
}

static void check_one_hot(mb_ops *ops, const char *name, mb_dtype dtype)
{
    const mb_fuse_options options = {.kind = MB_FUSE_LAYER, .dtype = dtype};
    mb_lm *lm = fuse_cases_open_as(ops, name, &options);
    cases_batch b;
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, SEGMENTS, CASES_SEED);
    for (int64_t m = 0; m < 2; m++) check_is_member(lm, m, &b);
    mb_lm_destroy(&lm);
}

static void test_one_hot_is_that_member(void **state)
{
    mb_ops *ops = ops_of(state);
    check_one_hot(ops, "llama", MB_F32);
    check_one_hot(ops, "qwen3", MB_BF16);
    check_one_hot(ops, "mixtral", MB_F32);
    mb_ops_destroy(&ops);
}

/* Two models; they must stay while it is used. */
static mb_lm *open_two(mb_ops *ops, const mb_fuse_member *member, bool trains)
{
    mb_lm *lm = NULL;
    const mb_fuse_options options = {
        .kind = MB_FUSE_LAYER, .count = 2, .member = member, .router_hidden = 5, .train = trains, .seed = 1};
    assert_status_ok(mb_fuse_open(ops, &options, &lm));
    return lm;
}

/* Siblings that turn by other angles, which differ again in long segments. */
static void test_angles_are_each_members_own(void **state)
{
    mb_ops *ops = ops_of(state);
    static const int32_t offsets[] = {0, 44, 53};
    const mb_fuse_member member[] = {{.name = "dynamic", .path = CASES_FOLDER "/llama_dynamic", .weight = 1},
                                     {.name = "long", .path = CASES_FOLDER "/llama_longrope", .weight = 1}};
    mb_lm *lm = open_two(ops, member, false);
    cases_batch b;
    cases_random(&b, mb_lm_arch(lm)->vocab, offsets, 2, CASES_SEED);
    for (int64_t m = 0; m < 2; m++) check_is_member(lm, m, &b);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* A model and the same with an adapter; the head is the embedding. */
static const mb_fuse_member with_adapter[] = {
    {.name = "plain", .path = CASES_FOLDER "/llama_tied", .weight = 1},
    {.name = "adapted",
     .path = CASES_FOLDER "/llama_tied",
     .opt_adapter = CASES_FOLDER "/llama_adapter",
     .weight = 1}};

static void test_an_adapter_makes_a_member(void **state)
{
    mb_ops *ops = ops_of(state);
    mb_lm *lm = open_two(ops, with_adapter, false);
    cases_batch b;
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, SEGMENTS, CASES_SEED);
    for (int64_t m = 0; m < 2; m++) check_is_member(lm, m, &b);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* A third model of the case's architecture, with `more` rows of vocabulary; its folder. */
static char *make_third(const char *name, int64_t more)
{
    mb_arch arch;
    mb_ops *ops = cases_ops("ref");
    mb_lm *lm = NULL;
    char *folder = cases_temporary(), *like = mb_str_format("%s/%s/foundation", FUSE_FOLDER, name);
    assert_status_ok(mb_arch_read(like, &arch));
    arch.vocab += more;
    arch.initializer_range = 0.3;
    assert_status_ok(mb_lm_create(ops, &arch, "none", 11, &lm));
    assert_status_ok(mb_lm_write(lm, folder, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_arch_reset(&arch);
    mb_free(like);
    return folder;
}

/* Where one model has more tokens, those that all have are left. */
static void test_more_tokens_are_left_out(void **state)
{
    mb_ops *ops = ops_of(state);
    char *third = make_third("llama", 3);
    const mb_fuse_member member[] = {{.name = "a", .path = third, .weight = 1},
                                     {.name = "b", .path = FUSE_FOLDER "/llama/sft", .weight = 1}};
    mb_lm *lm = open_two(ops, member, false);
    cases_batch b;
    assert_int_equal(mb_lm_arch(lm)->vocab, 40);
    cases_random(&b, 40, OFFSETS, SEGMENTS, CASES_SEED);
    check_is_member(lm, 0, &b);
    check_is_member(lm, 1, &b);
    mb_lm_destroy(&lm);
    cases_remove(third);
    mb_ops_destroy(&ops);
}

static void test_other_architectures_are_refused(void **state)
{
    mb_ops *ops = ops_of(state);
    mb_lm *lm = NULL;
    const mb_fuse_member member[] = {{.name = "one", .path = FUSE_FOLDER "/llama/foundation", .weight = 1},
                                     {.name = "other", .path = FUSE_FOLDER "/qwen3/sft", .weight = 1}};
    mb_fuse_options options = {.kind = MB_FUSE_LAYER, .count = 2, .member = member, .seed = 1};
    assert_status_says(mb_fuse_open(ops, &options, &lm), MB_EDATA, "one architecture");
    assert_status_says(mb_fuse_open(ops, &options, &lm), MB_EDATA, "token_level");
    options.kind = MB_FUSE_TOKEN;
    assert_status_ok(mb_fuse_open(ops, &options, &lm));
    mb_lm_destroy(&lm);
    const mb_fuse_member wider[] = {{.name = "one", .path = CASES_FOLDER "/llama_linear", .weight = 1},
                                    {.name = "wide", .path = CASES_FOLDER "/llama_tied", .weight = 1}};
    options.kind = MB_FUSE_LAYER;
    options.member = wider;
    assert_status_says(mb_fuse_open(ops, &options, &lm), MB_EDATA, "has hidden_size 16, wide");
    mb_ops_destroy(&ops);
}

/* ---- gradients ---- */

/* A model that trains, its pass, and what enters the backward. */
typedef struct train {
    mb_ops *ops;
    mb_lm *lm;
    mb_lm_pass *pass;
    mb_buffer *room;
    cases_batch b;
    float weight[256], *outside[16];
} train;

static void train_open(train *a, mb_ops *ops, mb_lm *lm)
{
    uint32_t seed = 77;
    *a = (train){.ops = ops, .lm = lm};
    set_random(lm, 3);
    cases_random(&a->b, mb_lm_arch(lm)->vocab, OFFSETS, SEGMENTS, CASES_SEED);
    for (int64_t i = 0; i < a->b.batch.head_rows; i++) a->weight[i] = 0.02f + 0.01f * (float)(i % 7);
    for (int64_t s = 0; s < mb_lm_routers(lm); s++) {
        const int64_t n = a->b.batch.tokens * mb_fuse_members(lm);
        a->outside[s] = mb_calloc((size_t)n, sizeof(float));
        for (int64_t i = 0; i < n; i++) a->outside[s][i] = 0.02f * draw(&seed);
    }
    assert_status_ok(mb_lm_pass_create(lm, &a->pass));
    a->room = cases_room(ops, mb_params_trained_count(mb_lm_params(lm)));
    mb_params_bind_gradient(mb_lm_params(lm), a->room->data);
}

static void train_close(train *a)
{
    mb_lm_pass_destroy(&a->pass);
    mb_buffer_destroy(&a->room);
    for (int s = 0; s < 16; s++) mb_free(a->outside[s]);
    mb_lm_destroy(&a->lm);
}

/* sum of weighted losses + sum over stages <outside, logits>. */
static double train_value(train *a, const mb_lm_want *want)
{
    mb_lm_output out;
    double value = 0;
    assert_status_ok(mb_lm_forward(a->pass, &a->b.batch, want, &out));
    for (int64_t i = 0; i < a->b.batch.head_rows; i++)
        value += (double)a->weight[i] * (double)out.token_loss[i];
    for (int64_t s = 0; s < out.routers; s++)
        for (int64_t i = 0; i < a->b.batch.tokens * mb_fuse_members(a->lm); i++)
            value += (double)a->outside[s][i] * (double)out.router_logits[s][i];
    return value;
}

/* All gradients of the value: new block. */
static float *train_gradient(train *a, bool recompute, bool fused)
{
    const mb_lm_want want = {.gradient = true, .recompute = recompute};
    const int64_t n = mb_params_trained_count(mb_lm_params(a->lm));
    a->b.batch.opt_head_weight = fused ? a->weight : NULL;
    cases_zero(a->ops, a->room->data, n);
    (void)train_value(a, &want);
    assert_status_ok(mb_lm_backward(a->pass, fused ? NULL : a->weight, a->outside, NULL));
    a->b.batch.opt_head_weight = NULL;
    return cases_read(a->ops, a->room->data, n);
}

/* The value's slope along the gradient of a tensor is that gradient's length. */
static void check_slope(train *a, mb_param *param, const float *gradient)
{
    const int64_t n = mb_tensor_count(&param->value);
    const mb_lm_want want = {0};
    float *value = mb_calloc((size_t)n, sizeof *value), *moved = mb_calloc((size_t)n, sizeof *value);
    double length = 0, size = 0, at[2];
    assert_status_ok(mb_params_get_f32(param, value));
    for (int64_t i = 0; i < n; i++) {
        length += (double)gradient[i] * (double)gradient[i];
        size += (double)value[i] * (double)value[i];
    }
    length = sqrt(length);
    const double step = 0.003 * sqrt(size);
    assert_true(length > 1e-5);
    for (int side = 0; side < 2; side++) {
        const double by = (side == 0 ? -step : step) / length;
        for (int64_t i = 0; i < n; i++) moved[i] = (float)((double)value[i] + by * (double)gradient[i]);
        assert_status_ok(mb_params_set_f32(param, moved));
        mb_params_changed(mb_lm_params(a->lm));
        at[side] = train_value(a, &want);
    }
    assert_status_ok(mb_params_set_f32(param, value));
    mb_params_changed(mb_lm_params(a->lm));
    const double slope = (at[1] - at[0]) / (2 * step);
    if (!(fabs(slope - length) <= 0.02 * length))
        fail_msg("%s: slope %g, gradient's length %g", param->name, slope, length);
    mb_free(value);
    mb_free(moved);
}

static void check_slopes(mb_ops *ops, mb_lm *lm)
{
    train a;
    train_open(&a, ops, lm);
    float *gradient = train_gradient(&a, false, false);
    mb_params *params = mb_lm_params(lm);
    assert_int_equal(mb_params_trained_count(params), mb_params_used(params).trained / sizeof(float));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        check_slope(&a, param, gradient + param->flat);
    }
    mb_free(gradient);
    train_close(&a);
}

static void test_slopes_of_three_models(void **state)
{
    mb_ops *ops = ops_of(state);
    mb_lm *lm = NULL;
    char *third = make_third("llama", 0);
    const mb_fuse_member member[] = {{.name = "a", .path = FUSE_FOLDER "/llama/foundation", .weight = 1},
                                     {.name = "b", .path = FUSE_FOLDER "/llama/sft", .weight = 2},
                                     {.name = "c", .path = third, .weight = 1}};
    const mb_fuse_options options = {
        .kind = MB_FUSE_LAYER, .count = 3, .member = member, .router_hidden = 5, .train = true};
    assert_status_ok(mb_fuse_open(ops, &options, &lm));
    check_slopes(ops, lm);
    cases_remove(third);
    mb_ops_destroy(&ops);
}

static void test_slopes_through_quantised_layers(void **state)
{
    mb_ops *ops = ops_of(state);
    const mb_fuse_options options = {
        .kind = MB_FUSE_LAYER, .train = true, .frozen_bits = 8, .frozen_group = 8};
    check_slopes(ops, fuse_cases_open_as(ops, "qwen3", &options));
    mb_ops_destroy(&ops);
}

static void test_slopes_through_an_adapter(void **state)
{
    mb_ops *ops = ops_of(state);
    check_slopes(ops, open_two(ops, with_adapter, true));
    mb_ops_destroy(&ops);
}

static void test_slopes_through_experts(void **state)
{
    mb_ops *ops = ops_of(state);
    check_slopes(ops, fuse_cases_open(ops, "mixtral", MB_FUSE_LAYER));
    mb_ops_destroy(&ops);
}

/* Made again or kept, the head in the forward or in the backward: the same. */
static void test_other_ways_to_the_gradient(void **state)
{
    mb_ops *ops = ops_of(state);
    static const char *const names[] = {"qwen3", "mixtral"};
    for (int i = 0; i < 2; i++) {
        train a;
        train_open(&a, ops, fuse_cases_open(ops, names[i], MB_FUSE_LAYER));
        const int64_t n = mb_params_trained_count(mb_lm_params(a.lm));
        float *plain = train_gradient(&a, false, false), *again = train_gradient(&a, true, false);
        float *fused = train_gradient(&a, false, true), *both = train_gradient(&a, true, true);
        check_bits(again, plain, n);
        check_bits(fused, plain, n);
        check_bits(both, plain, n);
        mb_free(plain);
        mb_free(again);
        mb_free(fused);
        mb_free(both);
        train_close(&a);
    }
    mb_ops_destroy(&ops);
}

/* A pass takes what is planned for it, and less with recompute, or without a gradient. */
static void check_plan(mb_ops *ops, const char *name, mb_dtype dtype)
{
    size_t peak[3];
    for (int i = 0; i < 3; i++) {
        static const mb_lm_want wants[] = {
            {.gradient = true}, {.gradient = true, .recompute = true}, {.no_routing = true}};
        static const int32_t offsets[] = {0, 90, 100, 240};
        const mb_fuse_options how = {.kind = MB_FUSE_LAYER, .train = true, .dtype = dtype};
        train a;
        mb_lm_plan plan;
        mb_lm_output out;
        train_open(&a, ops, fuse_cases_open_as(ops, name, &how));
        cases_random(&a.b, mb_lm_arch(a.lm)->vocab, offsets, 3, CASES_SEED);
        for (int t = 0; t < 240; t++) a.b.positions[t] %= 32;
        a.b.batch.opt_head_weight = a.weight;
        assert_status_ok(mb_lm_forward(a.pass, &a.b.batch, &wants[i], &out));
        if (wants[i].gradient) assert_status_ok(mb_lm_backward(a.pass, NULL, NULL, NULL));
        const mb_lm_plan_options shape = {
            .tokens = 240, .gradient = wants[i].gradient, .recompute = wants[i].recompute, .has_head = true};
        assert_status_ok(mb_lm_plan_open(a.lm, &shape, &plan));
        peak[i] = mb_lm_pass_peak_bytes(a.pass);
        const double share = (double)peak[i] / (double)(plan.activations + plan.scratch + 64 * 200);
        print_message("# %s %s, want %d: %zu bytes, %.2f of the plan\n", name, mb_dtype_name(dtype), i,
                      peak[i], share);
        assert_true(share <= 1 && share >= 0.7);
        train_close(&a);
    }
    assert_true(peak[1] < peak[0] * 3 / 4 && peak[2] < peak[1]);
}

static void test_a_pass_takes_what_is_planned(void **state)
{
    mb_ops *ops = ops_of(state);
    check_plan(ops, "qwen3", MB_F32);
    check_plan(ops, "llama", MB_BF16);
    check_plan(ops, "mixtral", MB_F32);
    mb_ops_destroy(&ops);
}

static void test_bf16_gradient_is_near(void **state)
{
    mb_ops *ops = ops_of(state);
    float *gradient[2];
    int64_t n = 0;
    double dot = 0, size[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        train a;
        const mb_fuse_options options = {
            .kind = MB_FUSE_LAYER, .train = true, .dtype = i == 0 ? MB_F32 : MB_BF16};
        train_open(&a, ops, fuse_cases_open_as(ops, "llama", &options));
        n = mb_params_trained_count(mb_lm_params(a.lm));
        gradient[i] = train_gradient(&a, false, i == 0);
        train_close(&a);
    }
    for (int64_t i = 0; i < n; i++) {
        dot += (double)gradient[0][i] * (double)gradient[1][i];
        for (int j = 0; j < 2; j++) size[j] += (double)gradient[j][i] * (double)gradient[j][i];
    }
    const double cosine = dot / sqrt(size[0] * size[1]);
    print_message("# bf16: cosine %.6f, length %.4f of f32's\n", cosine, sqrt(size[1] / size[0]));
    assert_true(cosine > 0.999 && fabs(sqrt(size[1] / size[0]) - 1) < 0.03);
    mb_free(gradient[0]);
    mb_free(gradient[1]);
    mb_ops_destroy(&ops);
}

/* ---- gradients by block ---- */

typedef struct by_block {
    mb_params *params;
    float *room;
    int64_t seen[16], count;
} by_block;

static mb_status block_room(void *context, int64_t block, float **out)
{
    by_block *b = context;
    int64_t first;
    (void)mb_params_block_trained(b->params, block, &first);
    *out = b->room + first;
    return MB_OK;
}

static mb_status block_complete(void *context, int64_t block)
{
    by_block *b = context;
    assert_true(b->count < 16);
    b->seen[b->count++] = block;
    return MB_OK;
}

/* Blocks are complete in the order L, L-1, .. -1, and hold what one buffer does. */
static void test_gradients_by_block(void **state)
{
    mb_ops *ops = ops_of(state);
    train a;
    train_open(&a, ops, fuse_cases_open(ops, "qwen3", MB_FUSE_LAYER));
    mb_params *params = mb_lm_params(a.lm);
    const int64_t layers = mb_lm_arch(a.lm)->layers;
    float *whole = train_gradient(&a, false, true);
    by_block b = {.params = params, .room = a.room->data};
    const mb_params_sink sink = {&b, block_room, block_complete};
    mb_params_set_sink(params, &sink);
    assert_status_ok(mb_lm_gradient_begin(a.lm));
    float *parts = train_gradient(&a, false, true);
    assert_int_equal(b.count, layers + 2);
    for (int64_t i = 0; i < b.count; i++) assert_int_equal(b.seen[i], layers - i);
    check_bits(parts, whole, mb_params_trained_count(params));
    mb_params_set_sink(params, NULL);
    mb_free(whole);
    mb_free(parts);
    train_close(&a);
    mb_ops_destroy(&ops);
}

/* ---- kept keys ---- */

enum { PROMPT = 4, STEPS = 7, WHOLE = PROMPT + STEPS };

typedef struct kept {
    mb_lm *lm;
    mb_lm_pass *pass;
    mb_kv_cache *cache;
    float *expected; /* [2 * WHOLE, V] from scratch */
    int32_t ids[2 * WHOLE];
} kept;

static void kept_open(kept *k, mb_ops *ops, const char *name)
{
    const int32_t offsets[] = {0, WHOLE, 2 * WHOLE};
    const mb_fuse_options options = {.kind = MB_FUSE_LAYER};
    cases_batch b;
    k->lm = fuse_cases_open_as(ops, name, &options);
    set_random(k->lm, 9);
    cases_random(&b, mb_lm_arch(k->lm)->vocab, offsets, 2, CASES_SEED);
    memcpy(k->ids, b.ids, sizeof k->ids);
    b.batch.head_rows = b.batch.tokens;
    for (int32_t i = 0; i < b.batch.tokens; i++) b.head_row[i] = i;
    b.batch.targets = NULL;
    k->expected = cases_logits(k->lm, &b);
    assert_status_ok(mb_lm_cache_create(k->lm, 2, 2 * WHOLE, &k->cache));
    assert_status_ok(mb_lm_pass_create(k->lm, &k->pass));
}

static void kept_step(kept *k, const int32_t *slots, int segments, int32_t first, int32_t n)
{
    cases_batch b;
    mb_lm_output out;
    const int32_t offsets[] = {0, n, 2 * n};
    const int64_t v = mb_lm_arch(k->lm)->vocab;
    const mb_lm_want want = {.logits = true, .no_routing = true};
    int32_t ids[64];
    for (int s = 0; s < segments; s++)
        memcpy(ids + s * n, k->ids + slots[s] * WHOLE + first, (size_t)n * sizeof *ids);
    cases_pack(&b, ids, offsets, segments);
    b.batch.head_rows = b.batch.tokens;
    b.batch.targets = NULL;
    b.batch.opt_cache = k->cache;
    b.batch.opt_slot = slots;
    for (int32_t i = 0; i < b.batch.tokens; i++) {
        b.head_row[i] = i;
        b.positions[i] += first;
    }
    assert_status_ok(mb_lm_forward(k->pass, &b.batch, &want, &out));
    assert_int_equal(out.routers, 0);
    for (int s = 0; s < segments; s++)
        assert_true(cases_difference(out.logits + s * n * v, k->expected + (slots[s] * WHOLE + first) * v,
                                     n * v) <= 2e-5);
}

static void test_kept_keys(void **state)
{
    mb_ops *ops = ops_of(state);
    static const char *const names[] = {"llama", "qwen3", "mixtral"};
    static const int32_t both[] = {1, 0};
    for (int i = 0; i < 3; i++) {
        kept k = {0};
        kept_open(&k, ops, names[i]);
        kept_step(&k, both, 2, 0, PROMPT);
        for (int j = 0; j < STEPS; j++) kept_step(&k, both, 2, PROMPT + j, 1);
        for (const mb_kv_cache *c = k.cache; c != NULL; c = c->next) assert_int_equal(c->length[1], WHOLE);
        mb_kv_cache_cut(k.cache, 1, PROMPT);
        for (int j = 0; j < STEPS; j++) kept_step(&k, both, 1, PROMPT + j, 1);
        print_message("# %s %s: %lld steps from a record\n", mb_ops_name(ops), names[i],
                      (long long)mb_lm_replay_count(k.pass));
        if (mb_ops_can_record(ops)) assert_true(mb_lm_replay_count(k.pass) >= STEPS);
        mb_lm_pass_destroy(&k.pass);
        mb_kv_cache_destroy(&k.cache);
        mb_lm_destroy(&k.lm);
        mb_free(k.expected);
    }
    mb_ops_destroy(&ops);
}

/* A router's new weights are seen by recorded steps. */
static void test_recorded_steps_see_a_new_router(void **state)
{
    mb_ops *ops = ops_of(state);
    static const int32_t both[] = {0, 1};
    kept k = {0};
    kept_open(&k, ops, "qwen3");
    set_one_hot(k.lm, 0);
    cases_batch b;
    const int32_t offsets[] = {0, WHOLE, 2 * WHOLE};
    for (int m = 1; m >= 0; m--) {
        cases_pack(&b, k.ids, offsets, 2);
        b.batch.head_rows = b.batch.tokens;
        for (int32_t i = 0; i < b.batch.tokens; i++) b.head_row[i] = i;
        b.batch.targets = NULL;
        set_one_hot(k.lm, m);
        mb_free(k.expected);
        k.expected = cases_logits(k.lm, &b);
        for (int s = 0; s < 2; s++) mb_kv_cache_cut(k.cache, s, 0);
        kept_step(&k, both, 2, 0, PROMPT);
        for (int j = 0; j < STEPS; j++) kept_step(&k, both, 2, PROMPT + j, 1);
    }
    mb_lm_pass_destroy(&k.pass);
    mb_kv_cache_destroy(&k.cache);
    mb_lm_destroy(&k.lm);
    mb_free(k.expected);
    mb_ops_destroy(&ops);
}

#define ON(test, backend)                                                                                    \
    {                                                                                                        \
#test " " backend, test, NULL, NULL, backend                                                         \
    }
#define ON_ALL(test) ON(test, "ref"), ON(test, "cpu"), ON(test, "cuda")

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        ON_ALL(test_one_hot_is_that_member),
        ON(test_angles_are_each_members_own, "cpu"),
        ON(test_angles_are_each_members_own, "cuda"),
        ON(test_an_adapter_makes_a_member, "cpu"),
        ON(test_more_tokens_are_left_out, "ref"),
        ON(test_more_tokens_are_left_out, "cpu"),
        ON(test_other_architectures_are_refused, "cpu"),
        ON(test_slopes_of_three_models, "ref"),
        ON(test_slopes_of_three_models, "cpu"),
        ON(test_slopes_through_quantised_layers, "cpu"),
        ON(test_slopes_through_an_adapter, "cpu"),
        ON(test_slopes_through_experts, "cpu"),
        ON_ALL(test_other_ways_to_the_gradient),
        ON(test_a_pass_takes_what_is_planned, "cpu"),
        ON_ALL(test_bf16_gradient_is_near),
        ON(test_gradients_by_block, "cpu"),
        ON_ALL(test_kept_keys),
        ON(test_recorded_steps_see_a_new_router, "cuda"),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
