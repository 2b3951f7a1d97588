/* shard_stream: the records of part shards one after another, in bounded memory. Private to shard_build.
 *
 * Layer: store.  Uses: base, h5, shard.
 *
 * A chain is a list of part files whose records rise by (source, source_index), within each and from each to
 * the next. A stream merges a few chains into one such order, with one file of each chain open at a time. It
 * reads what this program has just written: formats are not checked again, checksums are.
 */
#ifndef MB_SHARD_STREAM_H
#define MB_SHARD_STREAM_H

#include "store/shard.h"

typedef struct mb_shard_stream mb_shard_stream;

/* Chain c is paths[c * chain_length .. (c+1) * chain_length); empty parts are fine. paths are borrowed. */
mb_status mb_shard_stream_open(char *const *paths, int64_t chains, int64_t chain_length,
                               mb_shard_stream **out_stream);
void mb_shard_stream_close(mb_shard_stream **stream);
/* The next record; tokens NULL at the end, with count -1. Pointers are good until the next call. */
mb_status mb_shard_stream_next(mb_shard_stream *stream, mb_shard_record *out_record);

#endif
