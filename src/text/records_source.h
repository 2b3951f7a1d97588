/* records_source: a window over a plain or gzip file that slides forward, for readers of records.
 *
 * Layer: text.  Uses: base, zlib.
 *
 * Bytes [at, length) of data are read and not yet taken. `offset` and `line` say where data[at] is in the
 * uncompressed file.
 */
#ifndef MB_RECORDS_SOURCE_H
#define MB_RECORDS_SOURCE_H

#include <stdbool.h>
#include <stdint.h>
#include <zlib.h>

#include "base/str.h"

typedef struct mb_records_source {
    gzFile file;
    char *path; /* owned */
    char *data; /* owned */
    size_t capacity;
    size_t at;
    size_t length;
    int64_t offset; /* of data[at] */
    int64_t line;   /* of data[at], from 1 */
    bool at_end;    /* nothing left to read behind data[length) */
} mb_records_source;

/* Open and fill the window; a UTF-8 byte order mark is stepped over. MB_ENOTFOUND, MB_EFORMAT (.gz that is
 * not gzip). */
mb_status mb_records_source_open(const char *path, mb_records_source *source);
void mb_records_source_close(mb_records_source *source);
/* Read more behind the window; bytes before `at` are dropped. Sets at_end when there is none. MB_EIO,
 * MB_EFORMAT (broken gzip). */
mb_status mb_records_source_fill(mb_records_source *source);
/* Take n bytes of the window: moves at, offset and line. */
void mb_records_source_take(mb_records_source *source, size_t n);
/* Go to a byte of the uncompressed file, which is on `line`. MB_ERANGE behind the end. */
mb_status mb_records_source_seek(mb_records_source *source, int64_t offset, int64_t line);

#endif
