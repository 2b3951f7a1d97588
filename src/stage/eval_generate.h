/* eval_generate: greedy answers to a file of prompts, for evaluations.
 *
 * Layer: stage.  Uses: serve (generate), infer_prompts, infer_parts.
 *
 * Answers come in parts that are whole or absent, shared among ranks, so a run that is stopped goes on where
 * it was, and they are the same for any number of ranks.
 */
#ifndef MB_EVAL_GENERATE_H
#define MB_EVAL_GENERATE_H

#include "comm/comm.h"
#include "model/lm.h"
#include "text/tokenizer.h"

/* All strings are borrowed. */
typedef struct mb_eval_generate {
    const char *name;         /* of the prompts, for messages */
    const char *prompts;      /* file: objects with `prompt`, a text that is continued as it stands */
    int64_t count;            /* of its lines */
    const char *folder, *key; /* of the parts; key: what the answers depend on, 16 digits and more */
    const char *joined;       /* file for the answers: the objects with "generated_text" */
    const char *left_out;     /* file for the prompts that cannot be answered */
    const char *tokenizer_path, *template_dir;
    const char *opt_stop; /* generate.stop: where an answer ends */
    const mb_ids *ends;   /* tokens that end an answer */
    int64_t max_new_tokens, batch_sequences;
} mb_eval_generate;

/* Of all ranks together; seconds: of the slowest. */
typedef struct mb_eval_generate_cost {
    int64_t prompt_tokens, generated_tokens, step_tokens;
    double seconds, step_seconds;
} mb_eval_generate_cost;

/* The file of prompts is there before, written by one rank. Collective. Prompts that are too long are left
 * out with a warning. */
mb_status mb_eval_generate_run(mb_comm *comm, mb_lm *lm, const mb_eval_generate *what,
                               mb_eval_generate_cost *out_cost);

#endif
