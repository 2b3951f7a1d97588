/* select_quota.c: groups of sources and their parts of a selection.
 *
 * 1. groups   2. weights of a list   3. parts
 */
#include "choose/select_quota.h"

#include <string.h>

#include "base/memory.h"
#include "base/str.h"

/* ---- 1. groups ---- */

static int64_t find_group(const mb_select_quota *quota, const char *name)
{
    for (int64_t g = 0; g < quota->count; g++) {
        if (strcmp(quota->groups[g].name, name) == 0) return g;
    }
    return -1;
}

static mb_status read_list(mb_select_quota *quota, const char *list);

mb_status mb_select_quota_create(const char *text, const char *const *source_names, int64_t source_count,
                                 mb_select_quota *out_quota)
{
    mb_status status = MB_OK;
    mb_select_quota quota = {0};
    bool is_none = strcmp(text, "none") == 0;
    quota.is_proportional = is_none || strcmp(text, "proportional") == 0;
    quota.is_equal = strcmp(text, "equal") == 0;
    MB_NEW_ARRAY(quota.groups, source_count + 1);
    MB_NEW_ARRAY(quota.group_of_source, source_count + 1);
    for (int64_t s = 0; s < source_count; s++) {
        const char *name = is_none ? "all sources" : source_names[s];
        int64_t g = find_group(&quota, name);
        if (g < 0) {
            g = quota.count++;
            quota.groups[g].name = name;
        }
        quota.group_of_source[s] = g;
    }
    if (!quota.is_proportional && !quota.is_equal) MB_TRY(read_list(&quota, text));
    *out_quota = quota;
    quota = (mb_select_quota){0};
done:
    mb_select_quota_reset(&quota);
    return status;
}

void mb_select_quota_reset(mb_select_quota *quota)
{
    MB_FREE(quota->groups);
    MB_FREE(quota->group_of_source);
    *quota = (mb_select_quota){0};
}

/* ---- 2. weights of a list ---- */

static mb_status unknown_source(const mb_select_quota *quota, const char *name)
{
    mb_status status = MB_OK;
    mb_str names = MB_STR_EMPTY;
    for (int64_t g = 0; g < quota->count; g++) {
        MB_TRY(mb_str_add_format(&names, "%s%s", g > 0 ? ", " : "", quota->groups[g].name));
    }
    MB_RAISE(MB_EUSAGE, "select.quota: there is no source '%s'; there are: %s", name, mb_str_text(&names));
done:
    mb_str_destroy(&names);
    return status;
}

static mb_status read_share(mb_select_quota *quota, char *word, bool *seen)
{
    mb_status status = MB_OK;
    double share;
    char *equals = strrchr(word, '=');
    if (equals == NULL) {
        MB_RAISE(MB_EUSAGE,
                 "select.quota: '%s' is neither proportional, equal, none nor a list name=share,...", word);
    }
    *equals = 0;
    MB_TRY(mb_str_parse_real(equals + 1, &share));
    if (!(share >= 0 && share <= 1e6)) {
        MB_RAISE(MB_EUSAGE, "select.quota: the share of %s is %s; shares are from 0 to 1e6", word,
                 equals + 1);
    }
    int64_t g = find_group(quota, word);
    if (g < 0) {
        MB_TRY(unknown_source(quota, word));
    }
    if (seen[g]) MB_RAISE(MB_EUSAGE, "select.quota: %s stands twice in the list", word);
    seen[g] = true;
    quota->groups[g].weight = (uint64_t)(share * (double)(INT64_C(1) << 40) + 0.5);
done:
    return status;
}

static mb_status read_list(mb_select_quota *quota, const char *list)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0;
    bool *seen = NULL, is_any = false;
    MB_NEW_ARRAY(seen, quota->count + 1);
    MB_TRY(mb_option_list_split(list, &words, &n));
    for (int64_t i = 0; i < n; i++) MB_TRY(read_share(quota, words[i], seen));
    for (int64_t g = 0; g < quota->count; g++) is_any = is_any || quota->groups[g].weight > 0;
    if (!is_any) MB_RAISE(MB_EUSAGE, "select.quota: '%s' gives no source a share above 0", list);
done:
    mb_option_list_free(&words, n);
    mb_free(seen);
    return status;
}

/* ---- 3. parts ---- */

__extension__ typedef unsigned __int128 wide;

mb_status mb_select_quota_apportion(int64_t whole, const uint64_t *weight, int64_t n, int64_t *out)
{
    mb_status status = MB_OK;
    wide *rest = NULL, sum = 0;
    int64_t left = whole;
    MB_NEW_ARRAY(rest, n + 1);
    for (int64_t i = 0; i < n; i++) {
        sum += weight[i];
        out[i] = 0;
    }
    if (sum == 0) goto done;
    for (int64_t i = 0; i < n; i++) {
        wide share = (wide)(uint64_t)whole * weight[i];
        out[i] = (int64_t)(share / sum);
        rest[i] = share % sum;
        left -= out[i];
    }
    for (; left > 0; left--) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; i++) {
            if (rest[i] > rest[best]) best = i;
        }
        out[best]++;
        rest[best] = 0;
    }
done:
    mb_free(rest);
    return status;
}

mb_status mb_select_quota_split(mb_select_quota *quota, int64_t whole, bool by_tokens)
{
    mb_status status = MB_OK;
    uint64_t *weight = NULL;
    int64_t *part = NULL;
    MB_NEW_ARRAY(weight, quota->count + 1);
    MB_NEW_ARRAY(part, quota->count + 1);
    for (int64_t g = 0; g < quota->count; g++) {
        const mb_select_group *group = &quota->groups[g];
        weight[g] = group->weight;
        if (quota->is_equal) weight[g] = group->records + group->invalid > 0;
        if (quota->is_proportional) weight[g] = (uint64_t)(by_tokens ? group->tokens : group->records);
    }
    MB_TRY(mb_select_quota_apportion(whole, weight, quota->count, part));
    for (int64_t g = 0; g < quota->count; g++) quota->groups[g].target = part[g];
done:
    mb_free(weight);
    mb_free(part);
    return status;
}
