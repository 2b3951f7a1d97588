/* inspect_file: what is this, and is it whole?
 *
 * Contents: 1. HDF5 files  2. folders  3. plain files  4. run
 */
#include "stage/inspect_file.h"

#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/json.h"
#include "base/memory.h"
#include "model/arch.h"
#include "store/checkpoint.h"
#include "store/contenthash.h"
#include "store/h5.h"
#include "store/safetensors.h"
#include "store/shard.h"
#include "text/records.h"
#include "text/tokenizer.h"

/* ---- 1. HDF5 files ---- */

static mb_status show_object(void *context, mb_h5 *file, const char *path, bool is_group)
{
    mb_status status = MB_OK;
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    char text[96];
    (void)context;
    if (is_group) return MB_OK;
    char **texts = NULL;
    int64_t count = 0;
    MB_TRY(mb_h5_shape(file, path, &dtype, &dims, shape));
    if (dtype == MB_U8 && mb_h5_read_strings(file, path, &texts, &count) == MB_OK) {
        printf("  %-28s [%lld] text\n", path, (long long)count);
        mb_h5_free_strings(&texts, count);
        goto done;
    }
    mb_status_reset(); /* bytes, not text */
    mb_tensor tensor = {.dtype = dtype, .dims = dims, .data = &tensor};
    for (int i = 0; i < MB_TENSOR_MAX_DIMS; ++i) tensor.shape[i] = i < dims ? shape[i] : 1;
    printf("  %-28s %s\n", path, mb_tensor_describe(&tensor, text, sizeof text));
done:
    return status;
}

/* Reading every record proves the checksums. */
static mb_status check_shard(const char *path)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    mb_shard_record record;
    int64_t longest = 0;
    MB_TRY(mb_shard_open(path, 0, &shard));
    for (int64_t i = 0; i < mb_shard_count(shard); ++i) {
        MB_TRY(mb_shard_read(shard, i, &record));
        if (record.count > longest) longest = record.count;
    }
    printf("token shard: %lld records, %lld tokens, longest %lld, %lld sources, tokenizer %s\n",
           (long long)mb_shard_count(shard), (long long)mb_shard_tokens(shard), (long long)longest,
           (long long)mb_shard_sources(shard), mb_shard_tokenizer_hash(shard));
    for (int64_t s = 0; s < mb_shard_sources(shard); ++s)
        printf("  source %s: %s\n", mb_shard_source_name(shard, s), mb_shard_source_file(shard, s));
done:
    mb_shard_close(&shard);
    return status;
}

static mb_status inspect_h5(const char *path)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_str format = MB_STR_EMPTY;
    char hash[MB_HASH_TEXT];
    MB_TRY(mb_h5_open(path, &file));
    if (mb_h5_get_text(file, "/", "format", &format) != MB_OK) mb_status_reset();
    printf("%s: HDF5%s%s\n", path, format.length ? ", format " : "", mb_str_text(&format));
    MB_TRY(mb_h5_visit(file, show_object, NULL));
    MB_TRY(mb_h5_content_hash(file, hash)); /* reads every byte */
    printf("content hash %s\n", hash);
    if (mb_str_equal(mb_str_text(&format), "moebatch-shard")) MB_TRY(check_shard(path));
    printf("whole: yes\n");
done:
    mb_str_destroy(&format);
    mb_h5_destroy(&file);
    return status;
}

/* ---- 2. folders ---- */

static bool has(const char *folder, const char *name)
{
    char *path = mb_files_join(folder, name);
    const bool found = path != NULL && mb_files_is_file(path);
    mb_free(path);
    return found;
}

static mb_status inspect_weights(const char *path)
{
    mb_status status = MB_OK;
    mb_safetensors *file = NULL;
    double elements = 0;
    MB_TRY(mb_safetensors_open(path, &file));
    for (int64_t i = 0; i < mb_safetensors_count(file); ++i) {
        mb_tensor tensor;
        MB_TRY(mb_safetensors_view(file, mb_safetensors_name(file, i), &tensor));
        elements += (double)mb_tensor_count(&tensor);
    }
    printf("weights: %lld tensors, %.6g M values\n", (long long)mb_safetensors_count(file), elements / 1e6);
done:
    mb_safetensors_close(&file);
    return status;
}

static mb_status inspect_model(const char *path)
{
    mb_status status = MB_OK;
    mb_arch arch = {0};
    MB_TRY(mb_arch_read(path, &arch));
    printf(
        "decoder: %s, D %lld, %lld layers, %lld heads (%lld key/value), F %lld, V %lld, %.4g M parameters\n",
        mb_arch_facts(&arch)->type, (long long)arch.width, (long long)arch.layers, (long long)arch.heads,
        (long long)arch.kv_heads, (long long)arch.ffn, (long long)arch.vocab,
        (double)mb_arch_parameters(&arch) / 1e6);
    if (arch.experts > 0)
        printf("experts: %lld, top-%lld, trash %lld, trash_logit_bias %g%s\n", (long long)arch.experts,
               (long long)arch.picks, (long long)arch.trash, arch.trash_logit_bias,
               arch.router_bias ? ", router bias" : "");
done:
    mb_arch_reset(&arch);
    return status;
}

/* Members, what mixes them, and the router's file. */
static mb_status inspect_fused(const char *path)
{
    mb_status status = MB_OK;
    json_t *json = NULL, *member;
    size_t i;
    char *file = mb_files_join(path, "fuse.json"), *weights = mb_files_join(path, "router.safetensors");
    const char *kind, *mixing, *name, *place, *hash, *adapter = NULL;
    double weight;
    if (file == NULL || weights == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_json_read(file, &json));
    MB_TRY(mb_json_get_string(json, "kind", file, &kind));
    MB_TRY(mb_json_get_string(json, "mixing", file, &mixing));
    const json_t *list = json_object_get(json, "members"), *router = json_object_get(json, "router");
    printf("fused model: %s, %zu members", kind, json_array_size(list));
    const int64_t stages = json_integer_value(json_object_get(router, "stages"));
    if (router != NULL)
        printf(", a router of %lld stage%s, hidden %lld\n", (long long)stages, stages == 1 ? "" : "s",
               (long long)json_integer_value(json_object_get(router, "hidden")));
    else
        printf(", mixing %s\n", mixing);
    json_array_foreach(list, i, member)
    {
        MB_TRY(mb_json_get_string(member, "name", file, &name));
        MB_TRY(mb_json_get_string(member, "path", file, &place));
        MB_TRY(mb_json_get_string(member, "hash", file, &hash));
        MB_TRY(mb_json_get_real(member, "weight", file, &weight));
        MB_TRY(mb_json_opt_string(member, "adapter", file, &adapter));
        printf("  %s: %s%s%s, hash %s, weight %.6g\n", name, place, adapter != NULL ? " + " : "",
               adapter != NULL ? adapter : "", hash, weight);
        adapter = NULL;
    }
    if (router != NULL) MB_TRY(inspect_weights(weights));
done:
    json_decref(json);
    mb_free(file);
    mb_free(weights);
    return status;
}

static mb_status inspect_folder(const char *path)
{
    mb_status status = MB_OK;
    bool is_known = false;
    char hash[MB_HASH_TEXT];
    printf("%s: folder\n", path);
    if (has(path, "manifest.json")) {
        MB_TRY(mb_checkpoint_check(path, true));
        printf("checkpoint: manifest matches\n");
        is_known = true;
    }
    if (has(path, "adapter_config.json")) printf("PEFT adapter\n");
    if (has(path, "delta.json")) printf("delta on another model\n");
    if (has(path, "fuse.json")) MB_TRY(inspect_fused(path));
    if (has(path, "config.json")) MB_TRY(inspect_model(path));
    if (has(path, "model.safetensors") || has(path, "model.safetensors.index.json") ||
        has(path, "adapter_model.safetensors"))
        MB_TRY(inspect_weights(path));
    if (has(path, "tokenizer.json")) {
        mb_tokenizer *tokenizer = NULL;
        MB_TRY(mb_tokenizer_open(path, &tokenizer));
        printf("tokenizer: %lld ids, hash %s\n", (long long)mb_tokenizer_count(tokenizer),
               mb_tokenizer_hash(tokenizer));
        mb_tokenizer_close(&tokenizer);
        is_known = true;
    }
    if (has(path, "done.json")) printf("stage results: done.json is there\n");
    is_known = is_known || has(path, "config.json") || has(path, "done.json") ||
               has(path, "adapter_config.json") || has(path, "delta.json") || has(path, "fuse.json");
    if (!is_known)
        MB_RAISE(MB_EFORMAT,
                 "%s: not a model, adapter, checkpoint, tokenizer or stage folder (no config.json, "
                 "adapter_config.json, manifest.json, tokenizer.json or done.json)",
                 path);
    MB_TRY(mb_contenthash_path(path, hash));
    printf("content hash %s\nwhole: yes\n", hash);
done:
    return status;
}

/* ---- 3. plain files ---- */

/* JSONL, CSV, gzip or not: every record is read; one that is bad makes the file not whole. */
static mb_status inspect_records(const char *path)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    int64_t count = 0;
    MB_TRY(mb_records_open(path, 0, &records));
    for (;; ++count) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        if (record.problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", path, record.problem);
    }
    printf("%s: %lld records\n", path, (long long)count);
done:
    mb_records_close(&records);
    return status;
}

static bool is_records(const char *path)
{
    static const char *const ends[] = {".jsonl",    ".ndjson",  ".csv",   ".tsv",
                                       ".jsonl.gz", ".json.gz", ".csv.gz"};
    bool found = false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; ++i) found = found || mb_str_is_suffix(path, ends[i]);
    return found;
}

static mb_status inspect_plain(const char *path)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    mb_tokenizer *tokenizer = NULL;
    if (mb_str_is_suffix(path, ".safetensors") || mb_str_is_suffix(path, ".index.json")) {
        MB_TRY(inspect_weights(path));
    } else if (mb_str_is_suffix(path, "tokenizer.json")) {
        MB_TRY(mb_tokenizer_open(path, &tokenizer));
        printf("%s: tokenizer, %lld ids, hash %s\n", path, (long long)mb_tokenizer_count(tokenizer),
               mb_tokenizer_hash(tokenizer));
    } else if (is_records(path)) {
        MB_TRY(inspect_records(path));
    } else if (mb_str_is_suffix(path, ".json")) {
        MB_TRY(mb_json_read(path, &json));
        printf("%s: JSON, %s\n", path,
               json_is_object(json)  ? "object"
               : json_is_array(json) ? "array"
                                     : "value");
    } else {
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: not a kind of file this program knows (HDF5, safetensors, JSON, JSONL, CSV, tokenizer, "
                 "or a folder of them)",
                 path);
    }
    printf("whole: yes\n");
done:
    mb_tokenizer_close(&tokenizer);
    json_decref(json);
    return status;
}

/* ---- 4. run ---- */

static bool is_h5(const char *path)
{
    char head[8] = {0};
    FILE *file = fopen(path, "rb");
    const bool found =
        file != NULL && fread(head, 1, 8, file) == 8 && memcmp(head, "\211HDF\r\n\032\n", 8) == 0;
    if (file != NULL) fclose(file);
    return found;
}

mb_status mb_inspect_file_run(const char *path, bool want_hash)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT];
    if (!mb_files_is_file(path) && !mb_files_is_folder(path))
        MB_RAISE(MB_ENOTFOUND, "%s: no such file or folder", path);
    if (want_hash) {
        MB_TRY(mb_contenthash_path(path, hash));
        printf("%s\n", hash);
        goto done;
    }
    if (mb_files_is_folder(path))
        MB_TRY(inspect_folder(path));
    else if (is_h5(path) || mb_str_is_suffix(path, ".h5"))
        MB_TRY(inspect_h5(path));
    else
        MB_TRY(inspect_plain(path));
done:
    return status;
}
