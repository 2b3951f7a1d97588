/* subset_solve.c: see subset_solve.h.
 *
 * 1. one list of limits   2. tables of limits   3. single experts, the front   4. all
 */
#include "stage/subset_solve.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"

const char *mb_subset_solve_name(int table)
{
    static const char *const names[MB_SUBSET_TABLES] = {"single",       "latency",     "energy", "both",
                                                        "auto_latency", "auto_energy", "auto",   "pareto"};
    return names[table];
}

/* ---- 1. one list of limits ---- */

typedef struct solve {
    mb_comm *comm;
    const mb_subset *train, *test;
    const mb_subset_solve_options *options;
    mb_subset_solution *out;
} solve;

static mb_status search_one(const solve *s, const mb_subset *subset, const mb_subset_limits *limits,
                            const uint64_t *starts, int64_t count, mb_subset_found *out,
                            mb_subset_work *out_work)
{
    mb_status status = MB_OK;
    mb_subset_work *sum = &s->out->work;
    MB_TRY(mb_subset_search(s->comm, subset, limits, s->options->seconds, s->options->threads, starts, count,
                            out, out_work));
    sum->nodes += out_work->nodes, sum->evaluations += out_work->evaluations;
    sum->pruned_bound += out_work->pruned_bound, sum->pruned_limits += out_work->pruned_limits;
    sum->rounds += out_work->rounds, sum->seconds += out_work->seconds;
done:
    return status;
}

/* Branch and bound on what the sweep has solved. */
static mb_status check_one(const solve *s, const mb_subset_row *row)
{
    mb_status status = MB_OK;
    mb_subset_found found;
    mb_subset_work work;
    MB_TRY(search_one(s, s->train, &row->limits, NULL, 0, &found, &work));
    if (work.is_proved && (found.set != row->train.set || found.right != row->train.right))
        MB_RAISE(
            MB_ENUMERIC,
            "limits %g s, %g J: branch and bound found set %llx with %lld right, the sweep %llx with %lld; "
            "this is a defect of moe-subset, please report it",
            row->limits.latency, row->limits.energy, (unsigned long long)found.set, (long long)found.right,
            (unsigned long long)row->train.set, (long long)row->train.right);
    s->out->checked += work.is_proved;
done:
    return status;
}

static mb_status by_search(const solve *s, mb_subset_row *rows, int64_t n)
{
    mb_status status = MB_OK;
    mb_subset_work work;
    uint64_t *starts = NULL;
    int64_t known = 0;
    MB_NEW_ARRAY(starts, 2 * n + 1);
    for (int64_t i = 0; i < n; i++) {
        MB_TRY(search_one(s, s->train, &rows[i].limits, starts, known, &rows[i].train, &work));
        rows[i].bound = work.bound, rows[i].is_proved = work.is_proved;
        if (rows[i].train.set != 0) starts[known++] = rows[i].train.set;
        MB_TRY(search_one(s, s->test, &rows[i].limits, starts, known, &rows[i].optimum, &work));
        if (rows[i].optimum.set != 0) starts[known++] = rows[i].optimum.set;
    }
done:
    mb_free(starts);
    return status;
}

static mb_status by_tables(const solve *s, const double *latency, int64_t latencies, const double *energy,
                           int64_t energies, mb_subset_row *rows)
{
    mb_status status = MB_OK;
    const int64_t n = latencies * energies;
    mb_subset_found *train = NULL, *test = NULL;
    MB_NEW_ARRAY(train, n + 1);
    MB_NEW_ARRAY(test, n + 1);
    MB_TRY(mb_subset_grid(&s->out->train, latency, latencies, energy, energies, train));
    MB_TRY(mb_subset_grid(&s->out->test, latency, latencies, energy, energies, test));
    for (int64_t i = 0; i < n; i++) {
        rows[i].train = train[i], rows[i].optimum = test[i];
        rows[i].bound = train[i].right, rows[i].is_proved = true;
        if (s->options->check) MB_TRY(check_one(s, rows + i));
    }
done:
    mb_free(train);
    mb_free(test);
    return status;
}

/* ---- 2. tables of limits ---- */

static void measure_test(const solve *s, mb_subset_row *row)
{
    mb_subset_found found = {0};
    if (row->train.set != 0) mb_subset_measure(s->test, row->train.set, &found);
    row->test_right = found.right;
    row->retrained_right = -1;
}

static mb_status make_limits(const solve *s, int table, const double *latency, int64_t latencies,
                             const double *energy, int64_t energies)
{
    mb_status status = MB_OK;
    const int64_t n = latencies * energies;
    mb_subset_row *rows = NULL;
    MB_NEW_ARRAY(rows, n + 1);
    s->out->rows[table] = rows, s->out->count[table] = n;
    for (int64_t i = 0; i < n; i++)
        rows[i].limits = (mb_subset_limits){latency[i / energies], energy[i % energies]};
    if (s->options->is_exhaustive)
        MB_TRY(by_tables(s, latency, latencies, energy, energies, rows));
    else
        MB_TRY(by_search(s, rows, n));
    for (int64_t i = 0; i < n; i++) measure_test(s, rows + i);
done:
    return status;
}

static mb_status make_all_limits(const solve *s)
{
    static const double none = INFINITY;
    mb_status status = MB_OK;
    const mb_subset_solve_options *o = s->options;
    double latency[MB_SUBSET_DECILES], energy[MB_SUBSET_DECILES];
    int64_t latencies, energies;
    MB_TRY(make_limits(s, MB_SUBSET_TABLE_LATENCY, o->latency, o->latencies, &none, 1));
    MB_TRY(make_limits(s, MB_SUBSET_TABLE_ENERGY, &none, 1, o->energy, o->energies));
    MB_TRY(make_limits(s, MB_SUBSET_TABLE_BOTH, o->latency, o->latencies, o->energy, o->energies));
    mb_subset_auto_limits(s->train, latency, &latencies, energy, &energies);
    MB_TRY(make_limits(s, MB_SUBSET_TABLE_AUTO_LATENCY, latency, latencies, &none, 1));
    MB_TRY(make_limits(s, MB_SUBSET_TABLE_AUTO_ENERGY, &none, 1, energy, energies));
    MB_TRY(make_limits(s, MB_SUBSET_TABLE_AUTO, latency, latencies, energy, energies));
done:
    return status;
}

/* ---- 3. single experts, the front ---- */

static mb_subset_row row_of(const solve *s, uint64_t set)
{
    mb_subset_row row = {.limits = {INFINITY, INFINITY}};
    mb_subset_measure(s->train, set, &row.train);
    measure_test(s, &row);
    return row;
}

static mb_status make_single(const solve *s)
{
    mb_status status = MB_OK;
    const int64_t X = mb_subset_experts(s->train);
    mb_subset_row *rows = NULL;
    MB_NEW_ARRAY(rows, X + 1);
    for (int64_t e = 0; e < X; e++) rows[e] = row_of(s, UINT64_C(1) << e);
    rows[X] = row_of(s, (UINT64_C(1) << X) - 1);
    s->out->rows[MB_SUBSET_TABLE_SINGLE] = rows;
    s->out->count[MB_SUBSET_TABLE_SINGLE] = X + 1;
done:
    return status;
}

/* Without a table the front is that of the sets which were found. */
static mb_status found_front(const solve *s, mb_subset_found **out, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_subset_found *all = NULL;
    int64_t n = 0, room = 0;
    for (int t = 0; t < MB_SUBSET_TABLE_PARETO; t++) room += s->out->count[t];
    MB_NEW_ARRAY(all, room + 1);
    for (int t = 0; t < MB_SUBSET_TABLE_PARETO; t++)
        for (int64_t i = 0; i < s->out->count[t]; i++) all[n++] = s->out->rows[t][i].train;
    MB_TRY(mb_subset_front_of(all, n, out, out_count));
done:
    mb_free(all);
    return status;
}

static mb_status make_front(const solve *s)
{
    mb_status status = MB_OK;
    mb_subset_found *front = NULL;
    mb_subset_row *rows = NULL;
    int64_t n = 0;
    if (s->options->is_exhaustive)
        MB_TRY(mb_subset_front(&s->out->train, &front, &n));
    else
        MB_TRY(found_front(s, &front, &n));
    MB_NEW_ARRAY(rows, n + 1);
    for (int64_t i = 0; i < n; i++) rows[i] = row_of(s, front[i].set);
    s->out->rows[MB_SUBSET_TABLE_PARETO] = rows;
    s->out->count[MB_SUBSET_TABLE_PARETO] = n;
done:
    mb_free(front);
    return status;
}

/* ---- 4. all ---- */

mb_status mb_subset_solve(mb_comm *comm, const mb_subset *train, const mb_subset *test,
                          const mb_subset_solve_options *options, mb_subset_solution *out_solution)
{
    mb_status status = MB_OK;
    const solve s = {comm, train, test, options, out_solution};
    *out_solution = (mb_subset_solution){.is_exhaustive = options->is_exhaustive};
    if (options->is_exhaustive) {
        MB_TRY(mb_subset_sweep(comm, train, options->threads, &out_solution->train));
        MB_TRY(mb_subset_sweep(comm, test, options->threads, &out_solution->test));
    }
    MB_TRY(make_single(&s));
    MB_TRY(make_all_limits(&s));
    MB_TRY(make_front(&s));
done:
    return status;
}

void mb_subset_solution_reset(mb_subset_solution *solution)
{
    for (int t = 0; t < MB_SUBSET_TABLES; t++) mb_free(solution->rows[t]);
    mb_subset_table_reset(&solution->train);
    mb_subset_table_reset(&solution->test);
    *solution = (mb_subset_solution){0};
}
