/* moe-eval: perplexity and routing of token shards, multiple choice by lm-evaluation-harness's rules,
 * category files, and files of unified questions; compare: such evaluations of several models side by side.
 */
#include "base/clock.h"
#include "stage/energy_report.h"
#include "stage/eval_categories.h"
#include "stage/eval_compare.h"
#include "stage/eval_files.h"
#include "stage/eval_questions.h"
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
    table = mb_fuse_option_table(&n);
    MB_TRY(mb_program_add_table(program, "fused model", table, n, &own->fuse));
    table = mb_program_options_eval(&n);
    MB_TRY(mb_program_add_table(program, "evaluation", table, n, own));
    table = mb_category_option_table(&n);
    MB_TRY(mb_program_add_table(program, "categories", table, n, &own->category));
done:
    return status;
}

static mb_status evaluate(mb_program *program, mb_lm *lm, const mb_eval_tasks *tasks,
                          const mb_named_paths *categories)
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
    if (categories->count > 0) MB_TRY(mb_eval_categories_run(program, lm, categories, results));
    if (own->questions != NULL) MB_TRY(mb_eval_questions_run(program, lm, results, file));
    MB_TRY(mb_energy_report_end(program, &energy, "", 0));
    if (mb_program_is_root(program)) {
        status = mb_h5_close(&file);
        if (status == MB_OK)
            status = mb_eval_files_write(program, mb_fuse_options_path(&own->fuse, &own->model),
                                         own->model.adapter, own->max_length, own->limit, results,
                                         mb_clock_seconds() - started);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, "results.json", "eval.h5", NULL));
    if (mb_program_is_root(program)) status = mb_eval_categories_clean(program);
done:
    mb_energy_report_reset(&energy);
    mb_h5_destroy(&file);
    json_decref(results);
    mb_free(h5_path);
    return status;
}

/* Inputs of the record: model, adapter, shards, questions and the files of every task and category. */
static mb_status begin(mb_program *program, const mb_eval_tasks *tasks, const mb_named_paths *categories,
                       bool *out_is_done)
{
    mb_status status = MB_OK;
    const mb_eval_program *own = program->own;
    const char **names = NULL, **paths = NULL;
    char **labels = NULL;
    int64_t n = 5;
    MB_NEW_ARRAY(names, tasks->count + categories->count + n);
    MB_NEW_ARRAY(paths, tasks->count + categories->count + n);
    MB_NEW_ARRAY(labels, categories->count + 1);
    names[0] = "model", paths[0] = own->model.path;
    names[1] = "adapter", paths[1] = own->model.adapter;
    names[2] = "dataset", paths[2] = own->shard_path;
    names[3] = "reference", paths[3] = own->reference;
    names[4] = "questions", paths[4] = own->questions;
    for (int64_t i = 0; i < tasks->count; ++i, ++n) {
        names[n] = tasks->task[i]->name;
        paths[n] = tasks->task[i]->path;
    }
    for (int64_t i = 0; i < categories->count; ++i, ++n) {
        names[n] = labels[i] = mb_str_format("category_%s", categories->item[i].name);
        paths[n] = categories->item[i].path;
        if (labels[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    }
    MB_TRY(mb_fuse_options_begin_run(program, &own->fuse, names, paths, n, out_is_done));
done:
    for (int64_t i = 0; labels != NULL && i < categories->count; ++i) mb_free(labels[i]);
    mb_free(labels);
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
    mb_named_paths categories = {0};
    if (program->mode != NULL || own->category.inputs != NULL) return mb_eval_compare_run(program);
    if (own->shard_path == NULL && own->tasks == NULL && own->category.files == NULL &&
        own->questions == NULL)
        MB_RAISE(MB_EUSAGE, "nothing to evaluate: give dataset.path (perplexity), eval.tasks, "
                            "eval.categories or eval.questions");
    if (own->reference != NULL && own->shard_path == NULL)
        MB_RAISE(MB_EUSAGE, "eval.reference needs pairs: give dataset.path, a token shard of them");
    if (own->routing && own->shard_path == NULL)
        MB_RAISE(MB_EUSAGE, "eval.routing needs records: give dataset.path, a token shard");
    MB_TRY(mb_fuse_options_refuse_ranks(&own->fuse, "moe-eval"));
    status = mb_eval_tasks_open(own, &tasks);
    if (status == MB_OK) status = mb_category_options_files(&own->category, &categories);
    if (status == MB_OK) status = mb_eval_questions_check(own);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(program, &tasks, &categories, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    own->model.opt_comm = program->comm;
    status = mb_fuse_options_open(&own->fuse, &own->model, program->ops, "none", NULL, 0, false, &lm);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (own->max_length == 0) own->max_length = mb_lm_arch(lm)->max_positions;
    MB_TRY(evaluate(program, lm, &tasks, &categories));
done:
    mb_eval_tasks_close(&tasks);
    mb_named_paths_reset(&categories);
    mb_lm_destroy(&lm);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-eval",
        .purpose =
            "perplexity and routing of token shards, multiple choice by lm-evaluation-harness's "
            "rules, perplexity and accuracy on category files, answers to unified questions, the same on "
            "1 and on N ranks; compare: several models' categories in one table",
        .modes = "compare",
        .mode_is_optional = true,
        .example = "  moe-eval model.path=models/llama model.adapter=sft/final "
                   "eval.tasks=arc_easy=arc_easy_test.jsonl dataset.path=heldout/shard.h5 "
                   "output.dir=checkpoints/x/eval\n"
                   "  moe-eval compare compare.inputs=base=runs/eval-base,tuned=runs/eval-tuned "
                   "output.dir=runs/compare",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
