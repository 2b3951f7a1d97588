/* score_cache: moe-score's side of the cache of finished tables (score.cache_dir).
 *
 * Layer: stage.  Uses: program, measure (scorer), store (scores_cache).
 *
 * The key is made of everything that changes a bit of the table, and of nothing else, so that stages of other
 * studies find it: content hashes of the models and the shard, the scores with what of their options they
 * read, number types, and the arithmetic (backend, library, instruction set).
 */
#ifndef MB_SCORE_CACHE_H
#define MB_SCORE_CACHE_H

#include "stage/program.h"
#include "store/shard.h"

typedef struct mb_score_cache {
    char key[MB_HASH_TEXT]; /* "" without score.cache_dir */
    json_t *what;           /* rank 0 */
    bool is_hit;
} mb_score_cache;

/* After begin_run and open_ops, before any model is opened. Collective; the same answer on all ranks. On a
 * hit the table is at out_path (of a share of the work: nothing is, the joining run takes it). run.force
 * takes nothing. Start zeroed. */
mb_status mb_score_cache_begin(mb_program *program, mb_shard *shard, const char *out_path,
                               mb_score_cache *cache);
/* Log line and record of a run that had a hit. Collective. */
mb_status mb_score_cache_finish(mb_program *program, mb_shard *shard, const mb_score_cache *cache,
                                const char *out_path);
/* Rank 0 keeps the table it made, and says so in the record; a cache that cannot be written is a warning. */
mb_status mb_score_cache_keep(mb_program *program, const mb_score_cache *cache, const char *out_path);
void mb_score_cache_reset(mb_score_cache *cache);
/* What does the arithmetic, into a key's "what": member arithmetic. The number of threads changes no bit
 * where rows are stable. */
mb_status mb_score_cache_arithmetic(const mb_program *program, json_t *what);

#endif
