/* convert_upcycle_set: the folders an upcycled model is made of, opened and found to fit each other.
 *
 * 1. folders
 * 2. siblings
 * 3. nothing left over
 * 4. the set
 */
#include <string.h>

#include "base/option.h"
#include "model/convert_upcycle_tensor.h"

/* ---- 1. folders ---- */

static mb_status set_add(mb_convert_upcycle_set *set, const char *path)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_model *model = &set->models[set->count++];
    model->path = mb_strdup(path);
    if (model->path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
    MB_TRY(mb_convert_folder_open(&model->folder, path));
done:
    return status;
}

/* ---- 2. siblings ---- */

/* Whatever changes a shape or the function; the rest of config.json may differ. */
static mb_status set_check_sibling(const mb_arch *a, const char *path, const mb_arch *b, const char *sibling)
{
    mb_status status = MB_OK;
    const struct {
        const char *name;
        double a, b;
    } fields[] = {{"hidden_size", (double)a->width, (double)b->width},
                  {"num_hidden_layers", (double)a->layers, (double)b->layers},
                  {"intermediate_size", (double)a->ffn, (double)b->ffn},
                  {"num_attention_heads", (double)a->heads, (double)b->heads},
                  {"num_key_value_heads", (double)a->kv_heads, (double)b->kv_heads},
                  {"head_dim", (double)a->head_width, (double)b->head_width},
                  {"vocab_size", (double)a->vocab, (double)b->vocab},
                  {"tie_word_embeddings", a->tied_head, b->tied_head},
                  {"attention_bias", a->attention_bias, b->attention_bias},
                  {"rms_norm_eps", a->rms_eps, b->rms_eps},
                  {"rope_theta", a->rope_theta, b->rope_theta},
                  {"rope_scaling type", (double)a->rotary.type, (double)b->rotary.type},
                  {"rope_scaling factor", a->rotary.factor, b->rotary.factor},
                  {"sliding_window", (double)a->window, (double)b->window}};
    if (b->family != a->family)
        MB_RAISE(MB_ESHAPE, "%s: is a %s model, %s is %s; siblings are fine-tuned copies of one model",
                 sibling, mb_arch_facts(b)->type, path, mb_arch_facts(a)->type);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].a != fields[i].b)
            MB_RAISE(MB_ESHAPE,
                     "%s: %s is %.10g, that of %s is %.10g; siblings are fine-tuned copies of one model",
                     sibling, fields[i].name, fields[i].b, path, fields[i].a);
    if (memcmp(a->layer, b->layer, (size_t)a->layers) != 0 ||
        memcmp(&a->rotary, &b->rotary, sizeof a->rotary) != 0)
        MB_RAISE(MB_ESHAPE, "%s: its rope_scaling or its windows are not those of %s", sibling, path);
done:
    return status;
}

static mb_status set_open_siblings(mb_convert_upcycle_set *set)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0;
    const mb_convert_upcycle_options *o = set->options;
    MB_TRY(mb_option_list_split(o->siblings, &items, &n));
    mb_convert_upcycle_model *models = mb_realloc(set->models, (size_t)n + 1, sizeof *models);
    if (models == NULL) MB_RAISE(MB_ENOMEM, "convert.siblings: no memory");
    set->models = models;
    memset(models + 1, 0, (size_t)n * sizeof *models);
    for (int64_t i = 0; i < n; i++) {
        MB_TRY(set_add(set, items[i]));
        MB_TRY(
            set_check_sibling(&models[0].folder.arch, models[0].path, &models[i + 1].folder.arch, items[i]));
    }
    set->first = n > 0 && !o->source_is_sibling;
    if (n > 0 && set->count - set->first > set->plan.groups)
        MB_RAISE(MB_EUSAGE,
                 "convert.siblings: %lld models give experts, but there are only %lld %s to give; raise "
                 "convert.experts to %lld",
                 (long long)(set->count - set->first), (long long)set->plan.groups,
                 set->plan.shards > 1 ? "groups of shards" : "experts",
                 (long long)((set->count - set->first) * set->plan.shards));
done:
    mb_option_list_free(&items, n);
    return status;
}

/* ---- 3. nothing left over ---- */

/* Tensors that a model of this architecture does not have would be lost without a word. */
static mb_status set_check_rest(mb_convert_upcycle_set *set, const mb_convert_upcycle_model *model)
{
    mb_status status = MB_OK;
    const mb_safetensors *file = model->folder.source_file;
    for (int64_t i = 0; i < mb_safetensors_count(file); i++)
        if (!mb_params_source_is_known(set->source, mb_safetensors_name(file, i)))
            MB_RAISE(MB_EDATA,
                     "%s: tensor %s is no part of a %s model as config.json describes it, and would be lost; "
                     "correct config.json, or save the model without it",
                     model->path, mb_safetensors_name(file, i), mb_arch_facts(&model->folder.arch)->type);
done:
    return status;
}

/* ---- 4. the set ---- */

mb_status mb_convert_upcycle_set_open(mb_convert_upcycle_set *set, const char *source,
                                      const mb_convert_upcycle_options *options)
{
    mb_status status = MB_OK;
    set->options = options;
    MB_NEW_ARRAY(set->models, 1);
    MB_TRY(set_add(set, source));
    const mb_arch *dense = &set->models[0].folder.arch;
    MB_TRY(mb_convert_upcycle_plan_create(dense, source, options, &set->plan));
    MB_TRY(set_open_siblings(set));
    MB_TRY(mb_params_create(&set->models[0].folder.arch, NULL, &set->source));
    MB_TRY(mb_params_choose(set->source, "none"));
    MB_TRY(mb_params_create(&set->plan.arch, NULL, &set->target));
    MB_TRY(mb_params_choose(set->target, "none"));
    for (int64_t i = 0; i < set->count; i++) MB_TRY(set_check_rest(set, &set->models[i]));
done:
    return status;
}

void mb_convert_upcycle_set_reset(mb_convert_upcycle_set *set)
{
    for (int64_t i = 0; i < set->count; i++) {
        mb_convert_folder_reset(&set->models[i].folder);
        mb_free(set->models[i].path);
    }
    mb_free(set->models);
    mb_params_destroy(&set->source);
    mb_params_destroy(&set->target);
    mb_convert_upcycle_plan_reset(&set->plan);
    mb_free(set->prompted);
    *set = (mb_convert_upcycle_set){0};
}
