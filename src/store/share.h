/* share: one of n equal cuts of some work, done by a run of its own (an element of a job array).
 *
 * Layer: store.  Uses: base.
 *
 * Units (parts that are written as files of their own) are numbered by the data alone; share k of n has those
 * whose number is k modulo n. What belongs to one share only is named so: done-0of4.json, lease-0of4.
 */
#ifndef MB_SHARE_H
#define MB_SHARE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_share {
    int64_t part, of; /* of 0: the whole work */
} mb_share;

/* "k/n" with 0 <= k < n; NULL and "": the whole. MB_EUSAGE. */
mb_status mb_share_parse(const char *opt_text, mb_share *out_share);
bool mb_share_is_whole(mb_share share);
/* How many of so many units are in it, and the number of its i-th. */
int64_t mb_share_count(mb_share share, int64_t units);
int64_t mb_share_unit(mb_share share, int64_t i);
/* ("done", ".json"): "done.json" of the whole, else "done-0of4.json". A new block; NULL: no memory. */
char *mb_share_name(mb_share share, const char *stem, const char *ending);

#endif
