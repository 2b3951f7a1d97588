/* shard_table: see the header.
 *
 * Contents: 1. JSON  2. log
 */
#include "store/shard_table.h"

#include <string.h>

#include "base/log.h"

/* ---- 1. JSON ---- */

typedef struct sums {
    int64_t samples, records, tokens, held_samples, held_records, held_tokens;
} sums;

static void add_sums(const mb_shard_table *table, int64_t i, sums *sum)
{
    sum->samples += table->tallies[i].samples;
    sum->records += table->tallies[i].records;
    sum->tokens += table->tallies[i].tokens;
    sum->held_samples += table->held_tallies[i].samples;
    sum->held_records += table->held_tallies[i].records;
    sum->held_tokens += table->held_tallies[i].tokens;
}

static double share(int64_t part, int64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

/* What inputs and types have in common. */
static mb_status set_sums(json_t *object, const sums *sum, const sums *all)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_set(object, "samples", json_integer(sum->samples)));
    MB_TRY(mb_json_set(object, "records", json_integer(sum->records)));
    MB_TRY(mb_json_set(object, "tokens", json_integer(sum->tokens)));
    MB_TRY(mb_json_set(object, "sample_share", json_real(share(sum->samples, all->samples))));
    MB_TRY(mb_json_set(object, "token_share", json_real(share(sum->tokens, all->tokens))));
    MB_TRY(mb_json_set(object, "validation_samples", json_integer(sum->held_samples)));
    MB_TRY(mb_json_set(object, "validation_records", json_integer(sum->held_records)));
    MB_TRY(mb_json_set(object, "validation_tokens", json_integer(sum->held_tokens)));
done:
    return status;
}

static mb_status set_input(const mb_shard_table *table, int64_t i, const sums *all, json_t *list)
{
    mb_status status = MB_OK;
    const mb_shard_input *input = &table->inputs[i];
    const mb_shard_draw *draw = &table->draws[i];
    sums sum = {0};
    json_t *object = json_object();
    if (object == NULL) MB_RAISE(MB_ENOMEM, "no memory for the table of inputs");
    add_sums(table, i, &sum);
    MB_TRY(mb_json_set(object, "name", json_string(input->name)));
    if (input->type != NULL) MB_TRY(mb_json_set(object, "type", json_string(input->type)));
    MB_TRY(mb_json_set(object, "template", json_string(table->templates[i])));
    MB_TRY(mb_json_set(object, "available", json_integer(draw->is_drawn ? draw->available : table->read[i])));
    if (draw->weight >= 0) MB_TRY(mb_json_set(object, "weight", json_real(draw->weight)));
    if (draw->asked >= 0) MB_TRY(mb_json_set(object, "asked", json_integer(draw->asked)));
    MB_TRY(mb_json_set(object, "left_out", json_integer(table->bad[i])));
    MB_TRY(set_sums(object, &sum, all));
    if (json_array_append(list, object) != 0) MB_RAISE(MB_ENOMEM, "no memory for the table of inputs");
done:
    json_decref(object);
    return status;
}

/* One row per type, in the order of the first input that has it. */
static mb_status set_type(const mb_shard_table *table, int64_t i, const sums *all, json_t *list)
{
    mb_status status = MB_OK;
    json_t *object = NULL;
    sums sum = {0};
    if (table->inputs[i].type == NULL) return MB_OK;
    for (int64_t j = 0; j < i; ++j)
        if (mb_str_equal(table->inputs[j].type, table->inputs[i].type)) return MB_OK;
    for (int64_t j = i; j < table->count; ++j)
        if (mb_str_equal(table->inputs[j].type, table->inputs[i].type)) add_sums(table, j, &sum);
    if ((object = json_object()) == NULL) MB_RAISE(MB_ENOMEM, "no memory for the table of types");
    MB_TRY(mb_json_set(object, "type", json_string(table->inputs[i].type)));
    MB_TRY(set_sums(object, &sum, all));
    if (json_array_append(list, object) != 0) MB_RAISE(MB_ENOMEM, "no memory for the table of types");
done:
    json_decref(object);
    return status;
}

mb_status mb_shard_table_json(const mb_shard_table *table, json_t **out_json)
{
    mb_status status = MB_OK;
    json_t *json = json_object(), *inputs = json_array(), *types = json_array();
    sums all = {0};
    if (json == NULL || inputs == NULL || types == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for the table of inputs");
    for (int64_t i = 0; i < table->count; ++i) add_sums(table, i, &all);
    MB_TRY(mb_json_set(json, "seed", json_integer(table->options->seed)));
    MB_TRY(mb_json_set(json, "shuffle", json_boolean(table->options->shuffle)));
    MB_TRY(mb_json_set(json, "oversample", json_boolean(table->options->oversample)));
    for (int64_t i = 0; i < table->count; ++i) {
        MB_TRY(set_input(table, i, &all, inputs));
        MB_TRY(set_type(table, i, &all, types));
    }
    MB_TRY(mb_json_set(json, "inputs", json_incref(inputs)));
    MB_TRY(mb_json_set(json, "types", json_incref(types)));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    json_decref(inputs);
    json_decref(types);
    return status;
}

/* ---- 2. log ---- */

static long long whole(const json_t *row, const char *key)
{
    return (long long)json_integer_value(json_object_get(row, key));
}

static void log_rows(const json_t *rows, const char *what, bool is_input)
{
    mb_info("%-20s %-14s %10s %10s %10s %7s %12s %7s %9s", what, is_input ? "type" : "",
            is_input ? "available" : "", is_input ? "asked" : "", "drawn", "share", "tokens", "share",
            "held back");
    for (size_t i = 0; i < json_array_size(rows); ++i) {
        const json_t *row = json_array_get(rows, i), *type = json_object_get(row, "type");
        char available[24] = "", asked[24] = "";
        if (is_input) {
            const bool is_all = json_object_get(row, "asked") == NULL;
            snprintf(available, sizeof available, "%lld", whole(row, "available"));
            snprintf(asked, sizeof asked, is_all ? "all" : "%lld", whole(row, "asked"));
        }
        mb_info("%-20s %-14s %10s %10s %10lld %6.2f%% %12lld %6.2f%% %9lld",
                json_string_value(is_input ? json_object_get(row, "name") : type),
                is_input && type != NULL ? json_string_value(type) : "", available, asked,
                whole(row, "samples"), 100 * json_real_value(json_object_get(row, "sample_share")),
                whole(row, "tokens"), 100 * json_real_value(json_object_get(row, "token_share")),
                whole(row, "validation_samples"));
    }
}

void mb_shard_table_log(const json_t *json)
{
    log_rows(json_object_get(json, "inputs"), "input", true);
    if (json_array_size(json_object_get(json, "types")) > 0)
        log_rows(json_object_get(json, "types"), "type", false);
}
