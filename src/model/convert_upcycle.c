/* convert_upcycle: the result written tensor by tensor, and beside it how it was made.
 *
 * 1. upcycle.json
 * 2. the weights
 */
#include "model/convert_upcycle.h"

#include <string.h>

#include "base/files.h"
#include "model/convert_upcycle_prompts.h"
#include "model/convert_upcycle_tensor.h"

/* ---- 1. upcycle.json ---- */

/* No path stands in it: equal models have equal hashes wherever they were made. */
static mb_status upcycle_record(const mb_convert_upcycle_set *set, json_t **out_json)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_options *o = set->options;
    json_t *json = json_object();
    if (json == NULL) MB_RAISE(MB_ENOMEM, "upcycle.json: no memory");
    MB_TRY(mb_json_set(json, "format", json_string("moebatch-upcycle")));
    MB_TRY(mb_json_set(json, "version", json_integer(1)));
    MB_TRY(mb_json_set(json, "experts", json_integer(o->experts)));
    MB_TRY(mb_json_set(json, "experts_per_token", json_integer(o->picks)));
    MB_TRY(mb_json_set(json, "granularity", json_integer(o->granularity)));
    MB_TRY(mb_json_set(json, "router_init", json_string(o->router_init)));
    MB_TRY(mb_json_set(json, "router_init_std", json_real(o->router_init_std)));
    MB_TRY(mb_json_set(json, "prompts_margin", json_real(o->prompts_margin)));
    MB_TRY(mb_json_set(json, "virtual_groups", json_boolean(o->virtual_groups)));
    MB_TRY(mb_json_set(json, "scaling", json_string(o->scaling)));
    MB_TRY(mb_json_set(json, "scaling_factor", json_real(set->plan.factor)));
    MB_TRY(mb_json_set(json, "norm_topk_prob", json_boolean(o->normalise)));
    MB_TRY(mb_json_set(json, "noise", json_real(o->noise)));
    MB_TRY(mb_json_set(json, "siblings", json_integer(set->count - 1)));
    MB_TRY(mb_json_set(json, "source_is_sibling", json_boolean(o->source_is_sibling)));
    MB_TRY(mb_json_set(json, "layers", o->layers != NULL ? json_string(o->layers) : json_null()));
    MB_TRY(mb_json_set(json, "dtype", json_string(o->dtype)));
    MB_TRY(mb_json_set(json, "seed", json_integer((json_int_t)o->seed)));
    MB_TRY(mb_json_set(json, "preserves_function", json_boolean(set->plan.is_exact)));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}

static mb_status upcycle_write_record(const mb_convert_upcycle_set *set, const char *folder)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char *path = mb_files_join(folder, "upcycle.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(upcycle_record(set, &json));
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(json);
    mb_free(path);
    return status;
}

/* ---- 2. the weights ---- */

static mb_status upcycle_write(mb_convert_upcycle_set *set, mb_convert_folder *f)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_work work = {0};
    mb_convert_upcycle_tensor t;
    const void *bytes;
    size_t n;
    for (int64_t i = 0; i < mb_params_count(set->target); i++) {
        MB_TRY(mb_convert_upcycle_tensor_find(set, i, &t));
        MB_TRY(mb_safetensors_writer_declare(f->writer, t.target->name, t.dtype, t.target->value.dims,
                                             t.target->value.shape));
    }
    for (int64_t i = 0; i < mb_params_count(set->target); i++) {
        MB_TRY(mb_convert_upcycle_tensor_find(set, i, &t));
        MB_TRY(mb_convert_upcycle_tensor_read(set, &t, &work, &bytes, &n));
        MB_TRY(mb_safetensors_writer_write(f->writer, t.target->name, bytes, n));
    }
done:
    mb_convert_upcycle_tensor_reset(&work);
    return status;
}

mb_status mb_convert_upcycle(mb_ops *ops, const char *source, const char *target,
                             const mb_convert_upcycle_options *options)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_set set = {0};
    mb_convert_folder f = {0};
    MB_TRY(mb_convert_upcycle_set_open(&set, source, options));
    if (strcmp(options->router_init, "prompts") == 0) MB_TRY(mb_convert_upcycle_prompts_run(&set, ops));
    MB_TRY(mb_arch_copy(&set.plan.arch, &f.arch));
    MB_TRY(mb_convert_folder_begin(&f, target));
    MB_TRY(upcycle_write(&set, &f));
    MB_TRY(upcycle_write_record(&set, f.folder));
    MB_TRY(mb_convert_folder_commit(&f, source, target));
done:
    mb_convert_folder_reset(&f);
    mb_convert_upcycle_set_reset(&set);
    return status;
}
