/* lora_adapter: opening, names of modules in the file, scales by pattern, values.
 *
 * 1. open, refusals
 * 2. patterns: regular expressions of peft, as far as POSIX has them
 * 3. finding a module
 * 4. values
 */
#include "model/lora_adapter.h"

#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"

#define ADAPTER_PREFIX "base_model.model."

struct mb_lora_adapter {
    char *config_path, *path;
    json_t *config;
    mb_safetensors *file;
    bool *used; /* [tensors of the file] */
    int64_t r;
    double alpha;
    bool rslora;
};

/* ---- 1. open ---- */

static bool adapter_is_empty(const json_t *value)
{
    return value == NULL || json_is_null(value) || json_is_false(value) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_string(value) && strcmp(json_string_value(value), "none") == 0);
}

static mb_status adapter_refuse(const json_t *config, const char *where)
{
    static const char *const fields[] = {"use_dora",       "modules_to_save",   "bias",
                                         "fan_in_fan_out", "layer_replication", "trainable_token_indices",
                                         "lora_bias",      "use_qalora",        "use_bdlora",
                                         "kasa_config",    "monteclora_config", "velora_config",
                                         "arrow_config",   "megatron_config",   "alora_invocation_tokens"};
    static const char *const inits[] = {"pissa", "olora", "loftq", "corda", "lora_ga"};
    mb_status status = MB_OK;
    const char *type = NULL;
    MB_TRY(mb_json_get_string(config, "peft_type", where, &type));
    if (strcmp(type, "LORA") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: peft_type '%s' is not supported; only LORA is", where, type);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (!adapter_is_empty(json_object_get(config, fields[i])))
            MB_RAISE(MB_EUNSUPPORTED, "%s: %s is set and not supported; merge the adapter with peft first",
                     where, fields[i]);
    const char *init = json_string_value(json_object_get(config, "init_lora_weights"));
    for (size_t i = 0; init != NULL && i < sizeof inits / sizeof inits[0]; i++)
        if (mb_str_is_prefix(init, inits[i]))
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: init_lora_weights '%s' changes the base model; convert the adapter with peft",
                     where, init);
done:
    return status;
}

static mb_status adapter_read_config(mb_lora_adapter *a, const char *folder)
{
    mb_status status = MB_OK;
    a->config_path = mb_files_join(folder, "adapter_config.json");
    a->path = mb_files_join(folder, "adapter_model.safetensors");
    if (a->config_path == NULL || a->path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    if (!mb_files_is_file(a->config_path))
        MB_RAISE(MB_ENOTFOUND, "%s: not found; a PEFT adapter folder holds it", a->config_path);
    MB_TRY(mb_json_read(a->config_path, &a->config));
    MB_TRY(adapter_refuse(a->config, a->config_path));
    MB_TRY(mb_json_get_int(a->config, "r", a->config_path, &a->r));
    MB_TRY(mb_json_get_real(a->config, "lora_alpha", a->config_path, &a->alpha));
    MB_TRY(mb_json_opt_bool(a->config, "use_rslora", a->config_path, &a->rslora));
done:
    return status;
}

mb_status mb_lora_adapter_open(const char *folder, mb_lora_adapter **out_adapter)
{
    mb_status status = MB_OK;
    mb_lora_adapter *a = NULL;
    MB_NEW(a);
    MB_TRY(adapter_read_config(a, folder));
    MB_TRY(mb_safetensors_open(a->path, &a->file));
    MB_NEW_ARRAY(a->used, mb_safetensors_count(a->file) + 1);
    *out_adapter = a;
    a = NULL;
done:
    mb_lora_adapter_close(&a);
    return status;
}

void mb_lora_adapter_close(mb_lora_adapter **adapter)
{
    mb_lora_adapter *a = *adapter;
    if (a == NULL) return;
    mb_safetensors_close(&a->file);
    json_decref(a->config);
    mb_free(a->used);
    mb_free(a->config_path);
    mb_free(a->path);
    mb_free(a);
    *adapter = NULL;
}

const json_t *mb_lora_adapter_config(const mb_lora_adapter *adapter)
{
    return adapter->config;
}

const char *mb_lora_adapter_config_path(const mb_lora_adapter *adapter)
{
    return adapter->config_path;
}

/* ---- 2. patterns ---- */

/* Python's expression as a POSIX extended one that matches a whole name, or its end after a dot. */
static mb_status adapter_translate(const char *pattern, const char *where, mb_str *out)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add(out, "^(.*\\.)?("));
    for (const char *c = pattern; *c != 0; c++) {
        if (c[0] == '(' && c[1] == '?' && c[2] == ':') {
            MB_TRY(mb_str_add(out, "("));
            c += 2;
        } else if (c[0] == '\\' && c[1] == 'd') {
            MB_TRY(mb_str_add(out, "[0-9]"));
            c++;
        } else if (c[0] == '\\' && c[1] == 'w') {
            MB_TRY(mb_str_add(out, "[A-Za-z0-9_]"));
            c++;
        } else if ((c[0] == '(' && c[1] == '?') ||
                   (c[0] == '\\' && (c[1] == 0 || strchr(".^$*+?()[]{}|\\-", c[1]) == NULL))) {
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: alpha_pattern '%s' uses '%.2s', which is not supported; write the module's name",
                     where, pattern, c);
        } else if (c[0] == '\\') {
            MB_TRY(mb_str_add_format(out, "\\%c", c[1]));
            c++;
        } else {
            MB_TRY(mb_str_add_format(out, "%c", c[0]));
        }
    }
    MB_TRY(mb_str_add(out, ")$"));
done:
    return status;
}

static mb_status adapter_is_match(const char *pattern, const char *name, const char *where, bool *out_match)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    regex_t regex;
    MB_TRY(adapter_translate(pattern, where, &text));
    if (regcomp(&regex, mb_str_text(&text), REG_EXTENDED | REG_NOSUB) != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: alpha_pattern '%s' is no expression that is supported", where,
                 pattern);
    *out_match = regexec(&regex, name, 0, NULL, 0) == 0;
    regfree(&regex);
done:
    mb_str_destroy(&text);
    return status;
}

/* Scale of a module (or fused parameter) by name: the first pattern that matches counts. */
static mb_status adapter_scale(const mb_lora_adapter *a, const char *name, int64_t rank, float *out_scale)
{
    mb_status status = MB_OK;
    const char *pattern;
    json_t *value;
    double alpha = a->alpha;
    json_object_foreach(json_object_get(a->config, "alpha_pattern"), pattern, value)
    {
        bool match = false;
        MB_TRY(adapter_is_match(pattern, name, a->config_path, &match));
        if (!match) continue;
        if (!json_is_number(value))
            MB_RAISE(MB_EFORMAT, "%s: alpha_pattern '%s' is not a number", a->config_path, pattern);
        alpha = json_number_value(value);
        break;
    }
    *out_scale = (float)(alpha / (a->rslora ? sqrt((double)rank) : (double)rank));
done:
    return status;
}

/* ---- 3. finding a module ---- */

/* The views of a stem's two tensors; false when it has none. */
static bool adapter_pair(const mb_lora_adapter *a, const char *stem, mb_tensor *out_a, mb_tensor *out_b)
{
    char name[280];
    snprintf(name, sizeof name, "%s.lora_A.weight", stem);
    if (!mb_safetensors_has(a->file, name) || mb_safetensors_view(a->file, name, out_a) != MB_OK)
        return false;
    snprintf(name, sizeof name, "%s.lora_B.weight", stem);
    return mb_safetensors_has(a->file, name) && mb_safetensors_view(a->file, name, out_b) == MB_OK;
}

static void adapter_use(mb_lora_adapter *a, const char *stem)
{
    const size_t length = strlen(stem);
    for (int64_t i = 0; i < mb_safetensors_count(a->file); i++) {
        const char *name = mb_safetensors_name(a->file, i);
        if (strncmp(name, stem, length) == 0 && strncmp(name + length, ".lora_", 6) == 0) a->used[i] = true;
    }
}

/* 5.x calls Mixtral's mixture mlp. */
static void adapter_rename(const char *name, char *out, size_t bytes)
{
    const char *place = strstr(name, ".block_sparse_moe.");
    if (place == NULL)
        snprintf(out, bytes, "%s", name);
    else
        snprintf(out, bytes, "%.*s.mlp.%s", (int)(place - name), name, place + strlen(".block_sparse_moe."));
}

static mb_status adapter_find_alone(mb_lora_adapter *a, const char *module, int64_t n, int64_t k,
                                    bool *out_found, mb_lora_part *part)
{
    mb_status status = MB_OK;
    mb_tensor va, vb;
    char renamed[200];
    const char *names[2] = {module, renamed};
    adapter_rename(module, renamed, sizeof renamed);
    for (int i = 0; i < 2 && !*out_found; i++) {
        snprintf(part->stem, sizeof part->stem, ADAPTER_PREFIX "%s", names[i]);
        if (!adapter_pair(a, part->stem, &va, &vb)) continue;
        if (va.dims != 2 || vb.dims != 2 || va.shape[1] != k || vb.shape[0] != n ||
            va.shape[0] != vb.shape[1])
            MB_RAISE(MB_ESHAPE, "%s: the tensors of %s do not fit a matrix [%lld, %lld]", a->path, part->stem,
                     (long long)n, (long long)k);
        *out_found = true;
        part->rank = va.shape[0];
        part->expert = -1;
        MB_TRY(adapter_scale(a, names[i], part->rank, &part->scale));
    }
done:
    return status;
}

/* "model.layers.0.mlp.experts.3.up_proj" -> stem "...mlp.experts", expert, which half of which parameter. */
static bool adapter_split(const char *module, char *stem, size_t bytes, mb_lora_part *part, bool *out_down)
{
    char renamed[200], kind[16];
    long long expert;
    adapter_rename(module, renamed, sizeof renamed);
    const char *place = strstr(renamed, ".mlp.experts.");
    if (place == NULL || sscanf(place, ".mlp.experts.%lld.%15[a-z0-9_]", &expert, kind) != 2) return false;
    snprintf(stem, bytes, "%.*s.mlp.experts", (int)(place - renamed), renamed);
    part->expert = expert;
    part->half = strcmp(kind, "up_proj") == 0 || strcmp(kind, "w3") == 0;
    *out_down = strcmp(kind, "down_proj") == 0 || strcmp(kind, "w2") == 0;
    return true;
}

/* Which of the nested wrappers is this parameter's is told by the shapes. */
static mb_status adapter_find_fused(mb_lora_adapter *a, const mb_arch *arch, const char *module, int64_t n,
                                    int64_t k, bool *out_found, mb_lora_part *part)
{
    static const char *const inner[] = {"", ".base_layer"};
    mb_status status = MB_OK;
    mb_tensor va, vb;
    char stem[200], name[240];
    bool is_down = false;
    const int64_t e = arch->experts;
    if (e == 0 || !adapter_split(module, stem, sizeof stem, part, &is_down)) goto done;
    for (int i = 0; i < 2 && !*out_found; i++) {
        snprintf(part->stem, sizeof part->stem, ADAPTER_PREFIX "%s%s", stem, inner[i]);
        if (!adapter_pair(a, part->stem, &va, &vb)) continue;
        const bool fits = va.dims == 2 && vb.dims == 2 && va.shape[1] == k && va.shape[0] == vb.shape[1] &&
                          vb.shape[0] == (is_down ? n : 2 * n) && va.shape[0] % e == 0;
        if (!fits) continue;
        *out_found = true;
        part->rank = va.shape[0] / e;
        part->experts = e;
        snprintf(name, sizeof name, "%s.%s", stem, is_down ? "down_proj" : "gate_up_proj");
        MB_TRY(adapter_scale(a, name, part->rank, &part->scale));
    }
done:
    return status;
}

mb_status mb_lora_adapter_find(mb_lora_adapter *adapter, const mb_arch *arch, const char *module, int64_t n,
                               int64_t k, bool *out_found, mb_lora_part *out_part)
{
    mb_status status = MB_OK;
    mb_lora_part part = {.expert = -1};
    bool found = false;
    MB_TRY(adapter_find_alone(adapter, module, n, k, &found, &part));
    if (!found) MB_TRY(adapter_find_fused(adapter, arch, module, n, k, &found, &part));
    if (found && (part.rank < 1 || !isfinite(part.scale)))
        MB_RAISE(MB_ERANGE, "%s: %s has rank %lld and scale %g", adapter->path, part.stem,
                 (long long)part.rank, (double)part.scale);
    if (found) adapter_use(adapter, part.stem);
    *out_found = found;
    *out_part = part;
done:
    return status;
}

mb_status mb_lora_adapter_check_used(const mb_lora_adapter *adapter)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < mb_safetensors_count(adapter->file); i++)
        if (!adapter->used[i])
            MB_RAISE(MB_EUNSUPPORTED, "%s: tensor %s belongs to none of the model's layers' matrices",
                     adapter->path, mb_safetensors_name(adapter->file, i));
done:
    return status;
}

/* ---- 4. values ---- */

mb_status mb_lora_adapter_read(const mb_lora_adapter *adapter, const mb_lora_part *part, bool is_b, int64_t n,
                               int64_t k, float *out)
{
    mb_status status = MB_OK;
    char name[280];
    mb_tensor view;
    float *whole = NULL;
    const int64_t r = part->rank, e = part->experts;
    snprintf(name, sizeof name, "%s.lora_%c.weight", part->stem, is_b ? 'B' : 'A');
    MB_TRY(mb_safetensors_view(adapter->file, name, &view));
    MB_NEW_ARRAY(whole, mb_tensor_count(&view));
    MB_TRY(mb_safetensors_read_f32(adapter->file, name, 2, view.shape, whole));
    if (part->expert < 0) {
        memcpy(out, whole, (size_t)(is_b ? n * r : r * k) * sizeof *out);
    } else if (!is_b) {
        memcpy(out, whole + part->expert * r * k, (size_t)(r * k) * sizeof *out);
    } else {
        for (int64_t o = 0; o < n; o++)
            for (int64_t j = 0; j < r; j++)
                out[o * r + j] = whole[(part->half * n + o) * r * e + j * e + part->expert];
    }
done:
    mb_free(whole);
    return status;
}
