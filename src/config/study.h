/* study: a study file and the files it includes, merged into one JSON tree.
 *
 * Layer: config.  Uses: base, libconfig.  Only config.c includes this.
 *
 * libconfig groups become objects, arrays and lists become arrays. A file overrides the files it includes at
 * its top level, wherever the @include stands, key by key; two includes: the later one wins. An @include
 * inside a group is pasted there. Names are relative to the including file.
 */
#ifndef MB_STUDY_H
#define MB_STUDY_H

#include "base/json.h"

typedef struct mb_study {
    json_t *root;   /* the merged files */
    json_t *places; /* "warmup.training.lanes" -> "demo.cfg:12"; not for what is inside lists */
} mb_study;

/* Merge a file over what is there. MB_ENOTFOUND, MB_EUSAGE with file and line. */
mb_status mb_study_load(mb_study *study, const char *path);

#endif
