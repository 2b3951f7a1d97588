/* test_ops_rows: rows put at places, rows to experts in odd shapes, routers at their edges, and what a kernel
 * that moves 16 bytes at a time must take: views that begin anywhere, rows of any width.
 *
 * 1. rows put at places, columns shifted
 * 2. dispatch
 * 3. the router's edges
 * 4. gradients of many tokens
 * 5. views that begin anywhere
 */
#include "ops_cases.h"

static void free_all(void **blocks, size_t n)
{
    for (size_t i = 0; i < n; i++) mb_free(blocks[i]);
}

/* ---- 1. rows put at places, columns shifted ---- */

static void check_scatter(mb_ops *ops, int64_t n, int64_t d, mb_dtype dtype)
{
    const size_t row = (size_t)d * mb_dtype_bytes(dtype);
    const int64_t most = 2 * n + 3;
    char *x = (char *)fixture_random(n * d, 1, 1), *y = (char *)fixture_random(most * d, 2, 1);
    char *want = (char *)fixture_copy((float *)y, most * d);
    int32_t *places = mb_calloc((size_t)n + 1, sizeof *places);
    for (int64_t t = 0; t < n; t++) {
        places[t] = (int32_t)(t % 2 == 0 ? most - 1 - t : t);
        memcpy(want + (size_t)places[t] * row, x + (size_t)t * row, row);
    }
    mb_tensor tx = mb_tensor_view2(dtype, x, n, d), ty = mb_tensor_view2(dtype, y, most, d);
    fixture_ok(mb_ops_scatter_rows(ops, &tx, places, &ty));
    assert_memory_equal(y, want, (size_t)(most * d) * sizeof(float));
    if (n > 0) {
        places[n - 1] = (int32_t)most;
        assert_int_equal(mb_ops_scatter_rows(ops, &tx, places, &ty), MB_ERANGE);
    }
    free_all((void *[]){x, y, want, places}, 4);
}

static void check_shift(mb_ops *ops, int64_t rows, int64_t columns, int64_t first)
{
    const int64_t n = rows * columns;
    float *y = fixture_random(n, 1, 1), *want = fixture_copy(y, n);
    for (int64_t i = 0; i < n; i++) want[i] += i % columns >= first ? -7.25f : 0.0f;
    mb_tensor ty = fixture_matrix(y, rows, columns);
    fixture_ok(mb_ops_shift_columns(ops, first, -7.25f, &ty));
    fixture_same("shift_columns", y, want, n);
    mb_free(y), mb_free(want);
}

static void places(mb_ops *ops, fixture_tape *tape)
{
    (void)tape;
    for (int d = 0; d < 2; d++) {
        check_scatter(ops, 0, 8, d == 0 ? MB_F32 : MB_BF16);
        check_scatter(ops, 1, 1, d == 0 ? MB_F32 : MB_BF16);
        check_scatter(ops, 9, 37, d == 0 ? MB_F32 : MB_BF16);
        check_scatter(ops, 150, 64, d == 0 ? MB_F32 : MB_BF16);
    }
    check_shift(ops, 0, 5, 2);
    check_shift(ops, 7, 5, 0);
    check_shift(ops, 33, 10, 9);
    check_shift(ops, 3, 6, 6);
}

static void test_places(void **state)
{
    (void)state, fixture_each(places);
}

/* ---- 2. dispatch ---- */

typedef enum {
    SPREAD,
    ONE,
    TRASH,
    ENDS
} spread; /* ids: any; all of one expert; all trash; first and last expert */

static int32_t id_of(spread kind, int64_t i, int64_t experts)
{
    static const int32_t beyond[] = {0, 1, 40000, INT32_MAX - 1};
    const int64_t any = fixture_below(7, (uint64_t)i, experts + experts / 4 + 1);
    if (kind == ONE && experts > 0) return (int32_t)(experts / 2);
    if (kind == ENDS && experts > 0) return (int32_t)(i % 3 == 1 ? experts - 1 : 0);
    if (kind == SPREAD && any < experts) return (int32_t)any;
    const int64_t trash = beyond[i % 4] + experts;
    return (int32_t)(trash < INT32_MAX ? trash : INT32_MAX - 1);
}

/* Stable counting sort, by walking all picks once per expert. */
static void check_sorted(const int32_t *ids, int64_t n, int64_t picks, int64_t experts, const mb_dispatch *d)
{
    int64_t row = 0;
    for (int64_t e = 0; e < experts; e++) {
        assert_int_equal(d->offsets[e], row);
        for (int64_t i = 0; i < n; i++) {
            if (ids[i] != e) continue;
            assert_int_equal(d->slot_row[i], row);
            assert_int_equal(d->row_token[row], i / picks);
            row++;
        }
    }
    assert_int_equal(d->offsets[experts], row);
    assert_int_equal(d->rows, row);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] >= experts) assert_int_equal(d->slot_row[i], -1);
}

static void check_dispatch(mb_ops *ops, int64_t tokens, int64_t picks, int64_t experts, spread kind)
{
    const int64_t n = tokens * picks;
    int32_t *ids = mb_calloc((size_t)n + 1, sizeof *ids),
            *offsets = mb_calloc((size_t)experts + 2, sizeof *offsets);
    int32_t *row_token = mb_calloc((size_t)n + 1, sizeof *row_token),
            *slot_row = mb_calloc((size_t)n + 1, sizeof *ids);
    int64_t *row_index = mb_calloc((size_t)tokens + 1, sizeof *row_index),
            *rows = mb_calloc((size_t)n + 1, sizeof *rows);
    mb_dispatch d = {.row_token = row_token, .slot_row = slot_row, .offsets = offsets};
    for (int64_t i = 0; i < n; i++) ids[i] = id_of(kind, i, experts);
    for (int64_t i = 0; i < tokens; i++) row_index[i] = ((int64_t)1 << 35) - 3 * i;
    row_token[n] = slot_row[n] = offsets[experts + 1] = -77, rows[n] = -77; /* fences */
    for (int again = 0; again < 2; again++) fixture_ok(mb_ops_dispatch(ops, ids, tokens, picks, experts, &d));
    check_sorted(ids, n, picks, experts, &d);
    fixture_ok(mb_ops_expand_rows(ops, &d, row_index, tokens, picks, rows));
    for (int64_t i = 0; i < n; i++)
        if (slot_row[i] >= 0) assert_true(rows[slot_row[i]] == row_index[i / picks] * picks + i % picks);
    assert_true(row_token[n] == -77 && slot_row[n] == -77 && offsets[experts + 1] == -77 && rows[n] == -77);
    free_all((void *[]){ids, offsets, row_token, slot_row, row_index, rows}, 6);
}

static void dispatches(mb_ops *ops, fixture_tape *tape)
{
    static const int64_t shapes[][3] = {{0, 2, 4},    {1, 1, 1},     {1, 8, 8},   {5, 3, 0},
                                        {31, 1, 3},   {33, 2, 33},   {341, 3, 7}, {512, 2, 5},
                                        {205, 5, 12}, {1025, 1, 31}, {700, 3, 65}};
    (void)tape;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (spread kind = SPREAD; kind <= ENDS; kind++)
            check_dispatch(ops, shapes[i][0], shapes[i][1], shapes[i][2], kind);
    check_dispatch(ops, 100, 4, 1030, SPREAD);
    check_dispatch(ops, 400, 4, 1030, SPREAD);
}

static void test_dispatch(void **state)
{
    (void)state, fixture_each(dispatches);
}

/* ---- 3. the router's edges ---- */

/* Different ids in range, whatever the numbers; for a row without NaN the largest, in order. */
static void check_ids(const int32_t *ids, const float *scores, int64_t columns, int64_t picks)
{
    char *is_taken = mb_calloc((size_t)columns + 1, 1);
    for (int64_t k = 0; k < picks; k++) {
        assert_in_range(ids[k], 0, columns - 1);
        assert_false(is_taken[ids[k]]);
        is_taken[ids[k]] = 1;
        if (isnan(scores[0])) assert_int_equal(ids[k], k);
        for (int64_t e = 0; e < columns && !isnan(scores[0]); e++)
            assert_true(is_taken[e] || scores[e] < scores[ids[k]] ||
                        (scores[e] == scores[ids[k]] && e > ids[k]));
    }
    mb_free(is_taken);
}

/* Rows of numbers have gradients of numbers, however small what was picked. */
static void check_edges_back(mb_ops *ops, const mb_tensor *probs, const int32_t *ids,
                             const mb_tensor *weights)
{
    const int64_t rows = probs->shape[0], columns = probs->shape[1], picks = weights->shape[1];
    float *dweights = fixture_random(rows * picks, 6, 1), *dlogits = fixture_random(rows * columns, 7, 1);
    mb_tensor tdw = fixture_matrix(dweights, rows, picks), tdl = fixture_matrix(dlogits, rows, columns);
    fixture_ok(mb_ops_route_backward(ops, probs, ids, weights, true, &tdw, &tdl));
    for (int64_t i = 0; i < rows * columns; i++)
        assert_true(isnan(mb_tensor_f32(probs)[i]) || isfinite(dlogits[i]));
    free_all((void *[]){dweights, dlogits}, 2);
}

static void check_edges(mb_ops *ops, int64_t columns, int64_t picks, float scale)
{
    enum { T = 7 };
    float *logits = fixture_random(T * columns, 1, 3), *probs = fixture_random(T * columns, 2, 1);
    float *weights = fixture_random(T * picks + 1, 3, 1), *copy = fixture_copy(logits, T * columns);
    float *bias = fixture_random(columns, 4, scale), *scores = fixture_random(columns, 5, 0);
    int32_t *ids = mb_calloc((size_t)(T * picks) + 1, sizeof *ids);
    for (int64_t e = 0; e < columns; e++) {
        logits[e] = NAN;
        logits[2 * columns + e] = 5; /* all alike */
        logits[4 * columns + e] = e % 2 == 0 ? -INFINITY : 1;
        logits[5 * columns + e] = -2e30f * (float)(e % 3);
    }
    logits[columns + columns / 2] = NAN;
    logits[3 * columns + columns - 1] = INFINITY;
    if (columns == 1) logits[4] = 0;
    weights[T * picks] = -77, ids[T * picks] = -77;
    mb_tensor tl = fixture_matrix(logits, T, columns), tp = fixture_matrix(probs, T, columns),
              tw = fixture_matrix(weights, T, picks);
    mb_tensor tb = mb_tensor_view1(MB_F32, bias, columns);
    for (int normalise = 0; normalise < 2; normalise++) {
        fixture_ok(mb_ops_route(ops, &tl, scale > 0 ? &tb : NULL, picks, normalise == 1, &tp, ids, &tw));
        for (int64_t t = 0; t < T; t++) {
            const bool is_bad = t < 2 || t == 3;
            const float *p = probs + t * columns, *w = weights + t * picks;
            double sum = 0;
            for (int64_t e = 0; e < columns; e++) {
                assert_int_equal(isnan(p[e]) != 0, is_bad);
                sum += p[e];
            }
            if (!is_bad) assert_true(fabs(sum - 1) < 1e-5);
            for (int64_t e = 0; e < columns; e++) scores[e] = p[e] + (scale > 0 ? bias[e] : 0);
            check_ids(ids + t * picks, scores, columns, picks);
            sum = 0;
            for (int64_t k = 0; k < picks; k++) sum += p[ids[t * picks + k]];
            const bool is_void = normalise == 1 && sum < MB_ROUTE_LEAST;
            assert_true(!is_void || scale > 0);
            for (int64_t k = 0; k < picks; k++) {
                const double want = is_void ? 0 : p[ids[t * picks + k]] / (normalise == 1 ? sum : 1);
                assert_true(is_bad ? isnan(w[k]) : fabs(w[k] - want) <= 2e-6 * want);
            }
        }
    }
    assert_true(weights[T * picks] == -77 && ids[T * picks] == -77);
    check_edges_back(ops, &tp, ids, &tw);
    free_all((void *[]){logits, probs, weights, copy, ids, bias, scores}, 7);
}

static void edges(mb_ops *ops, fixture_tape *tape)
{
    static const int64_t shapes[][2] = {{1, 1},     {2, 2},   {31, 3},  {32, 32},  {33, 8},
                                        {64, 6},    {65, 2},  {128, 8}, {129, 40}, {257, 4},
                                        {512, 512}, {513, 2}, {700, 9}, {1024, 3}, {1023, 33}};
    (void)tape;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_edges(ops, shapes[i][0], shapes[i][1], 0), check_edges(ops, shapes[i][0], shapes[i][1], 0.3f);
}

static void test_edges(void **state)
{
    (void)state, fixture_each(edges);
}

/* ---- 4. gradients of many tokens ---- */

/* Rows of the same id are added one after the other: the sums have the bits of that order. */
static void check_tokens(mb_ops *ops, int64_t n, int64_t v, int64_t d, int64_t common, fixture_tape *tape)
{
    float *dy = fixture_random(n * d, 1, 1), *dtable = fixture_random(v * d, 2, 1),
          *want = fixture_copy(dtable, v * d);
    int32_t *tokens = mb_calloc((size_t)n + 1, sizeof *tokens);
    for (int64_t t = 0; t < n; t++)
        tokens[t] = (int32_t)(t % 3 != 0 ? common : fixture_below(2, (uint64_t)t, v));
    for (int64_t i = 0; i < n * d; i++) want[tokens[i / d] * d + i % d] += dy[i];
    mb_tensor ty = fixture_matrix(dy, n, d), tt = fixture_matrix(dtable, v, d);
    fixture_ok(mb_ops_embedding_backward(ops, tokens, &ty, &tt));
    fixture_same("embedding_backward", dtable, want, v * d);
    fixture_record(tape, dtable, v * d);
    free_all((void *[]){dy, dtable, want, tokens}, 4);
}

static void tokens(mb_ops *ops, fixture_tape *tape)
{
    check_tokens(ops, 1, 1, 5, 0, tape);
    check_tokens(ops, 32, 600, 4, 599, tape);
    check_tokens(ops, 200, 513, 36, 512, tape);
    check_tokens(ops, 1500, 300, 9, 7, tape);
    check_tokens(ops, 1100, 300000, 2, 270001, tape);
    check_tokens(ops, 70, 3, 530, 1, tape);
}

static void test_tokens(void **state)
{
    (void)state, fixture_each(tokens);
}

/* ---- 5. views that begin anywhere ---- */

/* A tensor whose data begins one element later than an allocation does. */
static mb_tensor shifted(const mb_tensor *tensor)
{
    const size_t bytes = mb_tensor_bytes(tensor), step = mb_dtype_bytes(tensor->dtype);
    char *data = mb_calloc(bytes + step, 1);
    assert_non_null(data);
    memcpy(data + step, tensor->data, bytes);
    mb_tensor view = *tensor;
    view.data = data + step;
    return view;
}

/* An op's results do not depend on where its arguments begin. */
static void check_views(const scene *s, const op_case *c, unsigned mix)
{
    mb_tensor want[MOST], got[MOST];
    make_arguments(s, c, mix, want);
    for (int i = 0; i < count_of(c); i++) got[i] = shifted(&want[i]);
    fixture_ok(c->run(s, want));
    fixture_ok(c->run(s, got));
    for (int i = 0; i < count_of(c); i++) {
        if (memcmp(got[i].data, want[i].data, mb_tensor_bytes(&want[i])) != 0)
            fail_msg("%s, mix %u: argument %d depends on where arrays begin", c->name, mix, i);
        mb_free((char *)got[i].data - mb_dtype_bytes(got[i].dtype));
    }
    free_arguments(c, want);
}

static void views(mb_ops *ops, fixture_tape *tape)
{
    static const int64_t sizes[][2] = {{3, 8}, {19, 136}, {2, 8208}};
    (void)tape;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        scene s = scene_create(ops, sizes[i][0], sizes[i][1]);
        for (int j = 0; j < CASES; j++)
            for (unsigned mix = 0; mix < 2; mix++) check_views(&s, &cases[j], mix == 0 ? 0 : 0xFF);
        scene_destroy(&s);
    }
}

static void test_views(void **state)
{
    (void)state, fixture_each(views);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places), cmocka_unit_test(test_dispatch), cmocka_unit_test(test_edges),
        cmocka_unit_test(test_tokens), cmocka_unit_test(test_views),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    printf("# seed %d\n", FIXTURE_SEED);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
