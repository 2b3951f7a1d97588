/* memory: checked, counted allocation, and arenas for step scratch.
 *
 * Layer: base.  Uses: status.
 *
 * Every live block is counted, so that a test (and every program under MB_CHECK_LEAKS=1) can prove the count
 * is zero at its end. Blocks are 64-byte aligned. Not for blocks that another library frees.
 */
#ifndef MB_MEMORY_H
#define MB_MEMORY_H

#include <stdint.h>

#include "base/allocator.h"
#include "base/status.h"

/* Allocate zeroed bytes (count * size, overflow checked); 0 bytes give a valid pointer.
 * Returns NULL and records MB_ENOMEM when there is none. Pair with mb_free. */
void *mb_calloc(size_t count, size_t size);

/* Grow or shrink a block from mb_calloc (or NULL); new bytes are not zeroed. NULL + MB_ENOMEM on failure,
 * old block kept. */
void *mb_realloc(void *block, size_t count, size_t size);

/* Copy of a string (NULL gives NULL), or of its first n bytes plus a terminating 0. */
char *mb_strdup(const char *text);
char *mb_strndup(const char *text, size_t n);

/* Free a block; NULL is fine. MB_FREE also resets the pointer. */
void mb_free(void *block);
#define MB_FREE(pointer)                                                                                     \
    do {                                                                                                     \
        mb_free(pointer);                                                                                    \
        (pointer) = NULL;                                                                                    \
    } while (0)

/* Allocate or go to done: with MB_ENOMEM. `pointer` is any typed pointer lvalue. */
#define MB_NEW_ARRAY(pointer, n)                                                                             \
    do {                                                                                                     \
        (pointer) = mb_calloc((size_t)(n), sizeof *(pointer));                                               \
        if ((pointer) == NULL) {                                                                             \
            status = mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);                               \
            goto done;                                                                                       \
        }                                                                                                    \
    } while (0)
#define MB_NEW(pointer) MB_NEW_ARRAY(pointer, 1)

/* Blocks alive, bytes alive, and the highest number of bytes alive so far (thread safe). */
int64_t mb_memory_live_blocks(void);
int64_t mb_memory_live_bytes(void);
int64_t mb_memory_peak_bytes(void);

/* An arena: many blocks, freed together by a reset. Grows by chunks; after a reset it keeps one chunk with
 * room for the most ever in use, so a steady step allocates nothing. Not thread safe. */
typedef struct mb_arena mb_arena;
mb_status mb_arena_create(size_t first_bytes, mb_arena **out_arena);
/* The same with chunks from an allocator (borrowed): blocks on a device. They are counted by it, not here. */
mb_status mb_arena_create_on(const mb_allocator *allocator, size_t first_bytes, mb_arena **out_arena);
void mb_arena_destroy(mb_arena **arena);

/* 64-byte aligned, NOT zeroed; NULL + MB_ENOMEM on failure. Lives until reset, or release to an earlier
 * mark.
 */
void *mb_arena_alloc(mb_arena *arena, size_t count, size_t size);
void mb_arena_reset(mb_arena *arena);

/* Scope inside an arena: blocks allocated after the mark are given back by the release (last in, first out).
 */
typedef struct mb_arena_mark {
    int64_t chunk;
    size_t used;
} mb_arena_mark;
mb_arena_mark mb_arena_mark_get(const mb_arena *arena);
void mb_arena_release(mb_arena *arena, mb_arena_mark mark);

/* Most bytes in use at one time since creation. */
size_t mb_arena_peak_bytes(const mb_arena *arena);
/* Chunks taken since creation: while the number stands, the same allocations give the same addresses. */
int64_t mb_arena_chunks_taken(const mb_arena *arena);

/* Allocate from an arena or go to done: with MB_ENOMEM. */
#define MB_ARENA_ARRAY(arena, pointer, n)                                                                    \
    do {                                                                                                     \
        (pointer) = mb_arena_alloc((arena), (size_t)(n), sizeof *(pointer));                                 \
        if ((pointer) == NULL) {                                                                             \
            status = mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);                               \
            goto done;                                                                                       \
        }                                                                                                    \
    } while (0)

#endif
