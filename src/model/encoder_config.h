/* encoder_config: the shape of an encoder, from its config.json.
 *
 * Layer: model.  Uses: base, tensor.
 * Source: Devlin et al. (2019) BERT; Liu et al. (2019) RoBERTa; Conneau et al. (2020) XLM-R; Zhang et al.
 * (2024) mGTE, with the rotary scaling of kexue.fm/archives/9706; behaviour of transformers'
 * modeling_bert.py, modeling_xlm_roberta.py and modeling_gte.py, and of Alibaba-NLP/new-impl.
 *
 * Read: model_type bert; roberta, xlm-roberta, camembert (positions begin behind the padding
 * id); new (mGTE and gte-v1.5) and gte
 * (transformers' own form of it). What changes the function and is not done here is refused by name:
 * MB_EUNSUPPORTED.
 */
#ifndef MB_ENCODER_CONFIG_H
#define MB_ENCODER_CONFIG_H

#include "base/json.h"
#include "tensor/tensor.h"

typedef enum mb_encoder_family { MB_ENCODER_BERT, MB_ENCODER_GTE } mb_encoder_family;

typedef struct mb_encoder_config {
    mb_encoder_family family;
    int64_t width;                  /* D */
    int64_t layers;                 /* L */
    int64_t heads, head_width, ffn; /* H, Dh, F */
    int64_t vocab;                  /* V */
    int64_t types;                  /* rows of the token type table; 0: none. Every token is of type 0 */
    int64_t position_rows;          /* of the position table; 0: rotary */
    int64_t first_position;         /* row of a record's first token */
    int64_t max_positions;          /* tokens of a record */
    double eps;                     /* of the layer norms */
    bool is_gelu_tanh;              /* else by the error function */
    double rope_theta;              /* 0: no rotary positions */
    double rope_factor;             /* ntk; 1: none */
} mb_encoder_config;

/* Is the folder's model_type one that is read here? False for a folder without a readable config.json too. */
bool mb_encoder_config_is(const char *folder);
mb_status mb_encoder_config_read(const char *folder, mb_encoder_config *out_config);
mb_status mb_encoder_config_from_json(const json_t *json, const char *where, mb_encoder_config *out_config);

/* Table [max_positions, Dh] of mb_ops_rope; rotary encoders only. Pair i turns by theta^(-2i/Dh) a position;
 * with ntk scaling by s: (theta s)^(-2i/Dh) / s^(2/Dh). */
void mb_encoder_config_rope(const mb_encoder_config *config, float *table);

int64_t mb_encoder_config_parameters(const mb_encoder_config *config);
/* Multiply-adds x 2 of a token that sees `context` tokens. */
double mb_encoder_config_flops(const mb_encoder_config *config, double context);

#endif
