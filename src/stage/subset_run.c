/* subset_run.c: see subset_run.h.
 *
 * 1. inputs   2. search   3. files   4. run
 */
#include "stage/subset_run.h"

#include <string.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/gate_inputs.h"
#include "stage/subset_files.h"
#include "stage/subset_inputs.h"
#include "stage/subset_retrain.h"

enum { AUTO_EXHAUSTIVE = 20 }; /* experts: 2^20 subsets take seconds */

typedef struct work {
    mb_program *program;
    const mb_subset_program *own;
    char *train_path, *test_path, *latency_path, *energy_path, *embeddings_train, *embeddings_test;
    double *latency_limits, *energy_limits;
    int64_t latencies, energies;
    mb_named_paths seen; /* files the experts were trained on */
    mb_outputs *train, *test;
    int64_t *train_rows, *test_rows, train_shared, test_shared;
    mb_subset_options options;
    mb_subset_costs costs;
    mb_subset_solution solution;
} work;

static void close_work(work *w)
{
    char **paths[] = {&w->train_path,  &w->test_path,        &w->latency_path,
                      &w->energy_path, &w->embeddings_train, &w->embeddings_test};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) mb_free(*paths[i]);
    mb_free(w->latency_limits);
    mb_free(w->energy_limits);
    mb_named_paths_reset(&w->seen);
    mb_outputs_close(&w->train);
    mb_outputs_close(&w->test);
    mb_free(w->train_rows);
    mb_free(w->test_rows);
    mb_subset_solution_reset(&w->solution);
}

/* ---- 1. inputs ---- */

static bool is_auto(const char *list)
{
    return mb_str_equal(list, "auto");
}

/* energy.json: as given, or where latency.json was given. */
static mb_status find_energy(work *w)
{
    mb_status status = MB_OK;
    char *folder = NULL;
    if (w->own->energy == NULL) {
        const char *slash = strrchr(w->latency_path, '/');
        folder = slash != NULL ? mb_strndup(w->latency_path, (size_t)(slash - w->latency_path) + 1)
                               : mb_strdup(".");
        if (folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    }
    MB_TRY(mb_gate_inputs_file("subset.energy", folder != NULL ? folder : w->own->energy, "energy.json",
                               "moe-bench", &w->energy_path));
done:
    mb_free(folder);
    return status;
}

static mb_status find_limits(work *w)
{
    mb_status status = MB_OK;
    const mb_subset_program *own = w->own;
    if (!is_auto(own->latency_limits))
        MB_TRY(mb_subset_inputs_limits("subset.latency_limits", own->latency_limits, &w->latency_limits,
                                       &w->latencies));
    if (!is_auto(own->energy_limits))
        MB_TRY(mb_subset_inputs_limits("subset.energy_limits", own->energy_limits, &w->energy_limits,
                                       &w->energies));
done:
    return status;
}

static mb_status find(work *w)
{
    mb_status status = MB_OK;
    const mb_subset_program *own = w->own;
    MB_TRY(mb_gate_inputs_file("subset.train", own->train, "outputs.h5", "moe-gate apply", &w->train_path));
    MB_TRY(mb_gate_inputs_file("subset.test", own->test, "outputs.h5", "moe-gate apply", &w->test_path));
    MB_TRY(
        mb_gate_inputs_file("subset.latency", own->latency, "latency.json", "moe-bench", &w->latency_path));
    MB_TRY(find_energy(w));
    if ((own->embeddings_train != NULL) != (own->embeddings_test != NULL))
        MB_RAISE(MB_EUSAGE, "retrained gates need both subset.embeddings_train and subset.embeddings_test");
    if (own->embeddings_train != NULL && own->retrain) {
        MB_TRY(mb_gate_inputs_file("subset.embeddings_train", own->embeddings_train, "embeddings.h5",
                                   "moe-embed", &w->embeddings_train));
        MB_TRY(mb_gate_inputs_file("subset.embeddings_test", own->embeddings_test, "embeddings.h5",
                                   "moe-embed", &w->embeddings_test));
    }
    MB_TRY(find_limits(w));
    MB_TRY(mb_named_paths_read("subset.experts_data", own->experts_data, NULL, 0, &w->seen));
    MB_TRY(mb_vote_parse(own->rule, &w->options.rule));
    w->options.top_k = own->top_k;
    w->options.is_energy_mean = mb_str_equal(own->limits, "mean");
    if (w->options.is_energy_mean && mb_str_equal(own->method, "branch_and_bound"))
        MB_RAISE(MB_EUSAGE, "subset.limits = mean needs subset.method = exhaustive");
done:
    return status;
}

static mb_status check_tables(const work *w)
{
    mb_status status = MB_OK;
    if (w->train->experts != w->test->experts)
        MB_RAISE(MB_EDATA, "%s has %lld experts, %s %lld", w->train_path, (long long)w->train->experts,
                 w->test_path, (long long)w->test->experts);
    for (int64_t e = 0; e < w->train->experts; e++)
        if (strcmp(w->train->expert_names[e], w->test->expert_names[e]) != 0)
            MB_RAISE(MB_EDATA, "%s and %s name other experts (%s, %s at place %lld)", w->train_path,
                     w->test_path, w->train->expert_names[e], w->test->expert_names[e], (long long)e);
    if (mb_str_equal(w->train->questions_hash, w->test->questions_hash))
        MB_RAISE(MB_EDATA, "%s and %s hold the same questions; what is chosen must be judged on others",
                 w->train_path, w->test_path);
    if ((w->train->opt_gate_logits == NULL) != (w->test->opt_gate_logits == NULL))
        MB_RAISE(MB_EDATA, "only one of %s and %s has a gate's logits; run moe-gate apply on both",
                 w->train_path, w->test_path);
    if (w->train->opt_gate_logits == NULL)
        mb_warn("%s has no gate: experts count alike, and the first ones are asked", w->train_path);
done:
    return status;
}

/* ---- 2. search ---- */

static mb_status is_exhaustive(const work *w, bool *out_is)
{
    const int64_t X = w->train->experts;
    *out_is = w->options.is_energy_mean || mb_str_equal(w->own->method, "exhaustive") ||
              (mb_str_equal(w->own->method, "auto") && X <= AUTO_EXHAUSTIVE);
    if (*out_is && X > MB_SUBSET_EXHAUSTIVE)
        return mb_fail(MB_EUSAGE,
                       "%lld experts: every subset of at most %d can be looked at; "
                       "subset.method = branch_and_bound, subset.limits = max",
                       (long long)X, MB_SUBSET_EXHAUSTIVE);
    return MB_OK;
}

/* Limits "auto" are known when the costs are. */
static mb_status fill_auto(work *w, const mb_subset *train)
{
    mb_status status = MB_OK;
    double latency[MB_SUBSET_DECILES], energy[MB_SUBSET_DECILES];
    int64_t latencies, energies;
    mb_subset_auto_limits(train, latency, &latencies, energy, &energies);
    if (is_auto(w->own->latency_limits)) {
        MB_NEW_ARRAY(w->latency_limits, latencies);
        memcpy(w->latency_limits, latency, sizeof *latency * (size_t)latencies);
        w->latencies = latencies;
    }
    if (is_auto(w->own->energy_limits)) {
        MB_NEW_ARRAY(w->energy_limits, energies);
        memcpy(w->energy_limits, energy, sizeof *energy * (size_t)energies);
        w->energies = energies;
    }
done:
    return status;
}

static mb_status search(work *w)
{
    mb_status status = MB_OK;
    mb_comm *comm = w->program->comm;
    mb_subset *train = NULL, *test = NULL;
    int64_t sets = 0;
    const double started = mb_clock_seconds();
    mb_subset_solve_options options = {.check = w->own->check && !w->options.is_energy_mean,
                                       .seconds = w->own->seconds};
    MB_TRY(is_exhaustive(w, &options.is_exhaustive));
    MB_TRY(mb_subset_create(w->train, &w->options, &w->costs, &train));
    MB_TRY(mb_subset_create(w->test, &w->options, &w->costs, &test));
    MB_TRY(fill_auto(w, train));
    options.latency = w->latency_limits, options.latencies = w->latencies;
    options.energy = w->energy_limits, options.energies = w->energies;
    MB_TRY(mb_subset_solve(comm, train, test, &options, &w->solution));
    mb_info("%lld experts, %lld and %lld questions: %s in %.2f s; branch and bound: %lld nodes, %lld subsets "
            "measured, "
            "%lld nodes cut by bounds, %lld experts by limits%s",
            (long long)w->train->experts, (long long)w->train->questions, (long long)w->test->questions,
            options.is_exhaustive ? "every subset" : "branch and bound", mb_clock_seconds() - started,
            (long long)w->solution.work.nodes, (long long)w->solution.work.evaluations,
            (long long)w->solution.work.pruned_bound, (long long)w->solution.work.pruned_limits,
            w->solution.checked > 0 ? "; both agree on every pair of limits" : "");
    if (w->embeddings_train != NULL && w->train->opt_gate_logits != NULL) {
        const mb_subset_retrain data = {.train = w->train,
                                        .test = w->test,
                                        .options = &w->options,
                                        .costs = &w->costs,
                                        .embeddings_train = w->embeddings_train,
                                        .embeddings_test = w->embeddings_test,
                                        .train_rows = w->train_rows,
                                        .test_rows = w->test_rows,
                                        .train_total = w->train->questions + w->train_shared,
                                        .test_total = w->test->questions + w->test_shared};
        MB_TRY(mb_subset_retrain_run(comm, &data, w->own, &w->solution, &sets));
        mb_info("%lld gates trained on chosen subsets alone", (long long)sets);
    }
done:
    mb_subset_destroy(&train);
    mb_subset_destroy(&test);
    return status;
}

/* ---- 3. files ---- */

static void log_lines(const char *text)
{
    while (*text != 0) {
        const size_t n = strcspn(text, "\n");
        mb_info("%.*s", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

static mb_status log_table(const mb_subset_result *result, int t)
{
    mb_status status = MB_OK;
    mb_table table = {0};
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_subset_files_table(result, t, &table));
    MB_TRY(mb_table_text(&table, &text));
    log_lines(mb_str_text(&text));
done:
    mb_table_reset(&table);
    mb_str_destroy(&text);
    return status;
}

static mb_status write_files(const work *w)
{
    mb_status status = MB_OK;
    const mb_subset_result result = {w->own, w->train, w->test, &w->costs, &w->solution};
    json_t *root = NULL;
    char *folder = mb_program_path(w->program, "smo_tables"), *h5 = mb_program_path(w->program, "subset.h5"),
         *json = mb_program_path(w->program, "results.json");
    if (folder == NULL || h5 == NULL || json == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_subset_files_tables(&result, folder));
    MB_TRY(mb_subset_files_h5(&result, h5));
    MB_TRY(mb_subset_files_json(&result, &root));
    MB_TRY(mb_json_set(root, "shared", json_integer(w->train_shared)));
    MB_TRY(mb_json_set(root, "test_shared", json_integer(w->test_shared)));
    MB_TRY(mb_json_write(json, root, 2, false));
    MB_TRY(log_table(&result, MB_SUBSET_TABLE_SINGLE));
    MB_TRY(log_table(&result, MB_SUBSET_TABLE_LATENCY));
    MB_TRY(log_table(&result, MB_SUBSET_TABLE_ENERGY));
    MB_TRY(mb_program_result_int(w->program, "front", w->solution.count[MB_SUBSET_TABLE_PARETO]));
    MB_TRY(mb_program_result_int(w->program, "checked", w->solution.checked));
done:
    json_decref(root);
    mb_free(folder);
    mb_free(h5);
    mb_free(json);
    return status;
}

/* ---- 4. run ---- */

static mb_status read_all(work *w)
{
    mb_status status = MB_OK;
    MB_TRY(mb_outputs_open(w->train_path, &w->train));
    MB_TRY(mb_outputs_open(w->test_path, &w->test));
    MB_TRY(check_tables(w));
    MB_TRY(mb_subset_inputs_leave_out(&w->train, &w->seen, &w->train_rows, &w->train_shared));
    MB_TRY(mb_subset_inputs_leave_out(&w->test, &w->seen, &w->test_rows, &w->test_shared));
    MB_TRY(mb_subset_inputs_costs(w->latency_path, w->energy_path, w->train, &w->costs));
done:
    return status;
}

static mb_status finish(work *w)
{
    mb_status status = MB_OK;
    char name[64];
    for (int t = 0; t < MB_SUBSET_TABLES; t++)
        for (int form = 0; form < 3; form++) {
            static const char *const suffix[] = {"txt", "csv", "tex"};
            snprintf(name, sizeof name, "smo_tables/%s.%s", mb_subset_solve_name(t), suffix[form]);
            MB_TRY(mb_program_output(w->program, name));
        }
    MB_TRY(mb_program_finish_run(w->program, "subset.h5", "results.json", NULL));
done:
    return status;
}

static mb_status begin(const work *w, bool *out_is_done)
{
    static const char *const own[] = {"train",          "test", "latency", "energy", "embeddings_train",
                                      "embeddings_test"};
    const char *files[] = {w->train_path,  w->test_path,        w->latency_path,
                           w->energy_path, w->embeddings_train, w->embeddings_test};
    enum { OWN = sizeof own / sizeof *own };
    mb_status status = MB_OK;
    const char **names = NULL, **paths = NULL;
    char **labels = NULL;
    const int64_t seen = w->seen.count;
    MB_NEW_ARRAY(names, OWN + seen);
    MB_NEW_ARRAY(paths, OWN + seen);
    MB_NEW_ARRAY(labels, seen + 1);
    for (int64_t i = 0; i < OWN; i++) names[i] = own[i], paths[i] = files[i];
    for (int64_t i = 0; i < seen; i++) {
        names[OWN + i] = labels[i] = mb_str_format("seen_%s", w->seen.item[i].name);
        paths[OWN + i] = w->seen.item[i].path;
        if (labels[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    }
    MB_TRY(mb_program_begin_run_list(w->program, names, paths, OWN + seen, out_is_done));
done:
    for (int64_t i = 0; labels != NULL && i < seen; i++) mb_free(labels[i]);
    mb_free(labels);
    mb_free(names);
    mb_free(paths);
    return status;
}

mb_status mb_subset_run(mb_program *program)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, find(&w)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(&w, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, read_all(&w)));
    MB_TRY(search(&w));
    MB_TRY(mb_comm_agree(program->comm, mb_program_is_root(program) ? write_files(&w) : MB_OK));
    MB_TRY(finish(&w));
done:
    close_work(&w);
    return status;
}
