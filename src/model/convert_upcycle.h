/* convert_upcycle: a dense model -> a mixture of experts whose experts start as its feed-forward networks.
 *
 * Layer: model.  Uses: arch, params, ops, store (safetensors, checkpoint), text (prompts).
 * Source: Komatsuzaki et al. (2023), sparse upcycling; He et al. (2024), arXiv 2410.07524 (granularity,
 * virtual groups, weight scaling; Megatron-LM's upcycling_utils.py); Sukhbaatar et al. (2024), BTX (experts
 * from fine-tuned siblings); mergekit-moe (routers from hidden states of prompts).
 *
 * Llama and Mistral become Mixtral, Qwen3 becomes Qwen3-MoE: layouts that compute attention, norms, rope and
 * windows as the source does and that transformers loads. E experts in r = E / g groups of g: expert e of
 * group e / g holds shard e mod g of the group's dense FFN (F / g rows of gate and up, the same columns of
 * down); g = 1 are whole copies. With virtual groups all g rows of a group in the gate are equal, so that a
 * token's K picks are K / g whole groups.
 *
 * Weights are multiplied so that the mixture gives what the dense FFN gave. Picks' weights that are divided
 * by their sum (the default) add up to 1, and K / g whole groups then give D / g of a dense output D: A = g.
 * Without that division (norm_topk_prob false) and with a uniform router they give K D / (r g^2):
 * A = r g^2 / K. "down" puts A on the down projection: exact. "megatron" puts A^(1/3) on gate, up and down:
 * approximate, as silu is not homogeneous. Nothing is multiplied where A = 1.
 *
 * Everything is written tensor by tensor from maps of the sources: memory is that of the largest tensor (of
 * a layer in the passes of prompts and of verify).
 */
#ifndef MB_CONVERT_UPCYCLE_H
#define MB_CONVERT_UPCYCLE_H

#include "model/arch.h"
#include "ops/ops.h"

/* Strings are the caller's. */
typedef struct mb_convert_upcycle_options {
    int64_t experts, picks; /* E, K */
    int64_t granularity;    /* g */
    char *router_init;      /* "normal", "zero", "prompts" */
    double router_init_std; /* of normal */
    char *prompts;          /* list: one file of records, or a text file for each expert (group) */
    double prompts_margin;  /* of prompts: how far the mean logit of an expert on its own prompts lies above
                               the others', averaged over experts */
    char *tokenizer;        /* of prompts; NULL: the source's */
    bool virtual_groups;    /* counts where g > 1 */
    char *scaling;          /* "none", "megatron", "down" */
    bool normalise;         /* norm_topk_prob; false only in Qwen3-MoE layout */
    double noise;           /* added to every expert matrix: N(0, noise * its root mean square) */
    char *siblings;         /* list of dense folders: group j from sibling j mod n, the rest averaged */
    bool source_is_sibling; /* the source is the first of them */
    char *layers;           /* which become mixtures: "0,2,4-9"; NULL: all */
    char *dtype;            /* of what is written: "source", "f32", "bf16" */
    uint64_t seed;
} mb_convert_upcycle_options;

/* What options make of a dense architecture. */
typedef struct mb_convert_upcycle_plan {
    mb_arch arch;        /* of the result */
    int64_t shards;      /* g */
    int64_t groups;      /* r */
    bool virtual_groups; /* g > 1 and asked for */
    double factor;       /* A */
    float scale[3];      /* of gate, up, down */
    bool is_exact;       /* the result must compute the source's function to rounding */
} mb_convert_upcycle_plan;

/* Tensors of the result by what they are, and of the source by where they went; logits side by side. */
typedef struct mb_convert_upcycle_report {
    int64_t tensors;   /* of the result: the sum of the next six */
    int64_t identical; /* the source's own bytes */
    int64_t copied;    /* expert matrices that are the source's (or a sibling's) bytes */
    int64_t sliced;    /* expert matrices that are a shard's bytes */
    int64_t computed;  /* scaled, with noise, or rounded to another dtype: made again and compared */
    int64_t averaged;  /* over siblings: made again and compared */
    int64_t added;     /* gates */
    int64_t copies;    /* how often each dense FFN of a converted layer is there */
    double max_logit_difference; /* relative to the largest |logit| */
    double limit;                /* of it: 1e-6, or what rounding makes of this model where that is more */
    bool is_preserved;           /* difference <= limit */
    bool is_exact;               /* it had to be */
} mb_convert_upcycle_report;

/* where: the folder, for messages. MB_EUSAGE, MB_EUNSUPPORTED, MB_ERANGE name the option or field and what to
 * do. On success reset the plan. */
mb_status mb_convert_upcycle_plan_create(const mb_arch *dense, const char *where,
                                         const mb_convert_upcycle_options *options,
                                         mb_convert_upcycle_plan *out_plan);
void mb_convert_upcycle_plan_reset(mb_convert_upcycle_plan *plan);

/* Folder -> folder; upcycle.json beside the weights says how it was made. */
mb_status mb_convert_upcycle(mb_ops *ops, const char *source, const char *target,
                             const mb_convert_upcycle_options *options);

/* Every tensor of the source must be accounted for in the target, and every tensor of the target be what the
 * options say, byte for byte; logits of both on 64 tokens, computed in f32 one layer at a time. MB_EDATA
 * names the tensor that is not, or says how far logits differ where they must not. */
mb_status mb_convert_upcycle_verify(mb_ops *ops, const char *source, const char *target,
                                    const mb_convert_upcycle_options *options,
                                    mb_convert_upcycle_report *out_report);
/* The same by the target's upcycle.json (siblings are named again). *out_is_upcycled false when it has
 * none. */
mb_status mb_convert_upcycle_verify_folder(mb_ops *ops, const char *source, const char *target,
                                           char *opt_siblings, bool *out_is_upcycled,
                                           mb_convert_upcycle_report *out_report);

#endif
