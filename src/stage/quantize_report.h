/* quantize_report: what moe-quantize says: sizes and memory before, figures after.
 *
 * Layer: stage.  Uses: program, quantize_data.
 */
#ifndef MB_QUANTIZE_REPORT_H
#define MB_QUANTIZE_REPORT_H

#include "stage/quantize_data.h"

/* Bytes of the model's tensors as its folder keeps them, and as they will be kept; bits a quantised weight
 * takes with its share of a scale. */
typedef struct mb_quantize_size {
    int64_t parameters, quantised; /* of them */
    int64_t before, after;
    double bits;
} mb_quantize_size;
mb_quantize_size mb_quantize_report_size(mb_lm *lm, const mb_quantise_options *options);

/* Log lines of size and of a rank's memory, before anything is done. */
void mb_quantize_report_forecast(mb_program *program, mb_lm *lm, const mb_quantise_options *options,
                                 int64_t tokens);
/* Log lines, results of the record, results.json (rank 0). loss: before and after; NULL without a validation
 * shard. file_bytes: of the written weights. */
mb_status mb_quantize_report_write(mb_program *program, const mb_quantise_options *options,
                                   const mb_quantize_size *size, int64_t file_bytes,
                                   const mb_quantise_report *report, int64_t records,
                                   const mb_quantize_loss *opt_loss);

#endif
