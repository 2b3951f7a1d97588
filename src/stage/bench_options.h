/* bench_options: the options of moe-bench, and the lengths they ask for.
 *
 * Layer: stage.  Uses: model_options.
 */
#ifndef MB_BENCH_OPTIONS_H
#define MB_BENCH_OPTIONS_H

#include "stage/model_options.h"

typedef struct mb_bench_program {
    mb_model_options model;
    char *experts, *name, *inputs;       /* bench.experts, bench.name, bench.inputs */
    char *prompt_tokens, *output_tokens; /* lists */
    char *dataset, *field, *tokenizer;   /* dataset.path, bench.field, tokenizer.path */
    char *energy;                        /* bench.energy auto|counter|power_model */
    int64_t repeats, warmup, seed;
    int64_t reference_prompt, reference_output; /* 0: the middle of the lists */
    double energy_seconds;
    double watts_per_core, watts_idle, watts_gpu;
    double link_latency, link_rate; /* s one way; bytes/s, 0: no limit */
} mb_bench_program;
const mb_option *mb_bench_option_table(int64_t *out_count);

enum { MB_BENCH_LENGTHS = 32 }; /* of a list at most */

/* Every prompt length is measured with every output length. */
typedef struct mb_bench_grid {
    int64_t prompts, outputs;                                   /* P, O */
    int64_t prompt[MB_BENCH_LENGTHS], output[MB_BENCH_LENGTHS]; /* rising */
    int64_t reference_prompt, reference_output;                 /* members of the lists */
} mb_bench_grid;
/* positions: the fewest that an expert has, and its name. Lists that are not given are cut to them, with a
 * warning; MB_EUSAGE where a given length does not fit, or is none. */
mb_status mb_bench_grid_get(const mb_bench_program *own, int64_t positions, const char *whose,
                            mb_bench_grid *out_grid);

#endif
