/* quantise_layers: the matrices of an open model in 4 bits, block after block, each rounded with what goes
 * into it once everything before it is quantised.
 *
 * Layer: model.  Uses: lm, gptq, quantise_gram, packed_io, comm.
 * Source: Frantar et al. (2023), GPTQ, with matrices of one input taken together and in the order they are
 * run ("true sequential"): q, k, v; o; gate, up; down. Every expert has a Hessian of its own tokens.
 *
 * Memory beside the model: the residual stream of this rank's calibration records and the Gram matrices of
 * one step of one block; experts are taken in ranges that fit MB_QUANTISE_GRAM_BYTES. A finished block is
 * written to a file of its own, and a run that is done again takes it from there. The result has the same
 * bits on any number of ranks.
 */
#ifndef MB_QUANTISE_LAYERS_H
#define MB_QUANTISE_LAYERS_H

#include "model/gptq.h"
#include "model/lm.h"

#define MB_QUANTISE_GRAM_BYTES ((int64_t)4 << 30)

/* Token ids of calibration records, [offsets[records]]; the same on every rank. */
typedef struct mb_quantise_records {
    int64_t records;
    const int64_t *offsets; /* [records + 1] */
    const int32_t *ids;
} mb_quantise_records;

typedef struct mb_quantise_options {
    bool by_gptq;          /* else round to nearest, and no records are needed */
    mb_gptq_options gptq;  /* group as asked for (mb_gptq_group) */
    int64_t expert_tokens; /* an expert that sees fewer is rounded to nearest */
    int64_t chunk_tokens;  /* records are run together up to so many */
} mb_quantise_options;

typedef struct mb_quantise_report {
    int64_t blocks, resumed;          /* of them taken from an earlier run */
    int64_t matrices, by_gptq, scant; /* scant: of experts with too few tokens */
    int64_t other_groups;             /* matrices whose columns are no multiple of the group asked for */
    int64_t tokens, chunks;
    double seconds;
    json_t *list; /* {name, rows, columns, group, method, [tokens, loss, damping, dead]} in the model's order;
                     json_decref */
} mb_quantise_report;

/* lm: train "none", in f32, not sharded. An adapter is merged first; the matrices become what the integers
 * mean; the integers are in `<folder>/block-<i>.safetensors`, which rank 0 writes. Collective. MB_ESTOPPED
 * when the stop flag is set: finished blocks stay. */
mb_status mb_quantise_layers_run(mb_comm *comm, mb_lm *lm, const mb_quantise_options *options,
                                 const mb_quantise_records *opt_records, const char *folder,
                                 mb_quantise_report *out_report);
/* Bytes: kept by a rank for its records (of all ranks together), and the most Gram matrices and factors of
 * one step take on each. */
void mb_quantise_layers_plan(const mb_arch *arch, const mb_quantise_options *options, int64_t tokens,
                             int64_t *out_records, int64_t *out_step);
/* The tensors that are quantised: matrices of decoder layers, but for routers. */
bool mb_quantise_layers_has(mb_params *params, const mb_param *param);

#endif
