/* test_records: JSONL, JSON arrays, CSV, gzip; bad records with their place; scanning and seeking agree with
 * reading. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/records.h"

static char folder[] = "/tmp/mb_test_records_XXXXXX";

static char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *write_bytes(const char *name, const char *bytes, size_t n)
{
    const char *path = path_of(name);
    if (mb_str_is_suffix(name, ".gz")) {
        gzFile file = gzopen(path, "wb");
        assert_non_null(file);
        assert_int_equal(gzwrite(file, bytes, (unsigned)n), (int)n);
        assert_int_equal(gzclose(file), Z_OK);
    } else {
        assert_int_equal(mb_files_write(path, bytes, n), MB_OK);
    }
    return path;
}

static const char *write_text(const char *name, const char *text)
{
    return write_bytes(name, text, strlen(text));
}

static mb_records *open_ok(const char *path, int64_t max_bytes)
{
    mb_records *records = NULL;
    if (mb_records_open(path, max_bytes, &records) != MB_OK) fail_msg("%s", mb_status_message());
    return records;
}

static mb_record read_ok(mb_records *records)
{
    mb_record record;
    if (mb_records_read(records, &record) != MB_OK) fail_msg("%s", mb_status_message());
    return record;
}

static const char *string_of(const mb_record *record, const char *key)
{
    assert_non_null(record->json);
    assert_null(record->problem);
    const char *text = json_string_value(json_object_get(record->json, key));
    assert_non_null(text);
    return text;
}

static void expect_good(mb_records *records, const char *key, const char *value, int64_t index, int64_t line)
{
    const mb_record record = read_ok(records);
    assert_non_null(record.bytes);
    assert_string_equal(string_of(&record, key), value);
    assert_int_equal(record.index, index);
    assert_int_equal(record.line, line);
}

static void expect_bad(mb_records *records, const char *problem, int64_t index)
{
    const mb_record record = read_ok(records);
    assert_non_null(record.bytes);
    assert_null(record.json);
    assert_non_null(record.problem);
    if (strstr(record.problem, problem) == NULL)
        fail_msg("\"%s\" does not hold \"%s\"", record.problem, problem);
    assert_int_equal(record.index, index);
}

static void expect_end(mb_records *records)
{
    for (int i = 0; i < 2; i++) assert_null(read_ok(records).bytes);
}

static void expect_open_failure(const char *path, mb_status code, const char *message)
{
    mb_records *records = NULL;
    assert_int_equal(mb_records_open(path, 0, &records), code);
    assert_null(records);
    if (strstr(mb_status_message(), message) == NULL)
        fail_msg("\"%s\" does not hold \"%s\"", mb_status_message(), message);
    mb_status_reset();
}

static const char lines_text[] =
    "\xEF\xBB\xBF{\"a\":\"1\"}\n\n  \t\r\n{\"a\":\"2\"}\r\n  {\"a\":\"\xC3\xA9\"} \n{\"a\":\"4\"}";

static void test_lines(void **state)
{
    (void)state;
    const char *names[] = {"a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json", "a.json.gz", "a.txt", "a"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        mb_records *records = open_ok(write_text(names[i], lines_text), 0);
        expect_good(records, "a", "1", 0, 1);
        expect_good(records, "a", "2", 1, 4);
        expect_good(records, "a", "\xC3\xA9", 2, 5);
        const mb_record last = read_ok(records);
        assert_string_equal(string_of(&last, "a"), "4");
        assert_int_equal(last.length, 9);
        assert_memory_equal(last.bytes, "{\"a\":\"4\"}", 9);
        assert_int_equal(last.byte_offset, sizeof lines_text - 1 - 9);
        expect_end(records);
        mb_records_close(&records);
        assert_null(records);
    }
}

static void test_bad_lines(void **state)
{
    (void)state;
    static const char text[] = "{\"a\":\"1\"}\n"
                               "{\"a\": }\n"
                               "[1]\n"
                               "{\"a\":\"x\",\"a\":\"y\"}\n"
                               "{\"a\":\"\\ud800\"}\n"
                               "{\"a\":\"\\u0000\"}\n"
                               "{\"a\":\"\xff\"}\n"
                               "{\"a\":NaN}\n"
                               "{\"a\":\"1\"} x\n"
                               "{\"a\":\"z\0\"}\n"
                               "{\"a\":\"big\",\"n\":18446744073709551616}\n"
                               "{\"a\":1e400}\n"
                               "{\"a\":\"cut";
    mb_records *records = open_ok(write_bytes("bad.jsonl", text, sizeof text - 1), 0);
    expect_good(records, "a", "1", 0, 1);
    expect_bad(records, "line 2: broken JSON at column", 1);
    expect_bad(records, "line 3: the record is not a JSON object", 2);
    expect_bad(records, "line 4: broken JSON", 3);
    expect_bad(records, "line 5: broken JSON", 4);
    expect_good(records, "a", "", 5, 6); /* a text that holds a NUL */
    expect_bad(records, "line 7: broken JSON", 6);
    expect_bad(records, "line 8: broken JSON", 7);
    expect_bad(records, "line 9: broken JSON", 8);
    expect_bad(records, "line 10: the record holds a NUL byte", 9);
    expect_good(records, "a", "big", 10, 11);
    expect_bad(records, "line 12: broken JSON", 11);
    expect_bad(records, "line 13: broken JSON", 12);
    expect_end(records);
    mb_records_close(&records);
}

/* Records longer than the limit, some of them longer than the read buffer too. */
static void test_overlong(void **state)
{
    (void)state;
    const size_t sizes[] = {10, 90, 101, 300000, 700000, 20};
    const char *names[] = {"long.jsonl", "long.json", "long.csv", "long.jsonl.gz"};
    for (int form = 0; form < 4; form++) {
        mb_str s = MB_STR_EMPTY;
        if (form == 1) mb_str_add(&s, "[");
        if (form == 2) mb_str_add(&s, "a\n");
        for (size_t i = 0; i < 6; i++) {
            char *filler = mb_calloc(sizes[i] + 1, 1);
            memset(filler, 'x', sizes[i]);
            if (form == 2)
                mb_str_add_format(&s, "\"%s\"\r\n", filler);
            else
                mb_str_add_format(&s, "%s{\"a\":\"%s\"}%s", form == 1 && i > 0 ? "," : "", filler,
                                  form == 1 ? "" : " \r\n");
            mb_free(filler);
        }
        if (form == 1) mb_str_add(&s, "]");
        const char *path = write_bytes(names[form], s.data, s.length);
        mb_records *records = open_ok(path, 100);
        int64_t *offsets = NULL, *lengths = NULL, count = 0;
        assert_int_equal(mb_records_scan(path, &offsets, &lengths, &count), MB_OK);
        assert_int_equal(count, 6);
        for (int64_t i = 0; i < 6; i++) {
            const mb_record record = read_ok(records);
            assert_int_equal(record.index, i);
            assert_int_equal(record.length, sizes[i] + (form == 2 ? 2 : 8));
            assert_int_equal(record.length, lengths[i]);
            assert_int_equal(record.byte_offset, offsets[i]);
            assert_int_equal(s.data[offsets[i]], form == 2 ? '"' : '{');
            if (i >= 2 && i <= 4) {
                assert_string_equal(record.bytes, "");
                assert_non_null(strstr(record.problem, "over the limit of 100"));
            } else {
                assert_int_equal(strlen(string_of(&record, "a")), sizes[i]);
            }
        }
        expect_end(records);
        mb_records_close(&records);
        mb_free(offsets);
        mb_free(lengths);
        mb_str_destroy(&s);
    }
}

static void test_array(void **state)
{
    (void)state;
    static const char text[] = "\n [ {\"a\":\"1\",\n\"b\":{\"c\":[\"]\\\"}\"]}} ,\n{\"a\":\"2\"},3, \"x,]\", "
                               "{\"a\" 1},[{}],{\"a\":\"7\"}\n]\n";
    const char *names[] = {"b.json", "b.json.gz", "b.data"};
    for (int i = 0; i < 3; i++) {
        mb_records *records = open_ok(write_text(names[i], text), 0);
        expect_good(records, "a", "1", 0, 2);
        expect_good(records, "a", "2", 1, 4);
        expect_bad(records, "line 4: the record is not", 2);
        expect_bad(records, "line 4: ", 3);
        expect_bad(records, "line 4: broken JSON", 4);
        expect_bad(records, "line 4: the record is not", 5);
        expect_good(records, "a", "7", 6, 4);
        expect_end(records);
        mb_records_close(&records);
    }
    mb_records *records = open_ok(write_text("empty.json", "[ ]"), 0);
    expect_end(records);
    mb_records_close(&records);
}

static void test_broken_arrays(void **state)
{
    (void)state;
    const struct {
        const char *text;
        int good;
        const char *message;
    } cases[] = {
        {"[{\"a\":\"1\"}", 1, "no closing bracket"},
        {"[{\"a\":\"1\"},", 1, "no closing bracket"},
        {"[{\"a\":\"1\"} {\"a\":\"2\"}]", 1, "comma is missing"},
        {"[{\"a\":\"1\"},]", 1, "a record is missing"},
        {"[{\"a\":\"1\"}] x", 1, "behind the end"},
        {"[", 0, "no closing bracket"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_records *records = open_ok(write_text("c.json", cases[i].text), 0);
        mb_record record;
        for (int k = 0; k < cases[i].good; k++) expect_good(records, "a", "1", k, 1);
        assert_int_equal(mb_records_read(records, &record), MB_EFORMAT);
        assert_non_null(strstr(mb_status_message(), cases[i].message));
        assert_non_null(strstr(mb_status_message(), "c.json:1"));
        mb_status_reset();
        mb_records_close(&records);
    }
    mb_records *records = open_ok(write_text("cut.json", "[{\"a\":\"1\"},\n{\"a\":\"]"), 0);
    expect_good(records, "a", "1", 0, 1);
    expect_bad(records, "line 2: the file ends inside this record", 1);
    expect_end(records);
    mb_records_close(&records);
}

static void test_rows(void **state)
{
    (void)state;
    static const char text[] = "\xEF\xBB\xBFq,\"the \"\"answer\"\"\",n\r\n"
                               "one,\"two, \"\"three\"\"\nfour\",5\r\n"
                               "\r\n"
                               "a\"b,,\"\"\n"
                               "x,y\n"
                               "\"x\"y,1,2\n"
                               "\xff,1,2\n"
                               "\"open,1,2\nz,1,2\n";
    const char *names[] = {"r.csv", "r.csv.gz"};
    for (int i = 0; i < 2; i++) {
        mb_records *records = open_ok(write_text(names[i], text), 0);
        mb_record record = read_ok(records);
        assert_string_equal(string_of(&record, "q"), "one");
        assert_string_equal(string_of(&record, "the \"answer\""), "two, \"three\"\nfour");
        assert_string_equal(string_of(&record, "n"), "5");
        assert_int_equal(record.line, 2);
        assert_int_equal(record.index, 0);
        record = read_ok(records);
        assert_string_equal(string_of(&record, "q"), "a\"b");
        assert_string_equal(string_of(&record, "the \"answer\""), "");
        assert_string_equal(string_of(&record, "n"), "");
        assert_int_equal(record.line, 5);
        expect_bad(records, "line 6: has 2 fields, the header row has 3", 2);
        expect_bad(records, "line 7: text stands between", 3);
        expect_bad(records, "line 8: field 1 is not UTF-8", 4);
        expect_bad(records, "line 9: a quote is opened and never closed", 5);
        expect_end(records);
        mb_records_close(&records);
    }
    mb_records *records = open_ok(write_text("t.tsv", "a\tb\n1,2\t3\n"), 0);
    const mb_record record = read_ok(records);
    assert_string_equal(string_of(&record, "a"), "1,2");
    assert_string_equal(string_of(&record, "b"), "3");
    mb_records_close(&records);
    assert_int_equal(mb_records_open_rows(write_text("h.csv", "1,2\n"), 0, &records), MB_OK);
    expect_good(records, "1", "2", 0, 1);
    expect_end(records);
    mb_records_close(&records);
}

static void test_refused(void **state)
{
    (void)state;
    expect_open_failure("/nonexistent/x.jsonl", MB_ENOTFOUND, "/nonexistent/x.jsonl");
    expect_open_failure(folder, MB_EDATA, "is a folder");
    expect_open_failure(write_text("n.json", "12"), MB_EFORMAT, "neither");
    expect_open_failure(write_text("p.json", "{\n\"a\": 1\n}"), MB_EFORMAT,
                        "first line is not a whole object");
    expect_open_failure(write_text("e.json", ""), MB_EFORMAT, "neither");
    expect_open_failure(write_text("e.txt", "hello"), MB_EFORMAT, "name CSV files .csv");
    expect_open_failure(write_text("d.csv", "a,b,a\n"), MB_EFORMAT, "columns 1 and 3 are both named \"a\"");
    expect_open_failure(write_text("q.csv", "a,\"b\n"), MB_EFORMAT, "q.csv:1: header row: a quote");
    const char *plain = path_of("plain.jsonl.gz");
    assert_int_equal(mb_files_write(plain, "{}", 2), MB_OK);
    expect_open_failure(plain, MB_EFORMAT, "says gzip but it is not");
    mb_records *records = open_ok(write_text("e.jsonl", ""), 0);
    expect_end(records);
    mb_records_close(&records);
    records = open_ok(write_text("e.csv", ""), 0);
    expect_end(records);
    mb_records_close(&records);
}

/* A gzip file cut off, and one with a flipped byte, are errors, not the end of the data. */
static void test_broken_gzip(void **state)
{
    (void)state;
    mb_str s = MB_STR_EMPTY, packed = MB_STR_EMPTY;
    for (int i = 0; i < 20000; i++) mb_str_add_format(&s, "{\"a\":\"%d\"}\n", i * 7919 % 10007);
    const char *path = write_bytes("g.jsonl.gz", s.data, s.length);
    assert_int_equal(mb_files_read(path, 0, &packed), MB_OK);
    for (int kind = 0; kind < 2; kind++) {
        if (kind == 1) packed.data[packed.length / 2] ^= 0x55;
        assert_int_equal(mb_files_write(path, packed.data, kind == 0 ? packed.length / 2 : packed.length),
                         MB_OK);
        mb_records *records = NULL;
        mb_record record = {.bytes = ""};
        mb_status status = mb_records_open(path, 0, &records);
        while (status == MB_OK && record.bytes != NULL) status = mb_records_read(records, &record);
        assert_int_equal(status, MB_EFORMAT);
        assert_non_null(strstr(mb_status_message(), "broken gzip"));
        mb_status_reset();
        mb_records_close(&records);
    }
    mb_str_destroy(&s);
    mb_str_destroy(&packed);
}

/* For every form: scan gives what reading gives, and a seek to each record reads it again. */
static void test_scan_and_seek(void **state)
{
    (void)state;
    const struct {
        const char *name, *text;
    } cases[] = {
        {"s.jsonl", "\n{\"a\":1} \r\n  {\"a\":2}\n\n{\"a\":\n{\"a\":3}"},
        {"s.jsonl.gz", "\n{\"a\":1} \r\n  {\"a\":2}\n\n{\"a\":\n{\"a\":3}"},
        {"s.json", "[{\"a\":1},\n {\"a\" :\n2} , {\"a\":3}]"},
        {"s.csv", "a,b\n1,\"2\n3\"\r\n\n4,5\n6,7"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const char *path = write_text(cases[c].name, cases[c].text);
        int64_t *offsets = NULL, *lengths = NULL, count = 0;
        assert_int_equal(mb_records_scan(path, &offsets, &lengths, &count), MB_OK);
        mb_records *records = open_ok(path, 0), *second = open_ok(path, 0), *third = open_ok(path, 0);
        for (int64_t i = 0; i < count; i++) {
            const mb_record record = read_ok(records);
            if (i % 2 == 0) {
                int64_t at = -1;
                assert_int_equal(mb_records_pass(third, &at), MB_OK);
                assert_int_equal(at, offsets[i]);
            } else {
                const mb_record behind = read_ok(third);
                assert_int_equal(behind.index, i);
                assert_int_equal(behind.byte_offset, offsets[i]);
            }
            assert_int_equal(record.byte_offset, offsets[i]);
            assert_int_equal(record.length, lengths[i]);
            assert_memory_equal(record.bytes, cases[c].text + offsets[i], record.length);
            const int64_t other = count - 1 - i;
            assert_int_equal(mb_records_seek(second, offsets[other], other, 7), MB_OK);
            const mb_record again = read_ok(second);
            assert_int_equal(again.index, other);
            assert_int_equal(again.line, 7);
            assert_memory_equal(again.bytes, cases[c].text + offsets[other], lengths[other]);
        }
        expect_end(records);
        int64_t at = 0;
        assert_int_equal(mb_records_pass(third, &at), MB_OK);
        assert_int_equal(at, -1);
        mb_records_close(&records);
        mb_records_close(&second);
        mb_records_close(&third);
        mb_free(offsets);
        mb_free(lengths);
    }
}

static const char *shared_data(void)
{
    const char *root = getenv("MB_SHARED_DATA");
    return root != NULL ? root : "../shared/data";
}

static void test_real_files(void **state)
{
    (void)state;
    const struct {
        const char *name;
        int64_t count;
    } files[] = {
        {"gsm8k/train.jsonl", 7473},
        {"gsm8k/test.jsonl", 1319},
        {"alpaca/alpaca_en_first500.json", 500},
        {"alpaca/alpaca_zh.json", 1000},
        {"text/c4.jsonl", 300},
        {"chat/glaive_toolcall_en.json", 300},
        {"preference/dpo_en.json", 300},
        {"agieval/few_shot_prompts.csv", 10},
    };
    if (!mb_files_is_folder(shared_data())) {
        print_message("# skipped: %s is not there (MB_SHARED_DATA)\n", shared_data());
        skip();
    }
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char path[512];
        snprintf(path, sizeof path, "%s/datasets/%s", shared_data(), files[f].name);
        int64_t *offsets = NULL, *lengths = NULL, count = 0, index = 0;
        assert_int_equal(mb_records_scan(path, &offsets, &lengths, &count), MB_OK);
        assert_int_equal(count, files[f].count);
        mb_records *records = open_ok(path, 0);
        for (;; index++) {
            const mb_record record = read_ok(records);
            if (record.bytes == NULL) break;
            if (record.problem != NULL) fail_msg("%s: %s", path, record.problem);
            assert_int_equal(record.byte_offset, offsets[index]);
            assert_int_equal(record.length, lengths[index]);
        }
        assert_int_equal(index, count);
        mb_records_close(&records);
        mb_free(offsets);
        mb_free(lengths);
    }
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int teardown(void **state)
{
    (void)state;
    if (mb_files_remove_tree(folder) != MB_OK) return 1;
    if (mb_memory_live_blocks() != 0)
        print_message("# %lld blocks leaked\n", (long long)mb_memory_live_blocks());
    return mb_memory_live_blocks() != 0;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),         cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_overlong),      cmocka_unit_test(test_array),
        cmocka_unit_test(test_broken_arrays), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_broken_gzip),
        cmocka_unit_test(test_scan_and_seek), cmocka_unit_test(test_real_files),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
