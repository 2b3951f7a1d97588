/* cluster_options: what moe-cluster is asked for.
 *
 * Layer: stage.  Uses: choose (kmeans), store (shard_build).
 */
#ifndef MB_CLUSTER_OPTIONS_H
#define MB_CLUSTER_OPTIONS_H

#include "choose/kmeans.h"
#include "store/shard_build.h"

typedef struct mb_cluster_program {
    mb_kmeans_options kmeans;
    mb_shard_build_options build; /* only inputs */
    char *embeddings_path;        /* embeddings.path: embeddings.h5, or its folder */
    char *centres_path;           /* centres.path */
    char *k;                      /* cluster.k: a list sweeps */
    char *choose;                 /* cluster.choose */
    int64_t silhouette_rows;      /* cluster.silhouette_rows */
    bool pca, records;            /* cluster.pca, cluster.records */
} mb_cluster_program;
const mb_option *mb_cluster_option_table(int64_t *out_count);

#endif
