/* eval_shard.c: perplexity and routing of a token shard.
 *
 * 1. perplexity   2. routing   3. both
 */
#include "stage/eval_shard.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "measure/perplexity.h"
#include "measure/routing_share_files.h"
#include "stage/eval_preference.h"

/* ---- 1. perplexity ---- */

static mb_status give_row(const mb_perplexity_row *row, const char *group, const char *name, json_t *table,
                          mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    char *path = NULL;
    if (row->tokens == 0) goto done;
    MB_TRY(mb_json_set(table, name,
                       json_pack("{s:f, s:f, s:f, s:f, s:I, s:I}", "perplexity", row->token_perplexity,
                                 "byte_perplexity", row->byte_perplexity, "bits_per_byte", row->bits_per_byte,
                                 "nll", row->nll, "tokens", (json_int_t)row->tokens, "records",
                                 (json_int_t)row->records)));
    if (opt_file == NULL) goto done;
    path = mb_str_format("/%s/%s", group, name);
    MB_TRY(mb_h5_write_f64(opt_file, path, row->token_perplexity));
done:
    mb_free(path);
    return status;
}

static mb_status give_rows(const mb_perplexity_row *rows, int64_t n, json_t *results, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    json_t *by_source = json_object(), *by_type = json_object();
    for (int64_t i = 0; i < n; ++i) {
        const mb_perplexity_row *row = &rows[i];
        const char *name = row->type != NULL ? row->type : row->source != NULL ? row->source : "all";
        mb_info("  perplexity %s%-20s %10.4f per token, %8.4f per byte (%lld tokens)",
                row->type != NULL ? "of type " : "", name, row->token_perplexity, row->byte_perplexity,
                (long long)row->tokens);
        MB_TRY(give_row(row, row->type != NULL ? "perplexity_by_type" : "perplexity", name,
                        row->type != NULL ? by_type : by_source, opt_file));
    }
    MB_TRY(mb_json_set(results, "perplexity", json_incref(by_source)));
    if (rows[n - 1].type != NULL) MB_TRY(mb_json_set(results, "perplexity_by_type", json_incref(by_type)));
done:
    json_decref(by_source);
    json_decref(by_type);
    return status;
}

/* ---- 2. routing ---- */

static mb_status open_routing(const mb_eval_program *own, mb_shard *shard, mb_lm *lm, mb_routing_share **out)
{
    const mb_routing_share_options options = {.only_answers = strcmp(own->routing_over, "answers") == 0,
                                              .permutations = own->routing_permutations,
                                              .seed = own->routing_seed};
    return mb_routing_share_create(shard, lm, &options, out);
}

static mb_status give_routing(mb_program *program, mb_lm *lm, mb_shard *shard, mb_routing_share *routing,
                              json_t *results)
{
    mb_status status = MB_OK;
    char hash[33], *path = mb_program_path(program, "routing.h5");
    json_t *summary = NULL;
    MB_TRY(mb_routing_share_finish(routing, program->comm));
    const mb_routing_share_result *r = mb_routing_share_get(routing);
    mb_routing_share_files_log(r);
    MB_TRY(mb_routing_share_files_summary(r, &summary));
    MB_TRY(mb_json_set(results, "routing", json_incref(summary)));
    MB_TRY(mb_program_result_real(program, "mutual_information", r->weighted.info[r->routers].mutual));
    if (r->options.permutations > 0)
        MB_TRY(mb_program_result_real(program, "mutual_information_shuffled", r->weighted.mean[r->routers]));
    if (!mb_program_is_root(program)) goto done;
    MB_TRY(mb_shard_hash(shard, hash));
    MB_TRY(mb_routing_share_files_write(r, mb_lm_hash(lm), hash, path));
    MB_TRY(mb_program_output(program, "routing.h5"));
done:
    json_decref(summary);
    mb_free(path);
    return status;
}

/* ---- 3. both ---- */

mb_status mb_eval_shard_run(mb_program *program, mb_lm *lm, json_t *results, mb_h5 *opt_file)
{
    mb_status status = MB_OK;
    mb_eval_program *own = program->own;
    mb_shard *shard = NULL;
    mb_perplexity_row *rows = NULL;
    mb_perplexity_options options = {
        .max_length = own->max_length, .tile_tokens = own->tile_tokens, .only_masked = own->only_masked};
    status = mb_shard_open(own->shard_path, 0, &shard);
    if (status == MB_OK && own->routing) status = open_routing(own, shard, lm, &options.opt_routing);
    if (status == MB_OK) status = mb_eval_preference_open(program, shard, &options.opt_preference);
    MB_TRY(mb_comm_agree(program->comm, status));
    const int64_t n = mb_perplexity_rows(shard);
    MB_NEW_ARRAY(rows, n);
    MB_TRY(mb_perplexity_run(program->comm, lm, shard, &options, rows));
    MB_TRY(give_rows(rows, n, results, opt_file));
    MB_TRY(mb_program_result_real(program, "perplexity", rows[0].token_perplexity));
    MB_TRY(mb_eval_preference_finish(program, shard, options.opt_preference, results, opt_file));
    if (own->routing)
        MB_TRY(mb_comm_agree(program->comm, give_routing(program, lm, shard, options.opt_routing, results)));
done:
    mb_routing_share_destroy(&options.opt_routing);
    mb_preference_destroy(&options.opt_preference);
    mb_free(rows);
    mb_shard_close(&shard);
    return status;
}
