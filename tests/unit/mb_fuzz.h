/* mb_fuzz: what the fuzz tests share: seeded mutations of a text, and the checks around one case.
 *
 * Mutation i of a base text depends on (seed, i) only. MB_FUZZ_COUNT sets how many cases a test does,
 * MB_FUZZ_FIRST where it begins (to repeat one).
 */
#ifndef MB_FUZZ_H
#define MB_FUZZ_H

#include "mb_test.h"

#include <time.h>

#include "base/log.h"
#include "base/rng.h"
#include "base/str.h"

/* ---- draws ---- */

/* A sequence of draws for one case. */
typedef struct mb_fuzz {
    uint64_t seed, i;
    uint32_t draws;
    int64_t blocks; /* alive when the case began */
    clock_t began;
} mb_fuzz;

static inline uint64_t mb_fuzz_below(mb_fuzz *f, uint64_t n)
{
    return mb_rng_below(f->seed, MB_RNG_CORRUPT, f->draws++, f->i, n);
}

static inline uint64_t mb_fuzz_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 10) : otherwise;
}

/* ---- one case ---- */

static inline mb_fuzz mb_fuzz_begin(uint64_t seed, uint64_t i)
{
    mb_status_reset();
    return (mb_fuzz){.seed = seed, .i = i, .blocks = mb_memory_live_blocks(), .began = clock()};
}

/* No block is left, and the case took less than two seconds of processor time. */
static inline void mb_fuzz_end(const mb_fuzz *f)
{
    const double seconds = (double)(clock() - f->began) / CLOCKS_PER_SEC;
    if (mb_memory_live_blocks() != f->blocks)
        fail_msg("case %llu of seed %llu leaves %lld blocks", (unsigned long long)f->i,
                 (unsigned long long)f->seed, (long long)(mb_memory_live_blocks() - f->blocks));
    if (seconds > 2)
        fail_msg("case %llu of seed %llu took %.1f s", (unsigned long long)f->i, (unsigned long long)f->seed,
                 seconds);
}

/* A property of the case. */
#define mb_fuzz_holds(f, condition)                                                                          \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            fail_msg("case %llu of seed %llu: %s (message '%s')", (unsigned long long)(f)->i,                \
                     (unsigned long long)(f)->seed, #condition, mb_status_message());                        \
    } while (0)

/* A failure has a message that names `place`. */
static inline void mb_fuzz_named(const mb_fuzz *f, const char *place)
{
    if (strstr(mb_status_message(), place) == NULL)
        fail_msg("case %llu of seed %llu: '%s' does not name %s", (unsigned long long)f->i,
                 (unsigned long long)f->seed, mb_status_message(), place);
}

/* Warnings about mutated files would drown the results. */
static inline void mb_fuzz_quiet(void)
{
    setenv("MB_LOG", "error", 1);
    mb_log_init("fuzz", 0, 1, NULL);
}

/* Write a file quickly (no sync, no rename). */
static inline void mb_fuzz_write(const char *path, const mb_str *bytes)
{
    FILE *stream = fopen(path, "w");
    assert_non_null(stream);
    assert_int_equal(fwrite(mb_str_text(bytes), 1, bytes->length, stream), bytes->length);
    assert_int_equal(fclose(stream), 0);
}

/* ---- mutations ---- */

/* Replace bytes [first, end) of s by n other bytes. */
static inline void mb_fuzz_splice(mb_str *s, size_t first, size_t end, const char *bytes, size_t n)
{
    mb_str copy = MB_STR_EMPTY;
    mb_test_ok(mb_str_append(&copy, mb_str_text(s), first));
    mb_test_ok(mb_str_append(&copy, bytes, n));
    mb_test_ok(mb_str_append(&copy, mb_str_text(s) + end, s->length - end));
    mb_str_destroy(s);
    *s = copy;
}

/* End of the JSON-like value (string, group or word) that begins at `at`. */
static inline size_t mb_fuzz_value_end(const mb_str *s, size_t at)
{
    int depth = 0;
    bool quoted = false;
    for (size_t i = at; i < s->length; i++) {
        const char c = s->data[i];
        if (quoted && c == '\\') {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
            if (!quoted && depth == 0) return i + 1;
        } else if (quoted) {
            continue;
        } else if (c == '{' || c == '[' || c == '(') {
            depth++;
        } else if (c == '}' || c == ']' || c == ')') {
            if (--depth <= 0) return depth < 0 ? i : i + 1;
        } else if ((c == ',' || c == ';' || c == '\n') && depth == 0) {
            return i;
        }
    }
    return s->length;
}

/* Where a value begins: behind the first of ":=[,(" at or after a random byte. */
static inline size_t mb_fuzz_value_start(mb_fuzz *f, const mb_str *s)
{
    size_t at = (size_t)mb_fuzz_below(f, s->length);
    while (at < s->length && strchr(":=[,(", s->data[at]) == NULL) at++;
    if (at < s->length) at++;
    while (at < s->length && (s->data[at] == ' ' || s->data[at] == '\n')) at++;
    return at;
}

/* A value for another: one that a reader may trip over, or one from elsewhere in the text. */
static inline void mb_fuzz_swap_value(mb_fuzz *f, mb_str *s)
{
    static const char *const values[] = {"null",
                                         "true",
                                         "false",
                                         "0",
                                         "-1",
                                         "1",
                                         "2",
                                         "1e999",
                                         "1e-400",
                                         "4294967295",
                                         "4294967296",
                                         "16777216",
                                         "9223372036854775807",
                                         "-9223372036854775808",
                                         "99999999999999999999",
                                         "0.5",
                                         "\"\"",
                                         "\" \"",
                                         "\"\\u0000\"",
                                         "\"\\ud800\"",
                                         "\"\xC3\xA9\"",
                                         "\"\xEF\xBF\xBD\"",
                                         "[]",
                                         "{}",
                                         "[[]]",
                                         "[{}]",
                                         "[null]",
                                         "\"0\"",
                                         "\"A\"",
                                         "\"<0x41>\"",
                                         "[\"a\", \"b\"]",
                                         "{\"a\": \"b\"}"};
    mb_str value = MB_STR_EMPTY;
    const size_t first = mb_fuzz_value_start(f, s), end = mb_fuzz_value_end(s, first);
    if (mb_fuzz_below(f, 3) == 0) {
        const size_t from = mb_fuzz_value_start(f, s), to = mb_fuzz_value_end(s, from);
        mb_test_ok(mb_str_append(&value, s->data + from, to - from));
    } else {
        mb_test_ok(mb_str_add(&value, values[mb_fuzz_below(f, sizeof values / sizeof values[0])]));
    }
    if (end >= first) mb_fuzz_splice(s, first, end, mb_str_text(&value), value.length);
    mb_str_destroy(&value);
}

/* Many brackets inside each other, closed or not. */
static inline void mb_fuzz_nest(mb_fuzz *f, mb_str *s)
{
    static const char *const opens[] = {"[", "{\"a\":", "{a:", "(",
                                        "{\"type\":\"Sequence\",\"normalizers\":["};
    static const char *const closes[] = {"]", "}", "}", ")", "]}"};
    const uint64_t kind = mb_fuzz_below(f, 5), depth = 1 + mb_fuzz_below(f, 1u << mb_fuzz_below(f, 14));
    mb_str nest = MB_STR_EMPTY;
    for (uint64_t i = 0; i < depth; i++) mb_test_ok(mb_str_add(&nest, opens[kind]));
    if (mb_fuzz_below(f, 4) != 0) {
        mb_test_ok(mb_str_add(&nest, kind == 1 || kind == 2 ? "1" : ""));
        for (uint64_t i = 0; i < depth; i++) mb_test_ok(mb_str_add(&nest, closes[kind]));
    }
    const size_t first = mb_fuzz_value_start(f, s), end = mb_fuzz_value_end(s, first);
    if (end >= first) mb_fuzz_splice(s, first, end, nest.data, nest.length);
    mb_str_destroy(&nest);
}

/* A letter or digit for another of the text, so that the form stays whole. */
static inline void mb_fuzz_swap_letter(mb_fuzz *f, mb_str *s)
{
    size_t at[2];
    for (int k = 0; k < 2; k++) {
        at[k] = (size_t)mb_fuzz_below(f, s->length);
        while (at[k] < s->length && strchr("{}[]():=;,\"\\\n", s->data[at[k]]) != NULL) at[k]++;
    }
    if (at[0] < s->length && at[1] < s->length && (s->data[at[0]] & s->data[at[1]] & 0x80) == 0)
        s->data[at[0]] = s->data[at[1]];
}

/* One change: a byte, a span, a number, a value. */
static inline void mb_fuzz_change(mb_fuzz *f, mb_str *s, const char *liked)
{
    if (s->length == 0) mb_test_ok(mb_str_add(s, "{"));
    const uint64_t kind = mb_fuzz_below(f, 36);
    const size_t at = (size_t)mb_fuzz_below(f, s->length);
    const size_t limit = mb_fuzz_below(f, 4) == 0 ? s->length - at
                         : s->length - at < 24    ? s->length - at
                                                  : 24;
    const size_t span = (size_t)mb_fuzz_below(f, limit + 1);
    if (kind < 3) {
        s->data[at] ^= (char)(1 << mb_fuzz_below(f, 8));
    } else if (kind < 7) {
        s->data[at] = liked[mb_fuzz_below(f, strlen(liked))];
    } else if (kind < 8) {
        s->length = at;
        s->data[at] = 0;
    } else if (kind < 10) {
        mb_fuzz_splice(s, at, at + span, "", 0);
    } else if (kind < 12) { /* doubled */
        mb_str copy = MB_STR_EMPTY;
        mb_test_ok(mb_str_append(&copy, s->data + at, span));
        mb_fuzz_splice(s, at, at, mb_str_text(&copy), span);
        mb_str_destroy(&copy);
    } else if (kind < 14) { /* a number for a number */
        static const char *const numbers[] = {"0",   "-1",         "7",     "256", "65536",
                                              "1e9", "1000000000", "1e400", "-0.0"};
        size_t first = at;
        while (first < s->length && (s->data[first] < '0' || s->data[first] > '9')) first++;
        size_t end = first;
        while (end < s->length && s->data[end] >= '0' && s->data[end] <= '9') end++;
        const char *number = numbers[mb_fuzz_below(f, sizeof numbers / sizeof numbers[0])];
        mb_fuzz_splice(s, first, end, number, strlen(number));
    } else if (kind < 15) {
        mb_fuzz_nest(f, s);
    } else if (kind < 24) {
        mb_fuzz_swap_value(f, s);
    } else {
        mb_fuzz_swap_letter(f, s);
    }
}

/* One to four changes of a copy of `base`; liked: characters that the form likes. */
static inline mb_str mb_fuzz_mutate(mb_fuzz *f, const char *base, size_t n, const char *liked)
{
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_str_append(&s, base, n));
    const uint64_t changes = mb_fuzz_below(f, 2) == 0 ? 1 : 1 + mb_fuzz_below(f, 4);
    for (uint64_t c = 0; c < changes; c++) mb_fuzz_change(f, &s, liked);
    return s;
}

#endif
