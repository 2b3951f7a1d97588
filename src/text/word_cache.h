/* word_cache: the ids of short words seen before, one line of memory each.
 *
 * Layer: text.  Uses: base.
 *
 * A word always goes to the same place and pushes out what was there; what a model gives does not depend on
 * it.
 */
#ifndef MB_WORD_CACHE_H
#define MB_WORD_CACHE_H

#include <string.h>

#include "base/hash.h"
#include "text/tokenizer.h"

#define MB_WORD_CACHE_SLOTS (1u << 15)
#define MB_WORD_CACHE_BYTES 22
#define MB_WORD_CACHE_IDS   8

typedef struct mb_word_cached {
    uint8_t n;     /* bytes of the word, 0 empty */
    uint8_t count; /* ids */
    char word[MB_WORD_CACHE_BYTES];
    uint8_t lengths[MB_WORD_CACHE_IDS]; /* bytes of the word that each id stands for */
    uint32_t ids[MB_WORD_CACHE_IDS];
} mb_word_cached;

/* The place of a word in a cache of MB_WORD_CACHE_SLOTS; NULL when the word is too long for one. */
static inline mb_word_cached *mb_word_cache_slot(mb_word_cached *cache, const char *word, size_t n)
{
    return n <= MB_WORD_CACHE_BYTES ? &cache[mb_hash_u64(word, n, 0) & (MB_WORD_CACHE_SLOTS - 1)] : NULL;
}

static inline bool mb_word_cache_holds(const mb_word_cached *slot, const char *word, size_t n)
{
    return slot->n == n && memcmp(slot->word, word, n) == 0;
}

/* Append what a slot holds. */
mb_status mb_word_cache_get(const mb_word_cached *slot, mb_ids *ids, mb_ids *opt_lengths);

/* What a model makes of a word: ids, and how many bytes of the word each stands for. */
typedef struct mb_word_piece {
    uint32_t id, length;
} mb_word_piece;

/* A growing list of pieces; start zeroed. */
typedef struct mb_word_pieces {
    mb_word_piece *data;
    int64_t count, capacity;
} mb_word_pieces;
mb_status mb_word_pieces_add(mb_word_pieces *pieces, uint32_t id, size_t length);
void mb_word_pieces_destroy(mb_word_pieces *pieces);

/* Keep the pieces of a word in its slot (when they fit) and append them. */
mb_status mb_word_cache_put(mb_word_cached *opt_slot, const char *word, size_t n,
                            const mb_word_pieces *pieces, mb_ids *ids, mb_ids *opt_lengths);

#endif
