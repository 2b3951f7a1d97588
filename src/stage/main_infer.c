/* moe-infer: text from a model: one, an ensemble of several, or several behind a router. One prompt, or JSONL
 * in and JSONL out. Or answers to questions by several experts on ranks of their own.
 *
 * 1. options and mode
 * 2. run
 */
#include "stage/experts_run.h"
#include "stage/fuse_options.h"
#include "stage/infer_one.h"
#include "stage/infer_file.h"
#include "stage/program.h"

/* ---- 1. options and mode ---- */

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_experts_program *both;
    MB_NEW(both);
    program->own = both;
    mb_infer_program *own = &both->infer;
    const mb_option *table = mb_model_option_table(&n);
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_fuse_option_table(&n);
    MB_TRY(mb_program_add_table(program, "fused model", table, n, &own->fuse));
    table = mb_program_options_infer(&n);
    MB_TRY(mb_program_add_table(program, "prompts", table, n, own));
    table = mb_generate_option_table(&n);
    MB_TRY(mb_program_add_table(program, "generation", table, n, &own->generate));
    table = mb_experts_options_table(&n);
    MB_TRY(mb_program_add_table(program, "experts", table, n, &both->experts));
done:
    return status;
}

/* The mode that the keys call for; a word that says something else is an error. A folder of a fused model may
 * be named by model.path in any mode. */
static mb_status settle_mode(mb_program *program)
{
    mb_status status = MB_OK;
    const mb_infer_program *own = program->own;
    const bool is_given = mb_fuse_options_is_given(&own->fuse);
    const char *mode = own->fuse.router != NULL ? "btm" : is_given ? "ensemble" : "generate";
    const bool fits = program->mode == NULL || mb_str_equal(program->mode, mode) ||
                      (!is_given && own->model.path != NULL && mb_fuse_is_folder(own->model.path));
    if (!fits)
        MB_RAISE(MB_EUSAGE, "mode %s, but %s; leave the mode out, or give %s", program->mode,
                 own->fuse.router != NULL ? "a router is given (btm)"
                 : is_given               ? "members are given (ensemble)"
                                          : "no members and no router are given (generate)",
                 mb_str_equal(program->mode, "btm")        ? "router=<folder of a trained router>"
                 : mb_str_equal(program->mode, "ensemble") ? "foundation_model=... sft_model=..."
                                                           : "model.path=...");
    if (program->mode == NULL) program->mode = mode;
done:
    return status;
}

/* Is the model that was opened of the mode's kind? */
static mb_status check_kind(const mb_program *program, const mb_lm *lm)
{
    mb_status status = MB_OK;
    const bool has_router = mb_lm_is_fused(lm) && mb_lm_routers(lm) > 0;
    if (mb_str_equal(program->mode, "btm") && !has_router)
        MB_RAISE(MB_EUSAGE, "mode btm: the folder holds an ensemble, which has no router; name it with "
                            "model.path");
    if (mb_str_equal(program->mode, "ensemble") && has_router)
        MB_RAISE(MB_EUSAGE, "mode ensemble: the folder holds a router of %s; take mode btm",
                 mb_fuse_kind_name(mb_fuse_get_kind(lm)));
done:
    return status;
}

/* ---- 2. run ---- */

static mb_status check_options(mb_program *program)
{
    mb_status status = MB_OK;
    mb_infer_program *own = program->own;
    MB_TRY(settle_mode(program));
    MB_TRY(mb_fuse_options_check(&own->fuse, &own->model));
    if ((own->input == NULL) == (own->prompt == NULL))
        MB_RAISE(MB_EUSAGE, "give either dataset.path (a file of prompts) or prompt (one text)");
    if (own->model.shard)
        MB_RAISE(MB_EUSAGE, "model.shard does not go with generation: ranks answer each at their own pace");
    if (own->router_stats_tokens) own->show_router_stats = true;
done:
    return status;
}

static mb_status begin(mb_program *program, bool *out_is_done)
{
    const mb_infer_program *own = program->own;
    const char *const names[] = {"model", "adapter", "dataset", "tokenizer"};
    const char *const paths[] = {own->model.path, own->model.adapter, own->input, own->tokenizer};
    if (own->input == NULL || program->is_dry_run) return MB_OK;
    return mb_fuse_options_begin_run(program, &own->fuse, names, paths, 4, out_is_done);
}

static mb_status open_ranks(mb_infer_file *in)
{
    mb_status status = MB_OK;
    mb_infer_program *own = in->program->own;
    int64_t members = 1;
    const bool is_spread = mb_str_equal(own->fuse.members_on, "ranks");
    MB_TRY(mb_comm_agree(in->program->comm, mb_fuse_options_members(&own->fuse, &own->model, &members)));
    MB_TRY(mb_infer_ranks_open(in->program->comm, members, is_spread, &in->ranks));
    own->model.opt_comm = in->ranks.peers;
done:
    return status;
}

static mb_status open_model(mb_infer_file *in)
{
    mb_status status = MB_OK;
    mb_program *program = in->program;
    const mb_infer_program *own = program->own;
    status = mb_fuse_options_open(&own->fuse, &own->model, program->ops, "none", in->ranks.group, 0, false,
                                  &in->lm);
    if (status == MB_OK) status = check_kind(program, in->lm);
    if (status == MB_OK && own->show_router_stats) {
        status = mb_router_shape_get(in->lm, own->router_stats_tokens, &in->shape);
        in->opt_shape = &in->shape;
    }
    if (status == MB_OK) status = mb_infer_prompts_open(own, mb_lm_base(in->lm), &in->prompts);
    MB_TRY(mb_comm_agree(program->comm, status));
    status = mb_infer_ranks_ends(&in->ranks, in->lm, mb_infer_prompts_tokenizer(in->prompts), &in->ends);
    MB_TRY(mb_comm_agree(program->comm, status));
done:
    return status;
}

static mb_status run(mb_program *program)
{
    mb_status status = MB_OK;
    const mb_infer_program *own = program->own;
    bool is_done = false;
    mb_infer_file in = {.program = program};
    if (mb_str_equal(program->mode, "experts")) return mb_experts_run(program);
    MB_TRY(check_options(program));
    MB_TRY(begin(program, &is_done));
    if (is_done || program->asks_done) goto done; /* one prompt leaves nothing */
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(open_ranks(&in));
    MB_TRY(open_model(&in));
    if (program->is_dry_run) goto done;
    if (own->prompt != NULL)
        MB_TRY(mb_infer_one_run(program, &in.ranks, in.lm, in.prompts, &in.ends, in.opt_shape));
    else
        MB_TRY(mb_infer_file_run(&in));
done:
    mb_ids_destroy(&in.ends);
    mb_infer_prompts_close(&in.prompts);
    mb_lm_destroy(&in.lm);
    mb_infer_ranks_close(&in.ranks);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-infer",
        .purpose = "text from a model, an ensemble or a routed pair: greedy or drawn, batched, the same on "
                   "1 and on N ranks; or answers of experts together, by a gate",
        .modes = "generate|ensemble|btm|experts",
        .mode_is_optional = true,
        .example = "  moe-infer generate model.path=models/llama prompt=\"Once upon a time\"\n"
                   "  mpirun -np 4 moe-infer generate model.path=sft/final dataset.path=prompts.jsonl "
                   "generate.temperature=0.7 generate.top_p=0.9 output.dir=checkpoints/x/answers\n"
                   "  moe-infer ensemble foundation_model=models/base sft_model=models/sft prompt=\"Hello\"\n"
                   "  moe-infer btm router=btm/best_router dataset.path=prompts.jsonl show_router_stats=true "
                   "output.dir=checkpoints/x/answers\n"
                   "  mpirun --enable-recovery -np 9 moe-infer experts infer.experts=a=models/a,b=models/b "
                   "gate.path=gate model.path=models/embedder questions.path=test.jsonl "
                   "output.dir=checkpoints/x/together",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
