/* fuse_options.c: how programs name a fused model.
 *
 * 1. table   2. members   3. checks   4. opening   5. the record of a run
 */
#include "stage/fuse_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "stage/file_cache.h"

/* ---- 1. table ---- */

#define TEXT(member, key, value, choices, help, alias)                                                       \
    MB_OPTION_TEXT(mb_fuse_options_stage, member, "fuse." key, value, choices, help, alias)
#define WEIGHT(member, key, help, alias)                                                                     \
    MB_OPTION_REAL(mb_fuse_options_stage, member, "fuse." key, "0.5", 0, 1e6, "", help, alias)

static const mb_option table[] = {
    TEXT(foundation, "foundation", NULL, NULL, "foundation model's folder, the first member of a fused model",
         "foundation_model|foundation_model_path"),
    TEXT(sft, "sft", NULL, NULL, "fine-tuned sibling's folder, the second member",
         "sft_model|sft_model_path"),
    TEXT(foundation_adapter, "foundation_adapter", NULL, NULL, "PEFT adapter folder on the foundation model",
         NULL),
    TEXT(sft_adapter, "sft_adapter", NULL, NULL, "PEFT adapter folder on the fine-tuned sibling", NULL),
    WEIGHT(foundation_weight, "foundation_weight",
           "the foundation model's weight; weights are divided by their sum (a new router starts from them)",
           "foundation_weight"),
    WEIGHT(sft_weight, "sft_weight", "the fine-tuned sibling's weight", "sft_weight"),
    MB_OPTION_LIST(mb_fuse_options_stage, more, "fuse.more", NULL,
                   "folders of further members, each as folder or name=folder", NULL),
    MB_OPTION_LIST(mb_fuse_options_stage, more_weights, "fuse.more_weights", NULL,
                   "their weights; none: 0.5 each", NULL),
    TEXT(mixing, "mixing", "probabilities", "probabilities|logits",
         "ensemble: the weighted mean of the members' probabilities, or of their logits", "mixing"),
    TEXT(router_type, "router_type", "layer_level", "layer_level|token_level",
         "new router: one stream through both models' layers, or weights of the two next-token "
         "distributions",
         "router_type"),
    MB_OPTION_INT(mb_fuse_options_stage, router_hidden, "fuse.router_hidden", "128", 1, 65536, "columns",
                  "new router: inner width of its MLPs", "router_hidden"),
    TEXT(router, "router", NULL, NULL, "folder of a trained router (it names its members)",
         "router|router_path"),
    TEXT(members_on, "members_on", "all", "all|ranks",
         "all: every rank holds all members; ranks: rank r holds member r modulo their number, and so many "
         "ranks are one model",
         NULL),
};

const mb_option *mb_fuse_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof table[0]);
    return table;
}

/* ---- 2. members ---- */

typedef mb_fuse_options_list members;

void mb_fuse_options_list_reset(members *m)
{
    mb_option_list_free(&m->folder, m->folders);
    mb_option_list_free(&m->weight, m->weights);
    *m = (members){0};
}

static mb_status parse_weight(const char *text, double *out_weight)
{
    char *end = NULL;
    *out_weight = strtod(text, &end);
    if (end == text || *end != 0 || !(*out_weight >= 0 && *out_weight <= 1e6))
        return mb_fail(MB_EUSAGE, "fuse.more_weights: '%s' is no weight; give numbers of at least 0", text);
    return MB_OK;
}

/* Item i of fuse.more: [name=]folder. */
static mb_status add_more(members *m, int64_t i)
{
    mb_status status = MB_OK;
    char *item = m->folder[i], *equals = strchr(item, '=');
    mb_fuse_member *member = &m->member[m->count];
    double weight = 0.5;
    snprintf(m->name[m->count], sizeof m->name[0], "member_%lld", (long long)m->count + 1);
    if (m->weights > 0) MB_TRY(parse_weight(m->weight[i], &weight));
    *member = (mb_fuse_member){.name = m->name[m->count], .path = item, .weight = weight};
    if (equals != NULL && memchr(item, '/', (size_t)(equals - item)) == NULL) {
        *equals = 0;
        member->name = item;
        member->path = equals + 1;
    }
    if (member->name[0] == 0 || member->path[0] == 0)
        MB_RAISE(MB_EUSAGE, "fuse.more: item %lld has no name or no folder; write name=folder or folder",
                 (long long)i + 1);
    m->count++;
done:
    return status;
}

mb_status mb_fuse_options_list_get(const mb_fuse_options_stage *fuse, members *m)
{
    mb_status status = MB_OK;
    *m = (members){.count = 2};
    m->member[0] =
        (mb_fuse_member){"foundation", fuse->foundation, fuse->foundation_adapter, fuse->foundation_weight};
    m->member[1] = (mb_fuse_member){"sft", fuse->sft, fuse->sft_adapter, fuse->sft_weight};
    MB_TRY(mb_option_list_split(fuse->more, &m->folder, &m->folders));
    MB_TRY(mb_option_list_split(fuse->more_weights, &m->weight, &m->weights));
    if (m->folders + 2 > MB_FUSE_MAX_MEMBERS)
        MB_RAISE(MB_EUSAGE, "fuse.more names %lld folders, and a fused model has at most %d members",
                 (long long)m->folders, MB_FUSE_MAX_MEMBERS);
    if (m->weights > 0 && m->weights != m->folders)
        MB_RAISE(MB_EUSAGE, "fuse.more has %lld folders and fuse.more_weights %lld numbers; give one each",
                 (long long)m->folders, (long long)m->weights);
    for (int64_t i = 0; i < m->folders; i++) MB_TRY(add_more(m, i));
    double sum = 0;
    for (int64_t i = 0; i < m->count; i++) {
        sum += m->member[i].weight;
        for (int64_t j = 0; j < i; j++)
            if (mb_str_equal(m->member[i].name, m->member[j].name))
                MB_RAISE(MB_EUSAGE, "fuse.more: two members are called %s; write name=folder",
                         m->member[i].name);
    }
    if (sum <= 0)
        MB_RAISE(MB_EUSAGE, "fuse.foundation_weight, fuse.sft_weight and the others are all 0; one of them "
                            "must be more");
done:
    return status;
}

/* ---- 3. checks ---- */

bool mb_fuse_options_has_members(const mb_fuse_options_stage *fuse)
{
    return fuse->foundation != NULL || fuse->sft != NULL || fuse->more != NULL;
}

bool mb_fuse_options_is_given(const mb_fuse_options_stage *fuse)
{
    return fuse->router != NULL || mb_fuse_options_has_members(fuse);
}

const char *mb_fuse_options_path(const mb_fuse_options_stage *fuse, const mb_model_options *model)
{
    if (model->path != NULL) return model->path;
    return fuse->router != NULL ? fuse->router : fuse->foundation;
}

static mb_status check_names(const mb_fuse_options_stage *fuse, const mb_model_options *model)
{
    const bool by_members = mb_fuse_options_has_members(fuse);
    if (model->path != NULL && mb_fuse_options_is_given(fuse))
        return mb_fail(MB_EUSAGE, "model.path and %s both name a model; leave one of them out",
                       fuse->router != NULL ? "fuse.router" : "fuse.foundation, fuse.sft");
    if (fuse->router != NULL && by_members)
        return mb_fail(MB_EUSAGE, "fuse.router names its members itself; leave out fuse.foundation, fuse.sft "
                                  "and fuse.more, or fuse.router");
    if (by_members && (fuse->foundation == NULL || fuse->sft == NULL))
        return mb_fail(MB_EUSAGE, "%s is missing: a fused model has both fuse.foundation and fuse.sft",
                       fuse->foundation == NULL ? "fuse.foundation" : "fuse.sft");
    if ((fuse->foundation_adapter != NULL && fuse->foundation == NULL) ||
        (fuse->sft_adapter != NULL && fuse->sft == NULL))
        return mb_fail(MB_EUSAGE, "fuse.foundation_adapter and fuse.sft_adapter go on top of fuse.foundation "
                                  "and fuse.sft; give these too");
    if (fuse->more_weights != NULL && fuse->more == NULL)
        return mb_fail(MB_EUSAGE, "fuse.more_weights says nothing without fuse.more");
    return MB_OK;
}

/* What the model's own keys say that a fused model has no place for. */
static mb_status check_model(const mb_model_options *model)
{
    if (model->adapter != NULL)
        return mb_fail(MB_EUSAGE,
                       "model.adapter does not go with a fused model; give fuse.foundation_adapter "
                       "or fuse.sft_adapter");
    if (model->trash_expert_ratio > 0)
        return mb_fail(MB_EUSAGE, "model.trash_expert_ratio does not go with a fused model");
    if (model->router_bias)
        return mb_fail(MB_EUSAGE, "training.router_bias_rate does not go with a fused model: its router has "
                                  "no biases of the choice");
    if (model->shard)
        return mb_fail(MB_EUSAGE, "model.shard (training.zero = 3) does not go with a fused model; its "
                                  "members can be on different ranks instead (fuse.members_on = ranks)");
    return MB_OK;
}

mb_status mb_fuse_options_check(const mb_fuse_options_stage *fuse, const mb_model_options *model)
{
    mb_status status = MB_OK;
    members m = {0};
    MB_TRY(check_names(fuse, model));
    if (mb_fuse_options_is_given(fuse) || (model->path != NULL && mb_fuse_is_folder(model->path)))
        MB_TRY(check_model(model));
    else if (mb_str_equal(fuse->members_on, "ranks"))
        MB_RAISE(MB_EUSAGE, "fuse.members_on = ranks needs a fused model: fuse.foundation and fuse.sft, "
                            "fuse.router, or a fused folder as model.path");
    if (mb_fuse_options_has_members(fuse)) MB_TRY(mb_fuse_options_list_get(fuse, &m));
    if (fuse->router != NULL && !mb_fuse_is_folder(fuse->router))
        MB_RAISE(MB_EUSAGE, "fuse.router = %s is no folder of a fused model (it has no fuse.json)",
                 fuse->router);
done:
    mb_fuse_options_list_reset(&m);
    return status;
}

mb_status mb_fuse_options_refuse_ranks(const mb_fuse_options_stage *fuse, const char *program)
{
    if (!mb_str_equal(fuse->members_on, "ranks")) return MB_OK;
    return mb_fail(MB_EUSAGE,
                   "fuse.members_on = ranks is for moe-infer and moe-teacher; %s shares its records out over "
                   "the ranks, each with all members (fuse.members_on = all)",
                   program);
}

/* A path as fuse.json has it: from its folder, unless it begins at the root. */
static char *path_from(const char *folder, const char *path)
{
    return path[0] == '/' ? mb_strdup(path) : mb_files_join(folder, path);
}

mb_status mb_fuse_options_find_member(const char *folder, const char *name, char **out_path,
                                      char **out_adapter)
{
    mb_status status = MB_OK;
    json_t *root = NULL, *member, *list;
    const char *called = NULL, *path = NULL, *adapter = NULL;
    size_t i;
    mb_str names = MB_STR_EMPTY;
    char *file = mb_files_join(folder, "fuse.json");
    *out_path = *out_adapter = NULL;
    if (file == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_json_read(file, &root));
    MB_TRY(mb_json_get_array(root, "members", file, &list));
    json_array_foreach(list, i, member)
    {
        MB_TRY(mb_json_get_string(member, "name", file, &called));
        MB_TRY(mb_str_add_format(&names, "%s%s", i > 0 ? ", " : "", called));
        if (!mb_str_equal(called, name)) continue;
        MB_TRY(mb_json_get_string(member, "path", file, &path));
        MB_TRY(mb_json_opt_string(member, "adapter", file, &adapter));
    }
    if (path == NULL)
        MB_RAISE(MB_ENOTFOUND, "%s: no member is called %s; there are %s", file, name, mb_str_text(&names));
    *out_path = path_from(folder, path);
    if (adapter != NULL) *out_adapter = path_from(folder, adapter);
    if (*out_path == NULL || (adapter != NULL && *out_adapter == NULL))
        MB_RAISE(MB_ENOMEM, "no memory for a path");
done:
    if (status != MB_OK) MB_FREE(*out_path);
    json_decref(root);
    mb_str_destroy(&names);
    mb_free(file);
    return status;
}

/* Of a fused folder. */
static mb_status count_members(const char *folder, int64_t *out_members)
{
    mb_status status = MB_OK;
    json_t *root = NULL;
    char *path = mb_files_join(folder, "fuse.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_json_read(path, &root));
    *out_members = (int64_t)json_array_size(json_object_get(root, "members"));
    if (*out_members < 1) MB_RAISE(MB_EFORMAT, "%s names no members", path);
done:
    json_decref(root);
    mb_free(path);
    return status;
}

mb_status mb_fuse_options_members(const mb_fuse_options_stage *fuse, const mb_model_options *model,
                                  int64_t *out_members)
{
    mb_status status = MB_OK;
    members m = {0};
    const char *path = mb_fuse_options_path(fuse, model);
    *out_members = 1;
    if (mb_fuse_options_has_members(fuse)) {
        MB_TRY(mb_fuse_options_list_get(fuse, &m));
        *out_members = m.count;
    } else if (path != NULL && mb_fuse_is_folder(path)) {
        MB_TRY(count_members(path, out_members));
    }
done:
    mb_fuse_options_list_reset(&m);
    return status;
}

/* ---- 4. opening ---- */

static void show(const mb_lm *lm, const char *what)
{
    char text[512];
    size_t used = 0;
    text[0] = 0;
    for (int64_t i = 0; i < mb_fuse_members(lm) && used < sizeof text - 1; i++) {
        if (mb_fuse_get_kind(lm) == MB_FUSE_ENSEMBLE)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s %.4g", i > 0 ? ", " : "",
                                     mb_fuse_member_name(lm, i), mb_fuse_member_weight(lm, i));
        else
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i > 0 ? ", " : "",
                                     mb_fuse_member_name(lm, i));
    }
    mb_info("%s: fused model, %s of %s; computing in %s", what, mb_fuse_kind_name(mb_fuse_get_kind(lm)), text,
            mb_dtype_name(mb_lm_dtype(lm)));
}

static mb_status open_folder(const char *path, const mb_lm_options *options, mb_ops *ops, mb_comm *opt_group,
                             mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm_options lm = *options;
    lm.path = path;
    MB_TRY(mb_fuse_open_folder(ops, path, &lm, opt_group, out_lm));
    show(*out_lm, path);
done:
    return status;
}

static mb_status open_new(const mb_fuse_options_stage *fuse, const mb_lm_options *options, mb_ops *ops,
                          mb_comm *opt_group, bool new_router, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    members m = {0};
    const bool by_token = mb_str_equal(fuse->router_type, "token_level");
    MB_TRY(mb_fuse_options_list_get(fuse, &m));
    const mb_fuse_options fused = {.kind = !new_router ? MB_FUSE_ENSEMBLE
                                           : by_token  ? MB_FUSE_TOKEN
                                                       : MB_FUSE_LAYER,
                                   .by_logits = !new_router && mb_str_equal(fuse->mixing, "logits"),
                                   .count = m.count,
                                   .member = m.member,
                                   .router_hidden = fuse->router_hidden,
                                   .train = new_router && !mb_str_equal(options->train, "none"),
                                   .seed = options->seed,
                                   .dtype = options->dtype,
                                   .frozen_bits = options->frozen_bits,
                                   .frozen_group = options->frozen_group,
                                   .opt_comm = options->opt_comm,
                                   .share = options->share,
                                   .opt_group = opt_group};
    MB_TRY(mb_fuse_open(ops, &fused, out_lm));
    show(*out_lm, fuse->foundation);
done:
    mb_fuse_options_list_reset(&m);
    return status;
}

mb_status mb_fuse_options_open(const mb_fuse_options_stage *fuse, const mb_model_options *model, mb_ops *ops,
                               const char *train, mb_comm *opt_group, uint64_t seed, bool new_router,
                               mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm_options lm = {.train = train, .seed = seed};
    MB_TRY(mb_fuse_options_check(fuse, model));
    if (!mb_fuse_options_is_given(fuse) && (model->path == NULL || !mb_fuse_is_folder(model->path)))
        return mb_model_options_open(model, ops, train, NULL, seed, out_lm);
    MB_TRY(mb_model_options_storage(model, &lm));
    if (mb_fuse_options_has_members(fuse))
        MB_TRY(open_new(fuse, &lm, ops, opt_group, new_router, out_lm));
    else
        MB_TRY(open_folder(mb_fuse_options_path(fuse, model), &lm, ops, opt_group, out_lm));
done:
    return status;
}

/* ---- 5. the record of a run ---- */

mb_status mb_fuse_options_begin_run(mb_program *program, const mb_fuse_options_stage *fuse,
                                    const char *const *names, const char *const *paths, int64_t n,
                                    bool *out_is_done)
{
    mb_status status = MB_OK;
    members m = {0};
    const char **name = NULL, **path = NULL;
    char more[MB_FUSE_MAX_MEMBERS][32];
    const char *const own[][2] = {{"foundation", fuse->foundation},
                                  {"sft", fuse->sft},
                                  {"foundation_adapter", fuse->foundation_adapter},
                                  {"sft_adapter", fuse->sft_adapter},
                                  {"router", fuse->router}};
    const int64_t owns = (int64_t)(sizeof own / sizeof own[0]);
    MB_TRY(mb_fuse_options_list_get(fuse, &m));
    MB_NEW_ARRAY(name, n + owns + m.count);
    MB_NEW_ARRAY(path, n + owns + m.count);
    for (int64_t i = 0; i < n; i++) name[i] = names[i], path[i] = paths[i];
    for (int64_t i = 0; i < owns; i++) name[n + i] = own[i][0], path[n + i] = own[i][1];
    n += owns;
    for (int64_t i = 2; i < m.count; i++) {
        snprintf(more[i], sizeof more[i], "more_%lld", (long long)i - 2);
        name[n] = more[i];
        path[n++] = m.member[i].path;
    }
    MB_TRY(mb_program_begin_run_list(program, name, path, n, out_is_done));
done:
    mb_fuse_options_list_reset(&m);
    mb_free(name);
    mb_free(path);
    return status;
}

mb_status mb_fuse_options_add_key(const mb_program *program, const mb_fuse_options_stage *fuse, json_t *what)
{
    static const char *const inputs[] = {"foundation", "sft", "router", "foundation_adapter", "sft_adapter"};
    mb_status status = MB_OK;
    char more[32];
    if (!mb_fuse_options_is_given(fuse)) return MB_OK;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        MB_TRY(mb_file_cache_add_input(program, what, inputs[i]));
    for (int i = 0; i < MB_FUSE_MAX_MEMBERS; i++) {
        snprintf(more, sizeof more, "more_%d", i);
        MB_TRY(mb_file_cache_add_input(program, what, more));
    }
    if (fuse->router != NULL) goto done;
    MB_TRY(mb_json_set(what, "mixing", json_string(fuse->mixing)));
    MB_TRY(mb_json_set(what, "foundation_weight", json_real(fuse->foundation_weight)));
    MB_TRY(mb_json_set(what, "sft_weight", json_real(fuse->sft_weight)));
    if (fuse->more_weights != NULL)
        MB_TRY(mb_json_set(what, "more_weights", json_string(fuse->more_weights)));
done:
    return status;
}
