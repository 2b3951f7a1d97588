/* scores_cache.c: see the header. Names of unfinished files hold host, process and time: folders are
 * shared by nodes, where one process number is found twice.
 *
 * 1. names   2. taking   3. keeping
 */
#include "store/scores_cache.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/version_info.h"
#include "store/contenthash.h"

/* ---- 1. names ---- */

mb_status mb_scores_cache_key(const json_t *what, char out_key[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_json_print(what, 0, true, &text));
    mb_hash_bytes(mb_str_text(&text), text.length, out_key);
done:
    mb_str_destroy(&text);
    return status;
}

typedef struct cache_names {
    char *table, *card;
} cache_names;

static mb_status name_entry(const char *folder, const char *key, cache_names *names)
{
    names->table = mb_str_format("%s/%s.h5", folder, key);
    names->card = mb_str_format("%s/%s.json", folder, key);
    if (names->table == NULL || names->card == NULL)
        return mb_fail(MB_ENOMEM, "%s: not enough memory for a name", folder);
    return MB_OK;
}

static void forget_names(cache_names *names)
{
    mb_free(names->table);
    mb_free(names->card);
    *names = (cache_names){0};
}

/* A name in the same folder that no other process uses: a new block. */
static char *unique_name(const char *path)
{
    char host[128] = "host";
    gethostname(host, sizeof host - 1);
    return mb_str_format("%s.tmp.%s.%ld.%llx", path, host, (long)getpid(),
                         (unsigned long long)(mb_clock_seconds() * 1e9));
}

/* ---- 2. taking ---- */

bool mb_scores_cache_has(const char *folder, const char *key)
{
    cache_names names = {0};
    const bool has = name_entry(folder, key, &names) == MB_OK && mb_files_is_file(names.table) &&
                     mb_files_is_file(names.card);
    forget_names(&names);
    return has;
}

/* The content hash that an entry should have: false where there is none, or its card says nothing. */
static bool read_card(const char *card, char out_hash[MB_HASH_TEXT])
{
    json_t *json = NULL;
    bool found = false;
    if (mb_files_is_file(card) && mb_json_read(card, &json) == MB_OK) {
        const char *hash = json_string_value(json_object_get(json, "hash"));
        found = hash != NULL && strlen(hash) < MB_HASH_TEXT;
        if (found) memcpy(out_hash, hash, strlen(hash) + 1);
    }
    if (!found) mb_status_reset();
    json_decref(json);
    return found;
}

mb_status mb_scores_cache_take(const char *folder, const char *key, const char *path, bool *out_is_taken)
{
    mb_status status = MB_OK;
    cache_names names = {0};
    char expected[MB_HASH_TEXT], hash[MB_HASH_TEXT];
    *out_is_taken = false;
    MB_TRY(name_entry(folder, key, &names));
    if (!mb_files_is_file(names.table) || !read_card(names.card, expected)) goto done;
    *out_is_taken = mb_files_copy(names.table, path) == MB_OK && mb_contenthash_path(path, hash) == MB_OK &&
                    strcmp(hash, expected) == 0;
    if (*out_is_taken) goto done;
    mb_status_reset();
    unlink(path);
    mb_warn("%s: damaged (its content is not what %s says), so it is made again", names.table, names.card);
done:
    forget_names(&names);
    return status;
}

/* ---- 3. keeping ---- */

/* Appears under `name` at once; what was there is replaced. */
static mb_status publish(const char *aside, const char *name)
{
    mb_status status = mb_files_rename(aside, name);
    if (status != MB_OK) unlink(aside);
    return status;
}

static mb_status write_card(const char *card, const char *hash, int64_t bytes, const json_t *what)
{
    mb_status status = MB_OK;
    char host[128] = "", made[32], *aside = unique_name(card);
    gethostname(host, sizeof host - 1);
    mb_clock_iso(made);
    json_t *json =
        json_pack("{s:s, s:I, s:O, s:{s:s, s:s, s:s}}", "hash", hash, "bytes", (json_int_t)bytes, "what",
                  (json_t *)what, "provenance", "source", mb_version_source(), "host", host, "made", made);
    if (json == NULL || aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", card);
    MB_TRY(mb_json_write(aside, json, 2, false));
    MB_TRY(publish(aside, card));
done:
    json_decref(json);
    mb_free(aside);
    return status;
}

mb_status mb_scores_cache_keep(const char *folder, const char *key, const json_t *what, const char *path)
{
    mb_status status = MB_OK;
    cache_names names = {0};
    char hash[MB_HASH_TEXT], before[MB_HASH_TEXT], *aside = NULL;
    int64_t bytes = 0;
    MB_TRY(name_entry(folder, key, &names));
    MB_TRY(mb_contenthash_path(path, hash));
    MB_TRY(mb_files_size(path, &bytes));
    MB_TRY(mb_files_make_folders(folder));
    MB_TRY(mb_files_check_space(folder, bytes, "a cached score file"));
    if (read_card(names.card, before) && strcmp(before, hash) != 0)
        mb_warn("%s: the same work had another result before (content %s, now %s): results of this machine "
                "differ from run to run, or an older version made it",
                names.table, before, hash);
    aside = unique_name(names.table);
    if (aside == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_TRY(mb_files_copy(path, aside));
    MB_TRY(publish(aside, names.table));
    MB_TRY(write_card(names.card, hash, bytes, what));
done:
    forget_names(&names);
    mb_free(aside);
    return status;
}
