/* lm_write: a model, its delta or its adapter into a folder.
 *
 * 1. companions: tokenizer and generation files
 * 2. kinds
 */
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "model/fuse_state.h"

#define LM_SHARD_BYTES ((int64_t)5 * 1000 * 1000 * 1000)

/* ---- 1. companions ---- */

mb_status mb_lm_copy_companions(const char *source, const char *target)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja",
                                        "generation_config.json"};
    mb_status status = MB_OK;
    char *from = NULL, *to = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        from = mb_files_join(source, names[i]);
        to = mb_files_join(target, names[i]);
        if (from == NULL || to == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", target);
        if (mb_files_is_file(from)) MB_TRY(mb_files_copy(from, to));
        MB_FREE(from);
        MB_FREE(to);
    }
done:
    mb_free(from);
    mb_free(to);
    return status;
}

static mb_status write_config(const mb_lm *lm, const char *folder, mb_dtype dtype)
{
    mb_status status = MB_OK;
    json_t *config = NULL;
    mb_arch arch = lm->arch; /* borrows config */
    char *path = mb_files_join(folder, "config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    arch.stored_dtype = dtype;
    MB_TRY(mb_arch_to_json(&arch, &config));
    MB_TRY(mb_json_write(path, config, 2, false));
done:
    json_decref(config);
    mb_free(path);
    return status;
}

/* ---- 2. kinds ---- */

mb_status mb_lm_base_name(const char *folder, const char *base, char **out_name)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    char *from = realpath(folder, NULL), *to = realpath(base, NULL);
    if (from == NULL || to == NULL) MB_RAISE(MB_ENOTFOUND, "%s: base model folder is gone", base);
    size_t common = 0;
    for (size_t i = 0;; i++) {
        const bool ends = (from[i] == 0 || from[i] == '/') && (to[i] == 0 || to[i] == '/');
        if (ends) common = i;
        if (from[i] != to[i] || from[i] == 0) break;
    }
    if (common == 0) {
        MB_TRY(mb_str_add(&s, to));
    } else {
        for (const char *c = from + common; *c != 0; c++)
            if (*c == '/') MB_TRY(mb_str_add(&s, s.length > 0 ? "/.." : ".."));
        if (to[common] != 0) MB_TRY(mb_str_add(&s, s.length > 0 ? to + common : to + common + 1));
    }
    *out_name = mb_str_take(&s);
done:
    mb_str_destroy(&s);
    free(from);
    free(to);
    return status;
}

static mb_status write_delta(mb_lm *lm, const char *folder, mb_dtype dtype)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    const char *hash;
    char *path = NULL, *base = NULL;
    if (lm->base == NULL)
        MB_RAISE(
            MB_EUSAGE,
            "%s: a delta needs the model folder it differs from; this model was made from nothing, write "
            "it in full",
            folder);
    MB_TRY(mb_lm_base_hash(lm, &hash));
    MB_TRY(mb_lm_base_name(folder, lm->base, &base));
    path = mb_files_join(folder, "delta.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    json = json_pack("{s:s, s:s}", "base", base, "base_hash", hash);
    if (json == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
    MB_TRY(write_config(lm, folder, lm->arch.stored_dtype));
    MB_TRY(mb_params_write(lm->params, folder, "delta", dtype, 0, true, NULL));
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(json);
    mb_free(base);
    mb_free(path);
    return status;
}

mb_status mb_lm_write(mb_lm *lm, const char *folder, const char *kind, mb_dtype dtype)
{
    mb_status status = MB_OK;
    const bool full = strcmp(kind, "full") == 0, delta = strcmp(kind, "delta") == 0;
    if (!full && !delta && strcmp(kind, "adapter") != 0)
        MB_RAISE(MB_EUSAGE, "%s: unknown kind '%s'; there are full, delta and adapter", folder, kind);
    if (lm->fuse != NULL && (full || delta)) return mb_fuse_write(lm, folder);
    if (!full && !delta && !lm->lora.is_on)
        MB_RAISE(MB_EUSAGE, "%s: the model has no adapter to write", folder);
    if (lm->lora.is_on) {
        MB_TRY(mb_lora_write(folder, &lm->lora, lm->params, lm->path != NULL ? lm->path : ""));
    } else if (delta) {
        MB_TRY(write_delta(lm, folder, dtype));
    } else {
        MB_TRY(write_config(lm, folder, dtype));
        MB_TRY(mb_params_write(lm->params, folder, "model", dtype, LM_SHARD_BYTES, false, lm->base));
        if (lm->base != NULL) MB_TRY(mb_lm_copy_companions(lm->base, folder));
    }
done:
    return status;
}
