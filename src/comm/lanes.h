/* lanes: sums of gradients with the same bits on any number of ranks, and the sharded parameter space they
 * live in.
 *
 * Layer: comm.  Uses: comm, ops, transfer.
 *
 * Gradients and parameters lie in the backend's memory, where they are also added; scalars in the host's.
 *
 * A step has `lanes` lanes. Micro-batch m belongs to lane m mod lanes, round m div lanes. Ranks own
 * contiguous lanes. A lane adds its rounds in order; then one fixed binary tree over lanes: node (level, i) =
 * node(level-1, 2i) + node(level-1, 2i+1), where a missing right child passes the left one through. A rank
 * merges the maximal aligned subtrees inside its own lanes with a stack of at most log2(lanes/R)+2 buffers;
 * the owner of a block of 65,536 elements receives every rank's subtree sums of that block and finishes the
 * tree. So sums never depend on R.
 *
 * The space: n elements cut into blocks of MB_LANES_BLOCK; rank r owns blocks [first, first+count) by
 * mb_lanes_owned. Moments and master weights of the optimiser exist only for owned blocks (ZeRO-1).
 */
#ifndef MB_LANES_H
#define MB_LANES_H

#include "comm/transfer.h"

#define MB_LANES_BLOCK   65536
#define MB_LANES_STAGING ((size_t)32 << 20)

typedef struct mb_lanes mb_lanes;

/* n elements; lanes >= 1; ranks <= lanes else MB_EUSAGE ("training.lanes = 8 allows at most 8 ranks").
 * Gradient buffers come on demand. Not collective, but all ranks need the same n and lanes. The
 * transfer is borrowed and must outlive the lanes. With one rank nothing is copied or staged. */
mb_status mb_lanes_create(mb_transfer *transfer, int64_t n, int64_t lanes, mb_lanes **out_lanes);
void mb_lanes_destroy(mb_lanes **lanes);
mb_comm *mb_lanes_comm(const mb_lanes *lanes);
/* Bytes create and the steps will need on the rank that needs most, before anything is created (forecast).
 * Gradient buffers of 4n bytes, as many as the deepest stack, and (for more than one rank) at most
 * MB_LANES_STAGING bytes, or two blocks per subtree sum where that is more, for what arrives. */
size_t mb_lanes_plan(int64_t n, int64_t lanes, int ranks);

/* Bytes of gradient buffers and staging so far (they are kept), in the backend's memory. */
size_t mb_lanes_bytes(const mb_lanes *lanes);

/* Lanes of this rank: [out_first, out_first + out_count). */
void mb_lanes_mine(const mb_lanes *lanes, int64_t *out_first, int64_t *out_count);
/* Elements this rank owns: [out_first, out_first + out_count). */
void mb_lanes_owned(const mb_lanes *lanes, int64_t *out_first, int64_t *out_count);

/* A step: for each of my lanes in order: begin (a zeroed buffer [n]; the caller adds all rounds into it),
 * end. Then reduce (collective): the sum over all lanes of the owned elements is in *out_owned (borrowed,
 * [owned count]; NULL when 0) until the next begin. The owned part of an own buffer is overwritten in place,
 * other ranks' sums arrive chunk by chunk. Agree before reduce: a rank that left early is waited for; and
 * after it: a rank may fail alone. */
mb_status mb_lanes_begin(mb_lanes *lanes, int64_t lane, float **out_gradient);
mb_status mb_lanes_end(mb_lanes *lanes, int64_t lane);
mb_status mb_lanes_reduce(mb_lanes *lanes, float **out_owned);

/* Scalars per lane (loss terms, counts): values[lane_count_of_mine][width] f64 -> sums[width] over all lanes
 * by the same tree, same on every rank. Collective. */
mb_status mb_lanes_sum(mb_lanes *lanes, const double *values, int64_t width, double *sums);
/* f64 values per owned block (e.g. squared norms) -> total in block order, same on every rank. Collective. */
mb_status mb_lanes_block_sum(mb_lanes *lanes, const double *owned_blocks, double *out_total);
/* Parameters: every rank has updated its owned part of parameter[n]; afterwards all have all. Collective;
 * agree afterwards, a rank may fail alone. */
mb_status mb_lanes_allgather(mb_lanes *lanes, float *parameter);

#endif
