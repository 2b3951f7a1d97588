/* objective_dpo.c: objective "dpo": preference pairs. The losses of pair_loss.h over the answers'
 * log-probabilities, an SFT term on the chosen side, and the gates' balance and z losses.
 *
 * Both sides of all pairs of a micro-batch are rows of one pass with gradient. The reference's
 * log-probabilities come from a file, or from a second pass over the same rows without the adapter. Every sum
 * is over the step: a pair counts 1 / pairs of the step, a token of the SFT term 1 / targets of the step,
 * whatever micro-batches and ranks it is cut into.
 *
 * 1. what it keeps   2. data   3. passes   4. sides of a pair   5. loss   6. the reference to take
 * 7. creation
 */
#include <math.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "learn/objective_parts.h"
#include "learn/pair_loss.h"
#include "learn/reference.h"

/* ---- 1. what it keeps ---- */

typedef enum reference_kind { REFERENCE_NONE, REFERENCE_FILE, REFERENCE_ADAPTER_OFF } reference_kind;

typedef struct dpo {
    mb_lm *lm;
    mb_pair_loss loss;
    double sft_weight; /* orpo's own included */
    double ld_alpha;
    reference_kind kind;
    char *path, *validation_path; /* of reference files; NULL: none */
    bool any_model, has_orpo;
    mb_reference *reference, *validation;
    const mb_shard *shard, *validation_shard; /* that were opened; not followed */
} dpo;

static dpo *dpo_of(const mb_objective *self)
{
    return ((const mb_objective_parts *)self)->own;
}

static void destroy(mb_objective *self)
{
    dpo *own = dpo_of(self);
    if (own != NULL) {
        mb_reference_close(&own->reference);
        mb_reference_close(&own->validation);
        mb_free(own->path);
        mb_free(own->validation_path);
        mb_free(own);
    }
    mb_objective_parts_destroy(self);
}

/* ---- 2. data ---- */

/* A side that is cut must keep something of its answer: its log-probability would be 0 and look good. */
static mb_status check_answers(mb_shard *shard, int64_t max_length)
{
    mb_status status = MB_OK;
    mb_shard_record record;
    for (int64_t i = 0; max_length > 0 && i < mb_shard_count(shard); i++) {
        if (mb_shard_length(shard, i) <= max_length) continue;
        MB_TRY(mb_shard_read(shard, i, &record));
        record.count = max_length;
        if (mb_pack_targets(&record, MB_PACK_MASKED, i) > 0) continue;
        MB_RAISE(MB_EDATA,
                 "%s: dataset.max_length = %lld leaves nothing of the %s answer of pair %lld; set it higher, "
                 "or make the shard with it, which leaves such pairs out",
                 mb_shard_file_path(shard, 0), (long long)max_length, i % 2 == 0 ? "chosen" : "rejected",
                 (long long)i / 2);
    }
done:
    return status;
}

static mb_status open_reference(const dpo *own, const char *path, mb_shard *shard, int64_t max_length,
                                mb_reference **out_reference)
{
    mb_status status = MB_OK;
    char model[MB_HASH_TEXT] = "", adapter[MB_HASH_TEXT] = "";
    if (!own->any_model) MB_TRY(mb_lm_hashes(own->lm, model, adapter));
    mb_reference_close(out_reference);
    MB_TRY(mb_reference_open(path, shard, model, adapter, mb_lm_dtype(own->lm), own->any_model, max_length,
                             out_reference));
done:
    return status;
}

static mb_status add_reference_setting(mb_objective *self, const dpo *own)
{
    const char *what = own->kind == REFERENCE_FILE          ? mb_reference_hash(own->reference)
                       : own->kind == REFERENCE_ADAPTER_OFF ? "adapter_off"
                                                            : "none";
    char *text = mb_str_format("%straining.reference = %s\n", self->settings, what);
    if (text == NULL) return mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
    mb_free(self->settings);
    self->settings = text;
    return MB_OK;
}

static mb_status open_validation(dpo *own, const mb_objective_data *data)
{
    mb_status status = MB_OK;
    mb_shard *shard = data->opt_validation;
    if (shard == NULL || own->validation_shard == shard) return MB_OK;
    MB_TRY(check_answers(shard, data->max_length));
    if (own->kind == REFERENCE_FILE && own->validation_path == NULL)
        MB_RAISE(MB_EUSAGE,
                 "training.validation_reference is missing: with training.reference = FILE the validation "
                 "pairs need theirs too (moe-score score.scores=logprob dataset.path=%s ...)",
                 mb_shard_file_path(shard, 0));
    if (own->kind == REFERENCE_FILE)
        MB_TRY(open_reference(own, own->validation_path, shard, data->max_length, &own->validation));
    own->validation_shard = shard;
done:
    return status;
}

static mb_status open_data(mb_objective *self, const mb_objective_data *data)
{
    mb_status status = MB_OK;
    dpo *own = dpo_of(self);
    if (own->shard != data->shard) {
        MB_TRY(check_answers(data->shard, data->max_length));
        if (own->kind == REFERENCE_FILE)
            MB_TRY(open_reference(own, own->path, data->shard, data->max_length, &own->reference));
        MB_TRY(add_reference_setting(self, own));
        own->shard = data->shard;
    }
    MB_TRY(open_validation(own, data));
done:
    return status;
}

/* ---- 3. passes ---- */

/* Only the chosen side has an SFT term. */
static int64_t count_targets(const mb_objective *self, const mb_shard_record *record, int64_t sample)
{
    return sample % 2 == 0 ? mb_pack_targets(record, ((const mb_objective_parts *)self)->mask, sample) : 0;
}

static mb_status check_pairs(const dpo *own, const mb_microbatch *microbatch)
{
    bool is_paired = microbatch->records % 2 == 0;
    for (int64_t i = 0; is_paired && i < microbatch->records; i++)
        is_paired = microbatch->sample[i] % 2 == i % 2 &&
                    (i % 2 == 0 || microbatch->sample[i] == microbatch->sample[i - 1] + 1);
    if (!is_paired)
        return mb_fail(MB_EDATA,
                       "objective dpo takes whole pairs: records 2p (chosen) and 2p + 1 (rejected), "
                       "one after the other");
    if (own->kind == REFERENCE_FILE && (microbatch->is_validation ? own->validation : own->reference) == NULL)
        return mb_fail(MB_EUSAGE,
                       "training.reference = %s is of a shard's records, and there is no shard "
                       "here; take adapter_off, or a loss without reference (simpo, orpo)",
                       own->path);
    return MB_OK;
}

static mb_status plan_passes(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                             mb_objective_pass passes[MB_OBJECTIVE_MAX_PASSES], int64_t *out_count)
{
    mb_status status = MB_OK;
    const dpo *own = dpo_of(self);
    MB_TRY(check_pairs(own, microbatch));
    MB_TRY(mb_objective_parts_plan((mb_objective_parts *)self, microbatch, false, arena, &passes[0]));
    passes[0].batch.opt_head_weight = NULL; /* depends on all the token losses */
    *out_count = 1;
    if (own->kind != REFERENCE_ADAPTER_OFF) goto done;
    passes[1] = passes[0];
    passes[1].want = (mb_lm_want){.no_adapter = true, .no_routing = true};
    *out_count = 2;
done:
    return status;
}

/* ---- 4. sides of a pair ---- */

/* A record's part of the head rows. */
typedef struct side {
    const mb_shard_record *record;
    int64_t sample, head; /* its first head row */
    int64_t answers;      /* targets of the answer */
    mb_pair_side sums;
} side;

/* Token t of a record is a target of its answer, and of it at least one is. */
static bool is_answer(const side *s, int64_t t)
{
    return mb_pack_is_target(s->record, MB_PACK_MASKED, s->sample, t);
}

/* Answer tokens behind `shared` of them weigh alpha (LD-DPO). */
static double weight_of(int64_t number, int64_t shared, double alpha)
{
    return number < shared ? 1 : alpha;
}

/* Sum of ln p over the answer, weighted. */
static double sum_answer(const side *s, mb_pack_mask mask, const float *token_loss, int64_t shared,
                         double alpha)
{
    double sum = 0;
    int64_t head = s->head, number = 0;
    for (int64_t t = 1; t < s->record->count; t++) {
        if (!mb_pack_is_target(s->record, mask, s->sample, t)) continue;
        if (is_answer(s, t)) sum -= weight_of(number++, shared, alpha) * (double)token_loss[head];
        head++;
    }
    return sum;
}

/* Sum of -ln p over all head rows of the record. */
static double sum_rows(const side *s, const mb_pack *pack, int64_t record, const float *token_loss)
{
    double sum = 0;
    for (int64_t h = s->head; h < pack->head_first[record + 1]; h++) sum += (double)token_loss[h];
    return sum;
}

/* d loss / d token_loss: -d_logprob * weight on the answer, and nll on every row. */
static void put_gradient(const side *s, mb_pack_mask mask, int64_t shared, double alpha, double d_logprob,
                         double nll, float *d_token_loss)
{
    int64_t head = s->head, number = 0;
    for (int64_t t = 1; t < s->record->count; t++) {
        if (!mb_pack_is_target(s->record, mask, s->sample, t)) continue;
        const double d = is_answer(s, t) ? -d_logprob * weight_of(number++, shared, alpha) : 0;
        d_token_loss[head++] = (float)(d + nll);
    }
}

/* ---- 5. loss ---- */

/* Sums over the micro-batch's pairs, each divided by what it is a mean over. */
typedef struct dpo_sums {
    double loss, sft, chosen, rejected, margin, accuracy, logp_chosen, logp_rejected, log_odds,
        log_odds_ratio;
} dpo_sums;

typedef struct dpo_call {
    const mb_objective_parts *parts;
    const dpo *own;
    const mb_microbatch *microbatch;
    const mb_pack *pack;
    const mb_lm_output *outputs; /* [1 or 2] */
    float *d_token_loss;
    dpo_sums sums;
} dpo_call;

static mb_status make_side(const dpo_call *call, int64_t i, side *out)
{
    const dpo *own = call->own;
    const mb_shard_record *record = &call->microbatch->record[i];
    const int64_t sample = call->microbatch->sample[i];
    *out = (side){.record = record,
                  .sample = sample,
                  .head = call->pack->head_first[i],
                  .answers = mb_pack_targets(record, MB_PACK_MASKED, sample)};
    out->sums.targets = out->answers;
    if (own->kind != REFERENCE_FILE) return MB_OK;
    const mb_reference *reference = call->microbatch->is_validation ? own->validation : own->reference;
    if (mb_reference_targets(reference, sample) != out->answers)
        return mb_fail(MB_EDATA,
                       "record %lld has %lld answer tokens here and %lld in the reference; score the shard "
                       "again",
                       (long long)sample, (long long)out->answers,
                       (long long)mb_reference_targets(reference, sample));
    out->sums.reference = mb_reference_logprob(reference, sample);
    return MB_OK;
}

static void sum_side(const dpo_call *call, int64_t shared, side *s)
{
    const dpo *own = call->own;
    const mb_pack_mask mask = call->parts->mask;
    s->sums.logprob = sum_answer(s, mask, call->outputs[0].token_loss, shared, own->ld_alpha);
    if (own->kind == REFERENCE_ADAPTER_OFF)
        s->sums.reference = sum_answer(s, mask, call->outputs[1].token_loss, shared, own->ld_alpha);
}

static void add_value(const mb_pair_value *value, double each, dpo_sums *sums)
{
    sums->loss += each * value->loss;
    sums->chosen += each * value->reward_chosen;
    sums->rejected += each * value->reward_rejected;
    sums->margin += each * (value->reward_chosen - value->reward_rejected);
    sums->accuracy += value->reward_chosen > value->reward_rejected ? each : 0;
    sums->logp_chosen += each * value->logp_chosen;
    sums->logp_rejected += each * value->logp_rejected;
    sums->log_odds += each * value->log_odds;
    sums->log_odds_ratio += each * value->log_odds_ratio;
}

/* Records i and i + 1. */
static mb_status add_pair(dpo_call *call, int64_t i)
{
    mb_status status = MB_OK;
    const dpo *own = call->own;
    const mb_pack_mask mask = call->parts->mask;
    const mb_microbatch *microbatch = call->microbatch;
    const double each = 2.0 / (double)microbatch->step_records,
                 token = microbatch->step_targets > 0 ? 1.0 / (double)microbatch->step_targets : 0;
    side chosen, rejected;
    MB_TRY(make_side(call, i, &chosen));
    MB_TRY(make_side(call, i + 1, &rejected));
    const int64_t shared = chosen.answers < rejected.answers ? chosen.answers : rejected.answers;
    sum_side(call, shared, &chosen);
    sum_side(call, shared, &rejected);
    const mb_pair_value value = mb_pair_loss_get(&own->loss, &chosen.sums, &rejected.sums);
    add_value(&value, each, &call->sums);
    if (own->sft_weight > 0)
        call->sums.sft += token * sum_rows(&chosen, call->pack, i, call->outputs[0].token_loss);
    put_gradient(&chosen, mask, shared, own->ld_alpha, each * value.d_chosen, own->sft_weight * token,
                 call->d_token_loss);
    put_gradient(&rejected, mask, shared, own->ld_alpha, each * value.d_rejected, 0, call->d_token_loss);
done:
    return status;
}

static void put_terms(const mb_objective *base, const dpo *own, const dpo_sums *sums,
                      mb_objective_terms *terms)
{
    mb_objective_parts_put(base, terms, sums->loss);
    if (own->sft_weight > 0) mb_objective_parts_put(base, terms, sums->sft);
    mb_objective_parts_put(base, terms, sums->chosen);
    mb_objective_parts_put(base, terms, sums->rejected);
    mb_objective_parts_put(base, terms, sums->margin);
    mb_objective_parts_put(base, terms, sums->accuracy);
    mb_objective_parts_put(base, terms, sums->logp_chosen);
    mb_objective_parts_put(base, terms, sums->logp_rejected);
    if (!own->has_orpo) return;
    mb_objective_parts_put(base, terms, sums->log_odds);
    mb_objective_parts_put(base, terms, sums->log_odds_ratio);
}

static mb_status compute_loss(mb_objective *self, const mb_microbatch *microbatch, mb_arena *arena,
                              const mb_objective_pass *passes, const mb_lm_output *outputs, int64_t count,
                              mb_objective_terms *out_terms,
                              mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES])
{
    mb_status status = MB_OK;
    const mb_objective_parts *parts = (mb_objective_parts *)self;
    dpo_call call = {.parts = parts,
                     .own = parts->own,
                     .microbatch = microbatch,
                     .pack = passes[0].context,
                     .outputs = outputs};
    mb_routing routing;
    float **gradient = NULL;
    (void)count;
    MB_ARENA_ARRAY(arena, call.d_token_loss, passes[0].batch.head_rows);
    for (int64_t i = 0; i < microbatch->records; i += 2) MB_TRY(add_pair(&call, i));
    mb_objective_parts_start(self, out_terms);
    put_terms(self, call.own, &call.sums, out_terms);
    double total = call.sums.loss + call.own->sft_weight * call.sums.sft;
    if (self->reads_routing) {
        MB_TRY(mb_objective_parts_routing(parts, &passes[0].batch, &outputs[0], true, arena, &routing,
                                          &gradient));
        MB_TRY(mb_objective_parts_gates(parts, microbatch, &routing, call.pack->rows, arena, gradient,
                                        out_terms, &total));
    }
    out_terms->value[0] = total;
    gradients[0] = (mb_objective_gradient){.d_token_loss = call.d_token_loss, .d_router_logits = gradient};
done:
    return status;
}

/* ---- 6. the reference to take ---- */

/* A tensor that trains outside the adapter, which is then not the only difference to the base; NULL: none. */
static const char *trained_outside(mb_lm *lm)
{
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (param->trained && strstr(param->name, ".lora_A.") == NULL &&
            strstr(param->name, ".lora_B.") == NULL)
            return param->name;
    }
    return NULL;
}

static mb_status check_adapter_off(mb_lm *lm)
{
    const char *outside = trained_outside(lm);
    if (!mb_lm_lora(lm)->is_on)
        return mb_fail(MB_EUSAGE, "training.reference = adapter_off needs an adapter to leave out, and all "
                                  "weights train here; give training.peft_mode=lora, or a file of moe-score "
                                  "score.scores=logprob");
    if (outside != NULL)
        return mb_fail(MB_EUSAGE,
                       "training.reference = adapter_off: %s trains besides the adapter, so that without the "
                       "adapter it is not the model training started from; give a file of moe-score "
                       "score.scores=logprob",
                       outside);
    return MB_OK;
}

/* None is given: the base of a new adapter, else it must be said. */
static mb_status choose_reference(mb_lm *lm, dpo *own)
{
    const char *adapter = mb_lm_adapter(lm);
    if (mb_lm_lora(lm)->is_on && adapter == NULL && trained_outside(lm) == NULL) {
        own->kind = REFERENCE_ADAPTER_OFF;
        return MB_OK;
    }
    return mb_fail(MB_EUSAGE,
                   "training.reference is missing: log-probabilities of the pairs under the model that "
                   "training starts from; make them with moe-score score.scores=logprob dataset.path=<shard> "
                   "model.path=<model>%s%s output.dir=<folder> and give <folder>/scores.h5%s",
                   adapter != NULL ? " model.adapter=" : "", adapter != NULL ? adapter : "",
                   adapter != NULL ? ", or adapter_off for the model under the adapter" : "");
}

static mb_status copy_text(const char *opt_text, char **out)
{
    *out = NULL;
    if (opt_text == NULL || *opt_text == 0) return MB_OK;
    *out = mb_strdup(opt_text);
    return *out != NULL ? MB_OK : mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
}

static mb_status read_reference(const mb_objective_options *options, mb_lm *lm, dpo *own)
{
    mb_status status = MB_OK;
    const char *given = options->reference != NULL ? options->reference : "";
    if (!mb_pair_loss_needs_reference(&own->loss)) {
        if (*given != 0) mb_info("training.reference is not used: training.dpo.loss needs none");
    } else if (*given == 0) {
        MB_TRY(choose_reference(lm, own));
    } else if (mb_str_equal(given, "adapter_off")) {
        MB_TRY(check_adapter_off(lm));
        own->kind = REFERENCE_ADAPTER_OFF;
    } else {
        own->kind = REFERENCE_FILE;
        MB_TRY(copy_text(given, &own->path));
        MB_TRY(copy_text(options->validation_reference, &own->validation_path));
    }
    if (own->ld_alpha < 1 && own->kind == REFERENCE_FILE)
        MB_RAISE(MB_EUSAGE,
                 "training.dpo.ld_alpha = %g needs the reference's tokens, and a file has only "
                 "their sums; take training.reference=adapter_off, or ld_alpha=1",
                 own->ld_alpha);
    if (own->ld_alpha < 1 && mb_pair_loss_has_free(&own->loss))
        MB_RAISE(MB_EUSAGE, "training.dpo.ld_alpha is not for simpo and orpo, which take means over the "
                            "answer; set it to 1");
done:
    return status;
}

/* ---- 7. creation ---- */

int64_t mb_objective_plain_passes(const mb_objective_options *options, bool has_adapter, bool is_new)
{
    mb_pair_loss loss;
    const char *given = options->reference != NULL ? options->reference : "";
    if (!mb_str_equal(options->objective, "dpo") || !has_adapter) return 0;
    if (!mb_str_equal(given, "adapter_off") && (*given != 0 || !is_new)) return 0;
    if (mb_pair_loss_parse(options->dpo_loss, options->dpo_beta, options->dpo_label_smoothing,
                           options->dpo_simpo_gamma, &loss) != MB_OK) {
        mb_status_reset(); /* said when the objective is made */
        return 0;
    }
    return mb_pair_loss_needs_reference(&loss) ? 1 : 0;
}

static void name_terms(mb_objective_parts *parts, const dpo *own)
{
    mb_objective *base = &parts->base;
    mb_objective_parts_add_term(base, "loss");
    mb_objective_parts_add_term(base, "dpo_loss");
    if (own->sft_weight > 0) mb_objective_parts_add_term(base, "sft_loss");
    mb_objective_parts_add_term(base, "rewards/chosen");
    mb_objective_parts_add_term(base, "rewards/rejected");
    mb_objective_parts_add_term(base, "rewards/margins");
    mb_objective_parts_add_term(base, "rewards/accuracies");
    mb_objective_parts_add_term(base, "logps/chosen");
    mb_objective_parts_add_term(base, "logps/rejected");
    if (own->has_orpo) mb_objective_parts_add_term(base, "log_odds_chosen");
    if (own->has_orpo) mb_objective_parts_add_term(base, "log_odds_ratio");
    if (parts->aux_coef != 0) mb_objective_parts_add_term(base, "balance");
    if (parts->z_coef != 0) mb_objective_parts_add_term(base, "z_loss");
}

static mb_status read_options(const mb_objective_options *options, mb_lm *lm, dpo *own)
{
    mb_status status = MB_OK;
    own->lm = lm;
    MB_TRY(mb_pair_loss_parse(options->dpo_loss, options->dpo_beta, options->dpo_label_smoothing,
                              options->dpo_simpo_gamma, &own->loss));
    own->ld_alpha = options->dpo_ld_alpha;
    own->any_model = options->reference_any_model;
    own->has_orpo = mb_pair_loss_has(&own->loss, MB_PAIR_LOSS_ORPO);
    own->sft_weight = options->dpo_sft_weight;
    if (own->has_orpo && own->sft_weight > 0)
        MB_RAISE(MB_EUSAGE, "training.dpo.sft_weight = %g: orpo has its SFT term already; set it to 0",
                 own->sft_weight);
    if (own->has_orpo) own->sft_weight = mb_pair_loss_weight(&own->loss, MB_PAIR_LOSS_ORPO);
    MB_TRY(read_reference(options, lm, own));
done:
    return status;
}

mb_status mb_objective_dpo_create(const mb_objective_options *options, mb_lm *lm,
                                  mb_objective **out_objective)
{
    mb_status status = MB_OK;
    mb_objective_parts *parts = NULL;
    dpo *own = NULL;
    MB_TRY(mb_objective_parts_create(options, lm, &parts));
    mb_objective *base = &parts->base;
    base->destroy = destroy;
    MB_NEW(own);
    parts->own = own;
    MB_TRY(read_options(options, lm, own));
    const bool is_whole = own->has_orpo && !mb_str_equal(options->dpo_nll_over, "answers");
    parts->mask = is_whole ? MB_PACK_CHOSEN_WHOLE : MB_PACK_MASKED;
    base->name = "dpo";
    base->wants_pairs = true;
    base->plain_passes = own->kind == REFERENCE_ADAPTER_OFF ? 1 : 0;
    base->open_data = open_data;
    base->count_targets = count_targets;
    base->plan_passes = plan_passes;
    base->loss = compute_loss;
    base->reads_routing = parts->aux_coef != 0 || parts->z_coef != 0;
    name_terms(parts, own);
    *out_objective = base;
    parts = NULL;
done:
    if (parts != NULL) destroy(&parts->base);
    return status;
}
