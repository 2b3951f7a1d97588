/* trainer_step.c: one optimiser step.
 *
 * Each rank reads the records of its lanes' micro-batches once, so that the number of targets is known before
 * any pass. ZeRO-1: a lane's rounds add into one gradient buffer, then the lanes' tree. ZeRO-2 and 3: waves
 * of one micro-batch on every rank, whose gradients go to their owners block by block. The optimiser and the
 * gathering of parameters follow. A stop gives up the step between two micro-batches (MB_ESTOPPED on all
 * ranks). Between collectives a rank may fail alone: the statuses are agreed before the next one.
 *
 * 1. creation   2. reading   3. running
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/stop.h"
#include "learn/trainer_impl.h"

/* ---- 1. creation ---- */

enum { ARENA_BYTES = 1 << 20 };

static mb_status sink_room(void *context, int64_t block, float **out)
{
    mb_trainer *trainer = context;
    return mb_scatter_room(trainer->scatter, mb_lm_arch(trainer->lm)->layers - block, out);
}

static mb_status sink_complete(void *context, int64_t block)
{
    mb_trainer *trainer = context;
    return mb_scatter_put(trainer->scatter, mb_lm_arch(trainer->lm)->layers - block);
}

/* Segments: the head's block first, the embedding last, as they will be complete. */
mb_status mb_trainer_step_create_scatter(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    const int64_t layers = mb_lm_arch(trainer->lm)->layers;
    int64_t *first = NULL, *count = NULL;
    MB_NEW_ARRAY(first, layers + 2);
    MB_NEW_ARRAY(count, layers + 2);
    for (int64_t s = 0; s < layers + 2; s++)
        count[s] = mb_params_block_trained(trainer->params, layers - s, &first[s]);
    MB_TRY(mb_scatter_create(trainer->transfer, mb_params_trained_count(trainer->params), trainer->lane_total,
                             layers + 2, first, count, &trainer->scatter));
    trainer->sink = (mb_params_sink){trainer, sink_room, sink_complete};
    trainer->lane_first = mb_comm_rank(trainer->comm);
    trainer->lane_stride = mb_comm_size(trainer->comm);
    trainer->lane_count =
        (trainer->lane_total - trainer->lane_first + trainer->lane_stride - 1) / trainer->lane_stride;
done:
    mb_free(first);
    mb_free(count);
    return status;
}

mb_status mb_trainer_step_create(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    const mb_trainer_options *options = trainer->options;
    const int64_t rounds =
                      (options->gradient_accumulation_steps + trainer->lane_total - 1) / trainer->lane_total,
                  size = options->batch_size * mb_batches_width(trainer->batches);
    trainer->part_count = 0;
    MB_TRY(mb_trainer_passes_create(trainer->lm, trainer->objective, &trainer->passes));
    trainer->passes.recompute =
        mb_str_equal(options->recompute, "blocks") || mb_str_equal(options->recompute, "true");
    MB_TRY(mb_arena_create(ARENA_BYTES, &trainer->step_arena));
    MB_NEW_ARRAY(trainer->parts, trainer->lane_count * rounds);
    for (int64_t i = 0; i < trainer->lane_count * rounds; i++) {
        MB_NEW_ARRAY(trainer->parts[i].record, size);
        trainer->part_count = i + 1;
        MB_NEW_ARRAY(trainer->parts[i].sample, size);
    }
    MB_NEW_ARRAY(trainer->lane_terms, (trainer->lane_count + 1) * trainer->objective->term_count);
    MB_NEW_ARRAY(trainer->terms, trainer->objective->term_count);
done:
    return status;
}

void mb_trainer_step_destroy(mb_trainer *trainer)
{
    int64_t rounds =
        trainer->lane_total == 0
            ? 0
            : (trainer->options->gradient_accumulation_steps + trainer->lane_total - 1) / trainer->lane_total;
    for (int64_t i = 0; trainer->parts != NULL && i < trainer->lane_count * rounds; i++) {
        mb_free(trainer->parts[i].record);
        mb_free(trainer->parts[i].sample);
    }
    mb_free(trainer->parts);
    mb_free(trainer->lane_terms);
    mb_free(trainer->terms);
    mb_arena_destroy(&trainer->step_arena);
    mb_trainer_passes_destroy(&trainer->passes);
}

/* ---- 2. reading ---- */

mb_status mb_trainer_step_copy(mb_shard *shard, int64_t record, int64_t max_length, mb_arena *arena,
                               mb_shard_record *out_record)
{
    mb_status status = MB_OK;
    mb_shard_record read;
    uint32_t *tokens;
    uint8_t *mask = NULL;
    MB_TRY(mb_shard_read(shard, record, &read));
    if (max_length > 0 && read.count > max_length) read.count = max_length;
    MB_ARENA_ARRAY(arena, tokens, read.count);
    if (read.count > 0) memcpy(tokens, read.tokens, (size_t)read.count * sizeof *tokens);
    if (read.loss_mask != NULL) {
        MB_ARENA_ARRAY(arena, mask, read.count);
        if (read.count > 0) memcpy(mask, read.loss_mask, (size_t)read.count);
    }
    read.tokens = tokens;
    read.loss_mask = mask;
    *out_record = read;
done:
    return status;
}

/* Empty records are left out, but for a side of a pair. */
static mb_status read_record(mb_trainer *trainer, int64_t sample, mb_trainer_part *part,
                             mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    mb_shard_record record;
    if (mb_batches_length(trainer->batches, sample) == 0 && mb_batches_width(trainer->batches) == 1)
        return MB_OK;
    MB_TRY(mb_trainer_step_copy(trainer->shard, sample, trainer->options->max_length, trainer->step_arena,
                                &record));
    counts->targets += trainer->objective->count_targets(trainer->objective, &record, sample);
    counts->tokens += record.count;
    counts->records++;
    part->sample[part->records] = sample;
    part->record[part->records++] = record;
done:
    return status;
}

static mb_status read_part(mb_trainer *trainer, const mb_batches_step *taken, mb_trainer_part *part,
                           mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    const int64_t size = trainer->options->batch_size * mb_batches_width(trainer->batches),
                  first = part->number * size;
    int64_t sample;
    part->records = 0;
    for (int64_t i = first; i < first + size && i < taken->count; i++) {
        MB_TRY(mb_batches_sample(trainer->batches, taken->epoch, taken->first + i, &sample));
        MB_TRY(read_record(trainer, sample, part, counts));
    }
done:
    return status;
}

static mb_status read_mine(mb_trainer *trainer, const mb_batches_step *taken, mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    trainer->part_count = 0;
    mb_arena_reset(trainer->step_arena);
    for (int64_t i = 0; i < trainer->lane_count; i++) {
        const int64_t lane = trainer->lane_first + i * trainer->lane_stride;
        for (int64_t m = lane; m < taken->microbatches; m += trainer->lane_total) {
            mb_trainer_part *part = &trainer->parts[trainer->part_count++];
            part->lane = lane;
            part->number = m;
            MB_TRY(read_part(trainer, taken, part, counts));
        }
    }
done:
    return status;
}

mb_status mb_trainer_step_read(mb_trainer *trainer, const mb_batches_step *taken, mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    MB_TRY(mb_comm_agree(trainer->comm, read_mine(trainer, taken, counts)));
    int64_t sums[] = {counts->targets, counts->tokens, counts->records, counts->stops, counts->saves};
    MB_TRY(mb_comm_allreduce_i64(trainer->comm, sums, 5, MB_COMM_SUM));
    *counts = (mb_trainer_counts){
        .targets = sums[0], .tokens = sums[1], .records = sums[2], .stops = sums[3], .saves = sums[4]};
done:
    return status;
}

/* ---- 3. running ---- */

/* The records of a micro-batch in a message: at most eight. */
static void name_records(const mb_trainer *trainer, const mb_trainer_part *part)
{
    char text[1024];
    size_t used = 0;
    text[0] = 0;
    for (int64_t i = 0; i < part->records && i < 8 && used + 160 < sizeof text; i++) {
        const char *source = mb_shard_source_name(trainer->shard, part->record[i].source);
        used += (size_t)snprintf(text + used, 160, "%s%.100s[%lld]", i > 0 ? ", " : "", source,
                                 (long long)part->record[i].source_index);
        if (used > sizeof text - 1) used = sizeof text - 1;
    }
    mb_status_prefix("step %lld, rank %d, micro-batch %lld with records %s%s: ", (long long)trainer->step + 1,
                     mb_comm_rank(trainer->comm), (long long)part->number, text,
                     part->records > 8 ? ", ..." : "");
}

static mb_microbatch microbatch_of(const mb_trainer *trainer, const mb_batches_step *taken,
                                   const mb_trainer_counts *counts, const mb_trainer_part *part)
{
    return (mb_microbatch){.records = part->records,
                           .record = part->record,
                           .sample = part->sample,
                           .epoch = taken->epoch,
                           .seed = (uint64_t)trainer->options->seed,
                           .step_targets = counts->targets,
                           .step_microbatches = taken->microbatches,
                           .step_records = counts->records,
                           .step_tokens = counts->tokens,
                           .step = trainer->step};
}

static mb_status run_part(mb_trainer *trainer, const mb_batches_step *taken, const mb_trainer_counts *counts,
                          const mb_trainer_part *part, double *sums)
{
    mb_objective_terms terms = {0};
    mb_microbatch microbatch = microbatch_of(trainer, taken, counts, part);
    if (part->records == 0) return MB_OK;
    mb_status status = mb_trainer_passes_train(&trainer->passes, &microbatch, &terms);
    if (status != MB_OK) {
        name_records(trainer, part);
        return mb_status_trace(status, __func__, __FILE__, __LINE__);
    }
    for (int64_t i = 0; i < terms.count; i++) sums[i] += terms.value[i];
    return MB_OK;
}

static mb_status run_lanes(mb_trainer *trainer, const mb_batches_step *taken, const mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    int64_t width = trainer->objective->term_count, at = 0;
    memset(trainer->lane_terms, 0, (size_t)(trainer->lane_count * width) * sizeof *trainer->lane_terms);
    for (int64_t i = 0; i < trainer->lane_count; i++) {
        float *gradient = NULL;
        int64_t lane = trainer->lane_first + i;
        MB_TRY(mb_lanes_begin(trainer->lanes, lane, &gradient));
        mb_params_bind_gradient(trainer->params, gradient);
        for (; at < trainer->part_count && trainer->parts[at].lane == lane; at++) {
            if (mb_stop_is_set())
                MB_RAISE(MB_ESTOPPED, "stopped inside step %lld", (long long)trainer->step + 1);
            MB_TRY(run_part(trainer, taken, counts, &trainer->parts[at], trainer->lane_terms + i * width));
        }
        MB_TRY(mb_lanes_end(trainer->lanes, lane));
    }
done:
    mb_params_bind_gradient(trainer->params, NULL);
    return status;
}

static const mb_trainer_part *part_of(const mb_trainer *trainer, int64_t number)
{
    for (int64_t i = 0; i < trainer->part_count; i++)
        if (trainer->parts[i].number == number) return &trainer->parts[i];
    return NULL;
}

/* One micro-batch of every rank, its gradients going to their owners. Collective. */
static mb_status run_wave(mb_trainer *trainer, const mb_batches_step *taken, const mb_trainer_counts *counts,
                          int64_t round, int64_t wave)
{
    mb_status status = MB_OK, finished;
    const int64_t lane = mb_scatter_lane(trainer->scatter, wave);
    const mb_trainer_part *part = lane >= 0 ? part_of(trainer, round * trainer->lane_total + lane) : NULL;
    mb_scatter_begin(trainer->scatter, round, wave);
    mb_params_set_sink(trainer->params, &trainer->sink);
    if (mb_stop_is_set())
        status = mb_fail(MB_ESTOPPED, "stopped inside step %lld", (long long)trainer->step + 1);
    else if (part != NULL)
        status = run_part(trainer, taken, counts, part,
                          trainer->lane_terms + wave * trainer->objective->term_count);
    mb_params_set_sink(trainer->params, NULL);
    finished = mb_scatter_finish(trainer->scatter);
    return mb_comm_agree(trainer->comm, status != MB_OK ? status : finished);
}

/* The same for all rounds of a step: gradients are never whole on a rank. Collective. */
static mb_status run_rounds(mb_trainer *trainer, const mb_batches_step *taken,
                            const mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    const int64_t waves = mb_scatter_waves(trainer->scatter), width = trainer->objective->term_count;
    memset(trainer->lane_terms, 0, (size_t)(waves * width) * sizeof *trainer->lane_terms);
    for (int64_t round = 0; round == 0 || round * trainer->lane_total < taken->microbatches; round++)
        for (int64_t wave = 0; wave < waves; wave++) MB_TRY(run_wave(trainer, taken, counts, round, wave));
done:
    return status;
}

/* Sums of gradients and of terms over all micro-batches. Collective. */
static mb_status sum_step(mb_trainer *trainer, const mb_batches_step *taken, const mb_trainer_counts *counts,
                          float **out_owned)
{
    mb_status status = MB_OK;
    const int64_t width = trainer->objective->term_count;
    if (trainer->scatter != NULL) {
        MB_TRY(run_rounds(trainer, taken, counts));
        *out_owned = mb_scatter_owned(trainer->scatter);
        MB_TRY(mb_scatter_sum(trainer->scatter, trainer->lane_terms, width, trainer->terms));
    } else {
        MB_TRY(mb_comm_agree(trainer->comm, run_lanes(trainer, taken, counts)));
        MB_TRY(mb_comm_agree(trainer->comm, mb_lanes_reduce(trainer->lanes, out_owned)));
        MB_TRY(mb_lanes_sum(trainer->lanes, trainer->lane_terms, width, trainer->terms));
    }
done:
    return status;
}

static mb_status count_picks(mb_trainer *trainer, const mb_batches_step *taken,
                             const mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    for (int64_t p = 0; p < trainer->part_count; p++) {
        if (trainer->parts[p].records == 0) continue;
        const mb_microbatch microbatch = microbatch_of(trainer, taken, counts, &trainer->parts[p]);
        MB_TRY(mb_trainer_passes_route(&trainer->passes, &microbatch, trainer->objective->picks));
    }
done:
    return status;
}

/* Where the objective wants it and a step has several micro-batches: the picks of the whole step. Collective.
 */
static mb_status share_picks(mb_trainer *trainer, const mb_batches_step *taken,
                             const mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    mb_objective *objective = trainer->objective;
    const double began = mb_clock_seconds();
    objective->has_picks = false;
    trainer->routing_seconds = 0;
    if (objective->plan_routing == NULL || taken->microbatches < 2) return MB_OK;
    memset(objective->picks, 0, (size_t)objective->pick_count * sizeof *objective->picks);
    MB_TRY(mb_comm_agree(trainer->comm, count_picks(trainer, taken, counts)));
    MB_TRY(mb_comm_allreduce_i64(trainer->comm, objective->picks, objective->pick_count, MB_COMM_SUM));
    objective->has_picks = true;
    trainer->routing_seconds = mb_clock_seconds() - began;
done:
    return status;
}

static void count_seconds(mb_trainer *trainer, double seconds)
{
    if (seconds > trainer->step_seconds) trainer->step_seconds = seconds;
    trainer->routing_share = seconds > 0 ? trainer->routing_seconds / seconds : 0;
    trainer->all_routing_seconds += trainer->routing_seconds;
    trainer->all_seconds += seconds;
}

mb_status mb_trainer_step_run(mb_trainer *trainer, const mb_batches_step *taken,
                              const mb_trainer_counts *counts)
{
    mb_status status = MB_OK;
    float *owned = NULL;
    double began = mb_clock_seconds(),
           rate = trainer->options->learning_rate * mb_schedule_factor(&trainer->schedule, trainer->step);
    if (trainer->objective->begin_step != NULL)
        trainer->objective->begin_step(trainer->objective, trainer->lm, trainer->step);
    MB_TRY(share_picks(trainer, taken, counts));
    mb_trainer_loads_begin(trainer);
    MB_TRY(sum_step(trainer, taken, counts, &owned));
    status = mb_optimiser_step(trainer->optimiser, owned, trainer->step + 1, rate, &trainer->norm);
    if (status != MB_OK) {
        mb_status_prefix("step %lld: ", (long long)trainer->step + 1);
        mb_status_trace(status, __func__, __FILE__, __LINE__);
        goto done;
    }
    MB_TRY(mb_trainer_loads_finish(trainer));
    trainer->step++;
    count_seconds(trainer, mb_clock_seconds() - began);
done:
    return status;
}
