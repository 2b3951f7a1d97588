/* score_cache: moe-score's side of the cache of finished tables (score.cache_dir).
 *
 * Layer: stage.  Uses: file_cache, program_options, measure (scorer).
 */
#ifndef MB_SCORE_CACHE_H
#define MB_SCORE_CACHE_H

#include "stage/file_cache.h"

/* A mb_file_cache_describe of moe-score: the scores with what of their options they read. */
mb_status mb_score_cache_describe(const mb_program *program, mb_shard *shard, json_t *what);
/* The record of a run that had a hit, and its end. Collective. */
mb_status mb_score_cache_finish(mb_program *program, mb_shard *shard, const mb_file_cache *cache,
                                const char *out_path);

#endif
