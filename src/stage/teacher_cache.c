/* teacher_cache.c: what a teacher's file is made from, and taking and keeping it.
 *
 * 1. the key   2. taking   3. keeping
 */
#include "stage/teacher_cache.h"

#include <stdio.h>

#include "base/log.h"
#include "stage/program_options.h"
#include "stage/score_cache.h"
#include "store/scores_cache.h"

/* ---- 1. the key ---- */

static mb_status add_hash(const mb_program *program, json_t *what, const char *input)
{
    const char *hash = mb_runfolder_input_hash(program->run, input);
    return hash == NULL ? MB_OK : mb_json_set(what, input, json_string(hash));
}

/* Folders of the model or its members by their content, and how they are mixed and kept. */
static mb_status add_model(const mb_program *program, json_t *what)
{
    static const char *const inputs[] = {
        "model", "adapter", "foundation", "sft", "router", "foundation_adapter", "sft_adapter"};
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    mb_lm_options lm = {0};
    char more[32];
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) MB_TRY(add_hash(program, what, inputs[i]));
    for (int i = 0; i < MB_FUSE_MAX_MEMBERS; i++) {
        snprintf(more, sizeof more, "more_%d", i);
        MB_TRY(add_hash(program, what, more));
    }
    if (own->fuse.foundation != NULL) {
        MB_TRY(mb_json_set(what, "mixing", json_string(own->fuse.mixing)));
        MB_TRY(mb_json_set(what, "foundation_weight", json_real(own->fuse.foundation_weight)));
        MB_TRY(mb_json_set(what, "sft_weight", json_real(own->fuse.sft_weight)));
        if (own->fuse.more_weights != NULL)
            MB_TRY(mb_json_set(what, "more_weights", json_string(own->fuse.more_weights)));
    }
    MB_TRY(mb_model_options_storage(&own->model, &lm));
    MB_TRY(mb_json_set(what, "trash_expert_ratio", json_real(own->model.trash_expert_ratio)));
    MB_TRY(mb_json_set(what, "dtype", json_string(mb_dtype_name(lm.dtype))));
    MB_TRY(mb_json_set(what, "frozen_bits", json_integer(lm.frozen_bits)));
    if (lm.frozen_bits != 0) MB_TRY(mb_json_set(what, "frozen_group", json_integer(lm.frozen_group)));
done:
    return status;
}

/* Rank 0. */
static mb_status make_what(const mb_program *program, mb_shard *shard, mb_teacher_cache *cache)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    const mb_teacher_maker_options *maker = &own->maker;
    char hash[MB_HASH_TEXT];
    MB_TRY(mb_shard_hash(shard, hash));
    cache->what =
        json_pack("{s:s, s:i, s:s, s:I, s:s, s:s, s:s, s:I, s:I}", "format", "moebatch-teacher", "version", 1,
                  "shard", hash, "k", (json_int_t)maker->k, "temperatures", maker->temperatures,
                  "stored_dtype", maker->dtype, "targets", maker->targets, "max_length",
                  (json_int_t)maker->max_length, "tile_tokens", (json_int_t)maker->tile_tokens);
    if (cache->what == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the key of a teacher's file");
    MB_TRY(add_model(program, cache->what));
    MB_TRY(mb_score_cache_arithmetic(program, cache->what));
    MB_TRY(mb_scores_cache_key(cache->what, cache->key));
done:
    return status;
}

/* ---- 2. taking ---- */

static mb_status look(mb_program *program, mb_shard *shard, const char *out_path, mb_teacher_cache *cache)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    MB_TRY(make_what(program, shard, cache));
    if (program->options.force) goto done;
    if (!mb_share_is_whole(program->share))
        cache->is_hit = mb_scores_cache_has(own->cache_dir, cache->key);
    else
        MB_TRY(mb_scores_cache_take(own->cache_dir, cache->key, out_path, &cache->is_hit));
done:
    return status;
}

mb_status mb_teacher_cache_begin(mb_program *program, mb_shard *shard, const char *out_path,
                                 mb_teacher_cache *cache)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    int64_t is_hit = 0;
    if (own->cache_dir == NULL) goto done;
    if (mb_program_is_root(program)) status = look(program, shard, out_path, cache);
    is_hit = cache->is_hit;
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, cache->key, sizeof cache->key, 0));
    MB_TRY(mb_comm_bcast(program->comm, &is_hit, sizeof is_hit, 0));
    cache->is_hit = is_hit != 0;
    if (cache->is_hit)
        mb_info("from the cache: %s/%s.h5%s; no model was opened", own->cache_dir, cache->key,
                mb_share_is_whole(program->share) ? "" : " has all shares of this work");
done:
    return status;
}

mb_status mb_teacher_cache_record(mb_program *program, const mb_teacher_cache *cache)
{
    mb_status status = MB_OK;
    if (program->run == NULL || cache->key[0] == 0 || !mb_program_is_root(program)) goto done;
    MB_TRY(mb_runfolder_result(program->run, "from_cache", json_boolean(cache->is_hit)));
    MB_TRY(mb_runfolder_result(program->run, "cache_key", json_string(cache->key)));
done:
    return status;
}

/* ---- 3. keeping ---- */

mb_status mb_teacher_cache_keep(mb_program *program, const mb_teacher_cache *cache, const char *out_path)
{
    const mb_teacher_program *own = program->own;
    if (cache->key[0] == 0 || !mb_program_is_root(program) || !mb_share_is_whole(program->share))
        return MB_OK;
    if (mb_scores_cache_keep(own->cache_dir, cache->key, cache->what, out_path) == MB_OK) {
        mb_info("kept in the cache as %s/%s.h5", own->cache_dir, cache->key);
    } else {
        mb_warn("%s: the file is not kept for other runs: %s", own->cache_dir, mb_status_message());
        mb_status_reset();
    }
    return MB_OK;
}

void mb_teacher_cache_reset(mb_teacher_cache *cache)
{
    json_decref(cache->what);
    *cache = (mb_teacher_cache){0};
}
