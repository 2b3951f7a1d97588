/* encoder_pooling: from the hidden states of a record to one vector, as the folder's sentence-transformers
 * files say.
 *
 * Layer: model.  Uses: ops, store (safetensors).
 * Source: modules of sentence-transformers (Reimers & Gurevych 2019): Transformer, Pooling, Dense,
 * Normalize.
 *
 * Read: modules.json (the list of modules and their folders), sentence_bert_config.json (max_seq_length,
 * do_lower_case), the Pooling and Dense folders, config_sentence_transformers.json (the default prompt),
 * tokenizer_config.json (model_max_length when nothing else says it). Any other module is refused by name.
 */
#ifndef MB_ENCODER_POOLING_H
#define MB_ENCODER_POOLING_H

#include "ops/ops.h"

typedef enum mb_encoder_mode {
    MB_ENCODER_CLS, /* the first token */
    MB_ENCODER_MAX,
    MB_ENCODER_MEAN,
    MB_ENCODER_MEAN_SQRT,     /* sum / sqrt(tokens) */
    MB_ENCODER_WEIGHTED_MEAN, /* weights 1, 2, .. n */
    MB_ENCODER_LAST,          /* the last token */
    MB_ENCODER_MODES
} mb_encoder_mode;

/* y = act(x W^T + b) over pooled vectors. Owned memory, the host's. */
typedef struct mb_encoder_dense {
    int64_t in, out;
    mb_weight weight;
    mb_tensor bias; /* dims 0: none */
    bool is_tanh;   /* else as it is */
} mb_encoder_dense;

enum { MB_ENCODER_MAX_DENSE = 4 };
typedef struct mb_encoder_pooling {
    mb_encoder_mode modes[MB_ENCODER_MODES]; /* their vectors stand one after another */
    int mode_count;
    mb_encoder_dense dense[MB_ENCODER_MAX_DENSE];
    int dense_count;
    bool normalise;     /* to length 1, at the end */
    bool is_default;    /* the folder says nothing: mean, as it is */
    bool leaves_prompt; /* the folder wants a prompt's tokens left out of the pooling */
    int64_t max_length; /* tokens of a record, special ones included; 0: the model's positions */
    char *prompt;       /* the folder's default prompt, NULL none; owned */
} mb_encoder_pooling;

/* A folder without modules.json: mean pooling, is_default. MB_EUNSUPPORTED: an unknown module, an unknown
 * activation, lower-casing that the tokenizer does not do. */
mb_status mb_encoder_pooling_read(const char *folder, mb_encoder_pooling *out_pooling);
void mb_encoder_pooling_reset(mb_encoder_pooling *pooling);
/* Instead of the folder's: "mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean", or
 * several joined by "+". Dense modules stay and must fit. MB_EUSAGE lists the names. */
mb_status mb_encoder_pooling_choose(mb_encoder_pooling *pooling, const char *names);
/* "mean", "cls+mean", into a caller's buffer. Returns it. */
char *mb_encoder_pooling_describe(const mb_encoder_pooling *pooling, char *out_text, size_t bytes);
/* Numbers of a pooled vector for hidden states of this width; MB_ESHAPE when a Dense module does not fit. */
mb_status mb_encoder_pooling_width(const mb_encoder_pooling *pooling, int64_t width, int64_t *out_width);
/* All in the host's memory: hidden [T, width] f32, segments offsets[S + 1] none of them empty -> out [S,
 * that width]. In f64 sums, so a record's vector does not depend on its neighbours. Cut to its first
 * `dimension` numbers (0: all) before it is normalised; out is [S, dimension] then. MB_EUSAGE when there are
 * not so many. */
mb_status mb_encoder_pooling_run(mb_encoder_pooling *pooling, mb_ops *ops, const float *hidden, int64_t width,
                                 const int32_t *offsets, int64_t segments, int64_t dimension, float *out);

#endif
