/* file_cache.c: what a file is made from, and taking and keeping it.
 *
 * 1. parts of keys   2. taking   3. keeping
 */
#include "stage/file_cache.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "store/scores_cache.h"

/* ---- 1. parts of keys ---- */

mb_status mb_file_cache_add_input(const mb_program *program, json_t *what, const char *input)
{
    const char *hash = mb_runfolder_input_hash(program->run, input);
    return hash == NULL ? MB_OK : mb_json_set(what, input, json_string(hash));
}

mb_status mb_file_cache_add_storage(const mb_model_options *model, json_t *what)
{
    mb_status status = MB_OK;
    mb_lm_options lm = {0};
    MB_TRY(mb_model_options_storage(model, &lm));
    MB_TRY(mb_json_set(what, "dtype", json_string(mb_dtype_name(lm.dtype))));
    MB_TRY(mb_json_set(what, "frozen_bits", json_integer(lm.frozen_bits)));
    if (lm.frozen_bits != 0) MB_TRY(mb_json_set(what, "frozen_group", json_integer(lm.frozen_group)));
done:
    return status;
}

mb_status mb_file_cache_add_arithmetic(const mb_program *program, json_t *what)
{
    const char *line = mb_ops_describe(program->ops);
    size_t n = strlen(line);
    char threads[32];
    snprintf(threads, sizeof threads, ", %d threads", mb_ops_threads(program->ops));
    if (mb_ops_is_row_stable(program->ops) && mb_str_is_suffix(line, threads)) n -= strlen(threads);
    return mb_json_set(what, "arithmetic", json_stringn(line, n));
}

/* ---- 2. taking ---- */

/* Rank 0. */
static mb_status look(mb_program *program, mb_file_cache_describe *describe, mb_shard *shard,
                      const char *out_path, mb_file_cache *cache)
{
    mb_status status = MB_OK;
    cache->what = json_object();
    if (cache->what == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for a cache's key");
    MB_TRY(describe(program, shard, cache->what));
    MB_TRY(mb_scores_cache_key(cache->what, cache->key));
    if (program->options.force) goto done;
    if (!mb_share_is_whole(program->share))
        cache->is_hit = mb_scores_cache_has(cache->folder, cache->key);
    else
        MB_TRY(mb_scores_cache_take(cache->folder, cache->key, out_path, &cache->is_hit));
done:
    return status;
}

mb_status mb_file_cache_begin(mb_program *program, const char *folder, mb_file_cache_describe *describe,
                              mb_shard *shard, const char *out_path, mb_file_cache *cache)
{
    mb_status status = MB_OK;
    int64_t is_hit = 0;
    cache->folder = folder;
    if (folder == NULL) goto done;
    if (mb_program_is_root(program)) status = look(program, describe, shard, out_path, cache);
    is_hit = cache->is_hit;
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, cache->key, sizeof cache->key, 0));
    MB_TRY(mb_comm_bcast(program->comm, &is_hit, sizeof is_hit, 0));
    cache->is_hit = is_hit != 0;
    if (cache->is_hit)
        mb_info("from the cache: %s/%s.h5%s; no model was opened", folder, cache->key,
                mb_share_is_whole(program->share) ? "" : " has all shares of this work");
done:
    return status;
}

mb_status mb_file_cache_record(mb_program *program, const mb_file_cache *cache)
{
    mb_status status = MB_OK;
    if (program->run == NULL || cache->folder == NULL || !mb_program_is_root(program)) goto done;
    MB_TRY(mb_runfolder_result(program->run, "from_cache", json_boolean(cache->is_hit)));
    MB_TRY(mb_runfolder_result(program->run, "cache_key", json_string(cache->key)));
done:
    return status;
}

/* ---- 3. keeping ---- */

void mb_file_cache_keep(mb_program *program, const mb_file_cache *cache, const char *out_path)
{
    if (cache->folder == NULL || !mb_program_is_root(program) || !mb_share_is_whole(program->share)) return;
    if (mb_scores_cache_keep(cache->folder, cache->key, cache->what, out_path) == MB_OK) {
        mb_info("kept in the cache as %s/%s.h5", cache->folder, cache->key);
    } else {
        mb_warn("%s: the file is not kept for other runs: %s", cache->folder, mb_status_message());
        mb_status_reset();
    }
}

void mb_file_cache_reset(mb_file_cache *cache)
{
    json_decref(cache->what);
    *cache = (mb_file_cache){0};
}
