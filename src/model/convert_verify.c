/* convert_verify: a conversion proven: tensors byte by byte, logits side by side.
 *
 * 1. tensors
 * 2. one model on the probe tokens
 * 3. the verdict
 */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "model/convert.h"
#include "model/convert_folder.h"
#include "model/lm_state.h"
#include "model/params_source.h"

#define VERIFY_SEGMENT 256
#define VERIFY_TOKENS  64

/* ---- 1. tensors ---- */

/* The same bytes, or (gates) the same rows as far as both have them. */
static bool verify_is_same(const char *name, const mb_params_source *a, const mb_params_source *b)
{
    const int64_t n = a->count < b->count ? a->count : b->count;
    if (a->dtype != b->dtype) return false;
    if (a->count != b->count && !mb_convert_folder_is_gate(name) && !mb_convert_folder_is_bias(name))
        return false;
    return memcmp(a->data, b->data, (size_t)n * mb_dtype_bytes(a->dtype)) == 0;
}

/* A bias of nothing, which a target need not have. */
static bool verify_is_void(const mb_param *param, const mb_params_source *source)
{
    const char *bytes = source->data;
    bool any = false;
    for (size_t i = 0; i < (size_t)source->count * mb_dtype_bytes(source->dtype); i++) any |= bytes[i] != 0;
    return param->is_carried && !any;
}

/* A folder's parameters by the names of its architecture, and where they lie. */
typedef struct verify_folder {
    mb_arch arch;
    mb_params *params;
    mb_safetensors *file;
} verify_folder;

static mb_status verify_folder_open(const char *path, verify_folder *f)
{
    mb_status status = MB_OK;
    MB_TRY(mb_arch_read(path, &f->arch));
    MB_TRY(mb_params_create(&f->arch, NULL, &f->params));
    MB_TRY(mb_params_choose(f->params, "none"));
    MB_TRY(mb_safetensors_open(path, &f->file));
done:
    return status;
}

static void verify_folder_reset(verify_folder *f)
{
    mb_safetensors_close(&f->file);
    mb_params_destroy(&f->params);
    mb_arch_reset(&f->arch);
}

static mb_status verify_tensors(const char *source, const char *target, mb_convert_report *report,
                                char *first, size_t bytes)
{
    mb_status status = MB_OK;
    verify_folder a = {0}, b = {0};
    mb_params_source x, y;
    MB_TRY(verify_folder_open(source, &a));
    MB_TRY(verify_folder_open(target, &b));
    report->tensors = mb_params_count(b.params);
    for (int64_t i = 0; i < mb_params_count(a.params); i++) {
        const mb_param *p = mb_params_at(a.params, i), *q = mb_params_find(b.params, p->name);
        MB_TRY(mb_params_source_find(a.file, source, p, &x));
        if (q != NULL) {
            MB_TRY(mb_params_source_find(b.file, target, q, &y));
            if (verify_is_same(p->name, &x, &y)) {
                report->identical++;
                continue;
            }
        } else if (verify_is_void(p, &x)) {
            continue;
        }
        if (report->changed++ == 0) snprintf(first, bytes, "%s", p->name);
    }
    for (int64_t i = 0; i < mb_params_count(b.params); i++)
        report->added += mb_params_find(a.params, mb_params_at(b.params, i)->name) == NULL;
done:
    verify_folder_reset(&a);
    verify_folder_reset(&b);
    return status;
}

/* A merged matrix of the target must be W + scale B A rounded to the dtype it is stored in: within one unit
 * in the last place of its largest values. Logits cannot say this for 16-bit targets, whose rounding alone
 * moves them. */
static mb_status verify_merged(mb_ops *ops, const char *source, const char *adapter, const char *target)
{
    mb_status status = MB_OK;
    mb_lm *a = NULL, *b = NULL;
    float *xs = NULL, *ys = NULL;
    const mb_lm_options first = {.path = source, .opt_adapter = adapter, .train = "none"};
    const mb_lm_options second = {.path = target, .train = "none"};
    MB_TRY(mb_lm_open(ops, &first, &a));
    MB_TRY(mb_lora_merge(&a->lora, ops, a->params));
    MB_TRY(mb_lm_open(ops, &second, &b));
    const mb_dtype dtype = b->arch.stored_dtype;
    const double unit = dtype == MB_BF16 ? 1.0 / 128 : dtype == MB_F16 ? 1.0 / 1024 : 1e-6;
    for (int64_t i = 0; i < mb_params_count(b->params); i++) {
        const mb_param *y = mb_params_at(b->params, i), *x = mb_params_find(a->params, y->name);
        const int64_t n = mb_tensor_count(&y->value);
        if (x == NULL) continue;
        MB_FREE(xs);
        MB_FREE(ys);
        MB_NEW_ARRAY(xs, n);
        MB_NEW_ARRAY(ys, n);
        MB_TRY(mb_params_get_f32(x, xs));
        MB_TRY(mb_params_get_f32(y, ys));
        for (int64_t j = 0; j < n; j++)
            if (!(fabs((double)xs[j] - ys[j]) <= unit * (fabs((double)xs[j]) + 1e-3)))
                MB_RAISE(MB_EDATA, "%s: tensor %s, element %lld is %g, %s with %s merged gives %g", target,
                         y->name, (long long)j, (double)ys[j], source, adapter, (double)xs[j]);
    }
done:
    mb_free(xs);
    mb_free(ys);
    mb_lm_destroy(&a);
    mb_lm_destroy(&b);
    return status;
}

/* ---- 2. one model on the probe tokens ---- */

typedef struct verify_probe {
    int64_t tokens, segments, rows;
    int32_t *ids, *positions, *offsets, *head_row, *targets;
} verify_probe;

static void verify_probe_reset(verify_probe *p)
{
    mb_free(p->ids);
    mb_free(p->positions);
    mb_free(p->offsets);
    mb_free(p->head_row);
    mb_free(p->targets);
}

static mb_status verify_probe_fill(verify_probe *p, const mb_arch *arch, const int32_t *opt_ids, int64_t n)
{
    mb_status status = MB_OK;
    const int64_t length = arch->max_positions < VERIFY_SEGMENT ? arch->max_positions : VERIFY_SEGMENT;
    p->tokens = n > 0 ? n : VERIFY_TOKENS;
    p->segments = (p->tokens + length - 1) / length;
    MB_NEW_ARRAY(p->ids, p->tokens);
    MB_NEW_ARRAY(p->positions, p->tokens);
    MB_NEW_ARRAY(p->head_row, p->tokens);
    MB_NEW_ARRAY(p->targets, p->tokens);
    MB_NEW_ARRAY(p->offsets, p->segments + 1);
    for (int64_t t = 0; t < p->tokens; t++) {
        const uint64_t draw = mb_rng_below(1, MB_RNG_DATA, 0, (uint64_t)t, (uint64_t)arch->vocab);
        p->ids[t] = opt_ids != NULL ? opt_ids[t] : (int32_t)draw;
        p->positions[t] = (int32_t)(t % length);
    }
    for (int64_t s = 0; s <= p->segments; s++)
        p->offsets[s] = (int32_t)(s * length < p->tokens ? s * length : p->tokens);
    for (int64_t t = 0; t + 1 < p->tokens; t++) {
        if ((t + 1) % length == 0) continue;
        p->head_row[p->rows] = (int32_t)t;
        p->targets[p->rows++] = p->ids[t + 1];
    }
done:
    return status;
}

/* Mean softmax share of the trash columns over tokens and layers, as routing sees them. */
static double verify_trash_mass(const mb_arch *arch, const mb_lm_output *out, int64_t tokens)
{
    const int64_t gates = mb_arch_gates(arch), good = mb_arch_good(arch);
    double sum = 0;
    for (int64_t l = 0; l < out->routers; l++)
        for (int64_t t = 0; t < tokens; t++) {
            const float *z = out->router_logits[l] + t * gates;
            double most = -INFINITY, all = 0, trash = 0;
            for (int64_t e = 0; e < gates; e++)
                most = fmax(most, z[e] + (e >= arch->experts ? arch->trash_logit_bias : 0));
            for (int64_t e = 0; e < gates; e++) {
                const double p = exp(z[e] + (e >= arch->experts ? arch->trash_logit_bias : 0) - most);
                all += p;
                if (e >= good) trash += p;
            }
            sum += trash / all;
        }
    return good < gates && out->routers > 0 ? sum / (double)(out->routers * tokens) : 0;
}

/* Logits [rows, V] (new block), mean loss, trash mass. */
static mb_status verify_run(mb_lm *lm, const verify_probe *p, float **out_logits, double *out_loss,
                            double *out_mass)
{
    mb_status status = MB_OK;
    mb_lm_pass *pass = NULL;
    mb_lm_output out;
    float *logits = NULL;
    const mb_lm_batch batch = {.tokens = p->tokens,
                               .segments = p->segments,
                               .ids = p->ids,
                               .positions = p->positions,
                               .offsets = p->offsets,
                               .head_rows = p->rows,
                               .head_row = p->head_row,
                               .targets = p->targets};
    const mb_lm_want want = {.logits = true,
                             .no_routing = mb_arch_good(&lm->arch) == mb_arch_gates(&lm->arch)};
    double loss = 0;
    MB_TRY(mb_lm_pass_create(lm, &pass));
    MB_TRY(mb_lm_forward(pass, &batch, &want, &out));
    MB_NEW_ARRAY(logits, p->rows * lm->arch.vocab);
    memcpy(logits, out.logits, (size_t)(p->rows * lm->arch.vocab) * sizeof *logits);
    for (int64_t i = 0; i < p->rows; i++) loss += out.token_loss[i];
    *out_loss = loss / (double)p->rows;
    *out_mass = verify_trash_mass(&lm->arch, &out, p->tokens);
    *out_logits = logits;
    logits = NULL;
done:
    mb_free(logits);
    mb_lm_pass_destroy(&pass);
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

/* ---- 3. the verdict ---- */

static mb_status verify_logits(mb_ops *ops, const char *source, const char *opt_adapter, const char *target,
                               const int32_t *opt_ids, int64_t n, mb_convert_report *report,
                               bool *out_is_delta)
{
    mb_status status = MB_OK;
    mb_lm *a = NULL, *b = NULL;
    verify_probe probe = {0};
    float *before = NULL, *after = NULL;
    double mass;
    const mb_lm_options first = {.path = source, .opt_adapter = opt_adapter, .train = "none"};
    const mb_lm_options second = {.path = target, .train = "none"};
    MB_TRY(mb_lm_open(ops, &first, &a));
    *out_is_delta = strcmp(a->base, a->path) != 0;
    const int64_t vocab = a->arch.vocab;
    MB_TRY(verify_probe_fill(&probe, &a->arch, opt_ids, n));
    if (probe.rows == 0) MB_RAISE(MB_EUSAGE, "verify: at least two probe tokens are needed");
    MB_TRY(verify_run(a, &probe, &before, &report->loss_before, &mass));
    mb_lm_destroy(&a);
    MB_TRY(mb_lm_open(ops, &second, &b));
    report->max_logit_difference = NAN;
    MB_TRY(verify_run(b, &probe, &after, &report->loss_after, &report->mean_trash_mass));
    if (b->arch.vocab == vocab)
        report->max_logit_difference = verify_difference(before, after, probe.rows * vocab);
done:
    mb_lm_destroy(&a);
    mb_lm_destroy(&b);
    mb_free(before);
    mb_free(after);
    verify_probe_reset(&probe);
    return status;
}

mb_status mb_convert_verify(mb_ops *ops, const char *source, const char *opt_adapter, const char *target,
                            const int32_t *opt_ids, int64_t n, bool expect_equal, double tolerance,
                            mb_convert_report *out_report)
{
    mb_status status = MB_OK;
    mb_convert_report report = {0};
    char changed[200] = "";
    bool is_delta = false;
    MB_TRY(verify_logits(ops, source, opt_adapter, target, opt_ids, n, &report, &is_delta));
    if (!is_delta) MB_TRY(verify_tensors(source, target, &report, changed, sizeof changed));
    if (report.changed > 0 && opt_adapter == NULL)
        MB_RAISE(MB_EDATA, "%s: %lld tensors of %s changed in the conversion (%s ...)", target,
                 (long long)report.changed, source, changed);
    if (opt_adapter != NULL)
        MB_TRY(verify_merged(ops, source, opt_adapter, target));
    else if (expect_equal && !(report.max_logit_difference <= tolerance))
        MB_RAISE(MB_EDATA, "%s: logits differ from those of %s by %.3g of the largest, more than %.3g",
                 target, source, report.max_logit_difference, tolerance);
    *out_report = report;
done:
    return status;
}
