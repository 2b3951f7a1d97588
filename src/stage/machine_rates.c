/* machine_rates.c: speed of large products and of memory.
 *
 * Every figure is a median of calls, all ranks working at the same time, as in a run.
 *
 * 1. products   2. memory   3. copies of a GPU   4. all
 */
#include "stage/machine_rates.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum {
    WIDTH = 2048,
    ROWS = 512,
    FEW_ROWS = 16,
    GPU_WIDTH = 8192,
    GPU_ROWS = 4096,
    MOST_CALLS = 200,
    LEAST_CALLS = 5
};
enum { COPY_BYTES = 256 << 20, LEAST_COPY_BYTES = 4 << 20 };
static const double SECONDS_EACH = 0.8;

static int compare_reals(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare_reals);
    return n % 2 != 0 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/* ---- 1. products ---- */

/* Small numbers that bf16 holds exactly. */
static void fill(void *data, mb_dtype dtype, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float value = (float)(i % 31 - 15) / 64.0f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (dtype == MB_F32)
            ((float *)data)[i] = value;
        else
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
    }
}

/* Seconds of one product with this many rows: median; two calls before do not count. */
static mb_status time_products(mb_ops *ops, const mb_tensor *x, mb_weight *w, mb_tensor *y, int64_t rows,
                               double seconds_in_all, double *out_seconds)
{
    mb_status status = MB_OK;
    double seconds[MOST_CALLS], spent = 0;
    int n = 0;
    const mb_tensor part = mb_tensor_rows(x, 0, rows);
    mb_tensor out = mb_tensor_rows(y, 0, rows);
    for (int i = -2; n < MOST_CALLS && (n < LEAST_CALLS || spent < seconds_in_all); i++) {
        const double started = mb_clock_seconds();
        MB_TRY(mb_ops_linear(ops, &part, w, NULL, false, &out));
        MB_TRY(mb_ops_wait(ops));
        if (i < 0) continue;
        seconds[n] = mb_clock_seconds() - started;
        spent += seconds[n++];
    }
    *out_seconds = median(seconds, n);
done:
    return status;
}

/* Numbers in the backend's memory. */
static mb_status make_numbers(mb_ops *ops, mb_dtype dtype, int64_t n, mb_buffer **out)
{
    mb_status status = MB_OK;
    const size_t bytes = mb_dtype_bytes(dtype) * (size_t)n;
    mb_buffer *host = NULL;
    MB_TRY(mb_buffer_create(mb_allocator_host(), bytes, &host));
    fill(host->data, dtype, n);
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), bytes, out));
    MB_TRY(mb_ops_upload(ops, host->data, bytes, (*out)->data));
    MB_TRY(mb_ops_wait(ops));
done:
    mb_buffer_destroy(&host);
    return status;
}

/* Of x [rows, width] W^T [width, width], or of few rows where that takes too long. */
static mb_status measure_size(mb_ops *ops, mb_dtype dtype, int64_t most_rows, int64_t width,
                              double *out_seconds, double *out_gflops)
{
    mb_status status = MB_OK;
    mb_buffer *x = NULL, *w = NULL, *y = NULL;
    mb_weight weight = {0};
    double seconds = 0;
    int64_t rows = FEW_ROWS;
    MB_TRY(make_numbers(ops, dtype, most_rows * width, &x));
    MB_TRY(make_numbers(ops, dtype, width * width, &w));
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), mb_dtype_bytes(dtype) * (size_t)(most_rows * width), &y));
    const mb_tensor tx = mb_tensor_view2(dtype, x->data, most_rows, width);
    mb_tensor ty = mb_tensor_view2(dtype, y->data, most_rows, width);
    mb_weight_init(&weight, mb_tensor_view2(dtype, w->data, width, width));
    MB_TRY(time_products(ops, &tx, &weight, &ty, rows, 0, &seconds));
    if (seconds < 0.02) { /* else this backend is so slow that few rows must do */
        rows = most_rows;
        MB_TRY(time_products(ops, &tx, &weight, &ty, rows, SECONDS_EACH, &seconds));
    }
    *out_seconds = seconds;
    *out_gflops = 2e-9 * (double)rows * (double)width * (double)width / seconds;
done:
    (void)mb_ops_wait(ops);
    mb_weight_reset(&weight);
    mb_buffer_destroy(&x);
    mb_buffer_destroy(&w);
    mb_buffer_destroy(&y);
    return status;
}

static mb_status measure_products(mb_ops *ops, mb_dtype dtype, double *out_gflops)
{
    mb_status status = MB_OK;
    double seconds;
    MB_TRY(measure_size(ops, dtype, ROWS, WIDTH, &seconds, out_gflops));
    /* A GPU is not busy with so little. */
    if (mb_ops_is_device(ops) && seconds < 1e-3)
        MB_TRY(measure_size(ops, dtype, GPU_ROWS, GPU_WIDTH, &seconds, out_gflops));
done:
    return status;
}

/* ---- 2. memory ---- */

/* Sum of a thread's share, eight chains at a time, so that reading and not adding takes the time. */
static uint64_t sum_words(const uint64_t *words, int64_t n)
{
    uint64_t sums[8] = {0}, sum = 0;
    for (int64_t i = 0; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++) sums[k] += words[i + k];
    for (int k = 0; k < 8; k++) sum += sums[k];
    return sum;
}

static uint64_t sum_all(const uint64_t *words, int64_t n, int threads)
{
    uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        const int64_t share = n / omp_get_num_threads(), first = share * omp_get_thread_num();
        sum += sum_words(words + first, share);
    }
    return sum;
}

/* Words to read: far more than the last cache holds, and at most an eighth of this rank's share of memory. */
static int64_t word_count(const mb_machine_rank *rank, int local_size)
{
    int64_t bytes = (int64_t)256 << 20, cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (4 * cache > bytes) bytes = 4 * cache;
    const int64_t most = rank->memory_limit > 0 ? rank->memory_limit : rank->memory_available;
    if (bytes > most / 8 / local_size) bytes = most / 8 / local_size;
    return bytes < 1 << 20 ? (1 << 20) / 8 : bytes / 8;
}

static mb_status measure_memory(int64_t n, int threads, double *out_gb_per_s)
{
    mb_status status = MB_OK;
    double seconds[MOST_CALLS], spent = 0;
    int calls = 0;
    uint64_t *words = NULL;
    MB_NEW_ARRAY(words, n);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) words[i] = (uint64_t)i;
    const uint64_t expected = sum_all(words, n, threads);
    while (calls < MOST_CALLS && (calls < LEAST_CALLS || spent < SECONDS_EACH)) {
        const double started = mb_clock_seconds();
        const uint64_t sum = sum_all(words, n, threads);
        seconds[calls] = mb_clock_seconds() - started;
        spent += seconds[calls++];
        if (sum != expected)
            MB_RAISE(MB_EIO, "memory gave two sums for the same words; this node is defective");
    }
    *out_gb_per_s = 8e-9 * (double)n / median(seconds, calls);
done:
    mb_free(words);
    return status;
}

/* ---- 3. copies of a GPU ---- */

typedef enum copy_way { COPY_INSIDE, COPY_UP, COPY_DOWN } copy_way;

static mb_status time_copies(mb_ops *ops, copy_way way, void *host, void *from, void *to, size_t bytes,
                             double *out_gb_per_s)
{
    mb_status status = MB_OK;
    double seconds[MOST_CALLS], spent = 0;
    int n = 0;
    for (int i = -2; n < MOST_CALLS && (n < LEAST_CALLS || spent < 0.25 * SECONDS_EACH); i++) {
        const double started = mb_clock_seconds();
        switch (way) {
        case COPY_INSIDE:
            MB_TRY(mb_ops_copy(ops, from, bytes, to));
            break;
        case COPY_UP:
            MB_TRY(mb_ops_upload(ops, host, bytes, to));
            break;
        default:
            MB_TRY(mb_ops_download(ops, from, bytes, host));
        }
        MB_TRY(mb_ops_wait(ops));
        if (i < 0) continue;
        seconds[n] = mb_clock_seconds() - started;
        spent += seconds[n++];
    }
    *out_gb_per_s = 1e-9 * (double)bytes / median(seconds, n);
done:
    return status;
}

/* rates: inside (read and written bytes), up, down. */
static mb_status measure_copies(mb_ops *ops, double out_rates[3])
{
    mb_status status = MB_OK;
    mb_buffer *from = NULL, *to = NULL, *host = NULL;
    size_t bytes = COPY_BYTES;
    while (mb_buffer_create(mb_ops_allocator(ops), 2 * bytes, &from) != MB_OK && bytes > LEAST_COPY_BYTES)
        bytes /= 2;
    mb_buffer_destroy(&from); /* there is room for both */
    mb_status_reset();
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), bytes, &from));
    MB_TRY(mb_buffer_create(mb_ops_allocator(ops), bytes, &to));
    MB_TRY(mb_buffer_create(mb_ops_host_allocator(ops), bytes, &host));
    MB_TRY(time_copies(ops, COPY_INSIDE, host->data, from->data, to->data, bytes, &out_rates[0]));
    MB_TRY(time_copies(ops, COPY_UP, host->data, from->data, to->data, bytes, &out_rates[1]));
    MB_TRY(time_copies(ops, COPY_DOWN, host->data, from->data, to->data, bytes, &out_rates[2]));
    out_rates[0] *= 2;
done:
    (void)mb_ops_wait(ops);
    mb_buffer_destroy(&from);
    mb_buffer_destroy(&to);
    mb_buffer_destroy(&host);
    return status;
}

/* ---- 4. all ---- */

mb_status mb_machine_rates_measure(mb_program *program, const mb_machine_rank *ranks,
                                   mb_machine_rates *out_rates)
{
    mb_status status = MB_OK;
    double mine[5] = {0}, *all = NULL;
    mb_comm *comm = program->comm;
    mb_ops *ops = program->ops;
    const bool is_device = mb_ops_is_device(ops);
    const mb_machine_rank *me = &ranks[mb_comm_rank(comm)];
    mb_machine_rates rates = {0};
    MB_NEW_ARRAY(all, 5 * mb_comm_size(comm));
    MB_TRY(mb_comm_barrier(comm));
    status = measure_products(ops, MB_F32, &mine[0]);
    MB_TRY(mb_comm_agree(comm, status));
    status = measure_products(ops, MB_BF16, &mine[1]);
    MB_TRY(mb_comm_agree(comm, status));
    status = is_device ? measure_copies(ops, &mine[2])
                       : measure_memory(word_count(me, mb_comm_local_size(comm)), me->threads, &mine[2]);
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_comm_allgather(comm, mine, sizeof mine, all));
    for (int i = 0; i < mb_comm_size(comm); i++) {
        if (strcmp(ranks[i].host, ranks[0].host) != 0) continue;
        rates.gflops_f32 += all[5 * i];
        rates.gflops_bf16 += all[5 * i + 1];
        rates.memory_gb_per_s += all[5 * i + 2];
        rates.up_gb_per_s += all[5 * i + 3];
        rates.down_gb_per_s += all[5 * i + 4];
        rates.threads += ranks[i].threads;
        rates.gpus += is_device;
    }
    *out_rates = rates;
done:
    mb_free(all);
    return status;
}

static mb_status report_gpus(mb_machine_report *report, const mb_machine_rates *rates)
{
    mb_status status = MB_OK;
    mb_machine_print(
        "rates of the %d GPU%s in use on one node: %.1f TFLOP/s f32, %.1f TFLOP/s bf16, memory copied at "
        "%.0f GB/s (read and written), from the host %.1f GB/s, to it %.1f GB/s",
        rates->gpus, rates->gpus == 1 ? "" : "s", 1e-3 * rates->gflops_f32, 1e-3 * rates->gflops_bf16,
        rates->memory_gb_per_s, rates->up_gb_per_s, rates->down_gb_per_s);
    MB_TRY(mb_json_set(report->json, "gpus", json_integer(rates->gpus)));
    MB_TRY(mb_json_set(report->json, "host_to_gpu_gb_per_s", json_real(rates->up_gb_per_s)));
    MB_TRY(mb_json_set(report->json, "gpu_to_host_gb_per_s", json_real(rates->down_gb_per_s)));
done:
    return status;
}

mb_status mb_machine_rates_report(mb_machine_report *report, const mb_machine_rates *rates)
{
    mb_status status = MB_OK;
    if (rates->gpus > 0)
        MB_TRY(report_gpus(report, rates));
    else
        mb_machine_print("rates of one node with %d thread%s: %.0f GFLOP/s f32, %.0f GFLOP/s bf16, memory "
                         "read at %.1f GB/s",
                         rates->threads, rates->threads == 1 ? "" : "s", rates->gflops_f32,
                         rates->gflops_bf16, rates->memory_gb_per_s);
    MB_TRY(mb_json_set(report->json, "gflops",
                       json_pack("{s:f,s:f}", "f32", rates->gflops_f32, "bf16", rates->gflops_bf16)));
    MB_TRY(mb_json_set(report->json, "memory_gb_per_s", json_real(rates->memory_gb_per_s)));
    if (rates->gflops_bf16 < 0.8 * rates->gflops_f32)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "bf16 products are slower than f32 ones here; model.dtype=f32 runs faster where memory allows");
done:
    return status;
}
