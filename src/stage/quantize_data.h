/* quantize_data: the calibration records of moe-quantize, and the perplexity of its validation shard.
 *
 * Layer: stage.  Uses: store (shard), measure (perplexity), model (quantise_layers).
 */
#ifndef MB_QUANTIZE_DATA_H
#define MB_QUANTIZE_DATA_H

#include "stage/program.h"
#include "stage/quantize_options.h"

typedef struct mb_quantize_data {
    mb_quantise_records records; /* of the arrays below */
    int64_t *offsets;
    int32_t *ids;
} mb_quantize_data;

/* quantize.samples records drawn by seed, in the shard's order, cut to quantize.max_length and the model's
 * positions; records of fewer than two tokens are passed over. The same on every rank. */
mb_status mb_quantize_data_read(const mb_quantize_program *own, const mb_lm *lm, mb_quantize_data *out_data);
void mb_quantize_data_reset(mb_quantize_data *data);

/* Token perplexity over the validation shard, its tokens, and the sum of -ln p. Collective. */
typedef struct mb_quantize_loss {
    double perplexity, nll;
    int64_t tokens;
} mb_quantize_loss;
mb_status mb_quantize_data_loss(mb_program *program, const mb_quantize_program *own, mb_lm *lm,
                                mb_quantize_loss *out_loss);

#endif
