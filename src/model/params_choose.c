/* params_choose: which tensors of a model train.
 *
 * 1. kinds of tensors   2. an item of the list   3. only some experts   4. the list
 */
#include "model/params_choose.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "base/option.h"

/* ---- 1. kinds of tensors ---- */

bool mb_params_choose_is_lora(const mb_param *param)
{
    return strstr(param->name, ".lora_") != NULL;
}

bool mb_params_choose_is_router(const mb_param *param)
{
    return mb_str_is_suffix(param->name, ".gate.weight");
}

/* Number of the expert a tensor belongs to, -1 for none. */
static int64_t expert_of(const mb_param *param)
{
    const char *place = strstr(param->name, ".experts.");
    return place != NULL ? strtoll(place + strlen(".experts."), NULL, 10) : -1;
}

typedef struct choice {
    mb_param *list;
    int64_t count;
} choice;

/* ---- 2. an item of the list ---- */

static bool is_word(const char *item)
{
    return mb_str_equal(item, "all") || mb_str_equal(item, "router") || mb_str_equal(item, "experts") ||
           mb_str_equal(item, "attention");
}

static bool matches(const char *item, const mb_param *param)
{
    if (mb_str_equal(item, "all")) return true;
    if (mb_str_equal(item, "router")) return mb_params_choose_is_router(param);
    if (mb_str_equal(item, "experts")) return expert_of(param) >= 0;
    if (mb_str_equal(item, "attention")) return strstr(param->name, ".self_attn.") != NULL;
    return fnmatch(item, param->name, 0) == 0;
}

static mb_status no_match(const choice *all, const char *item)
{
    mb_status status = MB_OK;
    const char **names = NULL;
    char plain[160];
    size_t n = 0;
    if (is_word(item)) MB_RAISE(MB_EUSAGE, "train: '%s' names nothing this model has", item);
    for (const char *c = item; *c != 0 && n + 1 < sizeof plain; c++)
        if (*c != '*') plain[n++] = *c;
    plain[n] = 0;
    MB_NEW_ARRAY(names, all->count);
    for (int64_t i = 0; i < all->count; i++) {
        size_t length = strlen(all->list[i].name);
        bool open = item[0] == '*' && length > n;
        names[i] = all->list[i].name + (open ? length - n : 0);
    }
    const char *near = mb_str_nearest(plain, names, all->count);
    if (near == NULL) near = all->list[all->count / 2].name;
    MB_RAISE(MB_EUSAGE, "train: pattern '%s' matches no tensor of the model; there is '%s%s'", item,
             item[0] == '*' ? "*" : "", near);
done:
    mb_free(names);
    return status;
}

static mb_status apply_item(const choice *all, const char *item)
{
    const bool freezes = item[0] == '!';
    const char *what = item + freezes;
    bool any = false;
    if (mb_str_equal(item, "lora") || mb_str_is_prefix(item, "experts=")) return MB_OK;
    for (int64_t i = 0; i < all->count; i++) {
        mb_param *param = &all->list[i];
        if ((!freezes && mb_params_choose_is_lora(param)) || !matches(what, param)) continue;
        param->trained = !freezes;
        any = true;
    }
    return any ? MB_OK : no_match(all, what);
}

/* ---- 3. only some experts ---- */

static int64_t count_experts(const choice *all)
{
    int64_t n = 0;
    for (int64_t i = 0; i < all->count; i++) {
        const int64_t e = expert_of(&all->list[i]);
        if (e >= n) n = e + 1;
    }
    return n;
}

/* "0+3" -> kept[0] = kept[3] = true; kept [experts]. */
static mb_status read_experts(const char *text, int64_t experts, bool *kept)
{
    mb_status status = MB_OK;
    for (const char *at = text;; at++) {
        char *end = NULL;
        const long long e = strtoll(at, &end, 10);
        if (end == at || *at < '0' || *at > '9' || (*end != 0 && *end != '+'))
            MB_RAISE(MB_EUSAGE, "train: experts=%s: give numbers of experts, as in experts=0+3", text);
        if (e >= experts)
            MB_RAISE(MB_EUSAGE,
                     "train: experts=%s: there is no expert %lld; those of this model are 0 .. %lld", text, e,
                     (long long)experts - 1);
        kept[e] = true;
        at = end;
        if (*at == 0) break;
    }
done:
    return status;
}

static mb_status keep_experts(const choice *all, const char *text)
{
    mb_status status = MB_OK;
    bool *kept = NULL, any = false;
    const int64_t experts = count_experts(all);
    if (experts == 0) MB_RAISE(MB_EUSAGE, "train: experts=%s: the model is dense, it has no experts", text);
    MB_NEW_ARRAY(kept, experts);
    MB_TRY(read_experts(text, experts, kept));
    for (int64_t i = 0; i < all->count; i++) {
        mb_param *param = &all->list[i];
        const int64_t e = expert_of(param);
        if (e < 0 || !param->trained) continue;
        any = true;
        param->trained = kept[e];
    }
    if (!any)
        MB_RAISE(MB_EUSAGE,
                 "train: experts=%s chooses among the experts that train, and none does; let them train "
                 "(training.trainable = all or experts, or gate_proj, up_proj, down_proj among the modules "
                 "of the adapter)",
                 text);
done:
    mb_free(kept);
    return status;
}

/* ---- 4. the list ---- */

/* The two halves of an adapter's module, which lie one after another, have one gradient's path. */
static mb_status check_halves(const choice *all)
{
    for (int64_t i = 0; i + 1 < all->count; i++) {
        const mb_param *a = &all->list[i], *b = a + 1;
        if (strstr(a->name, ".lora_A.") == NULL || a->trained == b->trained) continue;
        return mb_fail(
            MB_EUSAGE,
            "train: %s and %s train together or not at all; freeze an adapter's modules as a whole "
            "(!*.q_proj.*)",
            a->name, b->name);
    }
    return MB_OK;
}

mb_status mb_params_choose_apply(mb_param *list, int64_t count, const char *patterns)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0;
    const choice all = {list, count};
    const bool none = mb_str_equal(patterns, "none");
    for (int64_t i = 0; i < count; i++) list[i].trained = !none && mb_params_choose_is_lora(&list[i]);
    if (none) goto done;
    MB_TRY(mb_option_list_split(patterns, &items, &n));
    for (int64_t i = 0; i < n; i++) MB_TRY(apply_item(&all, items[i]));
    for (int64_t i = 0; i < n; i++)
        if (mb_str_is_prefix(items[i], "experts=")) MB_TRY(keep_experts(&all, items[i] + strlen("experts=")));
    MB_TRY(check_halves(&all));
done:
    mb_option_list_free(&items, n);
    return status;
}
