/* score_memory.c: weights and activations of two models. */
#include "stage/score_memory.h"

#include "stage/memory_report.h"
#include "stage/program_options.h"

enum { WEIGHTS, BLOCKS, ACTIVATIONS, OTHER, KINDS };

/* Adds a model to the forecast and, its weights, to what was used. */
static mb_status add_memory(const mb_program *program, mb_lm *opt_lm, bool has_head, mb_lm_memory *memory)
{
    mb_status status = MB_OK;
    const mb_score_program *own = program->own;
    mb_lm_plan plan;
    if (opt_lm == NULL) goto done;
    const mb_lm_plan_options shape = {.tokens = own->scorer.tile_tokens,
                                      .has_head = has_head,
                                      .ranks = mb_comm_size(program->comm),
                                      .node_ranks = mb_comm_local_size(program->comm)};
    const mb_params_bytes_used used = mb_lm_used(opt_lm);
    MB_TRY(mb_lm_plan_open(opt_lm, &shape, &plan));
    memory[WEIGHTS].forecast += (int64_t)plan.weights;
    memory[WEIGHTS].used += (int64_t)used.frozen + mb_lm_rope_bytes(opt_lm);
    memory[BLOCKS].forecast += (int64_t)plan.slots;
    memory[BLOCKS].used += (int64_t)used.slots;
    memory[ACTIVATIONS].forecast +=
        mb_scorer_passes(mb_lm_ops(opt_lm)) * (int64_t)(plan.activations + plan.scratch);
    memory[OTHER].forecast += (int64_t)plan.packed;
done:
    return status;
}

mb_status mb_score_memory_report(mb_program *program, mb_lm *router, mb_lm *source, bool has_head,
                                 int64_t activations)
{
    mb_status status = MB_OK;
    mb_lm_memory memory[KINDS] = {{"weights", 0, 0},
                                  {"blocks brought in", 0, 0},
                                  {"activations", 0, activations},
                                  {"other", (int64_t)4 << 20, 0}};
    MB_TRY(add_memory(program, router, false, memory));
    MB_TRY(add_memory(program, source, has_head, memory));
    if (activations < 0) {
        mb_memory_report_forecast(memory, KINDS);
        goto done;
    }
    memory[OTHER].used = mb_memory_peak_bytes(); /* the host's; on a device all above lies elsewhere */
    if (!mb_ops_is_device(program->ops))
        memory[OTHER].used -= memory[WEIGHTS].used + memory[BLOCKS].used + activations;
    if (memory[OTHER].used < 0) memory[OTHER].used = 0; /* weights may be in windows, which MPI counts */
    MB_TRY(mb_memory_report_used(program, memory, KINDS));
done:
    return status;
}
