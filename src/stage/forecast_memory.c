/* forecast_memory.c: plans of all modules, added up for a stage.
 *
 * 1. what trains   2. tensors, and the plan of a model   3. training   4. its teacher
 * 5. passes without gradients   6. programs without a model   7. all
 */
#include "stage/forecast_memory.h"

#include <math.h>
#include <string.h>

#include "base/files.h"
#include "comm/lanes.h"
#include "comm/scatter.h"
#include "model/kv_cache.h"
#include "stage/forecast_fuse.h"
#include "stage/forecast_makers.h"
#include "stage/train_parts.h"
#include "store/teacher.h"

/* A program before it has anything: libraries' own data, thread stacks, MPI's buffers; and the kernels that
 * the library of products keeps, one for each shape of a product in f32 (bf16 has our own). */
#define PROGRAM_BYTES ((double)24 * (1 << 20))
#define MPI_BYTES     ((double)40 * (1 << 20))
#define KERNEL_BYTES  ((double)40 * (1 << 20))
#define GPU_BYTES     ((double)640 * (1 << 20)) /* of a GPU: CUDA's own, kernels, the products' work space */
#define CUDA_BYTES    ((double)320 * (1 << 20)) /* of the host, for a process that has a GPU: the driver's */
#define OTHER_BYTES   ((double)16 * (1 << 20))  /* files and checkpoints, as trainer_memory.c */
#define SCORE_BYTES   ((double)4 * (1 << 20))   /* the same of main_score.c */
#define SHARD_CACHE   ((double)256 * (1 << 20))
#define INDEX_BYTES   58                       /* of a record: the columns of a shard that stay in memory */
#define SHARD_BYTES   ((double)96 * (1 << 20)) /* of moe-shard: a unit of text, a tokenizer's tables */

const char *mb_forecast_memory_name(mb_forecast_memory_kind kind)
{
    static const char *const names[MB_FORECAST_MEMORY_KINDS] = {
        "weights",     "blocks brought in",     "trained", "optimiser",       "gradients",
        "activations", "copy for a checkpoint", "other",   "keys and values", "data",
        "program"};
    return names[kind];
}

/* ---- 1. what trains ---- */

mb_status mb_forecast_memory_trained(const mb_forecast_stage *stage, const mb_forecast_model *model,
                                     mb_lora_options *storage, const mb_lora_options **out_lora,
                                     char **out_train)
{
    mb_status status = MB_OK;
    const mb_train_program *own = &stage->own.train;
    const bool is_warmup = mb_str_equal(own->objective.objective, "router_warmup");
    *out_lora = NULL;
    if (model->has_adapter) {
        *storage = model->adapter;
        *out_lora = storage;
    }
    if (stage->program != MB_FORECAST_TRAIN) {
        *out_train = mb_strdup("none");
        if (*out_train == NULL) MB_RAISE(MB_ENOMEM, "no memory for a word");
        return MB_OK;
    }
    if (!model->has_adapter && mb_str_equal(own->peft_mode, "lora")) {
        *storage = (mb_lora_options){
            .r = own->lora_r, .alpha = own->lora_alpha, .targets = is_warmup ? "gate" : own->lora_targets};
        *out_lora = storage;
    }
    MB_TRY(mb_train_parts_get(own, model->has_adapter, out_train));
done:
    return status;
}

/* The same as patterns of tensor names (params.h). */
static const char *patterns_of(const mb_arch *arch, const char *train, bool has_lora)
{
    if (mb_str_equal(train, "none")) return "none";
    if (has_lora) return strchr(train, ',') != NULL ? strchr(train, ',') + 1 : "lora";
    if (!mb_str_equal(train, "router")) return train;
    return arch->family == MB_FAMILY_MIXTRAL ? "*.block_sparse_moe.gate.weight" : "*.mlp.gate.weight";
}

/* ---- 2. tensors, and the plan of a model ---- */

static bool is_adapter(const mb_param *param)
{
    return strstr(param->name, ".lora_") != NULL;
}

/* Elements by kind, and the most that are filled at one time under zero > 1: one block, and with a tied head
 * the embedding besides. */
static mb_status count_tensors(const mb_arch *arch, const char *train, const mb_lora_options *opt_lora,
                               mb_forecast_memory *out, int64_t *out_filled)
{
    mb_status status = MB_OK;
    mb_params *params = NULL;
    mb_lora lora = {0};
    int64_t first, most = 0;
    MB_TRY(mb_params_create(arch, NULL, &params));
    if (opt_lora != NULL) MB_TRY(mb_lora_attach(&lora, opt_lora, arch, params));
    MB_TRY(mb_params_choose(params, patterns_of(arch, train, opt_lora != NULL)));
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const double n = (double)mb_tensor_count(&param->value);
        if (param->trained) out->trained += n;
        if (is_adapter(param)) {
            const bool is_expert = strstr(param->name, ".experts.") != NULL;
            out->adapter += n;
            out->adapter_active += is_expert ? n * (double)arch->picks / (double)arch->experts : n;
        } else {
            out->parameters += n;
            out->tensors += 1;
        }
    }
    const int64_t embedding = mb_params_block_trained(params, MB_PARAMS_EMBEDDING, &first);
    for (int64_t b = 0; b <= arch->layers; b++) {
        const int64_t n = mb_params_block_trained(params, b, &first);
        if (n > most) most = n;
    }
    *out_filled = arch->tied_head ? embedding + most : embedding > most ? embedding : most;
done:
    mb_lora_reset(&lora);
    mb_params_destroy(&params);
    return status;
}

/* Of a fused model: tensors of all members, and the routers, which alone may train. */
static mb_status plan_fused(const mb_forecast_model *model, bool trains, const mb_lm_plan_options *shape,
                            mb_forecast_memory *out, int64_t *out_filled, mb_lm_plan *plan)
{
    mb_status status = MB_OK;
    mb_fuse_plan all;
    MB_TRY(mb_forecast_fuse_plan(model, trains, shape, &all));
    for (int64_t m = 0; m < model->fused->count; m++) {
        const mb_forecast_model *member = &model->fused->member[m];
        mb_forecast_memory one = {0};
        MB_TRY(count_tensors(&member->arch, "none", NULL, &one, out_filled));
        out->parameters += one.parameters;
        out->tensors += one.tensors;
    }
    out->router += (double)all.router;
    out->router_tensors += (double)all.tensors;
    out->parameters += (double)all.router;
    out->tensors += (double)all.tensors;
    if (trains) out->trained += (double)all.router;
    *out_filled = all.most_of_block;
    *plan = all.bytes;
done:
    return status;
}

/* Any model: what trains is counted into *out. */
static mb_status plan_model(const mb_forecast_stage *stage, const mb_forecast_model *model, const char *train,
                            const mb_lora_options *opt_lora, const mb_lm_plan_options *shape,
                            mb_forecast_memory *out, int64_t *out_filled, mb_lm_plan *plan)
{
    mb_status status = MB_OK;
    if (model->fused != NULL)
        return plan_fused(model, mb_forecast_stage_is_btm(stage), shape, out, out_filled, plan);
    MB_TRY(count_tensors(&model->arch, train, opt_lora, out, out_filled));
    MB_TRY(mb_lm_plan_get(&model->arch, train, opt_lora, shape, plan));
done:
    return status;
}

/* ---- 3. training ---- */

static int64_t owned_elements(int64_t trained, int64_t ranks)
{
    const int64_t blocks = (trained + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK,
                  mine = (blocks + ranks - 1) / ranks * MB_LANES_BLOCK;
    return mine < trained ? mine : trained;
}

/* What batches and objective keep beside a pass (trainer_memory.c). */
static double batch_bytes(const mb_forecast_model *model, const mb_trainer_options *o, int64_t lanes,
                          int64_t ranks, double tokens, double rows)
{
    const mb_arch *arch = &model->arch;
    const int64_t rounds = (o->gradient_accumulation_steps + lanes - 1) / lanes,
                  mine = rounds * ((lanes + ranks - 1) / ranks),
                  routers = model->fused != NULL ? mb_forecast_fuse_stages(model) : mb_arch_moe_layers(arch);
    const double router = routers > 0 ? 8 + (double)(routers * 4 * mb_arch_gates(arch)) : 0;
    return (double)mine * tokens * 4 + rows * (32 + router);
}

/* Copies of the matrices in packed form that are kept (ops/cpu/packed.c), by the calls and tokens that a
 * version of the values meets on this rank. bf16: from its second call on; f32: from its 256th tile of 128
 * rows; quantised: none. An expert meets its share of the tokens. */
static double packed_ways(const mb_arch *arch, const mb_lm_plan_options *shape, double calls, double tokens)
{
    const double share = arch->experts > 0 ? (double)arch->picks / (double)arch->experts : 1;
    if (shape->dtype == MB_BF16) return calls >= 2 ? 2 : 0.2;
    return tokens * share >= 256 * 128 ? 2 : 0;
}

static double training_packed(const mb_arch *arch, const mb_lm_plan_options *shape,
                              const mb_trainer_options *o, const mb_forecast_data *data, double packed,
                              int64_t ranks, const mb_forecast_memory *model)
{
    const double all = model->parameters + model->adapter, trained = all > 0 ? model->trained / all : 0,
                 calls = ceil((double)o->gradient_accumulation_steps / (double)ranks),
                 tokens = data->run_tokens / (double)ranks,
                 kept = shape->frozen_bits != 0 ? 0 : packed_ways(arch, shape, calls * data->steps, tokens),
                 changing = packed_ways(arch, shape, calls, data->steps > 0 ? tokens / data->steps : 0);
    return packed * ((1 - trained) * kept + trained * changing);
}

static mb_status storage_of(mb_forecast_stage *stage, mb_lm_plan_options *shape)
{
    mb_status status = MB_OK;
    mb_lm_options lm = {0};
    MB_TRY(mb_model_options_storage(mb_forecast_stage_model(stage), &lm));
    shape->dtype = lm.dtype;
    shape->frozen_bits = lm.frozen_bits;
    shape->frozen_group = lm.frozen_group;
    shape->shard = lm.shard;
    shape->ahead = lm.ahead || (lm.shard && shape->ranks > shape->node_ranks);
    shape->share = lm.share && !stage->on_gpu;
done:
    return status;
}

static mb_status check_lanes(int64_t ranks, int64_t lanes)
{
    if (ranks <= lanes) return MB_OK;
    return mb_fail(
        MB_EUSAGE,
        "%lld ranks, and a step has %lld lanes: at most so many ranks can share it; ask for fewer, or raise "
        "training.lanes and training.gradient_accumulation_steps",
        (long long)ranks, (long long)lanes);
}

/* One pass of a training step, and where there are some its passes beside without gradient; or if that is
 * more, what a validation needs. */
typedef struct training_shape {
    const mb_lora_options *lora;
    const char *train;
    mb_lm_plan_options plan;
    double copies;  /* of each row */
    int64_t passes; /* without gradient */
} training_shape;

static mb_status plan_steps(const mb_forecast_stage *stage, const mb_forecast_model *model,
                            const mb_forecast_data *data, const training_shape *t, mb_forecast_memory *out,
                            int64_t *out_filled, mb_lm_plan *plan)
{
    mb_status status = MB_OK;
    mb_forecast_memory ignored = {0};
    mb_lm_plan plain = {0}, looking = {0};
    mb_lm_plan_options shape = t->plan;
    int64_t filled;
    MB_TRY(plan_model(stage, model, t->train, t->lora, &shape, out, out_filled, plan));
    shape.gradient = false;
    if (t->passes > 0) MB_TRY(plan_model(stage, model, t->train, t->lora, &shape, &ignored, &filled, &plain));
    shape.tokens = (int64_t)(data->validated * t->copies);
    if (shape.tokens > 0)
        MB_TRY(plan_model(stage, model, t->train, t->lora, &shape, &ignored, &filled, &looking));
    const double passes = (double)t->passes, each = (double)(plain.activations + plain.scratch),
                 training = (double)(plan->activations + plan->scratch) + passes * each,
                 looked = (1 + passes) * (double)(looking.activations + looking.scratch);
    out->bytes[MB_FORECAST_ACTIVATIONS] = fmax(training, looked);
done:
    return status;
}

/* Beside the passes: what stays over the steps. */
static void add_training(const mb_forecast_stage *stage, const mb_forecast_model *model,
                         const mb_forecast_data *data, const mb_lm_plan *plan, mb_dtype dtype, int bits,
                         int64_t ranks, int64_t filled, mb_forecast_memory *out)
{
    const mb_trainer_options *o = &stage->own.train.trainer;
    const int64_t n = (int64_t)out->trained, most = o->gradient_accumulation_steps,
                  lanes = o->lanes < most ? o->lanes : most;
    const bool is_copied = o->async_save && !(o->zero == 3 && ranks > 1);
    const mb_lm_plan_options shape = {.dtype = dtype, .frozen_bits = bits};
    const mb_arch *arch = model->fused != NULL ? &model->fused->member[0].arch : &model->arch;
    out->bytes[MB_FORECAST_WEIGHTS] = (double)plan->weights;
    out->bytes[MB_FORECAST_BLOCKS] = (double)plan->slots;
    out->bytes[MB_FORECAST_TRAINED] = (double)plan->trained;
    out->bytes[MB_FORECAST_OPTIMISER] = 8 * (double)owned_elements(n, ranks);
    out->bytes[MB_FORECAST_GRADIENTS] = (double)(o->zero > 1 ? mb_scatter_plan(n, lanes, (int)ranks, filled)
                                                             : mb_lanes_plan(n, lanes, (int)ranks));
    out->bytes[MB_FORECAST_CHECKPOINT] = is_copied ? 12 * (double)n : 0;
    out->bytes[MB_FORECAST_OTHER] = OTHER_BYTES;
    if (!stage->on_gpu)
        out->bytes[MB_FORECAST_OTHER] +=
            training_packed(arch, &shape, o, data, (double)plan->packed, ranks, out);
    else if (dtype == MB_BF16) /* trained f32 values as bf16 products take them */
        out->bytes[MB_FORECAST_WEIGHTS] += 2 * out->trained;
}

/* ---- 4. its teacher ---- */

/* k of a stored teacher, whether or not it is there yet; 0: none is read. */
static mb_status stored_k(const mb_forecast_stage *stage, int64_t vocab, int64_t *out_k)
{
    mb_status status = MB_OK;
    const char *path = stage->own.train.objective.teacher_store;
    mb_teacher *teacher = NULL;
    mb_forecast_stage maker = {0};
    bool is_made = false;
    *out_k = 0;
    if (!mb_forecast_stage_is_distil(stage) || path == NULL) goto done;
    *out_k = 128; /* moe-teacher's own */
    if (mb_files_is_file(path)) {
        MB_TRY(mb_teacher_open(path, &teacher));
        *out_k = mb_teacher_shape_get(teacher)->k;
    } else {
        MB_TRY(mb_forecast_makers_find(stage, path, &maker, &is_made));
        if (is_made && maker.program == MB_FORECAST_TEACHER) *out_k = maker.own.teacher.maker.k;
    }
    if (*out_k > vocab) *out_k = vocab;
done:
    mb_teacher_close(&teacher);
    mb_forecast_stage_reset(&maker);
    return status;
}

/* Weights, a pass over the largest micro-batch, and the logits of its rows, which on a device the host holds
 * too (trainer_memory.c); or, of a stored one, what is handed over with each row. */
static mb_status plan_online(mb_forecast_stage *stage, const mb_forecast_model *teacher, double rows,
                             int64_t ranks, int64_t node_ranks, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    const mb_train_program *own = &stage->own.train;
    mb_model_options model = own->model;
    mb_lm_options lm = {0};
    mb_forecast_memory counted = {0};
    mb_lm_plan plan;
    int64_t filled;
    model.quantize = own->teacher_quantize;
    model.load_in_4bit = model.load_in_8bit = false;
    MB_TRY(mb_model_options_storage(&model, &lm));
    const bool is_fused = teacher->fused != NULL, is_mixed = is_fused && mb_forecast_fuse_is_mixed(teacher),
               shard = !is_fused && (lm.shard || own->trainer.zero == 3);
    const mb_lm_plan_options shape = {.tokens = (int64_t)rows,
                                      .has_head = true,
                                      .dtype = lm.dtype,
                                      .frozen_bits = lm.frozen_bits,
                                      .frozen_group = lm.frozen_group,
                                      .shard = shard,
                                      .ahead = shard && (lm.ahead || ranks > node_ranks),
                                      .share = lm.share && !stage->on_gpu,
                                      .ranks = (int)ranks,
                                      .node_ranks = (int)node_ranks};
    const mb_lora_options *lora = teacher->has_adapter ? &teacher->adapter : NULL;
    MB_TRY(plan_model(stage, teacher, "none", lora, &shape, &counted, &filled, &plan));
    const double each = 4 * rows * (double)teacher->arch.vocab,
                 logits = each * (is_mixed ? (double)teacher->fused->count + 1 : 1);
    out->bytes[MB_FORECAST_WEIGHTS] += (double)plan.weights;
    out->bytes[MB_FORECAST_BLOCKS] += (double)plan.slots;
    out->bytes[MB_FORECAST_ACTIVATIONS] +=
        (double)(plan.activations + plan.scratch) + (stage->on_gpu ? 2 : 1) * logits;
    if (!stage->on_gpu && lm.frozen_bits == 0) out->bytes[MB_FORECAST_OTHER] += 2 * (double)plan.packed;
    out->teacher = counted.parameters;
done:
    return status;
}

static mb_status add_teacher(mb_forecast_stage *stage, const mb_forecast_model *model,
                             const mb_forecast_model *opt_teacher, const mb_forecast_data *data,
                             int64_t ranks, int64_t node_ranks, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    int64_t k;
    const double rows = fmax(data->most, data->validated);
    if (opt_teacher != NULL) MB_TRY(plan_online(stage, opt_teacher, rows, ranks, node_ranks, out));
    MB_TRY(stored_k(stage, model->arch.vocab, &k));
    if (k > 0)
        out->bytes[MB_FORECAST_ACTIVATIONS] += (stage->on_gpu ? 2 : 1) * rows * 4 * (double)(2 * k + 1);
done:
    return status;
}

static mb_status plan_training(mb_forecast_stage *stage, const mb_forecast_model *model,
                               const mb_forecast_model *opt_teacher, const mb_forecast_data *data,
                               int64_t ranks, int64_t node_ranks, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    const mb_train_program *own = &stage->own.train;
    const mb_trainer_options *o = &own->trainer;
    const bool is_warmup = mb_str_equal(own->objective.objective, "router_warmup"),
               copies = is_warmup && mb_str_equal(own->objective.constraint_loss, "pair_rank") &&
                        own->objective.constraint_loss_weight != 0;
    const int64_t most = o->gradient_accumulation_steps, lanes = o->lanes < most ? o->lanes : most;
    mb_lora_options storage;
    mb_lm_plan plan;
    int64_t filled = 0;
    char *train = NULL;
    training_shape t = {.copies = copies ? 2 : 1};
    MB_TRY(check_lanes(ranks, lanes));
    MB_TRY(mb_forecast_memory_trained(stage, model, &storage, &t.lora, &train));
    const double rows = data->most * t.copies;
    t.train = train;
    t.passes =
        mb_objective_plain_passes(&own->objective, t.lora != NULL, t.lora != NULL && !model->has_adapter);
    t.plan = (mb_lm_plan_options){.tokens = (int64_t)rows,
                                  .gradient = true,
                                  .recompute = mb_str_equal(o->recompute, "blocks") ||
                                               mb_str_equal(o->recompute, "true"),
                                  .has_head = true,
                                  .ranks = (int)ranks,
                                  .node_ranks = (int)node_ranks};
    MB_TRY(storage_of(stage, &t.plan));
    t.plan.shard = t.plan.shard || o->zero == 3;
    t.plan.ahead = t.plan.ahead || (t.plan.shard && ranks > node_ranks);
    if (model->fused != NULL && t.plan.shard)
        MB_RAISE(MB_EUSAGE, "model.shard (training.zero = 3) does not go with a fused model");
    MB_TRY(plan_steps(stage, model, data, &t, out, &filled, &plan));
    out->bytes[MB_FORECAST_ACTIVATIONS] += batch_bytes(model, o, lanes, ranks, data->most, rows);
    add_training(stage, model, data, &plan, t.plan.dtype, t.plan.frozen_bits, ranks, filled, out);
    MB_TRY(add_teacher(stage, model, opt_teacher, data, ranks, node_ranks, out));
done:
    mb_free(train);
    return status;
}

/* ---- 5. passes without gradients ---- */

/* Passes that are open at a time: on a GPU the next tile is computed while the host works on the last
 * (scorer.h). */
static double passes_of(const mb_forecast_stage *stage)
{
    const bool has_tiles = stage->program == MB_FORECAST_SCORE || stage->program == MB_FORECAST_EVAL ||
                           stage->program == MB_FORECAST_TEACHER;
    return stage->on_gpu && has_tiles ? 2 : 1;
}

static mb_status plan_pass(mb_forecast_stage *stage, const mb_forecast_model *model, double tokens,
                           bool has_head, int64_t ranks, int64_t node_ranks, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    mb_lm_plan plan;
    int64_t filled;
    const mb_lora_options *lora = model->has_adapter ? &model->adapter : NULL;
    mb_lm_plan_options shape = {
        .tokens = (int64_t)tokens, .has_head = has_head, .ranks = (int)ranks, .node_ranks = (int)node_ranks};
    MB_TRY(storage_of(stage, &shape));
    MB_TRY(plan_model(stage, model, "none", lora, &shape, out, &filled, &plan));
    out->bytes[MB_FORECAST_WEIGHTS] += (double)plan.weights;
    out->bytes[MB_FORECAST_BLOCKS] += (double)plan.slots;
    out->bytes[MB_FORECAST_ACTIVATIONS] += passes_of(stage) * (double)(plan.activations + plan.scratch);
    out->bytes[MB_FORECAST_OTHER] += shape.frozen_bits != 0 || stage->on_gpu ? 0 : (double)plan.packed;
done:
    return status;
}

/* A tile holds at most tile_tokens tokens, or one longer record, or all there is. */
static double tile_rows(double tile_tokens, const mb_forecast_data *data)
{
    double rows = data->is_known && data->longest > tile_tokens ? data->longest : tile_tokens;
    if (data->is_known && data->tokens < rows) rows = data->tokens;
    return rows;
}

static mb_status plan_scoring(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                              const mb_forecast_model *opt_source, const mb_forecast_data *data,
                              int64_t ranks, int64_t node_ranks, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    const double tokens = (double)stage->own.score.scorer.tile_tokens;
    mb_scorer_needs needs;
    MB_TRY(mb_scorer_needs_get(stage->own.score.scorer.scores, &needs));
    if (opt_source != NULL) MB_TRY(plan_pass(stage, opt_source, tokens, needs.head, ranks, node_ranks, out));
    out->parameters = out->tensors = 0; /* those of the model that scores count */
    if (opt_model != NULL) MB_TRY(plan_pass(stage, opt_model, tokens, false, ranks, node_ranks, out));
    out->bytes[MB_FORECAST_OTHER] += SCORE_BYTES;
done:
    (void)data;
    return status;
}

/* Keys and values of so many rows, and logits: of every sequence, a sampler's copy of a thread, and what
 * mixing has beside. At most as many rows as sequences can have positions. */
static mb_status plan_answers(mb_forecast_stage *stage, const mb_forecast_model *model, int64_t rows,
                              int64_t sequences, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    mb_lm_options lm = {0};
    const mb_arch *arch = &model->arch;
    const int64_t most = sequences * mb_rotary_limit(&arch->rotary, arch->max_positions);
    if (most > 0 && most < rows) rows = most;
    MB_TRY(mb_model_options_storage(mb_forecast_stage_model(stage), &lm));
    out->bytes[MB_FORECAST_CACHE] = model->fused != NULL ? mb_forecast_fuse_cache(model, lm.dtype, rows)
                                                         : (double)mb_kv_cache_plan(arch, lm.dtype, rows);
    out->bytes[MB_FORECAST_OTHER] += 8.0 * (double)sequences * (double)arch->vocab;
    if (model->fused != NULL)
        out->bytes[MB_FORECAST_ACTIVATIONS] += mb_forecast_fuse_logits(model, (double)sequences);
done:
    return status;
}

static mb_status plan_generation(mb_forecast_stage *stage, const mb_forecast_model *model, int64_t ranks,
                                 int64_t node_ranks, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    const mb_generate_options *o = &stage->own.infer.generate;
    const int64_t sequences = o->batch_sequences > o->samples ? o->batch_sequences : o->samples;
    MB_TRY(plan_pass(stage, model, (double)(o->prefill_tokens + o->batch_sequences), true, ranks, node_ranks,
                     out));
    MB_TRY(plan_answers(stage, model, o->cache ? o->batch_tokens : 0, sequences, out));
done:
    return status;
}

/* Scoring; with category files answers are generated too, and comparing needs no model. */
static mb_status plan_evaluation(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                                 const mb_forecast_data *data, int64_t ranks, int64_t node_ranks,
                                 mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    const mb_eval_program *own = &stage->own.eval;
    if (opt_model == NULL) {
        out->bytes[MB_FORECAST_OTHER] = SHARD_BYTES;
        return MB_OK;
    }
    const double rows = tile_rows((double)own->tile_tokens, data);
    MB_TRY(plan_pass(stage, opt_model, rows, true, ranks, node_ranks, out));
    if (opt_model->fused != NULL && opt_model->fused->by_logits)
        out->bytes[MB_FORECAST_ACTIVATIONS] += mb_forecast_fuse_logits(opt_model, rows);
    if (own->category.files != NULL && own->category.generate)
        MB_TRY(plan_answers(stage, opt_model, MB_CATEGORY_BATCH_TOKENS, own->category.batch_sequences, out));
done:
    return status;
}

/* A pass and its logits, those of every member and of the mixture, and the parts that are being filled
 * (teacher_report.c). */
static mb_status plan_teacher(mb_forecast_stage *stage, const mb_forecast_model *model,
                              const mb_forecast_data *data, int64_t ranks, int64_t node_ranks,
                              mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    const mb_teacher_maker_options *o = &stage->own.teacher.maker;
    const bool is_mixed = model->fused != NULL && mb_forecast_fuse_is_mixed(model);
    const double rows = tile_rows((double)o->tile_tokens, data), vocab = (double)model->arch.vocab,
                 logits = 4 * rows * vocab * (is_mixed ? (double)(model->fused->count + 1) : 1),
                 kept = 8 * fmin((double)o->k, vocab) + 20, part = fmin(data->tokens * kept, 268435456.0);
    MB_TRY(plan_pass(stage, model, rows, true, ranks, node_ranks, out));
    out->bytes[MB_FORECAST_ACTIVATIONS] += passes_of(stage) * logits;
    out->bytes[MB_FORECAST_OTHER] += SCORE_BYTES + passes_of(stage) * (part + (stage->on_gpu ? logits : 0));
done:
    return status;
}

static mb_status plan_embedding(mb_forecast_stage *stage, const mb_forecast_model *model,
                                const mb_forecast_data *data, int64_t ranks, int64_t node_ranks,
                                mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    mb_lm_options lm = {0};
    const double rows = tile_rows((double)stage->own.embed.embed.tile_tokens, data);
    if (!model->is_encoder) return plan_pass(stage, model, rows, false, ranks, node_ranks, out);
    MB_TRY(mb_model_options_storage(mb_forecast_stage_model(stage), &lm));
    const mb_encoder_plan plan = mb_encoder_plan_get(&model->encoder, lm.dtype, (int64_t)rows);
    out->parameters = (double)mb_encoder_config_parameters(&model->encoder);
    out->bytes[MB_FORECAST_WEIGHTS] = (double)plan.weights;
    out->bytes[MB_FORECAST_ACTIVATIONS] = (double)plan.activations;
    out->bytes[MB_FORECAST_OTHER] = (double)plan.packed + SCORE_BYTES;
done:
    return status;
}

/* ---- 6. programs without a model ---- */

/* moe-convert upcycle writes tensor by tensor; prompts and verification have one layer in f32 (and packed),
 * the logits of both models and a part of the head. */
static mb_status plan_upcycling(mb_forecast_stage *stage, const mb_arch *dense, mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    mb_convert_program *own = &stage->own.convert;
    mb_convert_upcycle_plan plan = {0};
    int64_t filled;
    MB_TRY(mb_convert_upcycle_plan_create(dense, "model.path", &own->upcycle, &plan));
    MB_TRY(count_tensors(&plan.arch, "none", NULL, out, &filled));
    const double d = (double)dense->width, v = (double)dense->vocab;
    const bool has_passes = own->verify || mb_str_equal(own->upcycle.router_init, "prompts");
    const bool is_averaged = own->upcycle.siblings != NULL && own->upcycle.siblings[0] != 0;
    const double layer = (out->parameters - v * d * (dense->tied_head ? 1 : 2)) / (double)dense->layers;
    const double largest = is_averaged ? v * d : d * (double)plan.arch.ffn;
    out->bytes[MB_FORECAST_WEIGHTS] = has_passes ? 8 * layer : 0;
    out->bytes[MB_FORECAST_ACTIVATIONS] = own->verify ? 4 * (2 * 64 * v + 2 * 4096 * d) : 0;
    out->bytes[MB_FORECAST_OTHER] = OTHER_BYTES + 8 * largest;
done:
    mb_convert_upcycle_plan_reset(&plan);
    return status;
}

/* moe-convert maps the source and writes tensor by tensor; a verification computes with both, in f32. */
static mb_status plan_conversion(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                                 mb_forecast_memory *out)
{
    mb_status status = MB_OK;
    int64_t filled;
    const mb_convert_program *own = &stage->own.convert;
    if (opt_model == NULL || opt_model->is_encoder) goto done;
    if (mb_str_equal(stage->mode, "upcycle")) return plan_upcycling(stage, &opt_model->arch, out);
    MB_TRY(count_tensors(&opt_model->arch, "none", NULL, out, &filled));
    const bool is_init = mb_str_equal(stage->mode, "init"), is_verified = own->verify && !is_init;
    out->bytes[MB_FORECAST_WEIGHTS] = 4 * out->parameters * (is_verified ? 2 : 1);
    out->bytes[MB_FORECAST_OTHER] = OTHER_BYTES;
done:
    return status;
}

/* Columns of all records on every rank, and the share's values (main_select.c). */
static void plan_selection(const mb_forecast_data *data, int64_t ranks, mb_forecast_memory *out)
{
    out->bytes[MB_FORECAST_DATA] = data->records * (50 + 40.0 / (double)ranks);
    out->bytes[MB_FORECAST_OTHER] = OTHER_BYTES;
}

/* ---- 7. all ---- */

/* A shard's index stays in memory; its tokens as far as the cache goes. */
static void add_data(const mb_forecast_stage *stage, const mb_forecast_data *data, mb_forecast_memory *out)
{
    const bool is_training = stage->program == MB_FORECAST_TRAIN;
    double share = 1;
    if (is_training && stage->own.train.trainer.subset_ratio > 0)
        share = data->is_exact ? 1 / stage->own.train.trainer.subset_ratio
                               : 1 / stage->own.train.trainer.subset_ratio;
    const double records = data->records * share, tokens = data->tokens * share;
    out->bytes[MB_FORECAST_DATA] +=
        records * (INDEX_BYTES + (is_training ? 16 : 24)) + fmin(SHARD_CACHE, 5 * tokens);
}

static mb_status plan(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                      const mb_forecast_model *opt_source, const mb_forecast_data *data, int64_t ranks,
                      int64_t node_ranks, mb_forecast_memory *out)
{
    switch (stage->program) {
    case MB_FORECAST_TRAIN:
        add_data(stage, data, out);
        return plan_training(stage, opt_model, opt_source, data, ranks, node_ranks, out);
    case MB_FORECAST_SCORE:
        add_data(stage, data, out);
        return plan_scoring(stage, opt_model, opt_source, data, ranks, node_ranks, out);
    case MB_FORECAST_EVAL:
        if (opt_model != NULL) add_data(stage, data, out);
        return plan_evaluation(stage, opt_model, data, ranks, node_ranks, out);
    case MB_FORECAST_EMBED:
        add_data(stage, data, out);
        return plan_embedding(stage, opt_model, data, ranks, node_ranks, out);
    case MB_FORECAST_TEACHER:
        add_data(stage, data, out);
        return plan_teacher(stage, opt_model, data, ranks, node_ranks, out);
    case MB_FORECAST_INFER:
        return plan_generation(stage, opt_model, ranks, node_ranks, out);
    case MB_FORECAST_CONVERT:
        return plan_conversion(stage, opt_model, out);
    case MB_FORECAST_SELECT:
        plan_selection(data, ranks, out);
        return MB_OK;
    default:
        out->bytes[MB_FORECAST_OTHER] = SHARD_BYTES;
        return MB_OK;
    }
}

static bool is_f32_model(mb_forecast_stage *stage)
{
    mb_lm_options lm = {0};
    const mb_model_options *model = mb_forecast_stage_model(stage);
    return model != NULL && mb_model_options_storage(model, &lm) == MB_OK && lm.dtype == MB_F32;
}

bool mb_forecast_memory_is_of_gpu(mb_forecast_memory_kind kind)
{
    return kind != MB_FORECAST_CHECKPOINT && kind != MB_FORECAST_OTHER && kind != MB_FORECAST_DATA &&
           kind != MB_FORECAST_PROGRAM;
}

mb_status mb_forecast_memory_get(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                                 const mb_forecast_model *opt_source, const mb_forecast_data *data,
                                 int64_t ranks, int64_t node_ranks, mb_forecast_memory *out_memory)
{
    mb_status status = MB_OK;
    mb_forecast_memory memory = {0};
    if (stage->program == MB_FORECAST_CONVERT) ranks = node_ranks = 1;
    MB_TRY(plan(stage, opt_model, opt_source, data, ranks, node_ranks, &memory));
    memory.bytes[MB_FORECAST_PROGRAM] = PROGRAM_BYTES + (ranks > 1 ? MPI_BYTES : 0) +
                                        (stage->on_gpu         ? CUDA_BYTES
                                         : is_f32_model(stage) ? KERNEL_BYTES
                                                               : 0);
    for (int k = 0; k < MB_FORECAST_MEMORY_KINDS; k++)
        *(stage->on_gpu && mb_forecast_memory_is_of_gpu((mb_forecast_memory_kind)k) ? &memory.gpu
                                                                                    : &memory.rank) +=
            memory.bytes[k];
    if (stage->on_gpu) memory.gpu += GPU_BYTES;
    /* The copy for a checkpoint is one rank's alone. */
    memory.node =
        memory.rank * (double)node_ranks - memory.bytes[MB_FORECAST_CHECKPOINT] * (double)(node_ranks - 1);
    *out_memory = memory;
done:
    return status;
}
