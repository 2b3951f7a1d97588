/* objective_distil.c: objective "distil": a student of a teacher. Per target token
 *     distill_loss_weight T^2 D(teacher, student) + task_loss_weight cross-entropy,
 * both distributions at the temperature T, and the gates' balance and z losses of a student with experts.
 * T^2 keeps the gradient of the first part at the size of the second's, whatever T is (Hinton et al. 2015,
 * section 2).
 *
 * The teacher is asked while training (its logits, from a pass before the student's), or was asked before
 * (moe-teacher): then k tokens and the rest as one bucket take the place of its distribution. What flows into
 * the logits is known with the batch, so the backward need not wait.
 *
 * 1. what it keeps   2. data   3. passes   4. loss   5. creation
 */
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "learn/objective_parts.h"
#include "model/fuse.h"
#include "store/teacher.h"

/* ---- 1. what it keeps ---- */

/* A stored teacher of one shard. */
typedef struct distil_store {
    char *path; /* NULL: none */
    mb_teacher *teacher;
    const mb_shard *shard; /* that it was checked with; NULL: not yet. Not followed */
    int64_t temperature;   /* its place in the file */
} distil_store;

typedef struct distil {
    double temperature, beta, distil_weight, task_weight;
    bool all_targets;
    mb_lm *teacher; /* online; NULL: stored */
    distil_store train, validation;
} distil;

static distil *distil_of(const mb_objective *self)
{
    return ((const mb_objective_parts *)self)->own;
}

static void destroy(mb_objective *self)
{
    distil *own = distil_of(self);
    if (own != NULL) {
        mb_teacher_close(&own->train.teacher);
        mb_teacher_close(&own->validation.teacher);
        mb_free(own->train.path);
        mb_free(own->validation.path);
        mb_free(own);
    }
    mb_objective_parts_destroy(self);
}

/* ---- 2. data ---- */

static mb_status check_store(const mb_objective_parts *parts, distil_store *store, mb_shard *shard,
                             int64_t max_length)
{
    mb_status status = MB_OK;
    const distil *own = parts->own;
    const mb_teacher_wish wish = {.shard = shard,
                                  .vocab = parts->vocab,
                                  .temperature = own->temperature,
                                  .all_targets = own->all_targets,
                                  .max_length = max_length};
    if (store->shard == shard) goto done;
    MB_TRY(mb_teacher_check(store->teacher, &wish, &store->temperature));
    store->shard = shard;
done:
    return status;
}

static mb_status add_teacher_setting(mb_objective *self, const distil *own)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY, storage = MB_STR_EMPTY;
    MB_TRY(mb_str_add(&text, self->settings));
    if (own->teacher == NULL) {
        MB_TRY(mb_str_add_format(&text, "teacher = %s\n", mb_teacher_content(own->train.teacher)));
    } else {
        MB_TRY(mb_params_describe_storage(mb_lm_params(own->teacher), &storage));
        MB_TRY(mb_str_add_format(&text, "teacher = %s %s %s\n", mb_lm_hash(own->teacher),
                                 mb_dtype_name(mb_lm_dtype(own->teacher)), mb_str_text(&storage)));
    }
    mb_free(self->settings);
    self->settings = mb_str_take(&text);
done:
    mb_str_destroy(&text);
    mb_str_destroy(&storage);
    return status;
}

static mb_status open_data(mb_objective *self, const mb_objective_data *data)
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    distil *own = distil_of(self);
    const bool is_first = own->train.shard == NULL;
    if (own->teacher == NULL) {
        MB_TRY(check_store(parts, &own->train, data->shard, data->max_length));
        if (data->opt_validation != NULL && own->validation.teacher == NULL)
            MB_RAISE(MB_EUSAGE,
                     "teacher.validation_store is missing: with teacher.store the validation records need "
                     "theirs too (moe-teacher dataset.path=%s ...)",
                     mb_shard_file_path(data->opt_validation, 0));
        if (data->opt_validation != NULL)
            MB_TRY(check_store(parts, &own->validation, data->opt_validation, data->max_length));
    }
    own->train.shard = data->shard;
    if (is_first) MB_TRY(add_teacher_setting(self, own));
done:
    return status;
}

/* ---- 3. passes ---- */

static int64_t count_targets(const mb_objective *self, const mb_shard_record *record, int64_t sample)
{
    return mb_pack_targets(record, ((const mb_objective_parts *)self)->mask, sample);
}

/* Rows of the file for the micro-batch's head rows. */
static mb_status read_rows(const distil *own, distil_store *store, const mb_microbatch *microbatch,
                           const mb_pack *pack, mb_arena *arena, mb_teacher_rows *rows)
{
    mb_status status = MB_OK;
    const int64_t k = mb_teacher_shape_get(store->teacher)->k, n = pack->head_first[pack->records];
    int32_t *ids;
    float *logprob, *tail;
    MB_ARENA_ARRAY(arena, ids, n * k);
    MB_ARENA_ARRAY(arena, logprob, n * k);
    MB_ARENA_ARRAY(arena, tail, n);
    for (int64_t i = 0; i < microbatch->records; i++) {
        const int64_t h = pack->head_first[i];
        MB_TRY(mb_teacher_read(store->teacher, microbatch->sample[i], &microbatch->record[i],
                               own->all_targets, store->temperature, pack->head_first[i + 1] - h, ids + h * k,
                               logprob + h * k, tail + h));
    }
    rows->k = k;
    rows->ids = ids;
    rows->logprob = logprob;
    rows->tail = tail;
done:
    return status;
}

/* The teacher's pass over the same rows. */
static void plan_teacher(const mb_objective_pass *student, mb_objective_pass *out)
{
    *out = (mb_objective_pass){.model = 1, .batch = student->batch};
    out->want = (mb_lm_want){.logits = true, .no_routing = true};
    out->batch.row_index = NULL;
    out->batch.targets = NULL;
    out->batch.opt_head_weight = NULL;
    out->batch.opt_teacher = NULL;
}

static mb_status plan_passes(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                             mb_objective_pass passes[MB_OBJECTIVE_MAX_PASSES], int64_t *out_count)
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    distil *own = distil_of(self);
    distil_store *store = microbatch->is_validation ? &own->validation : &own->train;
    mb_teacher_rows *rows = NULL;
    *out_count = 1;
    MB_TRY(mb_objective_parts_plan(parts, microbatch, false, arena, &passes[0]));
    if (passes[0].batch.head_rows == 0) goto done;
    MB_ARENA_ARRAY(arena, rows, 1);
    *rows = (mb_teacher_rows){.temperature = own->temperature,
                              .beta = own->beta,
                              .distil_weight = own->distil_weight,
                              .task_weight = own->task_weight};
    if (own->teacher != NULL) {
        plan_teacher(&passes[0], &passes[1]);
        *out_count = 2;
    } else {
        if (store->shard == NULL)
            MB_RAISE(MB_EUSAGE,
                     "teacher.store = %s is of a shard's records, and there is no shard here; give "
                     "teacher.path",
                     own->train.path);
        MB_TRY(read_rows(own, store, microbatch, passes[0].context, arena, rows));
    }
    passes[0].batch.opt_teacher = rows;
done:
    return status;
}

static mb_status complete(mb_objective *self, mb_objective_pass *passes, const mb_lm_output *outputs,
                          int64_t count)
{
    (void)self;
    if (count > 1) ((mb_teacher_rows *)passes[0].batch.opt_teacher)->opt_dense = outputs[1].logits;
    return MB_OK;
}

/* ---- 4. loss ---- */

/* Sum of the rows' distances / step_targets. */
static double distance_loss(const mb_microbatch *microbatch, const mb_pack *pack, const mb_lm_output *output)
{
    double total = 0;
    for (int64_t h = 0; h < pack->head_first[pack->records]; h++) total += (double)output->token_distil[h];
    return microbatch->step_targets > 0 ? total / (double)microbatch->step_targets : 0;
}

static mb_status compute_loss(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                              mb_objective_terms *out_terms,
                              mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    const distil *own = parts->own;
    const mb_pack *pack = passes[0].context;
    const double square = own->temperature * own->temperature,
                 distance = square * distance_loss(microbatch, pack, &outputs[0]),
                 task = mb_objective_parts_lm_loss(microbatch, pack, &outputs[0], NULL);
    mb_routing routing;
    float **gradient = NULL;
    double total = own->distil_weight * distance + own->task_weight * task;
    (void)count;
    mb_objective_parts_start(self, out_terms);
    mb_objective_parts_put(self, out_terms, distance);
    mb_objective_parts_put(self, out_terms, task);
    if (self->reads_routing) {
        MB_TRY(mb_objective_parts_routing(parts, &passes[0].batch, &outputs[0], true, arena, &routing,
                                          &gradient));
        MB_TRY(mb_objective_parts_gates(parts, microbatch, &routing, pack->rows, arena, gradient, out_terms,
                                        &total));
    }
    out_terms->value[0] = total;
    gradients[0] = (mb_objective_gradient){.d_router_logits = gradient};
done:
    return status;
}

/* ---- 5. creation ---- */

static mb_status open_store(const char *opt_path, distil_store *store)
{
    mb_status status = MB_OK;
    if (opt_path == NULL || *opt_path == 0) goto done;
    store->path = mb_strdup(opt_path);
    if (store->path == NULL) MB_TRY(MB_ENOMEM);
    MB_TRY(mb_teacher_open(opt_path, &store->teacher));
done:
    return status;
}

static mb_status open_teacher(const mb_objective_options *options, const mb_lm *student, distil *own)
{
    mb_status status = MB_OK;
    own->teacher = options->opt_teacher;
    MB_TRY(open_store(options->teacher_store, &own->train));
    MB_TRY(open_store(options->teacher_validation_store, &own->validation));
    if (own->teacher == NULL && own->train.teacher == NULL)
        MB_RAISE(MB_EUSAGE,
                 "the teacher is missing: give teacher.store=<file of moe-teacher>, teacher.path=<folder of "
                 "a model, fused or not>, or fuse.foundation and fuse.sft, or fuse.router");
    if (own->teacher != NULL && own->train.teacher != NULL)
        MB_RAISE(MB_EUSAGE, "teacher.store and a teacher's folder are both given; leave one of them out");
    if (own->teacher != NULL && mb_lm_arch(own->teacher)->vocab != mb_lm_arch(student)->vocab)
        MB_RAISE(
            MB_EDATA,
            "the teacher has a vocabulary of %lld tokens, the student one of %lld; a student learns from "
            "a teacher of its own vocabulary",
            (long long)mb_lm_arch(own->teacher)->vocab, (long long)mb_lm_arch(student)->vocab);
done:
    return status;
}

static double parse_beta(const mb_objective_options *options)
{
    if (mb_str_equal(options->distill_loss, "jsd")) return options->distill_beta;
    return mb_str_equal(options->distill_loss, "reverse_kl") ? 1 : 0;
}

static void name_terms(mb_objective_parts *parts)
{
    mb_objective *base = &parts->base;
    mb_objective_parts_add_term(base, "loss");
    mb_objective_parts_add_term(base, "distil_loss");
    mb_objective_parts_add_term(base, "task_loss");
    if (parts->aux_coef != 0) mb_objective_parts_add_term(base, "balance");
    if (parts->z_coef != 0) mb_objective_parts_add_term(base, "z_loss");
}

static mb_status check_student(const mb_objective_options *options, const mb_lm *lm)
{
    mb_status status = MB_OK;
    if (mb_lm_is_fused(lm))
        MB_RAISE(MB_EUSAGE, "the student is one model, not a fused one; its router trains with "
                            "training.objective=btm");
    if (options->distill_loss_weight == 0)
        MB_RAISE(MB_EUSAGE, "training.distill_loss_weight = 0 asks the teacher nothing; take "
                            "training.objective=sft");
done:
    return status;
}

mb_status mb_objective_distil_create(const mb_objective_options *options, mb_lm *lm,
                                     mb_objective **out_objective)
{
    mb_status status = MB_OK;
    mb_objective_parts *parts = NULL;
    distil *own = NULL;
    MB_TRY(check_student(options, lm));
    MB_TRY(mb_objective_parts_create(options, lm, &parts));
    mb_objective *base = &parts->base;
    base->destroy = destroy;
    MB_NEW(own);
    parts->own = own;
    own->temperature = options->temperature;
    own->beta = parse_beta(options);
    own->distil_weight = options->distill_loss_weight;
    own->task_weight = options->task_loss_weight;
    own->all_targets = mb_str_equal(options->targets, "all");
    MB_TRY(open_teacher(options, lm, own));
    parts->mask = own->all_targets ? MB_PACK_ALL : MB_PACK_MASKED;
    base->name = "distil";
    base->opt_second = own->teacher;
    if (own->teacher == NULL) base->row_bytes = 4 * (2 * mb_teacher_shape_get(own->train.teacher)->k + 1);
    base->open_data = open_data;
    base->count_targets = count_targets;
    base->plan_passes = plan_passes;
    base->complete = complete;
    base->loss = compute_loss;
    base->reads_routing = parts->aux_coef != 0 || parts->z_coef != 0;
    base->is_fused = !base->reads_routing;
    name_terms(parts);
    *out_objective = base;
    parts = NULL;
done:
    if (parts != NULL) destroy(&parts->base);
    return status;
}
