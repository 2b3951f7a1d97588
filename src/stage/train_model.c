/* train_model.c: the model that moe-train trains.
 *
 * 1. the student   2. checks   3. opening
 */
#include "stage/train_model.h"

#include <string.h>

#include "base/log.h"
#include "stage/train_parts.h"

static bool is_btm(const mb_train_program *own)
{
    return mb_str_equal(own->objective.objective, "btm");
}

static bool is_distil(const mb_train_program *own)
{
    return mb_str_equal(own->objective.objective, "distil") ||
           mb_str_equal(own->objective.objective, "distill");
}

/* ---- 1. the student ---- */

/* foundation or sft: the folder of this key with its adapter, or where a trained router names it, that one's
 * member. Blocks of the caller. */
static mb_status find_parent(const mb_train_program *own, char **out_path, char **out_adapter)
{
    mb_status status = MB_OK;
    const char *word = own->student_init,
               *folder = own->fuse.router != NULL ? own->fuse.router : own->teacher;
    const bool is_first = mb_str_equal(word, "foundation");
    const char *path = is_first ? own->fuse.foundation : own->fuse.sft,
               *adapter = is_first ? own->fuse.foundation_adapter : own->fuse.sft_adapter;
    if (path == NULL && folder != NULL && mb_fuse_is_folder(folder))
        return mb_fuse_options_find_member(folder, word, out_path, out_adapter);
    if (path == NULL)
        MB_RAISE(MB_EUSAGE,
                 "training.student_init = %s: fuse.%s is missing; give it, a fused teacher that has it, or a "
                 "folder as training.student_init",
                 word, word);
    *out_path = mb_strdup(path);
    *out_adapter = mb_strdup(adapter);
    if (*out_path == NULL || (adapter != NULL && *out_adapter == NULL))
        MB_RAISE(MB_ENOMEM, "no memory for a path");
done:
    return status;
}

/* foundation and sft are the fused teacher's members; other words are folders. */
static mb_status resolve_student(mb_train_program *own)
{
    mb_status status = MB_OK;
    const char *word = own->student_init;
    char *path = NULL, *adapter = NULL;
    if (word == NULL) return MB_OK;
    if (!is_distil(own))
        MB_RAISE(MB_EUSAGE, "training.student_init is for training.objective=distil; give model.path");
    if (own->model.path != NULL)
        MB_RAISE(MB_EUSAGE, "training.student_init and model.path both name the student; leave one out");
    if (mb_str_equal(word, "foundation") || mb_str_equal(word, "sft"))
        MB_TRY(find_parent(own, &path, &adapter));
    else if ((path = mb_strdup(word)) == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for a path");
    own->model.path = path;
    path = NULL;
    if (own->model.adapter != NULL) goto done;
    own->model.adapter = adapter;
    adapter = NULL;
done:
    mb_free(path);
    mb_free(adapter);
    return status;
}

/* ---- 2. checks ---- */

/* A router is all that a fused model trains. */
static mb_status check_btm(const mb_train_program *own)
{
    if (mb_fuse_options_path(&own->fuse, &own->model) == NULL)
        return mb_fail(MB_EUSAGE, "training.objective = btm trains a router between models: give "
                                  "fuse.foundation and fuse.sft, or fuse.router to go on with a trained one");
    if (own->model.path != NULL && !mb_fuse_options_is_given(&own->fuse) &&
        !mb_fuse_is_folder(own->model.path))
        return mb_fail(MB_EUSAGE,
                       "training.objective = btm trains the router of a fused model, and %s is an "
                       "ordinary one (no fuse.json); give fuse.foundation and fuse.sft, or "
                       "fuse.router",
                       own->model.path);
    if (mb_str_equal(own->peft_mode, "lora"))
        return mb_fail(MB_EUSAGE,
                       "training.peft_mode = lora does not go with training.objective = btm, which "
                       "trains the router alone; leave it out");
    if ((own->train_parts != NULL && !mb_str_equal(own->train_parts, "router")) ||
        own->num_experts_to_train > 0 || own->experts_to_train != NULL)
        return mb_fail(MB_EUSAGE, "training.objective = btm trains the router alone; leave out "
                                  "training.trainable and training.experts_to_train");
    if (mb_str_equal(own->fuse.members_on, "ranks"))
        return mb_fail(MB_EUSAGE, "fuse.members_on = ranks is for running a fused model; its router trains "
                                  "with all members on every rank (fuse.members_on = all)");
    return MB_OK;
}

/* Quantising needs frozen matrices. */
static mb_status check_quantised(const mb_train_program *own, const char *train)
{
    mb_status status = MB_OK;
    mb_lm_options lm = {0};
    MB_TRY(mb_model_options_storage(&own->model, &lm));
    if (lm.frozen_bits != 0 && own->model.adapter == NULL && mb_str_equal(train, "all"))
        MB_RAISE(MB_EUSAGE, "model.quantize is for frozen matrices, and here all train; "
                            "give training.peft_mode=lora, or model.quantize=none");
done:
    return status;
}

mb_status mb_train_model_check(mb_train_program *own)
{
    mb_status status = MB_OK;
    mb_model_options fused = own->model;
    MB_TRY(resolve_student(own));
    if (is_btm(own)) {
        MB_TRY(check_btm(own));
        fused.router_bias = own->trainer.router_bias_rate > 0;
        fused.shard = fused.shard || own->trainer.zero == 3;
        MB_TRY(mb_fuse_options_check(&own->fuse, &fused));
        goto done;
    }
    if (!is_distil(own) && mb_fuse_options_is_given(&own->fuse))
        MB_RAISE(MB_EUSAGE,
                 "%s names a fused model, and training.objective = %s trains an ordinary one; a "
                 "fused model's router trains with training.objective=btm",
                 own->fuse.router != NULL ? "fuse.router" : "fuse.foundation", own->objective.objective);
    if (own->model.path != NULL && mb_fuse_is_folder(own->model.path))
        MB_RAISE(MB_EUSAGE, "%s is a fused model; its router trains with training.objective=btm",
                 own->model.path);
done:
    return status;
}

const char *mb_train_model_path(const mb_train_program *own)
{
    return is_distil(own) ? own->model.path : mb_fuse_options_path(&own->fuse, &own->model);
}

/* ---- 3. opening ---- */

static mb_status open_ordinary(mb_program *program, const char *train, mb_lm **out_lm)
{
    mb_train_program *own = program->own;
    const bool is_warmup = mb_str_equal(own->objective.objective, "router_warmup"),
               is_new = mb_str_equal(own->peft_mode, "lora") && own->model.adapter == NULL;
    const mb_lora_options lora = {.r = own->lora_r,
                                  .alpha = own->lora_alpha,
                                  .dropout = own->lora_dropout,
                                  .rslora = own->use_rslora,
                                  .seed = (uint64_t)own->trainer.seed,
                                  .targets = is_warmup ? "gate" : own->lora_targets};
    if (own->model.adapter != NULL)
        mb_info("%s: the adapter trains on, the model under it stays as it is", own->model.adapter);
    return mb_model_options_open(&own->model, program->ops, train, is_new ? &lora : NULL,
                                 (uint64_t)own->trainer.seed, out_lm);
}

mb_status mb_train_model_open(mb_program *program, mb_lm **out_lm)
{
    mb_train_program *own = program->own;
    mb_status status = MB_OK;
    char *train = NULL;
    MB_TRY(mb_train_parts_get(own, own->model.adapter != NULL, &train));
    MB_TRY(check_quantised(own, train));
    own->model.opt_comm = program->comm;
    own->model.router_bias = own->trainer.router_bias_rate > 0;
    own->model.shard = own->model.shard || own->trainer.zero == 3;
    if (is_btm(own))
        MB_TRY(mb_fuse_options_open(&own->fuse, &own->model, program->ops, "router", NULL,
                                    (uint64_t)own->trainer.seed, true, out_lm));
    else
        MB_TRY(open_ordinary(program, train, out_lm));
    mb_info("%.4g M parameters train%s", (double)mb_params_trained_count(mb_lm_params(*out_lm)) / 1e6,
            strstr(train, "experts=") != NULL ? ", of the experts some" : "");
done:
    mb_free(train);
    return status;
}
