/* records: read JSONL, JSON arrays and CSV (each may be gzip) one record at a time, with place, and map
 * fields to a form.
 *
 * Layer: text.  Uses: base, zlib.
 *
 * A record keeps its index in the file (counting every line or element, bad ones too), its byte offset and
 * length in the uncompressed text, so that its bytes can be spliced out again. Only a window of the file is
 * in memory, for every form. Source: RFC 8259 (JSON), RFC 4180 (CSV), jsonlines.org.
 */
#ifndef MB_RECORDS_H
#define MB_RECORDS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"

typedef struct mb_records mb_records;

typedef struct mb_record {
    json_t *json;        /* object; borrowed until the next read. NULL when bad */
    const char *bytes;   /* its bytes as in the file, without white space around and line end; borrowed
                          * likewise. CSV: the row.
                          * "" with length > 0 when the record was longer than max_bytes */
    size_t length;       /* in the file */
    int64_t index;       /* of the record in the file, from 0; blank lines are not records */
    int64_t line;        /* from 1 */
    int64_t byte_offset; /* in the uncompressed file */
    const char *problem; /* why it is bad ("line 7: ..."), NULL when good; borrowed likewise */
} mb_record;

/* Open by name: .jsonl .ndjson .json .csv .tsv, each also with .gz; anything else by content. A .json file is
 * an array of objects, or JSONL by content. Records over max_bytes are bad, not fatal (<= 0: no limit). A
 * byte order mark at the start is stepped over. Errors: MB_ENOTFOUND, MB_EIO, MB_EFORMAT (not one of the
 * forms; two CSV columns of one name). */
mb_status mb_records_open(const char *path, int64_t max_bytes, mb_records **out_records);
/* A CSV or TSV file without a header row: the fields are named "0", "1", ... */
mb_status mb_records_open_rows(const char *path, int64_t max_bytes, mb_records **out_records);
void mb_records_close(mb_records **records);
/* Next record; MB_OK with out_record->bytes == NULL at the end. A bad record is not an error: `problem` is
 * set. Bad are: broken JSON, what is not an object, duplicate keys, NUL (raw or \u0000), bad UTF-8, lone
 * surrogates, an element the file ends in, a CSV row with another number of fields than the header. Errors:
 * MB_EIO, a broken gzip stream, an array without its commas or its end (MB_EFORMAT). */
mb_status mb_records_read(mb_records *records, mb_record *out_record);
/* Step over the next record without parsing it; *out_byte_offset says where it began, -1 at the end. */
mb_status mb_records_pass(mb_records *records, int64_t *out_byte_offset);
/* Jump to a byte offset where a record starts (any form, uncompressed or not; gzip is read up to there);
 * index continues from `index`, lines from `line`. */
mb_status mb_records_seek(mb_records *records, int64_t byte_offset, int64_t index, int64_t line);
/* Records' byte offsets and lengths of a whole file without parsing (fast split for parallel sharding):
 * arrays to mb_free. The same records, in the same order, as reading gives. */
mb_status mb_records_scan(const char *path, int64_t **out_offsets, int64_t **out_lengths, int64_t *out_count);

#endif
