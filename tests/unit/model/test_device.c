/* The model on a backend whose memory the host cannot touch, against ref; on cpu too, where the same code
 * moves nothing. Each test is run for both; what a build or machine lacks is skipped. */
#include "model_cases.h"

#include "model/encoder.h"
#include "model/lm_state.h"
#include "store/contenthash.h"

static const int32_t OFFSETS[] = {0, 6, 7, 15};

enum { SEGMENTS = 3 };

/* The backend under test and ref beside it. */
typedef struct pair {
    mb_ops *ops, *ref;
} pair;

static void pair_open(pair *p, void **state)
{
    p->ops = cases_ops(*state);
    if (p->ops == NULL) skip();
    p->ref = cases_ops("ref");
}

static void pair_close(pair *p)
{
    mb_ops_destroy(&p->ops);
    mb_ops_destroy(&p->ref);
}

static mb_lm *open_stored(mb_ops *ops, const char *path, mb_dtype dtype, int bits)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {
        .path = path, .train = "none", .dtype = dtype, .frozen_bits = bits, .frozen_group = 8};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    return lm;
}

static float *values_of(const mb_param *param)
{
    float *values = mb_calloc((size_t)mb_tensor_count(&param->value), sizeof *values);
    assert_status_ok(mb_params_get_f32(param, values));
    return values;
}

/* All parameters hold the same bits. */
static void check_params(mb_lm *a, mb_lm *b)
{
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(a)); i++) {
        const mb_param *p = mb_params_at(mb_lm_params(a), i), *q = mb_params_at(mb_lm_params(b), i);
        float *x = values_of(p), *y = values_of(q);
        assert_string_equal(p->name, q->name);
        assert_memory_equal(x, y, (size_t)mb_tensor_count(&p->value) * sizeof *x);
        mb_free(x);
        mb_free(y);
    }
}

/* ---- weights ---- */

/* Read, rounded, quantised, set and written: the same values wherever they lie. */
static void test_weights_hold_the_same_values(void **state)
{
    pair p;
    pair_open(&p, state);
    static const struct {
        mb_dtype dtype;
        int bits;
    } kinds[] = {{MB_F32, 0}, {MB_BF16, 0}, {MB_F32, 8}, {MB_BF16, 4}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        mb_lm *a = open_stored(p.ops, CASES_FOLDER "/mixtral", kinds[i].dtype, kinds[i].bits);
        mb_lm *b = open_stored(p.ref, CASES_FOLDER "/mixtral", kinds[i].dtype, kinds[i].bits);
        check_params(a, b);
        mb_param *x = mb_params_at(mb_lm_params(a), 5), *y = mb_params_at(mb_lm_params(b), 5);
        float *value = values_of(x);
        for (int64_t j = 0; j < mb_tensor_count(&x->value); j++) value[j] = 0.01f * (float)(j % 23 - 11);
        assert_status_ok(mb_params_set_f32(x, value));
        assert_status_ok(mb_params_set_f32(y, value));
        mb_free(value);
        check_params(a, b);
        mb_lm_destroy(&a);
        mb_lm_destroy(&b);
    }
    pair_close(&p);
}

static void test_new_model_and_its_folder(void **state)
{
    pair p;
    pair_open(&p, state);
    mb_arch arch;
    mb_lm *a = NULL, *b = NULL;
    char *folder[2] = {cases_temporary(), cases_temporary()}, hash[2][MB_HASH_TEXT];
    assert_status_ok(mb_arch_read(CASES_FOLDER "/select_mixtral", &arch));
    assert_status_ok(mb_lm_create(p.ops, &arch, "all", 7, &a));
    assert_status_ok(mb_lm_create(p.ref, &arch, "all", 7, &b));
    check_params(a, b);
    for (int i = 0; i < 2; i++) {
        assert_status_ok(mb_lm_write(i == 0 ? a : b, folder[i], "full", MB_BF16));
        assert_status_ok(mb_contenthash_path(folder[i], hash[i]));
        cases_remove(folder[i]);
    }
    assert_string_equal(hash[0], hash[1]);
    mb_lm_destroy(&a);
    mb_lm_destroy(&b);
    mb_arch_reset(&arch);
    pair_close(&p);
}

/* Parts of the trained space go up and down, more than a piece of the staging at a time. */
static void test_trained_values_move(void **state)
{
    pair p;
    pair_open(&p, state);
    mb_arch arch;
    mb_lm *lm = NULL;
    assert_status_ok(mb_arch_read(CASES_FOLDER "/llama_llama3", &arch));
    arch.vocab = 300000; /* 19 MB: three pieces */
    assert_status_ok(mb_lm_create(p.ops, &arch, "all", 7, &lm));
    mb_params *params = mb_lm_params(lm);
    const int64_t n = mb_params_trained_count(params);
    assert_true((size_t)n * sizeof(float) > 2 * (8u << 20));
    float *value = mb_calloc((size_t)n, sizeof *value), *back = mb_calloc((size_t)n, sizeof *back);
    assert_status_ok(mb_params_download(params, 0, n, back));
    const mb_param *embedding = mb_params_find(params, "model.embed_tokens.weight");
    float *drawn = values_of(embedding);
    assert_memory_equal(drawn, back + embedding->flat,
                        (size_t)mb_tensor_count(&embedding->value) * sizeof *drawn);
    for (int64_t i = 0; i < n; i++) value[i] = (float)(i % 8191);
    assert_status_ok(mb_params_upload(params, 0, n, value));
    assert_status_ok(mb_params_upload(params, 1234, 77, value));
    assert_status_ok(mb_params_sync(params));
    for (int64_t i = 76; i >= 0; i--) value[1234 + i] = (float)i;
    assert_status_ok(mb_params_download(params, 0, n, back));
    assert_memory_equal(value, back, (size_t)n * sizeof *value);
    assert_status_ok(mb_params_download(params, 1200, 100, back));
    assert_memory_equal(value + 1200, back, 100 * sizeof *value);
    mb_free(drawn);
    mb_free(value);
    mb_free(back);
    mb_lm_destroy(&lm);
    mb_arch_reset(&arch);
    pair_close(&p);
}

/* ---- forward ---- */

/* Outputs of one forward, copied. */
typedef struct outputs {
    float *loss, *logits, *hidden, *router;
    int32_t ids[64], argmax[64];
} outputs;

static void outputs_take(mb_lm *lm, const cases_batch *b, outputs *o)
{
    const int64_t v = mb_lm_arch(lm)->vocab, d = mb_lm_arch(lm)->width, gates = mb_arch_gates(mb_lm_arch(lm));
    const int64_t n = b->batch.head_rows, t = b->batch.tokens, k = mb_lm_arch(lm)->picks;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.hidden = true, .argmax = true, .logits = true};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward_start(pass, &b->batch, &want, &out));
    assert_status_ok(mb_lm_pass_wait(pass));
    *o = (outputs){.loss = mb_calloc((size_t)n, sizeof(float)),
                   .logits = mb_calloc((size_t)(n * v), sizeof(float)),
                   .hidden = mb_calloc((size_t)(t * d), sizeof(float)),
                   .router = mb_calloc((size_t)(t * gates), sizeof(float))};
    memcpy(o->loss, out.token_loss, (size_t)n * sizeof(float));
    memcpy(o->logits, out.logits, (size_t)(n * v) * sizeof(float));
    memcpy(o->hidden, out.hidden, (size_t)(t * d) * sizeof(float));
    memcpy(o->argmax, out.argmax, (size_t)n * sizeof(int32_t));
    assert_int_equal(out.routers, mb_lm_routers(lm));
    if (out.routers > 0) {
        memcpy(o->router, out.router_logits[out.routers - 1], (size_t)(t * gates) * sizeof(float));
        memcpy(o->ids, out.router_ids[0], (size_t)(t * k) * sizeof(int32_t));
    }
    mb_lm_pass_destroy(&pass);
}

static void outputs_free(outputs *o)
{
    mb_free(o->loss);
    mb_free(o->logits);
    mb_free(o->hidden);
    mb_free(o->router);
}

/* All outputs are those of ref; trash_bias is used where there is trash. */
static void check_forward(const pair *p, const char *name, const int32_t *offsets, double trash_bias)
{
    char *path = cases_path(name);
    mb_lm *a = cases_open(p->ops, path, "none"), *b = cases_open(p->ref, path, "none");
    const mb_arch *arch = mb_lm_arch(b);
    cases_batch batch;
    outputs x, y;
    mb_lm_set_trash_bias(a, trash_bias);
    mb_lm_set_trash_bias(b, trash_bias);
    cases_random(&batch, arch->vocab, offsets, SEGMENTS, CASES_SEED);
    const int64_t n = batch.batch.head_rows, t = batch.batch.tokens;
    outputs_take(a, &batch, &x);
    outputs_take(b, &batch, &y);
    assert_true(cases_difference(x.loss, y.loss, n) <= 1e-5);
    assert_true(cases_difference(x.logits, y.logits, n * arch->vocab) <= 1e-5);
    assert_true(cases_difference(x.hidden, y.hidden, t * arch->width) <= 1e-5);
    assert_true(cases_difference(x.router, y.router, t * mb_arch_gates(arch)) <= 1e-5);
    assert_memory_equal(x.ids, y.ids, sizeof x.ids);
    assert_memory_equal(x.argmax, y.argmax, sizeof x.argmax);
    outputs_free(&x);
    outputs_free(&y);
    mb_lm_destroy(&a);
    mb_lm_destroy(&b);
    mb_free(path);
}

static void test_outputs_are_those_of_ref(void **state)
{
    pair p;
    pair_open(&p, state);
    static const int32_t longer[] = {0, 3, 43, 46}; /* beyond the original length: rope rows of their own */
    check_forward(&p, "qwen3", OFFSETS, 0);
    check_forward(&p, "select_mixtral", OFFSETS, 0);
    check_forward(&p, "select_mixtral", OFFSETS, 3);
    check_forward(&p, "llama_longrope", longer, 0);
    pair_close(&p);
}

/* Nothing of the routing is given when it is not wanted; the rest is as it was. */
static void test_routing_left_out(void **state)
{
    pair p;
    pair_open(&p, state);
    mb_lm *lm = cases_open(p.ops, CASES_FOLDER "/select_mixtral", "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b;
    float first[64];
    mb_lm_want want = {0};
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, SEGMENTS, CASES_SEED);
    const size_t n = (size_t)b.batch.head_rows;
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_int_equal(out.routers, 2);
    memcpy(first, out.token_loss, n * sizeof *first);
    want.no_routing = true;
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
    assert_int_equal(out.routers, 0);
    assert_null(out.router_logits);
    assert_null(out.router_ids);
    assert_memory_equal(first, out.token_loss, n * sizeof *first);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    pair_close(&p);
}

/* A steady pass lays everything where it was, whatever came in between of smaller size. */
static void test_steady_addresses(void **state)
{
    pair p;
    pair_open(&p, state);
    static const int32_t small[] = {0, 2, 3, 5};
    mb_lm *lm = cases_open(p.ops, CASES_FOLDER "/select_mixtral", "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b, c;
    const mb_lm_want want = {.logits = true};
    const void *x = NULL, *logits = NULL, *host = NULL;
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, SEGMENTS, CASES_SEED);
    cases_random(&c, mb_lm_arch(lm)->vocab, small, SEGMENTS, CASES_SEED);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    for (int i = 0; i < 5; i++) {
        if (i > 2) assert_status_ok(mb_lm_forward(pass, &c.batch, &want, &out));
        assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
        if (i > 2) {
            assert_ptr_equal(pass->x.data, x);
            assert_ptr_equal(pass->logits.data, logits);
            assert_ptr_equal(out.logits, host);
        }
        x = pass->x.data;
        logits = pass->logits.data;
        host = out.logits;
    }
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    pair_close(&p);
}

/* ---- kept keys ---- */

enum { STEPS = 9, PROMPT = 4 };

typedef struct kept {
    mb_lm *lm;
    mb_lm_pass *pass;
    mb_kv_cache *cache;
    float *expected; /* [3 * (PROMPT + STEPS), V] from scratch */
    int32_t ids[3 * (PROMPT + STEPS)];
} kept;

static void kept_open(kept *k, mb_ops *ops, const char *name)
{
    char *path = cases_path(name);
    const int32_t n = PROMPT + STEPS, offsets[] = {0, n, 2 * n, 3 * n};
    cases_batch b;
    k->lm = cases_open(ops, path, "none");
    mb_free(path);
    cases_random(&b, mb_lm_arch(k->lm)->vocab, offsets, 3, CASES_SEED);
    memcpy(b.ids + n, b.ids, PROMPT * sizeof *b.ids); /* the second begins as the first does */
    memcpy(k->ids, b.ids, sizeof k->ids);
    b.batch.head_rows = b.batch.tokens;
    for (int32_t i = 0; i < b.batch.tokens; i++) b.head_row[i] = i;
    b.batch.targets = NULL;
    k->expected = cases_logits(k->lm, &b);
    assert_status_ok(mb_kv_cache_create(mb_lm_arch(k->lm), ops, MB_F32, 3, 3 * n, &k->cache));
    assert_status_ok(mb_lm_pass_create(k->lm, &k->pass));
}

static void kept_close(kept *k)
{
    mb_lm_pass_destroy(&k->pass);
    mb_kv_cache_destroy(&k->cache);
    mb_lm_destroy(&k->lm);
    mb_free(k->expected);
}

/* Rows first..first+n of some sequences; every row's logits are those from scratch. */
static void kept_step(kept *k, const int32_t *slots, int segments, int32_t first, int32_t n)
{
    cases_batch b;
    mb_lm_output out;
    const int32_t whole = PROMPT + STEPS, offsets[] = {0, n, 2 * n, 3 * n};
    const int64_t v = mb_lm_arch(k->lm)->vocab;
    const mb_lm_want want = {.logits = true, .no_routing = true};
    int32_t ids[64];
    for (int s = 0; s < segments; s++)
        memcpy(ids + s * n, k->ids + slots[s] * whole + first, (size_t)n * sizeof *ids);
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
    for (int s = 0; s < segments; s++)
        assert_true(cases_difference(out.logits + s * n * v, k->expected + (slots[s] * whole + first) * v,
                                     n * v) <= 2e-5);
}

/* Prompts, a copy of one, then steps of one token each, of three sequences and of two. */
static void check_kept(const pair *p, const char *name)
{
    static const int32_t some[] = {2, 0}, all[] = {0, 1, 2}, first[] = {0, 2};
    kept k = {0};
    kept_open(&k, p->ops, name);
    kept_step(&k, first, 2, 0, PROMPT);
    assert_status_ok(mb_kv_cache_copy(k.cache, 0, 1));
    assert_int_equal(k.cache->length[1], PROMPT);
    for (int i = 0; i < STEPS; i++) kept_step(&k, all, 3, PROMPT + i, 1);
    if (mb_ops_can_record(p->ops)) assert_true(mb_lm_replay_count(k.pass) >= STEPS - 4);
    const int64_t before = mb_lm_replay_count(k.pass);
    print_message("# %s %s: %lld of %d steps from a record\n", mb_ops_name(p->ops), name, (long long)before,
                  STEPS);
    for (int s = 0; s < 3; s++) mb_kv_cache_cut(k.cache, s, PROMPT);
    for (int i = 0; i < STEPS; i++) kept_step(&k, some, 2, PROMPT + i, 1);
    if (mb_ops_can_record(p->ops)) assert_true(mb_lm_replay_count(k.pass) > before);
    cases_batch full;
    const int32_t one[] = {0, 1};
    mb_lm_output out;
    const mb_lm_want want = {.logits = true};
    cases_pack(&full, k.ids, one, 1);
    full.batch.opt_cache = k.cache;
    full.batch.opt_slot = some;
    assert_status_says(mb_lm_forward(k.pass, &full.batch, &want, &out), MB_ERANGE, "do not fit");
    kept_close(&k);
}

static void test_kept_keys(void **state)
{
    pair p;
    pair_open(&p, state);
    check_kept(&p, "qwen3");
    check_kept(&p, "select_mixtral");
    pair_close(&p);
}

/* A recorded step sees weights that changed in the meantime. */
static void test_recorded_steps_see_new_weights(void **state)
{
    pair p;
    pair_open(&p, state);
    static const int32_t all[] = {0, 1, 2};
    kept k = {0};
    kept_open(&k, p.ops, "mistral");
    kept_step(&k, all, 1, 0, PROMPT);
    for (int i = 0; i < STEPS; i++) kept_step(&k, all, 1, PROMPT + i, 1);
    mb_param *head = k.lm->head;
    float *value = values_of(head);
    const int64_t rows = 3 * (PROMPT + STEPS), v = mb_lm_arch(k.lm)->vocab;
    assert_false(mb_lm_arch(k.lm)->tied_head);
    for (int64_t i = 0; i < mb_tensor_count(&head->value); i++) value[i] *= 2;
    assert_status_ok(mb_params_set_f32(head, value));
    for (int64_t i = 0; i < rows * v; i++) k.expected[i] *= 2;
    mb_kv_cache_cut(k.cache, 0, PROMPT);
    for (int i = 0; i < STEPS; i++) kept_step(&k, all, 1, PROMPT + i, 1);
    mb_free(value);
    kept_close(&k);
    pair_close(&p);
}

/* ---- backward ---- */

/* What trains, with which adapter, and what enters the backward pass. */
typedef struct back {
    const char *name, *train;
    const mb_lora_options *opt_lora;
    bool hidden, recompute;
} back;

/* Gradient of a fixed loss: new block, *out_n elements. */
static float *back_gradient(mb_ops *ops, const back *c, int64_t *out_n)
{
    char *path = cases_path(c->name);
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = path, .train = c->train, .opt_lora = c->opt_lora};
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b;
    float weight[64], *d_router[8] = {0}, *d_hidden = NULL;
    const mb_lm_want want = {.gradient = true, .hidden = c->hidden, .recompute = c->recompute};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    const int64_t gates = mb_arch_gates(mb_lm_arch(lm)), d = mb_lm_arch(lm)->width;
    mb_params *params = mb_lm_params(lm);
    const int64_t n = mb_params_trained_count(params);
    float *value = mb_calloc((size_t)n, sizeof *value);
    assert_status_ok(mb_params_download(params, 0, n, value)); /* an adapter's B is 0 at first */
    for (int64_t i = 0; i < n; i++) value[i] += 0.05f * sinf((float)(i * 37 % 101));
    assert_status_ok(mb_params_upload(params, 0, n, value));
    assert_status_ok(mb_params_sync(params));
    mb_buffer *room = cases_room(ops, n);
    mb_params_bind_gradient(params, room->data);
    cases_random(&b, mb_lm_arch(lm)->vocab, OFFSETS, SEGMENTS, CASES_SEED);
    b.batch.row_index = b.row_index;
    b.batch.seed = 99;
    const int64_t t = b.batch.tokens;
    for (int i = 0; i < 64; i++) weight[i] = 0.05f + 0.01f * (float)(i % 3);
    for (int64_t l = 0; l < mb_lm_routers(lm); l++) {
        d_router[l] = mb_calloc((size_t)(t * gates), sizeof(float));
        for (int64_t i = 0; i < t * gates; i++) d_router[l][i] = 0.01f * (float)((i * 7 + l) % 11 - 5);
    }
    d_hidden = mb_calloc((size_t)(t * d), sizeof(float));
    for (int64_t i = 0; i < t * d; i++) d_hidden[i] = 0.02f * (float)(i * 5 % 13 - 6);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    for (int step = 0; step < 2; step++) { /* the second adds, and may come before the first is done */
        assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &out));
        assert_status_ok(mb_lm_backward(pass, weight, d_router, c->hidden ? d_hidden : NULL));
        for (int64_t i = 0; i < t * d; i++) d_hidden[i] += 0.01f; /* the arrays are the caller's again */
        for (int i = 0; i < 64; i++) weight[i] += 0.001f;
        for (int64_t l = 0; l < mb_lm_routers(lm); l++) d_router[l][0] += 0.1f;
    }
    assert_status_ok(mb_lm_backward(pass, weight, d_router, NULL));
    memset(d_hidden, 0, (size_t)(t * d) * sizeof *d_hidden);
    memset(weight, 0, sizeof weight);
    for (int l = 0; l < 8; l++) mb_free(d_router[l]);
    float *gradient = cases_read(ops, room->data, n);
    mb_lm_pass_destroy(&pass);
    mb_buffer_destroy(&room);
    mb_lm_destroy(&lm);
    mb_free(value);
    mb_free(d_hidden);
    mb_free(path);
    *out_n = n;
    return gradient;
}

static void test_gradients_are_those_of_ref(void **state)
{
    pair p;
    pair_open(&p, state);
    const mb_lora_options lora = {.r = 2, .alpha = 6, .dropout = 0.25, .targets = "all-linear", .seed = 3};
    const back cases[] = {{"select_mixtral", "all", NULL, true, false},
                          {"select_mixtral", "all", NULL, true, true},
                          {"select_mixtral", "router", NULL, false, false},
                          {"select_mixtral", "all", &lora, false, false},
                          {"qwen2", "*.bias", NULL, true, false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t n, m;
        float *a = back_gradient(p.ops, &cases[i], &n), *b = back_gradient(p.ref, &cases[i], &m);
        assert_int_equal(n, m);
        const double off = cases_difference(a, b, n);
        print_message("# %s %s, case %d: %.2g\n", (const char *)*state, cases[i].name, (int)i, off);
        assert_true(off <= 1e-4);
        mb_free(a);
        mb_free(b);
    }
    pair_close(&p);
}

/* ---- adapters, encoders ---- */

static void test_merged_adapter(void **state)
{
    pair p;
    pair_open(&p, state);
    mb_lm *lm[2] = {NULL, NULL};
    const mb_lm_options options = {
        .path = CASES_FOLDER "/mixtral", .opt_adapter = CASES_FOLDER "/mixtral_adapter", .train = "none"};
    for (int i = 0; i < 2; i++) {
        mb_ops *ops = i == 0 ? p.ops : p.ref;
        assert_status_ok(mb_lm_open(ops, &options, &lm[i]));
        assert_status_ok(mb_lora_merge(mb_lm_lora(lm[i]), ops, mb_lm_params(lm[i])));
    }
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(lm[0])); i++) {
        const mb_param *a = mb_params_at(mb_lm_params(lm[0]), i), *b = mb_params_at(mb_lm_params(lm[1]), i);
        float *x = values_of(a), *y = values_of(b);
        assert_true(cases_difference(x, y, mb_tensor_count(&a->value)) <= 1e-6);
        mb_free(x);
        mb_free(y);
    }
    mb_lm_destroy(&lm[0]);
    mb_lm_destroy(&lm[1]);
    pair_close(&p);
}

/* Mean with Dense modules, first tokens alone, gated with rotary positions; in f32 and in bf16. */
static void test_encoders_are_those_of_ref(void **state)
{
    pair p;
    pair_open(&p, state);
    static const char *const names[] = {"bert_plain", "xlmr_dense", "gte_v15"};
    static const int32_t offsets[] = {0, 5, 6, 12}, ids[] = {3, 9, 4, 11, 2, 7, 5, 8, 6, 10, 12, 1};
    const mb_encoder_batch batch = {.tokens = 12, .segments = 3, .ids = ids, .offsets = offsets};
    for (int i = 0; i < 6; i++) {
        char *folder = mb_str_format("tests/golden/encoders/%s", names[i / 2]);
        const mb_dtype dtype = i % 2 == 0 ? MB_F32 : MB_BF16;
        float *pooled[2], *alone[2], *hidden[2];
        int64_t width = 0, d = 0;
        for (int j = 0; j < 2; j++) {
            mb_encoder *e = NULL;
            assert_status_ok(mb_encoder_open(j == 0 ? p.ops : p.ref, folder, dtype, &e));
            d = mb_encoder_get_config(e)->width;
            assert_status_ok(mb_encoder_pooling_width(mb_encoder_get_pooling(e), d, &width));
            pooled[j] = mb_calloc((size_t)(3 * width), sizeof(float));
            alone[j] = mb_calloc((size_t)(3 * width), sizeof(float));
            hidden[j] = mb_calloc((size_t)(12 * d), sizeof(float));
            assert_status_ok(mb_encoder_run(e, &batch, 0, hidden[j], pooled[j]));
            assert_status_ok(mb_encoder_run(e, &batch, 0, NULL, alone[j]));
            mb_encoder_destroy(&e);
        }
        const double limit = dtype == MB_F32 ? 1e-5 : 0.06;
        const double off = cases_difference(hidden[0], hidden[1], 12 * d);
        print_message("# %s %s %s: hidden state differs by %.2g\n", (const char *)*state, names[i / 2],
                      mb_dtype_name(dtype), off);
        assert_true(off <= limit);
        assert_true(cases_difference(pooled[0], pooled[1], 3 * width) <= limit);
        assert_true(cases_difference(alone[0], alone[1], 3 * width) <= limit);
        for (int j = 0; j < 2; j++) {
            mb_free(pooled[j]);
            mb_free(alone[j]);
            mb_free(hidden[j]);
        }
        mb_free(folder);
    }
    pair_close(&p);
}

#define DEVICE_TEST(test)                                                                                    \
    {#test " cpu", test, NULL, NULL, "cpu"},                                                                 \
    {                                                                                                        \
#test " cuda", test, NULL, NULL, "cuda"                                                              \
    }

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        DEVICE_TEST(test_weights_hold_the_same_values),
        DEVICE_TEST(test_new_model_and_its_folder),
        DEVICE_TEST(test_trained_values_move),
        DEVICE_TEST(test_outputs_are_those_of_ref),
        DEVICE_TEST(test_routing_left_out),
        DEVICE_TEST(test_steady_addresses),
        DEVICE_TEST(test_kept_keys),
        DEVICE_TEST(test_recorded_steps_see_new_weights),
        DEVICE_TEST(test_gradients_are_those_of_ref),
        DEVICE_TEST(test_merged_adapter),
        DEVICE_TEST(test_encoders_are_those_of_ref),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
