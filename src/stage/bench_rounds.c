/* bench_rounds.c: a source of prompts for serve/generate that watches the clock.
 *
 * The generator asks for the next prompt while one is being answered, so a round begins when the one before
 * it has ended.
 *
 * 1. prompts   2. rounds   3. one output length   4. an expert
 */
#include "stage/bench_rounds.h"

#include <string.h>

#include "base/memory.h"
#include "base/rng.h"
#include "measure/latency.h"
#include "serve/generate.h"

enum { AHEAD = 4 };

typedef struct rounds {
    const mb_bench_rounds *how;
    const mb_bench_grid *grid;
    mb_latency *cell[MB_BENCH_LENGTHS]; /* of every prompt length */
    int64_t turn;                       /* whose it is */
    int64_t queue[AHEAD];               /* prompts asked for and not answered; the first is being timed */
    int64_t queued;
    int64_t record; /* prompts so far */
    int64_t vocab;
    uint32_t *ids; /* of the prompt */
} rounds;

/* ---- 1. prompts ---- */

static void fill_prompt(rounds *r, int64_t length)
{
    const mb_ids *text = r->how->opt_text;
    for (int64_t i = 0; i < length; i++)
        r->ids[i] = text != NULL ? text->data[(r->record * length + i) % text->count]
                                 : (uint32_t)mb_rng_below(r->how->seed, MB_RNG_DATA, (uint32_t)r->record,
                                                          (uint64_t)i, (uint64_t)r->vocab);
}

/* ---- 2. rounds ---- */

static void begin_first(rounds *r)
{
    if (r->queued > 0) mb_latency_begin(r->cell[r->queue[0]]);
}

static mb_status next(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    rounds *r = own;
    const int64_t P = r->grid->prompts;
    int64_t tries = 0;
    *out_has = false;
    while (tries < P && !mb_latency_wants(r->cell[r->turn % P])) r->turn++, tries++;
    if (tries == P) return MB_OK;
    if (r->queued == AHEAD)
        return mb_fail(MB_ERANGE, "%d prompts were asked for ahead; this is a defect", AHEAD);
    const int64_t at = r->turn++ % P, length = r->grid->prompt[at];
    fill_prompt(r, length);
    r->queue[r->queued++] = at;
    if (r->queued == 1) begin_first(r);
    *out_prompt = (mb_generate_prompt){.record = r->record++, .ids = r->ids, .count = length};
    *out_has = true;
    return MB_OK;
}

static mb_status grow(void *own, const mb_generate_growth *growth)
{
    rounds *r = own;
    if (growth->count == growth->prompt + 1) mb_latency_first(r->cell[r->queue[0]]);
    return MB_OK;
}

static mb_status take(void *own, const mb_generate_answer *answer)
{
    rounds *r = own;
    (void)answer;
    mb_latency_end(r->cell[r->queue[0]]);
    r->queued--;
    memmove(r->queue, r->queue + 1, sizeof *r->queue * (size_t)r->queued);
    begin_first(r);
    return MB_OK;
}

/* ---- 3. one output length ---- */

static void keep(const rounds *r, const mb_bench_result *result, int64_t prompt, int64_t output,
                 mb_bench_expert *expert, bool *is_counted)
{
    int64_t n;
    const mb_latency *cell = r->cell[prompt];
    const mb_latency_round *all = mb_latency_rounds(cell, &n);
    const mb_latency_block block = mb_latency_block_get(cell);
    const int64_t at = prompt * result->grid.outputs + output;
    const bool has = mb_latency_has_joules(cell);
    for (int64_t i = 0; i < n; i++) {
        const int64_t to = at * result->repeats + i;
        expert->seconds[to] = all[i].seconds;
        expert->first_seconds[to] = all[i].first_seconds;
        expert->core_seconds[to] = all[i].core_seconds;
        expert->joules[to] = r->how->opt_energy != NULL
                                 ? all[i].joules
                                 : mb_power_model_joules(&r->how->power, all[i].seconds, all[i].core_seconds);
    }
    expert->block_joules[at] = has && block.rounds > 0 ? block.joules / (double)block.rounds : 0;
    *is_counted = *is_counted && has;
}

static mb_status run_output(mb_lm *lm, rounds *r, const mb_bench_result *result, int64_t output,
                            mb_bench_expert *expert, bool *is_counted)
{
    mb_status status = MB_OK;
    const mb_latency_meter meter = mb_latency_meter_get(r->how->opt_energy);
    const mb_latency_options options = {r->how->warmup, result->repeats, r->how->energy_seconds};
    mb_generate_options generate = {0};
    mb_option_table table = {.target = &generate};
    const mb_generate_source source = {.own = r, .next = next, .take = take, .grow = grow};
    const mb_ids no_ends = {0};
    mb_generate_report report;
    table.options = mb_generate_option_table(&table.count);
    MB_TRY(mb_option_defaults(&table));
    generate.max_new_tokens = r->grid->output[output];
    generate.ignore_eos = true;
    generate.batch_sequences = 1;
    generate.batch_tokens = r->grid->prompt[r->grid->prompts - 1] + generate.max_new_tokens;
    for (int64_t p = 0; p < r->grid->prompts; p++) MB_TRY(mb_latency_create(&meter, &options, &r->cell[p]));
    r->turn = 0;
    MB_TRY(mb_generate_run(lm, NULL, &no_ends, &generate, &source, &report));
    for (int64_t p = 0; p < r->grid->prompts; p++) keep(r, result, p, output, expert, is_counted);
done:
    for (int64_t p = 0; p < r->grid->prompts; p++) mb_latency_destroy(&r->cell[p]);
    if (table.options != NULL) mb_option_free(&table);
    return status;
}

/* ---- 4. an expert ---- */

mb_status mb_bench_rounds_run(mb_lm *lm, const mb_bench_rounds *how, const mb_bench_result *result,
                              mb_bench_expert *expert, bool *out_is_counted)
{
    mb_status status = MB_OK;
    rounds r = {.how = how, .grid = &result->grid, .vocab = mb_lm_arch(lm)->vocab};
    *out_is_counted = how->opt_energy != NULL;
    MB_NEW_ARRAY(r.ids, result->grid.prompt[result->grid.prompts - 1]);
    for (int64_t o = 0; o < result->grid.outputs; o++)
        MB_TRY(run_output(lm, &r, result, o, expert, out_is_counted));
done:
    mb_free(r.ids);
    return status;
}
