/* forecast_history.c: records of finished runs, and which of them is the same work.
 *
 * 1. records below a folder   2. the same keys   3. the same model   4. choosing
 */
#include "stage/forecast_history.h"

#include <stdio.h>
#include <string.h>

#include "base/files.h"

enum { MOST_RECORDS = 400, DEPTH = 6 };

typedef struct past_record {
    char *folder;
    json_t *json;
} past_record;

typedef struct past_records {
    past_record record[MOST_RECORDS];
    int64_t count;
} past_records;

/* ---- 1. records below a folder ---- */

static void records_free(past_records **records)
{
    if (*records == NULL) return;
    for (int64_t i = 0; i < (*records)->count; i++) {
        mb_free((*records)->record[i].folder);
        json_decref((*records)->record[i].json);
    }
    MB_FREE(*records);
}

static bool is_known_folder(const past_records *records, const char *folder)
{
    for (int64_t i = 0; i < records->count; i++)
        if (mb_str_equal(records->record[i].folder, folder)) return true;
    return false;
}

/* A folder that cannot be read, or a record that is no JSON, is passed over. */
static mb_status collect(past_records *records, const char *folder, int depth)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL;
    int64_t n = 0;
    json_t *json = NULL;
    char *done = mb_files_join(folder, "done.json");
    if (done == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (records->count >= MOST_RECORDS || is_known_folder(records, folder)) goto done;
    if (mb_files_is_file(done)) {
        if (mb_json_read(done, &json) == MB_OK) {
            past_record *record = &records->record[records->count];
            record->folder = mb_strdup(folder);
            record->json = json;
            if (record->folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
            records->count++;
        }
        goto done; /* stages do not hold stages */
    }
    if (depth == 0 || mb_files_list(folder, &names, &n) != MB_OK) goto done;
    for (int64_t i = 0; i < n; i++) {
        path = mb_files_join(folder, names[i]);
        if (path != NULL && mb_files_is_folder(path)) MB_TRY(collect(records, path, depth - 1));
        MB_FREE(path);
    }
done:
    mb_free(path);
    mb_free(done);
    mb_files_free_names(&names, n);
    return status;
}

/* ---- 2. the same keys ---- */

/* Keys that decide what a token costs. */
static const char *const work_keys[] = {"model.dtype",
                                        "model.bf16",
                                        "model.quantize",
                                        "model.load_in_8bit",
                                        "model.load_in_4bit",
                                        "model.quantize_group",
                                        "model.shard",
                                        "training.objective",
                                        "training.peft_mode",
                                        "training.trainable",
                                        "training.lora.r",
                                        "training.lora.target_modules",
                                        "training.recompute",
                                        "training.zero",
                                        "training.constraint_loss",
                                        "training.balance_scope",
                                        "fuse.mixing",
                                        "fuse.router_hidden",
                                        "fuse.members_on",
                                        "teacher.quantize",
                                        "score.scores",
                                        "score.score_layers",
                                        "backend",
                                        "dataset.max_length"};
/* Those of a LoRA run count only there. */
static bool is_idle(const mb_forecast_stage *stage, const char *key)
{
    if (stage->program != MB_FORECAST_TRAIN) return mb_str_is_prefix(key, "training.");
    if (mb_str_is_prefix(key, "training.lora.")) return !mb_str_equal(stage->own.train.peft_mode, "lora");
    if (mb_str_equal(key, "training.constraint_loss"))
        return !mb_str_equal(stage->own.train.objective.objective, "router_warmup");
    return mb_str_is_prefix(key, "score.");
}

/* What a key is when nobody says it; records written before a key was made do not have it. */
static const char *default_of(const mb_forecast_stage *stage, const char *key)
{
    const mb_option *option = mb_option_find(stage->tables, stage->table_count, key, NULL, NULL);
    return option != NULL && option->default_text != NULL ? option->default_text : "";
}

/* A teacher that is asked while training costs more than one whose answers are read. */
static bool has_same_teacher(const mb_forecast_stage *stage, const json_t *config)
{
    if (!mb_forecast_stage_is_distil(stage)) return true;
    const char *text = json_string_value(json_object_get(config, "teacher.store"));
    return (text != NULL && text[0] != 0) == (stage->own.train.objective.teacher_store != NULL);
}

/* "auto" may have come to either: what a record's provenance says it ran on counts. */
static bool is_same_device(const mb_forecast_stage *stage, const json_t *json)
{
    const char *backend = json_string_value(json_object_get(json_object_get(json, "provenance"), "backend"));
    return (backend != NULL && mb_str_is_prefix(backend, "cuda")) == stage->on_gpu;
}

static bool is_same_work(const mb_forecast_stage *stage, const json_t *mine, const json_t *json)
{
    const json_t *config = json_object_get(json, "config");
    const char *program = json_string_value(json_object_get(json, "program"));
    if (!mb_str_equal(program, mb_forecast_stage_name(stage->program)) || !json_is_object(config) ||
        !is_same_device(stage, json) || !has_same_teacher(stage, config))
        return false;
    for (size_t i = 0; i < sizeof work_keys / sizeof *work_keys; i++) {
        const char *key = work_keys[i], *a = json_string_value(json_object_get(mine, key)),
                   *b = json_string_value(json_object_get(config, key));
        if (is_idle(stage, key) || (stage->on_gpu && mb_str_equal(key, "backend"))) continue;
        if (a == NULL) a = default_of(stage, key);
        if (b == NULL) b = default_of(stage, key);
        if (!mb_str_equal(a, b)) return false;
    }
    return true;
}

/* ---- 3. the same model ---- */

static bool read_arch(const char *folder, const char *name, mb_arch *arch)
{
    char *path = name != NULL ? mb_files_join(folder, name) : mb_strdup(folder),
         *file = path != NULL ? mb_files_join(path, "config.json") : NULL;
    bool found = file != NULL && mb_files_is_file(file) && mb_arch_read(path, arch) == MB_OK;
    mb_free(path);
    mb_free(file);
    return found;
}

/* The folder whose content hash is this, among the outputs of all records. */
static bool find_by_hash(const past_records *records, const char *hash, mb_arch *arch)
{
    const char *name;
    json_t *value;
    for (int64_t i = 0; hash != NULL && i < records->count; i++) {
        json_object_foreach(json_object_get(records->record[i].json, "outputs"), name, value)
        {
            if (mb_str_equal(json_string_value(value), hash) &&
                read_arch(records->record[i].folder, name, arch))
                return true;
        }
    }
    return false;
}

static bool has_shape(const past_records *records, const past_record *record, const char *shape)
{
    char theirs[200];
    mb_arch arch = {0};
    const char *said =
        json_string_value(json_object_get(json_object_get(record->json, "results"), "model_shape"));
    if (said != NULL) return mb_str_equal(said, shape);
    const char *hash = json_string_value(json_object_get(json_object_get(record->json, "inputs"), "model"));
    bool found = find_by_hash(records, hash, &arch) || read_arch(record->folder, "final", &arch);
    if (found) mb_forecast_model_shape(&arch, NULL, theirs);
    mb_arch_reset(&arch);
    return found && mb_str_equal(theirs, shape);
}

/* ---- 4. choosing ---- */

/* "cpu oneDNN 2.6.3 ..., 2 threads" -> 2; 0 when it does not say. */
static int64_t threads_of(const json_t *provenance)
{
    const char *text = json_string_value(json_object_get(provenance, "backend"));
    long long threads = 0;
    const char *comma = text != NULL ? strrchr(text, ',') : NULL;
    if (comma == NULL || sscanf(comma, ", %lld thread", &threads) != 1) return 0;
    return threads;
}

static double seconds_of(const json_t *results)
{
    static const char *const names[] = {"train_seconds", "score_seconds", "embed_seconds",
                                        "generate_seconds"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *value = json_object_get(results, names[i]);
        if (json_is_number(value)) return json_number_value(value);
    }
    return 0;
}

/* Better: the asked layout, then the later one. Threads make no difference to a GPU. */
static void consider(const past_record *record, bool on_gpu, int64_t ranks, int64_t threads,
                     mb_forecast_past *best, const char **best_ended)
{
    const json_t *results = json_object_get(record->json, "results"),
                 *provenance = json_object_get(record->json, "provenance");
    const char *ended = json_string_value(json_object_get(provenance, "ended"));
    mb_forecast_past past = {.is_found = true,
                             .tokens = json_number_value(json_object_get(results, "tokens")),
                             .seconds = seconds_of(results),
                             .ranks = json_integer_value(json_object_get(provenance, "ranks")),
                             .threads = on_gpu ? threads : threads_of(provenance)};
    if (past.tokens <= 0 || past.seconds <= 0 || past.ranks < 1 || past.threads < 1) return;
    const bool is_asked = past.ranks == ranks && past.threads == threads,
               was_asked = best->is_found && best->ranks == ranks && best->threads == threads;
    if (best->is_found && was_asked && !is_asked) return;
    if (best->is_found && was_asked == is_asked && strcmp(ended != NULL ? ended : "", *best_ended) <= 0)
        return;
    snprintf(past.path, sizeof past.path, "%s", record->folder);
    past.looked_at = best->looked_at;
    *best = past;
    *best_ended = ended != NULL ? ended : "";
}

mb_status mb_forecast_history_find(const mb_forecast_stage *stage, const mb_forecast_model *model,
                                   const char *folder, const char *opt_near, int64_t ranks, int64_t threads,
                                   mb_forecast_past *out_past)
{
    mb_status status = MB_OK;
    past_records *records = NULL;
    mb_forecast_past best = {0};
    json_t *mine = NULL;
    char shape[200];
    const char *ended = "";
    if (model->is_encoder) goto done;
    MB_NEW(records);
    if (opt_near != NULL && mb_files_is_folder(opt_near)) MB_TRY(collect(records, opt_near, DEPTH));
    if (mb_files_is_folder(folder)) MB_TRY(collect(records, folder, DEPTH));
    MB_TRY(mb_config_resolved(stage->tables, stage->table_count, &mine));
    mb_forecast_model_shape(&model->arch, mb_forecast_model_kind(model), shape);
    best.looked_at = records->count;
    for (int64_t i = 0; i < records->count; i++) {
        const past_record *record = &records->record[i];
        if (is_same_work(stage, mine, record->json) && has_shape(records, record, shape))
            consider(record, stage->on_gpu, ranks, threads, &best, &ended);
    }
done:
    *out_past = best;
    json_decref(mine);
    records_free(&records);
    return status;
}
