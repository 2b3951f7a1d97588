/* test_ops_attention: attention against f64, gradients against finite differences, masks, and bits of a
 * segment's rows.
 *
 * 1. naive attention
 * 2. values
 * 3. gradients
 * 4. bits
 */
#include "ops_fixture.h"

enum { SEGMENTS_MOST = 8 };

typedef struct attention_case {
    int64_t segments, heads, kv_heads, width, window;
    int32_t sizes[SEGMENTS_MOST];
} attention_case;

static mb_attention_shape shape_of(const attention_case *c, int32_t *offsets)
{
    offsets[0] = 0;
    for (int64_t s = 0; s < c->segments; s++) offsets[s + 1] = offsets[s] + c->sizes[s];
    return (mb_attention_shape){.segments = c->segments,
                                .offsets = offsets,
                                .heads = c->heads,
                                .kv_heads = c->kv_heads,
                                .head_width = c->width,
                                .scale = (float)(1 / sqrt((double)c->width)),
                                .window = c->window};
}

/* ---- 1. naive attention ---- */

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* x = q, then k, then v; out = o, then lse. */
static void naive(const void *context, const double *x, double *out)
{
    const mb_attention_shape *s = context;
    int64_t t_all = s->offsets[s->segments], dh = s->head_width, hs = s->heads, gs = s->kv_heads;
    const double *q = x, *k = q + t_all * hs * dh, *v = k + t_all * gs * dh;
    double *lse = out + t_all * hs * dh;
    memset(out, 0, (size_t)(t_all * hs * (dh + 1)) * sizeof *out);
    for (int64_t seg = 0; seg < s->segments; seg++) {
        for (int64_t t = s->offsets[seg]; t < s->offsets[seg + 1]; t++) {
            for (int64_t h = 0; h < hs; h++) {
                int64_t g = h * gs / hs;
                double sum = 0, *o = out + (t * hs + h) * dh;
                for (int64_t j = s->offsets[seg]; j <= t; j++) {
                    if (s->window > 0 && t - j >= s->window) continue;
                    double p = exp(dot(q + (t * hs + h) * dh, k + (j * gs + g) * dh, dh) * s->scale);
                    for (int64_t i = 0; i < dh; i++) o[i] += p * v[(j * gs + g) * dh + i];
                    sum += p;
                }
                for (int64_t i = 0; i < dh; i++) o[i] /= sum;
                lse[t * hs + h] = log(sum);
            }
        }
    }
}

/* ---- 2. values ---- */

typedef struct arrays {
    int64_t rows, wide, narrow;              /* floats of q and of k */
    float *x, *o, *lse, *d_o, *dq, *dk, *dv; /* x = q, k, v one after the other */
    mb_tensor q, k, v, to, tlse, td_o, tdq, tdk, tdv;
} arrays;

static arrays arrays_create(const mb_attention_shape *s)
{
    int64_t t = s->offsets[s->segments], dh = s->head_width;
    arrays a = {.rows = t, .wide = t * s->heads * dh, .narrow = t * s->kv_heads * dh};
    a.x = fixture_random(a.wide + 2 * a.narrow, 1, 1);
    a.o = fixture_random(a.wide, 2, 1), a.lse = fixture_random(t * s->heads, 3, 1);
    a.d_o = fixture_random(a.wide, 4, 1), a.dq = fixture_random(a.wide, 5, 1);
    a.dk = fixture_random(a.narrow, 6, 1), a.dv = fixture_random(a.narrow, 7, 1);
    a.q = mb_tensor_view3(MB_F32, a.x, t, s->heads, dh);
    a.k = mb_tensor_view3(MB_F32, a.x + a.wide, t, s->kv_heads, dh);
    a.v = mb_tensor_view3(MB_F32, a.x + a.wide + a.narrow, t, s->kv_heads, dh);
    a.to = mb_tensor_view3(MB_F32, a.o, t, s->heads, dh),
    a.tlse = mb_tensor_view2(MB_F32, a.lse, t, s->heads);
    a.td_o = mb_tensor_view3(MB_F32, a.d_o, t, s->heads, dh);
    a.tdq = mb_tensor_view3(MB_F32, a.dq, t, s->heads, dh);
    a.tdk = mb_tensor_view3(MB_F32, a.dk, t, s->kv_heads, dh);
    a.tdv = mb_tensor_view3(MB_F32, a.dv, t, s->kv_heads, dh);
    return a;
}

static void arrays_destroy(arrays *a)
{
    float *blocks[] = {a->x, a->o, a->lse, a->d_o, a->dq, a->dk, a->dv};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) mb_free(blocks[i]);
}

static void run_both(mb_ops *ops, const mb_attention_shape *s, arrays *a, fixture_tape *tape)
{
    fixture_ok(mb_ops_attention(ops, s, &a->q, &a->k, &a->v, &a->to, &a->tlse));
    fixture_ok(mb_ops_attention_backward(ops, s, &a->q, &a->k, &a->v, &a->to, &a->tlse, &a->td_o, &a->tdq,
                                         &a->tdk, &a->tdv));
    fixture_record(tape, a->o, a->wide);
    fixture_record(tape, a->lse, a->rows * s->heads);
    fixture_record(tape, a->dq, a->wide);
    fixture_record(tape, a->dk, a->narrow);
    fixture_record(tape, a->dv, a->narrow);
}

static void check_values(mb_ops *ops, const attention_case *c, fixture_tape *tape)
{
    int32_t offsets[SEGMENTS_MOST + 1];
    mb_attention_shape s = shape_of(c, offsets);
    arrays a = arrays_create(&s);
    int64_t inputs = a.wide + 2 * a.narrow;
    double *x = fixture_f64(inputs), *want = fixture_f64(a.wide + a.rows * s.heads);
    for (int64_t i = 0; i < inputs; i++) x[i] = a.x[i];
    naive(&s, x, want);
    run_both(ops, &s, &a, tape);
    fixture_near("o", a.o, want, a.wide, 1e-5);
    fixture_near("lse", a.lse, want + a.wide, a.rows * s.heads, 1e-5);
    mb_free(x), mb_free(want);
    arrays_destroy(&a);
}

static void values(mb_ops *ops, fixture_tape *tape)
{
    const attention_case cases[] = {
        {.segments = 0, .heads = 2, .kv_heads = 1, .width = 8},
        {.segments = 3, .heads = 2, .kv_heads = 2, .width = 32, .sizes = {1, 128, 1}},
        {.segments = 4, .heads = 4, .kv_heads = 2, .width = 16, .sizes = {0, 50, 1, 25}},
        {.segments = 1, .heads = 1, .kv_heads = 1, .width = 64, .sizes = {600}},
        {.segments = 1, .heads = 2, .kv_heads = 1, .width = 20, .sizes = {530}, .window = 37},
        {.segments = 2, .heads = 2, .kv_heads = 1, .width = 80, .sizes = {300, 7}, .window = 1},
        {.segments = 2, .heads = 3, .kv_heads = 1, .width = 128, .sizes = {70, 257}, .window = 256},
        {.segments = 1, .heads = 2, .kv_heads = 2, .width = 4, .sizes = {40}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_values(ops, &cases[i], tape);
}

static void test_values(void **state)
{
    (void)state;
    fixture_each(values);
}

/* ---- 3. gradients ---- */

static void check_gradients(mb_ops *ops, const attention_case *c, fixture_tape *tape)
{
    int32_t offsets[SEGMENTS_MOST + 1];
    mb_attention_shape s = shape_of(c, offsets);
    arrays a = arrays_create(&s);
    int64_t inputs = a.wide + 2 * a.narrow, outputs = a.wide + a.rows * s.heads;
    double *want = fixture_f64(inputs);
    float *dy = fixture_random(outputs, 9, 0);
    memcpy(dy, a.d_o, (size_t)a.wide * sizeof *dy); /* no gradient comes through lse */
    fixture_gradient(naive, &s, a.x, inputs, dy, outputs, want);
    run_both(ops, &s, &a, tape);
    fixture_near("dq", a.dq, want, a.wide, 2e-5);
    fixture_near("dk", a.dk, want + a.wide, a.narrow, 2e-5);
    fixture_near("dv", a.dv, want + a.wide + a.narrow, a.narrow, 2e-5);
    mb_free(want), mb_free(dy);
    arrays_destroy(&a);
}

static void gradients(mb_ops *ops, fixture_tape *tape)
{
    const attention_case cases[] = {
        {.segments = 3, .heads = 2, .kv_heads = 1, .width = 6, .sizes = {1, 13, 4}},
        {.segments = 2, .heads = 1, .kv_heads = 1, .width = 4, .sizes = {40, 0}},
        {.segments = 1, .heads = 2, .kv_heads = 2, .width = 5, .sizes = {27}, .window = 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_gradients(ops, &cases[i], tape);
}

static void test_gradients(void **state)
{
    (void)state;
    fixture_each(gradients);
}

/* Longer segments than finite differences can do: every backend against the first (ref). */
static void test_long_gradients(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {.segments = 2, .heads = 4, .kv_heads = 2, .width = 32, .sizes = {300, 129}},
        {.segments = 1, .heads = 2, .kv_heads = 1, .width = 40, .sizes = {580}, .window = 100},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture_tape reference = {0};
        for (int c = 0; c < FIXTURE_CONFIGS; c++) {
            int32_t offsets[SEGMENTS_MOST + 1];
            mb_attention_shape s = shape_of(&cases[i], offsets);
            fixture_tape tape = {0};
            mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
            if (ops == NULL) continue;
            arrays a = arrays_create(&s);
            run_both(ops, &s, &a, c == 0 ? &reference : &tape);
            if (c > 0) {
                double *want = fixture_f64(reference.n);
                for (int64_t j = 0; j < reference.n; j++) want[j] = reference.data[j];
                int64_t at = a.wide + a.rows * s.heads;
                fixture_near("dq", tape.data + at, want + at, a.wide, 1e-5);
                at += a.wide;
                fixture_near("dk", tape.data + at, want + at, a.narrow, 1e-5);
                at += a.narrow;
                fixture_near("dv", tape.data + at, want + at, a.narrow, 1e-5);
                mb_free(want);
            }
            mb_free(tape.data);
            arrays_destroy(&a);
            mb_ops_destroy(&ops);
        }
        mb_free(reference.data);
    }
}

/* ---- 4. bits ---- */

/* A segment alone has the bits it has among others, and its first rows do not see the later ones. */
static void test_segment_bits(void **state)
{
    (void)state;
    const attention_case both = {
        .segments = 3, .heads = 2, .kv_heads = 1, .width = 32, .sizes = {17, 300, 5}};
    const attention_case alone = {.segments = 1, .heads = 2, .kv_heads = 1, .width = 32, .sizes = {300}};
    const attention_case prefix = {.segments = 1, .heads = 2, .kv_heads = 1, .width = 32, .sizes = {211}};
    const attention_case *parts[] = {&alone, &prefix};
    for (int c = 0; c < FIXTURE_CONFIGS; c++) {
        int32_t offsets[SEGMENTS_MOST + 1], own[SEGMENTS_MOST + 1];
        mb_attention_shape s = shape_of(&both, offsets);
        mb_ops *ops = fixture_ops(&fixture_configs[c], 2);
        if (ops == NULL) continue;
        arrays a = arrays_create(&s);
        fixture_ok(mb_ops_attention(ops, &s, &a.q, &a.k, &a.v, &a.to, &a.tlse));
        for (int i = 0; i < 2; i++) {
            mb_attention_shape part = shape_of(parts[i], own);
            arrays b = arrays_create(&part);
            b.q.data = a.x + 17 * 64, b.k.data = a.x + a.wide + 17 * 32;
            b.v.data = a.x + a.wide + a.narrow + 17 * 32;
            fixture_ok(mb_ops_attention(ops, &part, &b.q, &b.k, &b.v, &b.to, &b.tlse));
            fixture_same(i == 0 ? "segment alone" : "first rows of a segment", b.o, a.o + 17 * 64, b.wide);
            fixture_same("lse", b.lse, a.lse + 17 * 2, b.rows * 2);
            arrays_destroy(&b);
        }
        arrays_destroy(&a);
        mb_ops_destroy(&ops);
    }
}

static void test_refused(void **state)
{
    (void)state;
    attention_case c = {.segments = 1, .heads = 3, .kv_heads = 2, .width = 4, .sizes = {5}};
    int32_t offsets[SEGMENTS_MOST + 1];
    mb_ops *ops = fixture_ops(&fixture_configs[0], 1);
    mb_attention_shape s = shape_of(&c, offsets);
    arrays a = arrays_create(&s);
    assert_int_equal(mb_ops_attention(ops, &s, &a.q, &a.k, &a.v, &a.to, &a.tlse), MB_ESHAPE);
    s.heads = s.kv_heads = 3;
    assert_int_equal(mb_ops_attention(ops, &s, &a.q, &a.k, &a.v, &a.to, &a.tlse), MB_ESHAPE);
    arrays_destroy(&a);
    s.kv_heads = 1;
    a = arrays_create(&s);
    fixture_ok(mb_ops_attention(ops, &s, &a.q, &a.k, &a.v, &a.to, &a.tlse));
    offsets[1] = 4;
    assert_int_equal(mb_ops_attention(ops, &s, &a.q, &a.k, &a.v, &a.to, &a.tlse), MB_ERANGE);
    arrays_destroy(&a);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),         cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_long_gradients), cmocka_unit_test(test_segment_bits),
        cmocka_unit_test(test_refused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
