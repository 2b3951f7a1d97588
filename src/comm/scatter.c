/* scatter: gradients to their owners, segment by segment.
 *
 * 1. Life and plan
 * 2. Rooms of segments
 * 3. The tree over what arrived
 * 4. A segment on its way
 * 5. Waves
 * 6. Scalars
 *
 * A segment travels in chunks; every owner receives its own chunk of the segment from all ranks that have a
 * lane in the wave and adds it to the tree while the next chunk travels. Nodes that are still incomplete at
 * the end of a wave lie in `held`, one owned part each; the tree's structure is the same for all chunks of a
 * wave, so it is followed on a copy and kept at the wave's end.
 */
#include "comm/scatter.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"
#include "comm/lane_tree.h"

enum { CHUNK_BLOCKS = 4, CHUNK = CHUNK_BLOCKS * MB_LANES_BLOCK, ROOMS = 4 };

typedef struct room {
    float *data;
    int64_t capacity;
    int64_t segment; /* -1: free */
} room;

struct mb_scatter {
    mb_transfer *transfer;
    mb_comm *comm;
    mb_ops *ops;
    int64_t n, lanes, segments;
    int64_t *first, *count; /* [segments] */
    int64_t *offset;        /* [R + 1] owned elements of rank r */
    int64_t chunk;          /* elements an owner takes at a time */
    room rooms[ROOMS];
    float *staging;  /* [2][R][chunk] */
    float *zeros;    /* [2][chunk]: of a rank that has nothing to send; the second is for adding into */
    float **arrived; /* [R] */
    mb_comm_part *send, *receive;
    float *sum; /* [owned] over rounds */
    float *held[MB_LANE_TREE_DEPTH];
    mb_lane_tree tree, after;  /* before and after the wave at hand */
    int64_t round, wave, next; /* next segment to leave */
    bool is_open;
    size_t bytes, peak;
};

/* ---- 1. Life and plan ---- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Nodes kept between waves: the deepest stack after a wave that is not the last. */
static int kept_nodes(int64_t lanes, int ranks)
{
    mb_lane_tree tree = {.lanes = lanes};
    int deepest = 0;
    for (int64_t lane = 0; lane < lanes; lane++) {
        mb_lane_tree_push(&tree, (mb_lane_node){0, lane});
        if ((lane + 1) % ranks == 0 && lane + 1 < lanes && tree.depth > deepest) deepest = tree.depth;
    }
    return deepest;
}

static int64_t chunk_elements(int64_t n, int ranks)
{
    const int64_t blocks = (n + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK;
    return least(CHUNK, most((blocks + ranks - 1) / ranks, 1) * MB_LANES_BLOCK);
}

static float *take(mb_scatter *s, int64_t elements)
{
    const mb_allocator *memory = mb_ops_allocator(s->ops);
    float *data = memory->alloc(memory->context, (size_t)elements * sizeof *data);
    if (data == NULL) {
        mb_fail(MB_ENOMEM, "no memory for %lld elements of a gradient", (long long)elements);
        return NULL;
    }
    s->bytes += (size_t)elements * sizeof *data;
    if (s->bytes > s->peak) s->peak = s->bytes;
    return data;
}

static void give(const mb_scatter *s, float *data)
{
    const mb_allocator *memory = mb_ops_allocator(s->ops);
    if (data != NULL) memory->free(memory->context, data);
}

mb_status mb_scatter_create(mb_transfer *transfer, int64_t n, int64_t lanes, int64_t segments,
                            const int64_t *first, const int64_t *count, mb_scatter **out_scatter)
{
    mb_status status = MB_OK;
    mb_scatter *s = NULL;
    mb_comm *comm = mb_transfer_comm(transfer);
    const int size = mb_comm_size(comm), rank = mb_comm_rank(comm);
    const int64_t blocks = (n + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK;
    assert(lanes >= size);
    MB_NEW(s);
    s->transfer = transfer, s->comm = comm, s->ops = mb_transfer_ops(transfer);
    s->n = n, s->lanes = lanes, s->segments = segments;
    for (int i = 0; i < ROOMS; i++) s->rooms[i].segment = -1;
    s->chunk = chunk_elements(n, size);
    MB_NEW_ARRAY(s->first, segments);
    MB_NEW_ARRAY(s->count, segments);
    memcpy(s->first, first, (size_t)segments * sizeof *first);
    memcpy(s->count, count, (size_t)segments * sizeof *count);
    MB_NEW_ARRAY(s->offset, size + 1);
    for (int r = 0; r <= size; r++) {
        int64_t at = blocks, ignored;
        if (r < size) mb_comm_share_of(blocks, size, r, &at, &ignored);
        s->offset[r] = least(at * MB_LANES_BLOCK, n);
    }
    MB_NEW_ARRAY(s->send, size);
    MB_NEW_ARRAY(s->receive, size);
    if (size > 1 && (s->staging = take(s, 2 * size * s->chunk)) == NULL) MB_TRY(MB_ENOMEM);
    if ((s->zeros = take(s, 2 * s->chunk)) == NULL) MB_TRY(MB_ENOMEM);
    for (int i = 0; i < kept_nodes(lanes, size); i++)
        if ((s->held[i] = take(s, s->offset[rank + 1] - s->offset[rank])) == NULL) MB_TRY(MB_ENOMEM);
    MB_NEW_ARRAY(s->arrived, size);
    if ((s->sum = take(s, s->offset[rank + 1] - s->offset[rank])) == NULL) MB_TRY(MB_ENOMEM);
    MB_TRY(mb_transfer_reserve(transfer, (size_t)(2 * (size - 1) * s->chunk) * sizeof *s->sum));
    *out_scatter = s;
    s = NULL;
done:
    mb_scatter_destroy(&s);
    return status;
}

void mb_scatter_destroy(mb_scatter **scatter)
{
    mb_scatter *s = *scatter;
    if (s == NULL) return;
    for (int i = 0; i < ROOMS; i++) give(s, s->rooms[i].data);
    for (int i = 0; i < MB_LANE_TREE_DEPTH; i++) give(s, s->held[i]);
    mb_free(s->first);
    mb_free(s->count);
    mb_free(s->offset);
    give(s, s->staging);
    give(s, s->zeros);
    mb_free(s->arrived);
    mb_free(s->send);
    mb_free(s->receive);
    give(s, s->sum);
    MB_FREE(*scatter);
}

size_t mb_scatter_plan(int64_t n, int64_t lanes, int ranks, int64_t largest)
{
    if (lanes < 1 || ranks < 1 || ranks > lanes) return 0;
    const int64_t blocks = (n + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK;
    const int64_t owned = least((blocks + ranks - 1) / ranks * MB_LANES_BLOCK, n);
    const int64_t chunk = chunk_elements(n, ranks);
    const int64_t elements =
        (1 + kept_nodes(lanes, ranks)) * owned + (ranks > 1 ? 2 * ranks * chunk : 0) + 2 * chunk + largest;
    return (size_t)elements * sizeof(float);
}

size_t mb_scatter_peak_bytes(const mb_scatter *scatter)
{
    return scatter->peak;
}

/* ---- 2. Rooms ---- */

static room *room_of(mb_scatter *s, int64_t segment)
{
    for (int i = 0; i < ROOMS; i++)
        if (s->rooms[i].data != NULL && s->rooms[i].segment == segment) return &s->rooms[i];
    return NULL;
}

/* The smallest free room that fits; else the largest free one, to be made larger. */
static room *room_choose(mb_scatter *s, int64_t count)
{
    room *best = NULL;
    for (int i = 0; i < ROOMS; i++) {
        room *r = &s->rooms[i];
        if (r->segment >= 0) continue;
        const bool fits = r->capacity >= count, best_fits = best != NULL && best->capacity >= count;
        if (best == NULL || (fits && !best_fits) ||
            (fits == best_fits && (r->capacity < best->capacity) == fits))
            best = r;
    }
    return best;
}

mb_status mb_scatter_room(mb_scatter *s, int64_t segment, float **out_room)
{
    mb_status status = MB_OK;
    const int64_t count = s->count[segment];
    assert(s->is_open && segment >= s->next && room_of(s, segment) == NULL);
    room *r = room_choose(s, count);
    assert(r != NULL);
    if (r->data == NULL || r->capacity < count) {
        s->bytes -= (size_t)r->capacity * sizeof(float);
        r->capacity = 0;
        give(s, r->data);
        r->data = NULL;
        r->data = take(s, count);
        if (r->data == NULL) MB_TRY(MB_ENOMEM);
        r->capacity = count;
    } else {
        MB_TRY(mb_ops_zero(s->ops, r->data, (size_t)count * sizeof(float)));
    }
    r->segment = segment;
    *out_room = r->data;
done:
    return status;
}

/* ---- 3. The tree ---- */

/* into += from */
static mb_status add(const mb_scatter *s, float *into, const float *from, int64_t n)
{
    const mb_tensor x = mb_tensor_view1(MB_F32, (float *)from, n);
    mb_tensor y = mb_tensor_view1(MB_F32, into, n);
    return mb_ops_axpy(s->ops, 1, &x, &y);
}

static mb_status copy(const mb_scatter *s, const float *from, int64_t n, float *to)
{
    return mb_ops_copy(s->ops, from, (size_t)n * sizeof *from, to);
}

static bool has_lane(const mb_scatter *s, int rank)
{
    return s->wave * mb_comm_size(s->comm) + rank < s->lanes;
}

static bool is_last_wave(const mb_scatter *s)
{
    return s->wave == mb_scatter_waves(s) - 1;
}

/* Take `n` owned elements from `at` on: arrived[q] is rank q's sum of them. Rank order is lane order. */
static mb_status merge(mb_scatter *s, int64_t at, int64_t n)
{
    mb_status status = MB_OK;
    mb_lane_tree tree = s->tree;
    float *node[MB_LANE_TREE_DEPTH];
    const int size = mb_comm_size(s->comm);
    for (int i = 0; i < tree.depth; i++) node[i] = s->held[i] + at;
    for (int q = 0; q < size && has_lane(s, q); q++) {
        const int before = tree.depth,
                  merges = mb_lane_tree_push(&tree, (mb_lane_node){0, s->wave * size + q});
        float *right = s->arrived[q];
        for (int m = 1; m <= merges; m++) {
            MB_TRY(add(s, node[before - m], right, n));
            right = node[before - m];
        }
        node[tree.depth - 1] = right;
    }
    if (is_last_wave(s)) {
        assert(tree.depth == 1);
        MB_TRY(s->round == 0 ? copy(s, node[0], n, s->sum + at) : add(s, s->sum + at, node[0], n));
        goto done;
    }
    for (int i = 0; i < tree.depth; i++)
        if (node[i] != s->held[i] + at) MB_TRY(copy(s, node[i], n, s->held[i] + at));
done:
    return status;
}

/* ---- 4. A segment on its way ---- */

/* Chunk c of what `owner` owns of a segment: *out_first in the whole space; returns its elements. */
static int64_t chunk_of(const mb_scatter *s, int64_t segment, int owner, int64_t c, int64_t *out_first)
{
    const int64_t first = most(s->first[segment], s->offset[owner]) + c * s->chunk;
    const int64_t end = least(s->first[segment] + s->count[segment], s->offset[owner + 1]);
    *out_first = first;
    return first < end ? least(end - first, s->chunk) : 0;
}

static int64_t chunks_of(const mb_scatter *s, int64_t segment)
{
    int64_t chunks = 0;
    for (int r = 0; r < mb_comm_size(s->comm); r++) {
        const int64_t n = least(s->first[segment] + s->count[segment], s->offset[r + 1]) -
                          most(s->first[segment], s->offset[r]);
        if (n > 0) chunks = most(chunks, (n + s->chunk - 1) / s->chunk);
    }
    return chunks;
}

static float *staging_of(const mb_scatter *s, int64_t c, int rank)
{
    return s->staging + ((c % 2) * mb_comm_size(s->comm) + rank) * s->chunk;
}

/* My elements from `first` on; data NULL: zeros. */
static float *mine_of(const mb_scatter *s, int64_t segment, const float *data, int64_t first)
{
    return data == NULL ? s->zeros : (float *)data + (first - s->first[segment]);
}

static mb_status start_chunk(mb_scatter *s, int64_t segment, const float *data, int64_t c,
                             mb_transfer_move **out_move)
{
    const int rank = mb_comm_rank(s->comm), size = mb_comm_size(s->comm);
    int64_t n_sends = 0, n_receives = 0, first;
    for (int i = 1; i < size; i++) {
        const int peer = (rank + i) % size;
        int64_t count = chunk_of(s, segment, peer, c, &first);
        if (has_lane(s, rank) && count > 0)
            s->send[n_sends++] =
                (mb_comm_part){mine_of(s, segment, data, first), (size_t)count * sizeof(float), peer};
        count = chunk_of(s, segment, rank, c, &first);
        if (has_lane(s, peer) && count > 0)
            s->receive[n_receives++] =
                (mb_comm_part){staging_of(s, c, peer), (size_t)count * sizeof(float), peer};
    }
    return mb_transfer_start(s->transfer, s->send, n_sends, s->receive, n_receives, out_move);
}

static mb_status merge_chunk(mb_scatter *s, int64_t segment, const float *data, int64_t c)
{
    mb_status status = MB_OK;
    const int rank = mb_comm_rank(s->comm);
    int64_t first;
    const int64_t count = chunk_of(s, segment, rank, c, &first);
    if (count == 0) return MB_OK;
    for (int q = 0; q < mb_comm_size(s->comm); q++)
        s->arrived[q] = q == rank ? mine_of(s, segment, data, first) : staging_of(s, c, q);
    if (data == NULL) {
        s->arrived[rank] = s->zeros + s->chunk;
        MB_TRY(mb_ops_zero(s->ops, s->arrived[rank], (size_t)count * sizeof(float)));
    }
    MB_TRY(merge(s, first - s->offset[rank], count));
done:
    return status;
}

static void keep(mb_status *kept, mb_status status)
{
    if (*kept == MB_OK && status != MB_OK) *kept = mb_status_trace(status, __func__, __FILE__, __LINE__);
}

/* After a failure of its own a rank goes on: the others wait for its messages. */
static mb_status send_segment(mb_scatter *s, int64_t segment, const float *data)
{
    mb_status kept = MB_OK;
    mb_transfer_move *now = NULL, *next = NULL;
    const int64_t chunks = chunks_of(s, segment);
    if (chunks > 0) keep(&kept, start_chunk(s, segment, data, 0, &now));
    for (int64_t c = 0; c < chunks; c++) {
        if (c + 1 < chunks) keep(&kept, start_chunk(s, segment, data, c + 1, &next));
        keep(&kept, mb_transfer_wait(&now));
        now = next;
        next = NULL;
        if (kept == MB_OK) keep(&kept, merge_chunk(s, segment, data, c));
    }
    return kept;
}

/* ---- 5. Waves ---- */

int64_t mb_scatter_waves(const mb_scatter *scatter)
{
    const int size = mb_comm_size(scatter->comm);
    return (scatter->lanes + size - 1) / size;
}

int64_t mb_scatter_lane(const mb_scatter *scatter, int64_t wave)
{
    const int64_t lane = wave * mb_comm_size(scatter->comm) + mb_comm_rank(scatter->comm);
    return lane < scatter->lanes ? lane : -1;
}

void mb_scatter_begin(mb_scatter *scatter, int64_t round, int64_t wave)
{
    assert(!scatter->is_open && wave < mb_scatter_waves(scatter));
    if (wave == 0) scatter->tree = (mb_lane_tree){.lanes = scatter->lanes};
    scatter->round = round;
    scatter->wave = wave;
    scatter->next = 0;
    scatter->is_open = true;
    scatter->after = scatter->tree;
    for (int q = 0; q < mb_comm_size(scatter->comm) && has_lane(scatter, q); q++)
        mb_lane_tree_push(&scatter->after, (mb_lane_node){0, wave * mb_comm_size(scatter->comm) + q});
}

mb_status mb_scatter_put(mb_scatter *scatter, int64_t segment)
{
    mb_status status = MB_OK;
    assert(scatter->is_open && segment >= scatter->next && segment < scatter->segments);
    while (scatter->next <= segment) {
        room *r = room_of(scatter, scatter->next);
        const mb_status sent = send_segment(scatter, scatter->next, r != NULL ? r->data : NULL);
        if (r != NULL) r->segment = -1;
        scatter->next++;
        if (status == MB_OK) status = sent;
    }
    return status;
}

mb_status mb_scatter_finish(mb_scatter *scatter)
{
    mb_status status = MB_OK;
    assert(scatter->is_open);
    if (scatter->next < scatter->segments) status = mb_scatter_put(scatter, scatter->segments - 1);
    for (int i = 0; i < ROOMS; i++) scatter->rooms[i].segment = -1;
    scatter->tree = scatter->after;
    scatter->is_open = false;
    return status;
}

float *mb_scatter_owned(mb_scatter *scatter)
{
    const int rank = mb_comm_rank(scatter->comm);
    return scatter->offset[rank + 1] > scatter->offset[rank] ? scatter->sum : NULL;
}

/* ---- 6. Scalars ---- */

mb_status mb_scatter_sum(mb_scatter *scatter, const double *values, int64_t width, double *sums)
{
    mb_status status = MB_OK;
    const int64_t waves = mb_scatter_waves(scatter), size = mb_comm_size(scatter->comm);
    double *all = NULL, *by_lane = NULL;
    MB_NEW_ARRAY(all, size * waves * width);
    MB_NEW_ARRAY(by_lane, scatter->lanes * width);
    MB_TRY(mb_comm_allgather(scatter->comm, values, (size_t)(waves * width) * sizeof *values, all));
    for (int64_t lane = 0; lane < scatter->lanes; lane++)
        memcpy(by_lane + lane * width, all + (lane % size * waves + lane / size) * width,
               (size_t)width * sizeof *all);
    mb_lane_tree_sum(by_lane, scatter->lanes, width);
    memcpy(sums, by_lane, (size_t)width * sizeof *sums);
done:
    mb_free(all);
    mb_free(by_lane);
    return status;
}
