/* eval_generate.c: a run of moe-infer over a file, inside an evaluation.
 *
 * 1. options   2. answers   3. all
 */
#include "stage/eval_generate.h"

#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "stage/category_options.h"
#include "stage/infer_parts.h"

/* ---- 1. options ---- */

static mb_status set_text(char **text, const char *value)
{
    mb_status status = MB_OK;
    mb_free(*text);
    *text = mb_strdup(value);
    if (*text == NULL && value != NULL) MB_RAISE(MB_ENOMEM, "no memory for an option");
done:
    return status;
}

static mb_status set_options(const mb_eval_generate *what, mb_infer_program *infer, mb_option_table tables[2])
{
    mb_status status = MB_OK;
    tables[0] = (mb_option_table){.target = infer};
    tables[0].options = mb_program_options_infer(&tables[0].count);
    tables[1] = (mb_option_table){.target = &infer->generate};
    tables[1].options = mb_generate_option_table(&tables[1].count);
    for (int i = 0; i < 2; i++) MB_TRY(mb_option_defaults(&tables[i]));
    MB_TRY(set_text(&infer->input, what->prompts));
    MB_TRY(set_text(&infer->tokenizer, what->tokenizer_path));
    MB_TRY(set_text(&infer->template_dir, what->template_dir));
    MB_TRY(set_text(&infer->generate.stop, what->opt_stop));
    infer->generate.max_new_tokens = what->max_new_tokens;
    infer->generate.batch_sequences = what->batch_sequences;
    infer->generate.batch_tokens = MB_CATEGORY_BATCH_TOKENS;
done:
    return status;
}

/* ---- 2. answers ---- */

static mb_status add_up(mb_comm *comm, const mb_generate_report *mine, mb_eval_generate_cost *out_cost)
{
    mb_status status = MB_OK;
    int64_t sums[] = {mine->prompt_tokens, mine->tokens, mine->step_tokens};
    double longest[] = {mine->seconds, mine->step_seconds};
    MB_TRY(mb_comm_allreduce_i64(comm, sums, 3, MB_COMM_SUM));
    MB_TRY(mb_comm_minmax_f64(comm, longest, 2, MB_COMM_MAX));
    *out_cost = (mb_eval_generate_cost){.prompt_tokens = sums[0],
                                        .generated_tokens = sums[1],
                                        .step_tokens = sums[2],
                                        .seconds = longest[0],
                                        .step_seconds = longest[1]};
done:
    return status;
}

/* All prompts answered, their parts joined by the first rank. */
static mb_status answer(mb_comm *comm, mb_lm *lm, const mb_eval_generate *what, mb_infer_program *infer,
                        mb_eval_generate_cost *out_cost)
{
    mb_status status = MB_OK;
    mb_infer_prompts *prompts = NULL;
    mb_infer_parts *parts = NULL;
    mb_generate_report report = {0};
    int64_t lines = 0, bad = 0;
    char *key = mb_str_format("%.16s%s", what->key, what->name), hash[MB_HASH_TEXT] = "";
    if (key != NULL) mb_hash_bytes(key, strlen(key), hash);
    status = key != NULL ? mb_infer_prompts_open(infer, what->tokenizer_path, &prompts)
                         : mb_fail(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_infer_parts_open(comm, prompts, infer, NULL, what->folder, hash,
                               mb_generate_longest(lm, &infer->generate), &parts));
    const int64_t share = (what->count + mb_comm_size(comm) - 1) / mb_comm_size(comm);
    if (infer->generate.batch_sequences > share) infer->generate.batch_sequences = share;
    const mb_generate_source source = mb_infer_parts_source(parts, false, NULL);
    status = mb_generate_run(lm, mb_infer_prompts_tokenizer(prompts), what->ends, &infer->generate, &source,
                             &report);
    MB_TRY(mb_comm_agree(comm, status));
    if (mb_comm_rank(comm) == 0)
        status = mb_infer_parts_join(parts, what->joined, what->left_out, &lines, &bad);
    MB_TRY(mb_comm_agree(comm, status));
    if (bad > 0)
        mb_warn("%s: %lld prompts could not be answered (too long for the model, or empty); they count as "
                "answered wrongly",
                what->name, (long long)bad);
    MB_TRY(add_up(comm, &report, out_cost));
done:
    mb_infer_parts_close(&parts);
    mb_infer_prompts_close(&prompts);
    mb_free(key);
    return status;
}

/* ---- 3. all ---- */

mb_status mb_eval_generate_run(mb_comm *comm, mb_lm *lm, const mb_eval_generate *what,
                               mb_eval_generate_cost *out_cost)
{
    mb_status status = MB_OK;
    mb_infer_program infer = {0};
    mb_option_table tables[2] = {{0}};
    MB_TRY(mb_comm_agree(comm, set_options(what, &infer, tables)));
    MB_TRY(answer(comm, lm, what, &infer, out_cost));
done:
    for (int i = 0; i < 2; i++)
        if (tables[i].target != NULL) mb_option_free(&tables[i]);
    return status;
}
