/* convert_upcycle_verify: an upcycled model proven against what it was made of.
 *
 * 1. one tensor of the result
 * 2. every tensor of the source
 * 3. probe tokens
 * 4. logits side by side
 * 5. the verdict, and by what upcycle.json says
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/rng.h"
#include "model/convert_upcycle_stream.h"
#include "model/convert_upcycle_tensor.h"

#define VERIFY_TOKENS  64
#define VERIFY_SEGMENT 32
/* Logits that must be equal differ by rounding. How much of it a model makes is measured: the source again,
 * its residual stream changed by a unit in the last place before each layer. */
#define VERIFY_LIMIT    1e-6
#define VERIFY_ROUNDING 4                     /* times what that does */
#define VERIFY_UNIT     1.1920928955078125e-7 /* 2^-23 */

/* ---- 1. one tensor of the result ---- */

/* Stored bytes against those of the source (or sibling) itself, by indices of its own. */
static bool verify_is_part(const mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                           const mb_params_source *whole, const mb_params_source *part)
{
    const int64_t g = t->kind == MB_CONVERT_UPCYCLE_EXPERT ? set->plan.shards : 1;
    const size_t size = mb_dtype_bytes(whole->dtype), n = (size_t)part->count * size;
    const char *from = whole->data, *to = part->data;
    if (whole->dtype != part->dtype || part->count * g != whole->count) return false;
    if (g == 1 || t->part < 2) return memcmp(from + (size_t)t->shard * n, to, n) == 0;
    const int64_t rows = set->plan.arch.width;
    const size_t width = n / (size_t)rows;
    for (int64_t r = 0; r < rows; r++)
        if (memcmp(from + ((size_t)r * (size_t)g + (size_t)t->shard) * width, to + (size_t)r * width,
                   width) != 0)
            return false;
    return true;
}

/* Rows of a gate: finite; equal inside a group and different between groups, or zero. */
static mb_status verify_gate(const mb_convert_upcycle_set *set, const mb_params_source *part,
                             const char *target, const char *name)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_plan *plan = &set->plan;
    const int64_t width = plan->arch.width, experts = plan->arch.experts;
    const size_t row = (size_t)width * mb_dtype_bytes(part->dtype);
    const bool is_zero = strcmp(set->options->router_init, "zero") == 0;
    const char *rows = part->data;
    float *values = NULL;
    MB_NEW_ARRAY(values, part->count);
    MB_TRY(mb_params_source_read(part, target, values));
    for (int64_t e = 0; e < experts; e++) {
        const int64_t first = plan->virtual_groups ? e / plan->shards * plan->shards : e;
        if (memcmp(rows + (size_t)first * row, rows + (size_t)e * row, row) != 0)
            MB_RAISE(MB_EDATA, "%s: tensor %s: rows %lld and %lld of one virtual group differ", target, name,
                     (long long)first, (long long)e);
        double sum = 0;
        for (int64_t i = 0; i < width; i++) sum += fabs((double)values[e * width + i]);
        if ((sum == 0) != is_zero)
            MB_RAISE(MB_EDATA, "%s: tensor %s: row %lld is %s", target, name, (long long)e,
                     is_zero ? "not zero" : "zero");
    }
done:
    mb_free(values);
    return status;
}

/* A tensor whose values are not stored anywhere: made again, and the same bytes. */
static mb_status verify_again(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                              mb_convert_upcycle_work *work, const mb_params_source *part, bool *out_same)
{
    mb_status status = MB_OK;
    const void *bytes;
    size_t n;
    MB_TRY(mb_convert_upcycle_tensor_read(set, t, work, &bytes, &n));
    *out_same = t->dtype == part->dtype && n == (size_t)part->count * mb_dtype_bytes(part->dtype) &&
                memcmp(bytes, part->data, n) == 0;
done:
    return status;
}

static void verify_count(const mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                         mb_convert_upcycle_report *r)
{
    r->tensors++;
    if (t->kind == MB_CONVERT_UPCYCLE_ROUTER)
        r->added++;
    else if (t->is_averaged)
        r->averaged++;
    else if (t->is_computed)
        r->computed++;
    else if (t->kind == MB_CONVERT_UPCYCLE_SAME)
        r->identical++;
    else if (set->plan.shards == 1)
        r->copied++;
    else
        r->sliced++;
}

static mb_status verify_tensor(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *t,
                               const mb_safetensors *file, const char *target, mb_convert_upcycle_work *work,
                               mb_convert_upcycle_report *report)
{
    mb_status status = MB_OK;
    mb_params_source whole, part;
    bool is_same = true;
    const mb_convert_upcycle_model *giver = &set->models[t->giver];
    const bool is_unknown =
        t->kind == MB_CONVERT_UPCYCLE_ROUTER && strcmp(set->options->router_init, "prompts") == 0;
    MB_TRY(mb_params_source_find(file, target, t->target, &part));
    MB_TRY(mb_params_source_find(giver->folder.source_file, giver->path, t->source, &whole));
    if (t->kind == MB_CONVERT_UPCYCLE_ROUTER) MB_TRY(verify_gate(set, &part, target, t->target->name));
    if (t->is_computed && !is_unknown)
        MB_TRY(verify_again(set, t, work, &part, &is_same));
    else if (!t->is_computed)
        is_same = verify_is_part(set, t, &whole, &part);
    if (!is_same)
        MB_RAISE(MB_EDATA, "%s: tensor %s is not what %s of %s and the options make it", target,
                 t->target->name, t->source->name, giver->path);
    verify_count(set, t, report);
done:
    return status;
}

/* ---- 2. every tensor of the source ---- */

/* Each must be there whole: once, and a dense FFN of a converted layer r times. used: elements that went
 * into the result, of each tensor of the source. */
static mb_status verify_used(const mb_convert_upcycle_set *set, const int64_t *used, const char *target,
                             mb_convert_upcycle_report *report)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < mb_params_count(set->source); i++) {
        const mb_param *p = mb_params_at(set->source, i);
        const int64_t n = mb_tensor_count(&p->value);
        const bool is_expert = mb_params_find(set->target, p->name) == NULL;
        if (used[i] != n * (is_expert ? set->plan.groups : 1))
            MB_RAISE(MB_EDATA, "%s: of tensor %s of %s %lld elements went into it, not %lld", target, p->name,
                     set->models[0].path, (long long)used[i],
                     (long long)(n * (is_expert ? set->plan.groups : 1)));
    }
    report->copies = set->plan.groups;
done:
    return status;
}

static mb_status verify_tensors(mb_convert_upcycle_set *set, const mb_safetensors *file, const char *target,
                                mb_convert_upcycle_report *report)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_work work = {0};
    mb_convert_upcycle_tensor t;
    int64_t *used = NULL;
    MB_NEW_ARRAY(used, mb_params_count(set->source));
    for (int64_t i = 0; i < mb_params_count(set->target); i++) {
        MB_TRY(mb_convert_upcycle_tensor_find(set, i, &t));
        MB_TRY(verify_tensor(set, &t, file, target, &work, report));
        if (t.kind != MB_CONVERT_UPCYCLE_ROUTER)
            used[t.source - mb_params_at(set->source, 0)] += mb_tensor_count(&t.target->value);
    }
    MB_TRY(verify_used(set, used, target, report));
    for (int64_t i = 0; i < mb_safetensors_count(file); i++)
        if (!mb_params_source_is_known(set->target, mb_safetensors_name(file, i)))
            MB_RAISE(MB_EDATA, "%s: tensor %s is no part of the model", target, mb_safetensors_name(file, i));
done:
    mb_free(used);
    mb_convert_upcycle_tensor_reset(&work);
    return status;
}

/* ---- 3. probe tokens ---- */

typedef struct verify_probe {
    int32_t ids[VERIFY_TOKENS], positions[VERIFY_TOKENS], offsets[VERIFY_TOKENS + 1], every[VERIFY_TOKENS];
} verify_probe;

static void verify_probe_fill(const mb_arch *arch, verify_probe *p, mb_convert_upcycle_rows *rows)
{
    const int64_t length = arch->max_positions < VERIFY_SEGMENT ? arch->max_positions : VERIFY_SEGMENT;
    rows->tokens = VERIFY_TOKENS;
    rows->segments = (VERIFY_TOKENS + length - 1) / length;
    for (int64_t t = 0; t < VERIFY_TOKENS; t++) {
        p->ids[t] = (int32_t)mb_rng_below(1, MB_RNG_DATA, 0, (uint64_t)t, (uint64_t)arch->vocab);
        p->positions[t] = (int32_t)(t % length);
        p->every[t] = (int32_t)t;
    }
    for (int64_t s = 0; s <= rows->segments; s++)
        p->offsets[s] = (int32_t)(s * length < VERIFY_TOKENS ? s * length : VERIFY_TOKENS);
    rows->ids = p->ids;
    rows->positions = p->positions;
    rows->offsets = p->offsets;
}

/* ---- 4. logits side by side ---- */

static void verify_shake(mb_convert_upcycle_rows *rows, int64_t layer, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const uint64_t bits = mb_rng_u64(1, MB_RNG_DATA, (uint32_t)layer + 1, (uint64_t)i);
        rows->x[i] = (float)((double)rows->x[i] * (1 + ((bits & 1) != 0 ? VERIFY_UNIT : -VERIFY_UNIT)));
    }
}

/* Logits [VERIFY_TOKENS, V] of one model. */
static mb_status verify_run(mb_ops *ops, const char *path, const mb_arch *arch, const mb_safetensors *file,
                            bool is_shaken, float *logits)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_stream stream = {0};
    mb_convert_upcycle_rows rows = {0};
    verify_probe probe;
    MB_NEW_ARRAY(rows.x, VERIFY_TOKENS * arch->width);
    verify_probe_fill(arch, &probe, &rows);
    MB_TRY(mb_convert_upcycle_stream_open(&stream, ops, path, arch, file, VERIFY_SEGMENT));
    MB_TRY(mb_convert_upcycle_stream_embed(&stream, &rows));
    for (int64_t i = 0; i < arch->layers; i++) {
        if (is_shaken) verify_shake(&rows, i, VERIFY_TOKENS * arch->width);
        MB_TRY(mb_convert_upcycle_stream_layer(&stream, &rows, i, NULL));
    }
    MB_TRY(mb_convert_upcycle_stream_head(&stream, &rows, rows.tokens, probe.every, logits));
done:
    mb_free(rows.x);
    mb_convert_upcycle_stream_reset(&stream);
    return status;
}

static double verify_difference(const float *a, const float *b, int64_t n)
{
    double most = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
        size = fmax(size, fabs((double)a[i]));
    }
    return size > 0 ? most / size : most;
}

static mb_status verify_logits(mb_ops *ops, mb_convert_upcycle_set *set, const mb_arch *made,
                               const mb_safetensors *file, const char *target,
                               mb_convert_upcycle_report *report)
{
    mb_status status = MB_OK;
    const mb_convert_upcycle_model *source = &set->models[0];
    const mb_arch *dense = &source->folder.arch;
    const int64_t n = VERIFY_TOKENS * dense->vocab;
    float *before = NULL, *after = NULL;
    MB_NEW_ARRAY(before, n);
    MB_NEW_ARRAY(after, n);
    MB_TRY(verify_run(ops, source->path, dense, source->folder.source_file, false, before));
    MB_TRY(verify_run(ops, target, made, file, false, after));
    report->max_logit_difference = verify_difference(before, after, n);
    MB_TRY(verify_run(ops, source->path, dense, source->folder.source_file, true, after));
    report->limit = fmax(VERIFY_LIMIT, VERIFY_ROUNDING * verify_difference(before, after, n));
done:
    mb_free(before);
    mb_free(after);
    return status;
}

/* ---- 5. the verdict ---- */

static mb_status verify_arch(const mb_arch *made, const mb_arch *planned, const char *target)
{
    mb_status status = MB_OK;
    mb_arch a = *made, b = *planned;
    a.config = b.config = NULL;
    if (memcmp(&a, &b, sizeof a) != 0)
        MB_RAISE(MB_EDATA, "%s/config.json does not say what the options make of the source", target);
done:
    return status;
}

mb_status mb_convert_upcycle_verify(mb_ops *ops, const char *source, const char *target,
                                    const mb_convert_upcycle_options *options,
                                    mb_convert_upcycle_report *out_report)
{
    mb_status status = MB_OK;
    mb_convert_upcycle_set set = {0};
    mb_arch made = {0};
    mb_safetensors *file = NULL;
    mb_convert_upcycle_report report = {0};
    MB_TRY(mb_convert_upcycle_set_open(&set, source, options));
    MB_TRY(mb_arch_read(target, &made));
    MB_TRY(verify_arch(&made, &set.plan.arch, target));
    MB_TRY(mb_safetensors_open(target, &file));
    MB_TRY(verify_tensors(&set, file, target, &report));
    MB_TRY(verify_logits(ops, &set, &made, file, target, &report));
    report.is_preserved = report.max_logit_difference <= report.limit;
    report.is_exact = set.plan.is_exact;
    if (report.is_exact && !report.is_preserved)
        MB_RAISE(MB_EDATA,
                 "%s: logits differ from those of %s by %.3g of the largest, more than %.3g, though these "
                 "options preserve the function",
                 target, source, report.max_logit_difference, report.limit);
    if (!isfinite(report.max_logit_difference))
        MB_RAISE(MB_ENUMERIC, "%s: its logits are not finite", target);
    *out_report = report;
done:
    mb_safetensors_close(&file);
    mb_arch_reset(&made);
    mb_convert_upcycle_set_reset(&set);
    return status;
}

/* Options as upcycle.json has them; its strings are borrowed. */
static mb_status verify_options(const json_t *json, const char *where, mb_convert_upcycle_options *o,
                                int64_t *out_siblings)
{
    mb_status status = MB_OK;
    const char *init, *scaling, *dtype, *layers = NULL;
    int64_t seed;
    MB_TRY(mb_json_get_int(json, "experts", where, &o->experts));
    MB_TRY(mb_json_get_int(json, "experts_per_token", where, &o->picks));
    MB_TRY(mb_json_get_int(json, "granularity", where, &o->granularity));
    MB_TRY(mb_json_get_string(json, "router_init", where, &init));
    MB_TRY(mb_json_get_real(json, "router_init_std", where, &o->router_init_std));
    MB_TRY(mb_json_get_real(json, "prompts_margin", where, &o->prompts_margin));
    MB_TRY(mb_json_get_bool(json, "virtual_groups", where, &o->virtual_groups));
    MB_TRY(mb_json_get_string(json, "scaling", where, &scaling));
    MB_TRY(mb_json_get_bool(json, "norm_topk_prob", where, &o->normalise));
    MB_TRY(mb_json_get_real(json, "noise", where, &o->noise));
    MB_TRY(mb_json_get_int(json, "siblings", where, out_siblings));
    MB_TRY(mb_json_get_bool(json, "source_is_sibling", where, &o->source_is_sibling));
    MB_TRY(mb_json_opt_string(json, "layers", where, &layers));
    MB_TRY(mb_json_get_string(json, "dtype", where, &dtype));
    MB_TRY(mb_json_get_int(json, "seed", where, &seed));
    o->router_init = (char *)init;
    o->scaling = (char *)scaling;
    o->layers = (char *)layers;
    o->dtype = (char *)dtype;
    o->prompts = strcmp(init, "prompts") == 0 ? (char *)init : NULL; /* not read again */
    o->seed = (uint64_t)seed;
done:
    return status;
}

mb_status mb_convert_upcycle_verify_folder(mb_ops *ops, const char *source, const char *target,
                                           char *opt_siblings, bool *out_is_upcycled,
                                           mb_convert_upcycle_report *out_report)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    mb_convert_upcycle_options options = {.siblings = opt_siblings};
    int64_t siblings = 0;
    char *path = mb_files_join(target, "upcycle.json");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", target);
    const bool is_upcycled = mb_files_is_file(path);
    if (is_upcycled) {
        MB_TRY(mb_json_read(path, &json));
        MB_TRY(verify_options(json, path, &options, &siblings));
        if ((siblings > 0) != (opt_siblings != NULL && opt_siblings[0] != 0))
            MB_RAISE(MB_EUSAGE,
                     "%s was made of %lld siblings; name them, in their order, by convert.siblings", target,
                     (long long)siblings);
        MB_TRY(mb_convert_upcycle_verify(ops, source, target, &options, out_report));
    }
    *out_is_upcycled = is_upcycled;
done:
    json_decref(json);
    mb_free(path);
    return status;
}
