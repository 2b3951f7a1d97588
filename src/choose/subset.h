/* subset: which of X experts to keep, so that their fused answers are right most often and a latency and an
 * energy limit are met.
 *
 * Layer: choose.  Uses: base, comm, store (outputs: its arrays), vote.
 * Source: the problem is that of MoE^2 (arXiv 2501.09410); the sums over all subsets are Yates's (1937)
 * transform, branch and bound is Land and Doig's (1960).
 *
 * A set is a mask of experts (bit e: expert e of the outputs). Of a question the members that answer are the
 * top_k of the set by the gate's logits (mb_vote_top_k; top_k = 0: all of the set), and their answer is
 * mb_vote_run's. Nothing is trained: the gate is masked to the set.
 *   right(S)    questions whose fused answer is right; Acc(S) = right(S) / questions
 *   latency(S)  max over S of (compute + transfer) + aggregation, seconds
 *   energy(S)   limits "max": sum of the top_k largest energies in S (all of S for top_k = 0): the dearest
 *               request there can be. limits "mean": mean over the questions of the energies of the members
 *               that answer.
 * A limit is met by what is at most 1e-12 of itself above it (so that 0.1 + 0.2 meets 0.3).
 *
 * Of two sets the better one is right more often; of equals the one of less energy, then of less latency,
 * then with fewer experts, then the lower mask. So there is one best set, and every way to it gives the same.
 */
#ifndef MB_SUBSET_H
#define MB_SUBSET_H

#include "choose/vote.h"
#include "comm/comm.h"

enum {
    MB_SUBSET_EXPERTS = 40,    /* most experts */
    MB_SUBSET_EXHAUSTIVE = 24, /* most experts of a sweep over all subsets */
    MB_SUBSET_DECILES = 10
};

typedef struct mb_subset_options {
    mb_vote_rule rule;
    int64_t top_k;       /* 0: all of the set */
    bool is_energy_mean; /* limits "mean" */
} mb_subset_options;

/* What asking an expert costs. latency: compute + transfer [s]; energy [J]; both >= 0. */
typedef struct mb_subset_costs {
    double latency[MB_SUBSET_EXPERTS], energy[MB_SUBSET_EXPERTS];
    double aggregation; /* s */
} mb_subset_costs;

/* The questions as the search wants them. */
typedef struct mb_subset mb_subset;
/* outputs are borrowed and must live as long; without gate logits the experts are asked in their order.
 * MB_ERANGE: more than 40 experts, no questions; MB_EDATA: a cost that is negative or not finite (by name).
 * */
mb_status mb_subset_create(const mb_outputs *outputs, const mb_subset_options *options,
                           const mb_subset_costs *costs, mb_subset **out_subset);
void mb_subset_destroy(mb_subset **subset);
int64_t mb_subset_questions(const mb_subset *subset);
int64_t mb_subset_experts(const mb_subset *subset);

typedef struct mb_subset_found {
    uint64_t set;  /* 0: there is none */
    int64_t right; /* questions */
    double latency, energy;
} mb_subset_found;
/* Is a before b, by the order above? Any set is before none. */
bool mb_subset_is_better(const mb_subset_found *a, const mb_subset_found *b);
/* One set. Cost: questions * (top_k + options); energy "mean": questions * experts. */
void mb_subset_measure(const mb_subset *subset, uint64_t set, mb_subset_found *out_found);

typedef struct mb_subset_limits {
    double latency, energy; /* INFINITY: none */
} mb_subset_limits;
bool mb_subset_meets(const mb_subset_found *found, const mb_subset_limits *limits);
/* Limits "auto", rising and different ones: for d = 1 ... 10 the latency of the ceil(d X / 10) fastest
 * experts together, and the energy ("max") of the ceil(d X / 10) cheapest: the deciles of what was measured,
 * as a set has them. The last ones are met by every set. */
void mb_subset_auto_limits(const mb_subset *subset, double latency[MB_SUBSET_DECILES], int64_t *out_latencies,
                           double energy[MB_SUBSET_DECILES], int64_t *out_energies);

/* ---- all subsets (subset_tables.c) ---- */

typedef struct mb_subset_table {
    int64_t experts, questions;
    uint32_t *right; /* [2^experts] by mask; [0] is 0 */
    double *latency; /* [2^experts] */
    double *energy;  /* [2^experts] */
} mb_subset_table;
/* Every subset of at most 24 experts; every rank gets all of it, with the same bits for any number of ranks
 * and threads. threads 0: OpenMP's. With few voters each answering set of a question is fused once and one
 * transform sums them up: questions * sum over j <= top_k of C(X, j) 2^j steps, the questions shared out
 * among ranks and threads, and X 2^X sums on every rank; else ranks and threads share the sets out: questions
 * * 2^X steps of some hundred nanoseconds. Energy "mean" takes the second way. Memory: 20 * 2^X bytes, and 4
 * * 2^X for the transform. MB_ERANGE; MB_ESTOPPED: the stop flag. Collective. */
mb_status mb_subset_sweep(mb_comm *comm, const mb_subset *subset, int threads, mb_subset_table *out_table);
void mb_subset_table_reset(mb_subset_table *table);
void mb_subset_table_get(const mb_subset_table *table, uint64_t set, mb_subset_found *out_found);

/* ---- limits and fronts (subset_front.c) ---- */

/* The best set for every pair of limits, in one pass over the table: out[i * energies + j] for latency[i],
 * energy[j], each list rising. */
mb_status mb_subset_grid(const mb_subset_table *table, const double *latency, int64_t latencies,
                         const double *energy, int64_t energies, mb_subset_found *out);
/* Sets no other one beats: none is right at least as often with at most the latency and at most the energy,
 * and better in one of them. Of sets equal in all three the one with fewer experts, then the lower mask.
 * Rising latency, then rising right. out: mb_free. */
mb_status mb_subset_front(const mb_subset_table *table, mb_subset_found **out, int64_t *out_count);
/* The same of a list. */
mb_status mb_subset_front_of(const mb_subset_found *found, int64_t n, mb_subset_found **out,
                             int64_t *out_count);

/* ---- branch and bound (subset_bound.c) ---- */

typedef struct mb_subset_work {
    int64_t nodes;         /* of the tree that were looked at */
    int64_t evaluations;   /* subsets measured, the local search's among them */
    int64_t pruned_bound;  /* nodes cut because nothing below them can be better than what is known */
    int64_t pruned_limits; /* experts left out below a node because the limits leave no room for them */
    int64_t rounds;        /* in which ranks and threads shared nodes out */
    int64_t bound;         /* no set that meets the limits is right more often */
    bool is_proved;        /* the set found is the best there is */
    double seconds;
} mb_subset_work;

/* The best set that meets the limits, among up to 40 experts. Energy "mean" is refused (MB_EUNSUPPORTED):
 * sets that meet it are no downward closed family. seconds: stop looking then (0: never) and give the best
 * found, with the bound of what was left. opt_starts: sets known before (those that break the limits are
 * passed over). When it is proved, the set found and the work are the same for any number of ranks and
 * threads. MB_ESTOPPED. Collective.
 *
 * A node is a set of included experts and one of allowed experts; below it are the sets between them. A
 * question can be right below a node only if
 *   majority, gate_weighted   a right answer can get as many votes (as much weight) as the included experts
 *   that
 *                             are asked in any case give to any other answer
 *   mean_prob                 for every wrong option the experts that may be asked can prefer the right one
 *   gate_top1                 an expert that may be the first one asked is right
 * and the number of such questions is the node's bound. */
mb_status mb_subset_search(mb_comm *comm, const mb_subset *subset, const mb_subset_limits *limits,
                           double seconds, int threads, const uint64_t *opt_starts, int64_t starts,
                           mb_subset_found *out_found, mb_subset_work *out_work);
/* The bound of one node of the tree; included is a part of allowed. opt_alone [X]: for how many questions
 * this expert is the only one that may be asked and is right itself. */
int64_t mb_subset_bound(const mb_subset *subset, uint64_t included, uint64_t allowed, int64_t *opt_alone);

#endif
