/* moe-train: train a model on a token shard (objectives lm, sft, router_warmup, dpo; full, router-only or
 * LoRA).
 */
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "learn/trainer.h"
#include "stage/config_forecast.h"
#include "stage/energy_report.h"
#include "stage/memory_report.h"
#include "stage/model_options.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "stage/train_data.h"
#include "stage/train_parts.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_train_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_program_options_train(&n);
    MB_TRY(mb_program_add_table(program, "what trains on what", table, n, own));
    table = mb_objective_option_table(&n);
    MB_TRY(mb_program_add_table(program, "objective", table, n, &own->objective));
    table = mb_trainer_option_table(&n);
    MB_TRY(mb_program_add_table(program, "training", table, n, &own->trainer));
done:
    return status;
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

static mb_status open_model(mb_program *program, mb_lm **out_lm)
{
    mb_train_program *own = program->own;
    mb_status status = MB_OK;
    const bool is_warmup = mb_str_equal(own->objective.objective, "router_warmup"),
               is_lora = mb_str_equal(own->peft_mode, "lora");
    const mb_lora_options lora = {.r = own->lora_r,
                                  .alpha = own->lora_alpha,
                                  .dropout = own->lora_dropout,
                                  .rslora = own->use_rslora,
                                  .seed = (uint64_t)own->trainer.seed,
                                  .targets = is_warmup ? "gate" : own->lora_targets};
    char *train = NULL;
    MB_TRY(mb_train_parts_get(own, own->model.adapter != NULL, &train));
    MB_TRY(check_quantised(own, train));
    if (own->model.adapter != NULL)
        mb_info("%s: the adapter trains on, the model under it stays as it is", own->model.adapter);
    own->model.opt_comm = program->comm;
    own->model.router_bias = own->trainer.router_bias_rate > 0;
    own->model.shard = own->model.shard || own->trainer.zero == 3;
    MB_TRY(mb_model_options_open(&own->model, program->ops, train,
                                 is_lora && own->model.adapter == NULL ? &lora : NULL,
                                 (uint64_t)own->trainer.seed, out_lm));
    mb_info("%.4g M parameters train%s", (double)mb_params_trained_count(mb_lm_params(*out_lm)) / 1e6,
            strstr(train, "experts=") != NULL ? ", of the experts some" : "");
done:
    mb_free(train);
    return status;
}

/* What a finished stage would resume from is of no more use, and three times the size of the trained weights.
 */
static mb_status remove_state(const mb_program *program)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(program, "state");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_files_remove_tree(path));
done:
    mb_free(path);
    return status;
}

static mb_status train(mb_program *program, mb_lm *lm, mb_shard *shard)
{
    mb_train_program *own = program->own;
    mb_status status = MB_OK;
    mb_objective *objective = NULL;
    mb_trainer_report report = {0};
    mb_energy_report energy = {0};
    if (own->trainer.subset_ratio == 0)
        own->trainer.subset_ratio = mb_str_equal(own->objective.objective, "router_warmup") ? 0.05 : 1.0;
    MB_TRY(mb_objective_create(&own->objective, lm, &objective));
    MB_TRY(mb_trainer_forecast(program->comm, lm, objective, shard, &own->trainer, report.memory));
    mb_memory_report_forecast(report.memory, MB_TRAINER_MEMORY_KINDS);
    if (program->is_dry_run) goto done;
    MB_TRY(mb_energy_report_begin(program, &energy));
    status = mb_trainer_run(program->comm, lm, objective, shard, &own->trainer, program->options.output_dir,
                            own->model.path, &report);
    if (status == MB_ESTOPPED)
        mb_warn("stopped at a checkpoint in %s; run the same command again to go on",
                program->options.output_dir);
    MB_TRY(status);
    mb_info("%lld steps, %lld tokens, loss %.4f, %.1f s (%.0f tokens/s), peak memory %.0f MiB",
            (long long)report.steps, (long long)report.tokens, report.loss, report.seconds,
            report.tokens_per_second, (double)mb_memory_peak_bytes() / 1048576);
    MB_TRY(
        mb_energy_report_end(program, &energy, "token",
                             (int64_t)(report.tokens_per_second * report.seconds + 0.5))); /* of this run */
    MB_TRY(mb_memory_report_used(program, report.memory, MB_TRAINER_MEMORY_KINDS));
    MB_TRY(mb_program_result_real(program, "loss", report.loss));
    MB_TRY(mb_program_result_int(program, "steps", report.steps));
    MB_TRY(mb_program_result_int(program, "tokens", report.tokens));
    MB_TRY(mb_program_result_real(program, "train_seconds", report.seconds));
    MB_TRY(mb_train_data_results(program, &report));
    MB_TRY(mb_config_forecast_result(program, mb_lm_arch(lm)));
    MB_TRY(mb_program_finish_run(program, "final", "metrics.h5", NULL));
    if (mb_program_is_root(program)) MB_TRY(remove_state(program));
done:
    mb_trainer_report_reset(&report);
    mb_energy_report_reset(&energy);
    mb_objective_destroy(&objective);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_train_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false;
    mb_lm *lm = NULL;
    mb_shard *shard = NULL;
    if (own->shard_path == NULL) MB_RAISE(MB_EUSAGE, "dataset.path is missing: the token shard to train on");
    if (!program->is_dry_run)
        MB_TRY(mb_program_begin_run(program, &is_done, "model", own->model.path, "adapter",
                                    own->model.adapter, "dataset", own->shard_path, "validation",
                                    own->validation_path, "reference",
                                    mb_train_data_reference(own->objective.reference), "validation_reference",
                                    mb_train_data_reference(own->objective.validation_reference), NULL));
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_train_data_open(program, &shard));
    status = open_model(program, &lm);
    if (status == MB_OK) status = mb_train_data_check(own, shard, lm);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(train(program, lm, shard));
done:
    mb_lm_destroy(&lm);
    mb_train_data_close(program, &shard);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-train",
        .purpose =
            "train a model on a token shard: language modelling, fine-tuning on answers, preference pairs, "
            "or router warm-up; on any number of ranks, with exact resume",
        .example = "  mpirun -np 4 moe-train model.path=models/olmoe-trash dataset.path=shard.h5 "
                   "training.objective=router_warmup output.dir=checkpoints/x/warmup\n"
                   "  moe-train model.path=models/llama dataset.path=shard.h5 training.objective=sft "
                   "training.peft_mode=lora training.lora.r=16 output.dir=checkpoints/x/sft",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
