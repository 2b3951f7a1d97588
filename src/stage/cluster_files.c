/* cluster_files: what moe-cluster writes.
 *
 * 1. choosing   2. clusters.h5   3. records   4. results.json
 */
#include "stage/cluster_files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "stage/cluster_options.h"

/* ---- 1. choosing ---- */

/* How far the curve of inertia is below the chord from its first to its last point, both axes cut to [0, 1].
 * */
static double below_chord(const mb_cluster_point *points, int64_t count, int64_t i)
{
    const double first = points[0].kmeans.inertia, last = points[count - 1].kmeans.inertia,
                 k_first = (double)points[0].kmeans.k, k_last = (double)points[count - 1].kmeans.k;
    if (first == last) return 0;
    return 1 - ((double)points[i].kmeans.k - k_first) / (k_last - k_first) -
           (points[i].kmeans.inertia - last) / (first - last);
}

mb_status mb_cluster_files_choose(const char *how, const mb_cluster_point *points, int64_t count,
                                  int64_t *out_chosen)
{
    mb_status status = MB_OK;
    const bool is_elbow = mb_str_equal(how, "inertia_elbow");
    int64_t best = -1;
    double most = -INFINITY;
    if (count == 1 || mb_str_equal(how, "none")) {
        *out_chosen = count == 1 ? 0 : -1;
        goto done;
    }
    if (is_elbow && count < 3)
        MB_RAISE(MB_EUSAGE,
                 "cluster.choose = inertia_elbow needs three numbers of clusters or more in cluster.k");
    for (int64_t i = 0; i < count; i++) {
        const double value = is_elbow ? below_chord(points, count, i) : points[i].summary.mean;
        if (!(value > most)) continue;
        most = value;
        best = i;
    }
    if (best < 0)
        MB_RAISE(MB_EDATA,
                 "no number of clusters has a silhouette to choose by; take cluster.choose=inertia_elbow, or "
                 "set cluster.silhouette_rows above 0");
    *out_chosen = best;
done:
    return status;
}

/* ---- 2. clusters.h5 ---- */

static mb_status write_clusters(mb_program *program, const mb_cluster_job *job, int64_t i, const char *folder,
                                const char *embeddings_hash)
{
    mb_status status = MB_OK;
    const mb_cluster_point *p = &job->point[i];
    const mb_cluster_program *own = program->own;
    mb_clusters c = {.count = job->rows.total,
                     .width = job->rows.width,
                     .k = p->kmeans.k,
                     .labels = p->labels,
                     .distance = p->distance,
                     .centres = p->kmeans.centres,
                     .sizes = p->kmeans.sizes,
                     .starts = p->kmeans.restarts,
                     .longest = p->kmeans.longest,
                     .inertia_trace = p->kmeans.trace,
                     .iterations = p->kmeans.iterations,
                     .best_start = p->kmeans.best_restart,
                     .seed = own->kmeans.seed,
                     .is_converged = p->kmeans.is_converged,
                     .is_cosine = mb_str_equal(own->kmeans.metric, "cosine"),
                     .inertia = p->kmeans.inertia,
                     .silhouette_mean = p->summary.mean,
                     .silhouette_rows = p->summary.rows,
                     .silhouette = p->silhouette,
                     .silhouette_cluster = p->silhouette_cluster,
                     .plane = job->plane,
                     .pca_mean = job->pca.mean,
                     .pca_axes = job->pca.axes,
                     .pca_variance = job->pca.total};
    char *name = mb_str_format("%sclusters.h5", folder),
         *path = name != NULL ? mb_program_path(program, name) : NULL;
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    for (int a = 0; a < MB_PCA_AXES && job->pca.total > 0; a++)
        c.pca_explained[a] = job->pca.variance[a] / job->pca.total;
    if (folder[0] != '\0') {
        char *made = mb_program_path(program, folder);
        status = made != NULL ? mb_files_make_folders(made) : MB_ENOMEM;
        mb_free(made);
        MB_TRY(status);
    }
    MB_TRY(mb_clusters_write(path, &c, job->embeddings, embeddings_hash));
    MB_TRY(mb_program_output(program, name));
done:
    mb_free(name);
    mb_free(path);
    return status;
}

/* ---- 3. records ---- */

static mb_status write_records(mb_program *program, const mb_cluster_job *job, int64_t i, const char *folder,
                               const mb_cluster_records *records, const char *const *paths, int64_t *lines)
{
    mb_status status = MB_OK;
    const mb_cluster_point *p = &job->point[i];
    char *path = mb_program_path(program, folder), *name = NULL;
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_cluster_records_write(path, records, paths, p->labels, p->kmeans.k, lines));
    for (int64_t c = 0; c < p->kmeans.k; c++) {
        name = mb_str_format("%scluster_%lld.jsonl", folder, (long long)c);
        if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_program_output(program, name));
        MB_FREE(name);
    }
done:
    mb_free(path);
    mb_free(name);
    return status;
}

/* ---- 4. results.json ---- */

static json_t *real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* One number of clusters in the sweep. */
static mb_status describe_point(const mb_cluster_point *p, json_t **out)
{
    mb_status status = MB_OK;
    const mb_kmeans_result *k = &p->kmeans;
    json_t *object = json_object(), *sizes = json_array();
    for (int64_t c = 0; c < k->k; c++)
        if (json_array_append_new(sizes, json_integer(k->sizes[c])) != 0)
            MB_RAISE(MB_ENOMEM, "no memory for JSON");
    MB_TRY(mb_json_set(object, "k", json_integer(k->k)));
    MB_TRY(mb_json_set(object, "inertia", real(k->inertia)));
    MB_TRY(mb_json_set(object, "silhouette", real(p->summary.mean)));
    MB_TRY(mb_json_set(object, "silhouette_records", json_integer(p->summary.rows)));
    MB_TRY(mb_json_set(object, "iterations", json_integer(k->iterations[k->best_restart])));
    MB_TRY(mb_json_set(object, "best_start", json_integer(k->best_restart)));
    MB_TRY(mb_json_set(object, "converged", json_boolean(k->is_converged)));
    MB_TRY(mb_json_set(object, "empty", json_integer(k->empty)));
    status = mb_json_set(object, "sizes", sizes);
    sizes = NULL;
    MB_TRY(status);
    *out = object;
    object = NULL;
done:
    json_decref(object);
    json_decref(sizes);
    return status;
}

/* One cluster: its file, size, and where its records come from. */
static mb_status describe_cluster(const mb_cluster_point *p, int64_t c, const mb_cluster_records *records,
                                  const int64_t *opt_lines, json_t **out)
{
    mb_status status = MB_OK;
    json_t *object = json_object(), *sources = json_object();
    int64_t *counts = NULL;
    char name[64];
    MB_NEW_ARRAY(counts, records->source_count);
    for (int64_t i = 0; i < records->count; i++) counts[records->source[i]] += p->labels[i] == c;
    for (int64_t s = 0; s < records->source_count; s++)
        MB_TRY(mb_json_set(sources, records->source_names[s], json_integer(counts[s])));
    snprintf(name, sizeof name, "cluster_%lld.jsonl", (long long)c);
    if (opt_lines != NULL) MB_TRY(mb_json_set(object, "file", json_string(name)));
    MB_TRY(mb_json_set(object, "records", json_integer(p->kmeans.sizes[c])));
    if (opt_lines != NULL) MB_TRY(mb_json_set(object, "lines", json_integer(opt_lines[c])));
    MB_TRY(mb_json_set(object, "silhouette", real(p->silhouette_cluster[c])));
    status = mb_json_set(object, "sources", sources);
    sources = NULL;
    MB_TRY(status);
    *out = object;
    object = NULL;
done:
    mb_free(counts);
    json_decref(object);
    json_decref(sources);
    return status;
}

static mb_status write_results(mb_program *program, const mb_cluster_job *job,
                               const mb_cluster_records *records, const int64_t *opt_lines)
{
    mb_status status = MB_OK;
    const mb_cluster_program *own = program->own;
    const mb_cluster_point *chosen = job->chosen >= 0 ? &job->point[job->chosen] : NULL;
    json_t *results = json_object(), *sweep = json_array(), *clusters = json_array(), *item = NULL;
    char *path = mb_program_path(program, "results.json");
    if (path == NULL || results == NULL || sweep == NULL || clusters == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for JSON");
    for (int64_t i = 0; i < job->count; i++) {
        MB_TRY(describe_point(&job->point[i], &item));
        if (json_array_append_new(sweep, item) != 0) MB_RAISE(MB_ENOMEM, "no memory for JSON");
    }
    for (int64_t c = 0; chosen != NULL && c < chosen->kmeans.k; c++) {
        MB_TRY(describe_cluster(chosen, c, records, opt_lines, &item));
        if (json_array_append_new(clusters, item) != 0) MB_RAISE(MB_ENOMEM, "no memory for JSON");
    }
    MB_TRY(mb_json_set(results, "format", json_string("moebatch-cluster-results")));
    MB_TRY(mb_json_set(results, "records", json_integer(job->rows.total)));
    MB_TRY(mb_json_set(results, "dimension", json_integer(job->rows.width)));
    MB_TRY(mb_json_set(results, "metric", json_string(own->kmeans.metric)));
    MB_TRY(mb_json_set(results, "chosen", chosen != NULL ? json_integer(chosen->kmeans.k) : json_null()));
    MB_TRY(mb_json_set(results, "chosen_by", json_string(job->count > 1 ? own->choose : "given")));
    MB_TRY(mb_json_set(results, "sweep", json_incref(sweep)));
    MB_TRY(mb_json_set(results, "clusters", json_incref(clusters)));
    if (job->pca.total > 0)
        MB_TRY(mb_json_set(results, "pca_explained",
                           json_pack("[f, f]", job->pca.variance[0] / job->pca.total,
                                     job->pca.variance[1] / job->pca.total)));
    MB_TRY(mb_json_write(path, results, 2, false));
    MB_TRY(mb_program_output(program, "results.json"));
done:
    json_decref(results);
    json_decref(sweep);
    json_decref(clusters);
    mb_free(path);
    return status;
}

mb_status mb_cluster_files_write(mb_program *program, const mb_cluster_job *job, const char *embeddings_hash,
                                 const mb_cluster_records *records, const char *const *paths)
{
    mb_status status = MB_OK;
    const mb_cluster_program *own = program->own;
    int64_t *lines = NULL, most = 0;
    char folder[40] = "";
    for (int64_t i = 0; i < job->count; i++)
        if (job->point[i].kmeans.k > most) most = job->point[i].kmeans.k;
    MB_NEW_ARRAY(lines, most);
    for (int64_t i = 0; job->count > 1 && i < job->count; i++) {
        snprintf(folder, sizeof folder, "k%lld/", (long long)job->point[i].kmeans.k);
        MB_TRY(write_clusters(program, job, i, folder, embeddings_hash));
        if (job->chosen < 0 && own->records)
            MB_TRY(write_records(program, job, i, folder, records, paths, lines));
    }
    if (job->chosen >= 0) {
        MB_TRY(write_clusters(program, job, job->chosen, "", embeddings_hash));
        if (own->records) MB_TRY(write_records(program, job, job->chosen, "", records, paths, lines));
    }
    MB_TRY(write_results(program, job, records, own->records ? lines : NULL));
done:
    mb_free(lines);
    return status;
}
