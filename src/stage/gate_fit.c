/* gate_fit.c: targets, the split, training, and what came out.
 *
 * 1. targets   2. split   3. what is open   4. training   5. results   6. run
 */
#include "stage/gate_fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"

/* ---- 1. targets ---- */

/* The probability that expert x gives the right answer of question q: of its option, or the mean of those of
 * its mask; 0 where it gave none. */
static double answer_probability(const mb_outputs *o, int64_t q, int64_t x)
{
    const float *prob = o->choice_prob + (q * o->experts + x) * o->choices;
    const int32_t answer = o->answer[q];
    double sum = 0;
    int held = 0;
    if (o->picked[q * o->experts + x] < 0) return 0;
    if (o->kind[q] == MB_OUTPUTS_SINGLE) return prob[answer];
    for (int32_t c = 0; c < o->options[q]; c++)
        if (answer >> c & 1) {
            sum += prob[c];
            held++;
        }
    return sum / held;
}

static void soft_row(const uint8_t *right, int64_t experts, float *target)
{
    int64_t n = 0;
    for (int64_t x = 0; x < experts; x++) n += right[x];
    for (int64_t x = 0; x < experts; x++) target[x] = right[x] != 0 ? 1.0f / (float)n : 0;
}

static void best_row(const mb_outputs *o, int64_t q, float *target)
{
    const uint8_t *right = o->right + q * o->experts;
    int64_t best = -1;
    for (int64_t x = 0; x < o->experts; x++)
        if (right[x] != 0 && (best < 0 || answer_probability(o, q, x) > answer_probability(o, q, best)))
            best = x;
    for (int64_t x = 0; x < o->experts; x++) target[x] = x == best;
}

static void likelihood_row(const mb_outputs *o, int64_t q, float *target)
{
    double sum = 0;
    for (int64_t x = 0; x < o->experts; x++) sum += answer_probability(o, q, x);
    for (int64_t x = 0; x < o->experts; x++)
        target[x] = sum > 0 ? (float)(answer_probability(o, q, x) / sum) : 0;
}

mb_status mb_gate_fit_targets(const mb_outputs *outputs, const char *rule, float **out_target)
{
    mb_status status = MB_OK;
    const int64_t X = outputs->experts;
    float *target = NULL;
    MB_NEW_ARRAY(target, outputs->questions * X);
    for (int64_t q = 0; q < outputs->questions; q++) {
        if (outputs->kind[q] == MB_OUTPUTS_CLOZE || strcmp(rule, "soft") == 0)
            soft_row(outputs->right + q * X, X, target + q * X);
        else if (strcmp(rule, "best") == 0)
            best_row(outputs, q, target + q * X);
        else
            likelihood_row(outputs, q, target + q * X);
    }
    *out_target = target;
done:
    return status;
}

/* ---- 2. split ---- */

typedef struct place {
    uint64_t hash;
    int64_t question;
} place;

static int by_hash(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->hash != y->hash ? (x->hash > y->hash) - (x->hash < y->hash)
                              : (x->question > y->question) - (x->question < y->question);
}

mb_status mb_gate_fit_split(const mb_outputs *outputs, const uint8_t *opt_shared, double share, int64_t seed,
                            int64_t **out_train, int64_t *out_train_count, int64_t **out_validation,
                            int64_t *out_validation_count)
{
    mb_status status = MB_OK;
    const int64_t Q = outputs->questions;
    place *places = NULL;
    uint8_t *is_held = NULL;
    int64_t n = 0, *train = NULL, *validation = NULL, trains = 0, validations = 0;
    MB_NEW_ARRAY(places, Q);
    MB_NEW_ARRAY(is_held, Q);
    MB_NEW_ARRAY(train, Q);
    MB_NEW_ARRAY(validation, Q);
    for (int64_t q = 0; q < Q; q++) {
        if (opt_shared != NULL && opt_shared[q] != 0) continue;
        places[n++] = (place){mb_hash_u64(outputs->ids[q], strlen(outputs->ids[q]), (uint64_t)seed), q};
    }
    qsort(places, (size_t)n, sizeof *places, by_hash);
    const int64_t held = (int64_t)nearbyint(share * (double)n);
    for (int64_t i = 0; i < held; i++) is_held[places[i].question] = 1;
    for (int64_t q = 0; q < Q; q++) {
        if (opt_shared != NULL && opt_shared[q] != 0) continue;
        if (is_held[q] != 0)
            validation[validations++] = q;
        else
            train[trains++] = q;
    }
    *out_train = train;
    *out_train_count = trains;
    *out_validation = validation;
    *out_validation_count = validations;
    train = validation = NULL;
done:
    mb_free(places);
    mb_free(is_held);
    mb_free(train);
    mb_free(validation);
    return status;
}

/* ---- 3. what is open ---- */

typedef struct work {
    mb_program *program;
    mb_gate_settings *own;
    mb_gate_source source;
    mb_named_paths seen; /* files the experts were trained on */
    char *embeddings;    /* file */
    mb_outputs *outputs; /* of the experts to choose among */
    float *x, *target;   /* [Q, D], [Q, X] */
    int64_t width;
    char *embedder;
    uint8_t *shared; /* [Q] */
    int64_t *by_file;
    int64_t *train, *validation, train_count, validation_count;
    mb_gate *gate;
    mb_gate_report report;
} work;

static void close_work(work *w)
{
    mb_gate_inputs_reset(&w->source);
    mb_named_paths_reset(&w->seen);
    mb_free(w->embeddings);
    mb_outputs_close(&w->outputs);
    mb_free(w->x);
    mb_free(w->target);
    mb_free(w->embedder);
    mb_free(w->shared);
    mb_free(w->by_file);
    mb_free(w->train);
    mb_free(w->validation);
    mb_gate_destroy(&w->gate);
    mb_gate_report_reset(&w->report);
}

static mb_status find(work *w)
{
    mb_status status = MB_OK;
    MB_TRY(mb_gate_inputs_find("gate.train", w->own->train, &w->source));
    MB_TRY(mb_gate_inputs_file("gate.embeddings", w->own->embeddings, "embeddings.h5", "moe-embed",
                               &w->embeddings));
    MB_TRY(mb_named_paths_read("gate.experts_data", w->own->experts_data, NULL, 0, &w->seen));
done:
    return status;
}

static mb_status begin(work *w, bool *out_is_done)
{
    mb_status status = MB_OK;
    const char **names = NULL, **paths = NULL;
    char **labels = NULL;
    const int64_t answers = w->source.files.count, seen = w->seen.count;
    int64_t n = 0;
    MB_NEW_ARRAY(names, answers + seen + 1);
    MB_NEW_ARRAY(paths, answers + seen + 1);
    MB_NEW_ARRAY(labels, answers + seen);
    for (int64_t i = 0; i < answers + seen; i++, n++) {
        const mb_named_path *item = i < answers ? &w->source.files.item[i] : &w->seen.item[i - answers];
        names[n] = labels[i] = mb_str_format("%s_%s", i < answers ? "train" : "seen", item->name);
        paths[n] = item->path;
        if (labels[i] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    }
    names[n] = "embeddings";
    paths[n++] = w->embeddings;
    MB_TRY(mb_program_begin_run_list(w->program, names, paths, n, out_is_done));
done:
    for (int64_t i = 0; labels != NULL && i < answers + seen; i++) mb_free(labels[i]);
    mb_free(labels);
    mb_free(names);
    mb_free(paths);
    return status;
}

static mb_status read_all(work *w)
{
    mb_status status = MB_OK;
    mb_outputs *all = NULL;
    int64_t *experts = NULL, *questions = NULL, count = 0;
    MB_TRY(mb_gate_inputs_table(&w->source, &all));
    MB_TRY(mb_gate_inputs_experts(all, w->own->experts, &experts, &count));
    MB_NEW_ARRAY(questions, all->questions);
    for (int64_t q = 0; q < all->questions; q++) questions[q] = q;
    MB_TRY(mb_outputs_take(all, questions, all->questions, experts, count, &w->outputs));
    MB_TRY(mb_gate_inputs_embeddings(w->embeddings, w->outputs->questions, &w->x, &w->width, &w->embedder));
    MB_TRY(mb_gate_inputs_shared(w->outputs, &w->seen, &w->shared, &w->by_file));
    MB_TRY(mb_gate_fit_targets(w->outputs, w->own->targets, &w->target));
    MB_TRY(mb_gate_fit_split(w->outputs, w->shared, w->own->gate.validation_share, w->own->gate.seed,
                             &w->train, &w->train_count, &w->validation, &w->validation_count));
done:
    mb_outputs_close(&all);
    mb_free(experts);
    mb_free(questions);
    return status;
}

/* ---- 4. training ---- */

static mb_status name_gate(work *w)
{
    mb_status status = MB_OK;
    for (int64_t x = 0; x < w->outputs->experts; x++) {
        w->gate->expert_names[x] = mb_strdup(w->outputs->expert_names[x]);
        if (w->gate->expert_names[x] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a name");
    }
    w->gate->embedder = mb_strdup(w->embedder);
    w->gate->questions = mb_strdup(w->outputs->questions_hash);
    w->gate->targets = mb_strdup(w->own->targets);
    if (w->gate->embedder == NULL || w->gate->questions == NULL || w->gate->targets == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for the gate's attributes");
done:
    return status;
}

static mb_status train(work *w)
{
    mb_status status = MB_OK;
    const mb_gate_data data = {.x = w->x,
                               .target = w->target,
                               .rows = w->outputs->questions,
                               .width = w->width,
                               .experts = w->outputs->experts,
                               .train = w->train,
                               .train_count = w->train_count,
                               .validation = w->validation,
                               .validation_count = w->validation_count};
    char *path = mb_program_path(w->program, "gate.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_gate_train(&data, &w->own->gate, &w->gate, &w->report));
    MB_TRY(name_gate(w));
    MB_TRY(mb_gate_write(w->gate, path));
done:
    mb_free(path);
    return status;
}

/* ---- 5. results ---- */

typedef struct counts {
    int64_t shared, nobody, everybody;
} counts;

static counts count_questions(const work *w)
{
    counts c = {0};
    const int64_t X = w->outputs->experts;
    for (int64_t q = 0; q < w->outputs->questions; q++) {
        int64_t right = 0;
        for (int64_t x = 0; x < X; x++) right += w->outputs->right[q * X + x];
        c.shared += w->shared[q];
        if (w->shared[q] != 0) continue;
        c.nobody += right == 0;
        c.everybody += right == X;
    }
    return c;
}

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *numbers(const double *values, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, number(values[i]));
    return list;
}

/* Shares of the validation questions: every expert's, the gate's first choice's, that of any. */
static mb_status add_accuracies(const work *w, json_t *root)
{
    mb_status status = MB_OK;
    const mb_outputs *o = w->outputs;
    const int64_t X = o->experts, n = w->validation_count;
    float *logits = NULL;
    double *right = NULL, gate = 0, any = 0;
    json_t *experts = json_object(), *all = json_object();
    MB_NEW_ARRAY(right, X);
    MB_NEW_ARRAY(logits, X);
    for (int64_t i = 0; i < n; i++) {
        const int64_t q = w->validation[i];
        int64_t top = 0, has = 0;
        MB_TRY(mb_gate_forward(w->gate, w->x + q * w->width, 1, logits));
        for (int64_t x = 0; x < X; x++) {
            if (logits[x] > logits[top]) top = x;
            right[x] += o->right[q * X + x];
            has |= o->right[q * X + x];
        }
        gate += o->right[q * X + top];
        any += (double)has;
    }
    for (int64_t x = 0; x < X; x++)
        MB_TRY(mb_json_set(experts, o->expert_names[x], number(right[x] / (double)n)));
    MB_TRY(mb_json_set(all, "gate_top1", number(gate / (double)n)));
    MB_TRY(mb_json_set(all, "oracle", number(any / (double)n)));
    MB_TRY(mb_json_set(all, "experts", json_incref(experts)));
    MB_TRY(mb_json_set(root, "validation_accuracy", json_incref(all)));
    if (n > 0) {
        mb_info("validation (%lld questions): the gate's first choice is right on %.2f %%, any expert on "
                "%.2f %%",
                (long long)n, 100 * gate / (double)n, 100 * any / (double)n);
        MB_TRY(mb_program_result_real(w->program, "validation_accuracy", gate / (double)n));
    }
done:
    mb_free(right);
    mb_free(logits);
    json_decref(experts);
    json_decref(all);
    return status;
}

static mb_status write_results(const work *w)
{
    mb_status status = MB_OK;
    const mb_gate_report *r = &w->report;
    const counts c = count_questions(w);
    char *path = mb_program_path(w->program, "results.json");
    json_t *seen = json_object(),
           *root = json_pack(
               "{s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
               "format", "moebatch-gate-training", "version", 1, "questions",
               (json_int_t)w->outputs->questions, "shared", (json_int_t)c.shared, "nobody_right",
               (json_int_t)c.nobody, "everybody_right", (json_int_t)c.everybody, "train",
               (json_int_t)r->train_rows, "validation", (json_int_t)r->validation_rows, "targets",
               w->own->targets, "epochs", (json_int_t)r->epochs, "best_epoch", (json_int_t)r->best_epoch,
               "train_loss", numbers(r->train_loss, r->epochs + 1), "validation_loss",
               numbers(r->validation_loss, r->epochs + 1), "temperature", number(r->temperature),
               "nll_before", number(r->nll_before), "nll_after", number(r->nll_after), "ece_before",
               number(r->ece_before), "ece_after", number(r->ece_after));
    if (path == NULL || root == NULL) MB_RAISE(MB_ENOMEM, "no memory for results");
    for (int64_t i = 0; i < w->seen.count; i++)
        MB_TRY(mb_json_set(seen, w->seen.item[i].name, json_integer(w->by_file[i])));
    MB_TRY(mb_json_set(root, "shared_by_file", json_incref(seen)));
    mb_info("%lld questions, %lld shared with the experts' data and left out; nobody is right on %lld (no "
            "loss), everybody on %lld",
            (long long)w->outputs->questions, (long long)c.shared, (long long)c.nobody,
            (long long)c.everybody);
    mb_info("trained on %lld, validated on %lld: %lld epochs, the best %lld, loss %.4f (untrained %.4f)",
            (long long)r->train_rows, (long long)r->validation_rows, (long long)r->epochs,
            (long long)r->best_epoch, r->validation_loss[r->best_epoch], r->validation_loss[0]);
    mb_info("temperature %.4f: loss %.4f to %.4f, calibration error %.4f to %.4f", r->temperature,
            r->nll_before, r->nll_after, r->ece_before, r->ece_after);
    MB_TRY(add_accuracies(w, root));
    MB_TRY(mb_json_write(path, root, 2, false));
    MB_TRY(mb_program_result_int(w->program, "shared", c.shared));
    MB_TRY(mb_program_result_int(w->program, "epochs", r->epochs));
    if (isfinite(r->nll_after)) MB_TRY(mb_program_result_real(w->program, "validation_loss", r->nll_after));
done:
    json_decref(root);
    json_decref(seen);
    mb_free(path);
    return status;
}

/* ---- 6. run ---- */

static mb_status make(work *w)
{
    mb_status status = MB_OK;
    MB_TRY(read_all(w));
    MB_TRY(train(w));
    MB_TRY(write_results(w));
done:
    return status;
}

mb_status mb_gate_fit_run(mb_program *program)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own};
    bool is_done = false;
    MB_TRY(mb_comm_agree(program->comm, find(&w)));
    if (program->is_dry_run) goto done;
    MB_TRY(begin(&w, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_program_is_root(program) ? make(&w) : MB_OK));
    MB_TRY(mb_program_finish_run(program, "gate.h5", "results.json", NULL));
done:
    close_work(&w);
    return status;
}
