/* trainer_validate.c: the objective's terms on records that are not trained on, per type and over all.
 *
 * The records (all, or training.validation_samples drawn by the seed) are cut into micro-batches of one type
 * each before anybody asks how many ranks there are. The micro-batches are dealt over the ranks; their terms
 * come back to every rank and are added in the order of the micro-batches, so that the values have the same
 * bits on any number of ranks. A forward serves twice: as a part of its type and as a part of all. Nothing of
 * it reaches the training: no gradients, draws keyed by sample numbers, the passes' memory is written anew.
 *
 * A validation's line of metrics has the step it comes after, and stands before a checkpoint of that step.
 * What the end of a run says (first, best, last) is read back from the lines, so that it is the same for a
 * run that was interrupted; so is whether the step a run begins at still wants its validation.
 *
 * 1. types and their names   2. micro-batches   3. creation   4. running   5. metrics   6. the end of a run
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/stop.h"
#include "learn/trainer_impl.h"
#include "store/lease.h"

#define SUBSET_EPOCH (UINT32_MAX - 1) /* sub-stream of the draw; batches.c has the one after it */

enum { ARENA_BYTES = 1 << 20, NAME_BYTES = MB_TRAINER_NAME, VIEWS = 2 };

typedef struct group {
    char name[NAME_BYTES / 2]; /* as it stands in names of metrics; "" of all */
    int64_t type, targets, tokens, records, units;
} group;

/* A micro-batch: samples order[first .. first + count - 1], all of one type. */
typedef struct unit {
    int64_t group, first, count;
} unit;

struct mb_trainer_validation {
    mb_shard *shard; /* borrowed */
    int64_t width;   /* records of a sample */
    int64_t groups;  /* types that occur; 0: the shard has none */
    group *group;    /* [groups + 1], the last one is all of them */
    int64_t samples, *order;
    int64_t units;
    unit *unit;
    int64_t terms, *term; /* those of the objective that are kept */
    char *names;          /* [groups + 1, terms] of NAME_BYTES */
    mb_arena *arena;      /* tokens of a micro-batch */
    mb_shard_record *record;
    int64_t *sample;
    double *values; /* [units, VIEWS, terms], by rank and then in order */
    double *sums;   /* [groups + 1, terms] */
    int64_t *picks; /* [groups + 1, pick_count] */
};

/* ---- 1. types and their names ---- */

/* A type's name as a part of a metric's: other characters become _, and it is no term's. */
static void name_group(const mb_objective *objective, const char *type, group *out)
{
    size_t n = 0;
    for (const char *c = type; *c != 0 && n + 8 < sizeof out->name; c++, n++)
        out->name[n] = (char)(isalnum((unsigned char)*c) || (*c == '.' && n > 0) ? *c : '_');
    if (n == 0) out->name[n++] = '_';
    out->name[n] = 0;
    for (int64_t i = 0; i < objective->term_count; i++) {
        const size_t part = strcspn(objective->term[i], "/");
        if (part == n && strncmp(objective->term[i], out->name, n) == 0) {
            out->name[n++] = '_';
            out->name[n] = 0;
        }
    }
}

/* Two types whose names became one are told apart by their numbers. */
static void tell_apart(mb_trainer_validation *v, group *out)
{
    for (int64_t g = 0; g < v->groups; g++) {
        const size_t n = strlen(out->name);
        if (!mb_str_equal(v->group[g].name, out->name)) continue;
        snprintf(out->name + n, sizeof out->name - n, "_%d", (int)out->type);
        return;
    }
}

/* The types that occur among the samples, in the shard's order. */
static mb_status find_groups(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const mb_shard_columns columns = mb_shard_columns_get(v->shard);
    const int64_t types = columns.type != NULL ? mb_shard_types(v->shard) : 0;
    MB_NEW_ARRAY(v->group, types + 1);
    for (int64_t t = 0; t < types; t++) {
        bool occurs = false;
        for (int64_t i = 0; i < v->samples && !occurs; i++)
            occurs = columns.type[v->order[i] * v->width] == t;
        if (!occurs) continue;
        group found = {.type = t};
        name_group(trainer->objective, mb_shard_type_name(v->shard, t), &found);
        tell_apart(v, &found);
        v->group[v->groups++] = found;
    }
    v->group[v->groups] = (group){.type = -1};
done:
    return status;
}

/* ---- 2. micro-batches ---- */

static int compare_int64(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static mb_status draw_samples(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const int64_t all = mb_shard_count(v->shard) / v->width, wanted = trainer->options->validation_samples;
    if (all == 0)
        MB_RAISE(MB_EDATA,
                 "training.validation_path: the shard has no records; leave the key out, or give one "
                 "that has some");
    MB_NEW_ARRAY(v->order, all);
    v->samples = wanted > 0 && wanted < all ? wanted : all;
    for (int64_t i = 0; i < all; i++) v->order[i] = i;
    if (v->samples == all) return MB_OK;
    mb_rng_permutation((uint64_t)trainer->options->seed, MB_RNG_SHUFFLE, SUBSET_EPOCH, all, v->order);
    qsort(v->order, (size_t)v->samples, sizeof *v->order, compare_int64);
done:
    return status;
}

/* Samples ordered by type, and cut into micro-batches that do not cross from one into another. */
static mb_status make_units(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const mb_shard_columns columns = mb_shard_columns_get(v->shard);
    const int64_t size = trainer->options->batch_size, kinds = v->groups > 0 ? v->groups : 1;
    int64_t *sorted = NULL, at = 0;
    MB_NEW_ARRAY(sorted, v->samples);
    MB_NEW_ARRAY(v->unit, v->samples / size + kinds);
    for (int64_t g = 0; g < kinds; g++) {
        const int64_t first = at;
        for (int64_t i = 0; i < v->samples; i++)
            if (v->groups == 0 || columns.type[v->order[i] * v->width] == v->group[g].type)
                sorted[at++] = v->order[i];
        for (int64_t from = first; from < at; from += size)
            v->unit[v->units++] =
                (unit){.group = g, .first = from, .count = at - from < size ? at - from : size};
    }
    mb_free(v->order);
    v->order = sorted;
    sorted = NULL;
done:
    mb_free(sorted);
    return status;
}

/* Its records, but for empty ones that are no side of a pair. */
static mb_status read_unit(const mb_trainer *trainer, mb_trainer_validation *v, const unit *u,
                           mb_microbatch *out)
{
    mb_status status = MB_OK;
    int64_t n = 0;
    mb_arena_reset(v->arena);
    for (int64_t i = 0; i < u->count * v->width; i++) {
        const int64_t record = v->order[u->first + i / v->width] * v->width + i % v->width;
        MB_TRY(mb_trainer_step_copy(v->shard, record, trainer->options->max_length, v->arena, &v->record[n]));
        v->sample[n] = record;
        n += v->record[n].count > 0 || v->width > 1;
    }
    *out = (mb_microbatch){.records = n,
                           .record = v->record,
                           .sample = v->sample,
                           .seed = (uint64_t)trainer->options->seed,
                           .step = trainer->step,
                           .is_validation = true};
done:
    return status;
}

/* As a part of this group. */
static mb_trainer_view view_of(const mb_trainer *trainer, const mb_trainer_validation *v,
                               const mb_microbatch *microbatch, int64_t g)
{
    mb_trainer_view view = {.microbatch = *microbatch};
    view.microbatch.step_targets = v->group[g].targets;
    view.microbatch.step_tokens = v->group[g].tokens;
    view.microbatch.step_records = v->group[g].records;
    view.microbatch.step_microbatches = v->group[g].units;
    if (v->picks != NULL) view.opt_picks = v->picks + g * trainer->objective->pick_count;
    return view;
}

/* ---- 3. creation ---- */

static mb_status count_mine(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    mb_microbatch read;
    const mb_objective *objective = trainer->objective;
    for (int64_t u = mb_comm_rank(trainer->comm); u < v->units; u += mb_comm_size(trainer->comm)) {
        group *g = &v->group[v->unit[u].group];
        MB_TRY(read_unit(trainer, v, &v->unit[u], &read));
        g->units += read.records > 0;
        g->records += read.records;
        for (int64_t i = 0; i < read.records; i++) {
            g->tokens += read.record[i].count;
            g->targets += objective->count_targets(objective, &read.record[i], read.sample[i]);
        }
    }
done:
    return status;
}

/* What each group has, over all ranks, and all of them together. Collective. */
static mb_status count_groups(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const int64_t kinds = v->groups > 0 ? v->groups : 1;
    group *all = &v->group[v->groups];
    MB_TRY(mb_comm_agree(trainer->comm, count_mine(trainer, v)));
    for (int64_t g = 0; g < kinds; g++) {
        group *one = &v->group[g];
        int64_t sums[] = {one->targets, one->tokens, one->records, one->units};
        MB_TRY(mb_comm_allreduce_i64(trainer->comm, sums, 4, MB_COMM_SUM));
        one->targets = sums[0], one->tokens = sums[1], one->records = sums[2], one->units = sums[3];
        if (v->groups == 0) continue;
        all->targets += sums[0], all->tokens += sums[1], all->records += sums[2], all->units += sums[3];
        if (one->targets == 0) mb_warn("validation: the records of type %s have no target tokens", one->name);
    }
    if (all->targets == 0)
        MB_RAISE(MB_EDATA, "training.validation_path: its records have no target tokens under objective %s",
                 trainer->objective->name);
done:
    return status;
}

/* "r_mean/3" is of one router: too many to keep for every type. */
static bool is_of_router(const char *term)
{
    const char *last = strrchr(term, '/');
    return last != NULL && last[1 + strspn(last + 1, "0123456789")] == 0;
}

static mb_status name_terms(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const mb_objective *objective = trainer->objective;
    MB_NEW_ARRAY(v->term, objective->term_count);
    for (int64_t i = 0; i < objective->term_count; i++)
        if (!is_of_router(objective->term[i])) v->term[v->terms++] = i;
    MB_NEW_ARRAY(v->names, (v->groups + 1) * v->terms * NAME_BYTES);
    for (int64_t g = 0; g <= v->groups; g++)
        for (int64_t i = 0; i < v->terms; i++)
            snprintf(v->names + (g * v->terms + i) * NAME_BYTES, NAME_BYTES, "validation/%s%s%s",
                     v->group[g].name, v->group[g].name[0] != 0 ? "/" : "", objective->term[v->term[i]]);
done:
    return status;
}

static mb_status create_here(mb_trainer *trainer, mb_trainer_validation **out)
{
    mb_status status = MB_OK;
    mb_trainer_validation *v = NULL;
    MB_NEW(v);
    v->shard = trainer->options->opt_validation;
    v->width = mb_shard_is_pairs(v->shard) ? 2 : 1;
    if (v->width != mb_batches_width(trainer->batches))
        MB_RAISE(MB_EDATA, "training.validation_path: the shard holds %s, that of dataset.path %s",
                 v->width == 2 ? "preference pairs" : "single records", v->width == 2 ? "does not" : "pairs");
    MB_TRY(draw_samples(trainer, v));
    MB_TRY(find_groups(trainer, v));
    MB_TRY(make_units(trainer, v));
    MB_TRY(name_terms(trainer, v));
    MB_TRY(mb_arena_create(ARENA_BYTES, &v->arena));
    MB_NEW_ARRAY(v->record, trainer->options->batch_size * v->width);
    MB_NEW_ARRAY(v->sample, trainer->options->batch_size * v->width);
    MB_NEW_ARRAY(v->values, v->units * VIEWS * v->terms);
    MB_NEW_ARRAY(v->sums, (v->groups + 1) * v->terms);
    if (trainer->objective->plan_routing != NULL)
        MB_NEW_ARRAY(v->picks, (v->groups + 1) * trainer->objective->pick_count);
done:
    *out = v;
    return status;
}

mb_status mb_trainer_validate_create(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    if (trainer->options->opt_validation == NULL) return MB_OK;
    MB_TRY(mb_comm_agree(trainer->comm, create_here(trainer, &trainer->validation)));
    MB_TRY(count_groups(trainer, trainer->validation));
done:
    return status;
}

void mb_trainer_validate_destroy(mb_trainer *trainer)
{
    mb_trainer_validation *v = trainer->validation;
    if (v == NULL) return;
    mb_free(v->group);
    mb_free(v->order);
    mb_free(v->unit);
    mb_free(v->term);
    mb_free(v->names);
    mb_arena_destroy(&v->arena);
    mb_free(v->record);
    mb_free(v->sample);
    mb_free(v->values);
    mb_free(v->sums);
    mb_free(v->picks);
    MB_FREE(trainer->validation);
}

/* ---- 4. running ---- */

/* Where the values of a unit lie: those of rank 0 in order, then those of rank 1 .. */
static int64_t place_of(const mb_trainer_validation *v, int ranks, int64_t u)
{
    const int64_t rank = u % ranks, each = v->units / ranks, more = v->units % ranks;
    return rank * each + (rank < more ? rank : more) + u / ranks;
}

static mb_status stop_here(const mb_trainer *trainer)
{
    if (!mb_stop_is_set()) return MB_OK;
    return mb_fail(MB_ESTOPPED, "stopped in the validation after step %lld", (long long)trainer->step);
}

/* Picks of my micro-batches, by a routing-only pass of each. */
static mb_status route_mine(mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    mb_microbatch read;
    for (int64_t u = mb_comm_rank(trainer->comm); u < v->units; u += mb_comm_size(trainer->comm)) {
        MB_TRY(stop_here(trainer));
        MB_TRY(read_unit(trainer, v, &v->unit[u], &read));
        if (read.records == 0) continue;
        MB_TRY(mb_trainer_passes_route(&trainer->passes, &read,
                                       v->picks + v->unit[u].group * trainer->objective->pick_count));
    }
done:
    return status;
}

/* Where the balance is over a whole step, it is over a whole type here, and over all. Collective. */
static mb_status share_picks(mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const int64_t n = trainer->objective->pick_count;
    if (v->picks == NULL) return MB_OK;
    memset(v->picks, 0, (size_t)((v->groups + 1) * n) * sizeof *v->picks);
    MB_TRY(mb_comm_agree(trainer->comm, route_mine(trainer, v)));
    MB_TRY(mb_comm_allreduce_i64(trainer->comm, v->picks, (v->groups + 1) * n, MB_COMM_SUM));
    for (int64_t i = 0; i < v->groups * n; i++) v->picks[v->groups * n + i % n] += v->picks[i];
done:
    return status;
}

static mb_status run_unit(mb_trainer *trainer, mb_trainer_validation *v, const unit *u, double *values)
{
    mb_status status = MB_OK;
    mb_microbatch read;
    mb_objective_terms terms[VIEWS] = {{0}};
    MB_TRY(stop_here(trainer));
    MB_TRY(read_unit(trainer, v, u, &read));
    memset(values, 0, (size_t)(VIEWS * v->terms) * sizeof *values);
    if (read.records == 0) return MB_OK;
    const mb_trainer_view views[VIEWS] = {view_of(trainer, v, &read, u->group),
                                          view_of(trainer, v, &read, v->groups)};
    status = mb_trainer_passes_validate(&trainer->passes, views, v->groups > 0 ? VIEWS : 1, terms);
    if (status != MB_OK) {
        mb_status_prefix("validation after step %lld, record %lld of %s: ", (long long)trainer->step,
                         (long long)read.sample[0], mb_shard_file_path(v->shard, 0));
        return mb_status_trace(status, __func__, __FILE__, __LINE__);
    }
    for (int64_t w = 0; w < VIEWS; w++)
        for (int64_t i = 0; i < v->terms && terms[w].count > 0; i++)
            values[w * v->terms + i] = terms[w].value[v->term[i]];
done:
    return status;
}

static mb_status run_mine(mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const int ranks = mb_comm_size(trainer->comm);
    for (int64_t u = mb_comm_rank(trainer->comm); u < v->units; u += ranks)
        MB_TRY(run_unit(trainer, v, &v->unit[u], v->values + place_of(v, ranks, u) * VIEWS * v->terms));
done:
    return status;
}

/* Every rank's values to all, added in the order of the micro-batches. Collective. */
static mb_status sum_units(const mb_trainer *trainer, mb_trainer_validation *v)
{
    mb_status status = MB_OK;
    const int ranks = mb_comm_size(trainer->comm);
    const int64_t each = VIEWS * v->terms;
    int64_t *offsets = NULL;
    MB_NEW_ARRAY(offsets, ranks + 1);
    for (int r = 0; r < ranks; r++)
        offsets[r] = (r < v->units ? place_of(v, ranks, r) : v->units) * each * (int64_t)sizeof *v->values;
    offsets[ranks] = v->units * each * (int64_t)sizeof *v->values;
    MB_TRY(mb_comm_allgather_parts(trainer->comm, v->values, offsets));
    memset(v->sums, 0, (size_t)((v->groups + 1) * v->terms) * sizeof *v->sums);
    for (int64_t u = 0; u < v->units; u++) {
        const double *values = v->values + place_of(v, ranks, u) * each;
        for (int64_t i = 0; i < v->terms; i++) {
            v->sums[v->unit[u].group * v->terms + i] += values[i];
            if (v->groups > 0) v->sums[v->groups * v->terms + i] += values[v->terms + i];
        }
    }
done:
    mb_free(offsets);
    return status;
}

/* ---- 5. metrics ---- */

static const char *name_of(const mb_trainer_validation *v, int64_t g, int64_t term)
{
    return v->names + (g * v->terms + term) * NAME_BYTES;
}

static mb_status write_line(mb_trainer *trainer, const mb_trainer_validation *v, double seconds)
{
    mb_status status = MB_OK;
    const int64_t each = v->terms, n = (v->groups + 1) * each;
    mb_metric *room = NULL;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_lease_check(trainer->folder));
    MB_NEW_ARRAY(room, n + 1);
    for (int64_t i = 0; i < n; i++)
        room[i] = (mb_metric){v->names + i * NAME_BYTES, v->group[i / each].targets > 0 ? v->sums[i] : NAN};
    room[n] = (mb_metric){"provenance/validation_seconds", seconds};
    MB_TRY(mb_metrics_write(trainer->metrics, trainer->step, room, n + 1));
    for (int64_t g = 0; g < v->groups; g++)
        MB_TRY(
            mb_str_add_format(&text, "%s%s %.4f", g > 0 ? ", " : ": ", v->group[g].name, v->sums[g * each]));
    mb_info("validation after step %lld: loss %.4f%s (%.2f s)", (long long)trainer->step,
            v->sums[v->groups * each], mb_str_text(&text), seconds);
done:
    mb_str_destroy(&text);
    mb_free(room);
    return status;
}

bool mb_trainer_validate_is_due(const mb_trainer *trainer, bool is_epoch_end)
{
    const int64_t every = trainer->options->validation_steps;
    if (trainer->validation == NULL) return false;
    if (trainer->step == 0 || trainer->step == mb_batches_steps(trainer->batches)) return true;
    return every > 0 ? trainer->step % every == 0 : is_epoch_end;
}

mb_status mb_trainer_validate_run(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_validation *v = trainer->validation;
    const double began = mb_clock_seconds();
    if (trainer->objective->begin_step != NULL)
        trainer->objective->begin_step(trainer->objective, trainer->lm, trainer->step);
    MB_TRY(share_picks(trainer, v));
    MB_TRY(mb_comm_agree(trainer->comm, run_mine(trainer, v)));
    MB_TRY(sum_units(trainer, v));
    const double seconds = mb_clock_seconds() - began;
    if (seconds > trainer->validation_seconds) trainer->validation_seconds = seconds;
    if (mb_comm_rank(trainer->comm) == 0) status = write_line(trainer, v, seconds);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_trainer_weights_best(trainer, v->sums[v->groups * v->terms]));
done:
    return status;
}

/* Does the file of rank 0 have a validation of this step? */
static mb_status has_line(const mb_trainer *trainer, const mb_trainer_validation *v, int64_t *out_has)
{
    mb_status status = MB_OK;
    int64_t rows = 0, *steps = NULL;
    double *values = NULL;
    const char *name = name_of(v, v->groups, 0);
    MB_TRY(mb_metrics_read(trainer->metrics, &name, 1, &rows, &steps, &values));
    *out_has = rows > 0 && steps[rows - 1] == trainer->step;
done:
    mb_free(steps);
    mb_free(values);
    return status;
}

mb_status mb_trainer_validate_catch_up(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    int64_t has = 0;
    const int64_t before = trainer->step - 1;
    const bool is_end = before >= 0 && mb_batches_step_get(trainer->batches, before).is_epoch_end;
    if (!mb_trainer_validate_is_due(trainer, is_end)) return MB_OK;
    if (mb_comm_rank(trainer->comm) == 0) status = has_line(trainer, trainer->validation, &has);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_comm_bcast(trainer->comm, &has, sizeof has, 0));
    if (!has) MB_TRY(mb_trainer_validate_run(trainer));
done:
    return status;
}

/* ---- 6. the end of a run ---- */

static void show_term(const mb_trainer_validation *v, const mb_trainer_report *report, const char *name,
                      int64_t term)
{
    mb_info("  %-18s %9s %11s %11s %9s", name, "records", "first", "last", "change");
    for (int64_t g = 0; g <= v->groups; g++) {
        const mb_trainer_validated *one = &report->validated[g * v->terms + term];
        mb_info("    %-16s %9lld %11.4f %11.4f %+9.4f", g < v->groups ? v->group[g].name : "all",
                (long long)v->group[g].records, one->first, one->last, one->last - one->first);
    }
}

/* Loss by type, and of preferences how many are right. */
static void show_table(const mb_trainer *trainer, const mb_trainer_report *report)
{
    const mb_trainer_validation *v = trainer->validation;
    const mb_trainer_validated *all = &report->validated[v->groups * v->terms];
    mb_info("validation: lowest loss over all %.4f after step %lld", all->best, (long long)report->best_step);
    for (int64_t i = 0; i < v->terms; i++) {
        const char *name = trainer->objective->term[v->term[i]];
        if (i == 0 || mb_str_equal(name, "rewards/accuracies")) show_term(v, report, name, i);
    }
}

mb_status mb_trainer_validate_report(const mb_trainer *trainer, mb_trainer_report *report)
{
    mb_status status = MB_OK;
    const mb_trainer_validation *v = trainer->validation;
    const char **names = NULL;
    int64_t rows = 0, *steps = NULL;
    double *values = NULL;
    if (v == NULL) return MB_OK;
    const int64_t n = (v->groups + 1) * v->terms;
    MB_NEW_ARRAY(names, n + 1);
    names[0] = name_of(v, v->groups, 0);
    for (int64_t i = 0; i < n; i++) names[i + 1] = v->names + i * NAME_BYTES;
    MB_TRY(mb_metrics_read(trainer->metrics, names, n + 1, &rows, &steps, &values));
    if (rows == 0) goto done;
    MB_NEW_ARRAY(report->validated, n);
    report->validated_count = n;
    int64_t best = 0;
    for (int64_t r = 1; r < rows; r++)
        if (values[r * (n + 1)] < values[best * (n + 1)]) best = r;
    report->best_step = steps[best];
    for (int64_t i = 0; i < n; i++) {
        mb_trainer_validated *one = &report->validated[i];
        *one = (mb_trainer_validated){.first = values[i + 1],
                                      .best = values[best * (n + 1) + i + 1],
                                      .last = values[(rows - 1) * (n + 1) + i + 1]};
        snprintf(one->name, sizeof one->name, "%s", names[i + 1]);
    }
    show_table(trainer, report);
done:
    mb_free(names);
    mb_free(steps);
    mb_free(values);
    return status;
}
