/* measure_fixture: a tiny OLMoE with random weights, and shards of random records. */
#ifndef MB_MEASURE_FIXTURE_H
#define MB_MEASURE_FIXTURE_H

#include "mb_test.h"

#include "base/rng.h"
#include "comm/comm.h"
#include "model/lm.h"
#include "store/shard.h"

enum {
    FIXTURE_SEED = 4711,
    FIXTURE_VOCAB = 64,
    FIXTURE_POSITIONS = 48,
    FIXTURE_LAYERS = 3,
    FIXTURE_EXPERTS = 4,
    FIXTURE_MOST = 4096
};

typedef struct fixture {
    char *folder;
    mb_comm *comm;
    mb_ops *ops;
} fixture;

static inline fixture fixture_open(const char *backend)
{
    fixture f = {.folder = mb_test_folder_make()};
    mb_test_ok(mb_comm_create(NULL, NULL, &f.comm));
    mb_test_ok(mb_ops_create(backend, 1, &f.ops));
    return f;
}

static inline void fixture_close(fixture *f)
{
    mb_ops_destroy(&f->ops);
    mb_comm_destroy(&f->comm);
    mb_test_folder_remove(&f->folder);
}

/* trash 0: a source model. experts 0: dense. */
static inline mb_lm *fixture_model(const fixture *f, int64_t experts, int64_t trash)
{
    mb_lm *lm = NULL;
    const mb_arch arch = {.family = experts > 0 ? MB_FAMILY_OLMOE : MB_FAMILY_LLAMA,
                          .width = 32,
                          .layers = FIXTURE_LAYERS,
                          .heads = 4,
                          .kv_heads = 4,
                          .head_width = 8,
                          .ffn = 24,
                          .vocab = FIXTURE_VOCAB,
                          .max_positions = FIXTURE_POSITIONS,
                          .rms_eps = 1e-5,
                          .rope_theta = 10000,
                          .initializer_range = 0.3,
                          .qk_norm = experts > 0 ? MB_QK_NORM_FULL : MB_QK_NORM_NONE,
                          .experts = experts,
                          .layer = {experts > 0 ? MB_LAYER_MOE : 0, experts > 0 ? MB_LAYER_MOE : 0,
                                    experts > 0 ? MB_LAYER_MOE : 0},
                          .trash = trash,
                          .picks = experts > 0 ? 2 : 0,
                          .stored_dtype = MB_F32,
                          .bos = -1,
                          .eos = -1,
                          .pad = -1};
    mb_test_ok(mb_lm_create(f->ops, &arch, "none", FIXTURE_SEED, &lm));
    return lm;
}

static inline int64_t fixture_length(int64_t record, int64_t longest)
{
    if (record == 3) return 0;
    if (record == 4) return 1;
    return 1 + (int64_t)mb_rng_below(FIXTURE_SEED, MB_RNG_DATA, 1, (uint64_t)record, (uint64_t)longest);
}

/* Tokens and mask of a record; returns their number. */
static inline int64_t fixture_record(int64_t record, int64_t longest, uint32_t *tokens, uint8_t *mask)
{
    int64_t n = fixture_length(record, longest);
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = (uint64_t)record << 20 | (uint64_t)i;
        tokens[i] = (uint32_t)mb_rng_below(FIXTURE_SEED, MB_RNG_DATA, 2, at, FIXTURE_VOCAB);
        mask[i] = i > 0 && mb_rng_below(FIXTURE_SEED, MB_RNG_DATA, 3, at, 3) == 0;
    }
    return n;
}

static inline uint64_t fixture_hash(int64_t record)
{
    return mb_rng_u64(FIXTURE_SEED, MB_RNG_DATA, 4, (uint64_t)record);
}

static inline mb_shard *fixture_shard(const fixture *f, const char *name, int64_t records, int64_t longest,
                                      bool has_mask)
{
    static const char *const names[2] = {"web", "books"}, *const files[2] = {"web.jsonl", "books.jsonl"};
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    mb_shard_writer *writer = NULL;
    mb_shard *shard = NULL;
    char *path = mb_test_path(f->folder, name);
    const mb_shard_info info = {.tokenizer_hash = "0123",
                                .template_hash = "",
                                .max_length = 0,
                                .vocab_size = FIXTURE_VOCAB,
                                .source_names = names,
                                .source_files = files,
                                .source_count = 2,
                                .has_loss_mask = has_mask};
    mb_test_ok(mb_shard_writer_create(path, &info, &writer));
    for (int64_t r = 0; r < records; r++) {
        int64_t n = fixture_record(r, longest, tokens, mask);
        const mb_shard_record record = {.tokens = tokens,
                                        .loss_mask = has_mask ? mask : NULL,
                                        .count = n,
                                        .source = (uint16_t)(r % 5 == 0),
                                        .source_index = r,
                                        .byte_offset = 10 * r,
                                        .byte_length = 10,
                                        .text_bytes = 3 * n + r % 7,
                                        .record_hash = fixture_hash(r)};
        mb_test_ok(mb_shard_writer_add(writer, &record));
    }
    mb_test_ok(mb_shard_writer_close(&writer));
    mb_test_ok(mb_shard_open(path, 0, &shard));
    mb_free(path);
    return shard;
}

/* One record alone through a model: mean softmax mass of the first `good` gates per layer, mean sum of their
 * logits, mean entropy; the losses of tokens 2..n. */
typedef struct fixture_alone {
    double mass[FIXTURE_LAYERS], logits[FIXTURE_LAYERS], entropy[FIXTURE_LAYERS];
    double loss[FIXTURE_MOST];
} fixture_alone;

static inline void fixture_routers(const mb_lm_output *out, int64_t n, int64_t gates, int64_t good,
                                   fixture_alone *alone)
{
    for (int64_t l = 0; l < out->routers; l++) {
        for (int64_t t = 0; t < n; t++) {
            const float *row = out->router_logits[l] + t * gates;
            double sum = 0, good_sum = 0;
            for (int64_t e = 0; e < gates; e++) sum += exp(row[e]);
            for (int64_t e = 0; e < good; e++) good_sum += exp(row[e]);
            for (int64_t e = 0; e < good; e++) alone->logits[l] += row[e] / (double)n;
            for (int64_t e = 0; e < gates; e++)
                alone->entropy[l] -= exp(row[e]) / sum * log(exp(row[e]) / sum) / (double)n;
            alone->mass[l] += good_sum / sum / (double)n;
        }
    }
}

static inline void fixture_run_alone(mb_lm *lm, const uint32_t *tokens, int64_t n, fixture_alone *alone)
{
    int32_t ids[FIXTURE_MOST], positions[FIXTURE_MOST], rows[FIXTURE_MOST], targets[FIXTURE_MOST];
    const int32_t offsets[2] = {0, (int32_t)n};
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {0};
    memset(alone, 0, sizeof *alone);
    for (int64_t i = 0; i < n; i++) {
        ids[i] = (int32_t)tokens[i];
        positions[i] = rows[i] = (int32_t)i;
        targets[i] = i + 1 < n ? (int32_t)tokens[i + 1] : 0;
    }
    const mb_lm_batch batch = {.tokens = n,
                               .segments = 1,
                               .ids = ids,
                               .positions = positions,
                               .offsets = offsets,
                               .head_rows = n - 1,
                               .head_row = rows,
                               .targets = targets};
    mb_test_ok(mb_lm_pass_create(lm, &pass));
    mb_test_ok(mb_lm_forward(pass, &batch, &want, &out));
    for (int64_t i = 0; i + 1 < n; i++) alone->loss[i] = out.token_loss[i];
    fixture_routers(&out, n, mb_arch_gates(mb_lm_arch(lm)), mb_arch_good(mb_lm_arch(lm)), alone);
    mb_lm_pass_destroy(&pass);
}

#endif
