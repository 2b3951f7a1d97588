/* moe-score: every record of a shard through the router (and, for comparison, the unconverted model) into a
 * score table. */
#include "base/log.h"
#include "measure/scorer.h"
#include "stage/config_forecast.h"
#include "stage/energy_report.h"
#include "stage/model_options.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "stage/score_cache.h"
#include "stage/score_memory.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_score_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_fuse_option_table(&n);
    MB_TRY(mb_program_add_table(program, "fused model", table, n, &own->fuse));
    table = mb_program_options_score(&n);
    MB_TRY(mb_program_add_table(program, "data", table, n, own));
    table = mb_scorer_option_table(&n);
    MB_TRY(mb_program_add_table(program, "scoring", table, n, &own->scorer));
done:
    return status;
}

/* Log-probabilities are those of model.path with its adapter; perplexity and entropy those of a model that
 * has neither adapter nor trash. One pass gives both only where the two are one. */
static mb_status check_policy(const mb_score_program *own, const mb_scorer_needs *needs)
{
    mb_status status = MB_OK;
    if (own->source_model != NULL)
        MB_RAISE(MB_EUSAGE,
                 "score logprob is of model.path (with model.adapter), and score.source_model names "
                 "another model; leave it out, or score logprob in a run of its own");
    if (own->model.adapter != NULL && needs->plain)
        MB_RAISE(MB_EUSAGE,
                 "score logprob is of the model with its adapter, perplexity and entropy of the one without; "
                 "score them in runs of their own (score.scores=logprob)");
done:
    return status;
}

static mb_status open_models(mb_program *program, const mb_scorer_needs *needs, mb_lm **router,
                             mb_lm **source)
{
    mb_score_program *own = program->own;
    mb_status status = MB_OK;
    own->model.opt_comm = program->comm;
    MB_TRY(mb_fuse_options_refuse_ranks(&own->fuse, "moe-score"));
    MB_TRY(mb_fuse_options_check(&own->fuse, &own->model));
    if (needs->router) {
        if (mb_fuse_options_is_given(&own->fuse))
            MB_RAISE(MB_EUSAGE, "a fused model has no trash experts; its scores are perplexity, entropy and "
                                "logprob (score.scores)");
        MB_TRY(mb_model_options_open(&own->model, program->ops, "none", NULL, 0, router));
        const mb_arch *arch = mb_lm_arch(*router);
        if (arch->trash + arch->declared_trash == 0)
            MB_RAISE(MB_EUSAGE,
                     "%s has no trash experts; convert it first (moe-convert trash), or set "
                     "model.trash_expert_ratio",
                     own->model.path);
    }
    if (needs->source) {
        mb_model_options options = own->model;
        if (own->source_model != NULL) options.path = own->source_model;
        if (!needs->policy) options.adapter = NULL;
        options.trash_expert_ratio = 0;
        if (own->source_model != NULL)
            MB_TRY(mb_model_options_open(&options, program->ops, "none", NULL, 0, source));
        else
            MB_TRY(mb_fuse_options_open(&own->fuse, &options, program->ops, "none", NULL, 0, false, source));
        if (mb_lm_arch(*source)->trash > 0)
            MB_RAISE(
                MB_EUSAGE,
                "perplexity, entropy and log-probabilities are scores of the unconverted model, and %s has "
                "trash experts; name the model it was made from with score.source_model (logprob: with "
                "model.path), or leave them out of score.scores",
                options.path);
    }
done:
    return status;
}

/* Done by us: the table, or the parts of our share. Where the table is on record the parts are not needed any
 * more, neither those of shares that came late. */
static mb_status finish(mb_program *program, const mb_scorer_report *report, const char *path)
{
    mb_status status = MB_OK;
    size_t i;
    json_t *name;
    const bool is_whole = mb_share_is_whole(program->share);
    MB_TRY(mb_program_result_int(program, "records", report->records));
    MB_TRY(mb_program_result_int(program, "tokens", report->tokens));
    MB_TRY(mb_program_result_int(program, "parts", report->parts));
    MB_TRY(mb_program_result_real(program, "score_seconds", report->seconds));
    json_array_foreach(report->part_names, i, name)
        MB_TRY(mb_program_output(program, json_string_value(name)));
    MB_TRY(mb_program_finish_run(program, is_whole ? "scores.h5" : NULL, NULL));
    if (mb_program_is_root(program) && (is_whole || mb_program_is_whole_done(program)))
        mb_scores_parts_remove(path);
done:
    return status;
}

/* The models through the shard. */
static mb_status score(mb_program *program, const mb_scorer_needs *needs, mb_shard *shard,
                       const char *out_path, const mb_file_cache *cache)
{
    mb_score_program *own = program->own;
    mb_status status = MB_OK;
    mb_lm *router = NULL, *source = NULL;
    mb_scorer_report report = {0};
    mb_energy_report energy = {0};
    MB_TRY(mb_comm_agree(program->comm, open_models(program, needs, &router, &source)));
    MB_TRY(mb_score_memory_report(program, router, source, needs->head, -1));
    if (program->is_dry_run) goto done;
    MB_TRY(mb_energy_report_begin(program, &energy));
    MB_TRY(
        mb_scorer_run(program->comm, router, source, shard, &own->scorer, program->share, out_path, &report));
    mb_info("%lld records, %lld tokens in %.1f s (%.0f tokens/s)%s", (long long)report.records,
            (long long)report.tokens, report.seconds, (double)report.tokens / report.seconds,
            report.skipped_parts > 0 ? "; parts of an earlier run were used" : "");
    MB_TRY(mb_energy_report_end(program, &energy, "record", report.skipped_parts > 0 ? 0 : report.records));
    MB_TRY(mb_score_memory_report(program, router, source, needs->head, report.activation_bytes));
    if (router != NULL || source != NULL)
        MB_TRY(mb_config_forecast_result(program, router != NULL ? router : source));
    mb_file_cache_keep(program, cache, out_path);
    MB_TRY(mb_comm_agree(program->comm, mb_file_cache_record(program, cache)));
    MB_TRY(finish(program, &report, out_path));
done:
    mb_energy_report_reset(&energy);
    json_decref(report.part_names);
    mb_lm_destroy(&router);
    mb_lm_destroy(&source);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_score_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false;
    mb_shard *shard = NULL;
    char *out_path = NULL;
    mb_scorer_needs needs;
    mb_file_cache cache = {0};
    if (own->shard_path == NULL) MB_RAISE(MB_EUSAGE, "dataset.path is missing: the token shard to score");
    if (!program->is_dry_run) {
        const char *const names[] = {"model", "adapter", "source_model", "dataset"};
        const char *const paths[] = {own->model.path, own->model.adapter, own->source_model, own->shard_path};
        MB_TRY(mb_fuse_options_begin_run(program, &own->fuse, names, paths, 4, &is_done));
    }
    if (program->options.output_dir != NULL) out_path = mb_program_path(program, "scores.h5");
    if (is_done && program->is_run && mb_program_is_root(program) && mb_share_is_whole(program->share))
        mb_scores_parts_remove(out_path); /* left by a process that was cut off, and went on later */
    if (is_done) goto done;
    MB_TRY(mb_scorer_needs_get(own->scorer.scores, &needs));
    if (needs.policy) MB_TRY(check_policy(own, &needs));
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_comm_agree(program->comm, mb_shard_open(own->shard_path, 0, &shard)));
    if (!program->is_dry_run)
        MB_TRY(
            mb_file_cache_begin(program, own->cache_dir, mb_score_cache_describe, shard, out_path, &cache));
    if (cache.is_hit)
        MB_TRY(mb_score_cache_finish(program, shard, &cache, out_path));
    else
        MB_TRY(score(program, &needs, shard, out_path, &cache));
done:
    mb_file_cache_reset(&cache);
    mb_free(out_path);
    mb_shard_close(&shard);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-score",
        .purpose = "score every record of a shard by the router's mass on the good experts, and by what it "
                   "is compared with",
        .example = "  mpirun -np 4 moe-score model.path=warmup/final score.source_model=models/olmoe "
                   "dataset.path=shard.h5 output.dir=checkpoints/x/score\n"
                   "  moe-score model.path=sft/final dataset.path=pairs.h5 score.scores=logprob "
                   "score.cache_dir=checkpoints/cache output.dir=checkpoints/x/reference",
        .has_shares = true,
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
