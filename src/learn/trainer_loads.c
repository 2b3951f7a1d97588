/* trainer_loads.c: how many picks each expert of each router got in a step, over all micro-batches and ranks.
 *
 * Counted where the routers' picks come to the host anyway (the objective reads them), or when they are asked
 * for (training.log_loads, training.router_bias_rate); in steps that are logged, and in all steps when biases
 * follow them. Counts are whole numbers, so their sum is the same on any ranks. Where the balance loss is
 * over the step, its routing-only pass has counted them already.
 *
 * 1. creation   2. a step   3. metrics
 */
#include <stdio.h>
#include <string.h>

#include "learn/router_bias.h"
#include "learn/trainer_impl.h"

enum { NAME_BYTES = 40 };

/* ---- 1. creation ---- */

static bool is_wanted(const mb_trainer *trainer)
{
    return mb_lm_routers(trainer->lm) > 0 &&
           (trainer->objective->reads_routing || trainer->options->log_loads ||
            trainer->options->router_bias_rate > 0);
}

mb_status mb_trainer_loads_create(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_loads *loads = &trainer->loads;
    if (trainer->options->router_bias_rate > 0 && !mb_lm_has_router_bias(trainer->lm))
        MB_RAISE(MB_EUSAGE,
                 "training.router_bias_rate = %g moves the biases of the routers, and this model has "
                 "none: it is dense, or was opened without them",
                 trainer->options->router_bias_rate);
    if (!is_wanted(trainer)) return MB_OK;
    loads->routers = mb_lm_routers(trainer->lm);
    loads->experts = mb_arch_gates(mb_lm_arch(trainer->lm));
    MB_NEW_ARRAY(loads->counts, loads->routers * loads->experts);
    MB_NEW_ARRAY(loads->names, loads->routers * NAME_BYTES);
    MB_NEW_ARRAY(loads->name, loads->routers);
    for (int64_t l = 0; l < loads->routers; l++) {
        loads->name[l] = loads->names + l * NAME_BYTES;
        snprintf(loads->names + l * NAME_BYTES, NAME_BYTES, "load/max_over_mean/%lld", (long long)l);
    }
done:
    return status;
}

void mb_trainer_loads_destroy(mb_trainer *trainer)
{
    mb_free(trainer->loads.counts);
    mb_free(trainer->loads.names);
    mb_free(trainer->loads.name);
    trainer->loads = (mb_trainer_loads){0};
}

/* ---- 2. a step ---- */

void mb_trainer_loads_begin(mb_trainer *trainer)
{
    mb_trainer_loads *loads = &trainer->loads;
    const int64_t next = trainer->step + 1;
    const bool is_logged =
        next % trainer->options->log_steps == 0 || next == mb_batches_steps(trainer->batches);
    trainer->passes.loads = NULL;
    loads->is_counted = loads->counts != NULL && (is_logged || trainer->options->router_bias_rate > 0);
    if (!loads->is_counted) return;
    memset(loads->counts, 0, (size_t)(loads->routers * loads->experts) * sizeof *loads->counts);
    if (!trainer->objective->has_picks) trainer->passes.loads = loads->counts;
}

mb_status mb_trainer_loads_finish(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_loads *loads = &trainer->loads;
    const int64_t n = loads->routers * loads->experts;
    trainer->passes.loads = NULL;
    if (!loads->is_counted) return MB_OK;
    if (trainer->objective->has_picks)
        memcpy(loads->counts, trainer->objective->picks, (size_t)n * sizeof *loads->counts);
    else
        MB_TRY(mb_comm_allreduce_i64(trainer->comm, loads->counts, n, MB_COMM_SUM));
    if (trainer->options->router_bias_rate > 0) {
        status = mb_router_bias_update(trainer->lm, loads->counts, trainer->options->router_bias_rate);
        MB_TRY(mb_comm_agree(trainer->comm, status));
    }
done:
    return status;
}

/* ---- 3. metrics ---- */

int64_t mb_trainer_loads_metrics(const mb_trainer *trainer, mb_metric *room)
{
    const mb_trainer_loads *loads = &trainer->loads;
    double worst = 0;
    if (!loads->is_counted) return 0;
    for (int64_t l = 0; l < loads->routers; l++) {
        const int64_t *counts = loads->counts + l * loads->experts;
        int64_t most = 0, sum = 0;
        for (int64_t e = 0; e < loads->experts; e++) {
            sum += counts[e];
            if (counts[e] > most) most = counts[e];
        }
        const double ratio = sum > 0 ? (double)(most * loads->experts) / (double)sum : 0;
        if (ratio > worst) worst = ratio;
        room[l] = (mb_metric){loads->name[l], ratio};
    }
    room[loads->routers] = (mb_metric){"load/worst", worst};
    return loads->routers + 1;
}
