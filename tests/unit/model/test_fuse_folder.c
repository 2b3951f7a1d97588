/* fuse: vocabularies, folders and identities of fused models, and what is refused. */
#include "fuse_pair.h"

#include "model/fuse_vocab.h"

/* ---- vocabularies ---- */

/* Copy a member's folder into a temporary one, its tokenizer.json through jansson (saved anew). */
static char *fuse_copy(const char *from, json_t **out_tokenizer)
{
    char *to = cases_temporary(), **names = NULL;
    int64_t n = 0;
    assert_status_ok(mb_files_list(from, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        char *a = mb_files_join(from, names[i]), *b = mb_files_join(to, names[i]);
        assert_status_ok(mb_files_copy(a, b));
        mb_free(a);
        mb_free(b);
    }
    mb_files_free_names(&names, n);
    char *path = mb_files_join(to, "tokenizer.json");
    assert_status_ok(mb_json_read(path, out_tokenizer));
    mb_free(path);
    return to;
}

static void fuse_save_tokenizer(const char *folder, json_t *tokenizer)
{
    char *path = mb_files_join(folder, "tokenizer.json");
    assert_status_ok(mb_json_write(path, tokenizer, 4, true));
    mb_free(path);
    json_decref(tokenizer);
}

static json_t *fuse_vocab_of(json_t *tokenizer)
{
    return json_object_get(json_object_get(tokenizer, "model"), "vocab");
}

static void test_a_tokenizer_saved_anew_is_the_same(void **state)
{
    (void)state;
    fuse_case c;
    mb_fuse_vocab *vocab = NULL;
    json_t *tokenizer = NULL;
    assert_true(fuse_begin(&c, "ref", "llama", 1, 1));
    char *copy = fuse_copy(c.path[1], &tokenizer);
    fuse_save_tokenizer(copy, tokenizer);
    const mb_fuse_vocab_source source[2] = {{"foundation", c.path[0], 40}, {"sft", copy, 40}};
    assert_status_ok(mb_fuse_vocab_create(source, 2, &vocab));
    assert_true(mb_fuse_vocab_is_equal(vocab));
    assert_int_equal(vocab->size, 40);
    mb_fuse_vocab_destroy(&vocab);
    cases_remove(copy);
    fuse_end(&c);
}

static void test_tokens_of_one_member_are_named_and_not_mixed(void **state)
{
    (void)state;
    fuse_case c;
    json_t *tokenizer = NULL;
    cases_batch b;
    assert_true(fuse_begin(&c, "ref", "llama", 0.5, 0.5));
    char *copy = fuse_copy(c.path[1], &tokenizer);
    /* the member's own last token: the foundation's loses it */
    const char *key;
    json_t *value, *vocabulary = fuse_vocab_of(tokenizer);
    void *next;
    json_object_foreach_safe(vocabulary, next, key, value)
    {
        if (json_integer_value(value) == 39) json_object_del(vocabulary, key);
    }
    fuse_save_tokenizer(copy, tokenizer);
    c.member[1].path = copy;
    mb_lm *lm = fuse_ensemble(&c);
    assert_int_equal(mb_lm_arch(lm)->vocab, 40);
    cases_random(&b, 39, fuse_offsets, 4, CASES_SEED);
    b.targets[2] = 39;
    fuse_result fused = fuse_forward(lm, &b.batch), x = fuse_forward(mb_fuse_member_lm(lm, 0), &b.batch),
                y = {.logits = cases_logits(mb_fuse_member_lm(lm, 1), &b)};
    for (int64_t i = 0; i < fused.rows; i++) {
        double p[2][64];
        fuse_softmax(x.logits + i * 40, 40, p[0]);
        fuse_softmax(y.logits + i * 40, 40, p[1]);
        p[1][39] = 0;
        for (int64_t t = 0; t < 40; t++)
            assert_true(fabs(exp((double)fused.logits[i * 40 + t]) - 0.5 * (p[0][t] + p[1][t])) <= 1e-6);
        const int32_t target = b.targets[i];
        assert_true(fabs((double)fused.loss[i] + log(0.5 * (p[0][target] + p[1][target]))) <= 2e-6);
    }
    fuse_free(&fused);
    fuse_free(&x);
    fuse_free(&y);
    mb_lm_destroy(&lm);
    cases_remove(copy);
    fuse_end(&c);
}

/* Models of other widths, depths and vocabularies: the larger one has rows that the other lacks. */
static void fuse_check_unlike(const char *backend, mb_fuse_kind kind)
{
    fuse_case c;
    cases_batch b;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.logits = true};
    if (!fuse_begin(&c, backend, "llama", 0.5, 0.5)) return;
    char *small = cases_path("qwen2"), *large = cases_path("olmoe_plain");
    c.member[0].path = small;
    c.member[1].path = large;
    mb_lm *lm = fuse_open(&c, kind, false, false);
    assert_int_equal(mb_lm_arch(lm)->vocab, 80);
    assert_int_equal(mb_lm_arch(lm)->max_positions, 32);
    cases_random(&b, 40, fuse_offsets, 4, CASES_SEED);
    b.targets[1] = 61;
    fuse_result fused = fuse_forward(lm, &b.batch), y = fuse_forward(mb_fuse_member_lm(lm, 1), &b.batch);
    b.batch.targets = NULL;
    float *x = cases_logits(mb_fuse_member_lm(lm, 0), &b);
    for (int64_t i = 0; i < fused.rows; i++) {
        double p[80] = {0}, q[80];
        fuse_softmax(x + i * 40, 40, p);
        fuse_softmax(y.logits + i * 80, 80, q);
        for (int64_t t = 0; t < 80; t++)
            assert_true(fabs(exp((double)fused.logits[i * 80 + t]) - 0.5 * (p[t] + q[t])) <= 1e-6);
        assert_true(fabs((double)fused.loss[i] + log(0.5 * (p[b.targets[i]] + q[b.targets[i]]))) <= 2e-6);
    }
    b.ids[5] = 50;
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "member foundation");
    assert_non_null(strstr(mb_status_message(), "token 50"));
    mb_lm_pass_destroy(&pass);
    mb_free(x);
    fuse_free(&y);
    fuse_free(&fused);
    mb_lm_destroy(&lm);
    mb_free(small);
    mb_free(large);
    fuse_end(&c);
}

static void test_members_may_be_unlike(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fuse_backends / sizeof fuse_backends[0]; i++) {
        fuse_check_unlike(fuse_backends[i], MB_FUSE_ENSEMBLE);
        fuse_check_unlike(fuse_backends[i], MB_FUSE_TOKEN);
    }
}

static void test_contradicting_vocabularies_are_refused_naming_both(void **state)
{
    (void)state;
    fuse_case c;
    mb_lm *lm = NULL;
    json_t *tokenizer = NULL;
    assert_true(fuse_begin(&c, "ref", "llama", 1, 1));
    char *copy = fuse_copy(c.path[1], &tokenizer);
    json_t *vocabulary = fuse_vocab_of(tokenizer);
    const json_int_t a = json_integer_value(json_object_get(vocabulary, "a")),
                     z = json_integer_value(json_object_get(vocabulary, "z"));
    assert_true(a > 0 && z > 0);
    json_object_set_new(vocabulary, "a", json_integer(z));
    json_object_set_new(vocabulary, "z", json_integer(a));
    fuse_save_tokenizer(copy, tokenizer);
    c.member[1].path = copy;
    mb_fuse_options options = fuse_options(&c, MB_FUSE_ENSEMBLE);
    assert_status_says(mb_fuse_open(c.ops, &options, &lm), MB_EDATA, "'a'");
    assert_non_null(strstr(mb_status_message(), "'z'"));
    assert_non_null(strstr(mb_status_message(), c.path[0]));
    assert_non_null(strstr(mb_status_message(), copy));
    assert_null(lm);
    cases_remove(copy);
    fuse_end(&c);
}

/* ---- folders ---- */

static void fuse_check_folder(mb_fuse_kind kind, const char *write_kind)
{
    fuse_case c;
    cases_batch b;
    char folder_hash[33], hash[33], adapter[33];
    assert_true(fuse_begin(&c, "ref", "llama", 0.2, 0.8));
    mb_lm *lm = fuse_open(&c, kind, false, kind == MB_FUSE_TOKEN);
    if (kind == MB_FUSE_TOKEN) fuse_randomise(lm);
    char *folder = cases_temporary();
    assert_false(mb_fuse_is_folder(folder));
    assert_status_ok(mb_lm_write(lm, folder, write_kind, MB_BF16));
    assert_true(mb_fuse_is_folder(folder));
    mb_lm *again = cases_open(c.ops, folder, "none"), *third = cases_open(c.ops, folder, "none");
    assert_true(mb_lm_is_fused(again));
    assert_int_equal(mb_fuse_get_kind(again), kind);
    assert_string_equal(mb_fuse_member_name(again, 1), "sft");
    assert_true(fabs(mb_fuse_member_weight(again, 1) - 0.8) < 1e-12);
    assert_string_equal(mb_lm_hash(again), mb_lm_hash(third));
    assert_int_equal(strlen(mb_lm_hash(again)), 32);
    assert_status_ok(mb_lm_hashes(again, hash, adapter));
    assert_string_equal(adapter, "");
    assert_string_equal(mb_lm_base(again), mb_lm_base(mb_fuse_member_lm(again, 0)));
    if (kind == MB_FUSE_TOKEN) assert_int_equal(mb_params_trained_count(mb_lm_params(again)), 0);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    fuse_result x = fuse_forward(lm, &b.batch), y = fuse_forward(again, &b.batch);
    fuse_check_same(&x, &y);
    /* and once more from the one that was read */
    char *second = cases_temporary();
    assert_status_ok(mb_lm_write(again, second, "full", MB_F32));
    mb_lm *copy = cases_open(c.ops, second, "none");
    assert_string_equal(mb_lm_hash(copy), mb_lm_hash(again));
    memcpy(folder_hash, mb_lm_hash(copy), sizeof folder_hash);
    fuse_free(&x);
    fuse_free(&y);
    mb_lm_destroy(&copy);
    mb_lm_destroy(&third);
    mb_lm_destroy(&again);
    mb_lm_destroy(&lm);
    cases_remove(folder);
    cases_remove(second);
    fuse_end(&c);
}

static void test_a_folder_holds_the_model(void **state)
{
    (void)state;
    fuse_check_folder(MB_FUSE_ENSEMBLE, "full");
    fuse_check_folder(MB_FUSE_TOKEN, "full");
    fuse_check_folder(MB_FUSE_TOKEN, "delta");
}

/* Hash of the fused model the options describe. */
static void fuse_hash_of(const fuse_case *c, const mb_fuse_options *options, char out[33])
{
    mb_lm *lm = NULL;
    char adapter[33];
    assert_status_ok(mb_fuse_open(c->ops, options, &lm));
    assert_status_ok(mb_lm_hashes(lm, out, adapter));
    mb_lm_destroy(&lm);
}

static void test_a_hash_tells_models_apart(void **state)
{
    (void)state;
    fuse_case c;
    char hash[9][33];
    assert_true(fuse_begin(&c, "ref", "llama", 1, 1));
    char *base = cases_path("mixtral"), *other = cases_path("mistral"),
         *adapter = cases_path("mixtral_adapter");
    c.member[0].path = c.member[1].path = base;
    mb_fuse_options options = fuse_options(&c, MB_FUSE_ENSEMBLE);
    fuse_hash_of(&c, &options, hash[0]);
    c.member[1].opt_adapter = adapter;
    fuse_hash_of(&c, &options, hash[1]);
    c.member[1].weight = 2;
    fuse_hash_of(&c, &options, hash[2]);
    options.by_logits = true;
    fuse_hash_of(&c, &options, hash[3]);
    options.by_logits = false;
    c.member[0].path = other;
    fuse_hash_of(&c, &options, hash[4]);
    options.kind = MB_FUSE_TOKEN;
    fuse_hash_of(&c, &options, hash[5]);
    options.seed++;
    fuse_hash_of(&c, &options, hash[6]);
    options.router_hidden++;
    fuse_hash_of(&c, &options, hash[7]);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < i; j++) assert_string_not_equal(hash[i], hash[j]);
    fuse_hash_of(&c, &options, hash[8]);
    assert_string_equal(hash[8], hash[7]);
    mb_free(base);
    mb_free(other);
    mb_free(adapter);
    fuse_end(&c);
}

static void test_a_changed_member_is_refused(void **state)
{
    (void)state;
    fuse_case c;
    json_t *tokenizer = NULL;
    mb_lm *none = NULL;
    assert_true(fuse_begin(&c, "ref", "llama", 1, 1));
    char *copy = fuse_copy(c.path[1], &tokenizer), *folder = cases_temporary();
    fuse_save_tokenizer(copy, json_incref(tokenizer));
    c.member[1].path = copy;
    mb_lm *lm = fuse_open(&c, MB_FUSE_TOKEN, false, false);
    assert_status_ok(mb_lm_write(lm, folder, "full", MB_F32));
    mb_lm_destroy(&lm);
    json_object_set_new(tokenizer, "truncation", json_object());
    fuse_save_tokenizer(copy, tokenizer);
    const mb_lm_options options = {.path = folder, .train = "none"};
    assert_status_says(mb_lm_open(c.ops, &options, &none), MB_EDATA, "member sft has changed");
    assert_non_null(strstr(mb_status_message(), strrchr(copy, '/')));
    cases_remove(copy);
    assert_status_says(mb_lm_open(c.ops, &options, &none), MB_ENOTFOUND, "sft");
    cases_remove(folder);
    fuse_end(&c);
}

/* ---- refusals ---- */

static void test_what_cannot_be_is_refused(void **state)
{
    (void)state;
    fuse_case c;
    mb_lm *none = NULL;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    cases_batch b;
    assert_true(fuse_begin(&c, "ref", "llama", 1, 0));
    mb_fuse_options options = fuse_options(&c, MB_FUSE_TOKEN);
    assert_status_says(mb_fuse_open(c.ops, &options, &none), MB_ERANGE, "member sft is 0");
    options.kind = MB_FUSE_ENSEMBLE;
    options.train = true;
    assert_status_says(mb_fuse_open(c.ops, &options, &none), MB_EUSAGE, "an ensemble");
    options.train = false;
    options.count = 1;
    assert_status_says(mb_fuse_open(c.ops, &options, &none), MB_EUSAGE, "2 to 16 members");
    options.count = 2;
    c.member[1].name = "foundation";
    assert_status_says(mb_fuse_open(c.ops, &options, &none), MB_EUSAGE, "called foundation");
    c.member[1].name = "sft";
    c.member[0].weight = 0;
    assert_status_says(mb_fuse_open(c.ops, &options, &none), MB_ERANGE, "weights are 0");
    c.member[0].weight = c.member[1].weight = 1;
    mb_lm *lm = fuse_ensemble(&c);
    cases_random(&b, mb_lm_arch(lm)->vocab, fuse_offsets, 4, CASES_SEED);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    const mb_lm_want hidden = {.hidden = true};
    assert_status_says(mb_lm_forward(pass, &b.batch, &hidden, &out), MB_EUSAGE, "hidden");
    b.ids[3] = 40;
    const mb_lm_want want = {.logits = true};
    assert_status_says(mb_lm_forward(pass, &b.batch, &want, &out), MB_ERANGE, "token 40");
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    fuse_end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_tokenizer_saved_anew_is_the_same),
        cmocka_unit_test(test_tokens_of_one_member_are_named_and_not_mixed),
        cmocka_unit_test(test_members_may_be_unlike),
        cmocka_unit_test(test_contradicting_vocabularies_are_refused_naming_both),
        cmocka_unit_test(test_a_folder_holds_the_model),
        cmocka_unit_test(test_a_hash_tells_models_apart),
        cmocka_unit_test(test_a_changed_member_is_refused),
        cmocka_unit_test(test_what_cannot_be_is_refused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
