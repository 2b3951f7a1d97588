/* params: the list of a model's tensors and the memory they live in.
 *
 * 1. the list: names and shapes from the architecture
 * 2. which train
 * 3. memory: one flat space for what trains, one buffer per block for what is frozen
 * 4. access, gradients, staleness
 */
#include "model/params.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "comm/window.h"
#include "model/params_choose.h"
#include "model/params_shard.h"
#include "model/quantise.h"
#include "model/staging.h"

struct mb_params {
    mb_ops *ops;
    int64_t layers;
    mb_param *list;
    int64_t count, capacity;
    mb_param **sorted; /* by name, once it is decided what trains */
    bool is_sealed;
    mb_staging *staging; /* values lie on a device */
    mb_buffer *trained, *carried;
    mb_buffer **frozen; /* [layers + 2], entry block + 1 */
    int64_t trained_count, carried_count, lowest;
    mb_comm *comm; /* of what is spread, NULL: nothing is */
    bool shard, share;
    mb_params_shard *sharded; /* everything is cut over the ranks */
    mb_window *shared;        /* frozen tensors of all ranks of this node */
    size_t shared_bytes;
    const mb_params_sink *sink;
    mb_dtype frozen_dtype; /* how frozen matrices are kept */
    int frozen_bits;
    int64_t group;
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
    }
    if (arch->o_bias) MB_TRY(params_add1(params, block, "self_attn.o_proj.bias", d));
    if (arch->qk_norm == MB_QK_NORM_FULL) {
        MB_TRY(params_add1(params, block, "self_attn.q_norm.weight", q));
        MB_TRY(params_add1(params, block, "self_attn.k_norm.weight", kv));
    }
    if (arch->qk_norm == MB_QK_NORM_HEAD) {
        MB_TRY(params_add1(params, block, "self_attn.q_norm.weight", arch->head_width));
        MB_TRY(params_add1(params, block, "self_attn.k_norm.weight", arch->head_width));
    }
done:
    return status;
}

static mb_status params_add_ffn(mb_params *params, const mb_arch *arch, int64_t block)
{
    mb_status status = MB_OK;
    const int64_t d = arch->width, f = mb_arch_dense_ffn(arch);
    MB_TRY(params_add2(params, block, "mlp.gate_proj.weight", f, d));
    MB_TRY(params_add2(params, block, "mlp.up_proj.weight", f, d));
    MB_TRY(params_add2(params, block, "mlp.down_proj.weight", d, f));
done:
    return status;
}

static mb_status params_add_experts(mb_params *params, const mb_arch *arch, int64_t block)
{
    mb_status status = MB_OK;
    char text[96];
    const int64_t d = arch->width, f = arch->ffn;
    const mb_family_facts *names = mb_arch_facts(arch);
    const char *const parts[3] = {names->gate, names->up, names->down};
    snprintf(text, sizeof text, "%s.gate.weight", names->moe);
    MB_TRY(params_add2(params, block, text, mb_arch_gates(arch), d));
    if (arch->router_bias) {
        snprintf(text, sizeof text, "%s.gate." MB_PARAMS_ROUTER_BIAS, names->moe);
        MB_TRY(params_add1(params, block, text, mb_arch_gates(arch)));
        params->list[params->count - 1].is_carried = true;
    }
    for (int64_t e = 0; e < arch->experts; e++)
        for (int i = 0; i < 3; i++) {
            snprintf(text, sizeof text, "%s.experts.%lld.%s.weight", names->moe, (long long)e, parts[i]);
            MB_TRY(params_add2(params, block, text, i == 2 ? d : f, i == 2 ? f : d));
        }
done:
    return status;
}

mb_status mb_params_create_empty(int64_t layers, mb_ops *ops, mb_params **out_params)
{
    mb_status status = MB_OK;
    mb_params *params = NULL;
    MB_NEW(params);
    params->ops = ops;
    params->layers = layers;
    params->lowest = layers + 1;
    MB_NEW_ARRAY(params->frozen, layers + 2);
    *out_params = params;
    params = NULL;
done:
    mb_params_destroy(&params);
    return status;
}

mb_status mb_params_create(const mb_arch *arch, mb_ops *ops, mb_params **out_params)
{
    mb_status status = MB_OK;
    mb_params *params = NULL;
    MB_TRY(mb_params_create_empty(arch->layers, ops, &params));
    MB_TRY(params_add2(params, MB_PARAMS_EMBEDDING, "model.embed_tokens.weight", arch->vocab, arch->width));
    for (int64_t i = 0; i < arch->layers; i++) {
        MB_TRY(params_add1(params, i, "input_layernorm.weight", arch->width));
        MB_TRY(params_add_attention(params, arch, i));
        MB_TRY(params_add1(params, i, "post_attention_layernorm.weight", arch->width));
        MB_TRY(mb_arch_is_moe(arch, i) ? params_add_experts(params, arch, i)
                                       : params_add_ffn(params, arch, i));
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
    mb_params_shard_destroy(&p->sharded);
    mb_window_destroy(&p->shared);
    for (int64_t b = 0; p->frozen != NULL && b < p->layers + 2; b++) mb_buffer_destroy(&p->frozen[b]);
    mb_buffer_destroy(&p->trained);
    mb_buffer_destroy(&p->carried);
    mb_staging_destroy(&p->staging);
    mb_free(p->frozen);
    mb_free(p->sorted);
    mb_free(p->list);
    mb_free(p);
    *params = NULL;
}

/* ---- 2. which train ---- */

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

/* Decide what a parameter is kept in. */
static void params_choose_storage(const mb_params *params, mb_param *param)
{
    const bool in_layer = mb_params_is_in_layer(params, param);
    param->value.dtype = MB_F32;
    param->bits = param->is_packed ? 4 : 0;
    if (param->is_packed) param->value.dtype = MB_U8;
    if (param->is_packed) return;
    if (param->trained || param->value.dims != 2 || mb_params_choose_is_router(param) ||
        mb_params_choose_is_lora(param))
        return;
    param->value.dtype = params->frozen_dtype;
    if (params->frozen_bits == 0 || !in_layer) return;
    param->value.dtype = params->frozen_bits == 8 ? MB_I8 : MB_U8;
    param->bits = params->frozen_bits;
    param->group = params->group;
}

mb_status mb_params_choose(mb_params *params, const char *patterns)
{
    mb_status status = MB_OK;
    MB_TRY(mb_params_choose_apply(params->list, params->count, patterns));
    MB_TRY(params_sort(params));
    params->trained_count = params->carried_count = 0;
    params->lowest = params->layers + 1;
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        param->trained = param->trained && !param->is_carried;
        if (param->trained && param->is_packed)
            MB_RAISE(MB_EUSAGE,
                     "%s is kept in 4 bits in the model's folder and cannot train; train an adapter over it "
                     "(training.peft_mode=lora), or the model it was quantised from",
                     param->name);
        param->flat = param->trained ? params->trained_count : -1;
        params_choose_storage(params, param);
        if (param->is_carried) params->carried_count += param->value.shape[0];
        if (!param->trained) continue;
        params->trained_count += param->value.shape[0] * param->value.shape[1];
        if (param->block < params->lowest) params->lowest = param->block;
    }
done:
    return status;
}

/* ---- 3. memory ---- */

static size_t params_lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Bytes of one frozen tensor in its block's buffer, and of its scales: whole 64-byte lines. */
static size_t params_room(const mb_param *param, size_t *out_scale)
{
    const int64_t n = param->value.shape[0], k = param->value.shape[1];
    *out_scale = 0;
    if (param->value.dtype != MB_I8 && param->value.dtype != MB_U8)
        return params_lines((size_t)(n * k) * mb_dtype_bytes(param->value.dtype));
    *out_scale = params_lines((size_t)(n * mb_quantise_groups(k, param->group)) * sizeof(float));
    return params_lines((size_t)(n * mb_quantise_row_bytes(k, param->bits)));
}

size_t mb_params_bytes(const mb_param *param)
{
    size_t scale, value;
    if (param->trained || param->is_carried)
        return (size_t)(param->value.shape[0] * param->value.shape[1]) * sizeof(float);
    value = params_room(param, &scale);
    return value + scale;
}

/* Offsets of a block's frozen tensors in its memory; returns their bytes. */
static size_t params_lay_out(mb_params *params, int64_t block)
{
    size_t bytes = 0, scale;
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (param->block != block || param->is_carried) continue;
        param->bytes = mb_params_bytes(param);
        if (param->trained) continue;
        param->at = bytes;
        param->scale_at = params_room(param, &scale);
        bytes += param->bytes;
    }
    return bytes;
}

/* Point a parameter's values (and scales) into memory. */
static void params_point(mb_param *param, char *data)
{
    param->value.data = data;
    param->scale = param->bytes > param->scale_at && !param->trained ? data + param->scale_at : NULL;
}

/* Point a block's frozen tensors into memory. */
static void params_point_block(mb_params *params, int64_t block, char *data)
{
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (param->block == block && !param->trained && !param->is_carried)
            params_point(param, data + param->at);
    }
}

static bool params_is_quantised(const mb_param *param)
{
    return param->value.dtype == MB_I8 || param->value.dtype == MB_U8;
}

static void params_init_weight(mb_param *param)
{
    const int64_t n = param->value.shape[0], k = param->value.shape[1];
    if (!params_is_quantised(param)) {
        mb_weight_init(&param->weight, param->value);
        return;
    }
    const mb_tensor scale = mb_tensor_view2(MB_F32, param->scale, n, mb_quantise_groups(k, param->group));
    mb_tensor value = param->value;
    value.shape[1] = mb_quantise_row_bytes(k, param->bits);
    mb_weight_init_quantised(&param->weight, value, param->bits, k, param->group, scale);
}

void mb_params_store(mb_params *params, mb_dtype dtype, int bits, int64_t group)
{
    assert(!params->is_sealed && (dtype == MB_F32 || dtype == MB_BF16));
    params->frozen_dtype = dtype;
    params->frozen_bits = bits;
    params->group = group;
}

static bool params_has_ranks(const mb_params *params)
{
    return params->comm != NULL && mb_comm_size(params->comm) > 1;
}

void mb_params_spread(mb_params *params, mb_comm *comm, bool shard, bool share)
{
    assert(!params->is_sealed);
    params->comm = comm;
    params->shard = shard && params_has_ranks(params);
    params->share = share && !params->shard && comm != NULL && mb_comm_largest_node(comm) > 1 &&
                    !mb_ops_is_device(params->ops);
}

/* What is carried: zeros, until somebody says otherwise. */
static mb_status params_allocate_carried(mb_params *params)
{
    mb_status status = MB_OK;
    const size_t bytes = (size_t)params->carried_count * sizeof(float);
    size_t at = 0;
    if (bytes == 0) goto done;
    MB_TRY(mb_buffer_create(mb_ops_allocator(params->ops), bytes, &params->carried));
    MB_TRY(mb_ops_zero(params->ops, params->carried->data, bytes));
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (!param->is_carried) continue;
        param->value.data = (char *)params->carried->data + at;
        param->bytes = mb_tensor_bytes(&param->value);
        at += param->bytes;
    }
done:
    return status;
}

/* Own memory of this process for what is not spread. */
static mb_status params_allocate(mb_params *params)
{
    mb_status status = MB_OK;
    const mb_allocator *allocator = mb_ops_allocator(params->ops);
    if (mb_ops_is_device(params->ops)) MB_TRY(mb_staging_create(params->ops, &params->staging));
    MB_TRY(params_allocate_carried(params));
    if (params->trained_count > 0 && !params->shard)
        MB_TRY(mb_buffer_create(allocator, (size_t)params->trained_count * sizeof(float), &params->trained));
    for (int64_t b = -1; b <= params->layers; b++) {
        const size_t bytes = params_lay_out(params, b);
        params->shared_bytes += bytes;
        if (bytes == 0 || params->shard || params->share) continue;
        MB_TRY(mb_buffer_create(allocator, bytes, &params->frozen[b + 1]));
        params_point_block(params, b, params->frozen[b + 1]->data);
    }
done:
    return status;
}

/* Frozen tensors into the node's memory. Collective. */
static mb_status params_share(mb_params *params)
{
    mb_status status = MB_OK;
    char *base = NULL;
    const bool is_first = mb_comm_local_rank(params->comm) == 0;
    MB_TRY(mb_window_create_shared(params->comm, params->shared_bytes, (void **)&base, &params->shared));
    for (int64_t b = -1; b <= params->layers; b++) {
        params_point_block(params, b, base);
        for (int64_t i = 0; i < params->count; i++)
            if (params->list[i].block == b && !params->list[i].trained && !params->list[i].is_carried)
                base += params->list[i].bytes;
    }
    for (int64_t i = 0; i < params->count; i++)
        params->list[i].is_elsewhere = !is_first && !params->list[i].trained && !params->list[i].is_carried;
done:
    return status;
}

mb_status mb_params_seal(mb_params *params, const char *patterns)
{
    mb_status status;
    assert(!params->is_sealed && params->ops != NULL);
    status = mb_params_choose(params, patterns);
    if (status == MB_OK) status = params_allocate(params);
    if (params->comm != NULL) status = mb_comm_agree(params->comm, status);
    MB_TRY(status);
    if (params->share) MB_TRY(params_share(params));
    if (params->shard)
        MB_TRY(mb_params_shard_create(params->comm, params->ops, params->list, params->count, params->layers,
                                      &params->sharded));
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        param->shard = param->is_carried ? NULL : params->sharded;
        param->staging = params->staging;
        if (param->trained && params->trained != NULL)
            param->value.data = (float *)params->trained->data + param->flat;
        if (param->value.dims == 2) params_init_weight(param);
    }
    params->is_sealed = true;
done:
    return status;
}

mb_status mb_params_filled(mb_params *params)
{
    if (params->sharded != NULL) return mb_params_shard_sync(params->sharded);
    return params->shared != NULL ? mb_window_sync(params->shared) : MB_OK;
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

bool mb_params_is_in_layer(const mb_params *params, const mb_param *param)
{
    return param->block >= 0 && param->block < params->layers;
}

mb_status mb_params_acquire(mb_params *params, int64_t block)
{
    assert(block >= MB_PARAMS_EMBEDDING && block <= params->layers);
    return params->sharded != NULL ? mb_params_shard_acquire(params->sharded, block) : MB_OK;
}

void mb_params_release(mb_params *params, int64_t block)
{
    assert(block >= MB_PARAMS_EMBEDDING && block <= params->layers);
    if (params->sharded != NULL) mb_params_shard_release(params->sharded, block);
}

int64_t mb_params_trained_count(const mb_params *params)
{
    return params->trained_count;
}

float *mb_params_trained(mb_params *params)
{
    return params->trained != NULL ? params->trained->data : NULL;
}

float *mb_params_owned(mb_params *params, int64_t first)
{
    if (params->sharded != NULL) return mb_params_shard_owned(params->sharded, first);
    return params->trained != NULL ? (float *)params->trained->data + first : NULL;
}

mb_status mb_params_download(mb_params *params, int64_t first, int64_t n, float *host)
{
    mb_status status = MB_OK;
    if (n == 0) goto done;
    const float *values = mb_params_owned(params, first);
    if (params->staging != NULL)
        MB_TRY(mb_staging_get(params->staging, values, (size_t)n * sizeof *host, host));
    else
        memcpy(host, values, (size_t)n * sizeof *host);
done:
    return status;
}

mb_status mb_params_upload(mb_params *params, int64_t first, int64_t n, const float *host)
{
    mb_status status = MB_OK;
    if (n == 0) goto done;
    float *values = mb_params_owned(params, first);
    if (params->staging != NULL)
        MB_TRY(mb_staging_put(params->staging, host, (size_t)n * sizeof *host, values));
    else
        memcpy(values, host, (size_t)n * sizeof *host);
done:
    return status;
}

int64_t mb_params_carried_count(const mb_params *params)
{
    return params->carried_count;
}

mb_status mb_params_carried_get(const mb_params *params, float *host)
{
    const size_t bytes = (size_t)params->carried_count * sizeof *host;
    if (bytes == 0) return MB_OK;
    if (params->staging != NULL) return mb_staging_get(params->staging, params->carried->data, bytes, host);
    memcpy(host, params->carried->data, bytes);
    return MB_OK;
}

mb_status mb_params_carried_set(mb_params *params, const float *host)
{
    const size_t bytes = (size_t)params->carried_count * sizeof *host;
    if (bytes == 0) return MB_OK;
    if (params->staging != NULL) return mb_staging_put(params->staging, host, bytes, params->carried->data);
    memcpy(params->carried->data, host, bytes);
    return MB_OK;
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

uint64_t mb_params_version(const mb_params *params)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < params->count; i++) sum += params->list[i].weight.version;
    return sum;
}

mb_status mb_params_sync(mb_params *params)
{
    mb_params_changed(params);
    return params->sharded != NULL ? mb_params_shard_sync(params->sharded) : MB_OK;
}

void mb_params_set_sink(mb_params *params, const mb_params_sink *opt_sink)
{
    params->sink = opt_sink;
    mb_params_bind_gradient(params, NULL);
}

bool mb_params_has_sink(const mb_params *params)
{
    return params->sink != NULL;
}

int64_t mb_params_block_trained(const mb_params *params, int64_t block, int64_t *out_first)
{
    int64_t n = 0;
    *out_first = 0;
    for (int64_t i = 0; i < params->count; i++) {
        const mb_param *param = &params->list[i];
        if (param->block != block || !param->trained) continue;
        if (n == 0) *out_first = param->flat;
        n += mb_tensor_count(&param->value);
    }
    return n;
}

/* Whether a block's gradients wait to be bound or given away. */
static bool params_is_bound(const mb_params *params, int64_t block, bool *out_trains)
{
    *out_trains = false;
    for (int64_t i = 0; i < params->count; i++) {
        const mb_param *param = &params->list[i];
        if (param->block != block || !param->trained) continue;
        *out_trains = true;
        return param->gradient.data != NULL;
    }
    return false;
}

static void params_bind_block(mb_params *params, int64_t block, float *gradient)
{
    int64_t first;
    mb_params_block_trained(params, block, &first);
    for (int64_t i = 0; i < params->count; i++) {
        mb_param *param = &params->list[i];
        if (param->block == block && param->trained)
            param->gradient.data = gradient != NULL ? gradient + (param->flat - first) : NULL;
    }
}

mb_status mb_params_gradient_begin(mb_params *params, int64_t block)
{
    mb_status status = MB_OK;
    float *room = NULL;
    bool trains;
    if (params->sink == NULL || params_is_bound(params, block, &trains) || !trains) goto done;
    MB_TRY(params->sink->room(params->sink->context, block, &room));
    params_bind_block(params, block, room);
done:
    return status;
}

mb_status mb_params_gradient_end(mb_params *params, int64_t block)
{
    bool trains;
    if (params->sink == NULL || !params_is_bound(params, block, &trains)) return MB_OK;
    params_bind_block(params, block, NULL);
    return params->sink->complete(params->sink->context, block);
}

bool mb_params_is_sharded(const mb_params *params)
{
    return params->sharded != NULL;
}

bool mb_params_is_shared(const mb_params *params)
{
    return params->shared != NULL;
}

const char *mb_params_place(const mb_params *params)
{
    return params->sharded != NULL  ? "weights cut over the ranks"
           : params->shared != NULL ? "frozen weights once per node"
                                    : "weights in each process";
}

mb_status mb_params_describe_storage(const mb_params *params, mb_str *text)
{
    mb_status status = MB_OK;
    if (params->frozen_bits != 0)
        MB_TRY(mb_str_add_format(text, "model.quantize = int%d, groups of %lld\n", params->frozen_bits,
                                 (long long)params->group));
done:
    return status;
}

mb_params_bytes_used mb_params_used(const mb_params *params)
{
    mb_params_bytes_used used = {0};
    const size_t carried = params->carried != NULL ? params->carried->bytes : 0;
    if (params->sharded != NULL) {
        used.frozen = mb_params_shard_frozen_bytes(params->sharded);
        used.trained = mb_params_shard_window_bytes(params->sharded) - used.frozen;
        used.frozen += carried;
        used.slots = mb_params_shard_slot_peak_bytes(params->sharded);
        return used;
    }
    used.trained = params->trained != NULL ? params->trained->bytes : 0;
    used.frozen = params->shared_bytes;
    if (params->shared != NULL) used.frozen /= (size_t)mb_comm_local_size(params->comm);
    used.frozen += carried;
    return used;
}

bool mb_params_is_ahead(const mb_params *params)
{
    return params->sharded != NULL && mb_params_shard_is_ahead(params->sharded);
}

void mb_params_set_ahead(mb_params *params)
{
    if (params->sharded != NULL) mb_params_shard_set_ahead(params->sharded);
}

int64_t mb_params_lowest_trained(const mb_params *params)
{
    return params->lowest;
}
