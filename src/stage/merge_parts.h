/* merge_parts: how questions are shared out to parts: by share and seed, or by their source.
 *
 * Layer: stage.  Uses: text (question), base.
 *
 * A part that names sources gets questions of these alone. A source that some part names goes to the parts
 * that name it; every other source to the parts that name none. Among those a question falls by the hash of
 * its normalised text and the seed: it stays where it is when others are added, and questions of the same
 * text stay together.
 */
#ifndef MB_MERGE_PARTS_H
#define MB_MERGE_PARTS_H

#include "text/question.h"

typedef struct mb_merge_part {
    char *name;
    double share;
    char **sources; /* [source_count] */
    int64_t source_count;
} mb_merge_part;

typedef struct mb_merge_parts {
    mb_merge_part *part; /* [count] owned */
    int64_t count;
} mb_merge_parts;

/* "name=share,name=share:source:source", or a list of groups { name, share, sources }. MB_EUSAGE: two of one
 * name, a share outside (0, 1], shares of the same questions that come to more than 1. */
mb_status mb_merge_parts_read(const char *key, const char *text, mb_merge_parts *out_parts);
void mb_merge_parts_reset(mb_merge_parts *parts);
bool mb_merge_parts_is_named(const mb_merge_parts *parts, const char *source);
/* The part of a question, -1: none (what the shares leave). */
mb_status mb_merge_parts_get(const mb_merge_parts *parts, const mb_question *question, uint64_t seed,
                             int64_t *out_part);

#endif
