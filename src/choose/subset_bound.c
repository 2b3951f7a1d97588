/* subset_bound.c: branch and bound over the sets of up to 40 experts.
 *
 * The tree's nodes lie in one list, the most promising first. In a round all ranks and threads take the first
 * ones of it, each searches depth first below its node for a fixed number of nodes, and what it found and
 * what it left over go back to all ranks in the order of the nodes: what is done does not depend on who did
 * it. A task knows only what was best before its round.
 *
 * 1. who is asked   2. bounds of a question   3. bound of a node   4. below one node   5. a good start
 * 6. rounds   7. the search
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/stop.h"
#include "choose/subset_state.h"

enum {
    ROUND_TASKS = 16,  /* nodes taken in a round */
    TASK_NODES = 2000, /* looked at by a task */
    STACK = 2 * MB_SUBSET_EXPERTS + 4
};

/* ---- 1. who is asked ---- */

/* Of a node and a question: experts that are asked in any set below, and those that may be. */
typedef struct node_asked {
    uint64_t certain, possible; /* without overlap */
    int slots;                  /* how many of the possible ones can be asked together */
} node_asked;

static node_asked asked_below(const mb_subset *s, const mb_subset_question *q, uint64_t included,
                              uint64_t allowed)
{
    node_asked a = {.certain = included, .possible = allowed & ~included, .slots = s->experts};
    int before = 0, included_before = 0; /* places */
    if (mb_subset_count(allowed) <= s->voters_most) return a;
    a.certain = a.possible = 0;
    for (int r = 0; r < s->experts && included_before < s->voters_most; r++) {
        const uint64_t bit = mb_subset_bit(q->order[r]);
        if ((allowed & bit) == 0) continue;
        if ((included & bit) != 0 && before < s->voters_most)
            a.certain |= bit;
        else
            a.possible |= bit;
        before++;
        included_before += (included & bit) != 0;
    }
    a.slots = s->voters_most - mb_subset_count(a.certain);
    return a;
}

/* ---- 2. bounds of a question ---- */

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* Can some right answer have at least as many votes as every other one? */
static bool can_get_votes(const mb_subset_question *q, const node_asked *a)
{
    for (int c = 0; c < q->classes; c++) {
        int most = 0;
        if ((q->right_classes >> c & 1) == 0) continue;
        const int votes = mb_subset_count(a->certain & q->givers[c]) +
                          smaller(mb_subset_count(a->possible & q->givers[c]), a->slots);
        for (int o = 0; o < q->classes; o++) {
            const int others = o == c ? 0 : mb_subset_count(a->certain & q->givers[o]);
            if (others > most) most = others;
        }
        if (votes > 0 && votes >= most) return true;
    }
    return false;
}

/* The largest numbers seen, falling. */
typedef struct largest {
    double value[MB_SUBSET_EXPERTS];
    int count, room;
} largest;

static void keep_largest(largest *l, double value)
{
    int at = l->count;
    if (value <= 0 || l->room == 0 || (at == l->room && value <= l->value[at - 1])) return;
    if (at == l->room)
        at--;
    else
        l->count++;
    for (; at > 0 && l->value[at - 1] < value; at--) l->value[at] = l->value[at - 1];
    l->value[at] = value;
}

static double sum_largest(const largest *l)
{
    double sum = 0;
    for (int i = 0; i < l->count; i++) sum += l->value[i];
    return sum;
}

/* Sums in another order than vote.c's may differ by some last bits. */
static const double slack = 1e-9;

static bool can_get_weight(const mb_subset_question *q, const node_asked *a)
{
    for (int c = 0; c < q->classes; c++) {
        largest most = {.room = a->slots};
        double weight = 0, others = 0;
        if ((q->right_classes >> c & 1) == 0 || ((a->certain | a->possible) & q->givers[c]) == 0) continue;
        for (uint64_t m = a->certain & q->givers[c]; m != 0; m &= m - 1)
            weight += q->weight[mb_subset_lowest(m)];
        for (uint64_t m = a->possible & q->givers[c]; m != 0; m &= m - 1)
            keep_largest(&most, q->weight[mb_subset_lowest(m)]);
        weight += sum_largest(&most);
        for (int o = 0; o < q->classes; o++) {
            double sum = 0;
            if (o == c) continue;
            for (uint64_t m = a->certain & q->givers[o]; m != 0; m &= m - 1)
                sum += q->weight[mb_subset_lowest(m)];
            others = fmax(others, sum);
        }
        if (weight * (1 + slack) >= others) return true;
    }
    return false;
}

/* Can the sum over those asked of p[plus] - share * p[minus] be above (or at) 0? */
static bool can_prefer(const mb_subset *s, const mb_subset_question *q, const node_asked *a, int plus,
                       int minus, double share)
{
    largest most = {.room = a->slots};
    double sum = 0;
    for (uint64_t m = a->certain & q->voters; m != 0; m &= m - 1) {
        const float *prob = q->prob + mb_subset_lowest(m) * s->choices;
        sum += prob[plus] - share * (double)prob[minus];
    }
    if (sum >= -slack) return true;
    for (uint64_t m = a->possible & q->voters; m != 0; m &= m - 1) {
        const float *prob = q->prob + mb_subset_lowest(m) * s->choices;
        keep_largest(&most, prob[plus] - share * (double)prob[minus]);
    }
    return sum + sum_largest(&most) >= -slack;
}

/* Single: above every other option. Several: every right option at least half of every other one. */
static bool can_get_mean(const mb_subset *s, const mb_subset_question *q, const node_asked *a)
{
    if (((a->certain | a->possible) & q->voters) == 0) return false;
    for (int32_t i = 0; i < q->options; i++) {
        if (q->kind == MB_OUTPUTS_SINGLE ? i != q->answer : (q->answer >> i & 1) == 0) continue;
        for (int32_t j = 0; j < q->options; j++)
            if (j != i && !can_prefer(s, q, a, i, j, q->kind == MB_OUTPUTS_SINGLE ? 1 : 0.5)) return false;
    }
    return true;
}

static bool can_be_first(const mb_subset *s, const mb_subset_question *q, const node_asked *a)
{
    for (int r = 0; r < s->experts; r++) {
        const uint64_t bit = mb_subset_bit(q->order[r]);
        if (((a->certain | a->possible) & q->voters & bit) == 0) continue;
        if (q->right & bit) return true;
        if (a->certain & bit) return false;
    }
    return false;
}

static bool can_be_right(const mb_subset *s, const mb_subset_question *q, const node_asked *a)
{
    if (a->possible == 0 || a->slots == 0) return mb_subset_decide(s, q, a->certain);
    if (((a->certain | a->possible) & q->right) == 0 && q->rule != MB_VOTE_MEAN_PROB) return false;
    switch (q->rule) {
    case MB_VOTE_GATE_WEIGHTED:
        return can_get_weight(q, a);
    case MB_VOTE_MEAN_PROB:
        return can_get_mean(s, q, a);
    case MB_VOTE_GATE_TOP1:
        return can_be_first(s, q, a);
    case MB_VOTE_MAJORITY:
        break;
    }
    return can_get_votes(q, a);
}

/* ---- 3. bound of a node ---- */

int64_t mb_subset_bound(const mb_subset *subset, uint64_t included, uint64_t allowed, int64_t *opt_alone)
{
    int64_t bound = 0;
    if (opt_alone != NULL) memset(opt_alone, 0, sizeof *opt_alone * (size_t)subset->experts);
    for (int64_t i = 0; i < subset->questions; i++) {
        const mb_subset_question *q = subset->question + i;
        const node_asked a = asked_below(subset, q, included, allowed);
        if (!can_be_right(subset, q, &a)) continue;
        bound++;
        const uint64_t right = (a.certain | a.possible) & q->right;
        if (opt_alone != NULL && right != 0 && (right & (right - 1)) == 0)
            opt_alone[mb_subset_lowest(right)]++;
    }
    return bound;
}

typedef struct node {
    uint64_t included, allowed;
    int64_t bound; /* of its parent */
} node;

typedef struct search {
    const mb_subset *subset;
    mb_subset_limits limits;
    double deadline;                        /* 0: none */
    int64_t alone_right[MB_SUBSET_EXPERTS]; /* questions that an expert answers right */
} search;

/* Experts that still fit with the included ones. */
static uint64_t fitting(const search *x, uint64_t included, uint64_t allowed, int64_t *pruned)
{
    for (uint64_t rest = allowed & ~included; rest != 0; rest &= rest - 1) {
        const uint64_t bit = rest & -rest;
        if (mb_subset_is_within(mb_subset_energy_max(x->subset, included | bit), x->limits.energy) &&
            mb_subset_is_within(mb_subset_latency(x->subset, included | bit), x->limits.latency))
            continue;
        allowed &= ~bit;
        ++*pruned;
    }
    return allowed;
}

/* ---- 4. below one node ---- */

/* What a task gives back. */
typedef struct task {
    mb_subset_found best;
    int64_t nodes, evaluations, pruned_bound, pruned_limits;
    int64_t left; /* nodes it did not come to */
    node stack[STACK];
} task;

static void consider(const search *x, uint64_t set, task *t)
{
    mb_subset_found found;
    if (set == 0) return;
    mb_subset_measure(x->subset, set, &found);
    t->evaluations++;
    if (mb_subset_meets(&found, &x->limits) && mb_subset_is_better(&found, &t->best)) t->best = found;
}

/* The best a set below the node could be: costs, size and mask only grow with it. */
static bool has_hope(const search *x, uint64_t included, int64_t bound, const mb_subset_found *best)
{
    const mb_subset_found dream = {.set = included != 0 ? included : 1,
                                   .right = bound,
                                   .latency = mb_subset_latency(x->subset, included),
                                   .energy = mb_subset_energy_max(x->subset, included)};
    if (included == 0) return best->set == 0 || bound >= best->right;
    return mb_subset_is_better(&dream, best);
}

/* The expert that most questions depend on; of equals the one that is right most often. */
static int branch_on(const search *x, uint64_t open, const int64_t *alone)
{
    int best = mb_subset_lowest(open);
    for (; open != 0; open &= open - 1) {
        const int e = mb_subset_lowest(open);
        if (alone[e] > alone[best] || (alone[e] == alone[best] && x->alone_right[e] > x->alone_right[best]))
            best = e;
    }
    return best;
}

/* Looked at every few nodes: is the time up, or has somebody said stop? */
static bool is_time_up(const search *x, const task *t)
{
    if ((t->nodes & 31) != 0) return false;
    return mb_stop_is_set() || (x->deadline > 0 && mb_clock_seconds() > x->deadline);
}

static void run_task(const search *x, task *t)
{
    int64_t alone[MB_SUBSET_EXPERTS];
    while (t->left > 0 && t->nodes < TASK_NODES && !is_time_up(x, t)) {
        node n = t->stack[--t->left];
        t->nodes++;
        if (!has_hope(x, n.included, n.bound, &t->best)) {
            t->pruned_bound++;
            continue;
        }
        n.allowed = fitting(x, n.included, n.allowed, &t->pruned_limits);
        n.bound = mb_subset_bound(x->subset, n.included, n.allowed, alone);
        if (!has_hope(x, n.included, n.bound, &t->best)) {
            t->pruned_bound++;
            continue;
        }
        if (n.allowed == n.included) continue; /* measured when its last expert came in */
        const uint64_t bit = mb_subset_bit(branch_on(x, n.allowed & ~n.included, alone));
        consider(x, n.included | bit, t);
        t->stack[t->left++] = (node){n.included, n.allowed & ~bit, n.bound};
        t->stack[t->left++] = (node){n.included | bit, n.allowed, n.bound}; /* this one first */
    }
}

/* ---- 5. a good start ---- */

/* From a set, one expert more, less or exchanged as long as that is better. */
static void climb(const search *x, uint64_t set, task *t)
{
    const uint64_t all = mb_subset_all(x->subset->experts);
    mb_subset_found here = {0};
    for (;;) {
        task step = {.best = here};
        for (uint64_t in = all & ~set; in != 0; in &= in - 1) consider(x, set | (in & -in), &step);
        for (uint64_t out = set; out != 0; out &= out - 1) {
            consider(x, set & ~(out & -out), &step);
            for (uint64_t in = all & ~set; in != 0; in &= in - 1)
                consider(x, (set & ~(out & -out)) | (in & -in), &step);
        }
        t->evaluations += step.evaluations;
        if (!mb_subset_is_better(&step.best, &here)) break;
        here = step.best;
        set = here.set;
    }
    if (mb_subset_is_better(&here, &t->best)) t->best = here;
}

static void find_start(const search *x, const uint64_t *starts, int64_t count, task *t)
{
    for (int64_t i = 0; i < count; i++) consider(x, starts[i], t);
    climb(x, 0, t);
}

/* ---- 6. rounds ---- */

typedef struct frontier {
    node *nodes; /* the most promising ones last */
    int64_t count, room;
} frontier;

static int compare_nodes(const void *a, const void *b)
{
    const node *x = a, *y = b;
    if (x->bound != y->bound) return x->bound < y->bound ? -1 : 1;
    const int allowed_x = mb_subset_count(x->allowed), allowed_y = mb_subset_count(y->allowed);
    if (allowed_x != allowed_y) return allowed_y - allowed_x;
    if (x->included != y->included) return x->included < y->included ? -1 : 1;
    return (x->allowed > y->allowed) - (x->allowed < y->allowed);
}

static mb_status push_nodes(frontier *f, const node *nodes, int64_t n)
{
    if (f->count + n > f->room) {
        const int64_t room = 2 * (f->count + n);
        node *more = mb_realloc(f->nodes, (size_t)room, sizeof *more);
        if (more == NULL)
            return mb_fail(MB_ENOMEM, "no memory for %lld nodes of the search", (long long)room);
        f->nodes = more, f->room = room;
    }
    memcpy(f->nodes + f->count, nodes, sizeof *nodes * (size_t)n);
    f->count += n;
    return MB_OK;
}

/* This rank's tasks of the round (every size-th), by its threads. */
static void run_mine(const search *x, task *tasks, int64_t count, int rank, int size, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = rank; i < count; i += size) run_task(x, tasks + i);
}

/* tasks [ROUND_TASKS], all [size * ROUND_TASKS]: room. */
static mb_status run_round(mb_comm *comm, const search *x, int threads, frontier *f, task *total, task *tasks,
                           task *all, mb_subset_work *work)
{
    mb_status status = MB_OK;
    const int rank = mb_comm_rank(comm), size = mb_comm_size(comm);
    int64_t count = f->count < ROUND_TASKS ? f->count : ROUND_TASKS;
    const mb_subset_found before = total->best;
    memset(tasks, 0, sizeof *tasks * ROUND_TASKS);
    for (int64_t i = 0; i < count; i++) {
        tasks[i].best = before;
        tasks[i].stack[0] = f->nodes[f->count - 1 - i];
        tasks[i].left = 1;
    }
    f->count -= count;
    run_mine(x, tasks, count, rank, size, threads);
    MB_TRY(mb_comm_allgather(comm, tasks, sizeof *tasks * ROUND_TASKS, all));
    for (int64_t i = 0; i < count; i++) {
        const task *t = all + (i % size) * ROUND_TASKS + i;
        if (mb_subset_is_better(&t->best, &total->best)) total->best = t->best;
        work->nodes += t->nodes, work->evaluations += t->evaluations;
        work->pruned_bound += t->pruned_bound, work->pruned_limits += t->pruned_limits;
        MB_TRY(push_nodes(f, t->stack, t->left));
    }
    qsort(f->nodes, (size_t)f->count, sizeof *f->nodes, compare_nodes);
    work->rounds++;
done:
    return status;
}

/* The root rank's clock and stop flag count for all. */
static mb_status must_end(mb_comm *comm, const search *x, bool *out_is_over)
{
    mb_status status = MB_OK;
    int64_t says[2] = {mb_stop_is_set(), x->deadline > 0 && mb_clock_seconds() > x->deadline};
    MB_TRY(mb_comm_allreduce_i64(comm, says, 2, MB_COMM_MAX));
    if (says[0]) MB_RAISE(MB_ESTOPPED, "stopped in the search for the best subset; run again");
    *out_is_over = says[1] != 0;
done:
    return status;
}

/* ---- 7. the search ---- */

static void count_right(search *x)
{
    for (int64_t q = 0; q < x->subset->questions; q++)
        for (uint64_t m = x->subset->question[q].right; m != 0; m &= m - 1)
            x->alone_right[mb_subset_lowest(m)]++;
}

mb_status mb_subset_search(mb_comm *comm, const mb_subset *subset, const mb_subset_limits *limits,
                           double seconds, int threads, const uint64_t *opt_starts, int64_t starts,
                           mb_subset_found *out_found, mb_subset_work *out_work)
{
    mb_status status = MB_OK;
    const double started = mb_clock_seconds();
    search x = {.subset = subset, .limits = *limits, .deadline = seconds > 0 ? started + seconds : 0};
    const node root = {0, mb_subset_all(subset->experts), subset->questions};
    frontier f = {0};
    task *total = NULL, *tasks = NULL, *all = NULL;
    bool is_over = false;
    *out_found = (mb_subset_found){0};
    *out_work = (mb_subset_work){0};
    if (subset->options.is_energy_mean)
        MB_RAISE(MB_EUNSUPPORTED,
                 "limits of the mean energy need a sweep over all subsets (at most %d experts)",
                 MB_SUBSET_EXHAUSTIVE);
    if (threads <= 0) threads = omp_get_max_threads();
    total = mb_calloc(1, sizeof *total);
    tasks = mb_calloc(ROUND_TASKS, sizeof *tasks);
    all = mb_calloc(ROUND_TASKS * (size_t)mb_comm_size(comm), sizeof *all);
    MB_TRY(mb_comm_agree(comm, total != NULL && tasks != NULL && all != NULL ? MB_OK : MB_ENOMEM));
    count_right(&x);
    find_start(&x, opt_starts, starts, total);
    out_work->evaluations = total->evaluations;
    MB_TRY(push_nodes(&f, &root, 1));
    while (f.count > 0 && !is_over) {
        MB_TRY(run_round(comm, &x, threads, &f, total, tasks, all, out_work));
        MB_TRY(must_end(comm, &x, &is_over));
    }
    *out_found = total->best;
    out_work->bound = total->best.right;
    for (int64_t i = 0; i < f.count; i++)
        if (has_hope(&x, f.nodes[i].included, f.nodes[i].bound, &total->best)) {
            is_over = true;
            if (f.nodes[i].bound > out_work->bound) out_work->bound = f.nodes[i].bound;
        }
    out_work->is_proved = f.count == 0 || !is_over;
    out_work->seconds = mb_clock_seconds() - started;
done:
    mb_free(total);
    mb_free(tasks);
    mb_free(all);
    mb_free(f.nodes);
    return status;
}
