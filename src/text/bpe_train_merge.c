/* bpe_train_merge: the pairs of neighbours in all words, their counts and places, and the merging of one
 * pair.
 *
 * 1. pairs  2. queue  3. create and destroy  4. best and apply
 */
#include "text/bpe_train_merge.h"

#include "base/memory.h"

typedef struct pair {
    uint32_t left, right;
    int64_t count;
    int32_t place;     /* first of its places, -1 none */
    int32_t last_step; /* step in which it was last put on the list of grown pairs */
} pair;

/* A word in which a pair occurs (or did: a word may be listed in vain). */
typedef struct place {
    int32_t word;
    int32_t next;
} place;

typedef struct queued {
    int64_t count; /* of the pair when it was queued */
    uint32_t left, right;
    int32_t pair;
} queued;

struct mb_bpe_train_merge {
    uint32_t *symbols;
    const int64_t *starts;
    const int64_t *counts;
    int64_t *lengths; /* symbols of each word by now */
    pair *pairs;
    int64_t pair_count, pair_capacity;
    int32_t *slots; /* hash table: index into pairs + 1 */
    size_t slot_count;
    place *places;
    int64_t place_count, place_capacity;
    queued *heap;
    int64_t heap_count, heap_capacity;
    int32_t *grown; /* pairs that gained counts in this step */
    int64_t grown_count, grown_capacity;
    int32_t step;
    int32_t best; /* pair given by the last best, -1 none */
};

/* 1. pairs */

/* Make room for one more element of an array of the struct. */
static mb_status grow(void **array, int64_t count, int64_t *capacity, size_t size)
{
    if (count < *capacity) return MB_OK;
    if (count >= INT32_MAX - 1)
        return mb_fail(MB_ERANGE,
                       "too much text to train a tokenizer on: more than 2^31 pairs; take a sample");
    int64_t more = 2 * *capacity + 1024;
    if (more > INT32_MAX) more = INT32_MAX;
    void *block = mb_realloc(*array, (size_t)more, size);
    if (block == NULL) return MB_ENOMEM;
    *array = block;
    *capacity = more;
    return MB_OK;
}

static size_t hash_pair(uint32_t left, uint32_t right)
{
    uint64_t key = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 32);
}

static mb_status grow_slots(mb_bpe_train_merge *m)
{
    mb_status status = MB_OK;
    int32_t *slots = NULL;
    if ((size_t)(m->pair_count + 1) * 2 <= m->slot_count) return MB_OK;
    size_t count = m->slot_count == 0 ? 4096 : 2 * m->slot_count;
    MB_NEW_ARRAY(slots, count);
    for (int64_t p = 0; p < m->pair_count; p++) {
        size_t i = hash_pair(m->pairs[p].left, m->pairs[p].right) & (count - 1);
        while (slots[i] != 0) i = (i + 1) & (count - 1);
        slots[i] = (int32_t)p + 1;
    }
    mb_free(m->slots);
    m->slots = slots;
    m->slot_count = count;
done:
    return status;
}

static mb_status get_pair(mb_bpe_train_merge *m, uint32_t left, uint32_t right, int32_t *out_pair)
{
    mb_status status = MB_OK;
    MB_TRY(grow_slots(m));
    size_t i = hash_pair(left, right) & (m->slot_count - 1);
    for (; m->slots[i] != 0; i = (i + 1) & (m->slot_count - 1)) {
        const pair *p = &m->pairs[m->slots[i] - 1];
        if (p->left == left && p->right == right) {
            *out_pair = m->slots[i] - 1;
            return MB_OK;
        }
    }
    MB_TRY(grow((void **)&m->pairs, m->pair_count, &m->pair_capacity, sizeof *m->pairs));
    m->pairs[m->pair_count] = (pair){.left = left, .right = right, .place = -1, .last_step = -1};
    *out_pair = (int32_t)m->pair_count++;
    m->slots[i] = *out_pair + 1;
done:
    return status;
}

/* A pair appeared in a word. */
static mb_status add_pair(mb_bpe_train_merge *m, uint32_t left, uint32_t right, int64_t word)
{
    mb_status status = MB_OK;
    int32_t index;
    MB_TRY(get_pair(m, left, right, &index));
    pair *p = &m->pairs[index];
    p->count += m->counts[word];
    if (p->place < 0 || m->places[p->place].word != (int32_t)word) {
        MB_TRY(grow((void **)&m->places, m->place_count, &m->place_capacity, sizeof *m->places));
        m->places[m->place_count] = (place){.word = (int32_t)word, .next = p->place};
        p->place = (int32_t)m->place_count++;
    }
    if (p->last_step != m->step) {
        MB_TRY(grow((void **)&m->grown, m->grown_count, &m->grown_capacity, sizeof *m->grown));
        m->grown[m->grown_count++] = index;
        p->last_step = m->step;
    }
done:
    return status;
}

/* A pair disappeared from a word. */
static mb_status drop_pair(mb_bpe_train_merge *m, uint32_t left, uint32_t right, int64_t word)
{
    mb_status status = MB_OK;
    int32_t index;
    MB_TRY(get_pair(m, left, right, &index));
    m->pairs[index].count -= m->counts[word];
done:
    return status;
}

/* 2. queue */

static bool goes_first(const queued *a, const queued *b)
{
    if (a->count != b->count) return a->count > b->count;
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static mb_status push(mb_bpe_train_merge *m, int32_t index)
{
    mb_status status = MB_OK;
    const pair *p = &m->pairs[index];
    if (p->count <= 0) return MB_OK;
    MB_TRY(grow((void **)&m->heap, m->heap_count, &m->heap_capacity, sizeof *m->heap));
    queued q = {.count = p->count, .left = p->left, .right = p->right, .pair = index};
    int64_t i = m->heap_count++;
    for (; i > 0 && goes_first(&q, &m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = q;
done:
    return status;
}

static queued pop(mb_bpe_train_merge *m)
{
    queued top = m->heap[0], last = m->heap[--m->heap_count];
    int64_t i = 0, n = m->heap_count;
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && goes_first(&m->heap[child + 1], &m->heap[child])) child++;
        if (!goes_first(&m->heap[child], &last)) break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = last;
    return top;
}

static mb_status push_grown(mb_bpe_train_merge *m)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < m->grown_count; i++) MB_TRY(push(m, m->grown[i]));
    m->grown_count = 0;
    m->step++;
done:
    return status;
}

/* 3. create and destroy */

mb_status mb_bpe_train_merge_create(uint32_t *symbols, const int64_t *starts, const int64_t *counts,
                                    int64_t word_count, mb_bpe_train_merge **out_merge)
{
    mb_status status = MB_OK;
    mb_bpe_train_merge *m = NULL;
    MB_NEW(m);
    m->symbols = symbols;
    m->starts = starts;
    m->counts = counts;
    m->best = -1;
    MB_NEW_ARRAY(m->lengths, word_count);
    for (int64_t w = 0; w < word_count; w++) {
        m->lengths[w] = starts[w + 1] - starts[w];
        for (int64_t i = starts[w]; i + 1 < starts[w + 1]; i++)
            MB_TRY(add_pair(m, symbols[i], symbols[i + 1], w));
    }
    MB_TRY(push_grown(m));
    *out_merge = m;
    m = NULL;
done:
    mb_bpe_train_merge_destroy(&m);
    return status;
}

void mb_bpe_train_merge_destroy(mb_bpe_train_merge **merge)
{
    if (*merge == NULL) return;
    mb_free((*merge)->lengths);
    mb_free((*merge)->pairs);
    mb_free((*merge)->slots);
    mb_free((*merge)->places);
    mb_free((*merge)->heap);
    mb_free((*merge)->grown);
    MB_FREE(*merge);
}

/* 4. best and apply */

mb_status mb_bpe_train_merge_best(mb_bpe_train_merge *merge, bool *out_found, uint32_t *out_left,
                                  uint32_t *out_right, int64_t *out_count)
{
    mb_status status = MB_OK;
    *out_found = false;
    while (merge->heap_count > 0) {
        queued top = pop(merge);
        if (top.count != merge->pairs[top.pair].count) { /* out of date */
            MB_TRY(push(merge, top.pair));
            continue;
        }
        merge->best = top.pair;
        *out_found = true;
        *out_left = top.left;
        *out_right = top.right;
        *out_count = top.count;
        break;
    }
done:
    return status;
}

/* Merge the pair inside one word, left to right, and note the pairs that come and go. */
static mb_status apply_word(mb_bpe_train_merge *m, int64_t word, uint32_t left, uint32_t right, uint32_t id)
{
    mb_status status = MB_OK;
    uint32_t *s = m->symbols + m->starts[word];
    int64_t n = m->lengths[word], kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (s[i] != left || i + 1 >= n || s[i + 1] != right) {
            s[kept++] = s[i];
            continue;
        }
        if (kept > 0) {
            MB_TRY(drop_pair(m, s[kept - 1], left, word));
            MB_TRY(add_pair(m, s[kept - 1], id, word));
        }
        if (i + 2 < n) {
            MB_TRY(drop_pair(m, right, s[i + 2], word));
            MB_TRY(add_pair(m, id, s[i + 2], word));
        }
        s[kept++] = id;
        i++;
    }
    m->lengths[word] = kept;
done:
    return status;
}

mb_status mb_bpe_train_merge_apply(mb_bpe_train_merge *merge, uint32_t id)
{
    mb_status status = MB_OK;
    pair *best = &merge->pairs[merge->best];
    uint32_t left = best->left, right = best->right;
    int32_t at = best->place;
    best->place = -1;
    for (; at >= 0; at = merge->places[at].next)
        MB_TRY(apply_word(merge, merge->places[at].word, left, right, id));
    merge->pairs[merge->best].count = 0; /* it occurs no more */
    MB_TRY(push_grown(merge));
done:
    return status;
}
