/* bench_rounds: one expert answers requests of given lengths, and the rounds are timed.
 *
 * Layer: stage.  Uses: serve (generate), measure (latency, energy, power_model), bench_result.
 *
 * One request at a time: prompt in, tokens out greedily, none left early. For each output length the prompt
 * lengths take turns, so that a machine that slows down slows all of them.
 */
#ifndef MB_BENCH_ROUNDS_H
#define MB_BENCH_ROUNDS_H

#include "measure/energy.h"
#include "measure/power_model.h"
#include "model/lm.h"
#include "stage/bench_result.h"
#include "text/tokenizer.h"

typedef struct mb_bench_rounds {
    mb_energy *opt_energy; /* counts joules; NULL: the model says them */
    mb_power_model power;
    const mb_ids *opt_text; /* prompts are cut from it; NULL: random ids */
    uint64_t seed;
    double energy_seconds;
    int64_t warmup;
} mb_bench_rounds;

/* Fills the expert's arrays. *out_is_counted: did the counter tell all the time? MB_ESTOPPED. */
mb_status mb_bench_rounds_run(mb_lm *lm, const mb_bench_rounds *how, const mb_bench_result *result,
                              mb_bench_expert *expert, bool *out_is_counted);

#endif
