/* bpe_encode: a word -> ids: cache, first symbols, merges by a scan (short words) or a queue (long ones).
 *
 * 1. work  2. first symbols  3. merging short words  4. merging long words  5. cache and encode
 */
#include <string.h>

#include "base/memory.h"
#include "text/bpe_model.h"
#include "text/normalize.h"
#include "text/word_cache.h"

#define BLANK      "\xE2\x96\x81" /* U+2581 */
#define SHORT_WORD 40             /* symbols; beyond it the queue is faster than scans */

typedef struct symbol {
    uint32_t id;
    uint32_t length;        /* bytes of the word; 0: merged into the one before */
    int32_t previous, next; /* -1 none */
} symbol;

typedef struct candidate {
    uint64_t order; /* rank << 32 | place of the left symbol: the smallest goes first */
    uint32_t id;
} candidate;

struct mb_bpe_work {
    symbol *symbols;
    int64_t symbol_count;
    int64_t symbol_capacity;
    candidate *heap;
    int64_t heap_count;
    int64_t heap_capacity;
    mb_word_cached *cache;
    mb_str text; /* a word in printable characters */
};

/* 1. work */

mb_status mb_bpe_work_create(mb_bpe_work **out_work)
{
    mb_status status = MB_OK;
    mb_bpe_work *work = NULL;
    MB_NEW(work);
    MB_NEW_ARRAY(work->cache, MB_WORD_CACHE_SLOTS);
    *out_work = work;
    work = NULL;
done:
    mb_bpe_work_destroy(&work);
    return status;
}

void mb_bpe_work_destroy(mb_bpe_work **work)
{
    if (*work == NULL) return;
    mb_free((*work)->symbols);
    mb_free((*work)->heap);
    mb_free((*work)->cache);
    mb_str_destroy(&(*work)->text);
    MB_FREE(*work);
}

/* 2. first symbols */

static mb_status reserve_symbols(mb_bpe_work *work, int64_t n)
{
    if (n <= work->symbol_capacity) return MB_OK;
    int64_t capacity = n + n / 2 + 64;
    symbol *symbols = mb_realloc(work->symbols, (size_t)capacity, sizeof *symbols);
    if (symbols == NULL) return MB_ENOMEM;
    work->symbols = symbols;
    work->symbol_capacity = capacity;
    return MB_OK;
}

static void add_symbol(mb_bpe_work *work, uint32_t id, size_t length)
{
    int64_t i = work->symbol_count++;
    work->symbols[i] =
        (symbol){.id = id, .length = (uint32_t)length, .previous = (int32_t)i - 1, .next = (int32_t)i + 1};
}

/* Unknown characters wait here for the next known one: they may be fused, or dropped when there is no unknown
 * token. */
typedef struct unknown {
    size_t length;  /* bytes waiting, 0 none */
    size_t dropped; /* bytes without any symbol */
} unknown;

static void flush_unknown(const mb_bpe *bpe, mb_bpe_work *work, unknown *u)
{
    if (u->length > 0) add_symbol(work, bpe->unk_id, u->length);
    u->length = 0;
}

static mb_status add_unknown(const mb_bpe *bpe, mb_bpe_work *work, size_t length, unknown *u)
{
    if (!bpe->has_unk) {
        u->dropped += length;
        return MB_OK;
    }
    if (bpe->unk_id == MB_BPE_NONE)
        return mb_fail(MB_EDATA, "the text has a character that is not in the tokenizer's vocabulary, and "
                                 "neither is its unk_token");
    if (!bpe->fuse_unk) flush_unknown(bpe, work, u);
    u->length += length;
    return MB_OK;
}

/* All bytes of a character as "<0xNN>" tokens; false when one of them has none. */
static bool add_fallback(const mb_bpe *bpe, mb_bpe_work *work, const char *bytes, size_t n)
{
    if (!bpe->byte_fallback) return false;
    for (size_t i = 0; i < n; i++)
        if (bpe->byte_id[(unsigned char)bytes[i]] == MB_BPE_NONE) return false;
    for (size_t i = 0; i < n; i++) add_symbol(work, bpe->byte_id[(unsigned char)bytes[i]], 1);
    return true;
}

/* A character with its prefix and suffix, as the vocabulary has it, in work->text. */
static mb_status add_affixes(const mb_bpe *bpe, mb_bpe_work *work, const char *bytes, size_t n, bool is_first,
                             bool is_last)
{
    mb_status status = MB_OK;
    char printable[4];
    mb_str_reset(&work->text);
    if (!is_first && bpe->prefix != NULL) MB_TRY(mb_str_add(&work->text, bpe->prefix));
    if (bpe->is_byte_level)
        MB_TRY(mb_str_append(&work->text, printable,
                             mb_normalize_encode(mb_bpe_byte_character((unsigned char)*bytes), printable)));
    else
        MB_TRY(mb_str_append(&work->text, bytes, n));
    if (is_last && bpe->suffix != NULL) MB_TRY(mb_str_add(&work->text, bpe->suffix));
done:
    return status;
}

/* The same as make_symbols, for a model with a prefix or a suffix. */
static mb_status make_affixed(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n)
{
    mb_status status = MB_OK;
    unknown u = {0};
    uint32_t c;
    work->symbol_count = 0;
    for (size_t i = 0, length; i < n; i += length) {
        length = bpe->is_byte_level ? 1 : mb_normalize_decode(word + i, &c);
        MB_TRY(add_affixes(bpe, work, word + i, length, i == 0, i + length == n));
        MB_TRY(reserve_symbols(work, work->symbol_count + (int64_t)work->text.length + 2));
        uint32_t id = mb_bpe_vocab_find(&bpe->vocab, mb_str_text(&work->text), work->text.length);
        if (id != MB_BPE_NONE) {
            flush_unknown(bpe, work, &u);
            add_symbol(work, id, length + u.dropped);
            u.dropped = 0;
        } else if (!add_fallback(bpe, work, mb_str_text(&work->text), work->text.length)) {
            MB_TRY(add_unknown(bpe, work, length, &u));
        }
    }
    flush_unknown(bpe, work, &u);
    if (work->symbol_count > 0) work->symbols[work->symbol_count - 1].next = -1;
done:
    return status;
}

static mb_status make_symbols(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n)
{
    mb_status status = MB_OK;
    unknown u = {0};
    uint32_t c;
    work->symbol_count = 0;
    MB_TRY(reserve_symbols(work, (int64_t)n));
    for (size_t i = 0, length; i < n; i += length) {
        length = bpe->is_byte_level ? 1 : mb_normalize_decode(word + i, &c);
        uint32_t id = bpe->is_byte_level ? bpe->byte_id[(unsigned char)word[i]]
                                         : mb_bpe_vocab_find(&bpe->vocab, word + i, length);
        if (id != MB_BPE_NONE) {
            flush_unknown(bpe, work, &u);
            add_symbol(work, id, length + u.dropped);
            u.dropped = 0;
        } else if (bpe->is_byte_level || !add_fallback(bpe, work, word + i, length)) {
            MB_TRY(add_unknown(bpe, work, length, &u));
        }
    }
    flush_unknown(bpe, work, &u);
    if (work->symbol_count > 0) work->symbols[work->symbol_count - 1].next = -1;
done:
    return status;
}

/* 3. merging short words */

static void merge_short(const mb_bpe *bpe, mb_bpe_work *work)
{
    const mb_bpe_merge *merges[SHORT_WORD];
    symbol *s = work->symbols;
    int64_t n = work->symbol_count;
    for (int64_t i = 0; i + 1 < n; i++) merges[i] = mb_bpe_merges_find(&bpe->merges, s[i].id, s[i + 1].id);
    for (;;) {
        int64_t best = -1;
        for (int64_t i = 0; i + 1 < n; i++)
            if (merges[i] != NULL && (best < 0 || merges[i]->rank < merges[best]->rank)) best = i;
        if (best < 0) break;
        s[best].id = merges[best]->id;
        s[best].length += s[best + 1].length;
        n--;
        for (int64_t i = best + 1; i < n; i++) {
            s[i] = s[i + 1];
            merges[i - 1] = merges[i];
        }
        if (best > 0) merges[best - 1] = mb_bpe_merges_find(&bpe->merges, s[best - 1].id, s[best].id);
        if (best + 1 < n) merges[best] = mb_bpe_merges_find(&bpe->merges, s[best].id, s[best + 1].id);
    }
    work->symbol_count = n;
}

/* 4. merging long words */

static mb_status push_candidate(const mb_bpe *bpe, mb_bpe_work *work, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return MB_OK;
    const mb_bpe_merge *merge =
        mb_bpe_merges_find(&bpe->merges, work->symbols[left].id, work->symbols[right].id);
    if (merge == NULL) return MB_OK;
    if (work->heap_count == work->heap_capacity) {
        int64_t capacity = 2 * work->heap_capacity + 256;
        candidate *heap = mb_realloc(work->heap, (size_t)capacity, sizeof *heap);
        if (heap == NULL) return MB_ENOMEM;
        work->heap = heap;
        work->heap_capacity = capacity;
    }
    candidate *heap = work->heap;
    candidate c = {.order = (uint64_t)merge->rank << 32 | (uint32_t)left, .id = merge->id};
    int64_t i = work->heap_count++;
    for (; i > 0 && heap[(i - 1) / 4].order > c.order; i = (i - 1) / 4) heap[i] = heap[(i - 1) / 4];
    heap[i] = c;
    return MB_OK;
}

static candidate pop_candidate(mb_bpe_work *work)
{
    candidate *heap = work->heap, top = heap[0], last = heap[--work->heap_count];
    int64_t n = work->heap_count, i = 0;
    for (;;) {
        int64_t first = 4 * i + 1, best = first;
        if (first >= n) break;
        for (int64_t j = first + 1; j < first + 4 && j < n; j++)
            if (heap[j].order < heap[best].order) best = j;
        if (heap[best].order >= last.order) break;
        heap[i] = heap[best];
        i = best;
    }
    heap[i] = last;
    return top;
}

static mb_status merge_long(const mb_bpe *bpe, mb_bpe_work *work)
{
    mb_status status = MB_OK;
    symbol *s = work->symbols;
    work->heap_count = 0;
    for (int64_t i = 0; i + 1 < work->symbol_count; i++)
        MB_TRY(push_candidate(bpe, work, (int32_t)i, (int32_t)i + 1));
    while (work->heap_count > 0) {
        candidate top = pop_candidate(work);
        int32_t left = (int32_t)(uint32_t)top.order, right = s[left].next;
        if (s[left].length == 0 || right < 0) continue;
        const mb_bpe_merge *merge = mb_bpe_merges_find(&bpe->merges, s[left].id, s[right].id);
        if (merge == NULL || merge->id != top.id) continue; /* out of date */
        s[left].id = top.id;
        s[left].length += s[right].length;
        s[left].next = s[right].next;
        s[right].length = 0;
        if (s[left].next >= 0) s[s[left].next].previous = left;
        MB_TRY(push_candidate(bpe, work, s[left].previous, left));
        MB_TRY(push_candidate(bpe, work, left, s[left].next));
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < work->symbol_count; i++)
        if (s[i].length != 0) s[kept++] = s[i];
    work->symbol_count = kept;
done:
    return status;
}

/* 5. cache and encode */

static mb_status append_symbols(const mb_bpe_work *work, mb_ids *ids, mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < work->symbol_count; i++) {
        MB_TRY(mb_ids_append(ids, work->symbols[i].id));
        if (opt_lengths != NULL) MB_TRY(mb_ids_append(opt_lengths, work->symbols[i].length));
    }
done:
    return status;
}

/* ignore_merges: the whole word as one token, when there is such a token. */
static mb_status find_whole(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n,
                            uint32_t *out_id)
{
    mb_status status = MB_OK;
    if (!bpe->is_byte_level) {
        *out_id = mb_bpe_vocab_find(&bpe->vocab, word, n);
        return MB_OK;
    }
    mb_str_reset(&work->text);
    for (size_t i = 0; i < n; i++) {
        char bytes[4];
        MB_TRY(mb_str_append(&work->text, bytes,
                             mb_normalize_encode(mb_bpe_byte_character((unsigned char)word[i]), bytes)));
    }
    *out_id = mb_bpe_vocab_find(&bpe->vocab, mb_str_text(&work->text), work->text.length);
done:
    return status;
}

/* The word's ids into work->symbols. */
static mb_status encode_symbols(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n)
{
    mb_status status = MB_OK;
    if (bpe->ignore_merges) {
        uint32_t id = MB_BPE_NONE;
        MB_TRY(find_whole(bpe, work, word, n, &id));
        if (id != MB_BPE_NONE) {
            MB_TRY(reserve_symbols(work, 1));
            work->symbol_count = 0;
            add_symbol(work, id, n);
            return MB_OK;
        }
    }
    if (bpe->prefix != NULL || bpe->suffix != NULL)
        MB_TRY(make_affixed(bpe, work, word, n));
    else
        MB_TRY(make_symbols(bpe, work, word, n));
    if (work->symbol_count <= SHORT_WORD)
        merge_short(bpe, work);
    else
        MB_TRY(merge_long(bpe, work));
done:
    return status;
}

static void fill_cache(const mb_bpe_work *work, const char *word, size_t n, mb_word_cached *slot)
{
    if (work->symbol_count > MB_WORD_CACHE_IDS) return;
    slot->n = (uint8_t)n;
    slot->count = (uint8_t)work->symbol_count;
    memcpy(slot->word, word, n);
    for (int64_t i = 0; i < work->symbol_count; i++) {
        slot->ids[i] = work->symbols[i].id;
        slot->lengths[i] = (uint8_t)work->symbols[i].length;
    }
}

static mb_status encode_word(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n, mb_ids *ids,
                             mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    mb_word_cached *slot = mb_word_cache_slot(work->cache, word, n);
    if (slot != NULL && mb_word_cache_holds(slot, word, n)) return mb_word_cache_get(slot, ids, opt_lengths);
    MB_TRY(encode_symbols(bpe, work, word, n));
    if (slot != NULL) fill_cache(work, word, n, slot);
    MB_TRY(append_symbols(work, ids, opt_lengths));
done:
    return status;
}

mb_status mb_bpe_encode(const mb_bpe *bpe, mb_bpe_work *work, const char *word, size_t n, mb_ids *ids,
                        mb_ids *opt_lengths)
{
    mb_status status = MB_OK;
    if (n == 0) return MB_OK;
    if (!bpe->cuts_at_blank) return encode_word(bpe, work, word, n, ids, opt_lengths);
    /* No merge crosses from another character to U+2581, so the parts before each are words of their own. */
    size_t first = 0;
    const char *at = word;
    while ((at = memmem(at, n - (size_t)(at - word), BLANK, 3)) != NULL) {
        size_t i = (size_t)(at - word);
        if (i > first && !(i >= first + 3 && memcmp(at - 3, BLANK, 3) == 0)) {
            MB_TRY(encode_word(bpe, work, word + first, i - first, ids, opt_lengths));
            first = i;
        }
        at += 3;
    }
    MB_TRY(encode_word(bpe, work, word + first, n - first, ids, opt_lengths));
done:
    return status;
}
