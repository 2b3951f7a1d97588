/* eval_speed: how fast a model decodes, measured so that models compare.
 *
 * Layer: stage.  Uses: serve (generate), measure (category), infer_prompts.
 *
 * The answers of an evaluation end where each model ends them, so their steps hold other numbers of sequences
 * from model to model. Here every model continues the same prompts, all at once and by the same number of
 * tokens, end-of-text or not; a first round warms up, a second is measured.
 */
#ifndef MB_EVAL_SPEED_H
#define MB_EVAL_SPEED_H

#include "comm/comm.h"
#include "measure/category.h"
#include "stage/program_options.h"

/* Of the category's first prompts, `sequences` at most; every rank decodes all of them. reading: its
 * tokenizer, tmpl ("auto") and template_dir count. *out_tokens: in steps of decoding alone, by all ranks;
 * *out_seconds: of the slowest. 0 and 0 where the category asks nothing. Collective. */
mb_status mb_eval_speed_run(mb_comm *comm, mb_lm *lm, const mb_infer_program *reading,
                            const mb_category *category, int64_t sequences, int64_t tokens,
                            int64_t *out_tokens, double *out_seconds);

#endif
