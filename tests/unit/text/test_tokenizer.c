/* test_tokenizer: the tokenizers in the shared data against published vectors, HF's ids, and themselves.
 *
 * 1. tools  2. vectors  3. golden  4. round trips and spans  5. special tokens  6. hash  7. threads and long
 * words
 */
#include <omp.h>

#include "base/clock.h"
#include "base/json.h"
#include "mb_test.h"
#include "text/tokenizer.h"

/* 1. tools */

typedef struct subject {
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_ids ids, spans;
} subject;

static void open_subject(subject *s, const char *path)
{
    *s = (subject){0};
    mb_test_ok(mb_tokenizer_open(path, &s->tokenizer));
    mb_test_ok(mb_tokenizer_scratch_create(s->tokenizer, &s->scratch));
}

static void close_subject(subject *s)
{
    mb_ids_destroy(&s->ids);
    mb_ids_destroy(&s->spans);
    mb_tokenizer_scratch_destroy(&s->scratch);
    mb_tokenizer_close(&s->tokenizer);
}

/* Opens a tokenizer of the shared data; skips the test when it is absent. */
static void open_shared(subject *s, const char *name)
{
    char *path = mb_test_data(name);
    if (path == NULL) mb_test_skip("no shared data (MB_SHARED_DATA)");
    open_subject(s, path);
    mb_free(path);
}

static void encode(subject *s, const char *text, size_t n, bool special)
{
    mb_ids_reset(&s->ids);
    mb_test_ok(mb_tokenizer_encode(s->tokenizer, s->scratch, text, n, special, &s->ids));
}

static void read_shared(const char *name, mb_str *s)
{
    char *path = mb_test_data(name);
    if (path == NULL) mb_test_skip("no shared data (MB_SHARED_DATA)");
    mb_test_ok(mb_files_read(path, 0, s));
    mb_free(path);
}

/* The ids are the numbers in text up to `end`, parted by anything else. */
static void check_numbers(const subject *s, const char *text, const char *end, const char *what)
{
    int64_t i = 0;
    while (text < end) {
        if (*text < '0' || *text > '9') {
            text++;
            continue;
        }
        char *after;
        uint32_t id = (uint32_t)strtoul(text, &after, 10);
        if (i >= s->ids.count || s->ids.data[i] != id) fail_msg("%s: id %lld differs", what, (long long)i);
        text = after;
        i++;
    }
    if (s->ids.count != i)
        fail_msg("%s: %lld ids, expected %lld", what, (long long)s->ids.count, (long long)i);
}

static void check_ids(const subject *s, const json_t *expected, const char *what, size_t index)
{
    if ((size_t)s->ids.count != json_array_size(expected))
        fail_msg("%s: text %zu: %lld ids", what, index, (long long)s->ids.count);
    for (size_t i = 0; i < json_array_size(expected); i++)
        if (s->ids.data[i] != (uint32_t)json_integer_value(json_array_get(expected, i)))
            fail_msg("%s: text %zu: id %zu differs", what, index, i);
}

/* 2. vectors */

/* Strings parted by a marker line against lines of ids. */
static void check_llamacpp(const char *name)
{
    static const char marker[] = "\n__ggml_vocab_test__\n";
    subject s;
    mb_str in = MB_STR_EMPTY, out = MB_STR_EMPTY;
    char *in_name = mb_str_format("%s/vectors-llamacpp.inp", name),
         *out_name = mb_str_format("%s/vectors-llamacpp.out", name);
    open_shared(&s, name);
    read_shared(in_name, &in);
    read_shared(out_name, &out);
    const char *text = in.data, *line = out.data, *end;
    int count = 0;
    while ((end = strstr(text, marker)) != NULL) {
        const char *line_end = strchr(line, '\n');
        assert_non_null(line_end);
        encode(&s, text, (size_t)(end - text), false);
        check_numbers(&s, line, line_end, name);
        text = end + strlen(marker);
        line = line_end + 1;
        count++;
    }
    assert_true(count >= 45);
    mb_str_destroy(&in);
    mb_str_destroy(&out);
    mb_free(in_name);
    mb_free(out_name);
    close_subject(&s);
}

/* Lines "text => id,id,...". */
static void check_ggml(const char *name, const char *file)
{
    subject s;
    mb_str all = MB_STR_EMPTY;
    char *path = mb_str_format("%s/%s", name, file);
    open_shared(&s, name);
    read_shared(path, &all);
    int count = 0;
    for (char *line = all.data, *end; *line != '\0'; line = end) {
        end = strchr(line, '\n');
        end = end != NULL ? end + 1 : line + strlen(line);
        char *arrow = memmem(line, (size_t)(end - line), " => ", 4);
        if (arrow == NULL) continue;
        encode(&s, line, (size_t)(arrow - line), false);
        check_numbers(&s, arrow + 4, end, path);
        count++;
    }
    assert_int_equal(count, 100);
    mb_free(path);
    mb_str_destroy(&all);
    close_subject(&s);
}

static void check_swift(const char *name, bool special)
{
    subject s;
    json_t *json = NULL;
    mb_str text = MB_STR_EMPTY, file = MB_STR_EMPTY;
    char *path = mb_str_format("%s/vectors-swift.json", name);
    open_shared(&s, name);
    read_shared(path, &file);
    mb_test_ok(mb_json_parse(file.data, file.length, path, &json));
    const char *in = json_string_value(json_object_get(json, "text"));
    encode(&s, in, strlen(in), special);
    const json_t *ids = json_object_get(json, "token_ids"), *pieces = json_object_get(json, "bpe_tokens");
    check_ids(&s, ids, name, 0);
    for (size_t i = 0, skip_first = special ? 1 : 0;
         i < json_array_size(pieces) && json_array_size(pieces) == (size_t)s.ids.count - skip_first; i++)
        assert_string_equal(mb_tokenizer_token(s.tokenizer, s.ids.data[i + skip_first]),
                            json_string_value(json_array_get(pieces, i)));
    mb_test_ok(mb_tokenizer_decode(s.tokenizer, s.ids.data, s.ids.count, true, &text));
    assert_string_equal(mb_str_text(&text), in);
    mb_str_destroy(&text);
    mb_str_destroy(&file);
    mb_free(path);
    json_decref(json);
    close_subject(&s);
}

static void vectors_gpt2(void **state)
{
    (void)state;
    check_llamacpp("tokenizers/gpt2");
    check_ggml("tokenizers/gpt2", "vectors-ggml.txt");
    check_swift("tokenizers/gpt2", false);
}

static void vectors_olmoe(void **state)
{
    (void)state;
    check_llamacpp("tokenizers/olmoe");
    check_ggml("tokenizers/olmoe", "vectors-ggml-gpt-neox.txt");
}

static void vectors_qwen3(void **state)
{
    (void)state;
    check_llamacpp("tokenizers/qwen3");
}

static void vectors_llama2(void **state)
{
    (void)state;
    check_llamacpp("tokenizers/llama2");
    check_swift("tokenizers/llama2", true);
}

/* 3. golden */

static void lay_over(json_t *base, const json_t *patch)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)patch, key, value)
    {
        json_t *old = json_object_get(base, key);
        if (strcmp(key, "model") == 0 && json_is_object(old) && json_is_object(value))
            lay_over(old, value);
        else
            json_object_set(base, key, value);
    }
}

/* The tokenizer of a golden line, patched in a folder of its own (without tokenizer_config.json). */
static void open_patched(subject *s, const json_t *line)
{
    char *base = mb_str_format("%s/tokenizer.json", json_string_value(json_object_get(line, "tokenizer")));
    char *path = mb_test_data(base), *folder = mb_test_folder_make(),
         *to = mb_test_path(folder, "tokenizer.json");
    json_t *json = NULL;
    mb_free(base);
    if (path == NULL) mb_test_skip("no shared data (MB_SHARED_DATA)");
    mb_test_ok(mb_json_read(path, &json));
    lay_over(json, json_object_get(line, "patch"));
    mb_test_ok(mb_json_write(to, json, 0, false));
    json_decref(json);
    open_subject(s, to);
    mb_free(path);
    mb_free(to);
    mb_test_folder_remove(&folder);
}

static void golden_of_hf(void **state)
{
    (void)state;
    mb_str file = MB_STR_EMPTY, decoded = MB_STR_EMPTY;
    char *data = mb_test_data("tokenizers/gpt2/tokenizer.json");
    if (data == NULL) mb_test_skip("no shared data (MB_SHARED_DATA)");
    mb_free(data);
    mb_test_ok(mb_files_read("tests/golden/tokenizers.jsonl", 0, &file));
    int lines = 0;
    for (char *at = file.data, *end; (end = strchr(at, '\n')) != NULL; at = end + 1, lines++) {
        subject s;
        json_t *line = NULL;
        mb_test_ok(mb_json_parse(at, (size_t)(end - at), "tokenizers.jsonl", &line));
        open_patched(&s, line);
        const json_t *texts = json_object_get(line, "texts"), *ids = json_object_get(line, "ids"),
                     *back = json_object_get(line, "decoded");
        char *what = mb_str_format("tokenizers.jsonl line %d", lines + 1);
        for (size_t i = 0; i < json_array_size(texts); i++) {
            const json_t *text = json_array_get(texts, i), *expected = json_array_get(back, i);
            encode(&s, json_string_value(text), json_string_length(text), true);
            check_ids(&s, json_array_get(ids, i), what, i);
            mb_str_reset(&decoded);
            mb_test_ok(mb_tokenizer_decode(s.tokenizer, s.ids.data, s.ids.count, true, &decoded));
            if (decoded.length != json_string_length(expected) ||
                memcmp(mb_str_text(&decoded), json_string_value(expected), decoded.length) != 0)
                fail_msg("%s: text %zu decodes to \"%s\"", what, i, mb_str_text(&decoded));
        }
        mb_free(what);
        json_decref(line);
        close_subject(&s);
    }
    assert_true(lines > 30);
    mb_str_destroy(&file);
    mb_str_destroy(&decoded);
}

/* 4. round trips and spans */

/* The spans tile the text (byte-level, no normaliser): ids that share a character share its range. */
static void check_spans(subject *s, const char *text, size_t n)
{
    uint32_t end = 0;
    mb_ids_reset(&s->ids);
    mb_ids_reset(&s->spans);
    mb_test_ok(mb_tokenizer_encode_spans(s->tokenizer, s->scratch, text, n, false, &s->ids, &s->spans));
    assert_int_equal(s->spans.count, 2 * s->ids.count);
    for (int64_t i = 0; i < s->ids.count; i++) {
        uint32_t a = s->spans.data[2 * i], b = s->spans.data[2 * i + 1];
        assert_true(a < b && b <= n && a <= end && b >= end);
        assert_true(((unsigned char)text[a] & 0xC0) != 0x80 &&
                    (b == n || ((unsigned char)text[b] & 0xC0) != 0x80));
        end = b;
    }
    assert_int_equal(end, n);
}

static void round_trip(subject *s, const char *text, size_t n)
{
    mb_str back = MB_STR_EMPTY;
    int64_t count;
    check_spans(s, text, n);
    count = s->ids.count;
    encode(s, text, n, false);
    assert_int_equal(s->ids.count, count);
    mb_test_ok(mb_tokenizer_decode(s->tokenizer, s->ids.data, s->ids.count, false, &back));
    assert_int_equal(back.length, n);
    assert_memory_equal(mb_str_text(&back), text, n);
    mb_str_destroy(&back);
}

static void round_trip_file(subject *s, const char *name, const char *key, size_t limit)
{
    mb_str file = MB_STR_EMPTY;
    read_shared(name, &file);
    size_t done = 0;
    for (char *at = file.data, *end; done < limit && (end = strchr(at, '\n')) != NULL; at = end + 1, done++) {
        json_t *record = NULL;
        mb_test_ok(mb_json_parse(at, (size_t)(end - at), name, &record));
        const json_t *text = json_object_get(record, key);
        round_trip(s, json_string_value(text), json_string_length(text));
        json_decref(record);
    }
    assert_true(done > 100);
    mb_str_destroy(&file);
}

static void round_trips(void **state)
{
    (void)state;
    static const char *const names[] = {"tokenizers/gpt2", "tokenizers/llama2", "models/stories260K/hf"};
    for (int t = 0; t < 3; t++) {
        subject s;
        mb_str file = MB_STR_EMPTY;
        json_t *json = NULL;
        open_shared(&s, names[t]);
        round_trip_file(&s, "datasets/gsm8k/test.jsonl", "question", 1000);
        round_trip_file(&s, "datasets/gsm8k/test.jsonl", "answer", 1000);
        round_trip_file(&s, "datasets/text/c4.jsonl", "text", 300);
        read_shared("datasets/alpaca/alpaca_zh.json", &file);
        mb_test_ok(mb_json_parse(file.data, file.length, "alpaca_zh", &json));
        for (size_t i = 0; i < json_array_size(json); i++) {
            const json_t *text = json_object_get(json_array_get(json, i), "output");
            if (json_string_length(text) > 0)
                round_trip(&s, json_string_value(text), json_string_length(text));
        }
        json_decref(json);
        mb_str_destroy(&file);
        close_subject(&s);
    }
}

static void spans_of_changed_text(void **state)
{
    (void)state;
    subject s;
    open_shared(&s, "tokenizers/qwen3");                               /* NFC */
    static const char text[] = "ab e\xCC\x81 \xE4\xBD\xA0<|im_end|>z"; /* e + accent becomes one character */
    mb_test_ok(
        mb_tokenizer_encode_spans(s.tokenizer, s.scratch, text, strlen(text), false, &s.ids, &s.spans));
    static const uint32_t spans[] = {0, 2, 2, 6, 6, 7, 7, 10, 10, 20, 20, 21};
    assert_int_equal(s.spans.count, 12);
    assert_memory_equal(s.spans.data, spans, sizeof spans);
    close_subject(&s);
    open_shared(&s, "tokenizers/llama2"); /* prepended U+2581, byte fallback, <s> */
    mb_test_ok(
        mb_tokenizer_encode_spans(s.tokenizer, s.scratch, "\xF0\x96\xB7\x9Bhi", 6, true, &s.ids, &s.spans));
    static const uint32_t fallback[] = {0, 0, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 4, 6};
    assert_int_equal(s.spans.count, 14);
    assert_memory_equal(s.spans.data, fallback, sizeof fallback);
    close_subject(&s);
}

/* 5. special tokens */

static void special_tokens(void **state)
{
    (void)state;
    subject s;
    uint32_t id = 0;
    open_shared(&s, "tokenizers/llama2");
    assert_int_equal(mb_tokenizer_bos(s.tokenizer), 1);
    assert_int_equal(mb_tokenizer_eos(s.tokenizer), 2);
    assert_int_equal(mb_tokenizer_pad(s.tokenizer), -1);
    assert_int_equal(mb_tokenizer_count(s.tokenizer), 32000);
    encode(&s, "", 0, true);
    assert_int_equal(s.ids.count, 1);
    assert_int_equal(s.ids.data[0], 1);
    close_subject(&s);

    open_shared(&s, "tokenizers/qwen3");
    assert_int_equal(mb_tokenizer_bos(s.tokenizer), -1); /* its config says null */
    assert_int_equal(mb_tokenizer_eos(s.tokenizer), 151645);
    assert_int_equal(mb_tokenizer_pad(s.tokenizer), 151643);
    assert_non_null(strstr(mb_tokenizer_chat_template(s.tokenizer), "<|im_start|>"));
    assert_true(mb_tokenizer_find(s.tokenizer, "<think>", &id));
    assert_int_equal(id, 151667);
    assert_string_equal(mb_tokenizer_token(s.tokenizer, id), "<think>");
    assert_false(mb_tokenizer_find(s.tokenizer, "<nothing>", &id));
    assert_null(mb_tokenizer_token(s.tokenizer, 151669));
    uint32_t ids[] = {9707, 151645, 151667};
    mb_str text = MB_STR_EMPTY;
    mb_test_ok(mb_tokenizer_decode(s.tokenizer, ids, 3, true, &text));
    assert_string_equal(mb_str_text(&text), "Hello<think>"); /* added but not special: stays */
    mb_str_reset(&text);
    mb_test_ok(mb_tokenizer_decode(s.tokenizer, ids, 3, false, &text));
    assert_string_equal(mb_str_text(&text), "Hello<|im_end|><think>");
    ids[0] = 151669;
    mb_test_fails(mb_tokenizer_decode(s.tokenizer, ids, 3, false, &text), MB_ERANGE, "151669");
    mb_str_destroy(&text);
    close_subject(&s);

    open_shared(&s, "tokenizers/olmoe"); /* no config file: well-known tokens */
    assert_int_equal(mb_tokenizer_eos(s.tokenizer), 50279);
    assert_int_equal(mb_tokenizer_pad(s.tokenizer), 1);
    assert_null(mb_tokenizer_chat_template(s.tokenizer));
    close_subject(&s);
}

/* 6. hash */

static void hash_is_of_the_content(void **state)
{
    (void)state;
    char *from = mb_test_data("tokenizers/gpt2/tokenizer.json"), *folder = mb_test_folder_make(),
         *to = mb_test_path(folder, "tokenizer.json");
    if (from == NULL) mb_test_skip("no shared data (MB_SHARED_DATA)");
    mb_tokenizer *a = NULL, *b = NULL, *c = NULL;
    json_t *json = NULL;
    mb_test_ok(mb_json_read(from, &json));
    mb_test_ok(mb_tokenizer_open(from, &a));
    json_t *model = json_object_get(json, "model"), *merges = json_object_get(model, "merges");
    for (size_t i = 0; i < json_array_size(merges); i++) { /* arrays -> strings */
        const json_t *entry = json_array_get(merges, i);
        char *text = mb_str_format("%s %s", json_string_value(json_array_get(entry, 0)),
                                   json_string_value(json_array_get(entry, 1)));
        json_array_set_new(merges, i, json_string(text));
        mb_free(text);
    }
    json_object_del(model, "ignore_merges"); /* another version of the library leaves it out */
    json_object_set_new(model, "end_of_word_suffix", json_null());
    mb_test_ok(mb_json_write(to, json, 1, true));
    mb_test_ok(mb_tokenizer_open(folder, &b));
    assert_string_equal(mb_tokenizer_hash(a), mb_tokenizer_hash(b));
    json_array_remove(merges, json_array_size(merges) - 1);
    mb_test_ok(mb_json_write(to, json, 0, false));
    mb_test_ok(mb_tokenizer_open(folder, &c));
    assert_string_not_equal(mb_tokenizer_hash(a), mb_tokenizer_hash(c));
    mb_tokenizer_close(&a);
    mb_tokenizer_close(&b);
    mb_tokenizer_close(&c);
    json_decref(json);
    mb_free(from);
    mb_free(to);
    mb_test_folder_remove(&folder);
}

/* 7. threads and long words */

static void threads_agree(void **state)
{
    (void)state;
    subject s;
    mb_str file = MB_STR_EMPTY;
    open_shared(&s, "tokenizers/gpt2");
    read_shared("datasets/gsm8k/test.jsonl", &file);
    encode(&s, file.data, file.length, false);
    int bad = 0;
#pragma omp parallel for num_threads(4) reduction(+ : bad)
    for (int t = 0; t < 8; t++) {
        mb_tokenizer_scratch *scratch = NULL;
        mb_ids ids = {0};
        bad += mb_tokenizer_scratch_create(s.tokenizer, &scratch) != MB_OK;
        bad += mb_tokenizer_encode(s.tokenizer, scratch, file.data, file.length, false, &ids) != MB_OK;
        bad += ids.count != s.ids.count ||
               memcmp(ids.data, s.ids.data, (size_t)ids.count * sizeof *ids.data) != 0;
        mb_ids_destroy(&ids);
        mb_tokenizer_scratch_destroy(&scratch);
    }
    assert_int_equal(bad, 0);
    mb_str_destroy(&file);
    close_subject(&s);
}

/* A word of n letters is not quadratic: 16 times the letters must not take 100 times as long. */
static void long_words(void **state)
{
    (void)state;
    static const char *const names[] = {"tokenizers/gpt2", "tokenizers/llama2"};
    size_t n = 400000;
    char *word = mb_calloc(n, 1);
    uint32_t random = 12345;
    print_message("# seed 12345\n");
    for (size_t i = 0; i < n; i++) {
        random = random * 1664525u + 1013904223u;
        word[i] = (char)('a' + (random >> 24) % 20);
    }
    for (int t = 0; t < 2; t++) {
        subject s;
        mb_str back = MB_STR_EMPTY;
        open_shared(&s, names[t]);
        double start = mb_clock_seconds();
        encode(&s, word, n / 16, false);
        double middle = mb_clock_seconds();
        encode(&s, word, n, false);
        double end = mb_clock_seconds();
        print_message("# %zu letters %.3f s, %zu letters %.3f s\n", n / 16, middle - start, n, end - middle);
        assert_true(end - middle < 100 * (middle - start) + 0.5);
        mb_test_ok(mb_tokenizer_decode(s.tokenizer, s.ids.data, s.ids.count, true, &back));
        assert_memory_equal(mb_str_text(&back), word, n);
        mb_str_destroy(&back);
        close_subject(&s);
    }
    mb_free(word);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_gpt2),
        cmocka_unit_test(vectors_olmoe),
        cmocka_unit_test(vectors_qwen3),
        cmocka_unit_test(vectors_llama2),
        cmocka_unit_test(golden_of_hf),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(spans_of_changed_text),
        cmocka_unit_test(hash_is_of_the_content),
        cmocka_unit_test(threads_agree),
        cmocka_unit_test(long_words),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
