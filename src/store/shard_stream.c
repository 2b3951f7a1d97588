/* shard_stream: see the header.
 *
 * Contents: 1. one part  2. a chain of parts  3. merging
 * Of an open part a window of rows of every column is in memory, and a window of tokens that holds at least
 * one record.
 */
#include "store/shard_stream.h"

#include <string.h>

#include "base/memory.h"

enum { ROWS = 4096, TOKENS = 262144 };

typedef struct chain {
    char *const *paths;
    int64_t count_paths, at; /* paths[at - 1] is open */
    mb_h5 *file;
    bool has_mask, has_type, has_label;
    int64_t rows, row; /* of the file; the next one */
    int64_t window;    /* first row in memory; -1 none */
    uint64_t offsets[ROWS + 1], record_hash[ROWS];
    uint16_t source[ROWS], type[ROWS];
    int64_t source_index[ROWS], byte_offset[ROWS], byte_length[ROWS], text_bytes[ROWS];
    int32_t label[ROWS];
    uint32_t *tokens; /* [room] tokens first .. first+count of the file */
    uint8_t *mask;
    int64_t room, first, count;
} chain;

struct mb_shard_stream {
    chain *chains;
    int64_t count;
};

/* ---- 1. one part ---- */

static mb_status open_part(chain *c, const char *path)
{
    mb_status status = MB_OK;
    mb_h5_destroy(&c->file);
    MB_TRY(mb_h5_open(path, &c->file));
    MB_TRY(mb_h5_get_int(c->file, "/", "records", &c->rows));
    c->has_mask = mb_h5_has(c->file, "/loss_mask");
    c->has_type = mb_h5_has(c->file, "/type");
    c->has_label = mb_h5_has(c->file, "/label");
    c->row = 0;
    c->window = -1;
    c->first = c->count = 0;
done:
    return status;
}

static mb_status read_rows(chain *c)
{
    mb_status status = MB_OK;
    const int64_t n = c->rows - c->row < ROWS ? c->rows - c->row : ROWS;
    const struct {
        const char *path;
        mb_dtype dtype;
        void *data;
        bool is_there;
    } columns[] = {
        {"/source", MB_U16, c->source, true},           {"/source_index", MB_I64, c->source_index, true},
        {"/byte_offset", MB_I64, c->byte_offset, true}, {"/byte_length", MB_I64, c->byte_length, true},
        {"/text_bytes", MB_I64, c->text_bytes, true},   {"/record_hash", MB_U64, c->record_hash, true},
        {"/type", MB_U16, c->type, c->has_type},        {"/label", MB_I32, c->label, c->has_label}};
    MB_TRY(mb_h5_read_rows(c->file, "/offsets", MB_U64, c->row, n + 1, c->offsets));
    for (size_t i = 0; i < sizeof columns / sizeof *columns; ++i)
        if (columns[i].is_there)
            MB_TRY(mb_h5_read_rows(c->file, columns[i].path, columns[i].dtype, c->row, n, columns[i].data));
    c->window = c->row;
done:
    return status;
}

/* Have tokens [first, first + n) in memory, and what follows them as room and file allow. */
static mb_status read_tokens(chain *c, int64_t first, int64_t n)
{
    mb_status status = MB_OK;
    if (first >= c->first && first + n <= c->first + c->count) return MB_OK;
    const int64_t end = (int64_t)c->offsets[c->rows - c->window < ROWS ? c->rows - c->window : ROWS];
    int64_t wanted = end - first < TOKENS ? end - first : TOKENS;
    if (wanted < n) wanted = n;
    c->count = 0;
    if (wanted > c->room) {
        MB_FREE(c->tokens);
        MB_FREE(c->mask);
        c->room = 0;
        MB_NEW_ARRAY(c->tokens, wanted);
        MB_NEW_ARRAY(c->mask, wanted);
        c->room = wanted;
    }
    MB_TRY(mb_h5_read_rows(c->file, "/tokens", MB_U32, first, wanted, c->tokens));
    if (c->has_mask) MB_TRY(mb_h5_read_rows(c->file, "/loss_mask", MB_U8, first, wanted, c->mask));
    c->first = first;
    c->count = wanted;
done:
    return status;
}

/* ---- 2. a chain of parts ---- */

/* Make the next record's row readable; false at the end. */
static mb_status find_row(chain *c, bool *out_is_there)
{
    mb_status status = MB_OK;
    while ((c->file == NULL || c->row == c->rows) && c->at < c->count_paths)
        MB_TRY(open_part(c, c->paths[c->at++]));
    *out_is_there = c->file != NULL && c->row < c->rows;
    if (*out_is_there && (c->window < 0 || c->row >= c->window + ROWS)) MB_TRY(read_rows(c));
done:
    return status;
}

static mb_status take_row(chain *c, mb_shard_record *out)
{
    mb_status status = MB_OK;
    const int64_t r = c->row - c->window, first = (int64_t)c->offsets[r],
                  n = (int64_t)c->offsets[r + 1] - first;
    MB_TRY(read_tokens(c, first, n));
    *out = (mb_shard_record){.tokens = c->tokens + (first - c->first),
                             .loss_mask = c->has_mask ? c->mask + (first - c->first) : NULL,
                             .count = n,
                             .source = c->source[r],
                             .source_index = c->source_index[r],
                             .byte_offset = c->byte_offset[r],
                             .byte_length = c->byte_length[r],
                             .text_bytes = c->text_bytes[r],
                             .record_hash = c->record_hash[r],
                             .type = c->has_type ? c->type[r] : 0,
                             .label = c->has_label ? c->label[r] : 0};
    ++c->row;
done:
    return status;
}

/* ---- 3. merging ---- */

static bool is_before(const chain *a, const chain *b)
{
    const int64_t i = a->row - a->window, j = b->row - b->window;
    return a->source[i] != b->source[j] ? a->source[i] < b->source[j]
                                        : a->source_index[i] < b->source_index[j];
}

mb_status mb_shard_stream_next(mb_shard_stream *stream, mb_shard_record *out_record)
{
    mb_status status = MB_OK;
    chain *next = NULL;
    for (int64_t i = 0; i < stream->count; ++i) {
        bool is_there = false;
        MB_TRY(find_row(&stream->chains[i], &is_there));
        if (is_there && (next == NULL || is_before(&stream->chains[i], next))) next = &stream->chains[i];
    }
    if (next != NULL)
        MB_TRY(take_row(next, out_record));
    else
        *out_record = (mb_shard_record){.count = -1};
done:
    return status;
}

mb_status mb_shard_stream_open(char *const *paths, int64_t chains, int64_t chain_length,
                               mb_shard_stream **out_stream)
{
    mb_status status = MB_OK;
    mb_shard_stream *stream = NULL;
    MB_NEW(stream);
    MB_NEW_ARRAY(stream->chains, chains);
    stream->count = chains;
    for (int64_t i = 0; i < chains; ++i) {
        stream->chains[i].paths = paths + i * chain_length;
        stream->chains[i].count_paths = chain_length;
    }
    *out_stream = stream;
    stream = NULL;
done:
    mb_shard_stream_close(&stream);
    return status;
}

void mb_shard_stream_close(mb_shard_stream **stream)
{
    if (*stream == NULL) return;
    for (int64_t i = 0; i < (*stream)->count; ++i) {
        mb_h5_destroy(&(*stream)->chains[i].file);
        mb_free((*stream)->chains[i].tokens);
        mb_free((*stream)->chains[i].mask);
    }
    mb_free((*stream)->chains);
    MB_FREE(*stream);
}
