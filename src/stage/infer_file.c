/* infer_file: a file of prompts -> generated.jsonl, and the shares of a fused model's members. */
#include "stage/infer_file.h"

#include <math.h>
#include <stdio.h>

#include "base/files.h"
#include "base/log.h"
#include "config/config.h"
#include "stage/energy_report.h"
#include "stage/infer_parts.h"
#include "store/contenthash.h"

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
            mb_str_equal(name, "gpu.share") || mb_str_is_suffix(name, ".path") ||
            mb_str_is_prefix(name, "fuse."))
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

static mb_status report_run(const mb_infer_file *in, mb_energy_report *energy, const mb_generate_report *mine,
                            int64_t lines, int64_t bad)
{
    mb_status status = MB_OK;
    mb_program *program = in->program;
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
    if (mb_lm_is_fused(in->lm))
        mb_info("%d rank%s, %lld members %s: %.3f s", mb_comm_size(program->comm),
                mb_comm_size(program->comm) == 1 ? "" : "s", (long long)mb_fuse_members(in->lm),
                in->ranks.group != NULL ? "on ranks of their own" : "on every rank", longest[0]);
    MB_TRY(mb_energy_report_end(program, energy, "token", sums[0]));
    MB_TRY(mb_program_result_int(program, "answers", lines));
    MB_TRY(mb_program_result_int(program, "left_out", bad));
    MB_TRY(mb_program_result_int(program, "tokens", sums[0]));
    MB_TRY(mb_program_result_real(program, "generate_seconds", longest[0]));
done:
    return status;
}

/* router_stats.h5, and the mean shares into the log and the record. Rank 0. */
static mb_status join_shares(const mb_infer_file *in, const mb_infer_parts *parts)
{
    mb_status status = MB_OK;
    const mb_router_shape *shape = in->opt_shape;
    double prompt[MB_FUSE_MAX_MEMBERS], answer[MB_FUSE_MAX_MEMBERS];
    char name[128], *path = mb_program_path(in->program, "router_stats.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_infer_parts_join_shares(parts, path, mb_lm_hash(in->lm), prompt, answer));
    for (int64_t m = 0; m < shape->members && !isnan(answer[m]); m++) {
        mb_info("share of %s: %.4f of the prompts, %.4f of the answers", shape->members_name[m], prompt[m],
                answer[m]);
        snprintf(name, sizeof name, "share_%s", shape->members_name[m]);
        MB_TRY(mb_program_result_real(in->program, name, answer[m]));
    }
    MB_TRY(mb_program_output(in->program, "router_stats.h5"));
done:
    mb_free(path);
    return status;
}

/* All parts as the stage's files. Rank 0. */
static mb_status join_parts(const mb_infer_file *in, const mb_infer_parts *parts, int64_t *out_lines,
                            int64_t *out_bad)
{
    mb_status status = MB_OK;
    char *path = mb_program_path(in->program, "generated.jsonl"),
         *bad_path = mb_program_path(in->program, "generated.bad.jsonl");
    if (path == NULL || bad_path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_infer_parts_join(parts, path, bad_path, out_lines, out_bad));
    if (in->opt_shape != NULL) MB_TRY(join_shares(in, parts));
done:
    mb_free(path);
    mb_free(bad_path);
    return status;
}

/* Where there is little work, no model shall take more than its share at once. */
static mb_generate_options fair_options(const mb_infer_file *in)
{
    const mb_infer_program *own = in->program->own;
    mb_generate_options options = own->generate;
    const int64_t all = mb_infer_prompts_count(in->prompts) * options.samples,
                  share = (all + in->ranks.models - 1) / in->ranks.models;
    if (options.batch_sequences > share) options.batch_sequences = share < 1 ? 1 : share;
    return options;
}

mb_status mb_infer_file_run(const mb_infer_file *in)
{
    mb_status status = MB_OK;
    mb_program *program = in->program;
    const mb_infer_program *own = program->own;
    const mb_generate_options options = fair_options(in);
    mb_generate_report report = {0};
    char key[MB_HASH_TEXT] = "";
    int64_t lines = 0, bad = 0;
    mb_infer_parts *parts = NULL;
    mb_energy_report energy = {0};
    char *folder = mb_program_path(program, "parts");
    if (mb_program_is_root(program)) status = make_key(program, in->lm, in->prompts, key);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, key, sizeof key, 0));
    if (in->ranks.is_first)
        status = mb_infer_parts_open(in->ranks.peers, in->prompts, own, in->opt_shape, folder, key,
                                     mb_generate_longest(in->lm, &options), &parts);
    MB_TRY(mb_comm_agree(program->comm, status));
    const mb_generate_source source = mb_infer_parts_source(parts, in->opt_shape != NULL, in->ranks.group);
    MB_TRY(mb_energy_report_begin(program, &energy));
    status = mb_generate_run(in->lm, mb_infer_prompts_tokenizer(in->prompts), &in->ends, &options, &source,
                             &report);
    MB_TRY(mb_comm_agree(program->comm, status));
    if (mb_program_is_root(program)) status = join_parts(in, parts, &lines, &bad);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(report_run(in, &energy, &report, lines, bad));
    MB_TRY(mb_program_finish_run(program, "generated.jsonl", bad > 0 ? "generated.bad.jsonl" : NULL, NULL));
    if (mb_program_is_root(program)) status = mb_files_remove_tree(folder);
done:
    mb_energy_report_reset(&energy);
    mb_infer_parts_close(&parts);
    mb_free(folder);
    return status;
}
