/* model_cases: what the tests of src/model share: golden folders, packed batches, comparisons, temporary
 * folders. */
#ifndef MB_MODEL_CASES_H
#define MB_MODEL_CASES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "model/lm.h"
#include "store/safetensors.h"

#define CASES_FOLDER "tests/golden/models"
#define CASES_SEED   20260101u

#define assert_status_ok(call)                                                                               \
    do {                                                                                                     \
        mb_status status_ = (call);                                                                          \
        if (status_ != MB_OK) print_error("# %s\n%s", mb_status_message(), mb_status_trace_text());          \
        assert_int_equal(status_, MB_OK);                                                                    \
    } while (0)

/* A call fails with this status and a message that holds the text. */
#define assert_status_says(call, expected, text)                                                             \
    do {                                                                                                     \
        mb_status status_ = (call);                                                                          \
        if (status_ != (expected) || strstr(mb_status_message(), (text)) == NULL)                            \
            print_error("# status %d, message: %s\n", status_, mb_status_message());                         \
        assert_int_equal(status_, (expected));                                                               \
        assert_non_null(strstr(mb_status_message(), (text)));                                                \
    } while (0)

/* A packed batch with its arrays. */
typedef struct cases_batch {
    int32_t ids[256], positions[256], offsets[16], head_row[256], targets[256];
    int64_t row_index[256];
    mb_lm_batch batch;
} cases_batch;

/* Rows of ids and offsets [segments + 1]; every row but a segment's last predicts the next. */
static inline void cases_pack(cases_batch *b, const int32_t *ids, const int32_t *offsets, int64_t segments)
{
    memset(b, 0, sizeof *b);
    const int64_t tokens = offsets[segments] - offsets[0];
    for (int64_t s = 0; s <= segments; s++) b->offsets[s] = offsets[s] - offsets[0];
    for (int64_t s = 0; s < segments; s++)
        for (int32_t t = b->offsets[s]; t < b->offsets[s + 1]; t++) {
            b->ids[t] = ids[t];
            b->positions[t] = t - b->offsets[s];
            b->row_index[t] = 1000 + t;
            if (t + 1 == b->offsets[s + 1]) continue;
            b->head_row[b->batch.head_rows] = t;
            b->targets[b->batch.head_rows++] = ids[t + 1];
        }
    b->batch.tokens = tokens;
    b->batch.segments = segments;
    b->batch.ids = b->ids;
    b->batch.positions = b->positions;
    b->batch.offsets = b->offsets;
    b->batch.head_row = b->head_row;
    b->batch.targets = b->targets;
}

/* Segments of random tokens. */
static inline void cases_random(cases_batch *b, int64_t vocab, const int32_t *offsets, int64_t segments,
                                uint32_t seed)
{
    int32_t ids[256];
    uint32_t state = seed * 2654435761u + 12345u;
    for (int32_t t = 0; t < offsets[segments]; t++) {
        state = state * 1664525u + 1013904223u;
        ids[t] = (int32_t)((state >> 8) % (uint32_t)vocab);
    }
    cases_pack(b, ids, offsets, segments);
}

/* Largest difference over the largest magnitude of b. */
static inline double cases_difference(const float *a, const float *b, int64_t n)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= difference)) difference = d;
        if (fabs((double)b[i]) > size) size = fabs((double)b[i]);
    }
    return size > 0 ? difference / size : difference;
}

static inline char *cases_path(const char *name)
{
    return mb_str_format("%s/%s", CASES_FOLDER, name);
}

static inline char *cases_temporary(void)
{
    char *path = mb_strdup("/tmp/mb_model_XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void cases_remove(char *path)
{
    assert_status_ok(mb_files_remove_tree(path));
    mb_free(path);
}

static inline mb_lm *cases_open(mb_ops *ops, const char *path, const char *train)
{
    mb_lm *lm = NULL;
    const mb_lm_options options = {.path = path, .train = train, .seed = 5};
    assert_status_ok(mb_lm_open(ops, &options, &lm));
    return lm;
}

/* Logits of every row but the segments' last: new block [head_rows, V]. */
static inline float *cases_logits(mb_lm *lm, const cases_batch *b)
{
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    const mb_lm_want want = {.logits = true};
    assert_status_ok(mb_lm_pass_create(lm, &pass));
    assert_status_ok(mb_lm_forward(pass, &b->batch, &want, &out));
    const int64_t n = b->batch.head_rows * mb_lm_arch(lm)->vocab;
    float *logits = mb_calloc((size_t)n, sizeof *logits);
    memcpy(logits, out.logits, (size_t)n * sizeof *logits);
    mb_lm_pass_destroy(&pass);
    return logits;
}

/* Create an ops instance, NULL (and a TAP note) when this build lacks the backend. */
static inline mb_ops *cases_ops(const char *backend)
{
    mb_ops *ops = NULL;
    if (mb_ops_create(backend, 1, &ops) != MB_OK) {
        print_message("# %s: %s\n", backend, mb_status_message());
        mb_status_reset();
    }
    return ops;
}

/* ---- the backend's memory, which the host may not touch ---- */

/* n numbers, all 0. */
static inline mb_buffer *cases_room(mb_ops *ops, int64_t n)
{
    mb_buffer *room = NULL;
    assert_status_ok(mb_buffer_create(mb_ops_allocator(ops), (size_t)(n > 0 ? n : 1) * sizeof(float), &room));
    return room;
}

static inline void cases_zero(mb_ops *ops, float *data, int64_t n)
{
    assert_status_ok(mb_ops_zero(ops, data, (size_t)n * sizeof *data));
}

/* n numbers as the host reads them: new block. */
static inline float *cases_read(mb_ops *ops, const float *data, int64_t n)
{
    float *values = mb_calloc((size_t)n, sizeof *values);
    assert_non_null(values);
    assert_status_ok(mb_ops_download(ops, data, (size_t)n * sizeof *values, values));
    assert_status_ok(mb_ops_wait(ops));
    return values;
}

/* Group teardown: nothing leaked. */
static inline int cases_no_leaks(void **state)
{
    (void)state;
    assert_int_equal(mb_memory_live_blocks(), 0);
    return 0;
}

#endif
