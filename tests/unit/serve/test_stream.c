/* stream: the pieces of an answer are its text, whatever the decoder does with bytes; nothing is handed out
 * that a later token changes, and nothing is held back without need. */
#include "mb_test.h"

#include "base/rng.h"
#include "base/str.h"
#include "serve/stream.h"

enum { BYTE_LEVEL, BYTE_TOKENS, TOKENS = 150 };

static int special_id(int kind)
{
    return kind == BYTE_LEVEL ? 256 : 256 + 26;
}

static bool is_printable(int byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

/* The bytes as the letters of byte-level BPE: those that cannot be printed from U+0100 on. */
static void add_letters(mb_str *s)
{
    int next = 256;
    for (int i = 0; i < 256; i++)
        mb_test_ok(
            mb_str_add_format(s, "%s\"\\u%04x\": %d", i > 0 ? ", " : "", is_printable(i) ? i : next++, i));
}

/* 256 tokens of a byte each, with one special and, in the SentencePiece style, letters of their own. */
static mb_tokenizer *make_tokenizer(const char *folder, int kind)
{
    static const char *const decoders[] = {
        "{\"type\": \"ByteLevel\"}",
        "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": "
        "\"\u2581\"}, "
        "\"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}, {\"type\": \"Strip\", "
        "\"content\": \" \", \"start\": 1, \"stop\": 0}]}"};
    mb_tokenizer *tokenizer = NULL;
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_str_add_format(
        &s,
        "{\"added_tokens\": [{\"id\": %d, \"content\": \"<end>\", \"special\": true, \"single_word\": "
        "false, "
        "\"lstrip\": false, \"rstrip\": false, \"normalized\": false}], \"normalizer\": null, "
        "\"pre_tokenizer\": null, \"post_processor\": null, \"decoder\": %s, \"model\": {\"type\": \"BPE\", "
        "\"byte_fallback\": %s, \"merges\": [], \"vocab\": {",
        special_id(kind), decoders[kind], kind == BYTE_TOKENS ? "true" : "false"));
    if (kind == BYTE_LEVEL) add_letters(&s);
    for (int i = 0; i < 256 && kind == BYTE_TOKENS; i++)
        mb_test_ok(mb_str_add_format(&s, "%s\"<0x%02X>\": %d", i > 0 ? ", " : "", i, i));
    for (int i = 0; i < 26 && kind == BYTE_TOKENS; i++)
        mb_test_ok(mb_str_add_format(&s, ", \"%s%c\": %d", i % 3 == 0 ? "\u2581" : "", 'a' + i, 256 + i));
    mb_test_ok(mb_str_add(&s, "}}}"));
    char *path = mb_test_write(folder, "tokenizer.json", mb_str_text(&s));
    mb_test_ok(mb_tokenizer_open(path, &tokenizer));
    mb_free(path);
    mb_str_destroy(&s);
    return tokenizer;
}

/* Letters, whole characters of 2 to 4 bytes, single bytes of any kind, special tokens. */
static int64_t make_ids(int kind, uint32_t seed, uint32_t *ids)
{
    static const char *const characters[] = {"\u00e9", "\u20ac", "\U0001F600", "\u2581", "\ufffd"};
    int64_t n = 0;
    while (n < TOKENS) {
        const uint64_t draw = mb_rng_below(3, MB_RNG_DATA, seed, (uint64_t)n, 1000);
        if (draw < 40) {
            ids[n++] = (uint32_t)special_id(kind);
        } else if (draw < 150) {
            ids[n++] = (uint32_t)(draw * 7 % 256);
        } else if (draw < 350) {
            for (const char *c = characters[draw % 5]; *c != 0 && n < TOKENS; c++)
                ids[n++] = (unsigned char)*c;
        } else {
            ids[n++] =
                (uint32_t)(kind == BYTE_LEVEL ? (draw % 4 == 0 ? ' ' : 'a' + draw % 26) : 256 + draw % 26);
        }
    }
    return n;
}

static const mb_answer_stops no_stops = {0};

static void check_pieces(int kind)
{
    char *folder = mb_test_folder_make();
    mb_tokenizer *tokenizer = make_tokenizer(folder, kind);
    uint32_t ids[TOKENS];
    int64_t at_once = 0, wide = 0;
    for (uint32_t seed = 0; seed < 60; seed++) {
        const int64_t n = make_ids(kind, seed, ids), prompt = seed % 5;
        mb_stream stream = {0};
        mb_str whole = MB_STR_EMPTY, pieces = MB_STR_EMPTY;
        const char *text;
        size_t length;
        mb_test_ok(mb_answer_text(tokenizer, ids, prompt, ids + prompt, n - prompt, &whole));
        for (int64_t count = prompt + 1; count <= n; count++) {
            mb_test_ok(mb_stream_push(&stream, tokenizer, &no_stops, ids, prompt, count, &text, &length));
            assert_true(mb_str_is_utf8(text, length, NULL));
            mb_test_ok(mb_str_append(&pieces, text, length));
            at_once += length > 0;
        }
        wide += stream.base > prompt;
        mb_stream_end(&stream, mb_str_text(&whole), whole.length, &text, &length);
        mb_test_ok(mb_str_append(&pieces, text, length));
        assert_int_equal(pieces.length, whole.length);
        assert_memory_equal(mb_str_text(&pieces), mb_str_text(&whole), whole.length);
        mb_stream_reset(&stream);
        mb_str_destroy(&whole);
        mb_str_destroy(&pieces);
    }
    assert_true(at_once > 60 * TOKENS / 3);
    assert_true(wide > 50);
    mb_tokenizer_close(&tokenizer);
    mb_test_folder_remove(&folder);
}

static void test_byte_level(void **state)
{
    (void)state;
    check_pieces(BYTE_LEVEL);
}

static void test_byte_tokens(void **state)
{
    (void)state;
    check_pieces(BYTE_TOKENS);
}

static mb_str push_text(const mb_tokenizer *tokenizer, const mb_answer_stops *stops, const char *answer)
{
    mb_stream stream = {0};
    mb_str pieces = MB_STR_EMPTY;
    uint32_t ids[64];
    const char *text;
    size_t length;
    for (int64_t n = 0; answer[n] != 0; n++) {
        ids[n] = (unsigned char)answer[n];
        mb_test_ok(mb_stream_push(&stream, tokenizer, stops, ids, 0, n + 1, &text, &length));
        mb_test_ok(mb_str_append(&pieces, text, length));
        mb_test_ok(mb_str_add(&pieces, "|"));
    }
    mb_stream_reset(&stream);
    return pieces;
}

/* Letters come at once; a character with its last byte; what may begin a stop string when it cannot any more. */
static void test_held_back(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_tokenizer *tokenizer = make_tokenizer(folder, BYTE_LEVEL);
    mb_answer_stops stops = {0};
    mb_str got = push_text(tokenizer, &no_stops, "ab \u20acc");
    assert_string_equal(mb_str_text(&got), "a|b| |||\u20ac|c|");
    mb_str_destroy(&got);
    mb_test_ok(mb_answer_stops_read("[\"User:\", \"\\n\\n\"]", &stops));
    got = push_text(tokenizer, &stops, "a\nb UserUsex");
    assert_string_equal(mb_str_text(&got), "a||\nb| |||||User|||Usex|");
    mb_str_destroy(&got);
    mb_answer_stops_reset(&stops);
    mb_tokenizer_close(&tokenizer);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_byte_level), cmocka_unit_test(test_byte_tokens),
                                       cmocka_unit_test(test_held_back)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
