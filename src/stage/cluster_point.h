/* cluster_point: one number of clusters, from the rows to whole arrays.
 *
 * Layer: stage.  Uses: choose (kmeans, silhouette), program.
 */
#ifndef MB_CLUSTER_POINT_H
#define MB_CLUSTER_POINT_H

#include "choose/kmeans.h"
#include "choose/silhouette.h"
#include "stage/program.h"

/* One number of clusters: whole arrays, the same on every rank. */
typedef struct mb_cluster_point {
    mb_kmeans_result kmeans;
    int32_t *labels;   /* [N] */
    float *distance;   /* [N] */
    float *silhouette; /* [N] */
    double *silhouette_cluster;
    mb_silhouette_summary summary;
} mb_cluster_point;
void mb_cluster_point_reset(mb_cluster_point *point);
/* k clusters by the program's options (an mb_cluster_program), in words to the log. Collective. */
mb_status mb_cluster_point_run(mb_program *program, mb_kmeans *kmeans, const mb_rows *rows, int64_t k,
                               const float *opt_start, mb_cluster_point *out_point);

/* An array of this rank's rows as one of all rows (mb_free). Collective. */
mb_status mb_cluster_point_gather(mb_comm *comm, const void *own, size_t bytes, void **out);

#endif
