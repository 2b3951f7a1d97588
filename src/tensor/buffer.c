/* buffer.c: owned memory from an allocator.
 *
 * 1. buffer
 */
#include "tensor/tensor.h"

mb_status mb_buffer_create(const mb_allocator *allocator, size_t bytes, mb_buffer **out_buffer)
{
    mb_status status = MB_OK;
    mb_buffer *buffer = NULL;
    MB_NEW(buffer);
    buffer->allocator = allocator;
    buffer->bytes = bytes;
    buffer->data = allocator->alloc(allocator->context, bytes);
    if (buffer->data == NULL)
        MB_RAISE(MB_ENOMEM, "not enough %s memory for a buffer of %zu bytes", allocator->name, bytes);
    *out_buffer = buffer;
    buffer = NULL;
done:
    mb_buffer_destroy(&buffer);
    return status;
}

void mb_buffer_destroy(mb_buffer **buffer)
{
    if (*buffer == NULL) return;
    const mb_allocator *allocator = (*buffer)->allocator;
    if ((*buffer)->data != NULL) allocator->free(allocator->context, (*buffer)->data);
    MB_FREE(*buffer);
}
