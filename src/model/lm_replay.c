/* lm_replay: forwards of generation, recorded.
 *
 * A step that adds one token to each of some sequences is hundreds of small ops with the same arguments as
 * in the step before, but for what was sent: a device that takes them as one piece need not wait for the
 * host. The first such forward of its sizes is queued op by op; the second, when nothing moved in memory
 * since, is recorded and run; others run the record. Addresses stand in a record: of the pass's arena and
 * the ops' scratch (the same while these take no new chunk), of the weights and their packed forms (the same
 * while no weight changes) and of the kept keys.
 *
 * 1. what is recorded
 * 2. the list
 * 3. run, record, or op by op
 */
#include <string.h>

#include "model/lm_state.h"

enum { REPLAY_MOST = 32 }; /* sizes kept; the one not used for longest makes room */

/* ---- 1. what is recorded ---- */

typedef struct replay_key {
    int64_t tokens, head_rows;
    const mb_kv_cache *cache;
    mb_dtype dtype;
    double trash_bias;
    bool has_targets, argmax, logits, hidden, no_adapter;
} replay_key;

typedef struct replay_where {
    int64_t arena, scratch; /* chunks taken */
    uint64_t weights;
    const void *sent, *keys;
} replay_where;

typedef struct replay_entry {
    bool is_known, is_refused; /* refused: it could not be recorded */
    replay_key key;
    replay_where where; /* of the last run op by op, or of the record */
    mb_ops_record *record;
    int64_t used; /* by the list's clock */
    mb_tensor loss, logits, hidden, head_h;
    int32_t *argmax;
    int64_t routers;
} replay_entry;

struct mb_lm_replay {
    mb_ops *ops;
    int64_t clock, runs;
    replay_entry entries[REPLAY_MOST];
};

static bool replay_is_fit(const mb_lm_pass *pass)
{
    const mb_lm_batch *b = &pass->batch;
    if (!mb_ops_can_record(pass->ops) || b->opt_cache == NULL || b->tokens != b->segments) return false;
    for (int64_t s = 0; s < b->segments; s++)
        if (b->offsets[s + 1] != s + 1) return false;
    const bool is_long = mb_rotary_is_long(&pass->lm->arch.rotary, b->positions, b->offsets, b->segments);
    const bool gives_routing = mb_lm_routers(pass->lm) > 0 && !pass->want.no_routing;
    return !is_long && !gives_routing && b->row_index == NULL && pass->want.routers == 0 &&
           !mb_params_is_sharded(pass->lm->params);
}

static replay_key replay_key_of(const mb_lm_pass *pass)
{
    const mb_lm_batch *b = &pass->batch;
    return (replay_key){.tokens = b->tokens,
                        .head_rows = b->head_rows,
                        .cache = b->opt_cache,
                        .dtype = pass->context.dtype,
                        .trash_bias = pass->lm->arch.trash_logit_bias,
                        .has_targets = b->targets != NULL,
                        .argmax = pass->want.argmax,
                        .logits = pass->want.logits,
                        .hidden = pass->want.hidden,
                        .no_adapter = pass->want.no_adapter};
}

static bool replay_is_key(const replay_key *a, const replay_key *b)
{
    return a->tokens == b->tokens && a->head_rows == b->head_rows && a->cache == b->cache &&
           a->dtype == b->dtype && a->trash_bias == b->trash_bias && a->has_targets == b->has_targets &&
           a->argmax == b->argmax && a->logits == b->logits && a->hidden == b->hidden &&
           a->no_adapter == b->no_adapter;
}

static replay_where replay_where_of(const mb_lm_pass *pass)
{
    return (replay_where){.arena = mb_arena_chunks_taken(pass->arena),
                          .scratch = mb_arena_chunks_taken(mb_ops_scratch(pass->ops)),
                          .weights = mb_params_version(pass->lm->params),
                          .sent = pass->sent.ids,
                          .keys = pass->batch.opt_cache->data->data};
}

static bool replay_is_where(const replay_where *a, const replay_where *b)
{
    return a->arena == b->arena && a->scratch == b->scratch && a->weights == b->weights &&
           a->sent == b->sent && a->keys == b->keys;
}

/* ---- 2. the list ---- */

void mb_lm_replay_destroy(mb_lm_replay **replay)
{
    mb_lm_replay *r = *replay;
    if (r == NULL) return;
    for (int i = 0; i < REPLAY_MOST; i++) mb_ops_record_destroy(r->ops, &r->entries[i].record);
    MB_FREE(*replay);
}

/* The entry of these sizes, a new one where there is none. */
static mb_status replay_find(mb_lm_pass *pass, replay_entry **out_entry)
{
    mb_status status = MB_OK;
    const replay_key key = replay_key_of(pass);
    replay_entry *entry = NULL, *oldest;
    if (pass->replay == NULL) {
        MB_NEW(pass->replay);
        pass->replay->ops = pass->ops;
    }
    oldest = &pass->replay->entries[0];
    for (int i = 0; i < REPLAY_MOST && entry == NULL; i++) {
        replay_entry *one = &pass->replay->entries[i];
        if (one->is_known && replay_is_key(&one->key, &key)) entry = one;
        if (one->used < oldest->used) oldest = one;
    }
    if (entry == NULL) {
        entry = oldest;
        mb_ops_record_destroy(pass->ops, &entry->record);
        *entry = (replay_entry){.key = key};
    }
    entry->used = ++pass->replay->clock;
    *out_entry = entry;
done:
    return status;
}

/* ---- 3. run, record, or op by op ---- */

static mb_status replay_plain(mb_lm_pass *pass, replay_entry *entry, mb_status (*queue)(mb_lm_pass *pass))
{
    mb_status status = MB_OK;
    MB_TRY(queue(pass));
    entry->where = replay_where_of(pass);
    entry->is_known = true;
done:
    return status;
}

/* Record the ops, which do not run by that. False when it could not be done: the pass is as it was. */
static bool replay_record(mb_lm_pass *pass, replay_entry *entry, mb_status (*queue)(mb_lm_pass *pass))
{
    const mb_arena_mark mark = mb_arena_mark_get(pass->arena);
    mb_status status = mb_ops_record_begin(pass->ops);
    if (status == MB_OK) {
        status = queue(pass);
        if (status == MB_OK)
            status = mb_ops_record_end(pass->ops, &entry->record);
        else
            (void)mb_ops_record_end(pass->ops, NULL);
    }
    const replay_where where = replay_where_of(pass);
    if (status == MB_OK && replay_is_where(&where, &entry->where)) {
        entry->loss = pass->loss, entry->logits = pass->logits, entry->hidden = pass->hidden;
        entry->head_h = pass->head_h;
        entry->argmax = pass->argmax;
        entry->routers = pass->routers;
        return true;
    }
    mb_ops_record_destroy(pass->ops, &entry->record);
    mb_status_reset();
    mb_arena_release(pass->arena, mark);
    pass->loss = pass->logits = pass->hidden = (mb_tensor){0};
    pass->argmax = NULL;
    entry->is_refused = status != MB_OK;
    return false;
}

static mb_status replay_run(mb_lm_pass *pass, const replay_entry *entry)
{
    pass->loss = entry->loss, pass->logits = entry->logits, pass->hidden = entry->hidden;
    pass->head_h = entry->head_h;
    pass->argmax = entry->argmax;
    pass->routers = entry->routers;
    pass->replay->runs++;
    return mb_ops_record_run(pass->ops, entry->record);
}

int64_t mb_lm_replay_count(const mb_lm_pass *pass)
{
    return pass->replay != NULL ? pass->replay->runs : 0;
}

mb_status mb_lm_replay_forward(mb_lm_pass *pass, mb_status (*queue)(mb_lm_pass *pass))
{
    mb_status status = MB_OK;
    replay_entry *entry = NULL;
    if (!replay_is_fit(pass)) {
        MB_TRY(queue(pass));
        goto done;
    }
    MB_TRY(replay_find(pass, &entry));
    const replay_where where = replay_where_of(pass);
    const bool is_same = entry->is_known && replay_is_where(&entry->where, &where);
    if (!is_same) {
        mb_ops_record_destroy(pass->ops, &entry->record);
        entry->is_refused = false;
    }
    if (is_same && entry->record == NULL && !entry->is_refused) (void)replay_record(pass, entry, queue);
    if (entry->record != NULL)
        MB_TRY(replay_run(pass, entry));
    else
        MB_TRY(replay_plain(pass, entry, queue));
done:
    return status;
}
