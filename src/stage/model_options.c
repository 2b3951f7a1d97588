/* model_options: how programs name a model. */
#include "stage/model_options.h"

#include <string.h>

#include "base/log.h"

static const mb_option options[] = {
    {.key = "model.path",
     .kind = MB_OPTION_KIND_TEXT,
     .field = offsetof(mb_model_options, path),
     .unit = "",
     .help = "model folder: HF checkpoint or delta",
     .aliases =
         "model|model_checkpoint_path|selector_model.checkpoint_path|target_model.name|model_name_or_path"},
    MB_OPTION_TEXT(mb_model_options, adapter, "model.adapter", NULL, NULL,
                   "PEFT adapter folder to put on top", "adapter|adapter_name_or_path"),
    MB_OPTION_REAL(
        mb_model_options, trash_expert_ratio, "model.trash_expert_ratio", "0", 0, 0.9, "share",
        "declare the last share of an ordinary MoE's experts to be the trash: only scores and losses see it",
        "data_selection.trash_expert_ratio|trash_expert_ratio"),
    MB_OPTION_TEXT(
        mb_model_options, dtype, "model.dtype", "f32", "f32|bf16|float32|bfloat16",
        "number type of computing and of frozen matrices in memory; what trains, norms and routers "
        "are f32 in any case",
        "model.torch_dtype|torch_dtype|dtype|training.dtype"),
    MB_OPTION_BOOL(mb_model_options, bf16, "model.bf16", "false", "another way to say model.dtype = bf16",
                   "training.bf16|bf16"),
    MB_OPTION_TEXT(mb_model_options, quantize, "model.quantize", "none", "none|int8|int4|8|4",
                   "keep the frozen matrices of the layers in 8 or 4 bits (with an adapter over them: QLoRA)",
                   "quantization_bit|model.quantization_bit"),
    MB_OPTION_BOOL(mb_model_options, load_in_8bit, "model.load_in_8bit", "false",
                   "another way to say model.quantize = int8", "load_in_8bit"),
    MB_OPTION_BOOL(mb_model_options, load_in_4bit, "model.load_in_4bit", "false",
                   "another way to say model.quantize = int4", "load_in_4bit"),
    MB_OPTION_INT(mb_model_options, quantize_group, "model.quantize_group", "64", 1, 1 << 20, "columns",
                  "columns of a quantised matrix that share a scale", NULL),
    MB_OPTION_BOOL(mb_model_options, shard, "model.shard", "false",
                   "cut all weights over the ranks and fetch them block by block, for models larger than one "
                   "rank's memory; training.zero = 3 does it too",
                   NULL),
    MB_OPTION_BOOL(
        mb_model_options, fetch_ahead, "model.fetch_ahead", "false",
        "under model.shard fetch the next block while one is used, also on one node; between nodes "
        "it is done in any case",
        NULL),
    MB_OPTION_BOOL(mb_model_options, share_weights, "model.share_weights", "true",
                   "ranks of one node keep frozen weights once, in shared memory", NULL),
};

const mb_option *mb_model_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options / sizeof *options);
    return options;
}

/* ---- opening ---- */

static int bits_of_word(const char *quantize)
{
    if (quantize == NULL || mb_str_equal(quantize, "none")) return 0;
    return strchr(quantize, '8') != NULL ? 8 : 4;
}

static int bits_of(const mb_model_options *opts)
{
    if (opts->load_in_4bit) return 4;
    return opts->load_in_8bit ? 8 : bits_of_word(opts->quantize);
}

mb_status mb_model_options_storage(const mb_model_options *opts, mb_lm_options *lm)
{
    mb_status status = MB_OK;
    lm->dtype = MB_F32;
    if (opts->load_in_4bit && opts->load_in_8bit)
        MB_RAISE(MB_EUSAGE, "model.load_in_4bit and model.load_in_8bit exclude each other");
    const int bits = bits_of(opts), word = bits_of_word(opts->quantize);
    if (word != 0 && word != bits)
        MB_RAISE(MB_EUSAGE, "model.quantize = %s and model.load_in_%dbit contradict each other; say one",
                 opts->quantize, bits);
    if (opts->dtype != NULL) MB_TRY(mb_dtype_parse(opts->dtype, &lm->dtype));
    if (opts->bf16) lm->dtype = MB_BF16;
    lm->frozen_bits = bits_of(opts);
    lm->frozen_group = opts->quantize_group;
    lm->opt_comm = opts->opt_comm;
    lm->shard = opts->shard;
    lm->ahead = opts->fetch_ahead;
    lm->share = opts->share_weights;
done:
    return status;
}

mb_status mb_model_options_open(const mb_model_options *opts, mb_ops *ops, const char *train,
                                const mb_lora_options *opt_lora, uint64_t seed, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    if (opts->path == NULL) MB_RAISE(MB_EUSAGE, "model.path is missing: the model's folder");
    mb_lm_options lm = {.path = opts->path,
                        .opt_adapter = opts->adapter,
                        .train = train,
                        .opt_lora = opt_lora,
                        .trash_expert_ratio = opts->trash_expert_ratio,
                        .router_bias = opts->router_bias,
                        .seed = seed};
    MB_TRY(mb_model_options_storage(opts, &lm));
    MB_TRY(mb_lm_open(ops, &lm, out_lm));
    const mb_arch *arch = mb_lm_arch(*out_lm);
    mb_info("%s: %.4g M parameters, %lld layers, %lld experts%s%s; computing in %s%s, %s", opts->path,
            (double)mb_arch_parameters(arch) / 1e6, (long long)arch->layers, (long long)arch->experts,
            arch->trash > 0            ? " + trash"
            : arch->declared_trash > 0 ? ", some declared trash"
                                       : "",
            arch->router_bias ? ", router biases" : "", mb_dtype_name(lm.dtype),
            lm.frozen_bits == 8   ? ", frozen layers in 8 bits"
            : lm.frozen_bits == 4 ? ", frozen layers in 4 bits"
                                  : "",
            mb_params_place(mb_lm_params(*out_lm)));
done:
    return status;
}
