/* model_options: how programs name a model. */
#include "stage/model_options.h"

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
};

const mb_option *mb_model_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options / sizeof *options);
    return options;
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
                        .seed = seed};
    MB_TRY(mb_lm_open(ops, &lm, out_lm));
    const mb_arch *arch = mb_lm_arch(*out_lm);
    mb_info("%s: %.4g M parameters, %lld layers, %lld experts%s", opts->path,
            (double)mb_arch_parameters(arch) / 1e6, (long long)arch->layers, (long long)arch->experts,
            arch->trash > 0            ? " + trash"
            : arch->declared_trash > 0 ? ", some declared trash"
                                       : "");
done:
    return status;
}
