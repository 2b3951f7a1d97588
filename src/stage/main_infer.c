/* moe-infer: text from a model. generate: continuations of prompts, JSONL in, JSONL out. */
#include "base/files.h"
#include "base/log.h"
#include "config/config.h"
#include "stage/energy_report.h"
#include "stage/infer_one.h"
#include "stage/infer_parts.h"
#include "stage/program.h"
#include "store/contenthash.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_infer_program *own;
    MB_NEW(own);
    program->own = own;
    const mb_option *table = mb_model_option_table(&n);
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_program_options_infer(&n);
    MB_TRY(mb_program_add_table(program, "prompts", table, n, own));
    table = mb_generate_option_table(&n);
    MB_TRY(mb_program_add_table(program, "generation", table, n, &own->generate));
done:
    return status;
}

/* ---- a file of prompts ---- */

/* What the answers depend on: model, tokenizer, template, prompts, and the options but for those of speed. */
static mb_status make_key(const mb_program *program, mb_lm *lm, const mb_infer_prompts *prompts,
                          char key[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    const mb_infer_program *own = program->own;
    char input[MB_HASH_TEXT];
    mb_str text = MB_STR_EMPTY;
    json_t *config = NULL, *value;
    const char *name;
    void *next;
    MB_TRY(mb_contenthash_path(own->input, input));
    MB_TRY(mb_config_resolved(program->tables, program->table_count, &config));
    json_object_foreach_safe(config, next, name, value)
    {
        if (mb_str_is_prefix(name, "output.") || mb_str_is_prefix(name, "run.") ||
            mb_str_is_prefix(name, "generate.batch") || mb_str_equal(name, "threads") ||
            mb_str_equal(name, "gpu.share") || mb_str_is_suffix(name, ".path"))
            json_object_del(config, name);
    }
    MB_TRY(mb_json_print(config, 0, true, &text));
    MB_TRY(mb_str_add_format(&text, "%s %s %s %s", mb_lm_hash(lm),
                             mb_tokenizer_hash(mb_infer_prompts_tokenizer(prompts)),
                             mb_infer_prompts_template(prompts), input));
    mb_hash_bytes(text.data, text.length, key);
done:
    json_decref(config);
    mb_str_destroy(&text);
    return status;
}

static mb_status report_run(mb_program *program, mb_energy_report *energy, mb_generate_report *mine,
                            int64_t lines, int64_t bad)
{
    mb_status status = MB_OK;
    int64_t sums[] = {mine->tokens, mine->prompt_tokens, mine->step_tokens};
    double longest[] = {mine->seconds, mine->step_seconds};
    MB_TRY(mb_comm_allreduce_i64(program->comm, sums, 3, MB_COMM_SUM));
    MB_TRY(mb_comm_minmax_f64(program->comm, longest, 2, MB_COMM_MAX));
    const double prompt_seconds = longest[0] - longest[1];
    mb_info(
        "%lld answers, %lld records left out; prompts: %lld tokens, %.1f a second; steps of decoding: %.1f "
        "tokens a second; in all %lld tokens in %.1f s (%.1f tokens/s)",
        (long long)lines, (long long)bad, (long long)sums[1], (double)sums[1] / (prompt_seconds + 1e-9),
        (double)sums[2] / (longest[1] + 1e-9), (long long)sums[0], longest[0],
        (double)sums[0] / (longest[0] + 1e-9));
    MB_TRY(mb_energy_report_end(program, energy, "token", sums[0]));
    MB_TRY(mb_program_result_int(program, "answers", lines));
    MB_TRY(mb_program_result_int(program, "left_out", bad));
    MB_TRY(mb_program_result_int(program, "tokens", sums[0]));
    MB_TRY(mb_program_result_real(program, "generate_seconds", longest[0]));
done:
    return status;
}

static mb_status answer_all(mb_program *program, mb_lm *lm, mb_infer_prompts *prompts, const mb_ids *ends)
{
    mb_status status = MB_OK;
    const mb_infer_program *own = program->own;
    mb_generate_options options = own->generate;
    mb_generate_report report = {0};
    char key[MB_HASH_TEXT] = "";
    int64_t lines = 0, bad = 0;
    mb_infer_parts *parts = NULL;
    mb_energy_report energy = {0};
    char *folder = mb_program_path(program, "parts"), *path = mb_program_path(program, "generated.jsonl"),
         *bad_path = mb_program_path(program, "generated.bad.jsonl");
    if (mb_program_is_root(program)) status = make_key(program, lm, prompts, key);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, key, sizeof key, 0));
    MB_TRY(mb_infer_parts_open(program->comm, prompts, own, folder, key, mb_generate_longest(lm, &options),
                               &parts));
    /* Where there is little work, no rank shall take more than its share at once. */
    const int64_t ranks = mb_comm_size(program->comm),
                  share = (mb_infer_prompts_count(prompts) * options.samples + ranks - 1) / ranks;
    if (options.batch_sequences > share) options.batch_sequences = share < 1 ? 1 : share;
    const mb_generate_source source = mb_infer_parts_source(parts);
    MB_TRY(mb_energy_report_begin(program, &energy));
    status = mb_generate_run(lm, mb_infer_prompts_tokenizer(prompts), ends, &options, &source, &report);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (mb_program_is_root(program)) status = mb_infer_parts_join(parts, path, bad_path, &lines, &bad);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(report_run(program, &energy, &report, lines, bad));
    MB_TRY(mb_program_finish_run(program, "generated.jsonl", bad > 0 ? "generated.bad.jsonl" : NULL, NULL));
    if (mb_program_is_root(program)) status = mb_files_remove_tree(folder);
done:
    mb_energy_report_reset(&energy);
    mb_infer_parts_close(&parts);
    mb_free(folder);
    mb_free(path);
    mb_free(bad_path);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_status status = MB_OK;
    mb_infer_program *own = program->own;
    bool is_done = false;
    mb_lm *lm = NULL;
    mb_infer_prompts *prompts = NULL;
    mb_ids ends = {0};
    if ((own->input == NULL) == (own->prompt == NULL))
        MB_RAISE(MB_EUSAGE, "give either dataset.path (a file of prompts) or prompt (one text)");
    if (own->model.shard)
        MB_RAISE(MB_EUSAGE, "model.shard does not go with generation: ranks answer each at their own pace");
    own->model.opt_comm = program->comm;
    if (own->input != NULL && !program->is_dry_run)
        MB_TRY(mb_program_begin_run(program, &is_done, "model", own->model.path, "adapter",
                                    own->model.adapter, "dataset", own->input, "tokenizer", own->tokenizer,
                                    NULL));
    if (is_done || program->asks_done) goto done; /* one prompt leaves nothing */
    MB_TRY(mb_program_open_ops(program));
    status = mb_model_options_open(&own->model, program->ops, "none", NULL, 0, &lm);
    if (status == MB_OK) status = mb_infer_prompts_open(own, mb_lm_base(lm), &prompts);
    if (status == MB_OK)
        status = mb_generate_ends_read(mb_lm_base(lm), mb_infer_prompts_tokenizer(prompts), &ends);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (program->is_dry_run) goto done;
    if (own->prompt != NULL)
        MB_TRY(mb_infer_one_run(program, lm, prompts, &ends));
    else
        MB_TRY(answer_all(program, lm, prompts, &ends));
done:
    mb_ids_destroy(&ends);
    mb_infer_prompts_close(&prompts);
    mb_lm_destroy(&lm);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-infer",
        .purpose = "text from a model: greedy or drawn, batched, the same on 1 and on N ranks",
        .modes = "generate",
        .example = "  moe-infer generate model.path=models/llama prompt=\"Once upon a time\"\n"
                   "  mpirun -np 4 moe-infer generate model.path=sft/final dataset.path=prompts.jsonl "
                   "generate.temperature=0.7 generate.top_p=0.9 output.dir=checkpoints/x/answers",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
