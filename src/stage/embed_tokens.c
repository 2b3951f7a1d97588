/* embed_tokens.c: the shard that moe-embed reads.
 *
 * The tokens of inputs are kept in tokens-<hash of the work>.h5, so that a run that goes on with other inputs
 * does not take them for its own.
 */
#include "stage/embed_tokens.h"

#include <stdio.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "stage/program_options.h"

/* The inputs as tokens, in a file of the work's name. Shares that begin together make one each, under a name
 * of their own, and rename it: the bytes are the same. What was left out is listed in tokens.h5.bad.jsonl. */
static mb_status make_shard(mb_program *program, mb_embedder_model *model, const char *made_path)
{
    mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    mb_shard_build_report report;
    mb_shard_build_options build = own->build;
    char *name = mb_share_name(program->share, "tokens", ".h5.new"), *path = NULL, *bad = NULL,
         *bad_path = NULL;
    if (name != NULL) path = mb_program_path(program, name);
    if (path != NULL) bad = mb_str_format("%s.bad.jsonl", path);
    if (bad != NULL) bad_path = mb_program_path(program, "tokens.h5.bad.jsonl");
    if (bad_path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", made_path);
    build.tokenizer_path = own->tokenizer != NULL ? own->tokenizer : own->model.path;
    build.max_length = 1 << 24;
    build.on_long = "cut";
    build.loss_on = "all";
    build.is_bare = true;
    MB_TRY(mb_embedder_model_prefix(model, &own->embed, &build.opt_prefix));
    MB_TRY(mb_shard_build_run(program->comm, &build, path, &report));
    mb_info("%lld records, %lld tokens in %.1f s; left out: %lld bad", (long long)report.records,
            (long long)report.tokens, report.seconds, (long long)report.bad);
    if (mb_program_is_root(program)) {
        if (mb_files_is_file(bad)) status = mb_files_rename(bad, bad_path);
        if (status == MB_OK) status = mb_files_rename(path, made_path);
    }
    MB_TRY(mb_comm_agree(program->comm, status));
done:
    mb_free(name);
    mb_free(path);
    mb_free(bad);
    mb_free(bad_path);
    return status;
}

mb_status mb_embed_tokens_open(mb_program *program, mb_embedder_model *model, mb_shard **out_shard)
{
    mb_embed_program *own = program->own;
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    char hash[MB_HASH_TEXT], *path = NULL;
    MB_TRY(mb_program_work_hash(program, hash));
    path = mb_str_format("%s/tokens-%s.h5", program->options.output_dir, hash);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", program->options.output_dir);
    int64_t is_made = mb_files_is_file(path);
    MB_TRY(mb_comm_bcast(program->comm, &is_made, sizeof is_made, 0));
    if (own->shard_path == NULL && !is_made) MB_TRY(make_shard(program, model, path));
    MB_TRY(mb_shard_open(own->shard_path != NULL ? own->shard_path : path, 0, &shard));
    if (own->shard_path != NULL && !mb_str_equal(mb_shard_tokenizer_hash(shard), model->tokenizer_hash))
        MB_RAISE(MB_EDATA, "%s was made with another tokenizer than the model's", own->shard_path);
    *out_shard = shard;
    shard = NULL;
done:
    mb_shard_close(&shard);
    mb_free(path);
    return status;
}

int64_t mb_embed_tokens_bad(const mb_program *program)
{
    int64_t n = 0;
    char *path = mb_program_path(program, "tokens.h5.bad.jsonl");
    FILE *stream = path != NULL ? fopen(path, "re") : NULL;
    for (int c; stream != NULL && (c = getc(stream)) != EOF;) n += c == '\n';
    if (stream != NULL) fclose(stream);
    mb_free(path);
    return n;
}

void mb_embed_tokens_remove(const mb_program *program)
{
    char **names = NULL;
    int64_t n = 0;
    if (mb_files_list(program->options.output_dir, &names, &n) != MB_OK) mb_status_reset();
    for (int64_t i = 0; i < n; ++i) {
        char *file = mb_program_path(program, names[i]);
        if (file != NULL && mb_str_is_prefix(names[i], "tokens-") && mb_str_is_suffix(names[i], ".h5"))
            unlink(file);
        mb_free(file);
    }
    mb_files_free_names(&names, n);
}
