/* encoder_pooling.c: pooling as sentence-transformers does it.
 *
 * 1. names   2. modules   3. lengths, lower case, prompt   4. a folder   5. pooling
 */
#include "model/encoder_pooling.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "store/safetensors.h"

/* ---- 1. names ---- */

static const struct {
    const char *name, *flag;
} modes[MB_ENCODER_MODES] = {
    [MB_ENCODER_CLS] = {"cls", "pooling_mode_cls_token"},
    [MB_ENCODER_MAX] = {"max", "pooling_mode_max_tokens"},
    [MB_ENCODER_MEAN] = {"mean", "pooling_mode_mean_tokens"},
    [MB_ENCODER_MEAN_SQRT] = {"mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"},
    [MB_ENCODER_WEIGHTED_MEAN] = {"weightedmean", "pooling_mode_weightedmean_tokens"},
    [MB_ENCODER_LAST] = {"lasttoken", "pooling_mode_lasttoken"}};

static mb_status add_mode(mb_encoder_pooling *pooling, const char *name, size_t n, mb_status bad,
                          const char *where)
{
    mb_status status = MB_OK;
    int mode = 0;
    while (mode < MB_ENCODER_MODES &&
           (strlen(modes[mode].name) != n || memcmp(modes[mode].name, name, n) != 0))
        mode++;
    if (mode == MB_ENCODER_MODES)
        MB_RAISE(
            bad,
            "%s: there is no pooling \"%.*s\"; there are cls, max, mean, mean_sqrt_len_tokens, weightedmean, "
            "lasttoken",
            where, (int)n, name);
    if (pooling->mode_count == MB_ENCODER_MODES)
        MB_RAISE(bad, "%s: at most %d kinds of pooling", where, MB_ENCODER_MODES);
    pooling->modes[pooling->mode_count++] = (mb_encoder_mode)mode;
done:
    return status;
}

mb_status mb_encoder_pooling_choose(mb_encoder_pooling *pooling, const char *names)
{
    mb_status status = MB_OK;
    pooling->mode_count = 0;
    pooling->is_default = false;
    for (const char *at = names;; at++) {
        const size_t n = strcspn(at, "+");
        MB_TRY(add_mode(pooling, at, n, MB_EUSAGE, "embed.pooling"));
        at += n;
        if (*at == 0) break;
    }
done:
    return status;
}

char *mb_encoder_pooling_describe(const mb_encoder_pooling *pooling, char *out_text, size_t bytes)
{
    size_t used = 0;
    out_text[0] = 0;
    for (int i = 0; i < pooling->mode_count && used < bytes; i++)
        used += (size_t)snprintf(out_text + used, bytes - used, "%s%s", i > 0 ? "+" : "",
                                 modes[pooling->modes[i]].name);
    return out_text;
}

/* ---- 2. modules ---- */

/* Flags of their own (every version), or "pooling_mode": a name or a list of them (6.x). */
static mb_status read_pooling(mb_encoder_pooling *pooling, const char *folder)
{
    mb_status status = MB_OK;
    json_t *json = NULL, *item = NULL;
    size_t i = 0;
    bool is_in = true, flag;
    char *path = mb_files_join(folder, "config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_json_read(path, &json));
    MB_TRY(mb_json_opt_bool(json, "include_prompt", path, &is_in));
    pooling->leaves_prompt = !is_in;
    json_t *named = json_object_get(json, "pooling_mode");
    if (json_is_string(named))
        MB_TRY(add_mode(pooling, json_string_value(named), json_string_length(named), MB_EUNSUPPORTED, path));
    json_array_foreach(named, i, item)
    {
        if (!json_is_string(item)) MB_RAISE(MB_EFORMAT, "%s: \"pooling_mode\" is not a list of names", path);
        MB_TRY(add_mode(pooling, json_string_value(item), json_string_length(item), MB_EUNSUPPORTED, path));
    }
    for (int mode = 0; named == NULL && mode < MB_ENCODER_MODES; mode++) {
        flag = false;
        MB_TRY(mb_json_opt_bool(json, modes[mode].flag, path, &flag));
        if (flag) MB_TRY(add_mode(pooling, modes[mode].name, strlen(modes[mode].name), MB_EFORMAT, path));
    }
    if (pooling->mode_count == 0) MB_TRY(add_mode(pooling, "mean", 4, MB_EFORMAT, path));
done:
    json_decref(json);
    mb_free(path);
    return status;
}

static mb_status read_dense_config(mb_encoder_dense *dense, const json_t *json, const char *path,
                                   bool *out_bias)
{
    mb_status status = MB_OK;
    const char *activation = "torch.nn.modules.activation.Tanh", *input = "sentence_embedding",
               *output = "sentence_embedding";
    bool residual = false;
    MB_TRY(mb_json_get_int(json, "in_features", path, &dense->in));
    MB_TRY(mb_json_get_int(json, "out_features", path, &dense->out));
    MB_TRY(mb_json_opt_bool(json, "bias", path, out_bias));
    MB_TRY(mb_json_opt_bool(json, "use_residual", path, &residual));
    MB_TRY(mb_json_opt_string(json, "activation_function", path, &activation));
    MB_TRY(mb_json_opt_string(json, "module_input_name", path, &input));
    MB_TRY(mb_json_opt_string(json, "module_output_name", path, &output));
    dense->is_tanh = strcmp(activation, "torch.nn.modules.activation.Tanh") == 0;
    if (!dense->is_tanh && strcmp(activation, "torch.nn.modules.linear.Identity") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: activation_function \"%s\" is not done; Tanh and Identity are", path,
                 activation);
    if (residual || strcmp(input, "sentence_embedding") != 0 || strcmp(output, "sentence_embedding") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: a Dense module with a residual, or not of the sentence embedding",
                 path);
    if (dense->in < 1 || dense->in > 1 << 20 || dense->out < 1 || dense->out > 1 << 20)
        MB_RAISE(MB_ERANGE, "%s: in_features and out_features must be 1 to %d", path, 1 << 20);
done:
    return status;
}

static mb_status read_dense(mb_encoder_pooling *pooling, const char *folder)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    json_t *json = NULL;
    bool has_bias = true;
    float *values = NULL, *bias = NULL;
    char *path = mb_files_join(folder, "config.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    if (pooling->dense_count == MB_ENCODER_MAX_DENSE)
        MB_RAISE(MB_EUNSUPPORTED, "%s: more than %d Dense modules", folder, MB_ENCODER_MAX_DENSE);
    mb_encoder_dense *dense = &pooling->dense[pooling->dense_count];
    MB_TRY(mb_json_read(path, &json));
    MB_TRY(read_dense_config(dense, json, path, &has_bias));
    MB_TRY(mb_safetensors_open(folder, &file));
    MB_NEW_ARRAY(values, dense->out * dense->in);
    MB_NEW_ARRAY(bias, dense->out);
    MB_TRY(
        mb_safetensors_read_f32(file, "linear.weight", 2, (const int64_t[]){dense->out, dense->in}, values));
    if (has_bias) MB_TRY(mb_safetensors_read_f32(file, "linear.bias", 1, &dense->out, bias));
    mb_weight_init(&dense->weight, mb_tensor_view2(MB_F32, values, dense->out, dense->in));
    dense->bias = mb_tensor_view1(MB_F32, bias, dense->out);
    values = bias = NULL;
    pooling->dense_count++;
done:
    mb_free(values);
    mb_free(bias);
    mb_safetensors_close(&file);
    json_decref(json);
    mb_free(path);
    return status;
}

/* "sentence_transformers.models.Pooling", or with the module's path in between: the last word counts. */
static mb_status read_module(mb_encoder_pooling *pooling, const json_t *module, const char *folder,
                             const char *where)
{
    mb_status status = MB_OK;
    const char *type = NULL, *inside = NULL;
    char *path = NULL;
    MB_TRY(mb_json_get_string(module, "type", where, &type));
    MB_TRY(mb_json_get_string(module, "path", where, &inside));
    const char *name = strrchr(type, '.') != NULL ? strrchr(type, '.') + 1 : type;
    const bool is_first = pooling->mode_count == 0;
    path = mb_files_join(folder, inside);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    if (strcmp(name, "Transformer") == 0 && is_first && inside[0] == 0) goto done;
    if (strcmp(name, "Pooling") == 0 && is_first)
        MB_TRY(read_pooling(pooling, path));
    else if (strcmp(name, "Dense") == 0 && !is_first && !pooling->normalise)
        MB_TRY(read_dense(pooling, path));
    else if (strcmp(name, "Normalize") == 0 && !is_first)
        pooling->normalise = true;
    else
        MB_RAISE(
            MB_EUNSUPPORTED,
            "%s: module \"%s\" (path \"%s\") is not done at its place; done are Transformer in the folder "
            "itself, one Pooling, Dense, Normalize, in this order",
            where, type, inside);
done:
    mb_free(path);
    return status;
}

static mb_status read_modules(mb_encoder_pooling *pooling, const char *folder, const char *path)
{
    mb_status status = MB_OK;
    json_t *json = NULL, *module = NULL;
    size_t i = 0;
    MB_TRY(mb_json_read(path, &json));
    if (!json_is_array(json)) MB_RAISE(MB_EFORMAT, "%s: not a list of modules", path);
    json_array_foreach(json, i, module) MB_TRY(read_module(pooling, module, folder, path));
    if (pooling->mode_count == 0) MB_RAISE(MB_EUNSUPPORTED, "%s: there is no Pooling module", path);
done:
    json_decref(json);
    return status;
}

/* ---- 3. lengths, lower case, prompt ---- */

/* An object of a file of the folder; NULL when there is no such file. */
static mb_status read_optional(const char *folder, const char *name, char **out_path, json_t **out_json)
{
    mb_status status = MB_OK;
    mb_free(*out_path);
    json_decref(*out_json);
    *out_json = NULL;
    *out_path = mb_files_join(folder, name);
    if (*out_path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    if (mb_files_is_file(*out_path)) MB_TRY(mb_json_read(*out_path, out_json));
done:
    return status;
}

/* Does a normalizer, or one inside it, put text in lower case? */
static bool has_lowercase(const json_t *normalizer)
{
    const char *type = json_string_value(json_object_get(normalizer, "type"));
    const json_t *inner = NULL;
    size_t i = 0;
    if (type == NULL) return false;
    if (strcmp(type, "Lowercase") == 0) return true;
    if (strcmp(type, "BertNormalizer") == 0) return json_is_true(json_object_get(normalizer, "lowercase"));
    json_array_foreach(json_object_get(normalizer, "normalizers"), i,
                       inner) if (has_lowercase(inner)) return true;
    return false;
}

static mb_status read_length(mb_encoder_pooling *pooling, const char *folder)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char *path = NULL;
    bool lower = false;
    double most = 0;
    MB_TRY(read_optional(folder, "sentence_bert_config.json", &path, &json));
    if (json != NULL) {
        MB_TRY(mb_json_opt_int(json, "max_seq_length", path, &pooling->max_length));
        MB_TRY(mb_json_opt_bool(json, "do_lower_case", path, &lower));
        if (pooling->max_length < 0) MB_RAISE(MB_ERANGE, "%s: max_seq_length is below 0", path);
    }
    if (lower) {
        MB_TRY(read_optional(folder, "tokenizer.json", &path, &json));
        if (json != NULL && !has_lowercase(json_object_get(json, "normalizer")))
            MB_RAISE(
                MB_EUNSUPPORTED,
                "%s/sentence_bert_config.json: do_lower_case is true, but the tokenizer does not put text in "
                "lower case; add a Lowercase normalizer to tokenizer.json",
                folder);
    }
    if (pooling->max_length > 0) goto done;
    MB_TRY(read_optional(folder, "tokenizer_config.json", &path, &json));
    if (json != NULL) MB_TRY(mb_json_opt_real(json, "model_max_length", path, &most));
    if (most >= 1 && most < 1e9) pooling->max_length = (int64_t)most;
done:
    json_decref(json);
    mb_free(path);
    return status;
}

static mb_status read_prompt(mb_encoder_pooling *pooling, const char *folder)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char *path = NULL;
    const char *name = NULL, *text = NULL;
    MB_TRY(read_optional(folder, "config_sentence_transformers.json", &path, &json));
    if (json == NULL) goto done;
    MB_TRY(mb_json_opt_string(json, "default_prompt_name", path, &name));
    if (name == NULL) goto done;
    MB_TRY(mb_json_get_string(json_object_get(json, "prompts"), name, path, &text));
    if (text[0] == 0) goto done;
    pooling->prompt = mb_strdup(text);
    if (pooling->prompt == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
done:
    json_decref(json);
    mb_free(path);
    return status;
}

/* ---- 4. a folder ---- */

mb_status mb_encoder_pooling_read(const char *folder, mb_encoder_pooling *out_pooling)
{
    mb_status status = MB_OK;
    mb_encoder_pooling pooling = {0};
    char *path = mb_files_join(folder, "modules.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    if (mb_files_is_file(path)) {
        MB_TRY(read_modules(&pooling, folder, path));
        MB_TRY(read_prompt(&pooling, folder));
    } else {
        pooling.modes[pooling.mode_count++] = MB_ENCODER_MEAN;
        pooling.is_default = true;
    }
    MB_TRY(read_length(&pooling, folder));
    *out_pooling = pooling;
    pooling = (mb_encoder_pooling){0};
done:
    mb_encoder_pooling_reset(&pooling);
    mb_free(path);
    return status;
}

void mb_encoder_pooling_reset(mb_encoder_pooling *pooling)
{
    for (int i = 0; i < pooling->dense_count; i++) {
        mb_weight_reset(&pooling->dense[i].weight);
        mb_free(pooling->dense[i].weight.tensor.data);
        mb_free(pooling->dense[i].bias.data);
    }
    mb_free(pooling->prompt);
    *pooling = (mb_encoder_pooling){0};
}

/* ---- 5. pooling ---- */

mb_status mb_encoder_pooling_width(const mb_encoder_pooling *pooling, int64_t width, int64_t *out_width)
{
    mb_status status = MB_OK;
    int64_t n = width * pooling->mode_count;
    for (int i = 0; i < pooling->dense_count; i++) {
        if (pooling->dense[i].in != n)
            MB_RAISE(MB_ESHAPE, "Dense module %d takes %lld numbers, but is given %lld", i,
                     (long long)pooling->dense[i].in, (long long)n);
        n = pooling->dense[i].out;
    }
    *out_width = n;
done:
    return status;
}

static void pool_max(const float *rows, int64_t n, int64_t width, float *out)
{
    memcpy(out, rows, (size_t)width * sizeof *out);
    for (int64_t i = 1; i < n; i++)
        for (int64_t d = 0; d < width; d++)
            if (rows[i * width + d] > out[d]) out[d] = rows[i * width + d];
}

/* Sum of the rows, by weights 1, 2, .. when weighted, over the divisor. sum [width]. */
static void pool_mean(const float *rows, int64_t n, int64_t width, mb_encoder_mode mode, double *sum,
                      float *out)
{
    const bool is_weighted = mode == MB_ENCODER_WEIGHTED_MEAN;
    double divisor = is_weighted ? 0.5 * (double)n * (double)(n + 1) : (double)n;
    if (mode == MB_ENCODER_MEAN_SQRT) divisor = sqrt(divisor);
    memset(sum, 0, (size_t)width * sizeof *sum);
    for (int64_t i = 0; i < n; i++) {
        const double weight = is_weighted ? (double)(i + 1) : 1;
        for (int64_t d = 0; d < width; d++) sum[d] += weight * (double)rows[i * width + d];
    }
    for (int64_t d = 0; d < width; d++) out[d] = (float)(sum[d] / divisor);
}

static void pool_segment(const mb_encoder_pooling *pooling, const float *rows, int64_t n, int64_t width,
                         double *sum, float *out)
{
    for (int i = 0; i < pooling->mode_count; i++, out += width) {
        const mb_encoder_mode mode = pooling->modes[i];
        if (mode == MB_ENCODER_CLS)
            memcpy(out, rows, (size_t)width * sizeof *out);
        else if (mode == MB_ENCODER_LAST)
            memcpy(out, rows + (n - 1) * width, (size_t)width * sizeof *out);
        else if (mode == MB_ENCODER_MAX)
            pool_max(rows, n, width, out);
        else
            pool_mean(rows, n, width, mode, sum, out);
    }
}

static void normalise(float *vector, int64_t n)
{
    double squares = 0;
    for (int64_t d = 0; d < n; d++) squares += (double)vector[d] * (double)vector[d];
    const double length = sqrt(squares) > 1e-12 ? sqrt(squares) : 1e-12;
    for (int64_t d = 0; d < n; d++) vector[d] = (float)((double)vector[d] / length);
}

/* One Dense module, from rows to out; on a device by copies in the ops' scratch. */
static mb_status run_dense_one(mb_encoder_dense *dense, mb_ops *ops, const float *rows, int64_t segments,
                               float *out)
{
    mb_status status = MB_OK;
    const mb_arena_mark mark = mb_arena_mark_get(mb_ops_scratch(ops));
    const bool is_device = mb_ops_is_device(ops);
    mb_weight there = {0}, *weight = is_device ? &there : &dense->weight;
    const size_t n = (size_t)(segments * dense->out) * sizeof *out;
    const void *x_data, *w_data, *b_data;
    float *y_data = out;
    MB_TRY(
        mb_ops_input(ops, mb_ops_scratch(ops), rows, (size_t)(segments * dense->in) * sizeof *rows, &x_data));
    MB_TRY(mb_ops_input(ops, mb_ops_scratch(ops), dense->weight.tensor.data,
                        mb_tensor_bytes(&dense->weight.tensor), &w_data));
    MB_TRY(mb_ops_input(ops, mb_ops_scratch(ops), dense->bias.data, mb_tensor_bytes(&dense->bias), &b_data));
    if (is_device) {
        MB_ARENA_ARRAY(mb_ops_scratch(ops), y_data, segments * dense->out);
        mb_weight_init(&there, mb_tensor_view2(MB_F32, (void *)w_data, dense->out, dense->in));
    }
    mb_tensor x = mb_tensor_view2(MB_F32, (void *)x_data, segments, dense->in),
              b = mb_tensor_view1(MB_F32, (void *)b_data, dense->out),
              y = mb_tensor_view2(MB_F32, y_data, segments, dense->out);
    MB_TRY(mb_ops_linear(ops, &x, weight, &b, false, &y));
    if (is_device) MB_TRY(mb_ops_download(ops, y_data, n, out));
    MB_TRY(mb_ops_wait(ops));
done:
    if (status != MB_OK) (void)mb_ops_wait(ops); /* what is queued reads the caller's rows */
    if (is_device) mb_weight_reset(&there);
    mb_arena_release(mb_ops_scratch(ops), mark);
    return status;
}

/* All Dense modules; *rows is the input and, afterwards, the output (mb_free). */
static mb_status run_dense(mb_encoder_pooling *pooling, mb_ops *ops, int64_t segments, float **rows)
{
    mb_status status = MB_OK;
    float *next = NULL;
    for (int i = 0; i < pooling->dense_count; i++) {
        mb_encoder_dense *dense = &pooling->dense[i];
        MB_NEW_ARRAY(next, segments * dense->out);
        MB_TRY(run_dense_one(dense, ops, *rows, segments, next));
        for (int64_t j = 0; dense->is_tanh && j < segments * dense->out; j++) next[j] = tanhf(next[j]);
        mb_free(*rows);
        *rows = next;
        next = NULL;
    }
done:
    mb_free(next);
    return status;
}

mb_status mb_encoder_pooling_run(mb_encoder_pooling *pooling, mb_ops *ops, const float *hidden, int64_t width,
                                 const int32_t *offsets, int64_t segments, int64_t dimension, float *out)
{
    mb_status status = MB_OK;
    const int64_t first = width * pooling->mode_count;
    int64_t full = 0;
    float *rows = NULL;
    double *sum = NULL;
    MB_TRY(mb_encoder_pooling_width(pooling, width, &full));
    const int64_t kept = dimension > 0 ? dimension : full;
    if (kept > full)
        MB_RAISE(MB_EUSAGE, "embed.dimension is %lld, but the vectors have %lld numbers", (long long)kept,
                 (long long)full);
    MB_NEW_ARRAY(rows, segments * first);
    MB_NEW_ARRAY(sum, width);
    for (int64_t s = 0; s < segments; s++)
        pool_segment(pooling, hidden + offsets[s] * width, offsets[s + 1] - offsets[s], width, sum,
                     rows + s * first);
    MB_TRY(run_dense(pooling, ops, segments, &rows));
    for (int64_t s = 0; s < segments; s++) {
        memcpy(out + s * kept, rows + s * full, (size_t)kept * sizeof *out);
        if (pooling->normalise) normalise(out + s * kept, kept);
    }
done:
    mb_free(rows);
    mb_free(sum);
    return status;
}
