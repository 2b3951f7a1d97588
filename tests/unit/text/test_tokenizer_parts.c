/* test_tokenizer_parts: a handmade tokenizer.json: what it does, what is refused by name, and broken files.
 *
 * 1. the tokenizer  2. encode and decode  3. refusals  4. broken files  5. config files
 */
#include "base/json.h"
#include "mb_test.h"
#include "text/tokenizer.h"
#include "text/tokenizer_decode.h"

/* 1. the tokenizer: letters a b c, U+2581, merges ab, abc and a blank before ab; bytes for the rest as far as
 * they are there */

static const char tiny[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
    "\"added_tokens\":[{\"id\":0,\"content\":\"<u>\",\"special\":true},{\"id\":1,\"content\":\"<s>\","
    "\"special\":true},"
    "{\"id\":12,\"content\":\"[x]\",\"single_word\":false,\"lstrip\":true,\"rstrip\":false,\"normalized\":"
    "false,\"special\":false}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
    "\"\xE2\x96\x81\"},"
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"}]},"
    "\"pre_tokenizer\":null,"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\","
    "\"type_id\":0}},"
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\","
    "\"ids\":[1],\"tokens\":[\"<s>\"]}}},"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
    "\"\xE2\x96\x81\"},\"content\":\" \"},"
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
    "\",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<u>\",\"continuing_subword_prefix\":null,"
    "\"end_of_word_suffix\":null,"
    "\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{\"<u>\":0,\"<s>\":1,\"<0xC3>\":2,\"<0xA9>\":3,"
    "\"\xE2\x96\x81\":4,\"a\":5,\"b\":6,\"c\":7,"
    "\"ab\":8,\"abc\":9,\"\xE2\x96\x81"
    "ab\":10,\"bc\":11},\"merges\":[\"b c\",\"a b\",\"ab c\",\"\xE2\x96\x81 ab\"]}}";

typedef struct fixture {
    char *folder;
    char *path; /* of its tokenizer.json */
} fixture;

static int set_up(void **state)
{
    fixture *f = mb_calloc(1, sizeof *f);
    f->folder = mb_test_folder_make();
    f->path = mb_test_write(f->folder, "tokenizer.json", tiny);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    mb_free(f->path);
    mb_test_folder_remove(&f->folder);
    mb_free(f);
    return 0;
}

/* The tokenizer with `from` in its text replaced by `to`. */
static mb_status open_changed(const fixture *f, const char *from, const char *to,
                              mb_tokenizer **out_tokenizer)
{
    const char *at = strstr(tiny, from);
    assert_non_null(at);
    char *text = mb_str_format("%.*s%s%s", (int)(at - tiny), tiny, to, at + strlen(from));
    mb_test_ok(mb_files_write(f->path, text, strlen(text)));
    mb_free(text);
    return mb_tokenizer_open(f->folder, out_tokenizer);
}

static void check_encode(const mb_tokenizer *tokenizer, const char *text, bool special,
                         const uint32_t *expected, int64_t n)
{
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
    for (int again = 0; again < 2; again++) { /* the second time from the cache */
        mb_ids_reset(&ids);
        mb_test_ok(mb_tokenizer_encode(tokenizer, scratch, text, strlen(text), special, &ids));
        assert_int_equal(ids.count, n);
        assert_memory_equal(ids.data, expected, (size_t)n * sizeof *expected);
    }
    mb_ids_destroy(&ids);
    mb_tokenizer_scratch_destroy(&scratch);
}
#define CHECK_ENCODE(tokenizer, text, special, ...)                                                          \
    check_encode(tokenizer, text, special, (const uint32_t[]){__VA_ARGS__},                                  \
                 (int64_t)(sizeof((uint32_t[]){__VA_ARGS__}) / 4))

/* 2. encode and decode */

static void encodes(void **state)
{
    fixture *f = *state;
    mb_tokenizer *t = NULL;
    mb_test_ok(mb_tokenizer_open(f->path, &t));
    CHECK_ENCODE(t, "ab", true, 1, 10);
    CHECK_ENCODE(t, "abc ab", false, 4, 5, 11, 10); /* "b c" ranks first: a bc */
    CHECK_ENCODE(t, "\xC3\xA9", false, 4, 2, 3);    /* byte fallback */
    CHECK_ENCODE(t, "xyz\xC3\xA9x", false, 4, 2, 3,
                 0);                                /* unknown ones wait, behind the bytes, fused: as HF */
    CHECK_ENCODE(t, "a<s>b", false, 4, 5, 1, 4, 6); /* each part is normalised by itself */
    CHECK_ENCODE(t, "a  [x] b", false, 4, 5, 12, 4, 4, 6); /* [x] takes the blanks on its left */
    assert_int_equal(mb_tokenizer_count(t), 13);
    mb_tokenizer_close(&t);
    mb_test_ok(open_changed(f, "\"fuse_unk\":true", "\"fuse_unk\":false", &t));
    CHECK_ENCODE(t, "xya", false, 4, 0, 0, 5);
    mb_tokenizer_close(&t);
    mb_test_ok(
        open_changed(f, "\"byte_fallback\":true", "\"byte_fallback\":true,\"ignore_merges\":true", &t));
    CHECK_ENCODE(t, "ab", false, 10);
    mb_tokenizer_close(&t);
    mb_test_ok(open_changed(f, "\"merges\":[\"b c\",\"a b\"", "\"merges\":[[\"a\",\"b\"],[\"b\",\"c\"]", &t));
    CHECK_ENCODE(t, "abc", false, 4, 9); /* now "a b" ranks first, then "ab c" */
    mb_tokenizer_close(&t);
}

static void decodes(void **state)
{
    fixture *f = *state;
    mb_tokenizer *t = NULL;
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_tokenizer_open(f->path, &t));
    const uint32_t whole[] = {1, 10, 4, 2, 3, 12}, cut[] = {5, 2, 2, 5};
    mb_test_ok(mb_tokenizer_decode(t, whole, 6, true, &s));
    assert_string_equal(mb_str_text(&s), "ab \xC3\xA9[x]");
    mb_str_reset(&s);
    mb_test_ok(mb_tokenizer_decode(t, cut, 4, true, &s));
    assert_string_equal(mb_str_text(&s), "a\xEF\xBF\xBD\xEF\xBF\xBD"
                                         "a");
    mb_str_reset(&s);
    mb_test_ok(mb_tokenizer_decode_lossy("a\xF0\x9F\x98z\xC3\xFF", 7, &s)); /* one for each maximal part */
    assert_string_equal(mb_str_text(&s), "a\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD");
    mb_str_destroy(&s);
    mb_tokenizer_close(&t);
}

static void bad_text_appends_nothing(void **state)
{
    fixture *f = *state;
    mb_tokenizer *t = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_test_ok(mb_tokenizer_open(f->path, &t));
    mb_test_ok(mb_tokenizer_scratch_create(t, &scratch));
    mb_test_ok(mb_ids_append(&ids, 7));
    mb_test_fails(mb_tokenizer_encode(t, scratch, "ab\xC3(", 4, true, &ids), MB_EDATA, "byte 2");
    assert_int_equal(ids.count, 1);
    mb_ids_destroy(&ids);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_tokenizer_close(&t);
}

/* 3. refusals */

static void refuses_by_name(void **state)
{
    static const struct {
        const char *from, *to;
        mb_status status;
        const char *part;
    } cases[] = {
        {"\"type\":\"BPE\"", "\"type\":\"WordLevel\"", MB_EUNSUPPORTED, "WordLevel"},
        {"\"dropout\":null", "\"dropout\":0.1", MB_EUNSUPPORTED, "dropout"},
        {"\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"FixedLength\"}", MB_EUNSUPPORTED,
         "FixedLength"},
        {"\"pre_tokenizer\":null",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":\"Isolated\","
         "\"invert\":false}",
         MB_EUNSUPPORTED, "\\w"},
        {"\"pre_tokenizer\":null",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"behavior\":\"Isolated\","
         "\"invert\":false}",
         MB_EUNSUPPORTED, "sets"},
        {"\"pre_tokenizer\":null",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a*\"},\"behavior\":\"Isolated\","
         "\"invert\":false}",
         MB_EUNSUPPORTED, "nothing"},
        {"\"pre_tokenizer\":null",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\","
         "\"invert\":false}",
         MB_EUNSUPPORTED, "compile"},
        {"\"pre_tokenizer\":null",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Sideways\","
         "\"invert\":false}",
         MB_EUNSUPPORTED, "Sideways"},
        {"{\"type\":\"Prepend\"", "{\"type\":\"Upper\"", MB_EUNSUPPORTED, "Upper"},
        {"{\"type\":\"Fuse\"}", "{\"type\":\"Sticky\"}", MB_EUNSUPPORTED, "Sticky"},
        {"\"type\":\"TemplateProcessing\"", "\"type\":\"PairProcessing\"", MB_EUNSUPPORTED, "PairProcessing"},
        {"\"id\":\"A\"", "\"id\":\"B\"", MB_EUNSUPPORTED, "template"},
        {"\"ids\":[1]", "\"ids\":[99]", MB_EFORMAT, "99"},
        {"\"ab c\"", "\"ab x\"", MB_EFORMAT, "entry 2"},
        {"\"ab c\"", "\"abc c\"", MB_EFORMAT, "abcc"},
        {"\"ab c\"", "\"ab  c\"", MB_EFORMAT, "entry 2"},
        {"\"ab c\"", "\"abc\"", MB_EFORMAT, "entry 2"},
        {"\"ab c\"", "[\"ab\"]", MB_EFORMAT, "entry 2"},
        {"\"ab c\"", "7", MB_EFORMAT, "entry 2"},
        {"\"bc\":11", "\"bc\":9", MB_EFORMAT, "same id"},
        {"\"bc\":11", "\"bc\":-1", MB_EFORMAT, "bc"},
        {"\"bc\":11", "\"bc\":4000000000", MB_EFORMAT, "bc"},
        {"\"bc\":11", "\"bc\":\"x\"", MB_EFORMAT, "bc"},
        {"\"id\":12", "\"id\":14", MB_EFORMAT, "[x]"},
        {"\"id\":12", "\"id\":5", MB_EFORMAT, "[x]"},
        {"\"vocab\"", "\"words\"", MB_EFORMAT, "vocab"},
        {"\"model\"", "\"modal\"", MB_EFORMAT, "model"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mb_tokenizer *t = NULL;
        mb_status status = open_changed(*state, cases[i].from, cases[i].to, &t);
        if (status == MB_OK) fail_msg("case %zu (%s) was not refused", i, cases[i].to);
        if (status != cases[i].status && !(cases[i].status == MB_EFORMAT && status == MB_ENOTFOUND))
            fail_msg("case %zu: %s: %s", i, mb_status_name(status), mb_status_message());
        if (strstr(mb_status_message(), cases[i].part) == NULL)
            fail_msg("case %zu: \"%s\" does not say %s", i, mb_status_message(), cases[i].part);
        if (strstr(mb_status_message(), "tokenizer.json") == NULL)
            fail_msg("case %zu: \"%s\" does not name the file", i, mb_status_message());
        assert_null(t);
    }
}

/* 4. broken files */

static void broken_files(void **state)
{
    fixture *f = *state;
    mb_tokenizer *t = NULL;
    size_t n = strlen(tiny);
    for (size_t cut = 0; cut < n; cut += 1) { /* every truncation */
        mb_test_ok(mb_files_write(f->path, tiny, cut));
        assert_int_not_equal(mb_tokenizer_open(f->path, &t), MB_OK);
    }
    uint32_t random = 99;
    print_message("# seed 99\n");
    for (int round = 0; round < 1500; round++) { /* some bytes changed: refused or usable, never a crash */
        char text[sizeof tiny];
        memcpy(text, tiny, sizeof tiny);
        for (int k = 0; k < 1 + round % 3; k++) {
            random = random * 1664525u + 1013904223u;
            size_t at = (random >> 8) % n;
            random = random * 1664525u + 1013904223u;
            text[at] = "{}[]\",:0123456789abn\xE2\x81 "[(random >> 8) % 24];
        }
        mb_test_ok(mb_files_write(f->path, text, n));
        if (mb_tokenizer_open(f->path, &t) != MB_OK) continue;
        mb_tokenizer_scratch *scratch = NULL;
        mb_ids ids = {0};
        mb_str s = MB_STR_EMPTY;
        mb_test_ok(mb_tokenizer_scratch_create(t, &scratch));
        if (mb_tokenizer_encode(t, scratch, "abc ab\xC3\xA9 x<s>[x]", 17, true, &ids) == MB_OK)
            mb_test_ok(mb_tokenizer_decode(t, ids.data, ids.count, false, &s));
        mb_str_destroy(&s);
        mb_ids_destroy(&ids);
        mb_tokenizer_scratch_destroy(&scratch);
        mb_tokenizer_close(&t);
    }
    mb_test_fails(mb_tokenizer_open("/tmp/no/such/folder", &t), MB_ENOTFOUND, "tokenizer.json");
}

/* 5. config files */

static void config_files(void **state)
{
    fixture *f = *state;
    mb_tokenizer *t = NULL;
    char *path = mb_test_write(f->folder, "tokenizer_config.json",
                               "{\"tokenizer_class\":\"LlamaTokenizer\",\"add_bos_token\":false,\"add_eos_"
                               "token\":true,\"bos_token\":{\"content\":\"<s>\"},"
                               "\"eos_token\":\"[x]\",\"pad_token\":null,\"chat_template\":[{\"name\":"
                               "\"default\",\"template\":\"T\"}]}");
    mb_test_ok(mb_tokenizer_open(f->folder, &t));
    assert_int_equal(mb_tokenizer_bos(t), 1);
    assert_int_equal(mb_tokenizer_eos(t), 12);
    assert_int_equal(mb_tokenizer_pad(t), -1);
    assert_string_equal(mb_tokenizer_chat_template(t), "T");
    CHECK_ENCODE(t, "ab", true, 10, 12); /* as LlamaTokenizerFast: no <s>, the end token behind */
    mb_tokenizer_close(&t);
    mb_test_ok(mb_files_write(path, "{\"eos_token\":\"</none>\"}", 23));
    mb_test_fails(mb_tokenizer_open(f->folder, &t), MB_EFORMAT, "</none>");
    mb_test_ok(mb_files_remove_tree(path));
    mb_free(path);
    path = mb_test_write(f->folder, "generation_config.json", "{\"eos_token_id\":[12,1],\"bos_token_id\":1}");
    mb_test_ok(mb_tokenizer_open(f->folder, &t));
    assert_int_equal(mb_tokenizer_eos(t), 12);
    assert_int_equal(mb_tokenizer_bos(t), 1);
    mb_tokenizer_close(&t);
    mb_free(path);
    path = mb_test_write(f->folder, "special_tokens_map.json", "{\"eos_token\":\"<u>\"}");
    mb_free(path);
    path = mb_test_write(f->folder, "chat_template.jinja", "J");
    mb_test_ok(mb_tokenizer_open(f->folder, &t));
    assert_int_equal(mb_tokenizer_eos(t), 0);
    assert_string_equal(mb_tokenizer_chat_template(t), "J");
    mb_tokenizer_close(&t);
    mb_free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(encodes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(decodes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_text_appends_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(refuses_by_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(broken_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(config_files, set_up, tear_down),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
