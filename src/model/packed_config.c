/* packed_config: compressed-tensors' description of a quantised model, in and out.
 *
 * 1. reading
 * 2. writing
 */
#include "model/packed_config.h"

#include <string.h>

#include "base/str.h"

#define CONFIG_ONLY                                                                                          \
    "; 4-bit weights as moe-quantize writes them are read (compressed-tensors, pack-quantized, symmetric)"

/* ---- 1. reading ---- */

static bool config_is_set(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value != NULL && !json_is_null(value);
}

/* A word that is there and not the one we know. */
static mb_status config_expect(const json_t *object, const char *key, const char *const *words,
                               const char *where)
{
    mb_status status = MB_OK;
    const char *text = NULL;
    MB_TRY(mb_json_opt_string(object, key, where, &text));
    if (text == NULL) goto done;
    for (int i = 0; words[i] != NULL; i++)
        if (strcmp(text, words[i]) == 0) goto done;
    MB_RAISE(MB_EUNSUPPORTED, "%s: quantization_config: %s '%s' is not supported" CONFIG_ONLY, where, key,
             text);
done:
    return status;
}

static mb_status config_read_weights(const json_t *weights, const char *where, int64_t *out_group)
{
    static const char *const types[] = {"int", NULL}, *const strategies[] = {"group", "channel", NULL},
                             *const orders[] = {"weight", "static", NULL};
    mb_status status = MB_OK;
    bool symmetric = true, dynamic = false;
    int64_t bits = 8, group = -1;
    const char *strategy = NULL;
    MB_TRY(mb_json_opt_int(weights, "num_bits", where, &bits));
    MB_TRY(mb_json_opt_bool(weights, "symmetric", where, &symmetric));
    MB_TRY(mb_json_opt_bool(weights, "dynamic", where, &dynamic));
    MB_TRY(config_expect(weights, "type", types, where));
    MB_TRY(config_expect(weights, "strategy", strategies, where));
    if (!json_is_boolean(json_object_get(weights, "actorder")))
        MB_TRY(config_expect(weights, "actorder", orders, where));
    if (bits != MB_PACKED_BITS || !symmetric || dynamic || json_is_true(json_object_get(weights, "actorder")))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: quantization_config: weights of %lld bits%s%s are not supported" CONFIG_ONLY, where,
                 (long long)bits, symmetric ? "" : " with zero points", dynamic ? ", dynamic" : "");
    if (config_is_set(weights, "group_size")) MB_TRY(mb_json_get_int(weights, "group_size", where, &group));
    MB_TRY(mb_json_opt_string(weights, "strategy", where, &strategy));
    *out_group = group > 0 && !(strategy != NULL && strcmp(strategy, "channel") == 0) ? group : 0;
done:
    return status;
}

static mb_status config_read_group(const char *name, const json_t *group, const char *where,
                                   int64_t *out_group)
{
    static const char *const formats[] = {"pack-quantized", NULL};
    mb_status status = MB_OK;
    json_t *weights;
    if (json_is_array(group)) { /* a scheme by its name */
        if (strcmp(name, "W4A16") != 0)
            MB_RAISE(MB_EUNSUPPORTED, "%s: quantization_config: scheme '%s' is not supported" CONFIG_ONLY,
                     where, name);
        *out_group = 128;
        goto done;
    }
    if (config_is_set(group, "input_activations") || config_is_set(group, "output_activations"))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: quantization_config: quantised activations are not supported" CONFIG_ONLY, where);
    MB_TRY(config_expect(group, "format", formats, where));
    MB_TRY(mb_json_get_object(group, "weights", where, &weights));
    MB_TRY(config_read_weights(weights, where, out_group));
done:
    return status;
}

static bool config_is_for_all(const json_t *group)
{
    const json_t *targets = json_is_array(group) ? group : json_object_get(group, "targets");
    const char *text = json_string_value(json_array_get(targets, 0));
    return text != NULL && strcmp(text, "Linear") == 0;
}

mb_status mb_packed_config_read(const json_t *config, const char *where, int *out_bits, int64_t *out_group)
{
    static const char *const methods[] = {"compressed-tensors", NULL},
                             *const formats[] = {"pack-quantized", NULL}, *const dense[] = {"dense", NULL};
    mb_status status = MB_OK;
    json_t *quantised, *groups, *group;
    const char *name;
    int64_t columns = 0, one = 0;
    bool is_first = true;
    *out_bits = 0;
    *out_group = 0;
    if (!config_is_set(config, "quantization_config")) goto done;
    MB_TRY(mb_json_get_object(config, "quantization_config", where, &quantised));
    if (!config_is_set(quantised, "quant_method"))
        MB_RAISE(MB_EUNSUPPORTED, "%s: quantization_config: quant_method is missing" CONFIG_ONLY, where);
    MB_TRY(config_expect(quantised, "quant_method", methods, where));
    MB_TRY(config_expect(quantised, "format", formats, where));
    if (config_is_set(quantised, "kv_cache_scheme"))
        MB_RAISE(MB_EUNSUPPORTED, "%s: quantization_config: kv_cache_scheme is not supported" CONFIG_ONLY,
                 where);
    if (config_is_set(quantised, "sparsity_config"))
        MB_TRY(config_expect(json_object_get(quantised, "sparsity_config"), "format", dense, where));
    MB_TRY(mb_json_get_object(quantised, "config_groups", where, &groups));
    json_object_foreach(groups, name, group)
    {
        MB_TRY(config_read_group(name, group, where, &one));
        if (is_first || config_is_for_all(group)) columns = one;
        is_first = false;
    }
    if (is_first) MB_RAISE(MB_EFORMAT, "%s: quantization_config: config_groups is empty", where);
    *out_bits = MB_PACKED_BITS;
    *out_group = columns;
done:
    return status;
}

/* ---- 2. writing ---- */

static json_t *config_group(const char *target, int64_t group, bool act_order)
{
    json_t *size = group > 0 ? json_integer(group) : json_null();
    json_t *order = act_order ? json_string("static") : json_null();
    return json_pack("{s:n, s:n, s:[s], s:{s:i, s:s, s:b, s:s, s:o, s:b, s:o, s:n, s:s}}",
                     "input_activations", "output_activations", "targets", target, "weights", "num_bits",
                     MB_PACKED_BITS, "type", "int", "symmetric", 1, "strategy",
                     group > 0 ? "group" : "channel", "group_size", size, "dynamic", 0, "actorder", order,
                     "block_structure", "observer", "minmax");
}

mb_status mb_packed_config_make(int64_t group, bool act_order, const mb_packed_exception *exceptions,
                                int64_t count, const json_t *ignore, json_t **out_config)
{
    mb_status status = MB_OK;
    json_t *groups = json_object(), *config = NULL;
    char name[32], target[sizeof exceptions->pattern + 4];
    if (groups == NULL) MB_RAISE(MB_ENOMEM, "quantization_config: no memory");
    for (int64_t i = 0; i <= count; i++) { /* the first that fits counts */
        const bool is_rest = i == count;
        snprintf(name, sizeof name, "group_%lld", (long long)i);
        snprintf(target, sizeof target, "%s%s",
                 is_rest ? "Linear" : "re:", is_rest ? "" : exceptions[i].pattern);
        MB_TRY(mb_json_set(groups, name,
                           config_group(target, is_rest ? group : exceptions[i].group, act_order)));
    }
    config = json_pack("{s:s, s:s, s:s, s:O, s:O, s:n, s:n}", "quant_method", "compressed-tensors", "format",
                       "pack-quantized", "quantization_status", "compressed", "config_groups", groups,
                       "ignore", ignore, "kv_cache_scheme", "global_compression_ratio");
    if (config == NULL) MB_RAISE(MB_ENOMEM, "quantization_config: no memory");
    *out_config = config;
done:
    json_decref(groups);
    return status;
}
