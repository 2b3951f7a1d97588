/* category_options: the options of evaluating category files and of comparing models on them.
 *
 * Layer: stage.  Uses: base, text (answer_match), measure (category), named_paths.
 */
#ifndef MB_CATEGORY_OPTIONS_H
#define MB_CATEGORY_OPTIONS_H

#include "base/option.h"
#include "measure/category.h"
#include "stage/named_paths.h"

enum { MB_CATEGORY_BATCH_TOKENS = 32768 }; /* rows of keys and values kept while answers are generated */

typedef struct mb_category_program {
    char *files;             /* eval.categories: name=path,... or groups {name, path, form, fields, match} */
    char *tmpl;              /* eval.template auto */
    char *template_dir;      /* dataset.template_dir conf/template */
    char *match;             /* eval.match text|number */
    char *choice_by;         /* eval.choice_by sum|character|byte */
    bool generate;           /* eval.generate true */
    int64_t max_new_tokens;  /* eval.max_new_tokens 128 */
    char *stop;              /* eval.stop */
    int64_t batch_sequences; /* eval.batch_sequences 64 */
    int64_t speed_tokens;    /* eval.speed_tokens 32 */
    char *inputs;            /* compare.inputs: name=folder,... or groups {name, path} */
    char *baseline;          /* compare.baseline: the first */
    int64_t draws, seed;     /* compare.draws 10000, compare.seed 42 */
    double level;            /* compare.level 0.95 */
} mb_category_program;
const mb_option *mb_category_option_table(int64_t *out_count);

/* The files of eval.categories; more[] holds form, fields and match. MB_ENOTFOUND: one is not there. */
mb_status mb_category_options_files(const mb_category_program *options, mb_named_paths *out_files);
/* How answers of a file are matched: its own `match`, else eval.match. */
mb_status mb_category_options_match(const mb_category_program *options, const mb_named_path *file,
                                    mb_answer_match *out_match);
mb_category_by mb_category_options_by(const mb_category_program *options);
/* What decides which answers are right, as text (mb_free; NULL: no memory). */
char *mb_category_options_judged_by(const mb_category_program *options, mb_answer_match match);

#endif
