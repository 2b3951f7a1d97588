/* trainer_memory.c: bytes of a training run by kind, forecast and used.
 *
 * 1. forecast   2. used
 */
#include <string.h>

#include "learn/trainer_impl.h"
#include "model/fuse.h"

enum { WEIGHTS, BLOCKS, TRAINED, OPTIMISER, GRADIENTS, ACTIVATIONS, CHECKPOINT, OTHER };

#define OTHER_BYTES ((int64_t)16 << 20) /* buffers of files and checkpoints */

static const char *const kinds[MB_TRAINER_MEMORY_KINDS] = {
    "weights",     "blocks brought in",     "trained", "optimiser", "gradients",
    "activations", "copy for a checkpoint", "other"};

/* ---- 1. forecast ---- */

/* Elements of blocks being filled at one time: one block, and with a tied head the embedding besides. */
static int64_t filled_elements(mb_lm *lm)
{
    const mb_arch *arch = mb_lm_arch(lm);
    int64_t first, most = 0;
    const int64_t embedding = mb_params_block_trained(mb_lm_params(lm), MB_PARAMS_EMBEDDING, &first);
    for (int64_t b = 0; b <= arch->layers; b++) {
        const int64_t n = mb_params_block_trained(mb_lm_params(lm), b, &first);
        if (n > most) most = n;
    }
    return arch->tied_head ? embedding + most : embedding > most ? embedding : most;
}

static int64_t owned_elements(int64_t trained, int ranks)
{
    const int64_t blocks = (trained + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK,
                  mine = (blocks + ranks - 1) / ranks * MB_LANES_BLOCK;
    return mine < trained ? mine : trained;
}

/* What batches and objective keep beside a pass: rows, and gradients of the routers' logits. */
static int64_t batch_bytes(mb_lm *lm, const mb_trainer_options *options, int64_t lanes, int ranks,
                           int64_t tokens, int64_t rows)
{
    const int64_t rounds = (options->gradient_accumulation_steps + lanes - 1) / lanes,
                  mine = rounds * ((lanes + ranks - 1) / ranks);
    const int64_t router =
        mb_lm_routers(lm) > 0 ? 8 + mb_lm_routers(lm) * 4 * mb_arch_gates(mb_lm_arch(lm)) : 0;
    return mine * tokens * 4 + rows * (32 + router);
}

/* Rows of the largest micro-batch of a validation, which keeps nothing for a gradient. */
static mb_status validation_tokens(const mb_trainer_options *options, int64_t *out_tokens)
{
    mb_status status = MB_OK;
    mb_batches *batches = NULL;
    mb_trainer_options one = *options;
    *out_tokens = 0;
    if (options->opt_validation == NULL || mb_shard_count(options->opt_validation) == 0) return MB_OK;
    one.subset_ratio = 1;
    one.max_steps = 1;
    one.max_tokens = 0;
    MB_TRY(mb_batches_create(options->opt_validation, &one, &batches));
    MB_TRY(mb_batches_most_tokens(batches, out_tokens));
done:
    mb_batches_destroy(&batches);
    return status;
}

/* Of an objective's second model: weights, and a pass over the largest micro-batch with the logits of its
 * rows, which on a device the host holds too. */
static mb_status add_second(const mb_comm *comm, const mb_objective *objective, int64_t rows,
                            int64_t forecast[MB_TRAINER_MEMORY_KINDS])
{
    mb_status status = MB_OK;
    mb_lm *lm = objective->opt_second;
    mb_lm_plan plan;
    const mb_lm_plan_options shape = {.tokens = rows,
                                      .has_head = true,
                                      .ranks = mb_comm_size(comm),
                                      .node_ranks = mb_comm_local_size(comm)};
    if (lm == NULL) goto done;
    MB_TRY(mb_lm_plan_open(lm, &shape, &plan));
    const bool is_mixed = mb_lm_is_fused(lm) && mb_fuse_get_kind(lm) != MB_FUSE_LAYER;
    const int64_t each = rows * mb_lm_arch(lm)->vocab * (int64_t)sizeof(float), /* members' besides */
        logits = is_mixed ? (mb_fuse_members(lm) + 1) * each : each;
    forecast[WEIGHTS] += (int64_t)plan.weights;
    forecast[BLOCKS] += (int64_t)plan.slots;
    forecast[ACTIVATIONS] +=
        (int64_t)(plan.activations + plan.scratch) + (mb_ops_is_device(mb_lm_ops(lm)) ? 2 : 1) * logits;
    forecast[OTHER] += 2 * (int64_t)plan.packed;
done:
    return status;
}

mb_status mb_trainer_forecast(const mb_comm *comm, mb_lm *lm, const mb_objective *objective, mb_shard *shard,
                              const mb_trainer_options *options, mb_lm_memory memory[MB_TRAINER_MEMORY_KINDS])
{
    mb_status status = MB_OK;
    mb_batches *batches = NULL;
    mb_lm_plan plan, plain, looking;
    int64_t tokens, validated;
    const int ranks = mb_comm_size(comm);
    const int64_t n = mb_params_trained_count(mb_lm_params(lm)), most = options->gradient_accumulation_steps,
                  lanes = options->lanes < most ? options->lanes : most;
    MB_TRY(mb_batches_create(shard, options, &batches));
    MB_TRY(mb_batches_most_tokens(batches, &tokens));
    const int64_t copies = objective->row_copies > 0 ? objective->row_copies : 1, rows = tokens * copies;
    mb_lm_plan_options shape = {.tokens = rows,
                                .gradient = true,
                                .recompute = mb_str_equal(options->recompute, "blocks") ||
                                             mb_str_equal(options->recompute, "true"),
                                .has_head = true,
                                .ranks = ranks,
                                .node_ranks = mb_comm_local_size(comm)};
    MB_TRY(mb_lm_plan_open(lm, &shape, &plan));
    shape.gradient = false;
    MB_TRY(mb_lm_plan_open(lm, &shape, &plain));
    MB_TRY(validation_tokens(options, &validated));
    shape.tokens = validated * copies;
    MB_TRY(mb_lm_plan_open(lm, &shape, &looking));
    const int64_t passes = objective->plain_passes, each = (int64_t)(plain.activations + plain.scratch),
                  training = (int64_t)(plan.activations + plan.scratch) + passes * each,
                  once = validated > 0 ? (int64_t)(looking.activations + looking.scratch) : 0,
                  looked = (1 + passes) * once;
    const size_t gradients = options->zero > 1 ? mb_scatter_plan(n, lanes, ranks, filled_elements(lm))
                                               : mb_lanes_plan(n, lanes, ranks);
    int64_t forecast[MB_TRAINER_MEMORY_KINDS] = {[WEIGHTS] = (int64_t)plan.weights,
                                                 [BLOCKS] = (int64_t)plan.slots,
                                                 [TRAINED] = (int64_t)plan.trained,
                                                 [OPTIMISER] = 8 * owned_elements(n, ranks),
                                                 [GRADIENTS] = (int64_t)gradients,
                                                 [ACTIVATIONS] =
                                                     (training > looked ? training : looked) +
                                                     batch_bytes(lm, options, lanes, ranks, tokens, rows),
                                                 [CHECKPOINT] = mb_trainer_save_copy_bytes(options, n, ranks),
                                                 [OTHER] = 2 * (int64_t)plan.packed + OTHER_BYTES};
    forecast[ACTIVATIONS] += (mb_ops_is_device(mb_lm_ops(lm)) ? 2 : 1) *
                             (rows > validated ? rows : validated) * objective->row_bytes;
    MB_TRY(add_second(comm, objective, rows > validated ? rows : validated, forecast));
    for (int k = 0; k < MB_TRAINER_MEMORY_KINDS; k++)
        memory[k] = (mb_lm_memory){.kind = kinds[k], .forecast = forecast[k], .used = memory[k].used};
done:
    mb_batches_destroy(&batches);
    return status;
}

/* ---- 2. used ---- */

/* What batches and objective took, in the host's memory. */
static int64_t host_arena_bytes(const mb_trainer *trainer)
{
    return (int64_t)(mb_arena_peak_bytes(trainer->passes.arena) + mb_arena_peak_bytes(trainer->step_arena));
}

static int64_t pass_arena_bytes(const mb_trainer *trainer)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < MB_OBJECTIVE_MAX_PASSES; i++)
        if (trainer->passes.pass[i] != NULL) bytes += mb_lm_pass_peak_bytes(trainer->passes.pass[i]);
    return (int64_t)bytes;
}

/* Of the objective's second model; it trains nothing. */
static mb_params_bytes_used second_used(const mb_trainer *trainer)
{
    const mb_lm *lm = trainer->objective->opt_second;
    return lm != NULL ? mb_lm_used(lm) : (mb_params_bytes_used){0};
}

static int64_t rope_bytes(const mb_trainer *trainer)
{
    const mb_lm *lm = trainer->objective->opt_second;
    return mb_lm_rope_bytes(trainer->lm) + (lm != NULL ? mb_lm_rope_bytes(lm) : 0);
}

/* The rest of the host's memory: what stands in none of the kinds. Windows are MPI's memory, a device's is
 * counted by itself. */
static int64_t other_bytes(const mb_trainer *trainer, const int64_t *used)
{
    const mb_params_bytes_used weights = mb_lm_used(trainer->lm), second = second_used(trainer);
    mb_lm *teacher = trainer->objective->opt_second;
    int64_t other = mb_memory_peak_bytes() - used[CHECKPOINT] - host_arena_bytes(trainer);
    if (!mb_ops_is_device(mb_lm_ops(trainer->lm))) {
        other -= used[BLOCKS] + used[OPTIMISER] + used[GRADIENTS] + pass_arena_bytes(trainer) +
                 rope_bytes(trainer);
        if (teacher != NULL && !mb_params_is_shared(mb_lm_params(teacher))) other -= (int64_t)second.frozen;
        if (!mb_params_is_sharded(trainer->params)) {
            other -= (int64_t)weights.trained;
            if (!mb_params_is_shared(trainer->params)) other -= (int64_t)weights.frozen;
        }
    }
    return other > 0 ? other : 0;
}

mb_status mb_trainer_memory_measure(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    const mb_params_bytes_used weights = mb_lm_used(trainer->lm), second = second_used(trainer);
    int64_t first, owned, used[MB_TRAINER_MEMORY_KINDS];
    mb_lanes_owned(trainer->lanes, &first, &owned);
    used[WEIGHTS] = (int64_t)(weights.frozen + second.frozen) + rope_bytes(trainer);
    used[BLOCKS] = (int64_t)(weights.slots + second.slots);
    used[TRAINED] = (int64_t)weights.trained;
    used[OPTIMISER] = 8 * owned;
    used[GRADIENTS] = (int64_t)(trainer->scatter != NULL ? mb_scatter_peak_bytes(trainer->scatter)
                                                         : mb_lanes_bytes(trainer->lanes));
    used[ACTIVATIONS] = host_arena_bytes(trainer) + pass_arena_bytes(trainer);
    used[CHECKPOINT] = mb_trainer_save_used_bytes(trainer);
    used[OTHER] = other_bytes(trainer, used);
    status = mb_trainer_forecast(trainer->comm, trainer->lm, trainer->objective, trainer->shard,
                                 trainer->options, trainer->memory);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_comm_allreduce_i64(trainer->comm, used, MB_TRAINER_MEMORY_KINDS, MB_COMM_MAX));
    for (int k = 0; k < MB_TRAINER_MEMORY_KINDS; k++) trainer->memory[k].used = used[k];
done:
    return status;
}
