/* shard_mix: see the header.
 *
 * Contents: 1. order numbers  2. the k-th smallest  3. weights and amounts  4. rounds  5. settling
 * Method of 2: the order number is found byte by byte from the top: the numbers that begin with the bytes
 * found so far are counted by their next byte, over all ranks, and the byte is the one in which the k-th
 * falls. Eight passes, 256 counters, no list.
 */
#include "store/shard_mix.h"

#include <math.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "store/h5.h"

#define WINDOW 65536 /* rows of a part read at once */
#define PASSES 8     /* bytes of an order number */

/* ---- 1. order numbers ---- */

/* A bijection of 64 bits (finaliser of Steele, Lea, Flood (2014), "Fast splittable pseudorandom number
 * generators", variant 13 of Stafford). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t order_of(const mb_shard_draw *draw, int64_t index)
{
    return mix(mix((uint64_t)index + draw->keys[0]) ^ draw->keys[1]);
}

uint64_t mb_shard_mix_place(const mb_shard_draw *draw, int64_t index, int64_t copy)
{
    return mix(mix(mix((uint64_t)index + draw->keys[2]) + (uint64_t)copy) ^ draw->keys[3]);
}

bool mb_shard_mix_is_candidate(const mb_shard_draw *draw, int64_t index)
{
    if (!draw->is_drawn) return true;
    const uint64_t order = order_of(draw, index);
    return draw->candidates > draw->looked && order <= draw->last &&
           (draw->looked == 0 || order > draw->looked_last);
}

int64_t mb_shard_mix_copies(const mb_shard_draw *draw, int64_t index, bool *out_is_held)
{
    *out_is_held = false;
    if (!draw->is_drawn) return 1;
    const uint64_t order = order_of(draw, index);
    if (draw->held_found > 0 && order <= draw->held_last) {
        *out_is_held = true;
        return 1;
    }
    return draw->copies + (draw->extra > 0 && order <= draw->extra_last);
}

/* ---- 2. the k-th smallest ---- */

typedef struct search {
    uint64_t prefix; /* the bytes found so far, as the low bytes */
    int64_t k;       /* the one looked for among those with the prefix, from 1 */
    int64_t counts[256];
} search;

static void see(search *s, int pass, uint64_t order)
{
    const int shift = 8 * (PASSES - 1 - pass);
    if (pass == 0 || order >> shift >> 8 == s->prefix) ++s->counts[order >> shift & 255];
}

/* The next byte. Collective. */
static mb_status step(mb_comm *comm, search *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_comm_allreduce_i64(comm, s->counts, 256, MB_COMM_SUM));
    int byte = 0;
    while (byte < 255 && s->k > s->counts[byte]) s->k -= s->counts[byte++];
    s->prefix = s->prefix << 8 | (uint64_t)byte;
    memset(s->counts, 0, sizeof s->counts);
done:
    return status;
}

/* The k-th smallest order number of all records of an input, 1 <= k <= available. Collective. */
static mb_status find_in_file(mb_comm *comm, const mb_shard_draw *draw, int64_t k, uint64_t *out_order)
{
    mb_status status = MB_OK;
    search s = {.k = k};
    int64_t first, count;
    mb_comm_share(comm, draw->available, &first, &count);
    for (int pass = 0; pass < PASSES; ++pass) {
        for (int64_t i = first; i < first + count; ++i) see(&s, pass, order_of(draw, i));
        MB_TRY(step(comm, &s));
    }
    *out_order = s.prefix;
done:
    return status;
}

/* ---- 3. weights and amounts ---- */

static double validation_of(const mb_shard_build_options *options, const mb_shard_input *input)
{
    return input->validation >= 0 ? input->validation : options->validation;
}

bool mb_shard_mix_is_asked(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n)
{
    bool is_asked = options->total > 0 || options->validation > 0 || options->shuffle || options->oversample;
    for (int64_t i = 0; i < n; ++i)
        is_asked = is_asked || inputs[i].samples > 0 || inputs[i].weight >= 0 || inputs[i].validation > 0 ||
                   inputs[i].tmpl != NULL;
    return is_asked;
}

void mb_shard_mix_start(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n,
                        mb_shard_draw *draws)
{
    for (int64_t i = 0; i < n; ++i) {
        mb_shard_draw *draw = &draws[i];
        const uint32_t name = (uint32_t)mb_hash_u64(inputs[i].name, strlen(inputs[i].name), 0);
        for (uint64_t k = 0; k < 4; ++k)
            draw->keys[k] = mb_rng_u64((uint64_t)options->seed, MB_RNG_DATA, name, k);
        draw->is_drawn = inputs[i].samples > 0 || inputs[i].weight >= 0 || options->total > 0 ||
                         validation_of(options, &inputs[i]) > 0;
        draw->asked = draw->weight = -1;
        draw->copies = 1;
    }
}

/* Shares of the types where no input says its own (docs/data.md). */
static double default_weight(const char *opt_type)
{
    static const struct {
        const char *type;
        double weight;
    } shares[] = {
        {"general", .30}, {"conversation", .25}, {"code", .20}, {"reasoning", .15}, {"creative", .10}};
    for (size_t i = 0; opt_type != NULL && i < sizeof shares / sizeof *shares; ++i)
        if (strcmp(opt_type, shares[i].type) == 0) return shares[i].weight;
    return -1;
}

/* A total and no weights: the default mix, evenly over the inputs of a type. */
static mb_status take_default_weights(const mb_shard_input *inputs, int64_t n, mb_shard_draw *draws)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; ++i) {
        int64_t alike = 0;
        draws[i].weight = default_weight(inputs[i].type);
        if (draws[i].weight < 0)
            MB_RAISE(MB_EUSAGE,
                     "dataset.total has nothing to go by: '%s' has neither a weight nor samples, nor a type "
                     "of the "
                     "default mix (general, conversation, code, reasoning, creative)",
                     inputs[i].name);
        for (int64_t j = 0; j < n; ++j) alike += mb_str_equal(inputs[i].type, inputs[j].type);
        draws[i].weight /= (double)alike;
    }
    mb_info(
        "no input has a weight: the default mix, general 30 %%, conversation 25 %%, code 20 %%, reasoning "
        "15 %%, creative 10 %%");
done:
    return status;
}

static mb_status set_weights(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n,
                             mb_shard_draw *draws)
{
    mb_status status = MB_OK;
    bool any_weight = false, any_samples = false;
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        draws[i].weight = inputs[i].weight;
        any_weight = any_weight || inputs[i].weight >= 0;
        any_samples = any_samples || inputs[i].samples > 0;
    }
    if (options->total > 0 && !any_weight && any_samples)
        MB_RAISE(MB_EUSAGE,
                 "dataset.total is shared out by weights, and no input has one; `samples` of the inputs "
                 "is enough without it");
    if (options->total > 0 && !any_weight) MB_TRY(take_default_weights(inputs, n, draws));
    for (int64_t i = 0; i < n; ++i) sum += draws[i].weight > 0 ? draws[i].weight : 0;
    if (any_weight && sum <= 0) MB_RAISE(MB_EUSAGE, "dataset.inputs: the weights are all 0");
    if (fabs(sum - 1) > 1e-9 && sum > 0) mb_info("the weights sum to %.6g; each is divided by that", sum);
    for (int64_t i = 0; i < n && sum > 0; ++i)
        if (draws[i].weight >= 0) draws[i].weight /= sum;
done:
    return status;
}

/* Held back from an input that gives `asked` (-1: all) besides. A share is of what it gives altogether. */
static int64_t held_of(double validation, int64_t available, int64_t asked)
{
    double held = validation;
    if (validation > 0 && validation < 1) {
        const double all = validation * (double)available;
        const double drawn = asked >= 0 ? (double)asked * validation / (1 - validation) : all;
        held = fmax(1, round(fmin(all, drawn)));
    }
    return held < (double)available ? (int64_t)held : available;
}

/* The largest total that every weighted input can give its share of. */
static int64_t total_of(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n,
                        const mb_shard_draw *draws)
{
    double total = INFINITY;
    for (int64_t i = 0; i < n; ++i) {
        if (draws[i].weight <= 0 || inputs[i].samples > 0) continue;
        const int64_t held = held_of(validation_of(options, &inputs[i]), draws[i].available, -1);
        total = fmin(total, (double)(draws[i].available - held) / draws[i].weight);
    }
    return isfinite(total) ? (int64_t)total : 0;
}

/* weight x total, rounded so that the sum is right: the largest remainders get what is left. */
static void share_total(const mb_shard_input *inputs, int64_t n, int64_t total, mb_shard_draw *draws)
{
    double weights = 0;
    int64_t left;
    for (int64_t i = 0; i < n; ++i)
        if (draws[i].weight >= 0 && inputs[i].samples <= 0) weights += draws[i].weight;
    left = (int64_t)round(weights * (double)total);
    for (int64_t i = 0; i < n; ++i) {
        if (draws[i].weight < 0 || inputs[i].samples > 0) continue;
        draws[i].asked = (int64_t)floor(draws[i].weight * (double)total);
        left -= draws[i].asked;
    }
    for (; left > 0; --left) {
        int64_t best = -1;
        double most = -1;
        for (int64_t i = 0; i < n; ++i) {
            if (draws[i].weight <= 0 || inputs[i].samples > 0) continue;
            const double remainder = draws[i].weight * (double)total - (double)draws[i].asked;
            if (remainder <= most) continue;
            most = remainder;
            best = i;
        }
        if (best < 0) break;
        ++draws[best].asked;
    }
}

mb_status mb_shard_mix_plan(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n,
                            mb_shard_draw *draws)
{
    mb_status status = MB_OK;
    MB_TRY(set_weights(options, inputs, n, draws));
    bool any_weight = false;
    for (int64_t i = 0; i < n; ++i)
        any_weight = any_weight || (draws[i].weight >= 0 && inputs[i].samples <= 0);
    int64_t total = options->total;
    if (any_weight && total <= 0) {
        total = total_of(options, inputs, n, draws);
        mb_info("dataset.total is not given: %lld records, the most that every input can give its share of",
                (long long)total);
    }
    if (any_weight) share_total(inputs, n, total, draws);
    for (int64_t i = 0; i < n; ++i) {
        mb_shard_draw *draw = &draws[i];
        if (inputs[i].samples > 0) draw->asked = inputs[i].samples;
        draw->is_drawn = draw->asked >= 0 || validation_of(options, &inputs[i]) > 0;
        if (!draw->is_drawn) continue;
        draw->held = held_of(validation_of(options, &inputs[i]), draw->available, draw->asked);
        draw->candidates = draw->available;
        if (draw->asked >= 0 && draw->asked < draw->available - draw->held)
            draw->candidates = draw->held + draw->asked;
    }
done:
    return status;
}

/* ---- 4. rounds ---- */

mb_status mb_shard_mix_window(mb_comm *comm, mb_shard_draw *draws, int64_t n)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; ++i) {
        mb_shard_draw *draw = &draws[i];
        if (!draw->is_drawn || draw->candidates == draw->looked) continue;
        draw->last = UINT64_MAX;
        if (draw->candidates < draw->available)
            MB_TRY(find_in_file(comm, draw, draw->candidates, &draw->last));
    }
done:
    return status;
}

bool mb_shard_mix_grow(mb_shard_draw *draws, int64_t n)
{
    bool any = false;
    for (int64_t i = 0; i < n; ++i) {
        mb_shard_draw *draw = &draws[i];
        if (!draw->is_drawn) continue;
        draw->looked = draw->candidates;
        draw->looked_last = draw->last;
        const int64_t missing = draw->held + draw->asked - draw->good;
        if (draw->asked < 0 || missing <= 0 || draw->looked == draw->available) continue;
        /* as many as it will take when the rest is as good as what was seen, and a few */
        const double rate = draw->good > 0 ? (double)draw->looked / (double)draw->good : 4;
        const double more = ceil((double)missing * rate) + 16;
        draw->candidates =
            more < (double)(draw->available - draw->looked) ? draw->looked + (int64_t)more : draw->available;
        any = true;
    }
    return any;
}

/* ---- 5. settling ---- */

/* What is looked for among the usable records: the last held one and the last that is written once more. */
typedef struct pair_of_searches {
    search held, extra;
} pair_of_searches;

/* The order numbers of a part's records; pieces and sides of one record count once. */
static mb_status see_part(const char *path, const mb_shard_draw *draws, int pass, pair_of_searches *searches,
                          uint16_t *source, int64_t *index)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS], before_index = -1, before_source = -1;
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(mb_h5_shape(file, "/source", &dtype, &dims, shape));
    for (int64_t first = 0; first < shape[0]; first += WINDOW) {
        const int64_t n = shape[0] - first < WINDOW ? shape[0] - first : WINDOW;
        MB_TRY(mb_h5_read_rows(file, "/source", MB_U16, first, n, source));
        MB_TRY(mb_h5_read_rows(file, "/source_index", MB_I64, first, n, index));
        for (int64_t r = 0; r < n; ++r) {
            const bool is_new = source[r] != before_source || index[r] != before_index;
            before_source = source[r];
            before_index = index[r];
            if (!is_new || !draws[source[r]].is_drawn) continue;
            const uint64_t order = order_of(&draws[source[r]], index[r]);
            see(&searches[source[r]].held, pass, order);
            see(&searches[source[r]].extra, pass, order);
        }
    }
done:
    mb_h5_destroy(&file);
    return status;
}

static void settle_amounts(const mb_shard_build_options *options, const mb_shard_input *input,
                           mb_shard_draw *draw)
{
    draw->held_found = draw->held < draw->good ? draw->held : draw->good;
    const int64_t left = draw->good - draw->held_found;
    const bool is_short = draw->asked > left;
    draw->copies = 1;
    draw->extra = 0;
    if (is_short)
        mb_warn("%s: %lld records of '%s' were asked for, %lld can be used%s", input->path,
                (long long)draw->asked, input->name, (long long)left,
                options->oversample ? "; they are repeated (dataset.oversample)"
                                    : "; all are taken (dataset.oversample=true repeats)");
    if (draw->asked < 0 || draw->asked == left || left == 0 || (is_short && !options->oversample)) return;
    draw->copies = draw->asked / left;
    draw->extra = draw->asked % left;
}

mb_status mb_shard_mix_settle(mb_comm *comm, const mb_shard_build_options *options,
                              const mb_shard_input *inputs, int64_t n, char *const *parts, int64_t part_count,
                              mb_shard_draw *draws)
{
    mb_status status = MB_OK;
    pair_of_searches *searches = NULL;
    uint16_t *source = NULL;
    int64_t *index = NULL;
    bool is_needed = false;
    MB_NEW_ARRAY(searches, n);
    MB_NEW_ARRAY(source, WINDOW);
    MB_NEW_ARRAY(index, WINDOW);
    for (int64_t i = 0; i < n; ++i) {
        if (!draws[i].is_drawn) continue;
        settle_amounts(options, &inputs[i], &draws[i]);
        searches[i].held.k = draws[i].held_found;
        searches[i].extra.k = draws[i].held_found + draws[i].extra;
        is_needed = is_needed || draws[i].held_found > 0 || draws[i].extra > 0;
    }
    for (int pass = 0; is_needed && pass < PASSES; ++pass) {
        for (int64_t p = 0; p < part_count && status == MB_OK; ++p)
            status = see_part(parts[p], draws, pass, searches, source, index);
        MB_TRY(mb_comm_agree(comm, status));
        for (int64_t i = 0; i < n; ++i) {
            if (!draws[i].is_drawn) continue;
            MB_TRY(step(comm, &searches[i].held));
            MB_TRY(step(comm, &searches[i].extra));
        }
    }
    for (int64_t i = 0; i < n; ++i) {
        draws[i].held_last = searches[i].held.prefix;
        draws[i].extra_last = searches[i].extra.prefix;
    }
done:
    mb_free(searches);
    mb_free(source);
    mb_free(index);
    return status;
}
