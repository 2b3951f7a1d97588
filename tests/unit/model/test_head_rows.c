/* test_head_rows: the head in chunks beside a teacher, against PyTorch and TRL, against mb_ops_head_loss, and
 * in a model's passes. Run on ref, cpu, and a device whose memory the host cannot touch.
 *
 * 1. the backend's memory
 * 2. PyTorch
 * 3. chunks, several matrices
 * 4. a model's passes
 */
#include "model_cases.h"

#include "base/rng.h"
#include "model/head_rows.h"
#include "store/h5.h"

#define GOLDEN "tests/golden/distil/distil.h5"

/* ---- 1. the backend's memory ---- */

typedef struct place {
    mb_ops *ops;
    mb_arena *arena, *host;
} place;

static void place_open(place *p, void **state)
{
    p->ops = cases_ops(*state);
    if (p->ops == NULL) skip();
    assert_status_ok(mb_arena_create_on(mb_ops_allocator(p->ops), 1 << 16, &p->arena));
    assert_status_ok(mb_arena_create_on(mb_ops_host_allocator(p->ops), 1 << 16, &p->host));
}

static void place_close(place *p)
{
    assert_status_ok(mb_ops_wait(p->ops));
    mb_arena_destroy(&p->arena);
    mb_arena_destroy(&p->host);
    mb_ops_destroy(&p->ops);
}

/* A copy of n words of the host's (NULL: zeros) where the ops reach it; stays until the place is closed. */
static void *put(place *p, const void *host, int64_t n)
{
    float *data = mb_arena_alloc(p->arena, (size_t)(n > 0 ? n : 1), sizeof *data);
    assert_non_null(data);
    if (host == NULL)
        assert_status_ok(mb_ops_zero(p->ops, data, (size_t)n * sizeof *data));
    else
        assert_status_ok(mb_ops_upload(p->ops, host, (size_t)n * sizeof *data, data));
    assert_status_ok(mb_ops_wait(p->ops));
    return data;
}

static const float *back(place *p, const void *data, int64_t n)
{
    float *host = mb_arena_alloc(p->host, (size_t)(n > 0 ? n : 1), sizeof *host);
    assert_non_null(host);
    assert_status_ok(mb_ops_download(p->ops, data, (size_t)n * sizeof *host, host));
    assert_status_ok(mb_ops_wait(p->ops));
    return host;
}

/* f32 numbers as a matrix of `dtype`. */
static mb_tensor put_matrix(place *p, mb_dtype dtype, const float *host, int64_t rows, int64_t columns)
{
    const mb_tensor wide = mb_tensor_view2(MB_F32, put(p, host, rows * columns), rows, columns);
    if (dtype == MB_F32) return wide;
    mb_tensor narrow = mb_tensor_view2(dtype, put(p, NULL, (rows * columns + 1) / 2), rows, columns);
    assert_status_ok(mb_ops_cast(p->ops, &wide, &narrow));
    return narrow;
}

static float *draw(int64_t n, uint32_t sub, double scale)
{
    float *x = mb_calloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(scale * mb_rng_normal(CASES_SEED, MB_RNG_INIT, sub, (uint64_t)i));
    return x;
}

/* ---- 2. PyTorch ---- */

enum { N = 6, D = 8, V = 64 };

static void *read_golden(mb_h5 *file, mb_dtype dtype, const char *format, ...)
{
    char name[64];
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    va_list list;
    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    assert_status_ok(mb_h5_read_new(file, name, dtype, &dims, shape, &data));
    return data;
}

typedef struct golden {
    mb_h5 *file;
    mb_dtype dtype;
    float *h, *weight, *teacher, *row_weight, *ce;
    int32_t *targets;
    double worst[3]; /* distance, dh, dw */
} golden;

static double larger(double a, double b)
{
    return !(b <= a) ? b : a; /* a NaN stays */
}

static void check_golden(place *p, golden *g, int k, int temperature, int beta, bool is_dense)
{
    static const char *const betas[] = {"0", "0.5", "1"};
    mb_weight w;
    mb_tensor x = put_matrix(p, g->dtype, g->h, N, D), dw = put_matrix(p, MB_F32, NULL, V, D), *dws = &dw;
    mb_tensor dx = put_matrix(p, MB_F32, NULL, N, D), loss = mb_tensor_view1(MB_F32, put(p, NULL, N), N);
    mb_tensor distance = mb_tensor_view1(MB_F32, put(p, NULL, N), N);
    mb_weight_init(&w, put_matrix(p, g->dtype, g->weight, V, D));
    mb_weight *weights = &w;
    mb_teacher_rows teacher = {.temperature = temperature,
                               .beta = beta * 0.5,
                               .distil_weight = 0.7,
                               .task_weight = 0.3,
                               .opt_dense = is_dense ? g->teacher : NULL,
                               .k = k};
    int32_t *ids = read_golden(g->file, MB_I32, "k%d/ids", k);
    float *logprob = read_golden(g->file, MB_F32, "k%d/logprob", k);
    float *tail = k < V ? read_golden(g->file, MB_F32, "k%d/T%d/tail", k, temperature) : NULL;
    teacher.ids = put(p, ids, N * k), teacher.logprob = put(p, logprob, N * k);
    if (tail != NULL) teacher.tail = put(p, tail, N);
    const mb_head_rows head = {.count = 1,
                               .weight = &weights,
                               .x = &x,
                               .opt_targets = put(p, g->targets, N),
                               .opt_teacher = &teacher,
                               .opt_loss = &loss,
                               .opt_distance = &distance,
                               .opt_row_weight = put(p, g->row_weight, N),
                               .opt_dx = &dx,
                               .opt_dw = &dws};
    assert_status_ok(mb_head_rows_run(p->ops, &head));
    static const char *const names[] = {"distance", "dh", "dw"};
    const mb_tensor *const got[] = {&distance, &dx, &dw};
    for (int i = 0; i < 3; i++) {
        const int64_t n = mb_tensor_count(got[i]);
        float *want =
            read_golden(g->file, MB_F32, "k%d/T%d/beta%s/%s", k, temperature, betas[beta], names[i]);
        g->worst[i] = larger(g->worst[i], cases_difference(back(p, got[i]->data, n), want, n));
        mb_free(want);
    }
    assert_true(cases_difference(back(p, loss.data, N), g->ce, N) <= 1e-6);
    mb_weight_reset(&w);
    mb_free(ids), mb_free(logprob), mb_free(tail);
}

static void all_golden(void **state, mb_dtype dtype, double distance_limit, double gradient_limit)
{
    place p;
    golden g = {.dtype = dtype};
    place_open(&p, state);
    assert_status_ok(mb_h5_open(GOLDEN, &g.file));
    g.h = read_golden(g.file, MB_F32, "h"), g.weight = read_golden(g.file, MB_F32, "weight");
    g.teacher = read_golden(g.file, MB_F32, "teacher"), g.ce = read_golden(g.file, MB_F32, "ce");
    g.row_weight = read_golden(g.file, MB_F32, "row_weight"),
    g.targets = read_golden(g.file, MB_I32, "targets");
    for (int temperature = 1; temperature <= 3; temperature++)
        for (int beta = 0; beta < 3; beta++) {
            check_golden(&p, &g, 8, temperature, beta, false);
            check_golden(&p, &g, 50, temperature, beta, false);
            check_golden(&p, &g, V, temperature, beta, false);
            check_golden(&p, &g, V, temperature, beta, true);
        }
    print_message("# %s %s: distance off by %.2g, dh by %.2g, dw by %.2g\n", (const char *)*state,
                  mb_dtype_name(dtype), g.worst[0], g.worst[1], g.worst[2]);
    assert_true(g.worst[0] <= distance_limit);
    assert_true(g.worst[1] <= gradient_limit && g.worst[2] <= gradient_limit);
    void *blocks[] = {g.h, g.weight, g.teacher, g.row_weight, g.ce, g.targets};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) mb_free(blocks[i]);
    assert_status_ok(mb_h5_close(&g.file));
    place_close(&p);
}

static void test_values_of_pytorch(void **state)
{
    all_golden(state, MB_F32, 5e-6, 2e-6);
}
/* The golden h and weight are bf16 numbers: losses are as exact, gradients pass through bf16 once. */
static void test_values_of_pytorch_in_bf16(void **state)
{
    all_golden(state, MB_BF16, 5e-6, 8e-3);
}

/* ---- 3. chunks, several matrices ---- */

enum { ROWS = 700, WIDTH = 16, WORDS = 50, MATRICES = 3 };

typedef struct heads {
    mb_weight w[MATRICES], *pointers[MATRICES];
    mb_tensor x, dx, dw[MATRICES], *dws[MATRICES], loss, logits;
    int32_t *targets, *argmax;
    float *weight;
} heads;

/* `scale`: of the rows of each matrix, a power of 2 or 0. */
static void heads_make(place *p, heads *s, mb_dtype dtype, const float scale[MATRICES])
{
    float *x = draw(MATRICES * ROWS * WIDTH, 1, 1), *weight = draw(ROWS, 2, 1);
    int32_t *targets = mb_calloc(ROWS, sizeof *targets);
    for (int64_t i = 0; i < MATRICES * ROWS * WIDTH; i++) x[i] *= scale[i / (ROWS * WIDTH)];
    for (int64_t t = 0; t < ROWS; t++)
        targets[t] = (int32_t)(t * 7 % WORDS), weight[t] = t % 5 == 1 ? 0 : weight[t];
    s->x = put_matrix(p, dtype, x, MATRICES * ROWS, WIDTH);
    s->dx = put_matrix(p, MB_F32, NULL, MATRICES * ROWS, WIDTH);
    s->logits = put_matrix(p, MB_F32, NULL, ROWS, WORDS);
    s->loss = mb_tensor_view1(MB_F32, put(p, NULL, ROWS), ROWS);
    for (int m = 0; m < MATRICES; m++) {
        float *values = draw(WORDS * WIDTH, 10 + (uint32_t)m, 0.5);
        mb_weight_init(&s->w[m], put_matrix(p, dtype, values, WORDS, WIDTH));
        s->pointers[m] = &s->w[m];
        s->dw[m] = put_matrix(p, MB_F32, values, WORDS, WIDTH); /* added to */
        s->dws[m] = m == 1 ? NULL : &s->dw[m];
        mb_free(values);
    }
    s->targets = put(p, targets, ROWS), s->argmax = put(p, NULL, ROWS), s->weight = put(p, weight, ROWS);
    mb_free(x), mb_free(weight), mb_free(targets);
}

static void heads_reset(heads *s)
{
    for (int m = 0; m < MATRICES; m++) mb_weight_reset(&s->w[m]);
}

static void heads_run(place *p, heads *s, int64_t count, bool has_gradient)
{
    mb_tensor x = mb_tensor_view2(s->x.dtype, s->x.data, count * ROWS, WIDTH);
    mb_tensor dx = mb_tensor_view2(MB_F32, s->dx.data, count * ROWS, WIDTH);
    const mb_head_rows head = {.count = count,
                               .weight = s->pointers,
                               .x = &x,
                               .opt_targets = s->targets,
                               .opt_loss = &s->loss,
                               .opt_argmax = s->argmax,
                               .opt_logits = &s->logits,
                               .opt_row_weight = has_gradient ? s->weight : NULL,
                               .opt_dx = has_gradient ? &dx : NULL,
                               .opt_dw = has_gradient ? s->dws : NULL};
    assert_status_ok(mb_head_rows_run(p->ops, &head));
}

/* One matrix: bits of the losses and largest, and the gradients, of the op that does it all. */
static void check_one(void **state, mb_dtype dtype, double limit)
{
    static const float plain[MATRICES] = {1, 1, 1};
    place p;
    heads s;
    place_open(&p, state);
    heads_make(&p, &s, dtype, plain);
    float *values = draw(WORDS * WIDTH, 10, 0.5);
    mb_tensor loss = mb_tensor_view1(MB_F32, put(&p, NULL, ROWS), ROWS),
              dx = put_matrix(&p, MB_F32, NULL, ROWS, WIDTH);
    mb_tensor x = mb_tensor_view2(dtype, s.x.data, ROWS, WIDTH),
              dw = put_matrix(&p, MB_F32, values, WORDS, WIDTH);
    int32_t *argmax = put(&p, NULL, ROWS);
    assert_status_ok(mb_ops_head_loss(p.ops, &x, &s.w[0], s.targets, &loss, argmax, s.weight, &dx, &dw));
    heads_run(&p, &s, 1, true);
    assert_memory_equal(back(&p, s.argmax, ROWS), back(&p, argmax, ROWS), ROWS * sizeof *argmax);
    if (strcmp(mb_ops_name(p.ops), "ref") == 0) /* which never rounds a logit */
        assert_true(cases_difference(back(&p, s.loss.data, ROWS), back(&p, loss.data, ROWS), ROWS) <= 1e-6);
    else
        assert_memory_equal(back(&p, s.loss.data, ROWS), back(&p, loss.data, ROWS), ROWS * sizeof(float));
    const double off[] = {
        cases_difference(back(&p, s.dx.data, ROWS * WIDTH), back(&p, dx.data, ROWS * WIDTH), ROWS * WIDTH),
        cases_difference(back(&p, s.dw[0].data, WORDS * WIDTH), back(&p, dw.data, WORDS * WIDTH),
                         WORDS * WIDTH)};
    print_message("# %s %s: dx off by %.2g, dw by %.2g\n", (const char *)*state, mb_dtype_name(dtype), off[0],
                  off[1]);
    assert_true(off[0] <= limit && off[1] <= limit);
    heads_reset(&s);
    mb_free(values);
    place_close(&p);
}

static void test_one_matrix(void **state)
{
    check_one(state, MB_F32, 2e-6);
}
static void test_one_matrix_in_bf16(void **state)
{
    check_one(state, MB_BF16, 8e-3);
}

/* Several: logits are sums; a matrix whose rows are 0 leaves no trace; gradients by the sum's own. */
static void test_several_matrices(void **state)
{
    static const float parts[MATRICES] = {0.5f, 0.25f, 0.125f}, hot[MATRICES] = {1, 0, 0};
    place p;
    heads s;
    place_open(&p, state);
    heads_make(&p, &s, MB_F32, parts);
    heads_run(&p, &s, MATRICES, true);
    mb_tensor sum = put_matrix(&p, MB_F32, NULL, ROWS, WORDS);
    for (int m = 0; m < MATRICES; m++) {
        const mb_tensor x = mb_tensor_view2(MB_F32, (float *)s.x.data + m * ROWS * WIDTH, ROWS, WIDTH);
        assert_status_ok(mb_ops_linear(p.ops, &x, &s.w[m], NULL, m > 0, &sum));
    }
    const int64_t n = ROWS * WORDS, own = ROWS * WIDTH;
    assert_true(cases_difference(back(&p, s.logits.data, n), back(&p, sum.data, n), n) <= 1e-6);
    assert_status_ok(mb_ops_rows_loss(p.ops, &sum, s.targets, NULL, &s.loss, NULL, NULL, s.weight));
    for (int m = 0; m < MATRICES; m++) {
        float *values = draw(WORDS * WIDTH, 10 + (uint32_t)m, 0.5);
        const mb_tensor x = mb_tensor_view2(MB_F32, (float *)s.x.data + m * own, ROWS, WIDTH);
        mb_tensor dx = put_matrix(&p, MB_F32, NULL, ROWS, WIDTH),
                  dw = put_matrix(&p, MB_F32, values, WORDS, WIDTH);
        assert_status_ok(mb_ops_linear_dx(p.ops, &sum, &s.w[m], false, &dx));
        if (m != 1) assert_status_ok(mb_ops_linear_dw(p.ops, &sum, &x, &dw, NULL));
        assert_true(cases_difference(back(&p, (float *)s.dx.data + m * own, own), back(&p, dx.data, own),
                                     own) <= 2e-6);
        assert_true(cases_difference(back(&p, s.dw[m].data, WORDS * WIDTH), back(&p, dw.data, WORDS * WIDTH),
                                     WORDS * WIDTH) <= 2e-6);
        mb_free(values);
    }
    heads_reset(&s);
    heads_make(&p, &s, MB_F32, hot);
    heads_run(&p, &s, MATRICES, false);
    const float *several = back(&p, s.loss.data, ROWS), *logits = back(&p, s.logits.data, n);
    heads_run(&p, &s, 1, false);
    assert_memory_equal(several, back(&p, s.loss.data, ROWS), ROWS * sizeof(float));
    for (const float *one = back(&p, s.logits.data, n), *end = one + n; one < end; one++, logits++)
        assert_true(*one == *logits);
    heads_reset(&s);
    place_close(&p);
}

/* ---- 4. a model's passes ---- */

/* A batch of the model, and a teacher of its head rows: numbers of the seed. */
typedef struct lesson {
    cases_batch b;
    mb_teacher_rows teacher, dense;
    float *known, *logprob, *tail, weight[256];
    int32_t *ids;
    int64_t v;
} lesson;

static void lesson_make(lesson *s, int64_t v, int64_t k)
{
    static const int32_t offsets[] = {0, 9, 10, 21};
    cases_random(&s->b, v, offsets, 3, CASES_SEED + 3);
    const int64_t n = s->b.batch.head_rows;
    s->v = v;
    s->known = draw(n * v, 4, 2), s->logprob = draw(n * k, 5, 0), s->tail = draw(n, 6, 0);
    s->ids = mb_calloc((size_t)(n * k), sizeof *s->ids);
    for (int64_t t = 0; t < n; t++) {
        double tail = 0;
        s->weight[t] = 0.02f * (float)(t % 7 + 1);
        for (int64_t j = 0; j < v; j++) tail += exp(s->known[t * v + j] / 2);
        for (int64_t i = 0; i < k; i++) {
            const int64_t id = (i + 3 * t) % v;
            s->ids[t * k + i] = (int32_t)id;
            s->logprob[t * k + i] = s->known[t * v + id];
            tail -= exp(s->known[t * v + id] / 2);
        }
        s->tail[t] = k < v ? (float)log(tail) : -INFINITY;
    }
    s->teacher = (mb_teacher_rows){.temperature = 2,
                                   .beta = 0.5,
                                   .distil_weight = 0.7,
                                   .task_weight = 0.3,
                                   .k = k,
                                   .ids = s->ids,
                                   .logprob = s->logprob,
                                   .tail = s->tail};
    s->dense = s->teacher;
    s->dense.opt_dense = s->known;
}

static void lesson_reset(lesson *s)
{
    mb_free(s->known), mb_free(s->logprob), mb_free(s->tail), mb_free(s->ids);
}

typedef struct result {
    float *gradient, loss[256], distil[256];
    int32_t argmax[256];
    int64_t n; /* of the gradient */
} result;

/* A pass with its gradient: fused into the forward, or asked of the backward. */
static result lesson_run(mb_lm *lm, const lesson *s, const mb_teacher_rows *opt_teacher, bool is_fused)
{
    result r = {.n = mb_params_trained_count(mb_lm_params(lm))};
    mb_ops *ops = mb_lm_ops(lm);
    mb_buffer *room = cases_room(ops, r.n);
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    mb_lm_batch batch = s->b.batch;
    const mb_lm_want want = {.gradient = true, .argmax = true};
    const size_t n = (size_t)batch.head_rows * sizeof(float);
    cases_zero(ops, room->data, r.n);
    mb_params_bind_gradient(mb_lm_params(lm), room->data);
    batch.opt_teacher = opt_teacher;
    batch.opt_head_weight = is_fused ? s->weight : NULL;
    r.gradient = mb_calloc((size_t)r.n, sizeof *r.gradient);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &batch, &want, &out));
    memcpy(r.loss, out.token_loss, n), memcpy(r.argmax, out.argmax, n);
    if (opt_teacher != NULL)
        memcpy(r.distil, out.token_distil, n);
    else
        assert_null(out.token_distil);
    assert_status_ok(mb_lm_backward(pass, is_fused ? NULL : s->weight, NULL, NULL));
    assert_status_ok(mb_ops_download(ops, room->data, (size_t)r.n * sizeof(float), r.gradient));
    assert_status_ok(mb_ops_wait(ops));
    mb_lm_pass_destroy(&pass);
    mb_buffer_destroy(&room);
    return r;
}

static mb_lm *open_student(mb_ops *ops, const char *name)
{
    char *path = cases_path(name);
    mb_lm *lm = cases_open(ops, path, "all");
    mb_free(path);
    return lm;
}

/* A pass without a gradient (validation) has the same losses, every time. */
static void check_alone(mb_lm *lm, const lesson *s, const result *r)
{
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    mb_lm_batch batch = s->b.batch;
    const mb_lm_want want = {0};
    const size_t bytes = (size_t)batch.head_rows * sizeof(float);
    batch.opt_teacher = &s->teacher;
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    for (int turn = 0; turn < 3; turn++) {
        assert_status_ok(mb_lm_forward(pass, &batch, &want, &out));
        assert_memory_equal(out.token_loss, r->loss, bytes);
        assert_memory_equal(out.token_distil, r->distil, bytes);
        assert_null(out.argmax);
    }
    mb_lm_pass_destroy(&pass);
}

/* Row losses as ops say, from the logits of a pass of its own. */
static void check_distances(mb_lm *lm, const lesson *s, const result *r)
{
    mb_ops *ref = cases_ops("ref");
    float *logits = cases_logits(lm, &s->b);
    const int64_t n = s->b.batch.head_rows;
    float far[256], loss[256];
    mb_tensor rows = mb_tensor_view2(MB_F32, logits, n, s->v), td = mb_tensor_view1(MB_F32, far, n);
    mb_tensor tl = mb_tensor_view1(MB_F32, loss, n);
    assert_status_ok(mb_ops_rows_loss(ref, &rows, s->b.targets, &s->teacher, &tl, &td, NULL, NULL));
    assert_true(cases_difference(r->distil, far, n) <= 1e-5);
    assert_true(cases_difference(r->loss, loss, n) <= 1e-5);
    mb_free(logits);
    mb_ops_destroy(&ref);
}

static void check_lesson(void **state, const char *name, mb_dtype dtype)
{
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    mb_lm *lm = open_student(ops, name);
    mb_lm_set_dtype(lm, dtype);
    lesson some = {0}, whole = {0};
    lesson_make(&some, mb_lm_arch(lm)->vocab, 11),
        lesson_make(&whole, mb_lm_arch(lm)->vocab, mb_lm_arch(lm)->vocab);
    result fused = lesson_run(lm, &some, &some.teacher, true),
           later = lesson_run(lm, &some, &some.teacher, false);
    check_distances(lm, &some, &fused);
    check_alone(lm, &some, &fused);
    const size_t bytes = (size_t)some.b.batch.head_rows * sizeof(float);
    assert_memory_equal(fused.loss, later.loss, bytes);
    assert_memory_equal(fused.distil, later.distil, bytes);
    assert_true(cases_difference(fused.gradient, later.gradient, fused.n) <= (dtype == MB_F32 ? 1e-6 : 1e-2));
    result all = lesson_run(lm, &whole, &whole.teacher, true),
           dense = lesson_run(lm, &whole, &whole.dense, true);
    assert_true(cases_difference(all.distil, dense.distil, some.b.batch.head_rows) <= 1e-6);
    assert_true(cases_difference(all.gradient, dense.gradient, all.n) <= (dtype == MB_F32 ? 1e-6 : 1e-2));
    /* all weight on the task: as without a teacher */
    some.teacher.distil_weight = 0, some.teacher.task_weight = 1;
    result task = lesson_run(lm, &some, &some.teacher, true), plain = lesson_run(lm, &some, NULL, true);
    assert_memory_equal(task.argmax, plain.argmax, bytes);
    assert_true(cases_difference(task.loss, plain.loss, some.b.batch.head_rows) <= 1e-6);
    assert_true(cases_difference(task.gradient, plain.gradient, task.n) <= (dtype == MB_F32 ? 1e-6 : 1e-2));
    result *all_of[] = {&fused, &later, &all, &dense, &task, &plain};
    for (int i = 0; i < 6; i++) mb_free(all_of[i]->gradient);
    lesson_reset(&some), lesson_reset(&whole);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

static void test_lessons(void **state)
{
    check_lesson(state, "llama_bias", MB_F32);
    check_lesson(state, "select_moe", MB_F32);
}
static void test_lessons_in_bf16(void **state)
{
    check_lesson(state, "llama_bias", MB_BF16);
}

static void test_refused_teachers(void **state)
{
    mb_ops *ops = cases_ops(*state);
    if (ops == NULL) skip();
    mb_lm *lm = open_student(ops, "llama_bias");
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    lesson s = {0};
    const mb_lm_want want = {.logits = true};
    lesson_make(&s, mb_lm_arch(lm)->vocab, 5);
    mb_lm_batch batch = s.b.batch;
    batch.opt_teacher = &s.teacher;
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    s.teacher.temperature = 0;
    assert_status_says(mb_lm_forward(pass, &batch, &want, &out), MB_ERANGE, "temperature is 0");
    s.teacher.temperature = 2, s.ids[6] = (int32_t)s.v;
    assert_status_says(mb_lm_forward(pass, &batch, &want, &out), MB_ERANGE, "row 1 lists token");
    s.ids[6] = 0, s.teacher.k = s.v + 1;
    assert_status_says(mb_lm_forward(pass, &batch, &want, &out), MB_ERANGE, "tokens a row");
    s.teacher.k = 5, batch.targets = NULL;
    assert_status_says(mb_lm_forward(pass, &batch, &want, &out), MB_EUSAGE, "needs targets");
    mb_lm_pass_destroy(&pass);
    lesson_reset(&s);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

#define BACKEND_TEST(test)                                                                                   \
    {#test " ref", test, NULL, NULL, "ref"}, {#test " cpu", test, NULL, NULL, "cpu"},                        \
    {                                                                                                        \
#test " cuda", test, NULL, NULL, "cuda"                                                              \
    }

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        BACKEND_TEST(test_values_of_pytorch), BACKEND_TEST(test_values_of_pytorch_in_bf16),
        BACKEND_TEST(test_one_matrix),        BACKEND_TEST(test_one_matrix_in_bf16),
        BACKEND_TEST(test_several_matrices),  BACKEND_TEST(test_lessons),
        BACKEND_TEST(test_lessons_in_bf16),   BACKEND_TEST(test_refused_teachers),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
