/* test_scores_cache: keeping and taking, damage, and many processes at once. */
#include "store_test.h"

#include <sys/wait.h>

#include "store/contenthash.h"
#include "store/scores_cache.h"

enum { MAKERS = 4, ROUNDS = 15 };

/* A table with some content, told apart by `value`. */
static void make_table(const char *path, double value)
{
    double data[3000];
    mb_h5 *file = NULL;
    for (int i = 0; i < 3000; i++) data[i] = value + i;
    const mb_tensor tensor = mb_tensor_view1(MB_F64, data, 3000);
    assert_int_equal(mb_h5_create(path, &file), MB_OK);
    assert_int_equal(mb_h5_write(file, "/scores/logprob", &tensor), MB_OK);
    assert_int_equal(mb_h5_close(&file), MB_OK);
}

static void hash_of(const char *path, char hash[MB_HASH_TEXT])
{
    assert_int_equal(mb_contenthash_path(path, hash), MB_OK);
}

typedef struct place {
    char folder[512], table[512], taken[512], entry[600], card[600], key[MB_HASH_TEXT];
    json_t *what;
} place;

static place open_place(void **state)
{
    place p;
    snprintf(p.folder, sizeof p.folder, "%s", test_path(state, "deep/cache"));
    snprintf(p.table, sizeof p.table, "%s", test_path(state, "table.h5"));
    snprintf(p.taken, sizeof p.taken, "%s", test_path(state, "taken.h5"));
    p.what = json_pack("{s:s, s:i}", "model", "abc", "max_length", 12);
    assert_int_equal(mb_scores_cache_key(p.what, p.key), MB_OK);
    snprintf(p.entry, sizeof p.entry, "%s/%s.h5", p.folder, p.key);
    snprintf(p.card, sizeof p.card, "%s/%s.json", p.folder, p.key);
    make_table(p.table, 1);
    return p;
}

static bool take(const place *p)
{
    bool is_taken = true;
    unlink(p->taken);
    assert_int_equal(mb_scores_cache_take(p->folder, p->key, p->taken, &is_taken), MB_OK);
    assert_int_equal(mb_files_is_file(p->taken), is_taken);
    return is_taken;
}

static void test_key(void **state)
{
    (void)state;
    char key[3][MB_HASH_TEXT];
    json_t *what[3] = {json_pack("{s:s, s:i}", "a", "x", "b", 1), json_pack("{s:i, s:s}", "b", 1, "a", "x"),
                       json_pack("{s:s, s:i}", "a", "x", "b", 2)};
    for (int i = 0; i < 3; i++) assert_int_equal(mb_scores_cache_key(what[i], key[i]), MB_OK);
    assert_string_equal(key[0], key[1]); /* whatever the order of the members */
    assert_string_not_equal(key[0], key[2]);
    for (int i = 0; i < 3; i++) json_decref(what[i]);
}

static void test_keep_and_take(void **state)
{
    place p = open_place(state);
    char hash[MB_HASH_TEXT], taken[MB_HASH_TEXT];
    json_t *card = NULL;
    assert_false(take(&p)); /* not even the folder is there */
    assert_false(mb_scores_cache_has(p.folder, p.key));
    assert_int_equal(mb_scores_cache_keep(p.folder, p.key, p.what, p.table), MB_OK);
    assert_true(mb_scores_cache_has(p.folder, p.key) && take(&p));
    hash_of(p.table, hash);
    hash_of(p.taken, taken);
    assert_string_equal(hash, taken);
    assert_int_equal(mb_json_read(p.card, &card), MB_OK);
    assert_string_equal(json_string_value(json_object_get(card, "hash")), hash);
    assert_true(json_equal(json_object_get(card, "what"), p.what));
    json_decref(card);
    assert_int_equal(mb_scores_cache_keep(p.folder, "another", p.what, "/nowhere/table.h5"), MB_ENOTFOUND);
    mb_status_reset();
    assert_false(mb_scores_cache_has(p.folder, "another"));
    json_decref(p.what);
}

/* Every byte of an entry that is turned round: never taken as if it were whole; kept again, it is. */
static void test_damage(void **state)
{
    place p = open_place(state);
    mb_str good = MB_STR_EMPTY;
    char hash[MB_HASH_TEXT], taken[MB_HASH_TEXT];
    int64_t harmless = 0;
    hash_of(p.table, hash);
    assert_int_equal(mb_scores_cache_keep(p.folder, p.key, p.what, p.table), MB_OK);
    assert_int_equal(mb_files_read(p.entry, 0, &good), MB_OK);
    for (size_t at = 0; at < good.length; at += 401) {
        good.data[at] ^= 0x40;
        test_write(p.entry, good.data, good.length);
        good.data[at] ^= 0x40;
        if (!take(&p)) continue;
        hash_of(p.taken, taken); /* a byte that says nothing */
        assert_string_equal(taken, hash);
        harmless++;
    }
    assert_true(harmless < (int64_t)good.length / 401 / 2);
    test_write(p.entry, good.data, good.length / 2);
    assert_false(take(&p));
    test_write(p.entry, good.data, good.length);
    assert_true(take(&p));
    test_write(p.card, "{\"hash\": ", 9);
    assert_false(take(&p));
    unlink(p.card);
    assert_false(take(&p) || mb_scores_cache_has(p.folder, p.key));
    assert_int_equal(mb_scores_cache_keep(p.folder, p.key, p.what, p.table), MB_OK);
    assert_true(take(&p));
    mb_str_destroy(&good);
    json_decref(p.what);
}

/* The last to finish stays, also where its content is another (a warning says so). */
static void test_other_content(void **state)
{
    place p = open_place(state);
    char hash[MB_HASH_TEXT], taken[MB_HASH_TEXT];
    assert_int_equal(mb_scores_cache_keep(p.folder, p.key, p.what, p.table), MB_OK);
    unlink(p.table);
    make_table(p.table, 2);
    assert_int_equal(mb_scores_cache_keep(p.folder, p.key, p.what, p.table), MB_OK);
    assert_true(take(&p));
    hash_of(p.table, hash);
    hash_of(p.taken, taken);
    assert_string_equal(hash, taken);
    json_decref(p.what);
}

/* In a process of its own: keep and take again and again. Exit code: what went wrong. */
static int make_and_take(const place *p, int maker)
{
    char path[600], hash[MB_HASH_TEXT], expected[MB_HASH_TEXT];
    bool is_taken;
    if (mb_contenthash_path(p->table, expected) != MB_OK) return 1;
    snprintf(path, sizeof path, "%s.%d", p->taken, maker);
    for (int i = 0; i < ROUNDS; i++) {
        if (mb_scores_cache_keep(p->folder, p->key, p->what, p->table) != MB_OK) return 2;
        if (mb_scores_cache_take(p->folder, p->key, path, &is_taken) != MB_OK) return 3;
        if (!is_taken) return 4; /* once kept, there is always a whole one */
        if (mb_contenthash_path(path, hash) != MB_OK || strcmp(hash, expected) != 0) return 5;
    }
    return 0;
}

static void test_many_at_once(void **state)
{
    place p = open_place(state);
    pid_t makers[MAKERS];
    char **names = NULL;
    int64_t n = 0;
    for (int i = 0; i < MAKERS; i++) {
        makers[i] = fork();
        assert_true(makers[i] >= 0);
        if (makers[i] == 0) _exit(make_and_take(&p, i));
    }
    for (int i = 0; i < MAKERS; i++) {
        int code = 0;
        assert_int_equal(waitpid(makers[i], &code, 0), makers[i]);
        assert_true(WIFEXITED(code));
        assert_int_equal(WEXITSTATUS(code), 0);
    }
    assert_true(take(&p));
    assert_int_equal(mb_files_list(p.folder, &names, &n), MB_OK);
    assert_int_equal(n, 2); /* nothing unfinished is left */
    mb_files_free_names(&names, n);
    json_decref(p.what);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_key, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_keep_and_take, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_damage, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_other_content, test_setup, test_teardown),
        cmocka_unit_test_setup_teardown(test_many_at_once, test_setup, test_teardown),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
