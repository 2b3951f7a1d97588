/* routing_share_files.c: the three forms in which measured routing is given out.
 *
 * 1. routing.h5   2. JSON   3. log
 */
#include "measure/routing_share_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "store/h5.h"

/* ---- 1. routing.h5 ---- */

static mb_status write_cells(mb_h5 *file, const char *path, mb_dtype dtype, const void *data,
                             const mb_routing_share_result *r)
{
    const mb_tensor tensor = mb_tensor_view3(dtype, (void *)data, r->types, r->routers, r->gates);
    return mb_h5_write(file, path, &tensor);
}

static mb_status write_list(mb_h5 *file, const char *path, const int64_t *data, int64_t n)
{
    const mb_tensor tensor = mb_tensor_view1(MB_I64, (void *)data, n);
    return mb_h5_write(file, path, &tensor);
}

/* Values of the layers as a dataset [routers], with that of all layers as its attribute. */
static mb_status write_layers(mb_h5 *file, const char *folder, const char *name, const double *values,
                              int64_t routers)
{
    mb_status status = MB_OK;
    char path[128];
    const mb_tensor tensor = mb_tensor_view1(MB_F64, (void *)values, routers);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    MB_TRY(mb_h5_write(file, path, &tensor));
    MB_TRY(mb_h5_set_real(file, path, "all_layers", values[routers]));
done:
    return status;
}

/* [P, routers]: that of all layers is the mean of its row. */
static mb_status write_shuffled(mb_h5 *file, const char *folder, const double *shuffled, int64_t permutations,
                                int64_t routers)
{
    mb_status status = MB_OK;
    double *values = NULL;
    char path[128];
    if (permutations == 0) goto done;
    MB_NEW_ARRAY(values, permutations * routers);
    for (int64_t p = 0; p < permutations; p++)
        memcpy(values + p * routers, shuffled + p * (routers + 1), (size_t)routers * sizeof *values);
    const mb_tensor tensor = mb_tensor_view2(MB_F64, values, permutations, routers);
    snprintf(path, sizeof path, "%s/mutual_information_shuffled", folder);
    MB_TRY(mb_h5_write(file, path, &tensor));
done:
    mb_free(values);
    return status;
}

static mb_status write_relation(mb_h5 *file, const char *folder, const mb_routing_share_relation *relation,
                                const mb_routing_share_result *r)
{
    mb_status status = MB_OK;
    const int64_t columns = r->routers + 1;
    static const char *const names[] = {"mutual_information", "mutual_information_corrected",
                                        "mutual_information_normalised", "expert_entropy"};
    double *values = NULL;
    MB_NEW_ARRAY(values, 4 * columns);
    for (int64_t l = 0; l < columns; l++) {
        const mb_routing_information *info = &relation->info[l];
        values[l] = info->mutual;
        values[columns + l] = info->corrected;
        values[2 * columns + l] = info->normalised;
        values[3 * columns + l] = info->expert_entropy;
    }
    for (int k = 0; k < 4; k++)
        MB_TRY(write_layers(file, folder, names[k], values + k * columns, r->routers));
    MB_TRY(write_layers(file, folder, "mutual_information_p", relation->p_value, r->routers));
    MB_TRY(write_shuffled(file, folder, relation->shuffled, r->options.permutations, r->routers));
    MB_TRY(mb_h5_set_real(file, folder, "type_entropy", relation->info[r->routers].type_entropy));
done:
    mb_free(values);
    return status;
}

static mb_status write_attributes(mb_h5 *file, const mb_routing_share_result *r, const char *model_hash,
                                  const char *shard_hash)
{
    mb_status status = MB_OK;
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-routing"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "model", model_hash));
    MB_TRY(mb_h5_set_text(file, "/", "shard", shard_hash));
    MB_TRY(mb_h5_set_text(file, "/", "over", r->options.only_answers ? "answers" : "all"));
    MB_TRY(mb_h5_set_text(file, "/", "types_are", r->has_types ? "types" : "sources"));
    MB_TRY(mb_h5_set_int(file, "/", "experts", r->gates));
    MB_TRY(mb_h5_set_int(file, "/", "trash", r->trash));
    MB_TRY(mb_h5_set_int(file, "/", "picks", r->picks));
    MB_TRY(mb_h5_set_int(file, "/", "units", r->units));
    MB_TRY(mb_h5_set_int(file, "/", "permutations", r->options.permutations));
    MB_TRY(mb_h5_set_int(file, "/", "seed", r->options.seed));
done:
    return status;
}

mb_status mb_routing_share_files_write(const mb_routing_share_result *result, const char *model_hash,
                                       const char *shard_hash, const char *path)
{
    mb_status status = MB_OK;
    const mb_routing_share_result *r = result;
    const mb_tensor entropy = mb_tensor_view2(MB_F64, (void *)r->entropy, r->types, r->routers);
    mb_h5 *file = NULL;
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(write_attributes(file, r, model_hash, shard_hash));
    MB_TRY(mb_h5_write_strings(file, "/types", r->names, r->types));
    MB_TRY(write_list(file, "/layers", r->layers, r->routers));
    MB_TRY(write_list(file, "/records", r->records, r->types));
    MB_TRY(write_list(file, "/tokens", r->tokens, r->types));
    MB_TRY(write_cells(file, "/counts", MB_I64, r->counts, r));
    MB_TRY(write_cells(file, "/first_counts", MB_I64, r->first_counts, r));
    MB_TRY(write_cells(file, "/mass", MB_F64, r->mass, r));
    MB_TRY(write_cells(file, "/share", MB_F64, r->share, r));
    MB_TRY(mb_h5_write(file, "/entropy", &entropy));
    MB_TRY(write_relation(file, "/", &r->weighted, r));
    MB_TRY(write_relation(file, "/equal", &r->equal, r));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 2. JSON ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *integers(const int64_t *values, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_integer(values[i]));
    return list;
}

/* Of one layer, or of all. */
static json_t *information(const mb_routing_share_relation *relation, int64_t at)
{
    const mb_routing_information *info = &relation->info[at];
    return json_pack("{s:f, s:f, s:o, s:o, s:o, s:o, s:f}", "mutual_information", info->mutual, "corrected",
                     info->corrected, "normalised", number(info->normalised), "shuffled_mean",
                     number(relation->mean[at]), "shuffled_sd", number(relation->sd[at]), "p_value",
                     number(relation->p_value[at]), "expert_entropy", info->expert_entropy);
}

static mb_status add_relation(json_t *summary, const char *name, const mb_routing_share_relation *relation,
                              int64_t routers)
{
    mb_status status = MB_OK;
    json_t *object = information(relation, routers), *layers = json_array();
    for (int64_t l = 0; l < routers; l++) json_array_append_new(layers, information(relation, l));
    MB_TRY(mb_json_set(object, "type_entropy", json_real(relation->info[routers].type_entropy)));
    MB_TRY(mb_json_set(object, "layers", json_incref(layers)));
    MB_TRY(mb_json_set(summary, name, json_incref(object)));
done:
    json_decref(object);
    json_decref(layers);
    return status;
}

mb_status mb_routing_share_files_summary(const mb_routing_share_result *result, json_t **out_summary)
{
    mb_status status = MB_OK;
    const mb_routing_share_result *r = result;
    json_t *names = json_array(), *entropies = json_array();
    json_t *summary =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "over", r->options.only_answers ? "answers" : "all",
                  "types_are", r->has_types ? "types" : "sources", "experts", (json_int_t)r->gates, "trash",
                  (json_int_t)r->trash, "picks", (json_int_t)r->picks, "units", (json_int_t)r->units,
                  "permutations", (json_int_t)r->options.permutations);
    for (int64_t t = 0; t < r->types; t++) {
        json_t *row = json_array();
        for (int64_t l = 0; l < r->routers; l++)
            json_array_append_new(row, number(r->entropy[t * r->routers + l]));
        json_array_append_new(entropies, row);
        json_array_append_new(names, json_string(r->names[t]));
    }
    MB_TRY(mb_json_set(summary, "types", json_incref(names)));
    MB_TRY(mb_json_set(summary, "records", integers(r->records, r->types)));
    MB_TRY(mb_json_set(summary, "tokens", integers(r->tokens, r->types)));
    MB_TRY(mb_json_set(summary, "layers", integers(r->layers, r->routers)));
    MB_TRY(mb_json_set(summary, "entropy", json_incref(entropies)));
    MB_TRY(add_relation(summary, "as_they_come", &r->weighted, r->routers));
    MB_TRY(add_relation(summary, "equal", &r->equal, r->routers));
    *out_summary = json_incref(summary);
done:
    json_decref(summary);
    json_decref(names);
    json_decref(entropies);
    return status;
}

/* ---- 3. log ---- */

static void log_type(const mb_routing_share_result *r, int64_t type)
{
    double entropy = 0, trash = 0;
    const int64_t *counts = r->counts + type * r->routers * r->gates;
    for (int64_t l = 0; l < r->routers; l++)
        entropy += r->entropy[type * r->routers + l] / (double)r->routers;
    for (int64_t i = 0; i < r->routers * r->gates; i++)
        if (i % r->gates >= r->gates - r->trash) trash += (double)counts[i];
    trash /= (double)(r->tokens[type] * r->picks * r->routers);
    if (r->trash > 0)
        mb_info("  routing %-20s %8lld records %10lld tokens, entropy %.4f of %.4f nats, %.1f %% to trash",
                r->names[type], (long long)r->records[type], (long long)r->tokens[type], entropy,
                log((double)r->gates), 100 * trash);
    else
        mb_info("  routing %-20s %8lld records %10lld tokens, entropy %.4f of %.4f nats", r->names[type],
                (long long)r->records[type], (long long)r->tokens[type], entropy, log((double)r->gates));
}

static void log_layer(const char *name, const mb_routing_share_result *r, int64_t at)
{
    const mb_routing_share_relation *a = &r->weighted, *b = &r->equal;
    mb_info("  %-10s %10.6f %10.6f %8.4f %10.6f +- %8.6f %6.3f | %10.6f %10.6f +- %8.6f", name,
            a->info[at].mutual, a->info[at].corrected, a->info[at].normalised, a->mean[at], a->sd[at],
            a->p_value[at], b->info[at].mutual, b->mean[at], b->sd[at]);
}

void mb_routing_share_files_log(const mb_routing_share_result *result)
{
    const mb_routing_share_result *r = result;
    char name[32];
    for (int64_t t = 0; t < r->types; t++)
        if (r->tokens[t] > 0) log_type(r, t);
    mb_info("information between expert and %s in nats; shuffled: %s permuted over %lld records %lld times",
            r->has_types ? "type" : "source", r->has_types ? "types" : "sources", (long long)r->units,
            (long long)r->options.permutations);
    mb_info("  %-10s %10s %10s %8s %22s %6s | %10s %22s", "layer", "as it is", "corrected", "of most",
            "shuffled (mean, s.d.)", "p", "equal", "shuffled (mean, s.d.)");
    for (int64_t l = 0; l < r->routers; l++) {
        snprintf(name, sizeof name, "%lld", (long long)r->layers[l]);
        log_layer(name, r, l);
    }
    log_layer("all", r, r->routers);
}
