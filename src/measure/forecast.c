/* forecast.c: operations, seconds and bytes from shapes and rates.
 *
 * 1. rates   2. operations   3. seconds   4. files
 */
#include "measure/forecast.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Shares of the rate of a large product, measured on two cores of a Zen 4 kind with oneDNN (docs/forecast.md
 * has the runs): what forward and input-gradient products reach, and weight gradients, which read both
 * operands across. */
#define SHARE_FORWARD 0.88
#define SHARE_WEIGHTS 0.75
/* Quantised weights are unpacked before each product. */
#define SHARE_QUANTISED 0.93
/* Share of the bandwidth of a plain read-and-write loop that norms, activations, gathers and copies reach. */
#define SHARE_ELEMENTS 0.9
/* Of a micro-batch, whatever its size: starting and joining threads, packing small operands. */
#define MICROBATCH_SECONDS 1e-3

/* ---- 1. rates ---- */

mb_forecast_machine mb_forecast_machine_assumed(int64_t cores)
{
    if (cores < 1) cores = 1;
    return (mb_forecast_machine){.name = "assumed",
                                 .cores = cores,
                                 .threads = cores,
                                 .gflops_f32 = 40.0 * (double)cores,
                                 .gflops_bf16 = 40.0 * (double)cores,
                                 .memory_gb_per_s = 4.0 * (double)cores,
                                 .disk_write_gb_per_s = 0.2,
                                 .disk_read_gb_per_s = 0.5,
                                 .network_gb_per_s = 1.0,
                                 .network_us = 20};
}

void mb_forecast_machine_assume_gpus(mb_forecast_machine *machine, int64_t gpus)
{
    snprintf(machine->name, sizeof machine->name, "assumed for GPUs");
    machine->is_measured = false;
    machine->gpus = gpus;
    machine->gpu_memory_bytes = 0;
    machine->gflops_f32 = 15e3 * (double)gpus;
    machine->gflops_bf16 = 150e3 * (double)gpus;
    machine->memory_gb_per_s = 1200.0 * (double)gpus;
}

static mb_status check_rate(const char *path, const char *key, double value)
{
    if (value > 0 && isfinite(value)) return MB_OK;
    return mb_fail(MB_EFORMAT,
                   "%s: %s is %g, and a rate is a positive number; measure again with moe-inspect "
                   "machine measure=true out=%s",
                   path, key, value, path);
}

/* A rate in GB/s, or, under the other name, in MB/s (0: it could not be measured). */
static mb_status read_rate(const json_t *json, const char *path, const char *in_gb, const char *in_mb,
                           double *value)
{
    mb_status status = MB_OK;
    double mb = 0;
    MB_TRY(mb_json_opt_real(json, in_gb, path, value));
    MB_TRY(mb_json_opt_real(json, in_mb, path, &mb));
    if (mb != 0) *value = mb / 1e3;
    MB_TRY(check_rate(path, in_gb, *value));
done:
    return status;
}

static mb_status read_machine(const json_t *json, const char *path, mb_forecast_machine *m)
{
    mb_status status = MB_OK;
    const char *name = NULL;
    const json_t *gflops = json_object_get(json, "gflops");
    int64_t cores = 0;
    MB_TRY(mb_json_get_int(json, "cores", path, &cores));
    if (cores < 1) MB_RAISE(MB_EFORMAT, "%s: cores is %lld; it must be at least 1", path, (long long)cores);
    *m = mb_forecast_machine_assumed(cores);
    MB_TRY(mb_json_opt_int(json, "threads", path, &m->threads));
    if (m->threads < 1) m->threads = cores;
    MB_TRY(mb_json_opt_int(json, "gpus", path, &m->gpus));
    if (m->gpus < 0)
        MB_RAISE(MB_EFORMAT, "%s: gpus is %lld; it cannot be less than 0", path, (long long)m->gpus);
    const json_t *gpu = json_array_get(json_object_get(json, "gpu_list"), 0);
    if (m->gpus > 0 && gpu != NULL) MB_TRY(mb_json_opt_real(gpu, "memory_bytes", path, &m->gpu_memory_bytes));
    MB_TRY(mb_json_opt_string(json, "name", path, &name));
    snprintf(m->name, sizeof m->name, "%s", name != NULL ? name : path);
    if (!json_is_object(gflops)) MB_RAISE(MB_EFORMAT, "%s: gflops {f32, bf16} is missing", path);
    MB_TRY(mb_json_get_real(gflops, "f32", path, &m->gflops_f32));
    m->gflops_bf16 = m->gflops_f32;
    MB_TRY(mb_json_opt_real(gflops, "bf16", path, &m->gflops_bf16));
    MB_TRY(check_rate(path, "gflops.f32", m->gflops_f32));
    MB_TRY(check_rate(path, "gflops.bf16", m->gflops_bf16));
    MB_TRY(read_rate(json, path, "memory_gb_per_s", "memory_mb_per_s", &m->memory_gb_per_s));
    MB_TRY(read_rate(json, path, "disk_write_gb_per_s", "disk_write_mb_per_s", &m->disk_write_gb_per_s));
    MB_TRY(read_rate(json, path, "disk_read_gb_per_s", "disk_read_mb_per_s", &m->disk_read_gb_per_s));
    MB_TRY(read_rate(json, path, "network_gb_per_s", "network_mb_per_s", &m->network_gb_per_s));
    MB_TRY(mb_json_opt_real(json, "network_us", path, &m->network_us));
    MB_TRY(check_rate(path, "network_us", m->network_us));
    m->is_measured = true;
done:
    return status;
}

mb_status mb_forecast_machine_read(const char *path, mb_forecast_machine *out_machine)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    mb_forecast_machine machine;
    MB_TRY(mb_json_read(path, &json));
    MB_TRY(read_machine(json, path, &machine));
    *out_machine = machine;
done:
    json_decref(json);
    return status;
}

/* ---- 2. operations ---- */

/* Elements that a token's row of a block touches outside products, forward: norms, rotation, residuals and
 * routing over the width, activation and gathering of the experts' rows. */
static double block_elements(const mb_arch *a, int64_t layer, bool gate_only)
{
    const bool is_moe = mb_arch_is_moe(a, layer);
    const double d = (double)a->width, heads = (double)((a->heads + 2 * a->kv_heads) * a->head_width),
                 rows = is_moe ? (double)a->picks : 1, f = (double)(is_moe ? a->ffn : mb_arch_dense_ffn(a)),
                 gates = is_moe ? 4.0 * (double)mb_arch_gates(a) : 0;
    return 10 * d + 3 * heads + gates + (gate_only ? 0 : 5 * rows * f + (is_moe ? 3 * rows * d : d));
}

static double head_elements(const mb_arch *a)
{
    return 3.0 * (double)a->vocab + 4.0 * (double)a->width;
}

/* mb_arch_flops takes a whole context; it is linear in it below the windows. */
static double flops_of(const mb_arch *arch, int64_t blocks, bool head, double context)
{
    const int64_t below = (int64_t)floor(context);
    const double at = mb_arch_flops(arch, blocks, head, below);
    return at + (context - (double)below) * (mb_arch_flops(arch, blocks, head, below + 1) - at);
}

mb_forecast_cost mb_forecast_cost_forward(const mb_arch *arch, int64_t blocks, bool head, bool gate_only,
                                          double context)
{
    mb_forecast_cost cost = {.forward = flops_of(arch, blocks, head, context)};
    for (int64_t l = 0; l < blocks; l++)
        cost.elements += block_elements(arch, l, gate_only && l + 1 == blocks);
    if (head) cost.elements += head_elements(arch);
    if (gate_only && blocks > 0 && mb_arch_is_moe(arch, blocks - 1))
        cost.forward -= 6.0 * (double)arch->picks * (double)arch->width * (double)arch->ffn;
    return cost;
}

mb_forecast_cost mb_forecast_cost_sum(mb_forecast_cost a, mb_forecast_cost b)
{
    return (mb_forecast_cost){a.forward + b.forward, a.input_gradients + b.input_gradients,
                              a.weight_gradients + b.weight_gradients, a.elements + b.elements};
}

double mb_forecast_cost_flops(const mb_forecast_cost *cost)
{
    return cost->forward + cost->input_gradients + cost->weight_gradients;
}

/* One pass over a row that trains, with or without the head. */
static mb_forecast_cost train_rows(const mb_arch *arch, const mb_forecast_training *t, bool head)
{
    mb_forecast_cost cost = mb_forecast_cost_forward(arch, arch->layers, head, false, t->context);
    const double blocks = flops_of(arch, arch->layers, false, t->context), elements = cost.elements;
    cost.input_gradients = cost.forward;
    switch (t->trained) {
    case MB_FORECAST_ALL:
        cost.weight_gradients = cost.forward;
        cost.elements = 3 * elements;
        break;
    case MB_FORECAST_ROUTER: /* nothing flows into the attention of the lowest block, nor into its experts */
        cost.input_gradients -= flops_of(arch, 1, false, t->context);
        cost.weight_gradients = 2.0 * (double)(mb_arch_moe_layers(arch) * arch->width * mb_arch_gates(arch));
        cost.elements = 2.2 * elements;
        break;
    case MB_FORECAST_ADAPTER:
        cost.forward += 2 * t->adapter_active;
        cost.input_gradients += 2 * t->adapter_active;
        cost.weight_gradients = 2 * t->adapter_active;
        cost.elements = 2.5 * elements;
        break;
    }
    if (t->recompute) {
        cost.forward += blocks;
        cost.elements += elements;
    }
    return cost;
}

mb_forecast_cost mb_forecast_cost_train(const mb_arch *arch, const mb_forecast_training *training)
{
    const mb_forecast_cost cost = train_rows(arch, training, true);
    return training->copies ? mb_forecast_cost_sum(cost, train_rows(arch, training, false)) : cost;
}

/* ---- 3. seconds ---- */

/* Threads at work on a node, or GPUs, one of a rank, and the share of the measured rates they get. */
static double node_share(const mb_forecast_machine *m, const mb_forecast_layout *layout)
{
    const int64_t nodes = layout->nodes > 0 ? layout->nodes : 1;
    if (m->gpus > 0) return fmin(1, (double)layout->ranks / (double)nodes / (double)m->gpus);
    double threads = (double)layout->ranks * (double)layout->threads / (double)nodes;
    if (threads > (double)m->cores) threads = (double)m->cores;
    return threads / (double)m->threads;
}

double mb_forecast_token_seconds(const mb_forecast_cost *cost, const mb_forecast_machine *machine,
                                 const mb_forecast_layout *layout, mb_dtype dtype, int bits)
{
    const double nodes = layout->nodes > 0 ? (double)layout->nodes : 1, share = node_share(machine, layout),
                 rate = 1e9 * (dtype == MB_BF16 ? machine->gflops_bf16 : machine->gflops_f32),
                 bandwidth = 1e9 * machine->memory_gb_per_s * (share < 1 ? share : 1),
                 unpacked = bits != 0 ? SHARE_QUANTISED : 1;
    /* bf16 activations, f32 residual stream, norms and sums */
    const double bytes = dtype == MB_BF16 ? 3 : 4;
    const double products = (cost->forward + cost->input_gradients) / (SHARE_FORWARD * unpacked) +
                            cost->weight_gradients / SHARE_WEIGHTS;
    return (products / (rate * share) + cost->elements * bytes / (SHARE_ELEMENTS * bandwidth)) / nodes;
}

double mb_forecast_step_bytes(const mb_forecast_step *step, int64_t ranks)
{
    if (ranks < 2) return 0;
    const double others = (double)(ranks - 1) / (double)ranks, whole = 4 * step->trained,
                 rounds = step->lanes > 0 ? ceil((double)step->microbatches / (double)step->lanes) : 1,
                 waves = step->lanes > 0 ? ceil((double)step->lanes / (double)ranks) : 1;
    /* One subtree sum of each rank and the parameters back (ZeRO-1); every wave's gradients (2 and 3), and
     * under 3 the weights for each pass and its way back. */
    if (step->zero <= 1) return others * 2 * whole;
    if (step->zero == 2) return others * (rounds * waves + 1) * whole;
    return others * rounds * waves * (whole + 2 * step->weights);
}

double mb_forecast_step_seconds(const mb_forecast_step *step, const mb_forecast_machine *machine,
                                const mb_forecast_layout *layout)
{
    const double ranks = (double)layout->ranks, nodes = layout->nodes > 0 ? (double)layout->nodes : 1,
                 share = node_share(machine, layout),
                 bandwidth = 1e9 * machine->memory_gb_per_s * (share < 1 ? share : 1),
                 rounds = ceil((double)step->microbatches / ranks), per_node = ranks / nodes;
    /* AdamW reads and writes both moments and the values, and reads the gradient: owned elements only.
     * Buffers are zeroed once per lane of a rank, and lanes are added. */
    const double lanes = ceil((double)step->lanes / ranks);
    const double touched = 4 * step->trained * (8 / ranks + lanes + 3 * (lanes - 1)) * per_node;
    const double sent = mb_forecast_step_bytes(step, layout->ranks) * per_node,
                 link = nodes > 1 ? 1e9 * machine->network_gb_per_s : bandwidth / 3;
    const double messages = layout->ranks > 1 ? 2 * ranks * 1e-6 * (nodes > 1 ? machine->network_us : 2) : 0;
    return rounds * MICROBATCH_SECONDS + touched / bandwidth + sent / link + messages;
}

/* ---- 4. files ---- */

double mb_forecast_bytes_weights(double parameters, double tensors, mb_dtype dtype)
{
    return parameters * (double)mb_dtype_bytes(dtype) + 110 * tensors + 64;
}

double mb_forecast_bytes_state(double trained)
{
    return 12 * trained + 16384;
}

double mb_forecast_bytes_shard(double records, double tokens, bool has_loss_mask)
{
    return tokens * (has_loss_mask ? 5 : 4) + 50 * records + 8192;
}

double mb_forecast_bytes_scores(double records, int64_t columns, int64_t layered, int64_t layers)
{
    return records * (8.0 * (double)columns + 4.0 * (double)(layered * layers) + 42) + 12288;
}

double mb_forecast_bytes_embeddings(double records, int64_t width)
{
    return records * (4.0 * (double)width + 42) + 12288;
}

double mb_forecast_parts(double tokens, double tile_tokens)
{
    double least = fmin(tokens / 64, 65536);
    if (least < tokens / 1024) least = tokens / 1024;
    if (least < tile_tokens) least = tile_tokens;
    return least > 0 ? fmax(1, ceil(tokens / least)) : 1;
}
