/* experts_models.c: a batch of requests is cut in two: those with options become a task of choice.h, the
 * others the prompts of a generation.
 *
 * 1. life   2. options   3. texts   4. all
 */
#include "stage/experts_models.h"

#include <string.h>

#include "base/memory.h"
#include "measure/choice.h"
#include "measure/tile.h"
#include "serve/generate.h"
#include "stage/infer_prompts.h"
#include "text/tasks_build.h"

/* As moe-eval: without a stop string an answer ends with its line. */
static const char end_of_line[] = "[\"\\n\"]";

typedef struct expert {
    mb_lm *lm; /* NULL: elsewhere */
    mb_infer_prompts *prompts;
    mb_tokenizer_scratch *scratch;
    mb_ids ends;
    int64_t max_length;
} expert;

struct mb_experts_models {
    mb_comm *alone;
    const mb_experts_options *options;
    const mb_experts_plan *plan;
    mb_infer_program infer; /* how texts are generated */
    mb_option_table tables[2];
    expert *expert; /* [plan->experts.count] */
    int64_t here;
};

/* ---- 1. life ---- */

static void close_expert(expert *e)
{
    mb_tokenizer_scratch_destroy(&e->scratch);
    mb_infer_prompts_close(&e->prompts);
    mb_ids_destroy(&e->ends);
    mb_lm_destroy(&e->lm);
}

void mb_experts_models_close(mb_experts_models **models)
{
    mb_experts_models *m = *models;
    if (m == NULL) return;
    for (int64_t x = 0; m->expert != NULL && x < m->plan->experts.count; x++) close_expert(&m->expert[x]);
    for (int i = 0; i < 2; i++)
        if (m->tables[i].target != NULL) mb_option_free(&m->tables[i]);
    mb_free(m->expert);
    MB_FREE(*models);
}

static mb_status set_generation(mb_experts_models *m)
{
    mb_status status = MB_OK;
    mb_generate_options *g = &m->infer.generate;
    m->tables[0] = (mb_option_table){.target = &m->infer};
    m->tables[0].options = mb_program_options_infer(&m->tables[0].count);
    m->tables[1] = (mb_option_table){.target = g};
    m->tables[1].options = mb_generate_option_table(&m->tables[1].count);
    for (int i = 0; i < 2; i++) MB_TRY(mb_option_defaults(&m->tables[i]));
    mb_free(g->stop);
    g->stop = mb_strdup(m->options->stop != NULL ? m->options->stop : end_of_line);
    if (g->stop == NULL) MB_RAISE(MB_ENOMEM, "no memory for an option");
    g->max_new_tokens = m->options->max_new_tokens;
    g->batch_tokens = MB_CATEGORY_BATCH_TOKENS;
done:
    return status;
}

static mb_status open_expert(mb_experts_models *m, mb_ops *ops, const mb_model_options *storage, int64_t x)
{
    mb_status status = MB_OK;
    expert *e = &m->expert[x];
    const mb_named_path *item = &m->plan->experts.item[x];
    mb_model_options model = *storage;
    model.path = item->path;
    model.adapter = item->more[0];
    model.opt_comm = NULL;
    model.shard = model.share_weights = false;
    MB_TRY(mb_model_options_open(&model, ops, "none", NULL, 0, &e->lm));
    MB_TRY(mb_infer_prompts_open(&m->infer, mb_lm_base(e->lm), &e->prompts));
    const mb_tokenizer *tokenizer = mb_infer_prompts_tokenizer(e->prompts);
    MB_TRY(mb_tokenizer_scratch_create(tokenizer, &e->scratch));
    MB_TRY(mb_generate_ends_read(mb_lm_base(e->lm), tokenizer, &e->ends));
    e->max_length = mb_tile_limit(m->options->max_length, e->lm, NULL);
    m->here++;
done:
    if (status != MB_OK) mb_status_prefix("infer.experts, '%s': ", item->name);
    return status;
}

mb_status mb_experts_models_open(mb_comm *alone, int rank, mb_ops *ops, const mb_model_options *storage,
                                 const mb_experts_options *options, const mb_experts_plan *plan,
                                 mb_experts_models **out_models)
{
    mb_status status = MB_OK;
    mb_experts_models *m = NULL;
    MB_NEW(m);
    m->alone = alone;
    m->options = options;
    m->plan = plan;
    MB_NEW_ARRAY(m->expert, plan->experts.count);
    MB_TRY(set_generation(m));
    for (int64_t x = 0; x < plan->experts.count; x++)
        if (plan->rank[x] == rank) MB_TRY(open_expert(m, ops, storage, x));
    *out_models = m;
    m = NULL;
done:
    mb_experts_models_close(&m);
    return status;
}

int64_t mb_experts_models_count(const mb_experts_models *models)
{
    return models->here;
}

const char *mb_experts_models_hash(mb_experts_models *models, int64_t x)
{
    mb_lm *lm = models->expert[x].lm;
    return lm != NULL ? mb_lm_hash(lm) : NULL;
}

/* ---- 2. options ---- */

/* Question i of the task has the number of its request as doc_id. */
static mb_status make_task(const mb_experts_request *requests, int64_t n, mb_task **out_task)
{
    mb_status status = MB_OK;
    mb_tasks_build build = {0};
    mb_task *task = NULL;
    MB_NEW(task);
    build.task = task;
    task->delimiter = "";
    task->path = mb_strdup("a request");
    if (task->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a task");
    for (int64_t i = 0; i < n; i++) {
        if (requests[i].choice_count == 0) continue;
        MB_TRY(mb_tasks_build_question(&build, requests[i].prompt, i));
        for (int64_t c = 0; c < requests[i].choice_count; c++)
            MB_TRY(mb_tasks_build_choice(&build, requests[i].choices[c]));
    }
    *out_task = task;
    task = NULL;
done:
    mb_task_close(&task);
    return status;
}

static mb_status take_logliks(const mb_task *task, const mb_choice_result *result, mb_experts_answer *answers)
{
    mb_status status = MB_OK;
    for (int64_t k = 0; k < result->count; k++) {
        const mb_task_question *question = &task->questions[k];
        mb_experts_answer *a = &answers[question->doc_id];
        MB_NEW_ARRAY(a->loglik, question->choice_count);
        a->choices = question->choice_count;
        for (int64_t c = 0; c < a->choices; c++) a->loglik[c] = (float)result->questions[k].loglik[c];
    }
done:
    return status;
}

static mb_status score(mb_experts_models *m, expert *e, const mb_experts_request *requests, int64_t n,
                       mb_experts_answer *answers)
{
    mb_status status = MB_OK;
    mb_task *task = NULL;
    mb_choice_result result = {0};
    MB_TRY(make_task(requests, n, &task));
    if (task->count == 0) goto done;
    MB_TRY(mb_choice_run(m->alone, e->lm, task, mb_infer_prompts_tokenizer(e->prompts), e->max_length,
                         m->options->tile_tokens, m->plan->softmax_dtype, 0, &result));
    MB_TRY(take_logliks(task, &result, answers));
done:
    mb_task_close(&task);
    mb_choice_result_reset(&result);
    return status;
}

/* ---- 3. texts ---- */

typedef struct writing {
    expert *expert;
    const mb_experts_request *requests;
    mb_experts_answer *answers;
    int64_t count, next, longest;
    mb_ids ids;
} writing;

/* The next prompt that can be answered; one that is empty or too long gets no text. */
static mb_status next_prompt(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    mb_status status = MB_OK;
    writing *w = own;
    *out_has = false;
    while (w->next < w->count && !*out_has) {
        const int64_t i = w->next++;
        if (w->requests[i].choice_count > 0) continue;
        status = mb_infer_prompts_text(w->expert->prompts, w->requests[i].prompt,
                                       strlen(w->requests[i].prompt), &w->ids);
        if (status == MB_EDATA) {
            mb_status_reset();
            status = MB_OK;
            continue;
        }
        MB_TRY(status);
        if (w->ids.count > w->longest) continue;
        *out_prompt = (mb_generate_prompt){.record = i, .ids = w->ids.data, .count = w->ids.count};
        *out_has = true;
    }
done:
    return status;
}

static mb_status take_text(void *own, const mb_generate_answer *answer)
{
    mb_status status = MB_OK;
    mb_experts_answer *a = &((writing *)own)->answers[answer->record];
    a->text = mb_strndup(answer->text, answer->length);
    if (a->text == NULL) MB_RAISE(MB_ENOMEM, "no memory for an answer");
done:
    return status;
}

static mb_status generate(mb_experts_models *m, expert *e, const mb_experts_request *requests, int64_t n,
                          mb_experts_answer *answers)
{
    mb_status status = MB_OK;
    mb_generate_options options = m->infer.generate;
    mb_generate_report report = {0};
    int64_t asked = 0;
    for (int64_t i = 0; i < n; i++) asked += requests[i].choice_count == 0;
    writing w = {.expert = e,
                 .requests = requests,
                 .answers = answers,
                 .count = n,
                 .longest = mb_generate_longest(e->lm, &options)};
    const mb_generate_source source = {.own = &w, .next = next_prompt, .take = take_text};
    if (asked == 0) goto done;
    options.batch_sequences = asked;
    MB_TRY(
        mb_generate_run(e->lm, mb_infer_prompts_tokenizer(e->prompts), &e->ends, &options, &source, &report));
done:
    mb_ids_destroy(&w.ids);
    return status;
}

/* ---- 4. all ---- */

static mb_status count_tokens(expert *e, const mb_experts_request *requests, int64_t n,
                              mb_experts_answer *answers)
{
    mb_status status = MB_OK;
    mb_ids ids = {0};
    for (int64_t i = 0; i < n; i++) {
        mb_ids_reset(&ids);
        MB_TRY(mb_tokenizer_encode(mb_infer_prompts_tokenizer(e->prompts), e->scratch, requests[i].prompt,
                                   strlen(requests[i].prompt), true, &ids));
        answers[i].tokens = ids.count;
    }
done:
    mb_ids_destroy(&ids);
    return status;
}

mb_status mb_experts_models_answer(void *own, int64_t expert_number, const mb_experts_request *requests,
                                   int64_t n, mb_experts_answer *answers)
{
    mb_status status = MB_OK;
    mb_experts_models *m = own;
    if (expert_number < 0 || expert_number >= m->plan->experts.count || m->expert[expert_number].lm == NULL)
        MB_RAISE(MB_EFORMAT, "expert %lld is not on this rank", (long long)expert_number);
    expert *e = &m->expert[expert_number];
    MB_TRY(count_tokens(e, requests, n, answers));
    MB_TRY(score(m, e, requests, n, answers));
    MB_TRY(generate(m, e, requests, n, answers));
done:
    return status;
}
