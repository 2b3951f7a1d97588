/* eval_tasks: the multiple-choice tasks of one evaluation.
 *
 * Contents: 1. opening  2. scoring
 */
#include "stage/eval_tasks.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "store/h5.h"

/* ---- 1. opening ---- */

/* "kind=file" or "name:kind=file". */
static mb_status open_task(const mb_eval_program *options, const char *word, mb_task **out_task)
{
    mb_status status = MB_OK;
    mb_task *task = NULL;
    char kind[64];
    const char *equals = strchr(word, '='),
               *colon = memchr(word, ':', equals != NULL ? (size_t)(equals - word) : 0);
    const char *first = colon != NULL ? colon + 1 : word;
    if (equals == NULL || (size_t)(equals - first) >= sizeof kind)
        MB_RAISE(MB_EUSAGE, "eval.tasks: '%s': say kind=file, e.g. arc_easy=datasets/arc_easy_test.jsonl",
                 word);
    snprintf(kind, sizeof kind, "%.*s", (int)(equals - first), first);
    MB_TRY(mb_task_open(kind, equals + 1, options->fewshot, options->limit, &task));
    if (colon != NULL) {
        char *name = mb_strndup(word, (size_t)(colon - word));
        if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for the name of a task");
        mb_free(task->name);
        task->name = name;
    }
    *out_task = task;
    task = NULL;
done:
    mb_task_close(&task);
    return status;
}

mb_status mb_eval_tasks_open(const mb_eval_program *options, mb_eval_tasks *out_tasks)
{
    mb_status status = MB_OK;
    mb_eval_tasks tasks = {0};
    char **words = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(options->tasks, &words, &n));
    MB_NEW_ARRAY(tasks.task, n + 1);
    for (; tasks.count < n; ++tasks.count) {
        mb_task **task = &tasks.task[tasks.count];
        MB_TRY(open_task(options, words[tasks.count], task));
        for (int64_t i = 0; i < tasks.count; ++i)
            if (mb_str_equal(tasks.task[i]->name, (*task)->name)) {
                ++tasks.count;
                MB_RAISE(MB_EUSAGE, "eval.tasks: two tasks are named '%s'; give one another name: mine:%s",
                         (*task)->name, words[tasks.count - 1]);
            }
    }
    *out_tasks = tasks;
    tasks = (mb_eval_tasks){0};
done:
    mb_eval_tasks_close(&tasks);
    mb_option_list_free(&words, n);
    return status;
}

void mb_eval_tasks_close(mb_eval_tasks *tasks)
{
    for (int64_t i = 0; i < tasks->count; ++i) mb_task_close(&tasks->task[i]);
    mb_free(tasks->task);
    *tasks = (mb_eval_tasks){0};
}

/* ---- 2. scoring ---- */

static mb_status write_choice(mb_program *program, const mb_task *task, const mb_choice_result *result,
                              json_t *results, mb_h5 *file)
{
    mb_status status = MB_OK;
    mb_eval_program *own = program->own;
    char path[256], *samples = NULL;
    MB_TRY(mb_choice_add_json(task, result, results));
    snprintf(path, sizeof path, "/choice/%s/acc", task->name);
    MB_TRY(mb_h5_write_f64(file, path, result->acc));
    snprintf(path, sizeof path, "/choice/%s/acc_norm", task->name);
    MB_TRY(mb_h5_write_f64(file, path, result->acc_norm));
    if (own->log_samples) {
        snprintf(path, sizeof path, "samples_%s.jsonl", task->name);
        samples = mb_program_path(program, path);
        MB_TRY(mb_choice_write_samples(task, result, samples));
    }
done:
    mb_free(samples);
    return status;
}

static mb_status run_task(mb_program *program, mb_lm *lm, const mb_tokenizer *tokenizer, const mb_task *task,
                          json_t *results, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    mb_eval_program *own = program->own;
    mb_choice_result result = {0};
    mb_dtype dtype;
    MB_TRY(mb_dtype_parse(own->softmax_dtype, &dtype));
    MB_TRY(mb_choice_run(program->comm, lm, task, tokenizer, own->max_length, own->tile_tokens, dtype,
                         own->near_tie, &result));
    mb_info("  %-20s acc %.4f +- %.4f, acc_norm %.4f, %lld questions, %lld near-ties", task->name, result.acc,
            result.acc_stderr, result.acc_norm, (long long)result.count, (long long)result.near_ties);
    MB_TRY(mb_comm_agree(program->comm,
                         opt_file != NULL ? write_choice(program, task, &result, results, opt_file) : MB_OK));
done:
    mb_choice_result_reset(&result);
    return status;
}

mb_status mb_eval_tasks_run(mb_program *program, mb_lm *lm, const mb_eval_tasks *tasks, json_t *results,
                            mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    mb_eval_program *own = program->own;
    mb_tokenizer *tokenizer = NULL;
    const char *folder = own->tokenizer != NULL ? own->tokenizer
                         : mb_lm_is_fused(lm)   ? mb_lm_base(lm)
                                                : own->model.path;
    MB_TRY(mb_comm_agree(program->comm, mb_tokenizer_open(folder, &tokenizer)));
    for (int64_t i = 0; i < tasks->count; ++i)
        MB_TRY(run_task(program, lm, tokenizer, tasks->task[i], results, opt_file));
done:
    mb_tokenizer_close(&tokenizer);
    return status;
}
