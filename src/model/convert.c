/* convert: whole models rewritten through the model itself: merge, full, init.
 *
 * 1. merge and full
 * 2. init
 */
#include "model/convert.h"

#include <string.h>

#include "base/files.h"
#include "model/lm_state.h"
#include "store/checkpoint.h"

static mb_status convert_publish(mb_lm *lm, const char *opt_companions, const char *target)
{
    mb_status status = MB_OK;
    char *folder = NULL;
    MB_TRY(mb_checkpoint_begin(target, &folder));
    MB_TRY(mb_lm_write(lm, folder, "full", lm->arch.stored_dtype));
    if (opt_companions != NULL) MB_TRY(mb_lm_copy_companions(opt_companions, folder));
    MB_TRY(mb_checkpoint_commit(folder, target));
done:
    if (status != MB_OK && folder != NULL) (void)mb_files_remove_tree(folder);
    mb_free(folder);
    return status;
}

/* ---- 1. merge and full ---- */

mb_status mb_convert_merge(mb_ops *ops, const char *source, const char *adapter, const char *target)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = source, .opt_adapter = adapter, .train = "none"};
    MB_TRY(mb_lm_open(ops, &options, &lm));
    if (lm->arch.packed_bits != 0)
        MB_RAISE(
            MB_EUSAGE,
            "%s: is quantised (%d bits), an adapter cannot be merged into it; merge it into the model it "
            "was made from, and quantise the result (moe-quantize does both)",
            source, lm->arch.packed_bits);
    MB_TRY(mb_lora_merge(&lm->lora, ops, lm->params));
    lm->lora.is_on = false; /* from here on a plain model */
    MB_TRY(convert_publish(lm, NULL, target));
done:
    mb_lm_destroy(&lm);
    return status;
}

mb_status mb_convert_full(mb_ops *ops, const char *source, const char *target)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = source, .train = "none"};
    MB_TRY(mb_lm_open(ops, &options, &lm));
    MB_TRY(convert_publish(lm, NULL, target));
done:
    mb_lm_destroy(&lm);
    return status;
}

/* ---- 2. init ---- */

mb_status mb_convert_init(mb_ops *ops, const char *config, const char *opt_tokenizer, uint64_t seed,
                          const char *target)
{
    mb_status status = MB_OK;
    mb_arch arch = {0};
    mb_lm *lm = NULL;
    json_t *json = NULL;
    if (mb_files_is_folder(config)) {
        MB_TRY(mb_arch_read(config, &arch));
    } else {
        MB_TRY(mb_json_read(config, &json));
        MB_TRY(mb_arch_from_json(json, config, &arch));
    }
    if (opt_tokenizer != NULL && !mb_files_is_folder(opt_tokenizer))
        MB_RAISE(MB_ENOTFOUND, "%s: tokenizer folder not found", opt_tokenizer);
    MB_TRY(mb_lm_create(ops, &arch, "none", seed, &lm));
    MB_TRY(convert_publish(lm, opt_tokenizer, target));
done:
    mb_lm_destroy(&lm);
    mb_arch_reset(&arch);
    json_decref(json);
    return status;
}
