/* choice_json.c: results and samples in the harness's shapes.
 *
 * 1. helpers   2. one task's entries   3. groups   4. results   5. samples
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "measure/choice.h"
#include "measure/choice_groups.h"
#include "measure/sha256.h"

/* ---- 1. helpers ---- */

/* The object under this key, made when it is not there. Borrowed. */
static mb_status member(json_t *results, const char *key, json_t **out_object)
{
    mb_status status = MB_OK;
    if (json_object_get(results, key) == NULL) MB_TRY(mb_json_set(results, key, json_object()));
    *out_object = json_object_get(results, key);
done:
    return status;
}

static mb_status set_in(json_t *results, const char *object, const char *key, json_t *value)
{
    mb_status status = MB_OK;
    json_t *inner;
    status = member(results, object, &inner);
    if (status != MB_OK) {
        json_decref(value);
        MB_TRY(status);
    }
    MB_TRY(mb_json_set(inner, key, value));
done:
    return status;
}

static json_t *real_or_text(double value)
{
    return isfinite(value) ? json_real(value) : json_string("N/A");
}

/* Shares of some questions of a task. */
typedef struct json_share {
    const char *metric;
    int64_t right, n;
} json_share;

static double share_mean(const json_share *share)
{
    return (double)share->right / (double)share->n;
}

static double share_stderr(const json_share *share)
{
    double n = (double)share->n, mean = share_mean(share);
    return share->n > 1 ? sqrt(mean * (1 - mean) * n / (n - 1)) / sqrt(n) : NAN;
}

static mb_status set_metric(json_t *row, const char *metric, double mean, double error)
{
    mb_status status = MB_OK;
    char key[64];
    snprintf(key, sizeof key, "%s,none", metric);
    MB_TRY(mb_json_set(row, key, real_or_text(mean)));
    snprintf(key, sizeof key, "%s_stderr,none", metric);
    MB_TRY(mb_json_set(row, key, real_or_text(error)));
done:
    return status;
}

/* ---- 2. one task's entries ---- */

enum { METRICS = 3 };

/* Metrics over the questions of a group (NULL: all). Returns how many metrics the task has. */
static int count_right(const mb_task *task, const mb_choice_result *result, const char *opt_group,
                       json_share shares[METRICS])
{
    int n = 0, acc = n++, norm = task->has_acc_norm ? n++ : -1, bytes = task->has_acc_bytes ? n++ : -1;
    memset(shares, 0, METRICS * sizeof *shares);
    shares[acc].metric = "acc";
    if (norm >= 0) shares[norm].metric = "acc_norm";
    if (bytes >= 0) shares[bytes].metric = "acc_bytes";
    for (int64_t q = 0; q < result->count; q++) {
        const mb_task_question *asked = &task->questions[q];
        const mb_choice_question *question = &result->questions[q];
        if (opt_group != NULL && !mb_str_equal(asked->group, opt_group)) continue;
        for (int m = 0; m < n; m++) shares[m].n++;
        shares[acc].right += question->picked == asked->gold;
        if (norm >= 0) shares[norm].right += question->picked_norm == asked->gold;
        if (bytes >= 0) shares[bytes].right += question->picked_bytes == asked->gold;
    }
    return n;
}

static mb_status add_config(const mb_task *task, const char *name, const json_share *shares, int metrics,
                            double version, json_t *results)
{
    mb_status status = MB_OK;
    json_t *list = json_array(), *higher = json_object(), *config;
    for (int m = 0; m < metrics; m++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:b}", "metric", shares[m].metric, "aggregation",
                                              "mean", "higher_is_better", 1));
        MB_TRY(mb_json_set(higher, shares[m].metric, json_true()));
    }
    config =
        json_pack("{s:s, s:s, s:s, s:I, s:s, s:O, s:{s:f}}", "task", name, "dataset_path", task->path,
                  "output_type", "multiple_choice", "num_fewshot", (json_int_t)task->fewshot,
                  "target_delimiter", task->delimiter, "metric_list", list, "metadata", "version", version);
    MB_TRY(set_in(results, "configs", name, config));
    MB_TRY(set_in(results, "higher_is_better", name, json_incref(higher)));
done:
    json_decref(list);
    json_decref(higher);
    return status;
}

static mb_status add_task(const mb_task *task, const mb_choice_result *result, const char *opt_group,
                          const char *name, const char *alias, double version, json_t *results)
{
    mb_status status = MB_OK;
    json_share shares[METRICS];
    int metrics = count_right(task, result, opt_group, shares);
    json_int_t n = (json_int_t)shares[0].n;
    json_t *row = json_pack("{s:s, s:s, s:I}", "name", name, "alias", alias, "sample_len", n);
    if (row == NULL) MB_RAISE(MB_EDATA, "task %s: its name is not UTF-8", task->path);
    for (int m = 0; m < metrics; m++)
        MB_TRY(set_metric(row, shares[m].metric, share_mean(&shares[m]), share_stderr(&shares[m])));
    MB_TRY(set_in(results, "results", name, json_incref(row)));
    MB_TRY(add_config(task, name, shares, metrics, version, results));
    MB_TRY(set_in(results, "versions", name, json_real(version)));
    MB_TRY(set_in(results, "n-shot", name, json_integer(task->fewshot)));
    MB_TRY(set_in(results, "n-samples", name, json_pack("{s:I, s:I}", "original", n, "effective", n)));
done:
    json_decref(row);
    return status;
}

/* ---- 3. groups ---- */

/* The names of the task's groups in byte order, each once. Borrowed names. */
typedef struct json_subjects {
    const char **names;
    int64_t count;
} json_subjects;

static int order_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static mb_status find_subjects(const mb_task *task, json_subjects *out)
{
    mb_status status = MB_OK;
    int64_t n = 0;
    MB_NEW_ARRAY(out->names, task->count + 1);
    for (int64_t q = 0; q < task->count; q++) {
        if (task->questions[q].group != NULL) out->names[n++] = task->questions[q].group;
    }
    qsort(out->names, (size_t)n, sizeof *out->names, order_names);
    for (int64_t i = 0; i < n; i++) {
        if (out->count == 0 || strcmp(out->names[out->count - 1], out->names[i]) != 0)
            out->names[out->count++] = out->names[i];
    }
done:
    return status;
}

static bool is_in(const char *subject, const char *opt_category)
{
    const char *category = mb_choice_groups_find(subject);
    return opt_category == NULL || (category != NULL && strcmp(category, opt_category) == 0);
}

/* Mean weighted by documents and pooled stderr over the subjects of a category (NULL: all). members: list of
 * their task names. Nothing when there are none. */
static mb_status add_group(const mb_task *task, const mb_choice_result *result, const json_subjects *subjects,
                           const char *opt_category, const char *name, json_t *members, json_t *results)
{
    mb_status status = MB_OK;
    json_share shares[METRICS];
    int64_t right = 0, n = 0, groups = 0;
    double pooled = 0;
    json_t *row = NULL;
    for (int64_t i = 0; i < subjects->count; i++) {
        if (!is_in(subjects->names[i], opt_category)) continue;
        count_right(task, result, subjects->names[i], shares);
        double error = share_stderr(&shares[0]), size = (double)shares[0].n;
        right += shares[0].right;
        n += shares[0].n;
        groups++;
        pooled += (size - 1) * error * error * size;
    }
    pooled = n > groups ? sqrt(pooled / (double)(n - groups) / (double)n) : NAN;
    row = json_pack("{s:s, s:s, s:I}", "name", name, "alias",
                    opt_category != NULL ? opt_category : task->name, "sample_len", (json_int_t)n);
    if (row == NULL) MB_RAISE(MB_EDATA, "task %s: its name is not UTF-8", task->path);
    MB_TRY(set_metric(row, "acc", (double)right / (double)n, pooled));
    MB_TRY(mb_json_set(row, "sample_count", json_pack("{s:I}", "acc,none", (json_int_t)n)));
    MB_TRY(set_in(results, "results", name, json_incref(row)));
    MB_TRY(set_in(results, "groups", name, json_incref(row)));
    MB_TRY(set_in(results, "group_subtasks", name, json_incref(members)));
    MB_TRY(set_in(results, "versions", name, json_integer(task->version)));
    MB_TRY(set_in(results, "n-shot", name, json_integer(task->fewshot)));
    MB_TRY(set_in(results, "higher_is_better", name, json_pack("{s:b}", "acc", 1)));
done:
    json_decref(row);
    return status;
}

static mb_status add_category(const mb_task *task, const mb_choice_result *result,
                              const json_subjects *subjects, const char *category, json_t *categories,
                              json_t *results)
{
    mb_status status = MB_OK;
    json_t *members = json_array();
    char *name = mb_str_format("%s_%s", task->name, category);
    if (name == NULL || members == NULL)
        MB_RAISE(MB_ENOMEM, "not enough memory for the results of %s", task->name);
    for (int64_t i = 0; i < subjects->count; i++) {
        if (!is_in(subjects->names[i], category)) continue;
        json_array_append_new(members, json_sprintf("%s_%s", task->name, subjects->names[i]));
    }
    if (json_array_size(members) == 0) goto done;
    json_array_append_new(categories, json_string(name));
    MB_TRY(add_group(task, result, subjects, category, name, members, results));
done:
    json_decref(members);
    mb_free(name);
    return status;
}

static mb_status add_grouped(const mb_task *task, const mb_choice_result *result,
                             const json_subjects *subjects, json_t *results)
{
    mb_status status = MB_OK;
    json_t *members = json_array();
    char *name = NULL;
    for (int64_t i = 0; i < subjects->count; i++) {
        const char *subject = subjects->names[i];
        mb_free(name);
        name = mb_str_format("%s_%s", task->name, subject);
        if (name == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the results of %s", task->name);
        MB_TRY(add_task(task, result, subject, name, subject, 1, results));
        if (mb_choice_groups_find(subject) == NULL) json_array_append_new(members, json_string(name));
    }
    for (const char *const *category = mb_choice_groups_categories; *category != NULL; category++) {
        MB_TRY(add_category(task, result, subjects, *category, members, results));
    }
    MB_TRY(add_group(task, result, subjects, NULL, task->name, members, results));
done:
    json_decref(members);
    mb_free(name);
    return status;
}

/* ---- 4. results ---- */

mb_status mb_choice_add_json(const mb_task *task, const mb_choice_result *result, json_t *results)
{
    mb_status status = MB_OK;
    static const char *const parts[] = {"results",  "groups", "group_subtasks",   "configs",
                                        "versions", "n-shot", "higher_is_better", "n-samples"};
    json_subjects subjects = {0};
    json_t *ties = json_array(), *object;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) MB_TRY(member(results, parts[i], &object));
    MB_TRY(find_subjects(task, &subjects));
    if (subjects.count > 0) {
        MB_TRY(add_grouped(task, result, &subjects, results));
    } else {
        MB_TRY(add_task(task, result, NULL, task->name, task->name, (double)task->version, results));
        MB_TRY(set_in(results, "group_subtasks", task->name, json_array()));
    }
    for (int64_t q = 0; q < result->count; q++) {
        if (result->questions[q].is_near_tie)
            json_array_append_new(ties, json_integer(task->questions[q].doc_id));
    }
    MB_TRY(set_in(results, "near_ties", task->name, json_incref(ties)));
    MB_TRY(set_in(results, "request_hash", task->name, json_string(result->request_hash)));
done:
    json_decref(ties);
    mb_free(subjects.names);
    return status;
}

/* ---- 5. samples ---- */

/* The shortest text that reads back as value, as Python's str(). */
static void print_real(double value, char out_text[40])
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out_text, 40, "%.*g", digits, value);
        if (strtod(out_text, NULL) == value) break;
    }
    if (strpbrk(out_text, ".en") == NULL) strcat(out_text, ".0");
}

static json_t *hash_text(const char *text, size_t n)
{
    char hash[65];
    mb_sha256_text(text, n, hash);
    return json_string(hash);
}

static mb_status add_doc(const mb_task_question *asked, json_t *sample)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *choices = json_array(), *doc = NULL;
    for (int64_t c = 0; c < asked->choice_count; c++)
        json_array_append_new(choices, json_string(asked->choices[c]));
    doc = json_pack("{s:s, s:O, s:I}", "query", asked->context, "choices", choices, "gold",
                    (json_int_t)asked->gold);
    if (doc == NULL) MB_RAISE(MB_EDATA, "question %lld is not UTF-8", (long long)asked->doc_id);
    if (asked->group != NULL) MB_TRY(mb_json_set(doc, "group", json_string(asked->group)));
    MB_TRY(mb_json_print(doc, 2, false, &text));
    MB_TRY(mb_json_set(sample, "doc", json_incref(doc)));
    MB_TRY(mb_json_set(sample, "doc_hash", hash_text(mb_str_text(&text), text.length)));
done:
    mb_str_destroy(&text);
    json_decref(choices);
    json_decref(doc);
    return status;
}

static mb_status add_responses(const mb_task *task, const mb_task_question *asked,
                               const mb_choice_question *question, json_t *sample)
{
    mb_status status = MB_OK;
    json_t *arguments = json_object(), *resps = json_array(), *filtered = json_array();
    for (int64_t c = 0; c < asked->choice_count; c++) {
        char key[32], number[40];
        const char *greedy = question->is_greedy[c] ? "True" : "False";
        print_real(question->loglik[c], number);
        snprintf(key, sizeof key, "gen_args_%lld", (long long)c);
        MB_TRY(mb_json_set(arguments, key,
                           json_pack("{s:s, s:o}", "arg_0", asked->context, "arg_1",
                                     json_sprintf("%s%s", task->delimiter, asked->choices[c]))));
        json_array_append_new(resps, json_pack("[[ss]]", number, greedy));
        json_array_append_new(filtered, json_pack("[ss]", number, greedy));
    }
    MB_TRY(mb_json_set(sample, "arguments", json_incref(arguments)));
    MB_TRY(mb_json_set(sample, "resps", json_incref(resps)));
    MB_TRY(mb_json_set(sample, "filtered_resps", json_incref(filtered)));
done:
    json_decref(arguments);
    json_decref(resps);
    json_decref(filtered);
    return status;
}

static mb_status add_metrics(const mb_task *task, const mb_task_question *asked,
                             const mb_choice_question *question, json_t *sample)
{
    mb_status status = MB_OK;
    json_t *names = json_array();
    json_array_append_new(names, json_string("acc"));
    if (task->has_acc_norm) json_array_append_new(names, json_string("acc_norm"));
    if (task->has_acc_bytes) json_array_append_new(names, json_string("acc_bytes"));
    MB_TRY(mb_json_set(sample, "filter", json_string("none")));
    MB_TRY(mb_json_set(sample, "metrics", json_incref(names)));
    MB_TRY(mb_json_set(sample, "acc", json_real(question->picked == asked->gold)));
    if (task->has_acc_norm)
        MB_TRY(mb_json_set(sample, "acc_norm", json_real(question->picked_norm == asked->gold)));
    if (task->has_acc_bytes)
        MB_TRY(mb_json_set(sample, "acc_bytes", json_real(question->picked_bytes == asked->gold)));
done:
    json_decref(names);
    return status;
}

static mb_status print_sample(const mb_task *task, const mb_choice_result *result, int64_t q, mb_str *line)
{
    mb_status status = MB_OK;
    const mb_task_question *asked = &task->questions[q];
    char gold[24];
    snprintf(gold, sizeof gold, "%lld", (long long)asked->gold);
    json_t *sample = json_pack("{s:I}", "doc_id", (json_int_t)asked->doc_id);
    if (sample == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for a sample of %s", task->name);
    MB_TRY(add_doc(asked, sample));
    MB_TRY(mb_json_set(sample, "target", json_string(gold)));
    MB_TRY(add_responses(task, asked, &result->questions[q], sample));
    MB_TRY(add_metrics(task, asked, &result->questions[q], sample));
    MB_TRY(mb_json_set(sample, "prompt_hash", hash_text(asked->context, strlen(asked->context))));
    MB_TRY(mb_json_set(sample, "target_hash", hash_text(gold, strlen(gold))));
    MB_TRY(mb_json_print(sample, 0, false, line));
    MB_TRY(mb_str_add(line, "\n"));
done:
    json_decref(sample);
    return status;
}

mb_status mb_choice_write_samples(const mb_task *task, const mb_choice_result *result, const char *path)
{
    mb_status status = MB_OK;
    mb_str line = MB_STR_EMPTY;
    FILE *file = NULL;
    char *aside = mb_str_format("%s.tmp", path);
    if (aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    file = fopen(aside, "wb");
    if (file == NULL) MB_RAISE(MB_EIO, "%s: cannot make it: %s", aside, strerror(errno));
    for (int64_t q = 0; q < result->count; q++) {
        mb_str_reset(&line);
        MB_TRY(print_sample(task, result, q, &line));
        if (fwrite(line.data, 1, line.length, file) != line.length)
            MB_RAISE(MB_EIO, "%s: cannot write: %s", aside, strerror(errno));
    }
    int failed = fclose(file);
    file = NULL;
    if (failed) MB_RAISE(MB_EIO, "%s: cannot write: %s", aside, strerror(errno));
    MB_TRY(mb_files_sync(aside));
    MB_TRY(mb_files_rename(aside, path));
done:
    if (file != NULL) fclose(file);
    if (status != MB_OK && aside != NULL) remove(aside);
    mb_str_destroy(&line);
    mb_free(aside);
    return status;
}
