/* cluster_records.c: the records of every cluster, cut out of their files.
 *
 * Records are taken in order. Plain JSONL is read by place: what stands there must begin as an object and end
 * at the end of a line. Other files are read from the front, once.
 *
 * 1. who the records are   2. one record   3. all clusters
 */
#include <fcntl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "store/clusters.h"
#include "store/shard_build.h"
#include "text/records.h"

/* ---- 1. who the records are ---- */

void mb_cluster_records_reset(mb_cluster_records *r)
{
    mb_free(r->source);
    mb_free(r->source_index);
    mb_free(r->offset);
    mb_free(r->length);
    mb_h5_free_strings(&r->source_names, r->source_count);
    mb_h5_free_strings(&r->source_files, r->source_count);
    *r = (mb_cluster_records){0};
}

static mb_status read_column(mb_h5 *file, const char *path, mb_dtype dtype, int64_t count, void **out)
{
    mb_status status = MB_OK;
    void *data = NULL;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_read_new(file, path, dtype, &dims, shape, &data));
    if (dims != 1 || shape[0] != count)
        MB_RAISE(MB_EFORMAT, "%s: %s does not have one entry per record", mb_h5_path(file), path);
    *out = data;
    data = NULL;
done:
    mb_free(data);
    return status;
}

mb_status mb_cluster_records_read(const mb_embeddings *embeddings, mb_cluster_records *out_records)
{
    mb_status status = MB_OK;
    mb_h5 *file = mb_embeddings_file(embeddings);
    mb_cluster_records r = {.count = mb_embeddings_count(embeddings)};
    int64_t files = 0;
    MB_TRY(read_column(file, "/source", MB_U16, r.count, (void **)&r.source));
    MB_TRY(read_column(file, "/source_index", MB_I64, r.count, (void **)&r.source_index));
    MB_TRY(read_column(file, "/byte_offset", MB_I64, r.count, (void **)&r.offset));
    MB_TRY(read_column(file, "/byte_length", MB_I64, r.count, (void **)&r.length));
    MB_TRY(mb_h5_read_strings(file, "/source_names", &r.source_names, &r.source_count));
    MB_TRY(mb_h5_read_strings(file, "/source_files", &r.source_files, &files));
    if (files != r.source_count) {
        mb_h5_free_strings(&r.source_files, files);
        MB_RAISE(MB_EFORMAT, "%s: %lld files of %lld sources", mb_h5_path(file), (long long)files,
                 (long long)r.source_count);
    }
    for (int64_t i = 0; i < r.count; i++)
        if (r.source[i] >= r.source_count)
            MB_RAISE(MB_EFORMAT, "%s: record %lld is of source %d of %lld", mb_h5_path(file), (long long)i,
                     r.source[i], (long long)r.source_count);
    *out_records = r;
    r = (mb_cluster_records){0};
done:
    mb_cluster_records_reset(&r);
    return status;
}

/* ---- 2. one record ---- */

typedef struct source_file {
    const char *path;
    bool is_plain;
    int file;            /* plain; -1 */
    int64_t bytes;       /* plain */
    mb_records *records; /* others */
    mb_record last;
} source_file;

typedef struct records_writer {
    source_file *source; /* [sources] */
    FILE **out;          /* [k] */
    char **temporary;    /* [k] names while they are written */
    mb_str bytes;
} records_writer;

static mb_status open_source(source_file *s)
{
    mb_status status = MB_OK;
    s->is_plain = mb_shard_build_is_plain(s->path);
    if (!s->is_plain) {
        MB_TRY(mb_records_open(s->path, INT64_MAX, &s->records));
        s->last.index = -1;
        goto done;
    }
    s->file = open(s->path, O_RDONLY | O_CLOEXEC);
    if (s->file < 0)
        MB_RAISE(MB_ENOTFOUND, "%s: %s; clusters are cut out of the files the embeddings were made of",
                 s->path, strerror(errno));
    MB_TRY(mb_files_size(s->path, &s->bytes));
done:
    return status;
}

static mb_status changed(const char *path, int64_t index)
{
    return mb_fail(MB_EDATA,
                   "%s: record %lld does not stand where it did; the file changed since it was embedded: run "
                   "moe-embed again",
                   path, (long long)index);
}

/* Bytes [offset - 1, offset + length + 1) as far as the file has them: the borders tell whether it is a line.
 * */
static mb_status read_plain(const source_file *s, int64_t index, int64_t offset, int64_t length,
                            mb_str *bytes)
{
    mb_status status = MB_OK;
    const int64_t before = offset > 0, end = offset + length, after = end < s->bytes;
    const size_t n = (size_t)(before + length + after);
    if (offset < 0 || length < 2 || end > s->bytes) MB_TRY(changed(s->path, index));
    MB_TRY(mb_str_reserve(bytes, n + 1));
    for (size_t have = 0; have < n;) {
        const ssize_t got = pread(s->file, bytes->data + have, n - have, offset - before + (int64_t)have);
        if (got <= 0) MB_TRY(changed(s->path, index));
        have += (size_t)got;
    }
    const char *line = bytes->data + before;
    const bool begins = line[0] == '{' && (!before || strchr("\n\r \t\xBF", line[-1]) != NULL),
               ends = line[length - 1] == '}' && (!after || strchr("\n\r \t", line[length]) != NULL);
    if (!begins || !ends || memchr(line, '\n', (size_t)length) != NULL) MB_TRY(changed(s->path, index));
    memmove(bytes->data, line, (size_t)length);
    bytes->data[length] = '\0';
    bytes->length = (size_t)length;
done:
    return status;
}

/* The record of a packed, array or CSV file, which are read from the front. */
static mb_status read_packed(source_file *s, int64_t index, mb_str *bytes)
{
    mb_status status = MB_OK;
    char *text = NULL;
    if (index < s->last.index)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: the records were shuffled; unpack the file to JSONL, embed that, and cut it", s->path);
    while (s->last.index < index) {
        MB_TRY(mb_records_read(s->records, &s->last));
        if (s->last.bytes == NULL) MB_TRY(changed(s->path, index));
    }
    if (s->last.json == NULL) MB_TRY(changed(s->path, index));
    mb_str_reset(bytes);
    if (s->last.bytes[0] == '{' && memchr(s->last.bytes, '\n', s->last.length) == NULL) {
        MB_TRY(mb_str_append(bytes, s->last.bytes, s->last.length));
        goto done;
    }
    text = json_dumps(s->last.json, JSON_PRESERVE_ORDER);
    if (text == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for record %lld", s->path, (long long)index);
    MB_TRY(mb_str_add(bytes, text));
done:
    free(text);
    return status;
}

/* ---- 3. all clusters ---- */

static mb_status open_all(records_writer *w, const char *folder, const mb_cluster_records *records,
                          const char *const *paths, int64_t k)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(w->source, records->source_count);
    for (int64_t s = 0; s < records->source_count; s++)
        w->source[s] = (source_file){.path = paths != NULL ? paths[s] : records->source_files[s], .file = -1};
    for (int64_t s = 0; s < records->source_count; s++) MB_TRY(open_source(&w->source[s]));
    MB_NEW_ARRAY(w->out, k);
    MB_NEW_ARRAY(w->temporary, k);
    for (int64_t c = 0; c < k; c++) {
        w->temporary[c] =
            mb_str_format("%s/cluster_%lld.jsonl.tmp.%ld", folder, (long long)c, (long)getpid());
        if (w->temporary[c] == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", folder);
        w->out[c] = fopen(w->temporary[c], "wbe");
        if (w->out[c] == NULL && errno == EMFILE)
            MB_RAISE(MB_EUNSUPPORTED,
                     "%lld clusters are more files than may be open at once; raise ulimit -n", (long long)k);
        if (w->out[c] == NULL) MB_RAISE(MB_EIO, "%s: %s", w->temporary[c], strerror(errno));
    }
done:
    return status;
}

static mb_status write_record(records_writer *w, const mb_cluster_records *r, int64_t i, FILE *out)
{
    mb_status status = MB_OK;
    source_file *s = &w->source[r->source[i]];
    if (s->is_plain)
        MB_TRY(read_plain(s, r->source_index[i], r->offset[i], r->length[i], &w->bytes));
    else
        MB_TRY(read_packed(s, r->source_index[i], &w->bytes));
    if (fwrite(w->bytes.data, 1, w->bytes.length, out) != w->bytes.length || fputc('\n', out) == EOF)
        MB_RAISE(MB_EIO, "a cluster's file could not be written: disk full?");
done:
    return status;
}

static mb_status publish(records_writer *w, const char *folder, int64_t k)
{
    mb_status status = MB_OK;
    char *path = NULL;
    for (int64_t c = 0; c < k; c++) {
        const bool is_whole = fflush(w->out[c]) == 0 && fsync(fileno(w->out[c])) == 0;
        const bool is_closed = fclose(w->out[c]) == 0;
        w->out[c] = NULL;
        if (!is_whole || !is_closed)
            MB_RAISE(MB_EIO, "%s: could not be written: disk full?", w->temporary[c]);
        path = mb_str_format("%s/cluster_%lld.jsonl", folder, (long long)c);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a path", folder);
        MB_TRY(mb_files_rename(w->temporary[c], path));
        MB_FREE(path);
        MB_FREE(w->temporary[c]);
    }
done:
    mb_free(path);
    return status;
}

static void close_all(records_writer *w, int64_t sources, int64_t k)
{
    for (int64_t s = 0; w->source != NULL && s < sources; s++) {
        if (w->source[s].file >= 0) close(w->source[s].file);
        mb_records_close(&w->source[s].records);
    }
    for (int64_t c = 0; c < k; c++) {
        if (w->out != NULL && w->out[c] != NULL) fclose(w->out[c]);
        if (w->temporary != NULL && w->temporary[c] != NULL) unlink(w->temporary[c]);
        if (w->temporary != NULL) mb_free(w->temporary[c]);
    }
    mb_free(w->source);
    mb_free(w->out);
    mb_free(w->temporary);
    mb_str_destroy(&w->bytes);
}

mb_status mb_cluster_records_write(const char *folder, const mb_cluster_records *records,
                                   const char *const *paths, const int32_t *labels, int64_t k,
                                   int64_t *out_lines)
{
    mb_status status = MB_OK;
    records_writer w = {0};
    int64_t bytes = 0;
    for (int64_t c = 0; c < k; c++) out_lines[c] = 0;
    for (int64_t i = 0; i < records->count; i++) bytes += records->length[i] + 1;
    MB_TRY(mb_files_make_folders(folder));
    MB_TRY(mb_files_check_space(folder, bytes, "the records of the clusters"));
    MB_TRY(open_all(&w, folder, records, paths, k));
    for (int64_t i = 0; i < records->count; i++) {
        if (i > 0 && records->source[i] == records->source[i - 1] &&
            records->source_index[i] == records->source_index[i - 1])
            continue; /* a further piece */
        MB_TRY(write_record(&w, records, i, w.out[labels[i]]));
        out_lines[labels[i]]++;
    }
    MB_TRY(publish(&w, folder, k));
done:
    close_all(&w, records->source_count, k);
    return status;
}
