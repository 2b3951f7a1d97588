/* experts_fail: failures of experts on order, for tests of what the others make of them.
 *
 * Layer: serve.  Uses: base.
 *
 * A list "name:what,name:what":
 *   die@N         its process is killed when it begins with its N-th request (counted from 1)
 *   sleep=S       every batch takes S seconds longer
 *   sleep=S@N     the same from its N-th request on
 *   sleep=S@N-M   the same up to its M-th request
 */
#ifndef MB_EXPERTS_FAIL_H
#define MB_EXPERTS_FAIL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_experts_fail_rule {
    int64_t expert;
    bool dies;
    double seconds;
    int64_t first, last; /* requests it is about */
} mb_experts_fail_rule;

typedef struct mb_experts_fail {
    mb_experts_fail_rule *rule; /* [count] */
    int64_t count;
} mb_experts_fail;

/* names [n]: of the experts. key: the option, for messages. NULL or "" gives none. MB_EUSAGE: another name,
 * or something else than the above. */
mb_status mb_experts_fail_read(const char *key, const char *text, const char *const *names, int64_t n,
                               mb_experts_fail *out_fail);
void mb_experts_fail_reset(mb_experts_fail *fail);
/* Does what is ordered for a batch that holds the requests first .. first + count - 1 of this expert. May
 * not return. */
void mb_experts_fail_run(const mb_experts_fail *fail, int64_t expert, int64_t first, int64_t count);

#endif
