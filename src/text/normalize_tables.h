/* normalize_tables: classes of characters as Hugging Face `tokenizers` has them, as sorted ranges.
 *
 * Layer: text.  Uses: nothing.
 * Source: asked of `tokenizers` 0.22.2 character by character (tests/golden/make_unicode.py). Its parts have
 * the
 * tables of different versions of Unicode, so a class here need not equal that of any one version.
 */
#ifndef MB_NORMALIZE_TABLES_H
#define MB_NORMALIZE_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ranges first to last, ascending. */
typedef struct mb_normalize_table {
    const uint32_t (*ranges)[2];
    size_t count;
} mb_normalize_table;

extern const mb_normalize_table mb_normalize_marks_bert; /* that BertNormalizer takes away (strip_accents) */
extern const mb_normalize_table mb_normalize_marks;      /* that StripAccents takes away */
extern const mb_normalize_table
    mb_normalize_punctuation;                        /* of BertPreTokenizer and Punctuation; beyond ASCII */
extern const mb_normalize_table mb_normalize_words;  /* \w */
extern const mb_normalize_table mb_normalize_joined; /* Extend, ZWJ, SpacingMark of Unicode's text segments */
extern const mb_normalize_table mb_normalize_joining;  /* Prepend */
extern const mb_normalize_table mb_normalize_breaking; /* CR, LF, Control, but for U+0000 */

extern const mb_normalize_table mb_normalize_linkers;    /* InCB=Linker */
extern const mb_normalize_table mb_normalize_consonants; /* InCB=Consonant */

static inline bool mb_normalize_table_has(const mb_normalize_table *table, uint32_t c)
{
    size_t low = 0, high = table->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > table->ranges[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < table->count && c >= table->ranges[low][0];
}

#endif
