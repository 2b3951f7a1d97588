/* bench_result: what moe-bench measured, and its files.
 *
 * Layer: stage.  Uses: measure (latency), store (h5), base.
 *
 * X experts, P prompt lengths, O output lengths, R rounds.
 * bench.h5, format "moebatch-bench" version 1:
 *   /expert_names [X], /models [X], /hashes [X], /machines [X], /prompt_tokens, /output_tokens i64 [P], [O]
 *   /seconds, /first_seconds, /core_seconds, /joules f64 [X, P, O, R] every round
 *   /block_joules f64 [X, P, O] joules of a request by all rounds together (where joules are counted)
 *   /transfer f64 [X] seconds of request and answer on the way
 *   attributes: format, version, source, source_text, transfer_text, reference_prompt, reference_output,
 *   warmup,
 *   aggregation_seconds, is_counted
 * latency.json and energy.json, formats "moebatch-latency" and "moebatch-energy" version 1: of every expert
 * tables [P][O] of p5, p50, p95, mean, min, max, and compute_seconds (p50) and energy_joules at the reference
 * lengths: a request's share of the block where a counter says it, else the median.
 */
#ifndef MB_BENCH_RESULT_H
#define MB_BENCH_RESULT_H

#include "stage/bench_options.h"

typedef struct mb_bench_expert {
    char *name, *model, *hash, *machine;
    double *seconds, *first_seconds, *core_seconds, *joules; /* [P, O, R] */
    double *block_joules;                                    /* [P, O] */
    double transfer;
} mb_bench_expert;

typedef struct mb_bench_result {
    mb_bench_grid grid;
    int64_t repeats, warmup;
    char *source, *source_text; /* nvml, nvml power, rapl, power_model */
    char *transfer_text;        /* how transfer was found */
    bool is_counted;            /* joules by a counter */
    double aggregation;         /* s, of fusing one question */
    mb_bench_expert *expert;    /* [experts] */
    int64_t experts;
} mb_bench_result;

/* Zeroed arrays for this many experts; grid and repeats are set before. */
mb_status mb_bench_result_alloc(mb_bench_result *result, int64_t experts);
void mb_bench_result_reset(mb_bench_result *result);

mb_status mb_bench_result_write(const mb_bench_result *result, const char *path);
mb_status mb_bench_result_read(const char *path, mb_bench_result *out_result);
/* Behind `into` (which may be zeroed); path: of `more`, for messages. MB_EDATA: other lengths, rounds or
 * source of energy, or an expert that is there already. more is emptied. */
mb_status mb_bench_result_add(mb_bench_result *into, const char *path, mb_bench_result *more);

/* The two JSON files. */
mb_status mb_bench_result_latency(const mb_bench_result *result, const char *path);
mb_status mb_bench_result_energy(const mb_bench_result *result, const char *path);
/* At the reference lengths. */
mb_status mb_bench_result_reference(const mb_bench_result *result, int64_t expert, double *out_seconds,
                                    double *out_joules);

#endif
