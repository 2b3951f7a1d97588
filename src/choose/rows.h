/* rows: a table of f32 vectors shared out over ranks, and what k-means, silhouette and principal components
 * all ask of it.
 *
 * Layer: choose.  Uses: base, comm, row_products, exact_sum.
 *
 * Sums over rows are exact: every value becomes an integer in units of its column's own power of two, so fine
 * that the largest of all N rows still fit into 64 bits (2^50 steps of the column's largest value, fewer for
 * more than 4,096 rows: 2^44 at 200,000), and integers are added. So neither the order, nor threads, nor
 * ranks can show in a sum.
 */
#ifndef MB_ROWS_H
#define MB_ROWS_H

#include "choose/row_products.h"
#include "comm/comm.h"

enum { MB_ROWS_PANEL = 256 };

/* Rows [first, first + count) of [total, width] are on this rank, by mb_rows_share. data is borrowed. */
typedef struct mb_rows {
    float *data; /* [count, width] */
    int64_t first, count, total, width;
} mb_rows;

/* This rank's share: whole panels of MB_ROWS_PANEL rows. Not collective. */
void mb_rows_share(const mb_comm *comm, int64_t total, int64_t *out_first, int64_t *out_count);
/* The rank that has the row. */
int mb_rows_owner(const mb_comm *comm, int64_t total, int64_t row);

/* The first row of all that holds NaN or an infinity; -1: none. Collective. */
mb_status mb_rows_find_bad(mb_comm *comm, const mb_rows *rows, int threads, int64_t *out_row);
/* Every row to length 1, in place. *out_row: the first of length 0 (stays as it is); -1: none. Collective. */
mb_status mb_rows_normalise(mb_comm *comm, mb_rows *rows, int threads, const mb_row_products *loops,
                            int64_t *out_row);

/* The columns: unit of exact sums (scale[d] = 1 / unit, a power of two), mean, largest value. [width] each.
 * */
typedef struct mb_row_columns {
    double *scale, *mean, *largest;
} mb_row_columns;
mb_status mb_rows_columns(mb_comm *comm, const mb_rows *rows, int threads, const mb_row_products *loops,
                          mb_row_columns *out_columns);
void mb_rows_columns_reset(mb_row_columns *columns);

/* Bits an integer may have so that n of them fit into 62; at most 50. */
int mb_rows_bits(int64_t n);
/* The smallest e with value < 2^e; 0 for 0. */
int mb_rows_exponent(double value);

/* A copy of some rows, by number, on every rank: out [n, width]. Collective. */
mb_status mb_rows_fetch(mb_comm *comm, const mb_rows *rows, const int64_t *numbers, int64_t n, float *out);

#endif
