/* test_corrupt: damaged copies are damaged, bounded, and the same every time. */
#include "mb_test.h"

#include "learn/corrupt.h"

enum { N = 60, VOCAB = 500, RECORDS = 400 };

static int compare_int32(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

static void fill(int32_t *tokens, int64_t n, int64_t sample)
{
    for (int64_t i = 0; i < n; i++) tokens[i] = (int32_t)((i * 7 + sample * 13 + i * i) % 97);
}

static mb_corrupt_source source_of(int64_t sample, int64_t epoch, const int32_t *pool, int64_t n)
{
    return (mb_corrupt_source){
        .seed = 42, .epoch = epoch, .sample = sample, .pool = pool, .pool_count = n, .vocab = VOCAB};
}

static void test_same_every_time(void **state)
{
    (void)state;
    int32_t tokens[N], a[N], b[N], c[N];
    int64_t other_epoch = 0, other_sample = 0;
    for (int64_t sample = 0; sample < 50; sample++) {
        fill(tokens, N, 0);
        mb_corrupt_source source = source_of(sample, 3, tokens, N), later = source_of(sample, 4, tokens, N),
                          next = source_of(sample + 1, 3, tokens, N);
        int64_t na = mb_corrupt_copy(&source, tokens, N, a), nb = mb_corrupt_copy(&source, tokens, N, b);
        assert_int_equal(na, nb);
        assert_memory_equal(a, b, (size_t)na * sizeof *a);
        int64_t nc = mb_corrupt_copy(&later, tokens, N, c);
        other_epoch += nc != na || memcmp(a, c, (size_t)na * sizeof *a) != 0;
        nc = mb_corrupt_copy(&next, tokens, N, c);
        other_sample += nc != na || memcmp(a, c, (size_t)na * sizeof *a) != 0;
    }
    assert_true(other_epoch >= 49 && other_sample >= 49);
}

static void check_kind(mb_corrupt_kind kind, const int32_t *tokens, const int32_t *copy, int64_t n)
{
    int64_t changed = 0, at = 0;
    int32_t a[N], b[N];
    for (int64_t i = 0; i < n; i++) changed += copy[i] != tokens[i];
    switch (kind) {
    case MB_CORRUPT_PERMUTE: /* same tokens, none further than its window */
        assert_int_equal(n, N);
        memcpy(a, tokens, sizeof a);
        memcpy(b, copy, sizeof b);
        qsort(a, N, sizeof *a, compare_int32);
        qsort(b, N, sizeof *b, compare_int32);
        assert_memory_equal(a, b, sizeof a);
        assert_true(changed > 10);
        break;
    case MB_CORRUPT_REPLACE:
        assert_true(n == N && changed > 0 && changed < N - 10);
        break;
    case MB_CORRUPT_DELETE: /* what is left stands in its order */
        assert_true(n < N && n > N / 4);
        for (int64_t i = 0; i < n; i++) {
            while (at < N && tokens[at] != copy[i]) at++;
            assert_true(at < N);
            at++;
        }
        break;
    default:
        assert_true(n == N && changed > 0);
        break;
    }
}

static void test_kinds(void **state)
{
    (void)state;
    int32_t tokens[N], copy[N];
    int64_t seen[MB_CORRUPT_KINDS] = {0};
    for (int64_t sample = 0; sample < RECORDS; sample++) {
        fill(tokens, N, sample);
        mb_corrupt_source source = source_of(sample, 0, tokens, N);
        mb_corrupt_kind kind = mb_corrupt_kind_get(&source);
        int64_t n = mb_corrupt_copy(&source, tokens, N, copy);
        seen[kind]++;
        assert_int_equal(copy[0], tokens[0]);
        for (int64_t i = 0; i < n; i++) assert_true(copy[i] >= 0 && copy[i] < VOCAB);
        check_kind(kind, tokens, copy, n);
    }
    static const double shares[] = {0.35, 0.25, 0.2, 0.2};
    for (int k = 0; k < MB_CORRUPT_KINDS; k++)
        assert_true(fabs((double)seen[k] / RECORDS - shares[k]) < 0.08);
}

static void test_short_records(void **state)
{
    (void)state;
    int32_t tokens[] = {5, 6, 7, 8}, copy[4];
    for (int64_t n = 1; n <= 4; n++) {
        for (int64_t sample = 0; sample < 100; sample++) {
            mb_corrupt_source source = source_of(sample, 0, tokens, n);
            int64_t made = mb_corrupt_copy(&source, tokens, n, copy);
            assert_true(made >= 1 && made <= n && copy[0] == 5);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_every_time), cmocka_unit_test(test_kinds),
                                       cmocka_unit_test(test_short_records)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed 42\n");
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
