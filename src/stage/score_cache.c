/* score_cache.c: what a score table is made from, and the end of a run that took it from the cache. */
#include "stage/score_cache.h"

#include "measure/tile.h"
#include "stage/program_options.h"
#include "store/scores.h"

/* Models and how they are kept; only where a score needs one. */
static mb_status add_models(const mb_program *program, const mb_scorer_needs *needs, json_t *what)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    if (!needs->router && !needs->source) goto done;
    MB_TRY(mb_file_cache_add_input(program, what, "model"));
    if (needs->router || needs->policy) MB_TRY(mb_file_cache_add_input(program, what, "adapter"));
    if (needs->source) {
        MB_TRY(mb_file_cache_add_input(program, what, "source_model"));
        MB_TRY(mb_fuse_options_add_key(program, &own->fuse, what));
    }
    if (needs->router)
        MB_TRY(mb_json_set(what, "trash_expert_ratio", json_real(own->model.trash_expert_ratio)));
    MB_TRY(mb_file_cache_add_storage(&own->model, what));
    MB_TRY(mb_file_cache_add_arithmetic(program, what));
done:
    return status;
}

mb_status mb_score_cache_describe(const mb_program *program, mb_shard *shard, json_t *what)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    const mb_scorer_options *options = &own->scorer;
    char hash[MB_HASH_TEXT];
    mb_scorer_needs needs;
    MB_TRY(mb_scorer_needs_get(options->scores, &needs));
    MB_TRY(mb_shard_hash(shard, hash));
    MB_TRY(mb_json_set(what, "format", json_string("moebatch-scores")));
    MB_TRY(mb_json_set(what, "version", json_integer(1)));
    MB_TRY(mb_json_set(what, "scores", json_string(options->scores)));
    MB_TRY(mb_json_set(what, "shard", json_string(hash)));
    MB_TRY(mb_json_set(what, "max_length", json_integer(options->max_length)));
    MB_TRY(mb_json_set(what, "tile_tokens", json_integer(options->tile_tokens)));
    if (needs.layered > 0) MB_TRY(mb_json_set(what, "score_layers", json_string(options->score_layers)));
    if (needs.seed) MB_TRY(mb_json_set(what, "seed", json_integer(options->seed)));
    MB_TRY(add_models(program, &needs, what));
done:
    return status;
}

/* Rank 0: the figures of the run that made it. */
static mb_status describe_table(mb_program *program, mb_shard *shard, const char *out_path)
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

mb_status mb_score_cache_finish(mb_program *program, mb_shard *shard, const mb_file_cache *cache,
                                const char *out_path)
{
    mb_status status = MB_OK;
    const bool is_whole = mb_share_is_whole(program->share);
    if (mb_program_is_root(program)) {
        status = mb_file_cache_record(program, cache);
        if (status == MB_OK && is_whole) status = describe_table(program, shard, out_path);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, is_whole ? "scores.h5" : NULL, NULL));
    if (mb_program_is_root(program) && (is_whole || mb_program_is_whole_done(program)))
        mb_scores_parts_remove(out_path);
done:
    return status;
}
