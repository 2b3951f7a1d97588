/* silhouette: sums of distances between all pairs of rows, by cluster.
 *
 * Sampled rows less their mean are on every rank, ordered by cluster and packed into panels of one cluster
 * each; a rank's threads take blocks of rows and pass over all panels. Squared distances come from products,
 * and anew from the differences where rounding could be a good part of them.
 *
 * 1. sample   2. panels   3. a block of rows   4. results
 */
#include "choose/silhouette.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "choose/kmeans_state.h"

enum { BLOCK = 128, SAMPLE_SUB = 0xFFFF /* beside the restarts of k-means */ };

typedef struct sample {
    mb_comm *comm;
    const mb_row_products *loops;
    int threads;
    bool is_cosine;
    int64_t k, count, width;
    int64_t mine;    /* of the rows sampled, those of this rank */
    int64_t *number; /* [mine] local row */
    float *rows;     /* [count, width] less the mean */
    int32_t *label;  /* [count] */
    int64_t *sizes;  /* [k] */
    float *norm;     /* [count] squared */
    int64_t *order;  /* [count] by cluster, then as they come */
    int64_t panels;
    int64_t *panel_first; /* [panels + 1] into order */
    int32_t *panel_label; /* [panels] */
    float *panel;         /* [panels, width * LANES] */
    float *panel_norm;    /* [panels, LANES]; -inf behind the last, whose squares are 0 then */
    double reach;         /* the longest row */
    double *value;        /* [count] */
} sample;

static void free_sample(sample *s)
{
    mb_free(s->number);
    mb_free(s->rows);
    mb_free(s->label);
    mb_free(s->sizes);
    mb_free(s->norm);
    mb_free(s->order);
    mb_free(s->panel_first);
    mb_free(s->panel_label);
    mb_free(s->panel);
    mb_free(s->panel_norm);
    mb_free(s->value);
}

/* ---- 1. sample ---- */

/* The row drawn of stretch i of n even ones. */
static int64_t drawn(int64_t i, int64_t n, int64_t total, int64_t seed)
{
    if (n == total) return i;
    const int64_t first = (int64_t)((__int128)i * total / n), end = (int64_t)((__int128)(i + 1) * total / n);
    return first + (int64_t)mb_rng_below((uint64_t)seed, MB_KMEANS_STREAM, SAMPLE_SUB, (uint64_t)i,
                                         (uint64_t)(end - first));
}

/* This rank's sampled rows, ready to be given to all: rows less the mean. */
static mb_status take(sample *s, const mb_rows *rows, const int32_t *labels, int64_t seed, const double *mean,
                      float **out_rows, int32_t **out_labels)
{
    mb_status status = MB_OK;
    float *own = NULL;
    int32_t *own_label = NULL;
    MB_NEW_ARRAY(s->number, rows->count);
    for (int64_t i = 0; i < s->count; i++) {
        const int64_t number = drawn(i, s->count, rows->total, seed) - rows->first;
        if (number >= 0 && number < rows->count) s->number[s->mine++] = number;
    }
    MB_NEW_ARRAY(own, s->mine * s->width);
    MB_NEW_ARRAY(own_label, s->mine);
    for (int64_t i = 0; i < s->mine; i++) {
        const float *row = rows->data + s->number[i] * s->width;
        for (int64_t d = 0; d < s->width; d++) own[i * s->width + d] = (float)((double)row[d] - mean[d]);
        own_label[i] = labels[s->number[i]];
    }
    *out_rows = own;
    *out_labels = own_label;
    own = NULL;
    own_label = NULL;
done:
    mb_free(own);
    mb_free(own_label);
    return status;
}

/* The sample on every rank, in order of row number. */
static mb_status gather(sample *s, const mb_rows *rows, const int32_t *labels, int64_t seed)
{
    mb_status status = MB_OK;
    mb_row_columns columns = {0};
    float *own = NULL;
    int32_t *own_label = NULL;
    int64_t *offsets = NULL;
    offsets = mb_calloc((size_t)mb_comm_size(s->comm) + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(s->comm, offsets != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_rows_columns(s->comm, rows, s->threads, s->loops, &columns));
    MB_TRY(mb_comm_agree(s->comm, take(s, rows, labels, seed, columns.mean, &own, &own_label)));
    MB_TRY(mb_comm_allgatherv(s->comm, own, (size_t)(s->mine * s->width) * sizeof *own, (void **)&s->rows,
                              offsets));
    MB_TRY(mb_comm_allgatherv(s->comm, own_label, (size_t)s->mine * sizeof *own_label, (void **)&s->label,
                              offsets));
done:
    mb_rows_columns_reset(&columns);
    mb_free(own);
    mb_free(own_label);
    mb_free(offsets);
    return status;
}

/* ---- 2. panels ---- */

/* Sizes of clusters, the order by cluster, and where panels begin. */
static mb_status arrange(sample *s)
{
    mb_status status = MB_OK;
    int64_t *at = NULL;
    MB_NEW_ARRAY(s->sizes, s->k);
    MB_NEW_ARRAY(s->order, s->count);
    MB_NEW_ARRAY(s->panel_first, s->count / MB_ROW_LANES + s->k + 1);
    MB_NEW_ARRAY(s->panel_label, s->count / MB_ROW_LANES + s->k + 1);
    MB_NEW_ARRAY(at, s->k);
    for (int64_t i = 0; i < s->count; i++) s->sizes[s->label[i]]++;
    for (int64_t c = 0, sum = 0; c < s->k; sum += s->sizes[c++]) {
        at[c] = sum;
        for (int64_t first = 0; first < s->sizes[c]; first += MB_ROW_LANES) {
            s->panel_first[s->panels] = sum + first;
            s->panel_label[s->panels++] = (int32_t)c;
        }
    }
    s->panel_first[s->panels] = s->count;
    for (int64_t i = 0; i < s->count; i++) s->order[at[s->label[i]]++] = i;
done:
    mb_free(at);
    return status;
}

static mb_status pack(sample *s)
{
    mb_status status = MB_OK;
    double *zeros = NULL;
    MB_NEW_ARRAY(s->norm, s->count);
    MB_NEW_ARRAY(s->value, s->count);
    MB_NEW_ARRAY(zeros, s->width);
    MB_NEW_ARRAY(s->panel, s->panels * s->width * MB_ROW_LANES);
    MB_NEW_ARRAY(s->panel_norm, s->panels * MB_ROW_LANES);
    for (int64_t i = 0; i < s->count; i++) {
        const double square = s->loops->distance_f64(s->rows + i * s->width, zeros, s->width);
        s->norm[i] = (float)square;
        if (square > s->reach) s->reach = square;
    }
    s->reach = sqrt(s->reach);
    for (int64_t p = 0; p < s->panels; p++) {
        const float *list[MB_ROW_LANES];
        const int64_t first = s->panel_first[p], n = s->panel_first[p + 1] - first;
        for (int64_t j = 0; j < n; j++) list[j] = s->rows + s->order[first + j] * s->width;
        mb_row_products_pack(list, n, s->width, s->panel + p * s->width * MB_ROW_LANES);
        for (int64_t j = 0; j < MB_ROW_LANES; j++)
            s->panel_norm[p * MB_ROW_LANES + j] = j < n ? s->norm[s->order[first + j]] : -INFINITY;
    }
done:
    mb_free(zeros);
    return status;
}

/* ---- 3. a block of rows ---- */

/* Squares that rounding may have spoilt, again from the differences. */
static void mend(const sample *s, int64_t i, int64_t p, float *squares)
{
    const int64_t first = s->panel_first[p], n = s->panel_first[p + 1] - first;
    const double error = 2.02 * (double)(s->width + 4) * 0x1p-24 * sqrt((double)s->norm[i]) * s->reach;
    for (int64_t j = 0; j < n; j++) {
        const int64_t other = s->order[first + j];
        if ((double)squares[j] < 64 * error)
            squares[j] = other == i ? 0
                                    : (float)s->loops->distance(s->rows + i * s->width,
                                                                s->rows + other * s->width, s->width);
    }
}

static double silhouette_of(const sample *s, int64_t i, const double *sums)
{
    const int32_t own = s->label[i];
    double nearest = INFINITY;
    if (s->sizes[own] == 1) return 0;
    for (int64_t c = 0; c < s->k; c++)
        if (c != own && s->sizes[c] > 0) nearest = fmin(nearest, sums[c] / (double)s->sizes[c]);
    const double inside = sums[own] / (double)(s->sizes[own] - 1), larger = fmax(inside, nearest);
    return larger > 0 ? (nearest - inside) / larger : 0;
}

/* room: products and squares [BLOCK * LANES + LANES]; sums [BLOCK, k] */
static void do_block(sample *s, int64_t first, int64_t n, float *room, double *sums)
{
    const float *list[BLOCK];
    float *squares = room + (int64_t)BLOCK * MB_ROW_LANES;
    const int64_t width = s->width;
    for (int64_t i = 0; i < n; i++) list[i] = s->rows + (first + i) * width;
    memset(sums, 0, (size_t)(n * s->k) * sizeof *sums);
    for (int64_t p = 0; p < s->panels; p++) {
        const int64_t lanes = mb_row_products_lanes(s->panel_first[p + 1] - s->panel_first[p]);
        s->loops->products(list, n, s->panel + p * width * MB_ROW_LANES, width, lanes, room);
        for (int64_t i = 0; i < n; i++) {
            s->loops->squares(room + i * lanes, s->norm[first + i], s->panel_norm + p * MB_ROW_LANES, lanes,
                              squares);
            mend(s, first + i, p, squares);
            const double sum = s->loops->sum(squares, !s->is_cosine, lanes);
            sums[i * s->k + s->panel_label[p]] += s->is_cosine ? sum / 2 : sum;
        }
    }
    for (int64_t i = 0; i < n; i++) s->value[first + i] = silhouette_of(s, first + i, sums + i * s->k);
}

/* This rank's share of the rows, then all values on every rank. */
static mb_status compute(sample *s)
{
    mb_status status = MB_OK;
    const int ranks = mb_comm_size(s->comm);
    float *room = NULL;
    double *sums = NULL;
    int64_t *offsets = NULL, first, count;
    const int64_t room_size = (int64_t)(BLOCK + 1) * MB_ROW_LANES;
    mb_comm_share(s->comm, s->count, &first, &count);
    room = mb_calloc((size_t)(s->threads * room_size), sizeof *room);
    sums = mb_calloc((size_t)(s->threads * BLOCK * s->k), sizeof *sums);
    offsets = mb_calloc((size_t)ranks + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(s->comm, room != NULL && sums != NULL && offsets != NULL ? MB_OK : MB_ENOMEM));
#pragma omp parallel num_threads(s->threads)
    {
        const int t = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i += BLOCK)
            do_block(s, first + i, count - i < BLOCK ? count - i : BLOCK, room + t * room_size,
                     sums + t * BLOCK * s->k);
    }
    for (int r = 0; r < ranks; r++) {
        int64_t begin, n;
        mb_comm_share_of(s->count, ranks, r, &begin, &n);
        offsets[r] = begin * (int64_t)sizeof *s->value;
        offsets[r + 1] = (begin + n) * (int64_t)sizeof *s->value;
    }
    MB_TRY(mb_comm_allgather_parts(s->comm, s->value, offsets));
done:
    mb_free(room);
    mb_free(sums);
    mb_free(offsets);
    return status;
}

/* ---- 4. results ---- */

/* Means, and this rank's values at their rows. */
static void hand_out(const sample *s, const mb_rows *rows, int64_t seed, float *out_values,
                     double *out_cluster, mb_silhouette_summary *summary)
{
    double total = 0;
    for (int64_t c = 0; c < s->k; c++) out_cluster[c] = 0;
    for (int64_t i = 0; i < s->count; i++) {
        const int64_t number = drawn(i, s->count, rows->total, seed) - rows->first;
        total += s->value[i];
        out_cluster[s->label[i]] += s->value[i];
        if (number >= 0 && number < rows->count) out_values[number] = (float)s->value[i];
    }
    for (int64_t c = 0; c < s->k; c++)
        out_cluster[c] = s->sizes[c] > 0 ? out_cluster[c] / (double)s->sizes[c] : NAN;
    summary->mean = total / (double)s->count;
}

mb_status mb_silhouette_run(mb_comm *comm, const mb_rows *rows, const int32_t *labels, int64_t k,
                            const mb_silhouette_options *options, float *out_values, double *out_cluster,
                            mb_silhouette_summary *out_summary)
{
    mb_status status = MB_OK;
    sample s = {.comm = comm,
                .threads = options->threads > 0 ? options->threads : omp_get_max_threads(),
                .is_cosine = options->is_cosine,
                .k = k,
                .width = rows->width,
                .count = options->limit < rows->total ? options->limit : rows->total,
                .loops = mb_row_products_get(options->opt_isa)};
    mb_silhouette_summary summary = {.mean = NAN};
    int64_t used = 0;
    for (int64_t i = 0; i < rows->count; i++) out_values[i] = NAN;
    for (int64_t c = 0; c < k; c++) out_cluster[c] = NAN;
    if (s.loops == NULL)
        MB_RAISE(MB_EUNSUPPORTED, "MB_ISA=%s: not known, or not on this processor", options->opt_isa);
    if (s.count > 0 && k > 1) {
        MB_TRY(gather(&s, rows, labels, options->seed));
        status = arrange(&s);
        for (int64_t c = 0; status == MB_OK && c < k; c++) used += s.sizes[c] > 0;
        if (status == MB_OK && used > 1) status = pack(&s);
        MB_TRY(mb_comm_agree(comm, status));
    }
    if (used > 1) {
        MB_TRY(compute(&s));
        summary.rows = s.count;
        hand_out(&s, rows, options->seed, out_values, out_cluster, &summary);
    }
    *out_summary = summary;
done:
    free_sample(&s);
    return status;
}
