/* category: kinds, prompts and expected answers of records; losses against every record computed alone, in any
 * tiles and cut; choices against choice.h; faults with their place. */
#include "measure_fixture.h"

#include "measure/category.h"
#include "measure/choice.h"
#include "store/shard_maker.h"

static const char *const lines[] = {
    "{\"question\": \"What is red?\", \"answer\": \"blood\"}",
    "{\"text\": \"plain text that goes on for a while\"}",
    "{\"prompt\": \"2 + 3\", \"completion\": \"5\"}",
    "{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}, {\"role\": \"assistant\", \"content\": "
    "\"two\"}, "
    "{\"role\": \"user\", \"content\": \"three\"}, {\"role\": \"assistant\", \"content\": \"four\"}]}",
    "{\"question\": \"Which?\", \"choices\": [\"this\", \"that one\", \"another\"], \"answer\": 1}",
    "{\"instruction\": \"Count\", \"input\": \"a b\", \"output\": \"2\"}",
    "{\"question\": \"How many?\", \"answer\": 12}",
    "{\"question\": \"And which?\", \"choices\": [\"yes\", \"no\"], \"answer\": \"A\"}",
};
enum { RECORDS = sizeof lines / sizeof *lines };

typedef struct rig {
    fixture f;
    mb_lm *lm;
    mb_template *tmpl;
    mb_shard_build_options build;
    mb_option_table table;
    char *path;
} rig;

static void write_lines(const char *path, const char *const *line, int64_t n)
{
    mb_str text = MB_STR_EMPTY;
    for (int64_t i = 0; i < n; i++) mb_test_ok(mb_str_add_format(&text, "%s\n", line[i]));
    mb_test_ok(mb_files_write(path, mb_str_text(&text), text.length));
    mb_str_destroy(&text);
}

static void set_text(char **text, const char *value)
{
    mb_free(*text);
    *text = mb_strdup(value);
}

static void rig_open(const char *tmpl, rig *out)
{
    mb_tokenizer *tokenizer = NULL;
    *out = (rig){.f = fixture_open("ref")};
    out->path = mb_test_path(out->f.folder, "records.jsonl");
    write_lines(out->path, lines, RECORDS);
    out->table = (mb_option_table){.target = &out->build};
    out->table.options = mb_shard_build_option_table(&out->table.count);
    mb_test_ok(mb_option_defaults(&out->table));
    set_text(&out->build.inputs, out->path);
    set_text(&out->build.tokenizer_path, out->f.folder);
    mb_test_ok(mb_shard_build_tokenizer(&out->build, 300, 1, out->f.folder));
    mb_test_ok(mb_tokenizer_open(out->f.folder, &tokenizer));
    mb_test_ok(mb_shard_build_template_named(&out->build, tmpl, tokenizer, &out->tmpl));
    const mb_arch arch = {.family = MB_FAMILY_LLAMA,
                          .width = 16,
                          .layers = 1,
                          .heads = 2,
                          .kv_heads = 2,
                          .head_width = 8,
                          .ffn = 24,
                          .vocab = mb_tokenizer_count(tokenizer),
                          .max_positions = 128,
                          .rms_eps = 1e-5,
                          .rope_theta = 10000,
                          .initializer_range = 0.5,
                          .stored_dtype = MB_F32,
                          .bos = -1,
                          .eos = -1,
                          .pad = -1};
    mb_test_ok(mb_lm_create(out->f.ops, &arch, "none", FIXTURE_SEED, &out->lm));
    mb_tokenizer_close(&tokenizer);
}

static void rig_close(rig *r)
{
    mb_option_free(&r->table);
    mb_template_close(&r->tmpl);
    mb_lm_destroy(&r->lm);
    mb_free(r->path);
    fixture_close(&r->f);
}

static mb_category *open_category(const rig *r, mb_category_file *file)
{
    mb_category *category = NULL;
    file->name = "test";
    file->path = r->path;
    mb_test_ok(mb_category_open(file, &r->build, r->tmpl, &category));
    return category;
}

/* ---- records ---- */

static void check_text(const char *what, int64_t record, const char *got, size_t n, const char *expected)
{
    if (expected == NULL ? got == NULL : got != NULL && strlen(expected) == n && strcmp(got, expected) == 0)
        return;
    fail_msg("%s of record %lld: '%s', expected '%s'", what, (long long)record, got != NULL ? got : "none",
             expected != NULL ? expected : "none");
}

static void test_records(void **state)
{
    static const struct {
        mb_category_kind kind;
        const char *prompt, *expected;
    } rows[RECORDS] = {
        {MB_CATEGORY_ANSWER, "<|user|>\nWhat is red?\n<|assistant|>\n", "blood"},
        {MB_CATEGORY_TEXT, NULL, NULL},
        {MB_CATEGORY_ANSWER, "<|user|>\n2 + 3\n<|assistant|>\n", "5"},
        {MB_CATEGORY_ANSWER,
         "<|user|>\none\n<|assistant|>\ntwo<|endoftext|>\n<|user|>\nthree\n<|assistant|>\n", "four"},
        {MB_CATEGORY_CHOICE, NULL, NULL},
        {MB_CATEGORY_ANSWER, "<|user|>\nCount\na b\n<|assistant|>\n", "2"},
        {MB_CATEGORY_ANSWER, "<|user|>\nHow many?\n<|assistant|>\n", "12"},
        {MB_CATEGORY_CHOICE, NULL, NULL},
    };
    (void)state;
    rig r;
    rig_open("tulu", &r);
    mb_category_file file = {0};
    mb_category *category = open_category(&r, &file);
    assert_int_equal(mb_category_count(category), RECORDS);
    assert_int_equal(mb_category_kinds(category, MB_CATEGORY_ANSWER), 5);
    assert_int_equal(mb_category_kinds(category, MB_CATEGORY_CHOICE), 2);
    for (int64_t i = 0; i < RECORDS; i++) {
        size_t n;
        assert_int_equal(mb_category_kind_get(category, i), rows[i].kind);
        const char *text = mb_category_prompt(category, i, &n);
        /* the template's own begin mark, where the tokenizer has one, is part of the prompt */
        check_text("prompt", i, text, n, rows[i].prompt);
        text = mb_category_expected(category, i, &n);
        check_text("answer", i, text, n, rows[i].expected);
    }
    mb_category_close(&category);
    file.limit = 3;
    category = open_category(&r, &file);
    assert_int_equal(mb_category_count(category), 3);
    mb_category_close(&category);
    rig_close(&r);
}

/* ---- losses ---- */

/* Of one record by itself, straight from the maker's tokens and mask. */
static double loss_alone(const rig *r, const char *line, int64_t limit, int64_t *out_targets)
{
    mb_shard_maker maker = {0};
    const mb_shard_input input = {0};
    json_t *json = NULL;
    int32_t ids[256], positions[256], rows[256], targets[256], offsets[2] = {0, 0};
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.no_routing = true};
    double sum = 0;
    mb_test_ok(mb_json_parse(line, strlen(line), "line", &json));
    mb_test_ok(mb_shard_maker_open(&r->build, false, &maker));
    mb_test_ok(mb_shard_maker_make(&maker, &input, r->tmpl, json));
    const mb_shard_side *side = &maker.sides[0];
    const int64_t n = side->ids.count < limit ? side->ids.count : limit;
    int64_t heads = 0;
    assert_true(n < 256);
    for (int64_t t = 0; t < n; t++) {
        ids[t] = (int32_t)side->ids.data[t];
        positions[t] = (int32_t)t;
        if (t == 0 || !side->mask[t]) continue;
        rows[heads] = (int32_t)t - 1;
        targets[heads++] = ids[t];
    }
    offsets[1] = (int32_t)n;
    const mb_lm_batch batch = {.tokens = n,
                               .segments = 1,
                               .ids = ids,
                               .positions = positions,
                               .offsets = offsets,
                               .head_rows = heads,
                               .head_row = rows,
                               .targets = targets};
    mb_test_ok(mb_lm_pass_create(r->lm, &pass));
    if (heads > 0) mb_test_ok(mb_lm_forward(pass, &batch, &want, &out));
    for (int64_t h = 0; h < heads; h++) sum += out.token_loss[h];
    *out_targets = heads;
    mb_lm_pass_destroy(&pass);
    mb_shard_maker_close(&maker);
    json_decref(json);
    return sum;
}

static void check_losses(const rig *r, const mb_category *category, int64_t max_length)
{
    static const int64_t tiles[] = {16, 60, 1 << 16};
    /* as category.c reads the two that no form of a dialog fits */
    const char *usual[RECORDS];
    memcpy(usual, lines, sizeof usual);
    usual[2] = "{\"question\": \"2 + 3\", \"answer\": \"5\"}";
    usual[6] = "{\"question\": \"How many?\", \"answer\": \"12\"}";
    double first[RECORDS];
    for (int t = 0; t < 3; t++) {
        const mb_category_options options = {
            .max_length = max_length, .tile_tokens = tiles[t], .warm_up = t == 1};
        mb_category_result result = {0};
        mb_test_ok(mb_category_score(r->f.comm, r->lm, category, &options, &result));
        int64_t tokens = 0;
        if (t == 0) memcpy(first, result.nll, sizeof first);
        assert_memory_equal(first, result.nll, sizeof first); /* the same bits in any tiles */
        for (int64_t i = 0; i < RECORDS; i++) {
            if (result.kind[i] == MB_CATEGORY_CHOICE) continue;
            int64_t targets = 0;
            const double nll = loss_alone(r, usual[i], max_length > 0 ? max_length : 128, &targets);
            assert_int_equal(result.tokens[i], targets);
            mb_test_near_abs(result.nll[i], nll, 1e-6, 1e-9);
            assert_true(isnan(result.correct[i]));
            tokens += targets;
        }
        assert_true(tokens > 20 && result.forward_tokens > tokens && result.forward_seconds > 0);
        assert_true(result.context > 1 && result.context < 128);
        mb_category_result_reset(&result);
    }
}

static void test_losses(void **state)
{
    (void)state;
    rig r;
    rig_open("tulu", &r);
    mb_category_file file = {0};
    mb_category *category = open_category(&r, &file);
    check_losses(&r, category, 0);
    mb_category_close(&category);
    rig_close(&r);
    rig_open("lines", &r);
    category = open_category(&r, &file);
    check_losses(&r, category, 12);
    mb_category_close(&category);
    rig_close(&r);
}

/* ---- choices ---- */

static void test_choices(void **state)
{
    (void)state;
    static const int64_t at[2] = {4, 7};
    rig r;
    rig_open("lines", &r);
    mb_category_file file = {0};
    mb_category *category = open_category(&r, &file);
    char *path = mb_test_path(r.f.folder, "choices.jsonl");
    const char *both[2] = {lines[4], lines[7]};
    mb_task *task = NULL;
    mb_tokenizer *tokenizer = NULL;
    mb_choice_result choices = {0};
    write_lines(path, both, 2);
    mb_test_ok(mb_task_open("choice", path, 0, 0, &task));
    mb_test_ok(mb_tokenizer_open(r.f.folder, &tokenizer));
    mb_test_ok(mb_choice_run(r.f.comm, r.lm, task, tokenizer, 0, 64, MB_F32, 0, &choices));
    for (int by = 0; by < 3; by++) {
        const mb_category_options options = {.tile_tokens = 64, .by = (mb_category_by)by};
        mb_category_result result = {0};
        mb_test_ok(mb_category_score(r.f.comm, r.lm, category, &options, &result));
        for (int q = 0; q < 2; q++) {
            const mb_choice_question *asked = &choices.questions[q];
            const int64_t gold = task->questions[q].gold,
                          picked[3] = {asked->picked, asked->picked_norm, asked->picked_bytes};
            assert_true(result.nll[at[q]] == -asked->loglik[gold]);
            assert_true(result.tokens[at[q]] > 0);
            assert_true(result.correct[at[q]] == (picked[by] == gold));
        }
        const mb_category_summary s = mb_category_summarise(&result);
        assert_int_equal(s.judged, 2);
        mb_test_near(s.accuracy, (result.correct[4] + result.correct[7]) / 2, 1e-15);
        mb_category_result_reset(&result);
    }
    mb_choice_result_reset(&choices);
    mb_task_close(&task);
    mb_tokenizer_close(&tokenizer);
    mb_category_close(&category);
    mb_free(path);
    rig_close(&r);
}

/* ---- faults, figures ---- */

static void test_faults(void **state)
{
    (void)state;
    static const struct {
        const char *line, *message;
    } rows[] = {
        {"{\"question\": \"a?\"}", "line 2"},
        {"{\"question\": ", "line 2"},
        {"{\"question\": \"a?\", \"choices\": [\"b\"], \"answer\": 3}", "line 2"},
        {"{\"question\": \"a?\", \"answer\": \"no digits\"}", "line 2: the expected answer holds no number"},
    };
    rig r;
    rig_open("lines", &r);
    mb_category *category = NULL;
    const mb_category_file file = {.name = "test", .path = r.path, .match = MB_ANSWER_MATCH_NUMBER};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *both[2] = {lines[6], rows[i].line};
        write_lines(r.path, both, 2);
        mb_test_fails(mb_category_open(&file, &r.build, r.tmpl, &category), MB_EDATA, rows[i].message);
        assert_null(category);
    }
    write_lines(r.path, NULL, 0);
    mb_test_fails(mb_category_open(&file, &r.build, r.tmpl, &category), MB_EDATA, "holds no records");
    rig_close(&r);
}

static void test_summary(void **state)
{
    (void)state;
    mb_category_result r = {0};
    mb_test_ok(mb_category_result_create(4, &r));
    mb_category_summary s = mb_category_summarise(&r);
    assert_true(isnan(s.perplexity) && isnan(s.accuracy) && s.judged == 0);
    for (int i = 0; i < 4; i++) {
        r.nll[i] = i;
        r.tokens[i] = 2;
        r.correct[i] = i == 3 ? NAN : i > 0;
    }
    s = mb_category_summarise(&r);
    mb_test_near(s.perplexity, exp(6.0 / 8), 1e-15);
    mb_test_near(s.accuracy, 2.0 / 3, 1e-15);
    mb_test_near(s.accuracy_stderr, sqrt(2.0 / 9 / 2), 1e-14);
    mb_category_result_reset(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records), cmocka_unit_test(test_losses),  cmocka_unit_test(test_choices),
        cmocka_unit_test(test_faults),  cmocka_unit_test(test_summary),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
