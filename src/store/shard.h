/* shard: tokenised records in one HDF5 file (a token shard).
 *
 * Layer: store.  Uses: base, tensor, h5.
 *
 * File, format "moebatch-shard" version 1 (N records, M tokens, S sources):
 *   /tokens        u32 [M]      ids, records one after another
 *   /offsets       u64 [N+1]    first token of each record; offsets[N] = M
 *   /loss_mask     u8  [M]      1 where the token, as a target, counts in the loss;
 *                               absent: all count but each record's first
 *   /source        u16 [N]      index into /source_names
 *   /source_names  string [S]
 *   /source_files  string [S]   the JSONL/JSON/CSV file each source was read from
 *   /source_index  i64 [N]      record number in the file
 *   /byte_offset   i64 [N]      of the record in the (uncompressed) file
 *   /byte_length   i64 [N]
 *   /text_bytes    i64 [N]      bytes of the rendered text (bytes per token, perplexity per byte)
 *   /record_hash   u64 [N]      hash of the rendered text: ties, duplicates
 *   /type          u16 [N], /type_names string: optional type per record (data mix)
 *   /label         i32 [N]      optional known label, for evaluation only (never read by training,
 *                               scoring or selection)
 *   attributes: format, version, tokenizer (hash), template (hash), max_length, vocab_size, records,
 *   tokens, and counts of what was skipped, cut and split
 *
 * A pair shard (attribute pairs = 1, else absent) holds preference pairs: record 2p is the chosen side of
 * pair p, record 2p+1 the rejected one. Both come from one place (equal source, source_index, byte_offset,
 * byte_length, type), begin with the same prompt tokens, and the loss mask marks the answer's tokens only.
 */
#ifndef MB_SHARD_H
#define MB_SHARD_H

#include "store/h5.h"

typedef struct mb_shard mb_shard;

typedef struct mb_shard_record {
    const uint32_t *tokens;   /* [count] */
    const uint8_t *loss_mask; /* [count] or NULL */
    int64_t count;
    uint16_t source;
    int64_t source_index, byte_offset, byte_length, text_bytes;
    uint64_t record_hash;
    uint16_t type;
    int32_t label; /* evaluation only; 0 where the file has none */
} mb_shard_record;

/* Everything about the whole file that a writer must know first. Strings are copied. */
typedef struct mb_shard_info {
    const char *tokenizer_hash;
    const char *template_hash; /* "" when none */
    int64_t max_length;
    int64_t vocab_size;
    const char *const *source_names;
    const char *const *source_files;
    int64_t source_count;
    const char *const *type_names; /* NULL: no /type */
    int64_t type_count;
    bool has_loss_mask;
    bool has_label;
    bool is_pairs; /* records come two by two; needs has_loss_mask */
} mb_shard_info;

/* ---- writing: records in their final order, one process, in bounded memory ---- */
typedef struct mb_shard_writer mb_shard_writer;
mb_status mb_shard_writer_create(const char *path, const mb_shard_info *info, mb_shard_writer **out_writer);
mb_status mb_shard_writer_add(mb_shard_writer *writer, const mb_shard_record *record);
/* An extra attribute for the counts. */
mb_status mb_shard_writer_count(mb_shard_writer *writer, const char *name, int64_t value);
mb_status mb_shard_writer_text(mb_shard_writer *writer, const char *name, const char *text); /* likewise */
mb_status mb_shard_writer_close(mb_shard_writer **writer);                                   /* publishes */
void mb_shard_writer_destroy(mb_shard_writer **writer);                                      /* drops */

/* ---- reading ---- */

/* Opens, checks format, version, shapes and offsets (monotone, inside the file), ids < vocab_size are checked
 * as records are read. Per-record columns are held in memory, tokens are read on demand, in blocks that all
 * stay when they fit in cache_bytes (0: 256 MiB), else give way to each other. `files`: one path or a
 * comma-separated list or a folder of *.h5 in name order: one numbering over all. All must have one
 * tokenizer, template and vocabulary, and all or none hold pairs (MB_EDATA). Sources of equal name and file
 * are one (equal names with different files stay apart, because byte offsets belong to files). One thread at
 * a time. */
mb_status mb_shard_open(const char *files, size_t cache_bytes, mb_shard **out_shard);
void mb_shard_close(mb_shard **shard);
int64_t mb_shard_count(const mb_shard *shard);                  /* N */
int64_t mb_shard_tokens(const mb_shard *shard);                 /* M */
int64_t mb_shard_length(const mb_shard *shard, int64_t record); /* tokens of a record */
int64_t mb_shard_sources(const mb_shard *shard);
const char *mb_shard_source_name(const mb_shard *shard, int64_t source);
const char *mb_shard_source_file(const mb_shard *shard, int64_t source);
const char *mb_shard_tokenizer_hash(const mb_shard *shard);
const char *mb_shard_template_hash(const mb_shard *shard); /* "" when none */
int64_t mb_shard_vocab_size(const mb_shard *shard);
int64_t mb_shard_max_length(const mb_shard *shard); /* the largest over the files */
int64_t mb_shard_types(const mb_shard *shard);      /* 0: no labels of type */
bool mb_shard_is_pairs(const mb_shard *shard);      /* preference pairs: records 2p and 2p+1 */
const char *mb_shard_type_name(const mb_shard *shard, int64_t type);
int64_t mb_shard_files(const mb_shard *shard);
const char *mb_shard_file_path(const mb_shard *shard, int64_t file);
int64_t mb_shard_counter(const mb_shard *shard,
                         const char *name); /* a writer's count summed over the files, 0 when there is none */

/* The per-record columns, borrowed, [N]; offsets [N+1]. type and label are NULL when no file has them. */
typedef struct mb_shard_columns {
    const uint64_t *offsets, *record_hash;
    const uint16_t *source, *type;
    const int64_t *source_index, *byte_offset, *byte_length, *text_bytes;
    const int32_t *label;
} mb_shard_columns;
mb_shard_columns mb_shard_columns_get(const mb_shard *shard);
/* Pointers in out_record are valid until the next call. A checksum failure is MB_EFORMAT naming file and
 * record. */
mb_status mb_shard_read(mb_shard *shard, int64_t record, mb_shard_record *out_record);
/* Hash over the content hashes of the files. */
mb_status mb_shard_hash(mb_shard *shard, char out_text[33]);

#endif
