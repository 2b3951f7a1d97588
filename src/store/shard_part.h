/* shard_part: one rank's work: records of input files -> a part shard. Private to shard_build.
 *
 * Layer: store.  Uses: base, text, shard, shard_maker, shard_mix.
 */
#ifndef MB_SHARD_PART_H
#define MB_SHARD_PART_H

#include "store/shard.h"
#include "store/shard_maker.h"
#include "store/shard_mix.h"
#include "text/records.h"

/* A run of records of one input. */
typedef struct mb_shard_unit {
    int64_t input;       /* index into inputs */
    int64_t index;       /* first record of the file */
    int64_t byte_offset; /* where it starts */
    int64_t records;     /* how many; -1: to the end of the file */
} mb_shard_unit;

/* Counts of one input, this rank's. */
typedef struct mb_shard_part_counts {
    int64_t good, bad, skipped_long;
} mb_shard_part_counts;

/* All that is the same for every part of one sharding. */
typedef struct mb_shard_part {
    const mb_shard_build_options *options;
    const mb_shard_input *inputs; /* [input_count] */
    int64_t input_count;
    mb_shard_draw *draws;         /* [input_count] */
    mb_shard_part_counts *counts; /* likewise */
    mb_template **templates;      /* likewise; equal ones are one */
    char **types;                 /* distinct types, borrowed from inputs */
    int64_t type_count;
    char template_hash[MB_HASH_TEXT]; /* of the one, or over all */
    const char **names, **files;      /* [input_count] of inputs */
    mb_shard_info info;               /* of the whole */
    bool is_pairs;
    mb_shard_maker maker;
    mb_shard_writer *writer; /* of the part being written */
    mb_str bad_lines;        /* notes since they were taken */
} mb_shard_part;

/* Opens tokenizer and templates, checks the options against each other. part: zeroed; options, inputs,
 * input_count set. */
mb_status mb_shard_part_open(mb_shard_part *part);
void mb_shard_part_close(mb_shard_part *part);
/* Write the candidates of these units into a part shard at `path`. */
mb_status mb_shard_part_write(mb_shard_part *part, const mb_shard_unit *units, int64_t count,
                              const char *path);

#endif
