/* bench_transfer: what an answer costs besides computing: the way there and back, and fusing.
 *
 * Layer: stage.  Uses: comm (mail), choose (vote).
 */
#ifndef MB_BENCH_TRANSFER_H
#define MB_BENCH_TRANSFER_H

#include "comm/mail.h"

/* Median seconds of a request of `there` bytes from the first rank to this one and an answer of `back` bytes,
 * over some rounds; 0 for the first rank itself. The same on both; others give 0 at once. Collective. */
mb_status mb_bench_transfer_run(mb_comm *comm, int rank, size_t there, size_t back, double *out_seconds);

/* Median seconds of fusing one question of four options that this many experts answered (gate_weighted). */
mb_status mb_bench_transfer_fuse(int64_t experts, double *out_seconds);

#endif
