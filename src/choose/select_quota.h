/* select_quota: how a selection is divided among sources. Private to select*.c.
 *
 * Layer: choose.  Uses: base.
 *
 * Sources of one name are one group; with quota "none" there is one group of all.
 */
#ifndef MB_SELECT_QUOTA_H
#define MB_SELECT_QUOTA_H

#include "choose/select.h"

typedef struct mb_select_group {
    const char *name;         /* borrowed; "all sources" for quota none */
    uint64_t weight;          /* share of the whole, relative to the sum */
    int64_t records, invalid; /* usable ones, and those without a score (NaN); over all ranks */
    int64_t tokens;           /* of the usable ones */
    int64_t target;           /* records or tokens to take */
} mb_select_group;

typedef struct mb_select_quota {
    mb_select_group *groups;  /* [count] */
    int64_t *group_of_source; /* [source_count] */
    int64_t count;
    bool is_proportional, is_equal;
} mb_select_quota;

/* Groups and, for a list, weights; the counts are zero. */
mb_status mb_select_quota_create(const char *quota, const char *const *source_names, int64_t source_count,
                                 mb_select_quota *out_quota);
void mb_select_quota_reset(mb_select_quota *quota);

/* Targets that sum up to `whole` (records; tokens when by_tokens), once the counts are known. */
mb_status mb_select_quota_split(mb_select_quota *quota, int64_t whole, bool by_tokens);

/* out[i] = whole * weight[i] / sum, by largest remainder (ties: the first); they sum up to whole, all 0 when
 * every weight is 0. */
mb_status mb_select_quota_apportion(int64_t whole, const uint64_t *weight, int64_t n, int64_t *out);

#endif
