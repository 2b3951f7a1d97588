/* test_distil: objective distil: a stored teacher and one that is asked while training, central differences,
 * lanes, stopping and resuming, students with experts and with an adapter, and what it refuses. */
#include "fixture.h"

#include "store/scores.h"
#include "store/teacher.h"

enum { MOST_RECORDS = 64, MOST_TOKENS = 64 };

static char *folder, *masked, *plain, *held, *few;

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    masked = fix_shard(folder, "masked.h5", 20, true);
    plain = fix_shard(folder, "plain.h5", 20, false);
    few = fix_shard(folder, "few.h5", 4, true);
    held = fix_typed_shard(folder, "held.h5", -1, true);
    return 0;
}

static int teardown(void **state)
{
    MB_FREE(masked);
    MB_FREE(plain);
    MB_FREE(held);
    MB_FREE(few);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

static void set_text(char **field, const char *text)
{
    mb_free(*field);
    *field = text != NULL ? mb_strdup(text) : NULL;
}

/* ---- a teacher and its file ---- */

/* A random model with clear opinions. */
static mb_lm *make_teacher(mb_ops *ops, uint64_t seed)
{
    mb_lm *lm = NULL;
    mb_arch arch = fix_arch(0, 0);
    arch.initializer_range = 0.4;
    mb_test_ok(mb_lm_create(ops, &arch, "none", seed, &lm));
    return lm;
}

/* The same from a folder, whose content tells it from others. */
static mb_lm *keep_teacher(mb_ops *ops, uint64_t seed, const char *name)
{
    mb_lm *lm = make_teacher(ops, seed);
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_files_make_folders(path));
    mb_test_ok(mb_lm_write(lm, path, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_test_ok(mb_lm_open(ops, &(mb_lm_options){.path = path, .train = "none"}, &lm));
    mb_free(path);
    return lm;
}

/* Logits [targets, V] of a record by itself. */
static float *teacher_logits(mb_lm *lm, const mb_shard_record *record, bool all, int64_t *out_rows)
{
    int32_t ids[MOST_TOKENS], positions[MOST_TOKENS], rows[MOST_TOKENS];
    const int32_t offsets[] = {0, (int32_t)record->count};
    int64_t heads = 0;
    mb_lm_pass *pass = NULL;
    mb_lm_output output = {0};
    for (int32_t t = 0; t < record->count; t++) {
        ids[t] = (int32_t)record->tokens[t];
        positions[t] = t;
        if (t > 0 && (all || record->loss_mask == NULL || record->loss_mask[t] != 0)) rows[heads++] = t - 1;
    }
    *out_rows = heads;
    if (heads == 0) return NULL;
    const mb_lm_batch batch = {.tokens = record->count,
                               .segments = 1,
                               .ids = ids,
                               .positions = positions,
                               .offsets = offsets,
                               .head_rows = heads,
                               .head_row = rows};
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    mb_test_ok(mb_lm_forward(pass, &batch, &(mb_lm_want){.logits = true}, &output));
    float *logits = mb_calloc((size_t)(heads * FIX_VOCAB), sizeof *logits);
    memcpy(logits, output.logits, (size_t)(heads * FIX_VOCAB) * sizeof *logits);
    mb_lm_pass_destroy(&pass);
    return logits;
}

/* A row in f64, by repeated search of the largest. */
static void put_row(const float *z, const mb_teacher_shape *shape, int32_t *ids, float *logprob, float *tail,
                    float *mass)
{
    bool taken[FIX_VOCAB] = {false};
    double sum = 0, kept = 0;
    for (int v = 0; v < FIX_VOCAB; v++) sum += exp((double)z[v]);
    for (int64_t i = 0; i < shape->k; i++) {
        int best = -1;
        for (int v = 0; v < FIX_VOCAB; v++)
            if (!taken[v] && (best < 0 || z[v] > z[best])) best = v;
        taken[best] = true;
        ids[i] = best;
        logprob[i] = (float)((double)z[best] - log(sum));
        kept += exp((double)z[best]) / sum;
    }
    *mass = (float)kept;
    for (int64_t s = 0; s < shape->temperatures; s++) {
        double rest = 0;
        for (int v = 0; v < FIX_VOCAB; v++)
            if (!taken[v]) rest += exp(((double)z[v] - log(sum)) / shape->temperature[s]);
        tail[s] = (float)log(rest);
    }
}

static const char *const TEMPERATURES = "1,1.5,2,3";

/* The file of a teacher's k likeliest tokens, as moe-teacher writes one. */
static char *write_store(const char *name, mb_lm *lm, const char *shard_path, int64_t k, const char *dtype,
                         bool all, int64_t max_length)
{
    mb_teacher_shape shape = {.vocab = FIX_VOCAB, .k = k, .all_targets = all, .max_length = max_length};
    mb_shard *shard = NULL;
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_dtype_parse(dtype, &shape.dtype));
    mb_test_ok(mb_teacher_parse_temperatures(TEMPERATURES, &shape));
    mb_test_ok(mb_shard_open(shard_path, 0, &shard));
    const int64_t n = mb_shard_count(shard), most = n * MOST_TOKENS;
    mb_teacher_part part = {.records = n,
                            .row_first = mb_calloc((size_t)n + 1, sizeof(int64_t)),
                            .ids = mb_calloc((size_t)(most * k), sizeof(int32_t)),
                            .logprob = mb_calloc((size_t)(most * k), sizeof(float)),
                            .tail = mb_calloc((size_t)(most * shape.temperatures), sizeof(float)),
                            .mass = mb_calloc((size_t)most, sizeof(float))};
    for (int64_t r = 0; r < n; r++) {
        mb_shard_record record;
        int64_t rows, row = part.row_first[r];
        mb_test_ok(mb_shard_read(shard, r, &record));
        if (max_length > 0 && record.count > max_length) record.count = max_length;
        float *z = teacher_logits(lm, &record, all, &rows);
        for (int64_t h = 0; h < rows; h++, row++)
            put_row(z + h * FIX_VOCAB, &shape, part.ids + row * k, part.logprob + row * k,
                    part.tail + row * shape.temperatures, part.mass + row);
        part.row_first[r + 1] = row;
        mb_free(z);
    }
    mb_test_ok(mb_teacher_part_write(path, "k", &shape, &part));
    mb_test_ok(mb_teacher_join(path, "k", shard, &shape, NULL));
    mb_scores_parts_remove(path);
    mb_shard_close(&shard);
    mb_free(part.row_first);
    mb_free(part.ids);
    mb_free(part.logprob);
    mb_free(part.tail);
    mb_free(part.mass);
    return path;
}

/* ---- one micro-batch ---- */

typedef struct whole {
    mb_microbatch microbatch;
    mb_shard_record record[MOST_RECORDS];
    int64_t sample[MOST_RECORDS];
} whole;

static void whole_read(mb_shard *shard, const mb_objective *objective, whole *out)
{
    const int64_t n = mb_shard_count(shard);
    assert_true(n <= MOST_RECORDS);
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
        uint8_t *mask = record.loss_mask != NULL ? mb_calloc((size_t)record.count, 1) : NULL;
        memcpy(tokens, record.tokens, (size_t)record.count * sizeof *tokens);
        if (mask != NULL) memcpy(mask, record.loss_mask, (size_t)record.count);
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

/* Who teaches and how. */
typedef struct lesson {
    mb_lm *online;
    const char *store, *loss, *targets;
    double temperature, aux, distil, task; /* weights 0, 0: the defaults */
} lesson;

static mb_objective_options lesson_options(const lesson *l)
{
    mb_objective_options options = fix_objective_options("distil");
    options.opt_teacher = l->online;
    set_text(&options.teacher_store, l->store);
    if (l->loss != NULL) set_text(&options.distill_loss, l->loss);
    if (l->targets != NULL) set_text(&options.targets, l->targets);
    if (l->temperature > 0) options.temperature = l->temperature;
    if (l->distil > 0 || l->task > 0)
        options.distill_loss_weight = l->distil, options.task_loss_weight = l->task;
    options.router_aux_loss_coef = l->aux;
    return options;
}

/* Terms and gradient of the student over a whole shard. */
static void study(mb_lm *student, const lesson *l, const char *shard_path, float *gradient,
                  mb_objective_terms *terms)
{
    mb_objective_options options = lesson_options(l);
    mb_objective *objective = NULL;
    mb_shard *shard = NULL;
    whole w;
    mb_test_ok(mb_shard_open(shard_path, 0, &shard));
    mb_test_ok(mb_objective_create(&options, student, &objective));
    mb_test_ok(mb_objective_open_data(objective, &(mb_objective_data){.shard = shard}));
    whole_read(shard, objective, &w);
    mb_test_ok(mb_trainer_gradients(student, objective, &w.microbatch, gradient, terms));
    whole_free(&w);
    mb_objective_destroy(&objective);
    mb_shard_close(&shard);
    fix_objective_free(&options);
}

static double norm_of(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* Norm of a - b beside that of b. */
static double difference(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum) / norm_of(b, n);
}

/* ---- stored and online ---- */

/* Every loss at every temperature, or each loss at one. */
static void compare_on(const char *backend, const char *data, bool is_short)
{
    static const char *const losses[] = {"forward_kl", "reverse_kl", "jsd"};
    static const double temperatures[] = {1, 1.5, 2, 3};
    mb_ops *ops = NULL;
    mb_lm *student = NULL;
    const mb_arch arch = fix_arch(0, 0);
    mb_test_ok(mb_ops_create(backend, 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11);
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &student));
    const int64_t n = mb_params_trained_count(mb_lm_params(student));
    float *online = mb_calloc((size_t)n, sizeof *online), *stored = mb_calloc((size_t)n, sizeof *stored);
    char *whole_f32 = write_store("whole_f32.h5", teacher, data, FIX_VOCAB, "f32", false, 64),
         *whole_f16 = write_store("whole_f16.h5", teacher, data, FIX_VOCAB, "f16", false, 64),
         *all = write_store("all.h5", teacher, data, FIX_VOCAB, "f32", true, 64);
    for (int l = 0; l < 3; l++) {
        for (int t = is_short ? l : 0; t < (is_short ? l + 1 : 4); t++) {
            mb_objective_terms a, b;
            lesson how = {.online = teacher, .loss = losses[l], .temperature = temperatures[t]};
            study(student, &how, data, online, &a);
            assert_true(term(&a, "distil_loss") > 0.05);
            mb_test_near(term(&a, "loss"), 0.7 * term(&a, "distil_loss") + 0.3 * term(&a, "task_loss"), 1e-9);
            how.online = NULL;
            how.store = whole_f32;
            study(student, &how, data, stored, &b);
            mb_test_near(term(&b, "distil_loss"), term(&a, "distil_loss"), 2e-6);
            mb_test_near(term(&b, "task_loss"), term(&a, "task_loss"), 1e-7);
            assert_true(difference(stored, online, n) < 1e-5);
            how.store = all; /* more rows than are asked for: those of the loss mask are taken */
            study(student, &how, data, stored, &b);
            mb_test_near(term(&b, "distil_loss"), term(&a, "distil_loss"), 2e-6);
            how.store = whole_f16;
            study(student, &how, data, stored, &b);
            mb_test_near(term(&b, "distil_loss"), term(&a, "distil_loss"), 1e-3);
            assert_true(difference(stored, online, n) < 1e-3);
        }
    }
    mb_free(whole_f32);
    mb_free(whole_f16);
    mb_free(all);
    mb_free(online);
    mb_free(stored);
    mb_lm_destroy(&student);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

static void test_stored_equals_online(void **state)
{
    (void)state;
    compare_on("ref", masked, false);
}

/* A teacher's logits come down from a device, and its rows go up to it. */
static void test_stored_equals_online_on_device(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    if (mb_ops_create("cuda", 1, &ops) != MB_OK) {
        print_message("# no device: %s\n", mb_status_message());
        mb_status_reset();
        skip();
    }
    mb_ops_destroy(&ops);
    compare_on("cuda", few, true);
}

/* Buckets know less than tokens: the distance grows with k up to the whole one. */
static void test_fewer_tokens(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 4, 16, 50, FIX_VOCAB};
    static const double temperatures[] = {1, 2};
    mb_ops *ops = NULL;
    mb_lm *student = NULL;
    const mb_arch arch = fix_arch(0, 0);
    double gap[2][5];
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11);
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &student));
    float *gradient = mb_calloc((size_t)mb_params_trained_count(mb_lm_params(student)), sizeof *gradient);
    for (int i = 0; i < 5; i++) {
        char *path = write_store("fewer.h5", teacher, masked, counts[i], "f32", false, 64);
        for (int t = 0; t < 2; t++) {
            mb_objective_terms terms;
            const lesson how = {.store = path, .temperature = temperatures[t]};
            study(student, &how, masked, gradient, &terms);
            gap[t][i] = term(&terms, "distil_loss");
        }
        mb_free(path);
    }
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < 4; i++) assert_true(gap[t][i] > 0 && gap[t][i] < gap[t][i + 1] * (1 + 1e-6));
        print_message(
            "# T = %g: distance with k = 1, 4, 16, 50 of 64: %.4f %.4f %.4f %.4f, whole %.4f (gap at "
            "50: %.2e)\n",
            temperatures[t], gap[t][0], gap[t][1], gap[t][2], gap[t][3], gap[t][4], gap[t][4] - gap[t][3]);
        assert_true(gap[t][3] > 0.9 * gap[t][4]);
    }
    mb_free(gradient);
    mb_lm_destroy(&student);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

/* ---- values and gradients ---- */

/* A student that is its teacher: no distance, and the gradient of its own cross-entropy alone. */
static void test_teacher_itself(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_objective_terms terms, task;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11), *student = NULL;
    mb_arch arch = fix_arch(0, 0);
    arch.initializer_range = 0.4;
    mb_test_ok(mb_lm_create(ops, &arch, "all", 11, &student));
    const int64_t n = mb_params_trained_count(mb_lm_params(student));
    float *gradient = mb_calloc((size_t)n, sizeof *gradient), *own = mb_calloc((size_t)n, sizeof *own);
    char *path = write_store("self.h5", teacher, masked, 5, "f32", false, 64);
    for (int i = 0; i < 4; i++) {
        static const char *const losses[] = {"forward_kl", "reverse_kl", "jsd", "forward_kl"};
        const lesson how = {.online = i < 3 ? teacher : NULL,
                            .store = i < 3 ? NULL : path,
                            .loss = losses[i],
                            .temperature = 2,
                            .distil = 0.7,
                            .task = 0.3},
                     alone = {.online = teacher, .temperature = 2, .distil = 1e-30, .task = 0.3};
        study(student, &how, masked, gradient, &terms);
        study(student, &alone, masked, own, &task);
        mb_test_near_abs(term(&terms, "distil_loss"), 0, 0, 2e-6);
        mb_test_near(term(&terms, "loss"), 0.3 * term(&terms, "task_loss"), 1e-5);
        assert_true(difference(gradient, own, n) < 1e-5);
    }
    mb_free(path);
    mb_free(gradient);
    mb_free(own);
    mb_lm_destroy(&student);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

/* Adds step times the direction to the trained values. */
static void move(mb_lm *lm, const float *direction, double step)
{
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        if (!param->trained) continue;
        float *values = param->value.data;
        for (int64_t k = 0; k < mb_tensor_count(&param->value); k++)
            values[k] += (float)(step * direction[param->flat + k]);
    }
}

/* The loss along the gradient's own direction; a student with experts picks all of them, for picks jump. */
static void test_central_differences(void **state)
{
    (void)state;
    static const char *const losses[] = {"forward_kl", "reverse_kl", "jsd"};
    mb_ops *ops = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11);
    char *path = write_store("differences.h5", teacher, masked, 5, "f32", false, 64);
    for (int i = 0; i < 12; i++) {
        const bool moe = i >= 6;
        const lesson how = {
            .online = i % 2 == 0 ? teacher : NULL,
            .store = i % 2 == 0 ? NULL : path,
            .loss = losses[i / 2 % 3],
            .temperature = 1.5,
        };
        mb_lm *student = NULL;
        mb_objective_terms terms, ahead, behind;
        mb_arch arch = fix_arch(moe ? 4 : 0, 0);
        arch.initializer_range = 0.1;
        if (moe) arch.picks = 4;
        mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &student));
        const int64_t n = mb_params_trained_count(mb_lm_params(student));
        float *gradient = mb_calloc((size_t)n, sizeof *gradient),
              *other = mb_calloc((size_t)n, sizeof *other);
        study(student, &how, masked, gradient, &terms);
        const double size = norm_of(gradient, n), step = 2e-3 / size;
        move(student, gradient, step);
        study(student, &how, masked, other, &ahead);
        move(student, gradient, -2 * step);
        study(student, &how, masked, other, &behind);
        mb_test_near((ahead.value[0] - behind.value[0]) / (2 * step * size * size), 1, 1e-3);
        mb_free(gradient);
        mb_free(other);
        mb_lm_destroy(&student);
    }
    mb_free(path);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

/* The gates' balance is what it is in fine-tuning: its value, and what it adds to the gradient. */
static void test_balance(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *student = NULL;
    mb_objective *objective = NULL;
    mb_shard *shard = NULL;
    mb_objective_terms terms, tuned;
    whole w;
    const mb_arch arch = fix_arch(4, 0);
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11);
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &student));
    mb_test_ok(mb_shard_open(masked, 0, &shard));
    const int64_t n = mb_params_trained_count(mb_lm_params(student));
    float *gradient[4];
    for (int i = 0; i < 4; i++) {
        const lesson how = {.online = teacher, .temperature = 2, .aux = i % 2 * 0.5};
        mb_objective_options options = fix_objective_options("sft");
        options.router_aux_loss_coef = i % 2 * 0.5;
        gradient[i] = mb_calloc((size_t)n, sizeof(float));
        if (i < 2) {
            study(student, &how, masked, gradient[i], &terms);
        } else {
            mb_test_ok(mb_objective_create(&options, student, &objective));
            whole_read(shard, objective, &w);
            mb_test_ok(mb_trainer_gradients(student, objective, &w.microbatch, gradient[i], &tuned));
            whole_free(&w);
            mb_objective_destroy(&objective);
        }
        fix_objective_free(&options);
    }
    assert_true(term(&terms, "balance") > 1);
    mb_test_near(term(&terms, "balance"), term(&tuned, "balance"), 1e-7);
    mb_test_near(term(&terms, "loss"),
                 0.7 * term(&terms, "distil_loss") + 0.3 * term(&terms, "task_loss") +
                     0.5 * term(&terms, "balance"),
                 1e-9);
    for (int64_t i = 0; i < n; i++) {
        gradient[1][i] -= gradient[0][i];
        gradient[3][i] -= gradient[2][i];
    }
    assert_true(norm_of(gradient[3], n) > 1e-3);
    assert_true(difference(gradient[1], gradient[3], n) < 1e-4);
    for (int i = 0; i < 4; i++) mb_free(gradient[i]);
    mb_shard_close(&shard);
    mb_lm_destroy(&student);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

/* ---- training ---- */

static double logged(const char *run, const char *name, bool first)
{
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    void *data = NULL;
    mb_h5 *file = NULL;
    char path[80], *metrics = mb_test_path(run, "metrics.h5");
    snprintf(path, sizeof path, "/%s", name);
    mb_test_ok(mb_h5_open(metrics, &file));
    mb_test_ok(mb_h5_read_new(file, path, MB_F64, &dims, shape, &data));
    const double *values = data;
    double value = NAN; /* lines of validations have no terms of the training, and the other way round */
    for (int64_t i = 0; i < shape[0]; i++) {
        const double one = values[first ? i : shape[0] - 1 - i];
        if (isnan(one)) continue;
        value = one;
        break;
    }
    mb_free(data);
    mb_h5_destroy(&file);
    mb_free(metrics);
    return value;
}

typedef struct course {
    const char *name, *store, *validation_store, *opt_model;
    mb_lm *online;
    bool moe, with_validation;
    int64_t lanes, stop_after, epochs;
    const mb_lora_options *opt_lora;
    double temperature;
} course;

/* One run of a course, into `out` (trained values: the caller's). */
static mb_status take_course(const course *c, fix_run *out)
{
    char *path = mb_test_path(folder, c->name);
    const lesson how = {.online = c->online, .store = c->store, .temperature = c->temperature, .aux = 0.01};
    mb_objective_options choice = lesson_options(&how);
    mb_trainer_options options = fix_trainer_options();
    set_text(&choice.teacher_validation_store, c->validation_store);
    options.learning_rate = 1e-2;
    options.epochs = (double)(c->epochs > 0 ? c->epochs : 2);
    options.gradient_accumulation_steps = 2;
    if (c->lanes > 0) options.lanes = c->lanes;
    *out = (fix_run){.arch = fix_arch(c->moe ? 4 : 0, 0),
                     .train = c->opt_lora != NULL ? "lora" : "all",
                     .objective = "distil",
                     .shard = masked,
                     .folder = path,
                     .opt_validation = c->with_validation ? held : NULL,
                     .opt_model = c->opt_model,
                     .opt_lora = c->opt_lora,
                     .stop_after = c->stop_after,
                     .opt_objective_options = &choice};
    const mb_status status = fix_train(out, &options);
    mb_trainer_report_reset(&out->report);
    fix_trainer_free(&options);
    fix_objective_free(&choice);
    mb_free(path);
    return status;
}

/* A student comes to its teacher, in training and in validation; lanes change nothing but rounding. */
static void test_learns(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11);
    char *store = write_store("learn.h5", teacher, masked, 16, "f16", false, 64),
         *validation = write_store("learn_held.h5", teacher, held, 16, "f16", false, 64);
    course c = {.name = "learn_4",
                .store = store,
                .validation_store = validation,
                .with_validation = true,
                .epochs = 12,
                .lanes = 4};
    fix_run first, other;
    char *path = mb_test_path(folder, c.name);
    mb_test_ok(take_course(&c, &first));
    print_message("# distil_loss %.4f -> %.4f, task_loss %.4f -> %.4f, validation %.4f -> %.4f\n",
                  logged(path, "distil_loss", true), logged(path, "distil_loss", false),
                  logged(path, "task_loss", true), logged(path, "task_loss", false),
                  logged(path, "validation/distil_loss", true),
                  logged(path, "validation/distil_loss", false));
    assert_true(logged(path, "distil_loss", false) < 0.7 * logged(path, "distil_loss", true));
    assert_true(logged(path, "validation/distil_loss", false) < logged(path, "validation/distil_loss", true));
    for (c.lanes = 1; c.lanes < 4; c.lanes++) {
        char name[32];
        snprintf(name, sizeof name, "learn_%d", (int)c.lanes);
        c.name = name;
        mb_test_ok(take_course(&c, &other));
        assert_int_equal(first.count, other.count);
        if (c.lanes > 1) /* 2 micro-batches a step */
            assert_memory_equal(first.trained, other.trained, (size_t)first.count * sizeof(float));
        else
            assert_true(difference(other.trained, first.trained, first.count) < 1e-4);
        mb_free(other.trained);
    }
    mb_free(first.trained);
    mb_free(path);
    mb_free(store);
    mb_free(validation);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

/* Stopped inside a step and run again: the bits of a run that was not; another teacher is refused then. */
static void test_resumes(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = keep_teacher(ops, 11, "teacher"), *another = keep_teacher(ops, 12, "another");
    char *store = write_store("resume.h5", teacher, masked, 8, "f16", false, 64),
         *validation = write_store("resume_held.h5", teacher, held, 8, "f16", false, 64),
         *different = write_store("different.h5", another, masked, 8, "f16", false, 64);
    for (int online = 0; online < 2; online++) {
        course c = {.name = online ? "online" : "stored",
                    .store = online ? NULL : store,
                    .validation_store = online ? NULL : validation,
                    .online = online ? teacher : NULL,
                    .with_validation = true,
                    .moe = true};
        fix_run whole_run, stopped, refused;
        mb_test_ok(take_course(&c, &whole_run));
        c.name = online ? "online_stopped" : "stored_stopped";
        c.stop_after = 17; /* 14 of the first validation, and in the middle of the second step */
        assert_int_equal(take_course(&c, &stopped), MB_ESTOPPED);
        mb_free(stopped.trained);
        mb_status_reset();
        c.stop_after = 0;
        course wrong = c;
        if (online)
            wrong.online = another;
        else
            wrong.store = different;
        mb_test_fails(take_course(&wrong, &refused), MB_EUSAGE, "teacher");
        mb_free(refused.trained);
        mb_test_ok(take_course(&c, &stopped));
        assert_int_equal(whole_run.count, stopped.count);
        assert_memory_equal(whole_run.trained, stopped.trained, (size_t)stopped.count * sizeof(float));
        mb_free(whole_run.trained);
        mb_free(stopped.trained);
    }
    mb_free(store);
    mb_free(validation);
    mb_free(different);
    mb_lm_destroy(&another);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

/* Two students of one file: an adapter learns from it as a whole model does. */
static void test_adapter_student(void **state)
{
    (void)state;
    const mb_lora_options lora = {.r = 4, .alpha = 16, .targets = "all-linear", .seed = 3};
    mb_ops *ops = NULL;
    mb_lm *base = NULL;
    const mb_arch arch = fix_arch(0, 0);
    char *model = mb_test_path(folder, "model"), *path = mb_test_path(folder, "adapter");
    fix_run run;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &base));
    mb_test_ok(mb_files_make_folders(model));
    mb_test_ok(mb_lm_write(base, model, "full", MB_F32));
    mb_lm *teacher = make_teacher(ops, 11);
    char *store = write_store("adapter.h5", teacher, masked, 16, "f16", false, 64);
    const course c = {.name = "adapter", .store = store, .opt_model = model, .opt_lora = &lora, .epochs = 8};
    mb_test_ok(take_course(&c, &run));
    assert_true(logged(path, "distil_loss", false) < 0.9 * logged(path, "distil_loss", true));
    mb_free(run.trained);
    mb_free(store);
    mb_free(path);
    mb_free(model);
    mb_lm_destroy(&teacher);
    mb_lm_destroy(&base);
    mb_ops_destroy(&ops);
}

/* ---- refusals ---- */

/* What opening data says to a student of this store. */
static mb_status try_data(mb_lm *student, const lesson *l, const char *shard_path, const char *opt_validation,
                          int64_t max_length)
{
    mb_objective_options options = lesson_options(l);
    mb_objective *objective = NULL;
    mb_shard *shard = NULL, *validation = NULL;
    mb_test_ok(mb_shard_open(shard_path, 0, &shard));
    if (opt_validation != NULL) mb_test_ok(mb_shard_open(opt_validation, 0, &validation));
    mb_status status = mb_objective_create(&options, student, &objective);
    const mb_objective_data data = {shard, validation, max_length};
    if (status == MB_OK) status = mb_objective_open_data(objective, &data);
    mb_objective_destroy(&objective);
    mb_shard_close(&shard);
    mb_shard_close(&validation);
    fix_objective_free(&options);
    return status;
}

static void test_refusals(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *student = NULL, *wide = NULL;
    mb_arch arch = fix_arch(0, 0);
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *teacher = make_teacher(ops, 11);
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &student));
    arch.vocab = FIX_VOCAB + 2;
    mb_test_ok(mb_lm_create(ops, &arch, "all", 7, &wide));
    char *store = write_store("refuse.h5", teacher, masked, 8, "f16", false, 64),
         *shorter = write_store("shorter.h5", teacher, masked, 8, "f16", false, 10);
    lesson how = {.store = store, .temperature = 2};
    mb_test_ok(try_data(student, &how, masked, NULL, 0));
    mb_test_ok(try_data(student, &how, masked, NULL, 9)); /* a prefix of every record */
    how.temperature = 2.5;
    mb_test_fails(try_data(student, &how, masked, NULL, 0), MB_EUSAGE,
                  "temperatures 1, 1.5, 2, 3, and training.temperature = 2.5");
    how.temperature = 2;
    mb_test_fails(try_data(student, &how, plain, NULL, 0), MB_EDATA, "shard (");
    mb_test_fails(try_data(wide, &how, masked, NULL, 0), MB_EDATA,
                  "vocabulary (64 tokens there, 66 tokens here)");
    mb_test_fails(try_data(student, &how, masked, held, 0), MB_EUSAGE, "teacher.validation_store is missing");
    how.targets = "all";
    mb_test_fails(try_data(student, &how, masked, NULL, 0), MB_EDATA, "targets (those of the loss mask");
    how.targets = NULL;
    how.store = shorter;
    mb_test_fails(try_data(student, &how, masked, NULL, 0), MB_EDATA, "dataset.max_length=10");
    mb_test_ok(try_data(student, &how, masked, NULL, 10));
    how.store = masked;
    mb_test_fails(try_data(student, &how, masked, NULL, 0), MB_EFORMAT, "not the file of a teacher");
    how = (lesson){.online = teacher};
    mb_test_fails(try_data(wide, &how, masked, NULL, 0), MB_EDATA, "64 tokens, the student one of 66");
    how.store = store;
    mb_test_fails(try_data(student, &how, masked, NULL, 0), MB_EUSAGE, "both given");
    how = (lesson){0};
    mb_test_fails(try_data(student, &how, masked, NULL, 0), MB_EUSAGE, "the teacher is missing");
    mb_free(store);
    mb_free(shorter);
    mb_lm_destroy(&wide);
    mb_lm_destroy(&student);
    mb_lm_destroy(&teacher);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stored_equals_online),
                                       cmocka_unit_test(test_stored_equals_online_on_device),
                                       cmocka_unit_test(test_fewer_tokens),
                                       cmocka_unit_test(test_teacher_itself),
                                       cmocka_unit_test(test_central_differences),
                                       cmocka_unit_test(test_balance),
                                       cmocka_unit_test(test_learns),
                                       cmocka_unit_test(test_resumes),
                                       cmocka_unit_test(test_adapter_student),
                                       cmocka_unit_test(test_refusals)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
