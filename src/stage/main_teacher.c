/* moe-teacher: a teacher's likeliest tokens for every target of a shard, in one file that any number of
 * students learn from. */
#include "base/log.h"
#include "stage/config_forecast.h"
#include "stage/energy_report.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "stage/teacher_cache.h"
#include "stage/teacher_report.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_teacher_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_fuse_option_table(&n);
    MB_TRY(mb_program_add_table(program, "fused model", table, n, &own->fuse));
    table = mb_program_options_teacher(&n);
    MB_TRY(mb_program_add_table(program, "data", table, n, own));
    table = mb_teacher_maker_option_table(&n);
    MB_TRY(mb_program_add_table(program, "teacher", table, n, &own->maker));
done:
    return status;
}

/* The ranks that are one model together, where its members are on different ones. Collective. */
static mb_status make_group(mb_program *program, mb_comm **out_group)
{
    mb_status status = MB_OK;
    const mb_teacher_program *own = program->own;
    const int ranks = mb_comm_size(program->comm);
    int64_t members = 1;
    MB_TRY(mb_comm_agree(program->comm, mb_fuse_options_check(&own->fuse, &own->model)));
    if (!mb_str_equal(own->fuse.members_on, "ranks")) goto done;
    MB_TRY(mb_comm_agree(program->comm, mb_fuse_options_members(&own->fuse, &own->model, &members)));
    if (ranks % members != 0)
        MB_RAISE(MB_EUSAGE,
                 "fuse.members_on = ranks: %d ranks are no multiple of the %lld members; start so many",
                 ranks, (long long)members);
    MB_TRY(mb_comm_split(program->comm, mb_comm_rank(program->comm) / (int)members, out_group));
done:
    return status;
}

/* The file's figures where it is whole; then the parts are not needed any more, neither those of shares that
 * came late. */
static mb_status finish(mb_program *program, const mb_file_cache *cache, const char *path)
{
    mb_status status = MB_OK;
    const bool is_whole = mb_share_is_whole(program->share);
    if (mb_program_is_root(program)) {
        status = mb_file_cache_record(program, cache);
        if (status == MB_OK && is_whole) status = mb_teacher_report_file(program, path);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, is_whole ? "teacher.h5" : NULL, is_whole ? "results.json" : NULL,
                                 NULL));
    if (mb_program_is_root(program) && (is_whole || mb_program_is_whole_done(program)))
        mb_scores_parts_remove(path);
done:
    return status;
}

static mb_status record(mb_program *program, const mb_teacher_maker_report *report)
{
    mb_status status = MB_OK;
    size_t i;
    json_t *name;
    MB_TRY(mb_program_result_int(program, "records", report->records));
    MB_TRY(mb_program_result_int(program, "tokens", report->tokens));
    MB_TRY(mb_program_result_int(program, "parts", report->parts));
    MB_TRY(mb_program_result_real(program, "teacher_seconds", report->seconds));
    json_array_foreach(report->part_names, i, name)
        MB_TRY(mb_program_output(program, json_string_value(name)));
done:
    return status;
}

/* The model through the shard. */
static mb_status make(mb_program *program, mb_shard *shard, const char *path, const mb_file_cache *cache)
{
    mb_teacher_program *own = program->own;
    mb_status status = MB_OK;
    mb_comm *group = NULL;
    mb_lm *lm = NULL;
    mb_teacher_shape shape;
    mb_teacher_forecast forecast = {0};
    mb_teacher_maker_report report = {0};
    mb_energy_report energy = {0};
    MB_TRY(make_group(program, &group));
    own->model.opt_comm = program->comm;
    status = mb_fuse_options_open(&own->fuse, &own->model, program->ops, "none", group, 0, false, &lm);
    MB_TRY(mb_comm_agree(program->comm, status));
    status = mb_teacher_maker_shape(&own->maker, lm, &shape);
    if (status == MB_OK) status = mb_teacher_report_forecast(program, &shape, shard, &forecast);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_teacher_report_memory(program, lm, &forecast, -1));
    if (program->is_dry_run) goto done;
    MB_TRY(mb_energy_report_begin(program, &energy));
    MB_TRY(mb_teacher_maker_run(program->comm, group, lm, shard, &own->maker, program->share, path, &report));
    mb_info("%lld records, %lld tokens in %.1f s (%.0f tokens/s)%s", (long long)report.records,
            (long long)report.tokens, report.seconds, (double)report.tokens / report.seconds,
            report.skipped_parts > 0 ? "; parts of an earlier run were used" : "");
    MB_TRY(mb_energy_report_end(program, &energy, "record", report.skipped_parts > 0 ? 0 : report.records));
    MB_TRY(mb_teacher_report_memory(program, lm, &forecast, report.activation_bytes));
    MB_TRY(mb_config_forecast_result(program, lm));
    mb_file_cache_keep(program, cache, path);
    MB_TRY(record(program, &report));
    MB_TRY(finish(program, cache, path));
done:
    mb_energy_report_reset(&energy);
    json_decref(report.part_names);
    mb_lm_destroy(&lm);
    mb_comm_destroy(&group);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_teacher_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false;
    mb_shard *shard = NULL;
    char *path = NULL;
    mb_file_cache cache = {0};
    const char *const names[] = {"model", "adapter", "dataset"};
    const char *const paths[] = {own->model.path, own->model.adapter, own->shard_path};
    if (own->shard_path == NULL)
        MB_RAISE(MB_EUSAGE, "dataset.path is missing: the token shard that students will learn from");
    if (!program->is_dry_run)
        MB_TRY(mb_fuse_options_begin_run(program, &own->fuse, names, paths, 3, &is_done));
    if (program->options.output_dir != NULL) path = mb_program_path(program, "teacher.h5");
    if (is_done && program->is_run && mb_program_is_root(program) && mb_share_is_whole(program->share))
        mb_scores_parts_remove(path); /* left by a process that was cut off, and went on later */
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_comm_agree(program->comm, mb_shard_open(own->shard_path, 0, &shard)));
    if (!program->is_dry_run)
        MB_TRY(mb_file_cache_begin(program, own->cache_dir, mb_teacher_cache_describe, shard, path, &cache));
    if (cache.is_hit)
        MB_TRY(finish(program, &cache, path));
    else
        MB_TRY(make(program, shard, path, &cache));
done:
    mb_file_cache_reset(&cache);
    mb_free(path);
    mb_shard_close(&shard);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-teacher",
        .purpose = "store what a teacher (a model, or several fused) says of every target token of a shard, "
                   "for any number of students",
        .example = "  mpirun -np 4 moe-teacher fuse.foundation=models/base fuse.sft=models/tuned "
                   "dataset.path=shard.h5 teacher.k=128 output.dir=checkpoints/x/teacher\n"
                   "  moe-teacher model.path=checkpoints/x/router/best dataset.path=shard.h5 "
                   "teacher.cache_dir=checkpoints/cache output.dir=checkpoints/x/teacher",
        .has_shares = true,
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
