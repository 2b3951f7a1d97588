/* window: memory of one rank that the others read without its help (MPI one-sided, passive target), and
 * memory that the ranks of a node have in common.
 *
 * Layer: comm.  Uses: comm.
 *
 * A rank writes only its own part. On one node a get is a copy; between nodes without remote memory access it
 * may wait until the other rank enters MPI. Under `self` a window is plain memory.
 */
#ifndef MB_WINDOW_H
#define MB_WINDOW_H

#include "comm/comm.h"

typedef struct mb_window mb_window;

/* Collective. `bytes` of memory on this rank (ranks may differ), zeroed, at *out_base. The comm must outlive
 * the window. */
mb_status mb_window_create(mb_comm *comm, size_t bytes, void **out_base, mb_window **out_window);
/* Collective. One zeroed piece of memory for all ranks of a node, `bytes` the same on all of them. The rank
 * with mb_comm_local_rank 0 fills it, then mb_window_sync; nobody writes after that. */
mb_status mb_window_create_shared(mb_comm *comm, size_t bytes, void **out_base, mb_window **out_window);
/* Collective; NULL is fine. */
void mb_window_destroy(mb_window **window);

/* Start to read bytes [offset, offset + bytes) of a rank's part; data is there after mb_window_wait, which
 * ends all gets started. Not collective. */
mb_status mb_window_get(mb_window *window, int rank, size_t offset, void *data, size_t bytes);
mb_status mb_window_wait(mb_window *window);
/* Collective: what ranks wrote into their own parts before it is seen by all after it. No get may be under
 * way when a part is written. */
mb_status mb_window_sync(mb_window *window);

#endif
