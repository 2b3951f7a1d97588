/* test_teacher_maker: the likeliest tokens of a row, and the file of a teacher against every record computed
 * alone, tiles, shares, restarts, errors. */
#include "measure_fixture.h"

#include "base/stop.h"
#include "measure/teacher_maker.h"
#include "measure/top_tokens.h"

enum { RECORDS = 60, LONGEST = 70, MOST_VOCAB = 1000 };

/* ---- rows ---- */

static const float *sorted_by;

static int by_logit(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sorted_by[x] != sorted_by[y]) return sorted_by[x] > sorted_by[y] ? -1 : 1;
    return (x > y) - (x < y);
}

/* A row against sorting all of it, in f64. */
static void check_row(const float *z, int64_t vocab, int64_t k)
{
    static const double temperatures[] = {1, 1.5, 3, 0.5};
    int32_t order[MOST_VOCAB], ids[MOST_VOCAB];
    float logprob[MOST_VOCAB], tail[4], mass;
    double sum = 0, top = 0, kept = 0;
    for (int32_t v = 0; v < vocab; v++) order[v] = v;
    sorted_by = z;
    qsort(order, (size_t)vocab, sizeof *order, by_logit);
    assert_true(mb_top_tokens_get(z, vocab, k, temperatures, 4, ids, logprob, tail, &mass));
    assert_memory_equal(ids, order, (size_t)k * sizeof *ids);
    top = (double)z[order[0]];
    for (int64_t v = 0; v < vocab; v++) sum += exp((double)z[v] - top);
    for (int64_t i = 0; i < k; i++) {
        const double expected = (double)z[ids[i]] - top - log(sum);
        if (expected == -INFINITY)
            assert_true(logprob[i] == -INFINITY);
        else
            mb_test_near_abs(logprob[i], expected, 1e-6, 1e-6);
        kept += exp(expected);
    }
    mb_test_near(mass, kept, 1e-6);
    for (int t = 0; t < 4; t++) {
        double rest = 0;
        for (int64_t i = k; i < vocab; i++)
            rest += exp(((double)z[order[i]] - top - log(sum)) / temperatures[t]);
        if (rest == 0)
            assert_true(tail[t] == -INFINITY);
        else
            mb_test_near_abs(tail[t], log(rest), 1e-5, 2e-6);
    }
}

static void test_rows(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 64, MOST_VOCAB};
    float z[MOST_VOCAB];
    for (int kind = 0; kind < 4; kind++) {
        for (int s = 0; s < 4; s++) {
            const int64_t vocab = sizes[s];
            for (int64_t v = 0; v < vocab; v++) {
                const double u = mb_rng_uniform(1, MB_RNG_DATA, (uint32_t)kind, (uint64_t)(1000 * s + v));
                z[v] = (float)(kind == 1 ? floor(8 * u) /* ties */ : 20 * u - 40);
                if (kind == 2 && v % 3 == 1) z[v] = -INFINITY;
                if (kind == 3) z[v] = (float)-v / 7;
            }
            for (int64_t k = 1; k <= vocab; k += 1 + k / 2) check_row(z, vocab, k);
            check_row(z, vocab, vocab);
        }
    }
    int32_t ids[MOST_VOCAB];
    float logprob[MOST_VOCAB], tail, mass;
    const double one = 1;
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        z[77] = bad[i];
        assert_false(mb_top_tokens_get(z, MOST_VOCAB, 5, &one, 1, ids, logprob, &tail, &mass));
    }
}

/* ---- files ---- */

static mb_teacher_maker_options options_of(int64_t k, const char *dtype, const char *targets, int64_t tile)
{
    return (mb_teacher_maker_options){.k = k,
                                      .temperatures = (char *)"1,2",
                                      .dtype = (char *)dtype,
                                      .targets = (char *)targets,
                                      .tile_tokens = tile};
}

static mb_status run(const fixture *f, mb_lm *lm, mb_shard *shard, const mb_teacher_maker_options *options,
                     mb_share share, const char *name, mb_teacher_maker_report *report)
{
    char *path = mb_test_path(f->folder, name);
    const mb_status status = mb_teacher_maker_run(f->comm, NULL, lm, shard, options, share, path, report);
    mb_free(path);
    return status;
}

static mb_teacher *open_file(const fixture *f, const char *name)
{
    mb_teacher *teacher = NULL;
    char *path = mb_test_path(f->folder, name);
    mb_test_ok(mb_teacher_open(path, &teacher));
    mb_free(path);
    return teacher;
}

/* Logits [n, V] of a record by itself, of all its tokens. */
static void alone(mb_lm *lm, const uint32_t *tokens, int64_t n, float *logits)
{
    mb_lm_pass *pass = NULL;
    mb_lm_output output;
    int32_t ids[FIXTURE_POSITIONS], positions[FIXTURE_POSITIONS];
    const int32_t offsets[] = {0, (int32_t)n};
    for (int32_t i = 0; i < n; i++) {
        ids[i] = (int32_t)tokens[i];
        positions[i] = i;
    }
    const mb_lm_batch batch = {.tokens = n,
                               .segments = 1,
                               .ids = ids,
                               .positions = positions,
                               .offsets = offsets,
                               .head_rows = n,
                               .head_row = positions};
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    mb_test_ok(mb_lm_forward(pass, &batch, &(mb_lm_want){.logits = true}, &output));
    memcpy(logits, output.logits, (size_t)(n * FIXTURE_VOCAB) * sizeof *logits);
    mb_lm_pass_destroy(&pass);
}

/* Every row of the file against the record alone. */
static void check_file(const char *backend, const char *dtype, const char *targets, int64_t k)
{
    enum { LIMIT = FIXTURE_POSITIONS };
    static const double temperatures[] = {1, 2};
    static float logits[LIMIT * FIXTURE_VOCAB], logprob[LIMIT * FIXTURE_VOCAB];
    static int32_t ids[LIMIT * FIXTURE_VOCAB];
    const bool all = targets[0] == 'a';
    fixture f = fixture_open(backend);
    mb_lm *lm = fixture_model(&f, 0, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, true);
    const mb_teacher_maker_options options = options_of(k, dtype, targets, 100);
    mb_teacher_maker_report report;
    mb_teacher_figures figures;
    double mass_sum = 0;
    int64_t all_rows = 0;
    mb_test_ok(run(&f, lm, shard, &options, (mb_share){0}, "teacher.h5", &report));
    mb_teacher *teacher = open_file(&f, "teacher.h5");
    const int64_t kept = mb_teacher_shape_get(teacher)->k;
    assert_int_equal(kept, k < FIXTURE_VOCAB ? k : FIXTURE_VOCAB);
    for (int64_t r = 0; r < RECORDS; r++) {
        mb_shard_record record;
        int64_t rows = 0;
        float tail[2][LIMIT];
        mb_test_ok(mb_shard_read(shard, r, &record));
        if (record.count > LIMIT) record.count = LIMIT;
        for (int64_t t = 1; t < record.count; t++) rows += all || record.loss_mask[t] != 0;
        for (int t = 0; t < 2; t++)
            mb_test_ok(mb_teacher_read(teacher, r, &record, all, t, rows, ids, logprob, tail[t]));
        if (record.count > 0) alone(lm, record.tokens, record.count, logits);
        for (int64_t t = 1, row = 0; t < record.count; t++) {
            int32_t expected[FIXTURE_VOCAB];
            float lp[FIXTURE_VOCAB], rest[2], mass;
            if (!all && record.loss_mask[t] == 0) continue;
            assert_true(mb_top_tokens_get(logits + (t - 1) * FIXTURE_VOCAB, FIXTURE_VOCAB, kept, temperatures,
                                          2, expected, lp, rest, &mass));
            for (int64_t i = 0; i < kept; i++) {
                const double near = dtype[1] == '1' ? 1e-3 : 1e-5;
                mb_test_near_abs(logprob[row * kept + i], lp[i], near, near);
                if (ids[row * kept + i] == expected[i]) continue; /* or the two are as likely */
                mb_test_near_abs(logits[(t - 1) * FIXTURE_VOCAB + ids[row * kept + i]],
                                 logits[(t - 1) * FIXTURE_VOCAB + expected[i]], 1e-5, 1e-5);
            }
            for (int s = 0; s < 2; s++) mb_test_near_abs(tail[s][row], rest[s], 1e-4, 1e-5);
            mass_sum += (double)mass;
            row++;
        }
        all_rows += rows;
    }
    mb_test_ok(mb_teacher_figures_read(teacher, &figures));
    assert_int_equal(figures.rows, all_rows);
    mb_test_near(figures.mass_mean, mass_sum / (double)all_rows, 1e-5);
    assert_true(figures.mass_p5 <= figures.mass_mean && figures.mass_p5 > 0);
    print_message(
        "# %s, k = %lld, %s: %lld rows of %lld bytes (dense %lld), mass %.4f, at the 5th percentile "
        "%.4f\n",
        backend, (long long)kept, dtype, (long long)figures.rows,
        (long long)mb_teacher_row_bytes(mb_teacher_shape_get(teacher)),
        (long long)mb_teacher_dense_bytes(mb_teacher_shape_get(teacher)), figures.mass_mean, figures.mass_p5);
    mb_teacher_close(&teacher);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

static void test_files(void **state)
{
    (void)state;
    check_file("ref", "f32", "masked", 8);
    check_file("ref", "f16", "all", 8);
    check_file("cpu", "f32", "all", 1000);
    if (mb_ops_gpu_count() > 0) check_file("cuda", "f32", "masked", 8);
}

/* Tiles, shares and a restart change no bit of the rows; the forecast knows their number. */
static void test_same_rows(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, 4, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, true);
    mb_teacher_maker_options options = options_of(8, "f16", "masked", 48);
    mb_teacher_maker_report report;
    mb_teacher_shape shape;
    mb_teacher_forecast forecast;
    char content[MB_HASH_TEXT], *path = mb_test_path(f.folder, "shares.h5");
    mb_test_ok(run(&f, lm, shard, &options, (mb_share){0}, "one.h5", &report));
    assert_true(report.parts > 4);
    const int64_t parts = report.parts;
    mb_teacher *teacher = open_file(&f, "one.h5");
    memcpy(content, mb_teacher_content(teacher), sizeof content);
    mb_test_ok(mb_teacher_maker_shape(&options, lm, &shape));
    mb_test_ok(mb_teacher_maker_forecast(&shape, shard, &options, &forecast));
    mb_teacher_figures figures;
    mb_test_ok(mb_teacher_figures_read(teacher, &figures));
    assert_int_equal(forecast.rows, figures.rows);
    mb_teacher_close(&teacher);
    for (int64_t k = 1; k >= 0; k--) {
        mb_test_ok(run(&f, lm, shard, &options, (mb_share){k, 2}, "shares.h5", &report));
        assert_int_equal((int64_t)json_array_size(report.part_names), report.parts);
        assert_false(mb_files_is_file(path));
        json_decref(report.part_names);
    }
    mb_test_ok(run(&f, lm, shard, &options, (mb_share){0}, "shares.h5", &report));
    assert_int_equal(report.skipped_parts, parts);
    teacher = open_file(&f, "shares.h5");
    assert_string_equal(mb_teacher_content(teacher), content);
    mb_teacher_close(&teacher);
    options.tile_tokens = 1000;
    mb_stop_request();
    mb_test_fails(run(&f, lm, shard, &options, (mb_share){0}, "tiles.h5", &report), MB_ESTOPPED, "run again");
    mb_stop_reset();
    mb_test_ok(run(&f, lm, shard, &options, (mb_share){0}, "tiles.h5", &report));
    teacher = open_file(&f, "tiles.h5");
    assert_string_equal(mb_teacher_content(teacher), content);
    mb_teacher_close(&teacher);
    options.temperatures = (char *)"1,2,2";
    mb_test_fails(run(&f, lm, shard, &options, (mb_share){0}, "bad.h5", &report), MB_EUSAGE, "2 twice");
    mb_free(path);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

/* Weights that are no numbers: the record is named, and no file is left. */
static void test_not_finite(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_lm *lm = fixture_model(&f, 0, 0);
    mb_shard *shard = fixture_shard(&f, "shard.h5", RECORDS, LONGEST, false);
    const mb_teacher_maker_options options = options_of(8, "f16", "masked", 100);
    mb_teacher_maker_report report;
    char *path = mb_test_path(f.folder, "bad.h5");
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(lm)); i++) {
        const mb_param *param = mb_params_at(mb_lm_params(lm), i);
        if (strstr(param->name, "norm") == NULL || param->value.dtype != MB_F32) continue;
        ((float *)param->value.data)[0] = NAN;
    }
    mb_test_fails(run(&f, lm, shard, &options, (mb_share){0}, "bad.h5", &report), MB_ENUMERIC, "record ");
    assert_false(mb_files_is_file(path));
    mb_free(path);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_files),
                                       cmocka_unit_test(test_same_rows), cmocka_unit_test(test_not_finite)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
