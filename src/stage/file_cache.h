/* file_cache: finished files that runs with the same inputs and options take from a folder instead of making
 * them again (score.cache_dir, teacher.cache_dir).
 *
 * Layer: stage.  Uses: program, store (scores_cache).
 *
 * The key is made of everything that changes a bit of the file, and of nothing else, so that stages of other
 * studies find it: content hashes of models and shard, options, number types, and the arithmetic (backend,
 * library, instruction set).
 */
#ifndef MB_FILE_CACHE_H
#define MB_FILE_CACHE_H

#include "stage/model_options.h"
#include "stage/program.h"
#include "store/shard.h"

typedef struct mb_file_cache {
    const char *folder;     /* borrowed; NULL: no cache, and all of this does nothing */
    char key[MB_HASH_TEXT]; /* "" without a folder */
    json_t *what;           /* rank 0: what the key is the hash of */
    bool is_hit;
} mb_file_cache;

/* What a file is made from, into `what`. Called on rank 0. */
typedef mb_status mb_file_cache_describe(const mb_program *program, mb_shard *shard, json_t *what);

/* After begin_run and open_ops, before any model is opened. Collective; the same answer on all ranks. On a
 * hit the file is at out_path (of a share of the work: nothing is, the joining run takes it). run.force takes
 * nothing. Start zeroed. */
mb_status mb_file_cache_begin(mb_program *program, const char *folder, mb_file_cache_describe *describe,
                              mb_shard *shard, const char *out_path, mb_file_cache *cache);
/* Rank 0: whether the file came from the cache, into the run's record. */
mb_status mb_file_cache_record(mb_program *program, const mb_file_cache *cache);
/* Rank 0 keeps the file it made; a cache that cannot be written is a warning. */
void mb_file_cache_keep(mb_program *program, const mb_file_cache *cache, const char *out_path);
void mb_file_cache_reset(mb_file_cache *cache);

/* Parts of keys. The content hash of an input of the run, where it has that input. */
mb_status mb_file_cache_add_input(const mb_program *program, json_t *what, const char *input);
/* How models are kept (number types, bits). */
mb_status mb_file_cache_add_storage(const mb_model_options *model, json_t *what);
/* What does the arithmetic; the number of threads changes no bit where rows are stable. */
mb_status mb_file_cache_add_arithmetic(const mb_program *program, json_t *what);

#endif
