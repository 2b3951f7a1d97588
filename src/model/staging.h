/* staging: the way of values from the host's memory to a device and back, through two page-locked pieces:
 * one is filled while the other is on its way.
 *
 * Layer: model.  Uses: ops.
 */
#ifndef MB_STAGING_H
#define MB_STAGING_H

#include "ops/ops.h"

#define MB_STAGING_BYTES ((size_t)8 << 20) /* of a piece */

typedef struct mb_staging mb_staging;

/* Memory is taken when it is first used. ops are borrowed. */
mb_status mb_staging_create(mb_ops *ops, mb_staging **out_staging);
void mb_staging_destroy(mb_staging **staging); /* waits for what is on its way */

/* Room for MB_STAGING_BYTES, to be filled and sent. */
mb_status mb_staging_room(mb_staging *staging, void **out_room);
/* The first bytes of that room to the device: queued, later ops see them. */
mb_status mb_staging_send(mb_staging *staging, size_t bytes, void *data);

/* Any number of bytes: host is free again when this returns, later ops see them. */
mb_status mb_staging_put(mb_staging *staging, const void *host, size_t bytes, void *data);
/* There when this returns. */
mb_status mb_staging_get(mb_staging *staging, const void *data, size_t bytes, void *host);

#endif
