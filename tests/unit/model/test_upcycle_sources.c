/* upcycle: what a model is made from: siblings, prompts, and sources and options that are refused.
 */
#include "upcycle_cases.h"

/* ---- siblings ---- */

static void upcycle_check_mean(char *const *folders, int64_t n, const char *target, const char *name)
{
    mb_safetensors *made = upcycle_file(target);
    const mb_tensor y = upcycle_tensor(made, name);
    double *sum = mb_calloc((size_t)mb_tensor_count(&y), sizeof *sum);
    for (int64_t m = 0; m < n; m++) {
        mb_safetensors *file = upcycle_file(folders[m]);
        const mb_tensor x = upcycle_tensor(file, name);
        for (int64_t i = 0; i < mb_tensor_count(&x); i++) sum[i] += ((const float *)x.data)[i];
        mb_safetensors_close(&file);
    }
    for (int64_t i = 0; i < mb_tensor_count(&y); i++)
        assert_true((float)(sum[i] / (double)n) == ((const float *)y.data)[i]);
    mb_safetensors_close(&made);
    mb_free(sum);
}

/* Shard e mod g of folder `from`'s up projection. */
static void upcycle_check_expert(const char *from, const char *target, int expert, int64_t g)
{
    char name[96];
    mb_safetensors *a = upcycle_file(from), *b = upcycle_file(target);
    const mb_tensor x = upcycle_tensor(a, "model.layers.1.mlp.up_proj.weight");
    snprintf(name, sizeof name, "model.layers.1.block_sparse_moe.experts.%d.w3.weight", expert);
    const mb_tensor y = upcycle_tensor(b, name);
    const size_t n = mb_tensor_bytes(&y);
    assert_int_equal(n * (size_t)g, mb_tensor_bytes(&x));
    assert_memory_equal((const char *)x.data + (size_t)(expert % g) * n, y.data, n);
    mb_safetensors_close(&a);
    mb_safetensors_close(&b);
}

static void test_experts_come_from_siblings(void **state)
{
    upcycle_case *c = *state;
    char *folders[3] = {upcycle_dense(c, "zero", "llama", "", 3), upcycle_dense(c, "one", "llama", "", 4),
                        upcycle_dense(c, "two", "llama", "", 5)};
    char *list = mb_str_format("%s,%s", folders[1], folders[2]);
    c->options.siblings = list;
    mb_convert_upcycle_report r = upcycle_make(c, folders[0]);
    assert_true(!r.is_exact && !r.is_preserved);
    assert_int_equal(r.averaged, 2 + 3 * 6 + 1);
    assert_int_equal(r.copied, 3 * 4 * 3);
    for (int e = 0; e < 4; e++) upcycle_check_expert(folders[1 + e % 2], c->target, e, 1);
    upcycle_check_mean(folders + 1, 2, c->target, "model.layers.1.self_attn.k_proj.weight");
    upcycle_check_mean(folders + 1, 2, c->target, "model.embed_tokens.weight");
    c->options.source_is_sibling = true;
    c->options.granularity = 2;
    c->options.experts = 8;
    r = upcycle_make(c, folders[0]);
    for (int e = 0; e < 8; e++) upcycle_check_expert(folders[e / 2 % 3], c->target, e, 2);
    upcycle_check_mean(folders, 3, c->target, "model.layers.2.self_attn.o_proj.weight");
    upcycle_check_mean(folders, 3, c->target, "model.norm.weight");
    /* A sibling alone: its own function. */
    c->options.siblings = folders[2];
    c->options.source_is_sibling = false;
    r = upcycle_make(c, folders[0]);
    assert_true(upcycle_difference(c->ops, folders[2], c->target) <= 1e-6);
    for (int i = 0; i < 3; i++) mb_free(folders[i]);
    mb_free(list);
}

static void test_siblings_that_do_not_fit(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3);
    char *tied = upcycle_dense(c, "tied", "llama", "\"tie_word_embeddings\": true", 3);
    char *turned = upcycle_dense(c, "turned", "llama", "\"rope_theta\": 500.0", 3);
    char *mistral = upcycle_dense(c, "mistral", "mistral", "", 3);
    char *many = mb_str_format("%s,%s,%s,%s,%s", source, source, source, source, source);
    const struct {
        char *siblings;
        mb_status status;
        const char *says;
    } cases[] = {{tied, MB_ESHAPE, "tie_word_embeddings is 1"},
                 {turned, MB_ESHAPE, "rope_theta is 500"},
                 {mistral, MB_ESHAPE, "is a mistral model"},
                 {"/nowhere", MB_ENOTFOUND, "/nowhere"},
                 {many, MB_EUSAGE, "raise convert.experts to 5"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        c->options.siblings = cases[i].siblings;
        assert_status_says(mb_convert_upcycle(c->ops, source, c->target, &c->options), cases[i].status,
                           cases[i].says);
        assert_false(mb_files_is_folder(c->target));
    }
    mb_free(source);
    mb_free(tied);
    mb_free(turned);
    mb_free(mistral);
    mb_free(many);
}

/* ---- gates from prompts ---- */

/* A tokenizer of single letters, beside a model. */
static void upcycle_write_tokenizer(const char *folder)
{
    char *path = mb_files_join(folder, "tokenizer.json");
    mb_str text = MB_STR_EMPTY;
    assert_status_ok(mb_str_add(&text,
                                "{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, "
                                "\"pre_tokenizer\": null, \"post_processor\": null, \"decoder\": null, "
                                "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {"));
    for (int i = 0; i < 26; i++)
        assert_status_ok(mb_str_add_format(&text, "%s\"%c\": %d", i > 0 ? ", " : "", 'a' + i, i));
    assert_status_ok(mb_str_add(&text, "}}}"));
    assert_status_ok(mb_files_write(path, mb_str_text(&text), text.length));
    mb_str_destroy(&text);
    mb_free(path);
}

static const char *const PROMPTS[3] = {"abcabcab", "pqrspqrs", "xyzzyxyz"};

/* Mean logit of each expert on each prompt [3, 3] at a router. */
static void upcycle_prompt_logits(upcycle_case *c, int64_t router, double *out)
{
    mb_lm *lm = cases_open(c->ops, c->target, "none");
    mb_lm_pass *pass = NULL;
    mb_lm_output got;
    cases_batch b;
    int32_t ids[24];
    const int32_t offsets[] = {0, 8, 16, 24};
    const mb_lm_want want = {.logits = true};
    for (int i = 0; i < 24; i++) ids[i] = PROMPTS[i / 8][i % 8] - 'a';
    cases_pack(&b, ids, offsets, 3);
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b.batch, &want, &got));
    for (int t = 0; t < 24; t++)
        for (int e = 0; e < 3; e++) out[t / 8 * 3 + e] += (double)got.router_logits[router][t * 3 + e] / 8;
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
}

static void test_gates_from_prompts(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "llama", "", 3),
         *path = mb_files_join(c->folder, "prompts.jsonl");
    mb_str text = MB_STR_EMPTY;
    upcycle_write_tokenizer(source);
    for (int e = 0; e < 3; e++)
        assert_status_ok(mb_str_add_format(&text, "{\"expert\": %d, \"text\": \"%s\"}\n", e, PROMPTS[e]));
    assert_status_ok(mb_files_write(path, mb_str_text(&text), text.length));
    c->options.experts = 3;
    c->options.router_init = "prompts";
    c->options.prompts = path;
    c->options.prompts_margin = 1.5;
    const mb_convert_upcycle_report r = upcycle_make(c, source);
    assert_true(r.is_exact && r.max_logit_difference <= 1e-6);
    for (int64_t l = 0; l < 3; l++) {
        double logits[9] = {0}, margin = 0;
        upcycle_prompt_logits(c, l, logits);
        for (int e = 0; e < 3; e++) {
            double others = 0;
            for (int f = 0; f < 3; f++) others += f != e ? logits[e * 3 + f] / 2 : 0;
            margin += (logits[e * 3 + e] - others) / 3;
            for (int f = 0; f < 3; f++) assert_true(f == e || logits[e * 3 + e] > logits[e * 3 + f]);
        }
        assert_true(fabs(margin - 1.5) < 1e-4);
    }
    mb_str_destroy(&text);
    mb_free(source);
    mb_free(path);
}

/* One text file for each group; negative prompts; bad files. */
static void test_prompts_of_files_and_bad_ones(void **state)
{
    upcycle_case *c = *state;
    char *source = upcycle_dense(c, "dense", "qwen3", "", 3), *a = mb_files_join(c->folder, "a.txt"),
         *b = mb_files_join(c->folder, "b.txt"), *json = mb_files_join(c->folder, "p.jsonl");
    char *list = mb_str_format("%s,%s", a, b);
    const struct {
        const char *text, *says;
    } bad[] = {
        {"{\"expert\": 0, \"text\": \"ab\"}\n", "group 1 has no prompt"},
        {"{\"expert\": 2, \"text\": \"ab\"}\n", "p.jsonl:1: expert 2; there are 0 to 1"},
        {"{\"text\": \"ab\"}\n", "expert"},
        {"{\"expert\": 0, \"text\": \"ab\"}\n{\"expert\": 1, \"text\": \"\"}\n", "p.jsonl:2"},
        {"{\"expert\": 0, \"text\": \"ab\"}\n{\"expert\": 1, \"text\": \"ab\"}\n", "say nothing of their"}};
    c->options.granularity = 2;
    c->options.router_init = "prompts";
    c->options.prompts = json;
    assert_status_ok(mb_files_write(json, "", 0));
    assert_status_says(mb_convert_upcycle(c->ops, source, c->target, &c->options), MB_ENOTFOUND,
                       "tokenizer.path");
    upcycle_write_tokenizer(source);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_status_ok(mb_files_write(json, bad[i].text, strlen(bad[i].text)));
        const mb_status status = mb_convert_upcycle(c->ops, source, c->target, &c->options);
        assert_true(status == MB_EDATA || status == MB_EFORMAT || status == MB_ENOTFOUND);
        if (strstr(mb_status_message(), bad[i].says) == NULL) print_error("# %s\n", mb_status_message());
        assert_non_null(strstr(mb_status_message(), bad[i].says));
    }
    const char *good = "{\"expert\": 0, \"text\": \"abab\"}\n{\"expert\": 1, \"prompt\": \"xyxy\"}\n"
                       "{\"expert\": 1, \"text\": \"mm\", \"negative\": true}\n";
    assert_status_ok(mb_files_write(json, good, strlen(good)));
    assert_true(upcycle_make(c, source).is_preserved);
    assert_status_ok(mb_files_write(a, "abab\n\nba\r\n", 10));
    assert_status_ok(mb_files_write(b, "xyz", 3));
    c->options.prompts = list;
    assert_true(upcycle_make(c, source).is_preserved);
    c->options.virtual_groups = false; /* four experts now */
    assert_status_says(mb_convert_upcycle(c->ops, source, c->target, &c->options), MB_EUSAGE,
                       "2 files for 4 experts");
    mb_free(source);
    mb_free(a);
    mb_free(b);
    mb_free(json);
    mb_free(list);
}

/* ---- refusals ---- */

static void upcycle_refused(upcycle_case *c, const mb_convert_upcycle_options *options, const char *source,
                            mb_status status, const char *says)
{
    assert_status_says(mb_convert_upcycle(c->ops, source, c->target, options), status, says);
    assert_false(mb_files_is_folder(c->target));
}

static void test_sources_that_cannot_be_upcycled(void **state)
{
    upcycle_case *c = *state;
    const mb_convert_upcycle_options *o = &c->options;
    upcycle_refused(c, o, CASES_FOLDER "/mixtral", MB_EUSAGE, "mixture of");
    upcycle_refused(c, o, CASES_FOLDER "/select_moe", MB_EUSAGE, "already");
    upcycle_refused(c, o, CASES_FOLDER "/qwen2", MB_EUNSUPPORTED, "biases");
    upcycle_refused(c, o, CASES_FOLDER "/llama_bias", MB_EUNSUPPORTED, "attention_bias");
    upcycle_refused(c, o, CASES_FOLDER "/qwen3", MB_EUNSUPPORTED, "1 of 2 layers have a sliding window");
    upcycle_refused(c, o, "/nowhere", MB_ENOTFOUND, "/nowhere");
    /* A tensor that config.json does not speak of would be lost. */
    char *folder = upcycle_dense(c, "dense", "llama", "\"attention_bias\": true", 3),
         *path = mb_files_join(folder, "config.json");
    json_t *config = NULL;
    assert_status_ok(mb_json_read(path, &config));
    assert_status_ok(mb_json_set(config, "attention_bias", json_false()));
    assert_status_ok(mb_json_write(path, config, 2, false));
    upcycle_refused(c, o, folder, MB_EDATA, "proj.bias is no part of a llama model");
    json_decref(config);
    mb_free(folder);
    mb_free(path);
}

static void test_options_that_make_no_sense(void **state)
{
    upcycle_case *c = *state;
    const mb_convert_upcycle_options good = c->options;
    char *llama = upcycle_dense(c, "llama", "llama", "", 3),
         *qwen3 = upcycle_dense(c, "qwen3", "qwen3", "", 3);
#define REFUSED(source, says, ...)                                                                           \
    do {                                                                                                     \
        mb_convert_upcycle_options o = good;                                                                 \
        __VA_ARGS__;                                                                                         \
        upcycle_refused(c, &o, source, MB_EUSAGE, says);                                                     \
    } while (0)
    REFUSED(llama, "no multiple of convert.granularity = 3", o.granularity = 3);
    REFUSED(llama, "possible are 1 2 3 4 6 8 12 16 24 48", o.granularity = 5);
    REFUSED(llama, "whole groups", o.granularity = 2, o.picks = 3);
    REFUSED(llama, "experts_per_token = 5 is not within", o.picks = 5);
    REFUSED(llama, "stay tied", o.router_init = "zero");
    REFUSED(llama, "stay tied", o.router_init = "zero", o.granularity = 2, o.virtual_groups = false);
    REFUSED(llama, "'nromal'", o.router_init = "nromal");
    REFUSED(llama, "'dwon'", o.scaling = "dwon");
    REFUSED(llama, "needs convert.prompts", o.router_init = "prompts");
    REFUSED(llama, "convert.router_init=prompts", o.prompts = "x.jsonl");
    REFUSED(llama, "Mixtral, the layout of this model, has experts in every layer", o.layers = "0,1");
    REFUSED(qwen3, "layers 0 to 2", o.layers = "0,3");
    REFUSED(qwen3, "'2-1'", o.layers = "2-1");
    REFUSED(llama, "norm_topk_prob", o.normalise = false);
    REFUSED(llama, "source, f32, bf16", o.dtype = "f16");
    REFUSED(llama, "without convert.siblings", o.source_is_sibling = true);
    REFUSED(llama, "convert.noise", o.noise = -1);
#undef REFUSED
    mb_free(llama);
    mb_free(qwen3);
}

int main(void)
{
    cmocka_set_message_output(CM_OUTPUT_TAP);
    print_message("# seed %u\n", CASES_SEED);
    const struct CMUnitTest tests[] = {
        CASE(test_experts_come_from_siblings),
        CASE(test_siblings_that_do_not_fit),
        CASE(test_gates_from_prompts),
        CASE(test_prompts_of_files_and_bad_ones),
        CASE(test_sources_that_cannot_be_upcycled),
        CASE(test_options_that_make_no_sense),
    };
    return cmocka_run_group_tests(tests, NULL, cases_no_leaks);
}
