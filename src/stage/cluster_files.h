/* cluster_files: what moe-cluster writes: clusters.h5, the records by cluster, results.json.
 *
 * Layer: stage.  Uses: choose, store, cluster_point, program.
 *
 *   clusters.h5, cluster_<i>.jsonl   of the one number of clusters, or of the chosen one
 *   k<K>/clusters.h5                 of each of several; with cluster.choose=none the records too
 *   results.json                     see docs/formats.md
 */
#ifndef MB_CLUSTER_FILES_H
#define MB_CLUSTER_FILES_H

#include "choose/pca.h"
#include "stage/cluster_point.h"
#include "stage/program.h"
#include "store/clusters.h"

typedef struct mb_cluster_job {
    const mb_embeddings *embeddings;
    mb_rows rows;
    mb_pca pca;   /* width 0: none */
    float *plane; /* [N, 2] on every rank; NULL none */
    int64_t count;
    mb_cluster_point *point; /* [count] by k */
    int64_t chosen;          /* -1: none */
} mb_cluster_job;

/* The point chosen of several by cluster.choose, 0 of one; -1: none. MB_EUSAGE: an elbow of fewer than three
 * numbers; MB_EDATA: no number of clusters has a silhouette. */
mb_status mb_cluster_files_choose(const char *how, const mb_cluster_point *points, int64_t count,
                                  int64_t *out_chosen);
/* Rank 0 writes all files and names them as outputs of the run. paths [sources]: as mb_cluster_records_write
 * has it. Not collective. */
mb_status mb_cluster_files_write(mb_program *program, const mb_cluster_job *job, const char *embeddings_hash,
                                 const mb_cluster_records *records, const char *const *paths);

#endif
