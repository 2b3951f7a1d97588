/* encoder_state: what an open encoder holds. Private to encoder*.c.
 *
 * Layer: model.
 */
#ifndef MB_ENCODER_STATE_H
#define MB_ENCODER_STATE_H

#include "base/hash.h"
#include "model/encoder.h"

typedef struct mb_encoder_linear {
    mb_weight weight;
    mb_tensor bias; /* dims 0: none */
} mb_encoder_linear;

typedef struct mb_encoder_norm {
    mb_tensor weight, bias;
} mb_encoder_norm;

typedef struct mb_encoder_layer {
    mb_encoder_linear q, k, v, o, up, gate, down; /* gate: mGTE alone */
    mb_encoder_norm attention_norm, ffn_norm;
} mb_encoder_layer;

struct mb_encoder {
    mb_ops *ops;
    mb_dtype dtype;
    mb_encoder_config config;
    mb_encoder_pooling pooling;
    mb_encoder_layer *layers;                  /* [L] */
    mb_tensor words, positions, types, rotary; /* dims 0 where the model has none */
    mb_encoder_norm norm;
    mb_buffer **buffers; /* of all tensors */
    int64_t buffer_count, buffer_capacity;
    mb_arena *arena; /* of one run: activations, the backend's memory */
    mb_arena *host;  /* and what the host prepares for it, and gets */
    char *folder;
    char hash[MB_HASH_TEXT];
};

#endif
