/* bpe_vocab: two hash tables: token text <-> id, and pair of ids -> merge.
 *
 * Layer: text.  Uses: base.
 */
#ifndef MB_BPE_VOCAB_H
#define MB_BPE_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"

#define MB_BPE_VOCAB_MAX_ID (1u << 24) /* ids must be below */

/* Texts of ids; both directions. Start zeroed. */
typedef struct mb_bpe_vocab {
    mb_str bytes;      /* all texts, each 0-terminated */
    uint64_t *starts;  /* per id: offset in bytes + 1; 0 unused */
    uint32_t *lengths; /* per id */
    int64_t count;     /* largest id + 1 */
    int64_t id_capacity;
    int64_t used;      /* ids in use */
    uint32_t *slots;   /* open addressing: id + 1, 0 empty */
    size_t slot_count; /* power of 2 */
} mb_bpe_vocab;
void mb_bpe_vocab_destroy(mb_bpe_vocab *vocab);
/* MB_EEXIST when the text or the id is there already (no message). */
mb_status mb_bpe_vocab_add(mb_bpe_vocab *vocab, const char *text, size_t n, uint32_t id);
/* All members of a "vocab" object: text -> id. Ids may have gaps, but none may be wildly large. */
mb_status mb_bpe_vocab_read(mb_bpe_vocab *vocab, json_t *object, const char *where);
uint32_t mb_bpe_vocab_find(const mb_bpe_vocab *vocab, const char *text, size_t n); /* UINT32_MAX if unknown */
const char *mb_bpe_vocab_text(const mb_bpe_vocab *vocab, uint32_t id, size_t *opt_length);

/* Merge of a pair of ids. */
typedef struct mb_bpe_merge {
    uint32_t left, right; /* left UINT32_MAX: empty slot */
    uint32_t rank;
    uint32_t id; /* of the merged token */
} mb_bpe_merge;

typedef struct mb_bpe_merges {
    mb_bpe_merge *slots;
    size_t slot_count; /* power of 2, at least twice the merges; 0: no merges */
} mb_bpe_merges;
mb_status mb_bpe_merges_create(mb_bpe_merges *merges, int64_t count);
void mb_bpe_merges_destroy(mb_bpe_merges *merges);
/* A pair that is there already gets the new rank and id. At most `count` pairs. */
void mb_bpe_merges_put(mb_bpe_merges *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

static inline size_t mb_bpe_merges_slot(uint32_t left, uint32_t right)
{
    uint64_t key = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 32);
}

/* NULL when the pair does not merge. */
static inline const mb_bpe_merge *mb_bpe_merges_find(const mb_bpe_merges *merges, uint32_t left,
                                                     uint32_t right)
{
    size_t mask = merges->slot_count - 1;
    for (size_t i = mb_bpe_merges_slot(left, right) & mask;; i = (i + 1) & mask) {
        const mb_bpe_merge *merge = &merges->slots[i];
        if (merge->left == left && merge->right == right) return merge;
        if (merge->left == UINT32_MAX) return NULL;
    }
}

#endif
