/* rotary: frequencies and table of rotary positions, and the scalings that stretch them.
 *
 * Layer: model.  Uses: base.
 * Source: Su et al. (2021) RoFormer; Chen et al. (2023) position interpolation (linear); bloc97 (2023) NTK
 * (dynamic); Peng et al. (2023) YaRN; Llama 3.1 (llama3); Ding et al. (2024) LongRoPE; behaviour of
 * transformers' modeling_rope_utils.py.
 *
 * Read from config.json: rope_scaling (4.x names, also with the older key "type") or rope_parameters (5.x
 * names). Types: default, linear, dynamic, llama3, yarn, longrope; any other is refused by name:
 * MB_EUNSUPPORTED.
 *
 * The frequencies of dynamic and longrope depend on how long the sequence is: dynamic's on its length beyond
 * max_position_embeddings, longrope's on whether it is longer than the original length. In a packed pass each
 * segment counts by itself: its length is its last position + 1, as when transformers runs it alone with a
 * fresh model. (With kept keys this length grows, and keys keep the rotation they had, as in transformers.)
 */
#ifndef MB_ROTARY_H
#define MB_ROTARY_H

#include "base/json.h"

typedef enum mb_rotary_type {
    MB_ROTARY_DEFAULT,
    MB_ROTARY_LINEAR,
    MB_ROTARY_DYNAMIC,
    MB_ROTARY_LLAMA3,
    MB_ROTARY_YARN,
    MB_ROTARY_LONGROPE
} mb_rotary_type;

enum { MB_ROTARY_MAX_PAIRS = 128 }; /* of longrope's factors */

/* Fields a type does not use are 0. */
typedef struct mb_rotary {
    mb_rotary_type type;
    double factor;                            /* >= 1; not of longrope */
    int64_t original_positions;               /* llama3, yarn, longrope: tokens before stretching; dynamic:
                                   max_position_embeddings */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow; /* yarn: rotations above and below which a pair keeps or stretches */
    double attention_factor;     /* yarn, longrope: multiplies cos and sin, so queries and keys alike */
    bool truncate;               /* yarn: round the ramp's ends to whole pairs */
    float short_factor[MB_ROTARY_MAX_PAIRS], long_factor[MB_ROTARY_MAX_PAIRS]; /* longrope, per pair */
} mb_rotary;

/* width: of a head. `where` is the file, for messages. MB_EUNSUPPORTED, MB_EFORMAT (a field missing),
 * MB_ERANGE. */
mb_status mb_rotary_read(const json_t *config, int64_t max_positions, int64_t width, const char *where,
                         mb_rotary *out_rotary);
/* Set rope_scaling (4.x names; null for default) and remove rope_parameters. Fields of theirs that are not
 * known here stay. */
mb_status mb_rotary_write(const mb_rotary *rotary, int64_t width, json_t *config);

/* Angle per position of each pair of a sequence of so many tokens: out_frequencies [width / 2], in single
 * precision as transformers computes. */
void mb_rotary_frequencies(const mb_rotary *rotary, double theta, int64_t width, int64_t length,
                           float *out_frequencies);
/* table [positions, width]: cos of the pairs' angles in the first half of a row, sin in the second, both
 * times the attention factor. Of sequences that are not long. */
void mb_rotary_table(const mb_rotary *rotary, double theta, int64_t positions, int64_t width, float *table);

/* Positions a sequence may have: max_positions, or as many as dynamic stretches them to. */
int64_t mb_rotary_limit(const mb_rotary *rotary, int64_t max_positions);
/* Is some segment so long that its frequencies are not those of mb_rotary_table? */
bool mb_rotary_is_long(const mb_rotary *rotary, const int32_t *positions, const int32_t *offsets,
                       int64_t segments);
/* A row like the table's for every row of a packed pass, each with the frequencies of its segment: table
 * [offsets[segments], width]. */
void mb_rotary_rows(const mb_rotary *rotary, double theta, int64_t width, const int32_t *positions,
                    const int32_t *offsets, int64_t segments, float *table);

#endif
