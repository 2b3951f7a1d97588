/* safetensors_writer.c: writing weight files, whole or in shards.
 *
 * The first write fixes the layout: tensors go to shards in the order of their declaration (a new shard when
 * the next does not fit), and inside a shard to offsets by falling element size, so that every tensor is
 * aligned, as the reference implementation does. Each shard is written aside at those offsets; close renames
 * all, the index last.
 *
 * 1. declaring   2. layout and headers   3. writing   4. publishing
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "store/safetensors.h"

enum { PIECE_ELEMENTS = 16384 };

typedef struct declared {
    char *name;
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    size_t bytes;
    int64_t order, shard;
    size_t begin; /* in the shard's data */
    bool written;
} declared;

typedef struct out_shard {
    char *name, *aside; /* final name in the folder, path while it is written */
    int fd;
    size_t data, bytes; /* where the data begins, how long it is */
} out_shard;

struct mb_safetensors_writer {
    char *folder, *stem;
    int64_t shard_bytes;
    declared *tensors; /* sorted by name once laid out */
    int64_t count;
    out_shard *shards; /* NULL: not yet laid out */
    int64_t shard_count;
};

/* ---- 1. declaring ---- */

mb_status mb_safetensors_writer_create(const char *folder, const char *stem, int64_t shard_bytes,
                                       mb_safetensors_writer **out_writer)
{
    mb_status status = MB_OK;
    mb_safetensors_writer *writer = NULL;
    MB_NEW(writer);
    writer->folder = mb_strdup(folder);
    writer->stem = mb_strdup(stem);
    writer->shard_bytes = shard_bytes;
    if (writer->folder == NULL || writer->stem == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_files_make_folders(folder));
    *out_writer = writer;
    writer = NULL;
done:
    mb_safetensors_writer_destroy(&writer);
    return status;
}

mb_status mb_safetensors_writer_declare(mb_safetensors_writer *writer, const char *name, mb_dtype dtype,
                                        int dims, const int64_t *shape)
{
    mb_status status = MB_OK;
    assert(writer->shards == NULL && "declare every tensor before the first write");
    assert(dims >= 0 && dims <= MB_TENSOR_MAX_DIMS);
    declared *grown = mb_realloc(writer->tensors, (size_t)writer->count + 1, sizeof *grown);
    if (grown == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
    writer->tensors = grown;
    declared *tensor = &grown[writer->count];
    *tensor =
        (declared){.dtype = dtype, .dims = dims, .order = writer->count, .bytes = mb_dtype_bytes(dtype)};
    for (int d = 0; d < dims; d++) {
        tensor->shape[d] = shape[d];
        tensor->bytes *= (size_t)shape[d];
    }
    tensor->name = mb_strdup(name);
    if (tensor->name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
    writer->count++;
done:
    return status;
}

/* ---- 2. layout and headers ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const declared *)a)->name, ((const declared *)b)->name);
}

/* By shard, then falling element size, then order of declaration: the order in the file. */
static int compare_places(const void *a, const void *b)
{
    const declared *x = a, *y = b;
    if (x->shard != y->shard) return x->shard < y->shard ? -1 : 1;
    size_t ex = mb_dtype_bytes(x->dtype), ey = mb_dtype_bytes(y->dtype);
    if (ex != ey) return ex > ey ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static const char *dtype_text(mb_dtype dtype)
{
    static const char *const names[MB_DTYPE_COUNT] = {
        [MB_F32] = "F32", [MB_F64] = "F64", [MB_BF16] = "BF16", [MB_F16] = "F16",
        [MB_I8] = "I8",   [MB_U8] = "U8",   [MB_U16] = "U16",   [MB_I32] = "I32",
        [MB_U32] = "U32", [MB_I64] = "I64", [MB_U64] = "U64",   [MB_BOOL] = "BOOL"};
    return names[dtype];
}

static mb_status header_entry(json_t *header, const declared *tensor)
{
    mb_status status = MB_OK;
    json_t *shape = json_array(), *entry = NULL;
    for (int d = 0; d < tensor->dims; d++) json_array_append_new(shape, json_integer(tensor->shape[d]));
    entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_text(tensor->dtype), "shape", shape,
                      "data_offsets", (json_int_t)tensor->begin, (json_int_t)(tensor->begin + tensor->bytes));
    MB_TRY(mb_json_set(header, tensor->name, entry));
done:
    return status;
}

static mb_status write_at(const out_shard *shard, const void *bytes, size_t n, size_t offset)
{
    const char *from = bytes;
    while (n > 0) {
        ssize_t done = pwrite(shard->fd, from, n, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0)
            return mb_fail(errno == ENOSPC ? MB_ENOSPACE : MB_EIO, "%s: cannot be written: %s", shard->aside,
                           strerror(errno));
        from += done;
        offset += (size_t)done;
        n -= (size_t)done;
    }
    return MB_OK;
}

/* Header of the shard whose tensors are first .. first+n of the placed ones: length, JSON, spaces up to 8
 * bytes. */
static mb_status write_header(out_shard *shard, const declared *first, int64_t n)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    unsigned char length[8];
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    if (header == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", shard->aside);
    for (int64_t i = 0; i < n; i++) MB_TRY(header_entry(header, &first[i]));
    MB_TRY(mb_json_print(header, 0, false, &text));
    while (text.length % 8 != 0) MB_TRY(mb_str_append(&text, " ", 1));
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(text.length >> (8 * i));
    MB_TRY(write_at(shard, length, sizeof length, 0));
    MB_TRY(write_at(shard, text.data, text.length, sizeof length));
    shard->data = sizeof length + text.length;
done:
    json_decref(header);
    mb_str_destroy(&text);
    return status;
}

/* Give every tensor its shard. */
static int64_t assign_shards(mb_safetensors_writer *writer)
{
    int64_t shard = 0;
    size_t used = 0;
    for (int64_t i = 0; i < writer->count; i++) {
        declared *tensor = &writer->tensors[i];
        if (writer->shard_bytes > 0 && used > 0 && used + tensor->bytes > (size_t)writer->shard_bytes) {
            shard++;
            used = 0;
        }
        tensor->shard = shard;
        used += tensor->bytes;
    }
    return shard + 1;
}

static mb_status open_shard(mb_safetensors_writer *writer, int64_t i)
{
    mb_status status = MB_OK;
    out_shard *shard = &writer->shards[i];
    shard->name = writer->shard_count == 1
                      ? mb_str_format("%s.safetensors", writer->stem)
                      : mb_str_format("%s-%05lld-of-%05lld.safetensors", writer->stem, (long long)(i + 1),
                                      (long long)writer->shard_count);
    shard->aside = mb_str_format("%s/%s.tmp.%ld", writer->folder, shard->name != NULL ? shard->name : "",
                                 (long)getpid());
    if (shard->name == NULL || shard->aside == NULL)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
    MB_TRY(mb_files_check_space(writer->folder, (int64_t)shard->bytes, shard->name));
    shard->fd = open(shard->aside, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (shard->fd < 0) MB_RAISE(MB_EIO, "%s: cannot be created: %s", shard->aside, strerror(errno));
done:
    return status;
}

static mb_status lay_out(mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    int64_t n = assign_shards(writer);
    MB_NEW_ARRAY(writer->shards, n);
    writer->shard_count = n;
    for (int64_t i = 0; i < n; i++) writer->shards[i].fd = -1;
    if (writer->count > 0)
        qsort(writer->tensors, (size_t)writer->count, sizeof *writer->tensors, compare_places);
    for (int64_t i = 0; i < writer->count; i++) {
        out_shard *shard = &writer->shards[writer->tensors[i].shard];
        writer->tensors[i].begin = shard->bytes;
        shard->bytes += writer->tensors[i].bytes;
    }
    for (int64_t i = 0, first = 0; i < n; i++) {
        int64_t end = first;
        while (end < writer->count && writer->tensors[end].shard == i) end++;
        MB_TRY(open_shard(writer, i));
        MB_TRY(write_header(&writer->shards[i], writer->tensors + first, end - first));
        first = end;
    }
    if (writer->count > 0)
        qsort(writer->tensors, (size_t)writer->count, sizeof *writer->tensors, compare_names);
    for (int64_t i = 1; i < writer->count; i++)
        assert(strcmp(writer->tensors[i].name, writer->tensors[i - 1].name) != 0 &&
               "a tensor is declared twice");
done:
    return status;
}

/* ---- 3. writing ---- */

/* The declared tensor of this name; lays out with the first call. */
static mb_status begin_write(mb_safetensors_writer *writer, const char *name, declared **out_tensor)
{
    mb_status status = MB_OK;
    const declared key = {.name = (char *)name};
    if (writer->shards == NULL) MB_TRY(lay_out(writer));
    *out_tensor = bsearch(&key, writer->tensors, (size_t)writer->count, sizeof key, compare_names);
    assert(*out_tensor != NULL && "a tensor is written that was not declared");
done:
    return status;
}

mb_status mb_safetensors_writer_write(mb_safetensors_writer *writer, const char *name, const void *bytes,
                                      size_t n)
{
    mb_status status = MB_OK;
    declared *tensor = NULL;
    MB_TRY(begin_write(writer, name, &tensor));
    if (n != tensor->bytes)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s has %zu bytes, not %zu", writer->folder, name, tensor->bytes, n);
    const out_shard *shard = &writer->shards[tensor->shard];
    MB_TRY(write_at(shard, bytes, n, shard->data + tensor->begin));
    tensor->written = true;
done:
    return status;
}

mb_status mb_safetensors_writer_write_f32(mb_safetensors_writer *writer, const char *name,
                                          const float *values, int64_t n)
{
    mb_status status = MB_OK;
    declared *tensor = NULL;
    uint64_t piece[PIECE_ELEMENTS];
    MB_TRY(begin_write(writer, name, &tensor));
    size_t element = mb_dtype_bytes(tensor->dtype);
    if ((size_t)n * element != tensor->bytes)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s has %zu elements, not %lld", writer->folder, name,
                 tensor->bytes / element, (long long)n);
    const out_shard *shard = &writer->shards[tensor->shard];
    for (int64_t first = 0; first < n; first += PIECE_ELEMENTS) {
        int64_t part = n - first < PIECE_ELEMENTS ? n - first : PIECE_ELEMENTS;
        MB_TRY(mb_dtype_from_f32(tensor->dtype, values + first, part, piece));
        MB_TRY(write_at(shard, piece, (size_t)part * element,
                        shard->data + tensor->begin + (size_t)first * element));
    }
    tensor->written = true;
done:
    return status;
}

/* ---- 4. publishing ---- */

static mb_status write_index(const mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    size_t total = 0;
    char *path = mb_str_format("%s/%s.safetensors.index.json", writer->folder, writer->stem);
    json_t *places = json_object(), *index = NULL;
    if (path == NULL || places == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
    for (int64_t i = 0; i < writer->count; i++) {
        MB_TRY(mb_json_set(places, writer->tensors[i].name,
                           json_string(writer->shards[writer->tensors[i].shard].name)));
        total += writer->tensors[i].bytes;
    }
    index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", places);
    if (index == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
    MB_TRY(mb_json_write(path, index, 2, true));
done:
    mb_free(path);
    json_decref(places);
    json_decref(index);
    return status;
}

static bool is_ours(const mb_safetensors_writer *writer, const char *name)
{
    for (int64_t i = 0; i < writer->shard_count; i++)
        if (strcmp(writer->shards[i].name, name) == 0) return true;
    return false;
}

/* Weights of an earlier save under the same stem would be read instead of ours, or beside them. */
static mb_status remove_earlier(const mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL, *single = mb_str_format("%s.safetensors", writer->stem);
    char *index = mb_str_format("%s.safetensors.index.json", writer->stem),
         *prefix = mb_str_format("%s-", writer->stem);
    int64_t n = 0;
    if (single == NULL || index == NULL || prefix == NULL)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
    MB_TRY(mb_files_list(writer->folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        bool is_shard = mb_str_is_prefix(names[i], prefix) && strstr(names[i], "-of-") != NULL &&
                        mb_str_is_suffix(names[i], ".safetensors");
        bool is_index = strcmp(names[i], index) == 0 && writer->shard_count == 1;
        if (!is_index && !is_shard && strcmp(names[i], single) != 0) continue;
        if (is_ours(writer, names[i])) continue;
        MB_FREE(path);
        path = mb_files_join(writer->folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
        if (unlink(path) != 0) MB_RAISE(MB_EIO, "%s: cannot be removed: %s", path, strerror(errno));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(path);
    mb_free(single);
    mb_free(index);
    mb_free(prefix);
    return status;
}

static mb_status publish(mb_safetensors_writer *writer)
{
    mb_status status = MB_OK;
    char *path = NULL;
    if (writer->shards == NULL) MB_TRY(lay_out(writer));
    for (int64_t i = 0; i < writer->count; i++)
        if (!writer->tensors[i].written) {
            assert(false && "a declared tensor was not written");
            MB_RAISE(MB_EFORMAT, "%s: tensor %s was declared but not written", writer->folder,
                     writer->tensors[i].name);
        }
    for (int64_t i = 0; i < writer->shard_count; i++) {
        out_shard *shard = &writer->shards[i];
        if (fsync(shard->fd) != 0)
            MB_RAISE(MB_EIO, "%s: cannot be written: %s", shard->aside, strerror(errno));
        int closed = close(shard->fd);
        shard->fd = -1;
        if (closed != 0) MB_RAISE(MB_EIO, "%s: cannot be written: %s", shard->aside, strerror(errno));
    }
    for (int64_t i = 0; i < writer->shard_count; i++) {
        MB_FREE(path);
        path = mb_files_join(writer->folder, writer->shards[i].name);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", writer->folder);
        MB_TRY(mb_files_rename(writer->shards[i].aside, path));
        MB_FREE(writer->shards[i].aside);
    }
    if (writer->shard_count > 1) MB_TRY(write_index(writer));
    MB_TRY(remove_earlier(writer));
done:
    mb_free(path);
    return status;
}

mb_status mb_safetensors_writer_close(mb_safetensors_writer **writer)
{
    mb_status status = MB_OK;
    if (*writer != NULL) MB_TRY(publish(*writer));
done:
    mb_safetensors_writer_destroy(writer);
    return status;
}

void mb_safetensors_writer_destroy(mb_safetensors_writer **writer)
{
    mb_safetensors_writer *w = *writer;
    if (w == NULL) return;
    for (int64_t i = 0; i < w->shard_count; i++) {
        if (w->shards[i].fd >= 0) close(w->shards[i].fd);
        if (w->shards[i].aside != NULL) unlink(w->shards[i].aside);
        mb_free(w->shards[i].aside);
        mb_free(w->shards[i].name);
    }
    for (int64_t i = 0; i < w->count; i++) mb_free(w->tensors[i].name);
    mb_free(w->shards);
    mb_free(w->tensors);
    mb_free(w->folder);
    mb_free(w->stem);
    MB_FREE(*writer);
}
