/* allocator: where memory comes from: the host's, or a device's that the host cannot touch.
 *
 * Layer: base.  Uses: memory.
 */
#ifndef MB_ALLOCATOR_H
#define MB_ALLOCATOR_H

#include <stddef.h>

/* alloc returns zeroed memory, aligned to 64 bytes at least, or NULL. */
typedef struct mb_allocator {
    const char *name; /* "host", "cuda" */
    void *(*alloc)(void *context, size_t bytes);
    void (*free)(void *context, void *data);
    void *context;
} mb_allocator;
const mb_allocator *mb_allocator_host(void);

#endif
