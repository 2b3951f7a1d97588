/* generate: against transformers' ids, the trained stories260K, with and without kept keys, alone and in
 * company. */
#include "mb_test.h"

#include "base/rng.h"
#include "serve/generate.h"

enum { MOST = 40, LENGTH = 520 };

/* A list of prompts and what came of them. */
typedef struct job {
    uint32_t prompt[MOST][LENGTH];
    int64_t count[MOST], record[MOST], prompts, given, samples;
    uint32_t ids[MOST * 4][LENGTH];
    int64_t n[MOST * 4], taken;
    char *text[MOST * 4];
    double logprob[MOST * 4];
    mb_generate_finish finish[MOST * 4];
    mb_generate_report report;
} job;

static mb_status give(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    job *j = own;
    *out_has = j->given < j->prompts;
    if (!*out_has) return MB_OK;
    *out_prompt = (mb_generate_prompt){j->record[j->given], j->prompt[j->given], j->count[j->given]};
    j->given++;
    return MB_OK;
}

static mb_status take(void *own, const mb_generate_answer *a)
{
    job *j = own;
    int64_t i = 0;
    while (j->record[i] != a->record) i++;
    i = i * j->samples + a->sample;
    assert_int_equal(j->n[i], 0);
    j->n[i] = a->count;
    memcpy(j->ids[i], a->ids, (size_t)a->count * sizeof *a->ids);
    j->text[i] = a->text != NULL ? mb_strndup(a->text, a->length) : NULL;
    j->logprob[i] = a->logprob;
    j->finish[i] = a->finish;
    j->taken++;
    return MB_OK;
}

static job *job_make(int64_t samples)
{
    job *j = mb_calloc(1, sizeof *j);
    assert_non_null(j);
    j->samples = samples;
    return j;
}

static void job_add(job *j, int64_t record, const uint32_t *ids, int64_t n)
{
    memcpy(j->prompt[j->prompts], ids, (size_t)n * sizeof *ids);
    j->count[j->prompts] = n;
    j->record[j->prompts++] = record;
}

static void job_free(job *j)
{
    for (int64_t i = 0; i < MOST * 4; i++) mb_free(j->text[i]);
    mb_free(j);
}

static mb_generate_options usual(void)
{
    return (mb_generate_options){.max_new_tokens = 30,
                                 .top_p = 1,
                                 .repetition_penalty = 1,
                                 .samples = 1,
                                 .seed = 5,
                                 .cache = true,
                                 .batch_sequences = 8,
                                 .batch_tokens = 4096,
                                 .prefill_tokens = 512};
}

static const mb_ids no_ends = {0};

static void run(mb_lm *lm, const mb_tokenizer *tokenizer, const mb_generate_options *options, job *j)
{
    const mb_generate_source source = {.own = j, .next = give, .take = take};
    mb_test_ok(mb_generate_run(lm, tokenizer, &no_ends, options, &source, &j->report));
    assert_int_equal(j->taken, j->prompts * j->samples);
    assert_int_equal(j->report.answers, j->taken);
}

/* The same answer, to the bit. */
static void same(const job *a, int64_t i, const job *b, int64_t k)
{
    assert_int_equal(a->n[i], b->n[k]);
    assert_memory_equal(a->ids[i], b->ids[k], (size_t)a->n[i] * sizeof a->ids[0][0]);
    assert_true(a->logprob[i] == b->logprob[k]);
    assert_int_equal(a->finish[i], b->finish[k]);
}

static mb_lm *open_model(const char *folder, const char *backend, mb_dtype dtype, mb_ops **out_ops)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = folder, .train = "none", .dtype = dtype};
    if (mb_ops_create(backend, 2, out_ops) != MB_OK) {
        mb_status_reset();
        mb_test_skip("this build has no such backend");
    }
    mb_test_ok(mb_lm_open(*out_ops, &options, &lm));
    return lm;
}

/* ---- transformers ---- */

static int64_t read_ids(const json_t *list, uint32_t *ids)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        ids[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    return (int64_t)json_array_size(list);
}

static void check_family(const char *name, const json_t *cases, const char *backend)
{
    char *folder = mb_str_format("tests/golden/models/%s", name);
    mb_ops *ops;
    mb_lm *lm = open_model(folder, backend, MB_F32, &ops);
    uint32_t ids[LENGTH];
    for (int64_t n = 0; n < (int64_t)json_array_size(cases); n++) {
        const json_t *one = json_array_get(cases, (size_t)n);
        job *j = job_make(1);
        job_add(j, n, ids, read_ids(json_object_get(one, "prompt"), ids));
        const int64_t expected = read_ids(json_object_get(one, "ids"), ids);
        mb_generate_options options = usual();
        options.max_new_tokens = expected;
        options.prefill_tokens = 7;
        run(lm, NULL, &options, j);
        if (j->n[0] != expected || memcmp(j->ids[0], ids, (size_t)expected * sizeof *ids) != 0)
            print_message("# %s, prompt %lld\n", name, (long long)n);
        assert_int_equal(j->n[0], expected);
        assert_memory_equal(j->ids[0], ids, (size_t)expected * sizeof *ids);
        job_free(j);
    }
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_free(folder);
}

static void check_families(const char *backend)
{
    json_t *golden = NULL, *cases;
    const char *name;
    mb_test_ok(mb_json_read("tests/golden/sampling.json", &golden));
    json_t *models = json_object_get(golden, "generate");
    assert_true(json_object_size(models) >= 10);
    json_object_foreach(models, name, cases) check_family(name, cases, backend);
    json_decref(golden);
}

static void test_transformers_ref(void **state)
{
    (void)state;
    check_families("ref");
}

static void test_transformers_cpu(void **state)
{
    (void)state;
    check_families("cpu");
}

static void test_transformers_cuda(void **state)
{
    (void)state;
    check_families("cuda");
}

/* ---- independence ---- */

/* Random prompts of many lengths: 1 token, pieces' borders, long ones. */
static job *crowd(int64_t vocab, int64_t longest, int64_t samples)
{
    static const int64_t lengths[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 21, 33};
    job *j = job_make(samples);
    uint32_t ids[LENGTH];
    for (int64_t i = 0; i < 13; i++) {
        const int64_t n = lengths[i] < longest ? lengths[i] : longest;
        for (int64_t k = 0; k < n; k++)
            ids[k] =
                (uint32_t)(3 + mb_rng_below(11, MB_RNG_DATA, (uint32_t)i, (uint64_t)k, (uint64_t)vocab - 3));
        job_add(j, 100 + i, ids, n);
    }
    return j;
}

/* One record's answer is the same alone, in a crowd, with few slots, in pieces, and from scratch. */
static void check_company(const char *folder, const char *backend, mb_dtype dtype, double temperature)
{
    mb_ops *ops;
    mb_lm *lm = open_model(folder, backend, dtype, &ops);
    const int64_t vocab = mb_lm_arch(lm)->vocab, longest = mb_lm_arch(lm)->max_positions - 6;
    mb_generate_options options = usual();
    options.temperature = temperature;
    options.top_p = 0.97;
    options.prefill_tokens = 8;
    job *all = crowd(vocab, longest, 1), *few = crowd(vocab, longest, 1), *scratch = crowd(vocab, longest, 1);
    run(lm, NULL, &options, all);
    options.batch_sequences = 3;
    options.batch_tokens = 128;
    run(lm, NULL, &options, few);
    for (int64_t i = 0; i < all->prompts; i++) same(all, i, few, i);
    options.cache = false;
    run(lm, NULL, &options, scratch);
    for (int64_t i = 0; i < all->prompts; i++) same(all, i, scratch, i);
    options = usual();
    options.temperature = temperature;
    options.top_p = 0.97;
    for (int64_t i = 0; i < all->prompts; i += 3) {
        job *one = job_make(1);
        job_add(one, all->record[i], all->prompt[i], all->count[i]);
        run(lm, NULL, &options, one);
        same(all, i, one, 0);
        job_free(one);
    }
    job_free(all);
    job_free(few);
    job_free(scratch);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

static void test_company_ref(void **state)
{
    (void)state;
    check_company("tests/golden/models/olmoe_plain", "ref", MB_F32, 0);
    check_company("tests/golden/models/mistral", "ref", MB_F32, 1);
}

static void test_company_cpu(void **state)
{
    (void)state;
    check_company("tests/golden/models/olmoe_plain", "cpu", MB_F32, 0.9);
    check_company("tests/golden/models/llama_bias", "cpu", MB_F32, 0);
    check_company("tests/golden/models/mistral", "cpu", MB_F32, 1);
    check_company("tests/golden/models/qwen3_moe", "cpu", MB_F32, 1);
}

static void test_company_bf16(void **state)
{
    (void)state;
    check_company("tests/golden/models/olmoe_plain", "cpu", MB_BF16, 0.9);
    check_company("tests/golden/models/qwen3", "cpu", MB_BF16, 1);
}

/* Samples of one prompt differ from each other, and each is what it is in any batch; another seed gives
 * others. */
static void test_samples(void **state)
{
    (void)state;
    mb_ops *ops;
    mb_lm *lm = open_model("tests/golden/models/olmoe_plain", "cpu", MB_F32, &ops);
    mb_generate_options options = usual();
    options.temperature = 1.5;
    options.samples = 4;
    job *a = crowd(mb_lm_arch(lm)->vocab, 20, 4), *b = crowd(mb_lm_arch(lm)->vocab, 20, 4),
        *c = crowd(mb_lm_arch(lm)->vocab, 20, 4), *one = crowd(mb_lm_arch(lm)->vocab, 20, 1);
    run(lm, NULL, &options, a);
    options.cache = false;
    options.batch_sequences = 5;
    run(lm, NULL, &options, b);
    options.seed = 6;
    run(lm, NULL, &options, c);
    options = usual();
    options.temperature = 1.5;
    run(lm, NULL, &options, one);
    for (int64_t i = 0; i < a->taken; i++) same(a, i, b, i);
    for (int64_t i = 0; i < a->prompts; i++) {
        assert_memory_not_equal(a->ids[4 * i], a->ids[4 * i + 1], 30 * sizeof(uint32_t));
        assert_memory_not_equal(a->ids[4 * i], c->ids[4 * i], 30 * sizeof(uint32_t));
        same(a, 4 * i, one, i);
    }
    job_free(a);
    job_free(b);
    job_free(c);
    job_free(one);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* ---- ends ---- */

static void test_ends(void **state)
{
    (void)state;
    mb_ops *ops;
    mb_lm *lm = open_model("tests/golden/models/olmoe_plain", "ref", MB_F32, &ops);
    mb_generate_options options = usual();
    options.temperature = 2;
    job *free_run = crowd(mb_lm_arch(lm)->vocab, 20, 1), *ended = crowd(mb_lm_arch(lm)->vocab, 20, 1),
        *ignored = crowd(mb_lm_arch(lm)->vocab, 20, 1);
    run(lm, NULL, &options, free_run);
    uint32_t list[] = {free_run->ids[0][9], free_run->ids[1][4]};
    const mb_ids ends = {.data = list, .count = 2, .capacity = 2};
    const mb_generate_source source = {.own = ended, .next = give, .take = take};
    mb_test_ok(mb_generate_run(lm, NULL, &ends, &options, &source, &ended->report));
    options.ignore_eos = true;
    const mb_generate_source other = {.own = ignored, .next = give, .take = take};
    mb_test_ok(mb_generate_run(lm, NULL, &ends, &options, &other, &ignored->report));
    for (int64_t i = 0; i < ended->prompts; i++) {
        int64_t n = 0;
        while (n < 30 && free_run->ids[i][n] != list[0] && free_run->ids[i][n] != list[1]) n++;
        assert_int_equal(ended->finish[i], n < 30 ? MB_GENERATE_STOP : MB_GENERATE_LENGTH);
        assert_int_equal(ended->n[i], n < 30 ? n + 1 : 30);
        same(free_run, i, ignored, i);
    }
    assert_int_equal(ended->finish[0], MB_GENERATE_STOP);
    job_free(free_run);
    job_free(ended);
    job_free(ignored);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

/* Answers end at the model's last position; a prompt that leaves no room is refused. */
static void test_positions(void **state)
{
    (void)state;
    mb_ops *ops;
    mb_lm *lm = open_model("tests/golden/models/mistral", "ref", MB_F32, &ops);
    const int64_t most = mb_lm_arch(lm)->max_positions;
    mb_generate_options options = usual();
    options.max_new_tokens = 1000;
    uint32_t ids[LENGTH] = {3};
    job *j = job_make(1), *refused = job_make(1);
    for (int64_t i = 0; i < most; i++) ids[i] = (uint32_t)(3 + i % 7);
    job_add(j, 0, ids, 1);
    job_add(j, 1, ids, most - 1);
    run(lm, NULL, &options, j);
    assert_int_equal(j->n[0], most - 1);
    assert_int_equal(j->n[1], 1);
    assert_int_equal(mb_generate_longest(lm, &options), most - 1);
    job_add(refused, 0, ids, most);
    const mb_generate_source source = {.own = refused, .next = give, .take = take};
    mb_test_fails(mb_generate_run(lm, NULL, &no_ends, &options, &source, &refused->report), MB_ERANGE,
                  "can be answered");
    options.stop = mb_strdup("x");
    mb_test_fails(mb_generate_run(lm, NULL, &no_ends, &options, &source, &refused->report), MB_EUSAGE,
                  "tokenizer");
    mb_free(options.stop);
    job_free(j);
    job_free(refused);
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
}

static void test_ends_of_folder(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_ids ids = {0};
    mb_test_ok(mb_generate_ends_read(folder, NULL, &ids));
    assert_int_equal(ids.count, 0);
    mb_free(mb_test_write(folder, "config.json", "{\"eos_token_id\": 7}"));
    mb_test_ok(mb_generate_ends_read(folder, NULL, &ids));
    assert_int_equal(ids.count, 1);
    assert_int_equal(ids.data[0], 7);
    mb_ids_reset(&ids);
    mb_free(mb_test_write(folder, "generation_config.json", "{\"eos_token_id\": [5, 9]}"));
    mb_test_ok(mb_generate_ends_read(folder, NULL, &ids));
    assert_int_equal(ids.count, 2);
    assert_int_equal(ids.data[1], 9);
    mb_free(mb_test_write(folder, "generation_config.json", "{\"eos_token_id\": \"</s>\"}"));
    mb_test_fails(mb_generate_ends_read(folder, NULL, &ids), MB_EFORMAT, "eos_token_id");
    mb_ids_destroy(&ids);
    mb_test_folder_remove(&folder);
}

/* ---- a trained model ---- */

typedef struct stories {
    mb_ops *ops;
    mb_lm *lm;
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_str expected;
} stories;

static stories stories_open(const char *backend)
{
    stories s = {0};
    char *folder = mb_test_data("models/stories260K/hf"),
         *text = mb_test_data("models/stories260K/expected-greedy-200.txt");
    if (folder == NULL || text == NULL) mb_test_skip("stories260K is not there");
    s.lm = open_model(folder, backend, MB_F32, &s.ops);
    mb_test_ok(mb_tokenizer_open(folder, &s.tokenizer));
    mb_test_ok(mb_tokenizer_scratch_create(s.tokenizer, &s.scratch));
    mb_test_ok(mb_files_read(text, 0, &s.expected));
    mb_free(folder);
    mb_free(text);
    return s;
}

static void stories_close(stories *s)
{
    mb_str_destroy(&s->expected);
    mb_tokenizer_scratch_destroy(&s->scratch);
    mb_tokenizer_close(&s->tokenizer);
    mb_lm_destroy(&s->lm);
    mb_ops_destroy(&s->ops);
}

static void stories_add(const stories *s, job *j, int64_t record, const char *text)
{
    mb_ids ids = {0};
    mb_test_ok(mb_tokenizer_encode(s->tokenizer, s->scratch, text, strlen(text), true, &ids));
    job_add(j, record, ids.data, ids.count);
    mb_ids_destroy(&ids);
}

static void stories_crowd(const stories *s, job *j)
{
    stories_add(s, j, 3, "Once upon a time, there was a boy");
    stories_add(s, j, 4, "Tom");
    stories_add(s, j, 0, "");
    stories_add(s, j, 5, "The little dog saw a big bird in the tree. It was not happy, because");
}

static void check_stories(const char *backend)
{
    stories s = stories_open(backend);
    mb_generate_options options = usual();
    options.max_new_tokens = 200;
    job *alone = job_make(1), *batched = job_make(1), *scratch = job_make(1);
    stories_add(&s, alone, 0, "");
    stories_crowd(&s, batched);
    stories_crowd(&s, scratch);
    run(s.lm, s.tokenizer, &options, alone);
    run(s.lm, s.tokenizer, &options, batched);
    options.cache = false;
    if (strcmp(backend, "ref") == 0) options.max_new_tokens = 50; /* it is slow */
    run(s.lm, s.tokenizer, &options, scratch);
    assert_string_equal(alone->text[0], mb_str_text(&s.expected));
    assert_string_equal(batched->text[2], mb_str_text(&s.expected));
    same(alone, 0, batched, 2);
    for (int64_t i = 0; i < batched->prompts; i++)
        assert_memory_equal(scratch->ids[i], batched->ids[i], (size_t)scratch->n[i] * sizeof(uint32_t));
    job_free(alone);
    job_free(batched);
    job_free(scratch);
    stories_close(&s);
}

static void test_stories_ref(void **state)
{
    (void)state;
    check_stories("ref");
}

static void test_stories_cpu(void **state)
{
    (void)state;
    check_stories("cpu");
}

/* A text drawn with a seed is that seed's, alone and in company; another seed draws another. */
static void test_stories_drawn(void **state)
{
    (void)state;
    stories s = stories_open("cpu");
    mb_generate_options options = usual();
    options.max_new_tokens = 100;
    options.temperature = 0.8;
    options.top_p = 0.9;
    options.top_k = 40;
    job *a = job_make(1), *b = job_make(1), *other = job_make(1);
    stories_crowd(&s, a);
    stories_add(&s, b, 0, "");
    stories_add(&s, other, 0, "");
    run(s.lm, s.tokenizer, &options, a);
    run(s.lm, s.tokenizer, &options, b);
    options.seed++;
    run(s.lm, s.tokenizer, &options, other);
    same(a, 2, b, 0);
    assert_string_not_equal(b->text[0], other->text[0]);
    job_free(a);
    job_free(b);
    job_free(other);
    stories_close(&s);
}

/* Every piece of the greedy text as a stop string: the text ends before its first place, wherever tokens end.
 * */
static void test_stop_strings(void **state)
{
    (void)state;
    stories s = stories_open("cpu");
    const char *expected = mb_str_text(&s.expected);
    for (size_t at = 20; at + 12 < s.expected.length; at += 41) {
        char stop[16] = {0};
        memcpy(stop, expected + at, 3 + at % 9);
        json_t *list = json_pack("[s, s]", "never there", stop);
        char *option = json_dumps(list, 0), *own = mb_strdup(option);
        mb_generate_options options = usual();
        options.max_new_tokens = 200;
        options.stop = own;
        job *j = job_make(1);
        stories_add(&s, j, 0, "");
        run(s.lm, s.tokenizer, &options, j);
        const size_t first = (size_t)(strstr(expected, stop) - expected);
        assert_int_equal(j->finish[0], MB_GENERATE_STOP_STRING);
        assert_int_equal(strlen(j->text[0]), first);
        assert_memory_equal(j->text[0], expected, first);
        assert_true(j->n[0] < 200);
        job_free(j);
        free(option);
        mb_free(own);
        json_decref(list);
    }
    stories_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers_ref),  cmocka_unit_test(test_transformers_cpu),
        cmocka_unit_test(test_transformers_cuda), cmocka_unit_test(test_company_ref),
        cmocka_unit_test(test_company_cpu),       cmocka_unit_test(test_company_bf16),
        cmocka_unit_test(test_samples),           cmocka_unit_test(test_ends),
        cmocka_unit_test(test_positions),         cmocka_unit_test(test_ends_of_folder),
        cmocka_unit_test(test_stories_ref),       cmocka_unit_test(test_stories_cpu),
        cmocka_unit_test(test_stories_drawn),     cmocka_unit_test(test_stop_strings)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
