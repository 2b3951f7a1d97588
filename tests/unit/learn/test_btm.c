/* test_btm: objective btm: terms and gradients against PyTorch's (tests/golden/fuse), the gradient of balance
 * and entropy by differences, a trained router below both members, interrupted training, refusals. */
#include "fixture.h"

#include "model/fuse_cases.h"
#include "store/contenthash.h"

static char *folder, *up, *down, *mixed, *held, *members[2];

static mb_objective_options options_of(double balance, double sparsity)
{
    mb_objective_options options = fix_objective_options("btm");
    options.load_balance_weight = balance;
    options.sparsity_weight = sparsity;
    return options;
}

/* ---- against PyTorch ---- */

/* The golden records as one micro-batch of `microbatches` in its step. */
typedef struct golden_batch {
    mb_shard_record record[16];
    int64_t sample[16];
    uint32_t tokens[256];
    mb_microbatch microbatch;
} golden_batch;

static void read_batch(const mb_safetensors *file, int64_t microbatches, golden_batch *b)
{
    cases_batch cases;
    fuse_cases_batch(file, &cases);
    for (int64_t t = 0; t < cases.batch.tokens; t++) b->tokens[t] = (uint32_t)cases.ids[t];
    for (int64_t i = 0; i < cases.batch.segments; i++) {
        b->record[i] = (mb_shard_record){.tokens = b->tokens + cases.offsets[i],
                                         .count = cases.offsets[i + 1] - cases.offsets[i]};
        b->sample[i] = i;
    }
    b->microbatch = (mb_microbatch){.records = cases.batch.segments,
                                    .record = b->record,
                                    .sample = b->sample,
                                    .step_targets = cases.batch.head_rows,
                                    .step_tokens = cases.batch.tokens,
                                    .step_records = cases.batch.segments,
                                    .step_microbatches = microbatches};
}

static double softmax_of(const float *logits, int64_t count, int64_t m)
{
    double sum = 0;
    for (int64_t k = 0; k < count; k++) sum += exp((double)logits[k] - (double)logits[m]);
    return 1 / sum;
}

/* Mean weights of the golden logits, over all stages and of the last. */
static void check_shares(const mb_safetensors *file, const char *level, int64_t stages, int64_t tokens,
                         const mb_objective_terms *terms)
{
    for (int64_t m = 0; m < 2; m++) {
        double all = 0, one = 0;
        for (int64_t s = 0; s < stages; s++) {
            char *name = mb_str_format("%s.router_logits.%lld", level, (long long)s);
            float *logits = fuse_cases_read(file, name, tokens * 2);
            assert_non_null(logits);
            for (int64_t t = one = 0; t < tokens; t++)
                one += softmax_of(logits + 2 * t, 2, m) / (double)tokens;
            all += one / (double)stages;
            mb_free(logits);
            mb_free(name);
        }
        assert_string_equal(terms->name[4 + m], m == 0 ? "share/foundation" : "share/sft");
        mb_test_near(terms->value[4 + m], all, 1e-5);
        if (stages == 1) continue;
        assert_string_equal(terms->name[4 + 2 * stages + m],
                            m == 0 ? "stage_share/foundation/3" : "stage_share/sft/3");
        mb_test_near(terms->value[4 + 2 * stages + m], one, 1e-5);
    }
    assert_int_equal(terms->count, stages == 1 ? 6 : 6 + 2 * stages);
}

static void check_golden(const char *name, mb_fuse_kind kind, const char *level)
{
    mb_ops *ops = NULL;
    mb_objective *objective = NULL;
    mb_objective_options options = options_of(0.3, 0.2);
    mb_objective_terms terms = {0};
    golden_batch b;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *lm = fuse_cases_open(ops, name, kind);
    mb_params *params = mb_lm_params(lm);
    mb_safetensors *file = fuse_cases_expected(name);
    fuse_cases_set_router(lm, file, level);
    read_batch(file, 1, &b);
    mb_test_ok(mb_objective_create(&options, lm, &objective));
    float *gradient = mb_calloc((size_t)mb_params_trained_count(params), sizeof *gradient);
    mb_test_ok(mb_trainer_gradients(lm, objective, &b.microbatch, gradient, &terms));
    char *key = mb_str_format("%s.btm", level);
    float *expected = fuse_cases_read(file, key, 4);
    mb_free(key);
    static const char *const terms_of[] = {"loss", "lm_loss", "balance", "entropy"};
    for (int i = 0; i < 4; i++) {
        assert_string_equal(terms.name[i], terms_of[i]);
        mb_test_near(terms.value[i], (double)expected[i], 1e-5);
    }
    mb_free(expected);
    check_shares(file, level, mb_lm_routers(lm), b.microbatch.step_tokens, &terms);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        const int64_t n = mb_tensor_count(&param->value);
        key = mb_str_format("%s.btm.%s", level, param->name);
        expected = fuse_cases_read(file, key, n);
        assert_non_null(expected);
        const double difference = cases_difference(gradient + param->flat, expected, n);
        if (!(difference < 1e-4)) print_error("# %s %s: %g\n", name, key, difference);
        assert_true(difference < 1e-4);
        mb_free(expected);
        mb_free(key);
    }
    mb_free(gradient);
    mb_safetensors_close(&file);
    mb_objective_destroy(&objective);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&options);
}

static void test_golden(void **state)
{
    (void)state;
    check_golden("llama", MB_FUSE_TOKEN, "token");
    check_golden("llama", MB_FUSE_LAYER, "layer");
    check_golden("mixtral", MB_FUSE_LAYER, "layer");
}

/* ---- differences ---- */

/* loss() of given logits; gradient of the first stage's logits into out (NULL: not). */
static double loss_at(mb_objective *objective, const golden_batch *b, float *const *logits,
                      const mb_lm_output *like, float *out)
{
    mb_arena *arena = NULL;
    mb_objective_pass planned[MB_OBJECTIVE_MAX_PASSES];
    mb_objective_gradient gradients[MB_OBJECTIVE_MAX_PASSES] = {{0}};
    mb_objective_terms terms = {0};
    mb_lm_output output = *like;
    int64_t count = 0;
    output.router_logits = (float **)logits;
    mb_test_ok(mb_arena_create(1 << 20, &arena));
    mb_test_ok(objective->plan_passes(objective, &b->microbatch, arena, planned, &count));
    assert_int_equal(count, 1);
    mb_test_ok(objective->loss(objective, &b->microbatch, arena, planned, &output, count, &terms, gradients));
    const int64_t n = planned[0].batch.tokens * 3;
    if (out != NULL) memcpy(out, gradients[0].d_router_logits[0], (size_t)n * sizeof *out);
    mb_arena_destroy(&arena);
    return terms.value[0];
}

/* Three members, logits far apart in places, three micro-batches a step. */
static void test_differences(void **state)
{
    (void)state;
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    mb_objective *objective = NULL;
    mb_objective_options options = options_of(0.7, 0.4);
    golden_batch b;
    enum { ROWS = 24, N = 3 * ROWS };
    float logits[N], token_loss[64] = {0}, gradient[N], *stage[1] = {logits};
    int32_t ids[ROWS] = {0}, *picks[1] = {ids};
    const mb_fuse_member three[] = {{"a", FUSE_FOLDER "/llama/foundation", NULL, 1},
                                    {"b/2", FUSE_FOLDER "/llama/sft", NULL, 1},
                                    {"c", FUSE_FOLDER "/llama/foundation", NULL, 2}};
    const mb_fuse_options fuse = {.kind = MB_FUSE_TOKEN, .count = 3, .member = three, .train = true};
    const mb_lm_output like = {.token_loss = token_loss, .routers = 1, .router_ids = picks};
    mb_safetensors *file = fuse_cases_expected("llama");
    read_batch(file, 3, &b);
    mb_safetensors_close(&file);
    assert_int_equal(b.microbatch.step_tokens, ROWS);
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_fuse_open(ops, &fuse, &lm));
    mb_test_ok(mb_objective_create(&options, lm, &objective));
    assert_string_equal(objective->term[5], "share/b_2");
    for (int i = 0; i < N; i++) logits[i] = (float)mb_rng_normal(5, MB_RNG_DATA, 0, (uint64_t)i);
    logits[6] = 300; /* w exactly 1, 0, 0 */
    loss_at(objective, &b, stage, &like, gradient);
    for (int i = 0; i < N; i++) {
        const float was = logits[i], step = 1.0f / 64;
        logits[i] = was + step;
        const double above = loss_at(objective, &b, stage, &like, NULL);
        logits[i] = was - step;
        const double below = loss_at(objective, &b, stage, &like, NULL);
        logits[i] = was;
        mb_test_near_abs((double)gradient[i], (above - below) / (2 * (double)step), 1e-3, 2e-7);
    }
    mb_objective_destroy(&objective);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&options);
}

/* ---- training ---- */

/* Sequences that count up (kind 0), down (1), or of both kinds in turn (2), from `first` on. */
static char *make_shard(const char *name, int kind, int64_t first, int64_t records)
{
    const char *sources[] = {"a"}, *types[] = {"up", "down"};
    mb_shard_info info = {.tokenizer_hash = "t",
                          .template_hash = "",
                          .max_length = 64,
                          .vocab_size = FIX_VOCAB,
                          .source_names = sources,
                          .source_files = sources,
                          .source_count = 1,
                          .type_names = types,
                          .type_count = 2};
    mb_shard_writer *writer = NULL;
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = first; i < first + records; i++) {
        uint32_t tokens[12];
        const int down_now = kind == 2 ? (int)(i % 2) : kind;
        for (int64_t t = 0; t < 12; t++)
            tokens[t] = (uint32_t)((i * 5 + (down_now ? FIX_VOCAB - t : t)) % FIX_VOCAB);
        mb_shard_record record = {.tokens = tokens,
                                  .count = 12,
                                  .source_index = i,
                                  .type = (uint16_t)down_now,
                                  .record_hash = (uint64_t)i + 1};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    return path;
}

static fix_run run_of(const char *name, const char *objective, const char *shard)
{
    return (fix_run){.arch = fix_arch(0, 0),
                     .train = "all",
                     .objective = objective,
                     .shard = shard,
                     .folder = mb_test_path(folder, name),
                     .backend = "cpu"};
}

static void run_free(fix_run *run)
{
    mb_trainer_report_reset(&run->report);
    mb_free((void *)run->folder);
    MB_FREE(run->trained);
}

/* A model of one kind of sequence; returns its folder. */
static char *train_member(const char *name, const char *shard)
{
    mb_trainer_options options = fix_trainer_options();
    fix_run run = run_of(name, "lm", shard);
    options.learning_rate = 1e-2;
    options.batch_size = 16;
    options.max_steps = 40;
    mb_test_ok(fix_train(&run, &options));
    char *path = mb_str_format("%s/final", run.folder);
    run_free(&run);
    fix_trainer_free(&options);
    return path;
}

/* Loss of a folder on the held-out set of both kinds. */
static double loss_of(const char *model, const char *name)
{
    mb_trainer_options options = fix_trainer_options();
    fix_run run = run_of(name, "lm", held);
    run.opt_model = model;
    options.learning_rate = 0;
    options.batch_size = 64;
    options.max_steps = options.gradient_accumulation_steps = 1;
    mb_test_ok(fix_train(&run, &options));
    const double loss = run.report.loss;
    run_free(&run);
    fix_trainer_free(&options);
    return loss;
}

/* Folder of a new fused model. */
static char *make_fused(const char *name, mb_fuse_kind kind)
{
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    const mb_fuse_member two[] = {{"foundation", members[0], NULL, 1}, {"sft", members[1], NULL, 1}};
    const mb_fuse_options fuse = {
        .kind = kind, .count = 2, .member = two, .router_hidden = 16, .train = true, .seed = 3};
    char *path = mb_test_path(folder, name);
    mb_test_ok(mb_files_make_folders(path));
    mb_test_ok(mb_ops_create("cpu", 1, &ops));
    mb_test_ok(mb_fuse_open(ops, &fuse, &lm));
    mb_test_ok(mb_lm_write(lm, path, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    return path;
}

static double validated(const fix_run *run, const char *name, bool first)
{
    for (int64_t i = 0; i < run->report.validated_count; i++)
        if (mb_str_equal(run->report.validated[i].name, name))
            return first ? run->report.validated[i].first : run->report.validated[i].last;
    fail_msg("%s is not validated", name);
    return NAN;
}

static mb_status train_router(fix_run *run, int64_t zero)
{
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = options_of(0.001, 0.001);
    run->train = "router";
    run->opt_validation = held;
    run->opt_objective_options = &choice;
    options.learning_rate = 3e-2;
    options.batch_size = 8;
    options.max_steps = 50;
    options.validation_steps = 10;
    options.zero = zero;
    const mb_status status = fix_train(run, &options);
    fix_objective_free(&choice);
    fix_trainer_free(&options);
    return status;
}

/* Names of the run's folder that begin so. */
static int count_names(const char *path, const char *prefix)
{
    char **names = NULL;
    int64_t n = 0;
    int found = 0;
    mb_test_ok(mb_files_list(path, &names, &n));
    for (int64_t i = 0; i < n; i++) found += mb_str_is_prefix(names[i], prefix);
    mb_files_free_names(&names, n);
    return found;
}

static void hash_of(const fix_run *run, const char *name, char out[MB_HASH_TEXT])
{
    char *path = mb_test_path(run->folder, name);
    mb_test_ok(mb_contenthash_path(path, out));
    mb_free(path);
}

static void check_trained(mb_fuse_kind kind, const char *name, double least)
{
    char *start = make_fused(name, kind), hash[2][MB_HASH_TEXT], text[64];
    snprintf(text, sizeof text, "%s_run", name);
    fix_run run = run_of(text, "btm", mixed);
    run.opt_model = start;
    mb_test_ok(train_router(&run, 1));
    const double before = validated(&run, "validation/lm_loss", true),
                 after = validated(&run, "validation/lm_loss", false),
                 of_up = validated(&run, "validation/up/share/foundation", false),
                 of_down = validated(&run, "validation/down/share/foundation", false);
    print_message(
        "# %s: members at best %.4f, at first %.4f, trained %.4f; share of the first: %.3f and %.3f\n", name,
        least, before, after, of_up, of_down);
    assert_true(after < least && after < before);
    assert_true(of_up > of_down);
    /* The weights that were kept are those of the best validation, and open as what they are. */
    char *best = mb_test_path(run.folder, "best_router");
    assert_true(mb_fuse_is_folder(best));
    assert_int_equal(count_names(run.folder, "best_"), 2); /* best_<step> and best_router */
    mb_free(best);
    if (run.report.best_step == run.report.steps) {
        hash_of(&run, "best", hash[0]);
        hash_of(&run, "final", hash[1]);
        assert_string_equal(hash[0], hash[1]);
    }
    /* Stopped in the middle of steps, and gradients by block: the same bits. */
    for (int64_t zero = 1; zero <= 2; zero++) {
        snprintf(text, sizeof text, "%s_cut_%d", name, (int)zero);
        fix_run cut = run_of(text, "btm", mixed);
        cut.opt_model = start;
        cut.stop_after = zero == 1 ? 47 : 0;
        mb_status status = train_router(&cut, zero);
        assert_int_equal(status, zero == 1 ? MB_ESTOPPED : MB_OK);
        cut.stop_after = 0;
        if (status == MB_ESTOPPED) mb_test_ok(train_router(&cut, zero));
        assert_int_equal(cut.count, run.count);
        if (zero == 1) assert_memory_equal(cut.trained, run.trained, (size_t)run.count * sizeof(float));
        for (int64_t i = 0; i < run.count; i++)
            mb_test_near_abs((double)cut.trained[i], (double)run.trained[i], 1e-4, 1e-5);
        if (zero == 1) {
            hash_of(&run, "best", hash[0]);
            hash_of(&cut, "best", hash[1]);
            assert_string_equal(hash[0], hash[1]);
        }
        run_free(&cut);
    }
    run_free(&run);
    mb_free(start);
}

static void test_trained(void **state)
{
    (void)state;
    const double first = loss_of(members[0], "loss_0"), second = loss_of(members[1], "loss_1"),
                 least = first < second ? first : second;
    check_trained(MB_FUSE_TOKEN, "token", least);
    check_trained(MB_FUSE_LAYER, "layer", least);
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
    (void)state;
    fix_run run = run_of("refused", "btm", mixed);
    mb_ops *ops = NULL;
    mb_objective_options options = options_of(0, 0);
    mb_objective *objective = NULL;
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_lm *lm = fix_model(NULL, ops, &run);
    mb_test_fails(mb_objective_create(&options, lm, &objective), MB_EUSAGE, "an ordinary model");
    mb_lm_destroy(&lm);
    lm = fuse_cases_open(ops, "llama", MB_FUSE_ENSEMBLE);
    mb_test_fails(mb_objective_create(&options, lm, &objective), MB_EUSAGE, "fixed weights");
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    fix_objective_free(&options);
    run_free(&run);
}

static int setup(void **state)
{
    (void)state;
    folder = mb_test_folder_make();
    up = make_shard("up.h5", 0, 0, 64);
    down = make_shard("down.h5", 1, 0, 64);
    mixed = make_shard("mixed.h5", 2, 0, 64);
    held = make_shard("held.h5", 2, 100, 24);
    members[0] = train_member("foundation", up);
    members[1] = train_member("sft", down);
    return 0;
}

static int teardown(void **state)
{
    MB_FREE(up);
    MB_FREE(down);
    MB_FREE(mixed);
    MB_FREE(held);
    MB_FREE(members[0]);
    MB_FREE(members[1]);
    mb_test_folder_remove(&folder);
    return mb_test_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_differences),
                                       cmocka_unit_test(test_trained), cmocka_unit_test(test_refusals)};
    setenv("MB_COMM", "self", 1);
    setenv("MB_LOG", "error", 1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
