/* shard_writer.c: writing a token shard record by record, in bounded memory.
 *
 * Every column is a growing dataset; h5 gathers its rows to chunks. Counts and names are written when the
 * shard is closed.
 */
#include <assert.h>
#include <string.h>

#include "store/shard.h"

#define TOKEN_CHUNK_BYTES ((size_t)256 << 10)
#define MASK_CHUNK_BYTES  ((size_t)64 << 10) /* as many elements as a chunk of tokens */

struct mb_shard_writer {
    mb_h5 *file;
    int64_t records, source_count, type_count, vocab_size;
    uint64_t tokens;
    bool has_loss_mask, has_label, has_type, is_pairs;
};

static mb_status create_columns(mb_shard_writer *writer)
{
    static const struct {
        const char *path;
        mb_dtype dtype;
    } columns[] = {{"/source", MB_U16},      {"/source_index", MB_I64}, {"/byte_offset", MB_I64},
                   {"/byte_length", MB_I64}, {"/text_bytes", MB_I64},   {"/record_hash", MB_U64}};
    mb_status status = MB_OK;
    const uint64_t zero = 0;
    MB_TRY(mb_h5_create_rows(writer->file, "/tokens", MB_U32, 0, NULL, TOKEN_CHUNK_BYTES));
    MB_TRY(mb_h5_create_rows(writer->file, "/offsets", MB_U64, 0, NULL, TOKEN_CHUNK_BYTES));
    MB_TRY(mb_h5_append_rows(writer->file, "/offsets", &zero, 1));
    if (writer->has_loss_mask)
        MB_TRY(mb_h5_create_rows(writer->file, "/loss_mask", MB_U8, 0, NULL, MASK_CHUNK_BYTES));
    if (writer->has_type)
        MB_TRY(mb_h5_create_rows(writer->file, "/type", MB_U16, 0, NULL, TOKEN_CHUNK_BYTES));
    if (writer->has_label)
        MB_TRY(mb_h5_create_rows(writer->file, "/label", MB_I32, 0, NULL, TOKEN_CHUNK_BYTES));
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        MB_TRY(
            mb_h5_create_rows(writer->file, columns[i].path, columns[i].dtype, 0, NULL, TOKEN_CHUNK_BYTES));
done:
    return status;
}

mb_status mb_shard_writer_create(const char *path, const mb_shard_info *info, mb_shard_writer **out_writer)
{
    mb_status status = MB_OK;
    mb_shard_writer *writer = NULL;
    if (info->source_count < 1 || info->source_count > UINT16_MAX + 1 || info->type_count > UINT16_MAX + 1)
        MB_RAISE(MB_ERANGE,
                 "%s: %lld sources and %lld types; 1 to 65536 sources and at most 65536 types fit a shard",
                 path, (long long)info->source_count, (long long)info->type_count);
    MB_NEW(writer);
    writer->source_count = info->source_count;
    writer->type_count = info->type_count;
    writer->vocab_size = info->vocab_size;
    writer->has_loss_mask = info->has_loss_mask;
    writer->has_label = info->has_label;
    writer->has_type = info->type_names != NULL;
    writer->is_pairs = info->is_pairs;
    assert(!info->is_pairs || info->has_loss_mask);
    MB_TRY(mb_h5_create(path, &writer->file));
    MB_TRY(mb_h5_set_text(writer->file, "/", "format", "moebatch-shard"));
    MB_TRY(mb_h5_set_int(writer->file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(writer->file, "/", "tokenizer", info->tokenizer_hash));
    MB_TRY(mb_h5_set_text(writer->file, "/", "template", info->template_hash));
    MB_TRY(mb_h5_set_int(writer->file, "/", "max_length", info->max_length));
    MB_TRY(mb_h5_set_int(writer->file, "/", "vocab_size", info->vocab_size));
    if (writer->is_pairs) MB_TRY(mb_h5_set_int(writer->file, "/", "pairs", 1));
    MB_TRY(mb_h5_write_strings(writer->file, "/source_names", info->source_names, info->source_count));
    MB_TRY(mb_h5_write_strings(writer->file, "/source_files", info->source_files, info->source_count));
    if (writer->has_type)
        MB_TRY(mb_h5_write_strings(writer->file, "/type_names", info->type_names, info->type_count));
    MB_TRY(create_columns(writer));
    *out_writer = writer;
    writer = NULL;
done:
    mb_shard_writer_destroy(&writer);
    return status;
}

mb_status mb_shard_writer_add(mb_shard_writer *writer, const mb_shard_record *record)
{
    mb_status status = MB_OK;
    mb_h5 *file = writer->file;
    assert(record->count >= 0 && record->source < writer->source_count);
    assert((record->loss_mask != NULL) == writer->has_loss_mask || record->count == 0);
    assert(!writer->has_type || record->type < writer->type_count);
    for (int64_t i = 0; i < record->count; i++)
        if (record->tokens[i] >= writer->vocab_size)
            MB_RAISE(MB_EDATA, "%s: record %lld: token id %u is outside the vocabulary of %lld",
                     mb_h5_path(file), (long long)writer->records, record->tokens[i],
                     (long long)writer->vocab_size);
    MB_TRY(mb_h5_append_rows(file, "/tokens", record->tokens, record->count));
    if (writer->has_loss_mask)
        MB_TRY(mb_h5_append_rows(file, "/loss_mask", record->loss_mask, record->count));
    writer->tokens += (uint64_t)record->count;
    MB_TRY(mb_h5_append_rows(file, "/offsets", &writer->tokens, 1));
    MB_TRY(mb_h5_append_rows(file, "/source", &record->source, 1));
    MB_TRY(mb_h5_append_rows(file, "/source_index", &record->source_index, 1));
    MB_TRY(mb_h5_append_rows(file, "/byte_offset", &record->byte_offset, 1));
    MB_TRY(mb_h5_append_rows(file, "/byte_length", &record->byte_length, 1));
    MB_TRY(mb_h5_append_rows(file, "/text_bytes", &record->text_bytes, 1));
    MB_TRY(mb_h5_append_rows(file, "/record_hash", &record->record_hash, 1));
    if (writer->has_type) MB_TRY(mb_h5_append_rows(file, "/type", &record->type, 1));
    if (writer->has_label) MB_TRY(mb_h5_append_rows(file, "/label", &record->label, 1));
    writer->records++;
done:
    return status;
}

mb_status mb_shard_writer_count(mb_shard_writer *writer, const char *name, int64_t value)
{
    return mb_h5_set_int(writer->file, "/", name, value);
}

mb_status mb_shard_writer_text(mb_shard_writer *writer, const char *name, const char *text)
{
    return mb_h5_set_text(writer->file, "/", name, text);
}

mb_status mb_shard_writer_close(mb_shard_writer **writer)
{
    mb_status status = MB_OK;
    if (*writer == NULL) return MB_OK;
    assert(!(*writer)->is_pairs || (*writer)->records % 2 == 0);
    MB_TRY(mb_h5_set_int((*writer)->file, "/", "records", (*writer)->records));
    MB_TRY(mb_h5_set_int((*writer)->file, "/", "tokens", (int64_t)(*writer)->tokens));
    MB_TRY(mb_h5_close(&(*writer)->file));
done:
    mb_shard_writer_destroy(writer);
    return status;
}

void mb_shard_writer_destroy(mb_shard_writer **writer)
{
    if (*writer == NULL) return;
    mb_h5_destroy(&(*writer)->file);
    MB_FREE(*writer);
}
