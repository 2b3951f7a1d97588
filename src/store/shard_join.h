/* shard_join: part shards of all ranks and rounds -> the shard and the validation shard, counted by input.
 * Private to shard_build.
 *
 * Layer: store.  Uses: base, shard, shard_mix, shard_stream, shard_shuffle.
 */
#ifndef MB_SHARD_JOIN_H
#define MB_SHARD_JOIN_H

#include "store/shard.h"
#include "store/shard_mix.h"

/* What part shards carry in /label; the joined ones have none. */
enum { MB_SHARD_JOIN_CUT = 1, MB_SHARD_JOIN_SPLIT = 2 /* the first piece */ };

/* What was written of one input. */
typedef struct mb_shard_tally {
    int64_t samples; /* records of the file, repeats counted; a pair is one */
    int64_t records; /* of the shard: pieces and sides count */
    int64_t tokens, bytes, cut, split;
} mb_shard_tally;

typedef struct mb_shard_join {
    const mb_shard_info *info;
    const mb_shard_draw *draws; /* [inputs], settled */
    char *const *parts;         /* [rounds * ranks], as mb_shard_stream_open takes them */
    int64_t rounds, ranks;
    const char *out_path, *opt_validation_path; /* NULL: nothing is held back */
    const char *opt_shuffle_folder;             /* NULL: the order of the inputs */
    int64_t shuffle_bytes;                      /* about so many will be written */
    /* results: open writers (their attributes are the caller's, who closes them) and tallies [inputs], the
     * caller's zeroed arrays */
    mb_shard_writer *writer, *held_writer;
    mb_shard_tally *tallies, *held_tallies;
} mb_shard_join;

/* One process. */
mb_status mb_shard_join_run(mb_shard_join *join);

#endif
