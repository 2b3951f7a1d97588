/* score_cache.c: what a table is made from, and taking and keeping it.
 *
 * 1. the key   2. taking   3. keeping
 */
#include "stage/score_cache.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "measure/tile.h"
#include "stage/program_options.h"
#include "store/scores.h"
#include "store/scores_cache.h"

/* ---- 1. the key ---- */

mb_status mb_score_cache_arithmetic(const mb_program *program, json_t *what)
{
    mb_status status = MB_OK;
    const char *line = mb_ops_describe(program->ops);
    size_t n = strlen(line);
    char threads[32];
    snprintf(threads, sizeof threads, ", %d threads", mb_ops_threads(program->ops));
    if (mb_ops_is_row_stable(program->ops) && mb_str_is_suffix(line, threads)) n -= strlen(threads);
    MB_TRY(mb_json_set(what, "arithmetic", json_stringn(line, n)));
done:
    return status;
}

static mb_status add_hash(const mb_program *program, json_t *what, const char *input)
{
    const char *hash = mb_runfolder_input_hash(program->run, input);
    return mb_json_set(what, input, json_string(hash != NULL ? hash : ""));
}

/* Models and how they are kept; only where a score needs one. */
static mb_status add_models(const mb_program *program, const mb_scorer_needs *needs, json_t *what)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    mb_lm_options lm = {0};
    if (!needs->router && !needs->source) goto done;
    MB_TRY(mb_model_options_storage(&own->model, &lm));
    MB_TRY(add_hash(program, what, "model"));
    if (needs->router || needs->policy) MB_TRY(add_hash(program, what, "adapter"));
    if (needs->source) {
        MB_TRY(add_hash(program, what, "source_model"));
        MB_TRY(mb_fuse_options_add_key(program, &own->fuse, what));
    }
    if (needs->router)
        MB_TRY(mb_json_set(what, "trash_expert_ratio", json_real(own->model.trash_expert_ratio)));
    MB_TRY(mb_json_set(what, "dtype", json_string(mb_dtype_name(lm.dtype))));
    MB_TRY(mb_json_set(what, "frozen_bits", json_integer(lm.frozen_bits)));
    if (lm.frozen_bits != 0) MB_TRY(mb_json_set(what, "frozen_group", json_integer(lm.frozen_group)));
    MB_TRY(mb_score_cache_arithmetic(program, what));
done:
    return status;
}

/* Rank 0. */
static mb_status make_what(const mb_program *program, mb_shard *shard, mb_score_cache *cache)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    const mb_scorer_options *options = &own->scorer;
    char hash[MB_HASH_TEXT];
    mb_scorer_needs needs;
    MB_TRY(mb_scorer_needs_get(options->scores, &needs));
    MB_TRY(mb_shard_hash(shard, hash));
    cache->what = json_pack("{s:s, s:i, s:s, s:s, s:I, s:I}", "format", "moebatch-scores", "version", 1,
                            "scores", options->scores, "shard", hash, "max_length",
                            (json_int_t)options->max_length, "tile_tokens", (json_int_t)options->tile_tokens);
    if (cache->what == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the key of a score table");
    if (needs.layered > 0)
        MB_TRY(mb_json_set(cache->what, "score_layers", json_string(options->score_layers)));
    if (needs.seed) MB_TRY(mb_json_set(cache->what, "seed", json_integer(options->seed)));
    MB_TRY(add_models(program, &needs, cache->what));
    MB_TRY(mb_scores_cache_key(cache->what, cache->key));
done:
    return status;
}

/* ---- 2. taking ---- */

static mb_status look(mb_program *program, mb_shard *shard, const char *out_path, mb_score_cache *cache)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    MB_TRY(make_what(program, shard, cache));
    if (program->options.force) goto done;
    if (!mb_share_is_whole(program->share))
        cache->is_hit = mb_scores_cache_has(own->cache_dir, cache->key);
    else
        MB_TRY(mb_scores_cache_take(own->cache_dir, cache->key, out_path, &cache->is_hit));
done:
    return status;
}

mb_status mb_score_cache_begin(mb_program *program, mb_shard *shard, const char *out_path,
                               mb_score_cache *cache)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    int64_t is_hit = 0;
    if (own->cache_dir == NULL) goto done;
    if (mb_program_is_root(program)) status = look(program, shard, out_path, cache);
    is_hit = cache->is_hit;
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, cache->key, sizeof cache->key, 0));
    MB_TRY(mb_comm_bcast(program->comm, &is_hit, sizeof is_hit, 0));
    cache->is_hit = is_hit != 0;
done:
    return status;
}

static mb_status record(mb_program *program, const mb_score_cache *cache)
{
    mb_status status = MB_OK;
    if (program->run == NULL) goto done;
    MB_TRY(mb_runfolder_result(program->run, "from_cache", json_boolean(cache->is_hit)));
    MB_TRY(mb_runfolder_result(program->run, "cache_key", json_string(cache->key)));
done:
    return status;
}

/* Rank 0: the figures of the run that made it. */
static mb_status describe(mb_program *program, mb_shard *shard, const char *out_path)
{
    mb_status status = MB_OK;
    mb_scores *scores = NULL;
    int64_t limit;
    MB_TRY(mb_scores_open(out_path, &scores));
    MB_TRY(mb_h5_get_int(mb_scores_file(scores), "/", "max_length", &limit));
    MB_TRY(mb_program_result_int(program, "records", mb_scores_count(scores)));
    MB_TRY(mb_program_result_int(program, "tokens", mb_tile_tokens(shard, limit)));
done:
    mb_scores_close(&scores);
    return status;
}

mb_status mb_score_cache_finish(mb_program *program, mb_shard *shard, const mb_score_cache *cache,
                                const char *out_path)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    const bool is_whole = mb_share_is_whole(program->share);
    mb_info("from the cache: %s/%s.h5%s; no model was opened", own->cache_dir, cache->key,
            is_whole ? "" : " has all shares of this work");
    if (mb_program_is_root(program)) {
        status = record(program, cache);
        if (status == MB_OK && is_whole) status = describe(program, shard, out_path);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, is_whole ? "scores.h5" : NULL, NULL));
    if (mb_program_is_root(program) && (is_whole || mb_program_is_whole_done(program)))
        mb_scores_parts_remove(out_path);
done:
    return status;
}

/* ---- 3. keeping ---- */

mb_status mb_score_cache_keep(mb_program *program, const mb_score_cache *cache, const char *out_path)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    if (cache->key[0] == 0 || !mb_program_is_root(program)) goto done;
    MB_TRY(record(program, cache));
    if (!mb_share_is_whole(program->share)) goto done;
    if (mb_scores_cache_keep(own->cache_dir, cache->key, cache->what, out_path) == MB_OK) {
        mb_info("kept in the cache as %s/%s.h5", own->cache_dir, cache->key);
    } else {
        mb_warn("%s: the table is not kept for other runs: %s", own->cache_dir, mb_status_message());
        mb_status_reset();
    }
done:
    return status;
}

void mb_score_cache_reset(mb_score_cache *cache)
{
    json_decref(cache->what);
    *cache = (mb_score_cache){0};
}
