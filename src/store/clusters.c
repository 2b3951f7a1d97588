/* clusters.c: the file of clusters.
 *
 * 1. writing   2. reading
 */
#include "store/clusters.h"

#include <string.h>

/* ---- 1. writing ---- */

static mb_status write1(mb_h5 *file, const char *path, mb_dtype dtype, const void *data, int64_t n)
{
    const mb_tensor view = mb_tensor_view1(dtype, (void *)data, n);
    return mb_h5_write(file, path, &view);
}

static mb_status write2(mb_h5 *file, const char *path, mb_dtype dtype, const void *data, int64_t n, int64_t m)
{
    const mb_tensor view = mb_tensor_view2(dtype, (void *)data, n, m);
    return mb_h5_write(file, path, &view);
}

static mb_status copy_column(mb_h5 *from, mb_h5 *to, const char *path, mb_dtype dtype, int64_t count)
{
    mb_status status = MB_OK;
    void *data = NULL;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_read_new(from, path, dtype, &dims, shape, &data));
    if (dims != 1 || shape[0] != count)
        MB_RAISE(MB_EFORMAT, "%s: %s does not have one entry per record", mb_h5_path(from), path);
    MB_TRY(write1(to, path, dtype, data, count));
done:
    mb_free(data);
    return status;
}

static mb_status copy_records(mb_h5 *from, mb_h5 *to, int64_t count)
{
    mb_status status = MB_OK;
    char **names = NULL;
    int64_t n = 0;
    MB_TRY(copy_column(from, to, "/record_hash", MB_U64, count));
    MB_TRY(copy_column(from, to, "/source", MB_U16, count));
    MB_TRY(copy_column(from, to, "/source_index", MB_I64, count));
    MB_TRY(mb_h5_read_strings(from, "/source_names", &names, &n));
    MB_TRY(mb_h5_write_strings(to, "/source_names", (const char *const *)names, n));
done:
    mb_h5_free_strings(&names, n);
    return status;
}

static mb_status write_attributes(mb_h5 *file, const mb_clusters *c, mb_h5 *embeddings, const char *hash)
{
    mb_status status = MB_OK;
    mb_str model = MB_STR_EMPTY;
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-clusters"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_int(file, "/", "k", c->k));
    MB_TRY(mb_h5_set_int(file, "/", "dimension", c->width));
    MB_TRY(mb_h5_set_text(file, "/", "metric", c->is_cosine ? "cosine" : "euclidean"));
    MB_TRY(mb_h5_set_int(file, "/", "seed", c->seed));
    MB_TRY(mb_h5_set_int(file, "/", "best_start", c->best_start));
    MB_TRY(mb_h5_set_int(file, "/", "is_converged", c->is_converged));
    MB_TRY(mb_h5_set_real(file, "/", "inertia", c->inertia));
    MB_TRY(mb_h5_set_real(file, "/", "silhouette", c->silhouette_mean));
    MB_TRY(mb_h5_set_int(file, "/", "silhouette_rows", c->silhouette_rows));
    if (c->plane != NULL) MB_TRY(mb_h5_set_real(file, "/", "pca_variance", c->pca_variance));
    MB_TRY(mb_h5_set_text(file, "/", "embeddings", hash));
    if (mb_h5_get_text(embeddings, "/", "model", &model) == MB_OK)
        MB_TRY(mb_h5_set_text(file, "/", "model", mb_str_text(&model)));
    else
        mb_status_reset(); /* made by hand: no model */
done:
    mb_str_destroy(&model);
    return status;
}

mb_status mb_clusters_write(const char *path, const mb_clusters *c, const mb_embeddings *embeddings,
                            const char *embeddings_hash)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL, *from = mb_embeddings_file(embeddings);
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(write_attributes(file, c, from, embeddings_hash));
    MB_TRY(write1(file, "/labels", MB_I32, c->labels, c->count));
    MB_TRY(write1(file, "/distance", MB_F32, c->distance, c->count));
    MB_TRY(write2(file, "/centres", MB_F32, c->centres, c->k, c->width));
    MB_TRY(write1(file, "/sizes", MB_I64, c->sizes, c->k));
    MB_TRY(write2(file, "/inertia", MB_F64, c->inertia_trace, c->starts, c->longest));
    MB_TRY(write1(file, "/iterations", MB_I64, c->iterations, c->starts));
    MB_TRY(write1(file, "/silhouette", MB_F32, c->silhouette, c->count));
    MB_TRY(write1(file, "/silhouette_cluster", MB_F64, c->silhouette_cluster, c->k));
    if (c->plane != NULL) {
        MB_TRY(write2(file, "/pca", MB_F32, c->plane, c->count, 2));
        MB_TRY(write1(file, "/pca_mean", MB_F64, c->pca_mean, c->width));
        MB_TRY(write2(file, "/pca_axes", MB_F64, c->pca_axes, 2, c->width));
        MB_TRY(write1(file, "/pca_explained", MB_F64, c->pca_explained, 2));
    }
    MB_TRY(copy_records(from, file, c->count));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

/* ---- 2. reading ---- */

void mb_clusters_reset(mb_clusters *clusters)
{
    mb_free(clusters->labels);
    mb_free(clusters->distance);
    mb_free(clusters->centres);
    mb_free(clusters->sizes);
    *clusters = (mb_clusters){0};
}

static mb_status read_array(mb_h5 *file, const char *path, mb_dtype dtype, int dims, int64_t n, int64_t m,
                            void **out)
{
    mb_status status = MB_OK;
    void *data = NULL;
    int found;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_read_new(file, path, dtype, &found, shape, &data));
    if (found != dims || shape[0] != n || (dims == 2 && shape[1] != m))
        MB_RAISE(MB_EFORMAT, "%s: %s has another shape than its attributes say", mb_h5_path(file), path);
    *out = data;
    data = NULL;
done:
    mb_free(data);
    return status;
}

mb_status mb_clusters_read(const char *path, mb_clusters *out_clusters)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    mb_str text = MB_STR_EMPTY;
    mb_clusters c = {0};
    int64_t version = 0, shape[MB_TENSOR_MAX_DIMS];
    mb_dtype dtype;
    int dims;
    MB_TRY(mb_h5_open(path, &file));
    if (mb_h5_get_text(file, "/", "format", &text) != MB_OK ||
        !mb_str_equal(mb_str_text(&text), "moebatch-clusters"))
        MB_RAISE(MB_EFORMAT, "%s: not a file of clusters; make one with moe-cluster", path);
    MB_TRY(mb_h5_get_int(file, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: clusters of version %lld, this program reads version 1", path,
                 (long long)version);
    MB_TRY(mb_h5_get_int(file, "/", "k", &c.k));
    MB_TRY(mb_h5_get_int(file, "/", "dimension", &c.width));
    MB_TRY(mb_h5_get_int(file, "/", "seed", &c.seed));
    MB_TRY(mb_h5_get_real(file, "/", "inertia", &c.inertia));
    MB_TRY(mb_h5_get_text(file, "/", "metric", &text));
    c.is_cosine = mb_str_equal(mb_str_text(&text), "cosine");
    MB_TRY(mb_h5_shape(file, "/labels", &dtype, &dims, shape));
    c.count = shape[0];
    MB_TRY(read_array(file, "/labels", MB_I32, 1, c.count, 0, (void **)&c.labels));
    MB_TRY(read_array(file, "/distance", MB_F32, 1, c.count, 0, (void **)&c.distance));
    MB_TRY(read_array(file, "/centres", MB_F32, 2, c.k, c.width, (void **)&c.centres));
    MB_TRY(read_array(file, "/sizes", MB_I64, 1, c.k, 0, (void **)&c.sizes));
    for (int64_t i = 0; i < c.count; i++)
        if (c.labels[i] < 0 || c.labels[i] >= c.k)
            MB_RAISE(MB_EFORMAT, "%s: record %lld is in cluster %d of %lld", path, (long long)i, c.labels[i],
                     (long long)c.k);
    *out_clusters = c;
    c = (mb_clusters){0};
done:
    mb_str_destroy(&text);
    mb_clusters_reset(&c);
    mb_h5_destroy(&file);
    return status;
}
