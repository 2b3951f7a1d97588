/* test_tokenizer_kinds: small tokenizers of every kind against HF's ids and decoded texts
 * (tests/golden/make_tokenizer_kinds.py), what is refused, and the hash.
 *
 * 1. tools  2. golden  3. spans  4. refusals  5. hash  6. damaged files  7. speed
 */
#include "mb_fuzz.h"

#include "base/clock.h"
#include "base/json.h"
#include "text/tokenizer.h"
#include "text/unigram.h"

/* 1. tools */

typedef struct fixture {
    char *folder, *path;
    json_t **lines; /* of the golden file */
    int64_t count;
} fixture;

static int set_up(void **state)
{
    fixture *f = mb_calloc(1, sizeof *f);
    mb_str file = MB_STR_EMPTY;
    f->folder = mb_test_folder_make();
    f->path = mb_test_path(f->folder, "tokenizer.json");
    mb_test_ok(mb_files_read("tests/golden/tokenizer_kinds.jsonl", 0, &file));
    f->lines = mb_calloc(64, sizeof *f->lines);
    for (char *at = file.data, *end; (end = strchr(at, '\n')) != NULL; at = end + 1)
        mb_test_ok(mb_json_parse(at, (size_t)(end - at), "tokenizer_kinds.jsonl", &f->lines[f->count++]));
    mb_str_destroy(&file);
    mb_fuzz_quiet();
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    for (int64_t i = 0; i < f->count; i++) json_decref(f->lines[i]);
    mb_free(f->lines);
    mb_free(f->path);
    mb_test_folder_remove(&f->folder);
    mb_free(f);
    return mb_test_teardown(state);
}

static const char *kind_of(const fixture *f, int64_t i)
{
    return json_string_value(json_object_get(f->lines[i], "kind"));
}

static json_t *tokenizer_of(const fixture *f, const char *kind)
{
    for (int64_t i = 0; i < f->count; i++)
        if (strcmp(kind_of(f, i), kind) == 0)
            return json_deep_copy(json_object_get(f->lines[i], "tokenizer"));
    fail_msg("no kind %s", kind);
    return NULL;
}

static mb_status open_json(const fixture *f, const json_t *json, mb_tokenizer **out_tokenizer)
{
    mb_str text = MB_STR_EMPTY;
    mb_test_ok(mb_json_print(json, 0, false, &text));
    mb_fuzz_write(f->path, &text);
    mb_str_destroy(&text);
    return mb_tokenizer_open(f->path, out_tokenizer);
}

/* 2. golden */

static void check_text(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch, const json_t *line,
                       size_t i)
{
    const json_t *text = json_array_get(json_object_get(line, "texts"), i),
                 *expected = json_array_get(json_object_get(line, "ids"), i);
    const char *kind = json_string_value(json_object_get(line, "kind"));
    mb_ids ids = {0}, spans = {0};
    for (int again = 0; again < 3; again++) { /* the second time from the cache, the third with spans */
        mb_ids_reset(&ids);
        mb_test_ok(mb_tokenizer_encode_spans(tokenizer, scratch, json_string_value(text),
                                             json_string_length(text), true, &ids,
                                             again == 2 ? &spans : NULL));
        if ((size_t)ids.count != json_array_size(expected))
            fail_msg("%s, text %zu: %lld ids", kind, i, (long long)ids.count);
        for (int64_t k = 0; k < ids.count; k++)
            if (ids.data[k] != (uint32_t)json_integer_value(json_array_get(expected, (size_t)k)))
                fail_msg("%s, text %zu: id %lld is %u", kind, i, (long long)k, ids.data[k]);
    }
    assert_int_equal(spans.count, 2 * ids.count);
    for (int64_t k = 0; k < spans.count; k += 2)
        assert_true(spans.data[k] <= spans.data[k + 1] && spans.data[k + 1] <= json_string_length(text));
    for (int skip = 0; skip < 2; skip++) {
        const json_t *back = json_array_get(json_object_get(line, skip ? "plain" : "decoded"), i);
        mb_str s = MB_STR_EMPTY;
        mb_test_ok(mb_tokenizer_decode(tokenizer, ids.data, ids.count, skip, &s));
        if (s.length != json_string_length(back) ||
            memcmp(mb_str_text(&s), json_string_value(back), s.length) != 0)
            fail_msg("%s, text %zu decodes to \"%s\"", kind, i, mb_str_text(&s));
        mb_str_destroy(&s);
    }
    mb_ids_destroy(&ids);
    mb_ids_destroy(&spans);
}

static void golden_of_hf(void **state)
{
    const fixture *f = *state;
    assert_true(f->count >= 10);
    for (int64_t i = 0; i < f->count; i++) {
        mb_tokenizer *tokenizer = NULL;
        mb_tokenizer_scratch *scratch = NULL;
        mb_test_ok(open_json(f, json_object_get(f->lines[i], "tokenizer"), &tokenizer));
        mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
        const size_t texts = json_array_size(json_object_get(f->lines[i], "texts"));
        assert_true(texts > 30);
        for (size_t t = 0; t < texts; t++) check_text(tokenizer, scratch, f->lines[i], t);
        mb_tokenizer_scratch_destroy(&scratch);
        mb_tokenizer_close(&tokenizer);
    }
}

/* 3. spans */

static void spans_of_words(void **state)
{
    const fixture *f = *state;
    json_t *json = tokenizer_of(f, "wordpiece");
    mb_tokenizer *tokenizer = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0}, spans = {0};
    static const char text[] = "A\x01 \xC3\x89 \xE4\xB8\x96!"; /* A, control, E with accent, an ideograph */
    static const uint32_t expected[] = {0, 0, 0, 1, 3, 5, 6, 9, 9, 10, 10, 10};
    mb_test_ok(open_json(f, json, &tokenizer));
    mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
    mb_test_ok(mb_tokenizer_encode_spans(tokenizer, scratch, text, strlen(text), true, &ids, &spans));
    assert_int_equal(spans.count, 12);
    assert_memory_equal(spans.data, expected, sizeof expected);
    mb_ids_destroy(&ids);
    mb_ids_destroy(&spans);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_tokenizer_close(&tokenizer);
    json_decref(json);
}

/* 4. refusals */

static void refuses_by_name(void **state)
{
    const fixture *f = *state;
    static const struct {
        const char *kind, *place, *value; /* the member `place` (a.b) becomes the JSON value */
        mb_status status;
        const char *part;
    } cases[] = {
        {"wordpiece", "model.type", "\"WordLevel\"", MB_EUNSUPPORTED, "WordLevel"},
        {"wordpiece", "model.max_input_chars_per_word", "-1", MB_EFORMAT, "max_input_chars_per_word"},
        {"wordpiece", "model.unk_token", "7", MB_EFORMAT, "unk_token"},
        {"wordpiece", "model.vocab", "{}", MB_EFORMAT, "vocab"},
        {"wordpiece", "normalizer.clean_text", "3", MB_EFORMAT, "clean_text"},
        {"wordpiece", "normalizer.strip_accents", "\"x\"", MB_EFORMAT, "strip_accents"},
        {"wordpiece", "pre_tokenizer", "{\"type\":\"FixedLength\",\"length\":5}", MB_EUNSUPPORTED,
         "FixedLength"},
        {"wordpiece", "pre_tokenizer", "{\"type\":\"ByteLevel\"}", MB_EUNSUPPORTED, "ByteLevel"},
        {"wordpiece", "pre_tokenizer", "{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"ab\"}", MB_EFORMAT,
         "delimiter"},
        {"wordpiece", "pre_tokenizer", "{\"type\":\"Punctuation\",\"behavior\":\"Up\"}", MB_EUNSUPPORTED,
         "Up"},
        {"wordpiece", "decoder",
         "{\"type\":\"CTC\",\"pad_token\":\"\",\"word_delimiter_token\":\"|\",\"cleanup\":"
         "true}",
         MB_EUNSUPPORTED, "pad_token"},
        {"wordpiece", "decoder", "{\"type\":\"BPEDecoder\",\"suffix\":\"\"}", MB_EUNSUPPORTED, "suffix"},
        {"wordpiece", "post_processor",
         "{\"type\":\"BertProcessing\",\"sep\":[\"x\",99999],\"cls\":[\"x\",1]}", MB_EFORMAT, "sep"},
        {"xlmr", "model.unk_id", "99999", MB_EFORMAT, "unk_id"},
        {"xlmr", "model.vocab", "[]", MB_EFORMAT, "vocab"},
        {"xlmr", "model.vocab", "[[\"a\",-1.0],[\"b\"]]", MB_EFORMAT, "entry 1"},
        {"xlmr", "model.vocab", "[[\"a\",-1.0],[\"a\",-2.0]]", MB_EUNSUPPORTED, "twice"},
        {"xlmr", "normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA\"}", MB_EFORMAT,
         "base64"},
        {"xlmr", "normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"A?==\"}", MB_EFORMAT,
         "base64"},
        {"xlmr", "normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/wAAAAAA\"}", MB_EFORMAT,
         "shorter"},
        {"xlmr", "normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAAAAAD/\"}",
         MB_EFORMAT, "UTF-8"},
        {"xlmr", "normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAD8/wA=\"}",
         MB_EFORMAT, "charsmap"},
        {"bpe-prefix", "model.continuing_subword_prefix", "\"#########\"", MB_EFORMAT, "prefix"},
        {"bpe-suffix", "model.dropout", "0.5", MB_EUNSUPPORTED, "dropout"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *json = tokenizer_of(f, cases[i].kind),
               *value = json_loads(cases[i].value, JSON_DECODE_ANY, NULL);
        const char *dot = strchr(cases[i].place, '.');
        mb_tokenizer *tokenizer = NULL;
        assert_non_null(value);
        if (dot == NULL) {
            json_object_set_new(json, cases[i].place, value);
        } else {
            char *outer = mb_strndup(cases[i].place, (size_t)(dot - cases[i].place));
            json_object_set_new(json_object_get(json, outer), dot + 1, value);
            mb_free(outer);
        }
        mb_status status = open_json(f, json, &tokenizer);
        if (status != cases[i].status || strstr(mb_status_message(), cases[i].part) == NULL ||
            strstr(mb_status_message(), "tokenizer.json") == NULL)
            fail_msg("case %zu: %s: %s", i, mb_status_name(status), mb_status_message());
        json_decref(json);
    }
}

/* A score gets the last bit that serde_json gives it; the last one has another than the nearest number. */
static void scores(void **state)
{
    (void)state;
    assert_true(mb_unigram_score(0) == 0 && mb_unigram_score(-9) == -9);
    assert_true(mb_unigram_score(-12.5) == -12.5 && mb_unigram_score(1e300) == 1e300);
    assert_true(mb_unigram_score(-9.123456954956055) == -(9123456954956055.0 / 1e15));
    uint64_t digits = 1;
    for (int i = 0; i < 2000; i++) { /* few digits: one exact division, which gives the nearest number */
        char text[40];
        digits = digits * 7919 % 999999999989;
        snprintf(text, sizeof text, "-%llue-%d", (unsigned long long)digits, i % 23);
        if (mb_unigram_score(strtod(text, NULL)) != strtod(text, NULL)) fail_msg("%s", text);
    }
    int other = 0;
    for (int i = 1; i < 2000; i++) {
        double value = (double)((float)i * -0.0123f), score = mb_unigram_score(value);
        mb_test_near(score, value, 1e-15);
        other += score != value;
    }
    assert_true(other > 20 && other < 1000);
}

/* 5. hash */

static void hash_is_of_the_content(void **state)
{
    const fixture *f = *state;
    static const struct {
        const char *kind, *outer, *key, *value;
    } changes[] = {{"wordpiece", "model", "max_input_chars_per_word", "7"},
                   {"wordpiece", "normalizer", "lowercase", "false"},
                   {"wordpiece", "decoder", "cleanup", "false"},
                   {"bpe-suffix", "model", "end_of_word_suffix", "\"/\""},
                   {"xlmr", "model", "unk_id", "2"},
                   {"xlmr", "model", "byte_fallback", "true"},
                   {"xlmr", "pre_tokenizer", "type", "\"WhitespaceSplit\""},
                   {"t5", "post_processor", "type", "\"ByteLevel\""}};
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        json_t *json = tokenizer_of(f, changes[i].kind);
        mb_tokenizer *a = NULL, *b = NULL, *c = NULL;
        mb_test_ok(open_json(f, json, &a));
        json_object_set_new(json, "padding", json_pack("{s:i}", "pad_id", 3)); /* ignored */
        mb_test_ok(open_json(f, json, &b));
        json_object_set_new(json_object_get(json, changes[i].outer), changes[i].key,
                            json_loads(changes[i].value, JSON_DECODE_ANY, NULL));
        mb_test_ok(open_json(f, json, &c));
        assert_string_equal(mb_tokenizer_hash(a), mb_tokenizer_hash(b));
        if (strcmp(mb_tokenizer_hash(a), mb_tokenizer_hash(c)) == 0) fail_msg("change %zu is not hashed", i);
        mb_tokenizer_close(&a);
        mb_tokenizer_close(&b);
        mb_tokenizer_close(&c);
        json_decref(json);
    }
}

/* 6. damaged files */

static void encode_some(mb_fuzz *f, const mb_tokenizer *tokenizer, const json_t *texts)
{
    mb_tokenizer_scratch *scratch = NULL;
    mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
    for (int t = 0; t < 4; t++) {
        const json_t *text = json_array_get(texts, (size_t)mb_fuzz_below(f, json_array_size(texts)));
        mb_ids ids = {0}, spans = {0};
        mb_str s = MB_STR_EMPTY;
        const mb_status status = mb_tokenizer_encode_spans(tokenizer, scratch, json_string_value(text),
                                                           json_string_length(text), t % 2, &ids, &spans);
        mb_fuzz_holds(f, status == MB_OK || *mb_status_message() != 0);
        mb_fuzz_holds(f, spans.count == 2 * ids.count);
        for (int64_t k = 0; k < ids.count; k++) mb_fuzz_holds(f, ids.data[k] < mb_tokenizer_count(tokenizer));
        mb_fuzz_holds(f, mb_tokenizer_decode(tokenizer, ids.data, ids.count, t < 2, &s) == MB_OK);
        mb_fuzz_holds(f, mb_str_is_utf8(mb_str_text(&s), s.length, NULL));
        mb_str_destroy(&s);
        mb_ids_destroy(&ids);
        mb_ids_destroy(&spans);
    }
    mb_tokenizer_scratch_destroy(&scratch);
}

/* The vocabulary is the most of a file, so only its first entries are kept: the rest is what to damage. */
static mb_str shortened(const fixture *f, int64_t line)
{
    json_t *json = json_deep_copy(json_object_get(f->lines[line], "tokenizer")),
           *model = json_object_get(json, "model"), *vocab = json_object_get(model, "vocab");
    mb_str text = MB_STR_EMPTY;
    while (json_array_size(vocab) > 320) json_array_remove(vocab, json_array_size(vocab) - 1);
    if (json_is_array(vocab)) json_object_set_new(json, "added_tokens", json_array());
    json_t *merges = json_object_get(model, "merges");
    while (json_array_size(merges) > 10) json_array_remove(merges, json_array_size(merges) - 1);
    mb_test_ok(mb_json_print(json, 0, false, &text));
    json_decref(json);
    return text;
}

static void damaged_files(void **state)
{
    const fixture *x = *state;
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 1000), first = mb_fuzz_number("MB_FUZZ_FIRST", 0),
                   seed = 43;
    uint64_t opened = 0;
    print_message("# seed 43\n");
    mb_str bases[64];
    for (int64_t i = 0; i < x->count; i++) bases[i] = shortened(x, i);
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed, i);
        const size_t base = (size_t)(i % (uint64_t)x->count);
        mb_tokenizer *tokenizer = NULL;
        mb_str text =
            mb_fuzz_mutate(&f, bases[base].data, bases[base].length, "0123456789[]{},:\"-e. \\un#A/=");
        mb_fuzz_write(x->path, &text);
        if (mb_tokenizer_open(x->path, &tokenizer) == MB_OK) {
            opened++;
            encode_some(&f, tokenizer, json_object_get(x->lines[base], "texts"));
        } else {
            mb_fuzz_named(&f, x->folder);
        }
        mb_tokenizer_close(&tokenizer);
        mb_str_destroy(&text);
        mb_fuzz_end(&f);
    }
    for (int64_t i = 0; i < x->count; i++) mb_str_destroy(&bases[i]);
    printf("# %llu cases, %llu opened\n", (unsigned long long)count, (unsigned long long)opened);
    assert_true(count < 100 || (opened > count / 10 && opened < count));
}

/* 7. speed */

/* MB/s of each kind over its golden texts when MB_BENCH=1. */
static void speed(void **state)
{
    const fixture *f = *state;
    if (getenv("MB_BENCH") == NULL) return;
    for (int64_t i = 0; i < f->count; i++) {
        mb_tokenizer *tokenizer = NULL;
        mb_tokenizer_scratch *scratch = NULL;
        mb_ids ids = {0};
        size_t bytes = 0;
        mb_test_ok(open_json(f, json_object_get(f->lines[i], "tokenizer"), &tokenizer));
        mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
        const json_t *texts = json_object_get(f->lines[i], "texts"), *text;
        size_t k;
        double start = mb_clock_seconds();
        while (mb_clock_seconds() < start + 0.3) json_array_foreach(texts, k, text)
            {
                mb_ids_reset(&ids);
                bytes += json_string_length(text);
                mb_test_ok(mb_tokenizer_encode(tokenizer, scratch, json_string_value(text),
                                               json_string_length(text), true, &ids));
            }
        printf("# %-16s %6.1f MB/s\n", kind_of(f, i), (double)bytes / (mb_clock_seconds() - start) * 1e-6);
        mb_ids_destroy(&ids);
        mb_tokenizer_scratch_destroy(&scratch);
        mb_tokenizer_close(&tokenizer);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_of_hf),
        cmocka_unit_test(spans_of_words),
        cmocka_unit_test(refuses_by_name),
        cmocka_unit_test(scores),
        cmocka_unit_test(hash_is_of_the_content),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(speed),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
