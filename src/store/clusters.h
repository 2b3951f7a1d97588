/* clusters: which cluster every record of a file of embeddings is in, and the records of each cluster as
 * JSONL.
 *
 * Layer: store.  Uses: base, text (records), h5, scores (the columns of records).
 *
 * File, format "moebatch-clusters" version 1 (N records in the order of the embeddings, K clusters, D
 * numbers, R starts, I iterations of the longest):
 *   /labels i32 [N], /distance f32 [N]   cluster, and squared distance to its centre
 *   /centres f32 [K, D], /sizes i64 [K]
 *   /inertia f64 [R, I]                  sum of squared distances at every iteration; NaN behind the last
 *   /iterations i64 [R]
 *   /silhouette f32 [N]                  NaN where not sampled; /silhouette_cluster f64 [K]: means
 *   /pca f32 [N, 2], /pca_mean f64 [D], /pca_axes f64 [2, D], /pca_explained f64 [2]: shares of the variance;
 *                                        absent without cluster.pca
 *   /record_hash, /source, /source_index, /source_names: as in the embeddings
 *   attributes: format, version, k, dimension, metric, seed, best_start, is_converged, inertia, silhouette,
 *   silhouette_rows, pca_variance, embeddings (content hash), model (of the embeddings)
 */
#ifndef MB_CLUSTERS_H
#define MB_CLUSTERS_H

#include "store/embeddings.h"
#include "store/scores.h"

typedef struct mb_clusters {
    int64_t count, width, k; /* N, D, K */
    int32_t *labels;
    float *distance, *centres;
    int64_t *sizes;
    int64_t starts, longest; /* R, I */
    double *inertia_trace;
    int64_t *iterations;
    int64_t best_start, seed;
    bool is_converged, is_cosine;
    double inertia, silhouette_mean;
    int64_t silhouette_rows;
    float *silhouette;
    double *silhouette_cluster;
    float *plane; /* NULL: no /pca */
    const double *pca_mean, *pca_axes;
    double pca_explained[2], pca_variance;
} mb_clusters;

/* Borrowed arrays into a file (one process); embeddings_hash: content hash of the file they were made of. */
mb_status mb_clusters_write(const char *path, const mb_clusters *clusters, const mb_embeddings *embeddings,
                            const char *embeddings_hash);
/* labels, distance, centres, sizes, k, metric, seed, inertia; the rest stays NULL. mb_clusters_reset frees
 * them. MB_EFORMAT. */
mb_status mb_clusters_read(const char *path, mb_clusters *out_clusters);
void mb_clusters_reset(mb_clusters *clusters);

/* The records of a file of embeddings: who they are and where they stand. */
typedef struct mb_cluster_records {
    int64_t count, source_count;
    uint16_t *source;                        /* [count] */
    int64_t *source_index, *offset, *length; /* [count] */
    char **source_names, **source_files;     /* [source_count] */
} mb_cluster_records;
mb_status mb_cluster_records_read(const mb_embeddings *embeddings, mb_cluster_records *out_records);
void mb_cluster_records_reset(mb_cluster_records *records);

/* folder/cluster_<i>.jsonl of every cluster: the records' bytes as they stand in the file, one per line, in
 * order (of CSV, and of JSON arrays with line breaks inside an element, the object on one line). A record in
 * several pieces goes with its first. paths [source_count]: the files; NULL: source_files. out_lines [k]:
 * lines written. MB_EDATA: a file that changed since (a record does not stand where it did); MB_EUNSUPPORTED:
 * a packed file whose records were shuffled. One process. */
mb_status mb_cluster_records_write(const char *folder, const mb_cluster_records *records,
                                   const char *const *paths, const int32_t *labels, int64_t k,
                                   int64_t *out_lines);

#endif
