/* params: the list of a model's tensors and the memory they live in.
 *
 * 1. the list: names and shapes from the architecture
 * 2. which train
 * 3. memory: one flat space for what trains, one buffer per block for what is frozen
 * 4. access, gradients, staleness
 * 5. random initial values
 */
#include "model/params.h"

#include <assert.h>
#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/option.h"
#include "base/rng.h"

struct mb_params {
    mb_ops *ops;
    int64_t layers;
    mb_param *list;
    int64_t count, capacity;
    mb_param **sorted; /* by name, once it is decided what trains */
    bool is_sealed;
    mb_buffer *trained;
    mb_buffer **frozen; /* [layers + 2], entry block + 1 */
    int64_t trained_count, lowest;
};

/* ---- 1. the list ---- */

mb_status mb_params_add(mb_params *params, const char *name, int64_t block, int dims, const int64_t *shape)
{
    mb_status status = MB_OK;
    char *copy = NULL;
    assert(params->sorted == NULL && (dims == 1 || dims == 2));
    if (params->count == params->capacity) {
        int64_t capacity = params->capacity < 64 ? 64 : params->capacity * 2;
        mb_param *list = mb_realloc(params->list, (size_t)capacity, sizeof *list);
        if (list == NULL) MB_RAISE(MB_ENOMEM, "parameters: no memory for the list");
        params->list = list;
        params->capacity = capacity;
    }
    copy = mb_strdup(name);
    if (copy == NULL) MB_RAISE(MB_ENOMEM, "parameters: no memory for a name");
    mb_param *param = &params->list[params->count++];
    memset(param, 0, sizeof *param);
    param->name = copy;
    param->block = block;
    param->value = dims == 1 ? mb_tensor_view1(MB_F32, NULL, shape[0])
                             : mb_tensor_view2(MB_F32, NULL, shape[0], shape[1]);
    param->gradient = param->value;
    param->flat = -1;
done:
    return status;
}

static mb_status params_add1(mb_params *params, int64_t block, const char *name, int64_t n)
{
    mb_status status = MB_OK;
    char text[160];
    if (block >= 0 && block < params->layers)
        snprintf(text, sizeof text, "model.layers.%lld.%s", (long long)block, name);
    else
        snprintf(text, sizeof text, "%s", name);
    MB_TRY(mb_params_add(params, text, block, 1, &n));
done:
    return status;
}

static mb_status params_add2(mb_params *params, int64_t block, const char *name, int64_t n, int64_t k)
{
    mb_status status = MB_OK;
    char text[160];
    const int64_t shape[2] = {n, k};
    if (block >= 0 && block < params->layers)
        snprintf(text, sizeof text, "model.layers.%lld.%s", (long long)block, name);
    else
        snprintf(text, sizeof text, "%s", name);
    MB_TRY(mb_params_add(params, text, block, 2, shape));
done:
    return status;
}

static mb_status params_add_attention(mb_params *params, const mb_arch *arch, int64_t block)
{
    mb_status status = MB_OK;
    const int64_t d = arch->width, q = arch->heads * arch->head_width, kv = arch->kv_heads * arch->head_width;
    MB_TRY(params_add2(params, block, "self_attn.q_proj.weight", q, d));
    MB_TRY(params_add2(params, block, "self_attn.k_proj.weight", kv, d));
    MB_TRY(params_add2(params, block, "self_attn.v_proj.weight", kv, d));
    MB_TRY(params_add2(params, block, "self_attn.o_proj.weight", d, q));
    if (arch->attention_bias) {
        MB_TRY(params_add1(params, block, "self_attn.q_proj.bias", q));
        MB_TRY(params_add1(params, block, "self_attn.k_proj.bias", kv));
        MB_TRY(params_add1(params, block, "self_attn.v_proj.bias", kv));
        MB_TRY(params_add1(params, block, "self_attn.o_proj.bias", d));
    }
    if (arch->qk_norm == MB_QK_NORM_FULL) {
        MB_TRY(params_add1(params, block, "self_attn.q_norm.weight", q));
        MB_TRY(params_add1(params, block, "self_attn.k_norm.weight", kv));
    }
done:
    return status;
}

static mb_status params_add_ffn(mb_params *params, const mb_arch *arch, int64_t block)
{
    mb_status status = MB_OK;
    const int64_t d = arch->width, f = arch->ffn, parts = arch->experts > 0 ? arch->experts : 1;
    const char *const names[3] = {"gate_proj", "up_proj", "down_proj"};
    if (arch->experts > 0) MB_TRY(params_add2(params, block, "mlp.gate.weight", mb_arch_gates(arch), d));
    for (int64_t e = 0; e < parts; e++)
        for (int i = 0; i < 3; i++) {
            char text[96];
            if (arch->experts > 0)
                snprintf(text, sizeof text, "mlp.experts.%lld.%s.weight", (long long)e, names[i]);
            else
                snprintf(text, sizeof text, "mlp.%s.weight", names[i]);
            MB_TRY(params_add2(params, block, text, i == 2 ? d : f, i == 2 ? f : d));
        }
done:
    return status;
}

mb_status mb_params_create(const mb_arch *arch, mb_ops *ops, mb_params **out_params)
{
    mb_status status = MB_OK;
    mb_params *params = NULL;
    MB_NEW(params);
    params->ops = ops;
    params->layers = arch->layers;
    params->lowest = arch->layers + 1;
    MB_NEW_ARRAY(params->frozen, arch->layers + 2);
    MB_TRY(params_add2(params, MB_PARAMS_EMBEDDING, "model.embed_tokens.weight", arch->vocab, arch->width));
    for (int64_t i = 0; i < arch->layers; i++) {
        MB_TRY(params_add1(params, i, "input_layernorm.weight", arch->width));
        MB_TRY(params_add_attention(params, arch, i));
        MB_TRY(params_add1(params, i, "post_attention_layernorm.weight", arch->width));
        MB_TRY(params_add_ffn(params, arch, i));
    }
    MB_TRY(params_add1(params, arch->layers, "model.norm.weight", arch->width));
    if (!arch->tied_head)
        MB_TRY(params_add2(params, arch->layers, "lm_head.weight", arch->vocab, arch->width));
    *out_params = params;
    params = NULL;
done:
    mb_params_destroy(&params);
    return status;
}

void mb_params_destroy(mb_params **params)
{
    mb_params *p = *params;
    if (p == NULL) return;
    for (int64_t i = 0; i < p->count; i++) {
        mb_weight_reset(&p->list[i].weight);
        mb_free(p->list[i].name);
    }
    for (int64_t b = 0; p->frozen != NULL && b < p->layers + 2; b++) mb_buffer_destroy(&p->frozen[b]);
    mb_buffer_destroy(&p->trained);
    mb_free(p->frozen);
    mb_free(p->sorted);
    mb_free(p->list);
    mb_free(p);
    *params = NULL;
}

/* ---- 2. which train ---- */

static bool params_is_lora(const mb_param *param)
{
    return strstr(param->name, ".lora_") != NULL;
}

static mb_status params_no_match(const mb_params *params, const char *pattern)
{
    mb_status status = MB_OK;
    const char **names = NULL;
    char plain[160];
    size_t n = 0;
    for (const char *c = pattern; *c != 0 && n + 1 < sizeof plain; c++)
        if (*c != '*') plain[n++] = *c;
    plain[n] = 0;
    MB_NEW_ARRAY(names, params->count);
    for (int64_t i = 0; i < params->count; i++) {
        size_t length = strlen(params->list[i].name);
        bool open = pattern[0] == '*' && length > n;
        names[i] = params->list[i].name + (open ? length - n : 0);
    }
    const char *near = mb_str_nearest(plain, names, params->count);
    if (near == NULL) near = params->list[params->count / 2].name;
    MB_RAISE(MB_EUSAGE, "train: pattern '%s' matches no tensor of the model; there is '%s%s'", pattern,
             pattern[0] == '*' ? "*" : "", near);
done:
    mb_free(names);
    return status;
}

static mb_status params_match(mb_params *params, const char *pattern)
{
    bool any = false;
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (params_is_lora(param) || fnmatch(pattern, param->name, 0) != 0) continue;
        param->trained = any = true;
    }
    return any ? MB_OK : params_no_match(params, pattern);
}

static int params_by_name(const void *a, const void *b)
{
    return strcmp((*(mb_param *const *)a)->name, (*(mb_param *const *)b)->name);
}

static mb_status params_sort(mb_params *params)
{
    mb_status status = MB_OK;
    mb_free(params->sorted);
    MB_NEW_ARRAY(params->sorted, params->count);
    for (int64_t i = 0; i < params->count; i++) params->sorted[i] = &params->list[i];
    qsort(params->sorted, (size_t)params->count, sizeof *params->sorted, params_by_name);
done:
    return status;
}

mb_status mb_params_choose(mb_params *params, const char *patterns)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0;
    const bool none = strcmp(patterns, "none") == 0, all = strcmp(patterns, "all") == 0;
    for (int64_t i = 0; i < params->count; i++)
        params->list[i].trained = all || (!none && params_is_lora(&params->list[i]));
    if (!none && !all) {
        MB_TRY(mb_option_list_split(patterns, &items, &n));
        for (int64_t i = 0; i < n; i++)
            if (strcmp(items[i], "lora") != 0) MB_TRY(params_match(params, items[i]));
    }
    MB_TRY(params_sort(params));
    params->trained_count = 0;
    params->lowest = params->layers + 1;
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        param->flat = param->trained ? params->trained_count : -1;
        if (!param->trained) continue;
        params->trained_count += param->value.shape[0] * param->value.shape[1];
        if (param->block < params->lowest) params->lowest = param->block;
    }
done:
    mb_option_list_free(&items, n);
    return status;
}

/* ---- 3. memory ---- */

/* Bytes of one frozen tensor in its block's buffer: whole 64-byte lines. */
static size_t params_room(const mb_param *param)
{
    size_t bytes = (size_t)(param->value.shape[0] * param->value.shape[1]) * sizeof(float);
    return (bytes + 63) / 64 * 64;
}

static mb_status params_allocate_block(mb_params *params, int64_t block)
{
    mb_status status = MB_OK;
    size_t bytes = 0;
    for (int64_t i = 0; i < params->count; i++)
        if (params->list[i].block == block && !params->list[i].trained)
            bytes += params_room(&params->list[i]);
    if (bytes == 0) goto done;
    MB_TRY(mb_buffer_create(mb_ops_allocator(params->ops), bytes, &params->frozen[block + 1]));
    bytes = 0;
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (param->block != block || param->trained) continue;
        param->value.data = (char *)params->frozen[block + 1]->data + bytes;
        bytes += params_room(param);
    }
done:
    return status;
}

mb_status mb_params_seal(mb_params *params, const char *patterns)
{
    mb_status status = MB_OK;
    assert(!params->is_sealed && params->ops != NULL);
    MB_TRY(mb_params_choose(params, patterns));
    const mb_allocator *allocator = mb_ops_allocator(params->ops);
    if (params->trained_count > 0)
        MB_TRY(mb_buffer_create(allocator, (size_t)params->trained_count * sizeof(float), &params->trained));
    for (int64_t b = -1; b <= params->layers; b++) MB_TRY(params_allocate_block(params, b));
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (param->trained) param->value.data = (float *)params->trained->data + param->flat;
        if (param->value.dims == 2) mb_weight_init(&param->weight, param->value);
    }
    params->is_sealed = true;
done:
    return status;
}

/* ---- 4. access ---- */

int64_t mb_params_count(const mb_params *params)
{
    return params->count;
}

mb_param *mb_params_at(mb_params *params, int64_t i)
{
    assert(i >= 0 && i < params->count);
    return &params->list[i];
}

mb_param *mb_params_find(mb_params *params, const char *name)
{
    int64_t low = 0, high = params->count;
    while (params->sorted != NULL && low < high) {
        int64_t middle = (low + high) / 2;
        int order = strcmp(name, params->sorted[middle]->name);
        if (order == 0) return params->sorted[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    for (int64_t i = 0; params->sorted == NULL && i < params->count; i++)
        if (strcmp(params->list[i].name, name) == 0) return &params->list[i];
    return NULL;
}

mb_status mb_params_acquire(mb_params *params, int64_t block)
{
    assert(block >= MB_PARAMS_EMBEDDING && block <= params->layers);
    return MB_OK;
}

void mb_params_release(mb_params *params, int64_t block)
{
    assert(block >= MB_PARAMS_EMBEDDING && block <= params->layers);
}

int64_t mb_params_trained_count(const mb_params *params)
{
    return params->trained_count;
}

float *mb_params_trained(mb_params *params)
{
    return params->trained != NULL ? params->trained->data : NULL;
}

void mb_params_bind_gradient(mb_params *params, float *gradient)
{
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        param->gradient.data = param->trained && gradient != NULL ? gradient + param->flat : NULL;
    }
}

void mb_params_changed(mb_params *params)
{
    for (int64_t i = 0; i < params->count; i++)
        if (params->list[i].trained && params->list[i].value.dims == 2)
            mb_weight_changed(&params->list[i].weight);
}

int64_t mb_params_lowest_trained(const mb_params *params)
{
    return params->lowest;
}

/* ---- 5. random initial values ---- */

mb_status mb_params_randomise(mb_params *params, uint64_t seed, double std)
{
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (params_is_lora(param)) continue;
        const int64_t n = mb_tensor_count(&param->value);
        const uint32_t sub = (uint32_t)mb_hash_u64(param->name, strlen(param->name), 0);
        const bool is_bias = mb_str_is_suffix(param->name, ".bias");
        float *value = mb_tensor_f32(&param->value);
#pragma omp parallel for schedule(static) if (n > 65536)
        for (int64_t j = 0; j < n; j++)
            value[j] = is_bias ? 0
                       : param->value.dims == 1
                           ? 1
                           : (float)(std * mb_rng_normal(seed, MB_RNG_INIT, sub, (uint64_t)j));
        if (param->value.dims == 2) mb_weight_changed(&param->weight);
    }
    return MB_OK;
}
