/* encoder: a bidirectional encoder (BERT, RoBERTa / XLM-R, mGTE): open, run over packed records, pooled
 * vectors out.
 *
 * Layer: model.  Uses: encoder_config, encoder_pooling, ops, store (safetensors, contenthash).
 * Source: as in encoder_config.h.
 *
 * Weights: safetensors of any float dtype, names with or without the "bert.", "roberta.", "new.", "gte." or
 * "model." in front, norms called weight/bias or gamma/beta, packed (qkv_proj, up_gate_proj) or apart.
 * Poolers, heads and position_ids buffers are passed over. Inference only. Norms and biases stay f32;
 * matrices and the word table are kept in the dtype of computing. Weights and activations lie in the
 * backend's memory (ops.h), what a caller gives and gets in the host's.
 */
#ifndef MB_ENCODER_H
#define MB_ENCODER_H

#include "model/encoder_config.h"
#include "model/encoder_pooling.h"

typedef struct mb_encoder mb_encoder;

/* dtype: f32 or bf16, of computing and of matrices in memory. MB_ENOTFOUND/MB_ESHAPE/MB_EDATA name folder
 * and tensor. */
mb_status mb_encoder_open(mb_ops *ops, const char *folder, mb_dtype dtype, mb_encoder **out_encoder);
void mb_encoder_destroy(mb_encoder **encoder);

const mb_encoder_config *mb_encoder_get_config(const mb_encoder *encoder);
mb_dtype mb_encoder_get_dtype(const mb_encoder *encoder); /* of computing */
/* As read from the folder; the caller may change it between runs (overrides). */
mb_encoder_pooling *mb_encoder_get_pooling(mb_encoder *encoder);
/* Content hash of the folder, "" when it cannot be read. Borrowed. */
const char *mb_encoder_hash(mb_encoder *encoder);
/* Tokens of a record, special ones included: the folder's limit, at most the model's positions. */
int64_t mb_encoder_max_length(const mb_encoder *encoder);

/* Packed records, none of them empty. */
typedef struct mb_encoder_batch {
    int64_t tokens, segments; /* T, S */
    const int32_t *ids;       /* [T] */
    const int32_t *offsets;   /* [S+1] */
} mb_encoder_batch;

/* Hidden states after the last layer, [T, D] f32, and pooled vectors [S, dimension] (0: all, see
 * encoder_pooling.h); either may be NULL. A record's rows do not depend on the others in the batch (bitwise
 * where the backend is row-stable). With pooled alone and pooling of single tokens (cls, lasttoken) the last
 * layer computes only those rows behind its attention. MB_ERANGE: an id outside the vocabulary, a record too
 * long or empty. */
mb_status mb_encoder_run(mb_encoder *encoder, const mb_encoder_batch *batch, int64_t dimension,
                         float *opt_hidden, float *opt_pooled);

/* Bytes by kind before anything is opened. packed: the most a backend's packed matrices take; activations:
 * of a run over `tokens` rows. */
typedef struct mb_encoder_plan {
    size_t weights, packed, activations;
} mb_encoder_plan;
mb_encoder_plan mb_encoder_plan_get(const mb_encoder_config *config, mb_dtype dtype, int64_t tokens);

#endif
