/* forecast_data: how many records and tokens a stage will see, whether or not its shard is there yet.
 *
 * Layer: stage.  Uses: forecast_stage, store (shard, shard_build), learn (batches), text.
 *
 * In this order: the shard itself (exact); records= and tokens= as given; the files that the stage that makes
 * it (forecast_makers.h), or the study's group of that name, lists, read whole when small and sampled at even
 * places when not, with the stage's tokenizer where it is there and by assumed bytes per token where it is
 * not; else, as an upper bound, the largest of the study's shard groups. Prompts and category files are
 * counted by lines and bytes.
 */
#ifndef MB_FORECAST_DATA_H
#define MB_FORECAST_DATA_H

#include "stage/forecast_stage.h"

/* What the user says about data that is not there. 0: nothing. */
typedef struct mb_forecast_given {
    double records, tokens, bytes_per_token;
} mb_forecast_given;

typedef struct mb_forecast_data {
    bool is_known, is_exact, is_at_most;
    double records, tokens; /* of one pass, as cut to the limit */
    double context;         /* tokens that a token attends to, mean */
    double longest;         /* tokens of the longest record, as cut */
    double text_bytes;      /* of the input files; 0: not looked at */
    bool has_loss_mask;
    double answers;       /* of category files: records, each of which may be answered; */
    double answer_tokens; /* their tokens, among `tokens` */
    char says[400];       /* where the figures are from */
    /* Of a training stage: */
    double most;         /* tokens of a micro-batch at most */
    double validated;    /* of one of a validation, whose shard is there; else 0 */
    double steps;        /* of the run */
    double run_tokens;   /* of the run; 0: unknown */
    double epoch_writes; /* times weights are written */
} mb_forecast_data;

/* limit: tokens of a record (0: none). vocab: of the model, for assumed bytes per token. Counts that nothing
 * says leave is_known false. */
mb_status mb_forecast_data_find(mb_forecast_stage *stage, const mb_forecast_given *given, double limit,
                                int64_t vocab, mb_forecast_data *out_data);
/* Bytes of text per token for want of a tokenizer, by its size: fitted to English text over byte-level BPE
 * of 2,048 to 128,000 tokens. */
double mb_forecast_data_bytes_per_token(int64_t vocab);

#endif
