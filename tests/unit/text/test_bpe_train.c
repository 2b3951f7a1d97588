/* test_bpe_train: merges of small texts worked out by hand, order of calls, and the file read back.
 *
 * 1. tools  2. tests
 */
#include "base/clock.h"
#include "base/json.h"
#include "mb_test.h"
#include "text/bpe_train.h"
#include "text/tokenizer.h"

/* 1. tools */

static void add(mb_bpe_train *train, const char *text)
{
    mb_test_ok(mb_bpe_train_add(train, text, strlen(text)));
}

/* The trained merges as JSON; release with json_decref. */
static json_t *write_and_read(mb_bpe_train *train, const char *folder)
{
    char *path = mb_test_path(folder, "tokenizer.json");
    json_t *json = NULL;
    mb_test_ok(mb_bpe_train_write(train, folder));
    mb_test_ok(mb_json_read(path, &json));
    mb_free(path);
    return json;
}

static void check_merges(const json_t *json, const char *const *expected, size_t n)
{
    const json_t *merges = json_object_get(json_object_get(json, "model"), "merges");
    assert_int_equal(json_array_size(merges), n);
    for (size_t i = 0; i < n; i++)
        assert_string_equal(json_string_value(json_array_get(merges, i)), expected[i]);
}

/* 2. tests */

/* "ab ab ab b b": words ab, " ab" twice, " b" twice. Counts: a b 3, G a 2, G b 2 (G = a blank's character,
 * after b: a b first). After "a b": G ab 2, G b 2; ids: b < G; pair (G, b) is smaller than (G, ab). */
static void merges_by_hand(void **state)
{
    (void)state;
    static const char *const expected[] = {"a b", "\xC4\xA0 b", "\xC4\xA0 ab"};
    static const char *const often[] = {"a b"};
    char *folder = mb_test_folder_make();
    for (int64_t least = 2; least <= 3; least++) {
        mb_bpe_train *train = NULL;
        mb_test_ok(mb_bpe_train_create(300, least, NULL, &train));
        add(train, "ab ab ab");
        add(train, " b b");
        json_t *json = write_and_read(train, folder);
        if (least == 2)
            check_merges(json, expected, 3);
        else
            check_merges(json, often, 1);
        const json_t *vocab = json_object_get(json_object_get(json, "model"), "vocab");
        assert_int_equal(json_integer_value(json_object_get(vocab, "<|endoftext|>")), 0);
        assert_int_equal(json_integer_value(json_object_get(vocab, "<|pad|>")), 1);
        assert_int_equal(json_integer_value(json_object_get(vocab, "!")), 2);
        assert_int_equal(json_integer_value(json_object_get(vocab, "ab")), 258);
        json_decref(json);
        mb_bpe_train_destroy(&train);
    }
    mb_test_folder_remove(&folder);
}

/* Overlapping pairs: aaaa -> aa aa -> aaaa; a size limit stops. */
static void runs_and_limit(void **state)
{
    (void)state;
    static const char *const expected[] = {"a a", "aa aa"};
    char *folder = mb_test_folder_make();
    for (int64_t size = 258; size <= 260; size++) {
        mb_bpe_train *train = NULL;
        mb_test_ok(mb_bpe_train_create(size, 0, NULL, &train));
        add(train, "aaaa");
        json_t *json = write_and_read(train, folder);
        check_merges(json, expected, (size_t)(size - 258));
        json_decref(json);
        mb_bpe_train_destroy(&train);
    }
    mb_test_folder_remove(&folder);
}

/* The text in any order and cut gives the same file, which loads and gives its texts back. */
static void order_does_not_matter(void **state)
{
    (void)state;
    static const char *const texts[] = {"The cat sat on the mat.\n", "A cat, the cat; that cat!\n",
                                        "\xE4\xBD\xA0\xE5\xA5\xBD \xE4\xBD\xA0\n", "1234 12 34 1234\n"};
    char *folders[2] = {mb_test_folder_make(), mb_test_folder_make()};
    mb_tokenizer *tokenizers[2] = {NULL, NULL};
    for (int order = 0; order < 2; order++) {
        mb_bpe_train *train = NULL;
        mb_test_ok(mb_bpe_train_create(320, 1, "</s>,<pad>,<x>", &train));
        for (int i = 0; i < 4; i++) add(train, texts[order ? 3 - i : i]);
        mb_test_ok(mb_bpe_train_write(train, folders[order]));
        mb_bpe_train_destroy(&train);
        mb_test_ok(mb_tokenizer_open(folders[order], &tokenizers[order]));
    }
    assert_string_equal(mb_tokenizer_hash(tokenizers[0]), mb_tokenizer_hash(tokenizers[1]));
    assert_int_equal(mb_tokenizer_eos(tokenizers[0]), 0);
    assert_int_equal(mb_tokenizer_pad(tokenizers[0]), 1);
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_str back = MB_STR_EMPTY;
    static const char text[] = "The mat sat<x> on \xE4\xBD\xA0\xF0\x9F\x98\x80\x01 12345";
    mb_test_ok(mb_tokenizer_scratch_create(tokenizers[0], &scratch));
    mb_test_ok(mb_tokenizer_encode(tokenizers[0], scratch, text, strlen(text), true, &ids));
    assert_true(ids.count < (int64_t)strlen(text));
    mb_test_ok(mb_tokenizer_decode(tokenizers[0], ids.data, ids.count, false, &back));
    assert_string_equal(mb_str_text(&back), text);
    mb_str_destroy(&back);
    mb_ids_destroy(&ids);
    mb_tokenizer_scratch_destroy(&scratch);
    for (int i = 0; i < 2; i++) {
        mb_tokenizer_close(&tokenizers[i]);
        mb_test_folder_remove(&folders[i]);
    }
}

static void refusals(void **state)
{
    (void)state;
    mb_bpe_train *train = NULL;
    char *folder = mb_test_folder_make();
    mb_test_fails(mb_bpe_train_create(257, 1, NULL, &train), MB_EUSAGE, "257");
    mb_test_ok(mb_bpe_train_create(300, 1, "a,b", &train));
    mb_test_fails(mb_bpe_train_add(train, "x\xFF", 2), MB_EDATA, "byte 1");
    mb_test_fails(mb_bpe_train_write(train, folder), MB_EUSAGE, "\"a\"");
    mb_bpe_train_destroy(&train);
    mb_test_ok(mb_bpe_train_create(300, 1, "<e>", &train)); /* no text: only the bytes */
    json_t *json = write_and_read(train, folder);
    check_merges(json, NULL, 0);
    json_decref(json);
    mb_bpe_train_destroy(&train);
    mb_test_folder_remove(&folder);
}

/* The first merges that HF's BpeTrainer learns from the questions of gsm8k, and the time it takes. */
static void merges_of_hf(void **state)
{
    (void)state;
    static const char *const expected[] = {
        "\xC4\xA0"
        " t",
        "h e",
        "\xC4\xA0"
        " a",
        "\xC4\xA0"
        " o",
        "\xC4\xA0"
        "t he",
        "e s",
        "i n",
        "\xC4\xA0"
        " s",
        "\xC4\xA0"
        " m",
        "e r",
        "\xC4\xA0"
        " h",
        "a n",
        "\xC4\xA0"
        " c",
        "r e",
        "\xC4\xA0"
        " p",
        "\xC4\xA0"
        " w",
        "\xC4\xA0"
        " f",
        "\xC4\xA0"
        " b",
        "n d",
        "\xC4\xA0"
        " d",
        "\xC4\xA0"
        " ident",
        "\xC4\xA0"
        "t a",
        "\xC4\xA0"
        "t ut",
        "\xC4\xA0"
        "t ins",
        "\xC4\xA0"
        "t iles",
        "he w",
        "he it",
        "he red",
        "he tic",
        "\xC4\xA0"
        "a ds",
        "\xC4\xA0"
        "a ward",
        "\xC4\xA0"
        "o w",
        "\xC4\xA0"
        "o ce",
        "\xC4\xA0"
        "o ppos",
        "\xC4\xA0"
        "o pens",
        "\xC4\xA0"
        "the ra",
        "in t",
        "in ch",
        "in ic",
        "in ts",
    };
    char *path = mb_test_data("datasets/gsm8k/test.jsonl"), *folder = mb_test_folder_make();
    mb_bpe_train *train = NULL;
    mb_str file = MB_STR_EMPTY;
    if (path == NULL) {
        mb_test_folder_remove(&folder);
        mb_test_skip("no shared data (MB_SHARED_DATA)");
    }
    mb_test_ok(mb_files_read(path, 0, &file));
    mb_test_ok(mb_bpe_train_create(4096, 2, NULL, &train));
    for (char *at = file.data, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        json_t *record = NULL;
        mb_test_ok(mb_json_parse(at, (size_t)(end - at), path, &record));
        add(train, json_string_value(json_object_get(record, "question")));
        json_decref(record);
    }
    double start = mb_clock_seconds();
    json_t *json = write_and_read(train, folder);
    print_message("# %.3f s\n", mb_clock_seconds() - start);
    const json_t *merges = json_object_get(json_object_get(json, "model"), "merges");
    assert_int_equal(json_array_size(merges), 4096 - 258);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        size_t at = i < 20 ? i : json_array_size(merges) - 40 + i; /* 20 first, 20 last */
        assert_string_equal(json_string_value(json_array_get(merges, at)), expected[i]);
    }
    json_decref(json);
    mb_bpe_train_destroy(&train);
    mb_str_destroy(&file);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_by_hand),        cmocka_unit_test(runs_and_limit),
        cmocka_unit_test(order_does_not_matter), cmocka_unit_test(refusals),
        cmocka_unit_test(merges_of_hf),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
