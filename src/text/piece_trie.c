/* piece_trie: builds a double array from sorted texts.
 *
 * 1. free units  2. places for children  3. building
 */
#include "text/piece_trie.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define MOST_TRIES 256 /* places looked at for the children of a node before the array is made longer */

/* Free units form a ring through unit 0 (which is the root, never free). */
typedef struct builder {
    mb_piece_trie *trie;
    uint32_t *next, *previous;
    int64_t capacity;
    mb_piece_text *texts;
} builder;

/* 1. free units */

static mb_status grow(builder *b, int64_t count)
{
    mb_status status = MB_OK;
    if (count <= b->trie->count) return MB_OK;
    if (count > b->capacity) {
        int64_t capacity = count + count / 2 + 4096;
        if (capacity >= INT32_MAX) MB_RAISE(MB_ERANGE, "a vocabulary is too large for its trie");
        mb_piece_unit *units = mb_realloc(b->trie->units, (size_t)capacity, sizeof *units);
        if (units == NULL) MB_RAISE(MB_ENOMEM, "no memory for a vocabulary's trie");
        b->trie->units = units;
        uint32_t *next = mb_realloc(b->next, (size_t)capacity, sizeof *next);
        if (next == NULL) MB_RAISE(MB_ENOMEM, "no memory for a vocabulary's trie");
        b->next = next;
        uint32_t *previous = mb_realloc(b->previous, (size_t)capacity, sizeof *previous);
        if (previous == NULL) MB_RAISE(MB_ENOMEM, "no memory for a vocabulary's trie");
        b->previous = previous;
        b->capacity = capacity;
    }
    for (int64_t i = b->trie->count; i < count; i++) {
        b->trie->units[i] = (mb_piece_unit){.parent = MB_PIECE_TRIE_NONE, .id = MB_PIECE_TRIE_NONE};
        if (i == 0) {
            b->next[0] = b->previous[0] = 0;
            continue;
        }
        uint32_t last = b->previous[0];
        b->next[last] = b->previous[0] = (uint32_t)i;
        b->previous[i] = last;
        b->next[i] = 0;
    }
    b->trie->count = count;
done:
    return status;
}

static void take(builder *b, uint32_t unit, uint32_t parent)
{
    b->next[b->previous[unit]] = b->next[unit];
    b->previous[b->next[unit]] = b->previous[unit];
    b->trie->units[unit].parent = parent;
}

/* 2. places for children */

static bool fits(const builder *b, uint32_t base, const unsigned char *bytes, int count)
{
    for (int i = 1; i < count; i++) {
        int64_t at = (int64_t)base + bytes[i];
        if (at < b->trie->count && b->trie->units[at].parent != MB_PIECE_TRIE_NONE) return false;
    }
    return true;
}

/* A base at which the units of all bytes (ascending) are free. */
static mb_status find_base(builder *b, const unsigned char *bytes, int count, uint32_t *out_base)
{
    mb_status status = MB_OK;
    int64_t base = b->trie->count;
    uint32_t at = b->next[0];
    for (int tries = 0; at != 0 && tries < MOST_TRIES; at = b->next[at], tries++)
        if (at > bytes[0] && fits(b, at - bytes[0], bytes, count)) {
            base = (int64_t)at - bytes[0];
            break;
        }
    MB_TRY(grow(b, base + 256));
    *out_base = (uint32_t)base;
done:
    return status;
}

/* 3. building */

/* Texts [first, end) share `depth` bytes, which lead to `node`. */
typedef struct job {
    int64_t first, end;
    size_t depth;
    uint32_t node;
} job;

typedef struct job_list {
    job *data;
    int64_t count, capacity;
} job_list;

static mb_status push(job_list *jobs, job one)
{
    if (jobs->count == jobs->capacity) {
        int64_t capacity = 2 * jobs->capacity + 1024;
        job *data = mb_realloc(jobs->data, (size_t)capacity, sizeof *data);
        if (data == NULL) return MB_ENOMEM;
        jobs->data = data;
        jobs->capacity = capacity;
    }
    jobs->data[jobs->count++] = one;
    return MB_OK;
}

static int compare_texts(const void *a, const void *b)
{
    const mb_piece_text *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->n < y->n ? x->n : y->n);
    return order != 0 ? order : (x->n > y->n) - (x->n < y->n);
}

static mb_status run_job(builder *b, job_list *jobs, job one)
{
    mb_status status = MB_OK;
    unsigned char bytes[256];
    int64_t firsts[257];
    int count = 0;
    mb_piece_text *texts = b->texts;
    if (one.first < one.end && texts[one.first].n == one.depth) { /* the shortest comes first */
        if (one.depth > 0) b->trie->units[one.node].id = texts[one.first].id;
        one.first++;
    }
    for (int64_t i = one.first; i < one.end; i++) {
        unsigned char byte = (unsigned char)texts[i].text[one.depth];
        if (count > 0 && bytes[count - 1] == byte) continue;
        bytes[count] = byte;
        firsts[count++] = i;
    }
    if (count == 0) return MB_OK;
    firsts[count] = one.end;
    uint32_t base = 0;
    MB_TRY(find_base(b, bytes, count, &base));
    b->trie->units[one.node].base = base;
    for (int i = 0; i < count; i++) take(b, base + bytes[i], one.node);
    for (int i = count - 1; i >= 0; i--)
        MB_TRY(push(jobs, (job){.first = firsts[i],
                                .end = firsts[i + 1],
                                .depth = one.depth + 1,
                                .node = base + bytes[i]}));
done:
    return status;
}

mb_status mb_piece_trie_build(mb_piece_trie *trie, mb_piece_text *texts, int64_t count)
{
    mb_status status = MB_OK;
    builder b = {.trie = trie, .texts = texts};
    job_list jobs = {0};
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++)
        if (texts[i].n > 0) texts[kept++] = texts[i];
    if (kept > 0) qsort(texts, (size_t)kept, sizeof *texts, compare_texts);
    MB_TRY(grow(&b, 512));
    MB_TRY(push(&jobs, (job){.end = kept}));
    while (jobs.count > 0) MB_TRY(run_job(&b, &jobs, jobs.data[--jobs.count]));
done:
    mb_free(jobs.data);
    mb_free(b.next);
    mb_free(b.previous);
    return status;
}

void mb_piece_trie_destroy(mb_piece_trie *trie)
{
    mb_free(trie->units);
    *trie = (mb_piece_trie){0};
}
