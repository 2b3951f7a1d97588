/* shard_shuffle: records in an order of their own, larger than memory. Private to shard_build.
 *
 * Layer: store.  Uses: base, shard.
 *
 * Groups of records (a record, its pieces, both sides of a pair) come with a place, a number that is spread
 * evenly over 64 bits; they leave by rising places, equal ones in the order they came. On the way they lie in
 * `buckets` files of their places' top part, one of which is in memory at a time. The result does not depend
 * on the number of buckets.
 */
#ifndef MB_SHARD_SHUFFLE_H
#define MB_SHARD_SHUFFLE_H

#include "store/shard.h"

typedef struct mb_shard_shuffle mb_shard_shuffle;

/* Buckets for so many bytes of records: about 128 MiB each, at most 256. */
int64_t mb_shard_shuffle_buckets(int64_t bytes);
/* folder: made when missing; the files in it are removed by destroy. */
mb_status mb_shard_shuffle_create(const char *folder, int64_t buckets, mb_shard_shuffle **out_shuffle);
void mb_shard_shuffle_destroy(mb_shard_shuffle **shuffle);
mb_status mb_shard_shuffle_add(mb_shard_shuffle *shuffle, uint64_t place, const mb_shard_record *records,
                               int64_t count);
/* Give everything to a writer, once. MB_EFORMAT when a bucket is not as it was written. */
mb_status mb_shard_shuffle_write(mb_shard_shuffle *shuffle, mb_shard_writer *writer);

#endif
