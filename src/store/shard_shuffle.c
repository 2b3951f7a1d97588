/* shard_shuffle: see the header.
 *
 * Contents: 1. create, destroy  2. adding  3. writing out
 * A bucket is a file of entries: a head, then per record its fields, tokens and mask, padded to 8 bytes. Each
 * keeps a running hash, which is compared when it is read again.
 */
#include "store/shard_shuffle.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/memory.h"

#define BUCKET_BYTES ((int64_t)128 << 20)
#define MOST_BUCKETS 256

typedef struct bucket {
    FILE *file;
    mb_hash *hash;
    int64_t bytes, entries;
} bucket;

struct mb_shard_shuffle {
    char *folder;
    bucket *buckets;
    int64_t count;
    uint64_t entries; /* so far */
};

typedef struct entry_head {
    uint64_t place, number;
    int64_t records;
} entry_head;

/* ---- 1. create, destroy ---- */

int64_t mb_shard_shuffle_buckets(int64_t bytes)
{
    const int64_t n = bytes / BUCKET_BYTES + 1;
    return n < MOST_BUCKETS ? n : MOST_BUCKETS;
}

static char *bucket_path(const mb_shard_shuffle *shuffle, int64_t b)
{
    return mb_str_format("%s/bucket_%03lld", shuffle->folder, (long long)b);
}

mb_status mb_shard_shuffle_create(const char *folder, int64_t buckets, mb_shard_shuffle **out_shuffle)
{
    mb_status status = MB_OK;
    mb_shard_shuffle *shuffle = NULL;
    char *path = NULL;
    MB_NEW(shuffle);
    shuffle->folder = mb_strdup(folder);
    if (shuffle->folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_NEW_ARRAY(shuffle->buckets, buckets);
    shuffle->count = buckets;
    MB_TRY(mb_files_make_folders(folder));
    for (int64_t b = 0; b < buckets; ++b) {
        mb_free(path);
        if ((path = bucket_path(shuffle, b)) == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_hash_create(&shuffle->buckets[b].hash));
        if ((shuffle->buckets[b].file = fopen(path, "w+be")) == NULL)
            MB_RAISE(MB_EIO, "%s: cannot be written: %s", path, strerror(errno));
    }
    *out_shuffle = shuffle;
    shuffle = NULL;
done:
    mb_free(path);
    mb_shard_shuffle_destroy(&shuffle);
    return status;
}

void mb_shard_shuffle_destroy(mb_shard_shuffle **shuffle)
{
    mb_shard_shuffle *s = *shuffle;
    if (s == NULL) return;
    for (int64_t b = 0; b < s->count; ++b) {
        char *path = bucket_path(s, b);
        if (s->buckets[b].file != NULL) fclose(s->buckets[b].file);
        if (path != NULL && s->buckets[b].file != NULL) remove(path);
        mb_hash_destroy(&s->buckets[b].hash);
        mb_free(path);
    }
    mb_free(s->buckets);
    mb_free(s->folder);
    MB_FREE(*shuffle);
}

/* ---- 2. adding ---- */

static mb_status put(const mb_shard_shuffle *shuffle, bucket *b, const void *bytes, size_t n)
{
    mb_status status = MB_OK;
    if (n > 0 && fwrite(bytes, 1, n, b->file) != n)
        MB_RAISE(MB_EIO, "%s: could not be written: disk full?", shuffle->folder);
    mb_hash_add(b->hash, bytes, n);
    b->bytes += (int64_t)n;
done:
    return status;
}

static size_t padding(int64_t count, bool has_mask)
{
    const size_t n = (size_t)count * (has_mask ? 5 : 4);
    return (8 - n % 8) % 8;
}

mb_status mb_shard_shuffle_add(mb_shard_shuffle *shuffle, uint64_t place, const mb_shard_record *records,
                               int64_t count)
{
    mb_status status = MB_OK;
    static const char zeros[8] = {0};
    /* the top 32 bits, in equal parts */
    bucket *b = &shuffle->buckets[((place >> 32) * (uint64_t)shuffle->count) >> 32];
    const entry_head head = {.place = place, .number = shuffle->entries++, .records = count};
    MB_TRY(put(shuffle, b, &head, sizeof head));
    for (int64_t r = 0; r < count; ++r) {
        MB_TRY(put(shuffle, b, &records[r], sizeof records[r]));
        MB_TRY(put(shuffle, b, records[r].tokens, (size_t)records[r].count * sizeof(uint32_t)));
        if (records[r].loss_mask != NULL)
            MB_TRY(put(shuffle, b, records[r].loss_mask, (size_t)records[r].count));
        MB_TRY(put(shuffle, b, zeros, padding(records[r].count, records[r].loss_mask != NULL)));
    }
    ++b->entries;
done:
    return status;
}

/* ---- 3. writing out ---- */

static int compare(const void *a, const void *b)
{
    const entry_head *x = *(entry_head *const *)a, *y = *(entry_head *const *)b;
    if (x->place != y->place) return x->place < y->place ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* The whole bucket in memory, as it was written. */
static mb_status read_bucket(const mb_shard_shuffle *shuffle, const bucket *b, char *data)
{
    mb_status status = MB_OK;
    char written[MB_HASH_TEXT], read[MB_HASH_TEXT];
    if (fflush(b->file) != 0 || fseek(b->file, 0, SEEK_SET) != 0 ||
        fread(data, 1, (size_t)b->bytes, b->file) != (size_t)b->bytes)
        MB_RAISE(MB_EIO, "%s: what was put aside for shuffling cannot be read again", shuffle->folder);
    mb_hash_get(b->hash, written);
    mb_hash_bytes(data, (size_t)b->bytes, read);
    if (strcmp(written, read) != 0)
        MB_RAISE(MB_EFORMAT, "%s: what was put aside for shuffling was damaged on the disk", shuffle->folder);
done:
    return status;
}

/* Step over a record of an entry; its pointers are set into the data. */
static char *next_record(char *at, mb_shard_record *out)
{
    memcpy(out, at, sizeof *out);
    at += sizeof *out;
    const bool has_mask = out->loss_mask != NULL;
    out->tokens = (const uint32_t *)at;
    at += (size_t)out->count * sizeof(uint32_t);
    if (has_mask) {
        out->loss_mask = (const uint8_t *)at;
        at += out->count;
    }
    return at + padding(out->count, has_mask);
}

static mb_status write_bucket(const mb_shard_shuffle *shuffle, const bucket *b, mb_shard_writer *writer)
{
    mb_status status = MB_OK;
    char *data = NULL, *at;
    entry_head **entries = NULL;
    mb_shard_record record;
    MB_NEW_ARRAY(data, b->bytes);
    MB_NEW_ARRAY(entries, b->entries);
    MB_TRY(read_bucket(shuffle, b, data));
    at = data;
    for (int64_t e = 0; e < b->entries; ++e) {
        entries[e] = (entry_head *)at;
        at += sizeof(entry_head);
        for (int64_t r = 0; r < entries[e]->records; ++r) at = next_record(at, &record);
    }
    qsort(entries, (size_t)b->entries, sizeof *entries, compare);
    for (int64_t e = 0; e < b->entries; ++e) {
        at = (char *)(entries[e] + 1);
        for (int64_t r = 0; r < entries[e]->records; ++r) {
            at = next_record(at, &record);
            MB_TRY(mb_shard_writer_add(writer, &record));
        }
    }
done:
    mb_free(data);
    mb_free(entries);
    return status;
}

mb_status mb_shard_shuffle_write(mb_shard_shuffle *shuffle, mb_shard_writer *writer)
{
    mb_status status = MB_OK;
    for (int64_t b = 0; b < shuffle->count; ++b)
        if (shuffle->buckets[b].entries > 0) MB_TRY(write_bucket(shuffle, &shuffle->buckets[b], writer));
done:
    return status;
}
