/* bench_result.c: see bench_result.h.
 *
 * 1. memory   2. HDF5   3. several results as one   4. JSON
 */
#include "stage/bench_result.h"

#include <math.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"
#include "measure/latency.h"
#include "store/h5.h"

/* ---- 1. memory ---- */

static int64_t cells_of(const mb_bench_result *r)
{
    return r->grid.prompts * r->grid.outputs;
}

mb_status mb_bench_result_alloc(mb_bench_result *result, int64_t experts)
{
    mb_status status = MB_OK;
    const int64_t cells = cells_of(result), rounds = cells * result->repeats;
    MB_NEW_ARRAY(result->expert, experts);
    result->experts = experts;
    for (int64_t e = 0; e < experts; e++) {
        mb_bench_expert *x = result->expert + e;
        MB_NEW_ARRAY(x->seconds, rounds);
        MB_NEW_ARRAY(x->first_seconds, rounds);
        MB_NEW_ARRAY(x->core_seconds, rounds);
        MB_NEW_ARRAY(x->joules, rounds);
        MB_NEW_ARRAY(x->block_joules, cells);
    }
done:
    return status;
}

void mb_bench_result_reset(mb_bench_result *result)
{
    for (int64_t e = 0; e < result->experts; e++) {
        mb_bench_expert *x = result->expert + e;
        void *const blocks[] = {x->name,          x->model,        x->hash,   x->machine,     x->seconds,
                                x->first_seconds, x->core_seconds, x->joules, x->block_joules};
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mb_free(blocks[i]);
    }
    mb_free(result->expert);
    mb_free(result->source);
    mb_free(result->source_text);
    mb_free(result->transfer_text);
    *result = (mb_bench_result){0};
}

/* ---- 2. HDF5 ---- */

/* The parts of an expert that are arrays of rounds, or texts. */
static double *rounds_of(const mb_bench_expert *x, int which)
{
    double *const all[] = {x->seconds, x->first_seconds, x->core_seconds, x->joules};
    return all[which];
}
static const char *const round_names[] = {"/seconds", "/first_seconds", "/core_seconds", "/joules"};
enum { ROUND_ARRAYS = 4, TEXTS = 4 };
static const char *const text_names[TEXTS] = {"/expert_names", "/models", "/hashes", "/machines"};

static char **text_of(mb_bench_expert *x, int which)
{
    char **const all[] = {&x->name, &x->model, &x->hash, &x->machine};
    return all[which];
}

static mb_status write_arrays(mb_h5 *file, const mb_bench_result *r)
{
    mb_status status = MB_OK;
    const int64_t X = r->experts, P = r->grid.prompts, O = r->grid.outputs, R = r->repeats, cells = P * O;
    double *all = NULL;
    MB_NEW_ARRAY(all, X * cells * R + X);
    for (int a = 0; a < ROUND_ARRAYS; a++) {
        mb_tensor tensor = mb_tensor_view3(MB_F64, all, X, P, O * R);
        tensor.dims = 4, tensor.shape[2] = O, tensor.shape[3] = R;
        for (int64_t e = 0; e < X; e++)
            memcpy(all + e * cells * R, rounds_of(r->expert + e, a), sizeof *all * (size_t)(cells * R));
        MB_TRY(mb_h5_write(file, round_names[a], &tensor));
    }
    const mb_tensor blocks = mb_tensor_view3(MB_F64, all, X, P, O),
                    transfer = mb_tensor_view1(MB_F64, all, X);
    for (int64_t e = 0; e < X; e++)
        memcpy(all + e * cells, r->expert[e].block_joules, sizeof *all * (size_t)cells);
    MB_TRY(mb_h5_write(file, "/block_joules", &blocks));
    for (int64_t e = 0; e < X; e++) all[e] = r->expert[e].transfer;
    MB_TRY(mb_h5_write(file, "/transfer", &transfer));
done:
    mb_free(all);
    return status;
}

static mb_status write_texts(mb_h5 *file, const mb_bench_result *r)
{
    mb_status status = MB_OK;
    const char **texts = NULL;
    MB_NEW_ARRAY(texts, r->experts);
    for (int t = 0; t < TEXTS; t++) {
        for (int64_t e = 0; e < r->experts; e++) texts[e] = *text_of(r->expert + e, t);
        MB_TRY(mb_h5_write_strings(file, text_names[t], texts, r->experts));
    }
done:
    mb_free(texts);
    return status;
}

mb_status mb_bench_result_write(const mb_bench_result *result, const char *path)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_bench_grid grid = result->grid;
    const mb_tensor prompts = mb_tensor_view1(MB_I64, grid.prompt, grid.prompts),
                    outputs = mb_tensor_view1(MB_I64, grid.output, grid.outputs);
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-bench"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "source", result->source));
    MB_TRY(mb_h5_set_text(file, "/", "source_text", result->source_text));
    MB_TRY(mb_h5_set_text(file, "/", "transfer_text", result->transfer_text));
    MB_TRY(mb_h5_set_int(file, "/", "reference_prompt", grid.reference_prompt));
    MB_TRY(mb_h5_set_int(file, "/", "reference_output", grid.reference_output));
    MB_TRY(mb_h5_set_int(file, "/", "warmup", result->warmup));
    MB_TRY(mb_h5_set_int(file, "/", "is_counted", result->is_counted));
    MB_TRY(mb_h5_set_real(file, "/", "aggregation_seconds", result->aggregation));
    MB_TRY(mb_h5_write(file, "/prompt_tokens", &prompts));
    MB_TRY(mb_h5_write(file, "/output_tokens", &outputs));
    MB_TRY(write_texts(file, result));
    MB_TRY(write_arrays(file, result));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

static mb_status read_lengths(mb_h5 *file, const char *path, const char *name, int64_t *out_list,
                              int64_t *out_count)
{
    mb_status status = MB_OK;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS], *list = NULL;
    MB_TRY(mb_h5_read_new(file, name, MB_I64, &dims, shape, (void **)&list));
    if (dims != 1 || shape[0] < 1 || shape[0] > MB_BENCH_LENGTHS)
        MB_RAISE(MB_EFORMAT, "%s: %s is no list of 1 to %d lengths", path, name, MB_BENCH_LENGTHS);
    memcpy(out_list, list, sizeof *list * (size_t)shape[0]);
    *out_count = shape[0];
done:
    mb_free(list);
    return status;
}

static mb_status read_attribute(mb_h5 *file, const char *name, char **out_text)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, "/", name, &text));
    if ((*out_text = mb_strdup(mb_str_text(&text))) == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for an attribute");
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status read_head(mb_h5 *file, const char *path, mb_bench_result *r)
{
    mb_status status = MB_OK;
    char *format = NULL;
    int64_t is_counted = 0;
    MB_TRY(read_attribute(file, "format", &format));
    if (strcmp(format, "moebatch-bench") != 0)
        MB_RAISE(MB_EFORMAT, "%s: its format is '%s', not 'moebatch-bench'", path, format);
    MB_TRY(read_attribute(file, "source", &r->source));
    MB_TRY(read_attribute(file, "source_text", &r->source_text));
    MB_TRY(read_attribute(file, "transfer_text", &r->transfer_text));
    MB_TRY(mb_h5_get_int(file, "/", "reference_prompt", &r->grid.reference_prompt));
    MB_TRY(mb_h5_get_int(file, "/", "reference_output", &r->grid.reference_output));
    MB_TRY(mb_h5_get_int(file, "/", "warmup", &r->warmup));
    MB_TRY(mb_h5_get_int(file, "/", "is_counted", &is_counted));
    MB_TRY(mb_h5_get_real(file, "/", "aggregation_seconds", &r->aggregation));
    MB_TRY(read_lengths(file, path, "/prompt_tokens", r->grid.prompt, &r->grid.prompts));
    MB_TRY(read_lengths(file, path, "/output_tokens", r->grid.output, &r->grid.outputs));
    r->is_counted = is_counted != 0;
done:
    mb_free(format);
    return status;
}

/* One array of all experts, cut into theirs: `each` numbers an expert. */
static mb_status read_array(mb_h5 *file, const char *path, const char *name, int64_t numbers,
                            double **out_all)
{
    mb_status status = MB_OK;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS], n = 1;
    MB_TRY(mb_h5_read_new(file, name, MB_F64, &dims, shape, (void **)out_all));
    for (int d = 0; d < dims; d++) n *= shape[d];
    if (n != numbers)
        MB_RAISE(MB_EFORMAT, "%s: %s has %lld numbers, not %lld", path, name, (long long)n,
                 (long long)numbers);
done:
    return status;
}

static mb_status read_arrays(mb_h5 *file, const char *path, mb_bench_result *r)
{
    mb_status status = MB_OK;
    const int64_t cells = cells_of(r), rounds = cells * r->repeats, X = r->experts;
    double *all = NULL;
    for (int a = 0; a < ROUND_ARRAYS; a++) {
        MB_TRY(read_array(file, path, round_names[a], X * rounds, &all));
        for (int64_t e = 0; e < X; e++)
            memcpy(rounds_of(r->expert + e, a), all + e * rounds, sizeof *all * (size_t)rounds);
        MB_FREE(all);
    }
    MB_TRY(read_array(file, path, "/block_joules", X * cells, &all));
    for (int64_t e = 0; e < X; e++)
        memcpy(r->expert[e].block_joules, all + e * cells, sizeof *all * (size_t)cells);
    MB_FREE(all);
    MB_TRY(read_array(file, path, "/transfer", X, &all));
    for (int64_t e = 0; e < X; e++) r->expert[e].transfer = all[e];
done:
    mb_free(all);
    return status;
}

static mb_status read_texts(mb_h5 *file, const char *path, mb_bench_result *r)
{
    mb_status status = MB_OK;
    char **texts = NULL;
    int64_t n = 0;
    for (int t = 0; t < TEXTS; t++) {
        MB_TRY(mb_h5_read_strings(file, text_names[t], &texts, &n));
        if (n != r->experts) MB_RAISE(MB_EFORMAT, "%s: %s has %lld texts", path, text_names[t], (long long)n);
        for (int64_t e = 0; e < n; e++)
            if ((*text_of(r->expert + e, t) = mb_strdup(texts[e])) == NULL)
                MB_RAISE(MB_ENOMEM, "no memory for a name");
        mb_h5_free_strings(&texts, n);
    }
done:
    mb_h5_free_strings(&texts, n);
    return status;
}

mb_status mb_bench_result_read(const char *path, mb_bench_result *out_result)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    *out_result = (mb_bench_result){0};
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(read_head(file, path, out_result));
    MB_TRY(mb_h5_shape(file, "/seconds", &dtype, &dims, shape));
    if (dims != 4 || shape[0] < 1 || shape[3] < 1)
        MB_RAISE(MB_EFORMAT, "%s: /seconds has no four dimensions", path);
    out_result->repeats = shape[3];
    MB_TRY(mb_bench_result_alloc(out_result, shape[0]));
    MB_TRY(read_texts(file, path, out_result));
    MB_TRY(read_arrays(file, path, out_result));
done:
    mb_h5_destroy(&file);
    if (status != MB_OK) mb_bench_result_reset(out_result);
    return status;
}

/* ---- 3. several results as one ---- */

static bool are_equal(const int64_t *a, int64_t n, const int64_t *b, int64_t m)
{
    return n == m && memcmp(a, b, sizeof *a * (size_t)n) == 0;
}

static mb_status check_alike(const mb_bench_result *a, const mb_bench_result *b, const char *path)
{
    mb_status status = MB_OK;
    if (!are_equal(a->grid.prompt, a->grid.prompts, b->grid.prompt, b->grid.prompts) ||
        !are_equal(a->grid.output, a->grid.outputs, b->grid.output, b->grid.outputs))
        MB_RAISE(MB_EDATA, "%s: measured at other prompt or output lengths than the results before it", path);
    if (a->grid.reference_prompt != b->grid.reference_prompt ||
        a->grid.reference_output != b->grid.reference_output)
        MB_RAISE(MB_EDATA, "%s: its reference lengths are other ones than those of the results before it",
                 path);
    if (a->repeats != b->repeats || a->warmup != b->warmup)
        MB_RAISE(MB_EDATA, "%s: %lld rounds after %lld, the results before it have %lld after %lld", path,
                 (long long)b->repeats, (long long)b->warmup, (long long)a->repeats, (long long)a->warmup);
    if (strcmp(a->source, b->source) != 0 || (!a->is_counted && strcmp(a->source_text, b->source_text) != 0))
        MB_RAISE(MB_EDATA,
                 "%s: joules from '%s', of the results before it from '%s'; they cannot be compared", path,
                 b->source_text, a->source_text);
    for (int64_t i = 0; i < a->experts; i++)
        for (int64_t j = 0; j < b->experts; j++)
            if (strcmp(a->expert[i].name, b->expert[j].name) == 0)
                MB_RAISE(MB_EDATA, "%s: expert '%s' was in a result before it", path, a->expert[i].name);
done:
    return status;
}

mb_status mb_bench_result_add(mb_bench_result *into, const char *path, mb_bench_result *more)
{
    mb_status status = MB_OK;
    mb_bench_expert *all;
    if (into->experts == 0) {
        *into = *more;
        *more = (mb_bench_result){0};
        return MB_OK;
    }
    MB_TRY(check_alike(into, more, path));
    if (strstr(into->transfer_text, more->transfer_text) == NULL) {
        char *both = mb_str_format("%s; %s", into->transfer_text, more->transfer_text);
        if (both == NULL) MB_RAISE(MB_ENOMEM, "no memory for a text");
        mb_free(into->transfer_text);
        into->transfer_text = both;
    }
    all = mb_realloc(into->expert, (size_t)(into->experts + more->experts), sizeof *all);
    if (all == NULL) MB_RAISE(MB_ENOMEM, "no memory for experts");
    memcpy(all + into->experts, more->expert, sizeof *all * (size_t)more->experts);
    into->expert = all;
    into->experts += more->experts;
    if (more->aggregation > into->aggregation) into->aggregation = more->aggregation;
    more->experts = 0;
    mb_bench_result_reset(more);
done:
    return status;
}

/* ---- 4. JSON ---- */

static json_t *int_list(const int64_t *values, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(list, json_integer(values[i]));
    return list;
}

static const char *const spread_names[] = {"p5", "p50", "p95", "mean", "min", "max"};

static double spread_value(const mb_latency_spread *s, int which)
{
    const double all[] = {s->p5, s->p50, s->p95, s->mean, s->min, s->max};
    return all[which];
}

/* {"p5": [[P x O]], ...} of rounds [P, O, R]. */
static mb_status spread_tables(const mb_bench_result *r, const double *rounds, json_t **out)
{
    mb_status status = MB_OK;
    json_t *root = json_object(), *tables[6];
    mb_latency_spread spread;
    for (int s = 0; s < 6; s++) {
        tables[s] = json_array();
        MB_TRY(mb_json_set(root, spread_names[s], tables[s]));
    }
    for (int64_t p = 0; p < r->grid.prompts; p++) {
        json_t *rows[6];
        for (int s = 0; s < 6; s++) json_array_append_new(tables[s], rows[s] = json_array());
        for (int64_t o = 0; o < r->grid.outputs; o++) {
            MB_TRY(
                mb_latency_spread_get(rounds + (p * r->grid.outputs + o) * r->repeats, r->repeats, &spread));
            for (int s = 0; s < 6; s++) json_array_append_new(rows[s], json_real(spread_value(&spread, s)));
        }
    }
    *out = json_incref(root);
done:
    json_decref(root);
    return status;
}

static int64_t place(const int64_t *list, int64_t n, int64_t value)
{
    int64_t at = 0;
    while (at + 1 < n && list[at] != value) at++;
    return at;
}

mb_status mb_bench_result_reference(const mb_bench_result *result, int64_t expert, double *out_seconds,
                                    double *out_joules)
{
    mb_status status = MB_OK;
    const mb_bench_grid *g = &result->grid;
    const mb_bench_expert *x = result->expert + expert;
    const int64_t cell = place(g->prompt, g->prompts, g->reference_prompt) * g->outputs +
                         place(g->output, g->outputs, g->reference_output);
    mb_latency_spread seconds, joules;
    MB_TRY(mb_latency_spread_get(x->seconds + cell * result->repeats, result->repeats, &seconds));
    MB_TRY(mb_latency_spread_get(x->joules + cell * result->repeats, result->repeats, &joules));
    *out_seconds = seconds.p50;
    *out_joules = result->is_counted ? x->block_joules[cell] : joules.p50;
done:
    return status;
}

/* What both files have of an expert. */
static mb_status expert_json(const mb_bench_result *r, int64_t e, const char *what, const double *rounds,
                             json_t **out)
{
    mb_status status = MB_OK;
    const mb_bench_expert *x = r->expert + e;
    json_t *tables = NULL, *one;
    MB_TRY(spread_tables(r, rounds, &tables));
    one = json_pack("{s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:O}", "model", x->model, "hash", x->hash, "machine",
                    x->machine, "prompt_tokens", int_list(r->grid.prompt, r->grid.prompts), "output_tokens",
                    int_list(r->grid.output, r->grid.outputs), "repeats", (json_int_t)r->repeats, "warmup",
                    (json_int_t)r->warmup, what, tables);
    if (one == NULL) MB_RAISE(MB_ENOMEM, "no memory for results");
    *out = one;
done:
    json_decref(tables);
    return status;
}

static json_t *reference_json(const mb_bench_result *r)
{
    return json_pack("{s:I, s:I}", "prompt_tokens", (json_int_t)r->grid.reference_prompt, "output_tokens",
                     (json_int_t)r->grid.reference_output);
}

mb_status mb_bench_result_latency(const mb_bench_result *result, const char *path)
{
    mb_status status = MB_OK;
    json_t *experts = json_object(), *transfer = json_object(), *root = NULL, *one = NULL, *first = NULL;
    double seconds, joules;
    for (int64_t e = 0; e < result->experts; e++) {
        const mb_bench_expert *x = result->expert + e;
        MB_TRY(expert_json(result, e, "seconds", x->seconds, &one));
        MB_TRY(mb_json_set(experts, x->name, one));
        MB_TRY(spread_tables(result, x->first_seconds, &first));
        MB_TRY(mb_json_set(one, "first_token_seconds", first));
        MB_TRY(mb_bench_result_reference(result, e, &seconds, &joules));
        MB_TRY(mb_json_set(one, "compute_seconds", json_real(seconds)));
        MB_TRY(mb_json_set(transfer, x->name, json_real(x->transfer)));
    }
    root = json_pack("{s:s, s:i, s:o, s:O, s:O, s:s, s:f}", "format", "moebatch-latency", "version", 1,
                     "reference", reference_json(result), "experts", experts, "transfer_seconds", transfer,
                     "transfer_text", result->transfer_text, "aggregation_seconds", result->aggregation);
    MB_TRY(mb_json_write(path, root, 2, false));
done:
    json_decref(experts);
    json_decref(transfer);
    json_decref(root);
    return status;
}

mb_status mb_bench_result_energy(const mb_bench_result *result, const char *path)
{
    mb_status status = MB_OK;
    json_t *experts = json_object(), *root = NULL, *one = NULL;
    double seconds, joules;
    for (int64_t e = 0; e < result->experts; e++) {
        const mb_bench_expert *x = result->expert + e;
        MB_TRY(expert_json(result, e, "joules", x->joules, &one));
        MB_TRY(mb_json_set(experts, x->name, one));
        MB_TRY(mb_bench_result_reference(result, e, &seconds, &joules));
        MB_TRY(mb_json_set(one, "energy_joules", json_real(joules)));
    }
    root = json_pack("{s:s, s:i, s:s, s:s, s:o, s:O}", "format", "moebatch-energy", "version", 1, "source",
                     result->source, "source_text", result->source_text, "reference", reference_json(result),
                     "experts", experts);
    MB_TRY(mb_json_write(path, root, 2, false));
done:
    json_decref(experts);
    json_decref(root);
    return status;
}
