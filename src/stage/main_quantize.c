/* moe-quantize: a model's matrices in 4 bits: rounded to the nearest or by GPTQ, as a folder that
 * transformers, vLLM and our own programs read. */
#include "base/files.h"
#include "base/log.h"
#include "model/fuse.h"
#include "model/quantise_folder.h"
#include "stage/program.h"
#include "stage/quantize_report.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_quantize_program *own;
    const mb_option *table = mb_model_option_table(&n);
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "model", table, n, &own->model));
    table = mb_quantize_option_table(&n);
    MB_TRY(mb_program_add_table(program, "quantisation", table, n, own));
done:
    return status;
}

/* The model as it is, in a dtype that loses nothing of it. Collective. */
static mb_status open_model(mb_program *program, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_quantize_program *own = program->own;
    mb_lm_options storage = {0};
    mb_lm *lm = NULL;
    if (mb_fuse_is_folder(own->model.path))
        MB_RAISE(MB_EUSAGE, "%s: is a fused model; quantise its members one by one", own->model.path);
    MB_TRY(mb_model_options_storage(&own->model, &storage));
    if (storage.frozen_bits != 0 || storage.shard)
        MB_RAISE(MB_EUSAGE,
                 "moe-quantize needs the whole model as it is; leave model.quantize and model.shard "
                 "out");
    own->model.opt_comm = program->comm;
    own->model.share_weights = own->model.share_weights && own->model.adapter == NULL; /* it is merged */
    MB_TRY(mb_model_options_open(&own->model, program->ops, "none", NULL, 0, &lm));
    if (storage.dtype == MB_BF16 && mb_lm_arch(lm)->stored_dtype != MB_BF16)
        MB_RAISE(MB_EUSAGE, "%s holds %s, of which model.dtype=bf16 keeps less; leave it out",
                 own->model.path, mb_dtype_name(mb_lm_arch(lm)->stored_dtype));
    *out_lm = lm;
    lm = NULL;
done:
    mb_lm_destroy(&lm);
    return status;
}

/* Where finished blocks wait: a folder of this very work. Collective; mb_free. */
static mb_status blocks_folder(mb_program *program, char **out_folder)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT], *name = NULL, *folder = NULL;
    MB_TRY(mb_program_work_hash(program, hash));
    name = mb_str_format("blocks-%s", hash);
    folder = name != NULL ? mb_program_path(program, name) : NULL;
    if (folder == NULL) status = mb_fail(MB_ENOMEM, "no memory for a path");
    if (status == MB_OK && mb_program_is_root(program)) status = mb_files_make_folders(folder);
    MB_TRY(mb_comm_agree(program->comm, status));
    *out_folder = folder;
    folder = NULL;
done:
    mb_free(name);
    mb_free(folder);
    return status;
}

/* The folder that was written, as others will open it. Collective. */
static mb_status measure_after(mb_program *program, const char *target, mb_quantize_loss *out_loss)
{
    mb_status status = MB_OK;
    mb_quantize_program *own = program->own;
    mb_model_options model = own->model;
    mb_lm *lm = NULL;
    model.path = (char *)target;
    model.adapter = NULL;
    MB_TRY(mb_model_options_open(&model, program->ops, "none", NULL, 0, &lm));
    MB_TRY(mb_quantize_data_loss(program, own, lm, out_loss));
done:
    mb_lm_destroy(&lm);
    return status;
}

static mb_status quantize(mb_program *program, mb_lm **lm, const mb_quantise_options *options,
                          const mb_quantize_data *data)
{
    mb_status status = MB_OK;
    const mb_quantize_program *own = program->own;
    const mb_quantize_size size = mb_quantize_report_size(*lm, options);
    mb_quantise_report report = {0};
    mb_quantize_loss loss[2] = {{0}};
    int64_t bytes = 0;
    char *blocks = NULL, *target = mb_program_path(program, "model");
    MB_TRY(blocks_folder(program, &blocks));
    if (own->validation != NULL) MB_TRY(mb_quantize_data_loss(program, own, *lm, &loss[0]));
    MB_TRY(mb_quantise_layers_run(program->comm, *lm, options, options->by_gptq ? &data->records : NULL,
                                  blocks, &report));
    if (mb_program_is_root(program))
        status = mb_quantise_folder_write(*lm, options, blocks, mb_lm_base(*lm), target, &bytes);
    MB_TRY(mb_comm_agree(program->comm, status));
    mb_lm_destroy(lm);
    if (own->validation != NULL) MB_TRY(measure_after(program, target, &loss[1]));
    MB_TRY(mb_comm_agree(program->comm, mb_quantize_report_write(program, options, &size, bytes, &report,
                                                                 data->records.records,
                                                                 own->validation != NULL ? loss : NULL)));
    if (mb_program_is_root(program)) status = mb_files_remove_tree(blocks);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_finish_run(program, "model", "results.json", NULL));
done:
    json_decref(report.list);
    mb_free(blocks);
    mb_free(target);
    return status;
}

static mb_status run(mb_program *program)
{
    mb_status status = MB_OK;
    mb_quantize_program *own = program->own;
    mb_quantise_options options;
    mb_quantize_data data = {0};
    mb_lm *lm = NULL;
    bool is_done = false;
    MB_TRY(mb_quantize_options_get(own, MB_F32, &options));
    if (!program->is_dry_run)
        MB_TRY(mb_program_begin_run(
            program, &is_done, "model", own->model.path, "adapter", own->model.adapter, "calibration",
            options.by_gptq ? own->calibration : NULL, "validation", own->validation, NULL));
    if (is_done) goto done;
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_comm_agree(program->comm, open_model(program, &lm)));
    MB_TRY(mb_quantize_options_get(own, mb_lm_arch(lm)->stored_dtype, &options));
    if (options.by_gptq) status = mb_quantize_data_read(own, lm, &data);
    MB_TRY(mb_comm_agree(program->comm, status));
    mb_quantize_report_forecast(program, lm, &options,
                                options.by_gptq ? data.offsets[data.records.records] : 0);
    if (!program->is_dry_run) MB_TRY(quantize(program, &lm, &options, &data));
done:
    mb_quantize_data_reset(&data);
    mb_lm_destroy(&lm);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-quantize",
        .purpose = "a model's matrices in 4 bits, rounded to the nearest or by GPTQ, as a compressed-tensors "
                   "folder; perplexity and size before and after",
        .example = "  mpirun -np 4 moe-quantize model.path=models/llama model.adapter=sft/final "
                   "quantize.calibration=shard.h5 quantize.validation=validation.h5 "
                   "output.dir=checkpoints/x/quantize      -> checkpoints/x/quantize/model\n"
                   "  moe-quantize quantize.method=rtn quantize.group=32 model.path=models/llama "
                   "output.dir=checkpoints/x/rtn",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
