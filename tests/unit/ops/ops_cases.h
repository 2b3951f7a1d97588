/* ops_cases: the ops on activations in one table, with their arguments, for test_ops_act and
 * test_ops_speed_elem.
 */
#ifndef MB_TEST_OPS_CASES_H
#define MB_TEST_OPS_CASES_H

#include "ops_fixture.h"

enum { MOST = 6, PICKS = 2, EXPERTS = 3, COLUMNS = 4, TABLE = 11, SPARE = 5 }; /* one column is trash */

/* What the ops need beside tensors, of one size: t rows of d elements, p rows sent. */
typedef struct scene {
    mb_ops *ops;
    int64_t t, d;
    mb_dispatch dispatch;
    int32_t *positions, *tokens, *places;
    int64_t *rows;
} scene;

typedef enum {
    NONE,
    ROWS,
    SENT,
    WIDTH,
    TOKENS,
    CHOICES,
    ENTRIES,
    ANGLES,
    PLACES
} shape; /* -, [t,d] [p,d] [d] [t] [t,K] [TABLE,d] twice [t+SPARE,d] */

typedef enum { READ, WRITTEN, CHANGED } use;

/* group: 0 is f32 always; arguments of one letter share their dtype. */
typedef struct argument {
    shape shape;
    char group;
    use use;
} argument;

typedef struct op_case {
    const char *name;
    argument arguments[MOST];
    mb_status (*run)(const scene *s, mb_tensor *a);
} op_case;

static inline mb_status run_rms_norm(const scene *s, mb_tensor *a)
{
    return mb_ops_rms_norm(s->ops, &a[0], &a[1], 1e-5f, &a[2], &a[3]);
}
static inline mb_status run_rms_norm_backward(const scene *s, mb_tensor *a)
{
    return mb_ops_rms_norm_backward(s->ops, &a[0], &a[1], &a[2], &a[3], true, &a[4], &a[5]);
}
static inline mb_status run_rms_norm_backward_alone(const scene *s, mb_tensor *a)
{
    return mb_ops_rms_norm_backward(s->ops, &a[0], &a[1], &a[2], &a[3], false, &a[4], NULL);
}
static inline mb_status run_layer_norm(const scene *s, mb_tensor *a)
{
    return mb_ops_layer_norm(s->ops, &a[0], &a[1], &a[2], 1e-5f, &a[3]);
}
static inline mb_status run_gelu(const scene *s, mb_tensor *a)
{
    return mb_ops_gelu(s->ops, false, &a[0]);
}
static inline mb_status run_gelu_tanh(const scene *s, mb_tensor *a)
{
    return mb_ops_gelu(s->ops, true, &a[0]);
}
static inline mb_status run_multiply(const scene *s, mb_tensor *a)
{
    return mb_ops_multiply(s->ops, &a[0], &a[1]);
}
static inline mb_status run_cast(const scene *s, mb_tensor *a)
{
    return mb_ops_cast(s->ops, &a[0], &a[1]);
}
static inline mb_status run_swiglu(const scene *s, mb_tensor *a)
{
    return mb_ops_swiglu(s->ops, &a[0], &a[1], &a[2]);
}
static inline mb_status run_swiglu_backward(const scene *s, mb_tensor *a)
{
    return mb_ops_swiglu_backward(s->ops, &a[0], &a[1], &a[2], &a[3], &a[4]);
}
static inline mb_status run_rope(const scene *s, mb_tensor *a)
{
    mb_tensor heads = mb_tensor_view3(a[0].dtype, a[0].data, s->t, 1, s->d);
    return mb_ops_rope(s->ops, &heads, s->positions, &a[1], true);
}
static inline mb_status run_axpy(const scene *s, mb_tensor *a)
{
    return mb_ops_axpy(s->ops, -0.7f, &a[0], &a[1]);
}
static inline mb_status run_scale(const scene *s, mb_tensor *a)
{
    return mb_ops_scale(s->ops, 1.3f, &a[0]);
}
static inline mb_status run_clamp(const scene *s, mb_tensor *a)
{
    return mb_ops_clamp(s->ops, 0.8f, &a[0]);
}
static inline mb_status run_clamp_backward(const scene *s, mb_tensor *a)
{
    return mb_ops_clamp_backward(s->ops, 0.75f, &a[0], &a[1]);
}
static inline mb_status run_dropout(const scene *s, mb_tensor *a)
{
    return mb_ops_dropout(s->ops, &a[0], 0.3f, 11, 5, s->rows, &a[1]);
}
static inline mb_status run_embedding(const scene *s, mb_tensor *a)
{
    return mb_ops_embedding(s->ops, s->tokens, &a[0], &a[1]);
}
static inline mb_status run_embedding_backward(const scene *s, mb_tensor *a)
{
    return mb_ops_embedding_backward(s->ops, s->tokens, &a[0], &a[1]);
}
static inline mb_status run_scatter_rows(const scene *s, mb_tensor *a)
{
    return mb_ops_scatter_rows(s->ops, &a[0], s->places, &a[1]);
}
static inline mb_status run_shift_columns(const scene *s, mb_tensor *a)
{
    return mb_ops_shift_columns(s->ops, s->d / 3, -2.5f, &a[0]);
}
static inline mb_status run_gather(const scene *s, mb_tensor *a)
{
    return mb_ops_gather(s->ops, &a[0], &s->dispatch, &a[1]);
}
static inline mb_status run_gather_backward(const scene *s, mb_tensor *a)
{
    return mb_ops_gather_backward(s->ops, &a[0], &s->dispatch, PICKS, &a[1]);
}
static inline mb_status run_combine(const scene *s, mb_tensor *a)
{
    return mb_ops_combine(s->ops, &a[0], &s->dispatch, &a[1], &a[2]);
}
static inline mb_status run_combine_backward(const scene *s, mb_tensor *a)
{
    return mb_ops_combine_backward(s->ops, &a[0], &a[1], &s->dispatch, &a[2], &a[3], &a[4]);
}

static const op_case cases[] = {
    {"rms_norm", {{ROWS, 'x'}, {WIDTH}, {ROWS, 'y', WRITTEN}, {TOKENS, 0, WRITTEN}}, run_rms_norm},
    {"rms_norm_backward",
     {{ROWS, 'y'}, {ROWS, 'x'}, {WIDTH}, {TOKENS}, {ROWS, 'd', CHANGED}, {WIDTH, 0, CHANGED}},
     run_rms_norm_backward},
    {"rms_norm_backward alone",
     {{ROWS, 'y'}, {ROWS, 'x'}, {WIDTH}, {TOKENS}, {ROWS, 'd', WRITTEN}},
     run_rms_norm_backward_alone},
    {"layer_norm", {{ROWS, 'x'}, {WIDTH}, {WIDTH}, {ROWS, 'y', WRITTEN}}, run_layer_norm},
    {"gelu", {{ROWS, 'y', CHANGED}}, run_gelu},
    {"gelu by tanh", {{ROWS, 'y', CHANGED}}, run_gelu_tanh},
    {"multiply", {{ROWS, 'x'}, {ROWS, 'y', CHANGED}}, run_multiply},
    {"cast", {{ROWS, 'x'}, {ROWS, 'y', WRITTEN}}, run_cast},
    {"swiglu", {{ROWS, 'a'}, {ROWS, 'a'}, {ROWS, 'a', WRITTEN}}, run_swiglu},
    {"swiglu_backward",
     {{ROWS, 'a'}, {ROWS, 'a'}, {ROWS, 'a'}, {ROWS, 'a', WRITTEN}, {ROWS, 'a', WRITTEN}},
     run_swiglu_backward},
    {"rope", {{ROWS, 'x', CHANGED}, {ANGLES}}, run_rope},
    {"axpy", {{ROWS, 'x'}, {ROWS, 'y', CHANGED}}, run_axpy},
    {"scale", {{ROWS, 'y', CHANGED}}, run_scale},
    {"clamp", {{ROWS, 'y', CHANGED}}, run_clamp},
    {"clamp_backward", {{ROWS, 'a'}, {ROWS, 'a', CHANGED}}, run_clamp_backward},
    {"dropout", {{ROWS, 'a'}, {ROWS, 'a', WRITTEN}}, run_dropout},
    {"embedding", {{ENTRIES, 't'}, {ROWS, 'y', WRITTEN}}, run_embedding},
    {"embedding_backward", {{ROWS, 'y'}, {ENTRIES, 0, CHANGED}}, run_embedding_backward},
    {"scatter_rows", {{ROWS, 'a'}, {PLACES, 'a', CHANGED}}, run_scatter_rows},
    {"shift_columns", {{ROWS, 0, CHANGED}}, run_shift_columns},
    {"gather", {{ROWS, 'x'}, {SENT, 'y', WRITTEN}}, run_gather},
    {"gather_backward", {{SENT, 'y'}, {ROWS, 0, CHANGED}}, run_gather_backward},
    {"combine", {{SENT, 'x'}, {CHOICES}, {ROWS, 0, CHANGED}}, run_combine},
    {"combine_backward",
     {{ROWS}, {SENT, 'x'}, {CHOICES}, {SENT, 'x', WRITTEN}, {CHOICES, 0, WRITTEN}},
     run_combine_backward},
};
enum { CASES = sizeof cases / sizeof cases[0] };

static inline scene scene_create(mb_ops *ops, int64_t t, int64_t d)
{
    scene s = {.ops = ops, .t = t, .d = d};
    int32_t *ids = mb_calloc((size_t)(t * PICKS) + 1, sizeof *ids);
    s.dispatch.row_token = mb_calloc((size_t)(t * PICKS) + 1, sizeof(int32_t));
    s.dispatch.slot_row = mb_calloc((size_t)(t * PICKS) + 1, sizeof(int32_t));
    s.dispatch.offsets = mb_calloc(EXPERTS + 1, sizeof(int32_t));
    s.positions = mb_calloc((size_t)t + 1, sizeof *s.positions);
    s.tokens = mb_calloc((size_t)t + 1, sizeof *s.tokens);
    s.places = mb_calloc((size_t)t + 1, sizeof *s.places);
    s.rows = mb_calloc((size_t)t + 1, sizeof *s.rows);
    for (int64_t i = 0; i < t * PICKS; i++) ids[i] = (int32_t)fixture_below(4, (uint64_t)i, COLUMNS);
    for (int64_t i = 0; i < t; i++) {
        s.positions[i] = (int32_t)fixture_below(5, (uint64_t)i, TABLE);
        s.tokens[i] = (int32_t)fixture_below(6, (uint64_t)i, TABLE);
        s.places[i] = (int32_t)(i % 2 == 0 ? i / 2 : t + SPARE - 1 - i / 2); /* from both ends */
        s.rows[i] = ((int64_t)1 << 33) - 5 * i; /* element numbers beyond 32 bits */
    }
    fixture_ok(mb_ops_dispatch(ops, ids, t, PICKS, EXPERTS, &s.dispatch));
    mb_free(ids);
    return s;
}

static inline void scene_destroy(scene *s)
{
    mb_free(s->dispatch.row_token), mb_free(s->dispatch.slot_row), mb_free(s->dispatch.offsets);
    mb_free(s->positions), mb_free(s->tokens), mb_free(s->places), mb_free(s->rows);
}

static inline int count_of(const op_case *c)
{
    int n = 0;
    while (n < MOST && c->arguments[n].shape != NONE) n++;
    return n;
}

/* Argument i of an op: numbers that bf16 has exactly, in the dtype asked for. */
static inline mb_tensor tensor_of(const scene *s, const argument *a, int i, mb_dtype dtype)
{
    const int64_t rows[] = {
        [ROWS] = s->t,    [SENT] = s->dispatch.rows, [WIDTH] = s->d,   [TOKENS] = s->t,
        [CHOICES] = s->t, [ENTRIES] = TABLE,         [ANGLES] = TABLE, [PLACES] = s->t + SPARE};
    const int64_t widths[] = {[ROWS] = s->d,     [SENT] = s->d,    [WIDTH] = 1,     [TOKENS] = 1,
                              [CHOICES] = PICKS, [ENTRIES] = s->d, [ANGLES] = s->d, [PLACES] = s->d};
    int64_t n = rows[a->shape] * widths[a->shape];
    float *x = fixture_random(n, (uint32_t)(20 + i), 1.5);
    uint16_t *halves = mb_calloc((size_t)n + 1, sizeof *halves);
    for (int64_t j = 0; j < n; j++) {
        halves[j] = mb_dtype_bf16_from_f32(x[j]);
        x[j] = mb_dtype_f32_from_bf16(halves[j]);
    }
    void *data = dtype == MB_F32 ? (void *)x : halves;
    mb_free(dtype == MB_F32 ? (void *)halves : x);
    if (a->shape == WIDTH || a->shape == TOKENS) return mb_tensor_view1(dtype, data, n);
    return mb_tensor_view2(dtype, data, rows[a->shape], widths[a->shape]);
}

/* Bit g of mix: the g-th group of the op is bf16. Returns how many groups there are. */
static inline int make_arguments(const scene *s, const op_case *c, unsigned mix, mb_tensor *out)
{
    char groups[MOST];
    int count = 0;
    for (int i = 0; i < count_of(c); i++) {
        const argument *a = &c->arguments[i];
        int g = 0;
        while (g < count && groups[g] != a->group) g++;
        if (g == count && a->group != 0) groups[count++] = a->group;
        out[i] = tensor_of(s, a, i, a->group != 0 && (mix >> g & 1u) != 0 ? MB_BF16 : MB_F32);
    }
    return count;
}

static inline void free_arguments(const op_case *c, mb_tensor *a)
{
    for (int i = 0; i < count_of(c); i++) mb_free(a[i].data);
}

#endif
