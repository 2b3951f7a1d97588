/* test_preference: objective dpo against TRL, central differences, its references, pairs in batches, and what
 * it refuses. */
#include "fixture.h"

#include "learn/batches.h"
#include "store/h5.h"
#include "store/scores.h"

#define GOLDEN "tests/golden/preference/preference.h5"
#define MODEL  "tests/golden/losses/olmoe"

enum { MOST = 64 };

/* ---- helpers ---- */

static void set_text(char **field, const char *text)
{
    mb_free(*field);
    *field = text != NULL ? mb_strdup(text) : NULL;
}

static char *pair_shard_start(const char *folder, const char *name, int64_t vocab, mb_shard_writer **out)
{
    const char *sources[] = {"pairs"}, *files[] = {"pairs.jsonl"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 32,
                          .vocab_size = vocab,
                          .source_names = sources,
                          .source_files = files,
                          .source_count = 1,
                          .has_loss_mask = true,
                          .is_pairs = true};
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_shard_writer_create(path, &info, out));
    return path;
}

static void pair_shard_add(mb_shard_writer *writer, int64_t number, const uint32_t *tokens, int64_t prompt,
                           int64_t count)
{
    uint8_t mask[MOST] = {0};
    for (int64_t t = prompt; t < count; t++) mask[t] = 1;
    const mb_shard_record record = {.tokens = tokens,
                                    .loss_mask = mask,
                                    .count = count,
                                    .source_index = number / 2,
                                    .byte_offset = 100 * (number / 2),
                                    .byte_length = 100,
                                    .text_bytes = 3 * count,
                                    .record_hash = (uint64_t)number + 1};
    mb_test_ok(mb_shard_writer_add(writer, &record));
}

/* Pairs with a prompt of 2..5 tokens: the chosen answer counts up from it, the rejected one is noise. */
static char *pair_shard(const char *folder, const char *name, int64_t pairs)
{
    mb_shard_writer *writer = NULL;
    char *path = pair_shard_start(folder, name, FIX_VOCAB, &writer);
    for (int64_t i = 0; i < 2 * pairs; i++) {
        uint32_t tokens[MOST];
        const int64_t p = i / 2, prompt = 2 + p % 4, count = prompt + 3 + (p * 7 + 3 * (i % 2)) % 6;
        for (int64_t t = 0; t < count; t++)
            tokens[t] = t < prompt || i % 2 == 0
                            ? (uint32_t)((5 * p + t) % FIX_VOCAB)
                            : (uint32_t)mb_rng_below(3, MB_RNG_DATA, 0, (uint64_t)(100 * i + t), FIX_VOCAB);
        pair_shard_add(writer, i, tokens, prompt, count);
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    return path;
}

/* A score file of these log-probabilities, as moe-score writes one; targets by the loss mask. */
static char *write_reference(const char *folder, const char *name, mb_shard *shard, const double *logprob,
                             const char *model)
{
    const mb_scores_column columns[] = {{.name = "logprob", .higher_is_better = true},
                                        {.name = "targets", .higher_is_better = true}};
    const int64_t n = mb_shard_count(shard);
    char *path = mb_test_path(folder, name);
    double *values = mb_calloc((size_t)(2 * n), sizeof *values);
    mb_shard_record record;
    for (int64_t i = 0; i < n; i++) {
        mb_test_ok(mb_shard_read(shard, i, &record));
        values[i] = logprob[i];
        for (int64_t t = 1; t < record.count; t++) values[n + i] += record.loss_mask[t];
    }
    const mb_scores_part part = {.first = 0, .rows = n, .values = values};
    mb_test_ok(mb_scores_part_write(path, "k", columns, 2, 0, &part));
    json_t *attributes = json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:s}", "tokenizer", "t", "template", "",
                                   "max_length", (json_int_t)32, "source_model", model, "source_folder",
                                   model, "source_adapter", "", "dtype", "f32");
    mb_test_ok(mb_scores_join(path, "k", shard, columns, 2, NULL, 0, attributes));
    mb_scores_parts_remove(path);
    json_decref(attributes);
    mb_free(values);
    return path;
}

/* All records of a shard as one micro-batch, and as the only one of its step. */
typedef struct whole {
    mb_microbatch microbatch;
    mb_shard_record record[MOST];
    int64_t sample[MOST];
} whole;

static void whole_read(mb_shard *shard, const mb_objective *objective, whole *out)
{
    const int64_t n = mb_shard_count(shard);
    assert_true(n <= MOST);
    out->microbatch = (mb_microbatch){.records = n,
                                      .record = out->record,
                                      .sample = out->sample,
                                      .seed = 42,
                                      .step_microbatches = 1,
                                      .step_records = n};
    for (int64_t i = 0; i < n; i++) {
        mb_shard_record record;
        mb_test_ok(mb_shard_read(shard, i, &record));
        uint32_t *tokens = mb_calloc((size_t)record.count, sizeof *tokens);
        uint8_t *mask = mb_calloc((size_t)record.count, 1);
        memcpy(tokens, record.tokens, (size_t)record.count * sizeof *tokens);
        memcpy(mask, record.loss_mask, (size_t)record.count);
        record.tokens = tokens;
        record.loss_mask = mask;
        out->record[i] = record;
        out->sample[i] = i;
        out->microbatch.step_tokens += record.count;
        out->microbatch.step_targets += objective->count_targets(objective, &record, i);
    }
}

static void whole_free(whole *w)
{
    for (int64_t i = 0; i < w->microbatch.records; i++) {
        mb_free((void *)w->record[i].tokens);
        mb_free((void *)w->record[i].loss_mask);
    }
}

static double term(const mb_objective_terms *terms, const char *name)
{
    for (int64_t i = 0; i < terms->count; i++)
        if (strcmp(terms->name[i], name) == 0) return terms->value[i];
    return NAN;
}

/* ---- against TRL ---- */

static const char *const golden_terms[] = {"rewards/chosen",     "rewards/rejected", "rewards/margins",
                                           "rewards/accuracies", "logps/chosen",     "logps/rejected",
                                           "sft_loss",           "log_odds_chosen",  "log_odds_ratio"};
enum { GOLDEN_TERMS = sizeof golden_terms / sizeof golden_terms[0] };

static void *golden_read(mb_h5 *file, const char *name, mb_dtype dtype, int64_t *out_count)
{
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    mb_test_ok(mb_h5_read_new(file, name, dtype, &dims, shape, &data));
    *out_count = 1;
    for (int i = 0; i < dims; i++) *out_count *= shape[i];
    return data;
}

static char *golden_shard(mb_h5 *file, const char *folder)
{
    mb_shard_writer *writer = NULL;
    int64_t n, all, at = 0;
    char *path = pair_shard_start(folder, "pairs.h5", 32, &writer);
    int32_t *tokens = golden_read(file, "/tokens", MB_I32, &all);
    int64_t *lengths = golden_read(file, "/lengths", MB_I64, &n),
            *prompts = golden_read(file, "/prompts", MB_I64, &n);
    for (int64_t i = 0; i < n; i++) {
        pair_shard_add(writer, i, (const uint32_t *)tokens + at, prompts[i], lengths[i]);
        at += lengths[i];
    }
    assert_int_equal(at, all);
    mb_test_ok(mb_shard_writer_close(&writer));
    mb_free(tokens);
    mb_free(lengths);
    mb_free(prompts);
    return path;
}

static void golden_real(mb_h5 *file, const char *group, const char *name, double *out)
{
    if (mb_h5_get_real(file, group, name, out) != MB_OK) mb_status_reset(); /* left at its default */
}

/* The settings TRL had, as ours. */
static mb_objective_options golden_options(mb_h5 *file, const char *group, const char *reference)
{
    mb_objective_options options = fix_objective_options("dpo");
    mb_str list = MB_STR_EMPTY;
    double aux = 0;
    mb_test_ok(mb_h5_get_text(file, group, "loss", &list));
    set_text(&options.dpo_loss, mb_str_text(&list));
    set_text(&options.reference, reference);
    options.reference_any_model = true;
    golden_real(file, group, "aux", &aux);
    options.router_aux_loss_coef = aux;
    golden_real(file, group, "beta", &options.dpo_beta);
    golden_real(file, group, "smoothing", &options.dpo_label_smoothing);
    golden_real(file, group, "gamma", &options.dpo_simpo_gamma);
    golden_real(file, group, "sft", &options.dpo_sft_weight);
    golden_real(file, group, "ld_alpha", &options.dpo_ld_alpha);
    mb_str_destroy(&list);
    return options;
}

static double norm_of(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

/* Terms, the norm of the whole gradient and the kept gradients; `times` the usual room. */
static void golden_compare(mb_h5 *file, const char *group, mb_lm *lm, const float *gradient,
                           const mb_objective_terms *terms, double times)
{
    char path[300];
    int64_t n, compared = 0;
    snprintf(path, sizeof path, "%s/values", group);
    double *values = golden_read(file, path, MB_F64, &n), worst = 0;
    assert_int_equal(n, 2 + GOLDEN_TERMS);
    mb_test_near(terms->value[0], values[0], times * 2e-6);
    mb_test_near(norm_of(gradient, mb_params_trained_count(mb_lm_params(lm))), values[1], times * 2e-5);
    for (int i = 0; i < GOLDEN_TERMS; i++) {
        const double value = term(terms, golden_terms[i]);
        if (isnan(values[2 + i]) || (isnan(value) && values[2 + i] == 0)) continue;
        compared++;
        mb_test_near_at(value, values[2 + i], times * 1e-5, times * 3e-6, golden_terms[i], __FILE__,
                        __LINE__);
    }
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(lm)); i++) {
        const mb_param *param = mb_params_at(mb_lm_params(lm), i);
        snprintf(path, sizeof path, "%s/%s", group, param->name);
        if (!mb_h5_has(file, path)) continue;
        float *expected = golden_read(file, path, MB_F32, &n);
        assert_int_equal(n, mb_tensor_count(&param->value));
        const double size = norm_of(expected, n) / sqrt((double)n) + 1e-9;
        for (int64_t k = 0; k < n; k++)
            worst = fmax(worst, fabs((double)gradient[param->flat + k] - expected[k]) / size);
        mb_test_near_all(gradient + param->flat, expected, n, 1e-4, times * 2e-5 * size);
        compared += 100;
        mb_free(expected);
    }
    print_message("# %-22s loss %.9g (TRL %.9g), gradients within %.1e of their size\n", group,
                  terms->value[0], values[0], worst);
    assert_true(compared > 200); /* at least two tensors and some terms */
    mb_free(values);
}

static void golden_case(mb_h5 *file, const char *name, mb_lm *lm, mb_shard *shard, const char *reference)
{
    char group[64];
    mb_objective *objective = NULL;
    mb_objective_terms terms;
    whole w;
    snprintf(group, sizeof group, "/case/%s", name);
    mb_objective_options options = golden_options(file, group, reference);
    const mb_objective_data data = {.shard = shard};
    float *gradient = mb_calloc((size_t)mb_params_trained_count(mb_lm_params(lm)), sizeof *gradient);
    mb_test_ok(mb_objective_create(&options, lm, &objective));
    mb_test_ok(mb_objective_open_data(objective, &data));
    whole_read(shard, objective, &w);
    mb_test_ok(mb_trainer_gradients(lm, objective, &w.microbatch, gradient, &terms));
    golden_compare(file, group, lm, gradient, &terms, mb_ops_is_device(mb_lm_ops(lm)) ? 5 : 1);
    whole_free(&w);
    mb_free(gradient);
    mb_objective_destroy(&objective);
    fix_objective_free(&options);
}

static void test_against_trl(void **state)
{
    (void)state;
    static const char *const names[] = {
        "sigmoid",  "sigmoid_balance", "sigmoid_sft", "hinge",    "ipo",          "robust",
        "cdpo",     "sigmoid_norm",    "exo_pair",    "nca_pair", "bco_pair",     "sppo_hard",
        "apo_zero", "apo_down",        "list",        "simpo",    "simpo_smooth", "orpo"};
    mb_h5 *file = NULL;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_shard *shard = NULL;
    int64_t n;
    char *folder = mb_test_folder_make();
    mb_test_ok(mb_h5_open(GOLDEN, &file));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_open(ops, &(mb_lm_options){.path = MODEL, .train = "all"}, &lm));
    char *path = golden_shard(file, folder);
    mb_test_ok(mb_shard_open(path, 0, &shard));
    double *logprob = golden_read(file, "/reference", MB_F64, &n);
    char *reference = write_reference(folder, "reference.h5", shard, logprob, "elsewhere");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        golden_case(file, names[i], lm, shard, reference);
    mb_free(reference);
    mb_free(logprob);
    mb_free(path);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_h5_destroy(&file);
    mb_test_folder_remove(&folder);
}

static void adapter_on(const char *backend)
{
    static const char *const names[] = {"adapter", "adapter_ld", "adapter_ld_ipo"};
    mb_h5 *file = NULL;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_shard *shard = NULL;
    char *folder = mb_test_folder_make();
    const mb_lm_options options = {
        .path = MODEL, .opt_adapter = "tests/golden/preference/adapter", .train = "all"};
    mb_test_ok(mb_h5_open(GOLDEN, &file));
    mb_test_ok(mb_ops_create(backend, 1, &ops));
    mb_test_ok(mb_lm_open(ops, &options, &lm));
    char *path = golden_shard(file, folder);
    mb_test_ok(mb_shard_open(path, 0, &shard));
    for (int i = 0; i < 3; i++) golden_case(file, names[i], lm, shard, "adapter_off");
    mb_free(path);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_h5_destroy(&file);
    mb_test_folder_remove(&folder);
}

/* The reference of an adapter that is there is the model without it when that is said. */
static void test_adapter_against_trl(void **state)
{
    (void)state;
    adapter_on("ref");
}

/* On a device (the emulated one too) both passes and the gradients of the losses go through its memory. */
static void test_device_against_trl(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    if (mb_ops_create("cuda", 1, &ops) != MB_OK) {
        print_message("# no device: %s\n", mb_status_message());
        mb_status_reset();
        skip();
    }
    mb_ops_destroy(&ops);
    adapter_on("cuda");
}

/* ---- pairs in batches ---- */

static void test_pairs_stay_together(void **state)
{
    (void)state;
    enum { PAIRS = 23 };
    char *folder = mb_test_folder_make();
    char *path = pair_shard(folder, "pairs.h5", PAIRS);
    mb_shard *shard = NULL;
    mb_batches *batches = NULL;
    mb_test_ok(mb_shard_open(path, 0, &shard));
    for (int part = 0; part < 2; part++) {
        mb_trainer_options options = fix_trainer_options();
        int seen[PAIRS] = {0}, apart = 0, in_order = 0;
        int64_t total = 0, pairs = 0, most = 0, longest = 0;
        options.batch_size = 3;
        options.gradient_accumulation_steps = 2;
        options.subset_ratio = part == 0 ? 1 : 0.5;
        options.epochs = 2;
        mb_test_ok(mb_batches_create(shard, &options, &batches));
        assert_int_equal(mb_batches_width(batches), 2);
        const int64_t expected = part == 0 ? PAIRS : 12;
        assert_int_equal(mb_batches_records(batches), 2 * expected);
        for (int64_t s = 0; s < mb_batches_steps(batches); s++) {
            const mb_batches_step step = mb_batches_step_get(batches, s);
            total += step.count;
            assert_true(step.count % 2 == 0 && step.count <= 12);
            assert_int_equal(step.microbatches, (step.count / 2 + 2) / 3);
            for (int64_t i = 0; i < step.count; i += 2) {
                int64_t chosen, rejected;
                mb_test_ok(mb_batches_sample(batches, step.epoch, step.first + i, &chosen));
                mb_test_ok(mb_batches_sample(batches, step.epoch, step.first + i + 1, &rejected));
                apart += chosen % 2 != 0 || rejected != chosen + 1;
                in_order += chosen / 2 == (step.first + i) / 2;
                seen[chosen / 2]++;
            }
        }
        for (int64_t p = 0; p < PAIRS; p++) {
            const int64_t n = mb_batches_length(batches, 2 * p) + mb_batches_length(batches, 2 * p + 1);
            assert_true(seen[p] == 2 || (part == 1 && seen[p] == 0)); /* once an epoch */
            pairs += seen[p] == 2;
            if (seen[p] > 0 && n > longest) longest = n;
        }
        assert_int_equal(total, 4 * expected);
        assert_int_equal(pairs, expected);
        assert_int_equal(apart, 0);
        assert_true(in_order < expected);
        mb_test_ok(mb_batches_most_tokens(batches, &most));
        assert_true(most <= 3 * longest && most >= longest + 2);
        mb_batches_destroy(&batches);
        fix_trainer_free(&options);
    }
    mb_shard_close(&shard);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

/* ---- training ---- */

static double logged(const char *folder, int64_t row_from_end, const char *name)
{
    int64_t n;
    mb_h5 *file = NULL;
    char path[80], *metrics = mb_test_path(folder, "metrics.h5");
    snprintf(path, sizeof path, "/%s", name);
    mb_test_ok(mb_h5_open(metrics, &file));
    double *values = golden_read(file, path, MB_F64, &n);
    const double value = values[n - 1 - row_from_end];
    mb_free(values);
    mb_h5_destroy(&file);
    mb_free(metrics);
    return value;
}

static mb_objective_options dpo_options(const char *loss)
{
    mb_objective_options options = fix_objective_options("dpo");
    set_text(&options.dpo_loss, loss);
    return options;
}

/* log-probabilities of a model's answers, record by record. */
static double *own_logprobs(mb_lm *lm, mb_shard *shard)
{
    const int64_t n = mb_shard_count(shard);
    double *sums = mb_calloc((size_t)n, sizeof *sums);
    mb_lm_pass *pass = NULL;
    mb_lm_output output;
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    for (int64_t i = 0; i < n; i++) {
        mb_shard_record record;
        int32_t ids[MOST], positions[MOST], rows[MOST], targets[MOST], heads = 0;
        mb_test_ok(mb_shard_read(shard, i, &record));
        const int32_t offsets[] = {0, (int32_t)record.count};
        for (int32_t t = 0; t < record.count; t++) {
            ids[t] = (int32_t)record.tokens[t];
            positions[t] = t;
            if (t == 0 || record.loss_mask[t] == 0) continue;
            rows[heads] = t - 1;
            targets[heads++] = ids[t];
        }
        const mb_lm_batch batch = {.tokens = record.count,
                                   .segments = 1,
                                   .ids = ids,
                                   .positions = positions,
                                   .offsets = offsets,
                                   .head_rows = heads,
                                   .head_row = rows,
                                   .targets = targets};
        mb_test_ok(mb_lm_forward(pass, &batch, &(mb_lm_want){0}, &output));
        for (int32_t h = 0; h < heads; h++) sums[i] -= (double)output.token_loss[h];
    }
    mb_lm_pass_destroy(&pass);
    return sums;
}

/* A reference file of the fixture's own fresh model (of `path`, NULL: made). */
static char *reference_of(const char *folder, const char *name, const char *shard_path, const fix_run *run)
{
    mb_ops *ops = NULL;
    mb_shard *shard = NULL;
    char model[33] = "", adapter[33];
    fix_run plain = *run;
    plain.opt_lora = NULL;
    plain.train = "none";
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *lm = fix_model(NULL, ops, &plain);
    mb_test_ok(mb_shard_open(shard_path, 0, &shard));
    mb_test_ok(mb_lm_hashes(lm, model, adapter));
    double *sums = own_logprobs(lm, shard);
    char *path = write_reference(folder, name, shard, sums, model);
    mb_free(sums);
    mb_shard_close(&shard);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    return path;
}

/* From ln 2 and no preference to one, balance and z on; the first rewards are 0. */
static void test_learns_to_prefer(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    char *path = pair_shard(folder, "pairs.h5", 24), *out = mb_test_path(folder, "run");
    mb_objective_options choice = dpo_options("sigmoid");
    fix_run run = {.arch = fix_arch(4, 0),
                   .train = "all",
                   .shard = path,
                   .folder = out,
                   .opt_objective_options = &choice};
    mb_trainer_options options = fix_trainer_options();
    options.epochs = 4;
    options.gradient_accumulation_steps = 2;
    choice.router_z_loss_coef = 1e-3;
    char *reference = reference_of(folder, "reference.h5", path, &run);
    set_text(&choice.reference, reference);
    mb_test_ok(fix_train(&run, &options));
    const int64_t steps = run.report.steps;
    print_message("# dpo loss %.6f -> %.6f, accuracy %.2f -> %.2f, margin %.3f\n",
                  logged(out, steps - 1, "dpo_loss"), logged(out, 0, "dpo_loss"),
                  logged(out, steps - 1, "rewards/accuracies"), logged(out, 0, "rewards/accuracies"),
                  logged(out, 0, "rewards/margins"));
    mb_test_near(logged(out, steps - 1, "dpo_loss"), log(2), 1e-6);
    mb_test_near_abs(logged(out, steps - 1, "rewards/chosen"), 0, 0, 1e-5);
    assert_true(logged(out, 0, "dpo_loss") < 0.5);
    assert_true(logged(out, 0, "rewards/accuracies") > 0.9);
    assert_true(logged(out, 0, "balance") > 0 && logged(out, 0, "z_loss") > 0);
    mb_free(reference);
    mb_free(run.trained);
    fix_trainer_free(&options);
    fix_objective_free(&choice);
    mb_free(path);
    mb_free(out);
    mb_test_folder_remove(&folder);
}

/* Trains a model of `path` with a new adapter; the trained values are the caller's. */
static float *train_lora(const char *folder, const char *name, const char *model, const char *shard,
                         const char *reference, const char *recompute, int64_t zero, int64_t *out_count)
{
    const mb_lora_options lora = {.r = 2, .alpha = 8, .dropout = 0.1, .targets = "all-linear", .seed = 3};
    mb_objective_options choice = dpo_options("sigmoid:1,ipo:0.1");
    char *out = mb_test_path(folder, name);
    fix_run run = {.opt_model = model,
                   .opt_lora = &lora,
                   .train = "lora",
                   .shard = shard,
                   .folder = out,
                   .shard_model = zero == 3,
                   .opt_objective_options = &choice};
    mb_trainer_options options = fix_trainer_options();
    set_text(&choice.reference, reference);
    set_text(&options.recompute, recompute);
    options.zero = zero;
    options.epochs = 2;
    mb_test_ok(fix_train(&run, &options));
    fix_trainer_free(&options);
    fix_objective_free(&choice);
    mb_free(out);
    *out_count = run.count;
    return run.trained;
}

static double margin_of(const char *folder, const char *name)
{
    char *run = mb_test_path(folder, name);
    const double margin = logged(run, 0, "rewards/margins");
    mb_free(run);
    return margin;
}

/* The second pass without the adapter is the base model: as a file of its log-probabilities, also with
 * dropout, experts' adapters, recomputing and ZeRO-2 and 3. */
static void test_adapter_off_is_the_base(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), *model = mb_test_path(folder, "model");
    char *path = pair_shard(folder, "pairs.h5", 20);
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    int64_t n, same;
    const mb_arch arch = fix_arch(4, 0);
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &lm));
    mb_test_ok(mb_files_make_folders(model));
    mb_test_ok(mb_lm_write(lm, model, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    const fix_run base = {.opt_model = model};
    char *reference = reference_of(folder, "reference.h5", path, &base);
    float *off = train_lora(folder, "off", model, path, NULL, "none", 1, &n);
    float *file = train_lora(folder, "file", model, path, reference, "none", 1, &same);
    assert_int_equal(n, same);
    mb_test_near_all(off, file, n, 1e-5, 1e-7);
    mb_test_near(margin_of(folder, "off"), margin_of(folder, "file"), 1e-5);
    assert_true(margin_of(folder, "off") > 0.001);
    float *again = train_lora(folder, "again", model, path, "adapter_off", "blocks", 1, &same);
    assert_memory_equal(off, again, (size_t)n * sizeof *off);
    float *two = train_lora(folder, "two", model, path, NULL, "none", 2, &same);
    float *three = train_lora(folder, "three", model, path, NULL, "none", 3, &same);
    assert_memory_equal(two, three, (size_t)n * sizeof *off);
    mb_test_near_all(off, two, n, 1e-5, 1e-7);
    mb_free(off);
    mb_free(file);
    mb_free(again);
    mb_free(two);
    mb_free(three);
    mb_free(reference);
    mb_free(path);
    mb_free(model);
    mb_test_folder_remove(&folder);
}

/* The same pairs in other micro-batches: means over the step, so the same values. */
static void test_any_split(void **state)
{
    (void)state;
    static const int64_t splits[][2] = {{8, 1}, {4, 2}, {2, 4}, {1, 8}, {3, 3}};
    char *folder = mb_test_folder_make();
    char *path = pair_shard(folder, "pairs.h5", 16);
    mb_objective_options choice = dpo_options("sigmoid");
    choice.dpo_sft_weight = 0.5;
    set_text(&choice.balance_scope, "step");
    choice.router_z_loss_coef = 1e-3;
    double first[3] = {0};
    fix_run run = {.arch = fix_arch(4, 0), .train = "all", .shard = path, .opt_objective_options = &choice};
    char *reference = reference_of(folder, "reference.h5", path, &run);
    set_text(&choice.reference, reference);
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i++) {
        mb_trainer_options options = fix_trainer_options();
        char name[16];
        snprintf(name, sizeof name, "run%d", (int)i);
        char *out = mb_test_path(folder, name);
        run.folder = out;
        options.batch_size = splits[i][0];
        options.gradient_accumulation_steps = splits[i][1];
        options.max_steps = 1;
        mb_test_ok(fix_train(&run, &options));
        const double values[] = {logged(out, 0, "loss"), logged(out, 0, "grad_norm"),
                                 logged(out, 0, "sft_loss")};
        for (int k = 0; k < 3 && splits[i][0] * splits[i][1] == 8; k++) {
            if (i == 0) first[k] = values[k];
            mb_test_near(values[k], first[k], 1e-6);
        }
        print_message("# %d x %d: loss %.9g, gradient %.9g\n", (int)splits[i][0], (int)splits[i][1],
                      values[0], values[1]);
        mb_free(out);
        fix_trainer_free(&options);
    }
    mb_free(run.trained);
    mb_free(reference);
    fix_objective_free(&choice);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

/* Another reference is another run. */
static void test_reference_is_a_setting(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    char *path = pair_shard(folder, "pairs.h5", 8), *out = mb_test_path(folder, "run");
    mb_objective_options choice = dpo_options("sigmoid");
    fix_run run = {.arch = fix_arch(4, 0),
                   .train = "all",
                   .shard = path,
                   .folder = out,
                   .opt_objective_options = &choice};
    mb_shard *shard = NULL;
    mb_trainer_options options = fix_trainer_options();
    char *reference = reference_of(folder, "reference.h5", path, &run);
    double *other = mb_calloc(16, sizeof *other);
    for (int i = 0; i < 16; i++) other[i] = -1 - i;
    mb_test_ok(mb_shard_open(path, 0, &shard));
    char *changed = write_reference(folder, "other.h5", shard, other, "");
    mb_shard_close(&shard);
    set_text(&choice.reference, reference);
    mb_test_ok(fix_train(&run, &options));
    set_text(&choice.reference, changed);
    mb_test_fails(fix_train(&run, &options), MB_EUSAGE, "training.reference = ");
    char *moved = mb_test_path(folder, "moved.h5"); /* the same content elsewhere is the same */
    assert_int_equal(rename(reference, moved), 0);
    set_text(&choice.reference, moved);
    mb_test_ok(fix_train(&run, &options));
    mb_free(moved);
    mb_free(other);
    mb_free(changed);
    mb_free(reference);
    mb_free(run.trained);
    fix_trainer_free(&options);
    fix_objective_free(&choice);
    mb_free(path);
    mb_free(out);
    mb_test_folder_remove(&folder);
}

/* ---- refusals ---- */

static void refuse_create(mb_lm *lm, mb_objective_options *options, const char *message)
{
    mb_objective *objective = NULL;
    mb_test_fails(mb_objective_create(options, lm, &objective), MB_EUSAGE, message);
    assert_null(objective);
}

static void test_refused_settings(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *full = NULL, *adapter = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_open(ops, &(mb_lm_options){.path = MODEL, .train = "all"}, &full));
    mb_test_ok(mb_lm_open(
        ops,
        &(mb_lm_options){.path = MODEL, .opt_adapter = "tests/golden/preference/adapter", .train = "all"},
        &adapter));
    mb_objective_options options = dpo_options("sigmoid");
    refuse_create(full, &options, "training.reference is missing");
    refuse_create(full, &options, "moe-score score.scores=logprob");
    refuse_create(adapter, &options, "or adapter_off for the model under the adapter");
    set_text(&options.reference, "adapter_off");
    refuse_create(full, &options, "needs an adapter to leave out");
    set_text(&options.reference, "ref.h5");
    options.dpo_ld_alpha = 0.5;
    refuse_create(full, &options, "training.dpo.ld_alpha = 0.5");
    set_text(&options.dpo_loss, "simpo");
    refuse_create(full, &options, "not for simpo");
    options.dpo_ld_alpha = 1;
    options.dpo_sft_weight = 0.1;
    set_text(&options.dpo_loss, "orpo");
    refuse_create(full, &options, "orpo has its SFT term");
    mb_lm_pass *pass = NULL;
    mb_lm_output output;
    const int32_t ids[] = {1, 2}, positions[] = {0, 1}, offsets[] = {0, 2};
    const mb_lm_batch batch = {
        .tokens = 2, .segments = 1, .ids = ids, .positions = positions, .offsets = offsets};
    mb_test_ok(mb_lm_pass_create(adapter, &pass));
    mb_test_fails(mb_lm_forward(pass, &batch, &(mb_lm_want){.gradient = true, .no_adapter = true}, &output),
                  MB_EUSAGE, "without the adapter");
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&full);
    mb_lm_destroy(&adapter);
    mb_ops_destroy(&ops);
    fix_objective_free(&options);
    mb_status_reset();
}

/* Tensors that train beside the adapter: no model opens that way, so one is marked by hand. */
static void test_refused_outside(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_objective_options options = dpo_options("sigmoid");
    const mb_lora_options lora = {.r = 2, .alpha = 4, .targets = "q_proj", .seed = 3};
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_open(ops, &(mb_lm_options){.path = MODEL, .opt_lora = &lora, .train = "lora"}, &lm));
    mb_param *gate = mb_params_find(mb_lm_params(lm), "model.layers.0.mlp.gate.weight");
    gate->trained = true;
    refuse_create(lm, &options, "training.reference is missing");
    set_text(&options.reference, "adapter_off");
    refuse_create(lm, &options, "model.layers.0.mlp.gate.weight trains besides the adapter");
    gate->trained = false;
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&options);
    mb_status_reset();
}

static void test_refused_data(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    char *pairs = pair_shard(folder, "pairs.h5", 6), *single = fix_shard(folder, "single.h5", 12, true);
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_shard *of_pairs = NULL, *of_records = NULL;
    mb_objective *dpo = NULL, *sft = NULL;
    mb_objective_options options = dpo_options("simpo"), other = fix_objective_options("sft");
    const mb_arch arch = fix_arch(4, 0);
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &lm));
    mb_test_ok(mb_shard_open(pairs, 0, &of_pairs));
    mb_test_ok(mb_shard_open(single, 0, &of_records));
    mb_test_ok(mb_objective_create(&options, lm, &dpo));
    mb_test_ok(mb_objective_create(&other, lm, &sft));
    mb_test_ok(mb_objective_open_data(dpo, &(mb_objective_data){.shard = of_pairs}));
    mb_test_ok(mb_objective_open_data(sft, &(mb_objective_data){.shard = of_records}));
    mb_test_fails(mb_objective_open_data(dpo, &(mb_objective_data){.shard = of_records}), MB_EDATA,
                  "takes preference pairs");
    mb_test_fails(mb_objective_open_data(sft, &(mb_objective_data){.shard = of_pairs}), MB_EDATA,
                  "holds preference pairs");
    mb_test_fails(
        mb_objective_open_data(dpo, &(mb_objective_data){.shard = of_pairs, .opt_validation = of_records}),
        MB_EDATA, "takes preference pairs");
    mb_objective_destroy(&dpo);
    mb_test_ok(mb_objective_create(&options, lm, &dpo));
    mb_test_fails(mb_objective_open_data(dpo, &(mb_objective_data){.shard = of_pairs, .max_length = 3}),
                  MB_EDATA, "leaves nothing of the chosen answer of pair 1");
    whole w;
    whole_read(of_pairs, dpo, &w);
    mb_objective_terms terms;
    float *gradient = mb_calloc((size_t)mb_params_trained_count(mb_lm_params(lm)), sizeof *gradient);
    w.microbatch.records = 3;
    mb_test_fails(mb_trainer_gradients(lm, dpo, &w.microbatch, gradient, &terms), MB_EDATA, "whole pairs");
    w.microbatch.records = 2;
    w.sample[1] = 3;
    mb_test_fails(mb_trainer_gradients(lm, dpo, &w.microbatch, gradient, &terms), MB_EDATA, "whole pairs");
    w.microbatch.records = 12;
    whole_free(&w);
    mb_free(gradient);
    mb_objective_destroy(&dpo);
    mb_objective_destroy(&sft);
    mb_shard_close(&of_pairs);
    mb_shard_close(&of_records);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&options);
    fix_objective_free(&other);
    mb_free(pairs);
    mb_free(single);
    mb_status_reset();
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_trl),        cmocka_unit_test(test_adapter_against_trl),
        cmocka_unit_test(test_device_against_trl), cmocka_unit_test(test_pairs_stay_together),
        cmocka_unit_test(test_learns_to_prefer),   cmocka_unit_test(test_adapter_off_is_the_base),
        cmocka_unit_test(test_any_split),          cmocka_unit_test(test_reference_is_a_setting),
        cmocka_unit_test(test_refused_settings),   cmocka_unit_test(test_refused_outside),
        cmocka_unit_test(test_refused_data),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
