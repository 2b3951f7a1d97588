/* window: the calls of window.h over one of two implementations, long reads cut. */
#include "comm/window.h"

#include <string.h>

#include "base/memory.h"
#include "comm/comm_impl.h"

static mb_status window_open(mb_comm *comm, size_t bytes, bool is_shared, void **out_base,
                             mb_window **out_window)
{
    mb_status status = MB_OK;
    mb_window *window = NULL;
    MB_NEW(window);
    window->comm = comm;
    MB_TRY(is_shared ? comm->vtable->window_create_shared(window, bytes)
                     : comm->vtable->window_create(window, bytes));
    if (bytes > 0 && (!is_shared || comm->local_rank == 0)) memset(window->base, 0, bytes);
    MB_TRY(mb_window_sync(window));
    *out_base = window->base;
    *out_window = window;
    window = NULL;
done:
    mb_window_destroy(&window);
    return status;
}

mb_status mb_window_create(mb_comm *comm, size_t bytes, void **out_base, mb_window **out_window)
{
    return window_open(comm, bytes, false, out_base, out_window);
}

mb_status mb_window_create_shared(mb_comm *comm, size_t bytes, void **out_base, mb_window **out_window)
{
    return window_open(comm, bytes, true, out_base, out_window);
}

void mb_window_destroy(mb_window **window)
{
    if (*window == NULL) return;
    (*window)->comm->vtable->window_destroy(*window);
    MB_FREE(*window);
}

mb_status mb_window_get(mb_window *window, int rank, size_t offset, void *data, size_t bytes)
{
    mb_status status = MB_OK;
    const mb_comm *comm = window->comm;
    if (rank == comm->rank) {
        if (bytes > 0) memcpy(data, (const char *)window->base + offset, bytes);
        return MB_OK;
    }
    for (size_t at = 0; at < bytes; at += comm->message_max) {
        const size_t n = bytes - at < comm->message_max ? bytes - at : comm->message_max;
        MB_TRY(comm->vtable->window_get(window, rank, offset + at, (char *)data + at, (int)n));
    }
done:
    return status;
}

mb_status mb_window_wait(mb_window *window)
{
    return window->comm->vtable->window_wait(window);
}

mb_status mb_window_sync(mb_window *window)
{
    return window->comm->vtable->window_sync(window);
}
