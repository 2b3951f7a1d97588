/* fuse_mix: two passes over pieces of rows: each member's ln sum exp, then the mixed columns. */
#include "model/fuse_mix.h"

#include <math.h>

#include "base/memory.h"

enum { MIX_PIECE = 4096 }; /* columns */

static int64_t mix_pieces(int64_t size)
{
    return (size + MIX_PIECE - 1) / MIX_PIECE;
}

static int64_t mix_end(int64_t piece, int64_t size)
{
    return (piece + 1) * MIX_PIECE < size ? (piece + 1) * MIX_PIECE : size;
}

typedef struct mix_sum {
    float largest;
    double sum; /* of exp(x - largest) */
} mix_sum;

static mix_sum mix_piece(const float *row, int64_t first, int64_t end)
{
    mix_sum s = {row[first], 0};
    for (int64_t v = first + 1; v < end; v++)
        if (row[v] > s.largest) s.largest = row[v];
    for (int64_t v = first; v < end; v++) s.sum += (double)expf(row[v] - s.largest);
    return s;
}

static double mix_join(const mix_sum *piece, int64_t n)
{
    float largest = piece[0].largest;
    double sum = 0;
    for (int64_t i = 1; i < n; i++)
        if (piece[i].largest > largest) largest = piece[i].largest;
    for (int64_t i = 0; i < n; i++) sum += piece[i].sum * exp((double)piece[i].largest - (double)largest);
    return (double)largest + log(sum);
}

double mb_fuse_mix_sum(const float *row, int64_t size)
{
    float largest = row[0];
    double sum = 0;
    for (int64_t i = 0; i < mix_pieces(size); i++) {
        const mix_sum one = mix_piece(row, i * MIX_PIECE, mix_end(i, size));
        if (one.largest > largest || i == 0) {
            sum = i == 0 ? 0 : sum * exp((double)largest - (double)one.largest);
            largest = one.largest;
        }
        sum += one.sum * exp((double)one.largest - (double)largest);
    }
    return (double)largest + log(sum);
}

int32_t mb_fuse_mix_largest(const float *row, int64_t size)
{
    int64_t best = 0;
    for (int64_t v = 1; v < size; v++)
        if (row[v] > row[best]) best = v;
    return (int32_t)best;
}

static bool mix_is_in(const mb_fuse_mix *mix, int64_t m, int64_t v)
{
    return v < mix->width[m] && (mix->has[m] == NULL || mix->has[m][v] != 0);
}

/* One column by probabilities: ln of the sum of exp(ln w + z - ln sum exp z), in one pass over the
 * members. */
static float mix_probability(const mb_fuse_mix *mix, int64_t r, const double *shift, int64_t v)
{
    float term[16], largest = -INFINITY, sum = 0;
    int64_t n = 0;
    for (int64_t m = 0; m < mix->members; m++) {
        if (shift[m] == -INFINITY || !mix_is_in(mix, m, v)) continue;
        term[n] = (float)((double)mix->logits[m][r * mix->width[m] + v] + shift[m]);
        if (term[n] > largest) largest = term[n];
        n++;
    }
    if (n == 0 || largest == -INFINITY) return MB_FUSE_NEVER;
    if (n == 1) return term[0];
    for (int64_t i = 0; i < n; i++) sum += expf(term[i] - largest);
    return largest + logf(sum);
}

static float mix_logit(const mb_fuse_mix *mix, int64_t r, const double *weight, int64_t v)
{
    double sum = 0, by = 0;
    bool all = true;
    for (int64_t m = 0; m < mix->members; m++) {
        if (weight[m] == 0) continue;
        if (!mix_is_in(mix, m, v)) {
            all = false;
            continue;
        }
        sum += weight[m] * (double)mix->logits[m][r * mix->width[m] + v];
        by += weight[m];
    }
    if (by == 0) return MB_FUSE_NEVER;
    return (float)(all ? sum : sum / by);
}

/* Columns of a piece of row r; shift: what is added to a member's logits to make them ln of its share. */
static void mix_columns(const mb_fuse_mix *mix, int64_t r, const double *shift, int64_t piece, float *out)
{
    const double *weight = mix->weight + r * mix->members;
    for (int64_t v = piece * MIX_PIECE; v < mix_end(piece, mix->size); v++)
        out[r * mix->size + v] =
            mix->by_logits ? mix_logit(mix, r, weight, v) : mix_probability(mix, r, shift, v);
}

/* ln w - ln sum exp of each row and member, [rows, members]; -INFINITY: it weighs nothing. */
static mb_status mix_shifts(const mb_fuse_mix *mix, double *shift)
{
    mb_status status = MB_OK;
    const int64_t most = mix_pieces(mix->size), n = mix->rows * mix->members;
    mix_sum *sum = NULL;
    MB_NEW_ARRAY(sum, n * most);
#pragma omp parallel for schedule(static) num_threads(mix->threads)
    for (int64_t i = 0; i < n * most; i++) {
        const int64_t piece = i % most, m = i / most % mix->members, r = i / most / mix->members;
        if (mix->weight[r * mix->members + m] == 0 || piece * MIX_PIECE >= mix->width[m]) continue;
        sum[i] =
            mix_piece(mix->logits[m] + r * mix->width[m], piece * MIX_PIECE, mix_end(piece, mix->width[m]));
    }
    for (int64_t i = 0; i < n; i++)
        shift[i] =
            mix->weight[i] == 0
                ? -INFINITY
                : log(mix->weight[i]) - mix_join(sum + i * most, mix_pieces(mix->width[i % mix->members]));
done:
    mb_free(sum);
    return status;
}

mb_status mb_fuse_mix_rows(const mb_fuse_mix *mix, float *out)
{
    mb_status status = MB_OK;
    double *shift = NULL;
    const int64_t pieces = mix_pieces(mix->size);
    MB_NEW_ARRAY(shift, mix->rows * mix->members);
    if (!mix->by_logits) MB_TRY(mix_shifts(mix, shift));
#pragma omp parallel for schedule(static) num_threads(mix->threads)
    for (int64_t i = 0; i < mix->rows * pieces; i++)
        mix_columns(mix, i / pieces, shift + i / pieces * mix->members, i % pieces, out);
done:
    mb_free(shift);
    return status;
}
