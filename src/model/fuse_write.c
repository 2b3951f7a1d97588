/* fuse_write: the folder of a fused model, out and in.
 *
 * fuse.json says what the members are (paths, hashes, weights), how they are mixed, and what their
 * vocabularies have in common; router.safetensors holds the router's tensors (absent for an ensemble). The
 * members' weights stay where they are; members that are not the ones written down are refused.
 *
 * 1. out
 * 2. in: members
 * 3. in: the whole
 */
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "model/fuse_state.h"
#include "store/contenthash.h"

#define FUSE_FILE    "fuse.json"
#define FUSE_FORMAT  "moebatch-fuse"
#define FUSE_VERSION 1

/* ---- 1. out ---- */

static mb_status write_member(fuse_member *member, const char *folder, json_t *list)
{
    mb_status status = MB_OK;
    json_t *json = json_object();
    char *path = NULL, *adapter = NULL;
    MB_TRY(mb_fuse_member_hashes(member));
    MB_TRY(mb_lm_base_name(folder, member->path, &path));
    if (member->adapter != NULL) MB_TRY(mb_lm_base_name(folder, member->adapter, &adapter));
    MB_TRY(mb_json_set(json, "name", json_string(member->name)));
    MB_TRY(mb_json_set(json, "path", json_string(path)));
    MB_TRY(mb_json_set(json, "adapter", adapter != NULL ? json_string(adapter) : json_null()));
    MB_TRY(mb_json_set(json, "hash", json_string(member->hash)));
    MB_TRY(mb_json_set(json, "adapter_hash", json_string(member->adapter_hash)));
    MB_TRY(mb_json_set(json, "weight", json_real(member->weight)));
    if (json_array_append(list, json) != 0) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
done:
    json_decref(json);
    mb_free(path);
    mb_free(adapter);
    return status;
}

/* Tokens that not all members have, with the names of those that do. */
static mb_status write_only(const struct mb_fuse *fuse, json_t *list)
{
    mb_status status = MB_OK;
    json_t *one = NULL, *names;
    for (int64_t i = 0; i < fuse->vocab->only_count; i++) {
        const mb_fuse_vocab_only *only = &fuse->vocab->only[i];
        if (only->token == NULL) continue;
        json_decref(one);
        one = json_object();
        names = json_array();
        for (int64_t a = 0; a < fuse->actives; a++)
            if (mb_fuse_vocab_has(fuse->vocab, a, only->id))
                (void)json_array_append_new(names, json_string(fuse->member[fuse->active[a]].name));
        MB_TRY(mb_json_set(one, "members", names));
        MB_TRY(mb_json_set(one, "token", json_string(only->token)));
        MB_TRY(mb_json_set(one, "id", json_integer(only->id)));
        if (json_array_append(list, one) != 0) MB_RAISE(MB_ENOMEM, FUSE_FILE ": no memory");
    }
done:
    json_decref(one);
    return status;
}

static mb_status write_json(mb_lm *lm, const char *folder, json_t *json)
{
    mb_status status = MB_OK;
    struct mb_fuse *fuse = lm->fuse;
    json_t *members = json_array(), *only = json_array();
    MB_TRY(mb_json_set(json, "format", json_string(FUSE_FORMAT)));
    MB_TRY(mb_json_set(json, "version", json_integer(FUSE_VERSION)));
    MB_TRY(mb_json_set(json, "kind", json_string(mb_fuse_kind_name(fuse->kind))));
    MB_TRY(mb_json_set(json, "mixing", json_string(fuse->by_logits ? "logits" : "probabilities")));
    for (int64_t m = 0; m < fuse->count; m++) MB_TRY(write_member(&fuse->member[m], folder, members));
    MB_TRY(mb_json_set(json, "members", json_incref(members)));
    if (fuse->stages > 0)
        MB_TRY(mb_json_set(
            json, "router",
            json_pack("{s:I, s:I}", "hidden", (json_int_t)fuse->hidden, "stages", (json_int_t)fuse->stages)));
    MB_TRY(write_only(fuse, only));
    MB_TRY(mb_json_set(json, "vocabulary",
                       json_pack("{s:I, s:s, s:O}", "size", (json_int_t)fuse->vocab->size, "hash",
                                 fuse->vocab->hash, "only", only)));
done:
    json_decref(members);
    json_decref(only);
    return status;
}

mb_status mb_fuse_write(mb_lm *lm, const char *folder)
{
    mb_status status = MB_OK;
    json_t *json = json_object();
    char *path = mb_files_join(folder, FUSE_FILE);
    if (path == NULL || json == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(write_json(lm, folder, json));
    if (lm->fuse->stages > 0) MB_TRY(mb_params_write(lm->params, folder, "router", MB_F32, 0, false, NULL));
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(json);
    mb_free(path);
    return status;
}

/* ---- 2. in: members ---- */

typedef struct read_work {
    json_t *json;
    char *file; /* fuse.json */
    mb_fuse_options options;
    mb_fuse_member member[MB_FUSE_MAX_MEMBERS];
    char *path[MB_FUSE_MAX_MEMBERS], *adapter[MB_FUSE_MAX_MEMBERS];
    const char *hash[MB_FUSE_MAX_MEMBERS], *adapter_hash[MB_FUSE_MAX_MEMBERS];
} read_work;

static void read_reset(read_work *work)
{
    for (int64_t m = 0; m < MB_FUSE_MAX_MEMBERS; m++) {
        mb_free(work->path[m]);
        mb_free(work->adapter[m]);
    }
    mb_free(work->file);
    json_decref(work->json);
}

/* A path as the file has it: from the folder, unless it begins at the root. */
static char *read_path(const char *folder, const char *path)
{
    return path[0] == '/' ? mb_strdup(path) : mb_files_join(folder, path);
}

static mb_status read_member(read_work *work, const char *folder, const json_t *json, int64_t m)
{
    mb_status status = MB_OK;
    const char *path, *adapter = NULL;
    mb_fuse_member *member = &work->member[m];
    work->adapter_hash[m] = "";
    MB_TRY(mb_json_get_string(json, "name", work->file, &member->name));
    MB_TRY(mb_json_get_string(json, "path", work->file, &path));
    MB_TRY(mb_json_opt_string(json, "adapter", work->file, &adapter));
    MB_TRY(mb_json_get_string(json, "hash", work->file, &work->hash[m]));
    MB_TRY(mb_json_opt_string(json, "adapter_hash", work->file, &work->adapter_hash[m]));
    MB_TRY(mb_json_get_real(json, "weight", work->file, &member->weight));
    work->path[m] = read_path(folder, path);
    if (adapter != NULL) work->adapter[m] = read_path(folder, adapter);
    if (work->path[m] == NULL || (adapter != NULL && work->adapter[m] == NULL))
        MB_RAISE(MB_ENOMEM, "%s: no memory", work->file);
    member->path = work->path[m];
    member->opt_adapter = work->adapter[m];
done:
    return status;
}

static mb_status read_check_hash(const read_work *work, int64_t m, const char *path, const char *expected)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT];
    if (!mb_files_is_folder(path))
        MB_RAISE(MB_ENOTFOUND, "%s: folder %s of member %s not found; correct its path", work->file, path,
                 work->member[m].name);
    MB_TRY(mb_contenthash_path(path, hash));
    if (strcmp(hash, expected) != 0)
        MB_RAISE(MB_EDATA,
                 "%s: member %s has changed: %s has hash %s, and the router was made for %s; give it that "
                 "model again, or train a router anew",
                 work->file, work->member[m].name, path, hash, expected);
done:
    return status;
}

/* Are the members what they were? On ranks everyone looks at its own. */
static mb_status read_check_hashes(const read_work *work, mb_comm *opt_group)
{
    mb_status status = MB_OK;
    for (int64_t m = 0; m < work->options.count; m++) {
        if (opt_group != NULL && mb_comm_rank(opt_group) != m) continue;
        MB_TRY(read_check_hash(work, m, work->path[m], work->hash[m]));
        if (work->adapter[m] != NULL)
            MB_TRY(read_check_hash(work, m, work->adapter[m], work->adapter_hash[m]));
    }
done:
    return status;
}

/* ---- 3. in: the whole ---- */

static mb_status read_kind(read_work *work)
{
    mb_status status = MB_OK;
    const char *format, *kind, *mixing = "probabilities";
    int64_t version;
    mb_fuse_options *o = &work->options;
    MB_TRY(mb_json_get_string(work->json, "format", work->file, &format));
    MB_TRY(mb_json_get_int(work->json, "version", work->file, &version));
    if (strcmp(format, FUSE_FORMAT) != 0 || version != FUSE_VERSION)
        MB_RAISE(MB_EFORMAT, "%s: format '%s' version %lld; this program reads '%s' version %d", work->file,
                 format, (long long)version, FUSE_FORMAT, FUSE_VERSION);
    MB_TRY(mb_json_get_string(work->json, "kind", work->file, &kind));
    MB_TRY(mb_json_opt_string(work->json, "mixing", work->file, &mixing));
    o->kind = MB_FUSE_ENSEMBLE;
    while (o->kind < MB_FUSE_LAYER && strcmp(kind, mb_fuse_kind_name(o->kind)) != 0) o->kind++;
    if (strcmp(kind, mb_fuse_kind_name(o->kind)) != 0)
        MB_RAISE(MB_EFORMAT, "%s: kind '%s'; there are ensemble, token_level and layer_level", work->file,
                 kind);
    o->by_logits = strcmp(mixing, "logits") == 0;
    if (!o->by_logits && strcmp(mixing, "probabilities") != 0)
        MB_RAISE(MB_EFORMAT, "%s: mixing '%s'; there are probabilities and logits", work->file, mixing);
done:
    return status;
}

static mb_status read_json(read_work *work, const char *folder)
{
    mb_status status = MB_OK;
    json_t *members, *router;
    work->file = mb_files_join(folder, FUSE_FILE);
    if (work->file == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(mb_json_read(work->file, &work->json));
    MB_TRY(read_kind(work));
    MB_TRY(mb_json_get_array(work->json, "members", work->file, &members));
    if (json_array_size(members) < 2 || json_array_size(members) > MB_FUSE_MAX_MEMBERS)
        MB_RAISE(MB_EFORMAT, "%s: %zu members; 2 to %d are possible", work->file, json_array_size(members),
                 MB_FUSE_MAX_MEMBERS);
    work->options.count = (int64_t)json_array_size(members);
    work->options.member = work->member;
    for (int64_t m = 0; m < work->options.count; m++)
        MB_TRY(read_member(work, folder, json_array_get(members, (size_t)m), m));
    if (work->options.kind == MB_FUSE_ENSEMBLE) goto done;
    MB_TRY(mb_json_get_object(work->json, "router", work->file, &router));
    MB_TRY(mb_json_get_int(router, "hidden", work->file, &work->options.router_hidden));
done:
    return status;
}

/* What the options of an ordinary model mean here. */
static mb_status read_options(const mb_lm_options *from, mb_comm *opt_group, const char *folder,
                              mb_fuse_options *to)
{
    mb_status status = MB_OK;
    const char *train = from->train != NULL ? from->train : "none";
    to->train = strcmp(train, "all") == 0 || strcmp(train, "router") == 0;
    if (!to->train && strcmp(train, "none") != 0)
        MB_RAISE(MB_EUSAGE, "train = %s: of the fused model %s its router trains (router), or nothing (none)",
                 train, folder);
    if (from->opt_adapter != NULL || from->opt_lora != NULL)
        MB_RAISE(MB_EUSAGE, "%s: a fused model takes no adapter of its own; its members have theirs", folder);
    if (from->trash_expert_ratio > 0 || from->router_bias)
        MB_RAISE(MB_EUSAGE, "%s: trash experts and routers' biases do not go with a fused model", folder);
    if (from->shard)
        MB_RAISE(MB_EUSAGE, "%s: a fused model is not cut over the ranks; set training.zero to 2 or less",
                 folder);
    to->seed = from->seed;
    to->dtype = from->dtype;
    to->frozen_bits = from->frozen_bits;
    to->frozen_group = from->frozen_group;
    to->opt_comm = from->opt_comm;
    to->share = from->share;
    to->opt_group = opt_group;
done:
    return status;
}

/* Hashes that were checked, or that another rank checked, need not be taken again. */
static void read_keep_hashes(const read_work *work, struct mb_fuse *fuse)
{
    for (int64_t m = 0; m < fuse->count; m++) {
        snprintf(fuse->member[m].hash, MB_HASH_TEXT, "%s", work->hash[m]);
        snprintf(fuse->member[m].adapter_hash, MB_HASH_TEXT, "%s", work->adapter_hash[m]);
    }
}

bool mb_fuse_is_folder(const char *path)
{
    char *file = mb_files_join(path, FUSE_FILE);
    const bool is = file != NULL && mb_files_is_file(file);
    mb_free(file);
    return is;
}

mb_status mb_fuse_open_folder(mb_ops *ops, const char *path, const mb_lm_options *options, mb_comm *opt_group,
                              mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    read_work work = {0};
    mb_comm *all = opt_group != NULL ? opt_group : options->opt_comm;
    status = read_json(&work, path);
    if (status == MB_OK) status = read_options(options, opt_group, path, &work.options);
    if (status == MB_OK) status = read_check_hashes(&work, opt_group);
    MB_TRY(all != NULL ? mb_comm_agree(all, status) : status);
    MB_TRY(mb_fuse_open_from(ops, &work.options, path, &lm));
    read_keep_hashes(&work, lm->fuse);
    *out_lm = lm;
    lm = NULL;
done:
    read_reset(&work);
    mb_lm_destroy(&lm);
    return status;
}
