/* train_parts: what trains, as the keys of moe-train say it. */
#include "stage/train_parts.h"

#include <string.h>

/* Without a word about experts. */
static const char *whole_of(const mb_train_program *own, bool has_adapter)
{
    const bool is_lora = mb_str_equal(own->peft_mode, "lora");
    const char *said = own->train_parts;
    if (is_lora) return said != NULL && mb_str_is_prefix(said, "lora,") ? said : "lora";
    if (said != NULL) return said;
    if (has_adapter) return "lora";
    return mb_str_equal(own->objective.objective, "router_warmup") ||
                   mb_str_equal(own->objective.objective, "btm") || mb_str_equal(own->peft_mode, "full_rank")
               ? "router"
               : "all";
}

/* ",experts=0+3", or nothing. */
static mb_status add_experts(const mb_train_program *own, mb_str *text)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0;
    const int64_t wanted = own->num_experts_to_train;
    MB_TRY(mb_option_list_split(own->experts_to_train, &items, &n));
    if (n > 0 && wanted > 0 && n != wanted)
        MB_RAISE(MB_EUSAGE,
                 "training.num_experts_to_train = %lld and training.experts_to_train = %s (%lld of them) "
                 "contradict each other; say one",
                 (long long)wanted, own->experts_to_train, (long long)n);
    for (int64_t i = 0; i < n; i++)
        MB_TRY(mb_str_add_format(text, "%s%s", i > 0 ? "+" : ",experts=", items[i]));
    for (int64_t i = 0; n == 0 && i < wanted; i++)
        MB_TRY(mb_str_add_format(text, "%s%lld", i > 0 ? "+" : ",experts=", (long long)i));
done:
    mb_option_list_free(&items, n);
    return status;
}

mb_status mb_train_parts_get(const mb_train_program *own, bool has_adapter, char **out_train)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_str_add(&text, whole_of(own, has_adapter)));
    MB_TRY(add_experts(own, &text));
    *out_train = mb_str_take(&text);
done:
    mb_str_destroy(&text);
    return status;
}
