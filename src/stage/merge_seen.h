/* merge_seen: which 64-bit keys were met, and where first.
 *
 * Layer: stage.  Uses: base.  Lookup and insertion take constant time.
 */
#ifndef MB_MERGE_SEEN_H
#define MB_MERGE_SEEN_H

#include <stdint.h>

#include "base/status.h"

typedef struct mb_merge_seen mb_merge_seen;
mb_status mb_merge_seen_create(mb_merge_seen **out_seen);
void mb_merge_seen_destroy(mb_merge_seen **seen);
/* Add a key with a place >= 0 unless it is there. *out_first: the place it was added with before, -1 when it
 * is new. */
mb_status mb_merge_seen_add(mb_merge_seen *seen, uint64_t key, int64_t place, int64_t *out_first);
/* The place of a key, -1 when it was not added. */
int64_t mb_merge_seen_get(const mb_merge_seen *seen, uint64_t key);

#endif
