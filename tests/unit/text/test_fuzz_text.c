/* Mutated tokenizers, record files, templates and task files: refused with a message that names the file, or
 * what they give is sound. MB_FUZZ_COUNT sets how many cases of each (400 to 1500).
 *
 * 1. tools  2. tokenizers  3. records, dialogs, templates  4. template files  5. task files
 */
#include "mb_fuzz.h"

#include <zlib.h>

#include "text/bpe_train.h"
#include "text/records.h"
#include "text/tasks.h"
#include "text/template.h"

/* 1. tools */

static const uint64_t seed = 41;
static const char liked[] = "0123456789[]{},:\"-e. \\un<>|\n\t";

typedef struct fixture {
    char *folder;
    mb_str trained;          /* a tokenizer.json of bpe_train */
    mb_tokenizer *tokenizer; /* that one */
    mb_template *templates[4];
} fixture;

/* Texts that tokenizers treat differently, with broken UTF-8 now and then. */
static mb_str random_text(mb_fuzz *f)
{
    static const char *const parts[] = {" ",
                                        "a",
                                        "the ",
                                        "Hello",
                                        "\n",
                                        "\t ",
                                        "  ",
                                        "12345",
                                        "<s>",
                                        "</s>",
                                        "<|endoftext|>",
                                        "\xC3\xA9",
                                        "e\xCC\x81",
                                        "\xE2\x96\x81",
                                        "\xF0\x9F\x98\x80",
                                        "\xEF\xAC\x81",
                                        "'s",
                                        "!?",
                                        "\xE4\xB8\xAD\xE6\x96\x87",
                                        "\xC4\xA0",
                                        "\xEF\xBB\xBF",
                                        "ab",
                                        "abab",
                                        "\r\n",
                                        "<0x41>",
                                        "\xC2\xA0",
                                        "\xEA\xB0\x80",
                                        "\xCE\xA3",
                                        "[TOK]"};
    mb_str s = MB_STR_EMPTY;
    const uint64_t n = mb_fuzz_below(f, 1u << mb_fuzz_below(f, 6)),
                   times = mb_fuzz_below(f, 40) == 0 ? 200 : 1;
    for (uint64_t i = 0; i < n; i++) {
        const char *part = parts[mb_fuzz_below(f, sizeof parts / sizeof parts[0])];
        for (uint64_t k = 0; k < times; k++) mb_test_ok(mb_str_add(&s, part));
    }
    if (s.length > 0 && mb_fuzz_below(f, 6) == 0)
        s.data[mb_fuzz_below(f, s.length)] = (char)mb_fuzz_below(f, 256);
    return s;
}

static bool is_boundary(const mb_str *text, uint32_t at)
{
    return at == text->length || (text->data[at] & 0xC0) != 0x80;
}

/* 2. tokenizers */

static const char llama_like[] =
    "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 0, \"content\": \"<unk>\", \"special\": true},"
    " {\"id\": 1, \"content\": \"<s>\", \"special\": true, \"normalized\": false},"
    " {\"id\": 2, \"content\": \"</s>\", \"special\": true, \"normalized\": true}],"
    " \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": "
    "\"\xE2\x96\x81\"},"
    " {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xE2\x96\x81\"}]},"
    " \"pre_tokenizer\": null, \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\":"
    " [{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": "
    "0}}],"
    " \"special_tokens\": {\"<s>\": {\"id\": \"<s>\", \"ids\": [1], \"tokens\": [\"<s>\"]}}},"
    " \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\":"
    " \"\xE2\x96\x81\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"},"
    " {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]},"
    " \"model\": {\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true,"
    " \"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2, \"<0x41>\": 3, \"<0xC3>\": 4, \"<0xA9>\": 5,"
    " \"\xE2\x96\x81\": 6, \"a\": 7, \"b\": 8, \"ab\": 9, \"\xE2\x96\x81"
    "a\": 10, \"e\": 11, \"abab\": 12},"
    " \"merges\": [\"a b\", \"\xE2\x96\x81 a\", \"ab ab\"]}}";

static const char qwen_like[] =
    "{\"added_tokens\": [{\"id\": 9, \"content\": \"<s>\", \"single_word\": false, \"lstrip\": true,"
    " \"rstrip\": true, \"normalized\": false, \"special\": true}, {\"id\": 10, \"content\": \"[TOK]\","
    " \"single_word\": true, \"lstrip\": false, \"rstrip\": true, \"normalized\": true, \"special\": false}],"
    " \"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": ["
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": "
    "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|"
    " ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\", \"invert\": false},"
    " {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, \"use_regex\": "
    "false}]},"
    " \"post_processor\": {\"type\": \"ByteLevel\"}, \"decoder\": {\"type\": \"ByteLevel\"},"
    " \"model\": {\"type\": \"BPE\", \"ignore_merges\": true, \"unk_token\": null, \"vocab\": {\"a\": 0, "
    "\"b\": 1,"
    " \"\xC4\xA0\": 2, \"ab\": 3, \"\xC3\x83\": 4, \"\xC2\xA9\": 5, \"\xC3\x83\xC2\xA9\": 6, \"e\": 7, "
    "\"the\": 8},"
    " \"merges\": [[\"a\", \"b\"], [\"\xC3\x83\", \"\xC2\xA9\"]]}}";

static const char mixed[] =
    "{\"added_tokens\": [], \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFKC\"},"
    " {\"type\": \"Lowercase\"}, {\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": false},"
    " {\"type\": \"Replace\", \"pattern\": {\"Regex\": \" {2,}|\\\\n\"}, \"content\": \" \"}, {\"type\": "
    "\"NFD\"}]},"
    " \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\","
    " \"individual_digits\": true}, {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\","
    " \"prepend_scheme\": \"first\", \"split\": true}, {\"type\": \"Split\", \"pattern\": {\"String\": "
    "\"a\"},"
    " \"behavior\": \"MergedWithNext\", \"invert\": false}]}, \"decoder\": {\"type\": \"Metaspace\","
    " \"replacement\": \"\xE2\x96\x81\", \"prepend_scheme\": \"always\"}, \"model\": {\"type\": \"BPE\","
    " \"unk_token\": \"?\", \"fuse_unk\": false, \"vocab\": {\"?\": 0, \"\xE2\x96\x81\": 1, \"a\": 2, \"h\": "
    "3,"
    " \"e\": 4, \"1\": 5, \"he\": 6, \"\xE2\x96\x81he\": 7}, \"merges\": [\"h e\", \"\xE2\x96\x81 he\"]}}";

static const char tokenizer_config[] =
    "{\"add_bos_token\": true, \"add_eos_token\": false, \"bos_token\": \"<s>\", \"eos_token\": {\"content\":"
    " \"</s>\"}, \"pad_token\": null, \"tokenizer_class\": \"LlamaTokenizer\", \"chat_template\":"
    " \"{% for m in messages %}{{ m }}{% endfor %}\"}";

/* Ids of a text are of the vocabulary, their spans inside the text; the same without spans; they decode. */
static bool check_encode(mb_fuzz *f, const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch)
{
    mb_str text = random_text(f), decoded = MB_STR_EMPTY;
    mb_ids ids = {0}, spans = {0}, again = {0};
    const bool special = mb_fuzz_below(f, 2), valid = mb_str_is_utf8(mb_str_text(&text), text.length, NULL);
    mb_test_ok(mb_ids_append(&ids, 77));
    mb_status status =
        mb_tokenizer_encode_spans(tokenizer, scratch, mb_str_text(&text), text.length, special, &ids, &spans);
    mb_fuzz_holds(f, ids.count >= 1 && ids.data[0] == 77 && (status == MB_OK || ids.count == 1));
    mb_fuzz_holds(f, valid || status == MB_EDATA);
    mb_fuzz_holds(f, status == MB_OK || *mb_status_message() != 0);
    mb_fuzz_holds(f, spans.count == 2 * (ids.count - 1));
    for (int64_t i = 0; i < spans.count; i += 2) {
        mb_fuzz_holds(f, ids.data[1 + i / 2] < mb_tokenizer_count(tokenizer));
        mb_fuzz_holds(f, spans.data[i] <= spans.data[i + 1] && spans.data[i + 1] <= text.length);
        mb_fuzz_holds(f, is_boundary(&text, spans.data[i]) && is_boundary(&text, spans.data[i + 1]));
    }
    mb_fuzz_holds(f, mb_tokenizer_encode(tokenizer, scratch, mb_str_text(&text), text.length, special,
                                         &again) == status);
    mb_fuzz_holds(f, again.count == ids.count - 1);
    mb_fuzz_holds(f, again.count == 0 || memcmp(again.data, ids.data + 1, (size_t)again.count * 4) == 0);
    const bool skip_special = mb_fuzz_below(f, 2);
    const bool known =
        mb_tokenizer_decode(tokenizer, again.data, again.count, skip_special, &decoded) == MB_OK;
    mb_fuzz_holds(f, known && mb_str_is_utf8(mb_str_text(&decoded), decoded.length, NULL));
    mb_ids_destroy(&ids);
    mb_ids_destroy(&spans);
    mb_ids_destroy(&again);
    mb_str_destroy(&text);
    mb_str_destroy(&decoded);
    return status == MB_OK;
}

/* Any ids decode to valid UTF-8, or one is refused. */
static void check_decode(mb_fuzz *f, const mb_tokenizer *tokenizer)
{
    mb_str decoded = MB_STR_EMPTY;
    uint32_t ids[24];
    const int64_t n = (int64_t)mb_fuzz_below(f, 24), count = mb_tokenizer_count(tokenizer);
    bool all_there = true;
    for (int64_t i = 0; i < n; i++) {
        ids[i] = (uint32_t)mb_fuzz_below(f, (uint64_t)count + (mb_fuzz_below(f, 9) == 0));
        all_there = all_there && ids[i] < count && mb_tokenizer_token(tokenizer, ids[i]) != NULL;
    }
    const mb_status status = mb_tokenizer_decode(tokenizer, ids, n, mb_fuzz_below(f, 2), &decoded);
    mb_fuzz_holds(f, status == (all_there ? MB_OK : MB_ERANGE));
    mb_fuzz_holds(f, mb_str_is_utf8(mb_str_text(&decoded), decoded.length, NULL));
    mb_str_destroy(&decoded);
}

static void check_tokenizer(mb_fuzz *f, const mb_tokenizer *tokenizer, uint64_t *encoded)
{
    mb_tokenizer_scratch *scratch = NULL;
    const int64_t count = mb_tokenizer_count(tokenizer);
    mb_fuzz_holds(f, count >= 0 && mb_tokenizer_token(tokenizer, (uint32_t)count) == NULL);
    mb_fuzz_holds(f, mb_tokenizer_bos(tokenizer) < count && mb_tokenizer_eos(tokenizer) < count);
    mb_fuzz_holds(f, mb_tokenizer_pad(tokenizer) < count && mb_tokenizer_pad(tokenizer) >= -1);
    mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
    for (int t = 0; t < 3; t++) *encoded += check_encode(f, tokenizer, scratch);
    if (count > 0) check_decode(f, tokenizer);
    mb_tokenizer_scratch_destroy(&scratch);
}

static void test_tokenizers(void **state)
{
    const fixture *x = *state;
    const struct {
        const char *text;
        size_t n;
    } bases[] = {{llama_like, sizeof llama_like - 1},
                 {qwen_like, sizeof qwen_like - 1},
                 {mixed, sizeof mixed - 1},
                 {x->trained.data, x->trained.length}};
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 1200), first = mb_fuzz_number("MB_FUZZ_FIRST", 0);
    uint64_t opened = 0, encoded = 0;
    char *file = mb_test_path(x->folder, "tokenizer.json"),
         *config = mb_test_path(x->folder, "tokenizer_config.json");
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed, i);
        mb_tokenizer *tokenizer = NULL;
        const bool with_config = i % 5 == 0;
        mb_str text = MB_STR_EMPTY;
        if (with_config) {
            mb_str other = mb_fuzz_mutate(&f, tokenizer_config, sizeof tokenizer_config - 1, liked);
            mb_fuzz_write(config, &other);
            mb_str_destroy(&other);
            mb_test_ok(mb_str_add(&text, llama_like));
        } else {
            text = mb_fuzz_mutate(&f, bases[i % 4].text, bases[i % 4].n, liked);
        }
        mb_fuzz_write(file, &text);
        if (mb_tokenizer_open(with_config ? x->folder : file, &tokenizer) == MB_OK) {
            opened++;
            check_tokenizer(&f, tokenizer, &encoded);
        } else {
            mb_fuzz_named(&f, x->folder);
        }
        mb_tokenizer_close(&tokenizer);
        mb_str_destroy(&text);
        mb_fuzz_end(&f);
    }
    mb_free(file);
    mb_free(config);
    printf("# tokenizers: %llu cases, %llu opened, %llu texts encoded\n", (unsigned long long)count,
           (unsigned long long)opened, (unsigned long long)encoded);
    assert_true(count < 100 || (opened > count / 8 && opened < count && encoded > opened / 2));
}

/* Found by the test above: prepend_scheme "first" is for what begins the original text, strip or not, and
 * with spans or without. Ids as HF tokenizers 0.22 gives them. */
static void test_start(void **state)
{
    static const char *const orders[] = {"S", "LS", "SL", "PS", "L"};
    static const struct {
        const char *text;
        uint32_t ids[5][3];
        int64_t counts[5];
    } cases[] = {{"he", {{3}, {3}, {3}, {3}, {3}}, {1, 1, 1, 1, 1}},
                 {"  he", {{2}, {2}, {2}, {2}, {1, 3}}, {1, 1, 1, 1, 2}}};
    const fixture *x = *state;
    for (int o = 0; o < 5; o++) {
        mb_str json = MB_STR_EMPTY;
        mb_tokenizer *tokenizer = NULL;
        mb_tokenizer_scratch *scratch = NULL;
        mb_test_ok(mb_str_add(&json, "{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": ["));
        for (const char *p = orders[o]; *p != 0; p++)
            mb_test_ok(mb_str_add_format(
                &json, "%s%s", p > orders[o] ? "," : "",
                *p == 'S'   ? "{\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": false}"
                : *p == 'L' ? "{\"type\": \"Lowercase\"}"
                            : "{\"type\": \"Prepend\", \"prepend\": \" \"}"));
        mb_test_ok(mb_str_add(&json,
                              "]}, \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\":"
                              " \"\xE2\x96\x81\", \"prepend_scheme\": \"first\"}, \"model\": {\"type\":"
                              " \"BPE\", \"vocab\": {\"h\": 0, \"\xE2\x96\x81\": 1, \"he\": 2,"
                              " \"\xE2\x96\x81he\": 3, \"e\": 4}, \"merges\": [\"h e\","
                              " \"\xE2\x96\x81 he\"]}}"));
        char *path = mb_test_write(x->folder, "start.json", mb_str_text(&json));
        mb_test_ok(mb_tokenizer_open(path, &tokenizer));
        mb_test_ok(mb_tokenizer_scratch_create(tokenizer, &scratch));
        for (int c = 0; c < 4; c++) {
            mb_ids ids = {0}, spans = {0};
            const char *text = cases[c / 2].text;
            mb_test_ok(mb_tokenizer_encode_spans(tokenizer, scratch, text, strlen(text), false, &ids,
                                                 c % 2 ? &spans : NULL));
            assert_int_equal(ids.count, cases[c / 2].counts[o]);
            assert_memory_equal(ids.data, cases[c / 2].ids[o], (size_t)ids.count * 4);
            mb_ids_destroy(&ids);
            mb_ids_destroy(&spans);
        }
        mb_tokenizer_scratch_destroy(&scratch);
        mb_tokenizer_close(&tokenizer);
        mb_str_destroy(&json);
        mb_free(path);
    }
}

/* 3. records, dialogs, templates */

static const char lines[] =
    "{\"text\": \"plain \xC3\xA9\"}\n{\"instruction\": \"Add.\", \"input\": \"1 2\", \"output\": \"3\","
    " \"history\": [[\"x\", \"y\"]], \"system\": \"S\"}\r\n\n{\"messages\": [{\"role\": \"system\", "
    "\"content\": \"s\"},"
    " {\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"<think>t</think>b\","
    " \"weight\": 0}, {\"role\": \"user\", \"content\": \"c\"}, {\"role\": \"assistant\", \"content\": null,"
    " \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{}\"}}]}, {\"role\": \"tool\", "
    "\"content\":"
    " \"r\"}, {\"role\": \"assistant\", \"content\": \"d\"}], \"tools\": [{\"name\": \"f\"}]}\n"
    "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}],"
    " \"chosen\": {\"from\": \"gpt\", \"value\": \"c\"}, \"rejected\": {\"from\": \"gpt\", \"value\": "
    "\"d\"}}\n"
    "{\"question\": \"q\", \"answer\": \"a\"}\n{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}\n"
    "{\"chosen\": \"\\n\\nHuman: a\\n\\nAssistant: b\", \"rejected\": \"\\n\\nHuman: a\\n\\nAssistant: c\"}\n"
    "{\"prompt\": {\"text\": \"p\", \"role\": \"prompter\", \"replies\": [{\"text\": \"r\", \"role\": "
    "\"assistant\","
    " \"rank\": 0, \"replies\": [{\"text\": \"u\", \"role\": \"prompter\", \"replies\": []}]}, {\"text\": "
    "\"z\","
    " \"role\": \"assistant\", \"rank\": 1, \"replies\": []}]}}\n{\"input\": \"i\", \"output\": \"o\"}";
static const char array[] =
    "\xEF\xBB\xBF[ {\"text\": \"a]\\\"\"},\n{\"question\": \"q\", \"answer\": \"a\", \"n\":"
    " 12345678901234567890123},\n {\"input\": \"[{\", \"output\": \"o\"} ]\n";
static const char rows[] =
    "question,answer,\"a \"\"name\"\"\"\nq,a,1\n\"two\nlines\",\"b,c\",\"\"\r\n\n,x,\"y\"\n";
static const char tabs[] = "text\tid\nhello\t1\n\"a\tb\"\t2\n";

typedef struct record_file {
    const char *name, *text;
    size_t n;
    bool gzip;
} record_file;
static const record_file record_files[] = {
    {"r.jsonl", lines, sizeof lines - 1, false},   {"r.json", array, sizeof array - 1, false},
    {"r.csv", rows, sizeof rows - 1, false},       {"r.tsv", tabs, sizeof tabs - 1, false},
    {"r.jsonl", lines, sizeof lines - 1, false},   {"r.jsonl.gz", lines, sizeof lines - 1, true},
    {"r.json", lines, sizeof lines - 1, false},    {"r.json.gz", array, sizeof array - 1, true},
    {"r.unknown", array, sizeof array - 1, false}, {"r.jsonl", lines, sizeof lines - 1, false}};

static void check_rendered(const mb_fuzz *f, const mb_rendered *rendered)
{
    int64_t before = 0;
    for (int64_t i = 0; i < rendered->range_count; i++) {
        const int64_t first = rendered->ranges[2 * i], end = rendered->ranges[2 * i + 1];
        mb_fuzz_holds(f, (i == 0 ? first >= 0 : first > before) && end > first);
        before = end;
    }
    mb_fuzz_holds(f, before <= (int64_t)rendered->text.length);
    mb_fuzz_holds(f, mb_str_is_utf8(mb_str_text(&rendered->text), rendered->text.length, NULL));
}

static void check_dialog(mb_fuzz *f, const fixture *x, const mb_dialog *dialog, bool is_prompt)
{
    mb_rendered rendered = {0};
    mb_fuzz_holds(f, dialog->count > 0);
    for (int64_t i = 0; i < dialog->count; i++) {
        const mb_turn *turn = &dialog->turns[i];
        mb_fuzz_holds(f, turn->role >= MB_ROLE_TEXT && turn->role <= MB_ROLE_TOOL &&
                             turn->input <= turn->length);
        mb_fuzz_holds(f, turn->text[turn->length] == 0);
    }
    for (size_t t = 0; t < sizeof x->templates / sizeof x->templates[0]; t++) {
        const mb_status status =
            is_prompt ? mb_template_render_prompt(x->templates[t], dialog, "<s>", "</s>", &rendered)
                      : mb_template_render(x->templates[t], dialog, mb_fuzz_below(f, 4) == 0, NULL, "</s>",
                                           &rendered);
        if (status == MB_OK) check_rendered(f, &rendered);
        mb_fuzz_holds(f, status == MB_OK || *mb_status_message() != 0);
        mb_fuzz_holds(f, status != MB_OK || !is_prompt || rendered.range_count == 0);
    }
    mb_rendered_destroy(&rendered);
}

static bool check_record(mb_fuzz *f, const fixture *x, const json_t *record)
{
    static const char *const forms[] = {"auto",     "auto",     "auto", "text", "io",   "alpaca",
                                        "messages", "sharegpt", "qa",   "pair", "oasst"};
    const mb_field_map map = {.form = forms[mb_fuzz_below(f, sizeof forms / sizeof forms[0])],
                              .fields = mb_fuzz_below(f, 5) == 0 ? "text=answer,output=chosen" : NULL};
    mb_dialog dialog = {0}, rejected = {0};
    const bool good = mb_dialog_read(record, &map, &dialog) == MB_OK;
    if (good) check_dialog(f, x, &dialog, false);
    mb_fuzz_holds(f, good || *mb_status_message() != 0);
    if (mb_dialog_read_prompt(record, &map, &dialog) == MB_OK) check_dialog(f, x, &dialog, true);
    if (mb_dialog_read_pair(record, NULL, &dialog, &rejected) == MB_OK) {
        check_dialog(f, x, &dialog, false);
        check_dialog(f, x, &rejected, false);
    }
    mb_dialog_destroy(&dialog);
    mb_dialog_destroy(&rejected);
    return good;
}

/* Every record has a place inside the file, and is good or has a problem; a second walk sees the same. */
static void check_records(mb_fuzz *f, const fixture *x, const char *path, const mb_str *text, uint64_t *good)
{
    mb_records *records = NULL;
    mb_record record = {0};
    int64_t *offsets = NULL, *lengths = NULL, n = 0, count = 0, end = 0;
    const int64_t limit = mb_fuzz_below(f, 8) == 0 ? 40 : 0;
    const bool scanned = mb_records_scan(path, &offsets, &lengths, &n) == MB_OK;
    if (!scanned) mb_fuzz_named(f, path);
    mb_status status = mb_records_open(path, limit, &records);
    while (status == MB_OK && (status = mb_records_read(records, &record)) == MB_OK && record.bytes != NULL) {
        mb_fuzz_holds(f, record.index == count && record.line >= 1 && record.byte_offset >= end);
        mb_fuzz_holds(f, !scanned || (count < n && offsets[count] == record.byte_offset &&
                                      lengths[count] == (int64_t)record.length));
        mb_fuzz_holds(f, (record.json == NULL) == (record.problem != NULL));
        end = record.byte_offset + (int64_t)record.length;
        mb_fuzz_holds(f, text == NULL || end <= (int64_t)text->length);
        mb_fuzz_holds(f, text == NULL || *record.bytes == 0 ||
                             memcmp(record.bytes, text->data + record.byte_offset, record.length) == 0);
        mb_fuzz_holds(f, record.problem == NULL || strncmp(record.problem, "line ", 5) == 0);
        if (record.json != NULL) *good += check_record(f, x, record.json);
        count++;
    }
    mb_fuzz_holds(f, !scanned || limit > 0 || (status == MB_OK && count == n));
    if (status != MB_OK) mb_fuzz_named(f, path);
    mb_records_close(&records);
    mb_free(offsets);
    mb_free(lengths);
}

/* The compressed form of s, itself changed now and then. */
static mb_str zip(mb_fuzz *f, const mb_str *s)
{
    mb_str zipped = MB_STR_EMPTY;
    z_stream z = {0};
    mb_test_ok(mb_str_reserve(&zipped, s->length + 1000));
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)(s->data != NULL ? s->data : (char *)"");
    z.avail_in = (uInt)s->length;
    z.next_out = (Bytef *)zipped.data;
    z.avail_out = (uInt)zipped.capacity;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    zipped.length = z.total_out;
    zipped.data[zipped.length] = 0;
    deflateEnd(&z);
    if (mb_fuzz_below(f, 2) == 0) return zipped;
    mb_str changed = mb_fuzz_mutate(f, zipped.data, zipped.length, liked);
    mb_str_destroy(&zipped);
    return changed;
}

static void test_records(void **state)
{
    const fixture *x = *state;
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 1500), first = mb_fuzz_number("MB_FUZZ_FIRST", 0);
    uint64_t good = 0;
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed + 1, i);
        const record_file *file = &record_files[i % (sizeof record_files / sizeof record_files[0])];
        mb_str text = mb_fuzz_mutate(&f, file->text, file->n, liked);
        char *path = mb_test_path(x->folder, file->name);
        if (file->gzip) {
            mb_str zipped = zip(&f, &text);
            mb_fuzz_write(path, &zipped);
            mb_str_destroy(&zipped);
        } else {
            mb_fuzz_write(path, &text);
        }
        check_records(&f, x, path, file->gzip ? NULL : &text, &good);
        mb_free(path);
        mb_str_destroy(&text);
        mb_fuzz_end(&f);
    }
    printf("# records: %llu files, %llu good dialogs\n", (unsigned long long)count, (unsigned long long)good);
    assert_true(count < 100 || good > count);
}

/* 4. template files */

static void test_templates(void **state)
{
    static const char *const names[] = {"chatml", "llama2", "qwen3", "llama3.1", "tulu3", "alpaca"};
    fixture *x = *state;
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 1000), first = mb_fuzz_number("MB_FUZZ_FIRST", 0);
    uint64_t opened = 0, rendered = 0;
    mb_str bases[6] = {{0}};
    char *path = mb_test_path(x->folder, "mine.json"), from[128];
    mb_template *const chatml = x->templates[0];
    for (int t = 0; t < 6; t++) {
        snprintf(from, sizeof from, "conf/template/%s.json", names[t]);
        mb_test_ok(mb_files_read(from, 0, &bases[t]));
    }
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed + 2, i);
        mb_template *tmpl = NULL;
        mb_str text = mb_fuzz_mutate(&f, bases[i % 6].data, bases[i % 6].length, liked);
        mb_fuzz_write(path, &text);
        if (mb_template_open("conf/template", path, &tmpl) == MB_OK) {
            mb_records *records = NULL;
            mb_record record = {0};
            char *sample = mb_test_path(x->folder, "sample.jsonl");
            opened++;
            mb_fuzz_holds(&f, mb_template_name(tmpl) != NULL && strlen(mb_template_hash(tmpl)) > 0);
            x->templates[0] = tmpl;
            mb_test_ok(mb_records_open(sample, 0, &records));
            while (mb_records_read(records, &record) == MB_OK && record.bytes != NULL)
                rendered += check_record(&f, x, record.json);
            x->templates[0] = chatml;
            mb_records_close(&records);
            mb_free(sample);
        } else {
            mb_fuzz_named(&f, path);
        }
        mb_template_close(&tmpl);
        mb_str_destroy(&text);
        mb_fuzz_end(&f);
    }
    for (int t = 0; t < 6; t++) mb_str_destroy(&bases[t]);
    mb_free(path);
    printf("# templates: %llu cases, %llu opened, %llu dialogs rendered\n", (unsigned long long)count,
           (unsigned long long)opened, (unsigned long long)rendered);
    assert_true(count < 100 || (opened > count / 8 && opened < count && rendered > opened));
}

/* 5. task files */

static const struct {
    const char *kind, *name, *text;
} task_files[] = {{"arc_easy", "t.jsonl",
                   "{\"id\": \"a\", \"question\": \"Why?\", \"choices\": {\"text\": [\"x\", \"y \xC3\xA9\"], "
                   "\"label\": [\"A\", \"B\"]},"
                   " \"answerKey\": \"B\"}\n{\"question\": \"q\", \"choices\": {\"text\": [\"x\", \"y\"], "
                   "\"label\": [\"1\", \"2\"]},"
                   " \"answerKey\": \"1\"}\n"},
                  {"hellaswag", "t.jsonl",
                   "{\"ind\": 1, \"activity_label\": \"Act\", \"ctx_a\": \"a\", \"ctx_b\": \"\xCE\xA3 b\", "
                   "\"ctx\": \"a b\","
                   " \"endings\": [\"[header] x [title] y\", \"z  z\"], \"label\": \"1\"}\n"},
                  {"choice", "t.jsonl",
                   "{\"query\": \"q \", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n{\"passage\": \"p\", "
                   "\"question\": \"q\","
                   " \"options\": [\"a\", \"b\"], \"answer\": \"A\"}\n{\"ctx\": \"c\", \"endings\": [\"a\", "
                   "\"b\"], \"label\": 0}\n"},
                  {"requests", "t.jsonl",
                   "{\"doc_id\": 0, \"idx\": 0, \"request\": {\"context\": \"c\", \"continuation\": \" a\"}, "
                   "\"label\": 1}\n"
                   "{\"doc_id\": 0, \"idx\": 1, \"request\": {\"context\": \"c\", \"continuation\": \" b\"}, "
                   "\"label\": 1}\n"
                   "{\"doc_id\": 1000000, \"idx\": 0, \"request\": {\"context\": \"\", \"continuation\": \" "
                   "b\"}, \"label\": 1}\n"},
                  {"mmlu", "mmlu/law_test.csv", "Who?,a,b,c,d,A\n\"Why, \"\"so\"\"?\",1,2,3,4,D\n"},
                  {"mmlu", "t.jsonl",
                   "{\"question\": \"q\", \"subject\": \"law\", \"choices\": [\"a\", \"b\", \"c\", \"d\"], "
                   "\"answer\": 2}\n"}};

static void check_task(mb_fuzz *f, const fixture *x, const mb_task *task)
{
    mb_ids context = {0}, continuation = {0};
    mb_tokenizer_scratch *scratch = NULL;
    mb_test_ok(mb_tokenizer_scratch_create(x->tokenizer, &scratch));
    mb_fuzz_holds(f, task->count >= 0 && task->name != NULL && task->delimiter != NULL);
    for (int64_t q = 0; q < task->count; q++) {
        const mb_task_question *question = &task->questions[q];
        mb_fuzz_holds(f, question->context != NULL && question->choice_count > 0);
        mb_fuzz_holds(f, question->gold >= 0 && question->gold < question->choice_count);
        for (int64_t c = 0; c < question->choice_count; c++) {
            int64_t characters = -1, bytes = -1;
            mb_task_choice_length(task, q, c, &characters, &bytes);
            mb_fuzz_holds(f, characters >= 0 && bytes >= characters &&
                                 bytes <= (int64_t)strlen(question->choices[c]));
            const mb_status status =
                mb_task_request(task, x->tokenizer, scratch, q, c, &context, &continuation);
            mb_fuzz_holds(f, status != MB_OK || (context.count > 0 && continuation.count > 0));
            mb_fuzz_holds(f, status == MB_OK || (status == MB_EDATA && *mb_status_message() != 0));
        }
    }
    mb_ids_destroy(&context);
    mb_ids_destroy(&continuation);
    mb_tokenizer_scratch_destroy(&scratch);
}

static void test_tasks(void **state)
{
    const fixture *x = *state;
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 1200), first = mb_fuzz_number("MB_FUZZ_FIRST", 0);
    const size_t kinds = sizeof task_files / sizeof task_files[0];
    uint64_t opened = 0;
    char *mmlu = mb_test_path(x->folder, "mmlu"), *dev = mb_test_path(x->folder, "mmlu/law_dev.csv");
    mb_test_ok(mb_files_make_folders(mmlu));
    mb_test_ok(mb_files_write(dev, "When?,a,b,c,d,C\n", 16));
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed + 3, i);
        mb_task *task = NULL;
        const char *kind = task_files[i % kinds].kind, *name = task_files[i % kinds].name;
        mb_str text =
            mb_fuzz_mutate(&f, task_files[i % kinds].text, strlen(task_files[i % kinds].text), liked);
        char *path = mb_test_path(x->folder, name);
        const bool folder = strchr(name, '/') != NULL;
        mb_fuzz_write(path, &text);
        if (mb_task_open(kind, folder ? mmlu : path, folder ? (int64_t)mb_fuzz_below(&f, 2) : 0,
                         (int64_t)mb_fuzz_below(&f, 3), &task) == MB_OK) {
            opened++;
            check_task(&f, x, task);
        } else {
            mb_fuzz_named(&f, folder ? mmlu : path);
        }
        mb_task_close(&task);
        mb_free(path);
        mb_str_destroy(&text);
        mb_fuzz_end(&f);
    }
    mb_free(mmlu);
    mb_free(dev);
    printf("# tasks: %llu cases, %llu opened\n", (unsigned long long)count, (unsigned long long)opened);
    assert_true(count < 100 || (opened > count / 8 && opened < count));
}

/* Setup and teardown of all. */

static void train(fixture *x)
{
    static const char text[] = "the cat sat on the mat; the other cat abab abab ab 12345 \xC3\xA9t\xC3\xA9";
    mb_bpe_train *trainer = NULL;
    char *folder = mb_test_path(x->folder, "trained"), *file = mb_test_path(folder, "tokenizer.json");
    mb_test_ok(mb_bpe_train_create(290, 2, NULL, &trainer));
    mb_test_ok(mb_bpe_train_add(trainer, text, sizeof text - 1));
    mb_test_ok(mb_bpe_train_write(trainer, folder));
    mb_bpe_train_destroy(&trainer);
    mb_test_ok(mb_files_read(file, 0, &x->trained));
    mb_test_ok(mb_tokenizer_open(folder, &x->tokenizer));
    mb_free(folder);
    mb_free(file);
}

static int setup(void **state)
{
    static const char *const names[] = {"chatml", "qwen3", "alpaca", "llama2"};
    fixture *x = mb_calloc(1, sizeof *x);
    x->folder = mb_test_folder_make();
    train(x);
    for (int t = 0; t < 4; t++) mb_test_ok(mb_template_open("conf/template", names[t], &x->templates[t]));
    mb_free(mb_test_write(x->folder, "sample.jsonl", lines));
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    fixture *x = *state;
    for (int t = 0; t < 4; t++) mb_template_close(&x->templates[t]);
    mb_tokenizer_close(&x->tokenizer);
    mb_str_destroy(&x->trained);
    mb_test_folder_remove(&x->folder);
    mb_free(x);
    return 0;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    mb_fuzz_quiet();
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_tokenizers, setup, teardown),
                                       cmocka_unit_test_setup_teardown(test_start, setup, teardown),
                                       cmocka_unit_test_setup_teardown(test_records, setup, teardown),
                                       cmocka_unit_test_setup_teardown(test_templates, setup, teardown),
                                       cmocka_unit_test_setup_teardown(test_tasks, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
