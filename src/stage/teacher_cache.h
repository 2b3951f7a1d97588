/* teacher_cache: moe-teacher's side of the cache of finished files (teacher.cache_dir).
 *
 * Layer: stage.  Uses: program, store (scores_cache), score_cache.
 *
 * As score_cache.h: the key is made of everything that changes a bit of the file, and of nothing else, so
 * that every sweep and study with the same teacher, shard and options finds it.
 */
#ifndef MB_TEACHER_CACHE_H
#define MB_TEACHER_CACHE_H

#include "stage/program.h"
#include "store/shard.h"

typedef struct mb_teacher_cache {
    char key[MB_HASH_TEXT]; /* "" without teacher.cache_dir */
    json_t *what;           /* rank 0 */
    bool is_hit;
} mb_teacher_cache;

/* After begin_run and open_ops, before any model is opened. Collective; the same answer on all ranks. On a
 * hit the file is at out_path (of a share of the work: nothing is, the joining run takes it). run.force takes
 * nothing. Start zeroed. */
mb_status mb_teacher_cache_begin(mb_program *program, mb_shard *shard, const char *out_path,
                                 mb_teacher_cache *cache);
/* Rank 0: what is said of the cache in the run's record. */
mb_status mb_teacher_cache_record(mb_program *program, const mb_teacher_cache *cache);
/* Rank 0 keeps the file it made; a cache that cannot be written is a warning. */
mb_status mb_teacher_cache_keep(mb_program *program, const mb_teacher_cache *cache, const char *out_path);
void mb_teacher_cache_reset(mb_teacher_cache *cache);

#endif
