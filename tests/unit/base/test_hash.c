/* test_hash: published XXH3 values, pieces against the whole, files, framing of text. */
#include "mb_test.h"

#include "base/hash.h"

static void test_known(void **state)
{
    (void)state;
    char text[MB_HASH_TEXT];
    mb_hash_bytes(NULL, 0, text);
    assert_string_equal(text, "99aa06d3014798d86001c324468d497f");      /* `printf '' | xxh128sum` */
    assert_true(mb_hash_u64("", 0, 0) == UINT64_C(0x2d06800538d394c2)); /* XXH3_64bits of nothing */
    assert_true(mb_hash_u64("a", 1, 0) != mb_hash_u64("a", 1, 1));
}

static void test_pieces(void **state)
{
    (void)state;
    enum { N = 300000 };
    unsigned char *bytes = mb_calloc(N, 1);
    char whole[MB_HASH_TEXT], pieces[MB_HASH_TEXT], file[MB_HASH_TEXT];
    for (size_t i = 0; i < N; i++) bytes[i] = (unsigned char)(i * i >> 3);
    mb_hash_bytes(bytes, N, whole);
    mb_hash *hash = NULL;
    mb_test_ok(mb_hash_create(&hash));
    mb_hash_add(hash, "dirt", 4);
    mb_hash_reset(hash);
    for (size_t at = 0, n = 1; at < N; at += n, n = n * 3 % 1000 + 1)
        mb_hash_add(hash, bytes + at, n < N - at ? n : N - at);
    mb_hash_get(hash, pieces);
    assert_string_equal(whole, pieces);
    mb_hash_add(hash, bytes, 1); /* reading the hash does not end it */
    mb_hash_get(hash, pieces);
    assert_string_not_equal(whole, pieces);
    char *folder = mb_test_folder_make(), *path = mb_test_path(folder, "bytes");
    mb_test_ok(mb_files_write(path, bytes, N));
    mb_test_ok(mb_hash_file(path, file));
    assert_string_equal(whole, file);
    mb_test_fails(mb_hash_file("/nowhere/x", file), MB_ENOTFOUND, "/nowhere/x");
    assert_string_equal(whole, file);
    mb_hash_destroy(&hash);
    assert_null(hash);
    mb_free(path);
    mb_free(bytes);
    mb_test_folder_remove(&folder);
}

static void hash_two(const char *a, const char *b, char out_text[MB_HASH_TEXT])
{
    mb_hash *hash = NULL;
    mb_test_ok(mb_hash_create(&hash));
    mb_hash_add_text(hash, a);
    mb_hash_add_text(hash, b);
    mb_hash_get(hash, out_text);
    mb_hash_destroy(&hash);
}

static void test_framing(void **state)
{
    (void)state;
    char one[MB_HASH_TEXT], two[MB_HASH_TEXT], plain[MB_HASH_TEXT];
    hash_two("ab", "c", one);
    hash_two("a", "bc", two);
    assert_string_not_equal(one, two);
    mb_hash *hash = NULL;
    mb_test_ok(mb_hash_create(&hash));
    mb_hash_add_int(hash, -2);
    mb_hash_get(hash, one);
    mb_hash_bytes("\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 8, plain);
    assert_string_equal(one, plain);
    mb_hash_destroy(&hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_framing),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
