/* compare_result, compare_table, named_paths: synthetic evaluations with known differences; tables that stay
 * legible; evaluations that do not belong together. */
#include "mb_test.h"

#include "base/rng.h"
#include "stage/compare_table.h"
#include "stage/named_paths.h"

enum { MODELS = 8, CATEGORIES = 5, RECORDS = 80, SEED = 3 };

typedef struct books {
    mb_category_book book[MODELS];
    const mb_category_book *at[MODELS];
    const char *name[MODELS];
} books;

/* Model m's loss per token is `hard + 0.05 m`, hard common to all; it is right with probability (m + 1) / 10. */
static mb_category_book make_book(int m)
{
    static const char *const names[CATEGORIES] = {"sop_strict", "reasoning", "mixed",
                                                  "a-rather-long-category-name", "text"};
    mb_category_book book = {.flops_per_token = 1e9 * (1 + (m == 2)), .parameters = 1e6, .count = CATEGORIES};
    book.entry = mb_calloc(CATEGORIES, sizeof *book.entry);
    book.measured_on =
        mb_strdup("cpu with a description that is much longer than it should be, of an instruction "
                  "set, of panels, of attention, 16 threads; 4 ranks");
    for (int c = 0; c < CATEGORIES; c++) {
        mb_category_entry *e = &book.entry[c];
        e->name = mb_strdup(names[c]);
        e->judged_by = mb_strdup("match=text");
        snprintf(e->file, sizeof e->file, "file%d", c);
        mb_test_ok(mb_category_result_create(RECORDS, &e->result));
        for (int64_t i = 0; i < RECORDS; i++) {
            const uint64_t at = (uint64_t)(c * RECORDS + i);
            const double hard = 2 + mb_rng_normal(SEED, MB_RNG_DATA, 1, at),
                         own = 0.02 * mb_rng_normal(SEED, MB_RNG_DATA, 2 + (uint32_t)m, at);
            e->result.tokens[i] = 1 + (int64_t)mb_rng_below(SEED, MB_RNG_DATA, 90, at, 30);
            e->result.nll[i] = (double)e->result.tokens[i] * (hard + 0.05 * m + own);
            e->result.hash[i] = at;
            if (c == 4) continue; /* plain text */
            e->result.kind[i] = MB_CATEGORY_ANSWER;
            e->result.correct[i] =
                mb_rng_uniform(SEED, MB_RNG_DATA, 40 + (uint32_t)m, at) < 0.1 * (m + 1) ? 1 : 0;
        }
        e->result.forward_tokens = 1000;
        e->result.forward_seconds = 0.1 * (m + 1);
    }
    return book;
}

static void make_books(books *b)
{
    static const char *const names[MODELS] = {"foundation", "sft",       "ensemble",       "btm-token",
                                              "btm-layer",  "distilled", "distilled-lora", "other"};
    for (int m = 0; m < MODELS; m++) {
        b->book[m] = make_book(m);
        b->at[m] = &b->book[m];
        b->name[m] = names[m];
    }
}

static void drop_books(books *b)
{
    for (int m = 0; m < MODELS; m++) mb_category_book_reset(&b->book[m]);
}

static void test_values(void **state)
{
    (void)state;
    books b;
    mb_compare_result r = {0}, turned = {0};
    const mb_compare_options options = {.baseline = 1, .draws = 1000, .seed = 7, .level = 0.95};
    make_books(&b);
    mb_test_ok(mb_compare_check(b.name, b.at, MODELS));
    mb_test_ok(mb_compare_make(b.name, b.at, MODELS, &options, &r));
    for (int m = 0; m < MODELS; m++) {
        double logs = 0, right = 0;
        for (int c = 0; c <= CATEGORIES; c++) {
            const mb_compare_cell *cell = mb_compare_get(&r, m, c);
            /* what all models find hard is in both: the difference is known far better than either */
            mb_test_near_abs(log(cell->ratio.value), 0.05 * (m - 1), 0, 0.01);
            assert_int_equal(mb_compare_excludes(&cell->ratio, 1), m != 1);
            if (m != 1)
                assert_true(log(cell->ratio.high / cell->ratio.low) <
                            0.2 * log(cell->perplexity.high / cell->perplexity.low));
            assert_true(cell->perplexity.low < cell->perplexity.value &&
                        cell->perplexity.value < cell->perplexity.high);
            if (c == CATEGORIES) break;
            const mb_category_summary s = mb_category_summarise(&b.book[m].entry[c].result);
            mb_test_near(cell->perplexity.value, s.perplexity, 1e-12);
            logs += log(s.perplexity);
            assert_true(c == 4 ? isnan(cell->accuracy.value) : cell->accuracy.value == s.accuracy);
            if (c < 4) right += s.accuracy;
        }
        const mb_compare_cell *mean = mb_compare_get(&r, m, CATEGORIES);
        mb_test_near(mean->perplexity.value, exp(logs / CATEGORIES), 1e-12);
        mb_test_near(mean->accuracy.value, right / 4, 1e-12); /* of the categories that have one */
        mb_test_near(mean->gain.value,
                     mean->accuracy.value - mb_compare_get(&r, 1, CATEGORIES)->accuracy.value, 1e-12);
    }
    assert_true(mb_compare_excludes(&mb_compare_get(&r, 7, 0)->gain, 0)); /* 80 % beside 20 % */
    /* another order of the models changes nothing */
    const char *names[2] = {b.name[7], b.name[1]};
    const mb_category_book *two[2] = {b.at[7], b.at[1]};
    mb_test_ok(mb_compare_make(names, two, 2, &options, &turned));
    for (int c = 0; c <= CATEGORIES; c++)
        assert_memory_equal(mb_compare_get(&turned, 0, c), mb_compare_get(&r, 7, c), sizeof(mb_compare_cell));
    mb_compare_reset(&turned);
    mb_compare_reset(&r);
    drop_books(&b);
}

/* Every model in every block, no line too long. */
static void test_table(void **state)
{
    (void)state;
    books b;
    mb_compare_result r = {0};
    mb_str text = MB_STR_EMPTY;
    const mb_compare_options options = {.draws = 200, .seed = 7, .level = 0.95};
    make_books(&b);
    mb_test_ok(mb_compare_make(b.name, b.at, MODELS, &options, &r));
    mb_test_ok(mb_compare_table_print(&r, &text));
    int64_t lines = 0, rows = 0;
    for (const char *at = mb_str_text(&text); *at != 0; lines++) {
        const size_t n = strcspn(at, "\n");
        if (n > 110) fail_msg("line %lld has %zu characters: %.*s", (long long)lines + 1, n, (int)n, at);
        rows += strncmp(at, "  distilled-lora ", 17) == 0;
        at += n + (at[n] == '\n');
    }
    print_message("# %lld lines\n", (long long)lines);
    assert_in_range(rows, 9, 13); /* four tables in two or three blocks, and the cost */
    assert_non_null(strstr(mb_str_text(&text), "2e+09 (x2.00)"));
    assert_non_null(strstr(mb_str_text(&text), "5000 (x2.00)")); /* half the rate */
    mb_str_destroy(&text);
    mb_compare_reset(&r);
    drop_books(&b);
}

static void test_refused(void **state)
{
    (void)state;
    books b;
    make_books(&b);
    mb_category_entry *e = &b.book[3].entry[1];
    e->file[0] = 'x';
    mb_test_fails(mb_compare_check(b.name, b.at, MODELS), MB_EDATA,
                  "foundation and btm-token evaluated different files");
    e->file[0] = 'f';
    e->result.tokens[5]++;
    mb_test_fails(mb_compare_check(b.name, b.at, MODELS), MB_EDATA, "record 5 has");
    snprintf(b.book[3].tokenizer, MB_HASH_TEXT, "other"); /* then tokens may differ, and are not compared */
    mb_test_ok(mb_compare_check(b.name, b.at, MODELS));
    mb_compare_result r = {0};
    const mb_compare_options options = {.draws = 100, .seed = 7, .level = 0.95};
    mb_test_ok(mb_compare_make(b.name, b.at, MODELS, &options, &r));
    assert_true(isnan(mb_compare_get(&r, 3, 1)->ratio.value) && !isnan(mb_compare_get(&r, 3, 1)->gain.value));
    mb_compare_reset(&r);
    snprintf(b.book[4].tmpl, MB_HASH_TEXT, "other");
    mb_test_fails(mb_compare_check(b.name, b.at, MODELS), MB_EDATA, "different templates");
    b.book[3].entry[1].result.hash[7]++;
    mb_test_fails(mb_compare_check(b.name, b.at, MODELS), MB_EDATA,
                  "record 7 of foundation is not that of btm-token");
    mb_free(e->name);
    e->name = mb_strdup("unknown");
    mb_test_fails(mb_compare_check(b.name, b.at, MODELS), MB_EDATA,
                  "foundation has a category reasoning, and btm-token has none");
    drop_books(&b);
}

static void test_named_paths(void **state)
{
    (void)state;
    static const char *const further[] = {"form", "match"};
    mb_named_paths p = {0};
    mb_test_ok(
        mb_named_paths_read("eval.categories", "a=x/y.jsonl,runs/eval-sft/,z/news.jsonl.gz", NULL, 0, &p));
    assert_int_equal(p.count, 3);
    assert_string_equal(p.item[0].path, "x/y.jsonl");
    assert_string_equal(p.item[1].name, "eval-sft");
    assert_string_equal(p.item[2].name, "news");
    mb_named_paths_reset(&p);
    mb_test_ok(mb_named_paths_read("eval.categories",
                                   "[{\"name\": \"a\", \"path\": \"b\", \"match\": \"number\"}, \"c=d\"]",
                                   further, 2, &p));
    assert_int_equal(p.count, 2);
    assert_null(p.item[0].more[0]);
    assert_string_equal(p.item[0].more[1], "number");
    assert_string_equal(p.item[1].name, "c");
    mb_named_paths_reset(&p);
    static const struct {
        const char *text, *message;
    } rows[] = {{"a=b,a=c", "two are named 'a'"},
                {"a b=c", "'a b' is no name"},
                {".x=c", "is no name"},
                {"a=", "has no path"},
                {"[{\"path\": \"b\", \"mach\": \"x\"}]", "did you mean match"},
                {"[{\"name\": \"b\"}]", "path"},
                {"[3]", "a group"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const mb_status status = mb_named_paths_read("k", rows[i].text, further, 2, &p);
        if (status == MB_OK || strstr(mb_status_message(), rows[i].message) == NULL)
            fail_msg("row %zu: %s, '%s'", i, mb_status_name(status), mb_status_message());
    }
    mb_test_ok(mb_named_paths_read("k", NULL, NULL, 0, &p));
    assert_int_equal(p.count, 0);
    mb_named_paths_reset(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_table),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_named_paths)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
