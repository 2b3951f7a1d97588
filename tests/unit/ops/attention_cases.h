/* attention_cases: shapes of attention in tests: segments, heads, windows and kept keys. */
#ifndef MB_TEST_ATTENTION_CASES_H
#define MB_TEST_ATTENTION_CASES_H

#include "ops_fixture.h"

enum { SEGMENTS_MOST = 40 };

typedef struct attention_case {
    int64_t segments, heads, kv_heads, width, window;
    int32_t sizes[SEGMENTS_MOST];
    bool is_bidirectional;
    int32_t key_first[SEGMENTS_MOST], key_count[SEGMENTS_MOST]; /* kept keys where any count is set */
} attention_case;

/* The case as ops take it, over offsets [segments + 1], which are filled. */
static inline mb_attention_shape shape_of(const attention_case *c, int32_t *offsets)
{
    bool has_kept = false;
    offsets[0] = 0;
    for (int64_t s = 0; s < c->segments; s++) {
        offsets[s + 1] = offsets[s] + c->sizes[s];
        has_kept |= c->key_count[s] > 0;
    }
    return (mb_attention_shape){.segments = c->segments,
                                .offsets = offsets,
                                .heads = c->heads,
                                .kv_heads = c->kv_heads,
                                .head_width = c->width,
                                .scale = (float)(1 / sqrt((double)c->width)),
                                .window = c->window,
                                .is_bidirectional = c->is_bidirectional,
                                .opt_key_first = has_kept ? c->key_first : NULL,
                                .opt_key_count = has_kept ? c->key_count : NULL};
}

/* Rows of keys and values. */
static inline int64_t key_rows(const mb_attention_shape *s)
{
    int64_t rows = s->offsets[s->segments];
    for (int64_t i = 0; s->opt_key_first != NULL && i < s->segments; i++) {
        const int64_t end = s->opt_key_first[i] + s->opt_key_count[i];
        rows = end > rows ? end : rows;
    }
    return rows;
}

#endif
