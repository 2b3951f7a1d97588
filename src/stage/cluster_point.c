/* cluster_point: one number of clusters, from the rows to whole arrays. */
#include "stage/cluster_point.h"

#include "base/clock.h"
#include "base/log.h"
#include "stage/cluster_options.h"

void mb_cluster_point_reset(mb_cluster_point *point)
{
    mb_kmeans_result_reset(&point->kmeans);
    mb_free(point->labels);
    mb_free(point->distance);
    mb_free(point->silhouette);
    mb_free(point->silhouette_cluster);
    *point = (mb_cluster_point){0};
}

mb_status mb_cluster_point_gather(mb_comm *comm, const void *own, size_t bytes, void **out)
{
    mb_status status = MB_OK;
    int64_t *offsets = mb_calloc((size_t)mb_comm_size(comm) + 1, sizeof *offsets);
    MB_TRY(mb_comm_agree(comm, offsets != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgatherv(comm, own, bytes, out, offsets));
done:
    mb_free(offsets);
    return status;
}

mb_status mb_cluster_point_run(mb_program *program, mb_kmeans *kmeans, const mb_rows *rows, int64_t k,
                               const float *start, mb_cluster_point *p)
{
    const mb_cluster_program *own = program->own;
    mb_status status = MB_OK;
    const double began = mb_clock_seconds();
    const size_t bytes = (size_t)rows->count * sizeof(float);
    float *silhouette = NULL;
    const mb_silhouette_options options = {.limit = own->silhouette_rows,
                                           .seed = own->kmeans.seed,
                                           .is_cosine = mb_str_equal(own->kmeans.metric, "cosine"),
                                           .threads = own->kmeans.threads,
                                           .opt_isa = own->kmeans.opt_isa};
    MB_TRY(mb_kmeans_run(kmeans, k, start, &p->kmeans));
    silhouette = mb_calloc((size_t)rows->count, sizeof *silhouette);
    p->silhouette_cluster = mb_calloc((size_t)k, sizeof *p->silhouette_cluster);
    MB_TRY(mb_comm_agree(program->comm,
                         silhouette != NULL && p->silhouette_cluster != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_silhouette_run(program->comm, rows, p->kmeans.labels, k, &options, silhouette,
                             p->silhouette_cluster, &p->summary));
    MB_TRY(mb_cluster_point_gather(program->comm, p->kmeans.labels, bytes, (void **)&p->labels));
    MB_TRY(mb_cluster_point_gather(program->comm, p->kmeans.distance, bytes, (void **)&p->distance));
    MB_TRY(mb_cluster_point_gather(program->comm, silhouette, bytes, (void **)&p->silhouette));
    mb_info("k = %lld: inertia %.6g, silhouette %.4f%s, %lld iterations (start %lld of %lld) in %.1f s",
            (long long)k, p->kmeans.inertia, p->summary.mean,
            p->summary.rows < rows->total ? " (of a sample)" : "",
            (long long)p->kmeans.iterations[p->kmeans.best_restart], (long long)p->kmeans.best_restart + 1,
            (long long)p->kmeans.restarts, mb_clock_seconds() - began);
    if (!p->kmeans.is_converged)
        mb_warn("k = %lld: not at rest after %lld iterations (cluster.max_iterations)", (long long)k,
                (long long)own->kmeans.max_iterations);
    if (p->kmeans.empty > 0)
        mb_warn("k = %lld: %lld clusters are empty: fewer different vectors than clusters", (long long)k,
                (long long)p->kmeans.empty);
done:
    mb_free(silhouette);
    return status;
}
