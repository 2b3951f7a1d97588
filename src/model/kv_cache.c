/* kv_cache: one buffer, cut into [layer][k, v][row]. */
#include "model/kv_cache.h"

#include <assert.h>

size_t mb_kv_cache_plan(const mb_arch *arch, mb_dtype dtype, int64_t rows)
{
    return (size_t)(2 * arch->layers * rows * arch->kv_heads * arch->head_width) * mb_dtype_bytes(dtype);
}

mb_status mb_kv_cache_create(const mb_arch *arch, mb_ops *ops, mb_dtype dtype, int64_t slots, int64_t rows,
                             mb_kv_cache **out_cache)
{
    mb_status status = MB_OK;
    mb_kv_cache *cache = NULL;
    MB_NEW(cache);
    cache->ops = ops;
    cache->layers = arch->layers;
    cache->slots = slots;
    cache->rows = rows;
    MB_NEW_ARRAY(cache->k, arch->layers);
    MB_NEW_ARRAY(cache->v, arch->layers);
    MB_NEW_ARRAY(cache->first, slots);
    MB_NEW_ARRAY(cache->room, slots);
    MB_NEW_ARRAY(cache->length, slots);
    if (rows > INT32_MAX)
        MB_RAISE(MB_ERANGE, "generation: %lld rows of kept keys; at most %d are possible", (long long)rows,
                 INT32_MAX);
    for (int64_t s = 0; s < slots; s++) mb_kv_cache_place(cache, s, s * (rows / slots), rows / slots);
    const size_t bytes = mb_kv_cache_plan(arch, dtype, rows), one = bytes / (size_t)arch->layers / 2;
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), bytes, &cache->data));
    for (int64_t l = 0; l < arch->layers; l++) {
        char *at = (char *)cache->data->data + (size_t)l * 2 * one;
        cache->k[l] = mb_tensor_view3(dtype, at, rows, arch->kv_heads, arch->head_width);
        cache->v[l] = mb_tensor_view3(dtype, at + one, rows, arch->kv_heads, arch->head_width);
    }
    *out_cache = cache;
    cache = NULL;
done:
    mb_kv_cache_destroy(&cache);
    return status;
}

void mb_kv_cache_destroy(mb_kv_cache **cache)
{
    while (*cache != NULL) {
        mb_kv_cache *c = *cache;
        *cache = c->next;
        mb_buffer_destroy(&c->data);
        mb_free(c->k);
        mb_free(c->v);
        mb_free(c->first);
        mb_free(c->room);
        mb_free(c->length);
        mb_free(c);
    }
}

void mb_kv_cache_place(mb_kv_cache *cache, int64_t slot, int64_t first, int64_t room)
{
    assert(slot >= 0 && slot < cache->slots && first >= 0 && room >= 0 && first + room <= cache->rows);
    for (mb_kv_cache *c = cache; c != NULL; c = c->next) {
        c->first[slot] = (int32_t)first;
        c->room[slot] = (int32_t)room;
        c->length[slot] = 0;
    }
}

void mb_kv_cache_cut(mb_kv_cache *cache, int64_t slot, int64_t length)
{
    assert(slot >= 0 && slot < cache->slots && length >= 0 && length <= cache->length[slot]);
    for (mb_kv_cache *c = cache; c != NULL; c = c->next) c->length[slot] = (int32_t)length;
}

static mb_status copy_one(mb_kv_cache *cache, int64_t from, int64_t to)
{
    mb_status status = MB_OK;
    assert(from != to && from < cache->slots && to < cache->slots);
    assert(cache->length[from] <= cache->room[to]);
    const int64_t n = cache->length[from], source = cache->first[from], target = cache->first[to];
    for (int64_t l = 0; l < cache->layers; l++)
        for (int i = 0; i < 2; i++) {
            const mb_tensor *rows = i == 0 ? &cache->k[l] : &cache->v[l];
            const mb_tensor a = mb_tensor_rows(rows, source, n), b = mb_tensor_rows(rows, target, n);
            MB_TRY(mb_ops_copy(cache->ops, a.data, mb_tensor_bytes(&a), b.data));
        }
    cache->length[to] = cache->length[from];
done:
    return status;
}

mb_status mb_kv_cache_copy(mb_kv_cache *cache, int64_t from, int64_t to)
{
    mb_status status = MB_OK;
    for (mb_kv_cache *c = cache; c != NULL; c = c->next) MB_TRY(copy_one(c, from, to));
done:
    return status;
}

mb_status mb_kv_cache_rows(const mb_kv_cache *cache, const int32_t *offsets, const int32_t *slot,
                           int64_t segments, int32_t *out_rows, int32_t *out_first, int32_t *out_count)
{
    mb_status status = MB_OK;
    for (int64_t s = 0; s < segments; s++) {
        const int32_t one = slot[s], n = offsets[s + 1] - offsets[s], length = cache->length[one];
        if (length + n > cache->room[one])
            MB_RAISE(MB_ERANGE, "generation: %lld tokens do not fit the %lld rows of their slot",
                     (long long)(length + n), (long long)cache->room[one]);
        out_first[s] = cache->first[one];
        out_count[s] = length + n;
        for (int32_t i = 0; i < n; i++) out_rows[offsets[s] + i] = cache->first[one] + length + i;
    }
done:
    return status;
}

mb_status mb_kv_cache_write(mb_kv_cache *cache, int64_t layer, const mb_tensor *k, const mb_tensor *v,
                            const int32_t *rows)
{
    mb_status status = MB_OK;
    assert(k->dtype == cache->k[layer].dtype && v->dtype == k->dtype);
    MB_TRY(mb_ops_scatter_rows(cache->ops, k, rows, &cache->k[layer]));
    MB_TRY(mb_ops_scatter_rows(cache->ops, v, rows, &cache->v[layer]));
done:
    return status;
}

void mb_kv_cache_grow(mb_kv_cache *cache, int64_t slot, int64_t n)
{
    cache->length[slot] += (int32_t)n;
}
