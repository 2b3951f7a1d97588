/* shard_sample: a small token shard for tests, the same bytes each time. */
#ifndef MB_SHARD_SAMPLE_H
#define MB_SHARD_SAMPLE_H

#include "base/rng.h"
#include "store/shard.h"
#include "store/store_test.h"

enum { SAMPLE_VOCAB = 1000, SAMPLE_LONGEST = 5000 };

/* Record i of the sample with this seed; the arrays hold SAMPLE_LONGEST. Every tenth is empty, some are long.
 */
static inline mb_shard_record sample_record(uint64_t seed, int64_t i, int64_t longest, uint32_t *tokens,
                                            uint8_t *mask)
{
    mb_shard_record record = {.tokens = tokens,
                              .loss_mask = mask,
                              .source = (uint16_t)(i % 3),
                              .source_index = 7 * i,
                              .byte_offset = 100 * i};
    record.count =
        i % 10 == 0 ? 0 : (int64_t)mb_rng_below(seed, MB_RNG_DATA, 1, (uint64_t)i, (uint64_t)longest);
    record.byte_length = 90 + i;
    record.text_bytes = 4 * record.count;
    record.record_hash = mb_rng_u64(seed, MB_RNG_DATA, 2, (uint64_t)i);
    record.type = (uint16_t)(i % 2);
    record.label = (int32_t)(i % 5) - 2;
    for (int64_t t = 0; t < record.count; t++) {
        tokens[t] =
            (uint32_t)mb_rng_below(seed, MB_RNG_DATA, 3, (uint64_t)(i * SAMPLE_LONGEST + t), SAMPLE_VOCAB);
        mask[t] = tokens[t] % 3 == 0;
    }
    return record;
}

static inline void sample_write(const char *path, uint64_t seed, int64_t records, int64_t longest,
                                const char *first_source)
{
    const char *const names[] = {first_source, "beta", "gamma"}, *const files[] = {"a.jsonl", "b.jsonl",
                                                                                   "c.jsonl"};
    const char *const types[] = {"code", "chat"};
    const mb_shard_info info = {.tokenizer_hash = "0123",
                                .template_hash = "",
                                .max_length = 2048,
                                .vocab_size = SAMPLE_VOCAB,
                                .source_names = names,
                                .source_files = files,
                                .source_count = 3,
                                .type_names = types,
                                .type_count = 2,
                                .has_loss_mask = true,
                                .has_label = true};
    static uint32_t tokens[SAMPLE_LONGEST];
    static uint8_t mask[SAMPLE_LONGEST];
    mb_shard_writer *writer = NULL;
    assert_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t i = 0; i < records; i++) {
        mb_shard_record record = sample_record(seed, i, longest, tokens, mask);
        assert_ok(mb_shard_writer_add(writer, &record));
    }
    assert_ok(mb_shard_writer_count(writer, "skipped_bad", 3));
    assert_ok(mb_shard_writer_close(&writer));
}

#endif
