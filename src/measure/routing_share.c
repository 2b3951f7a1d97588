/* routing_share.c: counts of picks by type, layer and expert, and the same under permuted types.
 *
 * The counts of one record in one layer are made once and added to table 0 under the record's type, and to
 * tables 1..P under the type each permutation gives it. Layers are independent, so threads take a layer each.
 *
 * 1. creation   2. a tile   3. what follows from the sums   4. use
 */
#include "measure/routing_share.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { MASS_BITS = 32, PERMUTATION_SUB = 1 << 20 /* of its stream; + number */ };
static const double MOST_BYTES = 4294967296.0;

struct mb_routing_share {
    mb_routing_share_result result;
    mb_shard *shard;
    int threads;
    int64_t cells;         /* types x routers x E' */
    uint16_t *type;        /* [1 + P, N] of a record, as it is and permuted */
    int64_t *counts;       /* [1 + P, cells] */
    int64_t *first, *mass; /* [cells] */
    int64_t *records;      /* [types] */
    int64_t *tokens;       /* [types] */
    int64_t *picked;       /* [routers, E'] of one record */
    double *weight;        /* [routers, E'] softmax of one row */
    int64_t *layers;       /* [routers] */
    const char **names;    /* [types] */
    double *mass_sums, *shares, *entropies;
};

/* ---- 1. creation ---- */

static void relation_destroy(mb_routing_share_relation *relation)
{
    mb_free(relation->info);
    mb_free(relation->shuffled);
    mb_free(relation->mean);
    mb_free(relation->sd);
    mb_free(relation->p_value);
}

void mb_routing_share_destroy(mb_routing_share **share)
{
    mb_routing_share *s = *share;
    if (s == NULL) return;
    relation_destroy(&s->result.weighted);
    relation_destroy(&s->result.equal);
    mb_free(s->type);
    mb_free(s->counts);
    mb_free(s->first);
    mb_free(s->mass);
    mb_free(s->records);
    mb_free(s->tokens);
    mb_free(s->picked);
    mb_free(s->weight);
    mb_free(s->layers);
    mb_free(s->names);
    mb_free(s->mass_sums);
    mb_free(s->shares);
    mb_free(s->entropies);
    MB_FREE(*share);
}

static mb_status check(const mb_routing_share *s, const mb_shard *shard)
{
    mb_status status = MB_OK;
    const mb_routing_share_result *r = &s->result;
    const double tables = (double)(r->options.permutations + 1);
    const double bytes =
        tables * ((double)s->cells * sizeof *s->counts + (double)mb_shard_count(shard) * sizeof *s->type);
    if (r->routers == 0)
        MB_RAISE(MB_EUSAGE,
                 "the model has no layer with experts: no routing to measure; set eval.routing=false");
    if (r->types == 0) MB_RAISE(MB_EDATA, "the shard has neither types nor sources of records");
    if (bytes > MOST_BYTES)
        MB_RAISE(MB_EUSAGE,
                 "%lld permutations of %lld types over %lld records would take %.1f GiB; set "
                 "eval.routing_permutations lower",
                 (long long)r->options.permutations, (long long)r->types, (long long)mb_shard_count(shard),
                 bytes / 1073741824.0);
    if (mb_shard_tokens(shard) > (int64_t)1 << (63 - MASS_BITS))
        MB_RAISE(MB_ERANGE, "routing is measured over at most 2^31 tokens, the shard has %lld",
                 (long long)mb_shard_tokens(shard));
done:
    return status;
}

typedef struct share_place {
    int64_t source, index, record;
} share_place;

static int by_place(const void *a, const void *b)
{
    const share_place *x = a, *y = b;
    if (x->source != y->source) return x->source < y->source ? -1 : 1;
    if (x->index != y->index) return x->index < y->index ? -1 : 1;
    return x->record < y->record ? -1 : x->record > y->record;
}

/* Does place i differ from the one before? */
static bool is_new(const share_place *places, int64_t i)
{
    return i == 0 || places[i].source != places[i - 1].source || places[i].index != places[i - 1].index;
}

/* Orders the records by where they come from and counts the places. */
static int64_t sort_places(const mb_shard_columns *columns, int64_t n, share_place *places)
{
    int64_t units = 0;
    for (int64_t r = 0; r < n; r++)
        places[r] = (share_place){columns->source[r], columns->source_index[r], r};
    qsort(places, (size_t)n, sizeof *places, by_place);
    for (int64_t i = 0; i < n; i++) units += is_new(places, i);
    return units;
}

/* The types of all records under one permutation: those of a place get the type of another place. */
static void permute_types(const share_place *places, int64_t n, const uint16_t *unit_type,
                          const int64_t *order, uint16_t *out)
{
    int64_t unit = -1;
    for (int64_t i = 0; i < n; i++) {
        unit += is_new(places, i);
        out[places[i].record] = unit_type[order[unit]];
    }
}

/* The types of all records, and of every permutation of them. */
static mb_status make_types(mb_routing_share *s)
{
    mb_status status = MB_OK;
    int64_t *order = NULL;
    share_place *places = NULL;
    uint16_t *unit_type = NULL;
    const int64_t n = mb_shard_count(s->shard);
    const mb_shard_columns columns = mb_shard_columns_get(s->shard);
    const uint16_t *own = s->result.has_types ? columns.type : columns.source;
    MB_NEW_ARRAY(places, n);
    MB_NEW_ARRAY(s->type, (s->result.options.permutations + 1) * n);
    memcpy(s->type, own, (size_t)n * sizeof *own);
    const int64_t units = s->result.units = sort_places(&columns, n, places);
    MB_NEW_ARRAY(order, units);
    MB_NEW_ARRAY(unit_type, units);
    for (int64_t i = 0, unit = 0; i < n; i++)
        if (is_new(places, i)) unit_type[unit++] = own[places[i].record];
    for (int64_t p = 1; p <= s->result.options.permutations; p++) {
        mb_rng_permutation((uint64_t)s->result.options.seed, MB_RNG_BOOTSTRAP,
                           (uint32_t)(PERMUTATION_SUB + p), units, order);
        permute_types(places, n, unit_type, order, s->type + p * n);
    }
done:
    mb_free(order);
    mb_free(places);
    mb_free(unit_type);
    return status;
}

static mb_status name_all(mb_routing_share *s, const mb_arch *arch)
{
    mb_status status = MB_OK;
    mb_routing_share_result *r = &s->result;
    MB_NEW_ARRAY(s->names, r->types);
    MB_NEW_ARRAY(s->layers, r->routers);
    for (int64_t t = 0; t < r->types; t++)
        s->names[t] = r->has_types ? mb_shard_type_name(s->shard, t) : mb_shard_source_name(s->shard, t);
    int64_t n = 0;
    for (int64_t layer = 0; layer < arch->layers; layer++)
        if (mb_arch_is_moe(arch, layer)) s->layers[n++] = layer;
    for (; n < r->routers; n++) s->layers[n] = n; /* a fused model has stages */
    r->names = s->names;
    r->layers = s->layers;
done:
    return status;
}

static mb_status make_tables(mb_routing_share *s)
{
    mb_status status = MB_OK;
    mb_routing_share_result *r = &s->result;
    MB_NEW_ARRAY(s->counts, (r->options.permutations + 1) * s->cells);
    MB_NEW_ARRAY(s->first, s->cells);
    MB_NEW_ARRAY(s->mass, s->cells);
    MB_NEW_ARRAY(s->records, r->types);
    MB_NEW_ARRAY(s->tokens, r->types);
    MB_NEW_ARRAY(s->picked, r->routers * r->gates);
    MB_NEW_ARRAY(s->weight, r->routers * r->gates);
done:
    return status;
}

mb_status mb_routing_share_create(mb_shard *shard, mb_lm *lm, const mb_routing_share_options *options,
                                  mb_routing_share **out_share)
{
    mb_status status = MB_OK;
    mb_routing_share *s = NULL;
    const mb_arch *arch = mb_lm_arch(lm);
    const bool has_types = mb_shard_types(shard) > 0;
    MB_NEW(s);
    s->shard = shard;
    s->threads = mb_ops_threads(mb_lm_ops(lm));
    s->result =
        (mb_routing_share_result){.types = has_types ? mb_shard_types(shard) : mb_shard_sources(shard),
                                  .routers = mb_lm_routers(lm),
                                  .gates = mb_arch_gates(arch),
                                  .picks = arch->picks,
                                  .trash = arch->trash + arch->declared_trash,
                                  .has_types = has_types,
                                  .options = *options};
    s->cells = s->result.types * s->result.routers * s->result.gates;
    MB_TRY(check(s, shard));
    MB_TRY(name_all(s, arch));
    MB_TRY(make_types(s));
    MB_TRY(make_tables(s));
    *out_share = s;
    s = NULL;
done:
    mb_routing_share_destroy(&s);
    return status;
}

/* ---- 2. a tile ---- */

static bool is_counted(const mb_routing_share *s, const mb_tile *tile, int64_t row)
{
    return !s->result.options.only_answers || tile->in_mask[row];
}

/* Adds a row's softmax, in units of 2^-32. False: not numbers. */
static bool add_mass(const float *logits, int64_t n, double *weight, int64_t *mass)
{
    float top = logits[0];
    double sum = 0;
    for (int64_t e = 1; e < n; e++) top = logits[e] > top ? logits[e] : top;
    for (int64_t e = 0; e < n; e++) sum += weight[e] = expf(logits[e] - top);
    if (!isfinite(sum)) return false;
    for (int64_t e = 0; e < n; e++) mass[e] += llrint(ldexp(weight[e] / sum, MASS_BITS));
    return true;
}

/* A record's rows [from, to) in one layer; out_rows: those that count. */
static bool add_rows(mb_routing_share *s, const mb_tile *tile, int64_t from, int64_t to, int64_t router,
                     const mb_lm_output *output, int64_t cell, int64_t *out_rows)
{
    const int64_t gates = s->result.gates, picks = s->result.picks;
    int64_t *picked = s->picked + router * gates;
    *out_rows = 0;
    memset(picked, 0, (size_t)gates * sizeof *picked);
    for (int64_t row = from; row < to; row++) {
        const int32_t *ids = output->router_ids[router] + row * picks;
        if (!is_counted(s, tile, row)) continue;
        ++*out_rows;
        s->first[cell + ids[0]]++;
        for (int64_t k = 0; k < picks; k++) picked[ids[k]]++;
        if (!add_mass(output->router_logits[router] + row * gates, gates, s->weight + router * gates,
                      s->mass + cell))
            return false;
    }
    return true;
}

static bool add_layer(mb_routing_share *s, const mb_tile *tile, int64_t router, const mb_lm_output *output)
{
    const mb_routing_share_result *r = &s->result;
    const int64_t n = mb_shard_count(s->shard);
    const int64_t *picked = s->picked + router * r->gates;
    for (int64_t i = 0; i < tile->records; i++) {
        const int64_t record = tile->record[i], type = s->type[record];
        int64_t rows;
        if (!add_rows(s, tile, tile->row_first[i], tile->row_first[i + 1], router, output,
                      (type * r->routers + router) * r->gates, &rows))
            return false;
        for (int64_t p = 0; rows > 0 && p <= r->options.permutations; p++) {
            int64_t *to =
                s->counts + p * s->cells + (s->type[p * n + record] * r->routers + router) * r->gates;
            for (int64_t e = 0; e < r->gates; e++) to[e] += picked[e];
        }
        if (router > 0) continue;
        s->tokens[type] += rows;
        s->records[type] += rows > 0;
    }
    return true;
}

mb_status mb_routing_share_add(mb_routing_share *share, const mb_tile *tile, const mb_lm_output *output)
{
    mb_status status = MB_OK;
    const int64_t routers = share->result.routers;
    bool fine = true;
    if (tile->tokens == 0) goto done;
    assert(output->routers == routers);
#pragma omp parallel for schedule(dynamic) num_threads(share->threads) reduction(&& : fine)
    for (int64_t l = 0; l < routers; l++) fine = add_layer(share, tile, l, output) && fine;
    if (!fine) MB_RAISE(MB_ENUMERIC, "a router's logits are not numbers; check the model's weights");
done:
    return status;
}

/* ---- 3. what follows from the sums ---- */

static mb_status sum_ranks(mb_routing_share *s, mb_comm *comm)
{
    mb_status status = MB_OK;
    const mb_routing_share_result *r = &s->result;
    MB_TRY(mb_comm_allreduce_i64(comm, s->counts, (r->options.permutations + 1) * s->cells, MB_COMM_SUM));
    MB_TRY(mb_comm_allreduce_i64(comm, s->first, s->cells, MB_COMM_SUM));
    MB_TRY(mb_comm_allreduce_i64(comm, s->mass, s->cells, MB_COMM_SUM));
    MB_TRY(mb_comm_allreduce_i64(comm, s->records, r->types, MB_COMM_SUM));
    MB_TRY(mb_comm_allreduce_i64(comm, s->tokens, r->types, MB_COMM_SUM));
done:
    return status;
}

static mb_status make_shares(mb_routing_share *s)
{
    mb_status status = MB_OK;
    const mb_routing_share_result *r = &s->result;
    const int64_t gates = r->gates;
    MB_NEW_ARRAY(s->mass_sums, s->cells);
    MB_NEW_ARRAY(s->shares, s->cells);
    MB_NEW_ARRAY(s->entropies, r->types * r->routers);
    for (int64_t i = 0; i < s->cells; i++) {
        const int64_t picks = s->tokens[i / (r->routers * gates)] * r->picks;
        s->mass_sums[i] = ldexp((double)s->mass[i], -MASS_BITS);
        s->shares[i] = picks > 0 ? (double)s->counts[i] / (double)picks : NAN;
    }
    for (int64_t i = 0; i < r->types * r->routers; i++)
        s->entropies[i] = mb_routing_information_entropy(s->counts + i * gates, gates);
done:
    return status;
}

/* Information in every layer of table p, and of all. */
static void inform(const mb_routing_share *s, int64_t p, bool is_equal, int64_t *scratch,
                   mb_routing_information *out)
{
    const mb_routing_share_result *r = &s->result;
    for (int64_t l = 0; l < r->routers; l++)
        out[l] = mb_routing_information_get(s->counts + p * s->cells + l * r->gates, r->types,
                                            r->routers * r->gates, r->gates, is_equal, scratch);
    out[r->routers] = mb_routing_information_mean(out, r->routers);
}

/* Mean, spread and rank of what was found among the permutations. */
static void compare(mb_routing_share_relation *relation, int64_t permutations, int64_t columns, int64_t at)
{
    const double found = relation->info[at].mutual, p = (double)permutations;
    double mean = 0, squares = 0, above = 0;
    for (int64_t i = 0; i < permutations; i++) mean += relation->shuffled[i * columns + at] / p;
    for (int64_t i = 0; i < permutations; i++) {
        const double value = relation->shuffled[i * columns + at];
        squares += (value - mean) * (value - mean);
        above += value >= found;
    }
    relation->mean[at] = permutations > 0 ? mean : NAN;
    relation->sd[at] = permutations > 1 ? sqrt(squares / (p - 1)) : NAN;
    relation->p_value[at] = permutations > 0 ? (1 + above) / (1 + p) : NAN;
}

static mb_status relate(const mb_routing_share *s, bool is_equal, mb_routing_share_relation *relation)
{
    mb_status status = MB_OK;
    const int64_t columns = s->result.routers + 1, permutations = s->result.options.permutations;
    mb_routing_information *shuffled = NULL;
    int64_t *scratch = NULL;
    MB_NEW_ARRAY(shuffled, columns);
    MB_NEW_ARRAY(scratch, s->result.types);
    MB_NEW_ARRAY(relation->info, columns);
    MB_NEW_ARRAY(relation->shuffled, permutations * columns);
    MB_NEW_ARRAY(relation->mean, columns);
    MB_NEW_ARRAY(relation->sd, columns);
    MB_NEW_ARRAY(relation->p_value, columns);
    inform(s, 0, is_equal, scratch, relation->info);
    for (int64_t p = 0; p < permutations; p++) {
        inform(s, p + 1, is_equal, scratch, shuffled);
        for (int64_t l = 0; l < columns; l++) relation->shuffled[p * columns + l] = shuffled[l].mutual;
    }
    for (int64_t l = 0; l < columns; l++) compare(relation, permutations, columns, l);
done:
    mb_free(shuffled);
    mb_free(scratch);
    return status;
}

mb_status mb_routing_share_finish(mb_routing_share *share, mb_comm *comm)
{
    mb_status status = MB_OK;
    mb_routing_share_result *r = &share->result;
    assert(r->counts == NULL);
    MB_TRY(sum_ranks(share, comm));
    MB_TRY(make_shares(share));
    MB_TRY(relate(share, false, &r->weighted));
    MB_TRY(relate(share, true, &r->equal));
    r->records = share->records;
    r->tokens = share->tokens;
    r->counts = share->counts;
    r->first_counts = share->first;
    r->mass = share->mass_sums;
    r->share = share->shares;
    r->entropy = share->entropies;
done:
    return status;
}

/* ---- 4. use ---- */

const mb_routing_share_result *mb_routing_share_get(const mb_routing_share *share)
{
    assert(share->result.counts != NULL);
    return &share->result;
}
