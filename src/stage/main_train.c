/* moe-train: train a model on a token shard (objectives lm, sft, router_warmup, dpo, btm, distil; full,
 * router-only or LoRA).
 */
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
#include "stage/train_model.h"
#include "stage/train_teacher.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_train_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_fuse_option_table(&n);
    MB_TRY(mb_program_add_table(program, "fused model", table, n, &own->fuse));
    table = mb_program_options_train(&n);
    MB_TRY(mb_program_add_table(program, "what trains on what", table, n, own));
    table = mb_objective_option_table(&n);
    MB_TRY(mb_program_add_table(program, "objective", table, n, &own->objective));
    table = mb_trainer_option_table(&n);
    MB_TRY(mb_program_add_table(program, "training", table, n, &own->trainer));
done:
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
    MB_TRY(mb_comm_agree(program->comm, mb_objective_create(&own->objective, lm, &objective)));
    MB_TRY(mb_trainer_forecast(program->comm, lm, objective, shard, &own->trainer, report.memory));
    mb_memory_report_forecast(report.memory, MB_TRAINER_MEMORY_KINDS);
    if (program->is_dry_run) goto done;
    MB_TRY(mb_energy_report_begin(program, &energy));
    status = mb_trainer_run(program->comm, lm, objective, shard, &own->trainer, program->options.output_dir,
                            mb_train_model_path(own), &report);
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
    MB_TRY(mb_config_forecast_result(program, lm));
    if (report.has_best && mb_program_is_root(program)) MB_TRY(mb_program_output(program, "best"));
    MB_TRY(mb_program_finish_run(program, "final", "metrics.h5", NULL));
    if (mb_program_is_root(program)) MB_TRY(remove_state(program));
done:
    mb_trainer_report_reset(&report);
    mb_energy_report_reset(&energy);
    mb_objective_destroy(&objective);
    return status;
}

static mb_status begin(mb_program *program, bool *out_is_done)
{
    const mb_train_program *own = program->own;
    const char *const names[] = {"model",         "adapter",
                                 "dataset",       "validation",
                                 "reference",     "validation_reference",
                                 "teacher",       "teacher_adapter",
                                 "teacher_store", "teacher_validation_store"};
    const char *const paths[] = {own->model.path,
                                 own->model.adapter,
                                 own->shard_path,
                                 own->validation_path,
                                 mb_train_data_reference(own->objective.reference),
                                 mb_train_data_reference(own->objective.validation_reference),
                                 own->teacher,
                                 own->teacher_adapter,
                                 own->objective.teacher_store,
                                 own->objective.teacher_validation_store};
    return mb_fuse_options_begin_run(program, &own->fuse, names, paths, sizeof names / sizeof *names,
                                     out_is_done);
}

static mb_status run(mb_program *program)
{
    mb_train_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false;
    mb_lm *lm = NULL;
    mb_shard *shard = NULL;
    if (own->shard_path == NULL) MB_RAISE(MB_EUSAGE, "dataset.path is missing: the token shard to train on");
    MB_TRY(mb_train_model_check(own));
    MB_TRY(mb_train_teacher_check(own));
    if (!program->is_dry_run) MB_TRY(begin(program, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_train_data_open(program, &shard));
    status = mb_train_model_open(program, &lm);
    if (status == MB_OK) status = mb_train_data_check(own, shard, lm);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_train_teacher_open(program, lm, &own->objective.opt_teacher));
    MB_TRY(train(program, lm, shard));
done:
    mb_lm_destroy(&own->objective.opt_teacher);
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
            "router warm-up, a router between two models, or a student of a teacher; on any number of ranks, "
            "with exact resume",
        .example = "  mpirun -np 4 moe-train model.path=models/olmoe-trash dataset.path=shard.h5 "
                   "training.objective=router_warmup output.dir=checkpoints/x/warmup\n"
                   "  moe-train model.path=models/llama dataset.path=shard.h5 training.objective=sft "
                   "training.peft_mode=lora training.lora.r=16 output.dir=checkpoints/x/sft\n"
                   "  moe-train training.objective=btm fuse.foundation=models/base fuse.sft=models/tuned "
                   "dataset.path=mixed.h5 training.validation_path=held.h5 output.dir=checkpoints/x/router\n"
                   "  moe-train training.objective=distil model.path=models/base "
                   "teacher.store=checkpoints/x/teacher/teacher.h5 dataset.path=mixed.h5 "
                   "output.dir=checkpoints/x/student",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
