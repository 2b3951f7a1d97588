/* moe-eval: perplexity and routing of token shards, and multiple choice by lm-evaluation-harness's rules. */
#include "base/clock.h"
#include "stage/energy_report.h"
#include "stage/eval_files.h"
#include "stage/eval_shard.h"
#include "stage/eval_tasks.h"
#include "stage/model_options.h"
#include "stage/program.h"
#include "stage/program_options.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_eval_program *own;
    MB_NEW(own);
    program->own = own;
    const mb_option *table = mb_model_option_table(&n);
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_program_options_eval(&n);
    MB_TRY(mb_program_add_table(program, "evaluation", table, n, own));
done:
    return status;
}

static mb_status evaluate(mb_program *program, mb_lm *lm, const mb_eval_tasks *tasks)
{
    mb_status status = MB_OK;
    mb_eval_program *own = program->own;
    const double started = mb_clock_seconds();
    json_t *results = json_object();
    mb_h5 *file = NULL;
    mb_energy_report energy = {0};
    char *h5_path = mb_program_path(program, "eval.h5");
    if (mb_program_is_root(program)) status = mb_h5_create(h5_path, &file);
    if (status == MB_OK && file != NULL) status = mb_h5_set_text(file, "/", "format", "moebatch-eval");
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_energy_report_begin(program, &energy));
    if (own->shard_path != NULL) MB_TRY(mb_eval_shard_run(program, lm, results, file));
    if (tasks->count > 0) MB_TRY(mb_eval_tasks_run(program, lm, tasks, results, file));
    MB_TRY(mb_energy_report_end(program, &energy, "", 0));
    if (mb_program_is_root(program)) {
        status = mb_h5_close(&file);
        if (status == MB_OK)
            status = mb_eval_files_write(program, own->model.path, own->model.adapter, own->max_length,
                                         own->limit, results, mb_clock_seconds() - started);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, "results.json", "eval.h5", NULL));
done:
    mb_energy_report_reset(&energy);
    mb_h5_destroy(&file);
    json_decref(results);
    mb_free(h5_path);
    return status;
}

/* Inputs of the record: model, adapter, shards and the file of every task. */
static mb_status begin(mb_program *program, const mb_eval_tasks *tasks, bool *out_is_done)
{
    mb_status status = MB_OK;
    const mb_eval_program *own = program->own;
    const char **names = NULL, **paths = NULL;
    MB_NEW_ARRAY(names, tasks->count + 4);
    MB_NEW_ARRAY(paths, tasks->count + 4);
    names[0] = "model", paths[0] = own->model.path;
    names[1] = "adapter", paths[1] = own->model.adapter;
    names[2] = "dataset", paths[2] = own->shard_path;
    names[3] = "reference", paths[3] = own->reference;
    for (int64_t i = 0; i < tasks->count; ++i) {
        names[4 + i] = tasks->task[i]->name;
        paths[4 + i] = tasks->task[i]->path;
    }
    MB_TRY(mb_program_begin_run_list(program, names, paths, tasks->count + 4, out_is_done));
done:
    mb_free(names);
    mb_free(paths);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_status status = MB_OK;
    mb_eval_program *own = program->own;
    bool is_done = false;
    mb_lm *lm = NULL;
    mb_eval_tasks tasks = {0};
    if (own->shard_path == NULL && own->tasks == NULL)
        MB_RAISE(MB_EUSAGE, "nothing to evaluate: give dataset.path (perplexity) or eval.tasks");
    if (own->reference != NULL && own->shard_path == NULL)
        MB_RAISE(MB_EUSAGE, "eval.reference needs pairs: give dataset.path, a token shard of them");
    if (own->routing && own->shard_path == NULL)
        MB_RAISE(MB_EUSAGE, "eval.routing needs records: give dataset.path, a token shard");
    MB_TRY(mb_comm_agree(program->comm, mb_eval_tasks_open(own, &tasks)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(program, &tasks, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    own->model.opt_comm = program->comm;
    MB_TRY(
        mb_comm_agree(program->comm, mb_model_options_open(&own->model, program->ops, "none", NULL, 0, &lm)));
    if (own->max_length == 0) own->max_length = mb_lm_arch(lm)->max_positions;
    MB_TRY(evaluate(program, lm, &tasks));
done:
    mb_eval_tasks_close(&tasks);
    mb_lm_destroy(&lm);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-eval",
        .purpose = "perplexity and routing of token shards, and multiple choice by lm-evaluation-harness's "
                   "rules, the "
                   "same on 1 and on N ranks",
        .example = "  moe-eval model.path=models/llama model.adapter=sft/final "
                   "eval.tasks=arc_easy=arc_easy_test.jsonl dataset.path=heldout/shard.h5 "
                   "output.dir=checkpoints/x/eval",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
