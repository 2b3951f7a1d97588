/* merge_inputs: the files of benchmarks, what form each has, and their questions one by one.
 *
 * Layer: stage.  Uses: merge_formats, merge_examples, named_paths, text (records), base.
 */
#ifndef MB_MERGE_INPUTS_H
#define MB_MERGE_INPUTS_H

#include "stage/merge_formats.h"

/* One file of an input. */
typedef struct mb_merge_file {
    char *source, *path;
    char *opt_subject;  /* of a file of a folder, or of an MMLU table: its name without ending */
    char *opt_examples; /* file of solved examples */
    const mb_merge_format *format;
    bool is_found; /* recognised by the content */
    bool has_rows; /* a table without a header */
    mb_merge_fields fields;
} mb_merge_file;

typedef struct mb_merge_inputs {
    mb_merge_file *file; /* [count] owned; those of one source stand together */
    int64_t count;
} mb_merge_inputs;

typedef struct mb_merge_input_options {
    const char *key;    /* for messages: "merge.inputs" */
    const char *inputs; /* name=path,.. or groups {name, path, format, fields, few_shot} */
    const char *format; /* of inputs that name none; "auto" */
    const char *fields; /* likewise; NULL: none */
} mb_merge_input_options;

/* Names to files: a folder stands for its files (of MMLU's folder for the tables of test/, or all
 * <subject>_test.csv), each recognised by its first record that can be read. MB_EUSAGE; MB_ENOTFOUND;
 * MB_EDATA: no format fits; MB_EUNSUPPORTED: Parquet and Arrow. */
mb_status mb_merge_inputs_open(const mb_merge_input_options *options, mb_merge_inputs *out_inputs);
void mb_merge_inputs_close(mb_merge_inputs *inputs);

/* What a reader is told of every record of a file, in order. opt_body NULL: the record is bad, and problem
 * says why. */
typedef struct mb_merge_taken {
    const mb_merge_file *file;
    int64_t index, line;
    const mb_merge_body *opt_body;
    const char *problem; /* without the file's name */
} mb_merge_taken;
typedef mb_status (*mb_merge_take)(void *own, const mb_merge_taken *taken);
/* Read a whole file. Fails when take does; MB_EDATA when no record of it is a question. */
mb_status mb_merge_inputs_read(const mb_merge_file *file, bool support, mb_merge_take take, void *own);

#endif
