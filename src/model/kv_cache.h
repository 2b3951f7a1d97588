/* kv_cache: keys and values of the tokens a model has seen, per layer and sequence, for generation.
 *
 * Layer: model.  Uses: arch, ops.
 *
 * A slot is one sequence's run of rows: equal runs at first, others when the caller places them. Rows are
 * written by the attention blocks of a forward pass whose batch names the cache (mb_lm_batch.opt_cache);
 * keys are rotated. The pass adds the new rows to `length` once they are queued. Keys and values lie in the
 * backend's memory, the books about them (first, room, length) in the host's. Members of a fused model have
 * one each, in a chain: destroy, place, cut and copy do all of it; rows, write and grow do that one alone.
 */
#ifndef MB_KV_CACHE_H
#define MB_KV_CACHE_H

#include "model/arch.h"
#include "ops/ops.h"

typedef struct mb_kv_cache {
    int64_t layers, slots, rows;
    mb_tensor *k, *v;               /* [L] of [rows, G, Dh] in the act dtype */
    int32_t *first, *room, *length; /* [slots] first row, rows there are, rows in use */
    mb_buffer *data;
    mb_ops *ops;              /* borrowed */
    struct mb_kv_cache *next; /* of the next member of a fused model, with the same slots; NULL: none */
} mb_kv_cache;

/* `rows` rows in all, shared out equally at first. */
mb_status mb_kv_cache_create(const mb_arch *arch, mb_ops *ops, mb_dtype dtype, int64_t slots, int64_t rows,
                             mb_kv_cache **out_cache);
void mb_kv_cache_destroy(mb_kv_cache **cache);
size_t mb_kv_cache_plan(const mb_arch *arch, mb_dtype dtype, int64_t rows); /* bytes */
/* Give a slot rows first..first+room instead of those it has; it is empty then. Slots in use must not
 * overlap (the caller's care). */
void mb_kv_cache_place(mb_kv_cache *cache, int64_t slot, int64_t first, int64_t room);
/* Forget rows of a slot from `length` on (0: all). */
void mb_kv_cache_cut(mb_kv_cache *cache, int64_t slot, int64_t length);
/* The rows of slot `from` become those of slot `to` (for many samples of one prompt). Queued. */
mb_status mb_kv_cache_copy(mb_kv_cache *cache, int64_t from, int64_t to);

/* Where the rows of a pass go: segment s (rows offsets[s]..offsets[s+1]) to the end of slot[s]. rows [T] of
 * the cache, the same in all layers; first and count [S] as attention takes them, new rows counted. All in
 * the host's memory. MB_ERANGE when a slot is full. */
mb_status mb_kv_cache_rows(const mb_kv_cache *cache, const int32_t *offsets, const int32_t *slot,
                           int64_t segments, int32_t *out_rows, int32_t *out_first, int32_t *out_count);
/* New rows k and v [T, G, Dh] of a layer to their places; rows as ops take them. Queued. */
mb_status mb_kv_cache_write(mb_kv_cache *cache, int64_t layer, const mb_tensor *k, const mb_tensor *v,
                            const int32_t *rows);
/* After all layers were written: n more rows count. */
void mb_kv_cache_grow(mb_kv_cache *cache, int64_t slot, int64_t n);

#endif
