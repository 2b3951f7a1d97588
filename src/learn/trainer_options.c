/* trainer_options.c: the option table of the trainer.
 *
 * 1. table
 */
#include "learn/trainer.h"

/* ---- 1. table ---- */

#define REAL(member, key, value, low, high, unit, help, alias)                                               \
    MB_OPTION_REAL(mb_trainer_options, member, key, value, low, high, unit, help, alias)
#define INT(member, key, value, low, unit, help, alias)                                                      \
    MB_OPTION_INT(mb_trainer_options, member, key, value, low, 1e15, unit, help, alias)
#define WORD(member, key, value, choices, help)                                                              \
    MB_OPTION_TEXT(mb_trainer_options, member, key, value, choices, help, NULL)

static const mb_option table[] = {
    REAL(learning_rate, "training.learning_rate", "1e-4", 0, 1e3, "", "highest learning rate", "training.lr"),
    REAL(epochs, "training.epochs", "1", 0, 1e9, "epochs", "passes over the data; parts of one are allowed",
         "training.num_epochs|training.num_train_epochs"),
    INT(max_steps, "training.max_steps", "0", 0, "steps", "optimiser steps, instead of epochs; 0: by epochs",
        NULL),
    INT(max_tokens, "training.max_tokens", "0", 0, "tokens",
        "stop at the first step that reaches so many, instead of epochs; 0: by epochs", NULL),
    INT(batch_size, "training.batch_size", "8", 1, "records",
        "records of a micro-batch, of a pair shard pairs", "training.per_device_train_batch_size"),
    INT(gradient_accumulation_steps, "training.gradient_accumulation_steps", "8", 1, "micro-batches",
        "micro-batches of a step, over all ranks", NULL),
    INT(lanes, "training.lanes", "8", 1, "lanes",
        "parts a step's sums are made of, cut to the micro-batches of a step; the most ranks there can be",
        NULL),
    MB_OPTION_INT(mb_trainer_options, zero, "training.zero", "1", 1, 3, "",
                  "what is cut over the ranks: 1 optimiser state, 2 gradients too, 3 parameters too",
                  "training.zero_stage|zero_stage"),
    MB_OPTION_TEXT(mb_trainer_options, recompute, "training.recompute", "none", "none|blocks|true|false",
                   "blocks: keep only the input of each block and make the rest again on the way back; the "
                   "same bits for a third more time",
                   "training.gradient_checkpointing|gradient_checkpointing|recompute"),
    INT(max_length, "dataset.max_length", "0", 0, "tokens",
        "records are cut to so many tokens; 0: as in the shard", NULL),
    REAL(subset_ratio, "dataset.subset_ratio", "0", 0, 1, "share",
         "share of the records used, drawn by the seed; 0: 0.05 for router_warmup, else all", NULL),
    INT(seed, "training.seed", "42", 0, "", "seed of every draw", NULL),
    WORD(schedule, "training.lr_scheduler_type", "linear", "linear|cosine|constant",
         "course of the learning rate after its warm-up"),
    REAL(warmup_ratio, "training.warmup_ratio", "0", 0, 1, "share",
         "share of the steps over which the learning rate rises", NULL),
    INT(warmup_steps, "training.warmup_steps", "0", 0, "steps",
        "steps over which the learning rate rises; 0: by warmup_ratio", NULL),
    REAL(weight_decay, "training.weight_decay", "0", 0, 1e3, "",
         "AdamW's weight decay; norms and biases are spared", NULL),
    REAL(adam_beta1, "training.adam_beta1", "0.9", 0, 1, "", "AdamW's decay of the first moment", NULL),
    REAL(adam_beta2, "training.adam_beta2", "0.999", 0, 1, "", "AdamW's decay of the second moment", NULL),
    REAL(adam_epsilon, "training.adam_epsilon", "1e-8", 0, 1, "", "AdamW's epsilon", NULL),
    REAL(max_grad_norm, "training.max_grad_norm", "1", 0, 1e9, "",
         "gradients are scaled down to this norm; 0: never", NULL),
    REAL(router_bias_rate, "training.router_bias_rate", "0", 0, 1, "",
         "load balance without a loss: after each step the selection bias of an expert picked less than the "
         "mean of its layer rises by this, of one picked more it falls (1e-3 is usual); 0: biases stay",
         "bias_gamma|moe_router_bias_update_rate"),
    WORD(save, "training.save", "full", "full|delta",
         "weights written after an epoch: whole, or only the trained tensors (an adapter is always written "
         "as such)"),
    INT(save_steps, "training.save_steps", "0", 0, "steps",
        "steps between checkpoints to resume from; 0: only at epoch ends", NULL),
    REAL(save_minutes, "training.save_minutes", "30", 0, 1e6, "min",
         "such a checkpoint at least this often; 0: never by time", NULL),
    INT(save_total_limit, "training.save_total_limit", "2", 0, "",
        "checkpoints to resume from that are kept; 0: all", NULL),
    MB_OPTION_BOOL(
        mb_trainer_options, async_save, "training.async_save", "false",
        "write them beside the next steps, from a copy of 12 bytes per trained element on rank 0; under "
        "training.zero = 3 on several ranks they are always written between the steps",
        NULL),
    INT(log_steps, "training.logging_steps", "10", 1, "steps", "steps between two lines of metrics", NULL),
    WORD(stored_dtype, "training.save_dtype", "source", "f32|bf16|f16|source",
         "number type of the weights written"),
    MB_OPTION_BOOL(mb_trainer_options, strict, "training.strict", "false",
                   "refuse to resume under another backend, instruction set, thread count or lanes", NULL),
    REAL(time_limit_minutes, "training.time_limit_minutes", "0", 0, 1e7, "min",
         "stop at a checkpoint before this time is over (exit 75); 0: no limit", NULL),
    INT(validation_steps, "training.validation_steps", "0", 0, "steps",
        "steps between two validations (training.validation_path); 0: at epoch ends. There is one before the "
        "first step and one after the last in any case",
        "training.eval_steps"),
    INT(validation_samples, "training.validation_samples", "0", 0, "records",
        "records (or pairs) to validate on, drawn by the seed; 0: all of the shard",
        "training.max_eval_samples"),
    MB_OPTION_TEXT(mb_trainer_options, save_best, "training.save_best", "auto", "auto|true|false",
                   "after every validation whose loss over all is the lowest so far write the weights to "
                   "<output.dir>/best; auto: for btm",
                   "training.load_best_model_at_end|training.save_best_model"),
    MB_OPTION_BOOL(
        mb_trainer_options, log_loads, "training.log_loads", "false",
        "count the tokens of every expert in the steps that are logged, also where no loss reads the "
        "routing (where one does they are counted anyway)",
        NULL),
};

const mb_option *mb_trainer_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof table[0]);
    return table;
}
