/* upcycle_cases: what the tests of upcycling share: small dense models, options, comparisons. */
#ifndef MB_UPCYCLE_CASES_H
#define MB_UPCYCLE_CASES_H

#include "model_cases.h"

#include "base/json.h"
#include "model/convert.h"
#include "model/convert_upcycle.h"

static const int32_t UPCYCLE_OFFSETS[] = {0, 9, 20, 31};

typedef struct upcycle_case {
    mb_ops *ops;
    char *folder; /* temporary */
    char *target; /* inside it */
    mb_convert_upcycle_options options;
} upcycle_case;

static inline int upcycle_setup(void **state)
{
    upcycle_case *c = mb_calloc(1, sizeof *c);
    assert_status_ok(mb_ops_create("ref", 1, &c->ops));
    c->folder = cases_temporary();
    c->target = mb_files_join(c->folder, "target");
    c->options = (mb_convert_upcycle_options){.experts = 4,
                                              .picks = 2,
                                              .granularity = 1,
                                              .router_init = "normal",
                                              .router_init_std = 0.5,
                                              .prompts_margin = 2,
                                              .virtual_groups = true,
                                              .scaling = "down",
                                              .normalise = true,
                                              .dtype = "source",
                                              .seed = 42};
    *state = c;
    return 0;
}

static inline int upcycle_teardown(void **state)
{
    upcycle_case *c = *state;
    cases_remove(c->folder);
    mb_free(c->target);
    mb_ops_destroy(&c->ops);
    mb_free(c);
    return 0;
}

/* ---- models ---- */

/* A random dense model with an FFN of 48 and fields of its own; new block: its folder. */
static inline char *upcycle_dense(upcycle_case *c, const char *name, const char *type, const char *more,
                                  uint64_t seed)
{
    char *folder = mb_files_join(c->folder, name), *config = mb_str_format("%s.json", folder);
    char *text = mb_str_format(
        "{\"model_type\": \"%s\", \"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6, \"vocab_size\": 60, "
        "\"max_position_embeddings\": 64, \"initializer_range\": 0.2%s%s}",
        type, more[0] != 0 ? ", " : "", more);
    assert_status_ok(mb_files_write(config, text, strlen(text)));
    assert_status_ok(mb_convert_init(c->ops, config, NULL, seed, folder));
    mb_free(config);
    mb_free(text);
    return folder;
}

static inline double upcycle_difference(mb_ops *ops, const char *a, const char *b)
{
    mb_lm *x = cases_open(ops, a, "none"), *y = cases_open(ops, b, "none");
    cases_batch batch;
    cases_random(&batch, mb_lm_arch(x)->vocab, UPCYCLE_OFFSETS, 3, CASES_SEED);
    float *p = cases_logits(x, &batch), *q = cases_logits(y, &batch);
    const double difference = cases_difference(p, q, batch.batch.head_rows * mb_lm_arch(x)->vocab);
    mb_free(p);
    mb_free(q);
    mb_lm_destroy(&x);
    mb_lm_destroy(&y);
    return difference;
}

static inline mb_convert_upcycle_report upcycle_make(upcycle_case *c, const char *source)
{
    mb_convert_upcycle_report report = {0};
    assert_status_ok(mb_convert_upcycle(c->ops, source, c->target, &c->options));
    assert_status_ok(mb_convert_upcycle_verify(c->ops, source, c->target, &c->options, &report));
    assert_int_equal(report.tensors, report.identical + report.copied + report.sliced + report.computed +
                                         report.averaged + report.added);
    return report;
}

/* A copy of a dense model whose gate, up and down projections are multiplied. */
static inline char *upcycle_scaled(upcycle_case *c, const char *source, const char *name,
                                   const float scale[3])
{
    char *folder = mb_files_join(c->folder, name);
    static const char *const parts[3] = {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"};
    mb_lm *lm = cases_open(c->ops, source, "all");
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *p = mb_params_at(params, i);
        for (int k = 0; k < 3; k++)
            for (int64_t j = 0; mb_str_is_suffix(p->name, parts[k]) && j < mb_tensor_count(&p->value); j++)
                mb_tensor_f32(&p->value)[j] *= scale[k];
    }
    mb_params_changed(params);
    assert_status_ok(mb_files_make_folders(folder));
    assert_status_ok(mb_lm_write(lm, folder, "full", MB_F32));
    mb_lm_destroy(&lm);
    return folder;
}

static inline mb_tensor upcycle_tensor(const mb_safetensors *file, const char *name)
{
    mb_tensor view;
    assert_status_ok(mb_safetensors_view(file, name, &view));
    return view;
}

static inline mb_safetensors *upcycle_file(const char *folder)
{
    mb_safetensors *file = NULL;
    assert_status_ok(mb_safetensors_open(folder, &file));
    return file;
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, upcycle_setup, upcycle_teardown)

#endif
