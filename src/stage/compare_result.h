/* compare_result: several models on the same categories: figures, how sure they are, and which differences
 * are real.
 *
 * Layer: stage.  Uses: measure (bootstrap), category_files.
 *
 * Perplexity of a category is exp of the mean loss per target token, accuracy the share of judged records
 * that are right. Their means over categories: geometric, and plain, every category weighing the same. All
 * intervals are of one paired bootstrap over records (bootstrap.h), drawn within each category; its draws
 * follow from the seed and the category's name, so they do not change with the order of models or categories.
 */
#ifndef MB_COMPARE_RESULT_H
#define MB_COMPARE_RESULT_H

#include "stage/category_files.h"

typedef struct mb_compare_value {
    double value, low, high; /* NaN: there is none */
} mb_compare_value;

typedef struct mb_compare_cell {
    mb_compare_value perplexity, accuracy;
    mb_compare_value ratio; /* of the perplexity to the baseline's */
    mb_compare_value gain;  /* accuracy less the baseline's */
} mb_compare_cell;

typedef struct mb_compare_result {
    int64_t models, categories;
    const char **model;                  /* [models] names; borrowed */
    const mb_category_book *const *book; /* [models] borrowed */
    mb_compare_cell *cell;               /* [models, categories + 1]; the last column: the mean */
    int64_t baseline;
    int64_t draws, seed;
    double level;
    double *scoring, *decoding; /* [models] tokens a second, NaN: not measured */
} mb_compare_result;

typedef struct mb_compare_options {
    int64_t baseline, draws, seed;
    double level;
} mb_compare_options;

/* Do all books hold the same categories, files, records and rules? MB_EDATA names what differs, and the two
 * places. Perplexities are compared only where the targets are the same tokens. */
mb_status mb_compare_check(const char *const *places, const mb_category_book *const *book, int64_t models);
/* Of books that were checked. names [models]. */
mb_status mb_compare_make(const char **names, const mb_category_book *const *book, int64_t models,
                          const mb_compare_options *options, mb_compare_result *out_result);
void mb_compare_reset(mb_compare_result *result);

const mb_compare_cell *mb_compare_get(const mb_compare_result *result, int64_t model, int64_t category);
/* Does the interval leave this value out? */
bool mb_compare_excludes(const mb_compare_value *value, double none);

#endif
