/* allocator.c: host memory as an allocator.
 *
 * 1. host
 */
#include "base/allocator.h"

#include "base/memory.h"

static void *host_alloc(void *context, size_t bytes)
{
    (void)context;
    return mb_calloc(bytes, 1);
}

static void host_free(void *context, void *data)
{
    (void)context;
    mb_free(data);
}

const mb_allocator *mb_allocator_host(void)
{
    static const mb_allocator host = {.name = "host", .alloc = host_alloc, .free = host_free};
    return &host;
}
