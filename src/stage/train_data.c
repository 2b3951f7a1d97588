/* train_data: the shards of moe-train, and what their validation gave.
 *
 * 1. opening   2. checks   3. results
 */
#include "stage/train_data.h"

#include <math.h>

#include "base/log.h"

/* ---- 1. opening ---- */

mb_status mb_train_data_open(mb_program *program, mb_shard **out_shard)
{
    mb_status status = MB_OK;
    mb_train_program *own = program->own;
    MB_TRY(mb_comm_agree(program->comm, mb_shard_open(own->shard_path, 0, out_shard)));
    if (own->validation_path == NULL) {
        if (own->trainer.validation_steps > 0)
            mb_warn("training.validation_steps says nothing without training.validation_path");
        return MB_OK;
    }
    status = mb_shard_open(own->validation_path, 0, &own->trainer.opt_validation);
    MB_TRY(mb_comm_agree(program->comm, status));
done:
    return status;
}

void mb_train_data_close(mb_program *program, mb_shard **shard)
{
    mb_train_program *own = program->own;
    mb_shard_close(shard);
    mb_shard_close(&own->trainer.opt_validation);
}

const char *mb_train_data_reference(const char *opt_reference)
{
    return mb_str_equal(opt_reference, "adapter_off") ? NULL : opt_reference;
}

/* ---- 2. checks ---- */

static mb_status check_vocabulary(const mb_shard *shard, const char *path, const mb_lm *lm)
{
    if (mb_shard_vocab_size(shard) <= mb_lm_arch(lm)->vocab) return MB_OK;
    return mb_fail(MB_EDATA,
                   "%s was made with a tokenizer of %lld tokens, the model has %lld; shard the data with "
                   "the model's own tokenizer",
                   path, (long long)mb_shard_vocab_size(shard), (long long)mb_lm_arch(lm)->vocab);
}

mb_status mb_train_data_check(const mb_train_program *own, const mb_shard *shard, const mb_lm *lm)
{
    mb_status status = MB_OK;
    const mb_shard *validation = own->trainer.opt_validation;
    MB_TRY(check_vocabulary(shard, own->shard_path, lm));
    if (validation == NULL) return MB_OK;
    if (!mb_str_equal(mb_shard_tokenizer_hash(validation), mb_shard_tokenizer_hash(shard)))
        MB_RAISE(MB_EDATA, "%s was made with another tokenizer than %s; make both with one",
                 own->validation_path, own->shard_path);
    MB_TRY(check_vocabulary(validation, own->validation_path, lm));
done:
    return status;
}

/* ---- 3. results ---- */

mb_status mb_train_data_results(mb_program *program, const mb_trainer_report *report)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < report->validated_count; i++) {
        const mb_trainer_validated *one = &report->validated[i];
        if (!isfinite(one->last)) continue; /* a type without target tokens */
        MB_TRY(mb_program_result_real(program, one->name, one->last));
        if (!mb_str_equal(one->name, "validation/loss")) continue;
        MB_TRY(mb_program_result_real(program, "validation_first_loss", one->first));
        MB_TRY(mb_program_result_real(program, "validation_best_loss", one->best));
        MB_TRY(mb_program_result_int(program, "validation_best_step", report->best_step));
    }
    if (report->routing_seconds > 0) {
        MB_TRY(mb_program_result_real(program, "routing_pass_seconds", report->routing_seconds));
        MB_TRY(mb_program_result_real(program, "routing_pass_share", report->routing_share));
    }
done:
    return status;
}
