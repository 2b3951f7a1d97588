/* gate_net.c: products in register tiles, and what lies between them.
 *
 * A product's element is one chain of multiply and add over the inner index in rising order, whatever the
 * width of the vectors and whoever computes the tile, so neither threads nor instruction sets change a bit.
 * A transposed left factor is the same product with its strides exchanged.
 *
 * 1. products   2. weights   3. room   4. forward   5. backward   6. AdamW
 */
#include "learn/gate_net.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

/* ---- 1. products ---- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&     \
    !defined(__SANITIZE_THREAD__)
#define GATE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GATE_CLONES
#endif

enum { TILE = 4, LANES = MB_GATE_LANES };
typedef float gate_lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

/* Element (m, k) of the left factor is a[m * row + k * column]. */
typedef struct gate_left {
    const float *a;
    int64_t row, column;
} gate_left;

/* c[r][0..LANES) = sum_k a(r, k) b[k][0..LANES) of TILE rows, whose addresses are given. */
GATE_CLONES static void gate_tile(const float *const *a, int64_t column, int64_t n, const float *b,
                                  int64_t b_stride, float *c)
{
    gate_lanes sum[TILE] = {{0}};
    for (int64_t k = 0; k < n; k++) {
        const gate_lanes row = *(const gate_lanes *)(b + k * b_stride);
        for (int r = 0; r < TILE; r++) sum[r] += a[r][k * column] * row;
    }
    memcpy(c, sum, sizeof sum);
}

/* c [m, columns] = left [m, n] x b [n, columns]; columns a multiple of LANES. */
static void product(gate_left left, int64_t m, int64_t n, const float *b, int64_t columns, float *c)
{
    const int64_t down = (m + TILE - 1) / TILE, across = columns / LANES;
#pragma omp parallel for schedule(static) if (m * n * columns > 1 << 16)
    for (int64_t t = 0; t < down * across; t++) {
        const int64_t first = t / across * TILE, at = t % across * LANES;
        const float *rows[TILE];
        float out[TILE * LANES];
        for (int64_t r = 0; r < TILE; r++) {
            const int64_t i = first + r < m ? first + r : m - 1; /* rows beyond the last are not stored */
            rows[r] = left.a + i * left.row;
        }
        gate_tile(rows, left.column, n, b + at, columns, out);
        for (int64_t r = 0; r < TILE && first + r < m; r++)
            memcpy(c + (first + r) * columns + at, out + r * LANES, LANES * sizeof *c);
    }
}

static gate_left plain(const float *a, int64_t width)
{
    return (gate_left){.a = a, .row = width, .column = 1};
}

static gate_left turned(const float *a, int64_t width)
{
    return (gate_left){.a = a, .row = 1, .column = width};
}

/* ---- 2. weights ---- */

static int64_t padded(int64_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

mb_status mb_gate_net_create(int64_t width, int64_t hidden, int64_t experts, mb_gate_net *out_net)
{
    mb_status status = MB_OK;
    mb_gate_net net = {.width = width,
                       .hidden = hidden,
                       .experts = experts,
                       .hidden_padded = padded(hidden),
                       .experts_padded = padded(experts)};
    net.decayed = (width + net.experts_padded) * net.hidden_padded;
    net.count = net.decayed + net.hidden_padded + net.experts_padded;
    MB_NEW_ARRAY(net.data, net.count);
    net.w1 = net.data;
    net.w2 = net.w1 + width * net.hidden_padded;
    net.b1 = net.data + net.decayed;
    net.b2 = net.b1 + net.hidden_padded;
    *out_net = net;
done:
    return status;
}

void mb_gate_net_reset(mb_gate_net *net)
{
    mb_free(net->data);
    *net = (mb_gate_net){0};
}

void mb_gate_net_load(mb_gate_net *net, const mb_gate *gate)
{
    for (int64_t h = 0; h < net->hidden; h++) {
        for (int64_t d = 0; d < net->width; d++)
            net->w1[d * net->hidden_padded + h] = gate->w1[h * net->width + d];
        for (int64_t e = 0; e < net->experts; e++)
            net->w2[h * net->experts_padded + e] = gate->w2[e * net->hidden + h];
        net->b1[h] = gate->b1[h];
    }
    memcpy(net->b2, gate->b2, (size_t)net->experts * sizeof *net->b2);
}

void mb_gate_net_store(const mb_gate_net *net, mb_gate *gate)
{
    for (int64_t h = 0; h < net->hidden; h++) {
        for (int64_t d = 0; d < net->width; d++)
            gate->w1[h * net->width + d] = net->w1[d * net->hidden_padded + h];
        for (int64_t e = 0; e < net->experts; e++)
            gate->w2[e * net->hidden + h] = net->w2[h * net->experts_padded + e];
        gate->b1[h] = net->b1[h];
    }
    memcpy(gate->b2, net->b2, (size_t)net->experts * sizeof *net->b2);
}

/* ---- 3. room ---- */

mb_status mb_gate_work_create(const mb_gate_net *net, int64_t rows, mb_gate_work *out_work)
{
    mb_status status = MB_OK;
    mb_gate_work work = {.rows = rows};
    MB_NEW_ARRAY(work.x, rows * net->width);
    MB_NEW_ARRAY(work.target, rows * net->experts);
    MB_NEW_ARRAY(work.before, rows * net->hidden_padded);
    MB_NEW_ARRAY(work.hidden, rows * net->hidden_padded);
    MB_NEW_ARRAY(work.d_hidden, rows * net->hidden_padded);
    MB_NEW_ARRAY(work.logits, rows * net->experts_padded);
    MB_NEW_ARRAY(work.d_logits, rows * net->experts_padded);
    MB_NEW_ARRAY(work.w2_turned, net->experts * net->hidden_padded);
    *out_work = work;
    work = (mb_gate_work){0};
done:
    mb_gate_work_reset(&work);
    return status;
}

void mb_gate_work_reset(mb_gate_work *work)
{
    mb_free(work->x);
    mb_free(work->target);
    mb_free(work->before);
    mb_free(work->hidden);
    mb_free(work->d_hidden);
    mb_free(work->logits);
    mb_free(work->d_logits);
    mb_free(work->w2_turned);
    *work = (mb_gate_work){0};
}

/* ---- 4. forward ---- */

static void add_bias(float *x, const float *bias, int64_t rows, int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) x[r * columns + c] += bias[c];
}

static const float half_root = 0.70710678118654752f, density = 0.39894228040143268f;

void mb_gate_net_forward(const mb_gate_net *net, int64_t n, mb_gate_work *work)
{
    const int64_t H = net->hidden_padded, X = net->experts_padded;
    product(plain(work->x, net->width), n, net->width, net->w1, H, work->before);
    add_bias(work->before, net->b1, n, H);
#pragma omp parallel for schedule(static) if (n * H > 1 << 14)
    for (int64_t i = 0; i < n * H; i++) {
        const float v = work->before[i];
        work->hidden[i] = 0.5f * v * (1.0f + erff(v * half_root));
    }
    product(plain(work->hidden, H), n, H, net->w2, X, work->logits);
    add_bias(work->logits, net->b2, n, X);
}

/* ---- 5. backward ---- */

bool mb_gate_has_target(const float *target, int64_t experts)
{
    for (int64_t e = 0; e < experts; e++)
        if (target[e] != 0) return true;
    return false;
}

/* d_logits of a row by its own loss: softmax - target. Returns that loss. */
static double row_backward(const float *logits, const float *target, int64_t experts, float *d_logits)
{
    double sum = 0, top = -INFINITY, loss = 0;
    for (int64_t e = 0; e < experts; e++)
        if (logits[e] > top) top = logits[e];
    for (int64_t e = 0; e < experts; e++) sum += exp((double)logits[e] - top);
    for (int64_t e = 0; e < experts; e++) {
        const double log_p = (double)logits[e] - top - log(sum);
        loss -= target[e] * log_p;
        d_logits[e] = (float)(exp(log_p) - target[e]);
    }
    return loss;
}

/* out[c] = sum over rows of x[r][c] */
static void add_columns(const float *x, int64_t rows, int64_t columns, float *out)
{
    memset(out, 0, (size_t)columns * sizeof *out);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) out[c] += x[r * columns + c];
}

static double losses(const mb_gate_net *net, int64_t n, mb_gate_work *work)
{
    const int64_t X = net->experts_padded;
    double sum = 0;
    int64_t counted = 0;
    memset(work->d_logits, 0, (size_t)(n * X) * sizeof *work->d_logits);
    for (int64_t r = 0; r < n; r++) {
        const float *target = work->target + r * net->experts;
        if (!mb_gate_has_target(target, net->experts)) continue;
        sum += row_backward(work->logits + r * X, target, net->experts, work->d_logits + r * X);
        counted++;
    }
    const float share = counted > 0 ? 1.0f / (float)counted : 0;
    for (int64_t i = 0; i < n * X; i++) work->d_logits[i] *= share;
    return counted > 0 ? sum / (double)counted : NAN;
}

double mb_gate_net_backward(const mb_gate_net *net, int64_t n, mb_gate_work *work, mb_gate_net *gradient)
{
    const int64_t H = net->hidden_padded, X = net->experts_padded;
    const double loss = losses(net, n, work);
    for (int64_t e = 0; e < net->experts; e++)
        for (int64_t h = 0; h < H; h++) work->w2_turned[e * H + h] = net->w2[h * X + e];
    product(turned(work->hidden, H), H, n, work->d_logits, X, gradient->w2);
    add_columns(work->d_logits, n, X, gradient->b2);
    product(plain(work->d_logits, X), n, net->experts, work->w2_turned, H, work->d_hidden);
#pragma omp parallel for schedule(static) if (n * H > 1 << 14)
    for (int64_t i = 0; i < n * H; i++) {
        const float v = work->before[i];
        work->d_hidden[i] *= 0.5f * (1.0f + erff(v * half_root)) + v * density * expf(-0.5f * v * v);
    }
    product(turned(work->x, net->width), net->width, n, work->d_hidden, H, gradient->w1);
    add_columns(work->d_hidden, n, H, gradient->b1);
    return loss;
}

/* ---- 6. AdamW ---- */

void mb_gate_net_adamw(mb_gate_net *net, const mb_gate_net *gradient, float *moments, int64_t step,
                       double learning_rate, double weight_decay)
{
    const float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f,
                keep = (float)(1 - learning_rate * weight_decay),
                rate = (float)(learning_rate / (1 - pow(0.9, (double)step))),
                root = (float)sqrt(1 - pow(0.999, (double)step));
    float *first = moments, *second = moments + net->count;
#pragma omp parallel for schedule(static) if (net->count > 1 << 14)
    for (int64_t i = 0; i < net->count; i++) {
        const float g = gradient->data[i];
        first[i] = beta1 * first[i] + (1 - beta1) * g;
        second[i] = beta2 * second[i] + (1 - beta2) * g * g;
        if (i < net->decayed) net->data[i] *= keep;
        net->data[i] -= rate * first[i] / (sqrtf(second[i]) / root + epsilon);
    }
}
