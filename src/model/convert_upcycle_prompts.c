/* convert_upcycle_prompts: prompts read, run through the source layer by layer, and made into gates.
 *
 * 1. a growing list of prompts
 * 2. files
 * 3. packed rows
 * 4. means at a layer, rows of its gate
 * 5. the whole
 */
#include "model/convert_upcycle_prompts.h"

#include <math.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "base/option.h"
#include "model/convert_upcycle_stream.h"
#include "text/records.h"
#include "text/tokenizer.h"

#define PROMPTS_LONGEST 1024  /* tokens of one; the rest is cut */
#define PROMPTS_TOKENS  65536 /* of all: their hidden states are kept */
#define PROMPTS_RECORD  ((int64_t)1 << 24)

/* ---- 1. a growing list ---- */

typedef struct prompts_list {
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    int64_t experts, longest, cut;
    mb_ids ids;                          /* of all, one after another */
    mb_ids ends, expert, negative, skip; /* of each: where it ends, whose, 1 when negative, rows left out */
    int64_t *positive;                   /* [experts] prompts of each */
} prompts_list;

static void prompts_reset(prompts_list *p)
{
    mb_tokenizer_scratch_destroy(&p->scratch);
    mb_tokenizer_close(&p->tokenizer);
    mb_ids_destroy(&p->ids);
    mb_ids_destroy(&p->ends);
    mb_ids_destroy(&p->expert);
    mb_ids_destroy(&p->negative);
    mb_ids_destroy(&p->skip);
    mb_free(p->positive);
}

static mb_status prompts_add(prompts_list *p, const char *text, size_t n, int64_t expert, bool is_negative,
                             const char *where)
{
    mb_status status = MB_OK;
    const int64_t begin = p->ids.count;
    MB_TRY(mb_tokenizer_encode(p->tokenizer, p->scratch, text, n, true, &p->ids));
    if (p->ids.count == begin) MB_RAISE(MB_EDATA, "%s: the prompt has no tokens", where);
    if (p->ids.count - begin > p->longest) {
        p->ids.count = begin + p->longest;
        p->cut++;
    }
    if (p->ids.count > PROMPTS_TOKENS)
        MB_RAISE(MB_EUSAGE,
                 "%s: the prompts have more than %d tokens together; a few hundred for each expert "
                 "are enough",
                 where, PROMPTS_TOKENS);
    const bool has_bos = p->ids.count - begin > 1 && mb_tokenizer_bos(p->tokenizer) == p->ids.data[begin];
    MB_TRY(mb_ids_append(&p->ends, (uint32_t)p->ids.count));
    MB_TRY(mb_ids_append(&p->expert, (uint32_t)expert));
    MB_TRY(mb_ids_append(&p->negative, is_negative));
    MB_TRY(mb_ids_append(&p->skip, has_bos));
    if (!is_negative) p->positive[expert]++;
done:
    return status;
}

/* ---- 2. files ---- */

static mb_status prompts_record(prompts_list *p, const mb_record *record, const char *path)
{
    mb_status status = MB_OK;
    char where[512];
    int64_t expert = -1;
    const char *text = NULL;
    bool is_negative = false;
    snprintf(where, sizeof where, "%s:%lld", path, (long long)record->line);
    if (record->problem != NULL) MB_RAISE(MB_EDATA, "%s: %s", path, record->problem);
    MB_TRY(mb_json_get_int(record->json, "expert", where, &expert));
    MB_TRY(mb_json_opt_bool(record->json, "negative", where, &is_negative));
    MB_TRY(mb_json_opt_string(record->json, "prompt", where, &text));
    if (text == NULL) MB_TRY(mb_json_get_string(record->json, "text", where, &text));
    if (expert < 0 || expert >= p->experts)
        MB_RAISE(MB_EDATA, "%s: expert %lld; there are 0 to %lld", where, (long long)expert,
                 (long long)p->experts - 1);
    MB_TRY(prompts_add(p, text, strlen(text), expert, is_negative, where));
done:
    return status;
}

static mb_status prompts_records(prompts_list *p, const char *path)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    MB_TRY(mb_records_open(path, PROMPTS_RECORD, &records));
    for (;;) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        MB_TRY(prompts_record(p, &record, path));
    }
done:
    mb_records_close(&records);
    return status;
}

static mb_status prompts_lines(prompts_list *p, const char *path, int64_t expert)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char where[512];
    int64_t line = 0;
    MB_TRY(mb_files_read(path, PROMPTS_RECORD, &text));
    for (const char *at = mb_str_text(&text), *end; *at != 0; at = *end != 0 ? end + 1 : end) {
        end = at + strcspn(at, "\n");
        snprintf(where, sizeof where, "%s:%lld", path, (long long)++line);
        const size_t n = (size_t)(end - at) - (end > at && end[-1] == '\r');
        if (n > 0) MB_TRY(prompts_add(p, at, n, expert, false, where));
    }
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status prompts_read(prompts_list *p, const char *list, bool is_groups)
{
    mb_status status = MB_OK;
    char **items = NULL;
    int64_t n = 0;
    const char *name = is_groups ? "group" : "expert";
    MB_TRY(mb_option_list_split(list, &items, &n));
    if (n != 1 && n != p->experts)
        MB_RAISE(MB_EUSAGE,
                 "convert.prompts: %lld files for %lld %ss; give one of records, or one text file "
                 "for each",
                 (long long)n, (long long)p->experts, name);
    for (int64_t i = 0; i < n; i++)
        MB_TRY(n == 1 ? prompts_records(p, items[0]) : prompts_lines(p, items[i], i));
    for (int64_t e = 0; e < p->experts; e++)
        if (p->positive[e] == 0)
            MB_RAISE(MB_EDATA, "%s: %s %lld has no prompt; every %s needs one", n == 1 ? items[0] : items[e],
                     name, (long long)e, name);
    if (p->cut > 0)
        mb_warn("convert.prompts: %lld prompts were cut to %lld tokens", (long long)p->cut,
                (long long)p->longest);
done:
    mb_option_list_free(&items, n);
    return status;
}

/* ---- 3. packed rows ---- */

typedef struct prompts_pack {
    int32_t *ids, *positions, *offsets;
    float *inner;
    mb_convert_upcycle_rows rows;
} prompts_pack;

static void prompts_pack_reset(prompts_pack *pack)
{
    mb_free(pack->ids);
    mb_free(pack->positions);
    mb_free(pack->offsets);
    mb_free(pack->inner);
    mb_free(pack->rows.x);
}

static mb_status prompts_pack_fill(const prompts_list *p, int64_t width, prompts_pack *pack)
{
    mb_status status = MB_OK;
    const int64_t t = p->ids.count, s = p->ends.count;
    MB_NEW_ARRAY(pack->ids, t);
    MB_NEW_ARRAY(pack->positions, t);
    MB_NEW_ARRAY(pack->offsets, s + 1);
    MB_NEW_ARRAY(pack->inner, t * width);
    MB_NEW_ARRAY(pack->rows.x, t * width);
    for (int64_t i = 0; i < s; i++) {
        pack->offsets[i + 1] = (int32_t)p->ends.data[i];
        for (int32_t r = pack->offsets[i]; r < pack->offsets[i + 1]; r++) {
            pack->ids[r] = (int32_t)p->ids.data[r];
            pack->positions[r] = r - pack->offsets[i];
        }
    }
    pack->rows.tokens = t;
    pack->rows.segments = s;
    pack->rows.ids = pack->ids;
    pack->rows.positions = pack->positions;
    pack->rows.offsets = pack->offsets;
done:
    return status;
}

/* ---- 4. a layer ---- */

/* mean [n, D] of positive prompts, value [n, D] the same less that of negative ones. */
static void prompts_means(const prompts_list *p, const prompts_pack *pack, int64_t d, double *mean,
                          double *value, double *negatives)
{
    memset(mean, 0, (size_t)(p->experts * d) * sizeof *mean);
    memset(value, 0, (size_t)(p->experts * d) * sizeof *value);
    memset(negatives, 0, (size_t)p->experts * sizeof *negatives);
    for (int64_t s = 0; s < p->ends.count; s++) negatives[p->expert.data[s]] += p->negative.data[s];
    for (int64_t s = 0; s < p->ends.count; s++) {
        const int64_t e = p->expert.data[s], first = pack->offsets[s] + (int64_t)p->skip.data[s];
        const int64_t n = pack->offsets[s + 1] - first;
        const bool is_negative = p->negative.data[s] != 0;
        const double share = 1 / ((double)n * (is_negative ? negatives[e] : (double)p->positive[e]));
        double *to = (is_negative ? value : mean) + e * d;
        for (int64_t r = first; r < first + n; r++)
            for (int64_t i = 0; i < d; i++) to[i] += share * (double)pack->inner[r * d + i];
    }
    for (int64_t i = 0; i < p->experts * d; i++) value[i] = mean[i] - value[i];
}

static double prompts_dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* value becomes directions; *out_margin as they are. */
static mb_status prompts_directions(const prompts_list *p, int64_t layer, int64_t d, const double *mean,
                                    double *value, double *out_margin)
{
    mb_status status = MB_OK;
    const int64_t n = p->experts;
    double sum = 0;
    for (int64_t i = 0; i < d; i++) {
        double all = 0;
        for (int64_t e = 0; e < n; e++) all += value[e * d + i];
        for (int64_t e = 0; e < n; e++) value[e * d + i] -= all / (double)n;
    }
    for (int64_t e = 0; e < n; e++) {
        double *v = value + e * d;
        const double length = sqrt(prompts_dot(v, v, d)),
                     size = sqrt(prompts_dot(mean + e * d, mean + e * d, d));
        if (!(length > 1e-6 * size))
            MB_RAISE(MB_EDATA,
                     "convert.prompts: those of number %lld say nothing of their own (layer %lld has "
                     "the mean over all for them); give it other prompts",
                     (long long)e, (long long)layer);
        for (int64_t i = 0; i < d; i++) v[i] /= length;
    }
    for (int64_t e = 0; e < n; e++) /* own logit less the mean of the others' */
        for (int64_t f = 0; f < n; f++)
            sum += prompts_dot(value + f * d, mean + e * d, d) * (e == f ? 1 : -1.0 / (double)(n - 1));
    *out_margin = sum / (double)n;
    if (!(*out_margin > 0))
        MB_RAISE(MB_EDATA,
                 "convert.prompts: in layer %lld the prompts do not choose their own experts; the "
                 "negative prompts outweigh them, use fewer or others",
                 (long long)layer);
done:
    return status;
}

static mb_status prompts_gate(mb_convert_upcycle_set *set, const prompts_list *p, const prompts_pack *pack,
                              int64_t layer)
{
    mb_status status = MB_OK;
    const int64_t n = p->experts, d = set->plan.arch.width;
    double *mean = NULL, *value = NULL, *negatives = NULL, margin = 0;
    MB_NEW_ARRAY(mean, n * d);
    MB_NEW_ARRAY(value, n * d);
    MB_NEW_ARRAY(negatives, n);
    prompts_means(p, pack, d, mean, value, negatives);
    MB_TRY(prompts_directions(p, layer, d, mean, value, &margin));
    float *to = set->prompted + layer * n * d;
    for (int64_t i = 0; i < n * d; i++) to[i] = (float)(value[i] * set->options->prompts_margin / margin);
done:
    mb_free(mean);
    mb_free(value);
    mb_free(negatives);
    return status;
}

/* ---- 5. the whole ---- */

static mb_status prompts_open(mb_convert_upcycle_set *set, prompts_list *p)
{
    mb_status status = MB_OK;
    const mb_arch *dense = &set->models[0].folder.arch;
    const char *folder = set->options->tokenizer != NULL ? set->options->tokenizer : set->models[0].path;
    p->experts = set->plan.virtual_groups ? set->plan.groups : set->plan.arch.experts;
    p->longest = dense->max_positions < PROMPTS_LONGEST ? dense->max_positions : PROMPTS_LONGEST;
    if (p->experts < 2)
        MB_RAISE(MB_EUSAGE, "convert.router_init = prompts needs two experts or groups to tell apart");
    MB_NEW_ARRAY(p->positive, p->experts);
    status = mb_tokenizer_open(folder, &p->tokenizer);
    if (status == MB_ENOTFOUND)
        mb_status_prefix("convert.router_init = prompts needs the model's tokenizer (tokenizer.path): ");
    MB_TRY(status);
    MB_TRY(mb_tokenizer_scratch_create(p->tokenizer, &p->scratch));
    MB_TRY(prompts_read(p, set->options->prompts, set->plan.virtual_groups));
done:
    return status;
}

mb_status mb_convert_upcycle_prompts_run(mb_convert_upcycle_set *set, mb_ops *ops)
{
    mb_status status = MB_OK;
    prompts_list p = {0};
    prompts_pack pack = {0};
    mb_convert_upcycle_stream stream = {0};
    const mb_convert_upcycle_model *source = &set->models[0];
    const mb_arch *dense = &source->folder.arch;
    MB_TRY(prompts_open(set, &p));
    MB_NEW_ARRAY(set->prompted, dense->layers * p.experts * dense->width);
    set->prompted_rows = p.experts;
    MB_TRY(prompts_pack_fill(&p, dense->width, &pack));
    MB_TRY(mb_convert_upcycle_stream_open(&stream, ops, source->path, dense, source->folder.source_file,
                                          p.longest));
    MB_TRY(mb_convert_upcycle_stream_embed(&stream, &pack.rows));
    for (int64_t i = 0; i < dense->layers; i++) {
        MB_TRY(mb_convert_upcycle_stream_layer(&stream, &pack.rows, i, pack.inner));
        if (mb_arch_is_moe(&set->plan.arch, i)) MB_TRY(prompts_gate(set, &p, &pack, i));
    }
    mb_info("gates from %lld prompts of %lld tokens", (long long)p.ends.count, (long long)p.ids.count);
done:
    mb_convert_upcycle_stream_reset(&stream);
    prompts_pack_reset(&pack);
    prompts_reset(&p);
    return status;
}
