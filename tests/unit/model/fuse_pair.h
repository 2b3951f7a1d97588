/* fuse_pair: two golden models as one, for the tests of ensembles and token-level routers, and what a forward
 * with all outputs gives. */
#ifndef MB_FUSE_PAIR_H
#define MB_FUSE_PAIR_H

#include "fuse_cases.h"

enum { ROWS = 33 };

static const int32_t fuse_offsets[] = {0, 9, 10, 27, ROWS};
static const char *const fuse_backends[] = {"ref", "cpu", "cuda"};

/* ---- models ---- */

typedef struct fuse_case {
    mb_ops *ops;
    char *path[2];
    mb_fuse_member member[2];
} fuse_case;

static inline bool fuse_begin(fuse_case *c, const char *backend, const char *name, double a, double b)
{
    *c = (fuse_case){.ops = cases_ops(backend)};
    if (c->ops == NULL) return false;
    c->path[0] = mb_str_format("%s/%s/foundation", FUSE_FOLDER, name);
    c->path[1] = mb_str_format("%s/%s/sft", FUSE_FOLDER, name);
    c->member[0] = (mb_fuse_member){"foundation", c->path[0], NULL, a};
    c->member[1] = (mb_fuse_member){"sft", c->path[1], NULL, b};
    return true;
}

static inline void fuse_end(fuse_case *c)
{
    mb_free(c->path[0]);
    mb_free(c->path[1]);
    mb_ops_destroy(&c->ops);
}

static inline mb_fuse_options fuse_options(const fuse_case *c, mb_fuse_kind kind)
{
    return (mb_fuse_options){.kind = kind, .count = 2, .member = c->member, .router_hidden = 6, .seed = 3};
}

static inline mb_lm *fuse_open(const fuse_case *c, mb_fuse_kind kind, bool by_logits, bool train)
{
    mb_lm *lm = NULL;
    mb_fuse_options options = fuse_options(c, kind);
    options.by_logits = by_logits;
    options.train = train;
    assert_status_ok(mb_fuse_open(c->ops, &options, &lm));
    return lm;
}

static inline mb_lm *fuse_ensemble(const fuse_case *c)
{
    return fuse_open(c, MB_FUSE_ENSEMBLE, false, false);
}

/* Values into a tensor of the router. */
static inline void fuse_set(mb_lm *lm, const char *name, float (*value)(int64_t))
{
    mb_param *param = mb_params_find(mb_lm_params(lm), name);
    assert_non_null(param);
    const int64_t n = mb_tensor_count(&param->value);
    float *values = mb_calloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = value(i);
    assert_status_ok(mb_params_set_f32(param, values));
    mb_free(values);
}

static inline float fuse_wave(int64_t i)
{
    return 0.6f * sinf(1.7f * (float)i + 0.3f);
}
static inline float fuse_first(int64_t i)
{
    return i == 0 ? 500.0f : -500.0f;
}

/* A router that has something to say. */
static inline void fuse_randomise(mb_lm *lm)
{
    fuse_set(lm, "router.0.gate_proj.weight", fuse_wave);
    fuse_set(lm, "router.0.up_proj.weight", fuse_wave);
    fuse_set(lm, "router.0.down_proj.weight", fuse_wave);
    mb_params_changed(mb_lm_params(lm));
}

/* ---- rows ---- */

/* What a forward with all outputs gives, in blocks of its own. */
typedef struct fuse_result {
    float *logits, *loss, *router;
    int32_t *argmax, *ids;
    int64_t rows, vocab;
} fuse_result;

static inline fuse_result fuse_forward(mb_lm *lm, const mb_lm_batch *batch)
{
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.logits = true, .argmax = true};
    fuse_result r = {.rows = batch->head_rows, .vocab = mb_lm_arch(lm)->vocab};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, batch, &want, &out));
    r.logits = mb_calloc((size_t)(r.rows * r.vocab), sizeof(float));
    memcpy(r.logits, out.logits, (size_t)(r.rows * r.vocab) * sizeof(float));
    if (out.token_loss != NULL) {
        r.loss = mb_calloc((size_t)r.rows, sizeof(float));
        memcpy(r.loss, out.token_loss, (size_t)r.rows * sizeof(float));
    }
    r.argmax = mb_calloc((size_t)r.rows, sizeof(int32_t));
    memcpy(r.argmax, out.argmax, (size_t)r.rows * sizeof(int32_t));
    assert_int_equal(out.routers, mb_lm_routers(lm));
    if (out.routers > 0) {
        const size_t n = (size_t)(batch->tokens * mb_fuse_members(lm));
        r.router = mb_calloc(n, sizeof(float));
        memcpy(r.router, out.router_logits[0], n * sizeof(float));
        r.ids = mb_calloc((size_t)batch->tokens, sizeof(int32_t));
        memcpy(r.ids, out.router_ids[0], (size_t)batch->tokens * sizeof(int32_t));
    }
    mb_lm_pass_destroy(&pass);
    return r;
}

static inline void fuse_free(fuse_result *r)
{
    mb_free(r->logits);
    mb_free(r->loss);
    mb_free(r->router);
    mb_free(r->argmax);
    mb_free(r->ids);
}

static inline void fuse_softmax(const float *logits, int64_t n, double *p)
{
    double largest = (double)logits[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        if ((double)logits[i] > largest) largest = (double)logits[i];
    for (int64_t i = 0; i < n; i++) sum += p[i] = exp((double)logits[i] - largest);
    for (int64_t i = 0; i < n; i++) p[i] /= sum;
}

/* Rows of members' results mixed by weights [rows, 2]: the fused rows' probabilities, losses and largest. */
static inline void fuse_check_rows(const fuse_result *fused, const fuse_result *a, const fuse_result *b,
                                   const double *weight, const mb_lm_batch *batch)
{
    double p[2][64], q[64];
    const int64_t v = fused->vocab;
    assert_true(v <= 64);
    for (int64_t i = 0; i < fused->rows; i++) {
        int64_t best = 0;
        fuse_softmax(a->logits + i * v, v, p[0]);
        fuse_softmax(b->logits + i * v, v, p[1]);
        fuse_softmax(fused->logits + i * v, v, q);
        for (int64_t t = 0; t < v; t++) {
            const double mean = weight[2 * i] * p[0][t] + weight[2 * i + 1] * p[1][t];
            p[0][t] = mean;
            if (mean > p[0][best]) best = t;
            assert_true(fabs(mean - q[t]) <= 1e-6);
            assert_true(fabs(mean - exp((double)fused->logits[i * v + t])) <= 1e-6);
        }
        assert_int_equal(fused->argmax[i], best);
        assert_true(fabs((double)fused->loss[i] + log(p[0][batch->targets[i]])) <= 2e-6);
    }
}

static inline void fuse_check_same(const fuse_result *a, const fuse_result *b)
{
    assert_int_equal(a->vocab, b->vocab);
    assert_memory_equal(a->logits, b->logits, (size_t)(a->rows * a->vocab) * sizeof(float));
    assert_memory_equal(a->argmax, b->argmax, (size_t)a->rows * sizeof(int32_t));
    if (a->loss != NULL) assert_memory_equal(a->loss, b->loss, (size_t)a->rows * sizeof(float));
}

#endif
