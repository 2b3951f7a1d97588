/* teacher_report: what moe-teacher says: size and memory before, figures of the file after.
 *
 * Layer: stage.  Uses: program, memory_report, measure (teacher_maker), store (teacher).
 */
#ifndef MB_TEACHER_REPORT_H
#define MB_TEACHER_REPORT_H

#include "measure/teacher_maker.h"
#include "stage/program.h"

/* Rows, bytes of a row beside those of all ln p, bytes of the file, in the log; MB_ENOSPACE when output.dir
 * has no room for the file and its parts. */
mb_status mb_teacher_report_forecast(mb_program *program, const mb_teacher_shape *shape, mb_shard *shard,
                                     mb_teacher_forecast *out_forecast);
/* The forecast of memory as a log line, or, where the run's own figure of activations is known (not
 * negative), forecast and use in log and record. */
mb_status mb_teacher_report_memory(mb_program *program, mb_lm *lm, const mb_teacher_forecast *forecast,
                                   int64_t activations);
/* Rank 0, the whole file is there: bytes a row, the mass of the k tokens, in log, record and results.json. */
mb_status mb_teacher_report_file(mb_program *program, const char *path);

#endif
