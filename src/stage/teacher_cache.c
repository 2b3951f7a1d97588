/* teacher_cache.c: see the header. */
#include "stage/teacher_cache.h"

#include "stage/program_options.h"

mb_status mb_teacher_cache_describe(const mb_program *program, mb_shard *shard, json_t *what)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    const mb_teacher_maker_options *maker = &own->maker;
    char hash[MB_HASH_TEXT];
    MB_TRY(mb_shard_hash(shard, hash));
    MB_TRY(mb_json_set(what, "format", json_string("moebatch-teacher")));
    MB_TRY(mb_json_set(what, "version", json_integer(1)));
    MB_TRY(mb_json_set(what, "shard", json_string(hash)));
    MB_TRY(mb_json_set(what, "k", json_integer(maker->k)));
    MB_TRY(mb_json_set(what, "temperatures", json_string(maker->temperatures)));
    MB_TRY(mb_json_set(what, "stored_dtype", json_string(maker->dtype)));
    MB_TRY(mb_json_set(what, "targets", json_string(maker->targets)));
    MB_TRY(mb_json_set(what, "max_length", json_integer(maker->max_length)));
    MB_TRY(mb_json_set(what, "tile_tokens", json_integer(maker->tile_tokens)));
    MB_TRY(mb_file_cache_add_input(program, what, "model"));
    MB_TRY(mb_file_cache_add_input(program, what, "adapter"));
    MB_TRY(mb_fuse_options_add_key(program, &own->fuse, what));
    MB_TRY(mb_json_set(what, "trash_expert_ratio", json_real(own->model.trash_expert_ratio)));
    MB_TRY(mb_file_cache_add_storage(&own->model, what));
    MB_TRY(mb_file_cache_add_arithmetic(program, what));
done:
    return status;
}
