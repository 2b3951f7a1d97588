/* rotary: frequencies and table of rotary positions, and the scalings that stretch them.
 *
 * Layer: model.  Uses: base.
 * Source: Su et al. (2021) RoFormer; Chen et al. (2023) position interpolation (linear); Peng et al. (2023)
 * YaRN; Llama 3.1 (llama3); behaviour of transformers' modeling_rope_utils.py.
 *
 * Read from config.json: rope_scaling (4.x names, also with the older key "type") or rope_parameters (5.x
 * names). Types: default, linear, dynamic, llama3, yarn; any other is refused by name: MB_EUNSUPPORTED.
 * "dynamic" differs from default only in sequences beyond max_position_embeddings, which no model here takes,
 * so it computes as default does.
 */
#ifndef MB_ROTARY_H
#define MB_ROTARY_H

#include "base/json.h"

typedef enum mb_rotary_type {
    MB_ROTARY_DEFAULT,
    MB_ROTARY_LINEAR,
    MB_ROTARY_DYNAMIC,
    MB_ROTARY_LLAMA3,
    MB_ROTARY_YARN
} mb_rotary_type;

/* Fields a type does not use are 0. */
typedef struct mb_rotary {
    mb_rotary_type type;
    double factor;                            /* >= 1 */
    int64_t original_positions;               /* llama3, yarn: tokens before stretching */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow; /* yarn: rotations above and below which a pair keeps or stretches */
    double attention_factor;     /* yarn: multiplies cos and sin, so queries and keys alike */
    bool truncate;               /* yarn: round the ramp's ends to whole pairs */
} mb_rotary;

/* `where` is the file, for messages. MB_EUNSUPPORTED, MB_EFORMAT (a field missing), MB_ERANGE. */
mb_status mb_rotary_read(const json_t *config, int64_t max_positions, const char *where,
                         mb_rotary *out_rotary);
/* Set rope_scaling (4.x names; null for default) and remove rope_parameters. Fields of theirs that are not
 * known here stay. */
mb_status mb_rotary_write(const mb_rotary *rotary, json_t *config);

/* Angle per position of each pair: out_frequencies [width / 2], in single precision as transformers computes.
 */
void mb_rotary_frequencies(const mb_rotary *rotary, double theta, int64_t width, float *out_frequencies);
/* table [positions, width]: cos of the pairs' angles in the first half of a row, sin in the second, both
 * times the attention factor. */
void mb_rotary_table(const mb_rotary *rotary, double theta, int64_t positions, int64_t width, float *table);

#endif
