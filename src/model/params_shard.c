/* params_shard: tensors cut over the ranks.
 *
 * 1. Where things lie
 * 2. Life
 * 3. Ranges of a block, from and to windows
 * 4. Slots
 * 5. Acquire and release
 * 6. One parameter, changes, sizes
 */
#include "model/params_shard.h"

#include <assert.h>
#include <string.h>

#include "comm/lanes.h"
#include "comm/window.h"
#include "model/staging.h"

enum { SLOTS = 4, NONE = -2 }; /* a tied head needs two blocks at a time; one ahead; one to spare */

typedef struct place { /* of a block */
    size_t frozen;     /* bytes */
    size_t piece;      /* bytes of each rank's piece of them, whole lines */
    size_t offset;     /* of the pieces in every rank's window */
    int64_t flat, trained;
    int64_t first, count; /* in `order` */
} place;

typedef struct slot {
    char *data;    /* in the backend's memory */
    char *landing; /* where gets arrive: data, or page-locked memory of the host */
    size_t capacity;
    int64_t block; /* NONE: nothing worth keeping */
    int users;
    bool is_pending; /* gets are under way */
    bool is_rising;  /* its copy up may be under way */
} slot;

struct mb_params_shard {
    mb_comm *comm;
    mb_ops *ops;
    bool is_device;
    mb_staging *staging; /* on a device, for what I own */
    float *mine;         /* trained elements I own: in the window, or on the device */
    mb_window *window;
    char *base;
    size_t bytes;     /* of my window */
    size_t trained;   /* offset of trained elements in every window */
    int64_t *owned;   /* [R + 1] first trained element of each rank */
    mb_param **order; /* by block */
    int64_t layers;
    place *places; /* [layers + 2] */
    slot slots[SLOTS];
    int64_t last; /* block acquired last */
    bool ahead;
    size_t held, peak;
};

/* ---- 1. Where things lie ---- */

static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static size_t piece_bytes(size_t frozen, int ranks)
{
    return lines((frozen + (size_t)ranks - 1) / (size_t)ranks);
}

static void lay_block(mb_params_shard *s, mb_param *list, int64_t count, int64_t block, int64_t *n)
{
    place *p = &s->places[block + 1];
    p->first = *n;
    p->flat = -1;
    for (int64_t i = 0; i < count; i++) {
        mb_param *param = &list[i];
        if (param->block != block || param->is_carried) continue;
        s->order[(*n)++] = param;
        p->count++;
        if (!param->trained) {
            p->frozen += param->bytes;
            continue;
        }
        if (p->flat < 0) p->flat = param->flat;
        assert(param->flat == p->flat + p->trained);
        p->trained += mb_tensor_count(&param->value);
    }
}

static int64_t lay_out(mb_params_shard *s, mb_param *list, int64_t count)
{
    int64_t n = 0, trained = 0;
    for (int64_t b = -1; b <= s->layers; b++) {
        place *p = &s->places[b + 1];
        lay_block(s, list, count, b, &n);
        p->piece = piece_bytes(p->frozen, mb_comm_size(s->comm));
        p->offset = s->trained;
        s->trained += p->piece;
        trained += p->trained;
    }
    return trained;
}

/* ---- 2. Life ---- */

static size_t owned_bytes(const mb_params_shard *s)
{
    const int rank = mb_comm_rank(s->comm);
    return (size_t)(s->owned[rank + 1] - s->owned[rank]) * sizeof(float);
}

static void give(const mb_allocator *memory, void *data)
{
    if (data != NULL) memory->free(memory->context, data);
}

/* The trained elements I own, where the optimiser works on them. */
static mb_status place_owned(mb_params_shard *s)
{
    mb_status status = MB_OK;
    const mb_allocator *memory = mb_ops_allocator(s->ops);
    s->mine = (float *)(s->base + s->trained);
    if (!s->is_device) goto done;
    MB_TRY(mb_staging_create(s->ops, &s->staging));
    s->mine = memory->alloc(memory->context, owned_bytes(s));
    if (s->mine == NULL) MB_RAISE(MB_ENOMEM, "no memory for the trained values of this rank");
done:
    return status;
}

mb_status mb_params_shard_create(mb_comm *comm, mb_ops *ops, mb_param *list, int64_t count, int64_t layers,
                                 mb_params_shard **out_shard)
{
    mb_status status = MB_OK;
    mb_params_shard *s = NULL;
    const int size = mb_comm_size(comm);
    MB_NEW(s);
    s->ops = ops, s->is_device = mb_ops_is_device(ops);
    s->comm = comm, s->layers = layers, s->last = NONE;
    s->ahead = mb_comm_local_size(comm) < size;
    for (int i = 0; i < SLOTS; i++) s->slots[i].block = NONE;
    MB_NEW_ARRAY(s->order, count);
    MB_NEW_ARRAY(s->places, layers + 2);
    MB_NEW_ARRAY(s->owned, size + 1);
    const int64_t n = lay_out(s, list, count), blocks = (n + MB_LANES_BLOCK - 1) / MB_LANES_BLOCK;
    for (int r = 0; r < size; r++) {
        int64_t first, ignored;
        mb_comm_share_of(blocks, size, r, &first, &ignored);
        s->owned[r] = first * MB_LANES_BLOCK < n ? first * MB_LANES_BLOCK : n;
    }
    s->owned[size] = n;
    s->bytes = s->trained + owned_bytes(s);
    MB_TRY(mb_window_create(comm, s->bytes, (void **)&s->base, &s->window));
    MB_TRY(mb_comm_agree(comm, place_owned(s)));
    *out_shard = s;
    s = NULL;
done:
    mb_params_shard_destroy(&s);
    return status;
}

/* Nothing that is queued uses it any more. */
static void slot_free(mb_params_shard *s, slot *t)
{
    give(mb_ops_allocator(s->ops), t->data);
    if (s->is_device) give(mb_ops_host_allocator(s->ops), t->landing);
    s->held -= t->capacity;
    t->data = t->landing = NULL;
    t->capacity = 0;
}

void mb_params_shard_destroy(mb_params_shard **shard)
{
    mb_params_shard *s = *shard;
    if (s == NULL) return;
    if (s->is_device) {
        (void)mb_ops_wait(s->ops);
        give(mb_ops_allocator(s->ops), s->mine);
    }
    mb_staging_destroy(&s->staging);
    mb_window_destroy(&s->window);
    for (int i = 0; i < SLOTS; i++) slot_free(s, &s->slots[i]);
    mb_free(s->order);
    mb_free(s->places);
    mb_free(s->owned);
    MB_FREE(*shard);
}

/* ---- 3. Ranges ---- */

/* Overlap of [first, first + n) with [low, high), relative to `first`. */
static size_t overlap(size_t first, size_t n, size_t low, size_t high, size_t *out_at)
{
    const size_t from = first > low ? first : low, to = first + n < high ? first + n : high;
    *out_at = from - first;
    return to > from ? to - from : 0;
}

/* Start to read bytes [first, first + n) of a block's frozen bytes. */
static mb_status get_frozen(mb_params_shard *s, const place *p, size_t first, size_t n, char *out)
{
    mb_status status = MB_OK;
    for (int r = 0; r < mb_comm_size(s->comm); r++) {
        size_t at;
        const size_t low = (size_t)r * p->piece, m = overlap(first, n, low, low + p->piece, &at);
        if (m > 0) MB_TRY(mb_window_get(s->window, r, p->offset + (first + at - low), out + at, m));
    }
done:
    return status;
}

/* Start to read trained elements [first, first + n). */
static mb_status get_trained(mb_params_shard *s, int64_t first, int64_t n, float *out)
{
    mb_status status = MB_OK;
    for (int r = 0; r < mb_comm_size(s->comm); r++) {
        size_t at;
        const size_t low = (size_t)s->owned[r],
                     m = overlap((size_t)first, (size_t)n, low, (size_t)s->owned[r + 1], &at);
        if (m > 0)
            MB_TRY(mb_window_get(s->window, r, s->trained + ((size_t)first + at - low) * sizeof *out,
                                 out + at, m * sizeof *out));
    }
done:
    return status;
}

/* ---- 4. Slots ---- */

static size_t slot_bytes(const place *p)
{
    return lines(p->frozen) + (size_t)p->trained * sizeof(float);
}

static slot *slot_of(mb_params_shard *s, int64_t block)
{
    for (int i = 0; i < SLOTS; i++)
        if (s->slots[i].block == block) return &s->slots[i];
    return NULL;
}

/* A slot nobody uses: one that fits, as small as possible; else the largest, to be made larger. */
static slot *slot_choose(mb_params_shard *s, size_t bytes)
{
    slot *best = NULL;
    for (int i = 0; i < SLOTS; i++) {
        slot *t = &s->slots[i];
        if (t->users > 0 || t->is_pending) continue;
        const bool fits = t->capacity >= bytes, best_fits = best != NULL && best->capacity >= bytes;
        if (best == NULL || (fits && !best_fits) ||
            (fits == best_fits && (t->capacity < best->capacity) == fits))
            best = t;
    }
    return best;
}

/* Copies up are over: landings are free. */
static mb_status slots_wait(mb_params_shard *s)
{
    mb_status status = MB_OK;
    if (s->is_device) MB_TRY(mb_ops_wait(s->ops));
    for (int i = 0; i < SLOTS; i++) s->slots[i].is_rising = false;
done:
    return status;
}

static mb_status slot_grow(mb_params_shard *s, slot *t, size_t bytes)
{
    mb_status status = MB_OK;
    const mb_allocator *memory = mb_ops_allocator(s->ops), *pinned = mb_ops_host_allocator(s->ops);
    MB_TRY(slots_wait(s));
    slot_free(s, t);
    t->data = memory->alloc(memory->context, bytes);
    t->landing = t->data == NULL || !s->is_device ? t->data : pinned->alloc(pinned->context, bytes);
    if (t->landing == NULL) MB_RAISE(MB_ENOMEM, "no memory for a block of %.0f MB", 1e-6 * (double)bytes);
    t->capacity = bytes;
    s->held += bytes;
    if (s->held > s->peak) s->peak = s->held;
done:
    return status;
}

/* Start to bring a block in. */
static mb_status slot_fetch(mb_params_shard *s, int64_t block, slot **out_slot)
{
    mb_status status = MB_OK;
    const place *p = &s->places[block + 1];
    const size_t bytes = slot_bytes(p);
    slot *t = slot_choose(s, bytes);
    assert(t != NULL);
    t->block = NONE;
    if (t->landing == NULL || t->capacity < bytes) MB_TRY(slot_grow(s, t, bytes));
    if (t->is_rising) MB_TRY(slots_wait(s));
    MB_TRY(get_frozen(s, p, 0, p->frozen, t->landing));
    MB_TRY(get_trained(s, p->flat, p->trained, (float *)(t->landing + lines(p->frozen))));
    t->block = block;
    t->is_pending = true;
    *out_slot = t;
done:
    return status;
}

/* Point a block's parameters into memory, or nowhere. */
static void point(mb_params_shard *s, int64_t block, char *data)
{
    const place *p = &s->places[block + 1];
    for (int64_t i = p->first; i < p->first + p->count; i++) {
        mb_param *param = s->order[i];
        char *at = data == NULL ? NULL
                   : !param->trained
                       ? data + param->at
                       : data + lines(p->frozen) + (size_t)(param->flat - p->flat) * sizeof(float);
        param->value.data = at;
        if (param->value.dims != 2) continue;
        param->weight.tensor.data = at;
        if (param->weight.bits != 0) param->weight.scale.data = at != NULL ? at + param->scale_at : NULL;
        if (at == NULL) mb_weight_reset(&param->weight);
    }
}

/* ---- 5. Acquire and release ---- */

/* All gets are there: on with the block to where it is used. */
static mb_status slot_land(mb_params_shard *s, slot *t)
{
    mb_status status = MB_OK;
    t->is_pending = false;
    if (!s->is_device) goto done;
    MB_TRY(mb_ops_upload(s->ops, t->landing, slot_bytes(&s->places[t->block + 1]), t->data));
    t->is_rising = true;
done:
    if (status != MB_OK) t->block = NONE;
    return status;
}

/* The block after this one in the direction of travel, brought in while this one is worked on. */
static mb_status fetch_ahead(mb_params_shard *s, int64_t block)
{
    mb_status status = MB_OK;
    const int64_t next = block >= s->last ? block + 1 : block - 1;
    slot *t;
    if (s->ahead && next >= -1 && next <= s->layers && slot_of(s, next) == NULL)
        MB_TRY(slot_fetch(s, next, &t));
done:
    return status;
}

mb_status mb_params_shard_acquire(mb_params_shard *s, int64_t block)
{
    mb_status status = MB_OK;
    slot *t = slot_of(s, block);
    if (t == NULL) MB_TRY(slot_fetch(s, block, &t));
    if (t->is_pending) {
        MB_TRY(mb_window_wait(s->window));
        for (int i = 0; i < SLOTS; i++)
            if (s->slots[i].is_pending) MB_TRY(slot_land(s, &s->slots[i]));
    }
    if (t->users++ == 0) {
        point(s, block, t->data);
        MB_TRY(fetch_ahead(s, block));
        s->last = block;
    }
done:
    return status;
}

void mb_params_shard_release(mb_params_shard *s, int64_t block)
{
    slot *t = slot_of(s, block);
    if (t == NULL || t->users == 0) return; /* its acquire failed */
    if (--t->users == 0) point(s, block, NULL);
}

/* ---- 6. One parameter, changes, sizes ---- */

mb_status mb_params_shard_read(mb_params_shard *s, const mb_param *param, void *out)
{
    mb_status status = MB_OK;
    if (param->trained)
        MB_TRY(get_trained(s, param->flat, mb_tensor_count(&param->value), out));
    else
        MB_TRY(get_frozen(s, &s->places[param->block + 1], param->at, param->bytes, out));
    MB_TRY(mb_window_wait(s->window));
done:
    return status;
}

/* Those of its values that I own, where they belong. */
static mb_status put_trained(mb_params_shard *s, const mb_param *param, const float *values)
{
    mb_status status = MB_OK;
    const int rank = mb_comm_rank(s->comm);
    const size_t low = (size_t)s->owned[rank];
    size_t at;
    const size_t n = overlap((size_t)param->flat, (size_t)mb_tensor_count(&param->value), low,
                             (size_t)s->owned[rank + 1], &at);
    if (n == 0) return MB_OK;
    const size_t to = (size_t)param->flat + at - low;
    memcpy((float *)(s->base + s->trained) + to, values + at, n * sizeof *values);
    if (s->is_device) MB_TRY(mb_staging_put(s->staging, values + at, n * sizeof *values, s->mine + to));
done:
    return status;
}

mb_status mb_params_shard_put(mb_params_shard *s, const mb_param *param, const void *bytes)
{
    const place *p = &s->places[param->block + 1];
    size_t at;
    if (param->trained) return put_trained(s, param, bytes);
    const size_t low = (size_t)mb_comm_rank(s->comm) * p->piece,
                 n = overlap(param->at, param->bytes, low, low + p->piece, &at);
    if (n > 0) memcpy(s->base + p->offset + (param->at + at - low), (const char *)bytes + at, n);
    return MB_OK;
}

float *mb_params_shard_owned(mb_params_shard *s, int64_t first)
{
    return s->mine + (first - s->owned[mb_comm_rank(s->comm)]);
}

/* A rank that failed alone still lets the others pass. */
mb_status mb_params_shard_sync(mb_params_shard *s)
{
    mb_status status = MB_OK;
    for (int i = 0; i < SLOTS; i++) {
        assert(s->slots[i].users == 0);
        if (s->slots[i].is_pending) (void)mb_window_wait(s->window);
        s->slots[i].is_pending = false;
        s->slots[i].block = NONE;
    }
    if (s->is_device) status = mb_staging_get(s->staging, s->mine, owned_bytes(s), s->base + s->trained);
    const mb_status synced = mb_window_sync(s->window);
    return status != MB_OK ? status : synced;
}

bool mb_params_shard_is_ahead(const mb_params_shard *s)
{
    return s->ahead;
}

void mb_params_shard_set_ahead(mb_params_shard *s)
{
    s->ahead = true;
}

size_t mb_params_shard_frozen_bytes(const mb_params_shard *s)
{
    return s->trained;
}

size_t mb_params_shard_window_bytes(const mb_params_shard *s)
{
    return s->bytes;
}

size_t mb_params_shard_slot_peak_bytes(const mb_params_shard *s)
{
    return s->peak;
}
