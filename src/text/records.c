/* records: see the header.
 *
 * Contents: 1 form of a file  2 open and close  3 extent of the next record  4 parse  5 read and seek  6 scan
 */
#include "text/records.h"

#include <string.h>

#include "base/memory.h"
#include "text/records_extent.h"
#include "text/records_row.h"
#include "text/records_source.h"

enum { SCAN_KEEP_BYTES = 1 << 20 };

/* Where in an array the window begins. ELEMENT: at one, or behind it. */
typedef enum array_state {
    ARRAY_BEFORE,
    ARRAY_FIRST,
    ARRAY_AFTER_COMMA,
    ARRAY_ELEMENT,
    ARRAY_CLOSED,
    ARRAY_BROKEN
} array_state;

struct mb_records {
    mb_records_source source;
    mb_records_form form;
    char delimiter;
    json_t *header; /* CSV; NULL: names are numbers */
    int64_t max_bytes;
    int64_t index;
    array_state array;
    json_t *json;   /* of the last record */
    mb_str problem; /* likewise */
};

/* Where a record lies. bytes NULL: there is none left. */
typedef struct place {
    const char *bytes;
    size_t length;
    int64_t offset;
    int64_t line;
    bool overlong;
    bool cut; /* the file ends before the record does (arrays) */
} place;

/* ---- 1 form of a file ---- */

static bool has_extension(const char *path, const char *extension)
{
    char with_gz[16];
    snprintf(with_gz, sizeof with_gz, "%s.gz", extension);
    return mb_str_is_suffix(path, extension) || mb_str_is_suffix(path, with_gz);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Take white space; the window then begins with something else, or is empty at the end of the file. */
static mb_status take_space(mb_records_source *source)
{
    mb_status status = MB_OK;
    for (;;) {
        size_t n = 0;
        while (source->at + n < source->length && is_space(source->data[source->at + n])) n++;
        mb_records_source_take(source, n);
        if (source->at < source->length || source->at_end) break;
        MB_TRY(mb_records_source_fill(source));
    }
done:
    return status;
}

/* Is the first line a whole object? Then the file is JSONL whatever its name. */
static mb_status is_lines(mb_records_source *source, bool *out_is)
{
    mb_status status = MB_OK;
    mb_records_extent extent = {0};
    bool ended = false;
    size_t seen = 0;
    *out_is = false;
    for (;;) {
        const char *from = source->data + source->at + seen;
        const size_t n = source->length - source->at - seen;
        const char *line_end = n > 0 ? memchr(from, '\n', n) : NULL;
        mb_records_extent_step(&extent, MB_RECORDS_ARRAY, 0, from,
                               line_end != NULL ? (size_t)(line_end - from) : n, &ended);
        if (ended || line_end != NULL || source->at_end) break;
        seen += n;
        MB_TRY(mb_records_source_fill(source));
    }
    *out_is = ended;
done:
    return status;
}

static mb_status find_form(mb_records *records)
{
    mb_status status = MB_OK;
    mb_records_source *source = &records->source;
    const char *path = source->path;
    records->form = MB_RECORDS_ROWS;
    records->delimiter = has_extension(path, ".tsv") ? '\t' : ',';
    if (has_extension(path, ".csv") || has_extension(path, ".tsv")) return MB_OK;
    records->form = MB_RECORDS_LINES;
    if (has_extension(path, ".jsonl") || has_extension(path, ".ndjson")) return MB_OK;
    MB_TRY(take_space(source));
    const char first = source->at < source->length ? source->data[source->at] : 0;
    bool lines = false;
    if (first == '[') {
        records->form = MB_RECORDS_ARRAY;
        return MB_OK;
    }
    if (first == '{') MB_TRY(is_lines(source, &lines));
    if (!lines)
        MB_RAISE(MB_EFORMAT, "%s: is neither a JSON array of records nor one JSON object per line%s", path,
                 first == '{' ? " (its first line is not a whole object); write the records as JSONL"
                              : "; name CSV files .csv or .tsv");
done:
    return status;
}

/* ---- 2 open and close ---- */

void mb_records_close(mb_records **records)
{
    if (*records == NULL) return;
    mb_records_source_close(&(*records)->source);
    json_decref((*records)->header);
    json_decref((*records)->json);
    mb_str_destroy(&(*records)->problem);
    MB_FREE(*records);
}

static mb_status open_source(const char *path, int64_t max_bytes, mb_records **out_records)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    MB_NEW(records);
    records->max_bytes = max_bytes > 0 ? max_bytes : INT64_MAX;
    MB_TRY(mb_records_source_open(path, &records->source));
    *out_records = records;
    records = NULL;
done:
    mb_records_close(&records);
    return status;
}

static mb_status next_place(mb_records *records, place *out_place);

static mb_status read_header(mb_records *records)
{
    mb_status status = MB_OK;
    const char *path = records->source.path;
    place row;
    MB_TRY(next_place(records, &row));
    if (row.bytes == NULL) return MB_OK;
    if (row.overlong)
        MB_RAISE(MB_EFORMAT, "%s: the header row is %zu bytes long, over the limit of %lld", path, row.length,
                 (long long)records->max_bytes);
    status = mb_records_row_split(row.bytes, row.length, records->delimiter, &records->header);
    if (status == MB_OK) status = mb_records_row_check_header(records->header);
    if (status != MB_OK) {
        mb_status_prefix("%s:%lld: header row: ", path, (long long)row.line);
        if (status == MB_EDATA) status = MB_EFORMAT;
    }
done:
    return status;
}

mb_status mb_records_open(const char *path, int64_t max_bytes, mb_records **out_records)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    MB_TRY(open_source(path, max_bytes, &records));
    MB_TRY(find_form(records));
    if (records->form == MB_RECORDS_ROWS) MB_TRY(read_header(records));
    *out_records = records;
    records = NULL;
done:
    mb_records_close(&records);
    return status;
}

mb_status mb_records_open_rows(const char *path, int64_t max_bytes, mb_records **out_records)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    MB_TRY(open_source(path, max_bytes, &records));
    records->form = MB_RECORDS_ROWS;
    records->delimiter = has_extension(path, ".tsv") ? '\t' : ',';
    *out_records = records;
    records = NULL;
done:
    mb_records_close(&records);
    return status;
}

/* ---- 3 extent of the next record ---- */

/* What stands between rows: empty lines only, for spaces belong to fields. */
static mb_status take_empty_rows(mb_records_source *source)
{
    mb_status status = MB_OK;
    for (;;) {
        while (source->length - source->at < 2 && !source->at_end) MB_TRY(mb_records_source_fill(source));
        const size_t n = source->length - source->at;
        const char *p = n > 0 ? source->data + source->at : "";
        if (n >= 1 && p[0] == '\n')
            mb_records_source_take(source, 1);
        else if (n >= 2 && p[0] == '\r' && p[1] == '\n')
            mb_records_source_take(source, 2);
        else
            break;
    }
done:
    return status;
}

/* One byte of what stands between elements: the next state, or ARRAY_BROKEN. */
static array_state next_state(array_state state, char c)
{
    if (state == ARRAY_BEFORE) return c == '[' ? ARRAY_FIRST : ARRAY_BROKEN;
    if (state == ARRAY_FIRST) return c == ']' ? ARRAY_CLOSED : ARRAY_ELEMENT;
    if (state == ARRAY_AFTER_COMMA) return c == ']' ? ARRAY_BROKEN : ARRAY_ELEMENT;
    if (state == ARRAY_ELEMENT) return c == ',' ? ARRAY_AFTER_COMMA : c == ']' ? ARRAY_CLOSED : ARRAY_BROKEN;
    return ARRAY_BROKEN;
}

/* What stands between elements. *out_more is false behind the closing bracket. */
static mb_status take_punctuation(mb_records *records, bool *out_more)
{
    mb_status status = MB_OK;
    mb_records_source *source = &records->source;
    *out_more = false;
    for (;;) {
        MB_TRY(take_space(source));
        if (source->at == source->length) {
            if (records->array == ARRAY_CLOSED) break;
            MB_RAISE(MB_EFORMAT,
                     "%s:%lld: the array has no closing bracket; the file is cut off, copy it again",
                     source->path, (long long)source->line);
        }
        const array_state before = records->array;
        records->array = next_state(before, source->data[source->at]);
        if (records->array == ARRAY_BROKEN)
            MB_RAISE(MB_EFORMAT, "%s:%lld: %s", source->path, (long long)source->line,
                     before == ARRAY_CLOSED ? "text stands behind the end of the array"
                     : before == ARRAY_ELEMENT
                         ? "a comma is missing between two records of the array"
                         : "a record is missing between a comma and the closing bracket");
        *out_more = records->array == ARRAY_ELEMENT;
        if (*out_more) break;
        mb_records_source_take(source, 1);
    }
done:
    return status;
}

static mb_status take_between(mb_records *records, bool *out_more)
{
    mb_status status = MB_OK;
    mb_records_source *source = &records->source;
    if (records->form == MB_RECORDS_ARRAY) return take_punctuation(records, out_more);
    if (records->form == MB_RECORDS_LINES)
        MB_TRY(take_space(source));
    else
        MB_TRY(take_empty_rows(source));
    *out_more = source->at < source->length;
done:
    return status;
}

/* Length of [bytes, bytes + n) without the white space at its end that belongs to the line end. */
static size_t trimmed_length(mb_records_form form, const char *bytes, size_t n)
{
    while (n > 0 && (bytes[n - 1] == '\r' ||
                     (form == MB_RECORDS_LINES && (bytes[n - 1] == ' ' || bytes[n - 1] == '\t'))))
        n--;
    return n;
}

/* The record that begins with the window. Of one longer than max_bytes the window keeps nothing but its end.
 */
static mb_status find_end(mb_records *records, place *out_place)
{
    mb_status status = MB_OK;
    mb_records_source *source = &records->source;
    mb_records_extent extent = {0};
    size_t seen = 0, gone = 0, gone_trimmed = 0;
    bool ended = false;
    for (;;) {
        seen += mb_records_extent_step(&extent, records->form, records->delimiter,
                                       source->data + source->at + seen, source->length - source->at - seen,
                                       &ended);
        if (ended || source->at_end) break;
        if ((int64_t)(gone + seen) > records->max_bytes) {
            const size_t kept = trimmed_length(records->form, source->data + source->at, seen);
            if (kept > 0) gone_trimmed = gone + kept;
            gone += seen;
            mb_records_source_take(source, seen);
            seen = 0;
        }
        MB_TRY(mb_records_source_fill(source));
    }
    out_place->bytes = source->length > 0 ? source->data + source->at : "";
    const size_t kept =
        records->form == MB_RECORDS_ARRAY ? seen : trimmed_length(records->form, out_place->bytes, seen);
    out_place->length = kept > 0 ? gone + kept : gone_trimmed;
    out_place->overlong = (int64_t)(gone + seen) > records->max_bytes;
    out_place->cut = !ended && records->form == MB_RECORDS_ARRAY;
    if (out_place->overlong) out_place->bytes = "";
    mb_records_source_take(source, seen);
done:
    return status;
}

static mb_status next_place(mb_records *records, place *out_place)
{
    mb_status status = MB_OK;
    place found = {0};
    bool more = false;
    MB_TRY(take_between(records, &more));
    if (more) {
        found.offset = records->source.offset;
        found.line = records->source.line;
        MB_TRY(find_end(records, &found));
        if (found.cut) records->array = ARRAY_CLOSED;
    }
    *out_place = found;
done:
    return status;
}

/* ---- 4 parse ---- */

/* Numbers too big for an integer are no reason to lose a record: its bytes are kept as they are, and no
 * number of it is used. */
static json_t *load(const place *found, json_error_t *error)
{
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL;
    json_t *json = json_loadb(found->bytes, found->length, flags, error);
    if (json == NULL && json_error_code(error) == json_error_numeric_overflow)
        json = json_loadb(found->bytes, found->length, flags | JSON_DECODE_INT_AS_REAL, error);
    return json;
}

static mb_status parse_json(mb_records *records, const place *found)
{
    mb_status status = MB_OK;
    json_error_t error;
    json_t *json = load(found, &error);
    if (json == NULL && json_error_code(&error) == json_error_out_of_memory)
        MB_RAISE(MB_ENOMEM, "%s:%lld: no memory for the record", records->source.path,
                 (long long)found->line);
    if (json == NULL)
        MB_TRY(mb_str_add_format(&records->problem, "line %lld: broken JSON at column %d: %s",
                                 (long long)found->line + error.line - 1, error.column, error.text));
    else if (!json_is_object(json))
        MB_TRY(mb_str_add_format(&records->problem, "line %lld: the record is not a JSON object",
                                 (long long)found->line));
    else
        records->json = json_incref(json);
done:
    json_decref(json);
    return status;
}

static mb_status parse_row(mb_records *records, const place *found)
{
    json_t *fields = NULL;
    mb_status status = mb_records_row_split(found->bytes, found->length, records->delimiter, &fields);
    if (status == MB_OK) status = mb_records_row_object(fields, records->header, &records->json);
    json_decref(fields);
    if (status != MB_EDATA) return status;
    status =
        mb_str_add_format(&records->problem, "line %lld: %s", (long long)found->line, mb_status_message());
    mb_status_reset();
    return status;
}

static mb_status parse(mb_records *records, const place *found)
{
    mb_str *problem = &records->problem;
    const long long line = (long long)found->line;
    if (found->overlong)
        return mb_str_add_format(problem, "line %lld: the record is %zu bytes long, over the limit of %lld",
                                 line, found->length, (long long)records->max_bytes);
    if (found->cut) return mb_str_add_format(problem, "line %lld: the file ends inside this record", line);
    if (memchr(found->bytes, 0, found->length) != NULL)
        return mb_str_add_format(problem, "line %lld: the record holds a NUL byte", line);
    return records->form == MB_RECORDS_ROWS ? parse_row(records, found) : parse_json(records, found);
}

/* ---- 5 read and seek ---- */

mb_status mb_records_read(mb_records *records, mb_record *out_record)
{
    mb_status status = MB_OK;
    place found;
    json_decref(records->json);
    records->json = NULL;
    mb_str_reset(&records->problem);
    MB_TRY(next_place(records, &found));
    if (found.bytes != NULL) MB_TRY(parse(records, &found));
    *out_record = (mb_record){
        .json = records->json,
        .bytes = found.bytes,
        .length = found.length,
        .index = records->index,
        .line = found.line,
        .byte_offset = found.offset,
        .problem = records->problem.length > 0 ? mb_str_text(&records->problem) : NULL,
    };
    if (found.bytes != NULL) records->index++;
done:
    return status;
}

mb_status mb_records_pass(mb_records *records, int64_t *out_byte_offset)
{
    mb_status status = MB_OK;
    place found;
    MB_TRY(next_place(records, &found));
    *out_byte_offset = found.bytes != NULL ? found.offset : -1;
    if (found.bytes != NULL) records->index++;
done:
    return status;
}

mb_status mb_records_seek(mb_records *records, int64_t byte_offset, int64_t index, int64_t line)
{
    mb_status status = MB_OK;
    MB_TRY(mb_records_source_seek(&records->source, byte_offset, line));
    records->index = index;
    records->array = ARRAY_FIRST; /* an element comes next */
done:
    return status;
}

/* ---- 6 scan ---- */

static mb_status grow(int64_t **array, int64_t count, int64_t capacity)
{
    mb_status status = MB_OK;
    int64_t *grown = mb_realloc(*array, (size_t)capacity, sizeof **array);
    if (grown == NULL) MB_RAISE(MB_ENOMEM, "no memory for the places of %lld records", (long long)count);
    *array = grown;
done:
    return status;
}

mb_status mb_records_scan(const char *path, int64_t **out_offsets, int64_t **out_lengths, int64_t *out_count)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    int64_t *offsets = NULL, *lengths = NULL;
    int64_t count = 0, capacity = 0;
    MB_TRY(mb_records_open(path, SCAN_KEEP_BYTES, &records));
    for (;;) {
        place found;
        MB_TRY(next_place(records, &found));
        if (count == capacity) {
            capacity = capacity * 2 + 1024;
            MB_TRY(grow(&offsets, count, capacity));
            MB_TRY(grow(&lengths, count, capacity));
        }
        if (found.bytes == NULL) break;
        offsets[count] = found.offset;
        lengths[count++] = (int64_t)found.length;
    }
    *out_offsets = offsets;
    *out_lengths = lengths;
    *out_count = count;
    offsets = lengths = NULL;
done:
    mb_free(offsets);
    mb_free(lengths);
    mb_records_close(&records);
    return status;
}
