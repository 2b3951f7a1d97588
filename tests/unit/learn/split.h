/* split: one step of balance and z losses, cut into micro-batches in many ways. Its gradient is read from the
 * checkpoint: with beta1 = 0 the first moment is the sum of the gradients, and a learning rate of 0 leaves
 * the model as it was for the next step. Of the tests of learn and of tests/mpi. */
#ifndef MB_LEARN_SPLIT_H
#define MB_LEARN_SPLIT_H

#include "fixture.h"

#include "base/files.h"
#include "store/h5.h"
#include "store/trainer_state.h"

/* An epoch of two steps: 12 records, then the 10 that are left. */
enum { SPLIT_RECORDS = 22, SPLIT_STEP = 12, SPLIT_STEPS = 2 };

typedef struct split_case {
    int64_t batch_size; /* a divisor of SPLIT_STEP; micro-batches are as many as make a step */
    bool recompute;
    int64_t zero;
} split_case;

typedef struct split_result {
    double balance[SPLIT_STEPS], z[SPLIT_STEPS];
    float *gradient[SPLIT_STEPS]; /* [count] */
    int64_t count;
} split_result;

/* Records of 2..24 tokens, so that micro-batches are as uneven as can be. Masks: nothing counts, so that
 * under sft the gates' losses are all there is. */
static inline char *split_shard(const char *folder)
{
    const char *names[] = {"a"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 64,
                          .vocab_size = FIX_VOCAB,
                          .source_names = names,
                          .source_files = names,
                          .source_count = 1,
                          .has_loss_mask = true};
    mb_shard_writer *writer = NULL;
    char *path = mb_test_path(folder, "split.h5");
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = 0; i < SPLIT_RECORDS; i++) {
        uint32_t tokens[24];
        uint8_t mask[24] = {0};
        const int64_t n = i % 3 == 0 ? 2 + i % 4 : 24 - i % 7;
        for (int64_t t = 0; t < n; t++)
            tokens[t] = (uint32_t)mb_rng_below(3, MB_RNG_DATA, 1, (uint64_t)(i * 100 + t), FIX_VOCAB);
        mb_shard_record record = {.tokens = tokens,
                                  .loss_mask = mask,
                                  .count = n,
                                  .source_index = i,
                                  .record_hash = (uint64_t)i + 1};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    return path;
}

/* Routers far from even. */
static inline mb_arch split_arch(void)
{
    mb_arch arch = fix_arch(4, 0);
    arch.initializer_range = 0.3;
    return arch;
}

static inline void split_read(const char *folder, split_result *out)
{
    mb_h5 *file = NULL;
    mb_trainer_state state;
    char *path = mb_test_path(folder, "metrics.h5");
    mb_tensor column = mb_tensor_view1(MB_F64, out->balance, SPLIT_STEPS);
    mb_test_ok(mb_h5_open(path, &file));
    mb_test_ok(mb_h5_read(file, "/balance", &column));
    column.data = out->z;
    mb_test_ok(mb_h5_read(file, "/z_loss", &column));
    mb_h5_destroy(&file);
    mb_free(path);
    for (int s = 0; s < SPLIT_STEPS; s++) {
        char name[64];
        snprintf(name, sizeof name, "state/step_%d/trainer.h5", s + 1);
        path = mb_test_path(folder, name);
        mb_test_ok(mb_h5_open(path, &file));
        mb_test_ok(mb_trainer_state_read(file, &state));
        out->count = state.elements;
        out->gradient[s] = mb_calloc((size_t)out->count, sizeof(float));
        mb_test_ok(mb_trainer_state_read_moment(file, 1, 0, out->count, out->gradient[s]));
        mb_h5_destroy(&file);
        mb_free(path);
    }
}

/* opt_model: a folder, NULL: a fresh model of split_arch. Collective over comm. */
static inline split_result split_run(mb_comm *comm, const split_case *c, const char *load_balance,
                                     const char *shard, const char *folder, const char *opt_model)
{
    split_result result = {0};
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options("sft");
    fix_run run = {.arch = split_arch(),
                   .train = "all",
                   .objective = "sft",
                   .shard = shard,
                   .folder = folder,
                   .opt_model = opt_model,
                   .shard_model = c->zero == 3,
                   .opt_objective_options = &choice};
    options.batch_size = c->batch_size;
    options.gradient_accumulation_steps = SPLIT_STEP / c->batch_size;
    options.learning_rate = 0;
    options.adam_beta1 = 0;
    options.max_grad_norm = 0;
    options.save_steps = 1;
    options.save_total_limit = 0;
    options.zero = c->zero;
    mb_free(options.recompute);
    options.recompute = mb_strdup(c->recompute ? "blocks" : "none");
    choice.router_aux_loss_coef = 1;
    choice.router_z_loss_coef = 0.1;
    mb_free(choice.balance_scope);
    choice.balance_scope = mb_strdup("step");
    mb_free(choice.load_balance);
    choice.load_balance = mb_strdup(load_balance);
    mb_test_ok(fix_train_in(comm, &run, &options));
    mb_test_ok(mb_comm_barrier(comm));
    split_read(folder, &result);
    mb_free(run.trained);
    fix_objective_free(&choice);
    fix_trainer_free(&options);
    return result;
}

static inline void split_free(split_result *result)
{
    for (int s = 0; s < SPLIT_STEPS; s++) mb_free(result->gradient[s]);
}

static inline double split_relative(double a, double b)
{
    return fabs(a - b) / fabs(b);
}

/* |a - b| / |b| of two gradients. */
static inline double split_distance(const float *a, const float *b, int64_t n)
{
    double far = 0, length = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        far += d * d;
        length += (double)b[i] * (double)b[i];
    }
    return sqrt(far / length);
}

#endif
