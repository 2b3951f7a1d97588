/* subset_front.c: the best sets under limits, and those that nothing beats.
 *
 * 1. limits from what was measured   2. a grid of limits   3. the front
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "choose/subset_state.h"

/* ---- 1. limits from what was measured ---- */

static int compare_numbers(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void push_rising(double *list, int64_t *count, double value)
{
    if (*count == 0 || value > list[*count - 1]) list[(*count)++] = value;
}

void mb_subset_auto_limits(const mb_subset *subset, double latency[MB_SUBSET_DECILES], int64_t *out_latencies,
                           double energy[MB_SUBSET_DECILES], int64_t *out_energies)
{
    const int X = subset->experts;
    double seconds[MB_SUBSET_EXPERTS];
    memcpy(seconds, subset->costs.latency, sizeof *seconds * (size_t)X);
    qsort(seconds, (size_t)X, sizeof *seconds, compare_numbers);
    *out_latencies = *out_energies = 0;
    for (int d = 1; d <= MB_SUBSET_DECILES; d++) {
        const int n = (d * X + MB_SUBSET_DECILES - 1) / MB_SUBSET_DECILES;
        uint64_t cheapest = 0;
        for (int i = X - n; i < X; i++) cheapest |= mb_subset_bit(subset->by_energy[i]);
        push_rising(latency, out_latencies, seconds[n - 1] + subset->costs.aggregation);
        push_rising(energy, out_energies, mb_subset_energy_max(subset, cheapest));
    }
}

/* ---- 2. a grid of limits ---- */

/* The first limit that the value meets; n: none. */
static int64_t first_met(const double *limits, int64_t n, double value)
{
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t mid = (low + high) / 2;
        if (mb_subset_is_within(value, limits[mid]))
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static void keep_better(mb_subset_found *best, const mb_subset_found *found)
{
    if (mb_subset_is_better(found, best)) *best = *found;
}

mb_status mb_subset_grid(const mb_subset_table *table, const double *latency, int64_t latencies,
                         const double *energy, int64_t energies, mb_subset_found *out)
{
    const uint64_t n = UINT64_C(1) << table->experts;
    memset(out, 0, sizeof *out * (size_t)(latencies * energies));
    for (uint64_t set = 1; set < n; set++) {
        const int64_t i = first_met(latency, latencies, table->latency[set]);
        const int64_t j = first_met(energy, energies, table->energy[set]);
        mb_subset_found found;
        if (i == latencies || j == energies) continue;
        mb_subset_table_get(table, set, &found);
        keep_better(out + i * energies + j, &found);
    }
    for (int64_t i = 0; i < latencies; i++)
        for (int64_t j = 0; j < energies; j++) {
            mb_subset_found *here = out + i * energies + j;
            if (i > 0) keep_better(here, here - energies);
            if (j > 0) keep_better(here, here - 1);
        }
    return MB_OK;
}

/* ---- 3. the front ---- */

static int compare_found(const void *a, const void *b)
{
    const mb_subset_found *x = a, *y = b;
    if (x->latency != y->latency) return x->latency < y->latency ? -1 : 1;
    if (x->energy != y->energy) return x->energy < y->energy ? -1 : 1;
    if (x->right != y->right) return x->right > y->right ? -1 : 1;
    const int count_x = mb_subset_count(x->set), count_y = mb_subset_count(y->set);
    if (count_x != count_y) return count_x - count_y;
    return (x->set > y->set) - (x->set < y->set);
}

static int compare_front(const void *a, const void *b)
{
    const mb_subset_found *x = a, *y = b;
    if (x->latency != y->latency) return x->latency < y->latency ? -1 : 1;
    if (x->right != y->right) return x->right < y->right ? -1 : 1;
    return compare_found(a, b);
}

/* What was passed, of energy and right, both rising: a later set is on the front if it has more right than
 * the last step of at most its energy. */
typedef struct front_steps {
    double *energy;
    int64_t *right;
    int64_t count;
} front_steps;

static bool pass_step(front_steps *steps, double energy, int64_t right)
{
    int64_t low = 0, high = steps->count, end;
    while (low < high) { /* steps of at most this energy */
        const int64_t mid = (low + high) / 2;
        if (steps->energy[mid] <= energy)
            low = mid + 1;
        else
            high = mid;
    }
    if (low > 0 && steps->right[low - 1] >= right) return false;
    if (low > 0 && steps->energy[low - 1] == energy) low--;
    for (end = low; end < steps->count && steps->right[end] <= right; end++) continue;
    const size_t rest = (size_t)(steps->count - end);
    memmove(steps->energy + low + 1, steps->energy + end, rest * sizeof *steps->energy);
    memmove(steps->right + low + 1, steps->right + end, rest * sizeof *steps->right);
    steps->energy[low] = energy, steps->right[low] = right;
    steps->count += 1 - (end - low);
    return true;
}

/* Front of sorted sets, moved to the beginning of the list; returns their number. */
static mb_status keep_front(mb_subset_found *found, int64_t n, int64_t *out_count)
{
    mb_status status = MB_OK;
    front_steps steps = {0};
    int64_t kept = 0;
    MB_NEW_ARRAY(steps.energy, n + 1);
    MB_NEW_ARRAY(steps.right, n + 1);
    for (int64_t i = 0; i < n; i++)
        if (pass_step(&steps, found[i].energy, found[i].right)) found[kept++] = found[i];
    qsort(found, (size_t)kept, sizeof *found, compare_front);
    *out_count = kept;
done:
    mb_free(steps.energy);
    mb_free(steps.right);
    return status;
}

mb_status mb_subset_front_of(const mb_subset_found *found, int64_t n, mb_subset_found **out,
                             int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_subset_found *list = NULL;
    int64_t count = 0;
    *out = NULL, *out_count = 0;
    MB_NEW_ARRAY(list, n + 1);
    for (int64_t i = 0; i < n; i++)
        if (found[i].set != 0) list[count++] = found[i];
    qsort(list, (size_t)count, sizeof *list, compare_found);
    MB_TRY(keep_front(list, count, out_count));
    *out = list;
    list = NULL;
done:
    mb_free(list);
    return status;
}

mb_status mb_subset_front(const mb_subset_table *table, mb_subset_found **out, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_subset_found *list = NULL;
    const int64_t n = ((int64_t)1 << table->experts) - 1;
    *out = NULL, *out_count = 0;
    MB_NEW_ARRAY(list, n);
    for (int64_t i = 0; i < n; i++) mb_subset_table_get(table, (uint64_t)i + 1, list + i);
    MB_TRY(mb_subset_front_of(list, n, out, out_count));
done:
    mb_free(list);
    return status;
}
