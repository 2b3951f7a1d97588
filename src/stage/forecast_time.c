/* forecast_time.c: what a stage computes, and how long that takes.
 *
 * 1. what is asked   2. costs of a token   3. seconds by rates   4. stages without a model   5. files
 * 6. a record of the same work   7. all
 */
#include "stage/forecast_time.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "stage/forecast_fuse.h"
#include "store/share.h"

/* Of one process, measured on two cores of a Zen 4 kind (docs/PERFORMANCE.md, docs/forecast.md). */
#define SHARD_BYTES_PER_SECOND     15e6 /* of text, rendered, tokenised, written and joined */
#define TOKENIZER_BYTES_PER_SECOND 15e6
#define SELECT_RECORDS_PER_SECOND  2e5
/* What a processor does with bytes of weights beside the disk: reading, rounding, hashing; writing, hashing;
 * and the first touch of memory. */
#define LOAD_BYTES_PER_SECOND  1e9
#define WRITE_BYTES_PER_SECOND 0.7e9
#define TOUCH_BYTES_PER_SECOND 1e9
#define START_SECONDS          0.1
/* Elements whose touching takes as long as a column of a stored teacher's row: finding the likeliest, and the
 * sum of one temperature. */
#define TEACHER_ELEMENTS     25.0
#define TEMPERATURE_ELEMENTS 17.0
#define MPI_START_SECONDS    1.0

/* ---- 1. what is asked ---- */

/* Of a list that the program will refuse: nothing. */
mb_scorer_needs mb_forecast_time_needs(const mb_forecast_stage *stage)
{
    mb_scorer_needs needs = {0};
    if (mb_scorer_needs_get(stage->own.score.scorer.scores, &needs) != MB_OK) mb_status_reset();
    return needs;
}

/* Blocks that router scores need: up to the last asked layer. */
static int64_t asked_blocks(const mb_forecast_stage *stage, const mb_arch *arch)
{
    char **items = NULL;
    const char *list = stage->own.score.scorer.score_layers;
    int64_t n = 0, last = -1, layer;
    const int64_t routers = mb_arch_moe_layers(arch);
    if (list == NULL || mb_str_equal(list, "all") || mb_option_list_split(list, &items, &n) != MB_OK)
        return arch->layers;
    for (int64_t i = 0; i < n; i++) {
        if (mb_str_parse_int(items[i], &layer) != MB_OK) continue;
        if (layer < 0) layer += routers;
        if (layer > last) last = layer;
    }
    mb_option_list_free(&items, n);
    return last < 0 || last >= arch->layers ? arch->layers : last + 1;
}

/* ---- 2. costs of a token ---- */

/* A forward over all blocks; wide: all columns of the vocabulary are wanted. */
static mb_forecast_cost pass_cost(const mb_forecast_model *model, bool head, bool wide, double context)
{
    if (model->fused != NULL) return mb_forecast_fuse_cost(model, head, wide, context);
    return mb_forecast_cost_forward(&model->arch, model->arch.layers, head, false, context);
}

static bool has_recompute(const mb_train_program *own)
{
    return mb_str_equal(own->trainer.recompute, "blocks") || mb_str_equal(own->trainer.recompute, "true");
}

static mb_forecast_cost train_cost(const mb_forecast_stage *stage, const mb_forecast_model *model,
                                   const mb_forecast_data *data, const mb_forecast_memory *memory)
{
    const mb_train_program *own = &stage->own.train;
    if (model->fused != NULL) return mb_forecast_fuse_cost_train(model, has_recompute(own), data->context);
    mb_lora_options storage;
    const mb_lora_options *lora;
    char *train = NULL;
    if (mb_forecast_memory_trained(stage, model, &storage, &lora, &train) != MB_OK)
        mb_status_reset(); /* memory was planned before, and said so */
    const bool is_router = mb_str_equal(train, "router");
    mb_free(train);
    const mb_forecast_training training = {.trained = lora != NULL ? MB_FORECAST_ADAPTER
                                                      : is_router  ? MB_FORECAST_ROUTER
                                                                   : MB_FORECAST_ALL,
                                           .adapter_active = memory->adapter_active,
                                           .recompute = has_recompute(own),
                                           .copies =
                                               mb_str_equal(own->objective.objective, "router_warmup") &&
                                               mb_str_equal(own->objective.constraint_loss, "pair_rank"),
                                           .context = data->context};
    const int64_t passes =
        mb_objective_plain_passes(&own->objective, lora != NULL, lora != NULL && !model->has_adapter);
    mb_forecast_cost cost = mb_forecast_cost_train(&model->arch, &training);
    for (int64_t i = 0; i < passes; i++)
        cost = mb_forecast_cost_sum(
            cost, mb_forecast_cost_forward(&model->arch, model->arch.layers, true, false, data->context));
    return cost;
}

static mb_forecast_cost score_cost(const mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                                   const mb_forecast_model *opt_source, double context)
{
    mb_forecast_cost sum = {0};
    if (opt_source != NULL && opt_source->fused != NULL) {
        sum = mb_forecast_fuse_cost(opt_source, true, false, context);
    } else if (opt_source != NULL) {
        const mb_arch *arch = &opt_source->arch;
        const bool head = mb_forecast_time_needs(stage).head;
        const int64_t blocks = head ? arch->layers : asked_blocks(stage, arch);
        sum = mb_forecast_cost_forward(arch, blocks, head, !head, context);
    }
    if (opt_model != NULL) {
        const mb_arch *arch = &opt_model->arch;
        const int64_t blocks = asked_blocks(stage, arch);
        sum = mb_forecast_cost_sum(sum, mb_forecast_cost_forward(arch, blocks, false, true, context));
    }
    return sum;
}

static mb_forecast_cost encoder_cost(const mb_encoder_config *c, double context)
{
    const double per_layer = 14.0 * (double)c->width + 5.0 * (double)c->ffn;
    return (mb_forecast_cost){.forward = mb_encoder_config_flops(c, context),
                              .elements = per_layer * (double)c->layers};
}

/* Of a column, in touched elements. */
static double teacher_columns(const mb_teacher_maker_options *options)
{
    mb_teacher_shape shape = {0};
    if (mb_teacher_parse_temperatures(options->temperatures, &shape) != MB_OK)
        mb_status_reset(); /* the program says it */
    return TEACHER_ELEMENTS + TEMPERATURE_ELEMENTS * (double)shape.temperatures;
}

static mb_forecast_cost cost_of(const mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                                const mb_forecast_model *opt_source, const mb_forecast_data *data,
                                const mb_forecast_memory *memory)
{
    mb_forecast_cost cost = {0};
    switch (stage->program) {
    case MB_FORECAST_TRAIN:
        cost = train_cost(stage, opt_model, data, memory);
        return opt_source == NULL
                   ? cost
                   : mb_forecast_cost_sum(cost, pass_cost(opt_source, true, true, data->context));
    case MB_FORECAST_SCORE:
        return score_cost(stage, opt_model, opt_source, data->context);
    case MB_FORECAST_EMBED:
        if (opt_model->is_encoder) return encoder_cost(&opt_model->encoder, data->context);
        return pass_cost(opt_model, false, false, data->context);
    case MB_FORECAST_TEACHER:
        cost = pass_cost(opt_model, true, true, data->context);
        cost.elements += teacher_columns(&stage->own.teacher.maker) * (double)opt_model->arch.vocab;
        return cost;
    case MB_FORECAST_EVAL:
    case MB_FORECAST_INFER:
        cost = pass_cost(opt_model, stage->program == MB_FORECAST_EVAL, false, data->context);
        cost.forward += 2 * memory->adapter_active;
        return cost;
    default:
        return cost;
    }
}

/* ---- 3. seconds by rates ---- */

static mb_forecast_step step_of(const mb_forecast_stage *stage, const mb_forecast_memory *memory,
                                mb_dtype dtype)
{
    const mb_trainer_options *o = &stage->own.train.trainer;
    const int64_t most = o->gradient_accumulation_steps;
    return (mb_forecast_step){.trained = memory->trained,
                              .microbatches = most,
                              .lanes = o->lanes < most ? o->lanes : most,
                              .zero = o->zero,
                              .weights = memory->parameters * (double)mb_dtype_bytes(dtype)};
}

/* Answers to generate: how many, of so many tokens at most, so many at a time. */
typedef struct answers {
    double count, tokens, batch;
} answers;

static answers answers_of(const mb_forecast_stage *stage, const mb_forecast_data *data)
{
    if (stage->program == MB_FORECAST_EVAL) {
        const mb_category_program *o = &stage->own.eval.category;
        return (answers){o->generate ? data->answers : 0, (double)o->max_new_tokens,
                         (double)o->batch_sequences};
    }
    const mb_generate_options *o = &stage->own.infer.generate;
    return (answers){data->records * (double)o->samples, (double)o->max_new_tokens,
                     (double)o->batch_sequences};
}

/* A step reads all weights once for a batch of sequences. */
static double decode_seconds(const mb_forecast_stage *stage, const mb_forecast_model *model,
                             const mb_forecast_data *data, const mb_forecast_memory *memory,
                             const mb_forecast_machine *machine, const mb_forecast_layout *layout,
                             mb_dtype dtype, int bits)
{
    const answers a = answers_of(stage, data);
    const double tokens = a.count * a.tokens, batch = fmax(1, fmin(a.batch, a.count / (double)layout->ranks)),
                 bytes = bits == 0 ? (double)mb_dtype_bytes(dtype) : bits / 8.0,
                 read = memory->parameters * bytes / (1e9 * machine->memory_gb_per_s);
    mb_forecast_cost one = pass_cost(model, true, true, data->context);
    one.forward += 2 * memory->adapter_active;
    return tokens * (mb_forecast_token_seconds(&one, machine, layout, dtype, bits) +
                     read / batch / (double)(layout->nodes > 0 ? layout->nodes : 1));
}

/* Tokens of multiple-choice tasks: each choice repeats its question. */
static double task_tokens(const mb_forecast_stage *stage, int64_t vocab)
{
    char **words = NULL;
    int64_t n = 0, bytes;
    double tokens = 0;
    if (mb_option_list_split(stage->own.eval.tasks, &words, &n) != MB_OK) return 0;
    for (int64_t i = 0; i < n; i++) {
        const char *path = strchr(words[i], '=');
        if (path != NULL && mb_files_is_file(path + 1) && mb_files_size(path + 1, &bytes) == MB_OK)
            tokens += 4 * (double)bytes / mb_forecast_data_bytes_per_token(vocab);
    }
    mb_option_list_free(&words, n);
    return tokens;
}

/* Compute seconds of a layout, by rates. */
static double rate_seconds(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                           const mb_forecast_data *data, const mb_forecast_memory *memory,
                           const mb_forecast_cost *cost, const mb_forecast_machine *machine,
                           const mb_forecast_layout *layout, double tokens)
{
    mb_lm_options lm = {0};
    if (mb_model_options_storage(mb_forecast_stage_model(stage), &lm) != MB_OK) lm.dtype = MB_F32;
    double seconds = tokens * mb_forecast_token_seconds(cost, machine, layout, lm.dtype, lm.frozen_bits);
    if (stage->program == MB_FORECAST_TRAIN) {
        const mb_forecast_step step = step_of(stage, memory, lm.dtype);
        seconds += data->steps * mb_forecast_step_seconds(&step, machine, layout);
    }
    if (stage->program == MB_FORECAST_INFER || stage->program == MB_FORECAST_EVAL)
        seconds += decode_seconds(stage, opt_model, data, memory, machine, layout, lm.dtype, lm.frozen_bits);
    return seconds;
}

/* ---- 4. stages without a model ---- */

static double plain_seconds(const mb_forecast_stage *stage, const mb_forecast_data *data,
                            const mb_forecast_memory *memory, const mb_forecast_machine *machine,
                            double ranks)
{
    const double bytes = 4 * memory->parameters, disk = 1e9 * machine->disk_write_gb_per_s,
                 read = 1e9 * machine->disk_read_gb_per_s;
    switch (stage->program) {
    case MB_FORECAST_SHARD:
        if (mb_str_equal(stage->mode, "tokenizer")) return data->text_bytes / TOKENIZER_BYTES_PER_SECOND;
        return data->text_bytes / (SHARD_BYTES_PER_SECOND * ranks) + 2 * 5 * data->tokens / disk;
    case MB_FORECAST_CONVERT: /* checksums of both sides, logits of a few records */
        return bytes / read + bytes / disk + bytes / 1e9;
    case MB_FORECAST_SELECT:
        return data->records / SELECT_RECORDS_PER_SECOND;
    default:
        return 0;
    }
}

/* ---- 5. files ---- */

/* Reading the model; and, where no record says it all, touching memory for the first time and writing weights
 * and states between steps. */
static double file_seconds(const mb_forecast_stage *stage, const mb_forecast_data *data,
                           const mb_forecast_memory *memory, const mb_forecast_machine *machine,
                           int64_t ranks, bool is_measured)
{
    const double weights = 4 * (memory->parameters + memory->teacher),
                 own = memory->rank - memory->bytes[MB_FORECAST_PROGRAM] - memory->bytes[MB_FORECAST_DATA];
    double seconds = weights / (1e9 * machine->disk_read_gb_per_s) + weights / LOAD_BYTES_PER_SECOND +
                     (ranks > 1 ? MPI_START_SECONDS : START_SECONDS);
    if (is_measured) return seconds;
    seconds += own / TOUCH_BYTES_PER_SECOND;
    if (stage->program == MB_FORECAST_TRAIN) {
        const bool is_delta = mb_str_equal(stage->own.train.trainer.save, "delta");
        const double one = memory->adapter > 0              ? 4 * memory->adapter
                           : is_delta || memory->router > 0 ? 4 * memory->trained
                                                            : 4 * memory->parameters,
                     disk = 1e9 * machine->disk_write_gb_per_s,
                     states = data->epoch_writes - 1; /* none after the last step */
        seconds += data->epoch_writes * one * (1 / disk + 1 / WRITE_BYTES_PER_SECOND);
        if (states > 0) seconds += states * 12 * memory->trained / disk;
    }
    return seconds;
}

/* ---- 6. a record of the same work ---- */

/* A record's seconds per token; of another layout, scaled by what rates say of the two. */
static double past_seconds(const mb_forecast_past *past, const mb_forecast_layout *layout, double tokens,
                           double by_rates, double past_by_rates, mb_forecast_time *time)
{
    const bool is_same =
        past->ranks == layout->ranks && past->threads == layout->threads && layout->nodes <= 1;
    const double plain = past->seconds / past->tokens * tokens;
    const double scale = is_same || past_by_rates <= 0 ? 1 : by_rates / past_by_rates;
    snprintf(time->says, sizeof time->says, "measured: %s, %.4g tokens/s on %lld x %lld threads%s",
             past->path, past->tokens / past->seconds, (long long)past->ranks, (long long)past->threads,
             is_same ? "" : "; scaled to this job's ranks and threads by rates");
    return plain * scale;
}

/* ---- 7. all ---- */

static void say_estimated(const mb_forecast_machine *machine, const mb_forecast_past *past,
                          mb_forecast_time *time)
{
    snprintf(time->says, sizeof time->says,
             "estimated from %s %s (%lld cores: %.4g GFLOP/s f32, %.4g bf16, %.3g GB/s)%s",
             machine->is_measured ? "the rates of" : "rates that are only", machine->name,
             (long long)machine->cores, machine->gflops_f32, machine->gflops_bf16, machine->memory_gb_per_s,
             past->looked_at > 0 ? "; no record of the same work" : "");
}

static mb_status time_model(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                            const mb_forecast_model *opt_source, const mb_forecast_data *data,
                            const mb_forecast_memory *memory, const mb_forecast_machine *machine,
                            const mb_forecast_layout *layout, const mb_forecast_past *past,
                            mb_forecast_time *time)
{
    mb_status status = MB_OK;
    const mb_forecast_cost cost = cost_of(stage, opt_model, opt_source, data, memory);
    const bool is_training = stage->program == MB_FORECAST_TRAIN;
    time->tokens = is_training ? data->run_tokens : data->tokens;
    if (stage->program == MB_FORECAST_EVAL) /* answers read their prompts once more */
        time->tokens += task_tokens(stage, opt_model->arch.vocab) +
                        (stage->own.eval.category.generate ? data->answer_tokens : 0);
    mb_share share = {0};
    MB_TRY(mb_share_parse(stage->common.share, &share));
    if (!mb_share_is_whole(share)) time->tokens /= (double)share.of; /* an element of an array */
    time->steps = is_training ? data->steps : 0;
    time->flops_per_token = mb_forecast_cost_flops(&cost);
    time->is_known = time->tokens > 0;
    time->estimated_seconds =
        rate_seconds(stage, opt_model, data, memory, &cost, machine, layout, time->tokens);
    time->compute_seconds = time->estimated_seconds;
    if (past->is_found && past->ranks > 0) {
        const mb_forecast_layout theirs = {.ranks = past->ranks, .nodes = 1, .threads = past->threads};
        const double by_rates =
            rate_seconds(stage, opt_model, data, memory, &cost, machine, &theirs, time->tokens);
        time->compute_seconds =
            past_seconds(past, layout, time->tokens, time->estimated_seconds, by_rates, time);
    } else {
        say_estimated(machine, past, time);
    }
done:
    return status;
}

mb_status mb_forecast_time_get(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                               const mb_forecast_model *opt_source, const mb_forecast_data *data,
                               const mb_forecast_memory *memory, const mb_forecast_machine *machine,
                               const mb_forecast_layout *layout, const mb_forecast_past *past,
                               mb_forecast_time *out_time)
{
    mb_status status = MB_OK;
    mb_forecast_time time = {0};
    const bool has_model = stage->program != MB_FORECAST_SHARD && stage->program != MB_FORECAST_CONVERT &&
                           stage->program != MB_FORECAST_SELECT;
    if (has_model && (opt_model != NULL || opt_source != NULL)) {
        MB_TRY(time_model(stage, opt_model, opt_source, data, memory, machine, layout, past, &time));
    } else {
        time.compute_seconds = plain_seconds(stage, data, memory, machine, (double)layout->ranks);
        time.tokens = data->tokens;
        time.is_known = data->is_known || stage->program == MB_FORECAST_CONVERT ||
                        stage->program == MB_FORECAST_EVAL; /* comparing: nothing to speak of */
        snprintf(time.says, sizeof time.says, "estimated from rates of one process");
    }
    time.file_seconds = file_seconds(stage, data, memory, machine, layout->ranks, past->is_found);
    time.seconds = time.compute_seconds + time.file_seconds;
    if (time.steps > 0) time.step_seconds = time.compute_seconds / time.steps;
    if (time.compute_seconds > 0) time.tokens_per_second = time.tokens / time.compute_seconds;
    *out_time = time;
done:
    return status;
}
