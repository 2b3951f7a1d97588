/* roofline: what roofline.c (the clock, the ceilings, the table) and roofline_ops.c (what is timed) share.
 *
 * A case is one op at one shape. Its tensors are laid out anew for every repetition, round and round in two
 * large blocks of memory, so that a case that fits in the chip's cache many times does not live there.
 */
#ifndef MB_ROOFLINE_H
#define MB_ROOFLINE_H

#include <stdio.h>

#include "ops/ops.h"

enum { ROOF_ARGS = 12, ROOF_EXPERTS = 128, ROOF_WEIGHTS = 8 };

/* Widths as ops.h letters them. A model of experts 0 is dense. */
typedef struct roof_model {
    const char *name;
    int64_t d, f, heads, kv_heads, head_width, experts, picks, vocabulary;
    bool norms_heads; /* q and k are normed head by head */
} roof_model;

typedef enum roof_kind { ROOF_IN, ROOF_OUT, ROOF_BOTH } roof_kind; /* read; written; read and written */

typedef struct roof_case roof_case;
typedef mb_status (*roof_run)(roof_case *c);

struct roof_case {
    mb_ops *ops;
    const char *op;
    char shape[96];
    mb_dtype dtype;
    int64_t tokens;
    roof_run run;
    bool is_waiting;   /* the op waits by itself, so it can't be recorded */
    bool is_unlimited; /* no floor: moves to and from the host */
    double bytes;      /* each tensor read once and written once; what roof_arg counted and more */
    double flops;      /* of matrix products */
    int args;
    roof_kind kind[ROOF_ARGS];
    mb_tensor t[ROOF_ARGS]; /* of this repetition */
    /* What stays the same over the repetitions. */
    mb_weight weights[ROOF_EXPERTS], *pointers[ROOF_EXPERTS];
    int weight_count;
    mb_weight *w; /* of this repetition */
    mb_attention_shape attention;
    mb_dispatch *dispatch;
    int64_t picks, groups;
    int32_t *ids;
    float *row_weight;
    int64_t *row_index;
    void *host;     /* memory of the host's, where an op or a move has some */
    bool is_zeroed; /* what is written begins at zero, not at random numbers */
};

typedef struct roof {
    mb_ops *ops;
    const char *only; /* words that the name of a case must hold */
    const char *model;
    bool is_tiny;
    int64_t rounds;
    double round_seconds;
    char *in, *out, *weights; /* random bf16 numbers, also good as f32; of these sizes */
    size_t block_bytes, weight_bytes;
    double bandwidth;                 /* bytes/s of a large copy, read and written bytes counted */
    double ceiling_bf16, ceiling_f32; /* flop/s of one large product */
    FILE *json;                       /* NULL: none; its head is written with the ceilings */
    bool has_head;
    int64_t rows;
    mb_arena *fixed; /* of the backend's memory: ids, positions, offsets; reset by model */
} roof;

/* Begin a case (all of it is zero but these), lay out its arguments in order, measure it. */
void roof_begin(roof *r, roof_case *c, const char *op, roof_run run, mb_dtype dtype, int64_t tokens);
/* A tensor [n0, n1, n2]; n2 0: [n0, n1]; n1 0 too: [n0]. Its bytes are counted. */
void roof_arg(roof_case *c, roof_kind kind, mb_dtype dtype, int64_t n0, int64_t n1, int64_t n2);
/* n matrices [rows, columns], taking turns; the bytes of one are counted. */
mb_status roof_weights(roof *r, roof_case *c, int n, mb_dtype dtype, int64_t rows, int64_t columns);
/* Times the case and writes its row; a case that fails is named and left out. */
mb_status roof_measure(roof *r, roof_case *c, double flops);
/* Ids, places and picks that the cases of a model share, in the backend's memory (but for the structs). */
typedef struct roof_given {
    int32_t *tokens, *positions, *offsets, *short_offsets, *key_first, *key_count, *each;
    int64_t segments, short_segments;
    float *row_weight;
    int64_t *row_index;
    int32_t *even_ids, *skewed_ids; /* [T*K] */
    mb_dispatch even, skewed;
} roof_given;

bool roof_is_asked(const roof *r, const char *op, const char *model);

/* Host arrays in the backend's memory, in r->fixed. */
mb_status roof_upload(roof *r, const void *host, size_t bytes, void **out);

/* What a case's shape column says; numbers in it are LL(n). */
#define SHAPE(c, ...) snprintf((c)->shape, sizeof(c)->shape, __VA_ARGS__)
#define LL(x)         ((long long)(x))

/* Routing, the travels of rows, products of experts. roofline_experts.c */
mb_status roof_experts_run(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                           roof_given *g);
/* Every op at every shape of a model. roofline_ops.c */
mb_status roof_model_run(roof *r, const roof_model *model, mb_dtype dtype, int64_t tokens);
mb_status
roof_common_run(roof *r); /* what no model's shape decides: AdamW, sums, copies, the encoder's ops */

#endif
