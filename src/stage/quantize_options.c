/* quantize_options: see the header. */
#include "stage/quantize_options.h"

#include <stdlib.h>

#define OPTIONS mb_quantize_program

const mb_option *mb_quantize_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_TEXT(OPTIONS, method, "quantize.method", "gptq", "gptq|rtn",
                       "gptq: with calibration records, each layer behind the quantised ones before it; rtn: "
                       "every weight to the nearest, without data",
                       NULL),
        MB_OPTION_INT(OPTIONS, bits, "quantize.bits", "4", 4, 4, "bits", "of a weight", NULL),
        MB_OPTION_TEXT(OPTIONS, group, "quantize.group", "128", "32|64|128",
                       "columns of a row that share a scale; a matrix whose columns it does not divide gets "
                       "the nearest group that does",
                       "quantize.group_size"),
        MB_OPTION_TEXT(OPTIONS, calibration, "quantize.calibration", NULL, NULL,
                       "token shard that calibration records are drawn from (gptq)", NULL),
        MB_OPTION_INT(OPTIONS, samples, "quantize.samples", "128", 1, 1 << 24, "records",
                      "calibration records", "quantize.num_calibration_samples"),
        MB_OPTION_INT(OPTIONS, max_length, "quantize.max_length", "2048", 2, 1 << 24, "tokens",
                      "longer calibration records are cut to their first tokens", "quantize.max_seq_length"),
        MB_OPTION_INT(OPTIONS, seed, "quantize.seed", "42", 0, 1LL << 40, "",
                      "which records of the shard are drawn", NULL),
        MB_OPTION_REAL(OPTIONS, damping, "quantize.percdamp", "0.01", 0, 1, "share",
                       "share of the Hessian's mean diagonal added to it (gptq)", "quantize.dampening_frac"),
        MB_OPTION_BOOL(OPTIONS, act_order, "quantize.act_order", "false",
                       "round the columns of the largest activations first, groups staying where they are "
                       "(gptq)",
                       "quantize.desc_act"),
        MB_OPTION_INT(OPTIONS, expert_tokens, "quantize.expert_tokens", "128", 1, 1LL << 40, "tokens",
                      "an expert that fewer calibration tokens reach is rounded to the nearest (gptq)", NULL),
        MB_OPTION_INT(OPTIONS, tile_tokens, "quantize.tile_tokens", "2048", 16, 1 << 20, "tokens",
                      "tokens computed together", NULL),
        MB_OPTION_TEXT(OPTIONS, validation, "quantize.validation", NULL, NULL,
                       "token shard whose perplexity is measured before and after", NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

mb_status mb_quantize_options_get(const mb_quantize_program *own, mb_dtype stored,
                                  mb_quantise_options *out_options)
{
    mb_status status = MB_OK;
    const bool by_gptq = mb_str_equal(own->method, "gptq");
    if (own->model.path == NULL) MB_RAISE(MB_EUSAGE, "model.path is missing: the model to quantise");
    if (by_gptq && own->calibration == NULL)
        MB_RAISE(MB_EUSAGE,
                 "quantize.calibration is missing: GPTQ needs a token shard with records like those "
                 "the model is for; quantize.method=rtn needs none");
    if (!by_gptq && own->act_order)
        MB_RAISE(MB_EUSAGE, "quantize.act_order says in which order GPTQ rounds; leave it out with "
                            "quantize.method=rtn");
    *out_options = (mb_quantise_options){.by_gptq = by_gptq,
                                         .gptq = {.group = strtoll(own->group, NULL, 10),
                                                  .damping = own->damping,
                                                  .act_order = own->act_order,
                                                  .stored = stored == MB_F64 ? MB_F32 : stored},
                                         .expert_tokens = own->expert_tokens,
                                         .chunk_tokens = own->tile_tokens};
done:
    return status;
}
