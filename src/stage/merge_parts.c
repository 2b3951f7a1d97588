/* merge_parts.c: see the header.
 *
 * 1. reading   2. checking   3. sharing out
 */
#include "stage/merge_parts.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/option.h"

/* ---- 1. reading ---- */

static mb_status add_source(mb_merge_part *part, const char *name, size_t n)
{
    mb_status status = MB_OK;
    char **more = mb_realloc(part->sources, (size_t)part->source_count + 1, sizeof *more);
    if (more == NULL) MB_RAISE(MB_ENOMEM, "no memory for a list of parts");
    part->sources = more;
    more[part->source_count] = mb_strndup(name, n);
    if (more[part->source_count++] == NULL) MB_RAISE(MB_ENOMEM, "no memory for a list of parts");
done:
    return status;
}

static mb_status add_sources(mb_merge_part *part, const char *list, char separator)
{
    mb_status status = MB_OK;
    const char separators[] = {separator, ' ', 0};
    for (const char *at = list; *at != 0;) {
        const size_t n = strcspn(at, separators);
        if (n > 0) MB_TRY(add_source(part, at, n));
        at += n + (at[n] != 0);
    }
done:
    return status;
}

/* "name=share:source:source" */
static mb_status read_word(const char *key, const char *word, mb_merge_part *part)
{
    mb_status status = MB_OK;
    const char *equals = strchr(word, '=');
    char number[40];
    if (equals == NULL)
        MB_RAISE(MB_EUSAGE, "%s: '%s' has no share; write name=share, as in train=0.9", key, word);
    const size_t n = strcspn(equals + 1, ":");
    part->name = mb_strndup(word, (size_t)(equals - word));
    if (part->name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a list of parts");
    snprintf(number, sizeof number, "%.*s", (int)n, equals + 1);
    if (mb_str_parse_real(number, &part->share) != MB_OK)
        MB_RAISE(MB_EUSAGE, "%s: the share of %s is '%s'; a number up to 1 is expected", key, part->name,
                 number);
    MB_TRY(add_sources(part, equals + 1 + n, ':'));
done:
    return status;
}

static mb_status read_group(const char *key, const json_t *group, mb_merge_part *part)
{
    mb_status status = MB_OK;
    static const char *const known[] = {"name", "share", "sources"};
    const char *name, *member;
    json_t *value;
    const json_t *sources = json_object_get(group, "sources"), *one;
    size_t i;
    if (!json_is_object(group)) MB_RAISE(MB_EUSAGE, "%s: a group { name, share, sources } is expected", key);
    json_object_foreach((json_t *)(uintptr_t)group, member, value)
    {
        (void)value;
        if (!mb_str_equal(member, known[0]) && !mb_str_equal(member, known[1]) &&
            !mb_str_equal(member, known[2]))
            MB_RAISE(MB_EUSAGE, "%s: unknown key '%s'; a group has name, share and sources", key, member);
    }
    part->share = 1;
    status = mb_json_get_string(group, "name", key, &name);
    if (status == MB_OK) status = mb_json_opt_real(group, "share", key, &part->share);
    if (status != MB_OK) MB_RAISE(MB_EUSAGE, "%s: a group has a name and a share, a number", key);
    part->name = mb_strdup(name);
    if (part->name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a list of parts");
    if (json_is_string(sources)) MB_TRY(add_sources(part, json_string_value(sources), ','));
    json_array_foreach(sources, i, one)
    {
        if (!json_is_string(one)) MB_RAISE(MB_EUSAGE, "%s: sources of %s: names are expected", key, name);
        MB_TRY(add_source(part, json_string_value(one), json_string_length(one)));
    }
done:
    return status;
}

static mb_status read_list(const char *key, const char *text, mb_merge_parts *parts)
{
    mb_status status = MB_OK;
    json_t *list = NULL;
    char **words = NULL;
    int64_t n = 0;
    const bool is_json = text[strspn(text, " \t\n")] == '[';
    if (is_json) {
        MB_TRY(mb_json_parse(text, strlen(text), key, &list));
        n = (int64_t)json_array_size(list);
    } else {
        MB_TRY(mb_option_list_split(text, &words, &n));
    }
    MB_NEW_ARRAY(parts->part, n + 1);
    for (int64_t i = 0; i < n; i++) {
        mb_merge_part *part = &parts->part[parts->count++];
        MB_TRY(is_json ? read_group(key, json_array_get(list, (size_t)i), part)
                       : read_word(key, words[i], part));
    }
done:
    json_decref(list);
    if (words != NULL) mb_option_list_free(&words, n);
    return status;
}

/* ---- 2. checking ---- */

static bool names(const mb_merge_part *part, const char *source)
{
    for (int64_t i = 0; i < part->source_count; i++)
        if (mb_str_equal(part->sources[i], source)) return true;
    return false;
}

/* Does the part take questions of a source that some part names (or of one that none does)? */
static bool takes(const mb_merge_part *part, const char *source, bool is_named)
{
    return is_named ? names(part, source) : part->source_count == 0;
}

bool mb_merge_parts_is_named(const mb_merge_parts *parts, const char *source)
{
    for (int64_t i = 0; i < parts->count; i++)
        if (names(&parts->part[i], source)) return true;
    return false;
}

/* opt_source NULL: of the sources that no part names. */
static mb_status check_sum(const char *key, const mb_merge_parts *parts, const char *opt_source)
{
    mb_status status = MB_OK;
    double sum = 0;
    for (int64_t i = 0; i < parts->count; i++)
        if (takes(&parts->part[i], opt_source, opt_source != NULL)) sum += parts->part[i].share;
    if (sum > 1 + 1e-9)
        MB_RAISE(MB_EUSAGE, "%s: the shares of %s come to %g, which is more than 1", key,
                 opt_source != NULL ? opt_source : "the sources that no part names", sum);
done:
    return status;
}

static mb_status check_part(const char *key, const mb_merge_parts *parts, int64_t i)
{
    mb_status status = MB_OK;
    const mb_merge_part *part = &parts->part[i];
    bool is_plain = part->name[0] != 0 && part->name[0] != '.';
    for (const char *c = part->name; *c != 0; c++)
        is_plain = is_plain && (isalnum((unsigned char)*c) || strchr("_-.", *c) != NULL);
    if (!is_plain)
        MB_RAISE(MB_EUSAGE, "%s: '%s' is no name; take letters, digits, _, - and .", key, part->name);
    if (!(part->share > 0 && part->share <= 1))
        MB_RAISE(MB_EUSAGE, "%s: the share of %s is %g; it lies above 0 and up to 1", key, part->name,
                 part->share);
    for (int64_t k = 0; k < i; k++)
        if (mb_str_equal(parts->part[k].name, part->name))
            MB_RAISE(MB_EUSAGE, "%s: two parts are named %s", key, part->name);
    for (int64_t k = 0; k < part->source_count; k++) MB_TRY(check_sum(key, parts, part->sources[k]));
done:
    return status;
}

mb_status mb_merge_parts_read(const char *key, const char *text, mb_merge_parts *out_parts)
{
    mb_status status = MB_OK;
    mb_merge_parts parts = {0};
    MB_TRY(read_list(key, text != NULL ? text : "", &parts));
    if (parts.count == 0) MB_RAISE(MB_EUSAGE, "%s is empty; write name=share,name=share", key);
    for (int64_t i = 0; i < parts.count; i++) MB_TRY(check_part(key, &parts, i));
    MB_TRY(check_sum(key, &parts, NULL));
    *out_parts = parts;
    parts = (mb_merge_parts){0};
done:
    mb_merge_parts_reset(&parts);
    return status;
}

void mb_merge_parts_reset(mb_merge_parts *parts)
{
    for (int64_t i = 0; i < parts->count; i++) {
        mb_merge_part *part = &parts->part[i];
        for (int64_t k = 0; k < part->source_count; k++) mb_free(part->sources[k]);
        mb_free(part->sources);
        mb_free(part->name);
    }
    mb_free(parts->part);
    *parts = (mb_merge_parts){0};
}

/* ---- 3. sharing out ---- */

mb_status mb_merge_parts_get(const mb_merge_parts *parts, const mb_question *question, uint64_t seed,
                             int64_t *out_part)
{
    mb_status status = MB_OK;
    const bool is_named = mb_merge_parts_is_named(parts, question->source);
    uint64_t hash;
    double end = 0;
    MB_TRY(mb_question_text_hash(question, &hash));
    const double at = (double)(mb_hash_u64(&hash, sizeof hash, seed) >> 11) * 0x1p-53;
    *out_part = -1;
    for (int64_t i = 0; i < parts->count && *out_part < 0; i++) {
        if (!takes(&parts->part[i], question->source, is_named)) continue;
        end += parts->part[i].share;
        if (at < end || end > 1 - 1e-9) *out_part = i;
    }
done:
    return status;
}
