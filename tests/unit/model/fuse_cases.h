/* fuse_cases: what the tests of fused models share: tests/golden/fuse, and models made of it. */
#ifndef MB_FUSE_CASES_H
#define MB_FUSE_CASES_H

#include "model_cases.h"

#include "model/fuse.h"

#define FUSE_FOLDER "tests/golden/fuse"
#define FUSE_HIDDEN 6 /* inner width of the golden routers */

/* The case's foundation and its sibling as one model; weights .3 and .7. */
static inline mb_lm *fuse_cases_open_as(mb_ops *ops, const char *name, const mb_fuse_options *like)
{
    mb_lm *lm = NULL;
    char *first = mb_str_format("%s/%s/foundation", FUSE_FOLDER, name);
    char *second = mb_str_format("%s/%s/sft", FUSE_FOLDER, name);
    const mb_fuse_member member[] = {{.name = "foundation", .path = first, .weight = 0.3},
                                     {.name = "sft", .path = second, .weight = 0.7}};
    mb_fuse_options options = *like;
    options.count = 2;
    options.member = member;
    if (options.router_hidden == 0) options.router_hidden = FUSE_HIDDEN;
    options.seed = 5;
    assert_status_ok(mb_fuse_open(ops, &options, &lm));
    mb_free(first);
    mb_free(second);
    return lm;
}

static inline mb_lm *fuse_cases_open(mb_ops *ops, const char *name, mb_fuse_kind kind)
{
    const mb_fuse_options options = {.kind = kind, .train = kind != MB_FUSE_ENSEMBLE};
    return fuse_cases_open_as(ops, name, &options);
}

static inline mb_safetensors *fuse_cases_expected(const char *name)
{
    mb_safetensors *file = NULL;
    char *path = mb_str_format("%s/%s/expected.safetensors", FUSE_FOLDER, name);
    assert_status_ok(mb_safetensors_open(path, &file));
    mb_free(path);
    return file;
}

/* A tensor's values: new block; NULL where the file has none. */
static inline float *fuse_cases_read(const mb_safetensors *file, const char *name, int64_t n)
{
    mb_tensor view;
    if (!mb_safetensors_has(file, name)) return NULL;
    assert_status_ok(mb_safetensors_view(file, name, &view));
    assert_int_equal(mb_tensor_count(&view), n);
    float *value = mb_calloc((size_t)n, sizeof *value);
    memcpy(value, view.data, (size_t)n * sizeof *value);
    return value;
}

/* The golden batch. */
static inline void fuse_cases_batch(const mb_safetensors *file, cases_batch *b)
{
    mb_tensor ids, offsets;
    int32_t id[256], offset[16];
    assert_status_ok(mb_safetensors_view(file, "ids", &ids));
    assert_status_ok(mb_safetensors_view(file, "offsets", &offsets));
    memcpy(id, ids.data, mb_tensor_bytes(&ids));
    memcpy(offset, offsets.data, mb_tensor_bytes(&offsets));
    cases_pack(b, id, offset, offsets.shape[0] - 1);
}

/* Fill the router from the golden file's "<level>.router...." tensors. */
static inline void fuse_cases_set_router(mb_lm *lm, const mb_safetensors *file, const char *level)
{
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; i < mb_params_count(params); i++) {
        mb_param *param = mb_params_at(params, i);
        char *name = mb_str_format("%s.%s", level, param->name);
        float *value = fuse_cases_read(file, name, mb_tensor_count(&param->value));
        assert_non_null(value);
        assert_status_ok(mb_params_set_f32(param, value));
        mb_free(value);
        mb_free(name);
    }
    mb_params_changed(params);
}

#endif
