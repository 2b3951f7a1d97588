/* safetensors.c: reading weight files by mapping them.
 *
 * A header is parsed once into an array of entries per file, checked as a whole (in order of offsets the
 * tensors must fill the data exactly), and the entries of all files are sorted by name.
 *
 * 1. one file   2. folders and indexes   3. lookup and reads
 */
#include "store/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"

#define MOST_HEADER_BYTES UINT64_C(100000000) /* as the reference implementation */
enum { PIECE_ELEMENTS = 16384 };

typedef struct weight {
    char *name;
    int64_t map; /* which file */
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    size_t begin, end; /* in the file's data */
} weight;

typedef struct weight_map {
    char *path;
    char *bytes;
    size_t size;
    size_t data; /* where the data begins */
} weight_map;

struct mb_safetensors {
    char *path;
    weight_map *maps;
    int64_t map_count;
    weight *weights;
    int64_t count;
    json_t *metadata;
};

/* ---- 1. one file ---- */

/* The bytes are those of a node-local copy where there is one; messages name the original. */
static mb_status map_file(const char *path, weight_map *map)
{
    mb_status status = MB_OK;
    int64_t size = 0;
    int fd = -1;
    char *place = NULL;
    MB_TRY(mb_files_staged(path, &place));
    MB_TRY(mb_files_size(place, &size));
    if (size < 8)
        MB_RAISE(MB_EFORMAT, "%s: %lld bytes are no safetensors file; it is cut off, copy it again", path,
                 (long long)size);
    fd = open(place, O_RDONLY | O_CLOEXEC);
    if (fd < 0) MB_RAISE(MB_EIO, "%s: cannot be opened: %s", place, strerror(errno));
    void *bytes = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) MB_RAISE(MB_EIO, "%s: cannot be mapped: %s", path, strerror(errno));
    map->bytes = bytes;
    map->size = (size_t)size;
    map->path = mb_strdup(path);
    if (map->path == NULL) status = MB_ENOMEM;
done:
    if (fd >= 0) close(fd);
    mb_free(place);
    return status;
}

static mb_status parse_dtype(const char *text, const weight *w, const char *path, mb_dtype *out_dtype)
{
    static const struct {
        const char *name;
        mb_dtype dtype;
    } known[] = {{"F32", MB_F32}, {"F64", MB_F64}, {"BF16", MB_BF16}, {"F16", MB_F16},
                 {"I8", MB_I8},   {"U8", MB_U8},   {"U16", MB_U16},   {"I32", MB_I32},
                 {"U32", MB_U32}, {"I64", MB_I64}, {"U64", MB_U64},   {"BOOL", MB_BOOL}};
    static const char *const foreign[] = {"I16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(text, known[i].name) == 0) {
            *out_dtype = known[i].dtype;
            return MB_OK;
        }
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (strcmp(text, foreign[i]) == 0)
            return mb_fail(
                MB_EUNSUPPORTED,
                "%s: tensor %s has dtype %s, which is not supported; convert the model to bf16 first", path,
                w->name, text);
    return mb_fail(MB_EFORMAT, "%s: tensor %s has an unknown dtype \"%.40s\"", path, w->name, text);
}

static mb_status parse_shape(const json_t *shape, weight *w, const char *path, size_t *out_bytes)
{
    mb_status status = MB_OK;
    size_t bytes = mb_dtype_bytes(w->dtype);
    if (json_array_size(shape) > MB_TENSOR_MAX_DIMS)
        MB_RAISE(MB_EUNSUPPORTED, "%s: tensor %s has %zu dimensions; at most %d are supported", path, w->name,
                 json_array_size(shape), MB_TENSOR_MAX_DIMS);
    w->dims = (int)json_array_size(shape);
    for (int d = 0; d < MB_TENSOR_MAX_DIMS; d++) {
        const json_t *extent = json_array_get(shape, (size_t)d);
        w->shape[d] = 1;
        if (d >= w->dims) continue;
        if (!json_is_integer(extent) || json_integer_value(extent) < 0)
            MB_RAISE(MB_EFORMAT, "%s: tensor %s: dimension %d of its shape is not a whole number from 0",
                     path, w->name, d);
        w->shape[d] = json_integer_value(extent);
        if (__builtin_mul_overflow(bytes, (size_t)w->shape[d], &bytes) || bytes > INT64_MAX)
            MB_RAISE(MB_EFORMAT, "%s: tensor %s: its shape is larger than any file", path, w->name);
    }
    *out_bytes = bytes;
done:
    return status;
}

/* {dtype, shape, data_offsets} of the tensor w->name. */
static mb_status parse_weight(const json_t *json, const weight_map *map, weight *w)
{
    mb_status status = MB_OK;
    size_t bytes = 0, available = map->size - map->data;
    const char *dtype = json_string_value(json_object_get(json, "dtype"));
    const json_t *shape = json_object_get(json, "shape"), *offsets = json_object_get(json, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (dtype == NULL) MB_RAISE(MB_EFORMAT, "%s: tensor %s: \"dtype\" is missing", map->path, w->name);
    if (!json_is_array(shape))
        MB_RAISE(MB_EFORMAT, "%s: tensor %s: \"shape\" is missing", map->path, w->name);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        MB_RAISE(MB_EFORMAT, "%s: tensor %s: \"data_offsets\" is not a pair of whole numbers", map->path,
                 w->name);
    MB_TRY(parse_dtype(dtype, w, map->path, &w->dtype));
    MB_TRY(parse_shape(shape, w, map->path, &bytes));
    long long b = json_integer_value(begin), e = json_integer_value(end);
    if (b < 0 || e < b)
        MB_RAISE(MB_EFORMAT, "%s: tensor %s: offsets [%lld, %lld] run backwards", map->path, w->name, b, e);
    if ((size_t)e > available)
        MB_RAISE(
            MB_EFORMAT,
            "%s: tensor %s ends at byte %lld of the data, the file has %zu; it is cut off, copy it again",
            map->path, w->name, e, available);
    w->begin = (size_t)b;
    w->end = (size_t)e;
    if (w->end - w->begin != bytes)
        MB_RAISE(MB_EFORMAT, "%s: tensor %s: its shape asks for %zu bytes, its offsets hold %zu", map->path,
                 w->name, bytes, w->end - w->begin);
done:
    return status;
}

static int compare_offsets(const void *a, const void *b)
{
    const weight *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* The tensors of one file must fill its data: no overlap, no hole, nothing behind. */
static mb_status check_layout(const weight_map *map, weight *weights, int64_t n)
{
    mb_status status = MB_OK;
    size_t at = 0, available = map->size - map->data;
    if (n > 0) qsort(weights, (size_t)n, sizeof *weights, compare_offsets);
    for (int64_t i = 0; i < n; i++) {
        if (weights[i].begin < at)
            MB_RAISE(MB_EFORMAT, "%s: tensors %s and %s overlap", map->path, weights[i - 1].name,
                     weights[i].name);
        if (weights[i].begin > at)
            MB_RAISE(MB_EFORMAT, "%s: %zu bytes before tensor %s belong to no tensor", map->path,
                     weights[i].begin - at, weights[i].name);
        at = weights[i].end;
    }
    if (at != available)
        MB_RAISE(MB_EFORMAT, "%s: %zu bytes behind the last tensor belong to none", map->path,
                 available - at);
done:
    return status;
}

/* Header of a mapped file as JSON; sets where the data begins. */
static mb_status parse_header(weight_map *map, json_t **out_header)
{
    mb_status status = MB_OK;
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)map->bytes[i];
    if (length > map->size - 8)
        MB_RAISE(MB_EFORMAT,
                 "%s: the header should be %llu bytes long, but the file has %zu; it is cut off or no "
                 "safetensors file",
                 map->path, (unsigned long long)length, map->size);
    if (length > MOST_HEADER_BYTES)
        MB_RAISE(MB_EFORMAT, "%s: a header of %llu bytes is too long (at most 100 MB)", map->path,
                 (unsigned long long)length);
    if (length == 0 || map->bytes[8] != '{')
        MB_RAISE(MB_EFORMAT, "%s: the header does not begin with \"{\"; no safetensors file", map->path);
    map->data = 8 + (size_t)length;
    status = mb_json_parse(map->bytes + 8, (size_t)length, map->path, out_header);
    if (status != MB_OK) {
        mb_status_prefix("the header of a safetensors file is bad JSON: ");
        status = mb_status_trace(MB_EFORMAT, __func__, __FILE__, __LINE__);
    }
done:
    return status;
}

/* Map one file and append its tensors. opt_map: only those {name: file name} says are in `file_name`. */
static mb_status add_file(mb_safetensors *file, const char *path, const json_t *opt_map,
                          const char *file_name)
{
    mb_status status = MB_OK;
    json_t *header = NULL, *entry = NULL;
    const char *name = NULL;
    int64_t first = file->count, kept = file->count;
    weight_map *maps = mb_realloc(file->maps, (size_t)file->map_count + 1, sizeof *maps);
    if (maps == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    file->maps = maps;
    weight_map *map = &maps[file->map_count++];
    *map = (weight_map){0};
    MB_TRY(map_file(path, map));
    MB_TRY(parse_header(map, &header));
    weight *weights =
        mb_realloc(file->weights, (size_t)file->count + json_object_size(header) + 1, sizeof *weights);
    if (weights == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    file->weights = weights;
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (!json_is_object(entry)) MB_RAISE(MB_EFORMAT, "%s: \"__metadata__\" is not an object", path);
            if (file->metadata == NULL) file->metadata = json_incref(entry);
            continue;
        }
        weight *w = &file->weights[file->count];
        *w = (weight){.name = mb_strdup(name), .map = file->map_count - 1};
        if (w->name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        file->count++;
        MB_TRY(parse_weight(entry, map, w));
    }
    MB_TRY(check_layout(map, file->weights + first, file->count - first));
    for (int64_t i = first; i < file->count; i++) {
        weight w = file->weights[i];
        const char *place = opt_map != NULL ? json_string_value(json_object_get(opt_map, w.name)) : file_name;
        if (place != NULL && strcmp(place, file_name) == 0)
            file->weights[kept++] = w;
        else
            mb_free(w.name);
    }
    file->count = kept;
done:
    json_decref(header);
    return status;
}

/* ---- 2. folders and indexes ---- */

static bool is_plain_name(const char *name)
{
    return name != NULL && name[0] != 0 && name[0] != '.' && strchr(name, '/') == NULL;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const weight *)a)->name, ((const weight *)b)->name);
}

/* Every name of the index must have come out of the file it says. */
static mb_status check_index(const mb_safetensors *file, const json_t *weight_map_json, const char *path)
{
    mb_status status = MB_OK;
    const char *name = NULL;
    json_t *place = NULL;
    json_object_foreach((json_t *)weight_map_json, name, place)
    {
        const weight key = {.name = (char *)name};
        if (file->count == 0 ||
            bsearch(&key, file->weights, (size_t)file->count, sizeof key, compare_names) == NULL)
            MB_RAISE(MB_EFORMAT, "%s: tensor %s should be in %s, but is not", path, name,
                     json_string_value(place));
    }
done:
    return status;
}

static void sort_weights(mb_safetensors *file)
{
    if (file->count > 0) qsort(file->weights, (size_t)file->count, sizeof *file->weights, compare_names);
}

static mb_status open_index(mb_safetensors *file, const char *path)
{
    mb_status status = MB_OK;
    json_t *index = NULL, *places = NULL, *place = NULL;
    const char *name = NULL, **names = NULL;
    char *folder = NULL, *full = NULL;
    int64_t n = 0;
    MB_TRY(mb_json_read(path, &index));
    MB_TRY(mb_json_get_object(index, "weight_map", path, &places));
    const char *slash = strrchr(path, '/');
    folder = slash != NULL ? mb_strndup(path, (size_t)(slash - path)) : mb_strdup(".");
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    MB_NEW_ARRAY(names, json_object_size(places) + 1);
    json_object_foreach(places, name, place)
    {
        if (!is_plain_name(json_string_value(place)))
            MB_RAISE(MB_EFORMAT, "%s: the file of tensor %s is not the name of a file in this folder", path,
                     name);
        names[n++] = json_string_value(place);
    }
    qsort(names, (size_t)n, sizeof *names, compare_texts);
    for (int64_t i = 0; i < n; i++) {
        if (i > 0 && strcmp(names[i], names[i - 1]) == 0) continue;
        MB_FREE(full);
        full = mb_files_join(folder, names[i]);
        if (full == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        if (!mb_files_is_file(full))
            MB_RAISE(MB_ENOTFOUND,
                     "%s: the index names %s, which is not there; copy the model again, with all its shards",
                     path, full);
        MB_TRY(add_file(file, full, places, names[i]));
    }
    sort_weights(file);
    MB_TRY(check_index(file, places, path));
done:
    mb_free(full);
    mb_free(folder);
    mb_free(names);
    json_decref(index);
    return status;
}

/* No safetensors here: say what to do about what is. */
static mb_status refuse_folder(const char *folder)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t n = 0;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++)
        if (mb_str_is_suffix(names[i], ".bin") || mb_str_is_suffix(names[i], ".pt") ||
            mb_str_is_suffix(names[i], ".pth"))
            MB_RAISE(MB_EUNSUPPORTED,
                     "%s: weights are only there as %s; convert them where Python is: python3 -c \"from "
                     "transformers import "
                     "AutoModelForCausalLM as M; M.from_pretrained('%s', "
                     "torch_dtype='auto').save_pretrained('%s-safetensors')\"",
                     folder, names[i], folder, folder);
    MB_RAISE(
        MB_ENOTFOUND,
        "%s: no model.safetensors, model.safetensors.index.json or adapter_model.safetensors in this folder",
        folder);
done:
    mb_files_free_names(&names, n);
    return status;
}

static mb_status open_folder(mb_safetensors *file, const char *folder)
{
    static const char *const stems[] = {"model", "adapter_model"};
    mb_status status = MB_OK;
    char *single = NULL, *index = NULL;
    for (size_t i = 0; i < sizeof stems / sizeof *stems; i++) {
        MB_FREE(single);
        MB_FREE(index);
        single = mb_str_format("%s/%s.safetensors", folder, stems[i]);
        index = mb_str_format("%s/%s.safetensors.index.json", folder, stems[i]);
        if (single == NULL || index == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
        if (mb_files_is_file(single)) {
            if (mb_files_is_file(index))
                mb_warn("%s: there is an index beside it; the single file is read, as transformers does",
                        single);
            MB_TRY(add_file(file, single, NULL, ""));
            sort_weights(file);
            goto done;
        }
        if (mb_files_is_file(index)) {
            MB_TRY(open_index(file, index));
            goto done;
        }
    }
    MB_TRY(refuse_folder(folder));
done:
    mb_free(single);
    mb_free(index);
    return status;
}

mb_status mb_safetensors_open(const char *path, mb_safetensors **out_file)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    MB_NEW(file);
    file->path = mb_strdup(path);
    if (file->path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
    if (mb_files_is_folder(path)) {
        MB_TRY(open_folder(file, path));
    } else if (!mb_files_is_file(path)) {
        MB_RAISE(MB_ENOTFOUND, "%s: there is no such file or folder", path);
    } else if (mb_str_is_suffix(path, ".json")) {
        MB_TRY(open_index(file, path));
    } else {
        MB_TRY(add_file(file, path, NULL, ""));
        sort_weights(file);
    }
    *out_file = file;
    file = NULL;
done:
    mb_safetensors_close(&file);
    return status;
}

void mb_safetensors_close(mb_safetensors **file)
{
    mb_safetensors *f = *file;
    if (f == NULL) return;
    for (int64_t i = 0; i < f->map_count; i++) {
        if (f->maps[i].bytes != NULL) munmap(f->maps[i].bytes, f->maps[i].size);
        mb_free(f->maps[i].path);
    }
    for (int64_t i = 0; i < f->count; i++) mb_free(f->weights[i].name);
    mb_free(f->maps);
    mb_free(f->weights);
    mb_free(f->path);
    json_decref(f->metadata);
    MB_FREE(*file);
}

/* ---- 3. lookup and reads ---- */

int64_t mb_safetensors_count(const mb_safetensors *file)
{
    return file->count;
}

const char *mb_safetensors_name(const mb_safetensors *file, int64_t i)
{
    assert(i >= 0 && i < file->count);
    return file->weights[i].name;
}

const json_t *mb_safetensors_metadata(const mb_safetensors *file)
{
    return file->metadata;
}

static const weight *find_weight(const mb_safetensors *file, const char *name)
{
    const weight key = {.name = (char *)name};
    return file->count > 0 ? bsearch(&key, file->weights, (size_t)file->count, sizeof key, compare_names)
                           : NULL;
}

bool mb_safetensors_has(const mb_safetensors *file, const char *name)
{
    return find_weight(file, name) != NULL;
}

mb_status mb_safetensors_view(const mb_safetensors *file, const char *name, mb_tensor *out_tensor)
{
    const weight *w = find_weight(file, name);
    if (w == NULL) return mb_fail(MB_ENOTFOUND, "%s: there is no tensor %s", file->path, name);
    const weight_map *map = &file->maps[w->map];
    *out_tensor = (mb_tensor){.dtype = w->dtype, .dims = w->dims, .data = map->bytes + map->data + w->begin};
    memcpy(out_tensor->shape, w->shape, sizeof w->shape);
    return MB_OK;
}

mb_status mb_safetensors_read_f32(const mb_safetensors *file, const char *name, int dims,
                                  const int64_t *shape, float *out)
{
    mb_status status = MB_OK;
    mb_tensor tensor;
    char have[96], want[96];
    uint64_t piece[PIECE_ELEMENTS]; /* aligned copy: the map need not be */
    MB_TRY(mb_safetensors_view(file, name, &tensor));
    if (shape != NULL && !mb_tensor_is_shape(&tensor, dims, shape)) {
        mb_tensor wanted = {.dtype = MB_F32, .dims = dims, .shape = {1, 1, 1, 1}};
        memcpy(wanted.shape, shape, (size_t)dims * sizeof *shape);
        MB_RAISE(MB_ESHAPE, "%s: tensor %s is %s; this model wants %s", file->path, name,
                 mb_tensor_describe(&tensor, have, sizeof have),
                 mb_tensor_describe(&wanted, want, sizeof want));
    }
    int64_t count = mb_tensor_count(&tensor);
    size_t element = mb_dtype_bytes(tensor.dtype);
    for (int64_t first = 0; first < count; first += PIECE_ELEMENTS) {
        int64_t n = count - first < PIECE_ELEMENTS ? count - first : PIECE_ELEMENTS;
        memcpy(piece, (const char *)tensor.data + (size_t)first * element, (size_t)n * element);
        MB_TRY(mb_dtype_to_f32(tensor.dtype, piece, n, out + first));
        for (int64_t i = first; i < first + n; i++)
            if (!isfinite(out[i]))
                MB_RAISE(MB_EDATA, "%s: tensor %s: element %lld is %s; the model is damaged", file->path,
                         name, (long long)i, isnan(out[i]) ? "NaN" : "infinite");
    }
done:
    return status;
}
