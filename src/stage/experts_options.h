/* experts_options: the keys of moe-infer experts, and which expert is on which rank.
 *
 * Layer: stage.  Uses: base, text, choose (vote), serve (experts_fail), named_paths.
 */
#ifndef MB_EXPERTS_OPTIONS_H
#define MB_EXPERTS_OPTIONS_H

#include "base/option.h"
#include "choose/vote.h"
#include "serve/experts_fail.h"
#include "stage/named_paths.h"
#include "tensor/tensor.h"
#include "text/answer_match.h"
#include "text/question.h"

typedef struct mb_experts_options {
    char *experts;   /* infer.experts */
    char *gate;      /* gate.path */
    char *questions; /* questions.path */
    int64_t top_k;   /* infer.top_k */
    char *rule;      /* infer.rule */
    double timeout;  /* infer.timeout_s */
    int64_t strikes; /* infer.strikes */
    int64_t batch;   /* infer.batch */
    int64_t open;    /* infer.open */
    int64_t limit;   /* infer.limit */
    char *fail;      /* infer.fail */
    /* As moe-eval's keys of the same last word, so that answers are the same. */
    char *style, *match, *stop, *softmax_dtype, *embed_text;
    int64_t few_shot, max_length, tile_tokens, max_new_tokens;
} mb_experts_options;
const mb_option *mb_experts_options_table(int64_t *out_count);

/* What the keys say, checked. */
typedef struct mb_experts_plan {
    mb_named_paths experts; /* more[]: adapter, rank */
    char **names;           /* [experts.count] borrowed from there */
    int *rank;              /* [experts.count] */
    mb_vote_rule rule;
    mb_question_style style;
    mb_answer_match match;
    mb_dtype softmax_dtype;
    mb_experts_fail fail;
} mb_experts_plan;

/* wanted [n]: the experts the gate chooses among; they stand in the plan in this order, and others of
 * infer.experts are left out. ranks: of the job. With one rank it is the gate's and all experts'; with
 * more, rank 0 is the gate's alone and the experts go round the others, unless one's group says `rank`.
 * MB_EUSAGE names the key. */
mb_status mb_experts_options_plan(const mb_experts_options *options, char *const *wanted, int64_t n,
                                  int ranks, mb_experts_plan *out_plan);
/* Of a plan that is to be run: MB_EUSAGE when an expert that is to die would take the gate with it. */
mb_status mb_experts_options_check(const mb_experts_plan *plan);
void mb_experts_options_reset(mb_experts_plan *plan);

#endif
