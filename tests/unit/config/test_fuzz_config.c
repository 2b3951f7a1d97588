/* Mutated study files (and one they include): refused with a message that names the file, or applied with
 * every value inside its range. MB_FUZZ_COUNT sets how many (2000). */
#include "mb_fuzz.h"

#include "config/config.h"

static const uint64_t seed = 61;

#ifdef __SANITIZE_ADDRESS__
/* libconfig 1.5 loses a string's buffer when it stops in the middle of it; a program reads one study and
 * ends. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:strbuf_append\nleak:libconfig_yylex\n";
}
#endif

typedef struct settings {
    int64_t lanes;
    double rate;
    char *rule;
    char *columns;
    char *sources;
    bool strict;
    char *path;
} settings;

static const mb_option training_options[] = {
    MB_OPTION_INT(settings, lanes, "training.lanes", "8", 1, 64, "", "lanes of a step", NULL),
    MB_OPTION_REAL(settings, rate, "training.learning_rate", "1e-4", 0, 1, "", "step size", "training.lr"),
    MB_OPTION_BOOL(settings, strict, "training.strict", "false", "refuse what differs", NULL)};
static const mb_option score_options[] = {
    MB_OPTION_TEXT(settings, rule, "score.rule", "ppl", "ppl|router|el2n", "which score", NULL),
    MB_OPTION_LIST(settings, columns, "dataset.columns", "text", "columns to read", NULL),
    MB_OPTION_JSON(settings, sources, "dataset.sources", NULL, "where records come from", NULL),
    MB_OPTION_TEXT(settings, path, "dataset.path", NULL, NULL, "one file", "data_path")};
static const char known[] = "model|dataset|training|score|select|data_path|eval";

static const char main_text[] =
    "# a study\n"
    "@include \"base.cfg\"\n"
    "data_path = \"some/where\";\n"
    "training: { lanes = 4; lr = 2.5e-4; strict = true; };\n"
    "warmup: { training: { lanes = 0x10; learning_rate = 0.5 }; dataset: { columns = [\"a\", \"b\"]; }; };\n"
    "score: { rule = \"el2n\"; dataset: { sources = ( { path = \"x\"; share = 10L; }, \"y\" ); }; };\n"
    "/* more */ slip: { tranining = 1; };\n"
    "select = { threshold = -3; };\n";
static const char base_text[] =
    "training = { lanes = 2;\n@include \"inner.cfg\"\n};\n"
    "dataset: { path = \"a\" \"b\\n\\x41\"; };\nwarmup: { score: { rule = \"ppl\"; }; };\n";
static const char inner_text[] = "  strict = false; // inner\n";

typedef struct fixture {
    char *folder;
    char *paths[3];
} fixture;

static void check_values(const mb_fuzz *f, const settings *values)
{
    mb_fuzz_holds(f, values->lanes >= 1 && values->lanes <= 64);
    mb_fuzz_holds(f, values->rate >= 0 && values->rate <= 1);
    mb_fuzz_holds(f, values->rule == NULL || strcmp(values->rule, "ppl") == 0 ||
                         strcmp(values->rule, "router") == 0 || strcmp(values->rule, "el2n") == 0);
}

static void check_shown(const mb_fuzz *f, const mb_option_table *tables)
{
    json_t *json = NULL;
    mb_str text = MB_STR_EMPTY;
    mb_fuzz_holds(f, mb_config_resolved(tables, 2, &json) == MB_OK && json_object_size(json) == 7);
    mb_fuzz_holds(f,
                  mb_config_print(tables, 2, &text) == MB_OK && strstr(text.data, "training.lanes") != NULL);
    json_decref(json);
    mb_str_destroy(&text);
}

/* An open configuration: keys as text, groups, overrides, tables. */
static bool check_config(mb_fuzz *f, mb_config *config, const char *folder)
{
    static const char *const keys[] = {"training.lanes", "dataset", "warmup.dataset.columns", "data_path",
                                       "slip..x",        ".",       "training.lanes.x",       "select"};
    static const char *const assignments[] = {
        "training.lanes=64", "training.lanes=",  "dataset.sources={\"a\": 1}",
        "score.rule=pp",     "dataset.columns=", "rule=ppl"};
    settings values = {0};
    mb_option_table tables[2] = {{"training", training_options, 3, &values},
                                 {"scoring", score_options, 4, &values}};
    mb_str text = MB_STR_EMPTY;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (mb_config_text(config, keys[i], &text) != MB_OK) mb_fuzz_named(f, folder);
    mb_fuzz_holds(f, mb_config_groups(config, &text) == MB_OK);
    mb_str_destroy(&text);
    const uint64_t draw = mb_fuzz_below(f, 12);
    if (draw < 6) mb_fuzz_holds(f, mb_config_override(config, assignments[draw]) == MB_OK);
    const bool applied = mb_config_apply(config, tables, 2, known, NULL, 0) == MB_OK;
    if (applied) {
        check_values(f, &values);
        check_shown(f, tables);
    } else if (draw >= 6 || strstr(mb_status_message(), "command line") == NULL) {
        mb_fuzz_named(f, folder);
    }
    mb_option_free(&tables[0]);
    mb_option_free(&tables[1]);
    return applied;
}

static void test_study(void **state)
{
    static const char *const texts[] = {main_text, base_text, inner_text};
    static const char *const stages[] = {NULL, "warmup", "score"};
    const fixture *x = *state;
    const uint64_t count = mb_fuzz_number("MB_FUZZ_COUNT", 2000), first = mb_fuzz_number("MB_FUZZ_FIRST", 0);
    uint64_t opened = 0, applied = 0;
    for (uint64_t i = first; i < first + count; i++) {
        mb_fuzz f = mb_fuzz_begin(seed, i);
        mb_config *config = NULL;
        const uint64_t changed = mb_fuzz_below(&f, 8) < 5 ? 0 : 1 + mb_fuzz_below(&f, 2);
        for (uint64_t t = 0; t < 3; t++) {
            mb_str text = MB_STR_EMPTY;
            if (t == changed)
                text =
                    mb_fuzz_mutate(&f, texts[t], strlen(texts[t]), "0123456789[]{}(),:;=\"-e.@/*#\\ LaxtT\n");
            else
                mb_test_ok(mb_str_add(&text, texts[t]));
            mb_fuzz_write(x->paths[t], &text);
            mb_str_destroy(&text);
        }
        if (mb_config_open(x->paths[0], stages[mb_fuzz_below(&f, 3)], &config) == MB_OK) {
            opened++;
            applied += check_config(&f, config, x->folder);
        } else {
            mb_fuzz_named(&f, x->folder);
        }
        mb_config_close(&config);
        mb_fuzz_end(&f);
    }
    printf("# seed %llu: %llu cases, %llu opened, %llu applied\n", (unsigned long long)seed,
           (unsigned long long)count, (unsigned long long)opened, (unsigned long long)applied);
    assert_true(count < 100 || (opened > count / 10 && opened < count && applied > count / 100));
}

static int setup(void **state)
{
    static const char *const names[] = {"study.cfg", "base.cfg", "inner.cfg"};
    fixture *x = mb_calloc(1, sizeof *x);
    x->folder = mb_test_folder_make();
    for (int t = 0; t < 3; t++) x->paths[t] = mb_test_path(x->folder, names[t]);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    fixture *x = *state;
    for (int t = 0; t < 3; t++) mb_free(x->paths[t]);
    mb_test_folder_remove(&x->folder);
    mb_free(x);
    return 0;
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    mb_fuzz_quiet();
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_study, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
