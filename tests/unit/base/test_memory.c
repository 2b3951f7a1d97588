/* test_memory: counting, alignment, overflow, growth, arenas. */
#include "mb_test.h"

#include <pthread.h>

static void test_blocks(void **state)
{
    (void)state;
    static const size_t sizes[] = {
        0, 1, 63, 64, 65, 4096, ((size_t)1 << 20) - 1, (size_t)1 << 20, ((size_t)1 << 21) + 3};
    int64_t before = mb_memory_live_bytes();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *block = mb_calloc(sizes[i], 1);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        assert_int_equal(mb_memory_live_blocks(), 1);
        assert_int_equal(mb_memory_live_bytes() - before, sizes[i]);
        assert_true(mb_memory_peak_bytes() >= (int64_t)sizes[i]);
        for (size_t j = 0; j < sizes[i]; j++) {
            if (block[j] != 0) fail();
            block[j] = 0xAB; /* dirty for the next block */
        }
        MB_FREE(block);
        assert_null(block);
        assert_int_equal(mb_memory_live_blocks(), 0);
    }
    mb_free(NULL);
}

static void test_too_large(void **state)
{
    (void)state;
    assert_null(mb_calloc(SIZE_MAX / 2, 3));
    assert_non_null(strstr(mb_status_message(), "too large"));
    assert_null(mb_calloc(SIZE_MAX - 8, 1));
    assert_non_null(strstr(mb_status_message(), "not enough memory"));
    char *block = mb_strdup("kept");
    assert_null(mb_realloc(block, SIZE_MAX, 2));
    assert_string_equal(block, "kept");
    mb_free(block);
}

static mb_status new_too_large(void)
{
    mb_status status = MB_OK;
    double *block = NULL;
    MB_NEW_ARRAY(block, SIZE_MAX / 2);
done:
    mb_free(block);
    return status;
}

static void test_growth(void **state)
{
    (void)state;
    int *block = NULL;
    for (int n = 1; n < 3000; n = 2 * n + 1) {
        block = mb_realloc(block, (size_t)n, sizeof *block);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        for (int i = n / 2; i < n; i++) block[i] = i;
        for (int i = 0; i < n; i++) assert_int_equal(block[i], i);
    }
    block = mb_realloc(block, 3, sizeof *block);
    assert_int_equal(block[2], 2);
    assert_int_equal(mb_memory_live_blocks(), 1);
    mb_free(block);
    char *a = mb_strdup("text"), *b = mb_strndup("text", 2), *c = mb_strndup("te", 9);
    assert_string_equal(a, "text");
    assert_string_equal(b, "te");
    assert_string_equal(c, "te");
    assert_null(mb_strdup(NULL));
    mb_free(a);
    mb_free(b);
    mb_free(c);
    assert_int_equal(new_too_large(), MB_ENOMEM);
}

static void *churn(void *nothing)
{
    (void)nothing;
    for (size_t i = 0; i < 2000; i++) mb_free(mb_calloc(i % 100, 3));
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t threads[3];
    int64_t bytes = mb_memory_live_bytes();
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&threads[i], NULL, churn, NULL), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(mb_memory_live_blocks(), 0);
    assert_int_equal(mb_memory_live_bytes(), bytes);
}

static void test_arena(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    mb_test_ok(mb_arena_create(256, &arena));
    char *a = mb_arena_alloc(arena, 10, 10), *b = mb_arena_alloc(arena, 0, 8),
         *c = mb_arena_alloc(arena, 1, 1);
    assert_true(a != NULL && b != NULL && c != NULL && b >= a + 100 && c > b);
    assert_int_equal((uintptr_t)a % 64 + (uintptr_t)b % 64 + (uintptr_t)c % 64, 0);
    memset(a, 1, 100);
    mb_arena_mark mark = mb_arena_mark_get(arena);
    char *large = mb_arena_alloc(arena, 1000, 1), *larger = mb_arena_alloc(arena, 5000, 1);
    memset(large, 2, 1000);
    memset(larger, 3, 5000);
    assert_int_equal(a[99], 1);
    assert_int_equal(large[999], 2);
    size_t peak = mb_arena_peak_bytes(arena);
    assert_true(peak >= 6100 && peak < 6500);
    mb_arena_release(arena, mark);
    assert_ptr_equal(mb_arena_alloc(arena, 1000, 1), large); /* the same place again */
    mb_arena_release(arena, mark);
    assert_int_equal(a[0], 1);
    mb_arena_reset(arena);
    int64_t blocks = 0;
    for (int step = 0; step < 3; step++) { /* a steady step allocates only once after the reset */
        assert_non_null(mb_arena_alloc(arena, 100, 1));
        assert_non_null(mb_arena_alloc(arena, 1000, 1));
        assert_non_null(mb_arena_alloc(arena, 5000, 1));
        if (step > 0) assert_int_equal(mb_memory_live_blocks(), blocks);
        blocks = mb_memory_live_blocks();
        mb_arena_reset(arena);
    }
    assert_int_equal(blocks, 3); /* arena, its list, one chunk */
    assert_int_equal(mb_arena_peak_bytes(arena), peak);
    assert_null(mb_arena_alloc(arena, SIZE_MAX, 2));
    assert_null(mb_arena_alloc(arena, SIZE_MAX - 3, 1));
    mb_arena_destroy(&arena);
    assert_null(arena);
    mb_arena_destroy(&arena);
}

/* Nested scopes over chunk borders keep what was before them. */
static void test_arena_scopes(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    mb_arena_mark marks[20];
    int *blocks[20];
    mb_test_ok(mb_arena_create(64, &arena));
    marks[0] = mb_arena_mark_get(arena); /* before any chunk */
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 20; i++) {
            marks[i] = mb_arena_mark_get(arena);
            blocks[i] = mb_arena_alloc(arena, (size_t)(i * i + 1), sizeof(int));
            for (int j = 0; j <= i * i; j++) blocks[i][j] = 1000 * i + j;
        }
        for (int i = 19; i >= 0; i--) {
            for (int j = 0; j <= i * i; j++) assert_int_equal(blocks[i][j], 1000 * i + j);
            mb_arena_release(arena, marks[i]);
        }
    }
    mb_arena_destroy(&arena);
}

/* Releasing over several chunks gives every byte back, so going round again does not raise the peak. */
static void test_release_over_chunks(void **state)
{
    (void)state;
    mb_arena *arena = NULL;
    mb_test_ok(mb_arena_create(64, &arena));
    assert_non_null(mb_arena_alloc(arena, 64, 1));
    for (int round = 0; round < 5; round++) {
        mb_arena_mark mark = mb_arena_mark_get(arena);
        for (int i = 0; i < 40; i++) assert_non_null(mb_arena_alloc(arena, 640, 1));
        mb_arena_release(arena, mark);
        assert_int_equal(mb_arena_peak_bytes(arena), 64 + 40 * 640);
    }
    mb_arena_destroy(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_release_over_chunks),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_arena_scopes),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
