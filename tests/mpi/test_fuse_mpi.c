/* test_fuse_mpi: a fused model with one member on each rank gives the bits of one with all members here: an
 * ensemble of both mixings, token and layer level; losses, logits, routers, and steps of a
 * generation; and one that fails alone keeps nobody waiting.
 *
 *     test_fuse_mpi [BACKEND]
 *
 * With one rank there is nothing to be compared.
 */
#include "mpi_tap.h"

#include "base/str.h"
#include "model/fuse.h"

enum { PROMPT = 5, STEPS = 3, WHOLE = PROMPT + STEPS, SLOTS = 2, LENGTHS = 3 };

#define FOLDER "tests/golden/fuse/qwen3"

typedef struct fused {
    mb_lm *lm;
    mb_lm_pass *pass;
    mb_kv_cache *cache;
} fused;

static bool fused_set(mb_lm *lm)
{
    uint32_t state = 12345;
    bool ok = true;
    for (int64_t i = 0; i < mb_params_count(mb_lm_params(lm)); i++) {
        mb_param *param = mb_params_at(mb_lm_params(lm), i);
        const int64_t n = mb_tensor_count(&param->value);
        float *value = mb_calloc((size_t)n, sizeof *value);
        for (int64_t j = 0; j < n; j++) {
            state = state * 1664525u + 1013904223u;
            value[j] = (float)(state >> 8) / (float)(1u << 24) - (strstr(param->name, "norm") ? 0.0f : 0.5f);
        }
        ok = ok && mb_params_set_f32(param, value) == MB_OK;
        mb_free(value);
    }
    mb_params_changed(mb_lm_params(lm));
    return ok;
}

/* is_alone: the second member has all the weight. */
static bool fused_open(const mpi_tap *tap, const mb_fuse_options *like, bool is_alone, mb_comm *opt_group,
                       fused *f)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    mb_fuse_member member[8];
    mb_fuse_options options = *like;
    options.count = mb_comm_size(tap->comm);
    options.member = member;
    options.opt_group = opt_group;
    options.router_hidden = 6;
    for (int64_t m = 0; m < options.count; m++)
        member[m] = (mb_fuse_member){.name = names[m],
                                     .path = m % 2 == 0 ? FOLDER "/foundation" : FOLDER "/sft",
                                     .weight = is_alone ? m == 1 : 1 + (double)m};
    *f = (fused){0};
    return mb_fuse_open(tap->ops, &options, &f->lm) == MB_OK && fused_set(f->lm) &&
           mb_lm_pass_create(f->lm, &f->pass) == MB_OK &&
           mb_lm_cache_create(f->lm, SLOTS, SLOTS * WHOLE, &f->cache) == MB_OK;
}

static void fused_close(fused *f)
{
    mb_lm_pass_destroy(&f->pass);
    mb_kv_cache_destroy(&f->cache);
    mb_lm_destroy(&f->lm);
}

static bool is_same(const void *a, const void *b, size_t bytes)
{
    return (a == NULL && b == NULL) || (a != NULL && b != NULL && memcmp(a, b, bytes) == 0);
}

static bool is_output(const mb_lm *lm, const mb_lm_batch *b, const mb_lm_output *x, const mb_lm_output *y)
{
    const size_t n = (size_t)b->head_rows, rows = (size_t)(b->tokens * mb_fuse_members(lm));
    bool ok = is_same(x->logits, y->logits, n * (size_t)mb_lm_arch(lm)->vocab * sizeof *x->logits) &&
              is_same(x->token_loss, y->token_loss, n * sizeof *x->token_loss) &&
              is_same(x->argmax, y->argmax, n * sizeof *x->argmax) && x->routers == y->routers;
    for (int64_t s = 0; ok && s < x->routers; s++)
        ok = is_same(x->router_logits[s], y->router_logits[s], rows * sizeof(float)) &&
             is_same(x->router_ids[s], y->router_ids[s], (size_t)b->tokens * sizeof(int32_t));
    return ok;
}

/* A batch of the packed rows that are given. */
typedef struct rows {
    int32_t ids[64], positions[64], offsets[8], head_row[64], targets[64];
    mb_lm_batch batch;
} rows;

static void rows_make(rows *r, const int32_t *lengths, int64_t segments, int32_t first)
{
    uint32_t state = 77u + (uint32_t)first;
    *r = (rows){0};
    for (int64_t s = 0; s < segments; s++)
        for (int32_t i = 0; i < lengths[s]; i++) {
            const int64_t t = r->batch.tokens++;
            state = state * 1664525u + 1013904223u;
            r->ids[t] = (int32_t)(state >> 16) % 40;
            r->targets[t] = (r->ids[t] + 7) % 40;
            r->positions[t] = first + i;
            r->head_row[t] = (int32_t)t;
            r->offsets[s + 1] = (int32_t)t + 1;
        }
    r->batch.segments = segments;
    r->batch.ids = r->ids, r->batch.positions = r->positions, r->batch.offsets = r->offsets;
    r->batch.head_rows = r->batch.tokens, r->batch.head_row = r->head_row, r->batch.targets = r->targets;
}

static bool run_both(fused *here, fused *ranks, mb_lm_batch *b, const mb_lm_want *want, bool cached)
{
    static const int32_t slots[] = {1, 0};
    mb_lm_output x = {0}, y = {0};
    b->opt_slot = cached ? slots : NULL;
    b->opt_cache = cached ? here->cache : NULL;
    const bool first = mb_lm_forward(here->pass, b, want, &x) == MB_OK;
    b->opt_cache = cached ? ranks->cache : NULL;
    return mb_lm_forward(ranks->pass, b, want, &y) == MB_OK && first && is_output(here->lm, b, &x, &y);
}

/* The last rank's cache has no room: it says so, the others hear of it, and nobody waits. */
static bool fails_alike(const mpi_tap *tap, fused *ranks)
{
    static const int32_t lengths[SLOTS] = {PROMPT, PROMPT}, slots[SLOTS] = {0, 1};
    const bool is_mine = mb_comm_rank(tap->comm) == mb_comm_size(tap->comm) - 1;
    const mb_lm_want want = {.logits = true};
    mb_lm_output out;
    rows r;
    rows_make(&r, lengths, SLOTS, 0);
    r.batch.opt_cache = ranks->cache;
    r.batch.opt_slot = slots;
    for (int64_t s = 0; s < SLOTS; s++) mb_kv_cache_place(ranks->cache, s, s * WHOLE, is_mine ? 2 : WHOLE);
    const mb_status bad = mb_lm_forward(ranks->pass, &r.batch, &want, &out);
    mb_status_reset();
    for (int64_t s = 0; s < SLOTS; s++) mb_kv_cache_place(ranks->cache, s, s * WHOLE, WHOLE);
    return bad == (is_mine ? MB_ERANGE : MB_ECOMM) &&
           mb_lm_forward(ranks->pass, &r.batch, &want, &out) == MB_OK;
}

static void check_kind(mpi_tap *tap, const mb_fuse_options *options, bool is_alone, const char *name)
{
    static const int32_t lengths[LENGTHS] = {7, 1, 12}, prompts[SLOTS] = {PROMPT, PROMPT},
                         one[SLOTS] = {1, 1};
    const mb_lm_want all = {.logits = true, .argmax = true}, lean = {.logits = true, .no_routing = true};
    fused here, ranks;
    rows r;
    const bool is_here = fused_open(tap, options, is_alone, NULL, &here);
    const bool is_open = fused_open(tap, options, is_alone, tap->comm, &ranks) && is_here;
    tap_check(tap, is_open, "%s: opens with members on ranks", name);
    if (is_open) {
        rows_make(&r, lengths, LENGTHS, 0);
        tap_check(tap, run_both(&here, &ranks, &r.batch, &all, false), "%s: losses, logits, routers", name);
        rows_make(&r, prompts, SLOTS, 0);
        bool ok = run_both(&here, &ranks, &r.batch, &lean, true);
        for (int32_t i = 0; i < STEPS; i++) {
            rows_make(&r, one, SLOTS, PROMPT + i);
            ok = run_both(&here, &ranks, &r.batch, i == 1 ? &all : &lean, true) && ok;
        }
        tap_check(tap, ok, "%s: a prompt and %d steps with kept keys", name, STEPS);
        tap_check(tap, fails_alike(tap, &ranks), "%s: one rank fails, all do, and go on", name);
    }
    fused_close(&here);
    fused_close(&ranks);
}

int main(int argc, char **argv)
{
    mpi_tap tap = {0};
    int code;
    if (!tap_open(&tap, &argc, &argv, &code)) return code;
    if (mb_comm_size(tap.comm) > 1 && mb_comm_size(tap.comm) <= 8) {
        const mb_fuse_options probabilities = {.kind = MB_FUSE_ENSEMBLE},
                              logits = {.kind = MB_FUSE_ENSEMBLE, .by_logits = true},
                              token = {.kind = MB_FUSE_TOKEN}, layer = {.kind = MB_FUSE_LAYER},
                              bf16 = {.kind = MB_FUSE_LAYER, .dtype = MB_BF16};
        check_kind(&tap, &probabilities, false, "ensemble of probabilities");
        check_kind(&tap, &probabilities, true, "ensemble of which one member has all the weight");
        check_kind(&tap, &logits, false, "ensemble of logits");
        check_kind(&tap, &token, false, "token level");
        check_kind(&tap, &layer, false, "layer level");
        check_kind(&tap, &bf16, false, "layer level in bf16");
    }
    code = tap_end(&tap);
    tap_close(&tap);
    return code;
}
