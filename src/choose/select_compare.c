/* select_compare.c: two selections against each other, rank correlations, area under the ROC curve.
 *
 * All by sorting: average ranks from runs of equal values; discordant pairs as the swaps of a merge sort
 * (Knight 1966); the AUC as the Mann-Whitney count, exact in integers.
 *
 * 1. ranks and Spearman   2. Kendall   3. two selections   4. AUC
 */
#include "choose/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

typedef struct compare_item {
    double a, b;
    int64_t index;
} compare_item;

static int order_double(double x, double y)
{
    return (x > y) - (x < y);
}

static int order_by_a_then_b(const void *x, const void *y)
{
    const compare_item *p = x, *q = y;
    int order = order_double(p->a, q->a);
    return order != 0 ? order : order_double(p->b, q->b);
}

static int order_by_b(const void *x, const void *y)
{
    return order_double(((const compare_item *)x)->b, ((const compare_item *)y)->b);
}

/* ---- 1. ranks and Spearman ---- */

static double value_of(const compare_item *item, bool of_b)
{
    return of_b ? item->b : item->a;
}

/* rank[index] = twice the average rank (so that it is an integer) minus n + 1, which is the mean: centred.
 * Items sorted. */
static void centred_ranks(const compare_item *items, int64_t n, bool of_b, double *rank)
{
    for (int64_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && value_of(&items[end], of_b) == value_of(&items[first], of_b);) end++;
        for (int64_t i = first; i < end; i++)
            rank[items[i].index] = (double)(first + 1 + end) - (double)(n + 1);
    }
}

static double correlate_ranks(const double *x, const double *y, int64_t n)
{
    double xy = 0, xx = 0, yy = 0;
    for (int64_t i = 0; i < n; i++) {
        xy += x[i] * y[i];
        xx += x[i] * x[i];
        yy += y[i] * y[i];
    }
    return xx > 0 && yy > 0 ? xy / (sqrt(xx) * sqrt(yy)) : NAN;
}

/* ---- 2. Kendall ---- */

static double pairs(int64_t n)
{
    return 0.5 * (double)n * (double)(n - 1);
}

/* Sort items by b, stable; returns the number of pairs that changed places. */
static double merge_sort(compare_item *items, compare_item *work, int64_t n)
{
    if (n < 2) return 0;
    int64_t half = n / 2, i = 0, j = half, k = 0;
    double swaps = merge_sort(items, work, half) + merge_sort(items + half, work, n - half);
    while (i < half && j < n) {
        if (items[j].b < items[i].b) {
            swaps += (double)(half - i);
            work[k++] = items[j++];
        } else {
            work[k++] = items[i++];
        }
    }
    while (i < half) work[k++] = items[i++];
    memcpy(items, work, (size_t)k * sizeof *items);
    return swaps;
}

/* Items sorted by a, then b; left sorted by b. */
static double kendall(compare_item *items, compare_item *work, int64_t n)
{
    double tied_a = 0, tied_both = 0, tied_b = 0;
    for (int64_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && items[end].a == items[first].a;) end++;
        tied_a += pairs(end - first);
        for (int64_t from = first, to; from < end; from = to) {
            for (to = from + 1; to < end && items[to].b == items[from].b;) to++;
            tied_both += pairs(to - from);
        }
    }
    double discordant = merge_sort(items, work, n);
    for (int64_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && items[end].b == items[first].b;) end++;
        tied_b += pairs(end - first);
    }
    double all = pairs(n), difference = all - tied_a - tied_b + tied_both - 2 * discordant;
    return all > tied_a && all > tied_b ? difference / (sqrt(all - tied_a) * sqrt(all - tied_b)) : NAN;
}

mb_status mb_select_correlate(const double *a, const double *b, int64_t n, double *out_spearman,
                              double *out_kendall)
{
    mb_status status = MB_OK;
    compare_item *items = NULL, *work = NULL;
    double *rank_a = NULL, *rank_b = NULL;
    MB_NEW_ARRAY(items, n + 1);
    MB_NEW_ARRAY(work, n + 1);
    MB_NEW_ARRAY(rank_a, n + 1);
    MB_NEW_ARRAY(rank_b, n + 1);
    for (int64_t i = 0; i < n; i++) items[i] = (compare_item){.a = a[i], .b = b[i], .index = i};
    qsort(items, (size_t)n, sizeof *items, order_by_b);
    centred_ranks(items, n, true, rank_b);
    qsort(items, (size_t)n, sizeof *items, order_by_a_then_b);
    centred_ranks(items, n, false, rank_a);
    *out_spearman = correlate_ranks(rank_a, rank_b, n);
    *out_kendall = kendall(items, work, n);
done:
    mb_free(items);
    mb_free(work);
    mb_free(rank_a);
    mb_free(rank_b);
    return status;
}

/* ---- 3. two selections ---- */

typedef struct compare_record {
    int64_t key;
    double score;
} compare_record;

static int order_by_key(const void *x, const void *y)
{
    int64_t a = ((const compare_record *)x)->key, b = ((const compare_record *)y)->key;
    return (a > b) - (a < b);
}

static mb_status sorted_copy(const int64_t *keys, const double *opt_score, int64_t n, compare_record **out)
{
    mb_status status = MB_OK;
    compare_record *records = NULL;
    MB_NEW_ARRAY(records, n + 1);
    for (int64_t i = 0; i < n; i++) {
        records[i] = (compare_record){.key = keys[i], .score = opt_score != NULL ? opt_score[i] : NAN};
    }
    qsort(records, (size_t)n, sizeof *records, order_by_key);
    *out = records;
done:
    return status;
}

mb_status mb_select_compare(const int64_t *a, const double *opt_a_score, int64_t a_count, const int64_t *b,
                            const double *opt_b_score, int64_t b_count, mb_select_comparison *out_comparison)
{
    mb_status status = MB_OK;
    compare_record *left = NULL, *right = NULL;
    double *x = NULL, *y = NULL;
    int64_t n = 0;
    mb_select_comparison result = {.a = a_count, .b = b_count};
    MB_TRY(sorted_copy(a, opt_a_score, a_count, &left));
    MB_TRY(sorted_copy(b, opt_b_score, b_count, &right));
    MB_NEW_ARRAY(x, a_count + 1);
    MB_NEW_ARRAY(y, a_count + 1);
    for (int64_t i = 0, j = 0; i < a_count && j < b_count;) {
        if (left[i].key != right[j].key) {
            if (left[i].key < right[j].key)
                i++;
            else
                j++;
            continue;
        }
        result.both++;
        if (!isnan(left[i].score) && !isnan(right[j].score)) {
            x[n] = left[i].score;
            y[n++] = right[j].score;
        }
        i++;
        j++;
    }
    int64_t either = a_count + b_count - result.both;
    result.jaccard = either > 0 ? (double)result.both / (double)either : 1;
    MB_TRY(mb_select_correlate(x, y, n, &result.spearman, &result.kendall));
    *out_comparison = result;
done:
    mb_free(left);
    mb_free(right);
    mb_free(x);
    mb_free(y);
    return status;
}

/* ---- 4. AUC ---- */

static int order_by_a(const void *x, const void *y)
{
    return order_double(((const compare_item *)x)->a, ((const compare_item *)y)->a);
}

static int64_t take_values(const double *values, int64_t n, int64_t is_good, compare_item *items)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isnan(values[i])) items[count++] = (compare_item){.a = values[i], .index = is_good};
    }
    return count;
}

double mb_select_auc(const double *good, int64_t good_count, const double *bad, int64_t bad_count)
{
    compare_item *items = mb_calloc((size_t)(good_count + bad_count) + 1, sizeof *items);
    if (items == NULL) return NAN;
    int64_t goods = take_values(good, good_count, 1, items),
            bads = take_values(bad, bad_count, 0, items + goods);
    int64_t n = goods + bads, twice = 0, below = 0;
    qsort(items, (size_t)n, sizeof *items, order_by_a);
    for (int64_t first = 0, end; first < n; first = end) {
        int64_t good_here = 0;
        for (end = first; end < n && items[end].a == items[first].a; end++) good_here += items[end].index;
        int64_t bad_here = end - first - good_here;
        twice += good_here * (2 * below + bad_here);
        below += bad_here;
    }
    mb_free(items);
    return goods > 0 && bads > 0 ? (double)twice / (2.0 * (double)goods * (double)bads) : NAN;
}
