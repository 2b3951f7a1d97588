/* rows_loss (cuda): losses of rows of logits and their gradient, a block per row.
 *
 * Without a teacher a row is read for its largest and its sum, and again for the gradient, as in head.cu and
 * with its bits. With one, the tokens it lists are first taken out of the row: copied aside, and in the row
 * set so low that their exponentials are 0; what stays is the last bucket, summed relative to its own
 * largest. A dense teacher lists the whole row, which is worked on where it lies. Then: largest and sums of
 * both parts; the scalars that follow from them, by one thread in f64; the distance over the listed; the
 * gradient over both parts; the listed put back. A row of a sparse teacher is read once, with a gradient
 * twice and written once; a row of a dense one and its teacher's twice, with a gradient three times.
 *
 * 1. what a row is   2. without a teacher   3. sums   4. distance   5. gradient   6. a row   7. the op
 */
#include "ops/cuda/logits.cuh"
#include "ops/cuda/vector.cuh"

/* ---- 1. what a row is ---- */

enum { FORWARD, REVERSE, JSD };

typedef struct loss_rows {
    float *logits; /* [N, v] */
    int64_t v;
    const int32_t *opt_targets;
    float *opt_ce, *opt_distance;
    int32_t *opt_argmax;
    const float *opt_row_weight; /* NULL: the logits stay */
    /* the teacher: */
    const int32_t *opt_ids; /* [N, k]; NULL: dense, k = v */
    const float *known;     /* [N, k] ln p */
    const float *tail;      /* [N] */
    float *room;            /* [N, k]; NULL: dense */
    int64_t k;
    int kind;
    double temperature, beta, distil, task; /* distil: distil_weight T */
} loss_rows;

/* What follows from a row's sums. */
typedef struct row_scalars {
    float p_shift, q_shift; /* ln p = (z - z_top) / T + p_shift; ln q likewise */
    float p_scale;          /* e^p_shift */
    float one_scale;        /* softmax at temperature 1 = exp(z - z_top) one_scale */
    float rest_top, rest_share,
        rest_one;              /* gradient of the others: share exp((z - top) / T) + one exp(z - top) */
    double distance, mean;     /* of the last bucket; of dD/dp over all */
    double rest_p, rest_slope; /* the last bucket's p, dD/dp */
    double rest_gap;           /* its p - q */
    double rest_sum;           /* of its exponentials at T */
} row_scalars;

typedef struct row_rooms {
    float *sums;
    int32_t *index;
    double *wide;
    row_scalars *scalars;
} row_rooms;

template <bool IS_WHOLE>
static __device__ __forceinline__ void put_run(float *row, int64_t column, int64_t v, const float x[RUN])
{
    if (IS_WHOLE) {
        store_run(row + column, x);
    } else {
#pragma unroll
        for (int i = 0; i < RUN; i++)
            if (column + i < v) row[column + i] = x[i];
    }
}

/* ---- 2. without a teacher ---- */

/* weight * (softmax - onehot) over the row. */
template <bool IS_WHOLE>
static __device__ __forceinline__ void write_task(float *logits, int64_t v, int32_t target, float weight,
                                                  float largest, float sum)
{
    const float scale = weight / sum;
    for (int64_t column = (int64_t)threadIdx.x * RUN; column < v; column += THREADS * RUN) {
        float x[RUN];
        read_run<IS_WHOLE>(logits, column, v, x);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            const float gradient = expf(x[i] - largest) * scale - (column + i == target ? weight : 0);
            x[i] = weight != 0 ? gradient : 0;
        }
        put_run<IS_WHOLE>(logits, column, v, x);
    }
}

template <bool IS_WHOLE> static __global__ void __launch_bounds__(THREADS) task_rows(const loss_rows rows)
{
    MB_SHARED(float, room, 32);
    MB_SHARED(int32_t, index_room, 32);
    const int64_t row = blockIdx.x;
    float *logits = rows.logits + row * rows.v;
    const int32_t target = rows.opt_targets != NULL ? rows.opt_targets[row] : -1;
    const bool is_target = target >= 0 && target < rows.v; /* what is none makes the loss NaN */
    const float wanted = is_target ? logits[target] : NAN;
    const row_part part = join_parts(read_part<IS_WHOLE>(logits, rows.v), room, index_room);
    if (threadIdx.x == 0) {
        if (rows.opt_ce != NULL) rows.opt_ce[row] = logf(part.sum) + part.largest - wanted;
        if (rows.opt_argmax != NULL) rows.opt_argmax[row] = part.index < rows.v ? part.index : 0;
    }
    if (rows.opt_row_weight != NULL) /* after the barriers of join_parts */
        write_task<IS_WHOLE>(logits, rows.v, target, rows.opt_row_weight[row], part.largest, part.sum);
}

/* ---- 3. sums ---- */

/* The first largest, and the sums of exp((x - largest) / T) and exp(x - largest). */
typedef struct soft_part {
    row_part part; /* its sum is that at T */
    float sum_1;
} soft_part;

template <bool IS_WHOLE>
static __device__ __forceinline__ soft_part read_soft(const float *x, int64_t n, float inverse, bool has_one)
{
    soft_part soft = {{-FLT_MAX, 0, INT32_MAX}, 0};
    for (int64_t column = (int64_t)threadIdx.x * RUN; column < n; column += THREADS * RUN) {
        float run[RUN], largest = soft.part.largest;
        read_run<IS_WHOLE>(x, column, n, run);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (!(run[i] > largest)) continue;
            largest = run[i];
            soft.part.index = (int32_t)column + i;
        }
        soft.part.sum *= expf((soft.part.largest - largest) * inverse);
        soft.sum_1 *= expf(soft.part.largest - largest);
        soft.part.largest = largest;
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (column + i >= n) continue;
            soft.part.sum += expf((run[i] - largest) * inverse);
            if (has_one) soft.sum_1 += expf(run[i] - largest);
        }
    }
    return soft;
}

static __device__ __forceinline__ soft_part join_soft(soft_part soft, float inverse, const row_rooms &rooms)
{
    const float own = soft.part.largest;
    join_largest(soft.part, rooms.sums, rooms.index);
    soft.part.sum = mb_block_sum(soft.part.sum * expf((own - soft.part.largest) * inverse), rooms.sums);
    soft.sum_1 = mb_block_sum(soft.sum_1 * expf(own - soft.part.largest), rooms.sums);
    return soft;
}

/* ln(e^a + e^b), either -INFINITY or not. */
static __device__ __forceinline__ double join_logs(double a, double b)
{
    const double top = a > b ? a : b;
    return top == -INFINITY ? top : top + log(exp(a - top) + exp(b - top));
}

/* ---- 4. distance ---- */

/* A bucket's part of D and, in *slope, dD/dp, of p, q and their logarithms x, y. */
static __device__ __forceinline__ float bucket_part(const loss_rows &rows, float p, float q, float x, float y,
                                                    float *slope)
{
    const float ratio = y - x, other = 1 - (float)rows.beta;
    *slope = 0;
    if (rows.kind == FORWARD) return q != 0 ? q * ratio : 0;
    if (rows.kind == REVERSE) {
        *slope = x - (y < MB_ROWS_LEAST ? MB_ROWS_LEAST : y);
        return p * *slope;
    }
    const float near = ratio > 88 ? 88 : ratio;
    const float below = -logf(fmaf((float)rows.beta, expf(near), other)); /* ln p - ln m */
    *slope = other * below;
    return p * *slope + (q != 0 ? (float)rows.beta * q * (below + near) : 0);
}

/* The same of the last bucket, in f64. */
static __device__ __forceinline__ double rest_part(const loss_rows &rows, double x, double y, double *slope)
{
    const double p = exp(x), q = exp(y), least = MB_ROWS_LEAST;
    *slope = 0;
    if (rows.kind == FORWARD) return q != 0 ? q * (y - x) : 0;
    if (rows.kind == REVERSE) {
        *slope = x - (y < least ? least : y);
        return p * *slope;
    }
    const double m = join_logs(x + log1p(-rows.beta), y + log(rows.beta));
    *slope = (1 - rows.beta) * (x - m);
    return p * *slope + (q != 0 ? rows.beta * q * (y - m) : 0);
}

/* Of one thread: what follows from the sums of the listed, the others (n 0 of them: none) and the teacher. */
static __device__ void find_scalars(const loss_rows &rows, int64_t row, const soft_part &listed,
                                    const soft_part &rest, const soft_part &known, float wanted,
                                    row_scalars *s)
{
    const bool has_rest = rows.k < rows.v;
    const double inverse = 1 / rows.temperature;
    double at_t = listed.part.largest * inverse + log((double)listed.part.sum);
    double at_1 = listed.part.largest + log((double)listed.sum_1);
    double teacher = known.part.largest * inverse + log((double)known.part.sum);
    const double rest_t = rest.part.largest * inverse + log((double)rest.part.sum);
    s->rest_p = s->rest_slope = s->rest_gap = s->distance = 0;
    if (has_rest) {
        at_t = join_logs(at_t, rest_t);
        at_1 = join_logs(at_1, rest.part.largest + log((double)rest.sum_1));
        teacher = join_logs(teacher, rows.tail[row]);
        s->distance = rest_part(rows, rest_t - at_t, rows.tail[row] - teacher, &s->rest_slope);
        s->rest_p = exp(rest_t - at_t);
        s->rest_gap = s->rest_p - exp(rows.tail[row] - teacher);
    }
    s->p_shift = (float)(listed.part.largest * inverse - at_t);
    s->q_shift = (float)(known.part.largest * inverse - teacher);
    s->p_scale = expf(s->p_shift);
    s->one_scale = (float)exp(listed.part.largest - at_1);
    s->rest_top = rest.part.largest;
    s->rest_sum = rest.part.sum;
    s->rest_one = (float)exp(rest.part.largest - at_1);
    if (rows.opt_ce != NULL) rows.opt_ce[row] = (float)(at_1 - wanted);
    if (rows.opt_argmax == NULL) return;
    int32_t best = rest.part.index;
    if (!has_rest || is_ahead(listed.part.largest, listed.part.index, rest.part.largest, best))
        best = listed.part.index;
    rows.opt_argmax[row] = best < rows.v ? best : 0;
}

/* The sums over the listed of their parts of D and of p dD/dp; the whole of both goes to the scalars. */
static __device__ __forceinline__ void find_distance(const loss_rows &rows, int64_t row, const float *z,
                                                     const float *known, float z_top, float known_top,
                                                     const row_rooms &rooms)
{
    const row_scalars s = *rooms.scalars;
    const float inverse = (float)(1 / rows.temperature);
    double distance = 0, mean = 0;
    for (int64_t i = threadIdx.x; i < rows.k; i += THREADS) {
        const float at_t = (z[i] - z_top) * inverse, x = at_t + s.p_shift;
        const float y = fmaf(known[i] - known_top, inverse, s.q_shift), p = expf(at_t) * s.p_scale;
        float slope;
        distance += (double)bucket_part(rows, p, expf(y), x, y, &slope);
        mean += (double)(p * slope);
    }
    distance = mb_block_sum(distance, rooms.wide) + s.distance;
    mean = mb_block_sum(mean, rooms.wide) + s.rest_p * s.rest_slope;
    if (threadIdx.x == 0) {
        if (rows.opt_distance != NULL) rows.opt_distance[row] = (float)distance;
        rooms.scalars->mean = mean;
    }
    __syncthreads();
}

/* ---- 5. gradient ---- */

/* distil dD/ds + task softmax of the listed, over `to` (which may be z). */
static __device__ __forceinline__ void write_listed(const loss_rows &rows, const float *z, const float *known,
                                                    float z_top, float known_top, float weight,
                                                    const row_scalars &s, float *to)
{
    const float inverse = (float)(1 / rows.temperature), distil = (float)(weight * rows.distil);
    const float task = (float)(weight * rows.task) * s.one_scale, mean = (float)s.mean;
    for (int64_t i = threadIdx.x; i < rows.k; i += THREADS) {
        const float off = z[i] - z_top, at_t = off * inverse, x = at_t + s.p_shift;
        const float y = fmaf(known[i] - known_top, inverse, s.q_shift), p = expf(at_t) * s.p_scale,
                    q = expf(y);
        float slope;
        (void)bucket_part(rows, p, q, x, y, &slope);
        const float gradient = rows.kind == FORWARD ? p - q : p * (slope - mean);
        to[i] = fmaf(distil, gradient, task * expf(off));
    }
}

/* The same of the others, over the whole row. */
template <bool IS_WHOLE>
static __device__ __forceinline__ void write_rest(const loss_rows &rows, float *logits, float weight,
                                                  const row_scalars &s)
{
    const double gradient = rows.kind == FORWARD ? s.rest_gap : s.rest_p * (s.rest_slope - s.mean);
    const float share = (float)(weight * rows.distil * gradient / s.rest_sum);
    const float one = (float)(weight * rows.task) * s.rest_one, inverse = (float)(1 / rows.temperature);
    for (int64_t column = (int64_t)threadIdx.x * RUN; column < rows.v; column += THREADS * RUN) {
        float x[RUN];
        read_run<IS_WHOLE>(logits, column, rows.v, x);
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            const float off = x[i] - s.rest_top;
            x[i] = fmaf(share, expf(off * inverse), one * expf(off));
        }
        put_run<IS_WHOLE>(logits, column, rows.v, x);
    }
}

/* ---- 6. a row ---- */

/* Listed tokens out of the row, or back. */
static __device__ __forceinline__ void take_listed(float *logits, const int32_t *ids, int64_t k, float *room)
{
    for (int64_t i = threadIdx.x; i < k; i += THREADS) {
        room[i] = logits[ids[i]];
        logits[ids[i]] = -FLT_MAX;
    }
    __syncthreads();
}
static __device__ __forceinline__ void put_listed(const float *room, const int32_t *ids, int64_t k,
                                                  float *logits)
{
    __syncthreads();
    for (int64_t i = threadIdx.x; i < k; i += THREADS) logits[ids[i]] = room[i];
    __syncthreads();
}

/* The first largest of the listed as the token it is: the lowest id of those that are as large. */
static __device__ __forceinline__ void name_largest(const loss_rows &rows, int64_t row, const float *z,
                                                    soft_part &listed, const row_rooms &rooms)
{
    if (rows.opt_ids == NULL) return;
    const float largest = listed.part.largest;
    row_part part = {-FLT_MAX, 0, INT32_MAX};
    for (int64_t i = threadIdx.x; i < rows.k; i += THREADS) {
        const int32_t id = rows.opt_ids[row * rows.k + i];
        if (z[i] == largest && id < part.index) part.largest = largest, part.index = id;
    }
    join_largest(part, rooms.sums, rooms.index);
    listed.part.index = part.index;
}

/* Block: one row. */
template <bool IS_WHOLE> static __global__ void __launch_bounds__(THREADS) teacher_rows(const loss_rows rows)
{
    MB_SHARED(float, sums, 32);
    MB_SHARED(int32_t, index, 32);
    MB_SHARED(double, wide, 32);
    MB_SHARED(row_scalars, scalars, 1);
    const row_rooms rooms = {sums, index, wide, scalars};
    const int64_t row = blockIdx.x, v = rows.v, k = rows.k;
    const bool is_dense = rows.opt_ids == NULL, has_rest = k < v;
    const float inverse = (float)(1 / rows.temperature);
    const float weight = rows.opt_row_weight != NULL ? rows.opt_row_weight[row] : 0;
    const int32_t target = rows.opt_targets != NULL ? rows.opt_targets[row] : -1;
    const int32_t *ids = is_dense ? NULL : rows.opt_ids + row * k;
    const float *known = rows.known + row * k;
    float *logits = rows.logits + row * v, *z = is_dense ? logits : rows.room + row * k;
    const bool is_target = target >= 0 && target < v;
    const float wanted = is_target ? logits[target] : NAN;
    __syncthreads(); /* the target is read before its place is taken */
    if (!is_dense) take_listed(logits, ids, k, z);
    soft_part listed =
        is_dense ? read_soft<IS_WHOLE>(z, k, inverse, true) : read_soft<false>(z, k, inverse, true);
    listed = join_soft(listed, inverse, rooms);
    soft_part rest = {{-FLT_MAX, 1, INT32_MAX}, 1};
    if (has_rest) rest = join_soft(read_soft<IS_WHOLE>(logits, v, inverse, true), inverse, rooms);
    soft_part teacher =
        is_dense ? read_soft<IS_WHOLE>(known, k, inverse, false) : read_soft<false>(known, k, inverse, false);
    teacher = join_soft(teacher, inverse, rooms);
    name_largest(rows, row, z, listed, rooms);
    const float z_top = listed.part.largest, known_top = teacher.part.largest;
    if (threadIdx.x == 0) find_scalars(rows, row, listed, rest, teacher, wanted, scalars);
    __syncthreads();
    find_distance(rows, row, z, known, z_top, known_top, rooms);
    const row_scalars s = *scalars;
    if (weight != 0) {
        write_listed(rows, z, known, z_top, known_top, weight, s, z);
        if (has_rest) write_rest<IS_WHOLE>(rows, logits, weight, s);
    }
    if (!is_dense)
        put_listed(z, ids, k, logits);
    else
        __syncthreads();
    if (weight != 0) {
        if (threadIdx.x == 0 && is_target) logits[target] -= (float)(weight * rows.task);
    } else if (rows.opt_row_weight != NULL) {
        for (int64_t i = threadIdx.x; i < v; i += THREADS) logits[i] = 0;
    }
}

/* ---- 7. the op ---- */

static mb_status set_teacher(mb_ops *ops, const mb_teacher_rows *teacher, int64_t n, loss_rows *rows)
{
    const bool is_dense = teacher->opt_dense != NULL;
    rows->k = is_dense ? rows->v : teacher->k;
    rows->opt_ids = is_dense ? NULL : teacher->ids;
    rows->known = is_dense ? teacher->opt_dense : teacher->logprob;
    rows->tail = teacher->tail;
    rows->kind = teacher->beta == 0 ? FORWARD : teacher->beta == 1 ? REVERSE : JSD;
    rows->temperature = teacher->temperature;
    rows->beta = teacher->beta;
    rows->distil = teacher->distil_weight * teacher->temperature;
    rows->task = teacher->task_weight;
    if (!is_dense) MB_CUDA_TRY(mb_cuda_scratch(ops, n * rows->k, &rows->room));
    return MB_OK;
}

static mb_status cuda_rows_loss(mb_ops *ops, mb_tensor *logits, const int32_t *opt_targets,
                                const mb_teacher_rows *opt_teacher, mb_tensor *opt_ce,
                                mb_tensor *opt_distance, int32_t *opt_argmax, const float *opt_row_weight)
{
    const int64_t n = mb_ops_rows(logits), v = mb_ops_width(logits);
    const cudaStream_t stream = mb_cuda_of(ops)->stream;
    loss_rows rows = {};
    if (n == 0) return MB_OK;
    rows.logits = mb_data<float>(logits);
    rows.v = v;
    rows.opt_targets = opt_targets;
    rows.opt_ce = opt_ce != NULL ? mb_data<float>(opt_ce) : NULL;
    rows.opt_distance = opt_distance != NULL ? mb_data<float>(opt_distance) : NULL;
    rows.opt_argmax = opt_argmax;
    rows.opt_row_weight = opt_row_weight;
    bool is_whole = v % RUN == 0 && mb_is_whole(MB_F32, logits->data, v, 4);
    if (opt_teacher != NULL) {
        MB_CUDA_TRY(set_teacher(ops, opt_teacher, n, &rows));
        if (rows.opt_ids == NULL) is_whole = is_whole && mb_is_whole(MB_F32, rows.known, v, 4);
    }
    const dim3 grid((unsigned)n);
    if (opt_teacher == NULL && is_whole) {
        MB_LAUNCH(task_rows<true>, grid, THREADS, 0, stream, rows);
    } else if (opt_teacher == NULL) {
        MB_LAUNCH(task_rows<false>, grid, THREADS, 0, stream, rows);
    } else if (is_whole) {
        MB_LAUNCH(teacher_rows<true>, grid, THREADS, 0, stream, rows);
    } else {
        MB_LAUNCH(teacher_rows<false>, grid, THREADS, 0, stream, rows);
    }
    return MB_CUDA_LAUNCHED();
}

void mb_cuda_fill_rows_loss(mb_ops_table *table)
{
    table->rows_loss = cuda_rows_loss;
}
