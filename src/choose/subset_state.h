/* subset_state: what the parts of the subset search share.
 *
 * Layer: choose (internal).
 *
 * Place r of a question is the r-th expert by falling gate logit (of equals the lower expert): the members of
 * a set that answer are its first top_k places. A class is one distinct answer to the question, in rising
 * order of the answer.
 */
#ifndef MB_SUBSET_STATE_H
#define MB_SUBSET_STATE_H

#include "choose/subset.h"

/* One question; arrays are parts of the blocks below. */
typedef struct mb_subset_question {
    uint8_t order[MB_SUBSET_EXPERTS]; /* expert at a place */
    uint64_t right, voters;           /* masks of experts: whose answer is right, who has one */
    uint64_t right_classes;           /* mask of the classes that are right */
    int classes;
    mb_vote_rule rule; /* mean_prob of a cloze question is majority */
    int kind;          /* MB_OUTPUTS_SINGLE ... */
    int32_t options, answer;
    const uint64_t *givers; /* [classes] masks of the experts that give this answer */
    const double *weight;   /* [X] of the gate */
    const double *mean;     /* [X, classes] mean of an expert's p over a class's options; 0: cloze */
    const float *prob;      /* [X, C] of the outputs */
} mb_subset_question;

struct mb_subset {
    mb_subset_options options;
    mb_subset_costs costs;
    int64_t questions, choices;
    int experts, voters_most;             /* X; top_k, or X for 0 */
    uint8_t by_energy[MB_SUBSET_EXPERTS]; /* experts by falling energy */
    mb_subset_question *question;         /* [questions] */
    uint64_t *givers;
    double *weights, *means;
};

/* Is the fused answer of exactly these members right? The arithmetic is vote.c's, to the last bit. */
bool mb_subset_decide(const mb_subset *subset, const mb_subset_question *question, uint64_t members);
/* The members of a set that answer. */
uint64_t mb_subset_asked(const mb_subset *subset, const mb_subset_question *question, uint64_t set);
/* Seconds and joules of a set; energy as limits "max" have it. */
double mb_subset_latency(const mb_subset *subset, uint64_t set);
double mb_subset_energy_max(const mb_subset *subset, uint64_t set);

static inline int mb_subset_count(uint64_t set)
{
    return __builtin_popcountll(set);
}

static inline int mb_subset_lowest(uint64_t set)
{
    return __builtin_ctzll(set);
}

static inline uint64_t mb_subset_bit(int expert)
{
    return UINT64_C(1) << expert;
}

static inline uint64_t mb_subset_all(int experts)
{
    return (UINT64_C(1) << experts) - 1;
}

static inline bool mb_subset_is_within(double value, double limit)
{
    return value <= limit || value <= limit * (1 + 1e-12);
}

#endif
