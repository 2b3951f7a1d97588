/* vote: one answer out of several experts' answers: the rules by which the gate's report, the collaborative
 * inference and the subset search fuse.
 *
 * Layer: choose.  Uses: base, store (outputs: its arrays and kinds).
 * Source: plain and weighted majority: Kuncheva (2004) "Combining Pattern Classifiers", sections 4.2, 4.3;
 * mean of probabilities: Kittler et al. (1998) "On combining classifiers", sum rule.
 *
 * The numbers, once and for all:
 *   weight w_e of an expert: softmax over ALL X experts of the row's gate logits, f64 (it does not depend on
 *     who votes); without a gate 1 / X each. Sums run over the voters in rising order of expert, in f64, and
 *     are compared exactly.
 *   picking from probabilities p (mb_vote_pick): single: the first of the largest; multiple: every option
 *     with p_i >= 0.5 * max p (at least the likeliest: an expert's probabilities add to 1 over the options,
 *     so "likelier than not" is measured against the likeliest); the same rule makes an expert's own pick
 *     and that of mean_prob.
 *   a candidate: an answer that at least one voter gave: an option, a mask as a whole, a text as a whole.
 *   mean choice probability of a candidate: sum over the voters of the mean of p over its options (one for
 *     single, those in the mask for multiple); 0 for cloze.
 *   voters: members whose picked is not negative. No voter: answer -1, which is never right.
 *
 * Rules:
 *   majority       most voters; ties: larger sum of the w of its voters; then larger mean choice
 *                  probability; then the lower option (mask as a number; cloze: the text whose first voter
 *                  has the lower number)
 *   gate_weighted  largest sum of w of its voters; ties: more voters; then mean choice probability; then
 *                  lower, as above
 *   mean_prob      mb_vote_pick of the voters' sums of p (a tie of single: the lower option); cloze has no
 *                  probabilities: as majority
 *   gate_top1      the answer of the voter with the largest gate logit (without a gate: of the first voter;
 *                  ties: the lower expert)
 */
#ifndef MB_VOTE_H
#define MB_VOTE_H

#include <stdbool.h>

#include "store/outputs.h"

typedef enum mb_vote_rule {
    MB_VOTE_MAJORITY,
    MB_VOTE_GATE_WEIGHTED,
    MB_VOTE_MEAN_PROB,
    MB_VOTE_GATE_TOP1
} mb_vote_rule;
enum { MB_VOTE_RULES = 4 };
/* "majority", "gate_weighted", "mean_prob", "gate_top1". MB_EUSAGE for anything else. */
mb_status mb_vote_parse(const char *name, mb_vote_rule *out_rule);
const char *mb_vote_name(mb_vote_rule rule);

/* One question as X experts answered it; all borrowed. */
typedef struct mb_vote_question {
    int kind;                     /* MB_OUTPUTS_SINGLE ... */
    int32_t options;              /* of the question; 0 for cloze */
    int64_t experts, choices;     /* X; row length of choice_prob */
    const float *choice_prob;     /* [X, C] (NaN of one without an answer is not read) */
    const int32_t *picked;        /* [X] */
    const uint8_t *opt_right;     /* [X] for mb_vote_is_right of cloze */
    const float *opt_gate_logits; /* [X] */
    int32_t answer;               /* for mb_vote_is_right; -1 for cloze */
} mb_vote_question;
/* Question q of a table. */
mb_vote_question mb_vote_question_get(const mb_outputs *outputs, int64_t q);

/* An expert's own pick by its probabilities [options]: see above. kind single or multiple. */
int32_t mb_vote_pick(int kind, const float *prob, int32_t options);
/* The weights w [X] of a row: see above. */
void mb_vote_weights(const float *opt_gate_logits, int64_t experts, double *out_weights);
/* Of these members (rising order) the k with the largest gate logits (ties: the lower expert), in rising
 * order of expert, into out [min(k, count)]; k = 0, or no logits and k >= count: all. Returns their number.
 * Without logits k < count picks the first k. */
int64_t mb_vote_top_k(const float *opt_gate_logits, const int64_t *members, int64_t count, int64_t k,
                      int64_t *out);
/* The fused answer of these members (rising order of expert, none twice). Cost: members^2; allocates
 * nothing. */
int32_t mb_vote_run(mb_vote_rule rule, const mb_vote_question *question, const int64_t *members,
                    int64_t count);
/* Is this fused answer right? Cloze: a text is right when one who gave it was judged right. */
bool mb_vote_is_right(const mb_vote_question *question, int32_t picked);

#endif
