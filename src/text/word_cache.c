/* word_cache: the ids of short words seen before.
 *
 * 1. pieces  2. get and put
 */
#include "text/word_cache.h"

#include "base/memory.h"

/* 1. pieces */

mb_status mb_word_pieces_add(mb_word_pieces *pieces, uint32_t id, size_t length)
{
    if (pieces->count == pieces->capacity) {
        int64_t capacity = 2 * pieces->capacity + 64;
        mb_word_piece *data = mb_realloc(pieces->data, (size_t)capacity, sizeof *data);
        if (data == NULL) return MB_ENOMEM;
        pieces->data = data;
        pieces->capacity = capacity;
    }
    pieces->data[pieces->count++] = (mb_word_piece){.id = id, .length = (uint32_t)length};
    return MB_OK;
}

void mb_word_pieces_destroy(mb_word_pieces *pieces)
{
    mb_free(pieces->data);
    *pieces = (mb_word_pieces){0};
}

/* 2. get and put */

mb_status mb_word_cache_get(const mb_word_cached *slot, mb_ids *ids, mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    MB_TRY(mb_ids_append_all(ids, slot->ids, slot->count));
    for (int i = 0; opt_lengths != NULL && i < slot->count; i++)
        MB_TRY(mb_ids_append(opt_lengths, slot->lengths[i]));
done:
    return status;
}

mb_status mb_word_cache_put(mb_word_cached *opt_slot, const char *word, size_t n,
                            const mb_word_pieces *pieces, mb_ids *ids, mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    if (opt_slot != NULL && pieces->count <= MB_WORD_CACHE_IDS) {
        opt_slot->n = (uint8_t)n;
        opt_slot->count = (uint8_t)pieces->count;
        memcpy(opt_slot->word, word, n);
        for (int64_t i = 0; i < pieces->count; i++) {
            opt_slot->ids[i] = pieces->data[i].id;
            opt_slot->lengths[i] = (uint8_t)pieces->data[i].length;
        }
    }
    for (int64_t i = 0; i < pieces->count; i++) {
        MB_TRY(mb_ids_append(ids, pieces->data[i].id));
        if (opt_lengths != NULL) MB_TRY(mb_ids_append(opt_lengths, pieces->data[i].length));
    }
done:
    return status;
}
