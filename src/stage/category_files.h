/* category_files: what a model did on categories, as a file: moe-eval writes it, comparing models reads it.
 *
 * Layer: stage.  Uses: measure (category), store (h5).
 *
 * Format "moebatch-categories" (docs/formats.md). What the clock measured stands under /provenance: equal
 * numbers give equal content, whatever the speed.
 */
#ifndef MB_CATEGORY_FILES_H
#define MB_CATEGORY_FILES_H

#include "base/hash.h"
#include "measure/category.h"

/* One category. Strings are owned. */
typedef struct mb_category_entry {
    char *name;
    char file[MB_HASH_TEXT];   /* content hash of the category's file */
    char *judged_by;           /* what decides which answers are right, as text; equal texts, equal rules */
    mb_category_result result; /* with the cost of the forwards */
    int64_t step_tokens;       /* generated in steps of decoding alone ... */
    double step_seconds;       /* ... and their time */
    int64_t prompt_tokens, generated_tokens;
    double generate_seconds;
} mb_category_entry;

typedef struct mb_category_book {
    char model[MB_HASH_TEXT], tokenizer[MB_HASH_TEXT], tmpl[MB_HASH_TEXT]; /* hashes; "" where none */
    double flops_per_token; /* of a forward with the head, at the mean context of the categories */
    double parameters;      /* that lie in memory */
    char *measured_on;      /* backend, ranks, threads, in words */
    int64_t speed_tokens;   /* decoded by all ranks for the clock alone (eval_speed.h); 0: not done ... */
    double speed_seconds;   /* ... in so long */
    mb_category_entry *entry;
    int64_t count;
} mb_category_book;
void mb_category_entry_reset(mb_category_entry *entry);
void mb_category_book_reset(mb_category_book *book);

mb_status mb_category_files_write(const mb_category_book *book, const char *path);
/* MB_EFORMAT: no such file, or another version. */
mb_status mb_category_files_read(const char *path, mb_category_book *out_book);

/* Tokens a second of all categories' forwards, and of decoding (of the answers as they came, where it was not
 * measured by itself); NaN where nothing was measured. */
double mb_category_book_scoring_rate(const mb_category_book *book);
double mb_category_book_decoding_rate(const mb_category_book *book);

#endif
