/* attention_kernels: the inner loops of attention, once per instruction set; one thread, raw pointers.
 *
 * Layer: ops (cpu backend, internal).
 *
 * A head is one key head of one segment with the `share` query heads that read it: its query rows are
 * (query, query head) pairs, heads inside, so one pass over the keys serves them all. Query rows are worked
 * in tiles, keys in blocks (forward) or chunks (backward) that begin at multiples of `block` and `chunk` from
 * the segment's first key. Forward, every block gives a partial result (sums, largest score) by itself, and a
 * row's partials are added in block order: a row's bits depend neither on who computed which block nor on the
 * other rows.
 */
#ifndef MB_CPU_ATTENTION_KERNELS_H
#define MB_CPU_ATTENTION_KERNELS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Pointers are to the first query or key row of the head; rows lie `stride` or `kv_stride` elements apart,
 * lse `lse_stride` floats. */
typedef struct mb_attention_head {
    int64_t queries, keys; /* the queries are the last of the keys' positions */
    int64_t share, width;  /* query heads; Dh */
    int64_t stride, kv_stride, lse_stride, window;
    float scale;
    bool is_bidirectional, is_bf16;
    const void *q, *k, *v;
    void *o;            /* forward: out; backward: in */
    float *lse;         /* likewise */
    const void *d_o;    /* from here on backward only */
    void *dq, *dk, *dv; /* overwritten */
    float *opt_dq_sums; /* as q, for bf16 heads of several chunks */
    float *deltas;      /* do.o of every query row, as lse */
} mb_attention_head;

/* Chunks of one head add to dq in their order: a chunk adds to a tile after the chunk before it has, and
 * counts the tiles it is done with. */
typedef struct mb_attention_turn {
    const atomic_int *opt_before; /* of the chunk before; NULL for the first */
    atomic_int *done;
} mb_attention_turn;

typedef struct mb_attention_kernels {
    const char *name;
    int64_t rows;  /* query rows of a tile, forward */
    int64_t block; /* keys of a block, forward */
    int64_t chunk; /* keys of a chunk, backward */
    /* Floats of `keys` packed keys and values, and where block b of them begins. */
    int64_t (*packed_floats)(int64_t keys, int64_t width);
    int64_t (*partial_floats)(int64_t rows, int64_t width); /* of one block */
    int64_t (*forward_scratch)(int64_t width);
    int64_t (*backward_scratch)(int64_t width);
    /* Block b's keys and values into out. */
    void (*pack)(const mb_attention_head *head, int64_t b, float *out, float *scratch);
    /* Query rows [first, last) in tiles of `rows`, and the blocks among [block, blocks_end) that they see.
     * opt_packed: all blocks of the head. With opt_partials (one tile then) every block's partial is stored
     * there, else o and lse are. */
    void (*forward)(const mb_attention_head *head, int64_t first, int64_t last, int64_t block,
                    int64_t blocks_end, const float *opt_packed, float *opt_partials, float *scratch);
    /* o and lse of one tile from the partials of all its blocks. */
    void (*merge)(const mb_attention_head *head, int64_t first, int64_t last, const float *partials,
                  float *scratch);
    /* do.o of the query rows whose own keys are in chunk c; of all chunks before any backward. */
    void (*deltas)(const mb_attention_head *head, int64_t c, float *scratch);
    /* dk and dv of chunk c, and its part of dq. */
    void (*backward)(const mb_attention_head *head, int64_t c, mb_attention_turn turn, float *scratch);
} mb_attention_kernels;

/* The blocks that query rows [first, last) see. */
static inline void mb_attention_blocks(const mb_attention_kernels *kernels, const mb_attention_head *head,
                                       int64_t first, int64_t last, int64_t *out_block, int64_t *out_end)
{
    const int64_t past = head->keys - head->queries;
    const int64_t low = past + first / head->share - head->window + 1;
    const int64_t high = head->is_bidirectional ? head->keys : past + (last - 1) / head->share + 1;
    *out_block = head->window > 0 && low > 0 ? low / kernels->block : 0;
    *out_end = (high + kernels->block - 1) / kernels->block;
}

/* The set for an instruction set ("portable", "avx2", "avx512...") and dtype. bf16 dot products are used
 * where the processor has them and AVX-512 was chosen. */
const mb_attention_kernels *mb_attention_kernels_get(const char *isa, bool is_bf16);

#if defined(__x86_64__)
extern const mb_attention_kernels mb_attention_avx512bf16; /* bf16 heads only */
extern const mb_attention_kernels mb_attention_avx512;
extern const mb_attention_kernels mb_attention_avx2;
#endif
extern const mb_attention_kernels mb_attention_portable;

#endif
