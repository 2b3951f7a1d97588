/* experts_fail.c: reading the list, and failing.
 *
 * 1. reading   2. failing
 */
#include "serve/experts_fail.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/option.h"

/* ---- 1. reading ---- */

static mb_status find_expert(const char *word, size_t length, const char *const *names, int64_t n,
                             int64_t *out_expert)
{
    for (int64_t x = 0; x < n; x++)
        if (strlen(names[x]) == length && memcmp(names[x], word, length) == 0) {
            *out_expert = x;
            return MB_OK;
        }
    return mb_fail(MB_EUSAGE, "'%.*s' is no expert", (int)length, word);
}

/* "N" or "N-M". */
static mb_status read_range(const char *text, bool has_end, mb_experts_fail_rule *rule)
{
    mb_status status = MB_OK;
    char *first = NULL;
    const char *dash = has_end ? strchr(text, '-') : NULL;
    first = dash != NULL ? mb_strndup(text, (size_t)(dash - text)) : mb_strdup(text);
    if (first == NULL) MB_RAISE(MB_ENOMEM, "no memory for a word");
    MB_TRY(mb_str_parse_int(first, &rule->first));
    if (dash != NULL) MB_TRY(mb_str_parse_int(dash + 1, &rule->last));
    if (rule->first < 1 || rule->last < rule->first)
        MB_RAISE(MB_EUSAGE, "requests are counted from 1: '%s'", text);
done:
    mb_free(first);
    return status;
}

static mb_status read_rule(const char *word, const char *const *names, int64_t n, mb_experts_fail_rule *rule)
{
    mb_status status = MB_OK;
    char *seconds = NULL;
    const char *what = strchr(word, ':'), *at = strchr(word, '@');
    *rule = (mb_experts_fail_rule){.first = 1, .last = INT64_MAX};
    if (what == NULL) MB_RAISE(MB_EUSAGE, "name:die@N or name:sleep=S is expected");
    MB_TRY(find_expert(word, (size_t)(what - word), names, n, &rule->expert));
    what++;
    if (mb_str_is_prefix(what, "die@")) {
        rule->dies = true;
        MB_TRY(read_range(what + strlen("die@"), false, rule));
    } else if (mb_str_is_prefix(what, "sleep=")) {
        what += strlen("sleep=");
        seconds = at != NULL ? mb_strndup(what, (size_t)(at - what)) : mb_strdup(what);
        if (seconds == NULL) MB_RAISE(MB_ENOMEM, "no memory for a word");
        MB_TRY(mb_str_parse_real(seconds, &rule->seconds));
        if (!(rule->seconds >= 0 && rule->seconds <= 1e6)) MB_RAISE(MB_EUSAGE, "sleep: 0 to 1e6 seconds");
        if (at != NULL) MB_TRY(read_range(at + 1, true, rule));
    } else {
        MB_RAISE(MB_EUSAGE, "die@N, sleep=S, sleep=S@N or sleep=S@N-M is expected behind the name");
    }
done:
    mb_free(seconds);
    return status;
}

mb_status mb_experts_fail_read(const char *key, const char *text, const char *const *names, int64_t n,
                               mb_experts_fail *out_fail)
{
    mb_status status = MB_OK;
    mb_experts_fail fail = {0};
    char **words = NULL;
    int64_t count = 0;
    MB_TRY(mb_option_list_split(text, &words, &count));
    MB_NEW_ARRAY(fail.rule, count);
    for (; fail.count < count; fail.count++) {
        status = read_rule(words[fail.count], names, n, &fail.rule[fail.count]);
        if (status != MB_OK) {
            mb_status_prefix("%s, '%s': ", key, words[fail.count]);
            status = status == MB_ENOMEM ? status : MB_EUSAGE;
        }
        MB_TRY(status);
    }
    *out_fail = fail;
    fail = (mb_experts_fail){0};
done:
    mb_option_list_free(&words, count);
    mb_experts_fail_reset(&fail);
    return status;
}

void mb_experts_fail_reset(mb_experts_fail *fail)
{
    mb_free(fail->rule);
    *fail = (mb_experts_fail){0};
}

/* ---- 2. failing ---- */

static void rest(double seconds)
{
    const double whole = floor(seconds);
    struct timespec left = {.tv_sec = (time_t)whole, .tv_nsec = (long)((seconds - whole) * 1e9)};
    while (nanosleep(&left, &left) != 0) continue; /* signals only set the stop flag */
}

void mb_experts_fail_run(const mb_experts_fail *fail, int64_t expert, int64_t first, int64_t count)
{
    for (int64_t i = 0; i < fail->count; i++) {
        const mb_experts_fail_rule *r = &fail->rule[i];
        if (r->expert != expert || r->first > first + count - 1 || r->last < first) continue;
        if (r->dies) raise(SIGKILL);
        rest(r->seconds);
    }
}
