/* routing_information.c: entropies and mutual information from counts.
 *
 * The corrections are first-order ones. Weighted as they come, Miller and Madow's of all three entropies:
 * (cells of the table - experts used - types used + 1) / 2N. Weighted equally the types are samples of their
 * own with N_t picks: each H(expert | t) is too low by (experts used by t - 1) / 2N_t, and H(expert) by half
 * the sum over experts of Var(q) / q, Var(q) = sum over types of w^2 p (1 - p) / N_t.
 */
#include "measure/routing_information.h"

#include <math.h>

static int64_t sum_of(const int64_t *counts, int64_t n)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += counts[i];
    return sum;
}

double mb_routing_information_entropy(const int64_t *counts, int64_t n)
{
    const double total = (double)sum_of(counts, n);
    double entropy = 0;
    if (total == 0) return NAN;
    for (int64_t i = 0; i < n; i++)
        if (counts[i] > 0) entropy -= (double)counts[i] / total * log((double)counts[i] / total);
    return entropy;
}

typedef struct information_table {
    const int64_t *counts;
    int64_t types, stride;
    const int64_t *picks; /* [types] */
    int64_t total, used;  /* picks of all types; types that have any */
    bool is_equal;
} information_table;

static double weight_of(const information_table *table, int64_t type)
{
    if (table->picks[type] == 0) return 0;
    return table->is_equal ? 1 / (double)table->used : (double)table->picks[type] / (double)table->total;
}

/* What one expert adds to I, H(expert) and the expected excess of I; the latter without what belongs to no
 * expert. */
static void add_expert(const information_table *table, int64_t expert, mb_routing_information *info,
                       double *excess)
{
    double q = 0, variance = 0, cells = 0;
    for (int64_t t = 0; t < table->types; t++) {
        const int64_t count = table->counts[t * table->stride + expert];
        if (count == 0) continue;
        const double picks = (double)table->picks[t], p = (double)count / picks, w = weight_of(table, t);
        q += w * p;
        variance += w * w * p * (1 - p) / picks;
        cells += w / picks; /* 1 / N each as they come */
    }
    if (q == 0) return;
    info->expert_entropy -= q * log(q);
    *excess += 0.5 * (cells - (table->is_equal ? variance / q : 1 / (double)table->total));
    for (int64_t t = 0; t < table->types; t++) {
        const int64_t count = table->counts[t * table->stride + expert];
        if (count == 0) continue;
        const double p = (double)count / (double)table->picks[t];
        info->mutual += weight_of(table, t) * p * log(p / q);
    }
}

static double normalised(const mb_routing_information *info)
{
    const double least = fmin(info->expert_entropy, info->type_entropy);
    return least > 0 ? info->mutual / least : NAN;
}

mb_routing_information mb_routing_information_get(const int64_t *counts, int64_t types, int64_t stride,
                                                  int64_t experts, bool is_equal, int64_t *scratch)
{
    information_table table = {counts, types, stride, scratch, 0, 0, is_equal};
    mb_routing_information info = {.normalised = NAN};
    double excess = 0;
    for (int64_t t = 0; t < types; t++) {
        scratch[t] = sum_of(counts + t * stride, experts);
        table.total += scratch[t];
        table.used += scratch[t] > 0;
    }
    if (table.total == 0) return info;
    for (int64_t e = 0; e < experts; e++) add_expert(&table, e, &info, &excess);
    for (int64_t t = 0; t < types; t++) {
        const double w = weight_of(&table, t);
        if (w == 0) continue;
        info.type_entropy -= w * log(w);
        excess -= 0.5 * w / (double)scratch[t];
    }
    if (!is_equal) excess += 0.5 / (double)table.total;
    info.mutual = fmax(0, info.mutual);
    info.corrected = info.mutual - excess;
    info.normalised = normalised(&info);
    return info;
}

mb_routing_information mb_routing_information_mean(const mb_routing_information *layers, int64_t n)
{
    mb_routing_information mean = {0};
    for (int64_t i = 0; i < n; i++) {
        mean.mutual += layers[i].mutual / (double)n;
        mean.corrected += layers[i].corrected / (double)n;
        mean.expert_entropy += layers[i].expert_entropy / (double)n;
        mean.type_entropy += layers[i].type_entropy / (double)n;
    }
    mean.normalised = normalised(&mean);
    return mean;
}
