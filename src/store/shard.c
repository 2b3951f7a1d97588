/* shard.c: reading token shards as one numbering of records.
 *
 * Columns of all files are joined in memory when the shard is opened. Tokens come in blocks of 65,536 (one
 * chunk of the file) with their loss mask. When all blocks of all files fit in the cache each has its own
 * place, so that any record is one run of memory; else blocks share slots, the one not used for longest gives
 * way, and a record is gathered into a scratch buffer.
 *
 * 1. opening files   2. joining   3. tokens   4. records   5. the rest
 */
#include "store/shard.h"

#include <assert.h>
#include <string.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/option.h"

enum { BLOCK_TOKENS = 65536 };
#define DEFAULT_CACHE_BYTES ((size_t)256 << 20)

typedef struct shard_file {
    mb_h5 *h5;
    int64_t first_record, records;
    uint64_t first_token, tokens;
    int64_t first_block, blocks;
    bool has_mask, has_type, has_label, is_pairs;
    char **source_names, **source_files, **type_names;
    int64_t source_count, type_count;
} shard_file;

typedef struct shard_source {
    char *name, *file;
} shard_source;

struct mb_shard {
    shard_file *files;
    int64_t file_count, records, tokens, blocks;
    mb_str tokenizer, template;
    int64_t vocab_size, max_length;
    shard_source *sources;
    int64_t source_count;
    char **types;
    int64_t type_count;
    uint64_t *offsets, *record_hash; /* offsets over all files */
    uint16_t *source, *type;
    int64_t *source_index, *byte_offset, *byte_length, *text_bytes;
    int32_t *label;
    bool has_mask;
    int64_t slots;         /* == blocks: every block has its own */
    uint32_t *token_slots; /* [slots, BLOCK_TOKENS] */
    uint8_t *mask_slots;   /* likewise, NULL when no file has masks */
    int64_t *slot_block;   /* [slots] block in the slot, -1 */
    uint64_t *slot_used;   /* [slots] */
    int64_t *block_slot;   /* [blocks] slot of the block, -1 */
    uint64_t uses;
    uint32_t *scratch; /* gathered record */
    uint8_t *mask_scratch;
    int64_t scratch_tokens;
    char hash[MB_HASH_TEXT]; /* "" until asked for */
};

/* ---- 1. opening files ---- */

/* A column must be there with this type and length. */
static mb_status check_column(mb_h5 *h5, const char *path, mb_dtype dtype, int64_t n)
{
    mb_status status = MB_OK;
    mb_dtype stored;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_shape(h5, path, &stored, &dims, shape));
    if (stored != dtype || dims != 1 || shape[0] != n)
        MB_RAISE(MB_EFORMAT, "%s: %s should be [%lld] %s, not %d dimensions, [%lld ...] %s", mb_h5_path(h5),
                 path, (long long)n, mb_dtype_name(dtype), dims, (long long)shape[0], mb_dtype_name(stored));
done:
    return status;
}

static mb_status check_format(mb_h5 *h5)
{
    mb_status status = MB_OK;
    mb_str format = MB_STR_EMPTY;
    int64_t version = 0;
    if (mb_h5_get_text(h5, "/", "format", &format) != MB_OK ||
        strcmp(mb_str_text(&format), "moebatch-shard") != 0)
        MB_RAISE(MB_EFORMAT, "%s: not a token shard; make one with moe-shard", mb_h5_path(h5));
    MB_TRY(mb_h5_get_int(h5, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: a token shard of version %lld, this program reads version 1",
                 mb_h5_path(h5), (long long)version);
done:
    mb_str_destroy(&format);
    return status;
}

/* Does the file hold pairs? Files that hold none have no such attribute. */
static mb_status read_pairs(shard_file *file)
{
    mb_status status = MB_OK;
    int64_t pairs = 0;
    if (mb_h5_get_int(file->h5, "/", "pairs", &pairs) != MB_OK) mb_status_reset();
    file->is_pairs = pairs != 0;
    if (file->is_pairs && (file->records % 2 != 0 || !file->has_mask))
        MB_RAISE(MB_EFORMAT,
                 "%s: a shard of pairs needs two records for each and a loss mask; it has %lld records",
                 mb_h5_path(file->h5), (long long)file->records);
done:
    return status;
}

static mb_status open_file(const char *path, shard_file *file)
{
    mb_status status = MB_OK;
    int64_t records = 0, tokens = 0;
    MB_TRY(mb_h5_open(path, &file->h5));
    MB_TRY(check_format(file->h5));
    MB_TRY(mb_h5_get_int(file->h5, "/", "records", &records));
    MB_TRY(mb_h5_get_int(file->h5, "/", "tokens", &tokens));
    if (records < 0 || tokens < 0) MB_RAISE(MB_EFORMAT, "%s: its counts are below 0", path);
    file->records = records;
    file->tokens = (uint64_t)tokens;
    file->blocks = (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    file->has_mask = mb_h5_has(file->h5, "/loss_mask");
    file->has_type = mb_h5_has(file->h5, "/type");
    file->has_label = mb_h5_has(file->h5, "/label");
    MB_TRY(read_pairs(file));
    MB_TRY(check_column(file->h5, "/tokens", MB_U32, tokens));
    MB_TRY(check_column(file->h5, "/offsets", MB_U64, records + 1));
    if (file->has_mask) MB_TRY(check_column(file->h5, "/loss_mask", MB_U8, tokens));
    MB_TRY(mb_h5_read_strings(file->h5, "/source_names", &file->source_names, &file->source_count));
    int64_t files = 0;
    MB_TRY(mb_h5_read_strings(file->h5, "/source_files", &file->source_files, &files));
    if (files != file->source_count) {
        mb_h5_free_strings(&file->source_files, files);
        MB_RAISE(MB_EFORMAT, "%s: %lld names of sources, but %lld files", path, (long long)file->source_count,
                 (long long)files);
    }
    if (file->has_type)
        MB_TRY(mb_h5_read_strings(file->h5, "/type_names", &file->type_names, &file->type_count));
done:
    return status;
}

/* "a.h5,b.h5", one path, or a folder -> list of paths (free with mb_option_list_free). */
static mb_status list_files(const char *files, char ***out_paths, int64_t *out_count)
{
    mb_status status = MB_OK;
    char **names = NULL, **paths = NULL;
    int64_t n = 0, kept = 0;
    if (!mb_files_is_folder(files)) {
        MB_TRY(mb_option_list_split(files, out_paths, out_count));
        if (*out_count == 0) MB_RAISE(MB_EUSAGE, "no token shard is named");
        return MB_OK;
    }
    MB_TRY(mb_files_list(files, &names, &n));
    MB_NEW_ARRAY(paths, n + 1);
    for (int64_t i = 0; i < n; i++) {
        if (!mb_str_is_suffix(names[i], ".h5")) continue;
        paths[kept] = mb_files_join(files, names[i]);
        if (paths[kept] == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", files);
        kept++;
    }
    if (kept == 0) MB_RAISE(MB_ENOTFOUND, "%s: there is no token shard (*.h5) in this folder", files);
    *out_paths = paths;
    *out_count = kept;
    paths = NULL;
done:
    mb_files_free_names(&names, n);
    mb_option_list_free(&paths, kept);
    return status;
}

/* ---- 2. joining ---- */

/* Attributes that all files must share. */
static mb_status join_attributes(mb_shard *shard, const shard_file *file)
{
    mb_status status = MB_OK;
    mb_str tokenizer = MB_STR_EMPTY, template = MB_STR_EMPTY;
    int64_t vocab = 0, length = 0;
    bool first = file == &shard->files[0];
    MB_TRY(mb_h5_get_text(file->h5, "/", "tokenizer", &tokenizer));
    MB_TRY(mb_h5_get_text(file->h5, "/", "template", &template));
    MB_TRY(mb_h5_get_int(file->h5, "/", "vocab_size", &vocab));
    MB_TRY(mb_h5_get_int(file->h5, "/", "max_length", &length));
    if (first) {
        MB_TRY(mb_str_add(&shard->tokenizer, mb_str_text(&tokenizer)));
        MB_TRY(mb_str_add(&shard->template, mb_str_text(&template)));
        shard->vocab_size = vocab;
    }
    if (!mb_str_equal(mb_str_text(&tokenizer), mb_str_text(&shard->tokenizer)) ||
        vocab != shard->vocab_size || !mb_str_equal(mb_str_text(&template), mb_str_text(&shard->template)))
        MB_RAISE(MB_EDATA,
                 "%s was made with another tokenizer or chat template than %s; shard them again with one",
                 mb_h5_path(file->h5), mb_h5_path(shard->files[0].h5));
    if (file->is_pairs != shard->files[0].is_pairs)
        MB_RAISE(MB_EDATA, "%s holds %s, %s does not; give files of one kind", mb_h5_path(file->h5),
                 file->is_pairs ? "preference pairs" : "single records", mb_h5_path(shard->files[0].h5));
    if (length > shard->max_length) shard->max_length = length;
done:
    mb_str_destroy(&tokenizer);
    mb_str_destroy(&template);
    return status;
}

static mb_status add_source(mb_shard *shard, const char *name, const char *path, uint16_t *out_source)
{
    mb_status status = MB_OK;
    int64_t i = 0;
    while (i < shard->source_count &&
           (strcmp(shard->sources[i].name, name) != 0 || strcmp(shard->sources[i].file, path) != 0))
        i++;
    if (i > UINT16_MAX) MB_RAISE(MB_ERANGE, "more than 65536 sources in one corpus");
    if (i == shard->source_count) {
        shard_source *grown = mb_realloc(shard->sources, (size_t)i + 1, sizeof *grown);
        if (grown == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the sources of a shard");
        shard->sources = grown;
        grown[i] = (shard_source){.name = mb_strdup(name), .file = mb_strdup(path)};
        shard->source_count++;
        if (grown[i].name == NULL || grown[i].file == NULL)
            MB_RAISE(MB_ENOMEM, "not enough memory for the sources of a shard");
    }
    *out_source = (uint16_t)i;
done:
    return status;
}

static mb_status add_type(mb_shard *shard, const char *name, uint16_t *out_type)
{
    mb_status status = MB_OK;
    int64_t i = 0;
    while (i < shard->type_count && strcmp(shard->types[i], name) != 0) i++;
    if (i > UINT16_MAX) MB_RAISE(MB_ERANGE, "more than 65536 types of records in one corpus");
    if (i == shard->type_count) {
        char **grown = mb_realloc(shard->types, (size_t)i + 1, sizeof *grown);
        if (grown == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the types of a shard");
        shard->types = grown;
        grown[i] = mb_strdup(name);
        shard->type_count++;
        if (grown[i] == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the types of a shard");
    }
    *out_type = (uint16_t)i;
done:
    return status;
}

/* Replace a file's own numbers by the corpus's. */
static mb_status renumber(const shard_file *file, const char *path, const uint16_t *map, int64_t n,
                          uint16_t *values)
{
    for (int64_t i = 0; i < file->records; i++) {
        if (values[i] >= n)
            return mb_fail(MB_EFORMAT, "%s: %s of record %lld is %u, but there are only %lld names",
                           mb_h5_path(file->h5), path, (long long)i, values[i], (long long)n);
        values[i] = map[values[i]];
    }
    return MB_OK;
}

static mb_status read_numbered(mb_shard *shard, const shard_file *file)
{
    mb_status status = MB_OK;
    uint16_t *map = NULL;
    MB_NEW_ARRAY(map, file->source_count + file->type_count + 1);
    for (int64_t i = 0; i < file->source_count; i++)
        MB_TRY(add_source(shard, file->source_names[i], file->source_files[i], &map[i]));
    MB_TRY(renumber(file, "/source", map, file->source_count, shard->source + file->first_record));
    for (int64_t i = 0; i < file->type_count; i++) MB_TRY(add_type(shard, file->type_names[i], &map[i]));
    if (file->has_type)
        MB_TRY(renumber(file, "/type", map, file->type_count, shard->type + file->first_record));
done:
    mb_free(map);
    return status;
}

/* Offsets must begin at 0, never fall and end at the number of tokens. */
static mb_status read_offsets(mb_shard *shard, const shard_file *file)
{
    mb_status status = MB_OK;
    uint64_t *offsets = shard->offsets + file->first_record;
    MB_TRY(mb_h5_read_rows(file->h5, "/offsets", MB_U64, 0, file->records + 1, offsets));
    if (offsets[0] != 0 || offsets[file->records] != file->tokens)
        MB_RAISE(MB_EFORMAT, "%s: /offsets do not span the %llu tokens", mb_h5_path(file->h5),
                 (unsigned long long)file->tokens);
    for (int64_t i = 0; i < file->records; i++)
        if (offsets[i] > offsets[i + 1])
            MB_RAISE(MB_EFORMAT, "%s: /offsets fall at record %lld", mb_h5_path(file->h5), (long long)i);
    for (int64_t i = 0; i <= file->records; i++) offsets[i] += file->first_token;
done:
    return status;
}

static mb_status read_column(const shard_file *file, const char *path, mb_dtype dtype, void *column)
{
    mb_status status = MB_OK;
    MB_TRY(check_column(file->h5, path, dtype, file->records));
    char *at = (char *)column + (size_t)file->first_record * mb_dtype_bytes(dtype);
    MB_TRY(mb_h5_read_rows(file->h5, path, dtype, 0, file->records, at));
done:
    return status;
}

/* Both sides of a pair must come from one place. */
static mb_status check_pairs(const mb_shard *shard, const shard_file *file)
{
    mb_status status = MB_OK;
    for (int64_t i = file->first_record, n = i + file->records; i < n; i += 2)
        if (shard->source[i] != shard->source[i + 1] || shard->source_index[i] != shard->source_index[i + 1])
            MB_RAISE(MB_EFORMAT, "%s: records %lld and %lld are not two sides of one pair",
                     mb_h5_path(file->h5), (long long)(i - file->first_record),
                     (long long)(i + 1 - file->first_record));
done:
    return status;
}

static mb_status read_columns(mb_shard *shard, const shard_file *file)
{
    mb_status status = MB_OK;
    MB_TRY(read_offsets(shard, file));
    MB_TRY(read_column(file, "/source", MB_U16, shard->source));
    MB_TRY(read_column(file, "/source_index", MB_I64, shard->source_index));
    MB_TRY(read_column(file, "/byte_offset", MB_I64, shard->byte_offset));
    MB_TRY(read_column(file, "/byte_length", MB_I64, shard->byte_length));
    MB_TRY(read_column(file, "/text_bytes", MB_I64, shard->text_bytes));
    MB_TRY(read_column(file, "/record_hash", MB_U64, shard->record_hash));
    if (file->has_type) MB_TRY(read_column(file, "/type", MB_U16, shard->type));
    if (file->has_label) MB_TRY(read_column(file, "/label", MB_I32, shard->label));
    if (file->is_pairs) MB_TRY(check_pairs(shard, file));
    MB_TRY(read_numbered(shard, file));
done:
    return status;
}

static mb_status alloc_columns(mb_shard *shard)
{
    mb_status status = MB_OK;
    bool has_type = false, has_label = false;
    int64_t n = shard->records;
    for (int64_t i = 0; i < shard->file_count; i++) {
        has_type |= shard->files[i].has_type;
        has_label |= shard->files[i].has_label;
        shard->has_mask |= shard->files[i].has_mask;
    }
    for (int64_t i = 0; i < shard->file_count; i++)
        if (has_type && !shard->files[i].has_type)
            MB_RAISE(MB_EDATA,
                     "%s has no types of records, other files of the corpus have; shard it again with a type",
                     mb_h5_path(shard->files[i].h5));
    MB_NEW_ARRAY(shard->offsets, n + 1);
    MB_NEW_ARRAY(shard->record_hash, n);
    MB_NEW_ARRAY(shard->source, n);
    MB_NEW_ARRAY(shard->source_index, n);
    MB_NEW_ARRAY(shard->byte_offset, n);
    MB_NEW_ARRAY(shard->byte_length, n);
    MB_NEW_ARRAY(shard->text_bytes, n);
    if (has_type) MB_NEW_ARRAY(shard->type, n);
    if (has_label) MB_NEW_ARRAY(shard->label, n);
done:
    return status;
}

/* ---- 3. tokens ---- */

static mb_status create_cache(mb_shard *shard, size_t cache_bytes)
{
    mb_status status = MB_OK;
    size_t block_bytes = BLOCK_TOKENS * (sizeof(uint32_t) + (shard->has_mask ? 1 : 0));
    int64_t fit = (int64_t)((cache_bytes > 0 ? cache_bytes : DEFAULT_CACHE_BYTES) / block_bytes);
    if (fit < 2) fit = 2;
    shard->slots = fit < shard->blocks ? fit : shard->blocks;
    MB_NEW_ARRAY(shard->token_slots, shard->slots * BLOCK_TOKENS);
    if (shard->has_mask) MB_NEW_ARRAY(shard->mask_slots, shard->slots * BLOCK_TOKENS);
    MB_NEW_ARRAY(shard->slot_block, shard->slots);
    MB_NEW_ARRAY(shard->slot_used, shard->slots);
    MB_NEW_ARRAY(shard->block_slot, shard->blocks);
    for (int64_t i = 0; i < shard->slots; i++) shard->slot_block[i] = -1;
    for (int64_t i = 0; i < shard->blocks; i++) shard->block_slot[i] = -1;
done:
    return status;
}

/* The slot a block is to be read into. */
static int64_t choose_slot(const mb_shard *shard, int64_t block)
{
    if (shard->slots == shard->blocks) return block;
    int64_t oldest = 0;
    for (int64_t i = 1; i < shard->slots; i++)
        if (shard->slot_used[i] < shard->slot_used[oldest]) oldest = i;
    return oldest;
}

/* Have block `block` of all (block - file->first_block of the file) in a slot. */
static mb_status load_block(mb_shard *shard, const shard_file *file, int64_t block, int64_t *out_slot)
{
    mb_status status = MB_OK;
    int64_t slot = shard->block_slot[block], first = (block - file->first_block) * BLOCK_TOKENS;
    if (slot < 0) {
        int64_t n =
            (int64_t)file->tokens - first < BLOCK_TOKENS ? (int64_t)file->tokens - first : BLOCK_TOKENS;
        slot = choose_slot(shard, block);
        if (shard->slot_block[slot] >= 0) shard->block_slot[shard->slot_block[slot]] = -1;
        shard->slot_block[slot] = -1;
        MB_TRY(
            mb_h5_read_rows(file->h5, "/tokens", MB_U32, first, n, shard->token_slots + slot * BLOCK_TOKENS));
        if (file->has_mask)
            MB_TRY(mb_h5_read_rows(file->h5, "/loss_mask", MB_U8, first, n,
                                   shard->mask_slots + slot * BLOCK_TOKENS));
        shard->slot_block[slot] = block;
        shard->block_slot[block] = slot;
    }
    shard->slot_used[slot] = ++shard->uses;
    *out_slot = slot;
done:
    return status;
}

static mb_status grow_scratch(mb_shard *shard, int64_t tokens)
{
    mb_status status = MB_OK;
    if (tokens <= shard->scratch_tokens) return MB_OK;
    MB_FREE(shard->scratch);
    MB_FREE(shard->mask_scratch);
    shard->scratch_tokens = 0;
    MB_NEW_ARRAY(shard->scratch, tokens);
    MB_NEW_ARRAY(shard->mask_scratch, tokens);
    shard->scratch_tokens = tokens;
done:
    return status;
}

/* Tokens [first, first+n) of one file as one run of memory. */
static mb_status get_tokens(mb_shard *shard, const shard_file *file, int64_t first, int64_t n,
                            const uint32_t **out_tokens, const uint8_t **out_mask)
{
    mb_status status = MB_OK;
    int64_t slot = 0, done_tokens = 0, first_slot = 0;
    int64_t from = file->first_block + first / BLOCK_TOKENS,
            to = file->first_block + (first + n - 1) / BLOCK_TOKENS;
    bool whole = shard->slots == shard->blocks || from == to;
    if (!whole) MB_TRY(grow_scratch(shard, n));
    for (int64_t block = from; block <= to; block++) {
        int64_t skip = block == from ? first % BLOCK_TOKENS : 0;
        int64_t part = BLOCK_TOKENS - skip < n - done_tokens ? BLOCK_TOKENS - skip : n - done_tokens;
        MB_TRY(load_block(shard, file, block, &slot));
        if (block == from) first_slot = slot;
        int64_t at = slot * BLOCK_TOKENS + skip;
        if (!whole)
            memcpy(shard->scratch + done_tokens, shard->token_slots + at, (size_t)part * sizeof(uint32_t));
        if (!whole && file->has_mask)
            memcpy(shard->mask_scratch + done_tokens, shard->mask_slots + at, (size_t)part);
        done_tokens += part;
    }
    int64_t at = first_slot * BLOCK_TOKENS + first % BLOCK_TOKENS;
    *out_tokens = whole ? shard->token_slots + at : shard->scratch;
    *out_mask = !file->has_mask ? NULL : whole ? shard->mask_slots + at : shard->mask_scratch;
done:
    return status;
}

/* ---- 4. records ---- */

/* The file that holds a record. */
static const shard_file *find_file(const mb_shard *shard, int64_t record)
{
    int64_t low = 0, high = shard->file_count - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (shard->files[middle].first_record <= record)
            low = middle;
        else
            high = middle - 1;
    }
    return &shard->files[low];
}

mb_status mb_shard_read(mb_shard *shard, int64_t record, mb_shard_record *out_record)
{
    mb_status status = MB_OK;
    if (record < 0 || record >= shard->records)
        MB_RAISE(MB_ERANGE, "record %lld was asked for, the corpus has %lld", (long long)record,
                 (long long)shard->records);
    const shard_file *file = find_file(shard, record);
    mb_shard_record r = {.count = mb_shard_length(shard, record),
                         .source = shard->source[record],
                         .source_index = shard->source_index[record],
                         .byte_offset = shard->byte_offset[record],
                         .byte_length = shard->byte_length[record],
                         .text_bytes = shard->text_bytes[record],
                         .record_hash = shard->record_hash[record],
                         .type = shard->type != NULL ? shard->type[record] : 0,
                         .label = shard->label != NULL ? shard->label[record] : 0};
    if (r.count > 0) {
        status = get_tokens(shard, file, (int64_t)(shard->offsets[record] - file->first_token), r.count,
                            &r.tokens, &r.loss_mask);
        if (status != MB_OK) {
            mb_status_prefix("record %lld: ", (long long)(record - file->first_record));
            mb_status_trace(status, __func__, __FILE__, __LINE__);
            goto done;
        }
    }
    for (int64_t i = 0; i < r.count; i++)
        if (r.tokens[i] >= shard->vocab_size)
            MB_RAISE(MB_EFORMAT, "%s: record %lld: token id %u is outside the vocabulary of %lld",
                     mb_h5_path(file->h5), (long long)(record - file->first_record), r.tokens[i],
                     (long long)shard->vocab_size);
    *out_record = r;
done:
    return status;
}

/* ---- 5. the rest ---- */

static mb_status open_all(mb_shard *shard, char *const *paths, int64_t n)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(shard->files, n);
    for (int64_t i = 0; i < n; i++) {
        shard_file *file = &shard->files[i];
        shard->file_count++;
        MB_TRY(open_file(paths[i], file));
        file->first_record = shard->records;
        file->first_token = (uint64_t)shard->tokens;
        file->first_block = shard->blocks;
        shard->records += file->records;
        shard->tokens += (int64_t)file->tokens;
        shard->blocks += file->blocks;
        MB_TRY(join_attributes(shard, file));
    }
done:
    return status;
}

mb_status mb_shard_open(const char *files, size_t cache_bytes, mb_shard **out_shard)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    char **paths = NULL;
    int64_t n = 0;
    MB_TRY(list_files(files, &paths, &n));
    MB_NEW(shard);
    MB_TRY(open_all(shard, paths, n));
    MB_TRY(alloc_columns(shard));
    for (int64_t i = 0; i < n; i++) MB_TRY(read_columns(shard, &shard->files[i]));
    MB_TRY(create_cache(shard, cache_bytes));
    *out_shard = shard;
    shard = NULL;
done:
    mb_option_list_free(&paths, n);
    mb_shard_close(&shard);
    return status;
}

static void free_cache(mb_shard *s)
{
    mb_free(s->token_slots);
    mb_free(s->mask_slots);
    mb_free(s->slot_block);
    mb_free(s->slot_used);
    mb_free(s->block_slot);
    mb_free(s->scratch);
    mb_free(s->mask_scratch);
}

void mb_shard_close(mb_shard **shard)
{
    mb_shard *s = *shard;
    if (s == NULL) return;
    for (int64_t i = 0; i < s->file_count; i++) {
        mb_h5_free_strings(&s->files[i].source_names, s->files[i].source_count);
        mb_h5_free_strings(&s->files[i].source_files, s->files[i].source_count);
        mb_h5_free_strings(&s->files[i].type_names, s->files[i].type_count);
        mb_h5_destroy(&s->files[i].h5);
    }
    for (int64_t i = 0; i < s->source_count; i++) {
        mb_free(s->sources[i].name);
        mb_free(s->sources[i].file);
    }
    mb_h5_free_strings(&s->types, s->type_count);
    free_cache(s);
    void *const columns[] = {s->files,       s->sources,    s->offsets,      s->record_hash,
                             s->source,      s->type,       s->source_index, s->byte_offset,
                             s->byte_length, s->text_bytes, s->label};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) mb_free(columns[i]);
    mb_str_destroy(&s->tokenizer);
    mb_str_destroy(&s->template);
    MB_FREE(*shard);
}

int64_t mb_shard_count(const mb_shard *shard)
{
    return shard->records;
}
int64_t mb_shard_tokens(const mb_shard *shard)
{
    return shard->tokens;
}
int64_t mb_shard_sources(const mb_shard *shard)
{
    return shard->source_count;
}
int64_t mb_shard_vocab_size(const mb_shard *shard)
{
    return shard->vocab_size;
}
int64_t mb_shard_max_length(const mb_shard *shard)
{
    return shard->max_length;
}
int64_t mb_shard_types(const mb_shard *shard)
{
    return shard->type_count;
}
bool mb_shard_is_pairs(const mb_shard *shard)
{
    return shard->file_count > 0 && shard->files[0].is_pairs;
}
const char *mb_shard_tokenizer_hash(const mb_shard *shard)
{
    return mb_str_text(&shard->tokenizer);
}
const char *mb_shard_template_hash(const mb_shard *shard)
{
    return mb_str_text(&shard->template);
}

int64_t mb_shard_length(const mb_shard *shard, int64_t record)
{
    assert(record >= 0 && record < shard->records);
    return (int64_t)(shard->offsets[record + 1] - shard->offsets[record]);
}

const char *mb_shard_source_name(const mb_shard *shard, int64_t source)
{
    assert(source >= 0 && source < shard->source_count);
    return shard->sources[source].name;
}

const char *mb_shard_source_file(const mb_shard *shard, int64_t source)
{
    assert(source >= 0 && source < shard->source_count);
    return shard->sources[source].file;
}

const char *mb_shard_type_name(const mb_shard *shard, int64_t type)
{
    assert(type >= 0 && type < shard->type_count);
    return shard->types[type];
}

int64_t mb_shard_files(const mb_shard *shard)
{
    return shard->file_count;
}

const char *mb_shard_file_path(const mb_shard *shard, int64_t file)
{
    assert(file >= 0 && file < shard->file_count);
    return mb_h5_path(shard->files[file].h5);
}

int64_t mb_shard_counter(const mb_shard *shard, const char *name)
{
    int64_t sum = 0, value = 0;
    for (int64_t i = 0; i < shard->file_count; i++)
        if (mb_h5_get_int(shard->files[i].h5, "/", name, &value) == MB_OK) sum += value;
    mb_status_reset(); /* a file without this count is no failure */
    return sum;
}

mb_shard_columns mb_shard_columns_get(const mb_shard *shard)
{
    return (mb_shard_columns){.offsets = shard->offsets,
                              .record_hash = shard->record_hash,
                              .source = shard->source,
                              .type = shard->type,
                              .source_index = shard->source_index,
                              .byte_offset = shard->byte_offset,
                              .byte_length = shard->byte_length,
                              .text_bytes = shard->text_bytes,
                              .label = shard->label};
}

mb_status mb_shard_hash(mb_shard *shard, char out_text[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    char text[MB_HASH_TEXT];
    if (shard->hash[0] == 0) {
        MB_TRY(mb_hash_create(&hash));
        for (int64_t i = 0; i < shard->file_count; i++) {
            MB_TRY(mb_h5_content_hash(shard->files[i].h5, text));
            mb_hash_add_text(hash, text);
        }
        mb_hash_get(hash, shard->hash);
    }
    memcpy(out_text, shard->hash, MB_HASH_TEXT);
done:
    mb_hash_destroy(&hash);
    return status;
}
