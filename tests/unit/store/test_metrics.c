/* Metrics: lines, cutting back at a resume, torn last lines, metrics.h5. */
#include "store/store_test.h"

#include <math.h>

#include "store/contenthash.h"
#include "store/metrics.h"

static void write_steps(const char *folder, int64_t keep, int64_t from, int64_t to)
{
    mb_metrics *metrics = NULL;
    assert_ok(mb_metrics_open(folder, keep, &metrics));
    for (int64_t s = from; s <= to; s++) {
        const mb_metric values[] = {{"loss", 1.0 / (double)s}, {"eval/loss", 3}};
        assert_ok(mb_metrics_write(metrics, s, values, s % 2 == 0 ? 2 : 1));
    }
    assert_ok(mb_metrics_publish(metrics));
    mb_metrics_close(&metrics);
}

static void check_curves(const char *folder, int64_t n)
{
    char path[600];
    mb_h5 *file = NULL;
    double loss[64];
    int64_t steps[64];
    snprintf(path, sizeof path, "%s/metrics.h5", folder);
    assert_ok(mb_h5_open(path, &file));
    mb_tensor tensor = mb_tensor_view1(MB_I64, steps, n);
    assert_ok(mb_h5_read(file, "/step", &tensor));
    tensor = mb_tensor_view1(MB_F64, loss, n);
    assert_ok(mb_h5_read(file, "/loss", &tensor));
    for (int64_t i = 0; i < n; i++) assert_true(steps[i] == i + 1 && loss[i] == 1.0 / (double)(i + 1));
    assert_ok(mb_h5_read(file, "/eval/loss", &tensor));
    for (int64_t i = 0; i < n; i++) assert_true(i % 2 == 1 ? loss[i] == 3 : isnan(loss[i]));
    assert_true(mb_h5_has(file, "/provenance/time") && !mb_h5_has(file, "/time"));
    assert_ok(mb_h5_close(&file));
}

static void test_resume(void **state)
{
    char folder[512], path[600], hash[4][MB_HASH_TEXT];
    snprintf(folder, sizeof folder, "%s", test_path(state, "run"));
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    write_steps(folder, -1, 1, 20);
    check_curves(folder, 20);
    assert_ok(mb_contenthash_path(path, hash[0]));
    snprintf(path, sizeof path, "%s/metrics.h5", folder);
    assert_ok(mb_contenthash_path(path, hash[1]));
    write_steps(folder, -1, 1, 15); /* another run, killed in the middle of a line, resumed at step 12 */
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *stream = fopen(path, "a");
    fputs("{\"step\": 16, \"lo", stream);
    fclose(stream);
    usleep(20000);
    write_steps(folder, 12, 13, 20);
    check_curves(folder, 20);
    assert_ok(mb_contenthash_path(path, hash[2]));
    snprintf(path, sizeof path, "%s/metrics.h5", folder);
    assert_ok(mb_contenthash_path(path, hash[3]));
    assert_string_equal(hash[0], hash[2]);
    assert_string_equal(hash[1], hash[3]);
    write_steps(folder, 100, 21, 21);
    check_curves(folder, 21);
    write_steps(folder, 0, 1, 3);
    check_curves(folder, 3);
}

/* Counts beside the numbers of some lines, lines of equal steps, and what is read back. */
static void test_table(void **state)
{
    char folder[512], path[600];
    mb_metrics *metrics = NULL;
    mb_h5 *file = NULL;
    snprintf(folder, sizeof folder, "%s", test_path(state, "table"));
    assert_ok(mb_metrics_open(folder, -1, &metrics));
    for (int64_t s = 0; s < 9; s++) {
        const int64_t counts[6] = {s, 1, 2, 3, 4, 1000000007 * s};
        const mb_metric_table table = {"loads", 2, 3, counts};
        const mb_metric values[] = {{"loss", 2.0 + (double)s}}, other[] = {{"valid/loss", 5.0 - (double)s}};
        assert_ok(mb_metrics_write_table(metrics, s, values, 1, s % 2 == 0 ? &table : NULL));
        if (s % 4 == 0) assert_ok(mb_metrics_write(metrics, s, other, 1));
    }
    const char *const names[] = {"valid/loss", "loss", "nothing"};
    int64_t rows = 0, *steps = NULL, counts[5][2][3];
    double *values = NULL;
    assert_ok(mb_metrics_read(metrics, names, 3, &rows, &steps, &values));
    assert_int_equal(rows, 3);
    for (int64_t i = 0; i < rows; i++)
        assert_true(steps[i] == 4 * i && values[3 * i] == 5.0 - 4.0 * (double)i && isnan(values[3 * i + 1]) &&
                    isnan(values[3 * i + 2]));
    mb_free(steps);
    mb_free(values);
    assert_ok(mb_metrics_read(metrics, &names[2], 1, &rows, &steps, &values));
    assert_true(rows == 0 && steps == NULL && values == NULL);
    assert_ok(mb_metrics_publish(metrics));
    snprintf(path, sizeof path, "%s/metrics.h5", folder);
    assert_ok(mb_h5_open(path, &file));
    mb_tensor tensor = mb_tensor_view3(MB_I64, counts, 5, 2, 3);
    assert_ok(mb_h5_read(file, "/loads", &tensor));
    int64_t table_steps[5];
    tensor = mb_tensor_view1(MB_I64, table_steps, 5);
    assert_ok(mb_h5_read(file, "/loads_step", &tensor));
    for (int64_t i = 0; i < 5; i++)
        assert_true(table_steps[i] == 2 * i && counts[i][0][0] == 2 * i && counts[i][1][0] == 3 &&
                    counts[i][1][2] == 1000000007 * 2 * i);
    assert_ok(mb_h5_close(&file));
    const int64_t wide[2] = {1, 2};
    const mb_metric_table odd = {"loads", 1, 2, wide};
    assert_ok(mb_metrics_write_table(metrics, 9, NULL, 0, &odd));
    assert_int_equal(mb_metrics_publish(metrics), MB_EFORMAT);
    mb_status_reset();
    mb_metrics_close(&metrics);
}

static void test_odd(void **state)
{
    char folder[512], path[600];
    mb_metrics *metrics = NULL;
    mb_str text = MB_STR_EMPTY;
    snprintf(folder, sizeof folder, "%s", test_path(state, "odd"));
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    assert_ok(mb_metrics_open(folder, 5, &metrics)); /* resuming where nothing is */
    assert_ok(mb_metrics_publish(metrics));          /* no line at all */
    const mb_metric values[] = {{"loss", NAN}};
    assert_ok(mb_metrics_write(metrics, 6, values, 1));
    assert_ok(mb_metrics_publish(metrics));
    mb_metrics_close(&metrics);
    assert_ok(mb_files_read(path, 0, &text));
    assert_non_null(strstr(mb_str_text(&text), "\"loss\": null"));
    assert_ok(mb_files_write(path, "{\"step\": 1}\nrubbish\n{\"step\": 2}\n", 32));
    assert_fails(MB_EFORMAT, mb_metrics_open(folder, 5, &metrics), "line 2");
    mb_str_destroy(&text);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_resume), cmocka_unit_test(test_table),
                                       cmocka_unit_test(test_odd)};
    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
