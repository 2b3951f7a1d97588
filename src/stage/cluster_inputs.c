/* cluster_inputs: the files that moe-cluster reads.
 *
 * 1. names   2. rows and centres   3. numbers of clusters
 */
#include "stage/cluster_inputs.h"

#include <stdlib.h>
#include <string.h>

#include "base/files.h"

/* ---- 1. names ---- */

void mb_cluster_inputs_reset(mb_cluster_inputs *inputs)
{
    for (int64_t i = 0; i < inputs->count; i++) {
        mb_free(inputs->names[i]);
        mb_free(inputs->paths[i]);
    }
    mb_free(inputs->names);
    mb_free(inputs->paths);
    mb_free(inputs->embeddings);
    *inputs = (mb_cluster_inputs){0};
}

static mb_status add(mb_cluster_inputs *inputs, const char *name, const char *path)
{
    inputs->names[inputs->count] = mb_strdup(name);
    inputs->paths[inputs->count] = mb_strdup(path);
    inputs->count++;
    return inputs->names[inputs->count - 1] != NULL && inputs->paths[inputs->count - 1] != NULL
               ? MB_OK
               : mb_fail(MB_ENOMEM, "no memory for the names of inputs");
}

static mb_status read_named(const mb_cluster_program *own, mb_cluster_inputs *inputs)
{
    mb_status status = MB_OK;
    mb_shard_build_options build = own->build;
    mb_shard_input *list = NULL;
    int64_t n = 0;
    build.form = "auto";
    build.tmpl = "lines";
    MB_TRY(mb_shard_build_inputs(&build, &list, &n));
    MB_NEW_ARRAY(inputs->names, n);
    MB_NEW_ARRAY(inputs->paths, n);
    for (int64_t i = 0; i < n; i++) MB_TRY(add(inputs, list[i].name, list[i].path));
done:
    mb_shard_build_free_inputs(&list, n);
    return status;
}

static mb_status read_recorded(mb_cluster_inputs *inputs)
{
    mb_status status = MB_OK;
    mb_embeddings *e = NULL;
    mb_cluster_records records = {0};
    MB_TRY(mb_embeddings_open(inputs->embeddings, &e));
    MB_TRY(mb_cluster_records_read(e, &records));
    MB_NEW_ARRAY(inputs->names, records.source_count);
    MB_NEW_ARRAY(inputs->paths, records.source_count);
    for (int64_t i = 0; i < records.source_count; i++)
        MB_TRY(add(inputs, records.source_names[i], records.source_files[i]));
done:
    mb_cluster_records_reset(&records);
    mb_embeddings_close(&e);
    return status;
}

mb_status mb_cluster_inputs_read(const mb_cluster_program *own, mb_cluster_inputs *out_inputs)
{
    mb_status status = MB_OK;
    mb_cluster_inputs inputs = {0};
    inputs.embeddings = mb_files_is_folder(own->embeddings_path)
                            ? mb_files_join(own->embeddings_path, "embeddings.h5")
                            : mb_strdup(own->embeddings_path);
    if (inputs.embeddings == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (own->build.inputs != NULL)
        MB_TRY(read_named(own, &inputs));
    else if (own->records && mb_files_is_file(inputs.embeddings))
        MB_TRY(read_recorded(&inputs));
    *out_inputs = inputs;
    inputs = (mb_cluster_inputs){0};
done:
    mb_cluster_inputs_reset(&inputs);
    return status;
}

/* What done.json beside the embeddings says went in; NULL: there is none. */
static mb_status read_record(const char *embeddings, json_t **out_record)
{
    mb_status status = MB_OK;
    const char *slash = strrchr(embeddings, '/');
    char *folder = mb_strndup(embeddings, slash != NULL ? (size_t)(slash - embeddings) + 1 : 0), *path = NULL;
    if (folder != NULL) path = mb_str_format("%sdone.json", folder);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (mb_files_is_file(path)) MB_TRY(mb_json_read(path, out_record));
done:
    mb_free(folder);
    mb_free(path);
    return status;
}

mb_status mb_cluster_inputs_match(const mb_program *program, const mb_cluster_inputs *inputs,
                                  const mb_cluster_records *records, const char **out_paths)
{
    mb_status status = MB_OK;
    json_t *record = NULL;
    MB_TRY(read_record(inputs->embeddings, &record));
    const json_t *hashes = json_object_get(record, "inputs");
    for (int64_t s = 0; s < records->source_count; s++) {
        const char *name = records->source_names[s], *was = json_string_value(json_object_get(hashes, name)),
                   *is = mb_runfolder_input_hash(program->run, name);
        out_paths[s] = NULL;
        for (int64_t i = 0; i < inputs->count; i++)
            if (mb_str_equal(inputs->names[i], name)) out_paths[s] = inputs->paths[i];
        if (out_paths[s] == NULL)
            MB_RAISE(MB_EUSAGE, "dataset.inputs has no '%s', which the embeddings were made of", name);
        if (was != NULL && is != NULL && !mb_str_equal(was, is))
            MB_RAISE(MB_EDATA,
                     "%s: not what the embeddings were made of (its content differs); run moe-embed again",
                     out_paths[s]);
    }
done:
    json_decref(record);
    return status;
}

/* ---- 2. rows and centres ---- */

mb_status mb_cluster_inputs_rows(mb_program *program, const mb_embeddings *embeddings, mb_rows *out_rows)
{
    mb_status status = MB_OK;
    mb_rows rows = {.total = mb_embeddings_count(embeddings), .width = mb_embeddings_width(embeddings)};
    mb_rows_share(program->comm, rows.total, &rows.first, &rows.count);
    MB_NEW_ARRAY(rows.data, rows.count * rows.width);
    if (rows.count > 0) MB_TRY(mb_embeddings_read(embeddings, rows.first, rows.count, rows.data));
    *out_rows = rows;
    rows.data = NULL;
done:
    mb_free(rows.data);
    return status;
}

mb_status mb_cluster_inputs_centres(const char *path, int64_t width, float **out_centres, int64_t *out_k)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    void *centres = NULL;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(mb_h5_read_new(file, "/centres", MB_F32, &dims, shape, &centres));
    if (dims != 2 || shape[1] != width)
        MB_RAISE(MB_EDATA, "%s: /centres is not [k, %lld] as the embeddings are wide", path,
                 (long long)width);
    *out_centres = centres;
    *out_k = shape[0];
    centres = NULL;
done:
    mb_free(centres);
    mb_h5_destroy(&file);
    return status;
}

/* ---- 3. numbers of clusters ---- */

static int rising(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

mb_status mb_cluster_inputs_numbers(const char *list, int64_t **out_numbers, int64_t *out_count)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0, *numbers = NULL;
    MB_TRY(mb_option_list_split(list, &items, &n));
    MB_NEW_ARRAY(numbers, n);
    for (int64_t i = 0; i < n; i++) MB_TRY(mb_str_parse_int(items[i], &numbers[i]));
    qsort(numbers, (size_t)n, sizeof *numbers, rising);
    if (n == 0 || numbers[0] < 1 || numbers[n - 1] > INT32_MAX)
        MB_RAISE(MB_EUSAGE, "cluster.k = %s: give one number of clusters or more, from 1 on", list);
    for (int64_t i = 1; i < n; i++)
        if (numbers[i] == numbers[i - 1])
            MB_RAISE(MB_EUSAGE, "cluster.k names %lld twice", (long long)numbers[i]);
    *out_numbers = numbers;
    *out_count = n;
    numbers = NULL;
done:
    mb_option_list_free(&items, n);
    mb_free(numbers);
    return status;
}
