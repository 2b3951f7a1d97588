/* constraint: losses on the share of softmax mass the good experts get, with exact gradients.
 *
 * Layer: learn.  Uses: base, routing.
 *
 * Per token and layer s = logsumexp(good logits) - logsumexp(trash logits), r = sigmoid(s) = mass of the good
 * experts. log r = -softplus(-s) and log(1-r) = -softplus(s) are never clamped, so there is always a
 * gradient. ratio_over "topk": r is the mass of the good experts among the picks (softmax over all), so s =
 * logsumexp(picked good) - logsumexp(all others); cut to 1e-6 <= r <= 1 - 1e-6, without gradient beyond.
 *
 *   beta_nll         mean over tokens, layers of -((alpha-1) log r + (beta-1) log(1-r)). alpha > 1 pushes r
 * to 1; alpha = 1 with beta > 1 pushes r to 0, with beta < 1 to 1. barrier          mean over tokens, layers
 * of -(beta-1) log(1-r) - log r. moment_matching  mean over layers of (mean r - mean)^2 + (var r - var)^2,
 * over all tokens of the micro-batch, var with 1/n. pair_rank        S = mean of s over a record's tokens,
 * for each layer and for the mean over layers (L+1 views, averaged): loss_rank  over pairs with a_j > a_i (a:
 * mean LM loss of a record, a constant): sum (a_j-a_i) softplus(-k (S_i-S_j)) / sum (a_j-a_i) copy_rank  mean
 * over records of softplus(-k (S_i - S of its corrupted copy)) anchor     mean over layers of (mean r -
 * 0.5)^2 over the real tokens C = (1-c) loss_rank + c copy_rank + w anchor.
 */
#ifndef MB_CONSTRAINT_H
#define MB_CONSTRAINT_H

#include <stdbool.h>

#include "base/memory.h"
#include "learn/routing.h"

typedef enum mb_constraint_kind {
    MB_CONSTRAINT_NONE,
    MB_CONSTRAINT_BETA_NLL,
    MB_CONSTRAINT_MOMENT_MATCHING,
    MB_CONSTRAINT_BARRIER,
    MB_CONSTRAINT_PAIR_RANK
} mb_constraint_kind;

typedef struct mb_constraint_options {
    mb_constraint_kind kind;
    bool over_picks;      /* ratio_over = topk */
    double alpha, beta;   /* beta_nll, barrier (beta) */
    double mean, var;     /* moment_matching */
    double sharpness;     /* k */
    double copy_share;    /* c */
    double anchor_weight; /* w */
} mb_constraint_options;

/* Rows of records 0..records-1 come first, then those of the copies (copy i belongs to record i). */
typedef struct mb_constraint_segments {
    int64_t records;
    int64_t copies;         /* 0 or records */
    const int32_t *offsets; /* [records+copies+1] */
    const double
        *loss; /* [records] mean LM loss; NaN: none, takes no part in loss_rank. pair_rank only, else NULL */
} mb_constraint_segments;

typedef struct mb_constraint_value {
    double constraint;                   /* C */
    double loss_rank, copy_rank, anchor; /* pair_rank, else 0 */
    double mean_ratio;                   /* mean r over the real tokens and layers */
    bool is_single;                      /* loss_rank had no two records */
    double *r_mean, *r_var;              /* [routers] in the arena */
} mb_constraint_value;

/* Values and, when asked, gradients (of C, scaled). kind NONE gives the ratios alone. */
mb_status mb_constraint_loss(const mb_constraint_options *options, const mb_routing *routing,
                             const mb_constraint_segments *segments, double scale, mb_arena *arena,
                             float *const *opt_gradient, mb_constraint_value *out_value);

#endif
