/* convert_folder: opening a source, filling a target, publishing it. */
#include "model/convert_folder.h"

#include <string.h>

#include "base/files.h"
#include "model/lm_state.h"
#include "store/checkpoint.h"

#define CONVERT_SHARD_BYTES ((int64_t)5 * 1000 * 1000 * 1000)

mb_status mb_convert_folder_open(mb_convert_folder *f, const char *source)
{
    mb_status status = MB_OK;
    char *delta = mb_files_join(source, "delta.json");
    if (delta == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", source);
    if (mb_files_is_file(delta))
        MB_RAISE(MB_EUSAGE, "%s: is a delta on another model; write it in full first (moe-convert full)",
                 source);
    MB_TRY(mb_arch_read(source, &f->arch));
    if (f->arch.packed_bits != 0)
        MB_RAISE(MB_EUSAGE, "%s: is quantised (%d bits); convert the model it was made from", source,
                 f->arch.packed_bits);
    MB_TRY(mb_safetensors_open(source, &f->source_file));
done:
    mb_free(delta);
    return status;
}

mb_status mb_convert_folder_begin(mb_convert_folder *f, const char *target)
{
    mb_status status = MB_OK;
    MB_TRY(mb_checkpoint_begin(target, &f->folder));
    MB_TRY(mb_safetensors_writer_create(f->folder, "model", CONVERT_SHARD_BYTES, &f->writer));
done:
    return status;
}

mb_status mb_convert_folder_commit(mb_convert_folder *f, const char *source, const char *target)
{
    mb_status status = MB_OK;
    json_t *config = NULL;
    char *path = mb_files_join(f->folder, "config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", target);
    MB_TRY(mb_safetensors_writer_close(&f->writer));
    MB_TRY(mb_arch_to_json(&f->arch, &config));
    MB_TRY(mb_json_write(path, config, 2, false));
    MB_TRY(mb_lm_copy_companions(source, f->folder));
    MB_TRY(mb_checkpoint_commit(f->folder, target));
    MB_FREE(f->folder);
done:
    json_decref(config);
    mb_free(path);
    return status;
}

void mb_convert_folder_reset(mb_convert_folder *f)
{
    mb_safetensors_writer_destroy(&f->writer);
    if (f->folder != NULL) (void)mb_files_remove_tree(f->folder);
    mb_free(f->folder);
    mb_safetensors_close(&f->source_file);
    mb_arch_reset(&f->arch);
    *f = (mb_convert_folder){0};
}

bool mb_convert_folder_is_gate(const char *name)
{
    return mb_str_is_suffix(name, ".mlp.gate.weight") ||
           mb_str_is_suffix(name, ".block_sparse_moe.gate.weight");
}

bool mb_convert_folder_is_bias(const char *name)
{
    return mb_str_is_suffix(name, ".gate." MB_PARAMS_ROUTER_BIAS);
}
