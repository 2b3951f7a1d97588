/* table_files: one table of text cells as text, CSV and LaTeX.
 *
 * Layer: stage.  Uses: base.
 */
#ifndef MB_TABLE_FILES_H
#define MB_TABLE_FILES_H

#include "base/str.h"

enum { MB_TABLE_COLUMNS = 16 };

typedef struct mb_table {
    const char *title;                     /* above the text, caption in LaTeX; borrowed */
    const char *columns[MB_TABLE_COLUMNS]; /* names as in CSV (a_b); in text and LaTeX "a b"; borrowed */
    int64_t column_count, row_count, room;
    char **cells; /* [rows, columns] */
} mb_table;

/* Adds a row; cells are copied. */
mb_status mb_table_add(mb_table *table, const char *const *cells);
void mb_table_reset(mb_table *table);

/* The forms, appended: columns padded, numbers right; RFC 4180 (quotes where they are needed); a tabular with
 * rules of booktabs in a table with caption. */
mb_status mb_table_text(const mb_table *table, mb_str *text);
mb_status mb_table_csv(const mb_table *table, mb_str *text);
mb_status mb_table_latex(const mb_table *table, mb_str *text);
/* <base>.txt, <base>.csv and <base>.tex. */
mb_status mb_table_write(const mb_table *table, const char *base);

#endif
