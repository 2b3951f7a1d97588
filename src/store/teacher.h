/* teacher: what a teacher says of every target of one corpus: its likeliest tokens and the rest as one
 * number per temperature, in one HDF5 file that any number of students learn from.
 *
 * Layer: store.  Uses: base, h5, shard, scores_part.
 * Source: Hinton et al. (2015) "Distilling the knowledge in a neural network", section 2; the rest as one
 * bucket: docs/fuse.md.
 *
 * File, format "moebatch-teacher" version 1 (N records; R rows, one per target; k tokens; S temperatures):
 *   /offsets  i64 [N+1]   first row of each record; a record's rows are its targets in order
 *   /ids      u16 [R, k]  (u32 where V > 65536) the k likeliest tokens, likeliest first, of equals the
 *                         smaller id
 *   /logprob  f16|f32 [R, k]  ln p of them at temperature 1
 *   /tail     f32 [R, S]  ln of the sum of p^(1/T) over all others, for each T; -inf when k = V
 *   /mass     f32 [R]     sum of p over the k
 *   /record_hash, /source, /source_index, /byte_offset, /byte_length, /tokens, /source_names,
 *   /source_files: as in a score file (scores.h)
 *   attributes: format, version, shard (hash), tokenizer, template, targets (masked, all), max_length
 *   (records were cut at so many tokens), vocab (V), k, temperatures (JSON list), content (hash of the rows),
 *   mass_mean, mass_p5 (the share of rows' masses below it is 5 %); of the caller: model, dtype ...
 * Parts are listed as those of scores.h (scores_part.h).
 */
#ifndef MB_TEACHER_H
#define MB_TEACHER_H

#include "base/hash.h"
#include "base/json.h"
#include "store/shard.h"

enum { MB_TEACHER_TEMPERATURES = 16 };

/* Everything that decides about types and sizes. */
typedef struct mb_teacher_shape {
    int64_t vocab, k; /* 1 <= k <= vocab */
    mb_dtype dtype;   /* of /logprob: f16 or f32 */
    int64_t temperatures;
    double temperature[MB_TEACHER_TEMPERATURES]; /* > 0, no two alike */
    bool all_targets;   /* tokens 1.. of a record; else those of the loss mask (all where the
                                                    shard has none) */
    int64_t max_length; /* records are cut to it */
} mb_teacher_shape;

/* Of a row in the file, and of all ln p in f32. */
int64_t mb_teacher_row_bytes(const mb_teacher_shape *shape);
int64_t mb_teacher_dense_bytes(const mb_teacher_shape *shape);
/* A list like "1,1.5,2,3" into shape. MB_EUSAGE. */
mb_status mb_teacher_parse_temperatures(const char *list, mb_teacher_shape *shape);
/* Targets of a record, cut to max_length, by a shape. */
int64_t mb_teacher_targets(const mb_teacher_shape *shape, const mb_shard_record *record);

/* ---- writing ---- */

/* A part: records [first, first + records), in memory. */
typedef struct mb_teacher_part {
    int64_t first, records, *row_first; /* [records + 1] rows of the part before each record */
    int32_t *ids;                       /* [rows, k] */
    float *logprob, *tail, *mass;       /* [rows, k], [rows, S], [rows] */
} mb_teacher_part;

/* As mb_scores_part_write: `<path>.parts/<first>-<end>.h5`. Logprob is rounded to the shape's dtype. */
mb_status mb_teacher_part_write(const char *path, const char *key, const mb_teacher_shape *shape,
                                const mb_teacher_part *part);
/* Of a whole file. */
typedef struct mb_teacher_figures {
    int64_t rows, bytes; /* bytes: of the file */
    double mass_mean, mass_p5;
} mb_teacher_figures;
/* Join all parts of [0, N) into `path` (one process); they stay until mb_scores_parts_remove. */
mb_status mb_teacher_join(const char *path, const char *key, mb_shard *shard, const mb_teacher_shape *shape,
                          const json_t *attributes);

/* ---- reading ---- */

typedef struct mb_teacher mb_teacher;
/* MB_EFORMAT: no such file of a teacher, or not whole. */
mb_status mb_teacher_open(const char *path, mb_teacher **out_teacher);
void mb_teacher_close(mb_teacher **teacher);
const mb_teacher_shape *mb_teacher_shape_get(const mb_teacher *teacher);
const char *mb_teacher_content(const mb_teacher *teacher); /* hash of the rows: for settings keys */
mb_h5 *mb_teacher_file(const mb_teacher *teacher);         /* borrowed, for attributes */
mb_status mb_teacher_figures_read(mb_teacher *teacher, mb_teacher_figures *out_figures);

/* What a student wants of it. */
typedef struct mb_teacher_wish {
    mb_shard *shard;    /* its own records */
    int64_t vocab;      /* columns of its logits */
    double temperature; /* one of the file's */
    bool all_targets;
    int64_t max_length; /* records are cut to it; 0: as they stand */
} mb_teacher_wish;
/* MB_EDATA names each thing that differs: the shard's content, tokenizer, vocabulary, targets, records that
 * were cut shorter; MB_EUSAGE a temperature that is not stored, naming those there are. *out_temperature: its
 * place among them. */
mb_status mb_teacher_check(const mb_teacher *teacher, const mb_teacher_wish *wish, int64_t *out_temperature);
/* The rows of a record's targets: record `number` of the shard, cut as the student has it, and the targets
 * the student has. ids [n, k], logprob [n, k], tail [n] at that place, with n as the student counts;
 * MB_EDATA where the file has other rows for it. One thread at a time. */
mb_status mb_teacher_read(mb_teacher *teacher, int64_t number, const mb_shard_record *record,
                          bool all_targets, int64_t temperature, int64_t n, int32_t *ids, float *logprob,
                          float *tail);

#endif
