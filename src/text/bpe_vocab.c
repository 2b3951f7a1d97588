/* bpe_vocab: token texts and merges in open-addressing tables.
 *
 * 1. vocabulary  2. merges
 */
#include "text/bpe_vocab.h"

#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

/* 1. vocabulary */

void mb_bpe_vocab_destroy(mb_bpe_vocab *vocab)
{
    mb_str_destroy(&vocab->bytes);
    mb_free(vocab->starts);
    mb_free(vocab->lengths);
    mb_free(vocab->slots);
    *vocab = (mb_bpe_vocab){0};
}

static size_t first_slot(const mb_bpe_vocab *vocab, const char *text, size_t n)
{
    return (size_t)mb_hash_u64(text, n, 0) & (vocab->slot_count - 1);
}

static void put_slot(mb_bpe_vocab *vocab, uint32_t id)
{
    size_t n = 0;
    const char *text = mb_bpe_vocab_text(vocab, id, &n);
    size_t i = first_slot(vocab, text, n);
    while (vocab->slots[i] != 0) i = (i + 1) & (vocab->slot_count - 1);
    vocab->slots[i] = id + 1;
}

static mb_status grow_slots(mb_bpe_vocab *vocab)
{
    mb_status status = MB_OK;
    uint32_t *slots = NULL;
    if ((size_t)(vocab->used + 1) * 2 <= vocab->slot_count) return MB_OK;
    size_t count = vocab->slot_count == 0 ? 1024 : 2 * vocab->slot_count;
    MB_NEW_ARRAY(slots, count);
    mb_free(vocab->slots);
    vocab->slots = slots;
    vocab->slot_count = count;
    for (int64_t id = 0; id < vocab->count; id++)
        if (vocab->starts[id] != 0) put_slot(vocab, (uint32_t)id);
done:
    return status;
}

static mb_status grow_ids(mb_bpe_vocab *vocab, uint32_t id)
{
    mb_status status = MB_OK;
    uint64_t *starts = NULL;
    uint32_t *lengths = NULL;
    if (id < vocab->id_capacity) return MB_OK;
    int64_t capacity = 2 * (int64_t)id + 1024;
    MB_NEW_ARRAY(starts, capacity);
    MB_NEW_ARRAY(lengths, capacity);
    if (vocab->count > 0) {
        memcpy(starts, vocab->starts, (size_t)vocab->count * sizeof *starts);
        memcpy(lengths, vocab->lengths, (size_t)vocab->count * sizeof *lengths);
    }
    mb_free(vocab->starts);
    mb_free(vocab->lengths);
    vocab->starts = starts;
    vocab->lengths = lengths;
    vocab->id_capacity = capacity;
    starts = NULL;
    lengths = NULL;
done:
    mb_free(starts);
    mb_free(lengths);
    return status;
}

mb_status mb_bpe_vocab_add(mb_bpe_vocab *vocab, const char *text, size_t n, uint32_t id)
{
    mb_status status = MB_OK;
    if (mb_bpe_vocab_text(vocab, id, NULL) != NULL || mb_bpe_vocab_find(vocab, text, n) != UINT32_MAX)
        return MB_EEXIST;
    MB_TRY(grow_ids(vocab, id));
    MB_TRY(grow_slots(vocab));
    uint64_t start = vocab->bytes.length + 1;
    MB_TRY(mb_str_append(&vocab->bytes, text, n));
    MB_TRY(mb_str_append(&vocab->bytes, "", 1));
    vocab->starts[id] = start;
    vocab->lengths[id] = (uint32_t)n;
    vocab->used++;
    if (id >= vocab->count) vocab->count = (int64_t)id + 1;
    put_slot(vocab, id);
done:
    return status;
}

mb_status mb_bpe_vocab_read(mb_bpe_vocab *vocab, json_t *object, const char *where)
{
    mb_status status = MB_OK;
    const char *token;
    json_t *value;
    json_int_t limit =
        2 * (json_int_t)json_object_size(object) + 65536; /* so that a wild id takes no memory */
    if (limit > MB_BPE_VOCAB_MAX_ID) limit = MB_BPE_VOCAB_MAX_ID;
    json_object_foreach(object, token, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= limit)
            MB_RAISE(MB_EFORMAT, "%s: model.vocab entry \"%s\" must have an id from 0 to %lld", where, token,
                     (long long)limit - 1);
        status = mb_bpe_vocab_add(vocab, token, strlen(token), (uint32_t)id);
        if (status == MB_EEXIST)
            MB_RAISE(MB_EFORMAT, "%s: model.vocab entries \"%s\" and \"%s\" have the same id %lld", where,
                     token, mb_bpe_vocab_text(vocab, (uint32_t)id, NULL), (long long)id);
        MB_TRY(status);
    }
    if (vocab->used == 0) MB_RAISE(MB_EFORMAT, "%s: model.vocab is empty", where);
done:
    return status;
}

uint32_t mb_bpe_vocab_find(const mb_bpe_vocab *vocab, const char *text, size_t n)
{
    if (vocab->slot_count == 0) return UINT32_MAX;
    for (size_t i = first_slot(vocab, text, n); vocab->slots[i] != 0; i = (i + 1) & (vocab->slot_count - 1)) {
        uint32_t id = vocab->slots[i] - 1;
        if (vocab->lengths[id] == n && memcmp(vocab->bytes.data + vocab->starts[id] - 1, text, n) == 0)
            return id;
    }
    return UINT32_MAX;
}

const char *mb_bpe_vocab_text(const mb_bpe_vocab *vocab, uint32_t id, size_t *opt_length)
{
    if ((int64_t)id >= vocab->count || vocab->starts[id] == 0) return NULL;
    if (opt_length != NULL) *opt_length = vocab->lengths[id];
    return vocab->bytes.data + vocab->starts[id] - 1;
}

/* 2. merges */

mb_status mb_bpe_merges_create(mb_bpe_merges *merges, int64_t count)
{
    mb_status status = MB_OK;
    size_t slots = 16;
    while (slots < (size_t)count * 2) slots *= 2;
    MB_NEW_ARRAY(merges->slots, slots);
    merges->slot_count = slots;
    for (size_t i = 0; i < slots; i++) merges->slots[i].left = UINT32_MAX;
done:
    return status;
}

void mb_bpe_merges_destroy(mb_bpe_merges *merges)
{
    mb_free(merges->slots);
    *merges = (mb_bpe_merges){0};
}

void mb_bpe_merges_put(mb_bpe_merges *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    size_t mask = merges->slot_count - 1;
    size_t i = mb_bpe_merges_slot(left, right) & mask;
    while (merges->slots[i].left != UINT32_MAX &&
           (merges->slots[i].left != left || merges->slots[i].right != right))
        i = (i + 1) & mask;
    merges->slots[i] = (mb_bpe_merge){.left = left, .right = right, .rank = rank, .id = id};
}
