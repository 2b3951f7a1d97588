/* memory.c: counted blocks and arenas.
 *
 * A block is preceded by 64 bytes that hold its size and where the system's block begins. Small blocks end
 * exactly at the end of the system's block, so that a sanitizer sees every overrun; large ones come from
 * calloc, which gets untouched zero pages (no page is written before its first use, which then decides the
 * page's NUMA node). Huge ones ask for huge pages: with 4 KiB pages a gigabyte of weights costs 262,144
 * faults and its products miss the address cache.
 *
 * 1. counters   2. blocks   3. arena
 */
#include "base/memory.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 };
#define LARGE_BYTES ((size_t)1 << 20)
#define HUGE_BYTES  ((size_t)8 << 20)
#define HUGE_PAGE   ((uintptr_t)2 << 20)
#define BLOCK_MARK  UINT64_C(0x6d6f656261746368)

typedef struct block_head {
    uint64_t mark;
    size_t bytes;
    void *system; /* what free() takes */
    char pad[ALIGN - sizeof(uint64_t) - sizeof(size_t) - sizeof(void *)];
} block_head;
_Static_assert(sizeof(block_head) == ALIGN, "a block's head keeps its alignment");

/* ---- 1. counters ---- */

static atomic_llong live_blocks, live_bytes, peak_bytes;

int64_t mb_memory_live_blocks(void)
{
    return atomic_load(&live_blocks);
}
int64_t mb_memory_live_bytes(void)
{
    return atomic_load(&live_bytes);
}
int64_t mb_memory_peak_bytes(void)
{
    return atomic_load(&peak_bytes);
}

static void count_bytes(long long bytes)
{
    long long now = atomic_fetch_add(&live_bytes, bytes) + bytes;
    long long peak = atomic_load(&peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, now)) {
    }
}

/* ---- 2. blocks ---- */

static block_head *head_of(void *block)
{
    block_head *head = (block_head *)block - 1;
    assert(head->mark == BLOCK_MARK && "not a live block of mb_calloc");
    return head;
}

/* The whole huge pages inside a system block; a system that has none says no, which is fine. */
static void ask_huge_pages(void *system, size_t bytes)
{
    const uintptr_t first = ((uintptr_t)system + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const uintptr_t end = ((uintptr_t)system + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (end > first) (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
}

/* A block of `bytes` (not zeroed unless large), NULL when there is none. */
static void *block_alloc(size_t bytes)
{
    void *system = NULL;
    block_head *head = NULL;
    if (bytes > SIZE_MAX / 2) return NULL;
    if (bytes < LARGE_BYTES) {
        if (posix_memalign(&system, ALIGN, sizeof *head + bytes) != 0) return NULL;
        head = system;
    } else {
        system = calloc(1, sizeof *head + bytes + ALIGN);
        if (system == NULL) return NULL;
        if (bytes >= HUGE_BYTES) ask_huge_pages(system, sizeof *head + bytes + ALIGN);
        head = (block_head *)(((uintptr_t)system + ALIGN - 1) / ALIGN * ALIGN);
    }
    head->mark = BLOCK_MARK;
    head->bytes = bytes;
    head->system = system;
    atomic_fetch_add(&live_blocks, 1);
    count_bytes((long long)bytes);
    return head + 1;
}

static int product_overflows(size_t count, size_t size, size_t *out_bytes)
{
    if (__builtin_mul_overflow(count, size, out_bytes)) {
        mb_fail(MB_ENOMEM, "a block of %zu x %zu bytes was asked for: too large", count, size);
        return 1;
    }
    return 0;
}

void *mb_calloc(size_t count, size_t size)
{
    size_t bytes;
    if (product_overflows(count, size, &bytes)) return NULL;
    void *block = block_alloc(bytes);
    if (block == NULL) {
        mb_fail(MB_ENOMEM, "not enough memory for a block of %zu bytes (%lld in use)", bytes,
                (long long)mb_memory_live_bytes());
        return NULL;
    }
    if (bytes < LARGE_BYTES) memset(block, 0, bytes);
    return block;
}

void *mb_realloc(void *block, size_t count, size_t size)
{
    size_t bytes;
    if (product_overflows(count, size, &bytes)) return NULL;
    void *grown = block_alloc(bytes);
    if (grown == NULL) {
        mb_fail(MB_ENOMEM, "not enough memory for a block of %zu bytes (%lld in use)", bytes,
                (long long)mb_memory_live_bytes());
        return NULL;
    }
    if (block != NULL) {
        size_t kept = head_of(block)->bytes;
        memcpy(grown, block, kept < bytes ? kept : bytes);
        mb_free(block);
    }
    return grown;
}

char *mb_strdup(const char *text)
{
    return text == NULL ? NULL : mb_strndup(text, strlen(text));
}

char *mb_strndup(const char *text, size_t n)
{
    if (text == NULL) return NULL;
    char *copy = mb_calloc(n + 1, 1);
    if (copy != NULL) memcpy(copy, text, strnlen(text, n));
    return copy;
}

void mb_free(void *block)
{
    if (block == NULL) return;
    block_head *head = head_of(block);
    head->mark = 0;
    atomic_fetch_sub(&live_blocks, 1);
    atomic_fetch_sub(&live_bytes, (long long)head->bytes);
    free(head->system);
}

/* ---- 3. arena ---- */

typedef struct arena_chunk {
    char *data;
    size_t bytes;
    size_t used;
} arena_chunk;

struct mb_arena {
    const mb_allocator *allocator;
    arena_chunk *chunks; /* those after `current` are empty */
    int64_t count;
    int64_t current;
    size_t next_bytes; /* size of the first chunk to come */
    size_t full_bytes; /* used in chunks before `current` */
    size_t peak_bytes;
    int64_t taken; /* chunks, ever */
};

mb_status mb_arena_create_on(const mb_allocator *allocator, size_t first_bytes, mb_arena **out_arena)
{
    mb_status status = MB_OK;
    mb_arena *arena = NULL;
    MB_NEW(arena);
    arena->allocator = allocator;
    arena->next_bytes = first_bytes > ALIGN ? first_bytes : ALIGN;
    *out_arena = arena;
done:
    return status;
}

mb_status mb_arena_create(size_t first_bytes, mb_arena **out_arena)
{
    return mb_arena_create_on(mb_allocator_host(), first_bytes, out_arena);
}

static void free_chunk(mb_arena *arena, int64_t index)
{
    if (arena->chunks[index].data != NULL)
        arena->allocator->free(arena->allocator->context, arena->chunks[index].data);
    arena->chunks[index] = (arena_chunk){0};
}

static void free_chunks(mb_arena *arena)
{
    for (int64_t i = 0; i < arena->count; i++) free_chunk(arena, i);
    arena->count = 0;
    arena->current = 0;
    arena->full_bytes = 0;
}

void mb_arena_destroy(mb_arena **arena)
{
    if (*arena == NULL) return;
    free_chunks(*arena);
    mb_free((*arena)->chunks);
    MB_FREE(*arena);
}

/* Make chunk `index` (the one after the current) one of at least `bytes`. Returns false when there is no
 * memory. */
static int make_chunk(mb_arena *arena, int64_t index, size_t bytes)
{
    size_t wanted = arena->next_bytes;
    if (index > 0 && arena->chunks[index - 1].bytes <= SIZE_MAX / 4)
        wanted = 2 * arena->chunks[index - 1].bytes;
    if (wanted < bytes) wanted = bytes;
    if (index == arena->count) {
        arena_chunk *grown = mb_realloc(arena->chunks, (size_t)(index + 1), sizeof *grown);
        if (grown == NULL) return 0;
        arena->chunks = grown;
        arena->chunks[index] = (arena_chunk){0};
        arena->count++;
    }
    free_chunk(arena, index);
    arena->chunks[index].data = arena->allocator->alloc(arena->allocator->context, wanted);
    if (arena->chunks[index].data == NULL) return 0;
    arena->chunks[index].bytes = wanted;
    arena->taken++;
    return 1;
}

void *mb_arena_alloc(mb_arena *arena, size_t count, size_t size)
{
    size_t bytes;
    if (product_overflows(count, size, &bytes)) return NULL;
    if (bytes > SIZE_MAX / 2) {
        mb_fail(MB_ENOMEM, "a block of %zu bytes was asked for: too large", bytes);
        return NULL;
    }
    bytes = bytes == 0 ? ALIGN : (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (arena->count == 0 && !make_chunk(arena, 0, bytes)) return NULL;
    arena_chunk *chunk = &arena->chunks[arena->current];
    if (chunk->bytes - chunk->used < bytes) {
        int64_t next = chunk->used == 0 ? arena->current : arena->current + 1;
        if ((next >= arena->count || arena->chunks[next].bytes < bytes) && !make_chunk(arena, next, bytes))
            return NULL;
        if (next > arena->current) arena->full_bytes += arena->chunks[arena->current].used;
        arena->current = next;
        chunk = &arena->chunks[next];
    }
    void *block = chunk->data + chunk->used;
    chunk->used += bytes;
    if (arena->full_bytes + chunk->used > arena->peak_bytes)
        arena->peak_bytes = arena->full_bytes + chunk->used;
    return block;
}

void mb_arena_reset(mb_arena *arena)
{
    if (arena->count > 1) {
        free_chunks(arena); /* one chunk, an eighth larger than was ever in use, comes with the next block */
        arena->next_bytes = arena->peak_bytes + arena->peak_bytes / 8;
    } else if (arena->count == 1) {
        arena->chunks[0].used = 0;
    }
}

mb_arena_mark mb_arena_mark_get(const mb_arena *arena)
{
    mb_arena_mark mark = {.chunk = arena->current, .used = 0};
    if (arena->count > 0) mark.used = arena->chunks[arena->current].used;
    return mark;
}

void mb_arena_release(mb_arena *arena, mb_arena_mark mark)
{
    if (arena->count == 0) return;
    assert(mark.chunk <= arena->current && mark.used <= arena->chunks[mark.chunk].used);
    for (int64_t i = arena->current; i > mark.chunk; i--) {
        arena->full_bytes -= arena->chunks[i - 1].used;
        arena->chunks[i].used = 0;
    }
    arena->current = mark.chunk;
    arena->chunks[mark.chunk].used = mark.used;
}

size_t mb_arena_peak_bytes(const mb_arena *arena)
{
    return arena->peak_bytes;
}

int64_t mb_arena_chunks_taken(const mb_arena *arena)
{
    return arena->taken;
}
