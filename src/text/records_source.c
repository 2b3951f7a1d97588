/* records_source: see the header.
 *
 * Contents: 1 open and close  2 fill  3 take and seek
 * zlib reads both plain and gzip files; a gzip file of several members is one text.
 */
#include "text/records_source.h"

#include <errno.h>
#include <string.h>

#include "base/files.h"
#include "base/memory.h"

enum { CHUNK_BYTES = 1 << 18 };

/* ---- 1 open and close ---- */

void mb_records_source_close(mb_records_source *source)
{
    if (source->file != NULL) gzclose(source->file);
    mb_free(source->path);
    mb_free(source->data);
    *source = (mb_records_source){0};
}

static bool is_gzip_name(const char *path)
{
    return mb_str_is_suffix(path, ".gz");
}

mb_status mb_records_source_open(const char *path, mb_records_source *source)
{
    mb_status status = MB_OK;
    *source = (mb_records_source){.line = 1};
    if (mb_files_is_folder(path)) MB_RAISE(MB_EDATA, "%s: is a folder; name a file in it", path);
    source->path = mb_strdup(path);
    if (source->path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for its name", path);
    errno = 0;
    source->file = gzopen(path, "rbe");
    if (source->file == NULL) {
        const bool missing = errno == ENOENT || errno == ENOTDIR;
        MB_RAISE(missing ? MB_ENOTFOUND : MB_EIO, "%s: %s", path,
                 errno != 0 ? strerror(errno) : "no memory to open it");
    }
    gzbuffer(source->file, CHUNK_BYTES);
    MB_TRY(mb_records_source_fill(source));
    if (is_gzip_name(path) && source->length > 0 && gzdirect(source->file))
        MB_RAISE(MB_EFORMAT, "%s: its name says gzip but it is not; rename it or compress it again", path);
    if (source->length >= 3 && memcmp(source->data, "\xEF\xBB\xBF", 3) == 0)
        mb_records_source_take(source, 3);
done:
    if (status != MB_OK) mb_records_source_close(source);
    return status;
}

/* ---- 2 fill ---- */

static mb_status make_room(mb_records_source *source)
{
    mb_status status = MB_OK;
    const size_t kept = source->length - source->at;
    if (source->at > 0 && kept > 0) memmove(source->data, source->data + source->at, kept);
    source->at = 0;
    source->length = kept;
    if (source->capacity - kept < CHUNK_BYTES) {
        const size_t capacity = source->capacity * 2 + CHUNK_BYTES;
        char *data = mb_realloc(source->data, capacity, 1);
        if (data == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a record of %zu bytes", source->path, kept);
        source->data = data;
        source->capacity = capacity;
    }
done:
    return status;
}

mb_status mb_records_source_fill(mb_records_source *source)
{
    mb_status status = MB_OK;
    if (source->at_end) return MB_OK;
    MB_TRY(make_room(source));
    int got = gzread(source->file, source->data + source->length, CHUNK_BYTES);
    int code = Z_OK;
    if (got < CHUNK_BYTES) gzerror(source->file, &code);
    if (code == Z_ERRNO)
        MB_RAISE(MB_EIO, "%s: cannot be read: %s", source->path,
                 errno != 0 ? strerror(errno) : "unknown reason");
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END))
        MB_RAISE(MB_EFORMAT,
                 "%s: broken gzip data after byte %lld of the text; copy or compress the file again",
                 source->path, (long long)(source->offset + (int64_t)(source->length - source->at)));
    source->length += (size_t)got;
    source->at_end = got == 0;
done:
    return status;
}

/* ---- 3 take and seek ---- */

void mb_records_source_take(mb_records_source *source, size_t n)
{
    const char *p = source->data + source->at;
    const char *end = p + n;
    while (p < end && (p = memchr(p, '\n', (size_t)(end - p))) != NULL) {
        source->line++;
        p++;
    }
    source->at += n;
    source->offset += (int64_t)n;
}

mb_status mb_records_source_seek(mb_records_source *source, int64_t offset, int64_t line)
{
    mb_status status = MB_OK;
    if (offset < 0) MB_RAISE(MB_ERANGE, "%s: byte %lld does not exist", source->path, (long long)offset);
    errno = 0;
    if (gzseek(source->file, (z_off_t)offset, SEEK_SET) < 0)
        MB_RAISE(errno != 0 ? MB_EIO : MB_EFORMAT, "%s: byte %lld cannot be reached: %s", source->path,
                 (long long)offset,
                 errno != 0 ? strerror(errno) : "the gzip data is broken or ends before it");
    source->at = source->length = 0;
    source->at_end = false;
    source->offset = offset;
    source->line = line;
done:
    return status;
}
