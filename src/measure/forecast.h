/* forecast: what work will cost before it runs: floating-point operations, seconds, bytes of files.
 *
 * Layer: measure.  Uses: base, model (arch).
 *
 * Arithmetic alone: nothing is opened but a file of measured rates. Seconds are those of a model with few
 * constants, all in forecast.c with what they were measured on:
 *
 *     seconds per token = forward and input-gradient operations / (share of the ceiling x rate)
 *                       + weight-gradient operations / (a lower share x rate)
 *                       + elements touched outside products x their bytes / bandwidth
 *
 * and per micro-batch and step: a fixed time, the optimiser's traffic, and what ranks exchange. Small models
 * are bound by the last terms, large ones by the first. A finished run of the same work is a better forecast
 * than any of this (config_forecast.h).
 */
#ifndef MB_FORECAST_H
#define MB_FORECAST_H

#include "model/arch.h"

/* ---- rates ---- */

/* Of one node. Rates are those of `threads` threads, or of `gpus` GPUs; fewer of them get their share. */
typedef struct mb_forecast_machine {
    char name[64];
    int64_t cores, threads;
    int64_t gpus;                   /* > 0: the rates are of so many GPUs, and memory is theirs */
    double gpu_memory_bytes;        /* of one; 0: not known */
    double gflops_f32, gflops_bf16; /* of a large product */
    double memory_gb_per_s;
    double disk_write_gb_per_s, disk_read_gb_per_s;
    double network_gb_per_s, network_us; /* of one node's link; of one message */
    bool is_measured;                    /* read from a file; else only assumed */
} mb_forecast_machine;

/* A file as `moe-inspect machine measure=true out=FILE` writes it: name, cores, threads, gflops {f32,
 * bf16}, memory_gb_per_s, and where known gpus, gpu_list, disk_write_gb_per_s, disk_read_gb_per_s,
 * network_gb_per_s, network_us. What the file does not say is assumed. MB_EFORMAT when a rate is not
 * positive. */
mb_status mb_forecast_machine_read(const char *path, mb_forecast_machine *out_machine);
/* Rates for want of a file: low ones for a core of any kind. */
mb_forecast_machine mb_forecast_machine_assumed(int64_t cores);
/* Rates of so many GPUs in the place of the processors', low ones for a chip with bf16 tensor cores. */
void mb_forecast_machine_assume_gpus(mb_forecast_machine *machine, int64_t gpus);

/* ---- work ---- */

/* Of one token. */
typedef struct mb_forecast_cost {
    double forward, input_gradients, weight_gradients; /* FLOP: multiply-adds x 2 */
    double elements;                                   /* touched outside products */
} mb_forecast_cost;

typedef enum mb_forecast_trained {
    MB_FORECAST_ALL,
    MB_FORECAST_ROUTER,
    MB_FORECAST_ADAPTER
} mb_forecast_trained;

typedef struct mb_forecast_training {
    mb_forecast_trained trained;
    double adapter_active; /* ADAPTER: its parameters that one token passes */
    bool recompute;
    bool copies;    /* a corrupted copy of every token, without a loss */
    double context; /* tokens that a token attends to, mean */
} mb_forecast_training;

/* One forward pass: blocks [0, blocks); head; gate_only: the last block ends at its gate. */
mb_forecast_cost mb_forecast_cost_forward(const mb_arch *arch, int64_t blocks, bool head, bool gate_only,
                                          double context);
mb_forecast_cost mb_forecast_cost_train(const mb_arch *arch, const mb_forecast_training *training);
mb_forecast_cost mb_forecast_cost_sum(mb_forecast_cost a, mb_forecast_cost b);
double mb_forecast_cost_flops(const mb_forecast_cost *cost);

/* Who does it: ranks in all, evenly over the nodes; threads of a rank. */
typedef struct mb_forecast_layout {
    int64_t ranks, nodes, threads;
} mb_forecast_layout;

/* Seconds of a token when all ranks have work. bits: 8 or 4 for quantised weights, which are made whole again
 * for each product; 0: none. */
double mb_forecast_token_seconds(const mb_forecast_cost *cost, const mb_forecast_machine *machine,
                                 const mb_forecast_layout *layout, mb_dtype dtype, int bits);

/* A training step beside its tokens. */
typedef struct mb_forecast_step {
    double trained;       /* elements */
    int64_t microbatches; /* of a step */
    int64_t lanes;        /* as they are: at most the micro-batches */
    int64_t zero;         /* 1, 2, 3 */
    double weights;       /* bytes of all weights, which zero = 3 fetches again for every pass */
} mb_forecast_step;
/* Seconds of the optimiser, of the buffers, and of what ranks send each other. */
double mb_forecast_step_seconds(const mb_forecast_step *step, const mb_forecast_machine *machine,
                                const mb_forecast_layout *layout);
/* Bytes a rank sends (and receives) in a step's reduction and gathering of parameters. */
double mb_forecast_step_bytes(const mb_forecast_step *step, int64_t ranks);

/* ---- files ---- */

/* Bytes of files of the formats in docs/formats.md; within a few per cent. */
double mb_forecast_bytes_weights(double parameters, double tensors, mb_dtype dtype);
double mb_forecast_bytes_state(double trained); /* one checkpoint to resume from */
double mb_forecast_bytes_shard(double records, double tokens, bool has_loss_mask);
double mb_forecast_bytes_scores(double records, int64_t columns, int64_t layered, int64_t layers);
double mb_forecast_bytes_embeddings(double records, int64_t width);
/* Parts of a corpus that ranks share out (scorer_plan.c): files while a pass runs. */
double mb_forecast_parts(double tokens, double tile_tokens);

#endif
