/* teacher_cache: what a teacher's file is made from, for teacher.cache_dir.
 *
 * Layer: stage.  Uses: file_cache, program_options, measure (teacher_maker).
 */
#ifndef MB_TEACHER_CACHE_H
#define MB_TEACHER_CACHE_H

#include "stage/file_cache.h"

/* A mb_file_cache_describe of moe-teacher: every sweep and study with the same teacher, shard and options
 * finds the file. */
mb_status mb_teacher_cache_describe(const mb_program *program, mb_shard *shard, json_t *what);

#endif
