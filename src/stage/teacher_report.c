/* teacher_report.c: see the header.
 *
 * 1. size   2. memory   3. the file
 */
#include "stage/teacher_report.h"

#include "base/files.h"
#include "base/log.h"
#include "stage/memory_report.h"
#include "stage/program_options.h"

/* ---- 1. size ---- */

#define MIB 1048576.0

mb_status mb_teacher_report_forecast(mb_program *program, const mb_teacher_shape *shape, mb_shard *shard,
                                     mb_teacher_forecast *out_forecast)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    mb_teacher_forecast forecast;
    MB_TRY(mb_teacher_maker_forecast(shape, shard, &own->maker, &forecast));
    const int64_t bytes = forecast.rows * forecast.row_bytes;
    if (own->maker.k > shape->k)
        mb_info("teacher.k = %lld: the vocabulary has %lld tokens, all are stored", (long long)own->maker.k,
                (long long)shape->k);
    mb_info("%lld target tokens, %lld likeliest of %lld each: %lld bytes a token, %.2f %% of a dense row's "
            "%lld; a file of about %.1f MiB",
            (long long)forecast.rows, (long long)shape->k, (long long)shape->vocab,
            (long long)forecast.row_bytes, 100 * (double)forecast.row_bytes / (double)forecast.dense_bytes,
            (long long)forecast.dense_bytes, (double)bytes / MIB);
    if (program->options.output_dir != NULL && !program->is_dry_run && mb_program_is_root(program))
        MB_TRY(mb_files_check_space(program->options.output_dir, 2 * bytes,
                                    "the teacher's file and its parts (teacher.k makes it smaller)"));
    *out_forecast = forecast;
done:
    return status;
}

/* ---- 2. memory ---- */

enum { WEIGHTS, BLOCKS, ACTIVATIONS, OTHER, KINDS };

mb_status mb_teacher_report_memory(mb_program *program, mb_lm *lm, const mb_teacher_forecast *forecast,
                                   int64_t activations)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    const int64_t tokens = own->maker.tile_tokens, passes = mb_teacher_maker_passes(program->ops),
                  logits = tokens * mb_teacher_maker_logits(lm);
    const mb_lm_plan_options shape = {.tokens = tokens,
                                      .has_head = true,
                                      .ranks = mb_comm_size(program->comm),
                                      .node_ranks = mb_comm_local_size(program->comm)};
    const mb_params_bytes_used used = mb_lm_used(lm);
    const bool is_device = mb_ops_is_device(program->ops);
    mb_lm_plan plan;
    MB_TRY(mb_lm_plan_open(lm, &shape, &plan));
    mb_lm_memory memory[KINDS] = {
        {"weights", (int64_t)plan.weights, (int64_t)used.frozen + mb_lm_rope_bytes(lm)},
        {"blocks brought in", (int64_t)plan.slots, (int64_t)used.slots},
        {"activations", passes * ((int64_t)(plan.activations + plan.scratch) + logits), activations},
        {"other",
         ((int64_t)4 << 20) + (int64_t)plan.packed +
             passes * (forecast->part_bytes + (is_device ? logits : 0)),
         0}};
    if (activations < 0) {
        mb_memory_report_forecast(memory, KINDS);
        goto done;
    }
    memory[OTHER].used = mb_memory_peak_bytes(); /* the host's; on a device all above lies elsewhere */
    if (!is_device) memory[OTHER].used -= memory[WEIGHTS].used + memory[BLOCKS].used + activations;
    if (memory[OTHER].used < 0) memory[OTHER].used = 0; /* weights may be in windows, which MPI counts */
    MB_TRY(mb_memory_report_used(program, memory, KINDS));
done:
    return status;
}

/* ---- 3. the file ---- */

static mb_status write_results(mb_program *program, const mb_teacher *teacher,
                               const mb_teacher_figures *figures, double row_bytes)
{
    mb_status status = MB_OK;
    const mb_teacher_shape *shape = mb_teacher_shape_get(teacher);
    const double dense = (double)mb_teacher_dense_bytes(shape);
    char *path = mb_program_path(program, "results.json");
    json_t *list = json_array(), *json = NULL;
    for (int64_t s = 0; s < shape->temperatures; s++)
        json_array_append_new(list, json_real(shape->temperature[s]));
    json = json_pack("{s:I, s:I, s:I, s:s, s:s, s:O, s:I, s:f, s:f, s:f, s:f, s:f, s:s}", "rows",
                     (json_int_t)figures->rows, "k", (json_int_t)shape->k, "vocab", (json_int_t)shape->vocab,
                     "dtype", mb_dtype_name(shape->dtype), "targets", shape->all_targets ? "all" : "masked",
                     "temperatures", list, "file_bytes", (json_int_t)figures->bytes, "bytes_per_token",
                     row_bytes, "dense_bytes_per_token", dense, "dense_over_stored",
                     row_bytes > 0 ? dense / row_bytes : 0, "mass_mean", figures->mass_mean, "mass_p5",
                     figures->mass_p5, "content", mb_teacher_content(teacher));
    if (json == NULL || path == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for results.json");
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(json);
    json_decref(list);
    mb_free(path);
    return status;
}

mb_status mb_teacher_report_file(mb_program *program, const char *path)
{
    mb_status status = MB_OK;
    mb_teacher *teacher = NULL;
    mb_teacher_figures figures;
    MB_TRY(mb_teacher_open(path, &teacher));
    MB_TRY(mb_teacher_figures_read(teacher, &figures));
    const mb_teacher_shape *shape = mb_teacher_shape_get(teacher);
    const double row_bytes = figures.rows > 0 ? (double)figures.bytes / (double)figures.rows : 0,
                 dense = (double)mb_teacher_dense_bytes(shape);
    mb_info(
        "%s: %lld rows, %.1f MiB, %.1f bytes a token (dense: %.0f); the %lld likeliest tokens hold %.4f of "
        "the probability on the mean, %.4f at the 5th percentile",
        path, (long long)figures.rows, (double)figures.bytes / MIB, row_bytes, dense, (long long)shape->k,
        figures.mass_mean, figures.mass_p5);
    MB_TRY(mb_program_result_int(program, "rows", figures.rows));
    MB_TRY(mb_program_result_int(program, "file_bytes", figures.bytes));
    MB_TRY(mb_program_result_real(program, "bytes_per_token", row_bytes));
    MB_TRY(mb_program_result_real(program, "dense_bytes_per_token", dense));
    MB_TRY(mb_program_result_real(program, "mass_mean", figures.mass_mean));
    MB_TRY(mb_program_result_real(program, "mass_p5", figures.mass_p5));
    MB_TRY(write_results(program, teacher, &figures, row_bytes));
done:
    mb_teacher_close(&teacher);
    return status;
}
