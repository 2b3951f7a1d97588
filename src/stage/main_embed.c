/* moe-embed: every record through an encoder, or a decoder, into one vector: HDF5, and numpy on request. */
#include "base/log.h"
#include "stage/embed_tokens.h"
#include "stage/energy_report.h"
#include "stage/program.h"
#include "stage/program_options.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_embed_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_program_options_embed(&n);
    MB_TRY(mb_program_add_table(program, "data", table, n, own));
    table = mb_embedder_option_table(&n);
    MB_TRY(mb_program_add_table(program, "embedding", table, n, &own->embed));
done:
    return status;
}

/* Inputs of the run folder: model, tokenizer, and the shard or every file by name. */
static mb_status begin(mb_program *program, bool *out_is_done)
{
    mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    mb_shard_input *inputs = NULL;
    const char **names = NULL, **paths = NULL;
    int64_t n = 0, at = 0;
    if (own->build.inputs != NULL) MB_TRY(mb_shard_build_inputs(&own->build, &inputs, &n));
    MB_NEW_ARRAY(names, n + 4);
    MB_NEW_ARRAY(paths, n + 4);
    for (; at < n; ++at) {
        names[at] = inputs[at].name;
        paths[at] = inputs[at].path;
    }
    const char *const others[][2] = {{"model", own->model.path},
                                     {"adapter", own->model.adapter},
                                     {"tokenizer", own->tokenizer},
                                     {"dataset", own->shard_path}};
    for (int i = 0; i < 4; ++i, ++at) {
        names[at] = others[i][0];
        paths[at] = others[i][1];
    }
    if (program->is_dry_run)
        mb_info("%lld inputs are there and would be embedded", (long long)n + (own->shard_path != NULL));
    else
        MB_TRY(mb_program_begin_run_list(program, names, paths, at, out_is_done));
done:
    mb_shard_build_free_inputs(&inputs, n);
    mb_free(names);
    mb_free(paths);
    return status;
}

static mb_status open_model(mb_program *program, mb_encoder **encoder, mb_lm **lm)
{
    mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    mb_lm_options storage = {0};
    if (!mb_encoder_config_is(own->model.path)) {
        if (own->model.shard)
            MB_RAISE(MB_EUSAGE, "model.shard is not done for moe-embed: every rank holds the model");
        own->model.opt_comm = program->comm;
        MB_TRY(mb_model_options_open(&own->model, program->ops, "none", NULL, 0, lm));
        goto done;
    }
    MB_TRY(mb_model_options_storage(&own->model, &storage));
    if (own->model.adapter != NULL || storage.frozen_bits != 0)
        MB_RAISE(MB_EUSAGE, "%s is an encoder: adapters and quantised weights are not done for those",
                 own->model.path);
    MB_TRY(mb_encoder_open(program->ops, own->model.path, storage.dtype, encoder));
    const mb_encoder_config *config = mb_encoder_get_config(*encoder);
    mb_info("%s: encoder of %.4g M parameters, %lld layers; computing in %s", own->model.path,
            (double)mb_encoder_config_parameters(config) / 1e6, (long long)config->layers,
            mb_dtype_name(storage.dtype));
done:
    return status;
}

static mb_status finish(mb_program *program, const mb_embedder_report *report, const char *path)
{
    const mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    size_t i;
    json_t *name;
    const bool is_whole = mb_share_is_whole(program->share);
    MB_TRY(mb_program_result_int(program, "records", report->records));
    MB_TRY(mb_program_result_int(program, "tokens", report->tokens));
    MB_TRY(mb_program_result_int(program, "parts", report->parts));
    MB_TRY(mb_program_result_int(program, "cut", report->cut));
    if (own->build.inputs != NULL)
        MB_TRY(mb_program_result_int(program, "bad", mb_embed_tokens_bad(program)));
    MB_TRY(mb_program_result_real(program, "embed_seconds", report->seconds));
    json_array_foreach(report->part_names, i, name)
        MB_TRY(mb_program_output(program, json_string_value(name)));
    MB_TRY(mb_program_finish_run(program, is_whole ? "embeddings.h5" : NULL,
                                 is_whole && own->npy ? "embeddings.npy" : NULL, NULL));
    if (mb_program_is_root(program) && (is_whole || mb_program_is_whole_done(program))) {
        mb_scores_parts_remove(path); /* also of shares that came late */
        mb_embed_tokens_remove(program);
    }
done:
    return status;
}

static mb_status embed(mb_program *program, mb_embedder_model *model)
{
    mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    mb_embedder_report report = {0};
    mb_energy_report energy = {0};
    char *path = mb_program_path(program, "embeddings.h5"), *npy = mb_program_path(program, "embeddings.npy");
    MB_TRY(mb_comm_agree(program->comm, mb_embed_tokens_open(program, model, &shard)));
    MB_TRY(mb_energy_report_begin(program, &energy));
    MB_TRY(mb_embedder_run(program->comm, model, shard, own->shard_path != NULL, &own->embed, program->share,
                           path, &report));
    mb_info("%lld records, %lld tokens in %.1f s (%.0f tokens/s), %lld numbers each%s",
            (long long)report.records, (long long)report.tokens, report.seconds,
            (double)report.tokens / report.seconds, (long long)report.width,
            report.skipped_parts > 0 ? "; parts of an earlier run were used" : "");
    MB_TRY(mb_energy_report_end(program, &energy, "record", report.skipped_parts > 0 ? 0 : report.records));
    mb_shard_close(&shard);
    if (own->npy && mb_program_is_root(program) && mb_share_is_whole(program->share))
        status = mb_embeddings_export(path, npy);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(finish(program, &report, path));
done:
    mb_energy_report_reset(&energy);
    json_decref(report.part_names);
    mb_shard_close(&shard);
    mb_free(path);
    mb_free(npy);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false;
    mb_encoder *encoder = NULL;
    mb_lm *lm = NULL;
    mb_tokenizer *tokenizer = NULL;
    mb_embedder_model model = {0};
    if (own->model.path == NULL) MB_RAISE(MB_EUSAGE, "model.path is missing: the model's folder");
    if ((own->build.inputs == NULL) == (own->shard_path == NULL))
        MB_RAISE(MB_EUSAGE, "give either dataset.inputs or dataset.path");
    if (own->shard_path != NULL && own->embed.prefix != NULL)
        MB_RAISE(MB_EUSAGE, "embed.prefix needs the text: give dataset.inputs, not a shard");
    MB_TRY(begin(program, &is_done));
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    status = open_model(program, &encoder, &lm);
    if (status == MB_OK)
        status = mb_tokenizer_open(own->tokenizer != NULL ? own->tokenizer : own->model.path, &tokenizer);
    if (status == MB_OK)
        status = mb_embedder_model_open(encoder, lm, own->model.path, tokenizer, &own->embed, own->max_length,
                                        &model);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (program->is_dry_run) goto done;
    MB_TRY(embed(program, &model));
done:
    mb_embedder_model_reset(&model);
    mb_tokenizer_close(&tokenizer);
    mb_encoder_destroy(&encoder);
    mb_lm_destroy(&lm);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-embed",
        .purpose =
            "one vector per record, from an encoder (BERT, XLM-R, mGTE) or the pooled hidden state of a "
            "decoder",
        .example = "  mpirun -np 4 moe-embed model.path=models/gte-multilingual-base "
                   "dataset.inputs=mmlu=unified.jsonl output.dir=checkpoints/moe2/embed",
        .has_shares = true,
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
