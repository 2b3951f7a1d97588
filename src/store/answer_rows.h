/* answer_rows: what the files of one expert's answers and of several experts' outputs have in common: the
 * questions' columns. For answers.c and outputs.c.
 *
 * Layer: store.  Uses: base, h5, outputs.
 */
#ifndef MB_ANSWER_ROWS_H
#define MB_ANSWER_ROWS_H

#include "store/h5.h"
#include "store/outputs.h"

/* Columns [Q] and lists, as outputs.h has them. Who holds it owns the blocks or only looks at them. */
typedef struct mb_answer_rows {
    int64_t questions, choices;
    int32_t *answer;
    uint8_t *kind;
    int32_t *options;
    float *chance;
    uint64_t *text_hash;
    char **ids;
    int32_t *source;
    char **source_names;
    int64_t sources;
    char **texts;
    int64_t text_count;
    char *questions_hash, *style;
    int64_t few_shot;
} mb_answer_rows;

/* Free what it owns. */
void mb_answer_rows_reset(mb_answer_rows *rows);
/* New zeroed arrays (answer -1, strings NULL). */
mb_status mb_answer_rows_create(int64_t questions, int64_t choices, mb_answer_rows *rows);
/* Every column of a file, into new blocks; choices is the caller's. */
mb_status mb_answer_rows_read(mb_h5 *file, mb_answer_rows *rows);
mb_status mb_answer_rows_write(mb_h5 *file, const mb_answer_rows *rows);
/* Sizes, ranges and ids as mb_outputs_open says; `code` for faults, path for messages. */
mb_status mb_answer_rows_check(const mb_answer_rows *rows, mb_status code, const char *path);
/* Picks [Q, experts] and right [Q, experts] in their ranges: an option, a mask of the options, a text; right
 * of single and multiple is picked == answer. */
mb_status mb_answer_rows_check_picks(const mb_answer_rows *rows, int64_t experts, const int32_t *picked,
                                     const uint8_t *right, mb_status code, const char *path);
/* Open and check "format" and "version" 1. made_by: what makes such a file, for the message. */
mb_status mb_answer_rows_open_file(const char *path, const char *format, const char *made_by,
                                   mb_h5 **out_file);

/* A dataset of this shape into a new block; MB_EFORMAT otherwise. */
mb_status mb_answer_rows_array(mb_h5 *file, const char *name, mb_dtype dtype, int dims, const int64_t *shape,
                               void *out_data);
/* n strings exactly. */
mb_status mb_answer_rows_strings(mb_h5 *file, const char *name, int64_t n, char ***out_texts);
/* A text attribute of the root into a new block. */
mb_status mb_answer_rows_attribute(mb_h5 *file, const char *name, char **out_text);
/* Copy of a list of strings (NULL entries stay NULL). */
mb_status mb_answer_rows_copy(char *const *texts, int64_t n, char ***out_texts);

#endif
