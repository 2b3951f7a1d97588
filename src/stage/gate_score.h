/* gate_score: what a gate and the ways of fusing are worth on test questions, beside what is there without
 * them.
 *
 * Layer: stage.  Uses: store (outputs), choose (vote), measure (bootstrap), learn (gate: calibration).
 *
 * Systems: gate_top1; majority@k, gate_weighted@k, mean_prob@k (of the k experts with the largest gate
 * logits); majority_all, gate_weighted_all, mean_prob_all; oracle (some expert is right); best_single (the
 * expert with the most right answers on the training questions); random (an expert drawn: the mean over
 * experts); chance (an answer drawn); expert/<name> of each. Groups: all, source/<name>, and kind/<name>
 * where there are several kinds.
 */
#ifndef MB_GATE_SCORE_H
#define MB_GATE_SCORE_H

#include "learn/gate.h"
#include "store/outputs.h"

typedef struct mb_gate_score_options {
    const int64_t *top_k; /* [top_k_count] each 2 or more */
    int64_t top_k_count, draws, seed;
    double level;
} mb_gate_score_options;

/* A share of questions answered right, or a difference of two, with the interval of the bootstrap. */
typedef struct mb_gate_score_value {
    double value, low, high;
} mb_gate_score_value;

typedef struct mb_gate_score {
    int64_t systems, groups, questions, experts; /* S, G, Q, X */
    char **system;                               /* [S] */
    char **group;                                /* [G] */
    double *correct;                             /* [S, Q] 1, 0, or an expectation */
    double *member;                              /* [G, Q] 1: the question is of the group */
    int64_t *size;                               /* [G] */
    mb_gate_score_value *accuracy;               /* [S, G] */
    mb_gate_score_value *gain;                   /* [S, G] accuracy less that of best_single */
    double *picks, *weight; /* [G, X] share of the questions where it is the gate's first; mean gate weight */
    int64_t best_single, oracle, best_expert; /* systems; and the expert */
    double nll, ece;                          /* of the gate's weights against soft targets */
    mb_gate_bin bins[MB_GATE_BINS];
    mb_gate_score_options options; /* top_k is the caller's */
} mb_gate_score;

/* Both tables of the same experts, the test's with gate logits. MB_EDATA: other experts, a question in both,
 * no gate logits. */
mb_status mb_gate_score_make(const mb_outputs *train, const mb_outputs *test,
                             const mb_gate_score_options *options, mb_gate_score *out_score);
void mb_gate_score_reset(mb_gate_score *score);
/* Place of a system by name, -1: none. */
int64_t mb_gate_score_find(const mb_gate_score *score, const char *system);

#endif
