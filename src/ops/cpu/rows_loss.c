/* rows_loss (cpu): losses of rows of logits, a row per thread: the loops are kernels. */
#include <omp.h>
#include <string.h>

#include "ops/cpu/cpu.h"

typedef struct rows_work {
    const mb_kernels *kernels;
    int64_t v;
    float *logits, *room; /* [N, V]; [threads, room_size] */
    int64_t room_size;
    const int32_t *opt_targets;
    const mb_teacher_rows *opt_teacher;
    const float *opt_row_weight;
} rows_work;

static mb_teacher_row teacher_row(const mb_teacher_rows *t, int64_t row, int64_t v)
{
    mb_teacher_row out = {.temperature = t->temperature, .beta = t->beta, .k = v};
    if (t->opt_dense != NULL) {
        out.logprob = t->opt_dense + row * v;
        return out;
    }
    out.k = t->k;
    out.opt_ids = t->ids + row * t->k;
    out.logprob = t->logprob + row * t->k;
    out.tail = t->k < v ? t->tail[row] : 0;
    return out;
}

static mb_row_losses run_row(const rows_work *work, int64_t t, float *room)
{
    const mb_teacher_rows *teacher = work->opt_teacher;
    const float weight = work->opt_row_weight != NULL ? work->opt_row_weight[t] : 0;
    const int64_t target = work->opt_targets != NULL ? work->opt_targets[t] : -1;
    float *logits = work->logits + t * work->v;
    mb_row_losses out = {0};
    if (teacher == NULL) {
        out.ce = work->kernels->cross_entropy(logits, work->v, target >= 0 ? target : 0, weight, &out.argmax);
    } else {
        const mb_teacher_row row = teacher_row(teacher, t, work->v);
        const float distil = (float)(weight * teacher->distil_weight * teacher->temperature);
        work->kernels->teacher_loss(logits, work->v, target, &row, distil,
                                    (float)(weight * teacher->task_weight), weight != 0, room, &out);
    }
    if (work->opt_row_weight != NULL && weight == 0) memset(logits, 0, (size_t)work->v * sizeof *logits);
    return out;
}

mb_status mb_rows_loss_cpu(mb_ops *ops, mb_tensor *logits, const int32_t *opt_targets,
                           const mb_teacher_rows *opt_teacher, mb_tensor *opt_ce, mb_tensor *opt_distance,
                           int32_t *opt_argmax, const float *opt_row_weight)
{
    mb_status status = MB_OK;
    const int64_t n = mb_ops_rows(logits), v = mb_ops_width(logits);
    const bool is_sparse = opt_teacher != NULL && opt_teacher->opt_dense == NULL;
    rows_work work = {.kernels = mb_cpu_get(ops)->kernels,
                      .v = v,
                      .logits = mb_tensor_f32(logits),
                      .room_size = is_sparse ? (opt_teacher->k + 15) / 16 * 16 : 0,
                      .opt_targets = opt_targets,
                      .opt_teacher = opt_teacher,
                      .opt_row_weight = opt_row_weight};
    MB_ARENA_ARRAY(ops->scratch, work.room, ops->threads * work.room_size);
#pragma omp parallel for schedule(static) num_threads(mb_cpu_threads_for(ops, n *v))
    for (int64_t t = 0; t < n; t++) {
        const mb_row_losses one = run_row(&work, t, work.room + omp_get_thread_num() * work.room_size);
        if (opt_ce != NULL) mb_tensor_f32(opt_ce)[t] = one.ce;
        if (opt_distance != NULL) mb_tensor_f32(opt_distance)[t] = one.distance;
        if (opt_argmax != NULL) opt_argmax[t] = one.argmax;
    }
done:
    return status;
}
