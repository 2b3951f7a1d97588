/* inspect_model: forward passes and gradients on given token ids.
 *
 * Contents: 1. token files  2. forward  3. gradients
 */
#include "stage/inspect_model.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "learn/trainer.h"
#include "model/fuse.h"
#include "store/h5.h"

/* ---- 1. token files ---- */

typedef struct sequences {
    int64_t count;
    mb_shard_record *records; /* [count] tokens owned */
} sequences;

static void free_sequences(sequences *s)
{
    for (int64_t i = 0; s->records != NULL && i < s->count; ++i) {
        mb_free((void *)s->records[i].tokens);
        mb_free((void *)s->records[i].loss_mask);
    }
    MB_FREE(s->records);
}

static mb_status read_mask(const json_t *list, const char *path, int64_t number, size_t count,
                           uint8_t **out_mask)
{
    mb_status status = MB_OK;
    uint8_t *mask = NULL;
    if (!json_is_array(list) || json_array_size(list) != count)
        MB_RAISE(MB_EDATA, "%s: sequence %lld: loss_mask is not an array as long as ids", path,
                 (long long)number);
    MB_NEW_ARRAY(mask, count);
    for (size_t i = 0; i < count; ++i) mask[i] = json_integer_value(json_array_get(list, i)) != 0;
    *out_mask = mask;
done:
    return status;
}

/* An array of ids, or an object of ids and loss_mask. */
static mb_status read_ids(const json_t *entry, const char *path, int64_t number, mb_shard_record *record)
{
    mb_status status = MB_OK;
    uint32_t *ids = NULL;
    uint8_t *mask = NULL;
    const json_t *list = json_is_object(entry) ? json_object_get(entry, "ids") : entry;
    if (!json_is_array(list) || json_array_size(list) == 0)
        MB_RAISE(MB_EDATA, "%s: sequence %lld is not an array of ids with at least one", path,
                 (long long)number);
    MB_NEW_ARRAY(ids, json_array_size(list));
    for (size_t i = 0; i < json_array_size(list); ++i) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            MB_RAISE(MB_EDATA, "%s: sequence %lld, entry %zu is not a token id", path, (long long)number, i);
        ids[i] = (uint32_t)json_integer_value(id);
    }
    if (json_object_get(entry, "loss_mask") != NULL)
        MB_TRY(read_mask(json_object_get(entry, "loss_mask"), path, number, json_array_size(list), &mask));
    *record = (mb_shard_record){.tokens = ids,
                                .loss_mask = mask,
                                .count = (int64_t)json_array_size(list),
                                .source_index = number,
                                .record_hash = (uint64_t)number};
    ids = NULL;
done:
    mb_free(ids);
    return status;
}

static mb_status read_sequences(const char *path, int64_t vocab, sequences *out)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    if (path == NULL) MB_RAISE(MB_EUSAGE, "tokens= is missing: a JSON array of arrays of token ids");
    MB_TRY(mb_json_read(path, &json));
    if (!json_is_array(json) || json_array_size(json) == 0)
        MB_RAISE(MB_EDATA, "%s: a JSON array of arrays of token ids (or of {ids, loss_mask}) is expected",
                 path);
    MB_NEW_ARRAY(out->records, json_array_size(json));
    for (; out->count < (int64_t)json_array_size(json); ++out->count) {
        mb_shard_record *record = &out->records[out->count];
        MB_TRY(read_ids(json_array_get(json, (size_t)out->count), path, out->count, record));
        for (int64_t t = 0; t < record->count; ++t)
            if (record->tokens[t] >= (uint64_t)vocab) {
                ++out->count;
                MB_RAISE(MB_EDATA, "%s: sequence %lld, entry %lld: id %u is outside the model's %lld tokens",
                         path, (long long)(out->count - 1), (long long)t, record->tokens[t],
                         (long long)vocab);
            }
    }
done:
    json_decref(json);
    return status;
}

/* ---- 2. forward ---- */

static mb_status write_sequence(mb_h5 *file, mb_lm *lm, int64_t number, int64_t tokens,
                                const mb_lm_output *output)
{
    mb_status status = MB_OK;
    const mb_arch *arch = mb_lm_arch(lm);
    char path[64];
    float *routers = NULL;
    const int64_t gates = mb_arch_gates(arch), n = mb_lm_routers(lm);
    snprintf(path, sizeof path, "/seq_%05lld/logits", (long long)number);
    mb_tensor view = mb_tensor_view2(MB_F32, output->logits, tokens, arch->vocab);
    MB_TRY(mb_h5_write(file, path, &view));
    snprintf(path, sizeof path, "/seq_%05lld/hidden", (long long)number);
    view = mb_tensor_view2(MB_F32, output->hidden, tokens, arch->width);
    if (output->hidden != NULL) MB_TRY(mb_h5_write(file, path, &view));
    if (n == 0) goto done;
    MB_NEW_ARRAY(routers, n * tokens * gates);
    for (int64_t l = 0; l < n; ++l)
        memcpy(routers + l * tokens * gates, output->router_logits[l],
               (size_t)(tokens * gates) * sizeof *routers);
    snprintf(path, sizeof path, "/seq_%05lld/router_logits", (long long)number);
    view = mb_tensor_view3(MB_F32, routers, n, tokens, gates);
    MB_TRY(mb_h5_write(file, path, &view));
done:
    mb_free(routers);
    return status;
}

static mb_status forward_one(mb_h5 *file, mb_lm *lm, mb_lm_pass *pass, int64_t number,
                             const mb_shard_record *record)
{
    mb_status status = MB_OK;
    const int64_t n = record->count;
    int32_t *numbers = NULL, *targets = NULL, *ids = NULL;
    const int32_t offsets[2] = {0, (int32_t)n};
    mb_lm_output output = {0};
    MB_NEW_ARRAY(numbers, n);
    MB_NEW_ARRAY(targets, n);
    MB_NEW_ARRAY(ids, n);
    for (int64_t t = 0; t < n; ++t) {
        numbers[t] = (int32_t)t;
        ids[t] = (int32_t)record->tokens[t];
        targets[t] = (int32_t)record->tokens[t + 1 < n ? t + 1 : t];
    }
    const mb_lm_batch batch = {.tokens = n,
                               .segments = 1,
                               .ids = ids,
                               .positions = numbers,
                               .offsets = offsets,
                               .head_rows = n,
                               .head_row = numbers,
                               .targets = targets};
    const mb_lm_want want = {.hidden = !mb_lm_is_fused(lm), .logits = true};
    MB_TRY(mb_lm_forward(pass, &batch, &want, &output));
    MB_TRY(write_sequence(file, lm, number, n, &output));
done:
    mb_free(numbers);
    mb_free(targets);
    mb_free(ids);
    return status;
}

static mb_status open_model(mb_ops *ops, const mb_inspect_model *inspect, const char *train, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm_options options = inspect->lm;
    if (options.path == NULL || inspect->out == NULL)
        MB_RAISE(MB_EUSAGE, "model= (a folder) and out= (an .h5 file) are needed");
    options.train = train;
    MB_TRY(mb_lm_open(ops, &options, out_lm));
done:
    return status;
}

mb_status mb_inspect_model_forward(mb_ops *ops, const mb_inspect_model *inspect)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    mb_lm_pass *pass = NULL;
    mb_h5 *file = NULL;
    sequences s = {0};
    MB_TRY(open_model(ops, inspect, "none", &lm));
    MB_TRY(read_sequences(inspect->tokens, mb_lm_arch(lm)->vocab, &s));
    MB_TRY(mb_lm_pass_create(lm, &pass));
    MB_TRY(mb_h5_create(inspect->out, &file));
    for (int64_t i = 0; i < s.count; ++i) MB_TRY(forward_one(file, lm, pass, i, &s.records[i]));
    MB_TRY(mb_h5_close(&file));
done:
    free_sequences(&s);
    mb_h5_destroy(&file);
    mb_lm_pass_destroy(&pass);
    mb_lm_destroy(&lm);
    return status;
}

/* ---- 3. gradients ---- */

static mb_status write_gradients(const char *path, mb_lm *lm, const mb_objective_terms *terms)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_params *params = mb_lm_params(lm);
    char name[512];
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_write_f64(file, "/loss", terms->value[0]));
    for (int64_t i = 1; i < terms->count; ++i) {
        snprintf(name, sizeof name, "/loss_terms/%s", terms->name[i]);
        MB_TRY(mb_h5_write_f64(file, name, terms->value[i]));
    }
    for (int64_t i = 0; i < mb_params_count(params); ++i) {
        const mb_param *param = mb_params_at(params, i);
        if (!param->trained) continue;
        snprintf(name, sizeof name, "/grad/%s", param->name);
        MB_TRY(mb_h5_write(file, name, &param->gradient));
    }
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

static mb_status compute_gradients(const mb_inspect_model *inspect, mb_lm *lm, mb_objective *objective,
                                   const sequences *s)
{
    mb_status status = MB_OK;
    int64_t *samples = NULL;
    float *gradient = NULL;
    mb_objective_terms terms = {0};
    mb_microbatch microbatch = {.records = s->count,
                                .record = s->records,
                                .step_microbatches = 1,
                                .step_records = s->count,
                                .seed = 42};
    MB_NEW_ARRAY(samples, s->count);
    MB_NEW_ARRAY(gradient, mb_params_trained_count(mb_lm_params(lm)) + 1);
    for (int64_t i = 0; i < s->count; ++i) {
        samples[i] = i;
        microbatch.step_targets += objective->count_targets(objective, &s->records[i], i);
    }
    microbatch.sample = samples;
    MB_TRY(mb_trainer_gradients(lm, objective, &microbatch, gradient, &terms));
    mb_params_bind_gradient(mb_lm_params(lm), gradient);
    MB_TRY(write_gradients(inspect->out, lm, &terms));
    for (int64_t i = 0; i < terms.count; ++i) printf("%s %.9g\n", terms.name[i], terms.value[i]);
done:
    mb_free(samples);
    mb_free(gradient);
    return status;
}

mb_status mb_inspect_model_gradients(mb_ops *ops, const mb_inspect_model *inspect)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    mb_objective *objective = NULL;
    sequences s = {0};
    const char *train = inspect->opt_train != NULL                                     ? inspect->opt_train
                        : mb_str_equal(inspect->objective->objective, "router_warmup") ? "router"
                        : mb_str_equal(inspect->objective->objective, "btm")           ? "router"
                        : inspect->lm.opt_adapter != NULL                              ? "lora"
                                                                                       : "all";
    MB_TRY(open_model(ops, inspect, train, &lm));
    MB_TRY(read_sequences(inspect->tokens, mb_lm_arch(lm)->vocab, &s));
    MB_TRY(mb_objective_create(inspect->objective, lm, &objective));
    MB_TRY(compute_gradients(inspect, lm, objective, &s));
done:
    free_sequences(&s);
    mb_objective_destroy(&objective);
    mb_lm_destroy(&lm);
    return status;
}
