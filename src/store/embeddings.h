/* embeddings: one vector per record of a corpus in one HDF5 file, joined from parts that any number of ranks
 * wrote.
 *
 * Layer: store.  Uses: base, h5, shard, scores_part.
 *
 * File, format "moebatch-embeddings" version 1 (N records, D numbers):
 *   /embeddings f32 [N, D]
 *   /record_hash, /source, /source_index, /byte_offset, /byte_length, /tokens, /source_names,
 *   /source_files: as in a score file (scores.h); tokens without special ones, before cutting
 *   attributes: format, version, shard (hash), dimension (D); of the caller: model, tokenizer, pooling,
 *   normalised, ...
 * Parts are those of scores.h with the one column "embedding": layers are the vectors.
 */
#ifndef MB_EMBEDDINGS_H
#define MB_EMBEDDINGS_H

#include "store/scores.h"

/* A part: vectors [rows, width] of records first.., as scores.h has it. */
mb_status mb_embeddings_part_write(const char *path, const char *key, int64_t first, int64_t rows,
                                   int64_t width, float *vectors);
/* Join all parts of [0, N) into `path` (one process); they stay until mb_scores_parts_remove. */
mb_status mb_embeddings_join(const char *path, const char *key, mb_shard *shard, int64_t width,
                             const json_t *attributes);
/* The vectors as a numpy file (version 1.0, little-endian f4, C order), written beside and renamed. */
mb_status mb_embeddings_export(const char *path, const char *npy_path);

typedef struct mb_embeddings mb_embeddings;
mb_status mb_embeddings_open(const char *path, mb_embeddings **out_embeddings);
void mb_embeddings_close(mb_embeddings **embeddings);
int64_t mb_embeddings_count(const mb_embeddings *embeddings); /* N */
int64_t mb_embeddings_width(const mb_embeddings *embeddings); /* D */
mb_h5 *mb_embeddings_file(const mb_embeddings *embeddings);   /* borrowed, for columns and attributes */
/* Rows [first, first + rows) into out [rows, D]. */
mb_status mb_embeddings_read(const mb_embeddings *embeddings, int64_t first, int64_t rows, float *out);

#endif
