/* test_config: precedence, includes, kinds, aliases, and what every message says. */
#include "mb_test.h"

#include "base/log.h"
#include "config/config.h"

typedef struct settings {
    int64_t lanes;
    double rate;
    char *peft;
    char *rule;
    double share;
    char *columns;
    char *sources;
    bool strict;
    char *path;
} settings;

static const mb_option training_options[] = {
    MB_OPTION_INT(settings, lanes, "training.lanes", "8", 1, 64, "", "lanes of a step", NULL),
    MB_OPTION_REAL(settings, rate, "training.learning_rate", "1e-4", 0, 1, "", "step size", "training.lr"),
    MB_OPTION_TEXT(settings, peft, "training.lora.r", NULL, NULL, "ranks", "training.peft_config.lora_r"),
    MB_OPTION_BOOL(settings, strict, "training.strict", "false", "refuse what differs", NULL),
};
static const mb_option score_options[] = {
    MB_OPTION_TEXT(settings, rule, "score.rule", "ppl", "ppl|router|el2n", "which score", NULL),
    MB_OPTION_REAL(settings, share, "score.share", "0.05", 0, 1, "", "share to keep",
                   "data_selection.selection_percentage"),
    MB_OPTION_LIST(settings, columns, "dataset.columns", "text", "columns to read", NULL),
    MB_OPTION_JSON(settings, sources, "dataset.sources", NULL, "where records come from", NULL),
    MB_OPTION_TEXT(settings, path, "dataset.path", NULL, NULL, "one file", "data_path|dataset"),
};
static const char known[] = "model|dataset|training|score|select|data_selection|data_path|eval";

typedef struct fixture {
    char *folder;
    settings values;
    mb_option_table tables[2];
    mb_config *config;
} fixture;

static int setup(void **state)
{
    fixture *f = mb_calloc(1, sizeof *f);
    f->folder = mb_test_folder_make();
    f->tables[0] = (mb_option_table){"training", training_options, 4, &f->values};
    f->tables[1] = (mb_option_table){"scoring", score_options, 5, &f->values};
    *state = f;
    return 0;
}

/* Forget a configuration, to use the next one. */
static void clear(fixture *f)
{
    mb_config_close(&f->config);
    mb_option_free(&f->tables[0]);
    mb_option_free(&f->tables[1]);
    f->values = (settings){0};
}

static int teardown(void **state)
{
    fixture *f = *state;
    clear(f);
    mb_test_folder_remove(&f->folder);
    mb_free(f);
    return 0;
}

static mb_status open_text(fixture *f, const char *text, const char *stage)
{
    clear(f);
    char *path = mb_test_write(f->folder, "study.cfg", text);
    mb_status status = mb_config_open(path, stage, &f->config);
    mb_free(path);
    return status;
}

/* Open, override by up to two assignments, apply. */
static mb_status apply(fixture *f, const char *text, const char *stage, const char *one, const char *two)
{
    mb_status status = MB_OK;
    MB_TRY(open_text(f, text, stage));
    if (one != NULL) MB_TRY(mb_config_override(f->config, one));
    if (two != NULL) MB_TRY(mb_config_override(f->config, two));
    MB_TRY(mb_config_apply(f->config, f->tables, 2, known, NULL, 0));
done:
    return status;
}

static void test_precedence(void **state)
{
    fixture *f = *state;
    const char *text = "training: { lanes = 2; learning_rate = 0.5; };\n"
                       "warmup: { training: { lanes = 4; }; };\n"
                       "finetune: { training: { lanes = 16; }; };\n";
    mb_test_ok(apply(f, "", NULL, NULL, NULL));
    assert_int_equal(f->values.lanes, 8); /* the table */
    mb_test_ok(apply(f, text, NULL, NULL, NULL));
    assert_int_equal(f->values.lanes, 2); /* the top */
    mb_test_ok(apply(f, text, "warmup", NULL, NULL));
    assert_int_equal(f->values.lanes, 4); /* the stage */
    assert_true(f->values.rate == 0.5);
    mb_test_ok(apply(f, text, "warmup", "training.lanes=32", "training.lanes=33"));
    assert_int_equal(f->values.lanes, 33); /* the command line, later ones win */
    mb_test_ok(apply(f, text, "warmup", "training.lanes=", "training.lora.r=16,64"));
    assert_int_equal(f->values.lanes, 8); /* unset: the table's default */
    assert_string_equal(f->values.peft, "16,64");
    mb_test_ok(apply(f, text, "warmup", "training.lora.r=a=b", "dataset.columns="));
    assert_string_equal(f->values.peft, "a=b");
    assert_null(f->values.columns);
    clear(f);
    mb_test_ok(mb_config_open(NULL, NULL, &f->config));
    mb_test_ok(mb_config_override(f->config, "score.rule=el2n"));
    mb_test_ok(mb_config_apply(f->config, f->tables, 2, known, NULL, 0));
    assert_string_equal(f->values.rule, "el2n");
    assert_true(f->values.share == 0.05);
}

static void test_kinds(void **state)
{
    fixture *f = *state;
    mb_test_ok(apply(f,
                     "training: { lanes = \"1e1\"; learning_rate = 1; lora: { r = 64 }; strict = true };\n"
                     "dataset: { columns = [\"a\", \"b\"]; sources: { web: { share = 0.3; n = 5000000000L }; "
                     "code = [1, 2] } };\n"
                     "score: { share = 0.1 };\n",
                     NULL, NULL, NULL));
    assert_int_equal(f->values.lanes, 10);
    assert_true(f->values.rate == 1 && f->values.share == 0.1 && f->values.strict);
    assert_string_equal(f->values.peft, "64");
    assert_string_equal(f->values.columns, "a,b");
    json_t *json = NULL;
    mb_test_ok(mb_json_parse(f->values.sources, strlen(f->values.sources), "sources", &json));
    double share = 0;
    int64_t n = 0;
    mb_test_ok(mb_json_get_real(json_object_get(json, "web"), "share", "sources", &share));
    mb_test_ok(mb_json_get_int(json_object_get(json, "web"), "n", "sources", &n));
    assert_true(share == 0.3 && n == INT64_C(5000000000));
    assert_int_equal(json_array_size(json_object_get(json, "code")), 2);
    json_decref(json);
    mb_test_ok(apply(f, "dataset: { columns = (1, 2.5, true); sources = ( { path = \"x\" }, \"y\" ) };", NULL,
                     NULL, NULL));
    assert_string_equal(f->values.columns, "1,2.5,true");
    assert_string_equal(f->values.sources, "[{\"path\": \"x\"}, \"y\"]");
    mb_test_ok(apply(f, "dataset: { columns = \"one\"; sources = \"[1, 2]\" }; training: { lanes = 1e1 };",
                     NULL, "dataset.sources={\"k\": 1}", NULL));
    assert_string_equal(f->values.columns, "one");
    assert_string_equal(f->values.sources, "{\"k\": 1}");
    assert_int_equal(f->values.lanes, 10);
}

static void test_messages(void **state)
{
    fixture *f = *state;
    static const struct {
        const char *text, *stage, *override, *part;
    } rows[] = {
        {"a: {};\ntraining: {\n  lanes = 2;\n  learnin_rate = 1;\n};", NULL, NULL,
         "study.cfg:4: unknown key 'training.learnin_rate'; did you mean training.learning_rate?"},
        {"warmup: {\n training: {\n  lans = 1; }; };", "warmup", NULL,
         "study.cfg:3: unknown key 'training.lans'; did you mean training.lanes?"},
        {"warmup: {\n learning_rate = 1.0; };", "warmup", NULL,
         "study.cfg:2: unknown key 'learning_rate'; did you mean training.learning_rate?"},
        {"", NULL, "training.lans=1",
         "command line: unknown key 'training.lans'; did you mean training.lanes?"},
        {"", NULL, "zzzz=1", "command line: unknown key 'zzzz'; --help"},
        {"", NULL, "lanes", "'lanes' is not key=value"},
        {"", NULL, "=3", "'=3' is not key=value"},
        {"\n\ntraining: { lanes = 100; };", NULL, NULL, "study.cfg:3: training.lanes = 100 is outside 1..64"},
        {"training: { lanes = 1.5; };", NULL, NULL,
         "study.cfg:1: training.lanes: '1.5' is not a whole number"},
        {"training: { lanes = true; };", NULL, NULL, "study.cfg:1: training.lanes: 'true'"},
        {"training: { lanes = [1, 2]; };", NULL, NULL, "study.cfg:1: training.lanes takes one value"},
        {"training: { lanes: { a = 1; }; };", NULL, NULL, "study.cfg:1: training.lanes takes one value"},
        {"score: { rule = \"pp\"; };", NULL, NULL,
         "study.cfg:1: score.rule = 'pp' is not one of ppl|router|el2n"},
        {"dataset: { columns = [\"a,b\"]; };", NULL, NULL, "study.cfg:1: item 1 of dataset.columns"},
        {"dataset: { sources = \"{\"; };", NULL, NULL, "study.cfg:1: dataset.sources:1:"},
        {"nothing = 3;", NULL, NULL, "study.cfg:1: unknown key 'nothing'"},
        {"a = 1;\nb = ;\n", NULL, NULL, "study.cfg:2: syntax error"},
        {"a: {\n b = 1;\n b = 2;\n};", NULL, NULL, "study.cfg:3: duplicate setting name"},
        {"training: { lora: { q = 1; }; };", NULL, NULL,
         "study.cfg:1: unknown key 'training.lora.q'; did you mean training.lora.r?"},
        {"training: {}; warmup: {};", "warmpu", NULL, "study.cfg: no group 'warmpu'; did you mean 'warmup'?"},
        {"training: {}; warmup: {};", "other", NULL, "study.cfg: no group 'other'; it has: training,warmup"},
        {"training: {\n lanes = 1\n", NULL, NULL, "syntax error"},
        {"@include base.cfg\n", NULL, NULL, "study.cfg:1: @include needs a name in quotes"},
        {"a: {};\n@include \"none.cfg\"\n", NULL, NULL, "study.cfg:2: "},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_status status = apply(f, rows[i].text, rows[i].stage, rows[i].override, NULL);
        mb_test_fails(status, strstr(rows[i].text, "none.cfg") ? MB_ENOTFOUND : MB_EUSAGE, rows[i].part);
    }
    clear(f);
    mb_test_fails(mb_config_open("/nowhere/a.cfg", NULL, &f->config), MB_ENOTFOUND, "/nowhere/a.cfg");
    mb_test_fails(mb_config_open(NULL, "warmup", &f->config), MB_EUSAGE, "no study file");
    assert_null(f->config);
}

/* What other programs and other stages read is not ours to refuse. */
static void test_not_ours(void **state)
{
    fixture *f = *state;
    mb_test_ok(apply(f,
                     "select: { anything = 1; };\n"           /* known, of another program */
                     "finetune: { whatever: { x = 1; }; };\n" /* another stage's */
                     "eval = 3;\n"                            /* a known word of another program */
                     "training: { lanes = 3; };\n",
                     NULL, NULL, NULL));
    assert_int_equal(f->values.lanes, 3);
}

/* A stage may be named like the first part of keys: score: { training: {...}; rule = ...; score: { share } }.
 */
static void test_stage_named_like_keys(void **state)
{
    fixture *f = *state;
    const char *text = "training: { lanes = 2; };\n"
                       "score: { rule = \"el2n\"; training: { lanes = 4; }; score: { share = 0.5; }; };\n"
                       "warmup: { training: { lanes = 6; }; };\n";
    mb_test_ok(apply(f, text, "score", NULL, NULL));
    assert_string_equal(f->values.rule, "el2n");
    assert_int_equal(f->values.lanes, 4);
    assert_true(f->values.share == 0.5);
    mb_test_ok(apply(f, text, "score", "rule=router", "score.share=0.25"));
    assert_string_equal(f->values.rule, "router");
    assert_true(f->values.share == 0.25);
    mb_test_ok(apply(f, text, "warmup", NULL, NULL)); /* as defaults: its keys count, its tree does not */
    assert_string_equal(f->values.rule, "el2n");
    assert_int_equal(f->values.lanes, 6);
    assert_true(f->values.share == 0.05);
    mb_test_fails(apply(f, "score: { rul = \"ppl\"; };", "score", NULL, NULL), MB_EUSAGE,
                  "did you mean score.rule?");
}

static void test_aliases(void **state)
{
    fixture *f = *state;
    mb_test_ok(apply(f,
                     "data_selection: { selection_percentage = 0.2; }; data_path = \"x.jsonl\";\n"
                     "training: { peft_config: { lora_r = 8; }; };",
                     NULL, "training.lr=0.125", NULL));
    assert_true(f->values.share == 0.2 && f->values.rate == 0.125);
    assert_string_equal(f->values.path, "x.jsonl");
    assert_string_equal(f->values.peft, "8");
    /* An alias may be a group too. */
    mb_test_ok(apply(f, "dataset = \"y.jsonl\";", NULL, NULL, NULL));
    assert_string_equal(f->values.path, "y.jsonl");
    mb_test_ok(apply(f, "dataset: { path = \"z.jsonl\"; columns = [\"q\"]; };", NULL, NULL, NULL));
    assert_string_equal(f->values.path, "z.jsonl");
    assert_string_equal(f->values.columns, "q");
    mb_test_fails(apply(f, "data_selection: {\n selection_percentag = 0.2; };", NULL, NULL, NULL), MB_EUSAGE,
                  "study.cfg:2: unknown key 'data_selection.selection_percentag'; did you mean score.share?");
}

/* Lines of the log that hold a word, after applying a configuration twice with the log in a file. */
static int count_logged(fixture *f, const char *text, const char *word)
{
    char *path = mb_test_path(f->folder, "log");
    mb_str s = MB_STR_EMPTY;
    int count = 0;
    mb_test_ok(mb_files_write(path, NULL, 0));
    unsetenv("MB_LOG");
    mb_log_init("test_config", 0, 1, path);
    mb_test_ok(apply(f, text, NULL, NULL, NULL));
    mb_test_ok(mb_config_apply(f->config, f->tables, 2, known, NULL, 0));
    setenv("MB_LOG", "error", 1);
    mb_log_init("test_config", 0, 1, NULL);
    mb_test_ok(mb_files_read(path, 0, &s));
    for (const char *p = mb_str_text(&s); (p = strstr(p, word)) != NULL; p++) count++;
    mb_str_destroy(&s);
    mb_free(path);
    return count;
}

static void test_reports(void **state)
{
    fixture *f = *state;
    assert_int_equal(count_logged(f, "training: {\n lr = 0.5; };",
                                  "study.cfg:2: training.lr is taken as training.learning_rate"),
                     1);
    assert_int_equal(count_logged(f, "training: { learning_rate = 0.5; };", "taken as"), 0);
    assert_true(count_logged(f, "\ntrainng: { lanes = 5; };",
                             "study.cfg:2: group 'trainng' is not read here; did you mean 'training'?") > 0);
    assert_int_equal(count_logged(f, "trainng: { training: { lanes = 5; }; };", "did you mean"),
                     0); /* a stage */
    assert_int_equal(count_logged(f, "warmup: { x = 1; };", "did you mean"), 0);
}

static void test_includes(void **state)
{
    fixture *f = *state;
    char *inner = mb_test_path(f->folder, "data"), *files[5];
    mb_test_ok(mb_files_make_folders(inner));
    files[0] = mb_test_write(f->folder, "base.cfg",
                             "@include \"data/web.cfg\"\ntraining: { lanes = 2; learning_rate = 0.5; };\n");
    files[1] = mb_test_write(inner, "web.cfg",
                             "  @include \"columns.cfg\"\ntraining: { lanes = 1; strict = true; };\n");
    files[2] = mb_test_write(inner, "columns.cfg",
                             "/* a {\n@include \"not this\"\n*/ # {\ndataset: { columns = [\"web\"]; };\n");
    files[3] = mb_test_write(f->folder, "part.cfg", "rule = \"router\";\n\nshare = 0.75;\n");
    mb_test_ok(
        apply(f,
              "training: { lanes = 3; };\n@include \"base.cfg\"\nscore: { // {\n  @include \"part.cfg\"\n};\n"
              "dataset: { path = \"{ \\\" [\"; };",
              NULL, NULL, NULL));
    assert_int_equal(f->values.lanes, 3); /* the including file wins, wherever the include stands */
    assert_true(f->values.rate == 0.5 && f->values.share == 0.75 && f->values.strict);
    assert_string_equal(f->values.columns, "web");
    assert_string_equal(f->values.rule, "router");
    assert_string_equal(f->values.path, "{ \" [");
    files[4] = mb_test_write(inner, "columns.cfg",
                             "dataset: {\n columnz = [\"web\"]; };\n"); /* places in included files */
    mb_test_fails(apply(f, "@include \"base.cfg\"\n", NULL, NULL, NULL), MB_EUSAGE,
                  "data/columns.cfg:2: unknown key 'dataset.columnz'; did you mean dataset.columns?");
    mb_free(files[3]);
    files[3] = mb_test_write(f->folder, "part.cfg", "\n\nshare = 7.5;\n");
    mb_test_fails(apply(f, "score: {\n@include \"part.cfg\"\n};\n", NULL, NULL, NULL), MB_EUSAGE,
                  "part.cfg:3: score.share = 7.5");
    mb_test_fails(apply(f, "score: {\n@include \"part.cfg\"\nrule = ;};\n", NULL, NULL, NULL), MB_EUSAGE,
                  "study.cfg:3: syntax");
    mb_test_fails(apply(f, "@include \"study.cfg\"\n", NULL, NULL, NULL), MB_EUSAGE, "include each other");
    for (int i = 0; i < 5; i++) mb_free(files[i]);
    mb_free(inner);
}

static void test_required(void **state)
{
    fixture *f = *state;
    static const mb_option options[] = {{.key = "dataset.path",
                                         .kind = MB_OPTION_KIND_TEXT,
                                         .field = offsetof(settings, path),
                                         .unit = "",
                                         .help = "one file",
                                         .required = true}};
    mb_option_table table = {"dataset", options, 1, &f->values};
    mb_test_ok(open_text(f, "", NULL));
    mb_test_fails(mb_config_apply(f->config, &table, 1, known, NULL, 0), MB_EUSAGE,
                  "study.cfg: dataset.path is missing (one file)");
    mb_test_ok(open_text(f, "dataset: { path = \"x\"; };", NULL));
    mb_test_ok(mb_config_apply(f->config, &table, 1, known, NULL, 0));
    assert_string_equal(f->values.path, "x");
    mb_test_ok(mb_config_override(f->config, "dataset.path="));
    mb_test_fails(mb_config_apply(f->config, &table, 1, known, NULL, 0), MB_EUSAGE,
                  "dataset.path is missing");
}

static void test_shown(void **state)
{
    fixture *f = *state;
    json_t *json = NULL;
    mb_str s = MB_STR_EMPTY;
    mb_test_ok(apply(f, "warmup: { training: { lanes = 4; }; }; x: {};", "warmup", "training.lr=0.1", NULL));
    mb_test_ok(mb_config_groups(f->config, &s));
    assert_string_equal(s.data, "warmup,x");
    mb_str_reset(&s);
    mb_test_ok(mb_config_resolved(f->tables, 2, &json));
    mb_test_ok(mb_json_print(json, 0, false, &s));
    assert_string_equal(
        s.data,
        "{\"dataset.columns\": \"text\", \"dataset.path\": \"\", \"dataset.sources\": \"\", "
        "\"score.rule\": \"ppl\", \"score.share\": \"0.05\", \"training.lanes\": \"4\", "
        "\"training.learning_rate\": \"0.1\", \"training.lora.r\": \"\", \"training.strict\": \"false\"}");
    mb_str_reset(&s);
    mb_test_ok(mb_config_print(f->tables, 2, &s));
    assert_true(mb_str_is_prefix(s.data, "training.lanes         = 4       # lanes of a step\n"));
    json_decref(json);
    mb_str_destroy(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_precedence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kinds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_messages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_ours, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stage_named_like_keys, setup, teardown),
        cmocka_unit_test_setup_teardown(test_aliases, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reports, setup, teardown),
        cmocka_unit_test_setup_teardown(test_includes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_required, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shown, setup, teardown),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    setenv("MB_LOG", "error", 1); /* reported aliases would stand between the lines of the tests */
    mb_log_init("test_config", 0, 1, NULL);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
