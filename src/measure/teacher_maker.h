/* teacher_maker: a teacher through every record of a shard, in fixed tiles, into the file that students learn
 * from (store/teacher.h).
 *
 * Layer: measure.  Uses: comm, store (shard, teacher, share), model (lm), tile.
 *
 * Tiles and parts are formed by the data before anybody asks how many ranks there are, as in the scoring pass
 * (scorer.h); ranks take parts from a shared queue. A row's bits do not depend on its tile-mates where the
 * backend is row-stable.
 */
#ifndef MB_TEACHER_MAKER_H
#define MB_TEACHER_MAKER_H

#include "base/option.h"
#include "comm/comm.h"
#include "measure/tile.h"
#include "model/lm.h"
#include "store/share.h"
#include "store/teacher.h"

typedef struct mb_teacher_maker_options {
    int64_t k;           /* teacher.k 128 */
    char *temperatures;  /* teacher.temperatures 1,1.5,2,3 */
    char *dtype;         /* teacher.dtype f16|f32 */
    char *targets;       /* teacher.targets masked|all */
    int64_t tile_tokens; /* teacher.tile_tokens 1024 */
    int64_t max_length;  /* dataset.max_length 0 */
} mb_teacher_maker_options;
const mb_option *mb_teacher_maker_option_table(int64_t *out_count);

/* What the options give with this model: no more tokens than there are, no longer records than it takes.
 * MB_EUSAGE. */
mb_status mb_teacher_maker_shape(const mb_teacher_maker_options *options, const mb_lm *lm,
                                 mb_teacher_shape *out_shape);

/* Before a run: all of the shard's rows, and bytes of the file without the records' own columns. */
typedef struct mb_teacher_forecast {
    int64_t rows, row_bytes, dense_bytes; /* dense_bytes: of a row of all ln p in f32 */
    int64_t part_bytes;                   /* memory of a part, of which a device has two at a time */
} mb_teacher_forecast;
mb_status mb_teacher_maker_forecast(const mb_teacher_shape *shape, mb_shard *shard,
                                    const mb_teacher_maker_options *options,
                                    mb_teacher_forecast *out_forecast);
/* Bytes of logits that a row takes in a pass: those of members that are mixed besides. */
int64_t mb_teacher_maker_logits(const mb_lm *lm);
/* Passes that are open at a time. */
int mb_teacher_maker_passes(const mb_ops *ops);

typedef struct mb_teacher_maker_report {
    int64_t records, tokens, parts, skipped_parts; /* of all ranks' work, skipped parts included */
    double seconds;
    int64_t activation_bytes; /* the most the passes of a rank held */
    json_t *part_names; /* of a share, rank 0: its files, relative to the result's folder (json_decref) */
} mb_teacher_maker_report;

/* Collective over comm. Restart does only missing parts. opt_group: the ranks that hold the model's members
 * together (model/fuse.h); they work on a part together, its rank 0 writes. MB_ESTOPPED when the stop flag is
 * set: finished parts stay. MB_ENUMERIC: logits that are not numbers. A share of the work makes its parts and
 * does not join them. The parts stay (mb_scores_parts_remove). */
mb_status mb_teacher_maker_run(mb_comm *comm, mb_comm *opt_group, mb_lm *lm, mb_shard *shard,
                               const mb_teacher_maker_options *options, mb_share share, const char *out_path,
                               mb_teacher_maker_report *out_report);

#endif
