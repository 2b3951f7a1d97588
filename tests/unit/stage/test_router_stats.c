/* router_stats: rows of a generator's forwards against one forward over each whole sequence, on a mixture of
 * experts whose routers stand for those between members; its file by parts and at once. */
#include "mb_test.h"

#include "stage/router_stats_file.h"
#include "store/contenthash.h"

enum { PROMPTS = 5, SAMPLES = 3, NEW = 9, MOST = 40 };

typedef struct job {
    mb_router_stats *stats;
    int64_t samples, given;
    uint32_t prompt[PROMPTS][MOST];
    int64_t count[PROMPTS];
    uint32_t answer[PROMPTS][SAMPLES][NEW];
    mb_router_query query[PROMPTS][SAMPLES];
    int64_t grown[PROMPTS][SAMPLES];
} job;

static mb_status give(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    job *j = own;
    *out_has = j->given < PROMPTS;
    if (!*out_has) return MB_OK;
    *out_prompt = (mb_generate_prompt){j->given, j->prompt[j->given], j->count[j->given]};
    j->given++;
    return MB_OK;
}

static mb_status take(void *own, const mb_generate_answer *a)
{
    job *j = own;
    assert_int_equal(a->count, NEW);
    assert_int_equal(j->grown[a->record][a->sample], NEW - 1);
    memcpy(j->answer[a->record][a->sample], a->ids, NEW * sizeof *a->ids);
    return mb_router_stats_take(j->stats, a, &j->query[a->record][a->sample]);
}

static mb_status grow(void *own, const mb_generate_growth *g)
{
    job *j = own;
    assert_int_equal(g->prompt, j->count[g->record]);
    assert_int_equal(g->count, g->prompt + ++j->grown[g->record][g->sample]);
    return MB_OK;
}

static mb_status route(void *own, const mb_generate_routing *routing)
{
    return mb_router_stats_route(((job *)own)->stats, routing);
}

static mb_lm *open_model(mb_ops **out_ops)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = "tests/golden/models/olmoe_plain", .train = "none"};
    mb_test_ok(mb_ops_create("ref", 1, out_ops));
    mb_test_ok(mb_lm_open(*out_ops, &options, &lm));
    return lm;
}

static mb_router_shape shape_of(const mb_lm *lm)
{
    mb_router_shape shape = {.stages = mb_lm_routers(lm),
                             .members = mb_lm_arch(lm)->experts,
                             .by_layer = true,
                             .has_tokens = true};
    static const char *const names[MB_FUSE_MAX_MEMBERS] = {"a", "b", "c", "d", "e", "f", "g", "h",
                                                           "i", "j", "k", "l", "m", "n", "o", "p"};
    assert_in_range(shape.members, 1, MB_FUSE_MAX_MEMBERS);
    memcpy(shape.members_name, names, sizeof names);
    return shape;
}

static job *run(mb_lm *lm, const mb_generate_options *options)
{
    static const int64_t lengths[PROMPTS] = {1, 2, 9, 17, 20};
    const mb_router_shape shape = shape_of(lm);
    const mb_ids no_ends = {0};
    mb_generate_report report;
    job *j = mb_calloc(1, sizeof *j);
    assert_non_null(j);
    j->samples = options->samples;
    for (int64_t p = 0; p < PROMPTS; p++) {
        j->count[p] = lengths[p];
        for (int64_t i = 0; i < lengths[p]; i++)
            j->prompt[p][i] = (uint32_t)((7 * p + 3 * i + i * i) % mb_lm_arch(lm)->vocab);
    }
    mb_test_ok(mb_router_stats_create(&shape, NULL, options->samples, &j->stats));
    const mb_generate_source source = {.own = j, .next = give, .take = take, .grow = grow, .route = route};
    mb_test_ok(mb_generate_run(lm, NULL, &no_ends, options, &source, &report));
    assert_int_equal(report.answers, PROMPTS * options->samples);
    return j;
}

static void job_free(job *j)
{
    for (int64_t p = 0; p < PROMPTS; p++)
        for (int64_t s = 0; s < SAMPLES; s++) mb_router_query_reset(&j->query[p][s]);
    mb_router_stats_destroy(&j->stats);
    mb_free(j);
}

static mb_generate_options usual(void)
{
    return (mb_generate_options){.max_new_tokens = NEW,
                                 .temperature = 1.2,
                                 .top_p = 1,
                                 .repetition_penalty = 1,
                                 .samples = SAMPLES,
                                 .seed = 5,
                                 .cache = true,
                                 .batch_sequences = 8,
                                 .batch_tokens = 2048,
                                 .prefill_tokens = 512};
}

/* ---- against whole sequences ---- */

/* Softmax weights of every row, [rows, S, M]. */
static double *weights_of(mb_lm *lm, const uint32_t *ids, int64_t n)
{
    mb_lm_pass *pass = NULL;
    mb_lm_output out = {0};
    int32_t row[MOST], id[MOST];
    const int32_t offsets[] = {0, (int32_t)n};
    const int64_t stages = mb_lm_routers(lm), members = mb_lm_arch(lm)->experts;
    double *w = mb_calloc((size_t)(n * stages * members), sizeof *w);
    assert_non_null(w);
    for (int64_t i = 0; i < n; i++) row[i] = (int32_t)i, id[i] = (int32_t)ids[i];
    const mb_lm_batch batch = {.tokens = n, .segments = 1, .ids = id, .positions = row, .offsets = offsets};
    const mb_lm_want want = {.hidden = true};
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    mb_test_ok(mb_lm_forward(pass, &batch, &want, &out));
    for (int64_t i = 0; i < n; i++)
        for (int64_t s = 0; s < stages; s++) {
            const float *z = out.router_logits[s] + i * members;
            double sum = 0;
            for (int64_t m = 0; m < members; m++) sum += exp((double)z[m]);
            for (int64_t m = 0; m < members; m++) w[(i * stages + s) * members + m] = exp((double)z[m]) / sum;
        }
    mb_lm_pass_destroy(&pass);
    return w;
}

static void check_query(mb_lm *lm, const job *j, int64_t p, int64_t s)
{
    const mb_router_query *q = &j->query[p][s];
    const int64_t width = mb_lm_routers(lm) * mb_lm_arch(lm)->experts, n = j->count[p];
    uint32_t ids[MOST];
    memcpy(ids, j->prompt[p], (size_t)n * sizeof *ids);
    memcpy(ids + n, j->answer[p][s], NEW * sizeof *ids);
    double *w = weights_of(lm, ids, n + NEW);
    assert_int_equal(q->prompt_rows, n - 1);
    assert_int_equal(q->answer_rows, NEW);
    assert_int_equal(q->tokens, n + NEW);
    assert_memory_equal(q->ids, ids, (size_t)q->tokens * sizeof *ids);
    for (int64_t i = 0; i < width; i++) {
        double prompt = 0, answer = 0;
        for (int64_t t = 0; t < n - 1; t++) prompt += w[t * width + i] / (double)(n - 1);
        for (int64_t t = n - 1; t < n + NEW - 1; t++) answer += w[t * width + i] / NEW;
        if (n > 1)
            mb_test_near_abs(q->prompt[i], prompt, 1e-5, 1e-6);
        else
            assert_true(isnan(q->prompt[i]));
        mb_test_near_abs(q->answer[i], answer, 1e-5, 1e-6);
        assert_true(isnan(q->share[i]));
        for (int64_t t = 1; t < q->tokens; t++)
            mb_test_near_abs((double)q->share[t * width + i], w[(t - 1) * width + i], 1e-5, 1e-6);
    }
    mb_free(w);
}

static void same_query(const mb_router_query *a, const mb_router_query *b, int64_t width)
{
    assert_int_equal(a->prompt_rows, b->prompt_rows);
    if (a->prompt_rows > 0) assert_memory_equal(a->prompt, b->prompt, (size_t)width * sizeof *a->prompt);
    assert_memory_equal(a->answer, b->answer, (size_t)width * sizeof *a->answer);
    assert_memory_equal(a->share + width, b->share + width,
                        (size_t)((a->tokens - 1) * width) * sizeof *a->share);
}

/* Prompts in pieces, samples behind their leaders, a few at a time, from scratch: the same bits. */
static void test_rows(void **state)
{
    (void)state;
    mb_ops *ops;
    mb_lm *lm = open_model(&ops);
    mb_generate_options options = usual();
    job *all = run(lm, &options);
    for (int64_t p = 0; p < PROMPTS; p++)
        for (int64_t s = 0; s < SAMPLES; s++) check_query(lm, all, p, s);
    for (int how = 0; how < 2; how++) {
        options = usual();
        options.prefill_tokens = 4;
        options.batch_sequences = 3;
        options.cache = how == 0;
        job *other = run(lm, &options);
        for (int64_t p = 0; p < PROMPTS; p++)
            for (int64_t s = 0; s < SAMPLES; s++)
                same_query(&all->query[p][s], &other->query[p][s],
                           mb_lm_routers(lm) * mb_lm_arch(lm)->experts);
        job_free(other);
    }
    job_free(all);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* ---- files ---- */

static void write_file(const job *j, const mb_router_shape *shape, const char *path, int64_t first,
                       int64_t end, const char *opt_model)
{
    mb_router_stats_file *file = NULL;
    mb_test_ok(mb_router_stats_file_create(path, shape, opt_model, opt_model, &file));
    for (int64_t p = first; p < end; p++)
        for (int64_t s = 0; s < SAMPLES; s++) mb_test_ok(mb_router_stats_file_add(file, &j->query[p][s]));
    mb_test_ok(mb_router_stats_file_close(&file));
}

static void test_file(void **state)
{
    (void)state;
    mb_ops *ops;
    mb_lm *lm = open_model(&ops);
    const mb_generate_options options = usual();
    const mb_router_shape shape = shape_of(lm);
    job *j = run(lm, &options);
    char *folder = mb_test_folder_make(), whole_hash[MB_HASH_TEXT], joined_hash[MB_HASH_TEXT];
    char *whole = mb_files_join(folder, "whole.h5"), *joined = mb_files_join(folder, "joined.h5"),
         *part = mb_files_join(folder, "part.h5");
    mb_router_stats_file *file = NULL;
    double prompt[MB_FUSE_MAX_MEMBERS], answer[MB_FUSE_MAX_MEMBERS], sum = 0;
    write_file(j, &shape, whole, 0, PROMPTS, "model");
    mb_test_ok(mb_router_stats_file_create(joined, &shape, "model", "model", &file));
    mb_router_stats_file_mean(file, prompt, answer);
    assert_true(isnan(answer[0]));
    for (int64_t p = 0; p < PROMPTS; p += 2) {
        write_file(j, &shape, part, p, p + 2 < PROMPTS ? p + 2 : PROMPTS, NULL);
        mb_test_ok(mb_router_stats_file_append(file, part));
    }
    write_file(j, &shape, part, 0, 0, NULL);
    mb_test_ok(mb_router_stats_file_append(file, part));
    mb_router_stats_file_mean(file, prompt, answer);
    for (int64_t m = 0; m < shape.members; m++) sum += answer[m];
    mb_test_near(sum, 1, 1e-12);
    mb_test_ok(mb_router_stats_file_close(&file));
    mb_test_ok(mb_contenthash_path(whole, whole_hash));
    mb_test_ok(mb_contenthash_path(joined, joined_hash));
    assert_string_equal(whole_hash, joined_hash);
    mb_free(whole);
    mb_free(joined);
    mb_free(part);
    mb_test_folder_remove(&folder);
    job_free(j);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* A model without members has no shares. */
static void test_refused(void **state)
{
    (void)state;
    mb_ops *ops;
    mb_lm *lm = open_model(&ops);
    mb_router_shape shape;
    char text[32];
    mb_test_fails(mb_router_shape_get(lm, false, &shape), MB_EUSAGE, "fused");
    shape = shape_of(lm);
    assert_string_equal(mb_router_shape_stage(&shape, 0, text), "embedding");
    assert_string_equal(mb_router_shape_stage(&shape, 1, text), shape.stages > 2 ? "layer 0" : "head");
    shape.by_layer = false;
    assert_string_equal(mb_router_shape_stage(&shape, 0, text), "token");
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_file),
                                       cmocka_unit_test(test_refused)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
