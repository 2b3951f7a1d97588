/* staging: two pieces in turn.
 *
 * The wait before a piece is sent ends the sending of the other, which is then free to be filled: filling
 * one and sending the other go on at the same time.
 */
#include "model/staging.h"

#include <string.h>

struct mb_staging {
    mb_ops *ops;
    mb_buffer *pieces[2];
    int at; /* the piece to be filled next */
    bool is_queued;
};

mb_status mb_staging_create(mb_ops *ops, mb_staging **out_staging)
{
    mb_status status = MB_OK;
    mb_staging *staging = NULL;
    MB_NEW(staging);
    staging->ops = ops;
    *out_staging = staging;
done:
    return status;
}

void mb_staging_destroy(mb_staging **staging)
{
    mb_staging *s = *staging;
    if (s == NULL) return;
    if (s->is_queued) (void)mb_ops_wait(s->ops);
    for (int i = 0; i < 2; i++) mb_buffer_destroy(&s->pieces[i]);
    MB_FREE(*staging);
}

mb_status mb_staging_room(mb_staging *staging, void **out_room)
{
    mb_status status = MB_OK;
    mb_buffer **piece = &staging->pieces[staging->at];
    if (*piece == NULL)
        MB_TRY(mb_buffer_create(mb_ops_host_allocator(staging->ops), MB_STAGING_BYTES, piece));
    *out_room = (*piece)->data;
done:
    return status;
}

mb_status mb_staging_send(mb_staging *staging, size_t bytes, void *data)
{
    mb_status status = MB_OK;
    if (staging->is_queued) MB_TRY(mb_ops_wait(staging->ops));
    staging->is_queued = true;
    MB_TRY(mb_ops_upload(staging->ops, staging->pieces[staging->at]->data, bytes, data));
    staging->at = 1 - staging->at;
done:
    return status;
}

mb_status mb_staging_put(mb_staging *staging, const void *host, size_t bytes, void *data)
{
    mb_status status = MB_OK;
    void *room;
    for (size_t first = 0; first < bytes; first += MB_STAGING_BYTES) {
        const size_t left = bytes - first, n = left < MB_STAGING_BYTES ? left : MB_STAGING_BYTES;
        MB_TRY(mb_staging_room(staging, &room));
        memcpy(room, (const char *)host + first, n);
        MB_TRY(mb_staging_send(staging, n, (char *)data + first));
    }
done:
    return status;
}

mb_status mb_staging_get(mb_staging *staging, const void *data, size_t bytes, void *host)
{
    mb_status status = MB_OK;
    size_t kept = 0; /* bytes of the piece fetched before this one, not yet taken out of it */
    void *room, *other = NULL;
    if (staging->is_queued) MB_TRY(mb_ops_wait(staging->ops));
    staging->is_queued = false;
    for (size_t first = 0; first < bytes; first += MB_STAGING_BYTES) {
        const size_t left = bytes - first, n = left < MB_STAGING_BYTES ? left : MB_STAGING_BYTES;
        MB_TRY(mb_staging_room(staging, &room));
        MB_TRY(mb_ops_download(staging->ops, (const char *)data + first, n, room));
        if (kept > 0) memcpy((char *)host + first - kept, other, kept);
        MB_TRY(mb_ops_wait(staging->ops));
        kept = n;
        other = room;
        staging->at = 1 - staging->at;
    }
    if (kept > 0) memcpy((char *)host + bytes - kept, other, kept);
done:
    return status;
}
