/* quantise_gram: Gram matrices X^T X of what goes into a projection, or into each expert of a group, over
 * calibration records on any number of ranks.
 *
 * Layer: model.  Uses: projection, ops, comm.
 *
 * A chunk of records gives f32 products, made where the weights are (mb_ops_linear_dw of x with itself); they
 * are added as whole numbers of 2^-exponent, 64 bits wide, so that the sum has the same bits in whatever
 * order and on however many ranks chunks are added. The exponent comes from the first chunk with room for
 * chunks 2^16 times as large; a larger one is an overflow, and all is done again with another exponent.
 */
#ifndef MB_QUANTISE_GRAM_H
#define MB_QUANTISE_GRAM_H

#include "comm/comm.h"
#include "model/projection.h"

typedef struct mb_quantise_gram mb_quantise_gram;

/* Of the input [rows, K] of `one`, or of experts first .. first + count of `group` (the other is NULL; both
 * borrowed). chunks: of all ranks. Memory: 12 K^2 bytes a matrix, 4 of them the backend's (and 4 K^2 more on
 * the host beside a device). */
mb_status mb_quantise_gram_create(mb_ops *ops, const mb_projection *one, const mb_projection_group *group,
                                  int64_t first, int64_t count, int64_t k, int64_t chunks,
                                  mb_quantise_gram **out_gram);
void mb_quantise_gram_destroy(mb_quantise_gram **gram);
/* For mb_projection_context.opt_tap of the forwards between begin and add. */
const mb_projection_tap *mb_quantise_gram_tap(const mb_quantise_gram *gram);
/* Before a chunk's forward, and after it: what it gave, and its largest number. */
mb_status mb_quantise_gram_begin(mb_quantise_gram *gram);
mb_status mb_quantise_gram_end(mb_quantise_gram *gram, double *out_most);
int mb_quantise_gram_exponent(double most, int64_t chunks);
/* Add what the last end gave. */
void mb_quantise_gram_add(mb_quantise_gram *gram, int exponent);
/* Over all ranks; overflow: numbers did not fit, nothing was added up, and everything begins again with a
 * smaller exponent. Collective. */
mb_status mb_quantise_gram_sum(mb_quantise_gram *gram, mb_comm *comm, bool *out_overflow);
void mb_quantise_gram_reset(mb_quantise_gram *gram); /* sums of nothing */
/* After the sum: rows that were in it, and the matrix [K, K] (lower triangle; times 2^exponent). */
int64_t mb_quantise_gram_rows(const mb_quantise_gram *gram, int64_t i);
double mb_quantise_gram_unit(const mb_quantise_gram *gram); /* 2^-exponent: what 1 in the matrix stands for */
const double *mb_quantise_gram_matrix(mb_quantise_gram *gram, int64_t i);

#endif
