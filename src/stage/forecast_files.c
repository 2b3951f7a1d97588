/* forecast_files.c: files of every program, by the formats of docs/formats.md.
 *
 * 1. training   2. passes over a corpus   3. all
 */
#include "stage/forecast_files.h"

#include <math.h>
#include <string.h>

#include "measure/forecast.h"
#include "stage/forecast_time.h"

#define WEIGHT_FILE_BYTES 5e9   /* weights are cut into files of this size */
#define RECORD_BYTES      65536 /* done.json, run.log, progress, lease */
#define RECORD_FILES      8
#define FUSE_BYTES        2000 /* fuse.json: members, hashes, how they are mixed */

static void add(mb_forecast_files *out, const char *kind, double bytes, double files, bool is_passing)
{
    if (files <= 0 || out->count >= MB_FORECAST_FILES_MAX) return;
    out->file[out->count++] = (mb_forecast_file){kind, bytes, files, is_passing};
    if (!is_passing) {
        out->bytes += bytes;
        out->files += files;
    }
    out->peak_bytes += bytes;
    out->peak_files += files;
}

/* ---- 1. training ---- */

static mb_dtype written_dtype(const char *word, const mb_arch *arch)
{
    mb_dtype dtype = arch->stored_dtype;
    if (word != NULL && !mb_str_equal(word, "source") && mb_dtype_parse(word, &dtype) != MB_OK)
        dtype = MB_F32;
    return dtype;
}

static void add_training(const mb_forecast_stage *stage, const mb_forecast_model *model,
                         const mb_forecast_data *data, const mb_forecast_memory *memory,
                         mb_forecast_files *out)
{
    const mb_trainer_options *o = &stage->own.train.trainer;
    const double states = o->save_total_limit > 0 ? (double)o->save_total_limit + 1 : data->epoch_writes + 1,
                 writes = data->epoch_writes;
    const mb_dtype dtype = written_dtype(o->stored_dtype, &model->arch);
    if (memory->router > 0) { /* fuse.json and router.safetensors */
        const double bytes =
            mb_forecast_bytes_weights(memory->router, memory->router_tensors, MB_F32) + FUSE_BYTES;
        const bool has_best =
            !mb_str_equal(o->save_best, "false") && stage->own.train.validation_path != NULL;
        add(out, "routers", writes * bytes, writes * 3, false);
        if (has_best) { /* an earlier best goes when a state that knows of the new one is there */
            add(out, "best router", bytes, 4, false);
            add(out, "an earlier best", bytes, 2, true);
        }
    } else if (memory->adapter > 0) {
        const double bytes = mb_forecast_bytes_weights(memory->adapter, 2 * memory->tensors, MB_F32);
        add(out, "adapters", writes * bytes, writes * 3, false);
    } else if (mb_str_equal(o->save, "delta")) {
        const double bytes = mb_forecast_bytes_weights(memory->trained, (double)model->arch.layers, dtype);
        add(out, "deltas", writes * bytes, writes * 4, false);
    } else {
        const double bytes = mb_forecast_bytes_weights(memory->parameters, memory->tensors, dtype);
        add(out, "weights", writes * bytes, writes * (4 + ceil(bytes / WEIGHT_FILE_BYTES)), false);
    }
    add(out, "states to resume from", states * mb_forecast_bytes_state(memory->trained), states * 3, true);
    add(out, "metrics", data->steps / (double)(o->log_steps > 0 ? o->log_steps : 1) * 400 + 20000, 2, false);
}

/* ---- 2. passes over a corpus ---- */

static void add_scores(const mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                       const mb_forecast_data *data, mb_forecast_files *out)
{
    char **items = NULL;
    int64_t layers = opt_model != NULL ? mb_arch_moe_layers(&opt_model->arch) : 0, asked = 0;
    const mb_scorer_options *o = &stage->own.score.scorer;
    if (mb_option_list_split(o->score_layers, &items, &asked) == MB_OK && asked > 0 &&
        !mb_str_equal(items[0], "all") && asked < layers)
        layers = asked;
    mb_option_list_free(&items, asked);
    const mb_scorer_needs needs = mb_forecast_time_needs(stage);
    const double columns = (double)needs.columns;
    const double parts = mb_forecast_parts(data->tokens, (double)o->tile_tokens);
    /* A part holds per-layer values of all columns, also of those that have none. */
    add(out, "score table", mb_forecast_bytes_scores(data->records, needs.columns, needs.layered, layers), 1,
        false);
    add(out, "parts of it", data->records * (8.0 * columns + 4.0 * columns * (double)layers) + parts * 8192,
        parts, true);
}

static void add_embeddings(const mb_forecast_stage *stage, const mb_forecast_model *model,
                           const mb_forecast_data *data, mb_forecast_files *out)
{
    int64_t width = model->is_encoder ? model->encoder.width : model->arch.width;
    if (stage->own.embed.embed.dimension > 0) width = stage->own.embed.embed.dimension;
    const double bytes = mb_forecast_bytes_embeddings(data->records, width),
                 parts = mb_forecast_parts(data->tokens, (double)stage->own.embed.embed.tile_tokens);
    add(out, "embeddings", bytes, 1, false);
    if (stage->own.embed.npy) add(out, "embeddings.npy", 4 * data->records * (double)width, 1, false);
    add(out, "parts of them", bytes, parts, true);
    if (stage->own.embed.shard_path == NULL)
        add(out, "their tokens", mb_forecast_bytes_shard(data->records, data->tokens, true), 1, true);
}

/* As if every token were a target. */
static void add_teacher(const mb_forecast_stage *stage, const mb_forecast_model *model,
                        const mb_forecast_data *data, mb_forecast_files *out)
{
    const mb_teacher_maker_options *o = &stage->own.teacher.maker;
    mb_teacher_shape shape = {.vocab = model->arch.vocab,
                              .k = o->k < model->arch.vocab ? o->k : model->arch.vocab,
                              .dtype = mb_str_equal(o->dtype, "f32") ? MB_F32 : MB_F16};
    if (mb_teacher_parse_temperatures(o->temperatures, &shape) != MB_OK) mb_status_reset();
    const double bytes = data->tokens * (double)mb_teacher_row_bytes(&shape),
                 parts = mb_forecast_parts(data->tokens, (double)o->tile_tokens);
    add(out, "teacher's file", bytes + 50 * data->records, 1, false);
    add(out, "parts of it", bytes, parts, true);
}

static void add_shard(const mb_forecast_stage *stage, const mb_forecast_data *data, mb_forecast_files *out)
{
    const double bytes = mb_forecast_bytes_shard(data->records, data->tokens, data->has_loss_mask);
    if (mb_str_equal(stage->mode, "tokenizer")) {
        add(out, "tokenizer", 48.0 * (double)stage->own.shard.vocab_size, 2, false);
        return;
    }
    add(out, "shard", bytes, 1, false);
    add(out, "parts of it", bytes, 1, true);
}

/* ---- 3. all ---- */

void mb_forecast_files_get(const mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                           const mb_forecast_data *data, const mb_forecast_memory *memory,
                           mb_forecast_files *out_files)
{
    mb_forecast_files out = {0};
    const double text = data->text_bytes > 0 ? data->text_bytes : 4 * data->tokens;
    switch (stage->program) {
    case MB_FORECAST_TRAIN:
        add_training(stage, opt_model, data, memory, &out);
        break;
    case MB_FORECAST_SCORE:
        add_scores(stage, opt_model, data, &out);
        break;
    case MB_FORECAST_EMBED:
        add_embeddings(stage, opt_model, data, &out);
        break;
    case MB_FORECAST_TEACHER:
        add_teacher(stage, opt_model, data, &out);
        break;
    case MB_FORECAST_SHARD:
        add_shard(stage, data, &out);
        break;
    case MB_FORECAST_CONVERT:
        if (opt_model != NULL && !opt_model->is_encoder) {
            const char *word = stage->own.convert.upcycle.dtype;
            mb_dtype dtype = opt_model->arch.stored_dtype;
            if (mb_str_equal(stage->mode, "upcycle") && !mb_str_equal(word, "source"))
                dtype = mb_str_equal(word, "f32") ? MB_F32 : MB_BF16;
            const double bytes = mb_forecast_bytes_weights(memory->parameters, memory->tensors, dtype);
            add(&out, "weights", bytes, 4 + ceil(bytes / WEIGHT_FILE_BYTES), false);
        }
        break;
    case MB_FORECAST_SELECT:
        add(&out, "selected text", text * fmin(1, stage->own.select.select.selection_percentage), 3, false);
        break;
    case MB_FORECAST_INFER:
        add(&out, "answers",
            data->records * (double)stage->own.infer.generate.samples *
                (200 + 4.0 * (double)stage->own.infer.generate.max_new_tokens),
            1, false);
        break;
    default:
        add(&out, "results", RECORD_BYTES, 4, false);
        break;
    }
    add(&out, "record and log", RECORD_BYTES, RECORD_FILES, false);
    *out_files = out;
}
