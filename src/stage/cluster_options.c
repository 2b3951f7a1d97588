/* cluster_options: the option table of moe-cluster. */
#include "stage/cluster_options.h"

const mb_option *mb_cluster_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_TEXT(mb_cluster_program, embeddings_path, "embeddings.path", NULL, NULL,
                       "embeddings.h5 of moe-embed, or its folder", "cluster.inputs|cluster.embeddings"),
        {.key = "dataset.inputs",
         .kind = MB_OPTION_KIND_JSON,
         .field = offsetof(mb_cluster_program, build.inputs),
         .unit = "",
         .help = "the files the embeddings were made of, by the same names: name=path,name=path or a list of "
                 "groups; default: the paths that moe-embed wrote down",
         .aliases = "dataset.data_path|dataset.datasets"},
        MB_OPTION_LIST(mb_cluster_program, k, "cluster.k", "8",
                       "number of clusters; a list (2,4,8) makes them all and compares them",
                       "cluster.n_clusters|n_clusters|num_clusters"),
        MB_OPTION_TEXT(
            mb_cluster_program, choose, "cluster.choose", "silhouette", "inertia_elbow|silhouette|none",
            "of several numbers of clusters the one whose files are this stage's result: the point "
            "of the inertia's curve farthest below its chord, the largest mean silhouette, or none",
            NULL),
        MB_OPTION_TEXT(
            mb_cluster_program, centres_path, "centres.path", NULL, NULL,
            "clusters.h5 (or any HDF5 file with /centres f32 [k, dimension]) whose centres are the "
            "start, instead of k-means++",
            "cluster.start"),
        MB_OPTION_INT(
            mb_cluster_program, silhouette_rows, "cluster.silhouette_rows", "20000", 0, 1e7, "records",
            "up to so many records the silhouette is exact, over that it is of a sample of so many; "
            "0: none",
            NULL),
        MB_OPTION_BOOL(mb_cluster_program, pca, "cluster.pca", "true",
                       "the records in the plane of their two principal components, for the figure", NULL),
        MB_OPTION_BOOL(mb_cluster_program, records, "cluster.records", "true",
                       "write the records of every cluster as cluster_<i>.jsonl", NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}
