/* Scores: parts written in any order and split join to the same file; gaps, overlaps and parts of other work
 * are found. */
#include "store/shard_sample.h"

#include "base/hash.h"
#include "base/json.h"
#include "store/contenthash.h"
#include "store/scores.h"

enum { N = 100, L = 4, C = 2 };
static const mb_scores_column columns[C] = {{"good_mass", true, 5e6, true}, {"length", false, 0, false}};
static const int64_t layers[L] = {0, 2, 4, 6};

static double value(int c, int64_t row)
{
    return c == 0 ? 1.0 / (double)(row + 3) : (double)(row % 17);
}

static void write_part(const char *path, const char *key, int64_t first, int64_t rows)
{
    double *values = mb_calloc((size_t)(C * rows), sizeof *values);
    float *per_layer = mb_calloc((size_t)(C * rows * L), sizeof *per_layer);
    for (int c = 0; c < C; c++)
        for (int64_t i = 0; i < rows; i++) {
            values[c * rows + i] = value(c, first + i);
            for (int l = 0; l < L; l++)
                per_layer[(c * rows + i) * L + l] = (float)(first + i) + 0.25f * (float)l;
        }
    mb_scores_part part = {.first = first, .rows = rows, .values = values, .layers = per_layer};
    assert_ok(mb_scores_part_write(path, key, columns, C, L, &part));
    mb_free(values);
    mb_free(per_layer);
}

static mb_shard *open_shard(void **state)
{
    mb_shard *shard = NULL;
    const char *path = test_path(state, "shard.h5");
    sample_write(path, 3, N, 50, "alpha");
    assert_ok(mb_shard_open(path, 0, &shard));
    return shard;
}

static void check_file(const char *path)
{
    mb_scores *scores = NULL;
    mb_scores_records records;
    double out[N];
    assert_ok(mb_scores_open(path, &scores));
    assert_int_equal(mb_scores_count(scores), N);
    assert_int_equal(mb_scores_columns(scores), C);
    assert_string_equal(mb_scores_column_get(scores, 0)->name, "good_mass");
    assert_true(mb_scores_column_get(scores, 0)->has_layers && !mb_scores_column_get(scores, 1)->has_layers);
    assert_true(mb_scores_column_get(scores, 0)->flops_per_token == 5e6);
    assert_true(mb_scores_column_get(scores, 0)->higher_is_better &&
                !mb_scores_column_get(scores, 1)->higher_is_better);
    for (int c = 0; c < C; c++) {
        assert_ok(mb_scores_read(scores, columns[c].name, 10, 80, out));
        for (int64_t i = 0; i < 80; i++) assert_true(out[i] == value(c, 10 + i));
    }
    const int64_t positions[] = {1, 3};
    assert_ok(mb_scores_read_layers(scores, "good_mass", positions, 2, 5, 90, out));
    for (int64_t i = 0; i < 90; i++) assert_true(out[i] == (double)(5 + i) + 0.5);
    assert_fails(MB_ENOTFOUND, mb_scores_read(scores, "entropy", 0, 1, out), "good_mass, length");
    assert_fails(MB_ENOTFOUND, mb_scores_read_layers(scores, "length", positions, 2, 0, 1, out), "length");
    assert_fails(MB_ERANGE, mb_scores_read(scores, "length", 90, 11, out), "100 rows");
    assert_fails(MB_ERANGE, mb_scores_read_layers(scores, "good_mass", (const int64_t[]){4}, 1, 0, 1, out),
                 "position 4");
    assert_ok(mb_scores_records_view(scores, &records));
    assert_int_equal(records.source_count, 3);
    assert_string_equal(records.source_names[1], "beta");
    assert_string_equal(records.source_files[1], "b.jsonl");
    assert_int_equal(records.source_index[9], 63);
    assert_int_equal(records.source[5], 2);
    mb_scores_close(&scores);
}

static void test_join(void **state)
{
    const int64_t cuts[3][5] = {{0, N, N, N, N}, {0, 25, 50, 75, N}, {0, 1, 60, 99, N}};
    char path[512], hash[3][MB_HASH_TEXT], parts[600];
    mb_shard *shard = open_shard(state);
    json_t *attributes = json_pack("{s:s, s:{s:i}}", "model", "m0", "options", "tile", 8);
    snprintf(path, sizeof path, "%s", test_path(state, "scores.h5"));
    snprintf(parts, sizeof parts, "%s.parts", path);
    for (int k = 0; k < 3; k++) {
        for (int p = 3; p >= 0; p--)
            if (cuts[k][p + 1] > cuts[k][p]) write_part(path, "key", cuts[k][p], cuts[k][p + 1] - cuts[k][p]);
        assert_ok(mb_scores_join(path, "key", shard, columns, C, layers, L, attributes));
        check_file(path);
        assert_true(mb_files_is_folder(parts)); /* until the file is on record */
        mb_scores_parts_remove(path);
        assert_false(mb_files_is_folder(parts));
        assert_ok(mb_contenthash_path(path, hash[k]));
    }
    assert_string_equal(hash[0], hash[1]);
    assert_string_equal(hash[0], hash[2]);
    json_decref(attributes);
    mb_shard_close(&shard);
}

static void test_gaps(void **state)
{
    char path[512], part[600];
    mb_shard *shard = open_shard(state);
    snprintf(path, sizeof path, "%s", test_path(state, "gaps.h5"));
    assert_fails(MB_EFORMAT, mb_scores_join(path, "key", shard, columns, C, layers, L, NULL), "rows 0 to 99");
    write_part(path, "key", 0, 30);
    write_part(path, "key", 40, 60);
    assert_false(mb_scores_part_is_done(path, "key", 30, 10));
    assert_fails(MB_EFORMAT, mb_scores_join(path, "key", shard, columns, C, layers, L, NULL),
                 "rows 30 to 39");
    write_part(path, "other", 30, 10); /* another key: not ours */
    assert_false(mb_scores_part_is_done(path, "key", 30, 10));
    assert_true(mb_scores_part_is_done(path, "other", 30, 10));
    assert_fails(MB_EFORMAT, mb_scores_join(path, "key", shard, columns, C, layers, L, NULL),
                 "rows 30 to 39");
    assert_false(mb_scores_part_is_done(path, "other", 30, 10));
    snprintf(part, sizeof part, "%s.parts/30-40.h5", path); /* a torn part */
    assert_ok(mb_files_write(part, "torn", 4));
    assert_false(mb_scores_part_is_done(path, "key", 30, 10));
    assert_fails(MB_EFORMAT, mb_scores_join(path, "key", shard, columns, C, layers, L, NULL),
                 "rows 30 to 39");
    write_part(path, "key", 25, 15);
    assert_fails(MB_EFORMAT, mb_scores_join(path, "key", shard, columns, C, layers, L, NULL), "row 25");
    snprintf(part, sizeof part, "%s.parts/25-40.h5", path);
    unlink(part);
    write_part(path, "key", 30, 10);
    assert_true(mb_scores_part_is_done(path, "key", 30, 10));
    assert_ok(mb_scores_join(path, "key", shard, columns, C, layers, L, NULL));
    check_file(path);
    mb_shard_close(&shard);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_join), cmocka_unit_test(test_gaps)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
