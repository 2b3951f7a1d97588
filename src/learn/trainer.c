/* trainer.c: the loop around the steps: stop, save, log, epochs, end.
 *
 * 1. creation   2. metrics   3. the loop   4. gradients without a step
 */
#include "learn/trainer.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/stop.h"
#include "learn/trainer_impl.h"
#include "store/lease.h"

/* ---- 1. creation ---- */

static mb_status check_inputs(const mb_trainer *trainer)
{
    if (mb_params_is_sharded(trainer->params) && trainer->options->zero < 3) {
        return mb_fail(MB_EUSAGE, "the model's weights are cut over the ranks (model.shard), which training "
                                  "does under training.zero = 3");
    }
    if (mb_params_trained_count(trainer->params) == 0) {
        return mb_fail(MB_EUSAGE, "nothing trains: every tensor of the model is frozen; set training.train "
                                  "(all, router or patterns), or training.lora.r");
    }
    if (trainer->options->batch_size < trainer->objective->least_records) {
        return mb_fail(MB_EUSAGE,
                       "training.batch_size = %lld: this objective compares records of a micro-batch; set it "
                       "to at least %lld",
                       (long long)trainer->options->batch_size, (long long)trainer->objective->least_records);
    }
    return MB_OK;
}

static mb_status create_parts(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    const mb_trainer_options *options = trainer->options;
    mb_optimiser_options optimiser = {.beta1 = options->adam_beta1,
                                      .beta2 = options->adam_beta2,
                                      .epsilon = options->adam_epsilon,
                                      .weight_decay = options->weight_decay,
                                      .max_norm = options->max_grad_norm};
    const mb_objective_data data = {.shard = trainer->shard,
                                    .opt_validation = options->opt_validation,
                                    .max_length = options->max_length};
    int64_t most = options->gradient_accumulation_steps,
            lanes = options->lanes < most ? options->lanes : most;
    MB_TRY(check_inputs(trainer));
    MB_TRY(mb_batches_create(trainer->shard, options, &trainer->batches));
    MB_TRY(mb_schedule_init(&trainer->schedule, options->schedule, options->warmup_steps,
                            options->warmup_ratio, mb_batches_steps(trainer->batches)));
    MB_TRY(
        mb_lanes_create(trainer->transfer, mb_params_trained_count(trainer->params), lanes, &trainer->lanes));
    trainer->lane_total = lanes;
    trainer->lane_stride = 1;
    mb_lanes_mine(trainer->lanes, &trainer->lane_first, &trainer->lane_count);
    if (options->zero > 1) MB_TRY(mb_trainer_step_create_scatter(trainer));
    MB_TRY(mb_optimiser_create(mb_lm_ops(trainer->lm), trainer->params, trainer->lanes, &optimiser,
                               &trainer->optimiser));
    MB_TRY(mb_trainer_step_create(trainer));
    MB_TRY(mb_trainer_loads_create(trainer));
    MB_TRY(mb_objective_open_data(trainer->objective, &data));
    MB_TRY(mb_trainer_resume_describe(trainer));
    if (mb_comm_rank(trainer->comm) == 0) MB_TRY(mb_files_make_folders(trainer->folder));
done:
    return status;
}

static void destroy_parts(mb_trainer *trainer)
{
    mb_trainer_save_destroy(trainer);
    mb_trainer_validate_destroy(trainer);
    mb_trainer_loads_destroy(trainer);
    mb_trainer_step_destroy(trainer);
    mb_optimiser_destroy(&trainer->optimiser);
    mb_scatter_destroy(&trainer->scatter);
    mb_lanes_destroy(&trainer->lanes);
    mb_transfer_destroy(&trainer->transfer);
    mb_batches_destroy(&trainer->batches);
    mb_metrics_close(&trainer->metrics);
    mb_free(trainer->settings);
    mb_free(trainer->environment);
}

/* What killed runs were writing beside: the folder is ours alone now. */
static mb_status remove_leftovers(const char *folder)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL, mine[32];
    int64_t n = 0;
    snprintf(mine, sizeof mine, ".tmp.%ld", (long)getpid());
    if (!mb_files_is_folder(folder)) return MB_OK;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (strstr(names[i], ".tmp.") == NULL || mb_str_is_suffix(names[i], mine)) continue;
        MB_FREE(path);
        path = mb_files_join(folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_files_remove_tree(path));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(path);
    return status;
}

static mb_status clean_folder(const mb_trainer *trainer)
{
    mb_status status = MB_OK;
    char *states = mb_files_join(trainer->folder, "state");
    if (states == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_lease_check(trainer->folder));
    MB_TRY(remove_leftovers(trainer->folder));
    MB_TRY(remove_leftovers(states));
done:
    mb_free(states);
    return status;
}

static mb_status prepare(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    MB_TRY(mb_transfer_create(trainer->comm, mb_lm_ops(trainer->lm), &trainer->transfer));
    MB_TRY(mb_comm_agree(trainer->comm, create_parts(trainer)));
    MB_TRY(mb_trainer_validate_create(trainer));
    if (mb_comm_rank(trainer->comm) == 0) status = clean_folder(trainer);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_trainer_resume_read(trainer));
    trainer->first_tokens = trainer->tokens;
    if (mb_comm_rank(trainer->comm) == 0) {
        status =
            mb_metrics_open(trainer->folder, trainer->is_resumed ? trainer->step : -1, &trainer->metrics);
    }
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_trainer_weights_begin(trainer));
done:
    return status;
}

/* ---- 2. metrics ---- */

enum { OWN_METRICS = 9 };

/* Values of the last step alone, so that a resumed run writes the same lines; what depends on the machine
 * stands under provenance/, which hashes leave out. */
static mb_status log_step(mb_trainer *trainer, const mb_batches_step *taken, mb_metric *room)
{
    const mb_objective *objective = trainer->objective;
    double seconds = mb_clock_seconds() - trainer->started;
    int64_t n = 0, before = trainer->step - 1;
    mb_status status = mb_lease_check(trainer->folder); /* another run's curve is not ours to add to */
    if (status != MB_OK) return mb_status_trace(status, __func__, __FILE__, __LINE__);
    for (; n < objective->term_count; n++) room[n] = (mb_metric){objective->term[n], trainer->terms[n]};
    room[n++] = (mb_metric){"learning_rate",
                            trainer->options->learning_rate * mb_schedule_factor(&trainer->schedule, before)};
    room[n++] = (mb_metric){"grad_norm", trainer->norm};
    room[n++] = (mb_metric){"epoch", (double)taken->epoch + (double)(taken->first + taken->count) /
                                                                (double)mb_batches_records(trainer->batches)};
    room[n++] = (mb_metric){"tokens", (double)trainer->tokens};
    n += mb_trainer_loads_metrics(trainer, room + n);
    room[n++] = (mb_metric){"provenance/tokens_per_second",
                            seconds > 0 ? (double)(trainer->tokens - trainer->first_tokens) / seconds : 0};
    if (trainer->routing_seconds > 0) {
        room[n++] = (mb_metric){"provenance/routing_pass_seconds", trainer->routing_seconds};
        room[n++] = (mb_metric){"provenance/routing_pass_share", trainer->routing_share};
    }
    const mb_trainer_loads *loads = &trainer->loads;
    const mb_metric_table table = {"loads", loads->routers, loads->experts, loads->counts};
    return mb_metrics_write_table(trainer->metrics, trainer->step, room, n,
                                  loads->is_counted ? &table : NULL);
}

static void show_progress(mb_trainer *trainer, mb_progress *progress, bool is_end)
{
    char text[64];
    snprintf(text, sizeof text, "loss %.4f",
             trainer->step > 0 && trainer->terms != NULL ? trainer->terms[0] : 0.0);
    if (is_end) {
        mb_progress_end(progress, trainer->step, text);
    } else {
        mb_progress_step(progress, trainer->step, text);
    }
}

/* ---- 3. the loop ---- */

#define SLOW_DISK_RATE   2e8  /* bytes a second */
#define DEADLINE_SECONDS 10.0 /* kept free before the job's end, for the end of the program itself */

/* Since 1970, as a job's end is given. */
static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* What a stop may take from here on: the step under way and two more, two checkpoints, the weights of an
 * epoch (and of the best), a validation. What was not yet measured is taken to go to a slow disk. */
static double stop_margin(const mb_trainer *trainer)
{
    const double elements = (double)mb_params_trained_count(trainer->params),
                 save = trainer->save_seconds > 0 ? trainer->save_seconds : 12 * elements / SLOW_DISK_RATE,
                 weights =
                     trainer->weights_seconds > 0 ? trainer->weights_seconds : 4 * elements / SLOW_DISK_RATE;
    return 3 * trainer->step_seconds + 2 * save + (trainer->best.is_kept ? 2 : 1) * weights +
           trainer->validation_seconds;
}

/* Never before the first step of this run, so that every run gets on. */
static bool is_time_over(const mb_trainer *trainer)
{
    const double limit = 60.0 * trainer->options->time_limit_minutes, deadline = mb_stop_deadline(),
                 used = mb_clock_seconds() - trainer->started, margin = stop_margin(trainer);
    if (trainer->step_seconds == 0) return false;
    if (deadline > 0 && now_seconds() + margin + DEADLINE_SECONDS > deadline) return true;
    return limit > 0 && used + margin + 0.02 * limit > limit;
}

static bool is_save_due(const mb_trainer *trainer)
{
    double every = 60.0 * trainer->options->save_minutes;
    return every > 0 && mb_comm_rank(trainer->comm) == 0 && mb_clock_seconds() - trainer->saved > every;
}

/* After a step: log, weights, validation and state where they are due. Weights come before a validation,
 * which may be given up: the next run makes it then, from the state that is written in its place. */
static mb_status finish_step(mb_trainer *trainer, const mb_batches_step *taken, bool save_due,
                             mb_metric *room)
{
    mb_status status = MB_OK;
    bool is_last = trainer->step == mb_batches_steps(trainer->batches);
    int64_t every = trainer->options->save_steps;
    if (mb_comm_rank(trainer->comm) == 0 && (trainer->step % trainer->options->log_steps == 0 || is_last)) {
        status = log_step(trainer, taken, room);
    }
    if (status == MB_OK) status = mb_trainer_save_check(trainer);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    if (taken->is_epoch_end) MB_TRY(mb_trainer_weights_epoch(trainer, taken->epoch, is_last));
    if (mb_trainer_validate_is_due(trainer, taken->is_epoch_end)) MB_TRY(mb_trainer_validate_run(trainer));
    if (taken->is_epoch_end || save_due || (every > 0 && trainer->step % every == 0))
        MB_TRY(mb_trainer_save_run(trainer, is_last));
done:
    return status;
}

/* A checkpoint of what is done, and out. */
static mb_status stop_run(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    MB_TRY(mb_trainer_save_run(trainer, true));
    return mb_fail(MB_ESTOPPED, "stopped after step %lld; run again to go on", (long long)trainer->step);
done:
    return status;
}

static mb_status train_step(mb_trainer *trainer, mb_metric *room)
{
    mb_status status = MB_OK;
    mb_batches_step taken = mb_batches_step_get(trainer->batches, trainer->step);
    mb_trainer_counts counts = {.stops = mb_stop_is_set() || is_time_over(trainer),
                                .saves = is_save_due(trainer)};
    MB_TRY(mb_trainer_step_read(trainer, &taken, &counts));
    status = counts.stops > 0 ? MB_ESTOPPED : mb_trainer_step_run(trainer, &taken, &counts);
    if (status == MB_ESTOPPED) return stop_run(trainer);
    MB_TRY(status);
    if (taken.is_epoch_start) {
        trainer->loss_sum = 0;
        trainer->loss_steps = 0;
    }
    trainer->tokens += counts.tokens;
    trainer->records += counts.records;
    trainer->loss_sum += trainer->terms[0];
    trainer->loss_steps++;
    status = finish_step(trainer, &taken, counts.saves > 0, room);
    if (status == MB_ESTOPPED) return stop_run(trainer);
    MB_TRY(status);
done:
    return status;
}

static mb_status train(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_metric *room = NULL;
    mb_progress progress;
    int64_t steps = mb_batches_steps(trainer->batches);
    MB_NEW_ARRAY(room, trainer->objective->term_count + trainer->loads.routers + OWN_METRICS);
    status = mb_trainer_validate_catch_up(trainer);
    if (status == MB_ESTOPPED) status = stop_run(trainer);
    MB_TRY(status);
    mb_progress_start(&progress, "training", "steps", trainer->step, steps);
    while (trainer->step < steps) {
        MB_TRY(train_step(trainer, room));
        show_progress(trainer, &progress, false);
    }
    show_progress(trainer, &progress, true);
    MB_TRY(mb_trainer_save_wait(trainer));
    if (mb_comm_rank(trainer->comm) == 0) {
        status = mb_metrics_publish(trainer->metrics);
        if (status == MB_OK) status = mb_trainer_weights_prune(trainer, trainer->step);
    }
    MB_TRY(mb_comm_agree(trainer->comm, status));
done:
    mb_free(room);
    return status;
}

static void fill_report(const mb_trainer *trainer, mb_status status, mb_trainer_report *report)
{
    double seconds = mb_clock_seconds() - trainer->started;
    *report = (mb_trainer_report){
        .steps = trainer->step,
        .tokens = trainer->tokens,
        .records = trainer->records,
        .seconds = seconds,
        .loss = trainer->loss_steps > 0 ? trainer->loss_sum / (double)trainer->loss_steps : 0,
        .has_best = trainer->best.step >= 0,
        .is_stopped = status == MB_ESTOPPED};
    if (trainer->all_routing_seconds > 0) {
        report->routing_seconds = trainer->all_routing_seconds;
        report->routing_share = trainer->all_routing_seconds / trainer->all_seconds;
        mb_info("routing-only passes for training.balance_scope = step: %.2f s, %.1f %% of the steps' time",
                report->routing_seconds, 100 * report->routing_share);
    }
    if (seconds > 0) report->tokens_per_second = (double)(trainer->tokens - trainer->first_tokens) / seconds;
    memcpy(report->memory, trainer->memory, sizeof report->memory);
}

mb_status mb_trainer_run(mb_comm *comm, mb_lm *lm, mb_objective *objective, mb_shard *shard,
                         const mb_trainer_options *options, const char *folder, const char *opt_source,
                         mb_trainer_report *out_report)
{
    mb_status status = MB_OK;
    mb_trainer trainer = {.comm = comm,
                          .lm = lm,
                          .params = mb_lm_params(lm),
                          .objective = objective,
                          .shard = shard,
                          .options = options,
                          .folder = folder,
                          .started = mb_clock_seconds()};
    trainer.saved = trainer.started;
    MB_TRY(prepare(&trainer));
    mb_info(
        "%s%s%s: objective %s, %lld of %lld records an epoch, %lld steps, %lld trained elements, %lld lanes",
        folder, opt_source == NULL ? "" : " from ", opt_source == NULL ? "" : opt_source, objective->name,
        (long long)mb_batches_records(trainer.batches), (long long)mb_shard_count(shard),
        (long long)mb_batches_steps(trainer.batches), (long long)mb_params_trained_count(trainer.params),
        (long long)trainer.lane_total);
    status = train(&trainer);
    if (status == MB_OK) status = mb_trainer_memory_measure(&trainer);
    if (status == MB_OK || status == MB_ESTOPPED) fill_report(&trainer, status, out_report);
    if (status == MB_OK && mb_comm_rank(comm) == 0) status = mb_trainer_validate_report(&trainer, out_report);
    if (status != MB_OK) mb_status_trace(status, __func__, __FILE__, __LINE__);
done:
    destroy_parts(&trainer);
    return status;
}

void mb_trainer_report_reset(mb_trainer_report *report)
{
    mb_free(report->validated);
    report->validated = NULL;
    report->validated_count = 0;
}

/* ---- 4. gradients without a step ---- */

mb_status mb_trainer_gradients(mb_lm *lm, mb_objective *objective, const mb_microbatch *microbatch,
                               float *gradient, mb_objective_terms *out_terms)
{
    mb_status status = MB_OK;
    mb_trainer_passes passes = {0};
    mb_params *params = mb_lm_params(lm);
    mb_ops *ops = mb_lm_ops(lm);
    mb_buffer *buffer = NULL;
    const size_t bytes = (size_t)mb_params_trained_count(params) * sizeof *gradient;
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), bytes, &buffer));
    MB_TRY(mb_trainer_passes_create(lm, objective, &passes));
    mb_params_bind_gradient(params, buffer->data);
    MB_TRY(mb_trainer_passes_train(&passes, microbatch, out_terms));
    MB_TRY(mb_ops_download(ops, buffer->data, bytes, gradient));
    MB_TRY(mb_ops_wait(ops));
done:
    mb_params_bind_gradient(params, NULL);
    mb_trainer_passes_destroy(&passes);
    mb_buffer_destroy(&buffer);
    return status;
}
