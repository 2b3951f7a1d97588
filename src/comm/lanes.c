/* lanes: gradient sums over a fixed binary tree of lanes, and the blocks each rank owns.
 *
 * 1. Who sends what: the subtree sums of all ranks and the program that ends the tree
 * 2. Life and plan
 * 3. A step on this rank
 * 4. Reduce
 * 5. Scalars, blocks, parameters
 *
 * Reduce walks the owned elements in chunks of a few blocks. For one chunk an owner gets each other rank's
 * subtree sums of those elements straight from that rank's gradient buffers (nothing is packed), and adds
 * them to its own while they are in cache; the next chunk travels into a second set of staging buffers
 * meanwhile. Additions are the backend's (axpy by 1, which rounds as a plain addition does); they go into an
 * own buffer as soon as one takes part, so the result needs no copy; float addition commutes, so which side
 * is overwritten does not change the bits.
 */
#include "comm/lanes.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"
#include "comm/lane_tree.h"

enum { CHUNK_BLOCKS_MAX = 4 };

/* ---- 1. Who sends what ---- */

typedef struct lane_slot { /* one subtree sum of one rank */
    int rank;
    int node;    /* its place in that rank's stack */
    int staging; /* which staging buffer, -1 for an own sum */
} lane_slot;

typedef struct lane_add { /* slot[into] += slot[from] */
    int into, from;
} lane_add;

typedef struct lane_program {
    int n_slots, n_remote, n_adds;
    int result; /* slot of the finished sum, always an own one */
    lane_slot *slot;
    lane_add *add;
} lane_program;

struct mb_lanes {
    mb_transfer *transfer;
    mb_comm *comm;
    mb_ops *ops;
    int64_t n, lanes, blocks;
    int64_t lane_first, lane_count;
    int64_t *offset; /* [R + 1] elements owned by rank r: [offset[r], offset[r + 1]) */
    int64_t chunk;   /* elements of a round of reduce */
    /* A step */
    mb_lane_tree stack;
    float *held[MB_LANE_TREE_DEPTH]; /* buffers of the stack's nodes */
    float *free[MB_LANE_TREE_DEPTH]; /* buffers of earlier lanes, dirty */
    int n_free;
    float *current; /* the lane between begin and end */
    int64_t next_lane;
    bool is_open, is_reduced; /* between begin and end; after reduce */
    /* Reduce */
    lane_program program;
    float *staging; /* [2][n_remote][chunk] */
    mb_comm_part *send, *receive;
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Subtree sums of all ranks together. */
static int64_t count_slots(int64_t lanes, int ranks)
{
    int64_t slots = 0;
    for (int r = 0; r < ranks; r++) {
        mb_lane_tree stack;
        int64_t first, count;
        mb_comm_share_of(lanes, ranks, r, &first, &count);
        mb_lane_tree_fill(&stack, lanes, first, count);
        slots += stack.depth;
    }
    return slots;
}

/* Elements per round, the same on every rank: as many blocks as keep two rounds of all subtree sums within
 * MB_LANES_STAGING, at least one. */
static int64_t chunk_elements(int64_t slots)
{
    const int64_t fit = (int64_t)(MB_LANES_STAGING / (2 * sizeof(float) * MB_LANES_BLOCK)) / slots;
    return MB_LANES_BLOCK * (fit < 1 ? 1 : least(fit, CHUNK_BLOCKS_MAX));
}

/* List every rank's subtree sums in lane order, then run the stack machine over them to find the additions.
 */
static mb_status program_create(const mb_comm *comm, int64_t lanes, lane_program *program)
{
    mb_status status = MB_OK;
    const int rank = mb_comm_rank(comm), size = mb_comm_size(comm);
    mb_lane_tree whole = {.lanes = lanes};
    int at[MB_LANE_TREE_DEPTH] = {0}; /* slot that holds each node of `whole` */
    const int64_t slots = count_slots(lanes, size);
    MB_NEW_ARRAY(program->slot, slots);
    MB_NEW_ARRAY(program->add, slots);
    for (int r = 0; r < size; r++) {
        mb_lane_tree stack;
        int64_t first, count;
        mb_comm_share_of(lanes, size, r, &first, &count);
        mb_lane_tree_fill(&stack, lanes, first, count);
        for (int j = 0; j < stack.depth; j++) {
            int held = program->n_slots++;
            program->slot[held] = (lane_slot){r, j, r == rank ? -1 : program->n_remote++};
            for (int merges = mb_lane_tree_push(&whole, stack.node[j]), m = 0; m < merges; m++) {
                const int left = at[whole.depth - 1 + merges - 1 - m];
                const bool is_left = program->slot[left].staging < 0 || program->slot[held].staging >= 0;
                program->add[program->n_adds++] = is_left ? (lane_add){left, held} : (lane_add){held, left};
                if (is_left) held = left;
            }
            at[whole.depth - 1] = held;
        }
    }
    assert(whole.depth == 1 && program->slot[at[0]].staging < 0);
    program->result = at[0];
done:
    return status;
}

/* ---- 2. Life and plan ---- */

/* In the backend's memory, zeroed. */
static mb_status take(mb_lanes *l, int64_t elements, float **out_data)
{
    const mb_allocator *memory = mb_ops_allocator(l->ops);
    *out_data = memory->alloc(memory->context, (size_t)elements * sizeof **out_data);
    if (*out_data == NULL)
        return mb_fail(MB_ENOMEM, "no memory for %lld elements of a gradient", (long long)elements);
    return MB_OK;
}

static void give(mb_lanes *l, float *data)
{
    const mb_allocator *memory = mb_ops_allocator(l->ops);
    if (data != NULL) memory->free(memory->context, data);
}

/* What comes from the other ranks and where it lands. */
static mb_status create_staging(mb_lanes *l)
{
    mb_status status = MB_OK;
    const int size = mb_comm_size(l->comm);
    mb_lane_tree mine;
    MB_TRY(program_create(l->comm, l->lanes, &l->program));
    l->chunk = least(chunk_elements(l->program.n_slots), l->blocks * MB_LANES_BLOCK);
    mb_lane_tree_fill(&mine, l->lanes, l->lane_first, l->lane_count);
    const int64_t sums = l->program.n_remote + (int64_t)(size - 1) * mine.depth;
    MB_TRY(take(l, 2 * l->program.n_remote * l->chunk, &l->staging));
    MB_TRY(mb_transfer_reserve(l->transfer, (size_t)(sums * l->chunk) * sizeof *l->staging));
    MB_NEW_ARRAY(l->receive, l->program.n_remote);
    MB_NEW_ARRAY(l->send, (int64_t)(size - 1) * l->program.n_slots);
done:
    return status;
}

mb_status mb_lanes_create(mb_transfer *transfer, int64_t n, int64_t lanes, mb_lanes **out_lanes)
{
    mb_status status = MB_OK;
    mb_lanes *l = NULL;
    mb_comm *comm = mb_transfer_comm(transfer);
    const int size = mb_comm_size(comm);
    assert(n >= 0);
    if (lanes < 1) MB_RAISE(MB_EUSAGE, "training.lanes = %lld; it must be at least 1", (long long)lanes);
    if (size > lanes)
        MB_RAISE(MB_EUSAGE,
                 "training.lanes = %lld allows at most %lld ranks, but there are %d; start fewer ranks or "
                 "raise training.lanes (and training.gradient_accumulation_steps: a step has no more lanes "
                 "than micro-batches)",
                 (long long)lanes, (long long)lanes, size);
    MB_NEW(l);
    l->transfer = transfer;
    l->comm = comm;
    l->ops = mb_transfer_ops(transfer);
    l->n = n;
    l->lanes = lanes;
    l->blocks = (n + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK;
    mb_comm_share(comm, lanes, &l->lane_first, &l->lane_count);
    l->next_lane = l->lane_first;
    l->stack.lanes = lanes;
    MB_NEW_ARRAY(l->offset, size + 1);
    for (int r = 0; r < size; r++) {
        int64_t first, count;
        mb_comm_share_of(l->blocks, size, r, &first, &count);
        l->offset[r] = least(first * MB_LANES_BLOCK, n);
    }
    l->offset[size] = n;
    if (size > 1) MB_TRY(create_staging(l));
    *out_lanes = l;
    l = NULL;
done:
    mb_lanes_destroy(&l);
    return status;
}

void mb_lanes_destroy(mb_lanes **lanes)
{
    mb_lanes *l = *lanes;
    if (l == NULL) return;
    for (int i = 0; i < l->stack.depth; i++) give(l, l->held[i]);
    for (int i = 0; i < l->n_free; i++) give(l, l->free[i]);
    give(l, l->current);
    give(l, l->staging);
    mb_free(l->send);
    mb_free(l->receive);
    mb_free(l->program.slot);
    mb_free(l->program.add);
    mb_free(l->offset);
    MB_FREE(*lanes);
}

mb_comm *mb_lanes_comm(const mb_lanes *lanes)
{
    return lanes->comm;
}

size_t mb_lanes_plan(int64_t n, int64_t lanes, int ranks)
{
    int64_t most = 0;
    if (lanes < 1 || ranks < 1 || ranks > lanes) return 0;
    const int64_t slots = count_slots(lanes, ranks),
                  space = (n + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK * MB_LANES_BLOCK;
    for (int r = 0; r < ranks; r++) {
        mb_lane_tree stack;
        int64_t first, count;
        mb_comm_share_of(lanes, ranks, r, &first, &count);
        const int64_t buffers = mb_lane_tree_fill(&stack, lanes, first, count),
                      remote = ranks > 1 ? slots - stack.depth : 0;
        const int64_t elements = buffers * n + 2 * remote * least(chunk_elements(slots), space);
        if (elements > most) most = elements;
    }
    return (size_t)most * sizeof(float);
}

size_t mb_lanes_bytes(const mb_lanes *lanes)
{
    const int64_t buffers = lanes->stack.depth + lanes->n_free + (lanes->current != NULL);
    return (size_t)(buffers * lanes->n + 2 * lanes->program.n_remote * lanes->chunk) * sizeof(float);
}

void mb_lanes_mine(const mb_lanes *lanes, int64_t *out_first, int64_t *out_count)
{
    *out_first = lanes->lane_first;
    *out_count = lanes->lane_count;
}

void mb_lanes_owned(const mb_lanes *lanes, int64_t *out_first, int64_t *out_count)
{
    const int rank = mb_comm_rank(lanes->comm);
    *out_first = lanes->offset[rank];
    *out_count = lanes->offset[rank + 1] - lanes->offset[rank];
}

/* ---- 3. A step on this rank ---- */

/* into += from */
static mb_status add(mb_lanes *lanes, float *into, const float *from, int64_t n)
{
    const mb_tensor x = mb_tensor_view1(MB_F32, (float *)from, n);
    mb_tensor y = mb_tensor_view1(MB_F32, into, n);
    return n > 0 ? mb_ops_axpy(lanes->ops, 1, &x, &y) : MB_OK;
}

/* The sums of the step before are over: their buffers are free again. */
static void recycle_buffers(mb_lanes *lanes)
{
    for (int i = 0; i < lanes->stack.depth; i++) lanes->free[lanes->n_free++] = lanes->held[i];
    lanes->stack.depth = 0;
    lanes->next_lane = lanes->lane_first;
    lanes->is_reduced = false;
}

mb_status mb_lanes_begin(mb_lanes *lanes, int64_t lane, float **out_gradient)
{
    mb_status status = MB_OK;
    if (lanes->is_reduced) recycle_buffers(lanes);
    assert(!lanes->is_open && lane == lanes->next_lane && lane < lanes->lane_first + lanes->lane_count);
    (void)lane;
    if (lanes->current == NULL && lanes->n_free > 0) {
        lanes->current = lanes->free[--lanes->n_free];
        MB_TRY(mb_ops_zero(lanes->ops, lanes->current, (size_t)lanes->n * sizeof *lanes->current));
    }
    if (lanes->current == NULL) MB_TRY(take(lanes, lanes->n, &lanes->current));
    lanes->is_open = true;
    *out_gradient = lanes->current;
done:
    return status;
}

mb_status mb_lanes_end(mb_lanes *lanes, int64_t lane)
{
    mb_status status = MB_OK;
    mb_lane_tree *stack = &lanes->stack;
    assert(lanes->is_open && lane == lanes->next_lane);
    float *right = lanes->current;
    const int before = stack->depth, merges = mb_lane_tree_push(stack, (mb_lane_node){0, lane});
    for (int m = 1; m <= merges; m++) {
        float *left = lanes->held[before - m];
        if (status == MB_OK) status = add(lanes, left, right, lanes->n);
        lanes->free[lanes->n_free++] = right;
        right = left;
    }
    lanes->held[stack->depth - 1] = right;
    lanes->current = NULL;
    lanes->is_open = false;
    lanes->next_lane++;
    return status == MB_OK ? MB_OK : mb_status_trace(status, __func__, __FILE__, __LINE__);
}

/* ---- 4. Reduce ---- */

/* Elements of owner r in a round: from *out_first on. */
static int64_t round_of(const mb_lanes *lanes, int owner, int64_t round, int64_t *out_first)
{
    const int64_t owned = lanes->offset[owner + 1] - lanes->offset[owner], done = round * lanes->chunk;
    *out_first = lanes->offset[owner] + least(done, owned);
    return done < owned ? least(owned - done, lanes->chunk) : 0;
}

static float *staging_of(const mb_lanes *lanes, int64_t round, int staging)
{
    return lanes->staging + ((round % 2) * lanes->program.n_remote + staging) * lanes->chunk;
}

/* Start the round's messages: my sums of every other owner's chunk out, every other rank's sums of my chunk
 * in. */
static mb_status start_round(mb_lanes *lanes, int64_t round, mb_transfer_move **out_move)
{
    const int rank = mb_comm_rank(lanes->comm), size = mb_comm_size(lanes->comm);
    int64_t n_sends = 0, n_receives = 0, first, count;
    for (int s = 1; s < size; s++) {
        const int peer = (rank + s) % size;
        count = round_of(lanes, peer, round, &first);
        for (int j = 0; j < lanes->stack.depth; j++)
            lanes->send[n_sends++] =
                (mb_comm_part){lanes->held[j] + first, (size_t)count * sizeof(float), peer};
    }
    count = round_of(lanes, rank, round, &first);
    for (int i = 0; i < lanes->program.n_slots; i++) {
        const lane_slot *slot = &lanes->program.slot[i];
        if (slot->staging >= 0)
            lanes->receive[n_receives++] = (mb_comm_part){staging_of(lanes, round, slot->staging),
                                                          (size_t)count * sizeof(float), slot->rank};
    }
    return mb_transfer_start(lanes->transfer, lanes->send, n_sends, lanes->receive, n_receives, out_move);
}

static float *slot_data(const mb_lanes *lanes, int slot, int64_t round, int64_t first)
{
    const lane_slot *s = &lanes->program.slot[slot];
    return s->staging < 0 ? lanes->held[s->node] + first : staging_of(lanes, round, s->staging);
}

/* Run the additions of the tree over my chunk: block by block on a host, whose cache holds one. */
static mb_status finish_round(mb_lanes *lanes, int64_t round)
{
    mb_status status = MB_OK;
    const lane_program *program = &lanes->program;
    int64_t first;
    const int64_t count = round_of(lanes, mb_comm_rank(lanes->comm), round, &first),
                  tile = mb_ops_is_device(lanes->ops) ? lanes->chunk : MB_LANES_BLOCK;
    for (int64_t at = 0; at < count; at += tile) {
        for (int i = 0; i < program->n_adds; i++) {
            float *into = slot_data(lanes, program->add[i].into, round, first);
            const float *from = slot_data(lanes, program->add[i].from, round, first);
            MB_TRY(add(lanes, into + at, from + at, least(count - at, tile)));
        }
    }
done:
    return status;
}

static void keep(mb_status *kept, mb_status status)
{
    if (*kept == MB_OK && status != MB_OK) *kept = mb_status_trace(status, __func__, __FILE__, __LINE__);
}

/* After a failure of its own a rank goes on: the others wait for its messages. */
static mb_status reduce_ranks(mb_lanes *lanes)
{
    mb_status kept = MB_OK;
    mb_transfer_move *now = NULL, *next = NULL;
    const int64_t most = lanes->offset[1] - lanes->offset[0]; /* rank 0 never owns fewer than another */
    const int64_t rounds = lanes->chunk > 0 ? (most + lanes->chunk - 1) / lanes->chunk : 0;
    if (rounds > 0) keep(&kept, start_round(lanes, 0, &now));
    for (int64_t round = 0; round < rounds; round++) {
        if (round + 1 < rounds) keep(&kept, start_round(lanes, round + 1, &next));
        keep(&kept, mb_transfer_wait(&now));
        now = next;
        next = NULL;
        if (kept == MB_OK) keep(&kept, finish_round(lanes, round));
    }
    return kept;
}

mb_status mb_lanes_reduce(mb_lanes *lanes, float **out_owned)
{
    mb_status status = MB_OK;
    const int rank = mb_comm_rank(lanes->comm), size = mb_comm_size(lanes->comm);
    assert(!lanes->is_open && !lanes->is_reduced &&
           lanes->next_lane == lanes->lane_first + lanes->lane_count);
    if (size > 1) MB_TRY(reduce_ranks(lanes));
    const int result = size > 1 ? lanes->program.slot[lanes->program.result].node : 0;
    const bool has_owned = lanes->offset[rank + 1] > lanes->offset[rank];
    lanes->is_reduced = true;
    *out_owned = has_owned ? lanes->held[result] + lanes->offset[rank] : NULL;
done:
    return status;
}

/* ---- 5. Scalars, blocks, parameters ---- */

mb_status mb_lanes_sum(mb_lanes *lanes, const double *values, int64_t width, double *sums)
{
    mb_status status = MB_OK;
    void *all = NULL;
    int64_t *offsets = NULL;
    MB_NEW_ARRAY(offsets, mb_comm_size(lanes->comm) + 1);
    MB_TRY(mb_comm_allgatherv(lanes->comm, values, (size_t)(lanes->lane_count * width) * sizeof *values, &all,
                              offsets));
    mb_lane_tree_sum(all, lanes->lanes, width);
    memcpy(sums, all, (size_t)width * sizeof *sums);
done:
    mb_free(all);
    mb_free(offsets);
    return status;
}

mb_status mb_lanes_block_sum(mb_lanes *lanes, const double *owned_blocks, double *out_total)
{
    mb_status status = MB_OK;
    void *all = NULL;
    int64_t *offsets = NULL;
    int64_t first, count;
    mb_comm_share(lanes->comm, lanes->blocks, &first, &count);
    MB_NEW_ARRAY(offsets, mb_comm_size(lanes->comm) + 1);
    MB_TRY(
        mb_comm_allgatherv(lanes->comm, owned_blocks, (size_t)count * sizeof *owned_blocks, &all, offsets));
    const double *blocks = all;
    double total = 0;
    for (int64_t b = 0; b < lanes->blocks; b++) total += blocks[b];
    *out_total = total;
done:
    mb_free(all);
    mb_free(offsets);
    return status;
}

mb_status mb_lanes_allgather(mb_lanes *lanes, float *parameter)
{
    mb_status status = MB_OK;
    int64_t *offsets = NULL;
    const int size = mb_comm_size(lanes->comm);
    if (size == 1) return MB_OK;
    MB_NEW_ARRAY(offsets, size + 1);
    for (int r = 0; r <= size; r++) offsets[r] = lanes->offset[r] * (int64_t)sizeof *parameter;
    MB_TRY(mb_transfer_gather(lanes->transfer, parameter, offsets));
done:
    mb_free(offsets);
    return status;
}
