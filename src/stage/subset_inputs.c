/* subset_inputs.c: see subset_inputs.h.
 *
 * 1. costs   2. limits   3. questions the experts have seen
 */
#include "stage/subset_inputs.h"

#include <math.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/option.h"
#include "stage/gate_inputs.h"

/* ---- 1. costs ---- */

/* The member `name` of every expert, and what else a file of this format has. */
static mb_status read_figures(const char *path, const char *format, const char *name,
                              const mb_outputs *outputs, json_t **out_root, double *out_values)
{
    mb_status status = MB_OK;
    json_t *root = NULL, *experts, *one;
    const char *said;
    *out_root = NULL;
    MB_TRY(mb_json_read(path, &root));
    MB_TRY(mb_json_get_string(root, "format", path, &said));
    if (!mb_str_equal(said, format))
        MB_RAISE(MB_EFORMAT, "%s: its format is '%s', not '%s'; give the file that moe-bench wrote", path,
                 said, format);
    MB_TRY(mb_json_get_object(root, "experts", path, &experts));
    for (int64_t e = 0; e < outputs->experts; e++) {
        const char *who = outputs->expert_names[e];
        if ((one = json_object_get(experts, who)) == NULL)
            MB_RAISE(MB_EDATA,
                     "%s: expert '%s' of the outputs was not measured; run moe-bench on it, and join", path,
                     who);
        MB_TRY(mb_json_get_real(one, name, path, &out_values[e]));
        if (!(isfinite(out_values[e]) && out_values[e] >= 0))
            MB_RAISE(MB_EDATA, "%s: expert '%s': %s is %g; at least 0 is expected", path, who, name,
                     out_values[e]);
    }
    *out_root = root;
    root = NULL;
done:
    json_decref(root);
    return status;
}

/* Seconds of transfer of every expert, added. */
static mb_status add_transfer(const char *path, const json_t *latency, const mb_outputs *outputs,
                              double *values)
{
    mb_status status = MB_OK;
    json_t *transfer = json_object_get(latency, "transfer_seconds");
    if (transfer == NULL || json_is_null(transfer)) {
        mb_warn("%s has no transfer_seconds: latencies are those of computing and fusing", path);
        return MB_OK;
    }
    for (int64_t e = 0; e < outputs->experts; e++) {
        const char *who = outputs->expert_names[e];
        double seconds = 0;
        if (json_object_get(transfer, who) == NULL)
            MB_RAISE(MB_EDATA, "%s: transfer_seconds lacks expert '%s'; run moe-bench on it, and join", path,
                     who);
        MB_TRY(mb_json_get_real(transfer, who, path, &seconds));
        if (!(isfinite(seconds) && seconds >= 0))
            MB_RAISE(MB_EDATA, "%s: expert '%s': transfer_seconds is %g; at least 0 is expected", path, who,
                     seconds);
        values[e] += seconds;
    }
done:
    return status;
}

mb_status mb_subset_inputs_costs(const char *latency_path, const char *energy_path, const mb_outputs *outputs,
                                 mb_subset_costs *out_costs)
{
    mb_status status = MB_OK;
    json_t *latency = NULL, *energy = NULL;
    *out_costs = (mb_subset_costs){0};
    if (outputs->experts > MB_SUBSET_EXPERTS)
        MB_RAISE(MB_ERANGE, "%lld experts: the subset search takes at most %d", (long long)outputs->experts,
                 MB_SUBSET_EXPERTS);
    MB_TRY(read_figures(latency_path, "moebatch-latency", "compute_seconds", outputs, &latency,
                        out_costs->latency));
    MB_TRY(
        read_figures(energy_path, "moebatch-energy", "energy_joules", outputs, &energy, out_costs->energy));
    MB_TRY(mb_json_opt_real(latency, "aggregation_seconds", latency_path, &out_costs->aggregation));
    MB_TRY(add_transfer(latency_path, latency, outputs, out_costs->latency));
done:
    json_decref(latency);
    json_decref(energy);
    return status;
}

/* ---- 2. limits ---- */

static int compare_numbers(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

mb_status mb_subset_inputs_limits(const char *key, const char *list, double **out_limits, int64_t *out_count)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0;
    double *limits = NULL;
    MB_TRY(mb_option_list_split(list, &words, &n));
    MB_NEW_ARRAY(limits, n + 1);
    for (int64_t i = 0; i < n; i++) {
        MB_TRY(mb_str_parse_real(words[i], &limits[i]));
        if (!(isfinite(limits[i]) && limits[i] > 0))
            MB_RAISE(MB_EUSAGE, "%s: %s is no limit; numbers above 0 are expected", key, words[i]);
    }
    qsort(limits, (size_t)n, sizeof *limits, compare_numbers);
    for (int64_t i = 1; i < n; i++)
        if (limits[i] == limits[i - 1]) MB_RAISE(MB_EUSAGE, "%s names %g twice", key, limits[i]);
    *out_limits = limits, *out_count = n;
    limits = NULL;
done:
    mb_option_list_free(&words, n);
    mb_free(limits);
    return status;
}

/* ---- 3. questions the experts have seen ---- */

mb_status mb_subset_inputs_leave_out(mb_outputs **outputs, const mb_named_paths *seen, int64_t **out_rows,
                                     int64_t *out_shared)
{
    mb_status status = MB_OK;
    uint8_t *shared = NULL;
    int64_t *by_file = NULL, *rows = NULL, experts[MB_SUBSET_EXPERTS], n = 0;
    mb_outputs *o = *outputs, *kept = NULL;
    MB_TRY(mb_gate_inputs_shared(o, seen, &shared, &by_file));
    MB_NEW_ARRAY(rows, o->questions);
    for (int64_t q = 0; q < o->questions; q++)
        if (shared[q] == 0) rows[n++] = q;
    if (n == 0) MB_RAISE(MB_EDATA, "the experts were trained on every question: none is left");
    *out_shared = o->questions - n;
    if (n < o->questions) {
        for (int64_t x = 0; x < o->experts; x++) experts[x] = x;
        MB_TRY(mb_outputs_take(o, rows, n, experts, o->experts, &kept));
        mb_outputs_close(outputs);
        *outputs = kept;
    }
    *out_rows = rows;
    rows = NULL;
done:
    mb_free(shared);
    mb_free(by_file);
    mb_free(rows);
    return status;
}
