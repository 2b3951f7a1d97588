/* embedder: every record of a shard through an encoder, or a decoder, into one vector each.
 *
 * Layer: measure.  Uses: comm, store (shard, embeddings), model (encoder, lm), text (tokenizer).
 *
 * Tiles and parts are formed by the data, as in the scoring pass (tile.h); ranks take parts from a shared
 * queue, parts are files of their own, and a restart does only what is missing. A decoder's vector is pooled
 * from its final hidden state behind the norm.
 */
#ifndef MB_EMBEDDER_H
#define MB_EMBEDDER_H

#include "base/option.h"
#include "comm/comm.h"
#include "model/encoder.h"
#include "model/lm.h"
#include "store/embeddings.h"
#include "store/share.h"
#include "text/tokenizer.h"

typedef struct mb_embedder_options {
    char *pooling;       /* embed.pooling: instead of the folder's */
    char *normalize;     /* embed.normalize auto|true|false */
    char *prefix;        /* embed.prefix: put in front of every text; NULL: the folder's default prompt */
    int64_t dimension;   /* embed.dimension 0 */
    int64_t tile_tokens; /* embed.tile_tokens 8192 */
} mb_embedder_options;
const mb_option *mb_embedder_option_table(int64_t *out_count);

/* What turns tokens into vectors. Exactly one of encoder and lm. Borrowed but for pooling. */
typedef struct mb_embedder_model {
    mb_encoder *encoder;
    mb_lm *lm;
    mb_encoder_pooling own_pooling; /* of a decoder's folder */
    mb_ids before, after;           /* special tokens around a record's */
    int64_t max_length;             /* tokens of a record, special ones included */
    const char *tokenizer_hash;     /* borrowed from the tokenizer */
} mb_embedder_model;

/* Pooling of the folder with the options' changes; a warning when neither the folder nor the options say one.
 * max_length: asked (0: the folder's), at most the model's. MB_EUSAGE: a pooling there is not, no room for a
 * token. Reset in any case. */
mb_status mb_embedder_model_open(mb_encoder *opt_encoder, mb_lm *opt_lm, const char *folder,
                                 const mb_tokenizer *tokenizer, const mb_embedder_options *options,
                                 int64_t max_length, mb_embedder_model *out_model);
void mb_embedder_model_reset(mb_embedder_model *model);
/* What goes in front of every text: the options' prefix, else the folder's prompt, else NULL. Borrowed.
 * MB_EUNSUPPORTED when the folder wants the prompt left out of the pooling. */
mb_status mb_embedder_model_prefix(mb_embedder_model *model, const mb_embedder_options *options,
                                   const char **out_prefix);

typedef struct mb_embedder_report {
    int64_t records, tokens, cut, empty, parts, skipped_parts, width;
    double seconds;
    json_t *part_names; /* as in mb_scorer_report */
} mb_embedder_report;

/* has_specials: the shard's records have their special tokens already (where a record begins and ends with
 * them they are taken off before it is cut, and put back). Records longer than max_length lose what is behind
 * it. A record without any token gets a vector of zeros and is counted. Collective. MB_ESTOPPED when the stop
 * flag is set: finished parts stay. The result does not depend on the number of ranks (bitwise where the
 * backend is row-stable). Shares of the work, and parts, as in mb_scorer_run (scorer.h). */
mb_status mb_embedder_run(mb_comm *comm, mb_embedder_model *model, mb_shard *shard, bool has_specials,
                          const mb_embedder_options *options, mb_share share, const char *out_path,
                          mb_embedder_report *out_report);

#endif
