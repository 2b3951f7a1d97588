/* test_option: kinds, ranges, choices, finding, showing, help. */
#include "mb_test.h"

#include "base/option.h"

typedef struct settings {
    bool strict;
    int64_t lanes;
    double rate;
    char *mode;
    char *name;
    char *scores;
    char *mix;
} settings;

static const mb_option options[] = {
    MB_OPTION_BOOL(settings, strict, "run.strict", "true", "refuse what differs", NULL),
    MB_OPTION_INT(settings, lanes, "training.lanes", "8", 1, 64, "lanes", "lanes of a step",
                  "training.lane_count|lanes"),
    MB_OPTION_REAL(settings, rate, "training.learning_rate", "1e-4", 0, 1, "", "step size", "training.lr"),
    MB_OPTION_TEXT(settings, mode, "training.reduce", "fixed", "fixed|fast", "how lanes are added", NULL),
    MB_OPTION_TEXT(settings, name, "run.name", NULL, NULL, "name of the run", NULL),
    {.key = "score.names",
     .kind = MB_OPTION_KIND_LIST,
     .field = offsetof(settings, scores),
     .default_text = "ppl",
     .choices = "ppl|router|el2n",
     .unit = "",
     .help = "scores to compute"},
    MB_OPTION_JSON(settings, mix, "dataset.mix", NULL, "shares of the sources", NULL),
};

typedef struct fixture {
    settings values;
    mb_option_table table;
} fixture;

static int setup(void **state)
{
    fixture *f = mb_calloc(1, sizeof *f);
    f->table = (mb_option_table){"training", options, sizeof options / sizeof *options, &f->values};
    mb_test_ok(mb_option_defaults(&f->table));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    mb_option_free(&f->table);
    assert_null(f->values.mode);
    mb_free(f);
    return 0;
}

static mb_status set(fixture *f, const char *key, const char *text)
{
    const mb_option *option = mb_option_find(&f->table, 1, key, NULL, NULL);
    assert_non_null(option);
    return mb_option_set(&f->table, option, text, "a.cfg:3");
}

static void test_set(void **state)
{
    fixture *f = *state;
    settings *v = &f->values;
    assert_true(v->strict && v->lanes == 8 && v->rate == 1e-4 && v->name == NULL && v->mix == NULL);
    assert_string_equal(v->mode, "fixed");
    assert_string_equal(v->scores, "ppl");
    mb_test_ok(set(f, "run.strict", "off"));
    mb_test_ok(set(f, "training.lanes", "64"));
    mb_test_ok(set(f, "training.lr", "0.5"));
    mb_test_ok(set(f, "training.reduce", "fast"));
    mb_test_ok(set(f, "run.name", "x"));
    mb_test_ok(set(f, "score.names", "ppl, el2n"));
    mb_test_ok(set(f, "dataset.mix", "{\"a\": 1}"));
    assert_true(!v->strict && v->lanes == 64 && v->rate == 0.5);
    assert_string_equal(v->mode, "fast");
    assert_string_equal(v->name, "x");
    assert_string_equal(v->scores, "ppl, el2n");
    assert_string_equal(v->mix, "{\"a\": 1}");
    mb_test_ok(set(f, "run.name", NULL));
    mb_test_ok(set(f, "dataset.mix", ""));
    assert_true(v->name == NULL && v->mix == NULL);
}

static void test_refuse(void **state)
{
    fixture *f = *state;
    mb_test_fails(set(f, "run.strict", "2"), MB_EUSAGE, "a.cfg:3: run.strict: '2'");
    mb_test_fails(set(f, "training.lanes", "0"), MB_EUSAGE,
                  "a.cfg:3: training.lanes = 0 is outside 1..64 lanes");
    mb_test_fails(set(f, "training.lanes", "65"), MB_EUSAGE, "outside");
    mb_test_fails(set(f, "training.lanes", "many"), MB_EUSAGE, "a.cfg:3: training.lanes: 'many'");
    mb_test_fails(set(f, "training.lanes", "1e30"), MB_EUSAGE, "64 bits");
    mb_test_fails(set(f, "training.lanes", ""), MB_EUSAGE, "training.lanes");
    mb_test_fails(set(f, "training.lanes", NULL), MB_EUSAGE, "no value");
    mb_test_fails(set(f, "training.lr", "1.001"), MB_EUSAGE, "outside 0..1");
    mb_test_fails(set(f, "training.reduce", "fas"), MB_EUSAGE, "'fas' is not one of fixed|fast");
    mb_test_fails(set(f, "score.names", "ppl,nothing"), MB_EUSAGE, "'nothing'");
    mb_test_fails(set(f, "dataset.mix", "{\"a\": }"), MB_EUSAGE, "a.cfg:3: dataset.mix:1:");
    settings *v = &f->values;
    assert_true(v->strict && v->lanes == 8 && v->rate == 1e-4 && v->mix == NULL);
    assert_string_equal(v->mode, "fixed");
}

static void test_find(void **state)
{
    fixture *f = *state;
    const mb_option_table *table = NULL;
    bool alias = false;
    assert_ptr_equal(mb_option_find(&f->table, 1, "lanes", &table, &alias), &options[1]);
    assert_ptr_equal(table, &f->table);
    assert_true(alias);
    assert_ptr_equal(mb_option_find(&f->table, 1, "training.lanes", NULL, &alias), &options[1]);
    assert_false(alias);
    assert_null(mb_option_find(&f->table, 1, "lane", NULL, NULL));
    assert_null(mb_option_find(&f->table, 1, "", NULL, NULL));
    assert_string_equal(mb_option_nearest(&f->table, 1, "training.learning_rat"), "training.learning_rate");
    assert_string_equal(mb_option_nearest(&f->table, 1, "learning_rate"), "training.learning_rate");
    assert_string_equal(mb_option_nearest(&f->table, 1, "training.lane_cuont"),
                        "training.lanes"); /* by its alias */
    assert_null(mb_option_nearest(&f->table, 1, "completely.different_thing"));
}

static void test_show(void **state)
{
    fixture *f = *state;
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(set(f, "training.lr", "0.3"));
    for (int64_t i = 0; i < f->table.count; i++) {
        mb_test_ok(mb_option_print(&f->table, &options[i], &s));
        mb_test_ok(mb_str_add(&s, ";"));
    }
    assert_string_equal(s.data, "true;8;0.3;fixed;;ppl;;");
    mb_str_reset(&s);
    f->values.rate = 0.1 + 0.2;
    mb_test_ok(mb_option_print(&f->table, &options[2], &s));
    assert_true(strtod(s.data, NULL) == 0.1 + 0.2);
    mb_str_destroy(&s);
}

static void test_help(void **state)
{
    fixture *f = *state;
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(mb_option_help(&f->table, 1, &s));
    assert_true(mb_str_is_prefix(s.data, "training\n  run.strict              refuse what differs\n"));
    assert_non_null(strstr(s.data, "(int, default 8, 1..64 lanes, also training.lane_count, lanes)\n"));
    assert_non_null(strstr(s.data, "(real, default 1e-4, 0..1, also training.lr)\n"));
    assert_non_null(strstr(s.data, "(text, default fixed, one of fixed | fast)\n"));
    assert_non_null(strstr(s.data, "(json)\n"));
    mb_str_reset(&s);
    mb_test_ok(mb_option_markdown(&f->table, 1, &s));
    assert_non_null(strstr(
        s.data,
        "| `training.lanes` | int | `8` | 1..64 | lanes | lanes of a step | training.lane_count, lanes |\n"));
    for (const char *p = s.data; (p = strchr(p, '\n')) != NULL;
         p++) { /* every row of the table has 7 cells */
        int bars = 0;
        for (const char *q = p + 1; *q != 0 && *q != '\n'; q++) bars += *q == '|';
        assert_true(bars == 8 || bars == 0);
    }
    mb_str_destroy(&s);
}

static void test_lists(void **state)
{
    (void)state;
    char **items = NULL;
    int64_t count = -1;
    mb_test_ok(mb_option_list_split(" a, bc ,d ", &items, &count));
    assert_int_equal(count, 3);
    assert_string_equal(items[0], "a");
    assert_string_equal(items[1], "bc");
    assert_string_equal(items[2], "d");
    mb_option_list_free(&items, count);
    assert_null(items);
    mb_test_ok(mb_option_list_split(NULL, &items, &count));
    assert_int_equal(count, 0);
    mb_test_ok(mb_option_list_split(" ", &items, &count));
    assert_int_equal(count, 0);
    mb_option_list_free(&items, count);
    mb_test_fails(mb_option_list_split("a,,b", &items, &count), MB_EUSAGE, "item 2");
    mb_test_fails(mb_option_list_split("a,", &items, &count), MB_EUSAGE, "item 2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_set, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refuse, setup, teardown),
        cmocka_unit_test_setup_teardown(test_find, setup, teardown),
        cmocka_unit_test_setup_teardown(test_show, setup, teardown),
        cmocka_unit_test_setup_teardown(test_help, setup, teardown),
        cmocka_unit_test(test_lists),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
