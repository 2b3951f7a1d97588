/* merge_options: the keys of moe-merge.
 *
 * Layer: stage.  Uses: base.
 */
#ifndef MB_MERGE_OPTIONS_H
#define MB_MERGE_OPTIONS_H

#include "base/option.h"
#include "stage/merge_inputs.h"

/* moe-merge's own struct. */
typedef struct mb_merge_program {
    char *inputs, *format, *fields; /* merge.inputs, merge.format, merge.fields */
    int64_t few_shot;               /* merge.few_shot */
    bool support;                   /* merge.support */
    char *on_bad;                   /* merge.on_bad skip|fail */
    char *duplicates;               /* merge.duplicates options|order|question */
    char *questions;                /* questions.path */
    char *parts;                    /* split.parts */
    int64_t seed;                   /* split.seed */
    bool keep_shared;               /* split.keep_shared */
    char *without;                  /* without.inputs */
    char *by;                       /* without.by question|options */
    char *style, *text;             /* records.style letters|texts, records.text question|options|prompt */
    int64_t record_few_shot;        /* records.few_shot */
} mb_merge_program;
const mb_option *mb_merge_option_table(int64_t *out_count);

#endif
