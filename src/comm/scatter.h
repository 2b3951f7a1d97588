/* scatter: sums of gradients that are never whole on a rank (ZeRO-2): each segment goes to the owners of its
 * elements as soon as it is complete.
 *
 * Layer: comm.  Uses: comm, ops, transfer, lanes (the owned parts).
 *
 * Lanes are dealt: rank r runs lanes r, r + R, r + 2R, ...; a wave is one lane of every rank, so that what
 * arrives together is consecutive lanes and merges at once. After every round the tree over all lanes (see
 * lanes.h) is complete and is added to the sum of the rounds before. With one round the bits are those of
 * lanes.h; with several the order of additions is another one (rounds of the tree, not the tree of rounds),
 * the same for every number of ranks.
 *
 * All ranks go through waves and segments in step, so nobody may leave early: a rank without work, or whose
 * work failed, calls begin and finish, which give zeros for what was not put.
 *
 * Segments and sums lie in the backend's memory. Memory besides the segments being filled: the sum of the
 * owned part, as many nodes of it as the tree holds between waves, and chunks of a few blocks for what
 * arrives.
 */
#ifndef MB_SCATTER_H
#define MB_SCATTER_H

#include "comm/lanes.h"

typedef struct mb_scatter mb_scatter;

/* n elements; segments [first[s], first[s] + count[s]) in the order in which they will be complete; count may
 * be 0. All ranks say the same. The transfer is borrowed. */
mb_status mb_scatter_create(mb_transfer *transfer, int64_t n, int64_t lanes, int64_t segments,
                            const int64_t *first, const int64_t *count, mb_scatter **out_scatter);
void mb_scatter_destroy(mb_scatter **scatter);
/* Bytes create and the steps need on the rank that needs most; `largest` elements of segments are being
 * filled at one time. */
size_t mb_scatter_plan(int64_t n, int64_t lanes, int ranks, int64_t largest);
/* The most bytes held so far. */
size_t mb_scatter_peak_bytes(const mb_scatter *scatter);

/* Waves of a round, and this rank's lane in one (-1: none). */
int64_t mb_scatter_waves(const mb_scatter *scatter);
int64_t mb_scatter_lane(const mb_scatter *scatter, int64_t wave);

/* begin: rounds from 0, waves from 0 in each. room: a zeroed buffer for a segment [count], this rank's until
 * put. put (collective): the segment is complete and leaves; segments passed over count as put, with what is
 * in them. finish (collective): the rest. Whatever fails before, finish must be called. */
void mb_scatter_begin(mb_scatter *scatter, int64_t round, int64_t wave);
mb_status mb_scatter_room(mb_scatter *scatter, int64_t segment, float **out_room);
mb_status mb_scatter_put(mb_scatter *scatter, int64_t segment);
mb_status mb_scatter_finish(mb_scatter *scatter);
/* The sum over all rounds of the owned elements (mb_lanes_owned), borrowed until the next begin of round 0;
 * NULL when there are none. */
float *mb_scatter_owned(mb_scatter *scatter);
/* As mb_lanes_sum: values[waves][width] of this rank's lanes. Collective. */
mb_status mb_scatter_sum(mb_scatter *scatter, const double *values, int64_t width, double *sums);

#endif
