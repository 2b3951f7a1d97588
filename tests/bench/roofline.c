/* roofline: every op of ops.h at the true shapes of three models, beside the least time it could take.
 *
 *   roofline [--backend cuda|cpu|ref] [--json FILE] [--only WORD] [--model NAME] [--dtype bf16|f32]
 *            [--tokens N] [--rounds 7] [--tiny]
 *
 * The floor of a case is the larger of its bytes over the bandwidth of a large copy and its operations over
 * the rate of one large product of the same dtype, both measured first in the same run. Bytes count every
 * tensor once read and once written (an accumulating output both), operations those of matrix products.
 * `us` is the median over rounds of queued repetitions with one wait behind them; where the backend can
 * record work, `replay` is the same from a record, free of the time the host needs to queue, and the shares
 * are of it.
 * A share over 100 % says that part of the data came from the chip's cache (MB_ROOFLINE_MIB is the size of
 * the blocks that repetitions walk through; 3,072 on a device, 64 on the host).
 *
 * 1. the clock   2. memory of a case   3. ceilings   4. the table   5. the run
 */
#include "roofline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"

enum { ROUNDS_MOST = 101, REPEAT_MOST = 400, RECORD_MOST = 64, WARM = 3, ALIGN = 256 };

static const roof_model roof_models[] = {
    {"olmoe-1b-7b", 2048, 1024, 16, 16, 128, 64, 8, 50304, false},
    {"llama-3.2-1b", 2048, 8192, 32, 8, 64, 0, 0, 128256, false},
    {"qwen3-1.7b", 2048, 6144, 16, 8, 128, 0, 0, 151936, true},
};
static const roof_model roof_tiny_models[] = {
    {"tiny-moe", 64, 48, 4, 4, 16, 16, 2, 300, false},
    {"tiny-dense", 64, 128, 4, 2, 16, 0, 0, 300, true},
};

/* ---- 1. the clock ---- */

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, by_size);
    return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/* Where the repetition's tensors lie: one behind the other, from the start again when a block is full. */
typedef struct walk {
    size_t in, out;
    int64_t repetition;
} walk;

static void place(const roof *r, roof_case *c, walk *at)
{
    for (int i = 0; i < c->args; i++) {
        const size_t bytes = (mb_tensor_bytes(&c->t[i]) + ALIGN - 1) / ALIGN * ALIGN;
        size_t *used = c->kind[i] == ROOF_IN ? &at->in : &at->out;
        if (*used + bytes > r->block_bytes) *used = 0;
        c->t[i].data = (c->kind[i] == ROOF_IN ? r->in : r->out) + *used;
        *used += bytes;
    }
    if (c->weight_count > 0) c->w = &c->weights[at->repetition % c->weight_count];
    at->repetition++;
}

static mb_status repeat(const roof *r, roof_case *c, walk *at, int64_t n)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; i++) {
        place(r, c, at);
        MB_TRY(c->run(c));
    }
done:
    return status;
}

/* Seconds of one repetition: median of rounds of n queued ones. */
static mb_status time_queued(const roof *r, roof_case *c, walk *at, int64_t n, double *out_seconds)
{
    mb_status status = MB_OK;
    double took[ROUNDS_MOST];
    for (int64_t round = 0; round < r->rounds; round++) {
        const double start = mb_clock_seconds();
        MB_TRY(repeat(r, c, at, n));
        MB_TRY(mb_ops_wait(r->ops));
        took[round] = (mb_clock_seconds() - start) / (double)n;
    }
    *out_seconds = median(took, r->rounds);
done:
    return status;
}

/* The same from a record of n repetitions; 0 where there is none. */
static mb_status time_replayed(const roof *r, roof_case *c, walk *at, int64_t n, double *out_seconds)
{
    mb_status status = MB_OK;
    mb_ops_record *record = NULL;
    double took[ROUNDS_MOST];
    *out_seconds = 0;
    if (!mb_ops_can_record(r->ops) || c->is_waiting) return MB_OK;
    MB_TRY(mb_ops_record_begin(r->ops));
    status = repeat(r, c, at, n);
    if (status != MB_OK) {
        mb_ops_record_end(r->ops, NULL);
        goto done;
    }
    MB_TRY(mb_ops_record_end(r->ops, &record));
    MB_TRY(mb_ops_record_run(r->ops, record));
    MB_TRY(mb_ops_wait(r->ops));
    for (int64_t round = 0; round < r->rounds; round++) {
        const double start = mb_clock_seconds();
        MB_TRY(mb_ops_record_run(r->ops, record));
        MB_TRY(mb_ops_wait(r->ops));
        took[round] = (mb_clock_seconds() - start) / (double)n;
    }
    *out_seconds = median(took, r->rounds);
done:
    mb_ops_record_destroy(r->ops, &record);
    return status;
}

/* As many repetitions as fill a round. */
static mb_status time_case(const roof *r, roof_case *c, double *out_queued, double *out_replayed)
{
    mb_status status = MB_OK;
    walk at = {0, 0, 0};
    MB_TRY(repeat(r, c, &at, WARM));
    MB_TRY(mb_ops_wait(r->ops));
    const double start = mb_clock_seconds();
    MB_TRY(repeat(r, c, &at, 1));
    MB_TRY(mb_ops_wait(r->ops));
    const double once = mb_clock_seconds() - start;
    const int64_t n = (int64_t)fmax(1, fmin(REPEAT_MOST, r->round_seconds / fmax(once, 1e-7)));
    MB_TRY(time_queued(r, c, &at, n, out_queued));
    MB_TRY(time_replayed(r, c, &at, n < RECORD_MOST ? n : RECORD_MOST, out_replayed));
done:
    return status;
}

/* ---- 2. memory of a case ---- */

void roof_begin(roof *r, roof_case *c, const char *op, roof_run run, mb_dtype dtype, int64_t tokens)
{
    *c = (roof_case){.ops = r->ops, .op = op, .dtype = dtype, .tokens = tokens, .run = run};
}

void roof_arg(roof_case *c, roof_kind kind, mb_dtype dtype, int64_t n0, int64_t n1, int64_t n2)
{
    char *const none = NULL;
    mb_tensor *t = &c->t[c->args];
    *t = n2 > 0   ? mb_tensor_view3(dtype, none, n0, n1, n2)
         : n1 > 0 ? mb_tensor_view2(dtype, none, n0, n1)
                  : mb_tensor_view1(dtype, none, n0);
    const int64_t n = n0 * (n1 > 0 ? n1 : 1) * (n2 > 0 ? n2 : 1);
    c->bytes += (double)n * (double)mb_dtype_bytes(dtype) * (kind == ROOF_BOTH ? 2 : 1);
    c->kind[c->args++] = kind;
}

mb_status roof_weights(roof *r, roof_case *c, int n, mb_dtype dtype, int64_t rows, int64_t columns)
{
    mb_status status = MB_OK;
    const size_t bytes = (size_t)(rows * columns) * mb_dtype_bytes(dtype);
    const size_t room = r->weight_bytes / bytes;
    if (room < 1)
        MB_RAISE(MB_ENOMEM, "%s: %zu bytes of weights, the block has %zu", c->op, bytes, r->weight_bytes);
    c->weight_count = (size_t)n < room ? n : (int)room;
    for (int i = 0; i < c->weight_count; i++) {
        mb_weight_init(&c->weights[i], mb_tensor_view2(dtype, r->weights + (size_t)i * bytes, rows, columns));
        c->pointers[i] = &c->weights[i];
    }
    c->w = &c->weights[0];
    c->bytes += (double)bytes;
done:
    return status;
}

mb_status roof_upload(roof *r, const void *host, size_t bytes, void **out)
{
    mb_status status = MB_OK;
    char *data = NULL;
    MB_ARENA_ARRAY(r->fixed, data, bytes > 0 ? bytes : 1);
    MB_TRY(mb_ops_upload(r->ops, host, bytes, data));
    MB_TRY(mb_ops_wait(r->ops));
    *out = data;
done:
    return status;
}

/* Normal numbers in bf16; two neighbours read as one f32 are the second of them, a little off. */
static mb_status fill(roof *r, char *block, size_t bytes)
{
    mb_status status = MB_OK;
    uint16_t *some = NULL;
    uint32_t words[4];
    const size_t first = bytes < ((size_t)32 << 20) ? bytes : (size_t)32 << 20;
    MB_NEW_ARRAY(some, first / sizeof *some);
    for (size_t i = 0; i < first / sizeof *some; i++) {
        if (i % 4 == 0) mb_rng_block(1, MB_RNG_DATA, 0, (uint64_t)i, words);
        const double u = (double)words[i % 4] / 4294967296.0 - 0.5; /* spread like a normal, near enough */
        some[i] = mb_dtype_bf16_from_f32((float)(u * (1.2 + 8 * u * u)));
    }
    MB_TRY(mb_ops_upload(r->ops, some, first, block));
    for (size_t done = first; done < bytes;) {
        const size_t more = done < bytes - done ? done : bytes - done;
        MB_TRY(mb_ops_copy(r->ops, block, more, block + done));
        done += more;
    }
    MB_TRY(mb_ops_wait(r->ops));
done:
    mb_free(some);
    return status;
}

/* ---- 3. ceilings ---- */

static mb_status run_copy(roof_case *c)
{
    return mb_ops_copy(c->ops, c->t[0].data, mb_tensor_bytes(&c->t[0]), c->t[1].data);
}

static mb_status measure_bandwidth(roof *r)
{
    mb_status status = MB_OK;
    double queued, replayed;
    roof_case *c = NULL;
    MB_NEW(c);
    roof_begin(r, c, "copy", run_copy, MB_U8, 0);
    const int64_t bytes = (int64_t)(r->block_bytes / 2 / ALIGN * ALIGN);
    roof_arg(c, ROOF_IN, MB_U8, bytes, 0, 0);
    roof_arg(c, ROOF_OUT, MB_U8, bytes, 0, 0);
    MB_TRY(time_case(r, c, &queued, &replayed));
    r->bandwidth = 2.0 * (double)bytes / queued;
done:
    mb_free(c);
    return status;
}

static mb_status run_product(roof_case *c)
{
    return mb_ops_linear(c->ops, &c->t[0], c->w, NULL, false, &c->t[1]);
}

static mb_status measure_product(roof *r, mb_dtype dtype, int64_t cube, double *out_rate)
{
    mb_status status = MB_OK;
    double queued, replayed;
    roof_case *c = NULL;
    MB_NEW(c);
    roof_begin(r, c, "ceiling", run_product, dtype, cube);
    roof_arg(c, ROOF_IN, dtype, cube, cube, 0);
    roof_arg(c, ROOF_OUT, dtype, cube, cube, 0);
    MB_TRY(roof_weights(r, c, 1, dtype, cube, cube));
    MB_TRY(repeat(r, c, &(walk){0, 0, 0},
                  mb_ops_is_device(r->ops) ? 1 : 10)); /* a host packs what is used often */
    MB_TRY(time_case(r, c, &queued, &replayed));
    *out_rate = 2.0 * (double)cube * (double)cube * (double)cube / queued;
done:
    if (c != NULL) mb_weight_reset(&c->weights[0]);
    mb_free(c);
    return status;
}

static mb_status measure_ceilings(roof *r)
{
    mb_status status = MB_OK;
    const int64_t cube = mb_ops_is_device(r->ops) && !r->is_tiny ? 8192 : r->is_tiny ? 256 : 1024;
    MB_TRY(measure_bandwidth(r));
    MB_TRY(measure_product(r, MB_BF16, cube, &r->ceiling_bf16));
    MB_TRY(measure_product(r, MB_F32, cube, &r->ceiling_f32));
    printf("%s\ncopy %.1f GB/s (read + written)   product of %lld cubed: bf16 %.2f TFLOP/s, f32 %.2f "
           "TFLOP/s\n\n",
           mb_ops_describe(r->ops), r->bandwidth * 1e-9, (long long)cube, r->ceiling_bf16 * 1e-12,
           r->ceiling_f32 * 1e-12);
    r->has_head = true;
    if (r->json != NULL)
        fprintf(r->json,
                "{\"backend\": \"%s\", \"describe\": \"%s\", \"copy_bytes_per_s\": %.6g, \"cube\": %lld, "
                "\"bf16_flops\": %.6g, \"f32_flops\": %.6g, \"rows\": [",
                mb_ops_name(r->ops), mb_ops_describe(r->ops), r->bandwidth, (long long)cube, r->ceiling_bf16,
                r->ceiling_f32);
done:
    return status;
}

/* ---- 4. the table ---- */

bool roof_is_asked(const roof *r, const char *op, const char *model)
{
    return r->only == NULL || strstr(op, r->only) != NULL || strstr(model, r->only) != NULL;
}

static void print_row(roof *r, const roof_case *c, double queued, double replayed)
{
    const double best = replayed > 0 ? replayed : queued;
    const double by_bytes = c->bytes / r->bandwidth;
    const double by_flops = c->flops / (c->dtype == MB_F32 ? r->ceiling_f32 : r->ceiling_bf16);
    const double floor_seconds = c->is_unlimited ? 0 : fmax(by_bytes, by_flops);
    char replay_text[32] = "", floor_text[32] = "", share_text[32] = "";
    if (replayed > 0) snprintf(replay_text, sizeof replay_text, "%.1f", replayed * 1e6);
    if (floor_seconds > 0) {
        snprintf(floor_text, sizeof floor_text, "%.1f %s", floor_seconds * 1e6,
                 by_bytes >= by_flops ? "B" : "F");
        snprintf(share_text, sizeof share_text, "%.0f %%", 100 * floor_seconds / best);
    }
    if (r->rows == 0)
        printf("%-13s %-26s %-4s %6s  %-34s %10s %10s %12s %6s %8s %8s\n", "model", "op", "", "tokens",
               "shape", "us", "replay", "floor", "share", "GB/s", "TFLOP/s");
    printf("%-13s %-26s %-4s %6lld  %-34s %10.1f %10s %12s %6s %8.1f %8.2f\n", r->model, c->op,
           mb_dtype_name(c->dtype), (long long)c->tokens, c->shape, queued * 1e6, replay_text, floor_text,
           share_text, c->bytes / best * 1e-9, c->flops / best * 1e-12);
    fflush(stdout);
    if (r->json != NULL)
        fprintf(
            r->json,
            "%s\n{\"model\": \"%s\", \"op\": \"%s\", \"dtype\": \"%s\", \"tokens\": %lld, \"shape\": \"%s\", "
            "\"us\": %.4f, \"replay_us\": %.4f, \"floor_us\": %.4f, \"bound\": \"%s\", \"share\": %.4f, "
            "\"bytes\": %.0f, \"flops\": %.0f}",
            r->rows > 0 ? "," : "", r->model, c->op, mb_dtype_name(c->dtype), (long long)c->tokens, c->shape,
            queued * 1e6, replayed * 1e6, floor_seconds * 1e6, by_bytes >= by_flops ? "bytes" : "flops",
            floor_seconds / best, c->bytes, c->flops);
    r->rows++;
}

mb_status roof_measure(roof *r, roof_case *c, double flops)
{
    mb_status status = MB_OK;
    double queued = 0, replayed = 0;
    size_t in = 0, out = 0;
    if (!roof_is_asked(r, c->op, r->model)) goto done;
    c->flops = flops;
    for (int i = 0; i < c->args; i++)
        *(c->kind[i] == ROOF_IN ? &in : &out) += mb_tensor_bytes(&c->t[i]) + ALIGN;
    if (in > r->block_bytes || out > r->block_bytes) {
        printf("%-13s %-26s needs blocks of %zu MiB: MB_ROOFLINE_MIB=\n", r->model, c->op,
               (in > out ? in : out) / 1048576 + 1);
        goto done;
    }
    /* What is read and written in place begins as random numbers too. */
    MB_TRY(mb_ops_copy(r->ops, r->in, r->block_bytes, r->out));
    if (c->is_zeroed) MB_TRY(mb_ops_zero(r->ops, r->out, r->block_bytes));
    status = time_case(r, c, &queued, &replayed);
    if (status == MB_OK) print_row(r, c, queued, replayed);
    if (status != MB_OK) {
        printf("%-13s %-26s %s: FAILED: %s\n", r->model, c->op, c->shape, mb_status_message());
        if (status != MB_EDEVICE) status = MB_OK; /* a device that failed once answers nothing more */
    }
done:
    for (int i = 0; i < c->weight_count; i++) mb_weight_reset(&c->weights[i]);
    return status;
}

/* ---- 5. the run ---- */

static size_t block_size(const roof *r)
{
    const char *text = getenv("MB_ROOFLINE_MIB");
    const int64_t mib = text != NULL ? atoll(text) : mb_ops_is_device(r->ops) && !r->is_tiny ? 3072 : 64;
    return (size_t)mib << 20;
}

static mb_status open_blocks(roof *r)
{
    mb_status status = MB_OK;
    const mb_allocator *memory = mb_ops_allocator(r->ops);
    char **const blocks[3] = {&r->in, &r->out, &r->weights};
    r->block_bytes = r->weight_bytes = block_size(r);
    for (int i = 0; i < 3; i++) {
        *blocks[i] = memory->alloc(memory->context, r->block_bytes);
        if (*blocks[i] == NULL) MB_RAISE(MB_ENOMEM, "no block of %zu MiB", r->block_bytes / 1048576);
        MB_TRY(fill(r, *blocks[i], r->block_bytes));
    }
    MB_TRY(mb_arena_create_on(memory, (size_t)1 << 20, &r->fixed));
done:
    return status;
}

static void close_blocks(roof *r)
{
    if (r->ops == NULL) return;
    const mb_allocator *memory = mb_ops_allocator(r->ops);
    mb_arena_destroy(&r->fixed);
    if (r->in != NULL) memory->free(memory->context, r->in);
    if (r->out != NULL) memory->free(memory->context, r->out);
    if (r->weights != NULL) memory->free(memory->context, r->weights);
}

typedef struct words {
    const char *backend, *json, *only, *model, *dtype;
    int64_t tokens, rounds;
    bool is_tiny;
} words;

static mb_status run(roof *r, const words *w)
{
    mb_status status = MB_OK;
    const roof_model *models = w->is_tiny ? roof_tiny_models : roof_models;
    const int count = w->is_tiny ? 2 : 3;
    const int64_t tokens[2] = {w->is_tiny ? 64 : 4096, w->is_tiny ? 128 : 8192};
    MB_TRY(mb_ops_create(w->backend, 0, &r->ops));
    MB_TRY(open_blocks(r));
    MB_TRY(measure_ceilings(r));
    for (int m = 0; m < count; m++) {
        if (w->model != NULL && strstr(models[m].name, w->model) == NULL) continue;
        for (int d = 0; d < 2; d++) {
            const mb_dtype dtype = d == 0 ? MB_BF16 : MB_F32;
            if (w->dtype != NULL && strcmp(w->dtype, mb_dtype_name(dtype)) != 0) continue;
            for (int t = 0; t < 2; t++) {
                if (w->tokens == 0 || w->tokens == tokens[t])
                    MB_TRY(roof_model_run(r, &models[m], dtype, tokens[t]));
            }
        }
    }
    if (w->model == NULL) MB_TRY(roof_common_run(r));
    printf("\n%lld rows; floor B by bytes, F by operations\n", (long long)r->rows);
done:
    close_blocks(r);
    mb_ops_destroy(&r->ops);
    return status;
}

static bool read_words(int argc, char **argv, words *w)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(name, "--tiny") == 0) {
            w->is_tiny = true;
            continue;
        }
        if (*value == 0) return false;
        if (strcmp(name, "--backend") == 0)
            w->backend = value;
        else if (strcmp(name, "--json") == 0)
            w->json = value;
        else if (strcmp(name, "--only") == 0)
            w->only = value;
        else if (strcmp(name, "--model") == 0)
            w->model = value;
        else if (strcmp(name, "--dtype") == 0)
            w->dtype = value;
        else if (strcmp(name, "--tokens") == 0)
            w->tokens = atoll(value);
        else if (strcmp(name, "--rounds") == 0)
            w->rounds = atoll(value);
        else
            return false;
        i++;
    }
    return w->rounds >= 1 && w->rounds <= ROUNDS_MOST;
}

int main(int argc, char **argv)
{
    words w = {.backend = "auto", .rounds = 7};
    if (!read_words(argc, argv, &w)) {
        fprintf(stderr, "roofline: see the head of tests/bench/roofline.c for its words\n");
        return 2;
    }
    roof r = {
        .only = w.only, .is_tiny = w.is_tiny, .rounds = w.rounds, .round_seconds = w.is_tiny ? 5e-4 : 8e-3};
    if (w.json != NULL && (r.json = fopen(w.json, "w")) == NULL) {
        fprintf(stderr, "roofline: %s cannot be written\n", w.json);
        return 1;
    }
    const mb_status status = run(&r, &w);
    if (status != MB_OK) fprintf(stderr, "roofline: %s\n%s", mb_status_message(), mb_status_trace_text());
    if (r.json != NULL) {
        fprintf(r.json, r.has_head ? "]}\n" : "{}\n");
        fclose(r.json);
    }
    return status == MB_OK ? 0 : 1;
}
