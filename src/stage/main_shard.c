/* moe-shard: JSONL, JSON, CSV -> token shard; or learn a tokenizer from them. */
#include "base/files.h"
#include "base/log.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "store/shard_build.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_shard_program *own;
    const mb_option *table = mb_shard_build_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "data", table, n, &own->build));
    table = mb_program_options_shard(&n);
    MB_TRY(mb_program_add_table(program, "tokenizer training", table, n, own));
done:
    return status;
}

/* Inputs of the run folder: every file by name, and the tokenizer. */
static mb_status begin(mb_program *program, bool *out_is_done)
{
    mb_shard_program *own = program->own;
    mb_status status = MB_OK;
    mb_shard_input *inputs = NULL;
    const char **names = NULL, **paths = NULL;
    int64_t n = 0;
    MB_TRY(mb_shard_build_inputs(&own->build, &inputs, &n));
    MB_NEW_ARRAY(names, n + 1);
    MB_NEW_ARRAY(paths, n + 1);
    for (int64_t i = 0; i < n; ++i) {
        names[i] = inputs[i].name;
        paths[i] = inputs[i].path;
    }
    names[n] = "tokenizer";
    paths[n] = own->build.tokenizer_path;
    MB_TRY(mb_program_begin_run_list(program, names, paths, n + 1, out_is_done));
done:
    mb_shard_build_free_inputs(&inputs, n);
    mb_free(names);
    mb_free(paths);
    return status;
}

/* What was held back; else no file of an earlier run may look like it. */
static mb_status finish_validation(mb_program *program, const mb_shard_build_report *report)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(program, "validation.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (report->validation_records == 0) {
        if (mb_program_is_root(program)) MB_TRY(mb_files_remove_tree(path));
        goto done;
    }
    mb_info("%s: %lld records, %lld tokens held back", path, (long long)report->validation_records,
            (long long)report->validation_tokens);
    MB_TRY(mb_program_result_int(program, "validation_records", report->validation_records));
    MB_TRY(mb_program_output(program, "validation.h5"));
done:
    mb_free(path);
    return status;
}

static mb_status shard(mb_program *program, const char *out_path)
{
    mb_shard_program *own = program->own;
    mb_status status = MB_OK;
    mb_shard_build_report report;
    json_t *mix = NULL;
    own->build.opt_mix = &mix;
    MB_TRY(mb_shard_build_run(program->comm, &own->build, out_path, &report));
    mb_info("%lld records, %lld tokens (%.2f bytes each) in %.1f s; left out: %lld bad, %lld too long; cut "
            "%lld, split %lld",
            (long long)report.records, (long long)report.tokens, (double)report.bytes / (double)report.tokens,
            report.seconds, (long long)report.bad, (long long)report.skipped_long, (long long)report.cut,
            (long long)report.split);
    MB_TRY(mb_program_result_int(program, "records", report.records));
    MB_TRY(mb_program_result_int(program, "tokens", report.tokens));
    MB_TRY(mb_program_result_int(program, "bad", report.bad));
    if (report.pairs > 0) {
        mb_info("%lld preference pairs, two records each", (long long)report.pairs);
        MB_TRY(mb_program_result_int(program, "pairs", report.pairs));
    }
    if (mb_program_is_root(program)) MB_TRY(mb_runfolder_result(program->run, "mix", json_incref(mix)));
    MB_TRY(finish_validation(program, &report));
    MB_TRY(mb_program_finish_run(program, "shard.h5", NULL));
done:
    json_decref(mix);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_shard_program *own = program->own;
    mb_status status = MB_OK;
    bool is_done = false, is_tokenizer = mb_str_equal(program->mode, "tokenizer");
    char *out_path = NULL;
    if (is_tokenizer) MB_FREE(own->build.tokenizer_path);
    if (program->is_dry_run) {
        mb_shard_input *inputs = NULL;
        int64_t n = 0;
        MB_TRY(mb_shard_build_inputs(&own->build, &inputs, &n));
        mb_info("%lld inputs are there and would be %s", (long long)n,
                is_tokenizer ? "learnt from" : "sharded");
        mb_shard_build_free_inputs(&inputs, n);
        goto done;
    }
    MB_TRY(begin(program, &is_done));
    if (is_done) goto done;
    if (is_tokenizer) {
        if (mb_program_is_root(program))
            status = mb_shard_build_tokenizer(&own->build, own->vocab_size, own->min_frequency,
                                              program->options.output_dir);
        MB_TRY(mb_comm_agree(program->comm, status));
        MB_TRY(mb_program_finish_run(program, "tokenizer.json", NULL));
        goto done;
    }
    out_path = mb_program_path(program, "shard.h5");
    MB_TRY(shard(program, out_path));
done:
    mb_free(out_path);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-shard",
        .purpose = "turn JSONL, JSON or CSV records into a token shard (HDF5), or learn a small byte-level "
                   "BPE from them",
        .modes = "build|tokenizer",
        .example = "  moe-shard build dataset.inputs=gsm8k=train.jsonl tokenizer.path=models/olmoe "
                   "output.dir=checkpoints/demo/shard\n"
                   "  moe-shard tokenizer dataset.inputs=all=corpus.jsonl tokenizer.vocab_size=2048 "
                   "output.dir=checkpoints/demo/tokenizer",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
