/* eval_speed.c: see the header.
 *
 * Contents: 1. prompts  2. rounds  3. run
 */
#include "stage/eval_speed.h"

#include "base/memory.h"
#include "stage/infer_prompts.h"

/* ---- 1. prompts ---- */

typedef struct round_of_prompts {
    mb_ids *prompt; /* [count] */
    int64_t count, next;
} round_of_prompts;

static mb_status next_prompt(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    round_of_prompts *r = own;
    *out_has = r->next < r->count;
    if (!*out_has) return MB_OK;
    const mb_ids *ids = &r->prompt[r->next];
    *out_prompt = (mb_generate_prompt){.record = r->next++, .ids = ids->data, .count = ids->count};
    return MB_OK;
}

static mb_status take_answer(void *own, const mb_generate_answer *answer)
{
    (void)own;
    (void)answer;
    return MB_OK;
}

static mb_status read_prompts(const mb_infer_program *reading, const mb_category *category, int64_t longest,
                              int64_t sequences, round_of_prompts *r)
{
    mb_status status = MB_OK;
    mb_infer_prompts *prompts = NULL;
    MB_NEW_ARRAY(r->prompt, sequences + 1);
    MB_TRY(mb_infer_prompts_open(reading, reading->tokenizer, &prompts));
    for (int64_t i = 0; i < mb_category_count(category) && r->count < sequences; i++) {
        size_t n;
        const char *text = mb_category_prompt(category, i, &n);
        if (text == NULL || n == 0) continue;
        MB_TRY(mb_infer_prompts_text(prompts, text, n, &r->prompt[r->count]));
        if (r->prompt[r->count].count <= longest) r->count++;
    }
done:
    mb_infer_prompts_close(&prompts);
    return status;
}

/* ---- 2. rounds ---- */

static mb_status decode(mb_lm *lm, const mb_generate_options *options, round_of_prompts *r,
                        mb_generate_report *out_report)
{
    const mb_ids none = {0};
    const mb_generate_source source = {.own = r, .next = next_prompt, .take = take_answer};
    r->next = 0;
    return mb_generate_run(lm, NULL, &none, options, &source, out_report);
}

static mb_status measure(mb_lm *lm, const mb_infer_program *reading, const mb_category *category,
                         int64_t sequences, int64_t tokens, mb_generate_report *report)
{
    mb_status status = MB_OK;
    round_of_prompts r = {0};
    mb_generate_options options = {0};
    mb_option_table table = {.target = &options};
    mb_generate_report first = {0};
    table.options = mb_generate_option_table(&table.count);
    MB_TRY(mb_option_defaults(&table));
    options.max_new_tokens = tokens;
    options.batch_sequences = sequences;
    options.ignore_eos = true;
    MB_TRY(read_prompts(reading, category, mb_generate_longest(lm, &options), sequences, &r));
    if (r.count == 0) goto done;
    MB_TRY(decode(lm, &options, &r, &first));
    MB_TRY(decode(lm, &options, &r, report));
done:
    for (int64_t i = 0; r.prompt != NULL && i <= sequences; i++) mb_ids_destroy(&r.prompt[i]);
    mb_free(r.prompt);
    mb_option_free(&table);
    return status;
}

/* ---- 3. run ---- */

mb_status mb_eval_speed_run(mb_comm *comm, mb_lm *lm, const mb_infer_program *reading,
                            const mb_category *category, int64_t sequences, int64_t tokens,
                            int64_t *out_tokens, double *out_seconds)
{
    mb_status status = MB_OK;
    mb_generate_report report = {0};
    MB_TRY(mb_comm_agree(comm, measure(lm, reading, category, sequences, tokens, &report)));
    MB_TRY(mb_comm_allreduce_i64(comm, &report.step_tokens, 1, MB_COMM_SUM));
    MB_TRY(mb_comm_minmax_f64(comm, &report.step_seconds, 1, MB_COMM_MAX));
    *out_tokens = report.step_tokens;
    *out_seconds = report.step_seconds;
done:
    return status;
}
