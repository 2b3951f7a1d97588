/* convert_upcycle_stream: rows through a model that is in memory one layer at a time.
 *
 * Layer: model.  Uses: block, params_source, ops.
 *
 * For conversions of models that do not fit in memory: the rows of the residual stream wait in the host's
 * memory while each layer is read, used for all of them, and dropped. Computed in f32.
 */
#ifndef MB_CONVERT_UPCYCLE_STREAM_H
#define MB_CONVERT_UPCYCLE_STREAM_H

#include "model/block.h"
#include "store/safetensors.h"

/* Packed rows; all arrays are the caller's. */
typedef struct mb_convert_upcycle_rows {
    int64_t tokens, segments;                 /* T, S */
    const int32_t *ids, *positions, *offsets; /* [T], [T], [S+1] */
    float *x;                                 /* [T, D] the residual stream */
} mb_convert_upcycle_rows;

typedef struct mb_convert_upcycle_stream {
    mb_ops *ops;
    const char *path; /* borrowed, as are the next two */
    const mb_arch *arch;
    const mb_safetensors *file;
    mb_arch one; /* a model of one layer of it */
    mb_arena *arena, *host;
    mb_buffer *rope_data;
    mb_tensor rope; /* [positions, Dh] */
} mb_convert_upcycle_stream;

/* positions: of the longest segment to come. Start zeroed; reset in any case. */
mb_status mb_convert_upcycle_stream_open(mb_convert_upcycle_stream *stream, mb_ops *ops, const char *path,
                                         const mb_arch *arch, const mb_safetensors *file, int64_t positions);
void mb_convert_upcycle_stream_reset(mb_convert_upcycle_stream *stream);

/* x = embeddings of ids. */
mb_status mb_convert_upcycle_stream_embed(mb_convert_upcycle_stream *stream, mb_convert_upcycle_rows *rows);
/* x through layer `index`; opt_inner [T, D] receives what enters the feed-forward half (and a router there),
 * norm(x) after the attention. */
mb_status mb_convert_upcycle_stream_layer(mb_convert_upcycle_stream *stream, mb_convert_upcycle_rows *rows,
                                          int64_t index, float *opt_inner);
/* logits [n, V] of rows head_row[n]. */
mb_status mb_convert_upcycle_stream_head(mb_convert_upcycle_stream *stream,
                                         const mb_convert_upcycle_rows *rows, int64_t n,
                                         const int32_t *head_row, float *logits);

#endif
