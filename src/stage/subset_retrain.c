/* subset_retrain.c: see subset_retrain.h.
 *
 * 1. embeddings   2. one set   3. all sets
 */
#include "stage/subset_retrain.h"

#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "stage/gate_fit.h"
#include "stage/gate_inputs.h"

/* ---- 1. embeddings ---- */

typedef struct work {
    const mb_subset_retrain *data;
    const mb_subset_program *own;
    float *train, *test; /* [Q, D] */
    int64_t width;
} work;

static void keep_rows(float *x, int64_t width, const int64_t *rows, int64_t n)
{
    for (int64_t i = 0; i < n; i++) memmove(x + i * width, x + rows[i] * width, sizeof *x * (size_t)width);
}

static mb_status read_embeddings(work *w)
{
    mb_status status = MB_OK;
    char *a = NULL, *b = NULL;
    int64_t width;
    MB_TRY(
        mb_gate_inputs_embeddings(w->data->embeddings_train, w->data->train_total, &w->train, &w->width, &a));
    MB_TRY(mb_gate_inputs_embeddings(w->data->embeddings_test, w->data->test_total, &w->test, &width, &b));
    if (width != w->width || strcmp(a, b) != 0)
        MB_RAISE(MB_EDATA,
                 "%s and %s were not made alike (%s; %s); run moe-embed on both with the same model",
                 w->data->embeddings_train, w->data->embeddings_test, a, b);
    keep_rows(w->train, width, w->data->train_rows, w->data->train->questions);
    keep_rows(w->test, width, w->data->test_rows, w->data->test->questions);
done:
    mb_free(a);
    mb_free(b);
    return status;
}

/* ---- 2. one set ---- */

/* All questions, the experts of a set. */
static mb_status take(const mb_outputs *outputs, uint64_t set, mb_outputs **out)
{
    mb_status status = MB_OK;
    int64_t *questions = NULL, experts[MB_SUBSET_EXPERTS], n = 0;
    MB_NEW_ARRAY(questions, outputs->questions);
    for (int64_t q = 0; q < outputs->questions; q++) questions[q] = q;
    for (int64_t e = 0; e < outputs->experts; e++)
        if (set >> e & 1) experts[n++] = e;
    MB_TRY(mb_outputs_take(outputs, questions, outputs->questions, experts, n, out));
done:
    mb_free(questions);
    return status;
}

static mb_status train_gate(const work *w, const mb_outputs *outputs, mb_gate **out_gate)
{
    mb_status status = MB_OK;
    float *target = NULL;
    int64_t *train = NULL, *held = NULL;
    mb_gate_report report = {0};
    mb_gate_data data = {
        .x = w->train, .rows = outputs->questions, .width = w->width, .experts = outputs->experts};
    MB_TRY(mb_gate_fit_targets(outputs, w->own->targets, &target));
    MB_TRY(mb_gate_fit_split(outputs, NULL, w->own->gate.validation_share, w->own->gate.seed, &train,
                             &data.train_count, &held, &data.validation_count));
    data.target = target, data.train = train, data.validation = held;
    MB_TRY(mb_gate_train(&data, &w->own->gate, out_gate, &report));
done:
    mb_gate_report_reset(&report);
    mb_free(target);
    mb_free(train);
    mb_free(held);
    return status;
}

static bool has_right(const mb_outputs *outputs)
{
    return memchr(outputs->right, 1, (size_t)(outputs->questions * outputs->experts)) != NULL;
}

static mb_status retrain_one(const work *w, uint64_t set, int64_t *out_right)
{
    mb_status status = MB_OK;
    mb_outputs *train = NULL, *test = NULL;
    mb_gate *gate = NULL;
    mb_subset *subset = NULL;
    mb_subset_costs costs = {.aggregation = w->data->costs->aggregation};
    mb_subset_found found;
    int n = 0;
    for (int64_t e = 0; e < w->data->test->experts; e++)
        if (set >> e & 1) {
            costs.latency[n] = w->data->costs->latency[e];
            costs.energy[n++] = w->data->costs->energy[e];
        }
    MB_TRY(take(w->data->train, set, &train));
    MB_TRY(take(w->data->test, set, &test));
    *out_right = -1;
    if (!has_right(train)) goto done; /* nothing to learn */
    MB_TRY(train_gate(w, train, &gate));
    MB_FREE(test->opt_gate_logits);
    MB_NEW_ARRAY(test->opt_gate_logits, test->questions * test->experts);
    MB_TRY(mb_gate_forward(gate, w->test, test->questions, test->opt_gate_logits));
    MB_TRY(mb_subset_create(test, w->data->options, &costs, &subset));
    mb_subset_measure(subset, (UINT64_C(1) << n) - 1, &found);
    *out_right = found.right;
done:
    mb_subset_destroy(&subset);
    mb_gate_destroy(&gate);
    mb_outputs_close(&train);
    mb_outputs_close(&test);
    return status;
}

/* ---- 3. all sets ---- */

static bool has_gate_of_its_own(const mb_subset_row *row)
{
    return (row->train.set & (row->train.set - 1)) != 0; /* two experts at least */
}

/* Different sets of the tables before the front; returns their number. */
static int64_t collect(const mb_subset_solution *solution, uint64_t *sets)
{
    int64_t n = 0;
    for (int t = 0; t < MB_SUBSET_TABLE_PARETO; t++)
        for (int64_t i = 0; i < solution->count[t]; i++) {
            int64_t at = 0;
            if (!has_gate_of_its_own(&solution->rows[t][i])) continue;
            while (at < n && sets[at] != solution->rows[t][i].train.set) at++;
            if (at == n) sets[n++] = solution->rows[t][i].train.set;
        }
    return n;
}

static mb_status retrain_mine(mb_comm *comm, work *w, const uint64_t *sets, int64_t n, int64_t *right)
{
    mb_status status = MB_OK;
    MB_TRY(read_embeddings(w));
    for (int64_t i = mb_comm_rank(comm); i < n; i += mb_comm_size(comm))
        MB_TRY(retrain_one(w, sets[i], right + i));
done:
    return status;
}

mb_status mb_subset_retrain_run(mb_comm *comm, const mb_subset_retrain *data, const mb_subset_program *own,
                                mb_subset_solution *solution, int64_t *out_sets)
{
    mb_status status = MB_OK;
    work w = {.data = data, .own = own};
    uint64_t *sets = NULL;
    int64_t *right = NULL, rows = 0, n = 0;
    for (int t = 0; t < MB_SUBSET_TABLES; t++) rows += solution->count[t];
    MB_NEW_ARRAY(sets, rows + 1);
    MB_NEW_ARRAY(right, rows + 1);
    n = collect(solution, sets);
    MB_TRY(mb_comm_agree(comm, retrain_mine(comm, &w, sets, n, right)));
    MB_TRY(mb_comm_allreduce_i64(comm, right, n, MB_COMM_SUM));
    for (int t = 0; t < MB_SUBSET_TABLES; t++)
        for (int64_t i = 0; i < solution->count[t]; i++)
            for (int64_t k = 0; k < n; k++)
                if (sets[k] == solution->rows[t][i].train.set)
                    solution->rows[t][i].retrained_right = right[k];
    *out_sets = n;
done:
    mb_free(sets);
    mb_free(right);
    mb_free(w.train);
    mb_free(w.test);
    return status;
}
