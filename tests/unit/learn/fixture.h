/* fixture: a tiny MoE with trash experts, a small shard, and a training run over both. */
#ifndef MB_LEARN_FIXTURE_H
#define MB_LEARN_FIXTURE_H

#include "mb_test.h"

#include "base/rng.h"
#include "base/stop.h"
#include "learn/trainer.h"

enum { FIX_VOCAB = 64, FIX_RECORDS = 50 };

static inline mb_arch fix_arch(int64_t experts, int64_t trash)
{
    return (mb_arch){.family = experts > 0 ? MB_FAMILY_OLMOE : MB_FAMILY_LLAMA,
                     .width = 32,
                     .layers = 2,
                     .heads = 2,
                     .kv_heads = 2,
                     .head_width = 16,
                     .ffn = 32,
                     .vocab = FIX_VOCAB,
                     .max_positions = 64,
                     .rms_eps = 1e-5,
                     .rope_theta = 10000,
                     .initializer_range = 0.05,
                     .qk_norm = experts > 0 ? MB_QK_NORM_FULL : MB_QK_NORM_NONE,
                     .experts = experts,
                     .layer = {experts > 0 ? MB_LAYER_MOE : 0, experts > 0 ? MB_LAYER_MOE : 0},
                     .trash = trash,
                     .picks = experts > 0 ? 2 : 0,
                     .stored_dtype = MB_F32,
                     .bos = -1,
                     .eos = -1,
                     .pad = -1};
}

/* Records of 6..24 tokens that count up or down by a step: easy to learn. Every fifth is noise. Masks: the
 * second half. */
static inline char *fix_shard(const char *folder, const char *name, int64_t records, bool masked)
{
    const char *sources[] = {"even", "odd"}, *files[] = {"a.jsonl", "b.jsonl"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 64,
                          .vocab_size = FIX_VOCAB,
                          .source_names = sources,
                          .source_files = files,
                          .source_count = 2,
                          .has_loss_mask = masked};
    mb_shard_writer *writer = NULL;
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = 0; i < records; i++) {
        uint32_t tokens[24];
        uint8_t mask[24] = {0};
        int64_t n = 6 + (int64_t)mb_rng_below(1, MB_RNG_DATA, 0, (uint64_t)i, 19);
        for (int64_t t = 0; t < n; t++) {
            tokens[t] = i % 5 == 4
                            ? (uint32_t)mb_rng_below(1, MB_RNG_DATA, 1, (uint64_t)(i * 100 + t), FIX_VOCAB)
                            : (uint32_t)((i * 3 + t) % FIX_VOCAB);
            mask[t] = t >= n / 2;
        }
        mb_shard_record record = {.tokens = tokens,
                                  .loss_mask = masked ? mask : NULL,
                                  .count = n,
                                  .source = (uint16_t)(i % 2),
                                  .source_index = i / 2,
                                  .byte_offset = 100 * i,
                                  .byte_length = 100,
                                  .text_bytes = 3 * n,
                                  .record_hash = (uint64_t)i + 1};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    return path;
}

/* 23 records (one of them empty) of three types, two of which have odd names; only: of one type alone (-1:
 * all). */
static inline char *fix_typed_shard(const char *folder, const char *name, int only, bool with_types)
{
    static const char *const types[] = {"code", "loss", "dia log"};
    const char *sources[] = {"a"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 64,
                          .vocab_size = FIX_VOCAB,
                          .source_names = sources,
                          .source_files = sources,
                          .source_count = 1,
                          .type_names = with_types ? types : NULL,
                          .type_count = with_types ? 3 : 0};
    mb_shard_writer *writer = NULL;
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = 0; i < 23; i++) {
        uint32_t tokens[24];
        const int type = (int)(i * 7 % 5 % 3);
        const int64_t n = i == 5 ? 0 : 3 + i * 5 % 21;
        if (only >= 0 && type != only) continue;
        for (int64_t t = 0; t < n; t++) tokens[t] = (uint32_t)((i * 11 + t * (1 + type)) % FIX_VOCAB);
        mb_shard_record record = {.tokens = tokens,
                                  .count = n,
                                  .source_index = i,
                                  .type = (uint16_t)type,
                                  .record_hash = (uint64_t)i + 1};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    return path;
}

static inline mb_trainer_options fix_trainer_options(void)
{
    mb_trainer_options options = {0};
    mb_option_table table = {.target = &options};
    table.options = mb_trainer_option_table(&table.count);
    mb_test_ok(mb_option_defaults(&table));
    options.learning_rate = 3e-3;
    options.batch_size = 4;
    options.gradient_accumulation_steps = 3;
    options.log_steps = 1;
    return options;
}

static inline void fix_trainer_free(mb_trainer_options *options)
{
    mb_option_table table = {.target = options};
    table.options = mb_trainer_option_table(&table.count);
    mb_option_free(&table);
}

static inline mb_objective_options fix_objective_options(const char *objective)
{
    mb_objective_options options = {0};
    mb_option_table table = {.target = &options};
    table.options = mb_objective_option_table(&table.count);
    mb_test_ok(mb_option_defaults(&table));
    mb_free(options.objective);
    options.objective = mb_strdup(objective);
    return options;
}

static inline void fix_objective_free(mb_objective_options *options)
{
    mb_option_table table = {.target = options};
    table.options = mb_objective_option_table(&table.count);
    mb_option_free(&table);
}

/* A run from a fresh model; out_trained (mb_free) receives the trained tensors at its end. */
typedef struct fix_run {
    mb_arch arch;
    const char *train, *objective, *shard, *folder;
    const char *opt_validation;      /* a shard; the report is the test's to reset then */
    bool router_bias;                /* of opt_model: its routers get biases */
    mb_dtype dtype;                  /* of computing */
    const char *backend;             /* NULL: ref */
    const char *opt_model;           /* a folder, instead of a fresh model of `arch`, */
    const mb_lora_options *opt_lora; /* with an adapter to train */
    bool shard_model;                /* of opt_model: cut over the ranks */
    int64_t stop_after;              /* a stop is asked for inside this micro-batch; 0: none */
    mb_objective_options *opt_objective_options;
    mb_trainer_report report;
    float *trained;
    int64_t count;
} fix_run;

/* An objective that asks for a stop after so many micro-batches: a signal in the middle of a step. */
static mb_objective fix_stopped;
static int64_t fix_stop_left;

static inline mb_status fix_stopping_loss(mb_objective *self, const mb_microbatch *microbatch,
                                          mb_arena *arena, const mb_objective_pass *passes,
                                          const mb_lm_output *outputs, int64_t count,
                                          mb_objective_terms *out_terms,
                                          mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    if (--fix_stop_left == 0) mb_stop_request();
    return fix_stopped.loss(self, microbatch, arena, passes, outputs, count, out_terms, gradients);
}

static inline void fix_stop_inside(mb_objective *objective, int64_t after)
{
    if (after == 0) return;
    fix_stopped = *objective;
    fix_stop_left = after;
    objective->loss = fix_stopping_loss;
}

static inline mb_lm *fix_model(mb_comm *comm, mb_ops *ops, const fix_run *run)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = run->opt_model,
                                   .train = run->train,
                                   .opt_lora = run->opt_lora,
                                   .seed = 7,
                                   .router_bias = run->router_bias,
                                   .opt_comm = comm,
                                   .shard = run->shard_model};
    if (run->opt_model != NULL)
        mb_test_ok(mb_lm_open(ops, &options, &lm));
    else
        mb_test_ok(mb_lm_create(ops, &run->arch, run->train, 7, &lm));
    mb_lm_set_dtype(lm, run->dtype);
    return lm;
}

/* The trained tensors one after another, wherever they lie, and what is carried. */
static inline void fix_read_trained(mb_params *params, fix_run *run)
{
    mb_free(run->trained);
    const int64_t trained = mb_params_trained_count(params);
    run->count = trained + mb_params_carried_count(params);
    run->trained = mb_calloc((size_t)run->count, sizeof(float));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (param->trained) mb_test_ok(mb_params_get_f32(param, run->trained + param->flat));
    }
    mb_test_ok(mb_params_carried_get(params, run->trained + trained));
}

static inline mb_status fix_train_in(mb_comm *comm, fix_run *run, const mb_trainer_options *options)
{
    mb_ops *ops = NULL;
    mb_shard *shard = NULL;
    mb_objective *objective = NULL;
    mb_trainer_options with = *options;
    mb_objective_options defaults = fix_objective_options(run->objective);
    const mb_ops_options backend = {.backend = run->backend != NULL ? run->backend : "ref",
                                    .threads = 1,
                                    .local_rank = mb_comm_local_rank(comm),
                                    .local_size = mb_comm_local_size(comm),
                                    .share_gpu = true};
    mb_test_ok(mb_ops_create_with(&backend, &ops));
    mb_lm *lm = fix_model(comm, ops, run);
    mb_test_ok(mb_shard_open(run->shard, 0, &shard));
    if (run->opt_validation != NULL) mb_test_ok(mb_shard_open(run->opt_validation, 0, &with.opt_validation));
    mb_test_ok(mb_objective_create(
        run->opt_objective_options != NULL ? run->opt_objective_options : &defaults, lm, &objective));
    fix_stop_inside(objective, run->stop_after);
    mb_stop_reset();
    mb_status status = mb_trainer_run(comm, lm, objective, shard, &with, run->folder, NULL, &run->report);
    mb_stop_reset();
    fix_read_trained(mb_lm_params(lm), run);
    mb_objective_destroy(&objective);
    mb_shard_close(&shard);
    mb_shard_close(&with.opt_validation);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&defaults);
    return status;
}

static inline mb_status fix_train(fix_run *run, const mb_trainer_options *options)
{
    mb_comm *comm = NULL;
    setenv("MB_COMM", "self", 1);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    const mb_status status = fix_train_in(comm, run, options);
    mb_comm_destroy(&comm);
    return status;
}

#endif
