/* kv_cache: one buffer, cut into [layer][k, v][row]. */
#include "model/kv_cache.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"

size_t mb_kv_cache_plan(const mb_arch *arch, mb_dtype dtype, int64_t rows)
{
    return (size_t)(2 * arch->layers * rows * arch->kv_heads * arch->head_width) * mb_dtype_bytes(dtype);
}

mb_status mb_kv_cache_create(const mb_arch *arch, const mb_allocator *allocator, mb_dtype dtype,
                             int64_t slots, int64_t rows, mb_kv_cache **out_cache)
{
    mb_status status = MB_OK;
    mb_kv_cache *cache = NULL;
    MB_NEW(cache);
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
    MB_TRY(mb_buffer_create(allocator, bytes, &cache->data));
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
    mb_kv_cache *c = *cache;
    if (c == NULL) return;
    mb_buffer_destroy(&c->data);
    mb_free(c->k);
    mb_free(c->v);
    mb_free(c->first);
    mb_free(c->room);
    mb_free(c->length);
    mb_free(c);
    *cache = NULL;
}

void mb_kv_cache_place(mb_kv_cache *cache, int64_t slot, int64_t first, int64_t room)
{
    assert(slot >= 0 && slot < cache->slots && first >= 0 && room >= 0 && first + room <= cache->rows);
    cache->first[slot] = (int32_t)first;
    cache->room[slot] = (int32_t)room;
    cache->length[slot] = 0;
}

void mb_kv_cache_cut(mb_kv_cache *cache, int64_t slot, int64_t length)
{
    assert(slot >= 0 && slot < cache->slots && length >= 0 && length <= cache->length[slot]);
    cache->length[slot] = (int32_t)length;
}

static void cache_copy(const mb_tensor *from, int64_t from_row, mb_tensor *to, int64_t to_row, int64_t n)
{
    const size_t row = (size_t)(to->shape[1] * to->shape[2]) * mb_dtype_bytes(to->dtype);
    memcpy((char *)to->data + (size_t)to_row * row, (const char *)from->data + (size_t)from_row * row,
           (size_t)n * row);
}

void mb_kv_cache_copy(mb_kv_cache *cache, int64_t from, int64_t to)
{
    assert(from != to && from < cache->slots && to < cache->slots);
    assert(cache->length[from] <= cache->room[to]);
    for (int64_t l = 0; l < cache->layers; l++) {
        const int64_t source = cache->first[from], target = cache->first[to];
        cache_copy(&cache->k[l], source, &cache->k[l], target, cache->length[from]);
        cache_copy(&cache->v[l], source, &cache->v[l], target, cache->length[from]);
    }
    cache->length[to] = cache->length[from];
}

mb_status mb_kv_cache_write(mb_kv_cache *cache, int64_t layer, int64_t slot, const mb_tensor *k,
                            const mb_tensor *v, int64_t first, int64_t n)
{
    mb_status status = MB_OK;
    const int64_t length = cache->length[slot], row = cache->first[slot] + length;
    assert(k->dtype == cache->k[layer].dtype && v->dtype == k->dtype);
    if (length + n > cache->room[slot])
        MB_RAISE(MB_ERANGE, "generation: %lld tokens do not fit the %lld rows of their slot",
                 (long long)(length + n), (long long)cache->room[slot]);
    cache_copy(k, first, &cache->k[layer], row, n);
    cache_copy(v, first, &cache->v[layer], row, n);
done:
    return status;
}

void mb_kv_cache_grow(mb_kv_cache *cache, int64_t slot, int64_t n)
{
    cache->length[slot] += (int32_t)n;
}
