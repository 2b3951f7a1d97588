/* tile_stream: tiles of a shard read by a thread of its own while the one before is computed.
 *
 * Layer: measure.  Uses: tile, pthreads.
 *
 * One tile is read ahead of those that the caller still uses (`held`). Between start and take (or wait) the
 * shard belongs to the reader: nobody else reads records from it. Not for several threads at once.
 */
#ifndef MB_TILE_STREAM_H
#define MB_TILE_STREAM_H

#include "measure/tile.h"

typedef struct mb_tile_stream mb_tile_stream;

/* shard and plan are borrowed. held: 1 or 2. */
mb_status mb_tile_stream_create(mb_shard *shard, const mb_tile_plan *plan, int64_t limit,
                                mb_tile_targets targets, int held, mb_tile_stream **out_stream);
/* Waits for a read that is under way. */
void mb_tile_stream_destroy(mb_tile_stream **stream);
/* Begin to read a tile of the plan; nothing may be waiting to be taken. */
void mb_tile_stream_start(mb_tile_stream *stream, int64_t tile);
/* The tile that was started; borrowed until `held` more were taken and the one after them is started.
 * Failures of reading come out here. */
mb_status mb_tile_stream_take(mb_tile_stream *stream, const mb_tile **out_tile);
/* Until the reader has left the shard; what it read stays to be taken. */
void mb_tile_stream_wait(mb_tile_stream *stream);
double mb_tile_stream_waited(const mb_tile_stream *stream); /* seconds spent in take and wait, in all */

#endif
